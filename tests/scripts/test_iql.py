"""iql.py: recurrent networks, double Q-learning, replay; whole runs that repeat, resume and learn."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn

import iql

N, A, OBS, T, B = 3, 4, 6, 5, 7
GAME = ["--env-id=matrix/stochastic", "--env-options", "num_states=6", "num_agents=3", "num_actions=4"]
TINY = [*GAME, "--num-envs=5", "--total-timesteps=1500", "--eval-every=500", "--checkpoint-every=210"]
TINY += ["--batch-episodes=8", "--buffer-episodes=40", "--target-every=20", "--epsilon-steps=700"]
CLOCK = {"charts/SPS", "time/env", "time/act", "time/update"}  # the columns that a run need not repeat


def make_networks(seed: int = 0) -> iql.QNetworks:
    torch.manual_seed(seed)
    return iql.QNetworks(N, OBS + A, A)


def make_batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random episodes of unequal lengths, with some actions unavailable."""
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(N, T + 1, B, A, generator=random) < 0.6
    mask[..., 0] = True
    lengths = torch.arange(B) % T + 1
    steps = torch.arange(T + 1)[:, None]
    return {
        "obs": torch.randn(N, T + 1, B, OBS, generator=random),
        "action_mask": mask,
        "actions": (torch.rand(N, T + 1, B, A, generator=random) * mask).argmax(-1),
        "rewards": torch.randn(T + 1, B, generator=random),
        "terminations": (steps == lengths - 1) & (torch.arange(B) % 2 == 0),
        "filled": (steps < lengths).float(),
    }


def test_stacked_recurrent_networks_are_separate_ones():
    """Each network is PyTorch's Linear, ReLU, GRUCell, Linear; batching changes the arithmetic only."""
    networks = make_networks()
    x, hidden = torch.randn(N, T, B, OBS + A), torch.randn(N, B, iql.HIDDEN)
    q, last = networks(x, hidden)
    for i in range(N):
        first, cell, head = nn.Linear(OBS + A, 128), nn.GRUCell(128, 128), nn.Linear(128, A)
        weights, biases = ([p[i] for p in ps] for ps in (networks.weights, networks.biases))
        with torch.no_grad():
            for layer, k in ((first, 0), (head, 3)):
                layer.weight.copy_(weights[k].T), layer.bias.copy_(biases[k][0])
            cell.weight_ih.copy_(weights[1].T), cell.bias_ih.copy_(biases[1][0])
            cell.weight_hh.copy_(weights[2].T), cell.bias_hh.copy_(biases[2][0])
            h = hidden[i]
            for t in range(T):
                h = cell(first(x[i, t]).relu(), h)
                torch.testing.assert_close(q[i, t], head(h), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(last[i], h, atol=1e-5, rtol=1e-4)


def test_targets_are_those_of_double_q_learning():
    """Sample by sample: the online network chooses among available actions, the target network values."""
    online, target, batch = make_networks(0), make_networks(1), make_batch()
    loss, parts = iql.td_loss(online, target, batch, 0.9)
    before = torch.cat([torch.zeros(N, 1, B, A), torch.eye(A)[batch["actions"][:, :-1]]], dim=1)
    inputs, hidden = torch.cat([batch["obs"], before], dim=-1), torch.zeros(N, B, iql.HIDDEN)
    with torch.no_grad():
        q, q_target = online(inputs, hidden)[0], target(inputs, hidden)[0]
    total = 0.0
    for i in range(N):
        errors = []
        for b in range(B):
            for t in range(b % T + 1):
                choices = [a for a in range(A) if batch["action_mask"][i, t + 1, b, a]]
                best = max(choices, key=lambda a: q[i, t + 1, b, a].item())
                bootstrap = 0.0 if batch["terminations"][t, b] else 0.9 * q_target[i, t + 1, b, best]
                y = batch["rewards"][t, b] + bootstrap
                errors.append((q[i, t, b, batch["actions"][i, t, b]] - y) ** 2)
        torch.testing.assert_close(parts[0, i], torch.stack(errors).mean())
        total += torch.stack(errors).mean()
    torch.testing.assert_close(loss.detach(), total)


def test_padding_after_an_episode_changes_nothing():
    """Short episodes are stored beside long ones; what lies behind their end must not be learned from."""
    batch, other = make_batch(0), make_batch(1)
    after = batch["filled"].cumsum(0) < torch.arange(1, T + 2)[:, None]  # past the final observation
    after[1:] = after[:-1].clone()
    after[0] = False
    changed = {name: x.clone() for name, x in batch.items()}
    changed["obs"][:, after], changed["rewards"][after] = other["obs"][:, after], other["rewards"][after]
    losses = [iql.td_loss(make_networks(0), make_networks(1), x, 0.9)[1][0] for x in (batch, changed)]
    assert after.any() and torch.equal(*losses)


def test_agent_update_ignores_other_agents():
    """Strict decentralization: perturbing one agent's episodes leaves the others the same to the last bit."""

    def learned(batch):
        online = make_networks(0)
        optimizer = torch.optim.Adam(online.parameters(), 1e-3)
        for _ in range(3):
            stats = iql.update(online, make_networks(1), optimizer, batch, iql.Args())
        return [*(p.data for p in online.parameters()), stats.T]

    batch, other = make_batch(0), make_batch(1)
    changed = {name: x.clone() for name, x in batch.items()}
    for name in ("obs", "action_mask", "actions"):
        changed[name][1] = other[name][1]
    for before, after in zip(learned(batch), learned(changed), strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(learned(batch)[0][1], learned(changed)[0][1])


def test_replay_keeps_the_newest_episodes_and_samples_each_once():
    """The oldest go first, and a batch is of different episodes, up to the longest of them."""
    replay = iql.Replay(4, T, N, OBS, A, 0.5)
    for k in range(6):
        episode = {name: np.full(x.shape[1:], k % 2, x.dtype) for name, x in replay.data.items()}
        episode["rewards"][:], episode["lengths"] = k, 1 + k % 3
        replay.add(episode)
    assert sorted(replay.data["rewards"][:, 0]) == [2, 3, 4, 5] and replay.added == 6
    sample = replay.sample(4, np.random.default_rng(0))
    assert sorted(sample["rewards"][:, 0]) == [2, 3, 4, 5] and sample["obs"].shape == (4, 4, N, OBS)
    assert replay.data["obs"].dtype == np.float16


def test_replay_that_does_not_fit_is_refused_before_it_is_made(tmp_path, monkeypatch):
    """A run that dies of memory after hours has lost them."""
    flags = [f"--runs-dir={tmp_path / 'runs'}", *GAME, "--buffer-episodes=1000000000"]
    monkeypatch.setattr(sys, "argv", ["iql.py", *flags])
    with pytest.raises(MemoryError, match="lower --buffer-episodes"):
        iql.main()
    assert not (tmp_path / "runs").exists()


def test_environment_without_a_length_is_refused_with_a_sentence(tmp_path, monkeypatch):
    """Nothing of PettingZoo tells how long an episode may be: one line to read, and no run directory."""
    flags = [f"--runs-dir={tmp_path / 'runs'}", "--env-id=pettingzoo:mpe2.simple_spread_v3"]
    monkeypatch.setattr(sys, "argv", ["iql.py", *flags])
    with pytest.raises(SystemExit, match="add --env-options episode_limit=STEPS"):
        iql.main()
    assert not (tmp_path / "runs").exists()


def run(directory: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, iql.__file__, f"--runs-dir={directory}", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def only(runs: Path) -> Path:
    (directory,) = runs.iterdir()
    return directory


def rows(directory: Path) -> list[dict[str, str]]:
    with open(directory / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]


def test_shorter_run_resumes_to_the_longer_one_bit_for_bit(tmp_path, monkeypatch):
    """Full replay buffer, episodes under way and exploration are in the checkpoint."""
    short = [flag for flag in TINY if "total" not in flag]
    for name, flags in (("long", TINY), ("short", [*short, "--total-timesteps=850"])):
        result = run(tmp_path / name, *flags)
        assert result.returncode == 0, result.stderr
    directory = only(tmp_path / "short")
    assert run(tmp_path, f"--resume={directory}", "--total-timesteps=1500").returncode == 0
    ours, theirs = (
        torch.load(path / "checkpoint.pt", weights_only=True) for path in (directory, only(tmp_path / "long"))
    )
    for part in ("agents", "target", "replay", "begun"):
        assert all(torch.equal(ours[part][name], theirs[part][name]) for name in theirs[part]), part
    assert ours["random"] == theirs["random"] and ours["counters"] == theirs["counters"]
    assert theirs["counters"][3] == 250 > 40  # episodes: the buffer has wrapped around
    assert rows(directory) == rows(only(tmp_path / "long"))


def test_battles_are_played_and_scored(tmp_path):
    """Dead agents, masked actions, episodes of any length."""
    flags = ["--env-id=smac/3m", "--env-options", "backend=embedded", "--num-envs=4", "--batch-episodes=4"]
    assert run(tmp_path, *flags, "--total-timesteps=400", "--eval-every=400").returncode == 0
    assert set(json.loads((only(tmp_path) / "done").read_text())) == {"eval/episodic_return", "eval/win_rate"}


def test_pettingzoo_is_played_and_resumed(tmp_path):
    """Its episodes cannot be saved: a resumed run drops those under way and begins new ones."""
    flags = ["--env-id=pettingzoo:mpe2.simple_spread_v3", "--env-options", "episode_limit=10", "reward=mean"]
    flags += ["--num-envs=4", "--batch-episodes=4", "--total-timesteps=100", "--eval-every=100"]
    assert run(tmp_path, *flags).returncode == 0
    result = run(tmp_path, f"--resume={only(tmp_path)}", "--total-timesteps=300")
    assert result.returncode == 0, result.stderr
    assert "new ones have begun" in result.stderr
    state = torch.load(only(tmp_path) / "checkpoint.pt", weights_only=True)
    assert state["counters"][0] == 300 and state["counters"][3] == 4 * (100 // 40) + 4 * (200 // 40)
    assert (state["replay"]["lengths"] == 10).all()


def test_iql_learns_the_best_joint_action(tmp_path):
    """Where each agent's better action is better whatever the other does, both find it."""
    flags = ["--env-id=matrix/1", "--total-timesteps=2000", "--epsilon-steps=1000", "--eval-every=1000"]
    assert run(tmp_path, *flags, "--learning-rate=0.002").returncode == 0
    assert json.loads((only(tmp_path) / "done").read_text())["eval/episodic_return"] == 10.0


def test_iql_learns_to_do_what_it_sees(tmp_path):
    """Random play earns 2 of 8; the last actions, which are inputs too, are noise here."""
    flags = ["--env-id=pettingzoo:tests.standin.identity", "--env-options", "episode_limit=8", "--num-envs=4"]
    flags += ["--total-timesteps=4000", "--epsilon-steps=2000", "--eval-every=2000", "--learning-rate=0.002"]
    assert run(tmp_path, *flags, "--target-every=50").returncode == 0
    assert json.loads((only(tmp_path) / "done").read_text())["eval/episodic_return"] > 7
