"""Small environments of PettingZoo that do everything odd."""

import gymnasium as gym
import numpy as np
from pettingzoo import ParallelEnv


class Toy(ParallelEnv):
    """Agents of unequal spaces. Agent i sees (rows, i + 1) numbers t + 10 i, where t counts steps, plus
    `noise` times U(0, 1); has i + 2 actions; earns `pay[i]`; leaves at a step and in a way, `leaves[i]`.
    `changes` replace attributes and methods.
    """

    metadata = {"name": "toy"}
    rows = 2

    def __init__(self, leaves=((3, "terminated"), (3, "terminated")), pay=(1.0, 1.0), noise=0.0, **changes):
        self.possible_agents = [f"a{i}" for i in range(len(leaves))]
        self.leaves, self.pay, self.noise = leaves, pay, noise
        self.agents, self.rng, self.seeds, self.played, self.closed = [], None, [], [], False
        for name, value in changes.items():
            setattr(self, name, value)

    def observation_space(self, agent):
        return gym.spaces.Box(5, 50, (self.rows, self.possible_agents.index(agent) + 1), np.float64)

    def action_space(self, agent):
        return gym.spaces.Discrete(2 + self.possible_agents.index(agent), start=7)

    def look(self, agents):
        where = {agent: self.possible_agents.index(agent) for agent in agents}
        return {
            agent: np.full((self.rows, i + 1), self.t + 10 * i + self.noise * self.rng.random())
            for agent, i in where.items()
        }

    def about(self, agents):
        return {agent: {} for agent in agents}

    def reset(self, seed=None, options=None):
        self.seeds.append(seed)
        self.agents, self.t, self.rng = list(self.possible_agents), 0, np.random.default_rng(seed)
        return self.look(self.agents), self.about(self.agents)

    def step(self, actions):
        self.played.append(actions)
        assert set(actions) == set(self.agents)
        assert all(self.action_space(agent).contains(action) for agent, action in actions.items())
        self.t += 1
        now = list(self.agents)
        how = {a: kind for a, (t, kind) in zip(self.possible_agents, self.leaves, strict=True) if t == self.t}
        self.agents = [agent for agent in now if agent not in how]
        ends = [{a: how.get(a) == kind for a in now} for kind in ("terminated", "truncated")]
        rewards = {a: self.pay[self.possible_agents.index(a)] for a in now}
        return self.look(now), rewards, *ends, self.about(now)

    def render(self):
        return np.full((4, 6, 3), self.t)

    def close(self):
        self.closed = True


class Reach(Toy):
    """Continuous: agent i acts in a (1, i + 1) Box of ±(i + 1)."""

    def action_space(self, agent):
        i = self.possible_agents.index(agent)
        return gym.spaces.Box(-i - 1.0, i + 1.0, (1, i + 1), np.float64)


parallel_env = Toy
