"""Any PettingZoo ParallelEnv whose agents make a team, as a vector environment of ours.

envs.make("pettingzoo:mpe2.simple_line_v1", num_envs=8)
ParallelVectorEnv(MyParallelEnv, num_envs=8, reward="sum")
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from envs.base import BrokenEnvironment, Step, TeamVectorEnv, failure, is_whole, playable, short
from envs.pettingzoo.loading import build, closed_on_failure, load, spaces_of

RESET = ("observations", "infos")
STEP = ("observations", "rewards", "terminations", "truncations", "infos")
LARGEST = float(np.finfo(np.float32).max)


def _stack(boxes: list[gym.spaces.Box]) -> gym.spaces.Box:
    """One Box (N, largest size) float32 of flattened boxes, zero-padded and wide enough to hold 0."""
    low, high = np.zeros((2, len(boxes), max(int(np.prod(box.shape)) for box in boxes)), dtype=np.float32)
    for i, box in enumerate(boxes):
        size = int(np.prod(box.shape))
        low[i, :size], high[i, :size] = box.low.ravel(), box.high.ravel()
    return gym.spaces.Box(np.minimum(low, 0), np.maximum(high, 0), dtype=np.float32)


def _is_dict(value: Any) -> bool:
    """Whether it is a mapping; the common case is asked first, which is ten times as fast."""
    return type(value) is dict or isinstance(value, Mapping)


def _parts(name: str, what: str, names: Sequence[str], returned: Any) -> list[Mapping[Any, Any]]:
    """What an environment has returned, each part a dict by agent, infos empty where they are None."""
    if isinstance(returned, tuple) and [type(part) for part in returned] == [dict] * len(names):
        return [*returned]  # as nearly all do
    if not isinstance(returned, tuple | list) or len(returned) != len(names):
        size = f"{len(returned)} values" if isinstance(returned, tuple | list) else short(returned, 60)
        raise BrokenEnvironment(
            f"{name} follows another, perhaps an older API than PettingZoo's ParallelEnv: {what}() returned "
            f"{size}, not the {len(names)} ({', '.join(names)})."
        )
    parts = [
        {} if part is None and name == "infos" else part for name, part in zip(names, returned, strict=True)
    ]
    for part, kind in zip(parts, names, strict=True):
        if not _is_dict(part):
            raise BrokenEnvironment(
                f"{name} returned from {what}() {short(part, 60)} for {kind}, not a dict by agent."
            )
    return parts


class ParallelVectorEnv(TeamVectorEnv):
    """`num_envs` copies of a PettingZoo ParallelEnv, stepped one after another, as our vector environment.

    env: path of a module with parallel_env(), or a callable that makes a new ParallelEnv at each call.
    reward: the team's, of the agents' rewards: "shared" takes the one that all have and refuses a step where
    they differ; "sum"; "mean" is the sum over N, agents that have left included. env_kwargs: keywords for
    parallel_env() or the callable. episode_limit: steps after which an episode is truncated if the
    environment has not ended it before; None for no limit but its own.

    Observations are flattened to (E, N, obs_dim) float32. Actions: int (E, N), counted from 0, or float
    (E, N, num_actions), clipped to [-1, 1] and scaled from there to the bounds of each agent's Box, which
    must have some. infos["action_mask"], with Discrete actions, is the
    environment's own (from a Dict observation or the agent's info) within each agent's number of actions. Who
    has left, or whose info says alive=False, has alive=False; who has left sees zeros and has action 0 alone.
    An episode is over when no agent is left: terminated if each of them had been, else truncated; and at
    the episode_limit, truncated.

    BrokenEnvironment, naming environment, agent and step, where one fails, or returns something that is not
    finite or not what PettingZoo specifies. Infos may be None, and a reward an array of one number.

    Reproducible if the environment's reset(seed) is: episode k of environment e depends on the seed, e and k.
    """

    metadata = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.SAME_STEP, "render_fps": 8}
    backend = "pettingzoo"
    restorable = cheap_copies = False

    def __init__(
        self,
        env: str | Callable[..., Any],
        num_envs: int = 1,
        seed: int = 0,
        reward: str = "shared",
        env_kwargs: Mapping[str, Any] | None = None,
        episode_limit: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}.")
        if reward not in ("shared", "sum", "mean"):
            raise ValueError(f'reward must be "shared", "sum" or "mean", got {reward!r}.')
        if env_kwargs is not None and not isinstance(env_kwargs, Mapping):
            raise ValueError(f"env_kwargs must be a dict of keywords of parallel_env(), got {env_kwargs!r}.")
        if episode_limit is not None and not (is_whole(episode_limit) and episode_limit > 0):
            raise ValueError(f"episode_limit must be a number of steps or None, got {episode_limit!r}.")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f'render_mode must be None or "rgb_array", got {render_mode!r}.')
        seed = self._take_seed(seed)
        self.env_kwargs = dict(env_kwargs or {}) | ({"render_mode": render_mode} if render_mode else {})
        make, name = (load(env), env) if isinstance(env, str) else (env, short(env))
        self.envs = build(name, make, self.env_kwargs, num_envs)
        if not isinstance(env, str):
            name = getattr(self.envs[0], "metadata", {}).get("name") or type(self.envs[0]).__name__
        with closed_on_failure(self.envs):
            if len({id(one) for one in self.envs}) < num_envs:
                raise ValueError(
                    f"{name}: make a new environment at each call, do not give the same one again."
                )
            boxes, choices = spaces = spaces_of(name, self.envs[0])
            self.possible_agents = list(self.envs[0].possible_agents)
            for other in self.envs[1:]:
                if list(other.possible_agents) != self.possible_agents or spaces_of(name, other) != spaces:
                    raise ValueError(
                        f"{name} makes unequal environments: agents and spaces must be the same."
                    )
        self._known = set(self.possible_agents)
        self.name, self.env_id, self._choices = name, f"pettingzoo:{name}", choices
        self.num_envs, self.reward, self.render_mode = num_envs, reward, render_mode
        self.episode_limit = None if episode_limit is None else int(episode_limit)
        N = self.num_agents = len(self.possible_agents)
        self.agent_obs_dims = tuple(int(np.prod(box.shape)) for box in boxes)
        self.obs_dim = max(self.agent_obs_dims)
        self.single_observation_space = _stack(boxes)  # an agent that has left sees zeros
        self.discrete = isinstance(choices[0], gym.spaces.Discrete)
        self.agent_act_dims = tuple(
            int(choice.n if self.discrete else np.prod(choice.shape)) for choice in choices
        )
        self.num_actions = max(self.agent_act_dims)
        self._own = np.arange(self.num_actions) < np.array(self.agent_act_dims)[:, None]
        self._nothing = np.arange(self.num_actions) == 0
        self._low, self._high = np.zeros((2, N, self.num_actions))
        if self.discrete:
            self.single_action_space: Any = gym.spaces.MultiDiscrete(list(self.agent_act_dims))
            self._start = np.array([choice.start for choice in choices], dtype=np.int64)
        else:
            low, high = np.where(self._own, -1, 0), np.where(self._own, 1, 0)
            self.single_action_space = gym.spaces.Box(low, high, low.shape, np.float32)
            for i, choice in enumerate(choices):
                self._low[i, : self.agent_act_dims[i]] = choice.low.ravel()
                self._high[i, : self.agent_act_dims[i]] = choice.high.ravel()
        self._mask = np.tile(self._own, (num_envs, 1, 1))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._obs = np.zeros((num_envs, N, self.obs_dim), dtype=np.float32)
        self._here, self._alive = np.zeros((2, num_envs, N), dtype=np.bool_)
        self._all_terminated = np.ones(num_envs, dtype=np.bool_)  # everyone who has left the episode so far
        self._seed, self._episodes, self._lengths = seed, *np.zeros((2, num_envs), dtype=np.int64)
        self._returns = np.zeros(num_envs, dtype=np.float64)
        self._started = self._untouched = self._warned = False

    def _seed_streams(self, seed: int) -> None:
        self._seed, self._episodes[:] = seed, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin new episodes everywhere; without a seed the streams go on. Obs (E, N, obs_dim) and infos."""
        self._before_reset(seed, options)
        self._started = self._untouched = False  # where one fails, the others have no episode to be played
        for e in range(self.num_envs):
            self._guard(e, self._begin)
        self._check_seen()
        self._started = self._untouched = True
        return self._obs.copy(), self._infos()

    def step(self, actions: np.ndarray) -> Step:
        """Play actions int (E, N) or float (E, N, num_actions).

        ValueError, with nothing played, on a wrong shape or dtype, an unavailable or a non-finite action. Any
        error after that, a BrokenEnvironment (a reward that is not shared) among them, leaves episodes that
        only reset() ends.
        """
        self._check_started()
        played = self._in_own_units(self._check(actions))
        self._started = self._untouched = False
        E = self.num_envs
        reward = np.zeros(E, dtype=np.float32)
        terminated, truncated = np.zeros((2, E), dtype=np.bool_)
        final_obs, final_mask, final_alive = map(np.zeros_like, (self._obs, self._mask, self._alive))
        episode: dict[str, Any] = {"r": np.zeros(E, dtype=np.float32), "l": np.zeros(E, dtype=np.int64)}
        for e in range(E):
            reward[e], seen, ends, about, left = self._guard(e, self._play, played[e])
            self._returns[e] += reward[e]
            if left and self._lengths[e] != self.episode_limit:
                self._guard(e, self._look, seen, about, left)
                continue
            terminated[e] = self._all_terminated[e] and not left
            truncated[e] = not terminated[e]
            final = final_obs[e], final_mask[e], final_alive[e]
            self._guard(e, self._look_back, seen, about, left, *final)
            if truncated[e]:  # terminated agents would not have gone on, the others would
                gone = [bool(ends.get(agent)) for agent in self.possible_agents]
                final_alive[e, gone] = False
                if self.discrete:
                    final_mask[e, gone] = self._nothing
                self._guard(e, self._check_last, seen, final_alive[e])
            episode["r"][e], episode["l"][e] = self._returns[e], self._lengths[e]
            self._guard(e, self._begin)
        self._check_seen()
        self._started = True
        ended = terminated | truncated
        infos = self._infos() | {"final_obs": final_obs, "final_action_mask": final_mask}
        infos |= {"final_alive": final_alive, "_final_obs": ended}
        infos |= {"episode": episode, "_episode": ended.copy()}
        return self._obs.copy(), reward, terminated, truncated, infos

    def _get_state(self) -> dict[str, np.ndarray]:
        """What new episodes depend on: seed () and episodes begun (E,) int64. Running ones are not saved."""
        return {"seed": np.array(self._seed, dtype=np.int64), "episodes": self._episodes.copy()}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Take the streams of `get_state` and begin new episodes, with a warning.

        Right after reset() its episodes are kept, so that the observations it returned stay true.
        ValueError if the state does not fit.
        """
        self._check_form(state)
        if min(state["seed"], *state["episodes"]) < 0:
            raise ValueError(f"This state is not one of {self.num_envs} environments of {self.env_id}.")
        self._seed, self._episodes = int(state["seed"]), np.array(state["episodes"], dtype=np.int64)
        if not self._untouched:
            self.reset()
        self._untouched = False
        if not self._warned:
            self._warned = True
            warnings.warn(f"{self.env_id} cannot continue saved episodes: new ones have begun.", stacklevel=2)

    def describe(self) -> dict[str, Any]:
        """As the contract's, and the version of the environment's package."""
        package = self.name.partition(".")[0]
        try:
            version = {package: importlib.metadata.version(package)}
        except importlib.metadata.PackageNotFoundError:
            version = {}
        return {
            "backend": self.backend,
            "reward": self.reward,
            "env_kwargs": repr(self.env_kwargs),
            "episode_limit": self.episode_limit,
            **version,
        }

    def render(self, i: int = 0) -> np.ndarray:  # type: ignore[override]
        """Picture of environment i, (H, W, 3) uint8, drawn by itself; BrokenEnvironment if that is none."""
        self._check_picture(i)
        picture = np.asarray(self._guard(i, lambda e: self.envs[e].render()))
        sound = picture.ndim == 3 and picture.shape[-1] == 3 and picture.dtype.kind in "iu" and picture.size
        if not sound or picture.min() < 0 or picture.max() > 255:
            raise BrokenEnvironment(
                f"{self.name} draws no picture with render_mode='rgb_array', (H, W, 3) of whole numbers from "
                f"0 to 255, but {picture.dtype} of shape {picture.shape}."
            )
        return picture.astype(np.uint8)

    def close_extras(self, **kwargs: Any) -> None:
        """Close every environment; BrokenEnvironment, after the others are closed, where one fails."""
        self.closed = True  # then as well: no environment is closed twice
        with contextlib.ExitStack() as others:
            for e in reversed(range(self.num_envs)):
                others.callback(self._guard, e, lambda e: self.envs[e].close())

    def _guard(self, e: int, call: Callable[..., Any], *arguments: Any) -> Any:
        """call(e, *arguments); what environment e does wrong is a BrokenEnvironment that says where."""
        try:
            return call(e, *arguments)
        except MemoryError:
            raise
        except Exception as error:
            place = f"in environment {e}, step {self._lengths[e]} of episode {self._episodes[e]}"
            if isinstance(error, BrokenEnvironment):
                raise BrokenEnvironment(f"{str(error).rstrip('.')} ({place}).") from error
            raise BrokenEnvironment(f"{self.name} failed {place}: {failure(error)}.") from error

    def _begin(self, e: int) -> None:
        """Begin environment e's next episode, each with a seed of its own."""
        stream = np.random.SeedSequence(self._seed, spawn_key=(e, int(self._episodes[e])))
        self._episodes[e] += 1
        self._lengths[e], self._returns[e], self._all_terminated[e] = 0, 0.0, True
        begun = self.envs[e].reset(seed=int(stream.generate_state(1)[0]) & 0x7FFFFFFF)
        seen, about = _parts(self.name, "reset", RESET, begun)
        here = self._agents(e)
        if not here:
            raise BrokenEnvironment(
                f"{self.name} has no agents after reset(): its episodes would never begin."
            )
        self._look(e, seen, about, here)

    def _agents(self, e: int) -> set[Any]:
        """Who is in environment e, of all that can be."""
        agents = set(self.envs[e].agents)
        if not agents <= self._known:
            raise BrokenEnvironment(
                f"{self.name} has {short(sorted(agents - self._known, key=str))} in agents, not in "
                "possible_agents: all that can ever act must be there."
            )
        return agents

    def _play(self, e: int, actions: Any) -> tuple[float, Mapping, Mapping, Mapping, set]:
        """Step environment e: the team's reward, observations, terminations and infos, and who is left."""
        env = self.envs[e]
        played = set(env.agents)
        chosen = {
            agent: self._action(i, actions[i])
            for i, agent in enumerate(self.possible_agents)
            if agent in played
        }
        self._lengths[e] += 1
        parts = _parts(self.name, "step", STEP, env.step(chosen))
        seen, rewards, terminations, truncations, about = parts
        now = self._agents(e)
        gone = {a for a in played if a not in now or terminations.get(a) or truncations.get(a)}
        self._all_terminated[e] &= all(terminations.get(agent, False) for agent in gone)
        return self._team_reward(chosen, rewards), seen, terminations, about, now - gone

    def _look(self, e: int, seen: Mapping, about: Mapping, here: set) -> None:
        """Note what environment e's agents see, are and may do; those not `here` have left."""
        self._obs[e], self._mask[e] = 0, self._own
        for i, agent in enumerate(self.possible_agents):
            self._here[e, i] = agent in here
            self._alive[e, i] = agent in here and self._lives(agent, about)
            if agent not in here:
                if self.discrete:
                    self._mask[e, i] = self._nothing
                continue
            if agent not in seen:
                raise BrokenEnvironment(
                    f"{self.name} returned no observation of {agent}, which is in agents."
                )
            self._obs[e, i, : self.agent_obs_dims[i]] = self._vector(i, seen[agent])
            if self.discrete:
                empty = None if self._alive[e, i] else self._nothing
                self._mask[e, i] = self._available(i, seen, about, empty)

    def _look_back(
        self,
        e: int,
        seen: Mapping,
        about: Mapping,
        left: set,
        final_obs: np.ndarray,
        final_mask: np.ndarray,
        final_alive: np.ndarray,
    ) -> None:
        """Note what environment e's agents, and those `left` at its end, saw and might have done then, and
        whether they lived. Where nothing can be done any more, a mask without an action says nothing."""
        final_mask[:] = self._own
        for i, agent in enumerate(self.possible_agents):
            here = self._here[e, i] or agent in left
            if here:
                final_alive[i] = self._lives(agent, about)
                if agent in seen:
                    final_obs[i, : self.agent_obs_dims[i]] = self._vector(i, seen[agent])
            if self.discrete:
                empty = self._own[i] if final_alive[i] else self._nothing
                final_mask[i] = self._available(i, seen, about, empty) if here else self._nothing
        self._check_finite(final_obs)

    def _check_last(self, _: int, seen: Mapping, final_alive: np.ndarray) -> None:
        """BrokenEnvironment if an agent that would have gone on was not shown what its time limit cut off."""
        for agent, alive in zip(self.possible_agents, final_alive, strict=True):
            if alive and agent not in seen:
                raise BrokenEnvironment(f"{self.name} returned no observation of {agent} at its time limit.")

    def _lives(self, agent: str, about: Mapping) -> bool:
        """Whether an agent that is there lives, which only its info can deny."""
        info = about.get(agent)
        if info is None:
            return True
        if not _is_dict(info):
            raise BrokenEnvironment(f"The info of {agent} of {self.name} must be a dict; got {short(info)}.")
        return bool(info.get("alive", True))

    def _available(self, i: int, seen: Mapping, about: Mapping, empty: np.ndarray | None) -> np.ndarray:
        """Agent i's action_mask (A,) bool: all its own actions if no mask is given; `empty` if the mask has
        no action, which is an error if `empty` is None."""
        agent, size = self.possible_agents[i], self.agent_act_dims[i]
        told: Any = seen.get(agent)
        mask = (about.get(agent) or {}).get("action_mask")
        if _is_dict(told):
            mask = told.get("action_mask", mask)
        if mask is None:
            return self._own[i]
        flat = np.ravel(mask)
        sound = flat.size == size and flat.dtype.kind in "biuf" and np.isin(flat, (0, 1)).all()
        if not sound or (not flat.any() and empty is None):
            raise BrokenEnvironment(
                f"The action_mask of {agent} of {self.name} must hold {size} entries, one of them 1 at "
                f"least, the others 0 or 1; got {short(flat.tolist())}."
            )
        if empty is not None and not flat.any():
            return empty
        found = np.zeros(self.num_actions, dtype=np.bool_)
        found[:size] = flat
        return found

    def _vector(self, i: int, seen: Any) -> np.ndarray:
        """Agent i's observation as a flat array of the size that its space promises."""
        try:
            flat = np.asarray(seen["observation"] if _is_dict(seen) else seen, np.float32).ravel()
        except (KeyError, TypeError, ValueError) as error:
            raise BrokenEnvironment(
                f"{self.possible_agents[i]} of {self.name} sees no numbers but {short(seen)}."
            ) from error
        if flat.size != self.agent_obs_dims[i]:
            raise BrokenEnvironment(
                f"{self.possible_agents[i]} of {self.name} sees {flat.size} numbers, but its observation "
                f"space has {self.agent_obs_dims[i]}."
            )
        return flat

    def _check_seen(self) -> None:
        """BrokenEnvironment unless all that agents see now is finite."""
        if not np.isfinite(self._obs).all():
            for e in range(self.num_envs):
                self._guard(e, lambda e: self._check_finite(self._obs[e]))

    def _check_finite(self, obs: np.ndarray) -> None:
        """BrokenEnvironment unless all numbers of obs (N, obs_dim) are finite."""
        finite = np.isfinite(obs)
        if not finite.all():
            i, k = np.argwhere(~finite)[0]
            raise BrokenEnvironment(
                f"{self.possible_agents[i]} of {self.name} sees {obs[i, k]} as number {k} of its observation."
            )

    def _in_own_units(self, actions: np.ndarray) -> Any:
        """Actions (E, N) counted as the agents' spaces do, or (E, N, num_actions) scaled to their bounds."""
        if self.discrete:
            return (actions.astype(np.int64) + self._start).tolist()
        middle, half = (self._low + self._high) / 2, (self._high - self._low) / 2
        scaled = middle + half * np.clip(actions.astype(np.float64), -1.0, 1.0)
        return np.clip(scaled, self._low, self._high)  # rounding may pass them

    def _action(self, i: int, action: Any) -> Any:
        """Agent i's action, in its own units, in the form that its space has."""
        if self.discrete:
            return action
        choice = self._choices[i]
        return action[: self.agent_act_dims[i]].reshape(choice.shape).astype(choice.dtype)

    def _reward(self, agent: str, reward: Any) -> float:
        """An agent's reward as a number; BrokenEnvironment if it is not one, or not finite."""
        if not isinstance(reward, (float, int)):  # of which np.float64 is one
            array = np.asarray(reward)
            if array.size != 1 or array.dtype.kind not in "biuf":
                many = array.size > 1 and array.dtype.kind in "biuf"
                hint = "; weigh its parts in a wrapper, as MOMAland's LinearizeReward does" if many else ""
                raise BrokenEnvironment(
                    f"{agent} of {self.name} earns {short(reward)}, where one number is wanted{hint}."
                )
            reward = array.item()
        number = float(reward)
        if not abs(number) <= LARGEST:
            raise BrokenEnvironment(f"{agent} of {self.name} earns {number}.")
        return number

    def _team_reward(self, played: Mapping[Any, Any], rewards: Mapping[Any, Any]) -> float:
        """One reward of the agents' rewards, as the option `reward` says."""
        earned = {
            agent: reward if type(reward) is float and abs(reward) <= LARGEST else self._reward(agent, reward)
            for agent, reward in rewards.items()
        }
        if played and not played.keys() & earned.keys():
            raise BrokenEnvironment(
                f"{self.name} has rewards for {short(list(rewards))}, none of its agents."
            )
        if self.reward != "shared":
            return sum(earned.values()) / (self.num_agents if self.reward == "mean" else 1)
        own = [earned.get(agent, 0.0) for agent in played]
        low, high = min(own), max(own)
        if high - low > 1e-6 * max(1.0, abs(high)):
            least, most = (list(played)[own.index(x)] for x in (low, high))
            raise BrokenEnvironment(
                f"The agents of {self.name} earn unequal rewards ({least} {low:g}, {most} {high:g}): "
                'give the option reward="sum" or reward="mean".'
            )
        return high

    def _check(self, actions: np.ndarray) -> np.ndarray:
        """The actions as an array, if every one of them can be played."""
        if self.discrete:
            return playable(actions, self._mask)
        actions = np.asarray(actions)
        shape = (self.num_envs, *self.single_action_space.shape)
        if actions.shape != shape or actions.dtype.kind not in "fiu":
            raise ValueError(
                f"actions must be numbers of shape {shape}; got {actions.dtype} of shape {actions.shape}."
            )
        wrong = self._own & ~np.isfinite(actions)  # padding may hold anything
        if wrong.any():
            e, i = np.argwhere(wrong)[0][:2]
            raise ValueError(f"The action of agent {i} in environment {e} is not finite: {actions[e, i]}.")
        return actions

    def _infos(self) -> dict[str, Any]:
        """The infos where no episode has ended."""
        return self._no_ends(self._mask.copy(), self._alive.copy())
