"""`ippo.py` beside BenchMARL's IPPO without shared parameters: the same task, settings, budget and seeds.

    python3 -m venv peer && peer/bin/pip install benchmarl mpe2 pettingzoo
    python benchmark/peers/peer_ippo.py --peer-python peer/bin/python

mpe2's simple_spread_v3 with local_ratio 0, which `mpe/simple_spread` of variant mpe2 reproduces; that it does
so through BenchMARL's wrappers too is checked before anything is trained. One process with one thread at a
time, the two sides in turn. Both clocks, the wall's and the process's own, stop while policies are saved,
evaluated or checkpointed. What is saved of either side is the policies' weights, which are evaluated here,
by `ippo.evaluate`, on the same greedy episodes. Runs that finished under the same settings are not repeated.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_variable] = "1"  # before NumPy and PyTorch read them, and for the processes started here

import numpy as np  # noqa: E402
import torch  # noqa: E402
import tyro  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import envs  # noqa: E402
from benchmark.lib.letters import in_utf8  # noqa: E402
from benchmark.lib.runs import RETURN, STEP, Run  # noqa: E402
from benchmark.lib.store import Store  # noqa: E402
from benchmark.lib.study_tables import SIDES, peer_table  # noqa: E402
from benchmark.peers.sides import AGENTS, LENGTH, VARIANT, WORLD, ippo  # noqa: E402
from envs import mpe  # noqa: E402

MODULES = ("benchmarl", "mpe2", "pettingzoo")
ENV = f"mpe-simple_spread-{AGENTS}-{VARIANT}"


@dataclass
class Args:
    peer_python: str = sys.executable
    """interpreter of the environment that BenchMARL is installed in"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """seeds, the same on both sides; who begins alternates with them"""
    total_timesteps: int = 320_000
    """environment steps of each run"""
    eval_every: int = 16_000
    """environment steps between evaluations"""
    episodes: int = 1024
    """greedy episodes of each evaluation"""
    results: Path = ROOT / "runs" / "results"
    """where runs are recorded; benchmark/results to publish them, and then benchmark/plot.py all"""
    work: Path = ROOT / "runs" / "peer"
    """folder of what the runs leave behind besides"""


def compare_trace(trace: dict[str, np.ndarray]) -> dict[str, float]:
    """The episodes that BenchMARL played, played again by envs/mpe: the largest differences.

    trace: obs, next_obs (E, T, N, dim), actions (E, T, N), reward (E, T, N, 1), done, terminated (E, T, 1).
    AssertionError where the two are not one task.
    """
    num_envs, steps, *_ = trace["obs"].shape
    assert not trace["terminated"].any(), "Episodes must be truncated, not terminated."
    ends = np.arange(1, steps + 1) % LENGTH == 0
    assert (trace["done"][..., 0] == ends).all(), f"Episodes must have {LENGTH} steps."
    assert len(np.unique(trace["obs"][:, 0, 0, 2])) == num_envs, "Some copies begin alike."
    worst = {"observation": 0.0, "reward": 0.0, "episode return": 0.0}
    for first in range(0, steps, LENGTH):
        obs, paid = trace["obs"][:, first].astype(np.float64), np.zeros((2, num_envs))
        pos, vel = obs[..., 2:4].copy(), obs[..., :2].copy()
        land = obs[:, 0, 4 : 4 + 2 * AGENTS].reshape(num_envs, AGENTS, 2) + pos[:, :1]
        for t in range(first, first + LENGTH):
            actions = trace["actions"][:, t]
            pos, vel, seen, reward = mpe.step("simple_spread", pos, vel, land, actions, variant=VARIANT)
            theirs = trace["reward"][:, t, :, 0]
            paid += np.stack([reward, theirs[:, 0]])
            gaps = {"observation": seen - trace["next_obs"][:, t], "reward": reward[:, None] - theirs}
            gaps["episode return"] = paid[0] - paid[1] if ends[t] else np.zeros(1)
            for name, gap in gaps.items():
                worst[name] = max(worst[name], float(np.abs(gap).max()))
    assert max(worst.values()) < 1e-3, f"Not the same task: differences of {worst}."
    return worst


def evaluate_weights(path: Path, episodes: int, entropy: list[int]) -> float:
    """Mean greedy return of saved policies; each side plays the same episodes for the same entropy."""
    worlds: Any = envs.make("mpe/simple_spread", 128, seed=1, device="cpu", **WORLD)
    agents = ippo().Agents(AGENTS, worlds.obs_dim, worlds.num_actions, layer_norm=False)
    with np.load(path) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    obs, logits = arrays.pop("obs"), arrays.pop("logits")
    agents.actor.load_state_dict(arrays)
    with torch.no_grad():
        gap = (agents.actor(obs) - logits).abs().max().item()
    assert gap < 1e-4 * (1 + logits.abs().max().item()), f"{path}: logits differ by {gap}."
    return ippo().evaluate(agents, worlds, episodes, entropy)["eval/episodic_return"]


def missing(python: str) -> str:
    """What keeps this interpreter from running BenchMARL, in a sentence; empty if nothing does."""
    code = f"import importlib.util as u; print(*(m for m in {MODULES} if u.find_spec(m) is None))"
    try:
        answer = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        return f"{python} is no working Python: {error}"
    if not answer.strip():
        return ""
    return (
        f"{python} has no {', '.join(answer.split())}: in an environment of its own, run "
        "pip install benchmarl mpe2 pettingzoo, and name its python with --peer-python."
    )


def start(python: str, what: str, job: dict[str, Any]) -> None:
    """Does what `sides.py` can in a process of its own, whose folder is made; SystemExit if it fails."""
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{what}.log", "w") as log:
        command = [python, str(Path(__file__).with_name("sides.py")), what, json.dumps(job)]
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        raise SystemExit(f"peer_ippo: {what} failed with code {code}; {folder / f'{what}.log'} says why.")


def run_one(args: Args, side: str, job: dict[str, Any]) -> Run:
    """Trains, evaluates and records one run, unless that was done before under the same settings."""
    ours = side == "ippo.py"
    parts = [ENV, "ippo__peer" if ours else side, str(job["seed"])]
    key = "__".join(parts)
    settled = job["settings"] | {"eval_every": job["eval_every"], "episodes": args.episodes}
    found = Store(args.results).runs.get(key)
    if (
        found
        and found.total_timesteps == job["total_timesteps"]
        and settled.items() <= found.settings.items()
    ):
        return found
    start(sys.executable if ours else args.peer_python, "ours" if ours else "peer", job)
    folder = Path(job["folder"])
    done = json.loads((folder / "done.json").read_text())
    steps = np.array([row["global_step"] for row in done["rows"]], dtype=np.float64)
    seconds = np.array([row["seconds"] for row in done["rows"]])
    returns = [
        evaluate_weights(folder / f"{step:.0f}.npz", args.episodes, [job["seed"], int(step)])
        for step in steps
    ]
    told = envs.describe(envs.make("mpe/simple_spread", 1, **WORLD))
    speeds = np.append(np.nan, np.diff(steps) / np.diff(seconds))
    run = Run(
        key=key,
        env=ENV,
        script="ippo" if ours else side,
        label="peer" if ours else "",
        seed=job["seed"],
        device="cpu",
        steps_reached=job["total_timesteps"],
        total_timesteps=job["total_timesteps"],
        absolute_return=returns[-1],
        absolute_win_rate=math.nan,
        optimum=math.nan,
        git_commit=told["git_commit"],
        machine=told["machine"],
        backend="embedded" if ours else "mpe2",
        started=str(int(time.time())),
        versions=done["versions"],
        settings=settled | done["parts"] | {"load": done["load"]},
        columns={STEP: steps, RETURN: np.array(returns), "charts/SPS": speeds},
    )
    Store(args.results).put(run, of_command=True)
    return run


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    reason = missing(args.peer_python)
    if reason:
        raise SystemExit(f"peer_ippo: {reason}")
    preset = ippo().Args(env_id="mpe/simple_spread")
    names = ["learning_rate", "gamma", "gae_lambda", "update_epochs", "ent_coef", "clip_coef"]
    settings = {name: getattr(preset, name) for name in names}
    settings |= {name: ippo().PRESETS["mpe"][name] for name in ("num_envs", "num_steps")}
    batch = settings["num_envs"] * settings["num_steps"]
    if args.eval_every % batch or args.total_timesteps % args.eval_every:
        raise SystemExit(f"peer_ippo: --total-timesteps must be a multiple of --eval-every, that of {batch}.")
    job = {"settings": settings, "total_timesteps": args.total_timesteps, "eval_every": args.eval_every}
    start(args.peer_python, "trace", job | {"seed": 0, "folder": str(args.work / "trace")})
    with np.load(args.work / "trace" / "trace.npz") as file:
        worst = compare_trace(dict(file))
    print("The same task; largest differences:", ", ".join(f"{k} {v:.1e}" for k, v in worst.items()))
    runs = []
    for turn, seed in enumerate(args.seeds):
        for side in SIDES[:: 1 if turn % 2 == 0 else -1]:
            one = job | {"seed": seed, "folder": str(args.work / f"{side}-{seed}")}
            runs.append(replace(run_one(args, side, one), method=side))
            print(f"{side}, seed {seed}: return {runs[-1].absolute_return:.2f}", flush=True)
    print(peer_table(runs))


if __name__ == "__main__":
    in_utf8()
    main()
