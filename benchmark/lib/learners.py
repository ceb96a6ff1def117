"""The learners of the scripts on made-up data, and whole scripts for a few updates, to be timed.

The one place of the benchmark that calls functions of the scripts to time them.
"""

from __future__ import annotations

import csv
import importlib
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 3  # of a timed update: as many as tell one epoch from another
UPDATES = 20  # of IQL or IDDPG, timed together: one takes milliseconds, and more while caches are cold


@dataclass(frozen=True)
class Learner:
    """A script's agents and a batch for its `update`: tensors (N, rows, ...)."""

    script: Any
    agents: Any
    batch: dict[str, torch.Tensor]
    sizes: str

    @property
    def flops(self) -> int:
        """6 x parameters x rows x epochs, and 2 for the actor's forward pass of the final KL.

        The usual count of a forward and a backward pass. It takes in the input's gradient, which no first
        layer computes, and leaves out normalisation, losses and Adam.
        """
        rows = self.batch["obs"].shape[1]
        actor, critic = parameters(self.agents.actor), parameters(self.agents.critic)
        return 6 * (actor + critic) * rows * EPOCHS + 2 * actor * rows


def made_up(family: str, name: str, rows: int, device: str) -> Learner:
    """The learner of a task on random data, everyone alive. name: a map, robot, or particle world, also as
    simple_spread/10 for 10 agents."""
    import envs

    task, _, num_agents = name.partition("/")
    options: dict[str, Any] = {"num_agents": int(num_agents)} if num_agents else {}
    options |= {"backend": "embedded"} if family == "smac" else {}
    env: Any = envs.make(f"{family}/{task}", 1, **options)
    N, obs_dim = env.num_agents, env.obs_dim
    script = importlib.import_module(f"dpo_{family}")
    layer_norm = vars(script.Args()).get("layer_norm", False)  # dpo_mpe.py has no such flag
    draw = torch.Generator().manual_seed(0)
    batch = {"obs": torch.randn(N, rows, obs_dim, generator=draw), "weight": torch.full((N, rows), 1 / rows)}
    batch |= {name: torch.randn(N, rows, generator=draw) for name in ("advantages", "returns")}
    A = int(env.num_actions)
    if env.discrete:
        settings = (layer_norm,) if family == "smac" else ()
        agents = script.Agents(N, obs_dim, A, *settings)
        batch["actions"] = torch.randint(A, (N, rows), generator=draw)
        batch["old_logp"] = torch.full((N, rows, A), -float(np.log(A)))
        if family == "smac":
            batch["action_mask"] = torch.ones(N, rows, A, dtype=torch.bool)
    else:
        agents = script.Agents(obs_dim, env.agent_act_dims, layer_norm)
        batch["actions"] = torch.randn(N, rows, A, generator=draw)
        batch["old_mean"] = torch.zeros(N, rows, A)
        batch["old_log_std"] = torch.zeros(N, rows, A)
        batch["logprobs"] = agents.log_prob(batch["old_mean"], batch["actions"]).detach()
    agents.beta1 += 0.01
    agents.beta2 += 0.01
    env.close()
    batch = {name: x.to(device) for name, x in batch.items()}
    return Learner(script, agents.to(device), batch, f"N {N}, obs {obs_dim}, actions {A}")


@dataclass(frozen=True)
class OffPolicy:
    """The networks of iql.py or iddpg.py and a batch for their `update`."""

    script: Any
    agents: Any
    batch: dict[str, torch.Tensor]
    sizes: str
    flops: int
    """2 x parameters x rows for every forward pass, as much again for the gradient of what goes in (of first
    layers, too, though it is never computed), and for that of the parameters"""


OFF_POLICY = {
    "iql 8m": "smac/8m",
    "iql simple_spread": "mpe/simple_spread",
    "iddpg HalfCheetah-3x2": "mamujoco/HalfCheetah-3x2",
    "iddpg Humanoid-17x1": "mamujoco/Humanoid-17x1",
}
"""Which learners of baselines are timed, and where."""


def made_up_baseline(name: str, device: str) -> OffPolicy:
    """A learner of `OFF_POLICY` on random data: a batch of the script's default size.

    IQL's have the rows that its replay buffer draws on a CPU: episodes as long as they can be, and what they
    end with, which is not learned from; battles, which end before, are half as long.
    """
    import envs

    script = importlib.import_module(name.partition(" ")[0])
    options: dict[str, Any] = {"backend": "embedded"} if OFF_POLICY[name].startswith("smac") else {}
    env: Any = envs.make(OFF_POLICY[name], 1, **options)
    N, obs_dim, A = env.num_agents, env.obs_dim, int(env.num_actions)
    draw = torch.Generator().manual_seed(0)
    defaults = script.Args()
    if script.__name__ == "iql":
        steps = env.episode_limit // 2 if options else env.episode_limit
        rows = defaults.batch_episodes * (steps + 1)
        agents = script.QNetworks(N, obs_dim + A, A)
        batch = {"inputs": torch.randn(N, rows, obs_dim + A, generator=draw)}
        batch["action_mask"] = torch.ones(N, rows, A, dtype=torch.bool)
        batch["actions"] = torch.randint(A, (N, rows), generator=draw)
        batch["filled"] = (torch.arange(rows) < defaults.batch_episodes * steps).float()
        batch["lengths"] = torch.full((defaults.batch_episodes,), steps)
        batch["following"] = (torch.arange(rows) + defaults.batch_episodes).clamp(max=rows - 1)
        flops = 8 * rows * parameters(agents)  # both networks forward, one backward
    else:
        rows = defaults.batch_size
        agents = script.Agents(obs_dim, env.agent_act_dims, env.single_action_space)
        batch = {name: torch.randn(N, rows, obs_dim, generator=draw) for name in ("obs", "next_obs")}
        batch["actions"] = 2 * torch.rand(N, rows, A, generator=draw) - 1
        # Targets forward, the critic both ways, and the actor, through a critic that only passes it on.
        flops = rows * (8 * parameters(agents.actor) + 12 * parameters(agents.critic))
    batch["rewards"] = torch.randn(rows, generator=draw)
    batch["terminations"] = torch.zeros(rows, dtype=torch.bool)
    env.close()
    batch = {name: x.to(device) for name, x in batch.items()}
    return OffPolicy(
        script, agents.to(device), batch, f"N {N}, obs {obs_dim}, actions {A}, rows {rows}", flops
    )


def parameters(network: torch.nn.Module) -> int:
    """How many there are, of all agents."""
    return sum(p.numel() for p in network.parameters())


def learner_gflops(learner: Learner | OffPolicy, threads: int, compiled: bool) -> Callable[[], float]:
    """A measurement of the GFLOP/s of `update` as the scripts call it on `threads`; on a GPU its graph."""
    script, batch = learner.script, learner.batch
    cuda = batch["rewards" if isinstance(learner, OffPolicy) else "obs"].is_cuda
    settings: dict[str, Any] = dict(torch_threads=threads, device="cuda" if cuda else "cpu")
    settings |= {"compile": True} if compiled else {}
    count = 1
    if isinstance(learner, OffPolicy):
        count = UPDATES
        groups = script.Learner(learner.agents, script.Args(**settings))
    else:
        # A copy of the loss has a compiler's cache of its own, which keeps the code for few sizes.
        code = script.dpo_loss.__code__.replace()
        loss_fn = types.FunctionType(code, script.dpo_loss.__globals__)
        args = script.Args(**settings, update_epochs=EPOCHS)
        groups = script.Learner(learner.agents, args, loss_fn, batch["weight"].shape[1])

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(count):
            groups.learn(batch)
        if cuda:
            torch.cuda.synchronize()
        return count * learner.flops / (time.perf_counter() - start) / 1e9

    for _ in range(3 if cuda else 1):
        measure()
    return measure


def script_rates(command: list[str], root: Path = ROOT) -> dict[str, float]:
    """charts/SPS and time/* of a script: medians over its log from the fourth row, after all compilation.

    root: the folder of the script.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = [sys.executable, str(root / command[0]), *command[1:], "--runs-dir", folder]
        if code := subprocess.run(run, stdout=subprocess.DEVNULL).returncode:
            raise RuntimeError(f"{' '.join(command)} ended with exit code {code}; what it said is above")
        with open(next(Path(folder).glob("*/metrics.csv"))) as file:
            rows = [row for row in csv.DictReader(file) if row["charts/SPS"]][3:]
    if not rows:
        raise RuntimeError(f"{' '.join(command)} ended before the fourth row of its log; give it more steps")
    keys = ("charts/SPS", "time/env", "time/act", "time/update")
    return {key: float(np.median([float(row[key]) for row in rows])) for key in keys}
