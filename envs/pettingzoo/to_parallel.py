"""Our environments as PettingZoo ParallelEnvs; the other way round is `ParallelVectorEnv`.

env = envs.parallel_env("smac/2s3z", seed=1)
observations, infos = env.reset()
while env.agents:
    actions = {agent: env.action_space(agent).sample() for agent in env.agents}
    observations, rewards, terminations, truncations, infos = env.step(actions)
"""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from pettingzoo import ParallelEnv


class AvailableActions(gym.spaces.Discrete):
    """Discrete(A) that samples among the actions available now, unless it is given a mask."""

    mask: np.ndarray | None = None
    """(A,) int8, 1 where available; the environment keeps it up to date."""

    def sample(self, mask: Any = None, probability: Any = None) -> np.int64:
        """A random action: available now, or as `mask` or `probability` says."""
        if mask is None and probability is None:
            mask = self.mask
        return super().sample(mask=mask, probability=probability)


class ParallelView(ParallelEnv):
    """One environment of ours, made with num_envs = 1, as a PettingZoo ParallelEnv.

    agents: "agent_0" ... "agent_{N-1}"; they stay, dead ones with nothing but the no-op to choose, until the
    episode ends for all. Observations: float32 (obs_dim_i,); where actions are discrete a dict of it as
    "observation" and an int8 "action_mask" (A,). Rewards: the team's, the same for every agent. The
    observation of the last step is the one the episode ended with, its mask all zeros.
    """

    def __init__(self, vector_env: Any) -> None:
        if vector_env.num_envs != 1:
            raise ValueError(
                f"A ParallelEnv is one environment: make it with num_envs=1, not {vector_env.num_envs}."
            )
        self.vector_env = vector_env
        self.render_mode = vector_env.render_mode
        self.metadata = {"name": vector_env.env_id, "render_modes": ["rgb_array"], "is_parallelizable": True}
        self.possible_agents = [f"agent_{i}" for i in range(vector_env.num_agents)]
        self.agents: list[str] = []
        self._begun: tuple[np.ndarray, dict[str, Any]] | None = None
        spaces = vector_env.single_observation_space, vector_env.single_action_space
        self.observation_spaces: dict[str, Any] = {}
        self.action_spaces: dict[str, Any] = {}
        for i, agent in enumerate(self.possible_agents):
            size, actions = vector_env.agent_obs_dims[i], vector_env.agent_act_dims[i]
            seen: gym.Space = gym.spaces.Box(
                spaces[0].low[i, :size], spaces[0].high[i, :size], dtype=np.float32
            )
            if vector_env.discrete:
                mask = gym.spaces.Box(0, 1, (actions,), np.int8)
                self.observation_spaces[agent] = gym.spaces.Dict({"observation": seen, "action_mask": mask})
                self.action_spaces[agent] = AvailableActions(actions)
            else:
                self.observation_spaces[agent] = seen
                low, high = spaces[1].low[i, :actions], spaces[1].high[i, :actions]
                self.action_spaces[agent] = gym.spaces.Box(low, high, dtype=np.float32)

    def observation_space(self, agent: str) -> gym.Space:
        """The agent's observation space, always the same object."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gym.Space:
        """The agent's action space, always the same object; it samples available actions."""
        return self.action_spaces[agent]

    def _observe(self, obs: np.ndarray, mask: np.ndarray | None) -> dict[str, Any]:
        """obs (N, obs_dim), mask (N, A) bool or None -> what each agent sees."""
        seen: dict[str, Any] = {}
        for i, agent in enumerate(self.possible_agents):
            own = obs[i, : self.vector_env.agent_obs_dims[i]].copy()
            if mask is not None:
                available = mask[i, : self.vector_env.agent_act_dims[i]].astype(np.int8)
                self.action_spaces[agent].mask = available.copy()
                seen[agent] = {"observation": own, "action_mask": available}
            else:
                seen[agent] = own
        return seen

    def reset(
        self, seed: int | None = None, options: dict | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Begin an episode with all agents; without a seed the random streams go on.

        options are ignored: PettingZoo's own tests give some to every environment.
        """
        begun = self._begun
        # After the end of an episode the next one has begun underneath: a second reset would skip it.
        if begun is None or seed is not None:
            begun = self.vector_env.reset(seed=seed)
        self.agents, self._begun = list(self.possible_agents), None
        obs, infos = begun
        mask = infos["action_mask"][0] if self.vector_env.discrete else None
        alive = {agent: {"alive": bool(infos["alive"][0, i])} for i, agent in enumerate(self.agents)}
        return self._observe(obs[0], mask), alive

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        """One step of the team, with an action of every agent; at the end of an episode `agents` empties."""
        if not self.agents:
            raise ValueError("The episode is over; call reset() first.")
        missing = [agent for agent in self.agents if agent not in actions]
        if missing:
            raise ValueError(f"step() needs an action of every agent; {', '.join(missing)} gave none.")
        for agent, size in zip(self.agents, self.vector_env.agent_act_dims, strict=True):
            shape, kind = np.shape(actions[agent]), np.asarray(actions[agent]).dtype.kind
            if self.vector_env.discrete and (kind not in "iu" or np.size(actions[agent]) != 1):
                raise ValueError(f"An action is one integer; {agent} gave {actions[agent]!r}.")
            if not self.vector_env.discrete and (kind not in "fiu" or shape != (size,)):
                raise ValueError(f"An action of {agent} has shape {(size,)}; it gave {actions[agent]!r}.")
        chosen = np.zeros(
            self.vector_env.single_action_space.shape, self.vector_env.single_action_space.dtype
        )
        for i, agent in enumerate(self.agents):
            if self.vector_env.discrete:
                chosen[i] = np.asarray(actions[agent]).item()
            else:
                chosen[i, : self.vector_env.agent_act_dims[i]] = actions[agent]
        obs, reward, terminated, truncated, infos = self.vector_env.step(chosen[None])
        over, agents = bool(terminated[0] or truncated[0]), self.agents
        mask = infos["action_mask"][0] & (not over) if self.vector_env.discrete else None
        seen = self._observe(infos["final_obs"][0] if over else obs[0], mask)
        alive = infos["final_alive" if over else "alive"][0]
        about = {agent: {"alive": bool(alive[i])} for i, agent in enumerate(agents)}
        if over:
            self.agents, self._begun = [], (obs, infos)
            if self.vector_env.wins:
                about = {
                    agent: info | {"battle_won": bool(infos["battle_won"][0])}
                    for agent, info in about.items()
                }
        return (
            seen,
            dict.fromkeys(agents, float(reward[0])),
            dict.fromkeys(agents, bool(terminated[0])),
            dict.fromkeys(agents, bool(truncated[0])),
            about,
        )

    def state(self) -> np.ndarray:
        """The global state (state_dim,); NotImplementedError where the environment has none.

        After an episode's last step it is the next one's, which has begun underneath, and a warning says so.
        """
        if not hasattr(self.vector_env, "state"):
            raise NotImplementedError(f"{self.vector_env.env_id} has no global state: stack what agents see.")
        self._warn_if_over("state")
        return self.vector_env.state()[0]

    def render(self) -> np.ndarray:
        """A picture (H, W, 3) uint8, if made with render_mode="rgb_array"; after the last step as `state`."""
        self._warn_if_over("render")
        return self.vector_env.render(0)

    def _warn_if_over(self, what: str) -> None:
        """Not an error: loops of others ask after every step, the last included."""
        if self._begun is not None:
            what = f"{what}() after an episode's last step is of the next one; ask before that step"
            warnings.warn(f"{what}.", stacklevel=3)

    def close(self) -> None:
        """Close the environment underneath."""
        self.vector_env.close()
