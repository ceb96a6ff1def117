"""`ippo.py` beside BenchMARL's IPPO without shared parameters: the same task, settings, budget and seeds.

    python3 -m venv peer && peer/bin/pip install benchmarl mpe2 pettingzoo
    python benchmark/peer_ippo.py --peer-python peer/bin/python

mpe2's simple_spread_v3 with local_ratio 0, which `mpe/simple_spread` of variant mpe2 reproduces; that it does
so through BenchMARL's wrappers too is checked before anything is trained. One process with one thread at a
time, the two sides in turn. Both clocks, the wall's and the process's own, stop while policies are saved,
evaluated or checkpointed. What is saved of either side is the policies' weights, which are evaluated here,
by `ippo.evaluate`, on the same greedy episodes. Runs that finished under the same settings are not repeated.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_variable] = "1"  # before NumPy and PyTorch read them, and for the processes started here

import numpy as np  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SIDES = ("ippo.py", "BenchMARL")
MODULES = ("benchmarl", "mpe2", "pettingzoo")
COLUMNS = ("global_step", "seconds", "cpu_seconds", "eval_return")
AGENTS, LENGTH, VARIANT = 5, 25, "mpe2"
WORLD = {"num_agents": AGENTS, "episode_length": LENGTH, "variant": VARIANT}
WIDTH = 4 + 2 * AGENTS + 2 * (AGENTS - 1)  # of an observation: own velocity and position, landmarks, others
# Their norm is of all agents' gradients together, of a loss that is a mean over agents: for alike agents
# sqrt(N) times smaller than what ippo.py clips, whose clip of 10 is one of 4.5 here. Their default is 5.
PEER_CLIP = 5.0


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
    out: str = str(ROOT / "benchmark" / "results" / "peer")
    """folder of the curves, the table and the figure"""
    work: str = str(ROOT / "runs" / "peer")
    """folder of what the runs leave behind besides"""


class Clock:
    """Wall-clock and processor seconds of training, by part, with a row for each evaluation that is due."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, list[dict[str, float]]()
        self.parts = {"collect": np.zeros(2), "update": np.zeros(2)}
        self.start()

    def start(self) -> None:
        """What passed since the last lap is nobody's."""
        self.since = np.array([time.perf_counter(), time.process_time()])

    def lap(self, part: str) -> None:
        """What passed since the last lap or start is this part's."""
        now = np.array([time.perf_counter(), time.process_time()])
        self.parts[part] += now - self.since
        self.since = now

    @contextlib.contextmanager
    def stopped(self, part: str) -> Iterator[None]:
        """Until here it was this part; what is inside counts nowhere."""
        self.lap(part)
        yield
        self.start()

    def save(self, step: int, arrays: dict[str, np.ndarray]) -> None:
        """The policies after so many environment steps, and when they were reached."""
        wall, cpu = self.parts["collect"] + self.parts["update"]
        self.rows.append({"global_step": step, "seconds": float(wall), "cpu_seconds": float(cpu)})
        np.savez(self.folder / f"{step}.npz", allow_pickle=False, **arrays)

    def finish(self, **facts: Any) -> None:
        """Everything but the weights, in done.json."""
        parts = {name: values.tolist() for name, values in self.parts.items()}
        summary = {"rows": self.rows, "parts": parts, "load": os.getloadavg(), **facts}
        (self.folder / "done.json").write_text(json.dumps(summary, indent=1) + "\n")


def versions(*modules: Any) -> dict[str, str]:
    """Of Python and of imported modules."""
    return {"python": platform.python_version()} | {m.__name__: m.__version__ for m in modules}


def train_ours(job: dict[str, Any]) -> None:
    """`ippo.py` itself, with the clock where it collects, updates, evaluates and checkpoints."""
    import torch

    ippo: Any = importlib.import_module("ippo")
    clock = Clock(Path(job["folder"]))
    evaluate, save, gae, update = ippo.evaluate, ippo.save, ippo.gae, ippo.update
    obs = torch.ones(AGENTS, 1, WIDTH)

    @torch.no_grad()
    def timed_evaluate(agents, envs, episodes, entropy, device, frames=None):
        if entropy[-1] == 0:
            clock.start()  # making the environments and networks is no training
        with clock.stopped("collect"):
            if len(entropy) == 3:  # not the last one, of the best parameters
                found = agents.actor.state_dict() | {"obs": obs, "logits": agents.actor(obs)}
                clock.save(entropy[2], {name: x.numpy() for name, x in found.items()})
            return evaluate(agents, envs, episodes, entropy, device, frames)

    def timed_save(*args):
        with clock.stopped("collect"):
            save(*args)

    def timed_gae(*args):
        clock.lap("collect")
        return gae(*args)

    def timed_update(*args, **options):
        stats = update(*args, **options)
        clock.lap("update")
        return stats

    ippo.evaluate, ippo.save, ippo.gae, ippo.update = timed_evaluate, timed_save, timed_gae, timed_update
    sys.argv = ["ippo.py", "--env-id", "mpe/simple_spread", "--runs-dir", job["folder"]]
    sys.argv += ["--env-options", *(f"{name}={value}" for name, value in WORLD.items())]
    for name in ("seed", "total_timesteps", "eval_every"):
        sys.argv += [f"--{name.replace('_', '-')}", str(job[name])]
    ippo.main()
    clock.finish(versions=versions(torch, np))


def peer_env(seeds: Iterator[int], device: str) -> Any:
    """mpe2's environment as BenchMARL's PettingZoo task wraps it, without the channel nobody speaks on.

    BenchMARL gives every copy the same seed; here each takes its own, or 128 episodes would begin alike.
    """
    from gymnasium.spaces import Box
    from mpe2 import simple_spread_v3
    from pettingzoo.utils.wrappers import BaseParallelWrapper
    from torchrl.envs.libs.pettingzoo import PettingZooWrapper

    class Narrow(BaseParallelWrapper):
        def observation_space(self, agent):
            return Box(-np.inf, np.inf, (WIDTH,), np.float32)

        def reset(self, seed=None, options=None):
            obs, infos = super().reset(seed=seed, options=options)
            return {name: x[:WIDTH].astype(np.float32) for name, x in obs.items()}, infos

        def step(self, actions):
            obs, *rest = super().step(actions)
            return {name: x[:WIDTH].astype(np.float32) for name, x in obs.items()}, *rest

    env = Narrow(simple_spread_v3.parallel_env(N=AGENTS, local_ratio=0.0, max_cycles=LENGTH))
    return PettingZooWrapper(env=env, categorical_actions=True, seed=next(seeds), device=device)


def peer_experiment(job: dict[str, Any]) -> Any:
    """BenchMARL's experiment under the settings of `ippo.py`."""
    import torch
    from benchmarl.algorithms import IppoConfig
    from benchmarl.environments import PettingZooTask
    from benchmarl.environments.pettingzoo.common import PettingZooClass
    from benchmarl.experiment import Experiment, ExperimentConfig
    from benchmarl.models.mlp import MlpConfig

    seeds = itertools.count(1_000_000 * job["seed"])

    def get_env_fun(self, num_envs, continuous_actions, seed, device):
        return lambda: peer_env(seeds, device)

    PettingZooClass.get_env_fun = get_env_fun
    PettingZooClass.has_state = lambda self: False  # IPPO does not use it
    settings = job["settings"]
    rows = settings["num_envs"] * settings["num_steps"]
    wanted: dict[str, Any] = dict(share_policy_params=False, prefer_continuous_actions=False)
    wanted |= dict(clip_grad_val=PEER_CLIP, on_policy_n_envs_per_worker=settings["num_envs"])
    wanted |= dict(gamma=settings["gamma"], lr=settings["learning_rate"], adam_eps=1e-5)
    wanted |= dict(adam_extra_kwargs={"fused": True}, max_n_frames=job["total_timesteps"])
    wanted |= dict(on_policy_collected_frames_per_batch=rows, on_policy_minibatch_size=rows)
    wanted |= dict(on_policy_n_minibatch_iters=settings["update_epochs"])
    wanted |= dict(evaluation=False, loggers=[], create_json=False, save_folder=job["folder"])
    config = dataclasses.replace(ExperimentConfig.get_from_yaml(), **wanted)  # TypeError on another version's
    special = dict(share_param_critic=False, clip_epsilon=settings["clip_coef"], lmbda=settings["gae_lambda"])
    special |= dict(entropy_coef=settings["ent_coef"])
    algorithm = dataclasses.replace(IppoConfig.get_from_yaml(), **special)
    model = MlpConfig(num_cells=[128, 128], layer_class=torch.nn.Linear, activation_class=torch.nn.ReLU)
    task = PettingZooTask.SIMPLE_SPREAD.get_task({"N": AGENTS, "max_cycles": LENGTH, "local_ratio": 0.0})
    return Experiment(task, algorithm, model, job["seed"], config)


def train_peer(job: dict[str, Any]) -> None:
    """BenchMARL's experiment, with the clock in its callbacks."""
    import benchmarl
    import mpe2
    import pettingzoo
    import torch
    import torchrl
    from benchmarl.experiment import Callback
    from torchrl.modules import MultiAgentMLP

    torch.set_num_threads(1)
    clock, experiment = Clock(Path(job["folder"])), peer_experiment(job)
    (network,) = (m for m in experiment.policy.modules() if isinstance(m, MultiAgentMLP))
    ((group, agents),) = experiment.group_map.items()
    assert len(agents) == AGENTS

    def weights(obs: Any) -> dict[str, np.ndarray]:
        """The actors as ippo.py holds them, and what they answer to some observations (N, rows, dim)."""
        with torch.no_grad():
            found = {"obs": obs.transpose(0, 1), "logits": network(obs).transpose(0, 1)}
        for layer, name in enumerate(sorted({key[0] for key in network.params.keys(True, True)}, key=int)):
            found[f"weights.{layer}"] = network.params[name, "weight"].detach().mT
            found[f"biases.{layer}"] = network.params[name, "bias"].detach().unsqueeze(1)
        return {name: x.numpy() for name, x in found.items()}

    class Timer(Callback):
        def on_batch_collected(self, batch):
            clock.lap("collect")
            self.obs = batch[group, "observation"].flatten(0, 1)[:32]

        def on_train_end(self, training_td, group):
            clock.lap("update")
            if experiment.total_frames % job["eval_every"] == 0:
                with clock.stopped("update"):
                    clock.save(experiment.total_frames, weights(self.obs))

    timer = Timer()
    timer.experiment = experiment
    experiment.callbacks.append(timer)  # not given to Experiment(), which would pickle it
    reset = experiment.test_env.reset()[group, "observation"]
    clock.save(0, weights(reset.expand(32, *reset.shape)))
    clock.start()
    experiment.run()
    clock.finish(versions=versions(torch, np, benchmarl, torchrl, mpe2, pettingzoo))


def trace_peer(job: dict[str, Any]) -> None:
    """Two episodes of each copy of BenchMARL's environment: what they show and pay, in trace.npz."""
    import torch

    torch.set_num_threads(1)
    experiment = peer_experiment(job | {"total_timesteps": 3200})
    ((group, _),) = experiment.group_map.items()
    with torch.no_grad():  # by the untrained policies, that is nearly at random
        batch = experiment.env_func().rollout(2 * LENGTH, experiment.policy, break_when_any_done=False)
    names: dict[str, tuple[str, ...]] = {"obs": (group, "observation"), "actions": (group, "action")}
    names |= {"reward": ("next", group, "reward"), "next_obs": ("next", group, "observation")}
    names |= {name: ("next", name) for name in ("done", "terminated")}
    arrays = {name: batch[key].numpy() for name, key in names.items()}
    np.savez(Path(job["folder"]) / "trace.npz", allow_pickle=False, **arrays)


def compare_trace(trace: dict[str, np.ndarray]) -> dict[str, float]:
    """The episodes that BenchMARL played, played again by envs/mpe.py: the largest differences.

    trace: obs, next_obs (E, T, N, dim), actions (E, T, N), reward (E, T, N, 1), done, terminated (E, T, 1).
    AssertionError where the two are not one task.
    """
    from envs import mpe

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
    import torch

    import envs

    ippo: Any = importlib.import_module("ippo")
    worlds: Any = envs.make("mpe/simple_spread", 128, seed=1, **WORLD)
    agents = ippo.Agents(AGENTS, worlds.obs_dim, worlds.num_actions, layer_norm=False)
    with np.load(path) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    obs, logits = arrays.pop("obs"), arrays.pop("logits")
    agents.actor.load_state_dict(arrays)
    with torch.no_grad():
        gap = (agents.actor(obs) - logits).abs().max().item()
    assert gap < 1e-4 * (1 + logits.abs().max().item()), f"{path}: logits differ by {gap}."
    return ippo.evaluate(agents, worlds, episodes, entropy, "cpu")["eval/episodic_return"]


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


def interval(values: Sequence[float]) -> str:
    """Mean ± half the 95 % confidence interval over seeds (Student t; none for one seed)."""
    from benchmark.lib.statistics import mean_ci

    mean, _, high = (float(x[0]) for x in mean_ci([[value] for value in values]))
    return f"{mean:.2f} ± {high - mean:.2f}" if len(values) > 1 else f"{mean:.2f}"


def spread(values: np.ndarray) -> str:
    """Median and range over seeds."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: returns and speeds of each side, and the ratios of runs with the same seed.

    runs: dicts with side, seed, steps, final_return and, each a pair (wall-clock, processor), the seconds
    collect and update.
    """
    from benchmark.speed import markdown

    header = ["", "final return", "steps/s", "steps per CPU second", "CPU µs per step: collect", "update"]
    lines: list[list[str]] = []
    costs: dict[str, dict[int, np.ndarray]] = {side: {} for side in SIDES}  # µs of a step, as in the header
    for run in runs:
        collect, update = (1e6 * np.array(run[part]) / run["steps"] for part in ("collect", "update"))
        costs[run["side"]][run["seed"]] = np.array([*(collect + update), collect[1], update[1]])
    for side in SIDES:
        if costs[side]:
            wall, cpu, collect, update = np.median(list(costs[side].values()), axis=0)
            final = interval([run["final_return"] for run in runs if run["side"] == side])
            speeds = [f"{1e6 / wall:,.0f}", f"{1e6 / cpu:,.0f}", f"{collect:,.0f}", f"{update:,.0f}"]
            lines.append([f"{side}, {len(costs[side])} seeds", final, *speeds])
    both = set(costs[SIDES[0]]) & set(costs[SIDES[1]])
    if both:
        ratios = np.array([costs[SIDES[1]][seed] / costs[SIDES[0]][seed] for seed in both])
        lines.append(["as fast is ippo.py, times", "", *(spread(column) for column in ratios.T)])
    return markdown(header, lines)


def draw(out: Path, seeds: Sequence[int]) -> None:
    """Greedy returns of both sides against environment steps and against seconds, in curves.png."""
    from matplotlib.figure import Figure

    from benchmark.lib.drawing import STYLES

    figure = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for side, (colour, dashes), marker in zip(SIDES, STYLES[:2], "os", strict=True):
        paths = [out / f"{side}-{seed}.csv" for seed in seeds]
        curves = np.array([np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2) for path in paths])
        for ax, column, scale in ((left, 0, 1e3), (right, 1, 60.0)):
            for curve in curves:
                ax.plot(curve[:, column] / scale, curve[:, 3], dashes, color=colour, lw=0.7, alpha=0.5)
            mean = curves.mean(axis=0)
            points = dict(marker=marker, ms=5, mfc="white", color=colour, label=side)
            ax.plot(mean[:, column] / scale, mean[:, 3], dashes, **points)
    with open(ROOT / "benchmark" / "results" / "mpe" / "reference.csv", newline="") as file:
        rows = [x for x in csv.DictReader(file) if (x["task"], x["variant"]) == ("simple_spread", VARIANT)]
    floors = {x["policy"]: float(x["episodic_return"]) for x in rows if int(x["num_agents"]) == AGENTS}
    for ax, policy in itertools.product((left, right), ("random", "noop")):
        ax.axhline(floors[policy], color="#555555", lw=1.0, ls=":")
        ax.annotate(
            policy, (1, floors[policy]), (-3, 2), ("axes fraction", "data"), "offset points", ha="right"
        )
    left.set_ylim(bottom=floors["random"] - 3)  # untrained policies earn far less
    left.set(xlabel="environment steps (thousands)", ylabel="greedy return of an episode")
    right.set(xlabel="minutes of training, wall clock, one thread")
    for ax in (left, right):
        ax.grid(axis="y", color="#dddddd", lw=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, loc="center right")
    title = f"mpe2's simple_spread, N = {AGENTS}; thin: seeds {', '.join(map(str, seeds))}, thick: their mean"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(out / "curves.png", metadata={"Software": None})


def start(python: str, what: str, job: dict[str, Any]) -> None:
    """One of INSIDE in a process of its own, whose folder is made; SystemExit if it fails."""
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{what}.log", "w") as log:
        command = [python, __file__, "--inside", what, json.dumps(job)]
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        raise SystemExit(f"peer_ippo: {what} failed with code {code}; {folder / f'{what}.log'} says why.")


INSIDE = {"ours": train_ours, "peer": train_peer, "trace": trace_peer}


def run_one(args: Args, side: str, job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Trains and evaluates one run unless that was done before; its facts, as `table` takes them."""
    facts = out / f"{side}-{job['seed']}.json"
    settled = {name: value for name, value in job.items() if name != "folder"} | {"episodes": args.episodes}
    if facts.exists():
        found = json.loads(facts.read_text())
        if found["job"] == settled:
            return found
    ours = side == SIDES[0]
    start(sys.executable if ours else args.peer_python, "ours" if ours else "peer", job)
    folder = Path(job["folder"])
    done = json.loads((folder / "done.json").read_text())
    for row in done["rows"]:
        entropy = [job["seed"], int(row["global_step"])]
        row["eval_return"] = evaluate_weights(folder / f"{row['global_step']}.npz", args.episodes, entropy)
    with open(out / f"{side}-{job['seed']}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in done["rows"])
    run = {"side": side, "seed": job["seed"], "steps": job["total_timesteps"]} | done["parts"]
    run |= {"final_return": done["rows"][-1]["eval_return"], "load": done["load"]}
    run |= {"versions": done["versions"], "job": settled}
    facts.write_text(json.dumps(run, indent=1) + "\n")
    return run


def main() -> None:
    import tyro

    ippo: Any = importlib.import_module("ippo")
    args = tyro.cli(Args, description=__doc__)
    reason = missing(args.peer_python)
    if reason:
        raise SystemExit(f"peer_ippo: {reason}")
    preset = ippo.Args(env_id="mpe/simple_spread")
    names = ["learning_rate", "gamma", "gae_lambda", "update_epochs", "ent_coef", "clip_coef"]
    settings = {name: getattr(preset, name) for name in names}
    settings |= {name: ippo.PRESETS["mpe"][name] for name in ("num_envs", "num_steps")}
    batch = settings["num_envs"] * settings["num_steps"]
    if args.eval_every % batch or args.total_timesteps % args.eval_every:
        raise SystemExit(f"peer_ippo: --total-timesteps must be a multiple of --eval-every, that of {batch}.")
    job = {"settings": settings, "total_timesteps": args.total_timesteps, "eval_every": args.eval_every}
    out, work = Path(args.out), Path(args.work)
    out.mkdir(parents=True, exist_ok=True)
    start(args.peer_python, "trace", job | {"seed": 0, "folder": str(work / "trace")})
    with np.load(work / "trace" / "trace.npz") as file:
        worst = compare_trace(dict(file))
    print("The same task; largest differences:", ", ".join(f"{k} {v:.1e}" for k, v in worst.items()))
    runs = []
    for turn, seed in enumerate(args.seeds):
        for side in SIDES[:: 1 if turn % 2 == 0 else -1]:
            one = job | {"seed": seed, "folder": str(work / f"{side}-{seed}")}
            runs.append(run_one(args, side, one, out))
            print(f"{side}, seed {seed}: return {runs[-1]['final_return']:.2f}", flush=True)
    (out / "table.md").write_text(table(runs) + "\n")
    print(table(runs))
    draw(out, args.seeds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        INSIDE[sys.argv[2]](json.loads(sys.argv[3]))
    else:
        main()
