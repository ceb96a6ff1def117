"""What a GPU needs of the learners, told without one where that is possible; --compile changes nothing.

PyTorch's `meta` device has shapes and no numbers: whatever reads a number back, which makes the host wait for
a GPU and cannot be part of a CUDA graph, raises an error there.
"""

import csv
import functools
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import dpo_mpe
import ippo
import iql
from benchmark.learners import made_up

FAMILIES = pytest.mark.parametrize(
    ("family", "name"), [("smac", "3m"), ("mpe", "simple_spread"), ("mamujoco", "Hopper-3x1")]
)
COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU needs a C++ compiler")
ON_CPU = {"cpp_wrapper": True}  # what --compile asks of torch.compile there


def adam(agents: torch.nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(agents.parameters(), lr=5e-4, eps=1e-5)  # fused=True refuses `meta`


def masked(batch: dict[str, torch.Tensor], num_actions: int) -> dict[str, torch.Tensor]:
    """A batch of dpo_mpe.py as ippo.py names it, every action available."""
    batch = {"old_policy" if name == "old_logp" else name: x for name, x in batch.items()}
    mask = torch.ones(*batch["actions"].shape, num_actions, dtype=torch.bool)
    return batch | {"action_mask": mask.to(batch["obs"].device)}


@FAMILIES
def test_dpo_update_never_waits_for_the_device(family, name):
    learner = made_up(family, name, 64, "meta")
    num_agents, args = len(learner.batch["obs"]), learner.script.Args(update_epochs=2)
    stats = learner.script.update(learner.agents, adam(learner.agents), learner.batch, args, num_agents)
    assert stats.device.type == "meta" and stats.shape == (6, num_agents)


@pytest.mark.parametrize("kl_penalty", [False, True])
def test_ippo_update_never_waits_for_the_device(kl_penalty):
    batch = masked(made_up("mpe", "simple_spread", 64, "meta").batch, 5)
    agents = ippo.Agents(5, batch["obs"].shape[-1], 5).to("meta")
    stats = ippo.update(agents, adam(agents), batch, ippo.Args(update_epochs=2, kl_penalty=kl_penalty))
    assert stats.device.type == "meta" and stats.shape == (7, 5)


def test_a_wait_would_be_noticed():
    with pytest.raises(RuntimeError, match="meta"):
        torch.zeros(3, device="meta").sum().item()


def test_gae_and_standardisation_never_wait_for_the_device():
    rewards, values = torch.zeros(6, 2, device="meta"), torch.zeros(5, 6, 2, device="meta")
    ends = rewards.bool(), rewards.bool()
    advantages, returns = dpo_mpe.gae(rewards, values, values[:, 0], values, *ends, 0.99, 0.95)
    assert dpo_mpe.standardize(advantages)[0].shape == returns.shape == (5, 6, 2)


@COMPILER
@pytest.mark.parametrize(("family", "name"), [("mpe", "simple_spread"), ("mamujoco", "Hopper-3x1")])
def test_compiled_dpo_update_agrees_with_eager(family, name):
    """Statistics and parameters after three steps on two chunks, in float64, where rounding hides nothing.

    dpo_smac.py has its own, with masks, in tests/test_dpo_smac.py.
    """
    results = []
    for compiled in (False, True):
        torch.manual_seed(1)
        learner = made_up(family, name, 2 * 2048, "cpu")
        script, agents = learner.script, learner.agents.double()
        batch = {name: x.double() if x.is_floating_point() else x for name, x in learner.batch.items()}
        loss_fn = torch.compile(script.dpo_loss, options=ON_CPU) if compiled else script.dpo_loss
        args = script.Args(update_epochs=3)
        optimizer = torch.optim.SGD(agents.parameters(), lr=0.1)  # Adam divides by gradients that may be 0
        stats = script.update(agents, optimizer, batch, args, len(batch["obs"]), loss_fn)
        results.append([stats, *(p.detach() for p in agents.parameters())])
    for eager, compiled in zip(*results, strict=True):
        assert torch.allclose(compiled, eager, rtol=1e-7, atol=1e-10)


@COMPILER
def test_compiled_ippo_loss_agrees_with_eager():
    torch.manual_seed(1)
    batch = masked(made_up("mpe", "simple_spread", 64, "cpu").batch, 5)
    agents, results = ippo.Agents(5, batch["obs"].shape[-1], 5), []
    for loss_fn in (ippo.ippo_loss, torch.compile(ippo.ippo_loss, options=ON_CPU)):
        agents.zero_grad()
        loss, parts = loss_fn(agents, **batch, args=ippo.Args())
        loss.backward()
        results.append([loss.detach(), parts, *(p.grad.clone() for p in agents.parameters())])
    for eager, compiled in zip(*results, strict=True):
        assert torch.allclose(compiled, eager, rtol=1e-4, atol=1e-5)


@COMPILER
def test_compiled_gru_cell_agrees_with_eager():
    results = []
    for cell in (iql.gru_cell, torch.compile(iql.gru_cell, options=ON_CPU)):
        torch.manual_seed(1)
        x = [torch.randn(3, 4, k * iql.HIDDEN, dtype=torch.float64, requires_grad=True) for k in (3, 3, 1)]
        hidden = cell(*x)
        results.append([hidden, *torch.autograd.grad(hidden.square().sum(), x)])
    for eager, compiled in zip(*results, strict=True):
        assert torch.allclose(compiled, eager, rtol=1e-10, atol=1e-12)


def train(directory: Path, *flags: str) -> list[dict[str, float]]:
    """A tiny run of dpo_mpe.py; its rows that tell of an update."""
    tiny = ["--num-envs=8", "--total-timesteps=600", "--eval-every=600", f"--runs-dir={directory}"]
    subprocess.run([sys.executable, dpo_mpe.__file__, *tiny, *flags], check=True, capture_output=True)
    with open(next(directory.glob("*/metrics.csv"))) as file:
        return [
            {name: float(x) for name, x in row.items() if x and not name.startswith(("time/", "charts/SPS"))}
            for row in csv.DictReader(file)
            if row["losses/value_loss"]
        ]


def close(first: list[dict[str, float]], second: list[dict[str, float]]) -> None:
    """The same first update; later ones only finite, for rounding grows from update to update."""
    assert first[0].keys() == second[0].keys()
    assert list(first[0].values()) == pytest.approx(list(second[0].values()), rel=1e-2, abs=1e-4)
    assert np.isfinite([list(row.values()) for row in second]).all() and len(first) == len(second) == 3


@COMPILER
def test_compiled_training_on_two_threads_repeats_and_agrees_with_eager(tmp_path):
    flags = "--torch-threads=2", "--compile"
    once, again = (train(tmp_path / name, *flags) for name in ("once", "again"))
    assert once == again
    close(train(tmp_path / "eager", "--torch-threads=2"), once)


@pytest.mark.parametrize("script", ["dpo_mamujoco", "dpo_mpe", "dpo_smac", "ippo", "iql"])
def test_without_a_compiler_one_sentence_says_what_to_do(script, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit, match=r"--compile needs a C\+\+ compiler; install g\+\+"):
        importlib.import_module(script).parse_args(["--compile"])


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@GPU
@pytest.mark.parametrize("flags", [(), ("--compile",)])
def test_training_on_a_gpu_agrees_with_the_cpu(tmp_path, flags):
    """The first rollout's actions differ, the GPU's random numbers being others; its losses hardly do."""
    cuda = train(tmp_path / "cuda", "--device=cuda", *flags)
    cpu = train(tmp_path / "cpu")
    assert np.isfinite([list(row.values()) for row in cuda]).all() and len(cuda) == len(cpu) == 3
    assert cuda[0]["losses/entropy"] == pytest.approx(cpu[0]["losses/entropy"], abs=0.02)


@GPU
@FAMILIES
def test_cuda_graph_replays_what_the_update_does(family, name):
    """Five updates, the last three replayed, on batches that differ."""
    results = []
    for replayed in (False, True):
        torch.manual_seed(1)
        learner = made_up(family, name, 256, "cuda")
        script, agents, num_agents = learner.script, learner.agents, len(learner.batch["obs"])
        settings = dict(lr=5e-4, eps=1e-5, fused=True, capturable=True)
        optimizer = torch.optim.Adam(agents.parameters(), **settings)
        update = functools.partial(
            script.update, agents, optimizer, args=script.Args(update_epochs=3), num_agents=num_agents
        )
        update, seen = script.CudaGraph(update) if replayed else update, []
        for scale in (1.0, 0.5, 2.0, -1.0, 0.1):
            seen.append(update(learner.batch | {"advantages": scale * learner.batch["advantages"]}))
        results.append([*seen, *agents.state_dict().values()])
    for eager, graph in zip(*results, strict=True):
        assert torch.allclose(graph, eager, rtol=1e-4, atol=1e-5)


TINY = {
    "dpo_mpe": "--num-envs=8 --total-timesteps={steps}",
    "dpo_smac": "--map=3m --backend=embedded --num-envs=8 --num-steps=25 --total-timesteps={steps}",
    "dpo_mamujoco": "--task=Hopper-3x1 --num-envs=8 --num-steps=25 --total-timesteps={steps}",
    "dpo_matrix": "--num-states=25 --num-agents=2 --num-actions=3 --num-envs=8 --total-timesteps={steps}",
    "ippo": "--env-id=smac/3m --num-envs=8 --num-steps=25 --total-timesteps={steps}",
    "iql": "--env-id=mpe/simple_spread --batch-episodes=4 --total-timesteps={steps}",
    "iddpg": "--env-id=mamujoco/Hopper-3x1 --warmup-steps=64 --buffer-steps=2000 --total-timesteps={steps}",
}


@GPU
@pytest.mark.parametrize("script", TINY)
def test_a_resumed_run_on_a_gpu_ends_as_one_that_never_stopped(tmp_path, script):
    """On a GPU as on a CPU: the same seed, the same parameters, to the last bit."""

    def run(*flags: str) -> None:
        path = Path(dpo_mpe.__file__).with_name(f"{script}.py")
        subprocess.run([sys.executable, path, *flags], check=True, capture_output=True)

    def agents(name: str) -> dict[str, torch.Tensor]:
        [path] = (tmp_path / name).glob("*/checkpoint.pt")
        return torch.load(path, weights_only=True, map_location="cpu")["agents"]

    for name, steps in (("stopped", 1000), ("whole", 2000)):
        run(*TINY[script].format(steps=steps).split(), "--device=cuda", f"--runs-dir={tmp_path / name}")
    [directory] = (tmp_path / "stopped").iterdir()
    run("--resume", str(directory), "--total-timesteps=2000")
    stopped, whole = agents("stopped"), agents("whole")
    assert all(torch.equal(stopped[name], x) for name, x in whole.items())
