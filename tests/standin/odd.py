"""Environments that each do one odd thing, as public bug reports have them: `parallel_env(kind=...)`."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from pettingzoo import ParallelEnv

LENGTH = 6


class Plain(ParallelEnv):
    """Two agents earn the team 1 a step, whatever they do, for six steps. They see what step it is."""

    metadata = {"name": "odd", "render_modes": ["rgb_array"]}
    actions: gym.Space = gym.spaces.Discrete(3)
    largest = 10.0
    length: float = LENGTH

    def __init__(self, render_mode=None):
        self.possible_agents, self.render_mode = ["left", "right"], render_mode

    def observation_space(self, agent):
        return gym.spaces.Box(-self.largest, self.largest, (2,), np.float32)

    def action_space(self, agent):
        return self.actions

    def see(self, agent):
        return np.array([self.steps, 1], np.float32)

    def about(self, agent):
        return {}

    def earn(self, agent, actions):
        return 1.0

    def reset(self, seed=None, options=None):
        self.agents, self.steps = list(self.possible_agents), 0
        return {a: self.see(a) for a in self.agents}, {a: self.about(a) for a in self.agents}

    def step(self, actions):
        now, self.steps = self.agents, self.steps + 1
        over = self.steps >= self.length
        self.agents = [] if over else now
        seen, paid = {a: self.see(a) for a in now}, {a: self.earn(a, actions) for a in now}
        return (
            seen,
            paid,
            dict.fromkeys(now, False),
            dict.fromkeys(now, over),
            {a: self.about(a) for a in now},
        )

    def render(self):
        return np.full((33, 47, 3), 20 * min(self.steps, 12), np.uint8)


class OldReset(Plain):
    """Its reset returns observations alone."""

    def reset(self, seed=None, options=None):
        return super().reset()[0]


class OldStep(Plain):
    """Its step returns four values."""

    def step(self, actions):
        seen, paid, ended, cut, about = super().step(actions)
        return seen, paid, {a: ended[a] or cut[a] for a in seen}, about


class NoSeed(Plain):
    """Its reset takes no seed."""

    def reset(self):
        return super().reset()


class NoInfos(Plain):
    """The infos of its agents are None."""

    def about(self, agent):
        return None


class AllMasked(Plain):
    """From the third step on the left one may do nothing."""

    def about(self, agent):
        nothing = agent == "left" and self.steps >= 3
        return {"action_mask": np.full(3, not nothing, np.int8)}


class Large(Plain):
    """What is seen does not fit into half precision."""

    largest = 1e5

    def see(self, agent):
        return np.array([9e4 + self.steps, 1], np.float32)


class NaNs(Plain):
    """The right one sees NaN at the fourth step."""

    def see(self, agent):
        return np.array([np.nan if agent == "right" and self.steps == 4 else 1, 1], np.float32)


class InfiniteReward(Plain):
    """The right one earns infinity at the fourth step."""

    def earn(self, agent, actions):
        return np.inf if agent == "right" and self.steps == 4 else 1.0


class Unequal(Plain):
    """From the third step on the agents earn unlike."""

    def earn(self, agent, actions):
        return 1.0 + (agent == "right" and self.steps >= 3)


class Vectors(Plain):
    """Rewards are of two objectives."""

    def earn(self, agent, actions):
        return np.ones(2, np.float32)


class ArrayReward(Plain):
    """Rewards are arrays of one number."""

    def earn(self, agent, actions):
        return np.ones(1, np.float32)


class DeadStay(Plain):
    """The right one dies at the second step, stays listed, and sees what no critic knows."""

    largest = 1e6

    def see(self, agent):
        return np.full(2, 1e3 if agent == "right" and self.steps >= 2 else 1, np.float32)

    def about(self, agent):
        return {"alive": not (agent == "right" and self.steps >= 2)}


class ActorsDie(DeadStay):
    """The same with real actions."""

    actions = gym.spaces.Box(-1, 1, (2,), np.float32)


class LeavesLast(Plain):
    """Real actions; the right one is terminated on the step on which the left one reaches its limit."""

    actions = gym.spaces.Box(-1, 1, (2,), np.float32)

    def step(self, actions):
        seen, paid, ended, cut, about = super().step(actions)
        ended["right"], cut["right"] = cut["right"], False
        return seen, paid, ended, cut, about


class BlindEnd(Plain):
    """At its time limit agents are shown nothing."""

    def step(self, actions):
        seen, *others = super().step(actions)
        return seen if self.agents else {}, *others


class Endless(Plain):
    """No episode ends."""

    length = np.inf


class Fails(Plain):
    """It cannot be made."""

    def __init__(self, render_mode=None):
        {}["board"]


class Aim(Plain):
    """Each is paid for acting, as a share of its range, near to what it sees."""

    low, high = -1.0, 1.0

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.actions = gym.spaces.Box(self.low, self.high, (1,), np.float32)

    def see(self, agent):
        self.goal = self.rng.uniform(-1, 1) if agent == "left" else self.goal
        return np.array([self.goal, 1], np.float32)

    def reset(self, seed=None, options=None):
        self.rng = np.random.default_rng(seed)
        return super().reset()

    def step(self, actions):
        shares = [2 * (a[0] - self.low) / (self.high - self.low) - 1 for a in actions.values()]
        self.paid = 1 - float(np.mean(np.abs(np.array(shares) - self.goal)))
        return super().step(actions)

    def earn(self, agent, actions):
        return self.paid


class AimElsewhere(Aim):
    """The same in a range that is not [-1, 1]."""

    low, high = 5.0, 35.0


class Unbounded(Plain):
    """Actions have no bounds."""

    actions = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)


class HalfBounded(Plain):
    """Actions have one bound."""

    actions = gym.spaces.Box(0, np.inf, (2,), np.float32)


class Huge(Plain):
    """Bounds that stand for none."""

    actions = gym.spaces.Box(-3.4e38, 3.4e38, (2,), np.float32)


KINDS = {
    name: kind
    for name, kind in globals().copy().items()
    if isinstance(kind, type) and issubclass(kind, Plain)
}


def parallel_env(kind="Plain", **keywords):
    return KINDS[kind](**keywords)
