"""Strict decentralization of whole trainings: what an agent sees never reaches another's parameters."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from tests.scripts.recording import LIMIT, OBS, A, E, N, recording
from tests.scripts.running import load, only, undisturbed

CASES = {
    "dpo_smac": ("dpo_smac", "battle", {}),
    "dpo_mpe": ("dpo_mpe", "choices", {}),
    "dpo_mamujoco": ("dpo_mamujoco", "real", {}),
    "dpo_matrix": ("dpo_matrix", "table", {}),
    "ippo-battle": ("ippo", "battle", {}),
    "ippo-choices": ("ippo", "choices", {}),
    "ippo-real": ("ippo", "real", dict(value_norm=True)),
    "iql-battle": ("iql", "battle", dict(batch_episodes=2, buffer_episodes=8, target_every=3)),
    "iql-choices": ("iql", "choices", dict(batch_episodes=2, buffer_episodes=99, target_every=9)),
    "iddpg": ("iddpg", "real", dict(batch_size=8, buffer_steps=100, warmup_steps=20)),
}


def make_agents(script: Any, kind: str) -> torch.nn.Module:
    """Agents as `main` makes them for a recording."""
    if script.__name__ == "dpo_mamujoco":
        return script.Agents(OBS, (A,) * N)
    if script.__name__ == "iddpg":
        return script.Agents(OBS, (A,) * N, recording(kind).single_action_space)
    if script.__name__ == "iql":
        return script.QNetworks(N, OBS + A, A)
    if script.__name__ == "ippo":
        return script.Agents(N, OBS, A, discrete=kind != "real")
    return script.Agents(N, OBS, A)


def tensors(saved: Any) -> list[torch.Tensor]:
    """All tensors with a first dimension in a part of a checkpoint."""
    if isinstance(saved, dict | list | tuple):
        values = saved.values() if isinstance(saved, dict) else saved
        return [x for value in values for x in tensors(value)]
    return [saved] if isinstance(saved, torch.Tensor) and saved.dim() else []


def own(saved: dict[str, Any], agent: int) -> list[torch.Tensor]:
    """Of one agent the networks, targets, statistics and moments in a checkpoint."""
    optimizers = saved["optimizers"]
    each = len(optimizers) // N  # of agents that learn in groups of one; else all are in one group
    stacks = [saved[key] for key in ("agents", "target") if key in saved] + [optimizers] * (not each)
    found = [x[agent] for x in tensors(stacks) if len(x) == N]
    return found + [x[0] for x in tensors(optimizers[each * agent : each * (agent + 1)])]


@pytest.mark.parametrize(("who", "grouped"), [(1, False), (0, True), (2, True)])
@pytest.mark.parametrize("case", CASES)
def test_whole_training_of_an_agent_ignores_what_another_agent_sees(
    case, who, grouped, tmp_path, monkeypatch
):
    """From rollout to Adam only the reward and the end of the episode are common to the agents.

    grouped: each agent learns in a group of its own, as where there are many.
    """
    name, kind, flags = CASES[case]
    script = importlib.import_module(name)
    if hasattr(script, "CHUNK"):  # on-policy
        monkeypatch.setattr(script, "CHUNK", 4)
        flags = flags | dict(update_epochs=2) | ({} if name == "dpo_matrix" else dict(num_steps=LIMIT))
    for constant in ("GROUP_AGENTS", "GROUP_ROWS"):
        if grouped and hasattr(script, constant):
            monkeypatch.setattr(script, constant, 1)
    flags = flags | dict(num_envs=E, total_timesteps=5 * E * LIMIT, eval_every=10**6)
    saved, initial = [], {}
    for changed in (None, who):
        torch.manual_seed(0)
        flags["runs_dir"] = str(tmp_path / str(changed))
        agents = make_agents(script, kind)
        initial = {name: p.detach().clone() for name, p in agents.named_parameters()}
        for beta in (x for name, x in agents.named_buffers() if name.startswith("beta")):
            beta += 0.01
        evaluated = 1.0 if name == "dpo_matrix" else recording(kind)
        with undisturbed(script):
            script.train(script.Args(**flags), recording(kind, changed), evaluated, agents, {})
        saved.append(load(only(tmp_path / str(changed))))
        for key, before in initial.items():
            after = saved[-1]["agents"][key]
            assert all(not torch.equal(before[i], after[i]) for i in range(N)), key
    kinds = 2 if name == "iddpg" else 1  # of networks with an optimiser of their own
    assert len(saved[0]["optimizers"]) == kinds * (N if grouped else 1)
    for agent in range(N):
        one, other = (own(state, agent) for state in saved)
        assert len(one) >= 3 * len(initial)  # parameters and Adam's two moments of each
        same = [torch.equal(x, y) for x, y in zip(one, other, strict=True)]
        matrices = [equal for x, equal in zip(one, same, strict=True) if x.dim() == 2 and x.shape[0] > 1]
        assert all(same) if agent != who else matrices and not any(matrices)
