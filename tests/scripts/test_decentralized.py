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


def agents_first(saved: Any) -> list[torch.Tensor]:
    """All tensors (N, ...) of networks, statistics and optimisers in a checkpoint."""
    if isinstance(saved, dict):
        return [x for value in saved.values() for x in agents_first(value)]
    if isinstance(saved, list | tuple):
        return [x for value in saved for x in agents_first(value)]
    return [saved] if isinstance(saved, torch.Tensor) and saved.dim() and len(saved) == N else []


@pytest.mark.parametrize("case", CASES)
def test_whole_training_of_an_agent_ignores_what_another_agent_sees(case, tmp_path, monkeypatch):
    """From rollout to Adam only the reward and the end of the episode are common to the agents."""
    name, kind, flags = CASES[case]
    script = importlib.import_module(name)
    if hasattr(script, "CHUNK"):  # on-policy
        monkeypatch.setattr(script, "CHUNK", 4)
        flags = flags | dict(update_epochs=2) | ({} if name == "dpo_matrix" else dict(num_steps=LIMIT))
    flags = flags | dict(num_envs=E, total_timesteps=5 * E * LIMIT, eval_every=10**6)
    trained, initial = [], {}
    for changed in (False, True):
        torch.manual_seed(0)
        flags["runs_dir"] = str(tmp_path / str(changed))
        agents = make_agents(script, kind)
        initial = {name: p.detach().clone() for name, p in agents.named_parameters()}
        for beta in (x for name, x in agents.named_buffers() if name.startswith("beta")):
            beta += 0.01
        evaluated = 1.0 if name == "dpo_matrix" else recording(kind)
        with undisturbed(script):
            script.train(script.Args(**flags), recording(kind, changed), evaluated, agents, {})
        saved = load(only(tmp_path / str(changed)))
        learned = [saved[key] for key in ("agents", "target", "optimizers", "optimizer") if key in saved]
        trained.append(agents_first(learned))
        for key, before in initial.items():
            after = saved["agents"][key]
            assert all(not torch.equal(before[i], after[i]) for i in range(N)), key
    assert len(trained[0]) >= 3 * len(initial)  # parameters and Adam's two moments of each
    for one, other in zip(*trained, strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])
    parameters = [(x, y) for x, y in zip(*trained, strict=True) if x.dim() == 3 and x.shape[1] > 1]
    assert all(not torch.equal(one[1], other[1]) for one, other in parameters)
