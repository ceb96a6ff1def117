"""ippo.py: its surrogate, per agent, for both kinds of policies; presets; pictures of what it learned.

The learner around it is that of the dpo_*.py scripts, whose tests hold it to its promises; what holds for all
scripts is in test_runs.py.
"""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence

import dpo_mamujoco
import dpo_matrix
import dpo_mpe
import dpo_smac
import ippo
from envs.matrix import StochasticGame
from tests.scripts.running import evaluations, finished, load, only, refused, rejected, rows

N, A, OBS, ROWS = 3, 4, 6, 600  # rows: more than a chunk
GAME = ["--env-id=matrix/stochastic", "--env-options", "num_states=6", "num_agents=3", "num_actions=4"]
HOPPER = ["--env-id=mamujoco/Hopper-3x1", "--num-envs=4", "--num-steps=16", "--update-epochs=1"]
CONTINUOUS = 'env_kwargs={"continuous_actions": true}'
KINDS = pytest.mark.parametrize("discrete", [True, False], ids=["categorical", "gaussian"])


def make_agents(discrete: bool = True, seed: int = 2) -> ippo.Agents:
    torch.manual_seed(seed)
    agents = ippo.Agents(N, OBS, A, discrete)
    for parameter in agents.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return agents


def make_batch(discrete: bool = True, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random samples (N, rows, ...), some of whose ratios lie outside of the clip; the last ten are dead."""
    random = torch.Generator().manual_seed(seed)
    obs, mask = torch.randn(N, ROWS, OBS, generator=random), torch.rand(N, ROWS, A, generator=random) < 0.7
    if not discrete:
        mask = (torch.arange(A) < torch.tensor([4, 1, 3])[:, None])[:, None].expand(N, ROWS, A)
    mask = mask | (torch.arange(A) == 0)
    old = make_agents(discrete, seed=3)
    with torch.no_grad():
        outputs = old.actor(obs)
        policy = old.policy(outputs, mask)
        actions = policy.sample(random)
    advantages, returns = torch.randn(2, N, ROWS, generator=random)
    samples = dict(obs=obs, action_mask=mask, actions=actions, logprobs=policy.log_prob(actions).detach())
    weight = torch.full((N, ROWS), 1 / 590) * (torch.arange(ROWS) < 590)
    return samples | dict(outputs=outputs, advantages=advantages, returns=returns, weight=weight)


def distribution(policy: ippo.Categorical | ippo.Gaussian, i: int, row: int):
    """PyTorch's own for one agent and one row, in float64."""
    own = policy.action_mask[i, row]
    if isinstance(policy, ippo.Categorical):
        return Categorical(logits=policy.logp[i, row][own].double())
    std = policy.log_std[i, 0][own].double().exp()
    return Independent(Normal(policy.mean[i, row][own].double(), std), 1)


@KINDS
def test_ratio_kl_and_entropy_are_those_of_the_policies(discrete):
    """All that the learner knows of a policy: over available actions, or an agent's own, alone."""
    batch = make_batch(discrete)
    mask, actions = batch["action_mask"], batch["actions"]
    old_agents, agents = make_agents(discrete, seed=3), make_agents(discrete)
    with torch.no_grad():
        old = old_agents.policy(batch["outputs"], mask)
        policy = agents.policy(agents.actor(batch["obs"]), mask)
        logratio = policy.log_prob(actions) - old.log_prob(actions)
        found = torch.stack([logratio, policy.kl_from(old), policy.entropy()])
        assert not policy.kl_from(policy).any()
        assert torch.equal(old.log_prob(actions), batch["logprobs"])
    for i in range(N):
        for row in range(20):
            own = mask[i, row]
            before, after = distribution(old, i, row), distribution(policy, i, row)
            a = actions[i, row]
            a = own[:a].sum() if discrete else a.double()[own]
            expected = after.log_prob(a) - before.log_prob(a), kl_divergence(before, after), after.entropy()
            actual = found[:, i, row].double()
            torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-4, atol=1e-5)


@KINDS
def test_samples_come_from_the_policy_and_its_mode_is_the_most_probable(discrete):
    """What is sampled must be what ratios are taken of, or the surrogate's gradient is another one's."""
    agents, batch = make_agents(discrete), make_batch(discrete)
    mask = batch["action_mask"][:, :1].expand(N, 4000, A)
    with torch.no_grad():
        policy = agents.policy(agents.actor(batch["obs"][:, :1]).expand(N, 4000, A), mask)
        actions = policy.sample(torch.Generator().manual_seed(0))
    for i in range(N):
        own = mask[i, 0]
        if discrete:
            shares = torch.bincount(actions[i], minlength=A) / 4000
            probabilities = policy.logp[i, 0].exp() * own
            assert (shares[~own] == 0).all() and (shares - probabilities).abs().max() < 0.04
            assert policy.mode()[i, 0] == probabilities.argmax()
        else:
            error = (actions[i] - policy.mean[i]) / policy.log_std[i].exp()
            assert error.mean(0).abs().max() < 0.08 and (error.std(0) - 1).abs().max() < 0.05
            assert torch.equal(policy.mode()[i], policy.mean[i])


@KINDS
def test_loss_is_the_clipped_surrogate_of_each_agent(discrete):
    """PPO's objective, sample by sample: a ratio that is not clipped would show here."""
    agents, batch = make_agents(discrete), make_batch(discrete)
    samples = {name: x for name, x in batch.items() if name != "outputs"}
    loss, parts = ippo.ippo_loss(agents, **samples, args=ippo.Args(ent_coef=0.1, clip_coef=0.2))
    policy = agents.policy(agents.actor(batch["obs"]), batch["action_mask"])
    ratio, entropy = (policy.log_prob(batch["actions"]) - batch["logprobs"]).exp(), policy.entropy()
    errors, expected, clipped = (agents.value(batch["obs"]) - batch["returns"]).square(), 0.0, 0
    for i in range(N):
        alive = range(590)
        pairs = zip(ratio[i, alive], batch["advantages"][i, alive], strict=True)
        surrogate = torch.stack([min(r * a, r.clamp(0.8, 1.2) * a) for r, a in pairs]).mean()
        means = {"policy_loss": -surrogate, "value_loss": errors[i, alive].mean()}
        means |= {"entropy": entropy[i, alive].mean()}
        for name, mean in means.items():
            torch.testing.assert_close(parts[f"losses/{name}"][i], mean.detach())
        expected = expected + means["policy_loss"] + means["value_loss"] - 0.1 * means["entropy"]
        clipped += int(((ratio[i] - 1).abs() > 0.2).sum())
    torch.testing.assert_close(loss, expected)
    assert 20 < clipped < N * ROWS - 20


def learned(discrete: bool, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters and statistics, agents first, after an update."""
    agents = make_agents(discrete)
    optimizer = torch.optim.Adam(agents.parameters(), 1e-3)
    stats = ippo.update(agents, optimizer, batch, ippo.Args(update_epochs=3))
    return stats | {name: parameter.data for name, parameter in agents.named_parameters()}


@KINDS
def test_agent_update_ignores_other_agents(discrete):
    """Strict decentralization: perturbing one agent's samples leaves the others the same to the last bit."""
    batch, other = make_batch(discrete, 0), make_batch(discrete, 1)
    perturbed = {name: torch.cat([x[:1], other[name][1:2], x[2:]]) for name, x in batch.items()}
    before, after = learned(discrete, batch), learned(discrete, perturbed)
    for name, x in before.items():
        assert torch.equal(x[[0, 2]], after[name][[0, 2]]), name
    assert not torch.equal(before["actor.weights.0"][1], after["actor.weights.0"][1])


@KINDS
def test_momentum_does_not_move_an_agent_without_a_sample(discrete):
    """One that died before the batch began: its gradient is 0, and Adam would go on as it last went."""
    agents = make_agents(discrete)
    optimizer = torch.optim.Adam(agents.parameters(), lr=5e-4, eps=1e-5)
    args = ippo.Args(update_epochs=3)
    ippo.update(agents, optimizer, make_batch(discrete), args)
    batch = make_batch(discrete, seed=5)
    batch["weight"][1] = 0
    before = [x.clone() for x in ippo.what_adam_changes(optimizer)]
    ippo.update(agents, optimizer, batch, args)
    assert len(before) == 3 * len(list(agents.parameters()))
    for x, was in zip(ippo.what_adam_changes(optimizer), before, strict=True):
        assert torch.equal(x[1], was[1]) and not torch.equal(x[0], was[0])


@KINDS
def test_another_agent_s_death_changes_nothing_to_the_last_bit(discrete):
    """Rows are sorted and chunks left out by who is alive: other chunks would round sums otherwise."""
    batch = {name: x.repeat(1, 5, *[1] * (x.dim() - 2)) for name, x in make_batch(discrete).items()}
    rollout = {name: x.view(N, 100, 30, *x.shape[2:]) for name, x in batch.items()}
    results = []
    for samples in (3000, 1700, 1, 0):  # of agent 1; the others have 500
        count = torch.tensor([500, samples, 500]).view(N, 1, 1)
        order = torch.rand(N, 3000, generator=torch.Generator().manual_seed(7)).argsort(1).argsort(1)
        valid = order.view(N, 100, 30) < count
        weight = valid / valid.sum((1, 2), keepdim=True).clamp(min=1)
        results.append(learned(discrete, ippo.samples_first(rollout | {"weight": weight}, valid)))
    for other in results[1:]:
        for name, x in results[0].items():
            assert torch.equal(other[name][[0, 2]], x[[0, 2]]), name
    assert not torch.equal(results[0]["actor.weights.0"][1], results[1]["actor.weights.0"][1])


@KINDS
def test_update_reports_how_far_the_policy_has_moved(discrete):
    """Figures of the trust region are made of these numbers."""
    agents, batch = make_agents(discrete), make_batch(discrete)
    optimizer = torch.optim.Adam(agents.parameters(), 1e-3)
    stats = ippo.update(agents, optimizer, dict(batch), ippo.Args(update_epochs=3, clip_coef=0.2))
    with torch.no_grad():
        policy = agents.policy(agents.actor(batch["obs"]), batch["action_mask"])
        old = make_agents(discrete, seed=3).policy(batch["outputs"], batch["action_mask"])
        if not discrete:  # the old deviation is the one before the update, which is the agents' own
            old.log_std = make_agents(discrete).actor.log_std
        logratio = policy.log_prob(batch["actions"]) - batch["logprobs"]
        expected = {"dpo/kl": policy.kl_from(old), "losses/approx_kl": logratio.exp() - 1 - logratio}
        expected["losses/clip_fraction"] = ((logratio.exp() - 1).abs() > 0.2).float()
    for name, x in expected.items():
        torch.testing.assert_close(stats[name], (batch["weight"] * x).sum(1), rtol=1e-3, atol=1e-5)


def test_padding_of_actions_changes_nothing():
    """An agent with fewer joints than another learns as if it were alone."""
    batch = make_batch(discrete=False)
    padded = dict(batch)
    for name in ("actions", "outputs"):
        padded[name] = batch[name] + 3.0 * ~batch["action_mask"]
    ours, theirs = learned(False, batch), learned(False, padded)
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())
    begun, now = make_agents(discrete=False).actor.log_std[1, 0], ours["actor.log_std"][1, 0]
    assert torch.equal(begun[1:], now[1:]) and not torch.equal(begun[:1], now[:1])


UNCLIPPED = dict(clip_coef=1e12)  # so is the surrogate of DPO without its two terms
BARE = dict(sqrt_kl_term="off", kl_term=False)


@pytest.mark.parametrize("script", [dpo_mpe, dpo_smac, dpo_mamujoco], ids=lambda script: script.__name__)
def test_without_its_clip_the_update_is_that_of_dpo_without_its_terms(script):
    """What is compared differs in the surrogate, nothing else: optimiser, gradient clip, critic, chunks."""
    discrete = script is not dpo_mamujoco
    torch.manual_seed(4)
    ours = ippo.Agents(N, OBS, A, discrete, layer_norm=False)
    batch = make_batch(discrete)
    if script is dpo_mpe:  # where every action is available
        batch["action_mask"] = torch.ones_like(batch["action_mask"])
        chosen = batch["actions"].unsqueeze(-1)
        batch["logprobs"] = batch["outputs"].log_softmax(-1).gather(-1, chosen).squeeze(-1)
    names = {"obs", "actions", "advantages", "returns", "weight"}
    given = {name: x for name, x in batch.items() if name in names}
    if discrete:
        theirs = script.Agents(N, OBS, A, *[False] * (script is dpo_smac))
        given["old_logp"] = dpo_smac.masked_log_softmax(batch["outputs"], batch["action_mask"])
        given |= {"action_mask": batch["action_mask"]} if script is dpo_smac else {}
    else:
        theirs = script.Agents(OBS, (4, 1, 3))
        old_log_std = ours.actor.log_std.detach().expand(-1, ROWS, -1).clone()
        given |= dict(old_mean=batch["outputs"], old_log_std=old_log_std, logprobs=batch["logprobs"])
    theirs.load_state_dict(dict(ours.named_parameters()), strict=False)
    before = [p.detach().clone() for p in ours.parameters()]
    args = ippo.Args(update_epochs=5, **UNCLIPPED)
    stats = ippo.update(ours, torch.optim.Adam(ours.parameters(), 5e-4, eps=1e-5), batch, args)
    optimizer = torch.optim.Adam(theirs.parameters(), 5e-4, eps=1e-5)
    expected = script.update(theirs, optimizer, given, script.Args(update_epochs=5, **BARE))
    for one, other, begun in zip(ours.parameters(), theirs.parameters(), before, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)
        assert (one - begun).abs().max() > 1e-3
    for name in ("losses/policy_loss", "losses/value_loss", "losses/entropy", "losses/grad_norm"):
        torch.testing.assert_close(stats[name], expected[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stats["dpo/kl"], expected["dpo/kl"], rtol=1e-3, atol=1e-7)


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


@pytest.mark.parametrize("script", [ippo, dpo_mamujoco])
def test_what_is_rare_is_clipped_at_ten_standard_deviations(script):
    """A single wild number would else drive an actor, or a critic, anywhere."""
    norm = script.RunningNorm(1, 3)
    norm.mean += 2.0
    norm.var *= 4.0
    seen = norm(torch.tensor([[[102.0, -98.0, 6.0]]]))
    torch.testing.assert_close(seen, torch.tensor([[[10.0, -10.0, 2.0]]]), rtol=0, atol=1e-6)


def test_new_statistics_of_returns_leave_values_as_they_are():
    """Else every batch would begin with critics that are wrong by the change of scale."""
    agents, obs, returns = make_agents(), torch.randn(N, 30, OBS), torch.randn(N, 50, 10) * 40 + 300
    before = agents.value(obs)
    scaled = agents.normalize_returns(returns, torch.ones_like(returns, dtype=torch.bool))
    torch.testing.assert_close(agents.value(obs), before, atol=1e-3, rtol=1e-4)
    assert (agents.return_norm.mean > 290).all()
    torch.testing.assert_close(scaled.std((1, 2)), torch.ones(N), atol=1e-2, rtol=0)


# Presets.


def parsed(script, *flags: str) -> dict:
    return vars(script.parse_args([*flags])[0])


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
    ours, theirs = parsed(ippo, f"--env-id={env_id}"), parsed(script, task)
    theirs["max_grad_norm"] = script.Args.max_grad_norm  # dpo_matrix.py has no flag for it
    both = {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]}
    assert (
        not both
        and {"learning_rate", "num_envs", "gae_lambda", "update_epochs", "max_grad_norm"}
        <= ours.keys() & theirs.keys()
    )
    assert theirs.get("value_norm", False) == ours["value_norm"]
    no_layer_norm = script in (dpo_mpe, dpo_matrix)  # which have no flag for it
    assert theirs.get("layer_norm", not no_layer_norm) == ours["layer_norm"]
    assert theirs.get("num_steps", theirs.get("num_states")) == ours["num_steps"]


def test_presets_are_of_the_same_tasks():
    """A preset that only one of the scripts has would be a different run."""
    scripts = (dpo_mpe, dpo_mamujoco, dpo_smac, dpo_matrix)
    theirs = {task: preset for script in scripts for task, preset in script.PRESETS.items()}
    ours = {task for task in ippo.PRESETS if "/" in task}
    assert ours == theirs.keys() | {"matrix/stochastic"}  # which are dpo_matrix.py's defaults
    for task, preset in theirs.items():
        assert preset.items() <= parsed(ippo, f"--env-id={task}").items()


# Whole runs; what holds for all scripts is in test_runs.py.


def opengl_works() -> bool:
    """Whether MuJoCo itself can draw here without a display."""
    try:
        importlib.import_module("mujoco.egl").GLContext(64, 64).free()
        return True
    except Exception:  # no library, or one without a driver
        return False


def test_statistics_count_every_step_once_and_a_robot_can_be_seen(tmp_path):
    """Also in a run that went on: counted twice, early observations would weigh more for ever."""
    task = ["--env-id=mamujoco/Reacher-2x1", *HOPPER[1:]]  # of short episodes: drawing takes long
    finished("ippo", *task, "--total-timesteps=128", f"--runs-dir={tmp_path}", EVAL_EPISODES=1)
    directory = only(tmp_path)
    finished("ippo", f"--resume={directory}", "--total-timesteps=256", EVAL_EPISODES=1)
    agents = load(directory)["agents"]
    for name in ("obs_norm.count", "return_norm.count"):
        assert agents[name].flatten().tolist() == [256] * 2
    video = ["--capture-video"] if opengl_works() else []
    finished("ippo", "--eval-only", f"--resume={directory}", *video, EVAL_EPISODES=1)
    assert (directory / "video.mp4").exists() == bool(video)


@pytest.mark.parametrize("rows", [2, 3])
@pytest.mark.parametrize("script", [dpo_smac, ippo])
def test_unequal_agents_see_their_numbers_as_they_are(script, rows, tmp_path, monkeypatch):
    """LayerNorm over the team's width, of few numbers and padding, would leave their direction alone."""
    made, make = [], script.Agents
    monkeypatch.setattr(script, "Agents", lambda *sizes: made.append(make(*sizes)) or made[-1])
    task = f"--{'map' if script is dpo_smac else 'env-id'}=pettingzoo:tests.standin.toys"
    tiny = ["--num-envs=2", "--num-steps=6", "--total-timesteps=12", f"--runs-dir={tmp_path}"]
    finished(script.__name__, task, *tiny, f'--env-options=env_kwargs={{"rows": {rows}}}', EVAL_EPISODES=2)
    own = torch.cat([torch.ones(rows), torch.zeros(rows)])
    seen = torch.stack([0.3 * own, 3 * own]).expand(2, 2, 2 * rows)
    assert len(made) == 1
    near, far = made[0].actor(made[0].obs_norm(seen))[0]
    assert (near - far).abs().max() > 1e-4


def test_tabular_games_are_evaluated_exactly_with_the_last_parameters(tmp_path):
    """There the best of noisy evaluations would be luck, and the exact return of the last ones is not."""
    tiny = ["--num-envs=5", "--num-steps=6", "--total-timesteps=300", "--eval-every=150"]
    finished("ippo", *GAME, *tiny, f"--runs-dir={tmp_path}")
    done = json.loads((only(tmp_path) / "done").read_text())
    assert abs(done["eval/episodic_return"] - evaluations(only(tmp_path))[-1]) < 1e-4


@pytest.mark.parametrize(
    ("script", "task", "env_id"),
    [
        ("dpo_mamujoco", ["--task=Hopper-3x1"], "mamujoco/Hopper-3x1"),
        ("dpo_mamujoco", ["--task=Hopper-3x1", "--no-value-norm"], "mamujoco/Hopper-3x1"),
        ("dpo_mpe", ["--task=simple_spread"], "mpe/simple_spread"),
        ("dpo_smac", ["--map=3m", "--backend=embedded"], "smac/3m"),
    ],
    ids=["dpo_mamujoco", "dpo_mamujoco-no-value-norm", "dpo_mpe", "dpo_smac"],
)
def test_without_its_clip_a_run_is_that_of_the_dpo_script_without_its_terms(tmp_path, script, task, env_id):
    """From the first observation to the updated policy: same seeds, rollout, advantages, numbers."""
    flags = ["--num-envs=4", "--num-steps=50", "--total-timesteps=400", "--eval-every=100000"]
    same = ["--env-options=backend=embedded"] if script == "dpo_smac" else [x for x in task if "--no" in x]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    unclipped = [f"--env-id={env_id}", *same, "--clip-coef=1e12", f"--runs-dir={ours}"]
    finished("ippo", *unclipped, *flags, EVAL_EPISODES=2)
    bare = [*task, "--sqrt-kl-term=off", "--no-kl-term", f"--runs-dir={theirs}"]
    finished(script, *bare, *flags, EVAL_EPISODES=2)
    both = list(zip(rows(only(ours)), rows(only(theirs)), strict=True))
    assert len(both) == 4
    for row, expected in both:
        filled = {name for name in expected if row.get(name) and expected[name]}
        assert "eval/episodic_return" in filled or {"losses/policy_loss", "dpo/kl"} < filled
        for name in filled:
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--env-id=smac/2z3s", "--env-options=backend=embedded"], "did you mean"),
        (["--env-options", "num_agents"], "name=value"),
        ([*GAME, "states=3"], "did you mean 'num_states'"),
        ([*GAME, "--num-steps=100"], "give --num-steps 6 or a multiple"),
        ([*HOPPER, "--env-options=obs=all"], "khop"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_sentence(tmp_path, flags, sentence):
    """Bad input costs a user one line to read, and makes no run directory."""
    assert sentence in refused("ippo", f"--runs-dir={tmp_path / 'runs'}", *flags)
    assert not (tmp_path / "runs").exists()


def test_flags_of_its_own_are_rejected_where_they_make_no_sense(tmp_path):
    """With a clip of 0 nothing would be learned, for hours."""
    said = rejected("ippo", f"--runs-dir={tmp_path / 'runs'}", "--clip-coef=0")
    assert "--clip-coef must be between" in said and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("ippo", ["--env-id"]),
        ("ippo", ["--env-id", CONTINUOUS]),
        ("iddpg", ["--env-id", CONTINUOUS]),
        ("dpo_smac", ["--map"]),
        ("dpo_mamujoco", ["--task", CONTINUOUS]),
    ],
    ids=["ippo", "ippo-continuous", "iddpg", "dpo_smac", "dpo_mamujoco"],
)
def test_reward_that_is_not_shared_ends_a_run_with_a_sentence(tmp_path, script, flags):
    """Where the environment shows it first, in the middle of a run, no user reads a traceback."""
    task, *options = flags
    tiny = ["--num-envs=2", "--total-timesteps=4000", f"--runs-dir={tmp_path}"]
    tiny += ["--env-options", *options] if options else []
    said = refused(script, f"{task}=pettingzoo:mpe2.simple_spread_v3", *tiny)
    assert said.startswith(f"{script}: The agents of mpe2.simple_spread_v3 earn unequal rewards")
    assert 'reward="sum"' in said


def test_continuous_pettingzoo_environments_are_played_too(tmp_path):
    """The same script, with what an agent that has left sees kept out of every mean."""
    flags = ["--env-id=pettingzoo:mpe2.simple_spread_v3", "--num-envs=2", "--num-steps=30", "--value-norm"]
    flags += ["--env-options", "reward=mean", CONTINUOUS, "--total-timesteps=120", "--eval-every=1000"]
    finished("ippo", *flags, f"--runs-dir={tmp_path}", EVAL_EPISODES=2)
    *_, last, evaluation = rows(only(tmp_path))
    assert evaluation["eval/episodic_return"]
    assert all(np.isfinite(float(x)) for name, x in last.items() if name.startswith(("losses/", "dpo/")))


def test_ippo_learns_the_stochastic_game(tmp_path):
    """Half of what there is to gain over random play is gained within seconds."""
    flags = [*GAME, "--num-envs=16", "--num-steps=6", "--total-timesteps=15000", "--eval-every=15000"]
    finished("ippo", *flags, "--learning-rate=0.002", f"--runs-dir={tmp_path}")
    first, *_, last = evaluations(only(tmp_path))
    best = StochasticGame(1, 0, 6, 3, 4).optimum().value
    assert last > first + 0.5 * (best - first)


@pytest.mark.parametrize(
    ("script", "task", "least"), [("ippo", "env-id", 5.5), ("dpo_mamujoco", "task", 4.7)]
)
def test_gaussian_policies_learn_to_point_where_they_are_shown(tmp_path, script, task, least):
    """Those that do not learn would pass every test of their formulas."""
    flags = [f"--{task}=pettingzoo:tests.standin.pointing", "--num-envs=8", "--num-steps=32"]
    flags += ["--total-timesteps=6144", "--eval-every=3072", "--learning-rate=0.002"]
    finished(script, *flags, f"--runs-dir={tmp_path}", EVAL_EPISODES=8)
    first, *_, last = evaluations(only(tmp_path))
    assert first < 4 and last > least


def test_ippo_learns_to_do_what_it_sees(tmp_path):
    """Random play earns 2 of 8, and so does any constant action: observations must have been used."""
    flags = ["--env-id=pettingzoo:tests.standin.identity", "--num-envs=16", "--num-steps=16"]
    flags += ["--total-timesteps=8000", "--eval-every=4000", "--learning-rate=0.003"]
    finished("ippo", *flags, f"--runs-dir={tmp_path}")
    assert json.loads((only(tmp_path) / "done").read_text())["eval/episodic_return"] > 7


def test_ippo_finds_the_better_actions_of_a_matrix_game(tmp_path):
    """Where each agent's better action is better whatever the other does, both find it."""
    flags = ["--env-id=matrix/1", "--env-options", "payoff=[10, 5, 5, 0]", "--num-envs=64", "--num-steps=1"]
    flags += ["--total-timesteps=6400", "--eval-every=6400", "--learning-rate=0.01", "--ent-coef=0"]
    finished("ippo", *flags, f"--runs-dir={tmp_path}")
    assert json.loads((only(tmp_path) / "done").read_text())["eval/episodic_return"] > 9.5


def test_explained_variance_of_returns_that_do_not_vary_is_nothing(tmp_path):
    """0, not minus 1e14, which no plot survives."""
    flags = ["--env-id=matrix/1", "--env-options", "payoff=[0, 0, 0, 0]", "--num-steps=4", "--num-envs=4"]
    finished("ippo", *flags, "--gamma=0", "--total-timesteps=32", f"--runs-dir={tmp_path}")
    assert evaluations(only(tmp_path), "losses/explained_variance") == [0.0, 0.0]
