"""What the paper's text says of a figure, and whether runs bear it out.

A claim is a sentence of ours for one of the paper's, its section, the panel it speaks of, and a test. A test
looks at each task of the panel and answers with signs: +1 as claimed, -1 the opposite, 0 neither; comparisons
at the 95 % level. Where the paper says "far", "small" or "close" without a number, the number is ours.
`benchmark.lib.verdicts` makes a verdict of the signs.
"""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from benchmark.lib.cells import Cell, p_words
from benchmark.lib.groups import Group, band
from benchmark.lib.runs import KL, RETURN, WIN_RATE, Array
from benchmark.lib.statistics import final_means, first_reached, mean_ci, run_means, welch

LEVEL = 0.05  # of every p
NOTHING = 0.05  # an advantage of less than this share of what training gains is none


@dataclass(frozen=True)
class Finding:
    """What a test found on a task: its sign, and the number behind it."""

    sign: int
    words: str
    p: float = math.nan


MISSING = Finding(0, "–")
BESIDE = " to "  # between the names of a pair in which the first method is not


class Test(Protocol):
    """`tasks`: those it speaks of, all where empty. `methods`: the roles it needs on each, the first of them
    to be looked at at all; others that a task lacks are MISSING there."""

    @property
    def tasks(self) -> tuple[str, ...]: ...

    @property
    def methods(self) -> tuple[str, ...]: ...

    def look(self, cell: Cell, groups: dict[str, Group]) -> list[tuple[str, Finding]]: ...


@dataclass(frozen=True)
class Claim:
    """A statement of the paper's section, of the panel of that name and its like at the best settings."""

    text: str
    section: str
    panel: str
    test: Test
    on: Literal["all", "most", "some"] = "all"
    """how many of its comparisons the statement speaks of"""

    def needs(self, task: str, role: str) -> bool:
        """Whether runs of this method on this task decide on it."""
        tasks, methods = self.test.tasks, self.test.methods
        return (not tasks or task in tasks) and (not methods or role in methods)


def gained(cell: Cell, group: Group) -> float:
    """What training gains, on average over seeds: the unit in which differences are small or large."""
    values = group.values(cell.metric)
    return float(np.mean(final_means(values) - begins(cell, values)))


def begins(cell: Cell, values: Array) -> Array:
    """From where each seed's values (seeds, points) rise: untrained play, which may be worse than random."""
    random = cell.references.get("random", -np.inf) if cell.metric == RETURN else -np.inf
    return np.maximum(values[:, 0], random)


def difference(one: ArrayLike, other: ArrayLike) -> tuple[float, float]:
    """The 95 % interval of Welch's test of one minus other; without ends for a single seed."""
    one, other = np.asarray(one), np.asarray(other)
    if min(len(one), len(other)) < 2:
        return -np.inf, np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of seeds that are all the same
        return scipy.stats.ttest_ind(one, other, equal_var=False).confidence_interval()


def alike(mine: ArrayLike, theirs: ArrayLike, way: float, margin: float) -> Finding:
    """Whether the interval of their difference, in shares of `way`, lies inside ±margin; the opposite if
    outside of it, with the p of a difference that is no larger."""
    mine, theirs = np.asarray(mine), np.asarray(theirs)
    if min(len(mine), len(theirs)) < 2 or way == 0:
        return MISSING
    low, high = sorted(end / way for end in difference(theirs, mine))
    inside, outside = -margin < low and high < margin, low > margin or high < -margin
    bound = math.copysign(margin * way, np.mean(theirs) - np.mean(mine))
    p = welch(theirs - bound, mine) if outside else math.nan
    return Finding(1 if inside else -1 if outside else 0, f"{100 * low:+.0f} to {100 * high:+.0f} %", p)


# --- tests that compare methods ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """A number per seed of a method against that of others, by Welch's test; above is as claimed."""

    method: str
    others: tuple[str, ...]
    tasks: tuple[str, ...] = ()
    lower = False  # whether the lower number is as claimed
    said = ("below", "above")  # where the other is: as claimed, or the other way round
    of_steps = False  # whether numbers are steps of evaluations, as coarse as these

    @property
    def methods(self) -> tuple[str, ...]:
        return self.method, *self.others

    def look(self, cell: Cell, groups: dict[str, Group]) -> list[tuple[str, Finding]]:
        mine = self.numbers(cell, groups[self.method])
        return [
            (other, self.compare(mine, self.numbers(cell, groups[other])) if other in groups else MISSING)
            for other in self.others
        ]

    def numbers(self, cell: Cell, group: Group) -> list[float]:
        """What is compared: each seed's number."""
        raise NotImplementedError

    def compare(self, mine: list[float], theirs: list[float]) -> Finding:
        """The sign of the difference where it is significant."""
        p, more = welch(mine, theirs), float(np.mean(mine) - np.mean(theirs))
        if math.isnan(p) and min(len(mine), len(theirs)) > 1 and abs(more) > 1e-9 and not self.of_steps:
            p = 0.0  # neither has any spread
        up = (more > 0) != self.lower
        where = "equal" if more == 0 else self.said[0 if up else 1]
        return Finding((1 if up else -1) if p < LEVEL else 0, f"{where} (p {p_words(p)})", p)


@dataclass(frozen=True)
class Higher(Comparison):
    """The method ends above the others, by however little: final scores."""

    def numbers(self, cell: Cell, group: Group) -> list[float]:
        return list(final_means(group.values(cell.metric)))


def small(finding: Finding, p: float) -> Finding:
    """The opposite of an advantage: one that is next to nothing."""
    words = f"{finding.words.removesuffix(')')}, < {100 * NOTHING:.0f} %)"
    return Finding(-1, words, p)


@dataclass(frozen=True)
class Above(Higher):
    """As `Higher`; the opposite, too, where the difference's interval leaves an advantage below NOTHING."""

    def look(self, cell: Cell, groups: dict[str, Group]) -> list[tuple[str, Finding]]:
        mine, way = self.numbers(cell, groups[self.method]), gained(cell, groups[self.method])
        found = super().look(cell, groups)
        for i, (other, finding) in enumerate(found):
            if other in groups:
                theirs = self.numbers(cell, groups[other])
                low, high = (x / way for x in difference(mine, theirs)) if way > 0 else (-np.inf, np.inf)
                p = welch(np.subtract(mine, NOTHING * way), theirs)
                found[i] = other, self.by_size(finding, low, high, p)
        return found

    def by_size(self, finding: Finding, low: float, high: float, p: float) -> Finding:
        """The finding as the interval of the difference, in shares of what training gains, has it; p: of an
        advantage of NOTHING."""
        if finding.sign == 0 and high < NOTHING:
            return small(finding, p)
        # Being below excludes an advantage all the more.
        return replace(finding, p=p) if finding.sign == -1 and high < NOTHING else finding


@dataclass(frozen=True)
class Clearly(Above):
    """As `Above`, by NOTHING at least: the lower end of the difference's interval; the opposite where the
    upper end is below it."""

    def by_size(self, finding: Finding, low: float, high: float, p: float) -> Finding:
        if finding.sign == 1 and high < NOTHING:
            return small(finding, p)
        if finding.sign == 1 and low < NOTHING:
            return Finding(0, finding.words)
        return super().by_size(finding, low, high, p)


@dataclass(frozen=True)
class OtherWay(Above):
    """Averages over the run differ from the others', above or below; the opposite where not by NOTHING."""

    def numbers(self, cell: Cell, group: Group) -> list[float]:
        return list(run_means(group.values(cell.metric)))

    def by_size(self, finding: Finding, low: float, high: float, p: float) -> Finding:
        same = low > -NOTHING and high < NOTHING
        return Finding(1 if finding.sign else -1 if same else 0, finding.words, finding.p)


@dataclass(frozen=True)
class Behind(Comparison):
    """The method is below the others in the first quarter of the run."""

    lower = True
    said = ("above", "below")

    def numbers(self, cell: Cell, group: Group) -> list[float]:
        values = group.values(cell.metric)
        return list(run_means(values[:, : max(values.shape[1] // 4, 2)]))


@dataclass(frozen=True)
class Sooner(Comparison):
    """The method needs fewer steps to go 90 % of the way up from where it begins to where it ends."""

    lower = of_steps = True
    said = ("later", "sooner")

    def numbers(self, cell: Cell, group: Group) -> list[float]:
        values, steps, last = group.values(cell.metric), group.steps(), final_means(group.values(cell.metric))
        begin = begins(cell, values)
        ends = begin + 0.9 * (last - begin)
        reached = [first_reached(steps, x, end) for x, end in zip(values, ends, strict=True)]
        rises = last > begin  # a run that only falls never gets there
        return [
            at if up and at is not None else float(steps[-1]) for at, up in zip(reached, rises, strict=True)
        ]


@dataclass(frozen=True)
class Faster(Comparison):
    """The method needs fewer steps to a common level: 90 % of the way of the one that ends lower. What an
    untrained policy has is not reached by learning."""

    lower = of_steps = True
    said = ("later", "sooner")

    def look(self, cell: Cell, groups: dict[str, Group]) -> list[tuple[str, Finding]]:
        found = []
        for other in self.others:
            if other not in groups:
                found.append((other, MISSING))
                continue
            pair = [groups[name].values(cell.metric) for name in (self.method, other)]
            begin = float(np.mean([begins(cell, values).mean() for values in pair]))
            goal = begin + 0.9 * (min(float(final_means(values).mean()) for values in pair) - begin)
            numbers = []
            for name, values in zip((self.method, other), pair, strict=True):
                steps = groups[name].steps()
                reached = [first_reached(steps[1:], x[1:], goal) for x in values]
                numbers.append([float(steps[-1]) if at is None else at for at in reached])
            found.append((other, self.compare(*numbers)))
        return found


@dataclass(frozen=True)
class Fluctuates(Comparison):
    """The method's curves are less smooth: deviation of the steps between evaluations, in the last half."""

    said = ("less", "more")

    def numbers(self, cell: Cell, group: Group) -> list[float]:
        values = group.values(cell.metric)
        return list(np.std(np.diff(values[:, values.shape[1] // 2 :]), axis=1))


@dataclass(frozen=True)
class Varies(Comparison):
    """The method's final scores differ more between seeds: ratio of deviations, Brown and Forsythe's test."""

    def numbers(self, cell: Cell, group: Group) -> list[float]:
        return list(final_means(group.values(cell.metric)))

    def compare(self, mine: list[float], theirs: list[float]) -> Finding:
        if min(len(mine), len(theirs)) < 2:
            return MISSING
        p = np.nan
        if min(len(mine), len(theirs)) > 2:  # two seeds deviate equally from their median: p would be 0
            with np.errstate(invalid="ignore"):  # of seeds that are all the same
                p = float(scipy.stats.levene(mine, theirs, center="median").pvalue)
        up = np.std(mine) > np.std(theirs)
        ratio = np.std(mine) / np.std(theirs) if np.std(theirs) > 0 else np.inf
        return Finding((1 if up else -1) if p < LEVEL else 0, f"{ratio:.1f} times (p {p_words(p)})", p)


@dataclass(frozen=True)
class Alike:
    """The others end within `margin` of the method, a share of the way from an untrained policy to its end.

    As claimed where the 95 % interval of the difference lies within, the opposite where it lies without.
    """

    method: str
    others: tuple[str, ...]
    margin: float
    tasks: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        return self.method, *self.others

    def look(self, cell: Cell, groups: dict[str, Group]) -> list[tuple[str, Finding]]:
        mine, way = self.numbers(cell, groups[self.method]), gained(cell, groups[self.method])
        return [
            (
                other,
                alike(mine, self.numbers(cell, groups[other]), way, self.margin)
                if other in groups
                else MISSING,
            )
            for other in self.others
        ]

    def numbers(self, cell: Cell, group: Group) -> Array:
        """What is compared: each seed's number."""
        return final_means(group.values(cell.metric))


@dataclass(frozen=True)
class AlikeOnTheWay(Alike):
    """As `Alike`, of averages over the run."""

    def numbers(self, cell: Cell, group: Group) -> Array:
        return run_means(group.values(cell.metric))


@dataclass(frozen=True)
class Together:
    """As `Alike`, of every pair of the methods; the way is that of the first."""

    methods: tuple[str, ...]
    margin: float
    tasks: tuple[str, ...] = ()

    def look(self, cell: Cell, groups: dict[str, Group]) -> list[tuple[str, Finding]]:
        way, found = gained(cell, groups[self.methods[0]]), []
        for one, other in itertools.combinations(self.methods, 2):
            ends = [final_means(groups[x].values(cell.metric)) for x in (one, other) if x in groups]
            name = other if one == self.methods[0] else other + BESIDE + one
            found.append((name, alike(ends[0], ends[1], way, self.margin) if len(ends) == 2 else MISSING))
        return found


# --- tests of one method ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FarBelow:
    """The method ends below `share` of the optimum."""

    method: str
    share: float
    tasks: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        return (self.method,)

    def look(self, cell: Cell, groups: dict[str, Group]) -> list[tuple[str, Finding]]:
        shares = final_means(groups[self.method].values(cell.metric)) / cell.references["optimum"]
        mean, low, high = (float(x[0]) for x in mean_ci(shares[:, None]))
        sign = 1 if high < self.share else -1 if low > self.share else 0
        return [(self.method, Finding(sign, f"{100 * mean:.0f} % of it"))]


@dataclass(frozen=True)
class Drops:
    """The method ends below its best tenth of the run, by the mean curve: a paired t test over seeds, whose p
    counts ninefold, as any of nine tenths could have been the best. The opposite where the 95 % interval
    leaves no drop of NOTHING. Untrained policies are left out: with them the first tenth would not be the
    best of whoever learns within it."""

    method: str
    tasks: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        return (self.method,)

    def look(self, cell: Cell, groups: dict[str, Group]) -> list[tuple[str, Finding]]:
        values = groups[self.method].values(cell.metric)
        trained = values[:, 1:]
        if trained.shape[1] < 10:
            return [(self.method, MISSING)]
        tenths = np.stack([part.mean(1) for part in np.array_split(trained, 10, axis=1)], axis=1)
        best, last = tenths[:, tenths.mean(0).argmax()], tenths[:, -1]
        p = np.nan
        if len(best) > 1 and np.ptp(best - last) > 0:
            p = min(1.0, 9 * float(scipy.stats.ttest_rel(best, last).pvalue))
        way = gained(cell, groups[self.method])
        none = way > 0 and mean_ci((best - last)[:, None])[2][0] < NOTHING * way
        words = f"{np.mean(last - best):+.3g} (p {p_words(p)})"
        sign = 1 if p < LEVEL else -1 if none else 0
        return [(self.method, Finding(sign, words, math.nan if sign == -1 else p))]  # p is of a drop


@dataclass(frozen=True)
class Unwon:
    """The methods win fewer than one battle in twenty at the end."""

    methods: tuple[str, ...]
    tasks: tuple[str, ...] = ()

    def look(self, cell: Cell, groups: dict[str, Group]) -> list[tuple[str, Finding]]:
        found = []
        for name in self.methods:
            if name not in groups or not groups[name].has(WIN_RATE):
                found.append((name, MISSING))
                continue
            rate = float(final_means(groups[name].values(WIN_RATE)).mean())
            found.append((name, Finding(1 if rate < 0.05 else -1, f"{100 * rate:.0f} % won")))
        return found


@dataclass(frozen=True)
class Steady:
    """KL is small: below the upper end of the band on average; and stable: no tenth of the run is more than
    three times the average away from it."""

    method: str
    tasks: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        return (self.method,)

    def look(self, cell: Cell, groups: dict[str, Group]) -> list[tuple[str, Finding]]:
        group = groups[self.method]
        if not group.has(KL):
            return [(self.method, MISSING)]
        values = group.values(KL)
        values = values[:, ~np.isnan(values).any(axis=0)]  # before training there is none
        if values.shape[1] < 10:
            return [(self.method, MISSING)]
        tenths = [float(part.mean()) for part in np.array_split(values, 10, axis=1)]
        mean = float(values.mean())
        small, stable = mean <= band(group)[2], max(tenths) <= 3 * mean and min(tenths) >= mean / 3
        words = f"{mean:.2g} on average, tenths {min(tenths):.2g} to {max(tenths):.2g}"
        return [(self.method, Finding(1 if small and stable else -1, words))]


# --- tests of the exact iteration, which has no seeds -----------------------------------------------------


@dataclass(frozen=True)
class Exact:
    """A statement on the iterations of a game, of whatever methods there are."""

    tasks: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True)
class NeverFalls(Exact):
    """J of no iteration is below that before."""

    def look(self, cell: Cell, groups: dict[str, Group]) -> list[tuple[str, Finding]]:
        falls = [float(np.diff(group.runs[0].columns["J"]).min()) for group in groups.values()]
        return [("", Finding(1 if min(falls) >= -1e-12 else -1, f"least step {min(falls):.1g}"))]


@dataclass(frozen=True)
class Converges(Exact):
    """p and q change by less than 1e-4 in the last tenth of the iterations."""

    def look(self, cell: Cell, groups: dict[str, Group]) -> list[tuple[str, Finding]]:
        moved = 0.0
        for run in (group.runs[0] for group in groups.values()):
            late = run.steps >= 0.9 * run.steps[-1]
            moved = max(moved, *(float(np.ptp(run.columns[name][late])) for name in ("p", "q")))
        return [("", Finding(1 if moved < 1e-4 else -1, f"last tenth moves {moved:.1g}"))]


@dataclass(frozen=True)
class Trapped(Exact):
    """Some iteration that moves ends below the optimum."""

    def look(self, cell: Cell, groups: dict[str, Group]) -> list[tuple[str, Finding]]:
        runs = {name: group.runs[0] for name, group in groups.items()}
        moving = {
            name: float(run.columns["J"][-1])
            for name, run in runs.items()
            if any(np.ptp(run.columns[column]) > 1e-6 for column in ("p", "q"))
        }
        optimum = next(iter(runs.values())).optimum
        trapped = any(end < optimum - 0.01 for end in moving.values())
        ends = ", ".join(f"{end:.3f} ({name})" for name, end in moving.items())
        words = f"ends at {ends} of {optimum:g}" if moving else "nothing moves"
        return [("", Finding(1 if trapped else -1, words))]
