"""dpo_matrix.py: the same learner as dpo_smac.py, on tables; whole runs that repeat, resume and learn."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import dpo_matrix as dpo
import dpo_smac
from envs.matrix import StochasticGame

S, N, A, E = 6, 3, 4, 5
TINY = ["--num-states=6", "--num-agents=3", "--num-actions=4", "--num-envs=5", "--total-timesteps=600"]
TINY += ["--eval-every=150", "--checkpoint-every=120"]
DIE_IN_A_STEP = """
import os, runpy, signal, sys
from envs.matrix import TabularGame
step, calls = TabularGame.step, []
def dying(self, actions):
    calls.append(self)
    if len(calls) == 75:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, actions)
TabularGame.step = dying
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
CLOCK = {"charts/SPS", "time/env", "time/act", "time/update"}  # the columns that a run need not repeat


def samples(seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch of random samples (N, rows, ...) of the game above, some states never visited."""
    random = torch.Generator().manual_seed(seed)
    obs = F.one_hot(torch.randint(S - 1, (N, 40), generator=random), S).float()
    advantages, returns = torch.randn(2, N, 40, generator=random)
    actions = torch.randint(A, (N, 40), generator=random)
    return dict(obs=obs, actions=actions, advantages=advantages, returns=returns)


def moved_agents() -> tuple[dpo.Agents, torch.Tensor]:
    """Agents with betas, and the log-probabilities (N, S, A) of other policies to measure KL from."""
    torch.manual_seed(3)
    agents, old = (dpo.Agents(N, S, A, layer_norm=False) for _ in range(2))
    for network in (agents, old):
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    agents.betas += torch.tensor([[0.03], [0.02]])
    states = torch.eye(S).expand(N, -1, -1)
    return agents, F.log_softmax(old.actor(states), dim=-1).detach()


def gradients(agents: dpo.Agents, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(agents.parameters())))


def test_table_of_sums_has_the_gradient_of_the_samples():
    """Summing samples by state and action must not change what is learned, only how long it takes."""
    agents, old_logp = moved_agents()
    batch = samples()
    table = dpo.tabulate(*batch.values(), A) | dict(obs=torch.eye(S).expand(N, -1, -1), old_logp=old_logp)
    loss, parts = dpo.dpo_loss(agents, **table, ent_coef=0.01, num_agents=N)
    rows = dict(batch, action_mask=torch.ones(N, 40, A, dtype=torch.bool), old_logp=batch["obs"] @ old_logp)
    rows["weight"] = torch.full((N, 40), 1 / 40)
    by_rows, row_parts = dpo_smac.dpo_loss(agents, **rows, ent_coef=0.01, num_agents=N)
    for ours, theirs in zip(gradients(agents, loss), gradients(agents, by_rows), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts[[0, 2]], row_parts[[0, 2]])
    assert (table["weight"][:, -1] == 0).all() and torch.allclose(table["weight"].sum(1), torch.ones(N))


def test_gae_is_that_of_the_other_scripts_where_nobody_dies():
    """One estimator, whatever the family: truncation bootstraps, termination does not."""
    random = torch.Generator().manual_seed(1)
    rewards, ends = torch.randn(9, E, generator=random), torch.rand(9, E, generator=random)
    values, final_values = torch.randn(2, N, 9, E, generator=random)
    args = rewards, values, torch.randn(N, E, generator=random), final_values, ends < 0.1, ends > 0.8
    alive = torch.ones(N, 9, E, dtype=torch.bool), torch.ones(N, E, dtype=torch.bool)
    theirs = dpo_smac.gae(*args, *alive, 0.9, 0.8)
    for own, other in zip(dpo.gae(*args, 0.9, 0.8), theirs[:2], strict=True):
        torch.testing.assert_close(own, other)
    assert theirs[2].all()


def learned(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Parameters and betas of agents after an update on a batch of samples."""
    agents, old_logp = moved_agents()
    table = dict(batch, advantages=dpo.standardize(batch["advantages"][:, None])[0][:, 0])
    table = dpo.tabulate(*table.values(), A) | dict(obs=torch.eye(S).expand(N, -1, -1), old_logp=old_logp)
    dpo.update(agents, torch.optim.Adam(agents.parameters(), 1e-3), table, dpo.Args(update_epochs=3), N)
    return [*(parameter.data for parameter in agents.parameters()), agents.betas.T]


def test_agent_update_ignores_other_agents():
    """Strict decentralization: perturbing one agent's samples leaves the others the same to the last bit."""
    batch, other = samples(0), samples(1)
    perturbed = {name: torch.cat([x[:1], other[name][1:2], x[2:]]) for name, x in batch.items()}
    for before, after in zip(learned(batch), learned(perturbed), strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(learned(batch)[0][1], learned(perturbed)[0][1])


def test_evaluation_is_the_return_that_sampled_episodes_average_to():
    """The logged return has no sampling noise, and no bias either."""
    envs = StochasticGame(4000, 1, S, N, A)
    agents, _ = moved_agents()
    exact = dpo.evaluate(agents, envs, 1.0)
    logp = F.log_softmax(agents.actor(torch.eye(S).expand(N, -1, -1)), dim=-1).detach()
    obs, _ = envs.reset()
    random = torch.Generator().manual_seed(0)
    for _ in range(S):
        pi = (torch.from_numpy(obs).transpose(0, 1) @ logp).exp().flatten(0, 1)
        actions = torch.multinomial(pi, 1, generator=random).view(N, -1).T
        obs, _, _, _, infos = envs.step(actions.numpy())
    returns = infos["episode"]["r"]
    assert abs(returns.mean() - exact["eval/episodic_return"]) < 4 * returns.std() / len(returns) ** 0.5
    assert exact["eval/greedy_return"] != exact["eval/episodic_return"]


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


def parameters(directory: Path) -> dict[str, torch.Tensor]:
    return torch.load(directory / "checkpoint.pt", weights_only=True)["agents"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    result = run(runs, *TINY)
    assert result.returncode == 0, result.stderr
    return only(runs)


def test_run_logs_every_update_and_exact_evaluations_beside_the_optimum(reference):
    """Everything a plot needs is in metrics.csv, once."""
    log = rows(reference)
    evaluations = [row for row in log if row["eval/episodic_return"]]
    assert [int(row["global_step"]) for row in evaluations] == [0, 150, 300, 450, 600]
    assert len([row for row in log if row["dpo/kl"]]) == 600 // (5 * 6)
    optimum = StochasticGame(1, 0, S, N, A).optimum().value
    assert {float(row["eval/optimum"]) for row in evaluations} == {float(f"{optimum:.6g}")}
    assert all(float(row["eval/greedy_return"]) <= optimum + 1e-3 for row in evaluations)
    assert json.loads((reference / "done").read_text())["eval/optimum"] == optimum


def test_killed_run_resumes_to_the_uninterrupted_one_bit_for_bit(reference, tmp_path):
    """A preempted run on a cluster ends with the same numbers as one that was left alone."""
    command = [sys.executable, "-c", DIE_IN_A_STEP, dpo.__file__, f"--runs-dir={tmp_path}", *TINY]
    assert subprocess.run(command, cwd=Path(dpo.__file__).parent).returncode == -signal.SIGKILL
    saved = torch.load(only(tmp_path) / "checkpoint.pt", weights_only=True)
    assert 0 < saved["counters"][0] < 30 * len(rows(only(tmp_path)))  # rows past the checkpoint go
    result = run(tmp_path, f"--resume={only(tmp_path)}")
    assert result.returncode == 0, result.stderr
    assert rows(only(tmp_path)) == rows(reference)
    resumed, straight = parameters(only(tmp_path)), parameters(reference)
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_two_threads_learn_what_one_learns(reference, tmp_path):
    """--torch-threads is about speed only."""
    assert run(tmp_path, *TINY, "--torch-threads=2").returncode == 0
    ours, theirs = parameters(only(tmp_path)), parameters(reference)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--num-agents=12"], "Take fewer states, agents or actions"),
        (["--delta=0.5"], "delta > 1"),
        (["--num-envs=0"], "--num-envs must be at least 1"),
        (["--resume=nowhere"], "no checkpoint at nowhere"),
        (["--game=5"], "nearest ids are matrix/"),
        (["--game=1", "--start=0", "1"], "strictly between 0 and 1"),
        (["--game=1", "--m-hat=big"], "theory or a number"),
        (["--game=1", "--m-hat=inf"], "finite"),
        (["--learning-rate=nan"], "--learning-rate"),
        (["--d-target=nan"], "d_target > 0"),
        (["--gamma=5"], "--gamma"),
        (["--seed=-1"], "--seed"),
        (["--game=1", "--m-hat=0", "--c=0"], "nor both 0"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_sentence(tmp_path, monkeypatch, flags, sentence, capsys):
    """Bad input costs a user one line to read, and makes no run directory."""
    monkeypatch.setattr(sys, "argv", ["dpo_matrix.py", f"--runs-dir={tmp_path / 'runs'}", *flags])
    with pytest.raises(SystemExit) as refusal:
        dpo.main()
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "runs").exists()


def test_run_of_another_game_is_not_resumed(reference):
    """Going on under other arguments would draw a curve that no command reproduces."""
    result = run(reference.parent, f"--resume={reference}", "--game-seed=1")
    assert result.returncode == 1 and "made with another game_seed" in result.stderr


@pytest.mark.parametrize(("m_hat", "moves"), [("theory", False), ("0.3", True)])
def test_matrix_game_draws_its_exact_iteration(tmp_path, monkeypatch, capsys, m_hat, moves):
    """With the theorem's coefficient nothing moves; with a smaller one J rises and never falls."""
    flags = [f"--runs-dir={tmp_path}", "--game=3", f"--m-hat={m_hat}"]
    monkeypatch.setattr(sys, "argv", ["dpo_matrix.py", *flags])
    dpo.main()
    directory = only(tmp_path)
    returns = np.array([float(row["J"]) for row in rows(directory)])
    assert len(returns) == 101 and (np.diff(returns) >= 0).all()
    assert (returns[-1] > returns[0] + 1) == moves and ("nothing moved" in capsys.readouterr().out) != moves
    assert (directory / "curves.png").stat().st_size > 5000


def test_payoff_alone_is_a_game(tmp_path, monkeypatch, capsys):
    """A reader tries a 2x2 game of their own with one flag."""
    flags = [f"--runs-dir={tmp_path}", "--payoff", "1", "2", "3", "4", "--m-hat=1e-1"]
    monkeypatch.setattr(sys, "argv", ["dpo_matrix.py", *flags])
    dpo.main()
    assert only(tmp_path).name.startswith("matrix-1_2_3_4__dpo_matrix__1__")
    assert json.loads((only(tmp_path) / "done").read_text())["optimum"] == 4.0


def test_prolonged_run_is_the_long_one_wherever_it_stopped(reference, tmp_path):
    """Ending between two evaluations, and being resumed when finished already, leave no trace."""
    short = [flag for flag in TINY if "total" not in flag]
    assert run(tmp_path, *short, "--total-timesteps=390").returncode == 0
    assert run(tmp_path, f"--resume={only(tmp_path)}").returncode == 0
    checkpoint = only(tmp_path) / "checkpoint.pt"
    assert run(tmp_path, f"--resume={checkpoint}", "--total-timesteps=600").returncode == 0
    assert rows(only(tmp_path)) == rows(reference)
    assert (only(tmp_path) / "done").read_text() == (reference / "done").read_text()


def test_dpo_learns_the_stochastic_game(tmp_path):
    """Most of what there is to gain over random play is gained within seconds."""
    flags = ["--num-states=10", "--num-agents=3", "--num-actions=3", "--total-timesteps=60000"]
    assert run(tmp_path, *flags, "--eval-every=60000").returncode == 0
    first, *_, last = [row for row in rows(only(tmp_path)) if row["eval/optimum"]]
    start, end = (float(row["eval/episodic_return"]) for row in (first, last))
    best = float(last["eval/optimum"])
    assert end > start + 0.7 * (best - start)
