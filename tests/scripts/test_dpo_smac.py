"""dpo_smac.py: surrogate, GAE, betas, and agents that share nothing; evaluation, and battles that are won."""

from __future__ import annotations

import copy
import itertools
import shutil
from pathlib import Path

import imageio
import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import dpo_smac
import envs
from dpo_smac import Agents, Args, adapt_beta, categorical_kl, dpo_loss, gae, masked_log_softmax, update
from tests.scripts.recording import recording
from tests.scripts.running import (
    evaluations,
    finished,
    load,
    only,
    refused,
    rejected,
    rows,
    same,
    undisturbed,
)

N, OBS, A = 3, 11, 6


def random_mask(*shape: int, generator: torch.Generator) -> torch.Tensor:
    """Random availability, (..., A) bool, with at least one action available."""
    mask = torch.rand(*shape, generator=generator) < 0.6
    mask.scatter_(-1, torch.randint(shape[-1], (*shape[:-1], 1), generator=generator), True)
    return mask


def make_agents(seed: int = 0, beta: float = 0.01, spread: float = 0.2, num_agents: int = N) -> Agents:
    """Agents with non-zero biases and a policy that is not uniform, so that nothing cancels by accident."""
    torch.manual_seed(seed)
    agents = Agents(num_agents, OBS, A)
    with torch.no_grad():
        for parameter in agents.parameters():
            parameter += spread * torch.randn_like(parameter) / parameter.shape[1] ** 0.5
    agents.beta1 += beta
    agents.beta2 += beta
    return agents


def make_batch(agents: Agents, rows: int = 40, seed: int = 1, drift: float = 0.0) -> dict[str, torch.Tensor]:
    """A batch as `train` makes it: about a third of the rows dead; pi_old = the agents' policy plus drift."""
    generator = torch.Generator().manual_seed(seed)
    dtype, n = agents.beta1.dtype, len(agents.beta1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
    obs, alive = draw(n, rows, OBS), torch.rand(n, rows, generator=generator) < 0.7
    mask = random_mask(n, rows, A, generator=generator)
    with torch.no_grad():
        old_logp = masked_log_softmax(agents.actor(obs) + drift * draw(n, rows, A), mask)
    actions = torch.multinomial((old_logp.exp() * mask).flatten(0, 1), 1, generator=generator)
    weight = alive.to(dtype) / alive.sum(1, keepdim=True).clamp(min=1)
    batch = dict(obs=obs, action_mask=mask, actions=actions.view(n, rows), old_logp=old_logp)
    return batch | dict(advantages=draw(n, rows), returns=draw(n, rows), weight=weight)


def adam(agents: Agents, lr: float = 5e-4) -> torch.optim.Adam:
    return torch.optim.Adam(agents.parameters(), lr=lr, eps=1e-5, fused=True)


def learn(agents: Agents, *batches: dict[str, torch.Tensor], **args):
    """Updates a copy of the agents; returns it, its optimiser and all statistics, (N, updates)."""
    agents = copy.deepcopy(agents)
    optimizer = adam(agents)
    options = Args(**{"update_epochs": 3, "max_grad_norm": 0.5} | args)
    return agents, optimizer, stacked([copied(update(agents, optimizer, x, options)) for x in batches])


def copied(stats: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Statistics that the next update does not change; the betas among them are the agents' own."""
    return {name: x.clone() for name, x in stats.items()}


def stacked(stats: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Statistics of several updates, (N, updates) each."""
    return {name: torch.stack([one[name] for one in stats], dim=1) for name in stats[0]}


def everything(agents: Agents, optimizer: torch.optim.Adam, stats: dict) -> dict[str, torch.Tensor]:
    """All that an update leaves behind, agents first: parameters, Adam's moments, betas, statistics."""
    found = {name: p.detach() for name, p in agents.named_parameters()}
    for name, p in agents.named_parameters():
        found |= {f"{name} {key}": optimizer.state[p][key] for key in ("exp_avg", "exp_avg_sq")}
    return found | {"beta1": agents.beta1, "beta2": agents.beta2} | stats


# KL and its square root.


def policies(kl: float, rows: int = 200, seed: int = 0):
    """Logits of pi_old and pi, float32, with KL(pi_old || pi) about `kl`, and random masks."""
    generator = torch.Generator().manual_seed(seed)
    old, direction = torch.randn(2, rows, A, generator=generator).double()
    mask = random_mask(rows, A, generator=generator)
    scale = torch.full((rows, 1), 1e-9).double()
    while kl > 0:  # the KL grows with the step along `direction`
        larger = exact_kl(old, old + 1.1 * scale * direction, mask) < kl
        if not (larger & (scale[:, 0] < 60)).any():
            break
        scale[larger] *= 1.1
    return old.float(), (old + (kl > 0) * scale * direction).float(), mask


def exact_kl(old: torch.Tensor, new: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """KL from the logits in float64; expm1(x) - x loses 1e-16 |x| there, the textbook form 1e-16."""
    log = [x.double().masked_fill(~mask, -1e300).log_softmax(-1) for x in (old, new)]
    x = (log[1] - log[0]).masked_fill(~mask, 0.0)
    return (log[0].exp() * mask * (torch.expm1(x) - x)).sum(-1)


SIZES = [0.0, 1e-14, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 0.1, 1.0, 10.0]


@pytest.mark.parametrize("size", SIZES)
def test_kl_and_its_root_agree_with_float64(size):
    """A wrong KL would steer the betas, and with them every step's size, to something else than d_target.

    Logits are float32, so log-probabilities carry an error of about 5e-7: KL one of that times sqrt(KL), its
    gradient one of the same size, and the root's gradient the same divided by sqrt(KL + 1e-12).
    """
    old, new, mask = policies(size)
    new.requires_grad_()
    kl = categorical_kl(masked_log_softmax(old, mask), masked_log_softmax(new, mask))
    exact_new = new.detach().double().requires_grad_()
    exact = exact_kl(old, exact_new, mask)
    assert (kl >= 0).all() and kl.isfinite().all()
    error = (kl.double() - exact).abs()
    assert (error <= 3e-6 * exact.sqrt() + 1e-12 + 1e-6 * exact).all()
    root, exact_root = (kl + 1e-12).sqrt(), (exact + 1e-12).sqrt()
    assert ((root.double() - exact_root).abs() <= 2e-6 + 1e-6 * exact_root).all()

    grad, exact_grad = (
        torch.autograd.grad(x.sum(), at, retain_graph=True)[0] for x, at in ((kl, new), (exact, exact_new))
    )
    assert (grad.double() - exact_grad).abs().max() <= 1e-6
    grad = torch.autograd.grad(root.sum(), new)[0]
    exact_grad = torch.autograd.grad(exact_root.sum(), exact_new)[0]
    tolerance = 5e-7 / exact_root.detach().clamp(min=1e-6)
    assert grad.isfinite().all()
    assert ((grad.double() - exact_grad).abs() <= tolerance[:, None]).all()
    if size >= 1e-2:  # where float64 has digits to spare, the textbook form is the same number
        p, q = (x.double().masked_fill(~mask, -1e300).log_softmax(-1) for x in (old, new.detach()))
        assert torch.allclose(exact, (p.exp() * (p - q).masked_fill(~mask, 0)).sum(-1), rtol=1e-9)


def test_root_of_kl_is_safe_at_the_first_gradient_step_where_the_textbook_form_is_not():
    """At pi = pi_old the textbook form gives NaN at once, and the run is lost at its first gradient step."""
    old, _, mask = policies(0.0, rows=2000)
    same = (old + 3.7).requires_grad_()  # the same policies, rounded otherwise
    old_logp, logp = masked_log_softmax(old, mask), masked_log_softmax(same, mask)
    textbook = (old_logp.exp() * (old_logp - logp)).sum(-1)
    assert (textbook < 0).any() and textbook.sqrt().isnan().any()
    at_zero = old.clone().requires_grad_()
    x = masked_log_softmax(at_zero, mask)
    (old_logp.exp() * (old_logp - x)).sum(-1).sqrt().sum().backward()
    assert at_zero.grad.isnan().any()

    for logits, bound in ((at_zero.detach().clone().requires_grad_(), 0.0), (same, 0.5)):
        root = (categorical_kl(old_logp, masked_log_softmax(logits, mask)) + 1e-12).sqrt()
        root.sum().backward()
        assert (root >= 1e-6).all() and (root < 2e-6).all()
        assert logits.grad.abs().max() <= bound


def test_kl_stays_finite_and_non_negative_for_sharp_policies():
    """Late in training policies are nearly deterministic; one infinite KL would end the run.

    From a ratio of exp(80) on, up to 1 of a KL of about 80 or more is missing.
    """
    generator = torch.Generator().manual_seed(3)
    for scale in (1.0, 5.0, 20.0, 200.0):
        old, new = scale * torch.randn(2, 5000, A, generator=generator).clamp(-2, 2)
        mask = random_mask(5000, A, generator=generator)
        new.requires_grad_()
        kl = categorical_kl(masked_log_softmax(old, mask), masked_log_softmax(new, mask))
        kl.add(1e-12).sqrt().sum().backward()
        assert kl.isfinite().all() and (kl >= 0).all() and new.grad.isfinite().all()
        if scale < 20:
            assert torch.allclose(kl.double(), exact_kl(old, new, mask), rtol=1e-4, atol=1e-6)


def test_the_terms_of_the_kl_are_never_negative_and_keep_their_digits_near_zero():
    """A negative KL has no root; and the size of the first steps hangs on the gradient near 0."""
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    for scale in (1e-12, 1e-9, 1e-7, 1e-4, 1.0):
        at = (scale * x).requires_grad_()
        term = dpo_smac.exp_minus_linear(at)
        term.sum().backward()
        assert (term >= 0).all()
        assert torch.allclose(at.grad.double(), at.detach().double().expm1(), rtol=1e-6, atol=0)


# Masked actions.


def test_unavailable_actions_have_no_probability_no_gradient_and_no_share_in_kl_or_entropy():
    """Otherwise an agent would spend its policy, or its trust region, on actions that it cannot take."""
    agents = make_agents()
    batch = make_batch(agents, drift=0.3)
    mask = batch["action_mask"]
    logits = agents.actor(batch["obs"]).detach().requires_grad_()
    logp = masked_log_softmax(logits, mask)
    assert (F.softmax(logits.masked_fill(~mask, -torch.inf), -1)[~mask] == 0).all()
    assert torch.allclose((logp.exp() * mask).sum(-1), torch.ones(()), atol=1e-6)

    agents.actor.forward = lambda obs: logits  # the loss as a function of the logits
    loss, parts = dpo_loss(agents, **batch, ent_coef=0.01)
    (grad,) = torch.autograd.grad(loss, logits)
    alive = batch["weight"] > 0
    assert (grad[~mask] == 0).all() and (grad[~alive] == 0).all()
    assert (grad[mask & alive[..., None] & (mask.sum(-1, keepdim=True) > 1)] != 0).any()

    kl = categorical_kl(batch["old_logp"], logp)
    for agent, row in np.ndindex(*mask.shape[:2]):  # the same over the available actions as if no others were
        available = mask[agent, row]
        q = logits[agent, row][available].double().log_softmax(-1)
        p = batch["old_logp"][agent, row][available].double()
        assert torch.isclose(kl[agent, row].double(), (p.exp() * (p - q)).sum(), atol=1e-6)
    entropy = -torch.where(mask, logp.exp() * logp, 0.0).sum(-1)
    assert torch.allclose(parts["losses/entropy"], (batch["weight"] * entropy).sum(1), atol=1e-6)


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


# Normalisation.


def test_advantages_are_standardised_per_agent_over_its_own_living_samples():
    """If another agent's or a dead agent's samples set the scale, agents are no longer decentralized."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 20, 5, generator=generator) * torch.tensor([1.0, 50.0, 0.1]).view(N, 1, 1) + 7
    alive = torch.rand(N, 20, 5, generator=generator) < 0.6
    weight = alive / alive.sum((1, 2), keepdim=True)
    result, deviation = dpo_smac.standardize(x, weight), dpo_smac.deviation(x, weight)
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


# The surrogate, eq. (20), and the betas, eq. (21).


@pytest.mark.parametrize("betas", [(0.02, 0.03), (0.0, 0.03), (0.02, 0.0)])
def test_loss_is_equation_20(betas):
    """The number that agents descend is the paper's, not one that looks like it: here a loop in float64."""
    agents = make_agents().double()
    agents.beta1.copy_(betas[0] * torch.tensor([1.0, 2.0, 3.0]))
    agents.beta2.copy_(betas[1] * torch.tensor([1.0, 2.0, 3.0]))
    batch = make_batch(agents, drift=0.5)
    loss, parts = dpo_loss(agents, **batch, ent_coef=0.07)
    logits, values = agents.actor(batch["obs"]).detach(), agents.value(batch["obs"]).detach()
    total, policy_losses, value_losses, entropies = 0.0, [], [], []
    for i in range(N):
        surrogate, entropy, kl, root, v_loss = [], [], [], [], []
        for row in range(batch["obs"].shape[1]):
            if batch["weight"][i, row] == 0:
                continue
            available = batch["action_mask"][i, row].nonzero().flatten().tolist()
            unnormalised = {a: np.exp(logits[i, row, a].item()) for a in available}
            pi = {a: p / sum(unnormalised.values()) for a, p in unnormalised.items()}
            pi_old = {a: np.exp(batch["old_logp"][i, row, a].item()) for a in available}
            action = batch["actions"][i, row].item()
            surrogate.append(pi[action] / pi_old[action] * batch["advantages"][i, row].item())
            entropy.append(-sum(p * np.log(p) for p in pi.values()))
            kl.append(sum(pi_old[a] * np.log(pi_old[a] / pi[a]) for a in available))
            root.append(np.sqrt(max(kl[-1], 0.0)))
            v_loss.append((values[i, row] - batch["returns"][i, row]).item() ** 2)
        mean, beta1, beta2 = lambda x: sum(x) / len(x), agents.beta1[i].item(), agents.beta2[i].item()
        objective = (mean(surrogate) + 0.07 * mean(entropy)) / N - beta1 * mean(root) - beta2 * mean(kl)
        total += mean(v_loss) - N * objective
        policy_losses.append(-mean(surrogate))
        value_losses.append(mean(v_loss))
        entropies.append(mean(entropy))
    assert loss.item() == pytest.approx(total, abs=1e-6)  # the 1e-12 under the root: 1e-6 where KL is 0
    expected = {"policy_loss": policy_losses, "value_loss": value_losses, "entropy": entropies}
    assert parts.keys() == {f"losses/{name}" for name in expected}
    assert all(np.allclose(parts[f"losses/{name}"], x, rtol=1e-9) for name, x in expected.items())


def test_betas_follow_equation_21():
    """Betas that move the wrong way, or at the wrong KL, lose the trust region."""
    args = Args(beta_min=1e-9, beta_max=1e9)
    low, high = args.d_target / args.delta, args.d_target * args.delta
    kl = torch.tensor([0.0, low * 0.999, low, args.d_target, high, high * 1.001, 5.0])
    factor = torch.tensor([0.5, 0.5, 1.0, 1.0, 1.0, 2.0, 2.0])
    for beta in (torch.full((len(kl),), 0.01), torch.full((len(kl),), 0.3)):
        assert torch.equal(adapt_beta(beta, kl, args, 7), beta * factor)
        assert torch.equal(adapt_beta(beta, kl, Args(omega=4.0, beta_min=1e-9), 7), beta * factor**2)


def test_betas_stay_within_their_bounds():
    """Without the floor the betas vanish late in training; the bounds are on N * beta."""
    args = Args(beta_min=0.05, beta_max=10.0)
    for num_agents in (1, 4):
        for kl, bound in ((0.0, 0.05), (9.0, 10.0)):
            beta = torch.full((3,), 0.1)
            for _ in range(20):
                beta = adapt_beta(beta, torch.full((3,), kl), args, num_agents)
            assert torch.allclose(beta, torch.tensor(bound / num_agents))


@pytest.mark.parametrize("term", ["beta1", "beta2"])
def test_an_ablated_term_stays_off(term):
    """Otherwise the floor would switch the term on again, and the ablation would compare DPO with DPO."""
    other = "beta2" if term == "beta1" else "beta1"
    agents = make_agents()
    getattr(agents, term).zero_()
    wanted = dict(sqrt_kl_term=term != "beta1", kl_term=term != "beta2")
    for d_target in (1e9, 1e-3, 1e-9):  # KL below, about and above the band
        trained, _, stats = learn(agents, *[make_batch(agents)] * 2, d_target=d_target, **wanted)
        assert (getattr(trained, term) == 0).all() and (getattr(trained, other) > 0).all()
        assert (stats[f"dpo/{term}"] == 0).all() and (stats[f"dpo/{other}"] > 0).all()


# The update.


def test_gradients_are_clipped_per_agent_and_per_network():
    """A clip over all agents would let one agent's large gradient shorten the others' steps."""
    agents = make_agents()
    scales = torch.tensor([0.01, 3.0, 100.0])
    for network in (agents.actor, agents.critic):
        for p in network.parameters():
            p.grad = torch.randn_like(p) * scales.view(N, 1, 1)
    before = [p.grad.clone() for p in agents.actor.parameters()]
    untouched = [p.grad.clone() for p in agents.critic.parameters()]
    norms = dpo_smac.clip_grad_norm_per_agent(agents.actor, 10.0)
    assert all(torch.equal(p.grad, g) for p, g in zip(agents.critic.parameters(), untouched, strict=True))
    for i in range(N):
        whole = torch.cat([g[i].flatten() for g in before])
        clipped = torch.cat([p.grad[i].flatten() for p in agents.actor.parameters()])
        assert norms[i].item() == pytest.approx(whole.norm().item(), rel=1e-5)
        assert clipped.norm().item() == pytest.approx(min(whole.norm().item(), 10.0), rel=1e-5)
        assert torch.allclose(F.cosine_similarity(clipped, whole, dim=0), torch.ones(()))
    assert norms[0] < 10 < norms[1]


def test_update_reports_the_last_epoch_and_the_divergence_of_the_updated_policy(monkeypatch):
    """The betas and every figure of the trust region are made of these numbers."""
    monkeypatch.setattr(dpo_smac, "CHUNK", 16)
    agents = make_agents()
    batch = make_batch(agents, drift=0.2)
    before, _, _ = learn(agents, batch)  # 3 epochs; the fourth below begins there
    after, _, stats = learn(agents, batch, update_epochs=4)
    _, parts = dpo_loss(before, **batch, ent_coef=0.01)
    for name, part in parts.items():
        assert torch.allclose(stats[name][:, 0], part, rtol=1e-4, atol=1e-6), name
    with torch.no_grad():
        logp = masked_log_softmax(after.actor(batch["obs"]), batch["action_mask"])
    kl = categorical_kl(batch["old_logp"], logp)
    mean_kl = (batch["weight"] * kl).sum(1)
    assert torch.allclose(stats["dpo/kl"][:, 0], mean_kl, rtol=1e-4)
    assert torch.allclose(stats["dpo/sqrt_kl"][:, 0], (batch["weight"] * kl.sqrt()).sum(1), rtol=1e-4)
    assert torch.equal(stats["dpo/beta1"][:, 0], after.beta1)
    assert torch.equal(stats["dpo/beta2"][:, 0], after.beta2)
    low, high = Args.d_target / Args.delta, Args.d_target * Args.delta
    assert torch.equal(stats["dpo/below_band"][:, 0], (mean_kl < low).float())
    assert torch.equal(stats["dpo/above_band"][:, 0], (mean_kl > high).float())


def test_chunks_are_the_whole_batch(monkeypatch):
    """The chunk's size is for speed alone. Gradients add up in another order: 1e-5 after 6 Adam steps."""
    agents = make_agents()
    batches = [make_batch(agents, rows=150, seed=s, drift=0.1) for s in (1, 2)]
    results = []
    for size in (10**9, 64, 7):
        monkeypatch.setattr(dpo_smac, "CHUNK", size)
        results.append(everything(*learn(agents, *batches)))
    for other in results[1:]:
        for name, whole in results[0].items():
            assert torch.allclose(other[name], whole, rtol=1e-3, atol=1e-5), name


def test_groups_of_agents_are_the_whole_stack_and_write_into_it():
    """--torch-threads would change the result, or train copies that no checkpoint ever sees.

    Equal to float32 rounding, not bit for bit: a matrix product of one agent adds up in another order.
    """
    agents = make_agents()
    batches = [make_batch(agents, seed=s) for s in (1, 2)]
    whole = everything(*learn(agents, *batches))
    stack = copy.deepcopy(agents)
    parts = [slice(0, 1), slice(1, 3)]
    groups = [stack.group(part) for part in parts]
    optimizers = [adam(group) for group in groups]
    args, stats = Args(update_epochs=3, max_grad_norm=0.5), []
    for batch in batches:
        own = [{name: x[part] for name, x in batch.items()} for part in parts]
        each = zip(groups, optimizers, own, strict=True)
        learned = [copied(update(group, optimizer, x, args)) for group, optimizer, x in each]
        stats.append({name: torch.cat([one[name] for one in learned]) for name in learned[0]})
    trained = {name: p.detach() for name, p in stack.named_parameters()}
    trained |= {"beta1": stack.beta1, "beta2": stack.beta2} | stacked(stats)
    for name, x in trained.items():
        assert torch.allclose(x, whole[name], rtol=1e-4, atol=1e-6), name
    assert not torch.equal(stack.actor.weights[0], agents.actor.weights[0])
    assert not torch.equal(stack.beta1, agents.beta1) and not torch.equal(stack.beta2, agents.beta2)
    for group, optimizer, part in zip(groups, optimizers, parts, strict=True):
        for name, p in group.named_parameters():
            assert torch.equal(p, trained[name][part]), name
            for key in ("exp_avg", "exp_avg_sq"):
                moment = whole[f"{name} {key}"][part]
                assert torch.allclose(optimizer.state[p][key], moment, rtol=1e-3, atol=1e-7), name


def test_a_group_may_finish_while_another_is_between_forward_and_backward():
    """Threads end when they end: autograd must not take one group's new betas for a change of another's."""
    stack = make_agents()
    batch = make_batch(stack, drift=0.1)
    parts = [slice(0, 1), slice(1, 3)]
    (first, second), own = (
        [stack.group(part) for part in parts],
        [{name: x[part] for name, x in batch.items()} for part in parts],
    )
    loss, _ = dpo_loss(second, **own[1], ent_coef=0.01)
    update(first, adam(first), own[0], Args(update_epochs=1))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in second.parameters())


@pytest.mark.parametrize(
    "name", ["obs", "actions", "advantages", "returns", "weight", "old_logp", "everything"]
)
def test_agent_update_ignores_other_agents(name):
    """Strictly decentralized: whatever one agent saw, did or was paid, the others learn bit-identically."""
    agents = make_agents()
    batches = [make_batch(agents, seed=s, drift=0.1) for s in (1, 2)]
    before = everything(*learn(agents, *batches))
    for batch in batches:
        foreign = make_batch(agents, seed=99, drift=1.0)
        for key in batch if name == "everything" else [name]:
            batch[key] = batch[key].clone()
            batch[key][1] = foreign[key][1]
            if key == "actions":  # another available one
                batch[key][1] = batch["action_mask"][1].float().argmax(-1)
    after = everything(*learn(agents, *batches))
    for key, value in before.items():
        assert torch.equal(after[key][[0, 2]], value[[0, 2]]), key
    moved = [key for key, value in before.items() if not torch.equal(after[key][1], value[1])]
    network = "critic" if name == "returns" else "actor"
    loss = "losses/value_loss" if name == "returns" else "losses/policy_loss"
    assert any(key.startswith(network) for key in moved) and loss in moved


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


def test_dead_rows_influence_nothing():
    """A corpse's observations, advantages and returns are no experience; training on them would be noise."""
    agents = make_agents()
    batch = make_batch(agents, drift=0.1)
    dead = batch["weight"] == 0
    before = everything(*learn(agents, batch))
    generator = torch.Generator().manual_seed(5)
    other = dict(batch)
    for name in ("obs", "advantages", "returns"):
        other[name] = batch[name].clone()
        other[name][dead] = 100 * torch.randn(other[name][dead].shape, generator=generator)
    after = everything(*learn(agents, other))
    assert dead.any() and all(torch.equal(after[name], value) for name, value in before.items())


def test_another_agent_s_death_changes_nothing_to_the_last_bit():
    """Rows are sorted and chunks left out by who is alive: other chunks would round sums otherwise."""
    agents, rows = make_agents(), 3000  # more than two chunks: in short ones rounding is always the same
    batch = make_batch(agents, rows, drift=0.1)
    rollout = {name: x.view(N, 100, 30, *x.shape[2:]) for name, x in batch.items()}
    results = []
    for samples in (rows, 1700, 1, 0):  # of agent 1; the others have 500
        count = torch.tensor([500, samples, 500]).view(N, 1, 1)
        valid = torch.rand(N, rows, generator=torch.Generator().manual_seed(7)).argsort(1).argsort(1)
        valid = valid.view(N, 100, 30) < count
        weight = valid / valid.sum((1, 2), keepdim=True).clamp(min=1)
        batch = dpo_smac.samples_first(rollout | {"weight": weight}, valid)
        results.append(everything(*learn(agents, batch)))
    for other in results[1:]:
        for name, x in results[0].items():
            assert torch.equal(other[name][[0, 2]], x[[0, 2]]), name
    assert not torch.equal(results[0]["actor.weights.0"][1], results[1]["actor.weights.0"][1])


def test_an_agent_dead_all_through_the_batch_keeps_its_networks_and_betas():
    """Nothing seen, nothing learnt: and no division by its zero samples."""
    agents = make_agents()
    batch = make_batch(agents)
    batch["weight"][1] = 0
    trained, _, stats = learn(agents, batch)
    assert all(x.isfinite().all() for x in stats.values())
    for p, q in zip(agents.parameters(), trained.parameters(), strict=True):
        assert torch.equal(p[1], q[1]) and not torch.equal(p[0], q[0])
    for before, after in ((agents.beta1, trained.beta1), (agents.beta2, trained.beta2)):
        assert torch.equal(before[1], after[1]) and not torch.equal(before[0], after[0])


# Stacked networks are separate networks.


class Separate:
    """One agent written plainly: two nn.Sequential, each with its own Adam and its own gradient clip."""

    def __init__(self, agents: Agents, agent: int, layer_norm: bool):
        self.nets = []
        for network in (agents.actor, agents.critic):
            layers: list[nn.Module] = []
            for k, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
                # As in the script: LayerNorm after each hidden layer, before its ReLU.
                layers += (
                    [nn.LayerNorm(weight.shape[1], elementwise_affine=False)] if k and layer_norm else []
                )
                layers += [nn.ReLU()] if k else []
                linear = nn.Linear(weight.shape[1], weight.shape[2]).double()
                linear.weight.data, linear.bias.data = weight[agent].T.clone(), bias[agent, 0].clone()
                layers += [linear]
            self.nets.append(nn.Sequential(*layers))
        self.adams = [torch.optim.Adam(net.parameters(), lr=3e-3, eps=1e-5) for net in self.nets]
        self.beta1, self.beta2 = agents.beta1[agent].item(), agents.beta2[agent].item()

    def kl(self, batch):
        logits = self.nets[0](batch["obs"])
        logp = logits.masked_fill(~batch["action_mask"], -1e9).log_softmax(-1)
        x = torch.where(batch["action_mask"], logp - batch["old_logp"], 0.0)
        return logp, (batch["old_logp"].exp() * batch["action_mask"] * (x.expm1() - x)).sum(-1)

    def update(self, batch, args: Args):
        batch = {name: x[batch["weight"] > 0] for name, x in batch.items()}  # its own, living samples
        for _ in range(args.update_epochs):
            logp, kl = self.kl(batch)
            ratio = (logp - batch["old_logp"]).gather(-1, batch["actions"][:, None])[:, 0].exp()
            entropy = -(logp.exp() * logp).sum(-1)
            surrogate = (ratio * batch["advantages"] + args.ent_coef * entropy).mean()
            penalty = self.beta1 * (kl + 1e-12).sqrt().mean() + self.beta2 * kl.mean()
            losses = (
                N * penalty - surrogate,
                F.mse_loss(self.nets[1](batch["obs"])[:, 0], batch["returns"]),
            )
            for loss, net, optimizer in zip(losses, self.nets, self.adams, strict=True):
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), args.max_grad_norm)
                optimizer.step()
        kl = self.kl(batch)[1].mean().item()
        up, down = kl > args.d_target * args.delta, kl < args.d_target / args.delta
        change = args.omega if up else 1 / args.omega if down else 1.0
        bound = lambda b: min(max(b * change, args.beta_min / N), args.beta_max / N)  # noqa: E731
        self.beta1, self.beta2 = bound(self.beta1), bound(self.beta2)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_stacked_networks_train_as_separate_networks(layer_norm):
    """One optimiser over stacked tensors must be N agents with N optimisers, or DPO is not decentralized.

    In float64, so that 1e-9 tells an error from rounding, over 4 updates of 3 epochs with the clip at work.
    """
    torch.manual_seed(0)
    agents = Agents(N, OBS, A, layer_norm).double()
    agents.beta1 += 0.02
    agents.beta2 += 0.05
    singles = [Separate(agents, i, layer_norm) for i in range(N)]
    optimizer, args, changed = adam(agents, lr=3e-3), Args(update_epochs=3, max_grad_norm=0.2), set()
    for seed in range(4):
        batch = make_batch(agents, seed=seed, drift=0.15 * (seed % 2))
        norms = update(agents, optimizer, batch, args)["losses/grad_norm"]
        assert (norms > args.max_grad_norm).any()
        for i, single in enumerate(singles):
            single.update({name: x[i] for name, x in batch.items()}, args)
        assert torch.allclose(agents.beta1, torch.tensor([s.beta1 for s in singles]).double(), rtol=1e-6)
        assert torch.allclose(agents.beta2, torch.tensor([s.beta2 for s in singles]).double(), rtol=1e-6)
        changed |= {single.beta1 for single in singles}
    obs = make_batch(agents, seed=9)["obs"]
    for i, single in enumerate(singles):
        assert torch.allclose(agents.actor(obs)[i], single.nets[0](obs[i]), atol=1e-9)
        assert torch.allclose(agents.value(obs)[i], single.nets[1](obs[i])[:, 0], atol=1e-9)
        linears = [m for net in single.nets for m in net if isinstance(m, nn.Linear)]
        networks = (agents.actor, agents.critic)
        stacked = [wb for net in networks for wb in zip(net.weights, net.biases, strict=True)]
        for linear, (weight, bias) in zip(linears, stacked, strict=True):
            assert torch.allclose(weight[i], linear.weight.T, atol=1e-9)
            assert torch.allclose(bias[i, 0], linear.bias, atol=1e-9)
    assert len(changed) > 1


def test_agents_begin_with_orthogonal_weights_of_their_own():
    """Equal agents would begin as copies, which is parameter sharing by the back door."""
    torch.manual_seed(0)
    agents = Agents(N, OBS, A)
    for network, head in ((agents.actor, 0.01), (agents.critic, 1.0)):
        for weight, gain in zip(network.weights, (2**0.5, 2**0.5, head), strict=True):
            singular = torch.linalg.svdvals(weight.detach())
            assert torch.allclose(singular, torch.tensor(gain), rtol=1e-4)
            assert not torch.equal(weight[0], weight[1])
        assert all((bias == 0).all() for bias in network.biases)


# Compiled.


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU needs a C++ compiler")
def test_compiled_loss_agrees_with_eager():
    """--compile is for speed: loss, statistics and gradients stay what they are, to float32 rounding."""
    agents = make_agents()
    batch = make_batch(agents, rows=64, drift=0.2)
    results = []
    for loss_fn in (dpo_loss, torch.compile(dpo_loss, options={"cpp_wrapper": True})):
        agents.zero_grad()
        loss, parts = loss_fn(agents, **batch, ent_coef=0.01)
        loss.backward()
        results.append([loss.detach(), *parts.values(), *(p.grad.clone() for p in agents.parameters())])
    for eager, compiled in zip(*results, strict=True):
        assert torch.allclose(compiled, eager, rtol=1e-4, atol=1e-5)


# Evaluated.


def test_evaluation_takes_equally_many_episodes_of_each_environment():
    """Counting the first to end would over-represent short battles, mostly lost ones."""
    vector_env, played = recording("battle"), [[] for _ in range(4)]
    step = vector_env.step

    def watched(actions):
        result = step(actions)
        for episode in result[4]["episodes"]:
            played[episode["env"]].append(episode)
        return result

    vector_env.step = watched
    result = dpo_smac.evaluate(Agents(3, vector_env.obs_dim, vector_env.num_actions), vector_env, 8, [1, 2])
    assert min(map(len, played)) == 2 < max(map(len, played))
    first = [episode for own in played for episode in own[:2]]
    for name in ("episodic_return", "episodic_length", "win_rate"):
        expected = float(np.mean([episode[name] for episode in first]))
        assert result[f"eval/{name}"] == pytest.approx(expected, rel=1e-6)
    of_all = [episode["episodic_return"] for own in played for episode in own]
    assert result["eval/episodic_return"] != pytest.approx(float(np.mean(of_all)))


def train(directory: Path, **args) -> tuple[dict, Agents]:
    """The last checkpoint of a training on a recording, and the agents as they are then."""
    agents, args = Agents(3, 6, 5), dict(num_envs=4, num_steps=16, runs_dir=str(directory)) | args
    with undisturbed():
        where, best = dpo_smac.train(Args(**args), recording("battle"), recording("battle"), agents, {})
    saved = load(where)
    assert same(saved["best"], dict(best))
    return saved, agents


def test_parameters_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    """The last epoch's step can break the critic while every logged number is still finite."""

    def poisoned(agents, *args, **options):
        stats = update(agents, *args, **options)
        agents.critic.biases[2].data[1] = torch.nan
        return stats

    monkeypatch.setattr(dpo_smac, "update", poisoned)
    with pytest.raises(SystemExit, match="not finite"):
        train(tmp_path, total_timesteps=256, checkpoint_every=64)
    assert all(x.isfinite().all() for x in load(only(tmp_path))["agents"].values())


@pytest.mark.parametrize(("returns", "kept"), [((1.0, 2.0, 2.0, 2.0), 3), ((1.0, 3.0, 2.0, 2.0), 1)])
def test_of_parameters_that_evaluate_alike_the_last_are_kept(tmp_path, monkeypatch, returns, kept):
    """The first 32 battles that are all won are luck; what was trained on since should not be thrown away."""
    seen, evaluations = [], iter(returns)

    def evaluate(agents, *args):
        seen.append(copy.deepcopy(agents.state_dict()))
        return {"eval/episodic_return": next(evaluations), "eval/win_rate": 1.0}

    monkeypatch.setattr(dpo_smac, "evaluate", evaluate)
    saved, agents = train(tmp_path, total_timesteps=192, eval_every=64)
    assert len(seen) == 4
    assert all(torch.equal(x, seen[kept][name]) for name, x in saved["best"].items())
    assert (kept == 3) == all(torch.equal(x, saved["best"][name]) for name, x in agents.state_dict().items())


# Whole runs; what holds for all scripts is in test_runs.py.


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--map=3x"], "did you mean '3m'"),
        (["--map=3m", "--env-options=reward"], "Options are name=value pairs"),
        (["--map=3m", "--env-options=rewardfix=1"], "did you mean 'reward_fix'"),
    ],
)
def test_what_cannot_be_played_is_refused_with_a_sentence(tmp_path, flags, sentence):
    """Bad input costs a user one line to read, and makes no run directory."""
    assert sentence in refused("dpo_smac", f"--runs-dir={tmp_path / 'runs'}", "--backend=embedded", *flags)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--backend=sc3"], "Expected one of ('auto', 'embedded', 'starcraft')"),
        (["--d-target=0"], "--d-target must be between"),
        (["--delta=1"], "--delta must be between 1.0001"),
        (["--omega=1"], "--omega must be between 1.0001"),
        (["--beta-min=2000"], "--beta-min must be at most --beta-max 1000.0, got 2000.0"),
        (["--num-steps=0"], "--num-steps must be between 1 and"),
        (["--gae-lambda=1.5"], "--gae-lambda must be between 0 and 1, got 1.5"),
    ],
)
def test_flags_of_its_own_are_rejected_where_they_make_no_sense(tmp_path, flags, sentence):
    """Training for hours with a trust region that cannot close is worse than not starting."""
    assert sentence in rejected("dpo_smac", f"--runs-dir={tmp_path / 'runs'}", *flags)
    assert not (tmp_path / "runs").exists()


def test_options_of_the_environment_win_over_flags(tmp_path):
    """They are the more particular word; silently ignored, they would have been another run."""
    tiny = ["--map=3m", "--num-envs=2", "--num-steps=8", "--total-timesteps=16", f"--runs-dir={tmp_path}"]
    options = ["--backend=starcraft", "--env-options", "backend=embedded", "last_action=true"]
    printed = finished("dpo_smac", *tiny, *options, EVAL_EPISODES=2).out
    assert (
        only(tmp_path).name.startswith("smac-3m-embedded__") and "3 agents, 39 inputs, 9 actions" in printed
    )


def test_video_shows_a_battle(tmp_path):
    """A video of nothing, or one that no player opens, is found when it is to be shown."""
    tiny = ["--map=3m", "--backend=embedded", "--num-envs=2", "--num-steps=8", "--total-timesteps=16"]
    finished("dpo_smac", *tiny, f"--runs-dir={tmp_path}", "--update-epochs=1", EVAL_EPISODES=2)
    directory = only(tmp_path)
    assert not (directory / "video.mp4").exists()
    finished("dpo_smac", "--eval-only", "--capture-video", f"--resume={directory}", EVAL_EPISODES=2)
    frames = imageio.mimread(directory / "video.mp4", memtest=False)
    assert len(frames) > 20 and frames[0].ndim == 3 and frames[0].shape[2] == 3
    moved = [np.abs(a.astype(int) - b.astype(int)).max() for a, b in itertools.pairwise(frames)]
    assert np.mean(np.array(moved) > 50) > 0.5


def random_play(episodes: int) -> tuple[float, float]:
    """Mean return and win rate of uniformly random available actions on 3m."""
    vector_env, rng = envs.make("smac/3m", 32, seed=7, backend="embedded"), np.random.default_rng(0)
    _, infos = vector_env.reset()
    found: list[tuple[float, bool]] = []
    while len(found) < episodes:
        mask = infos["action_mask"]
        infos = vector_env.step((rng.random(mask.shape) * mask).argmax(-1))[4]
        ended = infos["_episode"]
        found += zip(infos["episode"]["r"][ended], infos["battle_won"][ended], strict=True)
    mean_return, win_rate = np.mean(np.array(found, dtype=float), axis=0)
    return float(mean_return), float(win_rate)


def test_dpo_learns_to_win_battles(tmp_path):
    """All the equations right and nothing learnt is no DPO: three marines learn to beat three."""
    argv = "--map 3m --backend embedded --num-envs 16 --num-steps 64 --update-epochs 8 --learning-rate 1e-3"
    argv += " --d-target 0.05 --total-timesteps 24576 --eval-every 4096 --checkpoint-every 100000"
    finished("dpo_smac", *argv.split(), "--runs-dir", tmp_path)
    mean_return, win_rate = random_play(300)
    # The best of seven: greedy policies this young lose a battle they won 4,096 steps ago.
    assert max(evaluations(only(tmp_path), "eval/win_rate")) > win_rate + 0.05
    assert max(evaluations(only(tmp_path))) > 3 * mean_return


def test_pettingzoo_is_learned_too(tmp_path):
    """Any ParallelEnv with discrete actions and a shared reward is a --map, under its own name."""
    flags = ["--map=pettingzoo:mpe2.simple_spread_v3", "--env-options", "reward=mean", "--num-envs=2"]
    finished(
        "dpo_smac",
        *flags,
        "--num-steps=30",
        "--total-timesteps=120",
        f"--runs-dir={tmp_path}",
        EVAL_EPISODES=2,
    )
    assert only(tmp_path).name.startswith("pettingzoo-mpe2.simple_spread_v3__dpo_smac__1__")
    last = rows(only(tmp_path))[-1]
    assert all(np.isfinite(float(x)) for name, x in last.items() if name.startswith(("losses/", "dpo/")))
