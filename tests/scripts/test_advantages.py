"""dpo_smac.py: advantages of agents that die, by definition and by hand; each agent's are its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dpo_smac
from dpo_smac import gae
from tests.scripts.learning import N

# Generalised advantage estimation.


def random_rollout(seed: int, T: int = 25, E: int = 6):
    """Episodes that end by termination and truncation, deaths in mid-episode, a rollout that just ends."""
    rng = np.random.default_rng(seed)
    ends = rng.random((T, E)) < 0.12
    cut = rng.random((T, E)) < 0.5
    alive = np.ones((N, T + 1, E), dtype=bool)
    for t in range(T):
        alive[:, t + 1] = (alive[:, t] | ends[t]) & (rng.random((N, E)) < 0.85)
    rewards, values, final_values = (rng.normal(size=x) for x in ((T, E), (N, T + 1, E), (N, T, E)))
    final_values *= rng.random(final_values.shape) < 0.8  # `train` passes 0 for those dead at the end
    return rewards, values, final_values, ends & ~cut, ends & cut, alive


def gae_reference(rewards, values, final_values, term, trunc, alive, gamma, lam):
    """One agent in one environment, (T,) or (T + 1,), by definition: A_t = sum_k (gamma lam)^k delta_{t+k}.

    The sum ends with the episode, the rollout or the agent. The value of the state after a step is V there
    while the agent lives; 0 after a termination; final_values after a truncation; once the agent is dead,
    the discounted sum of the team's rewards up to the episode's end. Where that end is not in the rollout,
    delta is 0 and the step is no sample; neither are steps of the dead.
    """
    T = len(rewards)
    advantages, valid = np.zeros(T), np.zeros(T, dtype=bool)

    def after(t):
        if term[t]:
            return 0.0
        if trunc[t]:
            return final_values[t]
        if alive[t + 1]:
            return values[t + 1]
        if t + 1 == T:
            return None
        rest = after(t + 1)
        return None if rest is None else rewards[t + 1] + gamma * rest

    for t in range(T):
        valid[t] = alive[t] and after(t) is not None
        discount, k = 1.0, t
        while alive[t] and k < T and alive[k]:
            rest = after(k)
            if rest is not None:
                advantages[t] += discount * (rewards[k] + gamma * rest - values[k])
            if term[k] or trunc[k]:
                break
            discount, k = discount * gamma * lam, k + 1
    return advantages, valid


def call_gae(rollout, gamma=0.9, lam=0.8):
    return [x.numpy() for x in gae(*map(torch.from_numpy, rollout), gamma, lam)]


@pytest.mark.parametrize("seed", range(8))
def test_gae_is_the_definition_for_every_agent_with_deaths_ends_and_cuts(seed):
    """Advantages that leak across episodes, or blame the dead, teach agents something else than to win."""
    rollout = random_rollout(seed)
    rewards, values, final_values, term, trunc, alive = rollout
    advantages, returns, valid = call_gae(rollout)
    for i, e in np.ndindex(N, rewards.shape[1]):
        own = (values[i, :, e], final_values[i, :, e], term[:, e], trunc[:, e], alive[i, :, e])
        expected, samples = gae_reference(rewards[:, e], *own, 0.9, 0.8)
        assert np.allclose(advantages[i, :, e], expected, atol=1e-12)
        assert np.array_equal(valid[i, :, e], samples)
    assert (advantages[~alive[:, :-1]] == 0).all()
    assert np.allclose(returns, advantages + values[:, :-1])
    assert term.any() and trunc.any() and (~alive[:, -1]).any()
    assert valid.sum() < alive[:, :-1].sum() < alive[:, :-1].size


def small(rewards, values, **given):
    """gae of one agent in one environment, gamma 0.5, lambda 0.5; alive throughout unless given."""
    T = len(rewards)
    take = lambda name, default: np.asarray(given.get(name, default))  # noqa: E731
    advantages, _, _ = call_gae(
        (
            np.array(rewards, float)[:, None],
            np.array(values, float)[None, :, None],
            take("final_values", [0.0] * T).reshape(1, T, 1).astype(float),
            take("terminations", [False] * T).reshape(T, 1),
            take("truncations", [False] * T).reshape(T, 1),
            take("alive", [True] * (T + 1)).reshape(1, T + 1, 1),
        ),
        0.5,
        0.5,
    )
    return advantages[0, :, 0].tolist()


def test_gae_by_hand():
    """Four sums a reader can check with a pencil: boundary, termination, truncation, death."""
    # Rollout boundary: delta_1 = 2 + 0.5*8 - 4 = 2, delta_0 = 1 + 0.5*4 - 2 = 1; A_0 = 1 + 0.25*2.
    assert small([1, 2], [2, 4, 8]) == [1.5, 2]
    # Termination after the first step: delta_0 = 1 - 2, whatever follows.
    assert small([1, 2], [2, 4, 8], terminations=[True, False]) == [-1, 2]
    # Truncation: delta_0 = 1 + 0.5*6 - 2 with V(final observation) = 6, not the next episode's 4.
    cut = dict(truncations=[True, False], final_values=[6, 0])
    assert small([1, 2], [2, 4, 8], **cut) == [2, 2]
    # Dead after the first step, episode over two steps later: A_0 = 1 + 0.5*3 + 0.25*5 - 2, no V of the dead.
    dead = dict(alive=[True, False, False, True], terminations=[False, False, True])
    assert small([1, 3, 5], [2, 99, 99, 99], **dead) == [1.75, 0, 0]
    # The same death, but the rollout ends first: what the team still earns is unknown.
    dead = dict(alive=[True, True, False, False])
    assert small([1, 3, 5], [2, 4, 99, 99], **dead) == [1, 0, 0]


@pytest.mark.parametrize("name", ["values", "alive", "final_values"])
@pytest.mark.parametrize("last", [False, True])
def test_agent_advantages_ignore_other_agents(name, last):
    """The way from rollout to advantage is decentralized, too: only the team's reward is common."""
    names = ("rewards", "values", "final_values", "terminations", "truncations", "alive")
    rollout = dict(zip(names, random_rollout(0), strict=True))
    rollout["terminations"][-1], rollout["truncations"][-1] = False, np.arange(6) < 3  # some at the last step
    before, _, valid_before = call_gae(rollout.values())
    other = rollout[name].copy()
    changed = other[1, -1:] if last else other[1]
    changed[...] = ~changed if other.dtype == bool else changed + 3
    after, _, valid_after = call_gae((rollout | {name: other}).values())
    assert np.array_equal(after[[0, 2]], before[[0, 2]])
    assert np.array_equal(valid_after[[0, 2]], valid_before[[0, 2]])
    assert not np.array_equal(after[1], before[1])


# Normalisation.


def test_advantages_are_standardised_per_agent_over_its_own_living_samples():
    """If another agent's or a dead agent's samples set the scale, agents are no longer decentralized."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 20, 5, generator=generator) * torch.tensor([1.0, 50.0, 0.1]).view(N, 1, 1) + 7
    alive = torch.rand(N, 20, 5, generator=generator) < 0.6
    weight = alive / alive.sum((1, 2), keepdim=True)
    result, deviation = dpo_smac.standardize(x, weight), dpo_smac.weighted_std(x, weight)
    for i in range(N):
        own = x[i][alive[i]].double()
        expected = (own - own.mean()) / own.std(correction=0)
        assert torch.allclose(result[i][alive[i]].double(), expected, atol=1e-3)
        assert deviation[i].item() == pytest.approx(own.std(correction=0).item(), rel=1e-5)
    other = torch.where(alive, x, 1e4 * torch.randn(x.shape, generator=generator))
    other[1] += 1000
    assert torch.equal(
        dpo_smac.standardize(other, weight)[[0, 2]][alive[[0, 2]]], result[[0, 2]][alive[[0, 2]]]
    )
    constant = dpo_smac.standardize(torch.full((1, 4, 1), 3.0), torch.full((1, 4, 1), 0.25))
    assert (constant == 0).all()
