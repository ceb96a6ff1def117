"""Any PettingZoo ParallelEnv whose agents make a team, as a vector environment of ours.

envs.make("pettingzoo:mpe2.simple_line_v1", num_envs=8)
ParallelVectorEnv(MyParallelEnv, num_envs=8, reward="sum")
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import pkgutil
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from pettingzoo import AECEnv

from envs.base import BrokenEnvironment, Step, TeamVectorEnv, playable


def _load(path: str) -> Callable[..., Any]:
    """parallel_env of the module `path`; ValueError if there is none, ImportError if importing it fails."""
    try:
        module = importlib.import_module(path)
    except (ImportError, TypeError, ValueError) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and not f"{path}.".startswith(f"{missing}."):
            raise ImportError(f"{path} needs {missing!r}, which is not installed: install it.") from error
        if isinstance(error, ImportError) and not missing:
            raise ImportError(f"{path} cannot be imported: {error}") from error
        parent = path.rpartition(".")[0]
        beside = pkgutil.iter_modules(getattr(sys.modules.get(parent), "__path__", []))
        near = difflib.get_close_matches(path, [f"{parent}.{module.name}" for module in beside], n=3)
        hint = f"the nearest are {', '.join(near)}" if near else "install its package, or correct the path"
        raise ValueError(f"There is no module {path!r}; {hint}.") from error
    if not callable(getattr(module, "parallel_env", None)):
        turns = ", only env, whose agents act in turn (AEC)" if hasattr(module, "env") else ""
        raise ValueError(f"{path} has no parallel_env(){turns}: name a module that defines one.")
    return module.parallel_env


def _check_spaces(name: str, env: Any) -> tuple[list[gym.spaces.Box], list[Any]]:
    """The agents' observation Boxes, and their action spaces, all Discrete or all Box; else ValueError."""
    if isinstance(env, AECEnv):
        raise ValueError(
            f"{name} is an AECEnv, whose agents act in turn: give a ParallelEnv, for instance what "
            "pettingzoo.utils.aec_to_parallel makes of it where all may act at once."
        )
    for part in ("possible_agents", "observation_space", "action_space", "reset", "step"):
        if not hasattr(env, part):
            raise ValueError(f"{name} does not fit: a ParallelEnv has {part}, {type(env).__name__} has not.")
    if not env.possible_agents:
        raise ValueError(f"{name} has no agents in possible_agents: all that can ever act must be there.")
    boxes: list[gym.spaces.Box] = []
    choices: list[Any] = []
    for agent in env.possible_agents:
        seen, choice = env.observation_space(agent), env.action_space(agent)
        if isinstance(seen, gym.spaces.Dict):
            if "observation" not in seen.spaces:
                raise ValueError(
                    f"{agent} of {name} observes a Dict of {', '.join(seen.spaces)}: what it sees must be a "
                    "Box named 'observation', beside which only an 'action_mask' is used."
                )
            seen = seen["observation"]
        if not isinstance(seen, gym.spaces.Box):
            raise ValueError(f"{agent} of {name} observes {seen}: wrap it so that it observes a Box.")
        if not isinstance(choice, gym.spaces.Discrete) and not (
            isinstance(choice, gym.spaces.Box) and np.issubdtype(choice.dtype, np.floating)
        ):
            raise ValueError(f"{agent} of {name} acts in {choice}: only Discrete and float Box actions fit.")
        first = choices[0] if choices else choice
        if isinstance(choice, gym.spaces.Discrete) != isinstance(first, gym.spaces.Discrete):
            raise ValueError(
                f"{env.possible_agents[0]} of {name} acts in {first} but {agent} in {choice}: "
                "all actions must be Discrete, or all Box."
            )
        boxes.append(seen)
        choices.append(choice)
    return boxes, choices


def _stack(boxes: list[gym.spaces.Box], with_zero: bool) -> gym.spaces.Box:
    """One Box (N, largest size) float32 of flattened boxes, zero-padded; `with_zero` widens it to hold 0."""
    low, high = np.zeros((2, len(boxes), max(int(np.prod(box.shape)) for box in boxes)), dtype=np.float32)
    for i, box in enumerate(boxes):
        size = int(np.prod(box.shape))
        low[i, :size], high[i, :size] = box.low.ravel(), box.high.ravel()
    if with_zero:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    return gym.spaces.Box(low, high, dtype=np.float32)


class ParallelVectorEnv(TeamVectorEnv):
    """`num_envs` copies of a PettingZoo ParallelEnv, stepped one after another, as our vector environment.

    env: path of a module with parallel_env(), or a callable that makes a new ParallelEnv at each call.
    reward: the team's, of the agents' rewards: "shared" takes the one that all have and refuses a step where
    they differ; "sum"; "mean" is the sum over N, agents that have left included. env_kwargs: keywords for
    parallel_env() or the callable. episode_limit: steps after which an episode is truncated if the
    environment has not ended it before; None for no limit but its own.

    Observations are flattened to (E, N, obs_dim) float32. Actions: int (E, N), counted from 0, or float
    (E, N, num_actions), clipped to each agent's Box. infos["action_mask"], with Discrete actions, is the
    environment's own (from a Dict observation or the agent's info) within each agent's number of actions. Who
    has left, or whose info says alive=False, has alive=False; who has left sees zeros and has action 0 alone.
    An episode is over when no agent is left: terminated if each of them had been, else truncated; and at
    the episode_limit, truncated.

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
        if episode_limit is not None and not (type(episode_limit) is int and episode_limit > 0):
            raise ValueError(f"episode_limit must be a number of steps or None, got {episode_limit!r}.")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f'render_mode must be None or "rgb_array", got {render_mode!r}.')
        self.envs: list[Any] = []
        self.env_kwargs = dict(env_kwargs or {}) | ({"render_mode": render_mode} if render_mode else {})
        make, name = (_load(env), env) if isinstance(env, str) else (env, repr(env))
        try:
            self.envs = [make(**self.env_kwargs) for _ in range(num_envs)]
        except TypeError as error:
            raise ValueError(f"{name} cannot be made with env_kwargs {self.env_kwargs}: {error}.") from error
        if not isinstance(env, str):
            name = getattr(self.envs[0], "metadata", {}).get("name") or type(self.envs[0]).__name__
        if len({id(one) for one in self.envs}) < num_envs:
            raise ValueError(f"{name}: make a new environment at each call, do not give the same one again.")
        boxes, choices = spaces = _check_spaces(name, self.envs[0])
        self.possible_agents = list(self.envs[0].possible_agents)
        for other in self.envs[1:]:
            if other.possible_agents != self.possible_agents or _check_spaces(name, other) != spaces:
                raise ValueError(f"{name} makes unequal environments: agents and spaces must be the same.")
        self.name, self.env_id, self._choices = name, f"pettingzoo:{name}", choices
        self.num_envs, self.reward, self.render_mode = num_envs, reward, render_mode
        self.episode_limit = episode_limit
        N = self.num_agents = len(self.possible_agents)
        self.agent_obs_dims = tuple(int(np.prod(box.shape)) for box in boxes)
        self.obs_dim = max(self.agent_obs_dims)
        self.single_observation_space = _stack(boxes, with_zero=True)  # an agent that has left sees zeros
        self.discrete = isinstance(choices[0], gym.spaces.Discrete)
        self.agent_act_dims = tuple(
            int(choice.n if self.discrete else np.prod(choice.shape)) for choice in choices
        )
        self.num_actions = max(self.agent_act_dims)
        if self.discrete:
            self.single_action_space: Any = gym.spaces.MultiDiscrete([self.num_actions] * N)
        else:
            self.single_action_space = _stack(choices, with_zero=False)
        self._own = np.arange(self.num_actions) < np.array(self.agent_act_dims)[:, None]
        self._mask = np.tile(self._own, (num_envs, 1, 1))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._obs = np.zeros((num_envs, N, self.obs_dim), dtype=np.float32)
        self._here, self._alive = np.zeros((2, num_envs, N), dtype=np.bool_)
        self._all_terminated = np.ones(num_envs, dtype=np.bool_)  # everyone who has left the episode so far
        self._seed, self._episodes, self._lengths = seed, *np.zeros((2, num_envs), dtype=np.int64)
        self._returns = np.zeros(num_envs, dtype=np.float64)
        self._started = self._untouched = self._warned = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin new episodes everywhere; without a seed the streams go on. Obs (E, N, obs_dim) and infos."""
        if seed is not None:
            self._seed, self._episodes[:] = seed, 0
        for e in range(self.num_envs):
            self._begin(e)
        self._started = self._untouched = True
        return self._obs.copy(), self._infos()

    def step(self, actions: np.ndarray) -> Step:
        """Play actions int (E, N) or float (E, N, num_actions).

        ValueError, with nothing played, on a wrong shape or dtype, an unavailable or a non-finite action. Any
        error after that, a BrokenEnvironment (a reward that is not shared) among them, leaves episodes that
        only reset() ends.
        """
        if not self._started:
            raise RuntimeError("Call reset() before the first step, and after a step that failed.")
        actions = self._check(actions)
        self._started = self._untouched = False
        E = self.num_envs
        reward = np.zeros(E, dtype=np.float32)
        terminated, truncated = np.zeros((2, E), dtype=np.bool_)
        final_obs, final_alive = np.zeros_like(self._obs), np.zeros_like(self._alive)
        episode: dict[str, Any] = {"r": np.zeros(E, dtype=np.float32), "l": np.zeros(E, dtype=np.int64)}
        for e, env in enumerate(self.envs):
            played = set(env.agents)
            chosen = {
                agent: self._action(i, actions[e, i])
                for i, agent in enumerate(self.possible_agents)
                if agent in played
            }
            seen, rewards, terminations, truncations, about = env.step(chosen)
            reward[e] = self._team_reward(chosen, rewards)
            self._returns[e] += reward[e]
            self._lengths[e] += 1
            gone = {a for a in played if a not in env.agents or terminations.get(a) or truncations.get(a)}
            self._all_terminated[e] &= all(terminations.get(agent, False) for agent in gone)
            left = set(env.agents) - gone
            if left and self._lengths[e] != self.episode_limit:
                self._look(e, seen, about, gone)
                continue
            terminated[e] = self._all_terminated[e] and not left
            truncated[e] = not terminated[e]
            for i, agent in enumerate(self.possible_agents):
                final_alive[e, i] = self._here[e, i] and about.get(agent, {}).get("alive", True)
                if agent in played and agent in seen:
                    final_obs[e, i, : self.agent_obs_dims[i]] = self._vector(i, seen[agent])
            episode["r"][e], episode["l"][e] = self._returns[e], self._lengths[e]
            self._begin(e)
        self._started = True
        ended = terminated | truncated
        infos = self._infos() | {"final_obs": final_obs, "final_alive": final_alive, "episode": episode}
        infos |= {"_final_obs": ended, "_episode": ended.copy()}
        return self._obs.copy(), reward, terminated, truncated, infos

    def get_state(self) -> dict[str, np.ndarray]:
        """What new episodes depend on: seed () and episodes begun (E,) int64. Running ones are not saved."""
        return {"seed": np.array(self._seed, dtype=np.int64), "episodes": self._episodes.copy()}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Take the streams of `get_state` and begin new episodes, with a warning.

        Right after reset() its episodes are kept, so that the observations it returned stay true.
        """
        shapes = {key: np.shape(array) for key, array in state.items()}
        fits = shapes == {"seed": (), "episodes": (self.num_envs,)}
        if not fits or min(state["seed"], *state["episodes"]) < 0:
            raise ValueError(f"This state is not one of {self.num_envs} environments of {self.env_id}.")
        self._seed, self._episodes = int(state["seed"]), np.array(state["episodes"], dtype=np.int64)
        if not self._untouched:
            self.reset()
        self._untouched = False
        if not self._warned:
            self._warned = True
            warnings.warn(f"{self.env_id} cannot continue saved episodes: new ones have begun.", stacklevel=2)

    def describe(self) -> dict[str, Any]:
        """What a run should record about the environment; plain values for args.json."""
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
        """Picture of environment i, (H, W, 3) uint8, drawn by itself."""
        if self.render_mode is None:
            raise ValueError('Nothing to render: make the environment with render_mode="rgb_array".')
        picture = self.envs[i].render()
        if np.ndim(picture) != 3:
            raise ValueError(f"{self.name} draws no picture with render_mode='rgb_array'.")
        return np.array(picture, dtype=np.uint8)

    def close_extras(self, **kwargs: Any) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()

    def _begin(self, e: int) -> None:
        """Begin environment e's next episode, each with a seed of its own."""
        stream = np.random.SeedSequence(self._seed, spawn_key=(e, int(self._episodes[e])))
        seen, about = self.envs[e].reset(seed=int(stream.generate_state(1)[0]) & 0x7FFFFFFF)
        if not self.envs[e].agents:
            raise BrokenEnvironment(
                f"{self.name} has no agents after reset(): its episodes would never begin."
            )
        self._episodes[e] += 1
        self._lengths[e], self._returns[e], self._all_terminated[e] = 0, 0.0, True
        self._look(e, seen, about, set())

    def _look(self, e: int, seen: dict, about: dict, gone: set) -> None:
        """Note what environment e's agents see, are and may do; `gone` have left, even if still listed."""
        self._obs[e] = 0
        here = set(self.envs[e].agents) - gone
        for i, agent in enumerate(self.possible_agents):
            info = about.get(agent, {})
            self._here[e, i] = agent in here
            self._alive[e, i] = agent in here and bool(info.get("alive", True))
            if agent not in here:
                if self.discrete:
                    self._mask[e, i] = np.arange(self.num_actions) == 0
                continue
            if agent not in seen:
                raise BrokenEnvironment(
                    f"{self.name} returned no observation of {agent}, which is in agents."
                )
            self._obs[e, i, : self.agent_obs_dims[i]] = self._vector(i, seen[agent])
            if self.discrete:
                parts = seen[agent] if isinstance(seen[agent], Mapping) else {}
                size, self._mask[e, i] = self.agent_act_dims[i], self._own[i]
                mask = parts.get("action_mask", info.get("action_mask"))
                if mask is not None and (np.size(mask) != size or not np.any(mask)):
                    raise BrokenEnvironment(
                        f"The action_mask of {agent} of {self.name} must hold {size} entries, one of them "
                        f"true at least; got {mask!r}."
                    )
                if mask is not None:
                    self._mask[e, i, :size] = np.ravel(mask)

    def _vector(self, i: int, seen: Any) -> np.ndarray:
        """Agent i's observation as a flat array of the size that its space promises."""
        flat = np.asarray(seen["observation"] if isinstance(seen, Mapping) else seen, np.float32).ravel()
        if flat.size != self.agent_obs_dims[i]:
            raise BrokenEnvironment(
                f"{self.possible_agents[i]} of {self.name} sees {flat.size} numbers, but its observation "
                f"space has {self.agent_obs_dims[i]}."
            )
        return flat

    def _action(self, i: int, action: np.ndarray) -> Any:
        """Agent i's action as its own space has it."""
        choice = self._choices[i]
        if self.discrete:
            return int(action) + int(choice.start)
        own = action[: self.agent_act_dims[i]].reshape(choice.shape).astype(choice.dtype)
        return np.clip(own, choice.low, choice.high)

    def _team_reward(self, played: Mapping[Any, Any], rewards: Mapping[Any, float]) -> float:
        """One reward of the agents' rewards, as the option `reward` says."""
        if self.reward != "shared":
            return float(sum(rewards.values())) / (self.num_agents if self.reward == "mean" else 1)
        own = {agent: float(rewards.get(agent, 0.0)) for agent in played}
        low, high = min(own, key=own.__getitem__), max(own, key=own.__getitem__)
        if own[high] - own[low] > 1e-6 * max(1.0, abs(own[high])):
            raise BrokenEnvironment(
                f"The agents of {self.name} earn unequal rewards ({low} {own[low]:g}, {high} {own[high]:g}): "
                'give the option reward="sum" or reward="mean".'
            )
        return own[high]

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
        if not np.isfinite(actions).all():
            e, i = np.argwhere(~np.isfinite(actions))[0][:2]
            raise ValueError(f"The action of agent {i} in environment {e} is not finite: {actions[e, i]}.")
        return actions

    def _infos(self) -> dict[str, Any]:
        """The infos where no episode has ended."""
        E = self.num_envs
        return {
            "action_mask": self._mask.copy(),
            "alive": self._alive.copy(),
            "final_obs": np.zeros_like(self._obs),
            "final_alive": np.zeros_like(self._alive),
            "_final_obs": np.zeros(E, dtype=np.bool_),
            "episode": {"r": np.zeros(E, dtype=np.float32), "l": np.zeros(E, dtype=np.int64)},
            "_episode": np.zeros(E, dtype=np.bool_),
        }
