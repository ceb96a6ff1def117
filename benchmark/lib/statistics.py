"""Statistics of runs: arrays in, arrays out."""

from __future__ import annotations

import math
import warnings

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from benchmark.lib.runs import Array


def interpolate(x: Array, known_x: Array, known_y: Array) -> Array:
    """known_y (m,) at x (n,): exact where x is known, nan included; linear in between, nan outside."""
    exact = dict(zip(known_x.tolist(), known_y.tolist(), strict=True))
    finite = ~np.isnan(known_y)
    if not finite.any():
        return np.full_like(x, np.nan)
    between = np.interp(x, known_x[finite], known_y[finite], left=np.nan, right=np.nan)
    return np.array([exact.get(at, y) for at, y in zip(x.tolist(), between.tolist(), strict=True)])


def mean_ci(values: ArrayLike, confidence: float = 0.95) -> tuple[Array, Array, Array]:
    """Mean over seeds of values (seeds, points), and the ends of its Student t interval; each (points,).

    The interval is nan for a single seed, which tells nothing about the spread.
    """
    values = np.asarray(values, dtype=np.float64)
    seeds, mean = len(values), np.mean(values, axis=0)
    if seeds < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    standard_error = np.std(values, axis=0, ddof=1) / math.sqrt(seeds)
    half = scipy.stats.t.ppf((1 + confidence) / 2, seeds - 1) * standard_error
    return mean, mean - half, mean + half


def welch(first: ArrayLike, second: ArrayLike) -> float:
    """p of Welch's two-sided t test that two methods' scores, (seeds,) each, have the same mean.

    It is nan where one has a single seed, or neither has any spread but that of rounding.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if min(len(first), len(second)) < 2 or all(np.allclose(x, x[0], 1e-9, 1e-12) for x in (first, second)):
        return math.nan
    with warnings.catch_warnings(action="ignore"):  # of one without spread, which is no reason not to test
        return float(scipy.stats.ttest_ind(first, second, equal_var=False).pvalue)


def improvement(first: ArrayLike, second: ArrayLike) -> float:
    """Probability that a seed of the second method scores higher than one of the first, ties counting half.

    Mann and Whitney's U over the number of pairs (Agarwal et al., NeurIPS 2021); nan where one has no second
    seed.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if min(len(first), len(second)) < 2:
        return math.nan
    return float(scipy.stats.mannwhitneyu(second, first).statistic / (len(first) * len(second)))


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean: of all scores but the lowest and the highest quarter (rounded down)."""
    ordered = np.sort(np.asarray(scores, dtype=np.float64), axis=None)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def bootstrap_iqm(
    scores: ArrayLike, reps: int = 2000, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float, float]:
    """IQM of scores (runs, tasks) and its stratified percentile bootstrap interval.

    Runs are drawn with replacement within each task (Agarwal et al., NeurIPS 2021), so that no task is drawn
    more often than another. The same seed gives the same interval.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2:
        raise ValueError(f"Scores are a table (runs, tasks), not of shape {scores.shape}; reshape them.")
    draws = np.random.default_rng(seed).integers(len(scores), size=(reps, *scores.shape))
    resampled = np.take_along_axis(scores[None], draws, axis=1)
    ends = (1 - confidence) / 2, (1 + confidence) / 2
    low, high = np.quantile([iqm(sample) for sample in resampled], ends)
    return iqm(scores), float(low), float(high)


def final_means(values: Array, share: float = 0.1) -> Array:
    """Each seed's mean over the last `share` of its evaluations (at least 1): (seeds, points) -> (seeds,)."""
    return values[:, -math.ceil(share * values.shape[1]) :].mean(axis=1)


def run_means(values: Array) -> Array:
    """Each seed's mean over all evaluations but the untrained policy's: (seeds, points) -> (seeds,).

    Evaluations are evenly spaced, but for the one at the end: of two methods that end alike, the faster one
    has more.
    """
    return values[:, min(1, values.shape[1] - 1) :].mean(axis=1)


def first_reached(steps: Array, values: Array, threshold: float) -> float | None:
    """The first of steps (points,) at which values (points,) are at least the threshold; None if none is."""
    reached = np.flatnonzero(values >= threshold)
    return float(steps[reached[0]]) if len(reached) else None


def hours(steps: Array, speeds: Array) -> Array:
    """Wall-clock hours at steps (points,), integrated from the steps per second between one and the next.

    Where no speed was logged the run's mean speed stands for it.
    """
    if np.isnan(speeds).all():
        return np.full_like(steps, np.nan)
    speeds = np.where(np.isnan(speeds), np.nanmean(speeds), speeds)
    return np.cumsum(np.diff(steps, prepend=0.0) / speeds) / 3600
