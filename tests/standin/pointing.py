"""The smallest continuous task with observations: two agents are paid for pointing where they are shown."""

import gymnasium as gym
import numpy as np

from tests.standin.identity import Identity


class Pointing(Identity):
    """Agents see a number from -1 to 1, each its own; the team earns 1 less the mean distance to it."""

    metadata = {"name": "pointing"}

    def observation_space(self, agent):
        return gym.spaces.Box(-1, 1, (1,), np.float32)

    def action_space(self, agent):
        return gym.spaces.Box(-1, 1, (1,), np.float32)

    def _show(self):
        numbers = self.rng.uniform(-1, 1, size=(2, 1)).astype(np.float32)
        self.shown = dict(zip(self.possible_agents, numbers, strict=True))
        return {agent: self.shown[agent] for agent in self.agents}

    def reward(self, actions):
        return 1 - float(np.mean([abs(actions[agent] - self.shown[agent]) for agent in actions]))


parallel_env = Pointing
