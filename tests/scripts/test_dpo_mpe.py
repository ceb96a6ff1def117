"""dpo_mpe.py: the learner of dpo_smac.py where nobody dies and every action is available; whole runs.

What the two scripts share letter for letter is tested there.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import imageio
import pytest
import torch
import torch.nn.functional as F

import dpo_mpe
import dpo_smac

N, A, OBS, ROWS = 3, 5, 8, 600  # rows: more than a chunk
TINY = ["--task=line_control", "--num-agents=3", "--num-envs=8", "--num-steps=10", "--total-timesteps=480"]
TINY += ["--eval-every=240", "--checkpoint-every=80", "--update-epochs=3"]
CLOCK = {"charts/SPS", "time/env", "time/act", "time/update"}  # the columns that a run need not repeat


def make_agents() -> dpo_mpe.Agents:
    torch.manual_seed(2)
    agents = dpo_mpe.Agents(N, OBS, A)
    for parameter in agents.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    agents.betas += torch.tensor([[0.03], [0.02]])
    return agents


def make_batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random samples (N, rows, ...) of policies that are not the agents' any more."""
    random = torch.Generator().manual_seed(seed)
    obs, logits = torch.randn(N, ROWS, OBS, generator=random), torch.randn(N, ROWS, A, generator=random)
    advantages, returns = torch.randn(2, N, ROWS, generator=random)
    batch = dict(
        obs=obs, actions=torch.randint(A, (N, ROWS), generator=random), old_logp=F.log_softmax(logits, -1)
    )
    return batch | dict(returns=returns, weight=torch.full((N, ROWS), 1 / ROWS), advantages=advantages)


def learned(script, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Parameters, betas and statistics, agents first, after an update by a script's own functions."""
    agents = make_agents()
    optimizer = torch.optim.Adam(agents.parameters(), 1e-3)
    args = script.Args()
    args.d_target, args.beta_min, args.update_epochs = 0.02, 0.05, 3
    stats = script.update(agents, optimizer, batch, args, N)
    return [*(parameter.data for parameter in agents.parameters()), agents.betas.T, stats.T]


def test_update_is_that_of_dpo_smac_with_all_actions_available():
    """The same algorithm in both files: a fix in one that the other misses shows here."""
    batch = make_batch()
    mask = dict(action_mask=torch.ones(N, ROWS, A, dtype=torch.bool))
    for ours, theirs in zip(learned(dpo_mpe, batch), learned(dpo_smac, batch | mask), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_agent_update_ignores_other_agents():
    """Strict decentralization: perturbing one agent's samples leaves the others the same to the last bit."""
    batch, other = make_batch(0), make_batch(1)
    perturbed = {name: torch.cat([x[:1], other[name][1:2], x[2:]]) for name, x in batch.items()}
    for before, after in zip(learned(dpo_mpe, batch), learned(dpo_mpe, perturbed), strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(learned(dpo_mpe, batch)[0][1], learned(dpo_mpe, perturbed)[0][1])


def test_advantages_are_standardised_per_agent():
    """Another agent's luck must not scale one's own gradient."""
    x = torch.randn(N, 7, 9) * torch.tensor([1.0, 10.0, 0.1])[:, None, None] + 5
    scaled, deviation = dpo_mpe.standardize(x)
    torch.testing.assert_close(scaled.mean((1, 2)), torch.zeros(N), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std((1, 2), correction=0), torch.ones(N))
    torch.testing.assert_close(deviation.flatten(), x.std((1, 2), correction=0))


# --- whole runs -------------------------------------------------------------------------------------------


def run(directory: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, dpo_mpe.__file__, f"--runs-dir={directory}", *flags]
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
    """A laptop may be closed: the numbers are those of a run that was left alone."""
    short = [flag for flag in TINY if "total" not in flag]
    assert run(tmp_path, *short, "--total-timesteps=240").returncode == 0
    assert run(tmp_path, f"--resume={only(tmp_path)}", "--total-timesteps=480").returncode == 0
    assert rows(only(tmp_path)) == rows(reference)
    ours, theirs = (
        torch.load(path / "checkpoint.pt", weights_only=True)["agents"]
        for path in (only(tmp_path), reference)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_saved_run_evaluates_to_the_numbers_of_its_end_and_shows_itself(reference):
    """A published checkpoint reproduces its published return, on video if one likes."""
    result = run(reference.parent, "--eval-only", f"--checkpoint={reference}", "--capture-video", *TINY[:2])
    assert result.returncode == 0, result.stderr
    assert json.loads((reference / "done").read_text()) == json.loads(
        result.stdout[result.stdout.index("{") :]
    )
    frames = imageio.mimread(reference / "video.mp4", memtest=False)
    assert len(frames) == 4 * 25 and any((frame != frames[0]).any() for frame in frames)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--task=line_controll"], "line_control"),
        (["--num-agents=1"], "num_agents"),
        (["--vision=-1"], "vision"),
        (["--episode-length=0"], "episode_length"),
        (["--eval-only"], "--checkpoint"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_sentence(tmp_path, monkeypatch, flags, sentence):
    """Bad input costs a user one line to read, and makes no run directory."""
    monkeypatch.setattr(sys, "argv", ["dpo_mpe.py", f"--runs-dir={tmp_path / 'runs'}", *flags])
    with pytest.raises(SystemExit) as refusal:
        dpo_mpe.main()
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "runs").exists()


def test_dpo_learns_to_go_to_the_landmarks(tmp_path):
    """Two agents do better than standing still, which does better than random, within seconds."""
    flags = ["--task=simple_spread", "--num-agents=2", "--num-envs=64", "--total-timesteps=48000"]
    assert run(tmp_path, *flags, "--eval-every=48000", "--learning-rate=0.002").returncode == 0
    evaluations = [row for row in rows(only(tmp_path)) if row["eval/episodic_return"]]
    assert float(evaluations[-1]["eval/episodic_return"]) > 0.7 * float(
        evaluations[0]["eval/episodic_return"]
    )
