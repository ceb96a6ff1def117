"""iddpg.py: targets, Polyak averaging, replay, padding; whole runs that repeat, resume and learn."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import iddpg

OBS, ROWS, ACT_DIMS = 6, 50, (3, 1, 2)
N, D = len(ACT_DIMS), max(ACT_DIMS)
TINY = ["--env-id=mamujoco/Hopper-3x1", "--num-envs=4", "--total-timesteps=600", "--warmup-steps=100"]
TINY += ["--eval-every=300", "--checkpoint-every=120", "--batch-size=16", "--buffer-steps=200"]
CLOCK = {"charts/SPS", "time/env", "time/act", "time/update"}  # the columns that a run need not repeat


def make_agents(seed: int = 0) -> iddpg.Agents:
    torch.manual_seed(seed)
    agents = iddpg.Agents(OBS, ACT_DIMS)
    for parameter in agents.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return agents


def make_batch(seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, N, ROWS, OBS, generator=random)
    actions = torch.rand(N, ROWS, D, generator=random) * make_agents().act_mask
    rewards, ends = torch.randn(ROWS, generator=random), torch.rand(ROWS, generator=random) < 0.3
    return dict(obs=obs, next_obs=next_obs, actions=actions, rewards=rewards, terminations=ends)


def learned(batch: dict[str, torch.Tensor], steps: int = 3) -> list[torch.Tensor]:
    """Parameters, target parameters and statistics, agents first, after some updates."""
    agents, target, args = make_agents(0), make_agents(1), iddpg.Args()
    optimizers = [torch.optim.Adam(x.parameters(), 1e-3) for x in (agents.actor, agents.critic)]
    for _ in range(steps):
        stats = iddpg.update(agents, target, optimizers, batch, args)
    return [*(p.data for p in agents.parameters()), *(p.data for p in target.parameters()), stats.T]


def test_critics_learn_the_target_of_their_own_next_action():
    """y = r + gamma Q'(o', pi'(o')), cut by termination alone, each agent from its own observation."""
    agents, target, batch = make_agents(0), make_agents(1), make_batch()
    _, (loss, q) = iddpg.critic_loss(agents, target, batch, 0.9)
    with torch.no_grad():
        for i in range(N):
            errors = []
            for k in range(ROWS):
                one = torch.zeros(N, 1, OBS)
                one[i, 0] = batch["next_obs"][i, k]
                follow = target.value(one, target.act(one))[i, 0]
                y = batch["rewards"][k] + (0.0 if batch["terminations"][k] else 0.9 * follow)
                own, action = batch["obs"][:, k : k + 1], batch["actions"][:, k : k + 1]
                errors.append((agents.value(own, action)[i, 0] - y) ** 2)
            torch.testing.assert_close(loss[i], torch.stack(errors).mean())
    torch.testing.assert_close(q, agents.value(batch["obs"], batch["actions"]).mean(1).detach())


def test_actors_climb_their_own_critics():
    """The deterministic policy gradient, and nothing of the critic's parameters, moves the actor."""
    agents, batch = make_agents(0), make_batch()
    loss, parts = iddpg.actor_loss(agents, batch)
    actions = agents.act(batch["obs"])
    expected = torch.autograd.grad(
        agents.value(batch["obs"], actions).sum() / -ROWS, list(agents.actor.parameters())
    )
    actual = torch.autograd.grad(iddpg.actor_loss(agents, batch)[0], list(agents.actor.parameters()))
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(loss.detach(), parts.sum())
    with torch.no_grad():
        before = agents.value(batch["obs"], agents.act(batch["obs"])).mean()
        for parameter, gradient in zip(agents.actor.parameters(), actual, strict=True):
            parameter -= 0.01 * gradient
        assert agents.value(batch["obs"], agents.act(batch["obs"])).mean() > before


def test_targets_follow_by_polyak_averaging():
    """A target that jumps, or stays, makes the critics chase themselves."""
    agents, target = make_agents(0), make_agents(1)
    before = [p.detach().clone() for p in target.parameters()]
    optimizers = [torch.optim.Adam(x.parameters(), 1e-3) for x in (agents.actor, agents.critic)]
    iddpg.update(agents, target, optimizers, make_batch(), iddpg.Args(tau=0.1))
    for old, new, ours in zip(before, target.parameters(), agents.parameters(), strict=True):
        torch.testing.assert_close(new.data, 0.9 * old + 0.1 * ours.data)


def test_agent_update_ignores_other_agents():
    """Strict decentralization: perturbing one agent's steps leaves the others the same to the last bit."""
    batch, other = make_batch(0), make_batch(1)
    changed = {name: x.clone() for name, x in batch.items()}
    for name in ("obs", "next_obs", "actions"):
        changed[name][1] = other[name][1]
    for before, after in zip(learned(batch), learned(changed), strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(learned(batch)[0][1], learned(changed)[0][1])


def test_padded_actions_are_zero():
    """An agent with fewer joints than another has no say, and no gradient, where it has none."""
    agents = make_agents()
    actions = agents.act(torch.randn(N, ROWS, OBS))
    for i, dim in enumerate(ACT_DIMS):
        assert (actions[i, :, dim:] == 0).all() and (actions[i, :, :dim] != 0).all()
    (gradient,) = torch.autograd.grad(actions.sum(), agents.actor.weights[-1])
    assert (gradient[1, :, 1:] == 0).all() and (gradient[1, :, :1] != 0).any()


def test_replay_keeps_the_newest_steps():
    """The oldest go first, also where several environments write across the end."""
    replay = iddpg.Replay(10, N, OBS, D, 0.5)
    for k in range(6):
        rewards = np.arange(3 * k, 3 * k + 3, dtype=np.float32)
        obs, actions = np.ones((2, 3, N, OBS)), np.zeros((3, N, D))
        replay.add(obs=obs[0], next_obs=obs[1], actions=actions, rewards=rewards, terminations=rewards > 99)
    assert sorted(replay.data["rewards"]) == list(range(8, 18))
    sample = replay.sample(400, np.random.default_rng(0))
    assert set(sample["rewards"]) == set(range(8, 18)) and sample["obs"].shape == (400, N, OBS)


def run(directory: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, iddpg.__file__, f"--runs-dir={directory}", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def only(runs: Path) -> Path:
    (directory,) = runs.iterdir()
    return directory


def rows(directory: Path) -> list[dict[str, str]]:
    with open(directory / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]


def test_shorter_run_resumes_to_the_longer_one_bit_for_bit(tmp_path):
    """Full replay buffer, noise and physics are in the checkpoint."""
    short = [flag for flag in TINY if "total" not in flag]
    for name, flags in (("long", TINY), ("short", [*short, "--total-timesteps=388"])):
        result = run(tmp_path / name, *flags)
        assert result.returncode == 0, result.stderr
    directory = only(tmp_path / "short")
    assert run(tmp_path, f"--resume={directory}", "--total-timesteps=600").returncode == 0
    ours, theirs = (
        torch.load(path / "checkpoint.pt", weights_only=True) for path in (directory, only(tmp_path / "long"))
    )
    for part in ("agents", "target", "replay"):
        assert all(torch.equal(ours[part][name], theirs[part][name]) for name in theirs[part]), part
    assert ours["random"] == theirs["random"] and theirs["counters"][3] == 600 > 200  # wrapped around
    assert rows(directory) == rows(only(tmp_path / "long"))
    assert set(json.loads((directory / "done").read_text())) == {"eval/episodic_return"}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--env-id=smac/3m"], "discrete actions"),
        (["--tau=0"], "--tau"),
        (["--env-id=mamujoco/Hoper-3x1"], "Hopper-3x1"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_sentence(tmp_path, monkeypatch, flags, sentence):
    """Bad input costs a user one line to read, and makes no run directory."""
    monkeypatch.setattr(sys, "argv", ["iddpg.py", f"--runs-dir={tmp_path / 'runs'}", *flags])
    with pytest.raises(SystemExit) as refusal:
        iddpg.main()
    assert sentence in str(refusal.value) and not (tmp_path / "runs").exists()


def test_iddpg_improves_on_a_small_continuous_task(tmp_path):
    """Two agents move the two joints of an arm to a point, better than they began."""
    flags = ["--env-id=mamujoco/Reacher-2x1", "--total-timesteps=6000", "--warmup-steps=1000"]
    assert run(tmp_path, *flags, "--eval-every=3000", "--learning-rate=0.001").returncode == 0
    returns = [
        float(row["eval/episodic_return"]) for row in rows(only(tmp_path)) if row["eval/episodic_return"]
    ]
    assert returns[-1] > returns[0] + 1.0, returns
