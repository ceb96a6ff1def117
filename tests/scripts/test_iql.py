"""iql.py: recurrent networks, double Q-learning, exploration, replay.

What holds for all scripts is tested in test_runs.py.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import iql
from tests.scripts.recording import recording
from tests.scripts.running import finished, load, only, refused, rejected, undisturbed

N, A, OBS, T, B = 3, 4, 6, 5, 7
GAME = ["--env-id=matrix/stochastic", "--env-options", "num_states=6", "num_agents=3", "num_actions=4"]


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


def as_rows(batch: dict, whole: bool = False) -> dict:
    """A batch as `td_loss` takes it; whole: with rows up to T + 1 for every episode."""
    lengths = batch["filled"].sum(0).int()
    seen = lengths + ~batch["terminations"].any(0)  # a truncated one's last observation, too
    order = seen.argsort(descending=True, stable=True)
    lengths, seen = lengths[order], seen[order]
    last = F.one_hot(batch["actions"], A).roll(1, dims=1)
    last[:, 0] = 0
    padded = {"inputs": torch.cat([batch["obs"], last], dim=-1)}
    padded |= {name: batch[name] for name in ("action_mask", "actions", "rewards", "terminations", "filled")}
    own = [(t, b) for t in range(T + 1) for b in range(B) if whole or t < seen[b]]
    steps, places = torch.tensor(own).T
    agents = ("inputs", "action_mask", "actions")
    rows = {
        name: x[:, steps, order[places]] if name in agents else x[steps, order[places]]
        for name, x in padded.items()
    }
    following = [own.index((t + 1, b)) if (t + 1, b) in own else 0 for t, b in own]
    rows |= {"lengths": lengths, "following": torch.tensor(following)}
    return rows if whole else rows | {"active": torch.bincount(steps).tolist()}


def test_stacked_recurrent_networks_are_separate_ones():
    """Each network is PyTorch's Linear, ReLU, GRUCell, Linear; batching changes the arithmetic only."""
    networks = make_networks()
    x, hidden = torch.randn(N, T, B, OBS + A), torch.randn(N, B, iql.HIDDEN)
    q, last = networks(x.flatten(1, 2), hidden, active=[B] * T)
    q = q.view(N, T, B, A)
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
    loss, parts = iql.td_loss(online, target, as_rows(batch), 0.9)
    before = torch.cat([torch.zeros(N, 1, B, A), torch.eye(A)[batch["actions"][:, :-1]]], dim=1)
    inputs, hidden = torch.cat([batch["obs"], before], dim=-1), torch.zeros(N, B, iql.HIDDEN)
    with torch.no_grad():
        every = (inputs.flatten(1, 2), hidden, iql.gru_cell, [B] * (T + 1))
        q, q_target = (networks(*every)[0].view(N, T + 1, B, A) for networks in (online, target))
    total = 0.0
    for i in range(N):
        errors, values, targets = [], [], []
        for b in range(B):
            for t in range(b % T + 1):
                choices = [a for a in range(A) if batch["action_mask"][i, t + 1, b, a]]
                best = max(choices, key=lambda a: q[i, t + 1, b, a].item())
                bootstrap = 0.0 if batch["terminations"][t, b] else 0.9 * q_target[i, t + 1, b, best]
                y = batch["rewards"][t, b] + bootstrap
                values.append(q[i, t, b, batch["actions"][i, t, b]])
                targets.append(y)
                errors.append((values[-1] - y) ** 2)
        torch.testing.assert_close(parts["losses/td_loss"][i], torch.stack(errors).mean())
        torch.testing.assert_close(parts["losses/q_values"][i], torch.stack(values).mean())
        torch.testing.assert_close(parts["losses/td_targets"][i], torch.stack(targets).mean())
        total += torch.stack(errors).mean()
    torch.testing.assert_close(loss.detach(), total)


def test_updates_discount_as_the_flag_says():
    """With the default alone, an update that forgets --gamma would look right."""
    losses, batch = {}, as_rows(make_batch())
    for gamma in (0.5, 0.99):
        online, target = make_networks(0), make_networks(1)
        losses[gamma] = iql.td_loss(online, target, batch, gamma)[1]["losses/td_loss"]
    stats = iql.update(online, target, torch.optim.Adam(online.parameters()), batch, iql.Args(gamma=0.5))
    assert torch.equal(stats["losses/td_loss"], losses[0.5])
    assert not torch.isclose(stats["losses/td_loss"], losses[0.99]).any()


def test_what_lies_behind_the_end_of_an_episode_changes_nothing():
    """On a GPU short episodes are padded to the limit; what is there must not be learned from."""
    batch, other = make_batch(0), make_batch(1)
    after = batch["filled"].cumsum(0) < torch.arange(1, T + 2)[:, None]  # past the final observation
    after[1:] = after[:-1].clone()
    after[0] = False
    changed = {name: x.clone() for name, x in batch.items()}
    changed["obs"][:, after], changed["rewards"][after] = other["obs"][:, after], other["rewards"][after]
    ours, theirs = (
        iql.td_loss(make_networks(0), make_networks(1), as_rows(x, whole=True), 0.9)[1]
        for x in (batch, changed)
    )
    assert after.any() and all(torch.equal(x, theirs[name]) for name, x in ours.items())


def test_episodes_that_have_ended_are_left_out_and_the_loss_is_the_same():
    """Half of a batch of battles lies behind their ends; to compute on it would be to wait for nothing."""
    found = []
    for whole in (False, True):
        batch = as_rows(make_batch(), whole)
        active = [B] * (T + 1) if whole else batch["active"]
        online, rows = make_networks(0), []

        def cell(gates, new_x, new_h, hidden, rows=rows):
            rows.append(len(hidden[0]))
            return iql.gru_cell(gates, new_x, new_h, hidden)

        loss, parts = iql.td_loss(online, make_networks(1), batch, 0.9, cell)
        loss.backward()
        assert rows == 2 * active and (whole or 0 < active[-1] < B)
        found.append([loss.detach(), *parts.values(), *(p.grad for p in online.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_agent_update_ignores_other_agents():
    """Strict decentralization: perturbing one agent's episodes leaves the others the same to the last bit."""

    def learned(batch):
        online = make_networks(0)
        optimizer = torch.optim.Adam(online.parameters(), 1e-3)
        for _ in range(3):
            stats = iql.update(online, make_networks(1), optimizer, as_rows(batch), iql.Args())
        return stats | {name: p.data for name, p in online.named_parameters()}

    batch, other = make_batch(0), make_batch(1)
    changed = {name: x.clone() for name, x in batch.items()}
    for name in ("obs", "action_mask", "actions"):
        changed[name][1] = other[name][1]
    before, after = learned(batch), learned(changed)
    for name, x in before.items():
        assert torch.equal(x[[0, 2]], after[name][[0, 2]]), name
    assert not torch.equal(before["weights.0"][1], after["weights.0"][1])


def sizes(num_envs: int = 1) -> SimpleNamespace:
    """What the replay buffer asks an environment."""
    shape = dict(episode_limit=T, num_agents=N, obs_dim=OBS, num_actions=A, num_envs=num_envs)
    return SimpleNamespace(**shape, single_observation_space=gym.spaces.Box(-np.inf, np.inf, (N, OBS)))


@pytest.mark.parametrize("whole", [False, True])
def test_replay_keeps_the_newest_episodes_and_samples_each_once(whole):
    """The oldest go first; a batch is of different episodes, with the last observation of truncated ones."""
    replay = iql.Replay(iql.Args(buffer_episodes=4, batch_episodes=4), sizes())
    final_mask = torch.rand(6, N, A, generator=torch.Generator().manual_seed(0)) < 0.5
    length = {k: 1 + k % 3 for k in range(6)}
    terminated = {k: k in (2, 3) for k in range(6)}
    for k in range(6):
        for t in range(length[k]):
            seen = dict(obs=torch.full((N, 1, OBS), 10.0 * k + t), actions=torch.full((N, 1), (k + t) % A))
            ends = terminated[k] and t == length[k] - 1
            team = dict(rewards=torch.tensor([float(k)]), terminations=torch.tensor([ends]))
            replay.add(action_mask=torch.arange(A).expand(N, 1, A) == k % A, **seen, **team)
        replay.end(0, torch.full((N, OBS), 10.0 * k + 9), final_mask[k])
    assert sorted(replay.ended["rewards"][:, 0]) == [2, 3, 4, 5] and replay.added == 6
    assert replay.ended["obs"].dtype == np.float16 and not replay.begun["lengths"].any()
    batch = replay.sample(4, np.random.default_rng(0), whole)
    # Rows: of length 3 truncated (5), 3 terminated (2) and 2 truncated (4), and 1 terminated (3).
    active = [4] * (T + 1) if whole else [4, 3, 3, 1]
    assert batch["inputs"].shape == (N, sum(active), OBS + A) and batch["inputs"].dtype == torch.float32
    assert whole or batch["active"] == active
    first = batch["inputs"][0, :4, 0].div(10).int().tolist()
    assert sorted(first) == [2, 3, 4, 5] and first[0] == 5 and first[3] == 3
    assert batch["lengths"].tolist() == [length[k] for k in first]
    assert batch["filled"].sum() == sum(batch["lengths"])
    begin = np.cumsum([0, *active])
    for b, k in enumerate(first):
        for t in range(length[k] + (not terminated[k])):
            row, over = begin[t] + b, t == length[k]
            obs, last = batch["inputs"][:, row].split((OBS, A), dim=-1)
            assert (obs == 10.0 * k + (9 if over else t)).all()
            assert (last == (F.one_hot(torch.tensor((k + t - 1) % A), A) if t else torch.zeros(A))).all()
            assert batch["filled"][row] == (not over)
            mask = final_mask[k] if over else (torch.arange(A) == k % A).expand(N, A)
            assert torch.equal(batch["action_mask"][:, row], mask)
            if not over:
                assert (batch["actions"][:, row] == (k + t) % A).all() and batch["rewards"][row] == k
                assert batch["terminations"][row] == (terminated[k] and t == length[k] - 1)
                assert batch["terminations"][row] or batch["following"][row] == begin[t + 1] + b


@pytest.mark.parametrize("at_the_end", [False, True])
def test_what_an_agent_sees_changes_no_others_precision(at_the_end):
    """A large observation needs single precision: of this agent alone, also across a checkpoint."""
    kept = []
    for large in (2000.0, 2049.0):
        replay = iql.Replay(iql.Args(buffer_episodes=4, batch_episodes=1), sizes())
        for k in range(3):
            obs = torch.full((N, 1, OBS), 0.1)
            final = torch.full((N, OBS), 0.1)
            if k == 1:
                (final if at_the_end else obs)[1] = large
            team = dict(rewards=torch.zeros(1), terminations=torch.zeros(1, dtype=torch.bool))
            mask, actions = torch.ones(N, 1, A, dtype=torch.bool), torch.zeros(N, 1, dtype=torch.int64)
            replay.add(obs=obs, action_mask=mask, actions=actions, **team)
            replay.end(0, final, torch.ones(N, A, dtype=torch.bool))
        restored = iql.Replay(iql.Args(buffer_episodes=4, batch_episodes=1), sizes())
        restored.load_state_dict(replay.state_dict(), begun=True)
        assert (restored.wide == [False, large > 2048, False]).all()
        kept.append(restored.ended["obs"].astype(np.float32)[:3, :2])
    small, wide = kept
    assert (small[:, :, [0, 2]] == wide[:, :, [0, 2]]).all() and (small[:, :, 0] == np.float16(0.1)).all()
    assert wide[2, 0, 1, 0] == np.float32(0.1) and wide[1, int(at_the_end), 1, 0] == 2049


def test_memory_begins_anew_with_an_episode():
    """What one episode taught must not be carried into the next, nor the last action of another."""
    networks = make_networks()
    obs, mask = torch.randn(4, N, 2, OBS), torch.ones(N, 2, A, dtype=torch.bool)
    over = torch.tensor([True, False])

    def play(steps, memory):
        for x in steps:
            actions, hidden = iql.greedy(networks, x, mask, memory)
            memory = iql.remember(actions, hidden, torch.zeros(2, dtype=torch.bool), A)
        return actions, hidden

    actions, hidden = play(obs[:3], networks.empty_carry(2))
    last_action, kept = iql.remember(actions, hidden, over, A)
    assert (last_action[:, 0] == 0).all() and (kept[:, 0] == 0).all()
    assert torch.equal(last_action[:, 1].argmax(-1), actions[:, 1]) and torch.equal(kept[:, 1], hidden[:, 1])
    anew = iql.greedy(networks, obs[3], mask, (last_action, kept))[1]
    first = iql.greedy(networks, obs[3], mask, networks.empty_carry(2))[1]
    on = play(obs, networks.empty_carry(2))[1]
    assert torch.allclose(anew[:, 0], first[:, 0], atol=1e-6) and torch.allclose(
        anew[:, 1], on[:, 1], atol=1e-6
    )
    assert not torch.allclose(anew[:, 1], first[:, 1], atol=1e-3)


@pytest.mark.parametrize("training", [False, True])
def test_networks_are_given_what_was_played_and_their_own_memory(training, tmp_path, monkeypatch):
    """Also of explored actions; else they see in play what they never see in a batch, or the reverse."""
    env, given, played, true = recording("battle"), [], [], iql.greedy
    step = env.step

    def greedy(agents, obs, action_mask, carry):
        actions, hidden = true(agents, obs, action_mask, carry)
        given.append(([x.clone() for x in carry], actions.clone(), hidden.clone()))
        return actions, hidden

    def stepping(actions):
        result = step(actions)
        played.append((actions.clone(), result[2] | result[3]))
        return result

    monkeypatch.setattr(iql, "greedy", greedy)
    env.step = stepping
    torch.manual_seed(0)
    networks = iql.QNetworks(3, env.obs_dim + env.num_actions, env.num_actions)
    if training:
        monkeypatch.setattr(iql, "evaluate", lambda *_: {"eval/episodic_return": 0.0})
        flags = dict(num_envs=4, total_timesteps=120, batch_episodes=2, runs_dir=str(tmp_path))
        with undisturbed(iql):
            iql.train(iql.Args(epsilon_end=0.5, epsilon_steps=60, **flags), env, None, networks, {})
    else:
        iql.evaluate(networks, env, 8, [1, 2])
    assert len(given) == len(played) > 10 and not any(x.any() for x in given[0][0])
    explored = ended = 0
    for (_, chosen, hidden), (actions, over), (carry, *_) in zip(given, played, given[1:], strict=False):
        last_action = torch.eye(env.num_actions)[actions] * ~over[:, None]
        assert torch.equal(carry[0], last_action) and torch.equal(carry[1], hidden * ~over[:, None])
        explored, ended = explored + int((chosen != actions).sum()), ended + int(over.sum())
    assert ended and bool(explored) == training


def test_targets_are_copies_of_the_networks_at_that_episode(tmp_path, monkeypatch):
    """Counted in updates or steps instead, they would follow sooner or later than is said."""
    after: list[dict[str, torch.Tensor]] = []
    true = iql.update

    def watched(agents, *told, **more):
        stats = true(agents, *told, **more)
        after.append({name: x.detach().clone() for name, x in agents.named_parameters()})
        return stats

    monkeypatch.setattr(iql, "update", watched)
    torch.manual_seed(0)
    flags = dict(num_envs=4, total_timesteps=160, batch_episodes=2, eval_every=10**6, target_every=8)
    with undisturbed(iql):
        args = iql.Args(runs_dir=str(tmp_path), **flags)
        iql.train(args, recording("choices"), recording("choices"), iql.QNetworks(3, 11, 5), {})
    target = load(only(tmp_path))["target"]
    # 20 episodes; the first update is with the second of them, the copies at the 8th and the 16th.
    assert len(after) == 19 and after[14].keys() == target.keys()
    assert all(torch.equal(target[name], x) for name, x in after[14].items())
    assert not any(torch.equal(target[name], x) for name, x in after[15].items() if x.shape[1] > 1)


def test_exploration_takes_available_actions_and_draws_alike_whatever_was_chosen():
    """An unavailable action ends a run; draws that depend on others' actions share something."""
    mask = torch.rand(N, 3000, A, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[..., 0] = True
    greedy = mask.float().argmax(-1)
    random, other = (np.random.default_rng(0) for _ in range(2))
    explored = iql.explore(greedy, mask, 1.0, random)
    assert torch.equal(iql.explore(greedy, mask, 0.0, other), greedy)
    assert random.random() == other.random()
    assert mask.gather(-1, explored.unsqueeze(-1)).all()
    free = explored[mask.all(-1)]
    shares = torch.bincount(free, minlength=A) / len(free)
    assert (shares - 1 / A).abs().max() < 0.05
    some = iql.explore(greedy, mask, 0.3, np.random.default_rng(1)) != greedy
    expected = 0.3 * (1 - 1 / mask.sum(-1)).mean().item()
    assert abs(some.float().mean().item() - expected) < 0.02


def test_evaluation_takes_equally_many_episodes_of_each_environment():
    """Counting the first to end would over-represent short battles, mostly lost ones."""
    vector_env, played = recording("battle"), [[] for _ in range(4)]
    step = vector_env.step

    def watched(actions):
        result = step(actions)
        for episode in result[4]["episodes"]:
            played[episode["env"]].append(episode)
        return result

    vector_env.step = watched
    networks = iql.QNetworks(3, vector_env.obs_dim + vector_env.num_actions, vector_env.num_actions)
    result = iql.evaluate(networks, vector_env, 8, [1, 2])
    assert min(map(len, played)) == 2 < max(map(len, played))
    first = [episode["episodic_return"] for own in played for episode in own[:2]]
    assert result["eval/episodic_return"] == pytest.approx(float(np.mean(first)), rel=1e-6)


def test_networks_begin_as_pytorchs_do_each_with_its_own():
    """Uniform within fan_in ** -0.5; agents that begin alike would explore alike."""
    networks = make_networks()
    fans = (OBS + A, *[iql.HIDDEN] * 3)
    for weight, bias, fan_in in zip(networks.weights, networks.biases, fans, strict=True):
        for x in (weight, bias):
            assert x.abs().max() <= fan_in**-0.5 and not torch.equal(x[0], x[1])
        assert weight.var().item() == pytest.approx(1 / (3 * fan_in), rel=0.1)


def test_targets_follow_every_so_many_episodes(tmp_path):
    """A target that jumps at every update, or stays, makes the networks chase themselves."""
    for name, every, same in (("often", 1, True), ("never", 10**6, False)):
        torch.manual_seed(0)
        networks, games = iql.QNetworks(3, 11, 5), [recording("choices") for _ in range(2)]
        begun = {name: x.clone() for name, x in networks.state_dict().items()}
        args = dict(batch_episodes=2, buffer_episodes=8, target_every=every, runs_dir=str(tmp_path / name))
        with undisturbed(iql):
            iql.train(iql.Args(num_envs=4, total_timesteps=160, **args), *games, networks, {})
        saved = load(only(tmp_path / name))
        expected = saved["agents"] if same else begun
        assert all(torch.equal(x, expected[key]) for key, x in saved["target"].items())
        assert not any(torch.equal(x, begun[key]) for key, x in saved["agents"].items())


# Whole runs; what holds for all scripts is in test_runs.py.


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([*GAME, "--buffer-episodes=1000000000"], "lower --buffer-episodes"),
        (["--env-id=pettingzoo:mpe2.simple_spread_v3"], "add --env-options episode_limit=STEPS"),
        (["--env-id=mamujoco/Hopper-3x1"], "continuous actions"),
        (["--env-id=smac/3m", "--env-options=exclude_dead=false"], "the dead are in the loss: drop it"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_sentence(tmp_path, flags, sentence):
    """A run that dies of memory after hours has lost them; and no run directory is made."""
    assert sentence in refused("iql", f"--runs-dir={tmp_path / 'runs'}", *flags)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--batch-episodes=10000"], "--batch-episodes must be at most --buffer-episodes 5000, got 10000"),
        (["--epsilon-start=0.01"], "--epsilon-end must be at most --epsilon-start 0.01, got 0.05"),
        (["--epsilon-start=1.5"], "--epsilon-start must be between 0 and 1, got 1.5"),
        (["--target-every=0"], "--target-every must be between 1 and"),
    ],
)
def test_flags_of_its_own_are_rejected_where_they_make_no_sense(tmp_path, flags, sentence):
    """Bad input costs a user one line to read."""
    assert sentence in rejected("iql", f"--runs-dir={tmp_path / 'runs'}", *flags)
    assert not (tmp_path / "runs").exists()


def test_battles_are_played_and_scored(tmp_path):
    """Dead agents, masked actions, episodes of any length."""
    flags = ["--env-id=smac/3m", "--env-options", "backend=embedded", "--num-envs=4", "--batch-episodes=4"]
    flags += ["--total-timesteps=400", "--eval-every=400", f"--runs-dir={tmp_path}"]
    finished("iql", *flags, EVAL_EPISODES=4)
    done = json.loads((only(tmp_path) / "done").read_text())
    assert set(done) == {"eval/episodic_return", "eval/episodic_length", "eval/win_rate"}


def test_pettingzoo_is_played_and_resumed(tmp_path):
    """Its episodes cannot be saved: a resumed run drops those under way and begins new ones."""
    flags = ["--env-id=pettingzoo:mpe2.simple_spread_v3", "--env-options", "episode_limit=10", "reward=mean"]
    flags += ["--num-envs=4", "--batch-episodes=4", "--total-timesteps=100", "--eval-every=100"]
    finished("iql", *flags, f"--runs-dir={tmp_path}", EVAL_EPISODES=4)
    with pytest.warns(UserWarning, match="new ones have begun"):
        finished("iql", f"--resume={only(tmp_path)}", flags[0], "--total-timesteps=300", EVAL_EPISODES=4)
    state = load(only(tmp_path))
    assert state["global_step"] == 300 and state["replay"]["added"] == 4 * (100 // 40) + 4 * (200 // 40)
    assert (state["replay"]["ended"]["lengths"] == 10).all()


def test_iql_learns_the_best_joint_action(tmp_path):
    """Where each agent's better action is better whatever the other does, both find it."""
    flags = ["--env-id=matrix/1", "--env-options", "payoff=[10, 5, 5, 0]", "--total-timesteps=2000"]
    flags += ["--epsilon-steps=1000", "--eval-every=1000", "--learning-rate=0.002"]
    finished("iql", *flags, f"--runs-dir={tmp_path}")
    assert json.loads((only(tmp_path) / "done").read_text())["eval/episodic_return"] == 10.0


def test_iql_learns_to_do_what_it_sees(tmp_path):
    """Random play earns 2 of 8; the last actions, which are inputs too, are noise here."""
    flags = ["--env-id=pettingzoo:tests.standin.identity", "--env-options", "episode_limit=8", "--num-envs=4"]
    flags += ["--total-timesteps=4000", "--epsilon-steps=2000", "--eval-every=2000", "--learning-rate=0.002"]
    finished("iql", *flags, "--target-every=50", f"--runs-dir={tmp_path}")
    assert json.loads((only(tmp_path) / "done").read_text())["eval/episodic_return"] > 7
