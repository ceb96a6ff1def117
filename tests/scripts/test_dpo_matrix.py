"""dpo_matrix.py: the same learner as dpo_smac.py, on tables; exact evaluation and iteration.

What holds for all scripts is tested in test_runs.py.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import dpo_matrix as dpo
import dpo_smac
import envs
from envs.matrix import StochasticGame
from tests.scripts.running import finished, only, refused, rejected, rows

S, N, A, E = 6, 3, 4, 5
TINY = ["--num-states=6", "--num-agents=3", "--num-actions=4", "--num-envs=5", "--total-timesteps=600"]
TINY += ["--eval-every=150", "--checkpoint-every=120"]


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
    agents, old = (dpo.Agents(N, S, A) for _ in range(2))
    for network in (agents, old):
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    agents.beta1 += 0.03
    agents.beta2 += 0.02
    states = torch.eye(S).expand(N, -1, -1)
    return agents, F.log_softmax(old.actor(states), dim=-1).detach()


def gradients(agents: dpo.Agents, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(agents.parameters())))


@pytest.mark.parametrize("slope", [None, torch.linspace(0.5, 5, N)])
def test_table_of_sums_has_the_gradient_of_the_samples(slope):
    """Summing samples by state and action must not change what is learned, only how long it takes."""
    agents, old_logp = moved_agents()
    batch = samples()
    table = dpo.tabulate(*batch.values(), A) | dict(obs=torch.eye(S).expand(N, -1, -1), old_logp=old_logp)
    loss, parts = dpo.dpo_loss(agents, **table, ent_coef=0.01, sqrt_slope=slope)
    rows = dict(batch, action_mask=torch.ones(N, 40, A, dtype=torch.bool), old_logp=batch["obs"] @ old_logp)
    rows["weight"] = torch.full((N, 40), 1 / 40)
    by_rows, row_parts = dpo_smac.dpo_loss(agents, **rows, ent_coef=0.01, sqrt_slope=slope)
    for ours, theirs in zip(gradients(agents, loss), gradients(agents, by_rows), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    for name in ("losses/policy_loss", "losses/entropy"):
        torch.testing.assert_close(parts[name], row_parts[name])
    assert (table["weight"][:, -1] == 0).all() and torch.allclose(table["weight"].sum(1), torch.ones(N))


def test_gae_is_that_of_the_other_scripts_where_nobody_dies():
    """One estimator, whatever the family: truncation bootstraps, termination does not."""
    random = torch.Generator().manual_seed(1)
    rewards, ends = torch.randn(9, E, generator=random), torch.rand(9, E, generator=random)
    values, final_values = torch.randn(N, 10, E, generator=random), torch.randn(N, 9, E, generator=random)
    args = rewards, values, final_values, ends < 0.1, ends > 0.8
    theirs = dpo_smac.gae(*args, torch.ones(N, 10, E, dtype=torch.bool), 0.9, 0.8)
    for own, other in zip(dpo.gae(*args, 0.9, 0.8), theirs[:2], strict=True):
        torch.testing.assert_close(own, other)
    assert theirs[2].all()


def learned(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters, betas and statistics of agents after an update on a batch of samples."""
    agents, old_logp = moved_agents()
    table = dict(batch, advantages=dpo.standardize(batch["advantages"][:, None])[:, 0])
    table = dpo.tabulate(*table.values(), A) | dict(obs=torch.eye(S).expand(N, -1, -1), old_logp=old_logp)
    stats = dpo.update(agents, torch.optim.Adam(agents.parameters(), 1e-3), table, dpo.Args(update_epochs=3))
    return stats | agents.state_dict()


def test_agent_update_ignores_other_agents():
    """Strict decentralization: perturbing one agent's samples leaves the others the same to the last bit."""
    batch, other = samples(0), samples(1)
    perturbed = {name: torch.cat([x[:1], other[name][1:2], x[2:]]) for name, x in batch.items()}
    before, after = learned(batch), learned(perturbed)
    for name, x in before.items():
        assert torch.equal(x[[0, 2]], after[name][[0, 2]]), name
    assert not torch.equal(before["actor.weights.0"][1], after["actor.weights.0"][1])


def test_evaluation_is_the_return_that_sampled_episodes_average_to():
    """The logged return has no sampling noise, and no bias either."""
    sizes = dict(num_states=S, num_agents=N, num_actions=A)
    game = envs.make("matrix/stochastic", 4000, seed=1, device="cpu", **sizes)
    agents, _ = moved_agents()
    exact = dpo.evaluate(agents, game, 1.0)
    logp = F.log_softmax(agents.actor(torch.eye(S).expand(N, -1, -1)), dim=-1).detach()
    obs, _ = game.reset()
    random = torch.Generator().manual_seed(0)
    for _ in range(S):
        pi = (obs @ logp).exp().flatten(0, 1)
        obs, _, _, _, infos = game.step(torch.multinomial(pi, 1, generator=random).view(N, -1))
    returns = np.array([episode["episodic_return"] for episode in infos["episodes"]])
    assert len(returns) == 4000
    assert abs(returns.mean() - exact["eval/episodic_return"]) < 4 * returns.std() / len(returns) ** 0.5
    assert exact["eval/greedy_return"] != exact["eval/episodic_return"]


# Whole runs; what holds for all scripts is in test_runs.py.


def test_run_logs_every_update_and_exact_evaluations_beside_the_optimum(tmp_path):
    """Everything a plot needs is in metrics.csv, once."""
    finished("dpo_matrix", *TINY, f"--runs-dir={tmp_path}")
    log = rows(only(tmp_path))
    evaluations = [row for row in log if row["eval/episodic_return"]]
    assert [int(row["global_step"]) for row in evaluations] == [0, 150, 300, 450, 600]
    assert len([row for row in log if row["dpo/kl"]]) == 600 // (5 * 6)
    optimum = StochasticGame(1, 0, S, N, A).optimum().value
    assert {float(row["eval/optimum"]) for row in evaluations} == {float(f"{optimum:.6g}")}
    assert all(float(row["eval/greedy_return"]) <= optimum + 1e-3 for row in evaluations)
    done = json.loads((only(tmp_path) / "done").read_text())
    assert done["eval/optimum"] == optimum
    assert done["eval/episodic_return"] == pytest.approx(
        float(evaluations[-1]["eval/episodic_return"]), rel=1e-5
    )


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--delta=0.5"], "--delta must be between 1.0001"),
        (["--num-states=0"], "--num-states must be between 1"),
        (["--game=5"], "Expected one of ('stochastic', '1', '2', '3', '4')"),
        (["--game=1", "--start=0", "1"], "--start takes two probabilities above 0 and below 1"),
        (["--game=1", "--m-hat=big"], "theory"),
        (["--game=1", "--m-hat=inf"], "--m-hat must be theory or a number"),
        (["--d-target=nan"], "--d-target"),
        (["--game=1", "--m-hat=0", "--c=0"], "--c must be positive where --m-hat is 0"),
    ],
)
def test_what_cannot_be_read_is_rejected_with_a_sentence(tmp_path, flags, sentence):
    """Bad input costs a user one line to read, and makes no run directory."""
    assert sentence in rejected("dpo_matrix", f"--runs-dir={tmp_path / 'runs'}", *flags)
    assert not (tmp_path / "runs").exists()


def test_a_game_that_is_too_large_is_refused_with_a_sentence(tmp_path):
    """Its optimum is found by enumeration: better no run than a machine without memory."""
    said = refused("dpo_matrix", f"--runs-dir={tmp_path / 'runs'}", "--num-agents=12")
    assert "Take fewer states, agents or actions" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("flags", [["--m-hat=0.3"], ["--start", "0.3", "0.4"], ["--c=5"]])
def test_flags_of_the_exact_iteration_are_refused_where_they_would_do_nothing(tmp_path, flags):
    """Who forgets --game would train the stochastic game for minutes instead."""
    told = refused("dpo_matrix", f"--runs-dir={tmp_path / 'runs'}", *flags)
    assert "are of the exact iteration: add --game 1 or --payoff" in told and not (tmp_path / "runs").exists()


def test_a_payoff_of_zeros_has_no_m_hat_to_go_by(tmp_path):
    """Theorem 3.3's is 0 there."""
    runs = f"--runs-dir={tmp_path / 'runs'}"
    assert "--c must be positive for a payoff of zeros" in refused(
        "dpo_matrix", runs, *["--payoff", "0", "0", "0", "0", "--c", "0"]
    )
    assert not (tmp_path / "runs").exists()


def test_payoffs_are_iterated_as_they_are_given(tmp_path):
    """In single precision these four are one number, and nothing would move."""
    payoff = ["--payoff", "100000001", *["100000000"] * 3]
    finished("dpo_matrix", f"--runs-dir={tmp_path}", *payoff, "--m-hat=0")
    done = json.loads((only(tmp_path) / "done").read_text())
    assert done == {"J": pytest.approx(100000001.0, abs=1e-3), "optimum": 100000001.0}


def test_the_best_point_is_found_for_an_action_that_is_next_to_impossible():
    """0.5 x − 0.2 sqrt(−log(1 − x)) is 0.15 at x = 0.85: the root's kink at 0 is not all there is."""
    (p, _), _ = dpo.solve_surrogate(np.array([[1e-20, 1.0]] * 2), np.array([[0.5, 0.0]] * 2), 0.2, 0.0)
    x = np.linspace(0, 1, 10**6)[1:-1]
    assert p == pytest.approx(x[(0.5 * x - 0.2 * np.sqrt(-np.log1p(-x))).argmax()], abs=1e-5)


@pytest.mark.parametrize(("m_hat", "moves"), [("theory", False), ("0.3", True)])
def test_matrix_game_draws_its_exact_iteration(tmp_path, m_hat, moves):
    """With the theorem's coefficient nothing moves; with a smaller one J rises until it is steady."""
    printed = finished("dpo_matrix", f"--runs-dir={tmp_path}", "--game=3", f"--m-hat={m_hat}").out
    directory = only(tmp_path)
    returns = np.array([float(row["J"]) for row in rows(directory)])
    assert (np.diff(returns) >= -1e-12).all() and abs(returns[-1] - returns[-2]) < 1e-11
    assert (returns[-1] > returns[0] + 1) == moves and ("nothing moved" in printed) != moves
    assert (f"steady after {len(returns) - 1} iterations" in printed) == moves
    assert json.loads((directory / "args.json").read_text())["steady"]
    assert (directory / "curves.png").stat().st_size > 5000


def test_iteration_that_is_cut_off_says_so(tmp_path):
    """Game 1 still moves after 50 iterations: its last p and q are no end."""
    flags = ["--game=1", "--m-hat=0.3", f"--runs-dir={tmp_path}"]
    printed = finished("dpo_matrix", *flags, ITERATIONS=50).out
    assert "NOT steady after 50 iterations" in printed
    assert len(rows(only(tmp_path))) == 51
    assert not json.loads((only(tmp_path) / "args.json").read_text())["steady"]


def test_payoff_alone_is_a_game(tmp_path):
    """A reader tries a 2x2 game of their own with one flag."""
    finished("dpo_matrix", f"--runs-dir={tmp_path}", "--payoff", 1, 2, 3, 4, "--m-hat=1e-1")
    assert only(tmp_path).name.startswith("matrix-1_2_3_4__dpo_matrix__1__")
    assert json.loads((only(tmp_path) / "done").read_text())["optimum"] == 4.0


def test_dpo_learns_the_stochastic_game(tmp_path):
    """Most of what there is to gain over random play is gained within seconds."""
    flags = ["--num-states=10", "--num-agents=3", "--num-actions=3", "--total-timesteps=60000"]
    finished("dpo_matrix", *flags, "--eval-every=60000", f"--runs-dir={tmp_path}")
    first, *_, last = [row for row in rows(only(tmp_path)) if row["eval/optimum"]]
    start, end = (float(row["eval/episodic_return"]) for row in (first, last))
    best = float(last["eval/optimum"])
    assert end > start + 0.7 * (best - start)
