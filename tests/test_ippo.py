"""ippo.py: the clipped surrogate, per agent; whole runs that repeat, resume and learn.

The learner around it is dpo_smac.py's, which tests/test_dpo_smac*.py hold to its promises.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ippo

N, A, OBS, ROWS = 3, 4, 6, 30
GAME = ["--env-id=matrix/stochastic", "--env-options", "num_states=6", "num_agents=3", "num_actions=4"]
TINY = [*GAME, "--num-envs=5", "--num-steps=6", "--total-timesteps=300", "--eval-every=150"]
TINY += ["--checkpoint-every=60", "--update-epochs=3"]
CLOCK = {"charts/SPS", "time/env", "time/act", "time/update"}  # the columns that a run need not repeat


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random samples (N, rows, ...), half of whose ratios lie outside of the clip."""
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(N, ROWS, A, generator=random) < 0.7
    mask[..., 0] = True
    actions = (torch.rand(N, ROWS, A, generator=random) * mask).argmax(-1)
    old_logp, advantages, returns = torch.randn(3, N, ROWS, generator=random)
    obs = torch.randn(N, ROWS, OBS, generator=random)
    samples = dict(obs=obs, action_mask=mask, actions=actions, old_logp=0.4 * old_logp - 1.2)
    return samples | dict(advantages=advantages, returns=returns, weight=torch.full((N, ROWS), 1 / ROWS))


def make_agents() -> ippo.Agents:
    torch.manual_seed(2)
    agents = ippo.Agents(N, OBS, A)
    for parameter in agents.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return agents


def test_loss_is_the_clipped_surrogate_of_each_agent():
    """PPO's objective, sample by sample: a ratio that is not clipped would show here."""
    agents, samples = make_agents(), batch()
    loss, parts = ippo.ippo_loss(agents, **samples, ent_coef=0.1, clip_coef=0.2)
    expected, clipped = 0.0, 0
    for i in range(N):
        x = {name: value[i] for name, value in samples.items()}
        logits = agents.actor(samples["obs"])[i].masked_fill(~x["action_mask"], -torch.inf)
        policy = torch.distributions.Categorical(logits=logits)
        ratio = (policy.log_prob(x["actions"]) - x["old_logp"]).exp()
        terms = [min(r * a, r.clamp(0.8, 1.2) * a) for r, a in zip(ratio, x["advantages"], strict=True)]
        entropy = -torch.where(policy.probs > 0, policy.probs * policy.probs.log(), 0.0).sum(-1).mean()
        v_loss = (agents.value(samples["obs"])[i] - x["returns"]).square().mean()
        expected = expected + v_loss - torch.stack(terms).mean() - 0.1 * entropy
        clipped += int(((ratio - 1).abs() > 0.2).sum())
        torch.testing.assert_close(parts[:, i], torch.stack([-torch.stack(terms).mean(), v_loss, entropy]))
    torch.testing.assert_close(loss, expected)
    assert 20 < clipped < N * ROWS - 20


def test_agent_update_ignores_other_agents():
    """Strict decentralization: perturbing one agent's samples leaves the others the same to the last bit."""

    def learned(samples: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        agents = make_agents()
        optimizer = torch.optim.Adam(agents.parameters(), 1e-3)
        stats = ippo.update(agents, optimizer, samples, ippo.Args(update_epochs=3))
        return [*(parameter.data for parameter in agents.parameters()), stats.T]

    samples, other = batch(0), batch(1)
    perturbed = {name: torch.cat([x[:1], other[name][1:2], x[2:]]) for name, x in samples.items()}
    for before, after in zip(learned(samples), learned(perturbed), strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(learned(samples)[0][1], learned(perturbed)[0][1])


def run(directory: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ippo.__file__, f"--runs-dir={directory}", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def only(runs: Path) -> Path:
    (directory,) = runs.iterdir()
    return directory


def rows(directory: Path) -> list[dict[str, str]]:
    with open(directory / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]


def test_shorter_run_resumes_to_the_longer_one_bit_for_bit(tmp_path):
    """A baseline that was preempted is still the baseline."""
    assert run(tmp_path / "long", *TINY).returncode == 0
    short = [flag for flag in TINY if "total" not in flag]
    assert run(tmp_path / "short", *short, "--total-timesteps=150").returncode == 0
    directory = only(tmp_path / "short")
    assert run(tmp_path, f"--resume={directory}", "--total-timesteps=300").returncode == 0
    assert rows(directory) == rows(only(tmp_path / "long"))
    ends = [json.loads((path / "done").read_text()) for path in (directory, only(tmp_path / "long"))]
    last = [float(row["eval/episodic_return"]) for row in rows(directory) if row["eval/episodic_return"]][-1]
    assert ends[0] == ends[1] and abs(ends[0]["eval/episodic_return"] - last) < 1e-4  # the last, not the best
    ours, theirs = (
        torch.load(path / "checkpoint.pt", weights_only=True)["agents"]
        for path in (directory, only(tmp_path / "long"))
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_battles_are_played_and_scored(tmp_path):
    """Dead agents and masked actions: the same script plays SMAC."""
    flags = ["--env-id=smac/3m", "--env-options", "backend=embedded", "--num-envs=4", "--num-steps=32"]
    assert run(tmp_path, *flags, "--total-timesteps=256", "--eval-every=256").returncode == 0
    directory = only(tmp_path)
    assert directory.name.startswith("smac-3m-embedded__ippo__1__")
    assert set(json.loads((directory / "done").read_text())) == {"eval/episodic_return", "eval/win_rate"}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--env-id=smac/2z3s"], "did you mean"),
        (["--env-options", "num_agents"], "name=value"),
        ([*GAME, "states=3"], "did you mean 'num_states'"),
        (["--clip-coef=0"], "must be positive"),
        ([*GAME, "--num-steps=100"], "--num-steps 6, the number of states"),
        (["--env-id=mamujoco/Hopper-3x1"], "continuous actions"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_sentence(tmp_path, monkeypatch, flags, sentence):
    """Bad input costs a user one line to read, and makes no run directory."""
    monkeypatch.setattr(sys, "argv", ["ippo.py", f"--runs-dir={tmp_path / 'runs'}", *flags])
    with pytest.raises(SystemExit) as refusal:
        ippo.main()
    assert sentence in str(refusal.value) and not (tmp_path / "runs").exists()


def test_ippo_learns_the_stochastic_game(tmp_path):
    """Half of what there is to gain over random play is gained within seconds."""
    flags = [*GAME, "--num-envs=16", "--num-steps=6", "--total-timesteps=15000", "--eval-every=15000"]
    assert run(tmp_path, *flags, "--learning-rate=0.002").returncode == 0
    returns = [
        float(row["eval/episodic_return"]) for row in rows(only(tmp_path)) if row["eval/episodic_return"]
    ]
    from envs.matrix import StochasticGame

    best = StochasticGame(1, 0, 6, 3, 4).optimum().value
    assert returns[-1] > returns[0] + 0.5 * (best - returns[0])
