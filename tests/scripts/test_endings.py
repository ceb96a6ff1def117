"""How episodes end reaches advantages and replay buffers: who is cut off bootstraps from what was seen last,
whoever is dead or terminated does not."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch

from tests.scripts.recording import LIMIT, E, recording
from tests.scripts.running import undisturbed
from tests.scripts.test_decentralized import CASES, make_agents

ON_POLICY = [case for case, (script, *_) in CASES.items() if script not in ("iql", "iddpg")]


def watched(kind: str) -> tuple[Any, list[tuple]]:
    """A recording, and what its steps return; of real actions agent 1 dies as an episode is cut off."""
    env, steps = recording(kind), []
    play = env.step

    def step(actions: torch.Tensor) -> tuple:
        result = play(actions)
        if kind == "real" and "final_alive" in result[-1]:
            result[-1]["final_alive"][1] = False
        steps.append(result)
        return result

    env.step = step
    return env, steps


def train(script: Any, env: Any, kind: str, agents: torch.nn.Module, **flags: Any) -> None:
    evaluated = 1.0 if script.__name__ == "dpo_matrix" else recording(kind)
    with undisturbed(script):
        script.train(script.Args(num_envs=E, eval_every=10**6, **flags), env, evaluated, agents, {})


@pytest.mark.parametrize("case", ON_POLICY)
def test_advantages_are_of_how_episodes_ended(case, tmp_path, monkeypatch):
    name, kind, flags = CASES[case]
    script, given = importlib.import_module(name), []
    true_gae = script.gae
    monkeypatch.setattr(script, "gae", lambda *told: given.append(copy.deepcopy(told)) or true_gae(*told))
    torch.manual_seed(0)
    agents = make_agents(script, kind)
    if kind == "real":  # statistics, of which a value that leaves one out is another
        agents.obs_norm.mean += 0.5
        agents.return_norm.mean += 3.0
        agents.obs_norm.var *= 4.0
        agents.return_norm.var *= 25.0
    before = copy.deepcopy(agents)
    env, steps = watched(kind)
    length = {} if name == "dpo_matrix" else dict(num_steps=LIMIT)
    flags = flags | length | dict(gamma=0.8, gae_lambda=0.6, runs_dir=str(tmp_path))
    train(script, env, kind, agents, total_timesteps=E * LIMIT, **flags)
    rewards, values, final_values, terminations, truncations, *_ = given[0]
    assert given[0][-2:] == (0.8, 0.6)
    assert len(given) == 1 and len(steps) == len(rewards) == LIMIT
    norm = getattr(before, "obs_norm", torch.nn.Identity())
    cut = dead = ended = 0
    for t, (obs, reward, terminated, truncated, infos) in enumerate(steps):
        torch.testing.assert_close(values[:, t + 1], before.value(norm(obs)), rtol=1e-4, atol=1e-5)
        assert torch.equal(rewards[t], reward)
        assert torch.equal(terminations[t], terminated) and torch.equal(truncations[t], truncated)
        ended += int(terminated.sum())
        if truncated.any():
            alive = infos["final_alive"][:, truncated]
            last = before.value(norm(infos["final_obs"]))[:, truncated] * alive
            torch.testing.assert_close(final_values[:, t][:, truncated], last, rtol=1e-4, atol=1e-5)
            cut, dead = cut + int(alive.sum()), dead + int((~alive).sum())
    assert cut and (dead or kind in ("choices", "table")) and (ended or kind != "battle")


def kept(script: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """What a script adds to its replay buffer."""
    steps: list[dict[str, torch.Tensor]] = []

    class Watched(script.Replay):
        def add(self, **step: torch.Tensor) -> None:
            steps.append({name: x.clone() for name, x in step.items()})
            super().add(**step)

    monkeypatch.setattr(script, "Replay", Watched)
    return steps


def test_iql_keeps_terminations_alone(tmp_path, monkeypatch):
    """A time limit is no end of the task: its target bootstraps."""
    script = importlib.import_module("iql")
    added, (env, steps) = kept(script, monkeypatch), watched("battle")
    flags = CASES["iql-battle"][2] | dict(total_timesteps=2 * E * LIMIT, runs_dir=str(tmp_path))
    train(script, env, "battle", make_agents(script, "battle"), **flags)
    assert len(added) == len(steps) == 2 * LIMIT
    for own, (_, reward, terminated, _, _) in zip(added, steps, strict=True):
        assert torch.equal(own["terminations"], terminated) and torch.equal(own["rewards"], reward)
    assert any(step[2].any() for step in steps) and any(step[3].any() for step in steps)


def test_iddpg_keeps_what_an_episode_ended_with(tmp_path, monkeypatch):
    """Not the next one's beginning: values would leak from one into the other."""
    script = importlib.import_module("iddpg")
    added, env, steps, seen = kept(script, monkeypatch), recording("real"), [], []
    play = env.step
    env.step = lambda actions: steps.append(play(actions)) or steps[-1]
    flags = CASES["iddpg"][2] | dict(total_timesteps=2 * E * LIMIT, runs_dir=str(tmp_path))
    train(script, env, "real", make_agents(script, "real"), **flags)
    for own, (obs, _, terminated, truncated, infos) in zip(added, steps, strict=True):
        over = terminated | truncated
        assert torch.equal(own["terminations"], terminated)
        assert torch.equal(own["next_obs"][:, ~over], obs[:, ~over])
        if over.any():
            assert torch.equal(own["next_obs"][:, over], infos["final_obs"][:, over])
            assert not torch.equal(infos["final_obs"][:, over], obs[:, over])
            seen.append(truncated.any())
    assert any(seen)
