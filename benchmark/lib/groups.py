"""The seeds of one method in one environment, and the words for where their numbers come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmark.lib.runs import Array, ResultsError, Run
from benchmark.lib.statistics import interpolate

# Settings that seeds of one method may differ in, besides how far they went, where and with which versions.
MAY_DIFFER = {"eval_only", "capture_video", "torch_threads", "compile", "memory_share", "checkpoint_every"}
MAY_DIFFER |= {"backend"}  # which one was asked for; the one that played is compared
MAY_DIFFER |= {"resumed"}  # with which versions and on which machine a run went on
MAY_DIFFER |= {"collect", "update", "load"}  # what peer_ippo.py measured
# Flags that came after runs were published, with what those did: keys leave them out while they are so.
LATER = {"advantage_norm": True, "obs_norm": True}
EMBEDDED = "backend=embedded"  # how baselines ask for the engine, which they play without StarCraft anyway


@dataclass
class Group:
    """The seeds of one method in one environment."""

    runs: list[Run]
    until: float = math.inf
    """Evaluations after this step are left out: another method that it is compared with has none."""

    @property
    def method(self) -> str:
        return self.runs[0].method

    def steps(self) -> Array:
        """The evaluation grid that all seeds reached: the shortest run's up to `until`, (points,)."""
        grid = min((run.steps for run in self.runs), key=lambda steps: steps[-1])
        return grid[grid <= self.until]

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
    settings = group.runs[0].settings
    target, delta = (float(settings.get(name, math.nan)) for name in ("d_target", "delta"))
    return target / delta, target, target * delta


def end_together(groups: Sequence[Group]) -> None:
    """Lets finished runs of one budget end with the last evaluation that all of them have.

    Scripts of before did not evaluate at the very end: a mean over the last tenth would be of other steps.
    """
    budgets: dict[float, list[Group]] = {}
    for group in groups:
        if all(run.finished for run in group.runs):
            budgets.setdefault(group.runs[0].total_timesteps, []).append(group)
    for members in budgets.values():
        end = min(float(group.steps()[-1]) for group in members)
        for group in members:
            group.until = end


def check_alike(group: Group) -> None:
    """ResultsError where seeds differ in settings: their mean would be of no method."""
    first, *others = group.runs
    for other in others:
        settings = (first.settings.keys() | other.settings.keys()) - MAY_DIFFER
        differ = [name for name in settings if setting(first, name) != setting(other, name)]
        differ += [name for name in ("env", "backend") if getattr(first, name) != getattr(other, name)]
        if differ:
            raise ResultsError(
                f"seeds {first.seed} and {other.seed} of {first.method} in {first.env} differ in "
                f"{', '.join(sorted(differ))}; delete the rows of {first.key} or {other.key} in runs.csv, "
                "or record it with another --label."
            )


def setting(run: Run, name: str) -> Any:
    """What seeds must agree in; of the backend the one that played is compared, not the one asked for."""
    value = run.settings.get(name, LATER.get(name))
    return [option for option in value if option != EMBEDDED] if name == "env_options" and value else value


# --- words ------------------------------------------------------------------------------------------------


def million(steps: float) -> str:
    """Steps in words: 1.5 M, 20 k."""
    return f"{steps / 1e6:.3g} M" if steps >= 999_500 else f"{steps / 1e3:.3g} k"


def engine(run: Run) -> str:
    """What simulated the run."""
    if run.backend == "embedded" and run.env.startswith("smac"):
        version = run.settings.get("engine_version", "")  # the first version's runs hold none
        return f"embedded engine {version}".rstrip() + ", not StarCraft II"
    if run.env.startswith("matrix"):
        return "tabular game"
    if run.backend == "starcraft":
        return f"StarCraft II {run.settings.get('game_version', '')}".strip()
    return f"engine: {run.backend}"


def provenance(groups: Sequence[Group]) -> str:
    """Seeds, budget, engine and commits behind a figure."""
    told: dict[str, list[Group]] = {}
    for group in groups:
        seeds = ", ".join(str(run.seed) for run in group.runs)
        budgets = sorted({run.total_timesteps for run in group.runs})
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
    methods: dict[str, dict[str, None]] = {}
    for group in groups:
        methods.setdefault(group.runs[0].env, {})[group.method] = None
    return {env: list(names) for env, names in methods.items()}


def origins(groups: Sequence[Group]) -> list[str]:
    """Engines, devices and commits that runs were made with."""
    runs = [run for group in groups for run in group.runs]
    on_gpu = sum(run.device != "cpu" for run in runs)
    devices = [f"{on_gpu} of {len(runs)} runs on a GPU"] if on_gpu else []
    resumed = [later for run in runs for later in run.settings.get("resumed", [])]
    made = [run.git_commit for run in runs] + [
        later["git_commit"] for later in resumed if "git_commit" in later
    ]
    commits = sorted({commit[:7] for commit in made})
    engines = sorted({engine(run) for run in runs})
    return [*engines, *devices, f"git commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}"]


def unfinished(group: Group) -> list[str]:
    """How far seeds came that were stopped before their budget, and what that does to the mean."""
    short = [run for run in group.runs if not run.finished]
    reached = [f"seed {run.seed} stopped at {million(run.steps_reached)}" for run in short]
    ends = {float(run.steps[-1]) for run in group.runs}
    if len(ends) > 1:
        reached.append(f"mean and band end where the shortest run does, at {million(min(ends))}")
    return reached
