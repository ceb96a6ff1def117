"""Wrappers of our vector environments: agents-first tensors for a learner; agents see their last action."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector.utils import batch_space

from envs.base import BrokenEnvironment, Step


class TeamWrapper(gym.vector.VectorWrapper):
    """A wrapper through which all attributes of the contract are seen.

    `step_scripted`, of battles alone, is not: its results would be neither decorated nor tensors.
    """

    env: Any

    def __getattr__(self, name: str) -> Any:
        # What copy and pickle look for before there is an env.
        if name.startswith("_") or name in ("env", "step_scripted"):
            raise AttributeError(name)
        return getattr(self.env, name)

    def render(self, i: int = 0) -> np.ndarray:  # type: ignore[override]
        """Picture of environment i, (H, W, 3) uint8."""
        return self.env.render(i)


class LastAction(TeamWrapper):
    """Appends each agent's own last action, one-hot, to its observation: (E, N, obs_dim + A) float32.

    Zeros at the start of an episode and for the dead, whose whole observation is zero. Without memory, a
    policy sees only through this what it was about to do. Everything else is the environment's.
    """

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.num_actions = env.num_actions
        self.obs_dim = env.obs_dim + env.num_actions
        self.agent_obs_dims = (self.obs_dim,) * env.num_agents
        low, high = (
            float(env.single_observation_space.low.min()),
            float(env.single_observation_space.high.max()),
        )
        shape = (env.num_agents, self.obs_dim)
        self.single_observation_space = gym.spaces.Box(min(low, 0.0), max(high, 1.0), shape, np.float32)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def _append(self, obs: np.ndarray, actions: np.ndarray, show: np.ndarray) -> np.ndarray:
        """obs (E, N, obs_dim) beside the one-hot of actions (E, N) where show (E, N) bool, else zeros."""
        one_hot = np.eye(self.num_actions, dtype=np.float32)[np.asarray(actions)] * show[..., None]
        return np.concatenate([obs, one_hot], axis=-1)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """As the environment's reset, with zeros appended."""
        obs, infos = self.env.reset(**kwargs)
        nothing = np.zeros(obs.shape[:2], dtype=np.int64)
        infos["final_obs"] = self._append(infos["final_obs"], nothing, nothing.astype(bool))
        return self._append(obs, nothing, nothing.astype(bool)), infos

    def step(self, actions: np.ndarray) -> Step:
        """As the environment's step, with the actions just played appended to what they led to."""
        obs, reward, terminated, truncated, infos = self.env.step(actions)
        ended = (terminated | truncated)[:, None]
        infos["final_obs"] = self._append(infos["final_obs"], actions, infos["final_alive"])
        return self._append(obs, actions, ~ended & infos["alive"]), reward, terminated, truncated, infos


class CountDead(TeamWrapper):
    """Reports the dead as alive: a learner then takes their steps, no-op on an obs of zeros, for samples."""

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """As the environment's reset."""
        obs, infos = self.env.reset(**kwargs)
        infos["alive"][:] = True
        return obs, infos

    def step(self, actions: np.ndarray) -> Step:
        """As the environment's step, with nobody dead."""
        obs, reward, terminated, truncated, infos = self.env.step(actions)
        infos["alive"][:] = True
        infos["final_alive"][terminated | truncated] = True
        return obs, reward, terminated, truncated, infos


class AgentsFirst(TeamWrapper):
    """What a learner in PyTorch wants: tensors on `device`, the agents in front.

    Observations (N, E, obs_dim), actions (N, E) int or (N, E, num_actions) real, which are clipped to their
    bounds; rewards and ends (E,). Of infos action_mask and alive are tensors (N, E, ...); final_obs,
    final_action_mask and final_alive, too, but there on steps only on which an episode ended.
    infos["episodes"] lists the episodes that ended, in order of their environments, as {"env": e,
    "episodic_return": ..., "episodic_length": ...} and, where environments have `wins`, "win_rate", 0.0 or
    1.0; episodes that the real game dropped are left out. Other infos are the environment's.

    On the CPU tensors share the environment's arrays; on a GPU no copy to it is waited for.
    """

    def __init__(self, env: Any, device: str | torch.device = "cpu") -> None:
        super().__init__(env)
        self.device = torch.device(device)
        self.discrete, self.wins = env.discrete, env.wins  # looked up at every step
        self._shape = (env.num_agents, env.num_envs) + (() if env.discrete else (env.num_actions,))
        self._own = np.arange(env.num_actions) < np.array(env.agent_act_dims)[:, None]  # the rest is padding
        self._last: dict[str, np.ndarray] = {}  # what was returned last, as the environment has it

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type != "cpu":  # from pinned memory the copy to a GPU need not be waited for
            tensor = tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor

    def _agents(self, array: np.ndarray) -> torch.Tensor:
        """(E, N, ...) array -> (N, E, ...) tensor; transposed after the copy, which needs contiguous data."""
        return self._tensor(array).transpose(0, 1)

    def _return(self, obs: np.ndarray, infos: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        """Observations and infos as a learner sees them."""
        self._last = {"obs": obs, "action_mask": infos["action_mask"], "alive": infos["alive"]}
        seen = {name: self._agents(array) for name, array in self._last.items()}
        ending = {name: infos.pop(name) for name in ("final_obs", "final_action_mask", "final_alive")}
        if infos["_final_obs"].any():
            seen |= {name: self._agents(array) for name, array in ending.items()}
        return seen.pop("obs"), infos | seen | {"episodes": self._episodes(infos)}

    def _episodes(self, infos: dict[str, Any]) -> list[dict[str, Any]]:
        """The statistics of each episode that ended."""
        episodes: list[dict[str, Any]] = []
        for e in infos["_episode"].nonzero()[0].tolist():
            returned, length = (float(infos["episode"][name][e]) for name in "rl")
            episodes.append({"env": e, "episodic_return": returned, "episodic_length": length})
            if self.wins:
                episodes[-1]["win_rate"] = float(infos["battle_won"][e])
        return episodes

    def reset(self, **kwargs: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        """As the environment's reset; BrokenEnvironment if it fails, as with a game that keeps failing."""
        try:
            obs, infos = self.env.reset(**kwargs)
        except RuntimeError as error:
            raise BrokenEnvironment(str(error)) from error
        return self._return(obs, infos)

    def step(
        self, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """As the environment's step, of actions (N, E) or (N, E, num_actions).

        ValueError on bad actions; BrokenEnvironment as in `reset`, and on real actions that are not finite.
        """
        # Before clipping, which would give one agent's actions, or one number, to all.
        if not torch.is_tensor(actions) or actions.shape != self._shape:
            names = "(num_agents, num_envs)" if self.discrete else "(num_agents, num_envs, num_actions)"
            given = tuple(getattr(actions, "shape", ()))
            raise ValueError(
                f"actions must be a tensor of shape {self._shape} {names}; got {type(actions).__name__} of "
                f"shape {given}."
            )
        actions = actions.detach()
        if actions.dtype in (torch.float16, torch.bfloat16):  # the latter is none of NumPy's
            actions = actions.float()
        array = actions.transpose(0, 1).cpu().numpy()
        if not self.discrete:
            if not np.isfinite(array[:, self._own]).all():  # of a policy that diverged: a robot would go on
                raise BrokenEnvironment("Actions are not finite; start again with a smaller --learning-rate.")
            bounds: Any = self.single_action_space
            array = np.clip(array, bounds.low, bounds.high)
        try:
            obs, reward, terminated, truncated, infos = self.env.step(array)
        except RuntimeError as error:
            raise BrokenEnvironment(str(error)) from error
        seen, about = self._return(obs, infos)
        return seen, self._tensor(reward), self._tensor(terminated), self._tensor(truncated), about

    def get_state(self) -> dict[str, torch.Tensor]:
        """The environment's state and, as next_..., what it returned last: CPU tensors, for torch.save.

        RuntimeError before the first reset: `set_state` goes on from what was returned last.
        """
        state = self.env.get_state() | {f"next_{name}": array for name, array in self._last.items()}
        return {name: torch.tensor(array) for name, array in state.items()}

    def set_state(self, state: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, Any]]:
        """Goes on from a `get_state()`; returns, like `reset`, obs and infos to go on from.

        They are those last returned where the environment is `restorable`, else those of new episodes.
        BrokenEnvironment if the state does not fit.
        """
        try:
            return self._set_state(state)
        except (ValueError, RuntimeError) as error:
            raise BrokenEnvironment(f"The saved environments cannot be resumed. {error}") from error

    def _set_state(self, state: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, Any]]:
        if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
            raise ValueError(
                f"This state is not one of {self.num_envs} environments of {self.env_id}: it must be a dict "
                "of tensors, as get_state() returns."
            )
        arrays = {name: tensor.cpu().numpy() for name, tensor in state.items()}
        # Copies: what is returned shares their memory, and whoever writes into it leaves the state as it was.
        last = [name for name in state if name.startswith("next_")]
        saved = {name.removeprefix("next_"): arrays.pop(name).copy() for name in last}
        if not self.restorable:
            self.env.set_state(arrays)  # before the reset: it is its new episodes that are to be played
            return self.reset()
        forms = self._forms()
        for name in ("obs", "action_mask", "alive"):  # all before anything changes
            shape, dtype = forms[name]
            if name not in saved or (saved[name].shape, saved[name].dtype) != (shape, dtype):
                raise ValueError(
                    f"This state is not one of {self.num_envs} environments of {self.env_id}: "
                    f"'next_{name}' must be {dtype} of shape {shape}."
                )
        self.env.set_state(arrays)
        infos: dict[str, Any] = {name: np.zeros(*form) for name, form in forms.items() if name not in saved}
        E = self.num_envs
        infos["episode"] = {"r": np.zeros(E, dtype=np.float32), "l": np.zeros(E, dtype=np.int64)}
        return self._return(saved.pop("obs"), infos | saved)

    def _forms(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of obs and of the infos that all families have."""
        E, N = self.num_envs, self.num_agents
        obs, mask = (E, N, self.obs_dim), (E, N, self.num_actions)
        real, truth = np.dtype(np.float32), np.dtype(np.bool_)
        forms = {"obs": (obs, real), "action_mask": (mask, truth), "alive": ((E, N), truth)}
        forms |= {f"final_{name}": form for name, form in forms.items()}
        ends = ("_final_obs", "_episode") + ("battle_won",) * self.wins
        return forms | dict.fromkeys(ends, ((E,), truth))
