"""What one set of axes shows: a task with the runs of each method; scores, aggregates and tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmark.lib.groups import Group
from benchmark.lib.runs import KL, RETURN, WIN_RATE, Array
from benchmark.lib.statistics import bootstrap_iqm, final_means, improvement, run_means, welch
from benchmark.lib.store import read_references
from benchmark.lib.tables import markdown
from envs.smac.generated import GENERATED
from envs.smac.maps import MAPS

SUMMARIES = {"final": final_means, "over the run": run_means}
BY_THE_BEST = "0: untrained, 1: the best mean of the methods with most seeds, for want of a reference"


@dataclass
class Cell:
    """A task: a set of axes, with a group of runs per method. Cells of one panel share methods and styles."""

    task: str
    panel: str
    methods: tuple[str, ...]  # all of the panel, whatever is missing here
    metric: str
    groups: list[Group]

    @property
    def title(self) -> str:
        return f"{self.task} ({self.panel})" if self.panel else self.task

    @property
    def has_first(self) -> bool:
        """Whether the method is there that the panel's others are compared with."""
        return any(group.method == self.methods[0] for group in self.groups)

    @property
    def env(self) -> str:
        return self.groups[0].runs[0].env

    @property
    def family(self) -> str:
        return self.env.partition("-")[0]

    @property
    def references(self) -> dict[str, float]:
        """Returns to compare with, by name: the optimum of a game, and what scripts earn."""
        optima = [run.optimum for group in self.groups for run in group.runs if not math.isnan(run.optimum)]
        return {"optimum": optima[0]} | read_references(self.env) if optima else read_references(self.env)

    @property
    def has_hours(self) -> bool:
        """Whether time tells methods apart: not where some ran on a GPU and others did not, nor on the game,
        where dpo_matrix.py sums the samples of a state and baselines do not."""
        runs = [run for group in self.groups for run in group.runs]
        scripts = {run.script for run in runs} if self.family == "matrix" else {""}
        return len(scripts) == len({run.device for run in runs}) == 1

    def scores(self, method: str, summary: Callable[[Array], Array] = final_means) -> dict[int, float]:
        """Normalised scores of a method by seed; `summary` makes them of evaluations (seeds, points)."""
        for group in self.groups:
            done = all(run.finished for run in group.runs)  # else their end would be where one stands
            if group.method == method and group.has(self.metric) and done:
                scores = self.normalised(summary(group.values(self.metric))).tolist()
                return {run.seed: score for run, score in zip(group.runs, scores, strict=True)}
        return {}

    def normalised(self, values: Array) -> Array:
        """Scores on a scale that tasks share; `scale` says which."""
        low, high, _ = self.scale()
        return (values - low) / (high - low) if high > low else np.zeros_like(values)

    def scale(self) -> tuple[float, float, str]:
        """What counts as 0, what as 1, and the words for it."""
        references = self.references
        if self.metric == WIN_RATE:
            return 0.0, 1.0, "win rate"
        if "optimum" in references:
            return 0.0, references["optimum"], "share of the optimum"
        if {"random", "greedy"} <= references.keys():
            words = "0: random play, 1: a script that sees everything"
            return references["random"], references["greedy"], words
        untrained = np.concatenate([group.values(RETURN)[:, 0] for group in self.groups])
        most = max(len(group.runs) for group in self.groups)  # a single seed may be the best by luck
        known = [group for group in self.groups if len(group.runs) == most]
        best = max(float(final_means(group.values(RETURN)).mean()) for group in known)
        return float(untrained.mean()), best, BY_THE_BEST


def today(task: str) -> int:
    """The version of SMAC's engine that plays a task (smac-8m, smac-8m-embedded2) today; 0 of other maps."""
    name = task.removeprefix("smac-").partition("-embedded")[0]
    maps = MAPS | GENERATED
    return maps[name].version if name in maps else 0


def by_panel(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells of each panel; battles that the engine plays otherwise by now are a panel of their own."""
    panels: dict[tuple[str, str, bool], list[Cell]] = {}
    for cell in cells:
        of_today = cell.family != "smac" or cell.env.endswith(f"-embedded{today(cell.task)}")
        panels.setdefault((cell.panel, cell.metric, of_today), []).append(cell)
    return list(panels.values())


def shown(cells: Sequence[Cell]) -> list[Cell]:
    """The cells that are worth a picture: not those without their panel's first method that would show what
    another panel of the task shows as well."""
    runs = [{run.key for group in cell.groups for run in group.runs} for cell in cells]

    def again(i: int) -> bool:
        same = (j for j, cell in enumerate(cells) if cell.task == cells[i].task and j != i)
        return any(runs[i] < runs[j] or (runs[i] == runs[j] and j < i) for j in same)

    return [cell for i, cell in enumerate(cells) if cell.has_first or not again(i)]


def aggregates(cells: Sequence[Cell]) -> list[tuple[list[Cell], str]]:
    """Panels of which at least two tasks are there, with at least two methods that all of these have, to be
    compared with each other; each with the words for how scores are normalised."""
    several = [members for members in by_panel(cells) if len(members) > 1 and members[0].metric != KL]
    return [
        (members, "; ".join(dict.fromkeys(cell.scale()[2] for cell in members)))
        for members in several
        if len(seeds_in_all(members)) > 1
    ]


def seeds_in_all(cells: Sequence[Cell]) -> dict[str, int]:
    """Of each method that all tasks have, how many seeds the task with the fewest has of it."""
    counts = {x.method: min(len(cell.scores(x.method)) for cell in cells) for x in cells[0].groups}
    return {method: seeds for method, seeds in counts.items() if seeds}


def interquartile_means(
    cells: Sequence[Cell], summary: Callable[[Array], Array] = final_means
) -> dict[str, tuple[float, float, float]]:
    """IQM of normalised scores over tasks and its interval, per method that all tasks have.

    Every task counts as many seeds as the one with the fewest has. Of one or two seeds there is no interval:
    it would be narrower than that of five.
    """
    found = {}
    for method, seeds in seeds_in_all(cells).items():
        columns = [list(cell.scores(method, summary).values()) for cell in cells]
        value, low, high = bootstrap_iqm(np.array([column[:seeds] for column in columns]).T)
        found[method] = (value, low, high) if seeds > 2 else (value, value, value)
    return found


def with_interval(value: float, low: float, high: float) -> str:
    """An interquartile mean in a table."""
    return f"{value:.3f} ({low:.3f} to {high:.3f})" if high > low else f"{value:.3f}"


def aggregate_table(cells: Sequence[Cell]) -> str:
    """Markdown tables of the interquartile means, and how they are normalised."""
    text = ""
    for members, words in aggregates(cells):
        tasks = ", ".join(cell.task for cell in members)
        means = [interquartile_means(members, summary) for summary in SUMMARIES.values()]
        rows = [
            [method, str(seeds), *(with_interval(*found[method]) for found in means)]
            for method, seeds in seeds_in_all(members).items()
        ]
        text += markdown(["method", "seeds", *SUMMARIES], rows)
        text += f"\nInterquartile mean over {tasks}, and its 95 % stratified bootstrap interval over seeds, "
        text += "which is too narrow for few of them. "
        text += f"Scores are normalised per task ({words}).\n\n"
    return text


def comparison_table(cells: Sequence[Cell]) -> str:
    """Markdown tables of each method against its panel's first, by task and over the tasks: Welch's p, and
    the probability of improvement.

    Over the tasks p is of the seeds' means of normalised scores, of seeds that all tasks have, and the
    probability is the mean of the tasks'.
    """
    text, several = "", False
    for members in by_panel(cells):
        first, *others = members[0].methods
        rows, chances = [], []
        for method in others:
            for words, summary in SUMMARIES.items():
                ps = compare(members, first, method, summary)
                if not np.isnan(ps).all():
                    rows.append([f"{method}, {words}", *map(p_words, ps)])
                    chances.append([f"{method}: {words}", *chances_of(members, first, method, summary)])
        if rows:
            head = [*(cell.task for cell in members), "all tasks"]
            width = len(head) + 1 if len(members) > 1 else 2
            several = several or len(members) > 1
            for name, lines in (("p against", rows), ("probability of being above", chances)):
                text += markdown([f"{name} {first}", *head][:width], [line[:width] for line in lines]) + "\n"
    if text:
        text += "Welch's test of the seeds' scores, not corrected for the number of comparisons"
        text += "; of several tasks, of their means over tasks" * several
        text += ". Probability: that a seed of the method scores higher than one of the other, ties half"
        text += "; of several tasks, their mean" * several + ".\n\n"
    return text


def compare(cells: Sequence[Cell], first: str, method: str, summary: Callable[[Array], Array]) -> list[float]:
    """p of a method against the first: on each of these tasks, and of the seeds' means over all of them."""
    ours = [cell.scores(first, summary) for cell in cells]
    theirs = [cell.scores(method, summary) for cell in cells]
    each = [welch([*a.values()], [*b.values()]) for a, b in zip(ours, theirs, strict=True)]
    return [*each, welch(means_over_tasks(ours), means_over_tasks(theirs))]


def chances_of(
    cells: Sequence[Cell], first: str, method: str, summary: Callable[[Array], Array]
) -> list[str]:
    """Probability of improvement of a method on the first: on each of these tasks, and their mean."""
    scores = [[[*cell.scores(name, summary).values()] for name in (first, method)] for cell in cells]
    chances = [improvement(ours, theirs) for ours, theirs in scores]
    return ["–" if math.isnan(x) else f"{x:.2f}" for x in (*chances, float(np.mean(chances)))]


def means_over_tasks(scores: Sequence[dict[int, float]]) -> list[float]:
    """The mean over tasks of each seed that all of them have."""
    seeds = set.intersection(*map(set, scores))
    return [float(np.mean([score[seed] for score in scores])) for seed in seeds]


def p_words(p: float) -> str:
    """p to one digit."""
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.1g}"
