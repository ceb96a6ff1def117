"""Three cooperative tasks in the multi-agent particle world, compiled and batched.

`simple_spread`, `line_control` and `circle_control` of arXiv 2211.03032 for any number of agents: discs that
are pushed in one of four directions, bounce off each other, and are paid for being at their targets.

    agent_pos, agent_vel, obs, reward = step("line_control", agent_pos, agent_vel, landmark_pos, actions)
    env = MpeVectorEnv("line_control", num_envs=32, seed=1)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from envs.base import Step, TeamVectorEnv, identity, integers, streams
from envs.mpe import world

TASKS = ("simple_spread", "line_control", "circle_control")
NUM_ACTIONS = world.NUM_ACTIONS
"""0 nothing, 1 towards -x, 2 towards +x, 3 towards -y, 4 towards +y."""
FAR = 1e9
"""Coordinates and velocities given from outside must be smaller: their squares have to be numbers."""
LENGTH = 25
"""Steps of an episode."""


class Rules(NamedTuple):
    """What differs between tasks and variants; the rest are constants of `envs.mpe.world`."""

    size: float
    """Radius of an agent."""
    start: float
    """Landmarks (of a line, the first) start uniform in [-start, start]²; agents always in [-1, 1]²."""
    limited: bool
    """What is `vision` or more away reads as zeros."""
    others: bool = True
    """Agents see the other agents."""
    position_first: bool = False
    """Positions move by the velocities from before the step's forces, not after."""
    nearest: bool = False
    """Paid by minus the SUM over landmarks of the nearest agent's distance, with no assignment."""
    clip: float = math.inf
    """The most that one agent's distance to its target counts, before the mean is taken."""
    least: float = -math.inf
    """The least that the team gets, collisions included."""


VARIANTS: dict[str, dict[str, Rules]] = {
    "paper": {
        "simple_spread": Rules(size=0.05, start=1.0, limited=False, least=-15.0),
        "line_control": Rules(size=0.03, start=0.25, limited=True, least=-15.0),
        "circle_control": Rules(size=0.03, start=0.25, limited=True, least=-15.0),
    },
    "mpe2": {
        "simple_spread": Rules(0.15, 1.0, False, position_first=True, nearest=True),
        "line_control": Rules(0.03, 0.25, False, others=False, position_first=True, clip=2.0),
        "circle_control": Rules(0.05, 0.5, False, others=False, position_first=True, clip=2.0),
    },
}
"""`paper`: the scenarios behind the paper's figures. `mpe2`: that library's simple_spread_v3 (local_ratio 0),
simple_line_v1 and simple_formation_v1."""


def _check_task(task: str) -> None:
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}.")


def _rules(task: str, variant: str) -> Rules:
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}.")
    _check_task(task)
    return VARIANTS[variant][task]


def num_landmarks(task: str, num_agents: int) -> int:
    """As many as agents, two ends of the line, or one centre of the circle. ValueError on another task."""
    _check_task(task)
    return {"simple_spread": num_agents, "line_control": 2, "circle_control": 1}[task]


def obs_dim(task: str, num_agents: int, variant: str = "paper") -> int:
    """Own velocity and position, two numbers for each landmark and, where they are seen, each other agent."""
    others = num_agents - 1 if _rules(task, variant).others else 0
    return 4 + 2 * num_landmarks(task, num_agents) + 2 * others


def _numbers(task: str, variant: str, vision: float | None, penalty: float) -> np.ndarray:
    """The `rules` array of the kernels. ValueError on a bad name or number, or a vision without effect."""
    rules = _rules(task, variant)
    if vision is not None and not vision > 0:
        raise ValueError(f"vision must be a positive distance, or None for unlimited, got {vision!r}.")
    if not rules.limited and vision not in (None, 1.0):
        raise ValueError(
            f"Agents see everything in {task} of the variant {variant!r}, however far away; leave vision out."
        )
    if not 0 <= penalty < FAR:
        raise ValueError(f"collision_penalty must be a number from 0, below {FAR:g}, got {penalty!r}.")
    found = np.zeros(world.RULES)
    found[world.TASK] = TASKS.index(task)
    found[world.SIZE], found[world.START] = rules.size, rules.start
    found[world.CLIP], found[world.LEAST] = rules.clip, rules.least
    found[world.VISION] = vision if rules.limited and vision is not None else math.inf
    found[world.OTHERS], found[world.POSITION_FIRST] = rules.others, rules.position_first
    found[world.NEAREST], found[world.PENALTY] = rules.nearest, penalty
    return found


def _points(value: Any, name: str, *shape: int) -> np.ndarray:
    """A copy of value, float64 of `shape` (-1: any); ValueError if it has another, or is not finite."""
    points = np.array(value, dtype=np.float64, order="C")
    if points.ndim != len(shape) or any(n not in (-1, m) for n, m in zip(shape, points.shape, strict=True)):
        wanted = str(shape).replace("-1", "any")
        raise ValueError(f"{name} must have shape {wanted}, got {points.shape}.")
    if not (np.abs(points) < FAR).all():
        raise ValueError(f"{name} must hold finite numbers below {FAR:g}.")
    return points


def _bodies(task: str, agent_pos: Any, landmark_pos: Any) -> tuple[np.ndarray, np.ndarray]:
    """Checked copies of agent_pos (B, N, 2) and landmark_pos (B, L, 2)."""
    pos = _points(agent_pos, "agent_pos", -1, -1, 2)
    if pos.shape[1] < 2:
        raise ValueError(f"A team has at least 2 agents, agent_pos holds {pos.shape[1]}.")
    return pos, _points(landmark_pos, "landmark_pos", len(pos), num_landmarks(task, pos.shape[1]), 2)


def _actions(actions: Any, num_envs: int, num_agents: int) -> np.ndarray:
    """Actions as int64 (E, N); ValueError on another shape or dtype."""
    return np.ascontiguousarray(integers(actions, num_envs, num_agents), dtype=np.int64)


def _refusal(actions: np.ndarray, place: int) -> ValueError:
    env, agent = divmod(place, actions.shape[1])
    return ValueError(
        f"Action {actions[env, agent]} of agent {agent} in environment {env} is not available; "
        f"available are {list(range(NUM_ACTIONS))}."
    )


def step(
    task: str,
    agent_pos: np.ndarray,
    agent_vel: np.ndarray,
    landmark_pos: np.ndarray,
    actions: np.ndarray,
    vision: float | None = 1.0,
    variant: str = "paper",
    collision_penalty: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One step of B independent worlds, without randomness and without changing its arguments.

    agent_pos, agent_vel (B, N, 2), landmark_pos (B, L, 2) with L as `num_landmarks` says, actions int (B, N).
    vision: distance from which on others read as zeros (None: unlimited), in line and circle control as the
    paper has them; everywhere else agents see everything.
    Returns agent_pos, agent_vel, obs (B, N, obs_dim) and reward (B,) after the step, all float64.
    ValueError, in one sentence, on anything that does not fit.
    """
    rules = _numbers(task, variant, vision, collision_penalty)
    pos, land = _bodies(task, agent_pos, landmark_pos)
    vel = _points(agent_vel, "agent_vel", *pos.shape)
    B, N, _ = pos.shape
    chosen = _actions(actions, B, N)
    if chosen.size and (chosen.min() < 0 or chosen.max() >= NUM_ACTIONS):
        raise _refusal(chosen, int(((chosen < 0) | (chosen >= NUM_ACTIONS)).argmax()))
    obs, reward = np.empty((B, N, obs_dim(task, N, variant))), np.empty(B)
    world.advance(pos, vel, land, chosen, rules, world.subset_table(N), obs, reward)
    return pos, vel, obs, reward


def observe(
    task: str,
    agent_pos: np.ndarray,
    agent_vel: np.ndarray,
    landmark_pos: np.ndarray,
    vision: float | None = 1.0,
    variant: str = "paper",
) -> np.ndarray:
    """Observations (B, N, obs_dim) float64 of B worlds; arguments as those of `step`."""
    rules = _numbers(task, variant, vision, 0.0)
    pos, land = _bodies(task, agent_pos, landmark_pos)
    vel = _points(agent_vel, "agent_vel", *pos.shape)
    obs = np.empty((*pos.shape[:2], obs_dim(task, pos.shape[1], variant)))
    world.look(pos, vel, land, rules, obs)
    return obs


def targets(task: str, agent_pos: np.ndarray, landmark_pos: np.ndarray) -> np.ndarray:
    """Where the agents of B worlds should be, (B, N, 2) float64; arguments as those of `step`."""
    rules = _numbers(task, "paper", None, 0.0)
    pos, land = _bodies(task, agent_pos, landmark_pos)
    goal = np.empty_like(pos)
    world.aim(pos, land, rules, goal)
    return goal


def assign(cost: np.ndarray) -> np.ndarray:
    """The column (B, N) int64 that each row of cost (B, N, N) goes to, one each, at the least sum.

    ValueError unless cost is square and holds finite numbers below `FAR`.
    """
    found = _points(cost, "cost", -1, *np.shape(cost)[-1:], -1)
    column = np.empty(found.shape[:2], dtype=np.int64)
    world.pair(found, column)
    return column


class MpeVectorEnv(TeamVectorEnv):
    """`num_envs` worlds of one task, stepped together on one core.

    E environments, N agents. Observations (E, N, obs_dim) float32, actions int (E, N) in 0 ... 4, one shared
    reward (E,) float32 per step; episodes end after `episode_length` steps, truncated, never terminated.
    Physics in float64, by the kernel of `step`. Reproducible: environment e depends on the seed and e alone.

    task: one of TASKS. vision: as in `step`. collision_penalty: for each overlapping pair, in both orders and
    each agent with itself, over 2N. variant: "paper" or "mpe2", see VARIANTS. render_mode: None or
    "rgb_array".
    """

    metadata = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.SAME_STEP, "render_fps": 10}
    backend = "embedded"
    episode_limit: int

    def __init__(
        self,
        task: str,
        num_envs: int = 1,
        seed: int = 0,
        num_agents: int = 5,
        vision: float | None = 1.0,
        collision_penalty: float = 0.0,
        episode_length: int = LENGTH,
        variant: str = "paper",
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1 or episode_length < 1 or num_agents < 2:
            raise ValueError(
                "num_envs and episode_length must be at least 1 and num_agents at least 2, got "
                f"{num_envs}, {episode_length} and {num_agents}."
            )
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f'render_mode must be None or "rgb_array", got {render_mode!r}.')
        self._rules = _numbers(task, variant, vision, collision_penalty)
        self._table = world.subset_table(num_agents)
        self.env_id, self.task, self.variant = f"mpe/{task}", task, variant
        self.label = f"{num_agents}" if variant == "paper" else f"{num_agents}-{variant}"
        self.vision, self.collision_penalty = vision, collision_penalty
        self.num_envs, self.render_mode = num_envs, render_mode
        self.num_agents, self.num_actions, self.episode_limit = num_agents, NUM_ACTIONS, episode_length
        self.obs_dim = obs_dim(task, num_agents, variant)
        self.agent_obs_dims, self.agent_act_dims = (self.obs_dim,) * num_agents, (NUM_ACTIONS,) * num_agents
        shape = (num_agents, self.obs_dim)
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.single_action_space = gym.spaces.MultiDiscrete([NUM_ACTIONS] * num_agents)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._agent_pos, self._agent_vel = np.zeros((2, num_envs, num_agents, 2))
        self._landmark_pos = np.zeros((num_envs, num_landmarks(task, num_agents), 2))
        self._length, self._return = np.zeros(num_envs, dtype=np.int64), np.zeros(num_envs)
        self._alive = np.ones((num_envs, num_agents), dtype=np.bool_)
        self._mask = np.ones((num_envs, num_agents, NUM_ACTIONS), dtype=np.bool_)
        self._nobody = self._ending(np.zeros(num_envs, dtype=np.bool_))
        # The default length was never part of it: leaving it out keeps older states valid.
        self._task = identity(variant, self._rules, *([] if episode_length == LENGTH else [episode_length]))
        self._seed_streams(self._take_seed(seed))

    def _seed_streams(self, seed: int) -> None:
        self._rng, self._action_rng = streams(seed, self.num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """New episodes everywhere; without a seed the random streams go on. Obs (E, N, obs_dim) and infos."""
        self._before_reset(seed, options)
        obs = np.zeros((self.num_envs, self.num_agents, self.obs_dim), dtype=np.float32)
        everyone = np.ones(self.num_envs, dtype=np.bool_)
        self._renew(everyone, obs, self._infos(everyone, self._ending(everyone)))
        self._started = True
        return obs, self._infos(~everyone, self._nobody)

    def step(self, actions: np.ndarray) -> Step:
        """Play actions int (E, N). ValueError, with nothing played, on a wrong shape, dtype or action.

        On steps on which no episode ends, infos["final_obs"], ["final_action_mask"], ["final_alive"] and
        ["episode"] hold the same zeros every time: copy them before writing to them. No other array is used
        again.
        """
        self._check_started()
        E, N = self.num_envs, self.num_agents
        actions = _actions(actions, E, N)
        obs = np.empty((E, N, self.obs_dim), dtype=np.float32)
        reward, truncated = np.empty(E, dtype=np.float32), np.empty(E, dtype=np.bool_)
        result = world.play(
            self._agent_pos, self._agent_vel, self._landmark_pos, actions, self._rules, self._table,
            self._length, self._return, self.episode_limit, obs, reward, truncated,
        )  # fmt: skip
        if result >= 0:
            raise _refusal(actions, result)
        if result == world.ENDED:
            infos = self._infos(truncated, self._ending(truncated))
            self._renew(truncated, obs, infos)
        else:
            infos = self._infos(truncated, self._nobody)
        return obs, reward, np.zeros(E, dtype=np.bool_), truncated, infos

    def _ending(self, ended: np.ndarray) -> dict[str, Any]:
        """What infos say of how episodes ended: zeros for `_renew` to write to, and that everyone lived."""
        E = self.num_envs
        return {
            "final_obs": np.zeros((E, self.num_agents, self.obs_dim), dtype=np.float32),
            "final_action_mask": ended[:, None, None] & self._mask,
            "final_alive": ended[:, None] & self._alive,
            "episode": {"r": np.zeros(E, dtype=np.float32), "l": np.zeros(E, dtype=np.int64)},
        }

    def _infos(self, ended: np.ndarray, ending: dict[str, Any]) -> dict[str, Any]:
        """The infos of a step; every agent lives and may do anything."""
        return {
            "action_mask": self._mask.copy(),
            "alive": self._alive.copy(),
            "_final_obs": ended.copy(),
            "_episode": ended.copy(),
            **ending,
        }

    def _renew(self, ended: np.ndarray, obs: np.ndarray, infos: dict[str, Any]) -> None:
        """Where ended (E,): tell infos how the episode ended, begin the next one and write its first obs."""
        world.renew(
            ended, self._agent_pos, self._agent_vel, self._landmark_pos, self._rng, self._rules,
            self._length, self._return, obs, infos["final_obs"], infos["episode"]["r"], infos["episode"]["l"],
        )  # fmt: skip

    def sample_actions(self) -> np.ndarray:
        """Random actions (E, N) int64, from streams of their own: they change no episode.

        RuntimeError before the first reset.
        """
        self._check_started()
        actions = np.empty((self.num_envs, self.num_agents), dtype=np.int64)
        world.sample(self._action_rng, actions)
        return actions

    def describe(self) -> dict[str, Any]:
        """What the rewards depend on besides the task; the length of episodes where it is not the paper's."""
        about = {"variant": self.variant, "vision": self.vision, "collision_penalty": self.collision_penalty}
        return about | ({} if self.episode_limit == LENGTH else {"episode_length": self.episode_limit})

    def _get_state(self) -> dict[str, np.ndarray]:
        """Everything that decides what follows, as copies; `set_state` continues exactly from it."""
        names = "agent_pos", "agent_vel", "landmark_pos", "rng", "action_rng", "length", "return", "task"
        return {name: getattr(self, f"_{name}").copy() for name in names}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a `get_state()` of the same task and sizes; ValueError if it does not fit."""
        state = self._check_form(state)
        length = np.asarray(state["length"])
        sound = {
            "length": ((length >= 0) & (length < self.episode_limit)).all(),
            "return": np.isfinite(state["return"]).all(),
            **{
                name: (np.abs(state[name]) < FAR).all() for name in ("agent_pos", "agent_vel", "landmark_pos")
            },
        }
        for name, good in sound.items():
            if not good:
                raise ValueError(f"This state is damaged: {name!r} holds values that no episode has.")
        for name, array in self._get_state().items():
            setattr(self, f"_{name}", np.array(state[name], dtype=array.dtype, order="C"))
        self._started = True

    def render(self, i: int = 0) -> np.ndarray:  # type: ignore[override]
        """Picture of environment i, (H, W, 3) uint8.

        ValueError unless made with render_mode="rgb_array", IndexError unless there is an environment i.
        """
        from envs.mpe.render import draw

        self._check_picture(i)
        pos, land = self._agent_pos[i : i + 1], self._landmark_pos[i : i + 1]
        goal = targets(self.task, pos, land)
        target = assign(np.linalg.norm(pos[:, :, None] - goal[:, None], axis=-1))
        vision = self._rules[world.VISION]
        title = f"{self.task}  step {self._length[i]}"
        return draw(pos[0], land[0], goal[0][target[0]], self._rules[world.SIZE], vision, title)
