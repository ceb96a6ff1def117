"""dpo_mamujoco.py: Gaussian policies, padding, running statistics.

What the scripts share letter for letter is tested in test_learner.py, test_settings.py, test_dpo_mpe.py
and, of GAE, test_dpo_matrix.py; what holds for all scripts, in test_runs.py.
"""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

import dpo_mamujoco as dpo
from tests.scripts.running import finished, load, only, refused, rejected, rows

OBS, ROWS, ACT_DIMS = 6, 1100, (3, 1, 2)  # rows: more than a chunk, 1,024; agents with unequal actions
N, D = len(ACT_DIMS), max(ACT_DIMS)
CONTINUOUS = 'env_kwargs={"continuous_actions": true}'


def make_agents(act_dims: tuple[int, ...] = ACT_DIMS) -> dpo.Agents:
    torch.manual_seed(2)
    agents = dpo.Agents(OBS, act_dims)
    for parameter in agents.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    agents.beta1 += 0.03
    agents.beta2 += 0.02
    return agents


def make_batch(agents: dpo.Agents, seed: int = 0) -> dict[str, torch.Tensor]:
    """Samples (N, rows, ...) of policies near the agents'."""
    random = torch.Generator().manual_seed(seed)
    obs, noise = torch.randn(N, ROWS, OBS, generator=random), torch.randn(N, ROWS, D, generator=random)
    with torch.no_grad():
        old_mean = agents.actor(obs) + 0.1 * torch.randn(N, ROWS, D, generator=random)
        old_log_std = agents.actor.log_std + 0.05 * torch.randn(N, 1, D, generator=random)
        actions = old_mean + noise * old_log_std.exp()
        z = (actions - old_mean) / old_log_std.exp()
        logprobs = -((0.5 * z.square() + old_log_std) * agents.act_mask).sum(-1)
    advantages, returns = torch.randn(2, N, ROWS, generator=random)
    batch = dict(obs=obs, actions=actions, old_mean=old_mean, old_log_std=old_log_std.expand(-1, ROWS, -1))
    batch |= dict(logprobs=logprobs, advantages=advantages, returns=returns)
    return batch | dict(weight=torch.full((N, ROWS), 1 / ROWS))


def learned(agents: dpo.Agents, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters, betas and statistics, agents first, after an update."""
    optimizer = torch.optim.Adam(agents.parameters(), 1e-3)
    stats = dpo.update(agents, optimizer, batch, dpo.Args(update_epochs=3))
    kept = {name: x for name, x in agents.state_dict().items() if "norm" not in name}
    return {name: x.clone() for name, x in (stats | kept).items()}


@pytest.mark.parametrize("size", [0.0, 1e-6, 1e-3, 0.1, 1.0])
def test_gaussian_kl_and_its_root_agree_with_float64(size):
    """The trust region is measured by this number, at the first gradient step, where it is 0, as later."""
    random = torch.Generator().manual_seed(0)
    old_mean, old_log_std, d_mean, d_log_std = torch.randn(4, N, 50, D, generator=random, dtype=torch.float64)
    inputs = [
        x.float() for x in (old_mean, old_log_std, old_mean + size * d_mean, old_log_std + size * d_log_std)
    ]
    exact = [x.double() for x in inputs]
    policies = [Independent(Normal(mean, log_std.exp()), 1) for mean, log_std in (exact[:2], exact[2:])]
    mean, log_std = (x.requires_grad_() for x in inputs[2:])
    kl = dpo.gaussian_kl(*inputs[:2], mean, log_std, torch.ones(N, 1, D, dtype=torch.bool))
    assert (kl >= 0).all()
    torch.testing.assert_close(kl.double(), kl_divergence(*policies), rtol=1e-4, atol=1e-12)
    gradients = torch.autograd.grad((kl + 1e-12).sqrt().sum(), (mean, log_std))
    assert all(gradient.isfinite().all() and gradient.abs().max() < 1e4 for gradient in gradients)


def test_loss_and_its_gradients_are_those_of_eq_20_and_8():
    """Agent by agent, from PyTorch's distributions: a wrong sign or N of a term would train, only worse."""
    agents = make_agents().double()
    batch = {name: x.double() for name, x in make_batch(make_agents()).items()}
    agents.beta1, agents.beta2 = torch.tensor([[0.3, 0.2, 0.1], [0.05, 0.4, 0.15]]).double()
    loss, _ = dpo.dpo_loss(agents, **batch, ent_coef=0.07)
    mean, log_std, total = agents.actor(batch["obs"]), agents.actor.log_std, 0.0
    for i, d in enumerate(ACT_DIMS):
        old = Normal(batch["old_mean"][i, :, :d], batch["old_log_std"][i, :, :d].exp())
        old, new = (Independent(x, 1) for x in (old, Normal(mean[i, :, :d], log_std[i, :, :d].exp())))
        played, kl = batch["actions"][i, :, :d], kl_divergence(old, new)
        ratio = (new.log_prob(played) - old.log_prob(played)).exp()
        total -= (ratio * batch["advantages"][i]).mean() + 0.07 * new.entropy().mean()
        total += N * (agents.beta1[i] * kl.sqrt().mean() + agents.beta2[i] * kl.mean())
        total += (agents.value(batch["obs"])[i] - batch["returns"][i]).square().mean()
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    gradients = (torch.autograd.grad(x, [*agents.parameters()]) for x in (loss, total))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-8)


def test_the_root_of_the_average_in_chunks_has_the_gradient_of_the_whole():
    """Section 4.5 has the root of the average; a chunk alone does not know it, and E[sqrt KL] is not it."""
    agents, batch = make_agents(), make_batch(make_agents())
    parameters = list(agents.actor.parameters())
    chunks = [{name: x[:, i : i + 250] for name, x in batch.items()} for i in range(0, ROWS, 250)]
    slope = 0.5 * (dpo.mean_kl(agents, chunks)[0] + 1e-12).rsqrt()
    ours = sum(dpo.dpo_loss(agents, **chunk, ent_coef=0.01, sqrt_slope=slope)[0] for chunk in chunks)
    gradients = torch.autograd.grad(ours, parameters)

    old = (batch["old_mean"], batch["old_log_std"])
    kl = dpo.gaussian_kl(*old, agents.actor(batch["obs"]), agents.actor.log_std, agents.act_mask).mean(1)
    penalty = (N * agents.beta1 * kl.sqrt()).sum()
    agents.beta1 = torch.zeros(N)
    whole = dpo.dpo_loss(agents, **batch, ent_coef=0.01)[0] + penalty
    for own, other in zip(gradients, torch.autograd.grad(whole, parameters), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5)


def test_log_probabilities_differ_from_the_densities_by_a_constant():
    """Their ratio is what the surrogate is made of."""
    agents = make_agents((D, D, D))
    mean, actions = torch.randn(2, N, 20, D)
    exact = Independent(Normal(mean, agents.actor.log_std.exp().expand_as(mean)), 1).log_prob(actions)
    gap = agents.log_prob(mean, actions) - exact
    torch.testing.assert_close(
        gap, torch.full_like(gap, 0.5 * D * torch.log(torch.tensor(2 * torch.pi)).item())
    )


def test_padding_of_actions_changes_nothing():
    """An agent with fewer joints than another learns as if it were alone."""
    trained, batch = make_agents(), make_batch(make_agents())
    before = learned(trained, batch)
    for i, dim in enumerate(ACT_DIMS):
        for name in ("actions", "old_mean", "old_log_std"):
            batch[name] = batch[name].clone()
            batch[name][i, :, dim:] += 3.0
    after = learned(make_agents(), batch)
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    for i, dim in enumerate(ACT_DIMS):
        begun, now = make_agents().actor.log_std[i, 0], trained.actor.log_std[i, 0]
        assert torch.equal(begun[dim:], now[dim:]) and not torch.equal(begun[:dim], now[:dim])


def test_agent_update_ignores_other_agents():
    """Strict decentralization: perturbing one agent's samples leaves the others the same to the last bit."""
    batch, other = make_batch(make_agents(), 0), make_batch(make_agents(), 1)
    perturbed = {name: torch.cat([x[:1], other[name][1:2], x[2:]]) for name, x in batch.items()}
    ours, theirs = learned(make_agents(), batch), learned(make_agents(), perturbed)
    for name, x in ours.items():
        assert torch.equal(x[[0, 2]], theirs[name][[0, 2]]), name
    assert not torch.equal(ours["actor.weights.0"][1], theirs["actor.weights.0"][1])


def test_running_statistics_are_those_of_all_samples():
    """A saved agent sees the world through these numbers."""
    norm, batches = dpo.RunningNorm(N, 2), [torch.randn(N, rows, 2) * 3 + 5 for rows in (10, 200, 31)]
    for batch in batches:
        norm.add(batch)
    samples = torch.cat(batches, dim=1)
    torch.testing.assert_close(norm.mean, samples.mean(1, keepdim=True))
    torch.testing.assert_close(norm.var, samples.var(1, correction=0, keepdim=True))
    torch.testing.assert_close(norm(samples).std(1, correction=0), torch.ones(N, 2), atol=1e-2, rtol=0)


def test_new_statistics_of_returns_leave_values_as_they_are():
    """Else every batch would begin with critics that are wrong by the change of scale."""
    agents = make_agents()
    obs = torch.randn(N, 30, OBS)
    before = agents.value(obs)
    scaled = agents.normalize_returns(torch.randn(N, 100, 5) * 40 + 300)
    assert scaled.shape == (N, 100, 5) and scaled.mean().abs() < 1e-3
    assert (scaled.std((1, 2)) - 1).abs().max() < 1e-2
    torch.testing.assert_close(agents.value(obs), before, atol=1e-3, rtol=1e-4)
    assert (agents.return_norm.mean > 290).all()


# Whole runs; what holds for all scripts is in test_runs.py.


HOPPER = ["--task=Hopper-3x1", "--num-envs=4"]


def test_statistics_of_observations_count_every_step_once(tmp_path):
    """Also in a run that went on: counted twice, early observations would weigh more for ever."""
    tiny = [*HOPPER, "--num-steps=16", "--update-epochs=1", "--total-timesteps=128", f"--runs-dir={tmp_path}"]
    finished("dpo_mamujoco", *tiny, EVAL_EPISODES=1)
    finished("dpo_mamujoco", f"--resume={only(tmp_path)}", "--total-timesteps=256", EVAL_EPISODES=1)
    agents = load(only(tmp_path))["agents"]
    assert float(agents["obs_norm.count"]) == float(agents["return_norm.count"]) == 256


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--task=Hoper-3x1"], "Hopper-3x1"),
        (["--env-options=obs=all"], "khop"),
        (["--env-options=agent_obsk=-1"], "agent_obsk"),
        (["--env-options=agent_obs=1"], "did you mean 'agent_obsk'"),
        (["--task=pettingzoo:mpe2.simple_spread_v3"], "use dpo_smac.py"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_sentence(tmp_path, flags, sentence):
    """Bad input costs a user one line to read, and makes no run directory."""
    assert sentence in refused("dpo_mamujoco", f"--runs-dir={tmp_path / 'runs'}", *flags)
    assert not (tmp_path / "runs").exists()


def test_flags_of_its_own_are_rejected_where_they_make_no_sense(tmp_path):
    """A deviation of exp(99) never reaches the physics."""
    said = rejected("dpo_mamujoco", f"--runs-dir={tmp_path / 'runs'}", "--log-std-init=99")
    assert "--log-std-init must be between -20 and 20, got 99.0" in said
    assert not (tmp_path / "runs").exists()


def test_falls_do_not_make_the_values_grow(tmp_path):
    """Final values of old rollouts were once rescaled with every update, until they were infinite."""
    flags = [*HOPPER, "--num-steps=32", "--update-epochs=1", "--eval-every=100000", f"--runs-dir={tmp_path}"]
    finished("dpo_mamujoco", *flags, "--total-timesteps=10240", EVAL_EPISODES=1)
    assert max(float(row["losses/value_loss"] or 0) for row in rows(only(tmp_path))) < 100


def test_continuous_pettingzoo_environments_are_learned_too(tmp_path):
    """Any ParallelEnv with real actions and a shared reward is a --task, under its own name."""
    flags = ["--task=pettingzoo:mpe2.simple_spread_v3", "--env-options", "reward=mean", CONTINUOUS]
    flags += ["--num-envs=2", "--num-steps=30", "--total-timesteps=120", f"--runs-dir={tmp_path}"]
    finished("dpo_mamujoco", *flags, EVAL_EPISODES=2)
    assert only(tmp_path).name.startswith("pettingzoo-mpe2.simple_spread_v3__dpo_mamujoco__1__")
    *_, last, evaluation = rows(only(tmp_path))
    assert evaluation["eval/episodic_return"]
    learned = [float(x) for name, x in last.items() if name.startswith(("losses/", "dpo/"))]
    assert torch.tensor(learned).isfinite().all()
