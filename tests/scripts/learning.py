"""Agents of dpo_smac.py, batches made up for them, and all that learning from these leaves behind."""

from __future__ import annotations

import copy

import torch

from dpo_smac import Agents, Args, masked_log_softmax, update

N, OBS, A = 3, 11, 6


def random_mask(*shape: int, generator: torch.Generator) -> torch.Tensor:
    """Random availability, (..., A) bool, with at least one action available."""
    mask = torch.rand(*shape, generator=generator) < 0.6
    mask.scatter_(-1, torch.randint(shape[-1], (*shape[:-1], 1), generator=generator), True)
    return mask


def make_agents(seed: int = 0, beta: float = 0.01, spread: float = 0.2, num_agents: int = N) -> Agents:
    """Agents with non-zero biases and a policy that is not uniform, so that nothing cancels by accident."""
    torch.manual_seed(seed)
    agents = Agents(num_agents, OBS, A)
    with torch.no_grad():
        for parameter in agents.parameters():
            parameter += spread * torch.randn_like(parameter) / parameter.shape[1] ** 0.5
    agents.beta1 += beta
    agents.beta2 += beta
    return agents


def make_batch(agents: Agents, rows: int = 40, seed: int = 1, drift: float = 0.0) -> dict[str, torch.Tensor]:
    """A batch as `train` makes it: about a third of the rows dead; pi_old = the agents' policy plus drift."""
    generator = torch.Generator().manual_seed(seed)
    dtype, n = agents.beta1.dtype, len(agents.beta1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
    obs, alive = draw(n, rows, OBS), torch.rand(n, rows, generator=generator) < 0.7
    mask = random_mask(n, rows, A, generator=generator)
    with torch.no_grad():
        old_logp = masked_log_softmax(agents.actor(obs) + drift * draw(n, rows, A), mask)
    actions = torch.multinomial((old_logp.exp() * mask).flatten(0, 1), 1, generator=generator)
    weight = alive.to(dtype) / alive.sum(1, keepdim=True).clamp(min=1)
    batch = dict(obs=obs, action_mask=mask, actions=actions.view(n, rows), old_logp=old_logp)
    return batch | dict(advantages=draw(n, rows), returns=draw(n, rows), weight=weight)


def adam(agents: Agents, lr: float = 5e-4) -> torch.optim.Adam:
    return torch.optim.Adam(agents.parameters(), lr=lr, eps=1e-5, fused=True)


def learn(agents: Agents, *batches: dict[str, torch.Tensor], **args):
    """Updates a copy of the agents; returns it, its optimiser and all statistics, (N, updates)."""
    agents = copy.deepcopy(agents)
    optimizer = adam(agents)
    options = Args(**{"update_epochs": 3, "max_grad_norm": 0.5} | args)
    return agents, optimizer, stacked([copied(update(agents, optimizer, x, options)) for x in batches])


def copied(stats: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Statistics that the next update does not change; the betas among them are the agents' own."""
    return {name: x.clone() for name, x in stats.items()}


def stacked(stats: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Statistics of several updates, (N, updates) each."""
    return {name: torch.stack([one[name] for one in stats], dim=1) for name in stats[0]}


def everything(agents: Agents, optimizer: torch.optim.Adam, stats: dict) -> dict[str, torch.Tensor]:
    """All that an update leaves behind, agents first: parameters, Adam's moments, betas, statistics."""
    found = {name: p.detach() for name, p in agents.named_parameters()}
    for name, p in agents.named_parameters():
        found |= {f"{name} {key}": optimizer.state[p][key] for key in ("exp_avg", "exp_avg_sq")}
    return found | {"beta1": agents.beta1, "beta2": agents.beta2} | stats
