"""Finished runs in the schema that marl-eval reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmark.lib.cells import Cell
from benchmark.lib.runs import RETURN, WIN_RATE, ResultsError, Run

NAMES = {RETURN: "return", WIN_RATE: "win_rate"}


def marl_eval(cells: Sequence[Cell]) -> dict[str, Any]:
    """environment, task, algorithm, run, step_k.

    marl-eval refuses an environment whose tasks do not have the same algorithms, so each panel of the figure
    is one, with those that all its tasks have; whose algorithms do not have the same seeds, so only common
    ones are exported; whose runs do not have equally many evaluations, so as many as the shortest run has are
    chosen, evenly; and commas in names.
    """
    found: dict[str, dict[str, dict[str, dict[str, Run]]]] = {}
    for cell in cells:
        environment = " ".join(filter(None, [cell.family, cell.panel]))
        algorithms = found.setdefault(environment, {}).setdefault(cell.task, {})
        for group in cell.groups:
            done = {f"seed_{run.seed}": run for run in group.runs if run.finished}
            if done:
                algorithms[group.method.replace(",", "")] = done
    return {environment: export(tasks) for environment, tasks in found.items()}


def export(tasks: dict[str, dict[str, dict[str, Run]]]) -> dict[str, Any]:
    """One environment: the algorithms that all its tasks have, with the seeds that all of these have, and
    equally many evaluations. ResultsError where nothing is common to all."""
    shared = set.intersection(*map(set, tasks.values()))
    algorithms = [runs for methods in tasks.values() for name, runs in methods.items() if name in shared]
    common = set.intersection(*map(set, algorithms)) if algorithms else set()
    if not common:
        raise ResultsError(f"no algorithm has finished with the same seed on all of {', '.join(tasks)}.")
    count = min(len(runs[seed].steps) for runs in algorithms for seed in common)
    return {
        task: {
            method: {seed: entry(run, count) for seed, run in runs.items() if seed in common}
            for method, runs in methods.items()
            if method in shared
        }
        for task, methods in tasks.items()
    }


def entry(run: Run, count: int) -> dict[str, Any]:
    """One run: `count` of its evaluations, and the absolute metrics."""
    told: dict[str, Any] = {}
    for k, i in enumerate(np.linspace(0, len(run.steps) - 1, count).round().astype(int)):
        values = {name: run.columns[column][i] for column, name in NAMES.items() if column in run.columns}
        logged = {name: [float(x)] for name, x in values.items() if not math.isnan(x)}
        told[f"step_{k}"] = {"step_count": int(run.steps[i])} | logged
    absolute = {"return": run.absolute_return, "win_rate": run.absolute_win_rate}
    told["absolute_metrics"] = {name: [x] for name, x in absolute.items() if not math.isnan(x)}
    return told
