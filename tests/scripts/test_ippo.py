"""ippo.py: its surrogates, per agent, for both kinds of policies; whole runs that repeat, resume and learn.

The learner around it is that of the dpo_*.py scripts, which their own tests hold to its promises.
"""

from __future__ import annotations

import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence

import dpo_mamujoco
import dpo_matrix
import dpo_mpe
import dpo_smac
import iddpg
import ippo

N, A, OBS, ROWS = 3, 4, 6, 600  # rows: more than a chunk
GAME = ["--env-id=matrix/stochastic", "--env-options", "num_states=6", "num_agents=3", "num_actions=4"]
TINY = ["--num-envs=5", "--num-steps=6", "--total-timesteps=300", "--eval-every=150"]
TINY += ["--checkpoint-every=60", "--update-epochs=3"]
HOPPER = ["--env-id=mamujoco/Hopper-3x1", "--kl-penalty"]
CONTINUOUS = 'env_kwargs={"continuous_actions": true}'
KINDS = pytest.mark.parametrize("kind", [ippo.Categorical, ippo.Gaussian])
CLOCK = {"charts/SPS", "time/env", "time/act", "time/update"}  # the columns that a run need not repeat


def make_agents(kind=ippo.Categorical, seed: int = 2) -> ippo.Agents:
    torch.manual_seed(seed)
    agents = ippo.Agents(N, OBS, A, actor=kind)
    for parameter in agents.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    agents.beta += 0.3
    return agents


def make_batch(kind=ippo.Categorical, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random samples (N, rows, ...), some of whose ratios lie outside of the clip; the last ten are dead."""
    random = torch.Generator().manual_seed(seed)
    obs, mask = torch.randn(N, ROWS, OBS, generator=random), torch.rand(N, ROWS, A, generator=random) < 0.7
    if kind is ippo.Gaussian:
        mask = (torch.arange(A) < torch.tensor([4, 1, 3])[:, None])[:, None].expand(N, ROWS, A)
    mask = mask | (torch.arange(A) == 0)
    old = make_agents(kind, seed=3).actor
    with torch.no_grad():
        policy = old.policy(obs, mask)
    advantages, returns = torch.randn(2, N, ROWS, generator=random)
    samples = dict(obs=obs, action_mask=mask, actions=old.act(policy, mask, random), old_policy=policy)
    weight = torch.full((N, ROWS), 1 / 590) * (torch.arange(ROWS) < 590)
    return samples | dict(advantages=advantages, returns=returns, weight=weight)


def distribution(kind, policy: torch.Tensor, mask: torch.Tensor):
    """PyTorch's own for one agent and one row, in float64."""
    policy = policy.double()
    if kind is ippo.Categorical:
        return Categorical(logits=policy[mask])
    mean, log_std = policy.chunk(2)
    return Independent(Normal(mean[mask], log_std[mask].exp()), 1)


@KINDS
def test_ratio_kl_and_entropy_are_those_of_the_policies(kind):
    """All that the loss knows of a policy: over available actions, or an agent's own, alone."""
    batch = make_batch(kind)
    obs, mask, actions, old = (batch[name] for name in ("obs", "action_mask", "actions", "old_policy"))
    actor = make_agents(kind).actor
    with torch.no_grad():
        policy = actor.policy(obs, mask)
        logratio, kl, entropy = actor.compare(old, policy, mask, actions)
        assert not torch.stack(actor.compare(policy, policy, mask, actions)[:2]).any()
    for i in range(N):
        for row in range(20):
            own = mask[i, row]
            before, after = (distribution(kind, x[i, row], own) for x in (old, policy))
            a = actions[i, row]
            a = a.double()[own] if kind is ippo.Gaussian else own[:a].sum()
            expected = after.log_prob(a) - before.log_prob(a), kl_divergence(before, after), after.entropy()
            actual = torch.stack([x[i, row] for x in (logratio, kl, entropy)]).double()
            torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-4, atol=1e-5)


@KINDS
def test_loss_is_the_clipped_surrogate_of_each_agent(kind):
    """PPO's objective, sample by sample: a ratio that is not clipped would show here."""
    agents, batch = make_agents(kind), make_batch(kind)
    loss, parts = ippo.ippo_loss(agents, **batch, args=ippo.Args(ent_coef=0.1, clip_coef=0.2))
    policy = agents.actor.policy(batch["obs"], batch["action_mask"])
    logratio, _, entropy = agents.actor.compare(
        batch["old_policy"], policy, batch["action_mask"], batch["actions"]
    )
    errors, expected, clipped = (agents.value(batch["obs"]) - batch["returns"]).square(), 0.0, 0
    for i in range(N):
        alive = range(590)
        terms = [
            min(r * a, r.clamp(0.8, 1.2) * a)
            for r, a in zip(logratio[i].exp()[:590], batch["advantages"][i], strict=False)
        ]
        means = torch.stack([-torch.stack(terms).mean(), errors[i, alive].mean(), entropy[i, alive].mean()])
        torch.testing.assert_close(parts[:, i], means.detach())
        expected = expected + means[0] + means[1] - 0.1 * means[2]
        clipped += int(((logratio[i].exp() - 1).abs() > 0.2).sum())
    torch.testing.assert_close(loss, expected)
    assert 20 < clipped < N * ROWS - 20


def learned(kind, batch: dict[str, torch.Tensor], **args) -> list[torch.Tensor]:
    """Parameters, betas and statistics, agents first, after an update."""
    agents = make_agents(kind)
    optimizer = torch.optim.Adam(agents.parameters(), 1e-3)
    stats = ippo.update(agents, optimizer, batch, ippo.Args(update_epochs=3, **args))
    return [*(parameter.data for parameter in agents.parameters()), agents.beta, stats.T]


@KINDS
@pytest.mark.parametrize("kl_penalty", [False, True])
def test_agent_update_ignores_other_agents(kind, kl_penalty):
    """Strict decentralization: perturbing one agent's samples leaves the others the same to the last bit."""
    batch, other = make_batch(kind, 0), make_batch(kind, 1)
    perturbed = {name: torch.cat([x[:1], other[name][1:2], x[2:]]) for name, x in batch.items()}
    ours, theirs = (learned(kind, x, kl_penalty=kl_penalty) for x in (batch, perturbed))
    for before, after in zip(ours, theirs, strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(ours[0][1], theirs[0][1])


def test_padding_of_actions_changes_nothing():
    """An agent with fewer joints than another learns as if it were alone."""
    batch = make_batch(ippo.Gaussian)
    padded = dict(batch)
    for name, own in (
        ("actions", batch["action_mask"]),
        ("old_policy", batch["action_mask"].repeat(1, 1, 2)),
    ):
        padded[name] = batch[name] + 3.0 * ~own
    for kl_penalty in (False, True):
        ours, theirs = (learned(ippo.Gaussian, x, kl_penalty=kl_penalty) for x in (batch, padded))
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
        begun, now = make_agents(ippo.Gaussian).actor.log_std[1, 0], ours[0][1, 0]
        assert torch.equal(begun[1:], now[1:]) and not torch.equal(begun[:1], now[:1])


@pytest.mark.parametrize("script", [dpo_mpe, dpo_smac, dpo_mamujoco], ids=lambda script: script.__name__)
def test_kl_penalty_is_dpo_without_the_square_root(script):
    """IPPO-KL is the DPO script's own ablation: what is compared differs in the surrogate, nothing else."""
    kind = ippo.Gaussian if script is dpo_mamujoco else ippo.Categorical
    torch.manual_seed(4)
    ours = ippo.Agents(N, OBS, A, layer_norm=False, actor=kind)
    batch = make_batch(kind)
    if kind is ippo.Gaussian:
        theirs = script.Agents(OBS, (4, 1, 3), layer_norm=False)
        mean, log_std = batch["old_policy"].chunk(2, dim=-1)
        given = {name: batch[name] for name in ("obs", "actions", "advantages", "returns", "weight")}
        given |= dict(old_mean=mean, old_log_std=log_std)
        z = (batch["actions"] - mean) / log_std.exp()
        given["old_logprob"] = -((0.5 * z.square() + log_std) * batch["action_mask"]).sum(-1)
    else:
        if script is dpo_mpe:  # where every action is available
            batch["action_mask"] = torch.ones_like(batch["action_mask"])
            batch["old_policy"] = (
                batch["old_policy"].masked_fill(batch["old_policy"] == 0, -3.0).log_softmax(-1)
            )
        theirs = script.Agents(N, OBS, A, layer_norm=False)
        given = {"old_logp" if name == "old_policy" else name: x for name, x in batch.items()}
        if script is dpo_mpe:
            del given["action_mask"]
    theirs.load_state_dict(dict(ours.named_parameters()), strict=False)
    theirs.betas[1], before = 0.1, [p.detach().clone() for p in ours.parameters()]
    ours.beta += N * 0.1
    args = script.Args(sqrt_kl_term=False, update_epochs=5)
    penalty = {name: getattr(args, name) for name in ("d_target", "delta", "omega", "beta_min", "beta_max")}
    stats = ippo.update(
        ours,
        torch.optim.Adam(ours.parameters(), 5e-4, eps=1e-5),
        batch,
        ippo.Args(kl_penalty=True, update_epochs=5, **penalty),
    )
    optimizer = torch.optim.Adam(theirs.parameters(), 5e-4, eps=1e-5)
    expected = script.update(theirs, optimizer, given, args, N)
    for one, other, begun in zip(ours.parameters(), theirs.parameters(), before, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)
        assert (one - begun).abs().max() > 1e-3
    torch.testing.assert_close(ours.beta / N, theirs.betas[1])
    assert not torch.allclose(ours.beta, torch.full((N,), N * 0.1))  # eq. (21) has moved it
    torch.testing.assert_close(stats[:4], expected[:4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stats[6], expected[4], rtol=1e-3, atol=1e-7)


def test_running_statistics_are_those_of_the_living():
    """A saved agent sees the world through these numbers; what the dead see is padding."""
    norm, samples, alive = ippo.RunningNorm(N, 2), torch.randn(N, 241, 2) * 3 + 5, torch.rand(N, 241) < 0.6
    alive[:, 200:210], alive[2] = False, False
    for part in (slice(0, 200), slice(200, 210), slice(210, 241)):
        norm.add(samples[:, part], alive[:, part])
    for i in range(2):
        own = samples[i, alive[i]]
        torch.testing.assert_close(norm.mean[i, 0], own.mean(0))
        torch.testing.assert_close(norm.var[i, 0], own.var(0, correction=0))
    assert (norm.mean[2] == 0).all() and (norm.var[2] == 1).all() and norm.count[2] == 0


def test_new_statistics_of_returns_leave_values_as_they_are():
    """Else every batch would begin with critics that are wrong by the change of scale."""
    agents, obs, returns = make_agents(), torch.randn(N, 30, OBS), torch.randn(N, 50, 10) * 40 + 300
    before = agents.value(obs)
    scaled = agents.rescale(returns, torch.ones_like(returns, dtype=torch.bool))
    torch.testing.assert_close(agents.value(obs), before, atol=1e-3, rtol=1e-4)
    assert (agents.return_norm.mean > 290).all()
    torch.testing.assert_close(scaled.std((1, 2)), torch.ones(N), atol=1e-2, rtol=0)


def test_continuous_actions_are_clipped_for_the_environment():
    """Actions come to the environment within its bounds, (E, N, D); discrete ones as they are, (E, N)."""
    space = ippo.make_envs("mamujoco/Hopper-3x1", 2).single_action_space
    actions = torch.tensor([-3.0, 0.5]).expand(3, 2)
    assert ippo.to_envs(actions.unsqueeze(-1), space).tolist() == [[[-1.0]] * 3, [[0.5]] * 3]
    assert ippo.to_envs(torch.arange(6).view(3, 2), None).tolist() == [[0, 2, 4], [1, 3, 5]]


# --- presets ----------------------------------------------------------------------------------------------


def parsed(script, *flags: str):
    return script.parse_args([*flags])[0]


FAMILIES = {
    "mpe/line_control": (dpo_mpe, "--task=line_control"),
    "mpe/simple_spread": (dpo_mpe, "--task=simple_spread"),
    "mamujoco/HalfCheetah-3x2": (dpo_mamujoco, "--task=HalfCheetah-3x2"),
    "mamujoco/Humanoid-17x1": (dpo_mamujoco, "--task=Humanoid-17x1"),
    "matrix/stochastic": (dpo_matrix, "--game=stochastic"),
    **{f"smac/{name}": (dpo_smac, f"--map={name}") for name in ("27m_vs_30m", "8m", "2s3z", "3s5z", "MMM2")},
}


@pytest.mark.parametrize("env_id", FAMILIES)
def test_presets_are_the_settings_of_the_family_s_dpo_script(env_id):
    """Else what is published as a comparison of surrogates compares batches, networks or budgets."""
    script, task = FAMILIES[env_id]
    ours, theirs = vars(parsed(ippo, f"--env-id={env_id}")), vars(parsed(script, task))
    both = {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]}
    assert not both and {"learning_rate", "num_envs", "d_target", "beta_min"} <= ours.keys() & theirs.keys()
    assert theirs.get("value_norm", False) == ours["value_norm"]
    no_layer_norm = script in (dpo_mpe, dpo_matrix)  # which have no flag for it
    assert theirs.get("layer_norm", not no_layer_norm) == ours["layer_norm"]
    assert theirs.get("num_steps", theirs.get("num_states")) == ours["num_steps"]


@pytest.mark.parametrize("script", [dpo_mpe, dpo_mamujoco, dpo_smac, dpo_matrix])
def test_presets_name_every_task_that_has_one(script):
    """A preset that only the DPO script has would be a different run here."""
    family = script.__name__.removeprefix("dpo_")
    for task, preset in getattr(script, "PRESETS", {}).items():
        ours = vars(parsed(ippo, f"--env-id={family}/{task}"))
        assert {name: ours[name] for name in preset if name in ours} == preset


def test_there_are_few_flags():
    """More are not read in one sitting."""
    assert len(ippo.fields(ippo.Args)) <= 32


# --- whole runs -------------------------------------------------------------------------------------------


def run(directory: Path, *flags: str, script=ippo) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, script.__file__, f"--runs-dir={directory}", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def only(runs: Path) -> Path:
    (directory,) = runs.iterdir()
    return directory


def rows(directory: Path) -> list[dict[str, str]]:
    with open(directory / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]


@pytest.fixture(scope="module", params=[GAME, HOPPER], ids=["game", "hopper"])
def reference(request, tmp_path_factory) -> tuple[list[str], Path]:
    runs = tmp_path_factory.mktemp("runs")
    result = run(runs, *request.param, *TINY)
    assert result.returncode == 0, result.stderr
    return request.param, only(runs)


def test_shorter_run_resumes_to_the_longer_one_bit_for_bit(reference, tmp_path):
    """A baseline that was preempted is still the baseline: statistics, betas and physics go on."""
    flags, long = reference
    short = [flag for flag in TINY if "total" not in flag]
    assert run(tmp_path, *flags, *short, "--total-timesteps=150").returncode == 0
    directory = only(tmp_path)
    assert run(tmp_path, f"--resume={directory}", "--total-timesteps=300").returncode == 0
    assert rows(directory) == rows(long)
    assert (directory / "done").read_text() == (long / "done").read_text()
    ours, theirs = (torch.load(x / "checkpoint.pt", weights_only=True)["agents"] for x in (directory, long))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    if flags is HOPPER:
        assert (
            theirs["obs_norm.count"].flatten().tolist()
            == [300] * 3
            == theirs["return_norm.count"].flatten().tolist()
        )


def opengl_works() -> bool:
    """Whether MuJoCo itself can draw here without a display."""
    try:
        importlib.import_module("mujoco.egl").GLContext(64, 64).free()
        return True
    except Exception:  # no library, or one without a driver
        return False


def test_saved_run_evaluates_to_the_numbers_of_its_end(reference):
    """A checkpoint without its statistics of observations would evaluate badly."""
    flags, directory = reference
    video = ["--capture-video"] if flags is HOPPER and opengl_works() else []
    result = run(directory.parent, "--eval-only", f"--checkpoint={directory}", *video)
    assert result.returncode == 0, result.stderr
    assert (directory / "video.mp4").exists() == bool(video)
    done = json.loads((directory / "done").read_text())
    assert done == json.loads(result.stdout[result.stdout.index("{") :])
    last = [float(row["eval/episodic_return"]) for row in rows(directory) if row["eval/episodic_return"]][-1]
    if "matrix" in directory.name:  # the last parameters, not the best
        assert abs(done["eval/episodic_return"] - last) < 1e-4


@pytest.mark.parametrize(
    ("script", "task", "env_id"),
    [
        (dpo_mamujoco, ["--task=Hopper-3x1"], "mamujoco/Hopper-3x1"),
        (dpo_mamujoco, ["--task=Hopper-3x1", "--no-value-norm"], "mamujoco/Hopper-3x1"),
        (dpo_mpe, ["--task=simple_spread"], "mpe/simple_spread"),
        (dpo_smac, ["--map=3m", "--backend=embedded"], "smac/3m"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_run_with_the_kl_penalty_is_a_run_of_the_dpo_script(tmp_path, script, task, env_id):
    """From the first observation to the updated policy: same seeds, rollout, advantages, numbers."""
    flags = ["--num-envs=4", "--num-steps=50", "--total-timesteps=400", "--eval-every=100000"]
    same = ["--env-options=backend=embedded"] if script is dpo_smac else [x for x in task if "--no" in x]
    for result in (
        run(tmp_path / "ours", f"--env-id={env_id}", *same, "--kl-penalty", *flags),
        run(tmp_path / "theirs", *task, "--no-sqrt-kl-term", *flags, script=script),
    ):
        assert result.returncode == 0, result.stderr
    ours, theirs = rows(only(tmp_path / "ours")), rows(only(tmp_path / "theirs"))
    assert len(ours) == len(theirs) == 3
    for row, expected in zip(ours, theirs, strict=True):
        both = [name for name in expected if name in row and expected[name] and row[name] != "nan"]
        assert len(both) in (2, 3) or {"losses/policy_loss", "dpo/kl", "dpo/beta2"} <= set(both)
        for name in both:
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-3, abs=1e-4), name


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
        ([*HOPPER, "--delta=1"], "eq. (21)"),
        ([*HOPPER, "--env-options=obs=all"], "khop"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_sentence(tmp_path, monkeypatch, flags, sentence):
    """Bad input costs a user one line to read, and makes no run directory."""
    monkeypatch.setattr(sys, "argv", ["ippo.py", f"--runs-dir={tmp_path / 'runs'}", *flags])
    with pytest.raises(SystemExit) as refusal:
        ippo.main()
    assert sentence in str(refusal.value) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("script", "options"),
    [(ippo, []), (ippo, [CONTINUOUS]), (iddpg, [CONTINUOUS])],
    ids=["ippo", "ippo-continuous", "iddpg"],
)
def test_reward_that_is_not_shared_ends_a_run_with_a_sentence(tmp_path, script, options):
    """Where the environment shows it first, in the middle of a run, no user reads a traceback."""
    flags = ["--env-id=pettingzoo:mpe2.simple_spread_v3", "--num-envs=2", "--total-timesteps=4000"]
    result = run(tmp_path, *flags, *(["--env-options", *options] if options else []), script=script)
    assert result.returncode == 1
    *_, sentence = result.stderr.strip().splitlines()
    assert "Traceback" not in result.stderr
    assert sentence.startswith(f"{script.__name__}: The agents of mpe2.simple_spread_v3 earn unequal rewards")
    assert 'reward="sum"' in sentence


def test_continuous_pettingzoo_environments_are_learned_too(tmp_path):
    """The same script, with what an agent that has left sees kept out of every mean."""
    flags = ["--env-id=pettingzoo:mpe2.simple_spread_v3", "--num-envs=2", "--num-steps=30", "--value-norm"]
    flags += ["--env-options", "reward=mean", CONTINUOUS]
    result = run(tmp_path, *flags, "--total-timesteps=120", "--eval-every=1000")
    assert result.returncode == 0, result.stderr
    last = rows(only(tmp_path))[-1]
    assert all(np.isfinite(float(last[name])) for name in ippo.STATS[:8]) and last["dpo/beta2"] == ""


def test_loss_that_is_not_finite_ends_a_run_with_a_sentence(tmp_path):
    """A diverged Gaussian never reaches the physics, and the checkpoint before it is kept."""
    result = run(tmp_path, *HOPPER, *TINY, "--learning-rate=1e30")
    assert result.returncode == 1 and "the loss is not finite" in result.stderr
    assert "Traceback" not in result.stderr and (only(tmp_path) / "diagnostic.pt").exists()


def test_ippo_learns_the_stochastic_game(tmp_path):
    """Half of what there is to gain over random play is gained within seconds."""
    flags = [*GAME, "--num-envs=16", "--num-steps=6", "--total-timesteps=15000", "--eval-every=15000"]
    assert run(tmp_path, *flags, "--learning-rate=0.002").returncode == 0
    shown = [row["eval/episodic_return"] for row in rows(only(tmp_path))]
    returns = [float(x) for x in shown if x]
    from envs.matrix import StochasticGame

    best = StochasticGame(1, 0, 6, 3, 4).optimum().value
    assert returns[-1] > returns[0] + 0.5 * (best - returns[0])


def test_ippo_learns_to_do_what_it_sees(tmp_path):
    """Random play earns 2 of 8, and so does any constant action: observations must have been used."""
    flags = ["--env-id=pettingzoo:tests.standin.identity", "--num-envs=16", "--num-steps=16"]
    flags += ["--total-timesteps=8000", "--eval-every=4000", "--learning-rate=0.003"]
    assert run(tmp_path, *flags).returncode == 0
    assert json.loads((only(tmp_path) / "done").read_text())["eval/episodic_return"] > 7


def test_ippo_finds_the_better_actions_of_a_matrix_game(tmp_path):
    """Where each agent's better action is better whatever the other does, both find it."""
    flags = [
        "--env-id=matrix/1",
        "--num-envs=64",
        "--num-steps=1",
        "--total-timesteps=6400",
        "--eval-every=6400",
    ]
    assert run(tmp_path, *flags, "--learning-rate=0.01", "--ent-coef=0").returncode == 0
    assert json.loads((only(tmp_path) / "done").read_text())["eval/episodic_return"] > 9.5
