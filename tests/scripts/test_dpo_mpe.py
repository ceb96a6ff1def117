"""dpo_mpe.py: the learner of dpo_smac.py where nobody dies and every action is available.

What scripts share letter for letter is tested in test_learner.py and test_kl.py; what holds for all of them,
in test_runs.py.
"""

from __future__ import annotations

import json

import imageio
import pytest
import torch
import torch.nn.functional as F

import dpo_mpe
import dpo_smac
from benchmark.calibrate.calibrate_mpe import play
from tests.scripts.running import evaluations, finished, only, rejected

N, A, OBS, ROWS = 3, 5, 8, 1100  # rows: more than a chunk of three agents, 1,024


def make_agents(script) -> torch.nn.Module:
    torch.manual_seed(2)
    agents = script.Agents(N, OBS, A, *[False] * (script is dpo_smac))  # without LayerNorm, as of dpo_mpe.py
    for parameter in agents.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    agents.beta1 += 0.03
    agents.beta2 += 0.02
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


def learned(script, batch: dict[str, torch.Tensor], root: str = "state") -> dict[str, torch.Tensor]:
    """Parameters, betas and statistics, agents first, after an update by a script's own functions."""
    agents = make_agents(script)
    optimizer = torch.optim.Adam(agents.parameters(), 1e-3)
    args = script.Args(d_target=0.02, beta_min=0.05, update_epochs=3, ent_coef=0.07, sqrt_kl_term=root)
    return script.update(agents, optimizer, batch, args) | agents.state_dict()


@pytest.mark.parametrize("root", ["state", "average"])
def test_update_is_that_of_dpo_smac_with_all_actions_available(root):
    """The same algorithm in both files: a fix in one that the other misses shows here."""
    batch = make_batch()
    mask = dict(action_mask=torch.ones(N, ROWS, A, dtype=torch.bool))
    ours, theirs = learned(dpo_mpe, batch, root), learned(dpo_smac, batch | mask, root)
    assert ours.keys() == theirs.keys() and len(ours) > 20
    for name, x in ours.items():
        torch.testing.assert_close(x, theirs[name])


@pytest.mark.parametrize("root", ["state", "average"])
def test_chunks_add_up_to_the_whole_batch(root, monkeypatch):
    """The size of a chunk is for speed alone; sums add up in another order."""
    results = []
    for size in (10**9, 100):
        monkeypatch.setattr(dpo_mpe, "CHUNK", size)
        results.append(learned(dpo_mpe, make_batch(), root))
    for name, whole in results[0].items():
        torch.testing.assert_close(results[1][name], whole, rtol=1e-3, atol=1e-5)


def test_agent_update_ignores_other_agents():
    """Strict decentralization: perturbing one agent's samples leaves the others the same to the last bit."""
    batch, other = make_batch(0), make_batch(1)
    perturbed = {name: torch.cat([x[:1], other[name][1:2], x[2:]]) for name, x in batch.items()}
    before, after = learned(dpo_mpe, batch), learned(dpo_mpe, perturbed)
    for name, x in before.items():
        assert torch.equal(x[[0, 2]], after[name][[0, 2]]), name
    assert not torch.equal(before["actor.weights.0"][1], after["actor.weights.0"][1])


def test_advantages_are_standardised_per_agent():
    """Another agent's luck must not scale one's own gradient."""
    x = torch.randn(N, 7, 9) * torch.tensor([1.0, 10.0, 0.1])[:, None, None] + 5
    scaled = dpo_mpe.standardize(x)
    torch.testing.assert_close(scaled.mean((1, 2)), torch.zeros(N), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std((1, 2), correction=0), torch.ones(N))
    deviation, mean = torch.std_mean(x.double(), dim=(1, 2), correction=0, keepdim=True)
    torch.testing.assert_close(scaled.double(), (x - mean) / deviation, atol=1e-4, rtol=1e-4)


# Whole runs; what holds for all scripts is in test_runs.py.


def test_saved_run_evaluates_to_the_numbers_of_its_end_and_shows_itself(tmp_path):
    """A published checkpoint reproduces its published return, on video if one likes."""
    tiny = ["--task=line_control", "--num-agents=3", "--num-envs=8", "--num-steps=10", "--total-timesteps=80"]
    finished("dpo_mpe", *tiny, f"--runs-dir={tmp_path}")
    directory = only(tmp_path)
    again = finished("dpo_mpe", "--eval-only", "--capture-video", f"--resume={directory}").out
    assert json.loads((directory / "done").read_text()) == json.loads(again[again.index("{") :])
    frames = imageio.mimread(directory / "video.mp4", memtest=False)
    assert len(frames) == 4 * 25 and any((frame != frames[0]).any() for frame in frames)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--task=line_controll"], "Expected one of ('simple_spread', 'line_control', 'circle_control')"),
        (["--num-agents=1"], "--num-agents must be between 2 and"),
        (["--episode-length=0"], "--episode-length must be between 1 and"),
        (["--vision=-1"], "--vision must be between"),
        (["--vision=nan"], "--vision must be between"),
        (["--collision-penalty=-3"], "--collision-penalty must be between 0 and"),
    ],
)
def test_what_cannot_be_read_is_rejected_with_a_sentence(tmp_path, flags, sentence):
    """Bad input costs a user one line to read, and makes no run directory."""
    assert sentence in rejected("dpo_mpe", f"--runs-dir={tmp_path / 'runs'}", *flags)
    assert not (tmp_path / "runs").exists()


def test_dpo_learns_to_go_to_the_landmarks(tmp_path):
    """Two agents do better than standing still, which does better than random, within seconds."""
    flags = ["--task=simple_spread", "--num-agents=2", "--num-envs=64", "--total-timesteps=48000"]
    flags += ["--eval-every=48000", "--learning-rate=0.002"]
    finished("dpo_mpe", *flags, f"--runs-dir={tmp_path}")
    idle = play("simple_spread", "paper", 2, "noop", 1024, seed=5).mean()
    assert evaluations(only(tmp_path))[-1] > idle + 5
