"""Environments that play a recording, whatever is done, so that one agent's part of it can be changed."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import batch_space

from envs.base import Step, TeamVectorEnv
from envs.wrappers import AgentsFirst

E, N, OBS, A, LIMIT = 4, 3, 6, 5, 8


class Recording(TeamVectorEnv):
    """The agent `changed` sees something else; rewards and ends, the team's, are the same for all of them.

    kind: "choices" of A actions, "real" actions, a "table" of OBS states, or "battle": with deaths, actions
    that are not available, and early ends, by termination and truncation. Others end after LIMIT steps.
    """

    env_id = backend = "recording"
    num_envs, num_agents, obs_dim, num_states, num_actions, episode_limit = E, N, OBS, OBS, A, LIMIT
    agent_obs_dims, agent_act_dims = (OBS,) * N, (A,) * N

    def __init__(self, kind: Literal["choices", "real", "table", "battle"], changed: int | None = None):
        self.kind, self.changed = kind, changed
        self.discrete, self.wins, self.exact = kind != "real", kind == "battle", kind == "table"
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (N, OBS), np.float32)
        choices, box = gym.spaces.MultiDiscrete([A] * N), gym.spaces.Box(-1.0, 1.0, (N, A), np.float32)
        self.single_action_space = choices if self.discrete else box
        self.observation_space = batch_space(self.single_observation_space, E)
        self.action_space = batch_space(self.single_action_space, E)

    def own(self, what: int, *shape: int) -> np.ndarray:
        """Numbers (E, N, ...) of this moment, from 0 to 1, of each agent's own."""
        numbers = np.random.default_rng([self.clock, what]).random((E, N, *shape))
        if self.changed is not None:
            numbers[:, self.changed] = np.random.default_rng([self.clock, what, 1]).random((E, *shape))
        return numbers

    def see(self, what: int) -> np.ndarray:
        if self.kind == "table":
            return np.eye(OBS, dtype=np.float32)[(OBS * self.own(what)).astype(int)]
        return (4 * self.own(what, OBS) - 2).astype(np.float32)

    def look(self, over: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """What is seen now, and infos; the episodes that are over have begun anew."""
        mask = np.ones((E, N, A), dtype=bool)
        final_mask = mask & over[:, None, None]
        final = {"final_alive": self.alive & over[:, None], "final_obs": self.see(3) * over[:, None, None]}
        final["final_action_mask"] = final_mask
        if self.kind == "battle":
            mask[..., 1:] = self.own(1, A - 1) < 0.7
            final_mask[..., 1:] &= self.own(4, A - 1) < 0.7
            self.alive = self.alive & (self.own(2) < 0.9) | over[:, None]
        infos = {"action_mask": mask, "alive": self.alive, "_final_obs": over, "_episode": over} | final
        infos["episode"] = {"r": np.full(E, self.clock, np.float32), "l": self.length * over}
        infos["battle_won"] = over & (self.clock % 3 == np.arange(E) % 3)
        self.length = self.length * ~over
        return self.see(0), infos

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.clock = 0
        self.length, self.alive = np.zeros(E, dtype=np.int64), np.ones((E, N), dtype=bool)
        return self.look(np.zeros(E, dtype=bool))

    def step(self, actions: np.ndarray) -> Step:
        team = np.random.default_rng([self.clock, 9])
        reward = team.normal(size=E).astype(np.float32)
        self.clock += 1
        self.length = self.length + 1
        early, cut = (team.random(E) < 0.15), (team.random(E) < 0.5)
        over = (self.length >= LIMIT) | early & (self.kind == "battle")
        terminated = over & ~cut & (self.kind == "battle")
        obs, infos = self.look(over)
        return obs, reward, terminated, over & ~terminated, infos

    def get_state(self) -> dict[str, np.ndarray]:
        return {"clock": np.array(self.clock)}

    def exact_return(self, policies: np.ndarray) -> float:
        return 0.0


def recording(kind: Literal["choices", "real", "table", "battle"], changed: int | None = None) -> AgentsFirst:
    """A Recording as learners see it."""
    return AgentsFirst(Recording(kind, changed))
