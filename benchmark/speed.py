"""Speed, as ratios within one run on one machine.

    python benchmark/speed.py env smac      # environment steps/s on one core, beside other simulators
    python benchmark/speed.py env mamujoco  # the same on one core and on all, beside gymnasium and others
    python benchmark/speed.py env mpe       # the same, beside mpe2 and, where installed, VMAS and JaxMARL
    python benchmark/speed.py learner smac  # the learner's GFLOP/s as a share of this machine's matmul peak
    python benchmark/speed.py e2e smac      # dpo_smac.py for a few updates: steps/s, env / act / update

Every figure is the best and the median of repeats that take turns with what they are compared with. Prints
Markdown; --json PATH keeps the raw numbers.
"""

from __future__ import annotations

import csv
import functools
import importlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # before NumPy and PyTorch read them

import numpy as np  # noqa: E402
import torch  # noqa: E402
import tyro  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PUBLISHED = {
    "SMAX (JaxMARL)": {"2s3z": 52_000, "27m_vs_30m": 2_500},
    "SMAClite": {"2s3z": 166, "3s5z": 123, "27m_vs_30m": 43, "MMM2": 75},
}
"""Environment steps per second measured earlier on one core of a like 4-core server, random valid actions,
SMAX with 64 environments. For orientation where the peer is not installed; not of this run."""


@dataclass
class Args:
    what: tyro.conf.Positional[Literal["env", "learner", "e2e"]]
    """what is timed"""
    family: tyro.conf.Positional[Literal["smac", "mpe", "mamujoco"]] = "smac"
    """environment family; learner and e2e: smac"""
    names: tuple[str, ...] = ()
    """maps or tasks (mpe also line_control/10: of 10 agents); by default env: five maps, all tasks of mpe, or
    five robots; learner and e2e: two maps"""
    num_envs: tuple[int, ...] = ()
    """env: numbers of environments; by default smac: 1 16 64 256, mpe: 1 32 1024, mamujoco: 16"""
    rows: tuple[int, ...] = (1024, 4096)
    """learner: rows per agent in a batch"""
    threads: tuple[int, ...] = ()
    """learner: values of --torch-threads, by default 1; mamujoco: of physics, by default 1 and all cores"""
    seconds: float = 0.5
    """length of one repeat"""
    repeats: int = 5
    """repeats of each figure"""
    json: str = ""
    """file for the raw numbers"""


def steps_per_second(steps: Callable[[], int], seconds: float) -> float:
    """Call `steps`, which returns how many environment steps it made, for about `seconds`."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += steps()
    return count / (time.perf_counter() - start)


def take_turns(figures: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """`repeats` measurements of each figure, one of each in turn, so that all meet the same machine."""
    found: dict[str, list[float]] = {name: [] for name in figures}
    for _ in range(repeats):
        for name, measure in figures.items():
            found[name].append(measure())
    return found


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def array_bytes(value: Any) -> int:
    """Bytes of the arrays in nested dicts and sequences."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, dict):
        return sum(array_bytes(x) for x in value.values())
    return sum(array_bytes(x) for x in value) if isinstance(value, (tuple, list)) else 0


def smac_steps(name: str, num_envs: int) -> tuple[Callable[[], int], int]:
    """A function that plays one step of random valid actions everywhere, and the bytes per environment."""
    import envs

    battle: Any = envs.make(f"smac/{name}", num_envs, seed=1, backend="embedded")
    battle.reset()
    outputs = battle.step(battle.sample_actions())

    def play() -> int:
        battle.step(battle.sample_actions())
        return num_envs

    return play, (array_bytes(battle.get_state()) + array_bytes(outputs)) // num_envs


def smaclite_steps(name: str) -> Callable[[], int]:
    """The same work in SMAClite, one environment at a time, which is all it has."""
    import gymnasium
    import smaclite  # noqa: F401 - registers its environments

    battle: Any = gymnasium.make(f"smaclite/{name}-v0", use_cpp_rvo2=False).unwrapped
    rng, ended = np.random.default_rng(0), [True]

    def play() -> int:
        if ended[0]:
            battle.reset()
        masks = np.array(battle.get_avail_actions())
        actions = (rng.random(masks.shape) * masks).argmax(1)
        _, _, terminated, truncated, _ = battle.step([int(a) for a in actions])
        ended[0] = terminated or truncated
        return 1

    return play


def smax_steps(name: str, num_envs: int, length: int = 100) -> Callable[[], int]:
    """The same work in SMAX, `length` steps of all environments inside one compiled scan."""
    import jax
    from jaxmarl import make as jax_make
    from jaxmarl.environments.smax import map_name_to_scenario

    battle = jax_make("HeuristicEnemySMAX", scenario=map_name_to_scenario(name))

    def step(carry, _):
        key, state = carry
        key, *keys = jax.random.split(key, 3)
        masks = jax.vmap(battle.get_avail_actions)(state)
        noise = jax.random.uniform(keys[0], (num_envs, len(battle.agents)))
        actions = {}
        for i, agent in enumerate(battle.agents):
            mask = masks[agent]
            rank = jax.numpy.floor(noise[:, i] * mask.sum(-1)).astype(int) + 1
            actions[agent] = (jax.numpy.cumsum(mask, -1) >= rank[:, None]).argmax(-1)
        _, state, *_ = jax.vmap(battle.step)(jax.random.split(keys[1], num_envs), state, actions)
        return (key, state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length)[0])
    _, state = jax.vmap(battle.reset)(jax.random.split(jax.random.PRNGKey(0), num_envs))
    carry = [jax.block_until_ready(run(run((jax.random.PRNGKey(1), state))))]  # both calls compile

    def play() -> int:
        carry[0] = jax.block_until_ready(run(carry[0]))
        return num_envs * length

    return play


def time_envs(args: Args) -> dict[str, Any]:
    """Environment steps per second of the embedded engine, and of the peers that are installed."""
    names = args.names or ("2s3z", "3s5z", "8m", "27m_vs_30m", "MMM2")
    start = time.perf_counter()
    smac_steps("3m", 1)
    print(f"Loading or compiling the engine took {time.perf_counter() - start:.1f} s.")
    peers = {"SMAClite": "smaclite", "SMAX (JaxMARL)": "jaxmarl"}
    missing = [peer for peer, module in peers.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f"Not installed, so not timed in this run: {', '.join(missing)}.")
    result: dict[str, Any] = {}
    for name in names:
        made = {f"ours, {n} envs": smac_steps(name, n) for n in args.num_envs or (1, 16, 64, 256)}
        plays = {label: play for label, (play, _) in made.items()}
        if "SMAClite" not in missing:
            plays["SMAClite"] = smaclite_steps(name)
        if "SMAX (JaxMARL)" not in missing and name != "MMM2":
            plays["SMAX (JaxMARL)"] = smax_steps(name, 64)
        figures = {
            label: functools.partial(steps_per_second, play, args.seconds) for label, play in plays.items()
        }
        found = take_turns(figures, args.repeats)
        ours = max(max(speeds) for label, speeds in found.items() if label.startswith("ours"))
        rows = []
        for label, speeds in found.items():
            size = f"{made[label][1] / 1000:.1f} kB" if label in made else ""
            ratio = f"{ours / max(speeds):,.1f}"
            rows.append([label, f"{max(speeds):,.0f}", f"{np.median(speeds):,.0f}", ratio, size])
        for peer in missing:
            if name in PUBLISHED[peer]:
                speed = PUBLISHED[peer][name]
                rows.append(
                    [f"{peer}, earlier, a like machine", f"{speed:,}", "", f"{ours / speed:,.1f}", ""]
                )
        print(f"\n{name}\n\n" + markdown(["simulator", "best", "median", "ours is x times", "per env"], rows))
        result[name] = found
    return result


def time_robots(args: Args) -> dict[str, Any]:
    """Environment steps per second of multi-agent MuJoCo, beside gymnasium and the peers that are installed.

    Ratios are of the same turn, and the median of them is given: on a busy machine every turn is another.
    """
    from benchmark.robots import BASES, simulators
    from envs.mamujoco import usable_cores

    threads = args.threads or tuple(sorted({1, usable_cores()}))
    result: dict[str, Any] = {}
    for name in args.names or ("Hopper-3x1", "HalfCheetah-3x2", "Walker2d-3x2", "Ant-4x2", "Humanoid-17x1"):
        for n in args.num_envs or (16,):
            figures = {
                label: functools.partial(steps_per_second, play, args.seconds)
                for label, play in simulators(name, n, threads).items()
            }
            found = take_turns(figures, args.repeats)
            bases = [label for label in BASES if label in found]
            rows = []
            for label, speeds in found.items():
                ratios = [f"{np.median(np.array(speeds) / np.array(found[base])):.2f}" for base in bases]
                rows.append([label, f"{max(speeds):,.0f}", f"{np.median(speeds):,.0f}", *ratios])
            header = ["simulator", "best", "median", *(f"x {base}, median of turns" for base in bases)]
            print(f"\n{name}, {n} environments\n\n" + markdown(header, rows), flush=True)
            result[f"{name} {n}"] = found
    return result


def time_particles(args: Args) -> dict[str, Any]:
    """Environment steps per second of the particle worlds, beside mpe2 and the peers that are installed."""
    from benchmark.particles import MPE2, PEERS, missing, simulators

    absent = missing()
    result: dict[str, Any] = {}
    for name in args.names or tuple(MPE2):
        task, _, num_agents = name.partition("/")
        if task not in MPE2 or not (num_agents or "5").isdigit():
            raise SystemExit(f"No task {name!r}; there are {', '.join(MPE2)}, also as line_control/10.")
        plays, made = simulators(task, int(num_agents or 5), args.num_envs or (1, 32, 1024))
        figures = {
            label: functools.partial(steps_per_second, play, args.seconds) for label, play in plays.items()
        }
        found = take_turns(figures, args.repeats)
        rows = []
        for label, speeds in found.items():
            ratio = np.median(np.array(speeds) / np.array(found["mpe2"]))
            size = array_bytes(made[label].get_state()) // made[label].num_envs if label in made else ""
            rows.append(
                [label, f"{max(speeds):,.0f}", f"{np.median(speeds):,.0f}", f"{ratio:,.1f}", str(size)]
            )
        if task == "simple_spread":
            rows += [[peer, "not installed", "", "", ""] for peer in PEERS if peer in absent]
        header = ["simulator", "best", "median", "x mpe2, median of turns", "state bytes per env"]
        print(f"\n{name}\n\n" + markdown(header, rows), flush=True)
        result[name] = found
    return result


def sgemm_gflops(seconds: float, size: int = 1024) -> float:
    """GFLOP/s of float32 products of `size` x `size` matrices on one thread, over about `seconds`."""
    a, b, c = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        torch.mm(a, b, out=c)
        products += 1
    return products * 2 * size**3 / (time.perf_counter() - start) / 1e9


def learner_gflops(script: Any, sizes: tuple[int, int, int], rows: int, threads: int) -> Callable[[], float]:
    """GFLOP/s of the script's `update` on made-up data, everyone alive.

    Counted as 6 x parameters x rows x epochs (and the actor's forward pass for the final KL): the usual count
    of a forward and a backward pass. It takes in the input's gradient, which no first layer computes.
    """
    from concurrent.futures import ThreadPoolExecutor

    num_agents, obs_dim, num_actions = sizes
    epochs, generator = 3, torch.Generator().manual_seed(0)
    args = script.Args(update_epochs=epochs)
    agents = script.Agents(num_agents, obs_dim, num_actions, args.layer_norm)
    agents.betas.fill_(args.beta_init)
    draw = [torch.randn(num_agents, rows, generator=generator) for _ in range(2)]
    batch = {
        "obs": torch.rand(num_agents, rows, obs_dim, generator=generator),
        "action_mask": torch.ones(num_agents, rows, num_actions, dtype=torch.bool),
        "actions": torch.randint(num_actions, (num_agents, rows), generator=generator),
        "old_logp": torch.full((num_agents, rows, num_actions), -float(np.log(num_actions))),
        "advantages": draw[0],
        "returns": draw[1],
        "weight": torch.full((num_agents, rows), 1 / rows),
    }
    cuts = np.linspace(0, num_agents, min(threads, num_agents) + 1).astype(int)
    groups = [slice(int(first), int(last)) for first, last in itertools.pairwise(cuts)]
    learners = [agents.group(group) for group in groups]
    optimizers = [torch.optim.Adam(learner.parameters(), 5e-4, eps=1e-5, fused=True) for learner in learners]
    parts = [{name: x[group] for name, x in batch.items()} for group in groups]
    pool = ThreadPoolExecutor(len(groups), initializer=torch.set_num_threads, initargs=(1,))
    actor, critic = (
        sum(p.numel() for p in network.parameters()) for network in (agents.actor, agents.critic)
    )
    flops = 6 * (actor + critic) * rows * epochs + 2 * actor * rows

    def learn(learner: Any, optimizer: Any, part: Any) -> None:
        script.update(learner, optimizer, part, args, num_agents)

    def measure() -> float:
        start = time.perf_counter()
        list(pool.map(learn, learners, optimizers, parts))
        return flops / (time.perf_counter() - start) / 1e9

    measure()
    return measure


def time_learner(args: Args) -> dict[str, Any]:
    """The learner's GFLOP/s beside the machine's one-thread matmul peak, measured in turns.

    On a busy machine the best of long updates and the best of short products are not of the same moment; the
    median of the share within each turn is then the fairer figure.
    """
    from envs.smac.maps import MAPS

    script = importlib.import_module("dpo_smac")

    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    rows = []
    for name in args.names or ("2s3z", "27m_vs_30m"):
        battle = MAPS[name]
        sizes = (battle.num_agents, battle.obs_dim, battle.num_actions)
        for batch_rows in args.rows:
            labels = {f"{name}, {batch_rows} rows, {n} threads": n for n in args.threads or (1,)}
            figures = {label: learner_gflops(script, sizes, batch_rows, n) for label, n in labels.items()}
            sgemm = functools.partial(sgemm_gflops, args.seconds)
            found = take_turns({"sgemm": sgemm, **figures}, args.repeats)
            peak = max(found["sgemm"])
            for label in figures:
                best, median = max(found[label]), float(np.median(found[label]))
                shape = "N {}, obs {}, actions {}".format(*sizes)
                in_turn = np.median(np.array(found[label]) / np.array(found["sgemm"]))
                numbers = [f"{best:.0f}", f"{median:.0f}", f"{peak:.0f}"]
                rows.append([label, shape, *numbers, f"{best / peak:.0%}", f"{in_turn:.0%}"])
            result |= {f"{label} {batch_rows}": speeds for label, speeds in found.items()}
    header = ["update", "sizes", "best GFLOP/s", "median", "sgemm peak, 1 thread", "best / peak"]
    header += ["share within a turn, median"]
    print(markdown(header, rows))
    return result


def time_e2e(args: Args) -> dict[str, Any]:
    """dpo_smac.py with its defaults for eight updates: the median of its own log without the first."""
    result: dict[str, Any] = {}
    rows = []
    for name in args.names or ("2s3z", "27m_vs_30m"):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(ROOT / "dpo_smac.py"), "--map", name, "--backend", "embedded"]
            command += ["--total-timesteps", str(8 * 32 * 128), "--runs-dir", folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            with open(next(Path(folder).glob("*/metrics.csv"))) as file:
                updates = [row for row in csv.DictReader(file) if row["charts/SPS"]][1:]
        keys = ("charts/SPS", "time/env", "time/act", "time/update")
        values = [float(np.median([float(row[key]) for row in updates])) for key in keys]
        rows.append([name, f"{values[0]:,.0f}", *(f"{share:.1%}" for share in values[1:])])
        result[name] = dict(zip(keys, values, strict=True))
    print(markdown(["map", "environment steps/s, 1 thread", "env", "act", "update"], rows))
    return result


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    timers = {
        ("env", "smac"): time_envs,
        ("env", "mamujoco"): time_robots,
        ("env", "mpe"): time_particles,
        ("learner", "smac"): time_learner,
        ("e2e", "smac"): time_e2e,
    }
    if (args.what, args.family) not in timers:
        raise SystemExit(f"{args.what} is timed for smac only, not for {args.family}.")
    result = timers[args.what, args.family](args)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
