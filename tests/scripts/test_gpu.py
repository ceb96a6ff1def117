"""What a GPU needs of the learners, told without one where that is possible; --compile changes nothing.

PyTorch's `meta` device has shapes and no numbers: whatever reads a number back, which makes the host wait for
a GPU and cannot be part of a CUDA graph, raises an error there.
"""

import copy
import csv
import functools
import importlib
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import dpo_mamujoco
import dpo_mpe
import dpo_smac
import ippo
import iql
from tests.scripts import running
from tests.scripts.running import CLOCK, ROOT, finished, load, only

N, OBS, A = 3, 10, 4
DPO = (dpo_smac, dpo_mpe, dpo_mamujoco)
LEARNERS = pytest.mark.parametrize(
    ("script", "settings"),
    [(script, {"sqrt_kl_term": term}) for script in DPO for term in ("state", "average")] + [(ippo, {})],
    ids=lambda x: getattr(x, "__name__", "") or "".join(x.values()),
)
HOST_COMPILER = pytest.mark.skipif(
    not (shutil.which("gcc") or shutil.which("clang")), reason="needs a compiler"
)
COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
ON_CPU = {"cpp_wrapper": True}  # what --compile asks of torch.compile there
Tensors = dict[str, torch.Tensor]


def made_up(script: ModuleType, rows: int, device: str = "cpu") -> tuple[torch.nn.Module, Tensors]:
    """Agents, and a batch of random samples (N, rows, ...) for a script's `update`; some actions masked."""
    draw = torch.Generator().manual_seed(0)
    batch = {"obs": torch.randn(N, rows, OBS, generator=draw), "weight": torch.full((N, rows), 1 / rows)}
    batch |= {name: torch.randn(N, rows, generator=draw) for name in ("advantages", "returns")}
    if script is dpo_mamujoco:
        agents, old = script.Agents(OBS, (A,) * N), torch.randn(N, rows, A, generator=draw)
        batch |= {"actions": old + torch.randn(N, rows, A, generator=draw), "old_mean": old}
        batch |= {"old_log_std": torch.zeros(N, rows, A)}
        batch["logprobs"] = agents.log_prob(old, batch["actions"]).detach()
    else:
        agents, logits = script.Agents(N, OBS, A), torch.randn(N, rows, A, generator=draw)
        batch["actions"], logp = torch.randint(A, (N, rows), generator=draw), logits.log_softmax(-1)
        if script is not dpo_mpe:
            mask = torch.rand(N, rows, A, generator=draw) < 0.7
            batch["action_mask"] = mask.scatter(-1, batch["actions"].unsqueeze(-1), True)
            logp = script.masked_log_softmax(logits, batch["action_mask"])
        if script is ippo:
            batch["logprobs"] = logp.gather(-1, batch["actions"].unsqueeze(-1)).squeeze(-1)
            batch["outputs"] = logits
        else:
            batch["old_logp"] = logp
    for beta in (x for name, x in agents.named_buffers() if name.startswith("beta")):
        beta += 0.01
    return agents.to(device), {name: x.to(device) for name, x in batch.items()}


def adam(agents: torch.nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(agents.parameters(), lr=5e-4, eps=1e-5)  # fused=True refuses `meta`


def double(x: torch.Tensor) -> torch.Tensor:
    return x.double() if x.is_floating_point() else x


@LEARNERS
def test_update_never_waits_for_the_device(script, settings, monkeypatch):
    """A wait in each update is what makes small networks slow on a GPU; in the second Adam has moments, which
    agents without samples keep."""
    agents, batch = made_up(script, 64, "meta")
    optimizer, args = adam(agents), script.Args(update_epochs=2, **settings)
    # Chunks without samples are left out on a CPU only, where `update` sees that it is on one.
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda x: x.device.type == "meta"))
    for _ in range(2):
        stats = script.update(agents, optimizer, batch, args)
        assert {"losses/policy_loss", "losses/value_loss", "losses/grad_norm", "dpo/kl"} < stats.keys()
        assert all(x.device.type == "meta" and x.shape == (N,) for x in stats.values())


def test_a_wait_would_be_noticed():
    with pytest.raises(RuntimeError, match="meta"):
        torch.zeros(3, device="meta").sum().item()


def test_advantages_and_batches_never_wait_for_the_device():
    rewards, values = torch.zeros(6, 2, device="meta"), torch.zeros(5, 7, 2, device="meta")
    final_values, ends = values[:, 1:], (rewards.bool(), rewards.bool())
    advantages, returns = dpo_mpe.gae(rewards, values, final_values, *ends, 0.99, 0.95)
    assert dpo_mpe.standardize(advantages).shape == returns.shape == (5, 6, 2)
    advantages, returns, valid = dpo_smac.gae(rewards, values, final_values, *ends, values.bool(), 0.99, 0.95)
    weight = valid / valid.sum((1, 2), keepdim=True).clamp(min=1)
    batch = dict(advantages=dpo_smac.standardize(advantages, weight), returns=returns, weight=weight)
    rows = dpo_smac.samples_first(batch, valid)
    assert all(x.device.type == "meta" and x.shape == (5, 12) for x in rows.values())


@COMPILER
@pytest.mark.parametrize("script", [dpo_mpe, dpo_mamujoco], ids=lambda script: script.__name__)
def test_compiled_dpo_update_agrees_with_eager(script):
    """Statistics and parameters after three steps on two chunks, in float64, where rounding hides nothing.

    dpo_smac.py has its own, with masks, in test_learner.py.
    """
    results = []
    for compiled in (False, True):
        torch.manual_seed(1)
        agents, batch = made_up(script, 2 * 2 * script.CHUNK)
        agents, batch = agents.double(), {name: double(x) for name, x in batch.items()}
        loss_fn = torch.compile(script.dpo_loss, options=ON_CPU) if compiled else script.dpo_loss
        optimizer = torch.optim.SGD(agents.parameters(), lr=0.1)  # Adam divides by gradients that may be 0
        stats = script.update(agents, optimizer, batch, script.Args(update_epochs=3), loss_fn)
        results.append(stats | dict(agents.named_parameters()))
    eager, compiled = results
    for name, x in eager.items():
        assert torch.allclose(compiled[name], x, rtol=1e-7, atol=1e-10), name


@COMPILER
def test_compiled_ippo_loss_agrees_with_eager():
    torch.manual_seed(1)
    agents, batch = made_up(ippo, 64)
    del batch["outputs"]
    results = []
    for loss_fn in (ippo.ippo_loss, torch.compile(ippo.ippo_loss, options=ON_CPU)):
        agents.zero_grad()
        loss, parts = loss_fn(agents, **batch, args=ippo.Args())
        loss.backward()
        results.append([loss.detach(), *parts.values(), *(p.grad.clone() for p in agents.parameters())])
    for eager, compiled in zip(*results, strict=True):
        assert torch.allclose(compiled, eager, rtol=1e-4, atol=1e-5)


@COMPILER
def test_compiled_gru_cell_agrees_with_eager():
    results = []
    for cell in (iql.gru_cell, torch.compile(iql.gru_cell, options=ON_CPU)):
        torch.manual_seed(1)
        x = [torch.randn(3, 4, k * iql.HIDDEN, dtype=torch.float64, requires_grad=True) for k in (2, 1, 1, 1)]
        hidden = cell(*x)
        results.append([hidden, *torch.autograd.grad(hidden.square().sum(), x)])
    for eager, compiled in zip(*results, strict=True):
        assert torch.allclose(compiled, eager, rtol=1e-10, atol=1e-12)


def train(directory: Path, *flags: str) -> list[dict[str, float]]:
    """A tiny run of dpo_mpe.py; its rows that tell of an update."""
    tiny = [
        "--num-agents=10",
        "--num-envs=8",
        "--total-timesteps=600",
        "--eval-every=600",
        f"--runs-dir={directory}",
    ]
    groups = dict(GROUP_AGENTS=4, GROUP_ROWS=1)  # three: of three, three and four agents
    finished("dpo_mpe", *tiny, *flags, EVAL_EPISODES=2, **groups)
    with open(only(directory) / "metrics.csv") as file:
        return [
            {name: float(x) for name, x in row.items() if x and name not in CLOCK}
            for row in csv.DictReader(file)
            if row["losses/value_loss"]
        ]


def close(first: list[dict[str, float]], second: list[dict[str, float]]) -> None:
    """The same first update; later ones only finite, for rounding grows from update to update."""
    assert first[0].keys() == second[0].keys()
    assert list(first[0].values()) == pytest.approx(list(second[0].values()), rel=1e-2, abs=1e-4)
    assert np.isfinite([list(row.values()) for row in second]).all() and len(first) == len(second) == 3


@COMPILER
def test_compiled_training_of_groups_has_the_same_bits_on_any_threads_and_agrees_with_eager(tmp_path):
    once, *others = (train(tmp_path / x, "--compile", f"--torch-threads={x}") for x in ("2", "1", "3"))
    assert others == [once, once]
    assert len(torch.load(only(tmp_path / "2") / "checkpoint.pt")["optimizers"]) == 3
    close(train(tmp_path / "eager", "--torch-threads=2"), once)


@pytest.mark.parametrize("script", ["dpo_mamujoco", "dpo_mpe", "dpo_smac", "ippo", "iql"])
def test_without_a_compiler_one_sentence_says_what_to_do(script, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device, variable, name in (("cpu", "CXX", "g++"), ("cuda", "CC", "gcc")):
        monkeypatch.setenv(variable, "no-such-compiler")
        with pytest.raises(SystemExit) as end:
            importlib.import_module(script).parse_args(["--compile", f"--device={device}"])
        what = f"install {name} (or set {variable}), or give --no-compile."
        assert end.value.code == f"{script}: --compile needs a compiler; {what}"


def test_a_compiled_run_is_evaluated_without_a_compiler(monkeypatch):
    """Its policy is handed on to machines that have none."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    policy = str(ROOT / "benchmark" / "policies" / "8m")
    args, _ = importlib.import_module("dpo_smac").parse_args(["--compile", "--eval-only", "--resume", policy])
    assert args.compile


TINY = {
    "dpo_mpe": "--num-envs=8 --total-timesteps={steps}",
    "dpo_smac": "--map=3m --backend=embedded --num-envs=8 --num-steps=25 --total-timesteps={steps}",
    "dpo_mamujoco": "--task=Hopper-3x1 --num-envs=8 --num-steps=25 --total-timesteps={steps}",
    "dpo_matrix": "--num-states=25 --num-agents=2 --num-actions=3 --num-envs=2 --total-timesteps={steps}",
    "ippo": "--env-id=smac/3m --env-options backend=embedded --num-envs=8 --num-steps=25"
    " --total-timesteps={steps}",
    "iql": "--env-id=mpe/simple_spread --batch-episodes=4 --target-every=10 --total-timesteps={steps}",
    "iddpg": "--env-id=mamujoco/Hopper-3x1 --warmup-steps=64 --buffer-steps=2000 --total-timesteps={steps}",
}
LEARNED = ("agents", "target", "optimizers", "generator", "random")  # of a checkpoint; no script has all


def run_tiny(runs: Path, script: str, steps: int, *flags: str, **constants: Any) -> dict[str, Any]:
    """What a tiny run has learned, and where its random numbers are."""
    few = {"EVAL_EPISODES": 1} if hasattr(importlib.import_module(script), "EVAL_EPISODES") else {}
    tiny = TINY[script].format(steps=steps).split()
    finished(script, *tiny, *flags, f"--runs-dir={runs}", **few, **constants)
    return learned(only(runs))


def learned(directory: Path) -> dict[str, Any]:
    return {name: x for name, x in load(directory).items() if name in LEARNED}


def distance(a: Any, b: Any) -> float:
    """Between what two runs have learned: the largest difference, as a share of a tensor's largest number."""
    if isinstance(a, dict):
        a, b = [*a.items()], [*b.items()]
    if isinstance(a, list | tuple):
        return max((distance(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    if running.same(a, b):
        return 0.0
    comparable = isinstance(a, torch.Tensor) and a.is_floating_point() and a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max()) if comparable else math.inf


# Steps and flags of runs of more than three updates, but few gradient steps, with which rounding grows.
FEW: dict[str, tuple] = {script: (1000, "--update-epochs=2") for script in TINY}
FEW |= {"iql": (600,), "iddpg": (100,)}
ROUNDING = 2e-2  # a distance that it does not reach in them; compiled on a CPU it comes to 6e-3


def test_a_signal_ends_the_tests_and_fails_none(tmp_path):
    """Else the test that a time limit meets is listed as one that failed, and the next one begins."""
    with running.signal_in_step(signal.SIGTERM, 3), pytest.raises(pytest.exit.Exception, match="by a signal"):
        run_tiny(tmp_path, "dpo_mpe", 1000)


class Eager:
    """In the place of CudaGraph, whose batches may come from the host."""

    def __init__(self, update: Callable[[Tensors], Tensors]):
        self.update, self.calls = update, 0

    def __call__(self, batch: Tensors) -> Tensors:
        self.calls += 1
        return self.update({name: x.cuda() for name, x in batch.items()})


class Stale(Eager):
    """What CudaGraph would be, without its GPU, if it copied no batch to where the first one was."""

    def __call__(self, batch: Tensors) -> Tensors:
        self.calls += 1
        if self.calls == 3:
            self.batch = copy.deepcopy(batch)
        return self.update(batch if self.calls < 3 else self.batch)


@pytest.mark.parametrize("script", ["dpo_mpe", "iddpg"])
def test_a_wrong_replay_would_be_noticed(tmp_path, script):
    """Else the same comparison on a GPU finds nothing."""

    class Learner(importlib.import_module(script).Learner):
        def __init__(self, *args):
            super().__init__(*args)
            self.updates = [Stale(update) for update in self.updates]

    once, again = (run_tiny(tmp_path / name, script, *FEW[script]) for name in ("once", "again"))
    wrong = run_tiny(tmp_path / "wrong", script, *FEW[script], Learner=Learner)
    assert distance(once, again) == 0 and distance(wrong, once) > 5 * ROUNDING


def gpu(test: Callable) -> Callable:
    """Of a test that needs a GPU; python benchmark/gpu.py runs what has this mark."""
    needs = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    return pytest.mark.gpu(needs(test))


@gpu
@LEARNERS
def test_cuda_graph_replays_what_the_update_does(script, settings):
    """Five updates, the last three replayed, on batches that differ; in one an agent has no samples."""
    results = []
    for replayed in (False, True):
        torch.manual_seed(1)
        agents, batch = made_up(script, 256, "cuda")
        adams = dict(lr=5e-4, eps=1e-5, fused=True, capturable=True)
        optimizer = torch.optim.Adam(agents.parameters(), **adams)
        args = script.Args(update_epochs=3, **settings)
        update = functools.partial(script.update, agents, optimizer, args=args)
        update, seen = script.CudaGraph(update) if replayed else update, []
        absent = torch.tensor([[1.0], [0.0], [1.0]], device="cuda") if "action_mask" in batch else 1.0
        for scale, share in ((1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (-1.0, absent), (0.1, 1.0)):
            changed = {"advantages": scale * batch["advantages"], "weight": share * batch["weight"]}
            stats = update(batch | changed)
            seen.append(torch.stack([*stats.values()]))
        results.append([*seen, *agents.state_dict().values()])
    for plain, graph in zip(*results, strict=True):
        assert torch.allclose(graph, plain, rtol=1e-4, atol=1e-5)


@gpu
@pytest.mark.parametrize("script", TINY)
def test_a_resumed_run_on_a_gpu_ends_as_one_that_never_stopped(tmp_path, script):
    """On a GPU as on a CPU: the same parameters, moments and random numbers, to the last bit."""
    whole = run_tiny(tmp_path / "whole", script, 2000, "--device=cuda")
    run_tiny(tmp_path / "stopped", script, 1000, "--device=cuda")
    directory = only(tmp_path / "stopped")
    finished(script, "--resume", directory, "--total-timesteps=2000")
    assert running.same(learned(directory), whole)


PLAIN = [pytest.param(script, (), id=script) for script in TINY]
COMPILED = [
    pytest.param(script, ("--compile",), marks=HOST_COMPILER, id=f"{script}-compiled")
    for script in TINY
    if script not in ("dpo_matrix", "iddpg")
]


@gpu
@pytest.mark.parametrize(("script", "flags"), [*PLAIN, *COMPILED])
def test_a_run_by_graphs_learns_what_an_eager_one_does(tmp_path, script, flags):
    """Whole runs, with the batches that they make; the eager one is not compiled."""
    torch._dynamo.reset()  # it keeps the code for few shapes of a loss
    updates: list[Eager] = []

    def eager(update: Callable[[Tensors], Tensors]) -> Eager:
        updates.append(Eager(update))
        return updates[-1]

    tiny = (script, *FEW[script], "--device=cuda")
    graphs = run_tiny(tmp_path / "graphs", *tiny, *flags)
    plain = run_tiny(tmp_path / "eager", *tiny, CudaGraph=eager)
    assert distance(graphs, plain) < ROUNDING and updates and all(one.calls > 3 for one in updates)


@gpu
@pytest.mark.parametrize("flags", [(), pytest.param(("--compile",), marks=HOST_COMPILER)])
def test_training_on_a_gpu_agrees_with_the_cpu(tmp_path, flags):
    """The first rollout's actions differ, the GPU's random numbers being others; its losses hardly do."""
    torch._dynamo.reset()
    cuda = train(tmp_path / "cuda", "--device=cuda", *flags)
    cpu = train(tmp_path / "cpu")
    assert np.isfinite([list(row.values()) for row in cuda]).all() and len(cuda) == len(cpu) == 3
    assert cuda[0]["losses/entropy"] == pytest.approx(cpu[0]["losses/entropy"], abs=0.02)
