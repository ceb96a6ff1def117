"""Runs whose curves are made up, so that it is known what a test of the paper's claims must find in them."""

from math import nan

import numpy as np

from benchmark.lib.cells import Cell
from benchmark.lib.groups import Group
from benchmark.lib.runs import RETURN, Run

POINTS, EVERY = 21, 1_000  # evaluations of a made-up run, and steps between them
K = np.arange(POINTS)
D_TARGET, DELTA = 0.02, 1.5  # the upper end of the band is 0.03


def group(method, columns, optimum=nan, finished=True):
    """A run per entry; columns: name -> values (seeds, points)."""
    runs = []
    for seed, values in enumerate(zip(*columns.values(), strict=True), start=1):
        steps = EVERY * np.arange(len(values[0]), dtype=float)
        logged = dict(zip(columns, map(np.asarray, values), strict=True))
        told = dict.fromkeys(
            ("env", "script", "label", "git_commit", "machine", "backend", "started"), "made"
        )
        told |= {"key": f"{method}__{seed}", "seed": seed, "device": "cpu", "method": method}
        told |= {"settings": {"d_target": D_TARGET, "delta": DELTA}, "versions": {}, "optimum": optimum}
        told |= {"steps_reached": int(steps[-1]), "total_timesteps": 300_000.0}
        told |= {"absolute_return": 1.0 if finished else nan, "absolute_win_rate": nan}
        runs.append(Run(**told, columns={"step": steps, **logged}))
    return Group(runs)


def cell(curves, task="task", metric=RETURN, finished=True, **options):
    """A task; curves: method -> values of its metric (seeds, points), or columns."""
    groups = [
        group(name, x if isinstance(x, dict) else {metric: x}, finished=finished, **options)
        for name, x in curves.items()
    ]
    return Cell(task, "", tuple(curves), metric, groups)


def found(test, *args, **options):
    """What a test finds on a made-up task: method -> sign."""
    made = cell(*args, **options)
    return {
        name: finding.sign
        for name, finding in test.look(made, {group.method: group for group in made.groups})
    }


def words(test, *args, **options):
    """method -> the number behind the sign."""
    made = cell(*args, **options)
    looked = test.look(made, {group.method: group for group in made.groups})
    return {name: finding.words for name, finding in looked}


def rising(*ends, start=0.0, at=5):
    """Straight from `start` to the seed's end, reached at evaluation `at`, and flat from there."""
    return np.array([start + (end - start) * np.minimum(K / at, 1) for end in ends])


HIGH, LOW, WIDE = rising(10, 11, 12), rising(1, 2, 3), rising(1, 6, 11)


def iteration(J, p=(0.5, 0.9, 0.9), q=(0.5, 0.9, 0.9)):
    """J, p and q of an iteration that starts at these and then stays."""
    return {name: [np.pad(x, (0, 21 - len(x)), mode="edge")] for name, x in (("J", J), ("p", p), ("q", q))}


def games(*iterations):
    """A game with these iterations, whose best J is 10."""
    return cell({f"M̂ {i}": columns for i, columns in enumerate(iterations)}, optimum=10.0)


RISES, STANDS = iteration((5, 8, 10)), iteration((5,), (0.5,), (0.5,))
