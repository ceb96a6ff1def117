"""What a flag says reaches the learner: a script that reads one and forgets it trains, only otherwise."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn

import dpo_mpe
from tests.scripts import cases, running
from tests.scripts.recording import LIMIT, E, N, recording
from tests.scripts.running import SCRIPTS, load, only, rows
from tests.scripts.test_decentralized import CASES, make_agents
from tests.scripts.test_endings import ON_POLICY, train

ROOT = Path(__file__).resolve().parents[2]
DPO = ("dpo_mamujoco", "dpo_matrix", "dpo_mpe", "dpo_smac")


def trained(case: str, runs: Path, turns: int, beta: float = 0.0, **flags: Any) -> tuple[dict, nn.Module]:
    """Agents of a recording before the training, and after some turns of it."""
    name, kind, own = CASES[case]
    script = importlib.import_module(name)
    if hasattr(script.Args, "num_steps"):
        flags["num_steps"] = LIMIT
    torch.manual_seed(0)
    agents = make_agents(script, kind)
    for own_beta in (x for name, x in agents.named_buffers() if name.startswith("beta")):
        own_beta += beta
    before = {name: p.detach().clone() for name, p in agents.named_parameters()}
    flags = own | dict(total_timesteps=turns * E * LIMIT, runs_dir=str(runs)) | flags
    train(script, recording(kind), kind, agents, **flags)
    return before, agents


# The betas of DPO.


@pytest.mark.parametrize(
    ("flag", "beta1", "beta2"),
    [
        ("--sqrt-kl-term=state", [0.16, 0.08, 0.04], [0.16, 0.08, 0.04]),
        ("--sqrt-kl-term=off", [0, 0, 0], [0.16, 0.08, 0.04]),
        ("--no-kl-term", [0.16, 0.08, 0.04], [0, 0, 0]),
    ],
)
@pytest.mark.parametrize("script", DPO)
def test_betas_begin_where_the_flags_say(script, flag, beta1, beta2, tmp_path):
    """Else an ablation, or a search for the best start, compares equal runs."""
    case = cases.CASES[script]
    flags = ["--beta-init=0.32", "--beta-min=0", "--d-target=1e9", flag]
    flags += ["--total-timesteps", 3 * case.turn, "--runs-dir", tmp_path]
    case.finished(*case.tiny, *flags)
    learned = [row for row in rows(only(tmp_path)) if row["dpo/beta1"]]
    assert [float(row["dpo/beta1"]) for row in learned] == pytest.approx(beta1)
    assert [float(row["dpo/beta2"]) for row in learned] == pytest.approx(beta2)


BAND = dict(d_target=0.02, delta=3.0, omega=6.0, beta_min=1e-9, beta_max=1e9)  # from 0.00667 to 0.06


@pytest.mark.parametrize("name", DPO)
def test_band_and_factor_of_equation_21_are_the_flags(name):
    """With the defaults alone, 1.5 and 2, a script that forgets a flag would look right."""
    script = importlib.import_module(name)
    beta = script.adapt_beta(
        torch.full((4,), 0.3), torch.tensor([0.006, 0.007, 0.05, 0.061]), script.Args(**BAND), 7
    )
    torch.testing.assert_close(beta, torch.tensor([0.05, 0.3, 0.3, 1.8]))


@pytest.mark.parametrize("case", DPO)
def test_updates_adapt_both_betas_to_the_divergence_and_count_who_is_outside(case, tmp_path, monkeypatch):
    """By hand for three agents, of which one is below the band, then two above and another below."""
    script, seen = importlib.import_module(case), []
    divergences = iter(torch.tensor([[0.006, 0.007, 0.05], [0.061, 0.061, 0.006]]))
    true_update = script.update

    def update(*told, **more):
        stats = true_update(*told, **more)
        seen.append({name: x.clone() for name, x in stats.items()})
        return stats

    monkeypatch.setattr(script, "mean_kl", lambda *_: (next(divergences).clone(), torch.zeros(3)))
    monkeypatch.setattr(script, "update", update)
    _, agents = trained(case, tmp_path, turns=2, beta=0.3, update_epochs=1, **BAND)
    betas = torch.tensor([[0.05, 0.3, 0.3], [0.3, 1.8, 0.05]])
    below, above = torch.eye(3)[[0, 2]], torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    expected = {"beta1": betas, "beta2": betas, "below_band": below, "above_band": above}
    for name, x in expected.items():
        torch.testing.assert_close(torch.stack([stats[f"dpo/{name}"] for stats in seen]), x)
    torch.testing.assert_close(torch.stack([agents.beta1, agents.beta2]), betas[1].expand(2, -1))


# Adam and the clip of its gradients.


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_clipped_and_steps_taken_as_the_flags_say(case, tmp_path, monkeypatch):
    """Of every network: gradients far below Adam's eps move nothing, however large they were before."""
    script = importlib.import_module(CASES[case][0])
    on_policy, flags = case in ON_POLICY, dict(learning_rate=3e-4)
    monkeypatch.setattr(script, "LOG_EVERY", 1, raising=False)
    if "max_grad_norm" in {field.name for field in dataclasses.fields(script.Args)}:
        flags["max_grad_norm"] = 1e-12
    else:
        monkeypatch.setattr(script.Args, "max_grad_norm", 1e-12)
    if hasattr(script.Args, "value_norm"):
        flags["value_norm"] = False  # which changes parameters without a gradient
    before, agents = trained(case, tmp_path, turns=2, **flags)
    for name, parameter in agents.named_parameters():
        assert (parameter - before[name]).abs().max() < 1e-5, name
    directory = only(tmp_path)
    norms = [float(row["losses/grad_norm"]) for row in rows(directory) if row["losses/grad_norm"]]
    assert norms and min(norms) > 1e-4
    for optimizer in load(directory)["optimizers"]:
        [settings] = optimizer["param_groups"]
        assert settings["lr"] == 3e-4 and settings["eps"] == (1e-5 if on_policy else 1e-8)


# What is normalised.


@pytest.mark.parametrize("standardised", [True, False])
@pytest.mark.parametrize("case", ON_POLICY)
def test_advantages_are_standardised_where_the_flag_says(case, standardised, tmp_path, monkeypatch):
    """Mean 0 and standard deviation 1 over each agent's own samples; else they are as GAE makes them."""
    script, made, learned = importlib.import_module(CASES[case][0]), [], []
    gae, learn = script.gae, script.Learner.learn
    monkeypatch.setattr(script, "gae", lambda *told: made.append(gae(*told)) or made[-1])
    monkeypatch.setattr(
        script.Learner, "learn", lambda own, batch: learned.append(batch) or learn(own, batch)
    )
    trained(case, tmp_path, turns=1, update_epochs=1, advantage_norm=standardised)
    [(advantages, _, *valid)], [batch] = made, learned
    weight = torch.ones_like(advantages) if not valid else valid[0].float()
    weight /= weight.sum((1, 2), keepdim=True)
    mean = (weight * advantages).sum((1, 2))
    square = (weight * advantages.square()).sum((1, 2))
    assert (mean.abs() > 0.01).all() and ((square - mean.square() - 1).abs() > 0.01).all()
    if standardised:
        mean, square = torch.zeros(N), torch.ones(N)
    if CASES[case][1] == "table":  # which holds sums over the samples of a state
        torch.testing.assert_close(batch["advantages"].sum((1, 2)), mean, rtol=1e-4, atol=1e-5)
        return
    for power, moment in ((1, mean), (2, square)):
        found = (batch["weight"] * batch["advantages"] ** power).sum(1)
        torch.testing.assert_close(found, moment, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("script", "flags"),
    [("dpo_mamujoco", "--task=Hopper-3x1"), ("ippo", "--env-id=mamujoco/Hopper-3x1")],
)
def test_observations_are_normalised_unless_the_flag_says_otherwise(script, flags, tmp_path):
    """Without it networks see what the environment tells, and a training has no statistics to keep."""
    flags += " --num-envs=2"
    assert type(given(script, flags)[2].obs_norm).__name__ == "RunningNorm"
    assert isinstance(given(script, f"{flags} --no-obs-norm")[2].obs_norm, nn.Identity)
    flags += f" --no-obs-norm --num-steps=8 --total-timesteps=16 --update-epochs=1 --runs-dir={tmp_path}"
    running.finished(script, *flags.split(), EVAL_EPISODES=1)
    assert not any(name.startswith("obs_norm") for name in load(only(tmp_path))["agents"])


# What is counted, and how.


@pytest.mark.parametrize("case", ON_POLICY)
def test_speed_is_in_environment_steps(case, tmp_path, monkeypatch):
    """Counted in agents' steps a script would seem several times as fast as it is."""
    script, counted = importlib.import_module(CASES[case][0]), []
    row = script.Clock.row
    monkeypatch.setattr(script.Clock, "row", lambda clock, steps: counted.append(steps) or row(clock, steps))
    trained(case, tmp_path, turns=2, update_epochs=1)
    assert counted == [E * LIMIT] * 2


def test_clock_tells_speed_and_shares():
    """Tables of speed are made of these four numbers."""
    clock = dpo_mpe.Clock()
    clock.seconds = {"env": 1.0, "act": 2.0, "update": 1.0}
    shares = {"time/env": 0.25, "time/act": 0.5, "time/update": 0.25}
    assert clock.row(200) == {"charts/SPS": 50.0} | shares


def test_iql_explores_less_and_learns_as_often_as_the_flags_say(tmp_path):
    """Of 100 episodes those from the eighth on, which fill a batch, are each learned from twice."""
    case = cases.CASES["iql"]
    case.finished(*case.tiny, "--updates-per-episode=2", "--runs-dir", tmp_path)
    [optimizer] = load(only(tmp_path))["optimizers"]
    assert {int(moments["step"]) for moments in optimizer["state"].values()} == {2 * 93}
    epsilons = [float(row["charts/epsilon"]) for row in rows(only(tmp_path)) if row["charts/epsilon"]]
    # Of the step before each row: from 1 to 0.05 over 400 steps.
    assert epsilons == pytest.approx([0.774375, 0.536875, 0.299375, 0.061875, 0.05, 0.05])


# Evaluation.


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "dpo_matrix"])
def test_results_are_of_32_episodes_and_320_at_the_end(name):
    """As pages and figures say; test_faults.py has that ten times as many are played at the end."""
    assert importlib.import_module(name).EVAL_EPISODES == 32


@pytest.mark.parametrize("name", [name for name in cases.CASES if name != "dpo_matrix"])
def test_evaluations_have_seeds_of_their_own(name, tmp_path):
    """One that met the episodes of training, or the same ones each time, would flatter what is evaluated."""
    case, seeds = cases.CASES[name], []
    evaluate = importlib.import_module(case.script).evaluate

    def watched(agents, envs, num_episodes, seed):
        seeds.append(seed)
        return evaluate(agents, envs, num_episodes, seed)

    flags = ["--seed=7", f"--eval-every={case.turn}", f"--total-timesteps={2 * case.turn}"]
    argv = [*case.tiny, *flags, "--runs-dir", tmp_path]
    running.finished(case.script, *argv, **case.constants | {"evaluate": watched})
    assert seeds == [*([7, 0, turn * case.turn] for turn in range(3)), [7, 1]]


# Environments and networks.


class Given(Exception):
    """What `main` gives to `train`: the environments to train and to evaluate in, and the agents."""


def given(script: str, flags: str) -> tuple[Any, Any, Any]:
    def take(args, envs, eval_envs, agents, state):
        raise Given(envs, eval_envs, agents)

    with pytest.raises(Given) as taken:
        running.run(script, *flags.split(), train=take)
    return taken.value.args


def test_particles_are_as_the_flags_say():
    """Where agents train and where they are evaluated; else a task is not the one that it is called."""
    flags = "--task=line_control --num-agents=4 --vision=0.7 --collision-penalty=2.5 --episode-length=11"
    for envs in given("dpo_mpe", flags)[:2]:
        assert (envs.env_id, envs.num_agents, envs.vision) == ("mpe/line_control", 4, 0.7)
        assert (envs.collision_penalty, envs.episode_limit) == (2.5, 11)


def test_battles_and_their_networks_are_as_the_flags_say():
    """The last action is seen, and LayerNorm left out, only where that is asked for."""
    marines = "--map=3m --backend=embedded --num-envs=2"
    plain, _, usual = given("dpo_smac", marines)
    envs, eval_envs, agents = given("dpo_smac", f"{marines} --last-action --no-layer-norm")
    assert envs.obs_dim == eval_envs.obs_dim == plain.obs_dim + plain.num_actions
    assert usual.actor.layer_norm and usual.critic.layer_norm and isinstance(usual.obs_norm, nn.LayerNorm)
    assert not agents.actor.layer_norm and not agents.critic.layer_norm
    assert isinstance(agents.obs_norm, nn.Identity)


@pytest.mark.parametrize(("script", "robot"), [("dpo_mamujoco", "--task="), ("ippo", "--env-id=mamujoco/")])
def test_gaussian_policies_begin_as_wide_as_flag_or_preset_says(script, robot):
    """HalfCheetah has a preset, which a flag overrides, and Hopper has none."""
    for flags, log_std, layer_norm in (
        ("HalfCheetah-3x2", -1.0, False),
        ("HalfCheetah-3x2 --log-std-init=-0.5 --layer-norm", -0.5, True),
        ("Hopper-3x1", 0.0, False),
    ):
        *_, agents = given(script, f"{robot}{flags} --num-envs=2")
        assert (agents.actor.log_std == log_std).all()
        assert agents.actor.layer_norm == agents.critic.layer_norm == layer_norm


# What the help and the pages state.


@pytest.mark.parametrize(
    ("words", "flag", "default"),
    [
        ("dpo_mamujoco", "--log-std-init", "-1.0"),  # HalfCheetah's preset; 0.0 is the class's
        ("dpo_mamujoco --task=Hopper-3x1", "--log-std-init", "0.0"),
        ("ippo --env-id=mpe/simple_spread", "--num-envs", "128"),
        ("ippo", "--total-timesteps", "2000000"),
    ],
)
def test_help_shows_the_defaults_that_a_run_would_have(words, flag, default, capsys):
    """Presets differ from the class's defaults; who reads the latter would believe in another run."""
    script, *flags = words.split()
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).parse_args([*flags, "--help"])
    shown = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert stop.value.code == 0 and re.search(rf"{flag} [A-Z].*?\(default: ([^)]*)\)", shown)[1] == default


LEARNING = dict(
    learning_rate=5e-4, gamma=0.99, gae_lambda=0.95, update_epochs=15, ent_coef=0.01, max_grad_norm=10.0
)
BETAS = LEARNING | dict(beta_init=0.01, beta_min=0.001, beta_max=1000.0, delta=1.5, omega=2.0)
OFF_POLICY = dict(learning_rate=5e-4, max_grad_norm=10.0, eval_every=20_480)
STATED = {
    "dpo_smac": BETAS | dict(num_envs=32, num_steps=128, total_timesteps=10**7, layer_norm=True),
    "dpo_mpe": BETAS | dict(num_envs=128, num_steps=25, total_timesteps=2 * 10**6, eval_every=32_000),
    "dpo_mamujoco": BETAS
    | dict(num_envs=16, num_steps=64, total_timesteps=2 * 10**6, eval_every=50_000)
    | dict(layer_norm=False, value_norm=True),
    "dpo_matrix": BETAS
    | dict(num_envs=32, num_states=100, num_agents=6, num_actions=5, game_seed=0, total_timesteps=10**6),
    "ippo": LEARNING | dict(clip_coef=0.2),
    "iql": OFF_POLICY
    | dict(buffer_episodes=5000, batch_episodes=32, updates_per_episode=1, target_every=200)
    | dict(epsilon_start=1.0, epsilon_end=0.05, epsilon_steps=50_000, total_timesteps=2 * 10**6),
    "iddpg": OFF_POLICY
    | dict(tau=0.005, exploration_noise=0.1, warmup_steps=10_000, buffer_steps=10**6, batch_size=256)
    | dict(updates_per_step=1.0, total_timesteps=10**6),
}


@pytest.mark.parametrize("script", STATED)
def test_defaults_are_those_that_the_pages_state(script):
    """dpo.md's column "ours", ippo.md, iql.md, iddpg.md: else a run of the defaults is not what was cited."""
    args = importlib.import_module(script).Args()
    assert {name: getattr(args, name) for name in STATED[script]} == STATED[script]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_column_is_explained(script):
    """In dpo.md or on the baseline's own page: a number that nobody explains is read as another."""
    pages = {"dpo", {"ippo": "ippo", "iql": "iql", "iddpg": "iddpg"}.get(script, "dpo")}
    text = "".join((ROOT / "docs" / f"{page}.md").read_text() for page in pages)
    told = set(re.findall(r"`([\w/]+)`", text))
    for column in importlib.import_module(script).COLUMNS:
        name = column.rpartition("/")[2]
        assert told & {column, name, "_" + name.rpartition("_")[2]}, column
