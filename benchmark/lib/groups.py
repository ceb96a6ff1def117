"""Collected runs, grouped into the seeds of one method in one environment; where their numbers come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.lib.records import STEP, CollectError, read_json, read_table
from benchmark.lib.statistics import Array, interpolate

# What seeds of one method may differ in: how far they went, and where and with which versions they ran.
MAY_DIFFER = {"seed", "started", "last_step", "absolute", "total_timesteps", "eval_only", "capture_video"}
MAY_DIFFER |= {"git_commit", "machine", "device", "torch_threads", "compile", "memory_share"}
MAY_DIFFER |= {"checkpoint_every", "key"}
MAY_DIFFER |= {"python", "torch", "numpy", "numba", "gymnasium", "mujoco", "pettingzoo"}


@dataclass
class Run:
    """One seed: its columns on the grid of its evaluations, float64 (points,), and what its .json says."""

    columns: dict[str, Array]
    info: dict[str, Any]

    @property
    def env(self) -> str:
        return str(self.info["env"])

    @property
    def method(self) -> str:
        """What curves are told apart by: the name that a figure gives, else script and label."""
        return str(self.info.get("method", "")) or " ".join(
            filter(None, [self.info["script"], self.info.get("label", "")])
        )

    @property
    def steps(self) -> Array:
        return self.columns[STEP]


@dataclass
class Group:
    """The seeds of one method in one environment."""

    runs: list[Run]

    @property
    def method(self) -> str:
        return self.runs[0].method

    def steps(self) -> Array:
        """The evaluation grid that all seeds reached: the shortest run's, (points,)."""
        return min((run.steps for run in self.runs), key=lambda steps: steps[-1])

    def values(self, column: str) -> Array:
        """A column on that grid, (seeds, points); nan where nothing was logged.

        Seeds whose evaluations fell on other steps are interpolated linearly.
        """
        return np.stack([interpolate(self.steps(), run.steps, run.columns[column]) for run in self.runs])

    def has(self, *columns: str) -> bool:
        """Whether every seed logged every one of these columns at some time."""
        logged = (run.columns.get(column, np.empty(0)) for run in self.runs for column in columns)
        return all(not np.isnan(values).all() for values in logged)


def band_shares(group: Group) -> Array:
    """Shares of updates with KL below, inside and above the band of eq. (21): (3, seeds, points)."""
    below, above = group.values("dpo/below_band"), group.values("dpo/above_band")
    return np.stack([below, 1 - below - above, above])


def band(group: Group) -> tuple[float, float, float]:
    """Lower end, target and upper end of the band of eq. (21)."""
    info = group.runs[0].info
    target, delta = float(info.get("d_target", math.nan)), float(info.get("delta", math.nan))
    return target / delta, target, target * delta


# --- reading ----------------------------------------------------------------------------------------------


def read_run(path: Path, step: str = STEP) -> Run:
    """A collected run, from its CSV file and the .json beside it; CollectError where it cannot be read."""
    info = read_json(path.with_suffix(".json"))
    absent = [name for name in ("env", "script", "seed", "last_step") if name not in info]
    columns = {name: np.array(values) for name, values in read_table(path, step).items()}
    if absent or not len(columns[step]):
        raise CollectError(f"{path} is not a file of benchmark/collect.py's; collect the run again.")
    return Run(columns, info)


def read_runs(folder: Path) -> list[Run]:
    """All runs in a folder of collect.py's, ordered by name; CollectError where one cannot be read."""
    runs = [read_run(path) for path in sorted(folder.glob("*__*.csv"))]
    if not runs:
        raise CollectError(f"{folder} holds no collected run; make some with benchmark/collect.py.")
    return runs


def group_runs(runs: Sequence[Run]) -> dict[str, list[Group]]:
    """Environment -> its groups, one per method, the runs of each ordered by seed.

    CollectError where runs of one method differ in more than MAY_DIFFER: their mean would be of no method.
    """
    groups: dict[str, dict[str, Group]] = {}
    for run in sorted(runs, key=lambda run: (run.env, run.method, int(run.info["seed"]))):
        groups.setdefault(run.env, {}).setdefault(run.method, Group([])).runs.append(run)
    for members in groups.values():
        for group in members.values():
            check_alike(group, "collect one of them with another --label")
    return {env: list(members.values()) for env, members in groups.items()}


def check_alike(group: Group, remedy: str) -> None:
    """CollectError, with what to do, where seeds differ in settings."""
    first, *others = group.runs
    for other in others:
        settings = (first.info.keys() | other.info.keys()) - MAY_DIFFER
        differ = sorted(name for name in settings if first.info.get(name) != other.info.get(name))
        if differ:
            which = f"seeds {first.info['seed']} and {other.info['seed']} of {first.method} in {first.env}"
            raise CollectError(f"{which} differ in {', '.join(differ)}; {remedy}.")


# --- words ------------------------------------------------------------------------------------------------


def million(steps: float) -> str:
    """Steps in words: 1.5 M, 20 k."""
    return f"{steps / 1e6:.3g} M" if steps >= 999_500 else f"{steps / 1e3:.3g} k"


def engine(run: Run) -> str:
    """What simulated the run."""
    if run.info.get("backend") == "embedded" and run.env.startswith("smac"):
        return "embedded engine, not StarCraft II"
    if run.info.get("backend") == "starcraft":
        return " ".join(["StarCraft II", str(run.info.get("game_version", ""))]).strip()
    return f"engine: {run.info.get('backend', 'not recorded')}"


def provenance(groups: Sequence[Group]) -> str:
    """Seeds, budget, engine and commits behind a figure."""
    told: dict[str, list[Group]] = {}
    for group in groups:
        seeds = ", ".join(str(run.info["seed"]) for run in group.runs)
        budgets = sorted({float(run.info.get("total_timesteps", run.steps[-1])) for run in group.runs})
        story = [f"seed{'s' if len(group.runs) > 1 else ''} {seeds}"]
        story += [f"budget {' or '.join(map(million, budgets))} environment steps", *unfinished(group)]
        told.setdefault("; ".join(story), []).append(group)
    parts = [f"{whose(who, groups)}: {story}" if len(told) > 1 else story for story, who in told.items()]
    return "; ".join(parts + origins(groups)) + "."


def whose(some: Sequence[Group], groups: Sequence[Group]) -> str:
    """Names some of these groups: by environment, and by method where it is not all of that environment."""
    chosen, methods = methods_by_env(some), methods_by_env(groups)
    envs: dict[str, list[str]] = {}
    for env, names in chosen.items():
        envs.setdefault("" if names == methods[env] else f"{' / '.join(names)} on ", []).append(env)
    return " and ".join(names + ", ".join(where) for names, where in envs.items())


def methods_by_env(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Environment -> the methods that these groups have there."""
    methods: dict[str, list[str]] = {}
    for group in groups:
        methods.setdefault(group.runs[0].env, []).append(group.method)
    return methods


def origins(groups: Sequence[Group]) -> list[str]:
    """Engines, devices and commits that runs were made with."""
    runs = [run for group in groups for run in group.runs]
    on_gpu = sum(run.info.get("device", "cpu") != "cpu" for run in runs)
    devices = [f"{on_gpu} of {len(runs)} runs on a GPU"] if on_gpu else []
    commits = sorted({str(run.info.get("git_commit", "unknown"))[:7] for run in runs})
    engines = sorted({engine(run) for run in runs})
    return [*engines, *devices, f"git commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}"]


def unfinished(group: Group) -> list[str]:
    """How far seeds came that were stopped before their budget, and what that does to the mean."""
    short = [run for run in group.runs if run.info.get("absolute") is None]
    reached = [f"seed {run.info['seed']} stopped at {million(run.info['last_step'])}" for run in short]
    ends = {float(run.steps[-1]) for run in group.runs}
    if len(ends) > 1:
        reached.append(f"mean and band end where the shortest run does, at {million(min(ends))}")
    return reached
