"""iddpg.py: targets, Polyak averaging, replay, padding, bounds.

What holds for all scripts is tested in test_runs.py.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

import iddpg
from tests.scripts.running import evaluations, finished, load, only, refused, rejected

OBS, ROWS, ACT_DIMS = 6, 50, (3, 1, 2)
N, D = len(ACT_DIMS), max(ACT_DIMS)
BOUNDS = gym.spaces.Box(-1.0, 1.0, (N, D), np.float32)


def make_agents(seed: int = 0) -> iddpg.Agents:
    torch.manual_seed(seed)
    agents = iddpg.Agents(OBS, ACT_DIMS, BOUNDS)
    for parameter in agents.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return agents


def make_batch(seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, N, ROWS, OBS, generator=random)
    actions = torch.rand(N, ROWS, D, generator=random) * make_agents().act_mask
    rewards, ends = torch.randn(ROWS, generator=random), torch.rand(ROWS, generator=random) < 0.3
    return dict(obs=obs, next_obs=next_obs, actions=actions, rewards=rewards, terminations=ends)


def adams(agents: iddpg.Agents) -> list[torch.optim.Adam]:
    return [torch.optim.Adam(x.parameters(), 1e-3) for x in (agents.actor, agents.critic)]


def learned(batch: dict[str, torch.Tensor], steps: int = 3) -> dict[str, torch.Tensor]:
    """Parameters, target parameters and statistics, agents first, after some updates."""
    agents, target = make_agents(0), make_agents(1)
    optimizers = adams(agents)
    for _ in range(steps):
        stats = iddpg.update(agents, target, optimizers, batch, iddpg.Args())
    targets = {f"target {name}": p.data for name, p in target.named_parameters()}
    return stats | targets | {name: p.data for name, p in agents.named_parameters()}


def test_critics_learn_the_target_of_their_own_next_action():
    """y = r + gamma Q'(o', pi'(o')), cut by termination alone, each agent from its own observation."""
    agents, target, batch = make_agents(0), make_agents(1), make_batch()
    total, parts = iddpg.critic_loss(agents, target, batch, 0.9)
    loss, q = parts["losses/value_loss"], parts["losses/q_values"]
    torch.testing.assert_close(total.detach(), loss.sum())
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


def test_updates_discount_as_the_flag_says():
    """With the default alone, an update that forgets --gamma would look right."""
    agents, target, batch = make_agents(0), make_agents(1), make_batch()
    half, usual = (iddpg.critic_loss(agents, target, batch, x)[1]["losses/value_loss"] for x in (0.5, 0.99))
    stats = iddpg.update(agents, target, adams(agents), batch, iddpg.Args(gamma=0.5))
    assert torch.equal(stats["losses/value_loss"], half)
    assert not torch.isclose(stats["losses/value_loss"], usual).any()


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
    torch.testing.assert_close(loss.detach(), parts["losses/policy_loss"].sum())
    with torch.no_grad():
        before = agents.value(batch["obs"], agents.act(batch["obs"])).mean()
        for parameter, gradient in zip(agents.actor.parameters(), actual, strict=True):
            parameter -= 0.01 * gradient
        assert agents.value(batch["obs"], agents.act(batch["obs"])).mean() > before


def test_targets_follow_by_polyak_averaging():
    """A target that jumps, or stays, makes the critics chase themselves."""
    agents, target = make_agents(0), make_agents(1)
    before = [p.detach().clone() for p in target.parameters()]
    iddpg.update(agents, target, adams(agents), make_batch(), iddpg.Args(tau=0.1))
    for old, new, ours in zip(before, target.parameters(), agents.parameters(), strict=True):
        torch.testing.assert_close(new.data, 0.9 * old + 0.1 * ours.data)


def test_agent_update_ignores_other_agents():
    """Strict decentralization: perturbing one agent's steps leaves the others the same to the last bit."""
    batch, other = make_batch(0), make_batch(1)
    changed = {name: x.clone() for name, x in batch.items()}
    for name in ("obs", "next_obs", "actions"):
        changed[name][1] = other[name][1]
    before, after = learned(batch), learned(changed)
    for name, x in before.items():
        assert torch.equal(x[[0, 2]], after[name][[0, 2]]), name
    for network in ("actor", "critic", "target actor", "target critic"):
        assert not torch.equal(before[f"{network}.weights.0"][1], after[f"{network}.weights.0"][1])


def test_padded_actions_are_zero():
    """An agent with fewer joints than another has no say, and no gradient, where it has none."""
    agents = make_agents()
    actions = agents.act(torch.randn(N, ROWS, OBS))
    for i, dim in enumerate(ACT_DIMS):
        assert (actions[i, :, dim:] == 0).all() and (actions[i, :, :dim] != 0).all()
    (gradient,) = torch.autograd.grad(actions.sum(), agents.actor.weights[-1])
    assert (gradient[1, :, 1:] == 0).all() and (gradient[1, :, :1] != 0).any()


def test_actions_fill_the_environment_s_bounds():
    """A torque range that is used in half is a weaker robot, and one that is left, a clipped gradient."""
    bounds = gym.spaces.Box(np.float32([[-2, 0], [-1, 5]]), np.float32([[4, 1], [1, 9]]))
    agents = iddpg.Agents(OBS, (2, 2), bounds)
    for value, edge in ((-1.0, bounds.low), (1.0, bounds.high), (0.0, (bounds.low + bounds.high) / 2)):
        actions = agents.to_bounds(torch.full((2, 7, 2), value))
        torch.testing.assert_close(actions, torch.from_numpy(edge)[:, None].expand(2, 7, 2))
    for parameter in agents.actor.parameters():
        parameter.data += torch.randn_like(parameter)
    actions = iddpg.greedy(agents, 10 * torch.randn(2, 100, OBS), torch.ones(0)).detach()
    assert all(action in bounds for action in actions.transpose(0, 1).numpy())


def test_exploration_is_uniform_at_first_and_noise_on_the_policy_after():
    """Draws must be the same whatever is done with them, or resumed and longer runs would differ."""
    mask = make_agents().act_mask
    actions = make_agents().act(torch.randn(N, 2000, OBS)).detach()
    args = iddpg.Args(warmup_steps=100, exploration_noise=0.1)
    first, later, silent = (np.random.default_rng(0) for _ in range(3))
    uniform = iddpg.explore(actions, mask, args, 99, first)
    noisy = iddpg.explore(actions, mask, args, 100, later)
    still = iddpg.explore(actions, mask, iddpg.Args(warmup_steps=0, exploration_noise=0), 0, silent)
    assert first.random() == later.random() == silent.random()
    assert torch.equal(still, actions)
    for x in (uniform, noisy):
        assert (x * ~mask == 0).all() and x.abs().max() <= 1 and x.dtype == torch.float32
    own = mask.expand_as(actions)
    assert abs(uniform[own].mean()) < 0.05 and abs(uniform[own].std() - 3**-0.5) < 0.02
    error = (noisy - actions)[own & (actions.abs() < 0.6)]
    assert abs(error.mean()) < 0.01 and abs(error.std() - 0.1) < 0.01


def test_replay_keeps_the_newest_steps():
    """The oldest go first, also where several environments write across the end."""
    sizes = SimpleNamespace(num_agents=N, obs_dim=OBS, num_actions=D)
    replay = iddpg.Replay(iddpg.Args(buffer_steps=10), sizes, 100)
    for k in range(6):
        rewards = torch.arange(3 * k, 3 * k + 3).float()
        obs, actions = rewards.expand(N, 3)[..., None].expand(N, 3, OBS), torch.zeros(N, 3, D)
        step = dict(obs=obs, next_obs=obs + 0.5, actions=actions, rewards=rewards)
        replay.add(**step, terminations=rewards > 99)
    assert sorted(replay.data["rewards"]) == list(range(8, 18)) and replay.added == 18
    batch = replay.sample(400, np.random.default_rng(0))
    assert set(batch["rewards"].tolist()) == set(range(8, 18)) and batch["obs"].shape == (N, 400, OBS)
    expected = batch["rewards"].expand(N, 400)[..., None].expand(N, 400, OBS)
    assert torch.equal(batch["obs"], expected) and torch.equal(batch["next_obs"], expected + 0.5)
    restored = iddpg.Replay(iddpg.Args(buffer_steps=10), sizes, 100)
    restored.load_state_dict(replay.state_dict())
    again = restored.sample(400, np.random.default_rng(0))
    assert all(torch.equal(again[name], x) for name, x in batch.items()) and restored.added == 18


def test_a_short_run_takes_the_memory_of_a_short_run(tmp_path):
    """Humanoid's million steps are 13 GB: a try of 10,000 would be refused on a small machine."""
    sizes = SimpleNamespace(num_agents=2, obs_dim=3, num_actions=1)
    assert iddpg.Replay(iddpg.Args(buffer_steps=10**9), sizes, 500).capacity == 500
    # Lengthened, it goes on as a run that was as long from the first: nothing was overwritten yet.
    flags = ["--env-id=mamujoco/Hopper-3x1", "--num-envs=4", "--warmup-steps=40", "--batch-size=8"]
    flags += ["--buffer-steps=120", "--eval-every=1000"]
    for name, first in (("whole", 200), ("parts", 80)):
        finished(
            "iddpg", *flags, f"--runs-dir={tmp_path / name}", f"--total-timesteps={first}", EVAL_EPISODES=4
        )
    parts = only(tmp_path / "parts")
    finished("iddpg", "--resume", parts, "--total-timesteps=200", EVAL_EPISODES=4)
    ours, theirs = load(parts), load(only(tmp_path / "whole"))
    assert all(torch.equal(x, theirs["agents"][name]) for name, x in ours["agents"].items())
    assert len(ours["replay"]["data"]["rewards"]) == 120


# Whole runs; what holds for all scripts is in test_runs.py.


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--env-id=smac/3m", "--env-options=backend=embedded"], "discrete actions"),
        (["--env-id=mamujoco/Hoper-3x1"], "Hopper-3x1"),
        (
            ["--env-id=mamujoco/Hopper-3x1", "--buffer-steps=1000000000", "--total-timesteps=1000000000"],
            "lower --buffer-steps",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_sentence(tmp_path, flags, sentence):
    """Bad input costs a user one line to read, and makes no run directory."""
    assert sentence in refused("iddpg", f"--runs-dir={tmp_path / 'runs'}", *flags)
    assert not (tmp_path / "runs").exists()


def test_flags_of_its_own_are_rejected_where_they_make_no_sense(tmp_path):
    """Targets that never move are nothing to learn from."""
    said = rejected("iddpg", f"--runs-dir={tmp_path / 'runs'}", "--tau=0")
    assert "--tau must be between" in said and "and 1, got 0.0" in said
    assert not (tmp_path / "runs").exists()


def test_iddpg_learns_to_point_where_it_is_shown(tmp_path):
    """The best constant action earns 4 of 8, and so do untrained agents: observations must have been used."""
    flags = ["--env-id=pettingzoo:tests.standin.pointing", "--total-timesteps=1000", "--warmup-steps=500"]
    flags += ["--batch-size=64", "--eval-every=1000", "--learning-rate=0.002", f"--runs-dir={tmp_path}"]
    finished("iddpg", *flags, EVAL_EPISODES=8)
    assert json.loads((only(tmp_path) / "done").read_text())["eval/episodic_return"] > 7
    assert evaluations(only(tmp_path))[0] < 5
