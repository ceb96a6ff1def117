"""SMAC battles as a gymnasium vector environment."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from envs.base import Slices, Step, TeamVectorEnv, identity, integers, streams, unavailable, usable_cores
from envs.smac import combat, engine, units
from envs.smac.contract import NO_ACTION, observe_kernel, reward_kernel, state_kernel
from envs.smac.generated import SPIRAL, VIEWS, GeneratedMap, cast_kernel, draft_kernel
from envs.smac.maps import REWARD_SCALE, SIZE, get_map
from envs.smac.units import UnitType

UNITS_A_THREAD = 4096
"""Units, of all its environments, that a thread must have to pay for its call (docs/performance.md)."""


class SmacVectorEnv(TeamVectorEnv):
    """`num_envs` battles of one SMAC map, stepped together.

    E environments, N agents, A actions. Observations (E, N, obs_dim) float32; actions int (E, N); one shared
    reward (E,) float32 per step. Reproducible: environment e depends on the seed and e alone.

    map_name: one of `envs.smac.maps.MAPS` or, of SMACv2, `envs.smac.generated.GENERATED`, or a TOML file
    (`envs.smac.battles`). seed: of the first reset. reward_fix: max(0, .) in place of SMAC's absolute value,
    which pays for enemy shields that regenerate (SMACv2's own reward, there always). render_mode: None or
    "rgb_array". conic_view: SMACv2's agents see a cone, which they turn by twelve more actions. threads: at
    most; None for as many as there are cores.
    """

    metadata = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.SAME_STEP, "render_fps": 8}
    backend = "embedded"
    wins = True
    episode_limit: int

    def __init__(
        self,
        map_name: str,
        num_envs: int = 1,
        seed: int = 0,
        reward_fix: bool = False,
        render_mode: str | None = None,
        conic_view: bool = False,
        threads: int | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}.")
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, or None for all cores, got {threads}.")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f'render_mode must be None or "rgb_array", got {render_mode!r}.')
        battle = get_map(map_name)
        if conic_view and not battle.drawn:
            raise ValueError(f"conic_view is for the maps of SMACv2, as 10gen_terran_5_vs_5, not {map_name}.")
        if conic_view:
            battle = replace(battle, views=VIEWS)
        self.map, self.label = battle, f"embedded{battle.version}" + "-conic" * conic_view
        self.env_id = f"smac/{battle.name}"
        self.num_envs = num_envs
        self.reward_fix = bool(reward_fix) or battle.drawn
        self.render_mode = render_mode
        self.num_agents, self.num_actions = battle.num_agents, battle.num_actions
        self.obs_dim, self.state_dim = battle.obs_dim, battle.state_dim
        self.episode_limit = battle.limit
        self.agent_obs_dims = (self.obs_dim,) * self.num_agents
        self.agent_act_dims = (self.num_actions,) * self.num_agents
        # Positions relative to oneself and fractions; none leaves [-1, 1].
        self.single_observation_space = gym.spaces.Box(-1.0, 1.0, (self.num_agents, self.obs_dim), np.float32)
        self.single_action_space = gym.spaces.MultiDiscrete([self.num_actions] * self.num_agents)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        U = battle.num_agents + battle.num_enemies
        self._table = engine.rules_of(battle)
        self._columns = engine.columns(battle.kinds)
        if isinstance(battle, GeneratedMap):
            # Each environment's own, filled at the start of each episode.
            self._floats, self._ints, self._bodies, self._looks = (
                np.zeros((num_envs, len(rows), U), dtype=rows.dtype)
                for rows in (*self._columns, battle.cast_looks)
            )
            self._starts, self._divisors = np.zeros((num_envs, 2, U)), np.ones(num_envs)
        else:
            self._floats, self._ints, self._bodies = (rows[None] for rows in self._columns)
            self._looks, self._starts = battle.looks, battle.starts[None]
            self._divisors = np.array([battle.max_reward / REWARD_SCALE])
        self._kinds = np.zeros((num_envs, U), dtype=np.int64)
        self._views = np.zeros((num_envs, self.num_agents), dtype=np.int64)
        self._units = np.zeros((num_envs, combat.STATE_ROWS, U))
        self._links = np.zeros((num_envs, combat.LINK_ROWS, U), dtype=np.int64)
        self._last_action = np.full((num_envs, self.num_agents), NO_ACTION, dtype=np.int64)
        self._length = np.zeros(num_envs, dtype=np.int64)
        self._return = np.zeros(num_envs, dtype=np.float64)
        self._mask = np.zeros((num_envs, self.num_agents, self.num_actions), dtype=np.bool_)
        self._before = np.zeros((num_envs, 2, battle.num_enemies))
        self._everyone = np.ones(num_envs, dtype=np.bool_)
        self._task = identity(self.reward_fix)  # `battle` tells the rest
        self._slices = Slices(num_envs, threads or usable_cores(), UNITS_A_THREAD // U)
        self._seed_streams(self._take_seed(seed))

    def _seed_streams(self, seed: int) -> None:
        self._rng, self._action_rng = streams(seed, self.num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new battles everywhere; without a seed the random streams go on.

        Returns obs (E, N, obs_dim) float32 and infos, as `step` does.
        """
        self._before_reset(seed, options)
        self._start(self._everyone)
        self._started = True
        obs, infos = self._observe()
        self._mask[:] = infos["action_mask"]
        return obs, infos

    def step(self, actions: np.ndarray) -> Step:
        """Play one step (8 game loops) with actions int (E, N).

        ValueError, with nothing played, on a wrong shape or dtype or an action that infos["action_mask"] of
        the last step forbids.
        """
        actions = integers(actions, self.num_envs, self.num_agents)
        return self._step(np.ascontiguousarray(actions, dtype=np.int64), scripted=False)

    def step_scripted(self) -> Step:
        """Play one step with the allies under a script like the enemy's, and return what `step` does.

        They attack-move to the enemy's point; on SMACv2's maps they hunt the enemy wherever it is.
        RuntimeError before the first reset.
        """
        return self._step(self._last_action, scripted=True)

    def sample_actions(self) -> np.ndarray:
        """Random available actions (E, N) int64, from streams of their own: they change no battle.

        RuntimeError before the first reset.
        """
        self._check_started()
        actions = np.empty((self.num_envs, self.num_agents), dtype=np.int64)
        engine.sample_kernel(self._action_rng, self._mask, actions)
        return actions

    def _step(self, actions: np.ndarray, scripted: bool) -> Step:
        self._check_started()
        won = np.empty(self.num_envs, dtype=np.bool_)
        over = np.empty(self.num_envs, dtype=np.bool_)
        if not scripted:
            bad = engine.check_kernel(self._mask, actions)
            if bad >= 0:
                raise unavailable(actions, self._mask, *divmod(bad, self.num_agents))
            self._last_action = actions.copy()

        self._each(
            engine.STEP_KERNELS[self.map.plain],
            (
                self._units,
                self._links,
                self._views,
                self._rng,
                actions,
                self._before,
                won,
                over,
                self._length,
            ),
            (self._floats, self._ints),
            (scripted, self.map.sizes, self._table, self.map.walls, *self.map.ways),
        )
        reward = np.empty(self.num_envs, dtype=np.float32)
        reward_kernel(self._before, self._units, self.map.sizes, self._divisors, self.reward_fix, won, reward)
        self._return += reward
        truncated = (self._length >= self.episode_limit) & ~over
        done = over | truncated
        obs, infos = self._observe()
        if done.any():
            infos["final_obs"][done] = obs[done]
            infos["final_action_mask"][done] = infos["action_mask"][done]
            infos["final_alive"] = infos["alive"] & done[:, None]
            infos["_final_obs"] = done
            infos["_episode"] = done.copy()
            infos["episode"] = {
                "r": np.where(done, self._return, 0.0).astype(np.float32),
                "l": np.where(done, self._length, 0),
            }
            infos["battle_won"] = won
            self._start(done)
            self._look(done, obs, infos)
        self._mask[:] = infos["action_mask"]
        return obs, reward, over, truncated, infos

    def _start(self, select: np.ndarray) -> None:
        if isinstance(self.map, GeneratedMap):
            draft_kernel(
                self._rng, select, self.map.sizes, self.map.draft_rules, *self._columns[:2], SPIRAL,
                self._kinds, self._starts,
            )  # fmt: skip
            self._cast(self.map, select)
            self._views[select] = 0
        engine.reset_kernel(
            self._units, self._links, self._rng, select, self.map.sizes, self._bodies, self._starts,
            self._table,
        )  # fmt: skip
        self._last_action[select] = NO_ACTION
        self._length[select] = 0
        self._return[select] = 0.0

    def _cast(self, battle: GeneratedMap, select: np.ndarray) -> None:
        """Give the units of the selected (E,) environments the numbers of their kinds."""
        cast_kernel(
            select, self._kinds, battle.sizes, *self._columns, battle.cast_looks, self._floats, self._ints,
            self._bodies, self._looks, self._divisors,
        )  # fmt: skip

    def _observe(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Observation of every environment, and the infos of a step on which no episode ended."""
        E, N = self.num_envs, self.num_agents
        obs = np.empty((E, N, self.obs_dim), dtype=np.float32)
        alive = np.empty((E, N), dtype=np.bool_)
        infos = self._no_ends(np.empty((E, N, self.num_actions), dtype=np.bool_), alive)
        self._look(self._everyone, obs, infos)
        return obs, infos

    def _look(self, select: np.ndarray, obs: np.ndarray, infos: dict[str, Any]) -> None:
        own = (self._units, self._views, select, obs, infos["action_mask"], infos["alive"])
        self._each(observe_kernel, own, (self._looks,), (self.map.sizes, self.map.pathing_grid))

    def _each(self, kernel: Callable[..., None], own: tuple, rows: tuple, shared: tuple) -> None:
        """Call kernel(*own, *rows, *shared) for all environments; rows are each one's own where drawn."""
        if self.map.drawn:
            self._slices.each(kernel, own + rows, shared)
        else:
            self._slices.each(kernel, own, rows + shared)

    def state(self) -> np.ndarray:
        """SMAC's global state of every battle, (E, state_dim) float32."""
        state = np.empty((self.num_envs, self.state_dim), dtype=np.float32)
        state_kernel(self._units, self._views, self._last_action, self.map.sizes, self._looks, state)
        return state

    def _get_state(self) -> dict[str, np.ndarray]:
        """Everything that decides what follows, as copies; `set_state` continues exactly from it."""
        state = {
            "units": self._units.copy(),
            "links": self._links.copy(),
            "rng": self._rng.copy(),
            "action_rng": self._action_rng.copy(),
            "last_action": self._last_action.copy(),
            "length": self._length.copy(),
            "return": self._return.copy(),
            "action_mask": self._mask.copy(),
            "battle": np.array([self.map.identity], dtype=np.uint64),
            "task": self._task.copy(),
        }
        if self.map.drawn:
            state |= {"kinds": self._kinds.copy(), "views": self._views.copy()}
        return state

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a `get_state()` of the same map and num_envs; ValueError if it is of another."""
        self._check_form(state)
        # Up to version 2 SMAC's own battles had no number.
        unnumbered = not state["battle"].any() and not self.map.source and self.map.version == 2
        if not unnumbered and not np.array_equal(state["battle"], self._get_state()["battle"]):
            since = f"{self.map.name} has changed since, or the engine plays it otherwise by now"
            raise ValueError(f"This state is of another battle: {since}.")
        self._check_state(state)
        self._units = np.array(state["units"], dtype=np.float64)
        self._links = np.array(state["links"], dtype=np.int64)
        self._rng = np.array(state["rng"], dtype=np.uint64)
        self._action_rng = np.array(state["action_rng"], dtype=np.uint64)
        self._last_action = np.array(state["last_action"], dtype=np.int64)
        self._length = np.array(state["length"], dtype=np.int64)
        self._return = np.array(state["return"], dtype=np.float64)
        self._mask = np.array(state["action_mask"], dtype=np.bool_)
        if isinstance(self.map, GeneratedMap):
            self._kinds = np.array(state["kinds"], dtype=np.int64)
            self._views = np.array(state["views"], dtype=np.int64)
            self._cast(self.map, self._everyone)
        self._started = True

    def _check_state(self, state: dict[str, np.ndarray]) -> None:
        """ValueError unless every index in a state stays inside the arrays that compiled code looks up."""
        U, A = self._units.shape[2], self.num_actions
        links = np.asarray(state["links"])
        others = links[:, [combat.TARGET, combat.HIT_ON, combat.ATTACKER]]
        sound = {
            "links": ((others >= -1) & (others < U)).all()
            and ((links[:, combat.ORDER] >= combat.STOP) & (links[:, combat.ORDER] <= combat.SPENT)).all()
            and (np.sort(links[:, combat.BY_X]) == np.arange(U)).all(),
            "units": np.isfinite(state["units"]).all() and self._inside(state),
            "last_action": ((state["last_action"] >= NO_ACTION) & (state["last_action"] < A)).all(),
            "length": ((state["length"] >= 0) & (state["length"] < self.episode_limit)).all(),
            "action_mask": np.asarray(state["action_mask"]).any(-1).all(),
        }
        if self.map.drawn:
            sound["kinds"] = np.isin(state["kinds"], (0, 1, 2)).all()
            sound["views"] = ((state["views"] >= 0) & (state["views"] < max(self.map.views, 1))).all()
        for key, good in sound.items():
            if not good:
                raise ValueError(f"This state is damaged: {key!r} holds values that no battle has.")

    @staticmethod
    def _inside(state: dict[str, np.ndarray]) -> bool:
        """Whether all units, and all goals that they walk to around walls, lie on the map."""
        units, fights = np.asarray(state["units"]), state["links"][:, combat.ORDER] == combat.ATTACK_MOVE
        places = units[:, [combat.X, combat.Y]]
        goals = units[:, [combat.GOAL_X, combat.GOAL_Y]] * fights[:, None]
        return all(((at >= 0) & (at < SIZE)).all() for at in (places, goals))

    def unit_types(self, i: int = 0) -> tuple[UnitType, ...]:
        """The types of environment i's units, agents first."""
        if not isinstance(self.map, GeneratedMap):
            return self.map.kinds
        return tuple(self.map.race[kind] for kind in self._kinds[i])

    def _numbers(self, i: int) -> np.ndarray:
        """Of environment i's units: (len(FLOATS), U)."""
        return self._floats[i if self.map.drawn else 0]

    def describe(self) -> dict[str, Any]:
        """The engine's version, whose results are of battles of its own; the other reward, if it was chosen;
        and a user's battle, as it was."""
        about: dict[str, Any] = {"engine_version": self.map.version}
        if self.reward_fix and not self.map.drawn:
            about["reward_fix"] = True
        if self.map.source:
            about |= {"battle": json.loads(self.map.source), "battle_digest": f"{self.map.digest:016x}"}
        return about

    def render(self, i: int = 0) -> np.ndarray:  # type: ignore[override]
        """Picture of environment i, (H, W, 3) uint8.

        ValueError unless made with render_mode="rgb_array", IndexError unless there is an environment i.
        """
        from envs.smac.render import draw

        self._check_picture(i)
        links = self._links[i]
        fights = np.isin(links[combat.ORDER], (combat.ATTACK, combat.HEAL, combat.ATTACK_MOVE, combat.HUNT))
        kinds = [kind.name for kind in self.unit_types(i)]
        # Who has just fallen is still the target of whoever hit it; the lines should show what comes next.
        living = self._units[i, combat.HP, links[combat.TARGET]] > 0
        targets = np.where(fights & living, links[combat.TARGET], -1)
        title = f"{self.map.name}  step {self._length[i]}"
        looks = self._looks[i if self.map.drawn else 0]
        return draw(
            self._units[i, :8].T,
            kinds,
            self.num_agents,
            targets,
            title=title,
            walkable=self.map.reachable,
            ranges=None if self.map.views > 1 else looks[3:5, : self.num_agents],
            blasts=self._blasts(i),
            beams=self._beams(i),
        )

    def _blasts(self, i: int) -> np.ndarray:
        """What blew up in the last step of environment i: (n, 3), x, y and radius."""
        u, begun = self._units[i], (self._length[i] - 1) * units.STEP_LOOPS
        now = (self._links[i, combat.ORDER] == combat.SPENT) & (u[combat.HURT_AT] >= begun)
        return np.stack([u[combat.X], u[combat.Y], self._numbers(i)[combat.BLAST]], axis=1)[now]

    def _beams(self, i: int) -> np.ndarray:
        """Lines that colossi swept in about the last step of environment i, across their targets: (n, 4).

        By what is left of their cooldowns: a shot of the step's first loop may be missed.
        """
        numbers = self._numbers(i)
        u, half, targets = self._units[i], numbers[combat.SPLASH], self._links[i, combat.TARGET]
        fired = u[combat.CD] > numbers[combat.PERIOD] - units.STEP_LOOPS
        swept = np.flatnonzero((half > 0) & fired & (targets >= 0) & (u[combat.HP] > 0))
        places = u[[combat.X, combat.Y]]
        middle = places[:, targets[swept]]
        dx, dy = middle - places[:, swept]
        side = np.stack([-dy, dx]) / np.maximum(np.hypot(dx, dy), 1e-9) * half[swept]
        return np.concatenate([middle - side, middle + side]).T
