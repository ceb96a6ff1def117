"""dpo_mamujoco.py: Gaussian policies, padding, running statistics; whole runs.

What the scripts share letter for letter is tested in tests/test_dpo_smac.py and tests/test_dpo_mpe.py.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

import dpo_mamujoco as dpo

OBS, ROWS, ACT_DIMS = 6, 600, (3, 1, 2)  # rows: more than a chunk; agents with unequal actions
N, D = len(ACT_DIMS), max(ACT_DIMS)
TINY = ["--task=Hopper-3x1", "--num-envs=4", "--num-steps=16", "--total-timesteps=512", "--update-epochs=3"]
TINY += ["--eval-every=256", "--checkpoint-every=64"]
CLOCK = {"charts/SPS", "time/env", "time/act", "time/update"}  # the columns that a run need not repeat


def make_agents(act_dims: tuple[int, ...] = ACT_DIMS) -> dpo.Agents:
    torch.manual_seed(2)
    agents = dpo.Agents(OBS, act_dims)
    for parameter in agents.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    agents.betas += torch.tensor([[0.03], [0.02]])
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
        old_logprob = -((0.5 * z.square() + old_log_std) * agents.act_mask).sum(-1)
    advantages, returns = torch.randn(2, N, ROWS, generator=random)
    batch = dict(obs=obs, actions=actions, old_mean=old_mean, old_log_std=old_log_std.expand(-1, ROWS, -1))
    batch |= dict(old_logprob=old_logprob, advantages=advantages, returns=returns)
    return batch | dict(weight=torch.full((N, ROWS), 1 / ROWS))


def learned(agents: dpo.Agents, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Parameters, betas and statistics, agents first, after an update."""
    optimizer = torch.optim.Adam(agents.parameters(), 1e-3)
    stats = dpo.update(agents, optimizer, batch, dpo.Args(update_epochs=3), N)
    return [*(parameter.data for parameter in agents.parameters()), agents.betas.T, stats.T]


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
    for one, other in zip(before, learned(make_agents(), batch), strict=True):
        assert torch.equal(one, other)
    for i, dim in enumerate(ACT_DIMS):
        begun, now = make_agents().actor.log_std[i, 0], trained.actor.log_std[i, 0]
        assert torch.equal(begun[dim:], now[dim:]) and not torch.equal(begun[:dim], now[:dim])


def test_agent_update_ignores_other_agents():
    """Strict decentralization: perturbing one agent's samples leaves the others the same to the last bit."""
    batch, other = make_batch(make_agents(), 0), make_batch(make_agents(), 1)
    perturbed = {name: torch.cat([x[:1], other[name][1:2], x[2:]]) for name, x in batch.items()}
    ours, theirs = learned(make_agents(), batch), learned(make_agents(), perturbed)
    for before, after in zip(ours, theirs, strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(ours[0][1], theirs[0][1])


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
    before = agents.in_reward_units(agents.value(obs))
    scaled = agents.rescale(torch.randn(N, 100, 5) * 40 + 300)
    assert (
        scaled.shape == (N, 100, 5)
        and scaled.mean().abs() < 1e-3
        and (scaled.std((1, 2)) - 1).abs().max() < 1e-2
    )
    torch.testing.assert_close(agents.in_reward_units(agents.value(obs)), before, atol=1e-3, rtol=1e-4)
    assert (agents.return_norm.mean > 290).all()


# --- whole runs -------------------------------------------------------------------------------------------


def run(directory: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, dpo.__file__, f"--runs-dir={directory}", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def only(runs: Path) -> Path:
    (directory,) = runs.iterdir()
    return directory


def rows(directory: Path) -> list[dict[str, str]]:
    with open(directory / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    result = run(runs, *TINY)
    assert result.returncode == 0, result.stderr
    return only(runs)


def test_shorter_run_resumes_to_the_longer_one_bit_for_bit(reference, tmp_path):
    """Running statistics, returns under way and random streams are in the checkpoint, too."""
    short = [flag for flag in TINY if "total" not in flag]
    assert run(tmp_path, *short, "--total-timesteps=256").returncode == 0
    assert run(tmp_path, f"--resume={only(tmp_path)}", "--total-timesteps=512").returncode == 0
    assert rows(only(tmp_path)) == rows(reference)
    ours, theirs = (
        torch.load(path / "checkpoint.pt", weights_only=True)["agents"]
        for path in (only(tmp_path), reference)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert float(theirs["obs_norm.count"]) == 512


def test_saved_run_evaluates_to_the_numbers_of_its_end(reference):
    """A checkpoint without its statistics of observations would evaluate badly."""
    result = run(reference.parent, "--eval-only", f"--checkpoint={reference}", TINY[0])
    assert result.returncode == 0, result.stderr
    assert json.loads((reference / "done").read_text()) == json.loads(
        result.stdout[result.stdout.index("{") :]
    )


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--task=Hoper-3x1"], "Hopper-3x1"),
        (["--obs=all"], "khop"),
        (["--agent-obsk=-1"], "agent_obsk"),
        (["--checkpoint=x"], "--eval-only"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_sentence(tmp_path, monkeypatch, flags, sentence):
    """Bad input costs a user one line to read, and makes no run directory."""
    monkeypatch.setattr(sys, "argv", ["dpo_mamujoco.py", f"--runs-dir={tmp_path / 'runs'}", *flags])
    with pytest.raises(SystemExit) as refusal:
        dpo.main()
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "runs").exists()


def test_falls_do_not_make_the_values_grow(tmp_path):
    """Final values of old rollouts were once rescaled with every update, until they were infinite."""
    flags = "--task=Hopper-3x1", "--num-envs=4", "--num-steps=32", "--update-epochs=1", "--eval-every=100000"
    result = run(tmp_path, *flags, "--total-timesteps=10240")
    assert result.returncode == 0, result.stderr
    assert max(float(row["losses/value_loss"] or 0) for row in rows(only(tmp_path))) < 100
