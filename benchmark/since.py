"""How fast battles step, or scripts run, in this tree: ratios to an earlier commit, in turns on one machine.

    python benchmark/since.py 9ae28a7                                    # version 1 of the engine
    python benchmark/since.py 9ae28a7 --names 2s3z --num-envs 64 512
    python benchmark/since.py c1d569f --scripts                          # when threads changed results
    python benchmark/since.py d5ed78e --scripts --threads 1              # before values of whole rollouts

Battles: each side is a process that steps random play for a moment, one after the other, 80 times; what
counts is the best tenth of the turns, by CPU time of `step` alone, on one thread and with freed memory kept
as the scripts keep it. Scripts: the medians of environment steps per second of their logs, with their
defaults and then with batches of one episode, 3 times each; the ratio is the median over the turns. The
commit is checked out into a folder that is removed at the end.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmark.lib.arguments import out_of_range  # noqa: E402
from benchmark.lib.learners import script_rates  # noqa: E402
from benchmark.lib.tables import markdown  # noqa: E402
from envs import usable_cores  # noqa: E402
from envs.smac.maps import MAPS  # noqa: E402

SCRIPTS = {
    "dpo_smac.py --map 2s3z --backend embedded": 10 * 32 * 128,
    "dpo_mpe.py": 10 * 128 * 25,
    "dpo_mamujoco.py": 20 * 16 * 64,
    "dpo_matrix.py": 60 * 32 * 100,
    "ippo.py --env-id mpe/simple_spread": 10 * 128 * 25,
    "iql.py --env-id smac/8m": 12_500,
    "iddpg.py --warmup-steps 2000": 12_500,
    # Batches of one episode.
    "dpo_smac.py --map 2s3z --backend embedded --num-envs 1 --num-steps 120": 100 * 120,
    "dpo_mpe.py --num-envs 1 --num-steps 25": 400 * 25,
    "dpo_mamujoco.py --num-envs 1 --num-steps 1000": 30 * 1000,
    "ippo.py --env-id matrix/stochastic --num-envs 1": 100 * 100,
}
"""Environment steps of each, for some rows of its log beyond the third."""

SIDE = """
import sys, time
root, keep, name, num_envs = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
sys.path.insert(0, keep)
from envs.base import keep_freed_memory
keep_freed_memory()
for module in [m for m in sys.modules if m.partition(".")[0] == "envs"]:
    del sys.modules[module]
sys.path[0] = root
import envs
try:
    env = envs.make(f"smac/{name}", num_envs, seed=0, backend="embedded", threads=1)
except ValueError:  # before it had threads
    env = envs.make(f"smac/{name}", num_envs, seed=0, backend="embedded")
env.reset()
env.step(env.sample_actions())
for line in sys.stdin:
    steps, spent = 0, 0.0
    while spent < float(line):
        actions, begun = env.sample_actions(), time.process_time()
        env.step(actions)
        spent, steps = spent + time.process_time() - begun, steps + num_envs
    print(steps / spent, flush=True)
"""


@dataclass
class Args:
    commit: tyro.conf.Positional[str]
    """what this tree is compared with"""
    names: tuple[str, ...] = ("2s3z", "27m_vs_30m")
    """battles: maps, which both must have"""
    num_envs: tuple[int, ...] = (64, 256)
    """battles: numbers of environments"""
    scripts: bool = False
    """the seven scripts, and some with batches of one episode, instead of battles"""
    threads: tuple[int, ...] = ()
    """values of --torch-threads; by default 1 and all cores. Battles are stepped on one"""
    turns: int = 0
    """turns of each side; by default 80, of scripts 3"""
    seconds: float = 0.03
    """battles: CPU time of a turn"""


RANGES: dict[str, tuple[float, float]] = {
    "num_envs": (1, 10**5),
    "threads": (1, 1024),
    "turns": (0, 10**6),
    "seconds": (1e-3, 60),
}


def speeds(roots: list[Path], name: str, num_envs: int, turns: int, seconds: float) -> list[float]:
    """Environment steps per second of CPU time of each root's engine: the best tenth of its turns."""
    sides = [
        subprocess.Popen(
            [sys.executable, "-c", SIDE, str(root), str(ROOT), name, str(num_envs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
        )
        for root in roots
    ]
    found: list[list[float]] = [[] for _ in sides]
    for _ in range(turns):
        for side, own in zip(sides, found, strict=True):
            assert side.stdin and side.stdout
            side.stdin.write(f"{seconds}\n")
            side.stdin.flush()
            own.append(float(side.stdout.readline()))
    for side in sides:
        side.communicate()
    return [float(np.quantile(own, 0.9)) for own in found]


def script_speeds(roots: list[Path], script: str, threads: int, turns: int) -> np.ndarray:
    """Environment steps per second of each root's script, as its log has them, (turns, roots)."""
    flags = ["--total-timesteps", str(SCRIPTS[script]), "--eval-every", "1000000000"]
    command = [*script.split(), *flags, "--torch-threads", str(threads)]
    turn = range(turns)
    return np.array([[script_rates(command, root)["charts/SPS"] for root in roots] for _ in turn])


def battles(roots: list[Path], args: Args) -> str:
    """The table of maps."""
    rows = []
    for name, num_envs in itertools.product(args.names, args.num_envs):
        then, now = speeds(roots, name, num_envs, args.turns or 80, args.seconds)
        rows.append([name, str(num_envs), f"{then:,.0f}", f"{now:,.0f}", f"{now / then:.2f}"])
    return markdown(["map", "environments", args.commit, "now", "ratio"], rows)


def scripts(roots: list[Path], args: Args) -> str:
    """The table of scripts."""
    rows = []
    for script, threads in itertools.product(SCRIPTS, args.threads or sorted({1, usable_cores()})):
        found = script_speeds(roots, script, threads, args.turns or 3)
        then, now = np.median(found, axis=0)
        ratio = np.median(found[:, 1] / found[:, 0])
        rows.append([script, str(threads), f"{then:,.0f}", f"{now:,.0f}", f"{ratio:.2f}"])
    return markdown(["script", "threads", args.commit, "now", "ratio"], rows)


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    wrong = out_of_range(args, RANGES)
    if unknown := set(args.names) - set(MAPS):
        wrong = f"there is no map {', '.join(unknown)}; give some of {', '.join(MAPS)}."
    if wrong:
        sys.exit(f"since: {wrong}")
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree", "add", "--detach", str(before), args.commit]
        if subprocess.run(git, capture_output=True).returncode:
            sys.exit(f"since: {args.commit} cannot be checked out here; give a commit of this repository.")
        try:
            print((scripts if args.scripts else battles)([before, ROOT], args))
        except (ValueError, RuntimeError, KeyError, StopIteration):
            sys.exit("since: a side ended before it was timed; its error is above.")
        finally:
            remove = ["git", "-C", str(ROOT), "worktree", "remove", "--force", str(before)]
            subprocess.run(remove, capture_output=True)


if __name__ == "__main__":
    main()
