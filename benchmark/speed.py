"""Speed, as ratios within one run on one machine.

    python benchmark/speed.py all           # everything below
    python benchmark/speed.py env smac      # environment steps/s, beside other simulators
    python benchmark/speed.py env mamujoco  # the same on one core and on all, beside gymnasium and others
    python benchmark/speed.py env mpe       # the same, beside mpe2 and, where installed, VMAS and JaxMARL
    python benchmark/speed.py learner mpe   # the learner's GFLOP/s as a share of this machine's matmul peak
    python benchmark/speed.py e2e matrix    # a script's first updates: steps/s, and where the time goes

learner and e2e take smac, mpe, mamujoco and baselines (the other scripts); e2e also matrix. Figures of env
and learner are the best and the median of repeats that take turns with what they are compared with, those of
e2e medians of the scripts' own logs. Prints Markdown; --json PATH keeps the raw numbers. Exit status 1 if
something could not be timed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # before NumPy and PyTorch read them

import numpy as np  # noqa: E402
import torch  # noqa: E402
import tyro  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmark.lib.arguments import nowhere, out_of_range  # noqa: E402
from benchmark.lib.letters import in_utf8  # noqa: E402
from benchmark.lib.store import replace as replace_file  # noqa: E402
from benchmark.lib.tables import line, markdown  # noqa: E402
from benchmark.lib.timing import sgemm_gflops, sgemm_gflops_cuda, steps_per_second, take_turns  # noqa: E402
from envs import env_ids, make, usable_cores  # noqa: E402

RELEASED = {"matrix": (39, 142), "mpe": (25, 188)}
"""Environment steps per second, from and to, of the authors' released code, measured earlier on one thread of
a like server: the stochastic game (as released, and without its debug switches), particle worlds with 5
agents. It updates 15 epochs on batches of one episode. Not of this run."""

DEFAULTS = {
    "smac": ("2s3z", "27m_vs_30m"),
    "mpe": ("simple_spread", "simple_spread/10"),
    "mamujoco": ("HalfCheetah-3x2", "Humanoid-17x1"),
    "matrix": ("stochastic",),
}
"""What learner and e2e time if no names are given."""

FIXED = ("2s3z", "3s5z", "8m", "27m_vs_30m", "MMM2", "6h_vs_8z", "corridor", "2c_vs_64zg")
MAPS = (*FIXED, "10gen_terran_5_vs_5", "10gen_terran_10_vs_10")
"""What `env smac` times if no names are given."""

E2E = {
    "smac": (["dpo_smac.py", "--backend", "embedded"], "map", 32 * 128),
    "mpe": (["dpo_mpe.py"], "task", 128 * 25),
    "mamujoco": (["dpo_mamujoco.py"], "task", 16 * 64),
    "matrix": (["dpo_matrix.py"], "game", 32 * 100),
}
"""Script, flag of the task, and environment steps of an update."""

BASELINES = {
    "ippo.py --env-id smac/2s3z": 10 * 32 * 128,
    "ippo.py --env-id matrix/stochastic": 10 * 32 * 100,
    "iql.py --env-id smac/8m": 12_000,
    "iql.py --env-id mpe/simple_spread": 12_000,
    "iql.py --env-id matrix/stochastic": 12_000,
    "iddpg.py --env-id mamujoco/HalfCheetah-3x2 --warmup-steps 2000": 10_000,
    "iddpg.py --env-id mamujoco/Humanoid-17x1 --warmup-steps 2000": 10_000,
}
"""Environment steps of each; off-policy scripts write a row, the first of which are left out, every 2,048."""


LIBRARIES = ("torch", "numpy", "numba", "gymnasium", "mujoco", "mpe2", "vmas", "jaxmarl", "jax", "envpool")
"""Whose versions are told, where they are installed."""

What = Literal["all", "env", "learner", "e2e"]
Family = Literal["smac", "mpe", "mamujoco", "matrix", "baselines"]


@dataclass
class Args:
    what: tyro.conf.Positional[What]
    """what is timed"""
    family: tyro.conf.Positional[Family] = "smac"
    """environment family"""
    names: tuple[str, ...] = ()
    """maps or tasks (mpe also line_control/10: of 10 agents); by default env: ten maps, all tasks of mpe,
    five robots; learner and e2e: two of each"""
    num_envs: tuple[int, ...] = ()
    """env: numbers of environments; by default smac: 1 16 64 256, mpe: 1 32 1024, mamujoco: 16"""
    rows: tuple[int, ...] = (1024, 4096)
    """learner: rows per agent in a batch, but for baselines, which have those of their batches"""
    threads: tuple[int, ...] = ()
    """values of --torch-threads, and threads of MuJoCo's physics; by default 1 and all cores"""
    compile: bool = False
    """learner and e2e: also compiled, where a script has something to compile"""
    device: str = "cpu"
    """learner and e2e: cpu | cuda; environments are stepped on the CPU"""
    seconds: float = 0.5
    """length of one repeat"""
    repeats: int = 5
    """repeats of each figure"""
    peer_python: str = ""
    """e2e mpe: a Python that has BenchMARL and VMAS, whose IPPO is then timed beside ippo.py"""
    json: str = ""
    """file for the raw numbers"""


def begun_table(header: Sequence[str]) -> Callable[[Sequence[str]], None]:
    """Prints a table's head; returns what prints a row: what was measured is told, whatever comes after."""
    print("\n" + markdown(header, []), end="", flush=True)
    return lambda cells: print(line(cells), end="", flush=True)


def summary(found: dict[str, list[float]], bases: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Of each figure the best and the median of its repeats, and the median ratio to a base within a turn."""
    told = {}
    for label, speeds in found.items():
        told[label] = {"best": max(speeds), "median": float(np.median(speeds))}
        for base in bases:
            told[label][f"to {base}"] = float(np.median(np.array(speeds) / np.array(found[base])))
    return told


def time_envs(args: Args, result: dict[str, Any]) -> None:
    """Environment steps per second of the embedded engine, and of the peers that are installed."""
    from benchmark.peers.battles import PUBLISHED, smac_steps, smaclite_steps, smax_steps

    names = args.names or MAPS
    start = time.perf_counter()
    smac_steps("3m", 1)
    print(f"Loading or compiling the engine took {time.perf_counter() - start:.1f} s.")
    peers = {"SMAClite": "smaclite", "SMAX (JaxMARL)": "jaxmarl"}
    missing = [peer for peer, module in peers.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f"Not installed, so not timed in this run: {', '.join(missing)}.")
    for name in names:
        made = {f"ours, {n} envs": smac_steps(name, n) for n in args.num_envs or (1, 16, 64, 256)}
        plays = {label: play for label, (play, _) in made.items()}
        if "SMAClite" not in missing:
            plays["SMAClite"] = smaclite_steps(name)
        if "SMAX (JaxMARL)" not in missing and (smax := smax_steps(name, 64)):
            plays["SMAX (JaxMARL)"] = smax
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
        header = ["simulator", "best", "median", "ours is x times", "per env"]
        print(f"\n{name}\n\n" + markdown(header, rows), flush=True)
        result[name] = summary(found)


def time_robots(args: Args, result: dict[str, Any]) -> None:
    """Environment steps per second of multi-agent MuJoCo, beside gymnasium and the peers that are installed.

    Ratios are of the same turn, and the median of them is given: on a busy machine every turn is another.
    """
    from benchmark.peers.robots import BASES, simulators

    threads = args.threads or tuple(sorted({1, usable_cores()}))
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
            result[f"{name} {n}"] = summary(found, bases)


def time_particles(args: Args, result: dict[str, Any]) -> None:
    """Environment steps per second of the particle worlds, beside mpe2 and the peers that are installed."""
    from benchmark.peers.battles import array_bytes
    from benchmark.peers.particles import MPE2, PEERS, missing, simulators

    absent = missing()
    for name in args.names or tuple(MPE2):
        task, _, num_agents = name.partition("/")
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
        result[name] = summary(found)


def time_learner(args: Args, result: dict[str, Any]) -> None:
    """The learner's GFLOP/s beside the machine's one-thread matmul peak, measured in turns.

    On a busy machine the best of long updates and the best of short products are not of the same moment; the
    median of the share within each turn is then the fairer figure.
    """
    from benchmark.lib.learners import OFF_POLICY, learner_gflops, made_up, made_up_baseline

    torch.set_num_threads(1)
    cuda = args.device != "cpu"
    peak_of = sgemm_gflops_cuda if cuda else sgemm_gflops
    threads = (1,) if cuda else args.threads or tuple(sorted({1, usable_cores()}))
    header = ["learner", "", "best GFLOP/s", "median", "sgemm peak, 1 thread", "best / peak"]
    tell = begun_table([*header, "share within a turn, median"])
    cases: dict[str, Callable[[], Any]] = {}
    if args.family == "baselines":
        cases = {name: functools.partial(made_up_baseline, name, args.device) for name in OFF_POLICY}
    for name, rows in itertools.product(args.names or DEFAULTS.get(args.family, ()), args.rows):
        cases[f"{name} {rows}"] = functools.partial(made_up, args.family, name, rows, args.device)
    for name, make_learner in cases.items():
        figures: dict[str, Callable[[], float]] = {"sgemm": functools.partial(peak_of, args.seconds)}
        # iddpg.py has nothing to compile.
        variants = (False, True) if args.compile and not name.startswith("iddpg") else (False,)
        key = sizes = ""
        for compiled, n in itertools.product(variants, threads):
            learner = make_learner()
            label, sizes = f"{n} threads" + ", compiled" * compiled, learner.sizes
            key = f"{name} {len(learner.batch['rewards'])}" if name in OFF_POLICY else name
            figures[label] = learner_gflops(learner, n, compiled)
        found = take_turns(figures, args.repeats)
        peak = max(found["sgemm"])
        for label in list(figures)[1:]:
            best, median = max(found[label]), float(np.median(found[label]))
            in_turn = np.median(np.array(found[label]) / np.array(found["sgemm"]))
            shares = [f"{best / peak:.0%}", f"{in_turn:.0%}"]
            tell([f"{name}: {sizes}", label, f"{best:.0f}", f"{median:.0f}", f"{peak:.0f}", *shares])
        result[key] = summary(found, ["sgemm"])


def time_e2e(args: Args, result: dict[str, Any]) -> None:
    """The DPO script of a family with its defaults: medians of its own log over updates 4 to 10.

    Also with the batches of the paper's Algorithm 1, one episode of one environment.
    """
    from benchmark.lib.learners import script_rates

    script, flag, batch = E2E[args.family]
    header = [script[0], "", "environment steps/s", "env", "act", "update", "released code, measured earlier"]
    tell = begun_table(header)
    for name in args.names or DEFAULTS[args.family]:
        task, _, num_agents = name.partition("/")
        command = [*script, f"--{flag}", task, "--device", args.device]
        command += ["--num-agents", num_agents] if num_agents else []
        plans = {
            f"{n} threads": ["--torch-threads", str(n), "--total-timesteps", str(10 * batch)]
            for n in args.threads or sorted({1, usable_cores()})
        }
        episode = int(make(f"{args.family}/{task}", 1).episode_limit or 1)  # all families here have one
        few = ["--num-envs", "1", "--torch-threads", "1", "--total-timesteps", str(12 * episode)]
        few += [] if args.family == "matrix" else ["--num-steps", str(episode)]
        plans["1 thread, batches of one episode"] = few
        if args.compile and args.family != "matrix":  # whose script has nothing to compile
            plans |= {f"{label}, compiled": [*flags, "--compile"] for label, flags in plans.items()}
        for label, flags in plans.items():
            rates = script_rates([*command, *flags, "--eval-every", "1000000000"])
            steps = rates["charts/SPS"]
            shares = (rates[f"time/{part}"] for part in ("env", "act", "update"))
            cells = [name, label, f"{steps:,.0f}", *(f"{share:.1%}" for share in shares)]
            low, high = (0, 0) if num_agents else RELEASED.get(args.family, (0, 0))  # it was timed with 5
            theirs = f"{low} to {high}: {steps / high:,.0f} to {steps / low:,.0f} times" if high else ""
            tell([*cells, theirs if "episode" in label else ""])
            result[f"{name}, {label}"] = rates
    if args.family == "mpe":
        result |= beside_benchmarl(args)


def time_baselines(args: Args, result: dict[str, Any]) -> None:
    """The other scripts with their defaults on one thread and on all cores: medians of their own logs."""
    from benchmark.lib.learners import script_rates

    tell = begun_table(["", "", "environment steps/s", "env", "act", "update"])
    for name, steps in BASELINES.items():
        command = [*name.split(), "--total-timesteps", str(steps), "--eval-every", "1000000000"]
        command += ["--device", args.device]
        # iddpg.py has nothing to compile.
        compiled = (False, True) if args.compile and not name.startswith("iddpg.py") else (False,)
        for more, threads in itertools.product(compiled, args.threads or sorted({1, usable_cores()})):
            flags = ["--torch-threads", str(threads), *(["--compile"] if more else [])]
            rates = script_rates([*command, *flags])
            label = f"{threads} threads" + ", compiled" * more
            shares = (f"{rates[f'time/{part}']:.1%}" for part in ("env", "act", "update"))
            tell([name, label, f"{rates['charts/SPS']:,.0f}", *shares])
            result[f"{name}, {label}"] = rates


def beside_benchmarl(args: Args) -> dict[str, Any]:
    """ippo.py and BenchMARL's IPPO on VMAS, both on simple_spread with one thread, in turns."""
    from benchmark.lib.learners import script_rates

    ippo: Any = importlib.import_module("ippo")

    probe = [args.peer_python, "-c", "import benchmarl, vmas"]
    if not shutil.which(args.peer_python) or subprocess.run(probe, capture_output=True).returncode:
        print("\nBenchMARL and VMAS: not in --peer-python, so not timed in this run (peers/peer_vmas.py).")
        return {}
    settings: dict[str, Any] = vars(ippo.Args()) | ippo.PRESETS["mpe"]
    command = [args.peer_python, str(ROOT / "benchmark" / "peers" / "peer_vmas.py"), json.dumps(settings)]
    steps = str(12 * settings["num_envs"] * settings["num_steps"])
    ours = [
        "ippo.py",
        "--env-id",
        "mpe/simple_spread",
        "--torch-threads",
        "1",
        "--total-timesteps",
        steps,
        "--eval-every",
        "1000000000",
    ]

    def peer() -> dict[str, float]:
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        return json.loads(done.stdout.splitlines()[-1])

    sides = {"ippo.py": lambda: script_rates(ours), "BenchMARL on VMAS": peer}
    if args.compile:
        sides["ippo.py, compiled"] = lambda: script_rates([*ours, "--compile"])
    found: dict[str, list[dict[str, float]]] = {label: [] for label in sides}
    for _ in range(args.repeats):
        for label, measure in sides.items():
            found[label].append(measure())
    speeds = {label: np.array([one["charts/SPS"] for one in runs]) for label, runs in found.items()}
    rows = []
    for label, runs in found.items():
        ratio = np.median(speeds[label] / speeds["BenchMARL on VMAS"])
        share = np.median([one["time/update"] for one in runs])
        rows.append([label, f"{np.median(speeds[label]):,.0f}", f"{share:.1%}", f"{ratio:.2f}"])
    header = [
        "IPPO, simple_spread, 1 thread",
        "environment steps/s",
        "update",
        "x BenchMARL, median of turns",
    ]
    print("\n" + markdown(header, rows), flush=True)
    return {"beside BenchMARL": found}


def time_all(args: Args, found: dict[str, Any]) -> bool:
    """Every table, into `found`; a failure costs the rest of its own. Whether all are whole."""
    found["machine"] = machine(args.device)
    whole = True
    for what, family in TIMERS:
        print(f"\n## {what} {family}", flush=True)
        own: dict[str, Any] = found.setdefault(f"{what} {family}", {})
        whole &= time_one(replace(args, what=what, family=family, names=()), own, found)
    return whole


def time_one(args: Args, own: dict[str, Any], found: dict[str, Any]) -> bool:
    """A table, into `own`, a part of `found`, which --json keeps; whether it is whole. If not, says why."""
    try:
        TIMERS[args.what, args.family](args, own)
        problem = ""
    except Exception as error:  # of scripts and of others' simulators, which may raise anything
        problem = f"{type(error).__name__}: {error}".partition("\n")[0]
    try:
        if args.json:
            replace_file(Path(args.json), json.dumps(found, indent=1) + "\n")
    except OSError as error:
        problem = problem or f"--json {args.json} cannot be written: {error}"
    if problem:
        print(f"speed: {args.what} {args.family} is not whole: {problem}", file=sys.stderr, flush=True)
    return not problem


TIMERS: dict[tuple[What, Family], Callable[[Args, dict[str, Any]], None]] = {
    ("env", "smac"): time_envs,
    ("env", "mpe"): time_particles,
    ("env", "mamujoco"): time_robots,
    ("learner", "smac"): time_learner,
    ("learner", "mpe"): time_learner,
    ("learner", "mamujoco"): time_learner,
    ("learner", "baselines"): time_learner,
    ("e2e", "smac"): time_e2e,
    ("e2e", "mpe"): time_e2e,
    ("e2e", "mamujoco"): time_e2e,
    ("e2e", "matrix"): time_e2e,
    ("e2e", "baselines"): time_baselines,
}


RANGES: dict[str, tuple[float, float]] = {
    "num_envs": (1, 10**5),
    "rows": (1, 10**6),
    "threads": (1, 1024),
    "seconds": (1e-3, 3600),
    "repeats": (1, 1000),
}


def fault(args: Args) -> str:
    """What is wrong with the command line, in a sentence; empty if nothing is."""
    if args.device != "cpu" and not torch.cuda.is_available():
        return f"--device {args.device}, but PyTorch sees no GPU here; use --device cpu."
    if args.what != "all" and (args.what, args.family) not in TIMERS:
        known = ", ".join(family for what, family in TIMERS if what == args.what)
        return f"{args.what} is timed for {known}, not for {args.family}."
    if args.device != "cpu" and args.what == "env":
        return "environments are stepped on the CPU; leave --device out."
    if args.device != "cpu" and args.peer_python:
        return "BenchMARL is timed on the CPU; leave --device or --peer-python out."
    if args.names and (args.what == "all" or args.family == "baselines"):
        return "--names are of one family's table; leave them out for all and for baselines."
    if wrong := out_of_range(args, RANGES):
        return wrong
    tasks = [env_id.partition("/")[2] for env_id in env_ids() if env_id.startswith(f"{args.family}/")]
    tasks = ["stochastic"] if args.family == "matrix" else tasks
    for name in args.names:
        task, slash, number = name.partition("/")
        sized = args.family == "mpe" and number.isdecimal() and 2 <= int(number) <= 1000
        if task not in tasks or (slash and not sized):
            return f"there is no {name!r} in {args.family}; give some of {', '.join(tasks)}."
    return nowhere("json", args.json)


def machine(device: str) -> dict[str, str]:
    """What the figures depend on besides the code: processor, cores that may be used, GPU, versions."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    found = {"processor": cpu, "cores": str(usable_cores()), "Python": platform.python_version()}
    found |= {"GPU": torch.cuda.get_device_name(device)} if device != "cpu" else {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if wrong := fault(args):
        sys.exit(f"speed: {wrong}")
    found: dict[str, Any] = {}
    whole = time_all(args, found) if args.what == "all" else time_one(args, found, found)
    sys.exit(not whole)


if __name__ == "__main__":
    in_utf8()
    main()
