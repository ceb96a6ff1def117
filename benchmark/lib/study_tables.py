"""Tables that only studies have: what surrogates do to the policies, BenchMARL, who wins on every map."""

from __future__ import annotations

import csv
from collections.abc import Sequence

import numpy as np

from benchmark.lib.cells import Cell
from benchmark.lib.groups import Group
from benchmark.lib.runs import Array, ResultsError, Run
from benchmark.lib.store import PUBLISHED
from benchmark.lib.tables import markdown, plus_minus

SIDES = ("ippo.py", "BenchMARL")


def learning_table(cells: Sequence[Cell]) -> str:
    """KL of an update, how evenly it is spread, entropy and explained variance, means over seeds."""
    rows = []
    for cell in cells:
        for group in cell.groups:
            KL, late_KL = mean_cell(group, "dpo/kl", 1.0, 4), mean_cell(group, "dpo/kl", 0.25, 4)
            entropy = mean_cell(group, "losses/entropy", 0.25, 2)
            explained = mean_cell(group, "losses/explained_variance", 0.25, 2)
            rows.append([cell.task, group.method, KL, late_KL, evenness(group), entropy, explained])
    head = ["environment", "method", "KL of an update", "KL, last quarter", "evenness"]
    head += ["entropy, last quarter", "explained variance, last quarter"]
    return f"""{markdown(head, rows)}
Means over updates and seeds, of the whole run or of its last quarter; KL and entropy in nats.
Evenness is (E √KL)² / E KL over states, agents and the updates between two evaluations: 1 if all move alike,
less the fewer carry the change.
"""


def late(group: Group, column: str, share: float) -> Array:
    """A column over the last share of the steps, (seeds, points) without evaluations that logged nothing."""
    values, steps = group.values(column), group.steps()
    values = values[:, steps >= (1 - share) * steps[-1]]
    return values[:, ~np.isnan(values).any(axis=0)]


def mean_cell(group: Group, column: str, share: float, digits: int) -> str:
    """The mean of a column over the last share of the steps."""
    return f"{late(group, column, share).mean():.{digits}f}" if group.has(column) else "–"


def evenness(group: Group) -> str:
    """(E √KL)² / E KL, the mean of what it is between one evaluation and the next."""
    if not group.has("dpo/kl", "dpo/sqrt_kl"):
        return "–"
    return f"{(late(group, 'dpo/sqrt_kl', 1.0) ** 2 / late(group, 'dpo/kl', 1.0)).mean():.2f}"


def costs(run: Run) -> Array:
    """Microseconds of a step: wall clock; processor; of these, to collect; to update."""
    collect, update = (
        1e6 * np.array(run.settings[part]) / run.steps_reached for part in ("collect", "update")
    )
    return np.array([*(collect + update), collect[1], update[1]])


def spread(values: Array) -> str:
    """Median and range over seeds."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def peer_table(runs: Sequence[Run]) -> str:
    """Returns and speeds of `ippo.py` and BenchMARL, and the ratios of runs with the same seed.

    Their settings have the seconds (wall clock, processor) of collecting and of updating.
    """
    rows: list[list[str]] = []
    of_seed: dict[str, dict[int, Array]] = {}
    for side in SIDES:
        ours = [run for run in runs if run.method == side]
        if ours:
            of_seed[side] = {run.seed: costs(run) for run in ours}
            wall, cpu, collect, update = np.median(list(of_seed[side].values()), axis=0)
            final = plus_minus([run.absolute_return for run in ours], 2)
            speeds = [f"{1e6 / wall:,.0f}", f"{1e6 / cpu:,.0f}", f"{collect:,.0f}", f"{update:,.0f}"]
            rows.append([f"{side}, {len(ours)} seeds", final, *speeds])
    if len(of_seed) == len(SIDES):
        ours_by_seed, theirs = (of_seed[side] for side in SIDES)
        both = ours_by_seed.keys() & theirs.keys()
        ratios = np.array([theirs[seed] / ours_by_seed[seed] for seed in both])
        rows.append(["as fast is ippo.py, times", "", *map(spread, ratios.T)])
    head = ["", "final return", "steps/s", "steps per CPU second", "CPU µs per step: collect", "update"]
    return markdown(head, rows)


def battles_table(cells: Sequence[Cell]) -> str:
    """Random, scripted and trained play of every map, wins and returns; the scripts' by calibrate_smac.py."""
    path = PUBLISHED / "scripted_play.csv"
    with open(path, newline="") as file:
        played = list(csv.DictReader(file))
    names = {row["map"]: f"smac-{row['map']}-embedded{row['engine_version']}" for row in played}
    trained = {cell.env: max(cell.groups, key=absolute) for cell in cells}
    versions = {(row["map"], row["engine_version"]) for row in played}
    if not trained.keys() <= set(names.values()) or len(versions) > len(names):
        raise ResultsError(
            f"{path} has maps of another version of the engine than the runs, or of two; play them again."
        )
    scripts = list(dict.fromkeys(row["policy"] for row in played))
    by_map: dict[str, dict[str, str]] = {}
    for row in played:
        found = f"{100 * float(row['win_rate']):.1f} %, {float(row['return']):.1f}"
        by_map.setdefault(row["map"], {})[row["policy"]] = found
    rows = []
    for name, own in by_map.items():
        group = trained.get(names[name])
        rows.append([name, *(own.get(script, "–") for script in scripts), told(group) if group else "–"])
    counts = sorted({int(row["episodes"]) for row in played})
    return f"""{markdown(["map", *scripts, "trained"], rows)}
Wins and mean return. Scripts: {counts[0]} battles or more each. random: uniform over available actions;
script: the enemy's on both sides; near: the nearest enemy that SMAC lets attack; line: back into a line,
then fire on one after another (written for marines). Trained: the best parameters of each seed, 320 greedy
episodes, mean over seeds; –: none among
the runs above.
"""


def absolute(group: Group) -> tuple[float, float]:
    """Win rate and return of the best parameters, means over seeds."""
    wins, returns = zip(*((run.absolute_win_rate, run.absolute_return) for run in group.runs), strict=True)
    return float(np.mean(wins)), float(np.mean(returns))


def told(group: Group) -> str:
    """What a group of runs came to, for a table cell."""
    win, score = absolute(group)
    steps = min(run.steps_reached for run in group.runs)
    seeds = f"{len(group.runs)} seed{'s' * (len(group.runs) > 1)}"
    return f"{100 * win:.1f} %, {score:.1f} ({group.method}, {steps / 1000:,.0f}k steps, {seeds})"
