"""Real actions are in [-1, 1] for a learner, whatever the bounds of a PettingZoo environment are."""

import functools

import gymnasium as gym
import numpy as np
import pytest
import torch

import envs
from envs.pettingzoo import ParallelVectorEnv
from envs.wrappers import AgentsFirst
from tests.standin.toys import Toy

FOREVER = ((5, "truncated"), (5, "truncated"))


class Target(Toy):
    """Paid for acting, as a share of the range, near to a point that is seen."""

    def __init__(self, low, high, shape=(1,), dtype=np.float32):
        super().__init__(leaves=FOREVER)
        low, high = (np.broadcast_to(np.asarray(bound, dtype), shape) for bound in (low, high))
        self.box = gym.spaces.Box(low, high, shape, dtype)

    def observation_space(self, agent):
        return gym.spaces.Box(-1, 1, (1,), np.float32)

    def action_space(self, agent):
        return self.box

    def look(self, agents):
        self.seen = {agent: self.rng.uniform(-1, 1, 1) for agent in agents}
        return self.seen

    def step(self, actions):
        low, high = self.box.low.astype(float), self.box.high.astype(float)
        shares = [2 * (action - low) / (high - low) - 1 for action in actions.values()]
        missed = [np.abs(share - seen).mean() for share, seen in zip(shares, self.seen.values(), strict=True)]
        self.pay = [1 - np.mean(missed)] * 2
        return super().step(actions)


def targets(*arguments, **options):
    return ParallelVectorEnv(functools.partial(Target, *arguments, **options), 3, seed=4)


@pytest.mark.parametrize(
    ("low", "high", "shape", "dtype"),
    [
        (-1, 1, (1,), np.float32),
        (5, 35, (1,), np.float32),
        (-0.01, 0.01, (1,), np.float32),
        (-1000, 1000, (1,), np.float64),
        (-1e8, 1e8, (1,), np.float32),
        (0.1, 0.7, (2, 1), np.float32),
        ([-1, 0, -7], [1, 0.3, -2], (3,), np.float64),
        (3, 3, (1,), np.float32),
    ],
)
def test_the_ends_and_the_middle_of_the_range_are_reached(low, high, shape, dtype):
    """Else a policy that starts around 0 with a deviation of 1 sees a corner of the range, or all as one."""
    env = Target(low, high, shape, dtype)
    env.step = lambda actions: Toy.step(env, actions)  # a range of no width pays nothing
    vector = ParallelVectorEnv(lambda: env)
    A = int(np.prod(shape))
    assert vector.single_action_space == gym.spaces.Box(-1, 1, (2, A), np.float32)
    low, high = env.box.low, env.box.high
    vector.reset()
    for action, wanted in [(-1, low), (1, high), (-9, low), (7, high), (0, (low + high) / 2)]:
        vector.step(np.full((1, 2, A), action, np.float32))
        for played in env.played[-1].values():
            assert played.shape == shape and played.dtype == dtype and env.box.contains(played)
            np.testing.assert_allclose(played, wanted, rtol=1e-6, atol=1e-12)
            assert action == 0 or (played == wanted).all()
    odd = np.array([0.1, -0.7, 1e-12, 0.3, -1e-3], np.float32)
    vector.reset()
    for action in odd:
        vector.step(np.full((1, 2, A), action, np.float32))
        middle, half = (low + high).astype(float) / 2, (high - low).astype(float) / 2
        np.testing.assert_allclose(env.played[-1]["a0"], middle + half * action, rtol=1e-6, atol=1e-12)
        if (low == -1).all() and (high == 1).all():
            assert env.played[-1]["a0"] == action  # nothing is done to it, not even rounding


@pytest.mark.parametrize("bounds", [(5, 35), (-0.01, 0.01), (-1000, 1000)])
def test_a_range_is_learned_from_as_its_like_in_minus_one_to_one(bounds):
    """Else what is learned depends on the units of the actions."""
    unit, other = AgentsFirst(targets(-1, 1)), AgentsFirst(targets(*bounds))
    generator = torch.Generator().manual_seed(0)
    seen, _ = unit.reset()
    assert torch.equal(seen, other.reset()[0])
    rewards = set()
    for _ in range(12):
        actions = 1.5 * torch.randn(2, 3, 1, generator=generator)
        obs, reward, *rest, infos = other.step(actions)
        wanted, paid, *ends, told = unit.step(actions)
        assert torch.equal(obs, wanted) and torch.allclose(reward, paid, atol=1e-5)
        assert all(map(torch.equal, rest, ends)) and len(infos["episodes"]) == len(told["episodes"])
        rewards |= set(reward.tolist())
    assert len(rewards) == 36


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (-np.inf, np.inf, r"Action 0 of a0 of toy lies in \[-inf, inf\]"),
        (0, np.inf, r"Action 0 of a0 of toy lies in \[0, inf\]"),
        (-np.inf, 0, r"\[-inf, 0\]"),
        ([-1, -3.4e38], [1, 3.4e38], r"Action 1 of a0 of toy lies in \[-3.4e\+38, 3.4e\+38\]"),
        (-1e10, 1e10, r"both bounds are finite and at most 1e\+08"),
    ],
)
def test_a_range_without_bounds_is_refused(low, high, told):
    """Else infinity is played, or actions of size 1 in a range where they are all the same."""
    with pytest.raises(ValueError, match=told) as error:
        targets(low, high, np.shape(low) or (1,))
    assert "wrap the environment" in str(error.value) and "\n" not in str(error.value)


def test_robots_keep_their_own_bounds():
    """Else robots are no longer gymnasium's: published curves are of torques clipped to their bounds."""
    for name, bound in (("Hopper-3x1", 1.0), ("Humanoid-9|8", np.float32(0.4)), ("Pusher-7x1", 2.0)):
        env = envs.make(f"mamujoco/{name}", 1, seed=0, device="cpu", threads=1)
        twin = envs.make(f"mamujoco/{name}", 1, seed=0, threads=1)
        assert env.single_action_space.high.max() == bound
        env.reset()
        twin.reset()
        actions = torch.linspace(-3, 3, env.num_agents * env.num_actions).reshape(env.num_agents, 1, -1)
        clipped = np.clip(actions[:, 0].numpy(), -bound, bound)[None]
        assert np.array_equal(env.step(actions)[0][:, 0].numpy(), twin.step(clipped)[0][0])
