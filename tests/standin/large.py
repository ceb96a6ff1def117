"""Observations of any size: the first number is growth ** t at step t."""

import gymnasium as gym
import numpy as np
from pettingzoo import ParallelEnv


class Large(ParallelEnv):
    """Two agents; the one that plays action 1 at a step earns the team 1. Episodes of four steps."""

    metadata = {"name": "large"}

    def __init__(self, growth: float = 1.0, bound: float = np.inf):
        self.possible_agents = ["a", "b"]
        self.growth, self.bound = growth, bound

    def observation_space(self, agent):
        return gym.spaces.Box(-self.bound, self.bound, (2,), np.float32)

    def action_space(self, agent):
        return gym.spaces.Discrete(2)

    def look(self):
        return {agent: np.array([self.growth**self.t, 1.0], np.float32) for agent in self.agents}

    def reset(self, seed=None, options=None):
        self.agents, self.t = self.possible_agents[:], 0
        return self.look(), {agent: {} for agent in self.agents}

    def step(self, actions):
        self.t += 1
        earned = dict.fromkeys(self.agents, float(max(actions.values())))
        no, over = dict.fromkeys(self.agents, False), dict.fromkeys(self.agents, self.t == 4)
        obs, infos = self.look(), {agent: {} for agent in self.agents}
        self.agents = self.agents if self.t < 4 else []
        return obs, earned, no, over, infos


def parallel_env(**options):
    return Large(**options)
