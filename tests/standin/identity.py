"""The smallest task with observations: each of two agents is paid for doing what it is shown."""

import gymnasium as gym
import numpy as np
from pettingzoo import ParallelEnv

CHOICES, LENGTH = 4, 8


class Identity(ParallelEnv):
    """Agents see one of four numbers, one-hot; the team earns the share of agents that name theirs."""

    metadata = {"name": "identity"}

    def __init__(self):
        self.possible_agents, self.agents = ["left", "right"], []

    def observation_space(self, agent):
        return gym.spaces.Box(0, 1, (CHOICES,), np.float32)

    def action_space(self, agent):
        return gym.spaces.Discrete(CHOICES)

    def reset(self, seed=None, options=None):
        self.agents, self.rng, self.steps = list(self.possible_agents), np.random.default_rng(seed), 0
        return self._show(), {agent: {} for agent in self.agents}

    def _show(self):
        self.shown = dict(zip(self.agents, self.rng.integers(CHOICES, size=2), strict=True))
        return {agent: np.eye(CHOICES, dtype=np.float32)[shown] for agent, shown in self.shown.items()}

    def reward(self, actions):
        return float(np.mean([actions[agent] == self.shown[agent] for agent in self.agents]))

    def step(self, actions):
        now, self.steps = list(self.agents), self.steps + 1
        reward = self.reward(actions)
        seen, over = self._show(), self.steps == LENGTH
        self.agents = [] if over else now
        ends = [dict.fromkeys(now, flag) for flag in (False, over)]
        return seen, dict.fromkeys(now, reward), *ends, {agent: {} for agent in now}


parallel_env = Identity
