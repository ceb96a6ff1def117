"""Cooperative games small enough for tables: sampled as environments, and solved without sampling.

A game is a table of rewards R(s, a) and one of next-state probabilities P(s' | s, a) over joint actions a.
They give exactly the best return of any joint policy (`optimum`) and the return J of a product of the agents'
policies (`exact_return`). `StochasticGame` is the didactic random game of arXiv 2211.03032.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from envs.base import Step, TeamVectorEnv, free_bytes, identity, integers, short, unavailable
from envs.compiled import njit

PAYOFFS: dict[str, tuple[float, float, float, float]] = {
    "1": (5.0, 7.0, 6.0, 4.0),  # two equilibria: (1,2), the optimum, and (2,1)
    "2": (1.0, 3.0, 5.0, 4.0),  # one equilibrium, the optimum (2,1)
    "3": (7.0, 1.0, 1.0, 3.0),  # two equilibria: (1,1), the optimum, and (2,2)
    "4": (20.0, 0.0, 0.0, 10.0),  # the same, with more at stake
}
"""R(1,1), R(1,2), R(2,1), R(2,2) of games 1 to 4: a, b, c, d of Table 3 of arXiv 2211.03032. p and q are the
probabilities of action 1; pure equilibria are named, `MatrixGame(payoff=...)` takes any other game."""


def in_full(x: np.float32) -> str:
    """A number with all of its digits, and no others: names of games with other payoffs differ."""
    return np.format_float_positional(x, trim="-")


def table_bytes(num_states: int, num_agents: int, num_actions: int) -> int:
    """Bytes that the float32 tables of a game take: S·A^N rewards and S·A^N·S probabilities."""
    return 4 * num_states * num_actions**num_agents * (num_states + 1)


def check_memory(num_states: int, num_agents: int, num_actions: int, share: float = 0.5) -> None:
    """Announce large tables; MemoryError if they need more than `share` of the free memory."""
    need, free = table_bytes(num_states, num_agents, num_actions), free_bytes()
    what = f"A game of {num_states} states, {num_agents} agents and {num_actions} actions needs tables of"
    left = "" if free is None else f" of {free / 1e6:,.0f} MB that are free"
    if free is not None and need > share * free:
        raise MemoryError(
            f"{what} {need / 1e6:,.0f} MB, more than {share:.0%}{left}. Take fewer states, agents or actions "
            "(num_states, num_agents, num_actions), or allow a larger share (memory_share)."
        )
    if need > 2**26:
        print(f"{what} {need / 1e6:,.0f} MB{left}.", flush=True)


@njit(nogil=True, error_model="numpy")
def _step_kernel(rewards, transitions, actions, state, rng, num_actions, reward):
    """Play one step in every environment, in place. The next state inverts the cumulative distribution."""
    last = transitions.shape[2] - 1
    for e in range(state.shape[0]):
        joint = 0
        for i in range(actions.shape[1]):
            joint = joint * num_actions + actions[e, i]
        reward[e] = rewards[state[e], joint]
        # splitmix64: one state per environment, one draw per step.
        rng[e] += np.uint64(0x9E3779B97F4A7C15)
        z = rng[e]
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        u = np.float64(z >> np.uint64(11)) * 2.0**-53
        row = transitions[state[e], joint]
        s = 0
        below = np.float64(row[0])
        while below <= u and s < last:
            s += 1
            below += np.float64(row[s])
        # Rounding can leave the sum below u at the end: then the last state that can be reached.
        while row[s] == 0.0 and s > 0:
            s -= 1
        state[e] = s


@njit(nogil=True, error_model="numpy")
def _contract_kernel(rewards, transitions, weights, r, p):
    """r(s) = sum_a w(s, a) R(s, a) and p(s, s') = sum_a w(s, a) P(s' | s, a), summed in float64."""
    for s in range(weights.shape[0]):
        r[s] = 0.0
        p[s, :] = 0.0
        for a in range(weights.shape[1]):
            w = weights[s, a]
            if w != 0.0:
                r[s] += w * rewards[s, a]
                for t in range(p.shape[1]):
                    p[s, t] += w * transitions[s, a, t]


@njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
def _action_value(row, value):
    """sum_s' P(s') value(s'), in any order of summation, so that it runs in vector registers."""
    total = 0.0
    for t in range(row.shape[0]):
        total += row[t] * value[t]
    return total


@njit(nogil=True, error_model="numpy")
def _backup_kernel(rewards, transitions, value, bound, rise, best, out):
    """One step of backward induction: out(s) = max_a R(s, a) + E[value(s')], best(s) the action.

    bound(s, a) + rise is at least the action's value now, so only actions that can still win are looked at.
    """
    for s in range(rewards.shape[0]):
        choice = best[s]
        top = rewards[s, choice] + _action_value(transitions[s, choice], value)
        bound[s, choice] = top - rise
        for a in range(rewards.shape[1]):
            if bound[s, a] + rise > top:
                q = rewards[s, a] + _action_value(transitions[s, a], value)
                bound[s, a] = q - rise
                if q > top:
                    top = q
                    choice = a
        best[s] = choice
        out[s] = top


class Optimum(NamedTuple):
    """The best expected return of an episode, and actions (T, S, N) int64 by step and state that reach it."""

    value: float
    actions: np.ndarray


def _check_probabilities(transitions: np.ndarray) -> None:
    """ValueError unless each row of (..., S) is a distribution over next states."""
    wrong = ~((transitions >= 0).all(-1) & (np.abs(transitions.sum(-1) - 1.0) < 1e-3))
    if wrong.any():
        s, *actions = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            "transitions must be probabilities: non-negative, summing to 1 over next states; those of state "
            f"{s} and actions {actions} are {short(transitions[(s, *actions)].tolist())}."
        )


class TabularGame(TeamVectorEnv):
    """`num_envs` copies of one tabular game over shared tables.

    rewards: (S, A, ..., A) float32, one axis per agent; transitions: (S, A, ..., A, S) float32, summing to 1.
    Episodes start in state 0 and last `horizon` steps; they end truncated, or terminated if `terminates`.
    Observations (E, N, S) float32 are the state, one-hot, the same for every agent. Actions int (E, N).
    Reproducible: environment e depends on the seed and e alone.
    """

    metadata = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.SAME_STEP, "render_fps": 4}
    backend = "embedded"
    env_id = "matrix/tables"
    episode_limit: int
    exact = True

    def __init__(
        self,
        rewards: np.ndarray,
        transitions: np.ndarray,
        horizon: int,
        num_envs: int = 1,
        seed: int = 0,
        terminates: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1 or horizon < 1:
            raise ValueError(f"num_envs and horizon must be at least 1, got {num_envs} and {horizon}.")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f'render_mode must be None or "rgb_array", got {render_mode!r}.')
        S, N, A = rewards.shape[0], rewards.ndim - 1, rewards.shape[-1]
        if N < 1 or rewards.shape != (S, *[A] * N) or transitions.shape != (*rewards.shape, S):
            raise ValueError(
                "rewards must have shape (S, A, ..., A), one axis A per agent, and transitions "
                f"(S, A, ..., A, S); got {rewards.shape} and {transitions.shape}."
            )
        if not isinstance(self, StochasticGame):  # whose own are sound, and may be large
            _check_probabilities(transitions)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.num_agents, self.num_actions = N, A
        self.num_states = self.obs_dim = S
        self.episode_limit, self.terminates = horizon, terminates
        self.agent_obs_dims, self.agent_act_dims = (S,) * N, (A,) * N
        self.single_observation_space = gym.spaces.Box(0.0, 1.0, (N, S), np.float32)
        self.single_action_space = gym.spaces.MultiDiscrete([A] * N)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.rewards = np.ascontiguousarray(rewards, dtype=np.float32)
        self.transitions = np.ascontiguousarray(transitions, dtype=np.float32)
        self._rewards = self.rewards.reshape(S, -1)
        self._transitions = self.transitions.reshape(S, -1, S)
        self._state, self._length = np.zeros((2, num_envs), dtype=np.int64)
        self._return = np.zeros(num_envs, dtype=np.float64)
        self._mask = np.ones((num_envs, N, A), dtype=np.bool_)
        # Games of one size differ in their rewards; transitions may be a hundred times as long to read.
        self._task = identity(horizon, terminates, self.rewards)
        self._seed_streams(self._take_seed(seed))

    def _seed_streams(self, seed: int) -> None:
        children = np.random.SeedSequence(seed).spawn(self.num_envs)
        self._rng = np.array([child.generate_state(1, np.uint64)[0] for child in children])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes everywhere; without a seed the random streams go on. Obs (E, N, S) and infos."""
        self._before_reset(seed, options)
        self._state[:], self._length[:], self._return[:] = 0, 0, 0.0
        self._started = True
        return self._observe(), self._infos()

    def step(self, actions: np.ndarray) -> Step:
        """Play actions int (E, N). ValueError, with nothing played, on a wrong shape, dtype or action."""
        self._check_started()
        actions = integers(actions, self.num_envs, self.num_agents)
        actions = np.ascontiguousarray(actions, dtype=np.int64)
        if actions.min() < 0 or actions.max() >= self.num_actions:
            wrong = (actions < 0) | (actions >= self.num_actions)
            raise unavailable(actions, self._mask, *np.argwhere(wrong)[0])
        reward = np.empty(self.num_envs, dtype=np.float32)
        tables = self._rewards, self._transitions
        _step_kernel(*tables, actions, self._state, self._rng, self.num_actions, reward)
        self._length += 1
        self._return += reward
        done = self._length >= self.episode_limit
        infos = self._infos()
        if done.any():
            infos["final_obs"][done], infos["final_alive"][done] = self._observe()[done], True
            infos["final_action_mask"] = done[:, None, None] & infos["action_mask"]
            infos["_final_obs"], infos["_episode"] = done, done.copy()
            infos["episode"]["r"][done] = self._return[done]
            infos["episode"]["l"][done] = self._length[done]
            self._state[done], self._length[done], self._return[done] = 0, 0, 0.0
        return self._observe(), reward, done & self.terminates, done & (not self.terminates), infos

    def _observe(self) -> np.ndarray:
        obs = np.zeros((self.num_envs, self.num_agents, self.num_states), dtype=np.float32)
        obs[np.arange(self.num_envs), :, self._state] = 1.0
        return obs

    def _infos(self) -> dict[str, Any]:
        alive = np.ones((self.num_envs, self.num_agents), dtype=np.bool_)
        return self._no_ends(self._mask.copy(), alive)

    def _get_state(self) -> dict[str, np.ndarray]:
        """All but the tables that decides what follows, as copies; `set_state` continues exactly from it."""
        names = "state", "rng", "length", "return", "task"
        return {name: getattr(self, f"_{name}").copy() for name in names}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a `get_state()` of the same game and num_envs; ValueError if it does not fit."""
        state = self._check_form(state)
        most = {"state": self.num_states, "length": self.episode_limit}
        sound = {key: ((state[key] >= 0) & (state[key] < bound)).all() for key, bound in most.items()}
        for key, good in (sound | {"return": np.isfinite(state["return"]).all()}).items():
            if not good:
                raise ValueError(f"This state is damaged: {key!r} holds values that no episode has.")
        for key, array in self._get_state().items():
            setattr(self, f"_{key}", np.array(state[key], dtype=array.dtype))
        self._started = True

    def induced(self, policies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rewards (S,) and transitions (S, S), float64, of the Markov chain that a product policy induces.

        policies: (N, S, A), pi_i(a | s). ValueError if rows are not distributions.
        """
        N, S, A = self.num_agents, self.num_states, self.num_actions
        pi = np.asarray(policies, dtype=np.float64)
        if pi.shape != (N, S, A):
            raise ValueError(f"policies must have shape {(N, S, A)} (N, S, A), got {pi.shape}.")
        total = pi.sum(axis=-1, keepdims=True)
        if not (np.abs(total - 1.0) < 1e-3).all() or (pi < 0).any():
            raise ValueError("policies must be probabilities: non-negative, summing to 1 over actions.")
        pi = pi / total  # float32 policies sum to 1 only nearly
        weights = pi[0]
        for own in pi[1:]:
            weights = (weights[:, :, None] * own[:, None, :]).reshape(S, -1)
        r, p = np.empty(S), np.empty((S, S))
        _contract_kernel(self._rewards, self._transitions, weights, r, p)
        return r, p

    def exact_return(self, policies: np.ndarray) -> float:
        """J: expected undiscounted return of an episode, without sampling.

        policies: (N, S, A), or (T, N, S, A) for policies that depend on the step.
        """
        T, by_step = self.episode_limit, np.ndim(policies) == 4
        if by_step and len(policies) != T:
            raise ValueError(f"policies by step must be of {T} steps, got {len(policies)}.")
        value = np.zeros(self.num_states)
        for r, p in map(self.induced, policies[::-1]) if by_step else [self.induced(policies)] * T:
            value = r + p @ value
        return float(value[0])

    def optimum(self) -> Optimum:
        """The best return over all joint policies, by backward induction over the horizon."""
        S, T = self.num_states, self.episode_limit
        bound, rise = np.full(self._rewards.shape, np.inf), 0.0
        values, best, joint = np.zeros((T + 1, S)), np.zeros(S, np.int64), np.zeros((T, S), np.int64)
        for t in reversed(range(T)):
            if t < T - 1:
                # Q_t(s, a) exceeds Q_t+1(s, a) by an average of the values' change: by its maximum at most.
                # The slack covers that rows of a float32 table sum to 1 only nearly.
                change = values[t + 1] - values[t + 2]
                rise += change.max() + 1e-5 * np.abs(change).max()
            _backup_kernel(self._rewards, self._transitions, values[t + 1], bound, rise, best, values[t])
            joint[t] = best
        actions = np.stack(np.unravel_index(joint, (self.num_actions,) * self.num_agents), axis=-1)
        return Optimum(float(values[0, 0]), actions)

    def render(self, i: int = 0) -> np.ndarray:  # type: ignore[override]
        """Picture of environment i, (H, W, 3) uint8: a cell per state, the current one red.

        ValueError unless made with render_mode="rgb_array", IndexError unless there is an environment i.
        """
        self._check_picture(i)
        side = int(np.ceil(np.sqrt(self.num_states)))
        cells = np.full((side * side, 3), 255, dtype=np.uint8)
        cells[: self.num_states], cells[self._state[i]] = 200, (200, 30, 30)
        picture = cells.reshape(side, side, 3).repeat(24, axis=0).repeat(24, axis=1)
        picture[::24], picture[:, ::24] = 255, 255
        return picture


class StochasticGame(TabularGame):
    """The didactic game: rewards 10·U(0,1) − 5, transitions softmax(4·U(0,1) − 2), drawn from `game_seed`.

    No terminal state; episodes are truncated after `num_states` steps. MemoryError if the tables
    (`table_bytes`; 631 MB by default) need more than `memory_share` of the free memory.
    """

    env_id = "matrix/stochastic"

    def __init__(
        self,
        num_envs: int = 1,
        seed: int = 0,
        num_states: int = 100,
        num_agents: int = 6,
        num_actions: int = 5,
        game_seed: int = 0,
        memory_share: float = 0.5,
        render_mode: str | None = None,
    ) -> None:
        sizes = num_states, num_agents, num_actions
        if min(sizes) < 1:
            raise ValueError(f"num_states, num_agents and num_actions must be at least 1, got {sizes}.")
        if game_seed < 0 or not 0 < memory_share <= 1:
            raise ValueError(
                "game_seed must be at least 0 and memory_share above 0 and at most 1, got "
                f"{game_seed} and {memory_share}."
            )
        check_memory(*sizes, memory_share)
        rng = np.random.default_rng(game_seed)
        shape = (num_states, *[num_actions] * num_agents)
        rewards = 10.0 * rng.random(shape, dtype=np.float32) - 5.0
        transitions = np.empty((*shape, num_states), dtype=np.float32)
        for slab in transitions:  # state by state and in place: no second table
            rng.random(out=slab, dtype=np.float32)
            slab *= 4.0
            slab -= 2.0
            np.exp(slab, out=slab)
            slab /= slab.sum(axis=-1, keepdims=True)
        self.game_seed = game_seed
        self.label = "x".join(map(str, sizes)) + (f"-game{game_seed}" if game_seed else "")
        super().__init__(rewards, transitions, num_states, num_envs, seed, False, render_mode)


class MatrixGame(TabularGame):
    """Two agents, two actions each, one step: the payoff is the reward and the episode ends, terminated.

    game: "1" to "4", a row of PAYOFFS. payoff: R(1,1), R(1,2), R(2,1), R(2,2) instead of it.
    """

    def __init__(
        self,
        game: str = "1",
        num_envs: int = 1,
        seed: int = 0,
        payoff: tuple[float, float, float, float] | None = None,
        render_mode: str | None = None,
    ) -> None:
        if payoff is None and str(game) not in PAYOFFS:
            raise ValueError(f"game must be one of {', '.join(PAYOFFS)}, got {game!r}.")
        values = np.asarray(PAYOFFS[str(game)] if payoff is None else payoff, dtype=np.float32)
        if values.shape != (4,) or not np.isfinite(values).all():
            raise ValueError(f"payoff must be four numbers R(1,1) R(1,2) R(2,1) R(2,2), got {payoff!r}.")
        self.env_id = f"matrix/{game}" if payoff is None else "matrix/" + "_".join(map(in_full, values))
        self.payoff = values.reshape(2, 2)
        super().__init__(self.payoff[None], np.ones((1, 2, 2, 1)), 1, num_envs, seed, True, render_mode)
