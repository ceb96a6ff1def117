"""Statistics: intervals, aggregates and tests are what textbooks and papers define."""

import math
from math import nan

import numpy as np
import pytest
import scipy.stats

from benchmark.lib import statistics as stats
from benchmark.lib.cells import p_words


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_confidence_interval_is_students(seeds):
    """The shaded band is called a 95 % interval: a normal one would be far too narrow for three seeds."""
    values = np.random.default_rng(seeds).normal(3, 2, (seeds, 7))
    for confidence in (0.95, 0.5):
        mean, low, high = stats.mean_ci(values, confidence)
        expected = scipy.stats.t.interval(confidence, seeds - 1, values.mean(0), scipy.stats.sem(values))
        np.testing.assert_allclose((mean, low, high), (values.mean(0), *expected), rtol=1e-12)
    mean, low, high = stats.mean_ci(values[:1])
    assert (mean == values[0]).all() and np.isnan([low, high]).all()


def test_iqm_is_the_trimmed_mean_and_its_interval_is_stratified():
    """Aggregates over tasks are what papers compare: theirs must be the published definition."""
    rng = np.random.default_rng(0)
    for shape in [(1, 1), (3, 1), (5, 1), (3, 2), (7, 1), (5, 4), (10, 3)]:
        scores = rng.exponential(size=shape)
        assert stats.iqm(scores) == pytest.approx(scipy.stats.trim_mean(scores, 0.25, axis=None), rel=1e-12)
    few, many = rng.normal(size=(4, 3)), rng.normal(size=(40, 3))
    value, low, high = stats.bootstrap_iqm(few)
    assert low < value == stats.iqm(few) < high
    assert stats.bootstrap_iqm(few) == (value, low, high) != stats.bootstrap_iqm(few, seed=1)
    for narrower in (stats.bootstrap_iqm(few, confidence=0.5), stats.bootstrap_iqm(many)):
        assert 0 < narrower[2] - narrower[1] < 0.6 * (high - low)
    assert stats.bootstrap_iqm(np.tile([1.0, 5.0], (4, 1))) == (3.0, 3.0, 3.0)
    with pytest.raises(ValueError, match=r"\(4,\)"):
        stats.bootstrap_iqm(few[:, 0])


def test_interpolation_is_exact_where_known_and_empty_outside():
    """A seed must not be drawn beyond its end, nor a value made up where it logged none."""
    x, y = np.array([0.0, 10, 20, 40]), np.array([nan, 1.0, nan, 4.0])
    at = np.array([-5.0, 0, 5, 10, 15, 20, 25, 40, 41])
    expected = [nan, nan, nan, 1, 1 + 3 * 5 / 30, nan, 2.5, 4, nan]
    np.testing.assert_allclose(stats.interpolate(at, x, y), expected)
    assert np.isnan(stats.interpolate(at, x, np.full(4, nan))).all()


def test_first_reached_final_and_run_means():
    """'0.9 at 205 k' and 'final' of the table: the first step at or above, the last tenth rounded up."""
    steps, values = np.array([0.0, 10, 20, 30]), np.array([0.1, 0.5, 0.4, 0.9])
    assert [stats.first_reached(steps, values, at) for at in (0.1, 0.5, 0.6, 0.91)] == [0, 10, 30, None]
    scores = np.arange(42.0).reshape(2, 21) ** 2
    expected = [(18**2 + 19**2 + 20**2) / 3, (39**2 + 40**2 + 41**2) / 3]
    np.testing.assert_allclose(stats.final_means(scores), expected)
    np.testing.assert_allclose(stats.final_means(scores[:, :4]), scores[:, 3])
    np.testing.assert_allclose(stats.run_means(scores[:, :3]), (scores[:, 1] + scores[:, 2]) / 2)
    np.testing.assert_allclose(stats.run_means(scores[:, :1]), scores[:, 0])


def welch(a, b):
    """From the definition; only the t distribution is a library's."""
    va, vb = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    t = (np.mean(a) - np.mean(b)) / math.sqrt(va + vb)
    return 2 * scipy.stats.t.sf(abs(t), (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1)))


def test_welchs_test_says_nothing_of_single_seeds_and_equal_constants():
    """p by the definition; where there is nothing to compare no number, which would look like a result."""
    a, b = [1.0, 2.0, 4.0, 4.5], [3.0, 5.0, 9.0]
    assert stats.welch(a, b) == pytest.approx(welch(a, b), rel=1e-12)
    assert all(np.isnan(stats.welch(*pair)) for pair in ((a, [1.0]), ([], a), ([0.1, 0.1], [0.1, 0.3 - 0.2])))
    assert [p_words(p) for p in (math.nan, 2e-4, 0.0349, 0.96)] == ["–", "< 0.001", "0.03", "1"]


def test_wall_clock_is_integrated_from_the_speed():
    """Hours of a run that slowed down in the middle, by hand; an update without a speed takes the mean."""
    steps, speeds = np.array([0.0, 3600, 7200, 10800]), np.array([np.nan, 1.0, 0.5, np.nan])
    np.testing.assert_allclose(stats.hours(steps, speeds), [0, 1, 3, 3 + 1 / 0.75])
    assert np.isnan(stats.hours(steps, np.full(4, np.nan))).all()


def test_probability_of_improvement_counts_pairs():
    """Of all pairs of seeds, those that the second method wins, and half of the ties."""
    assert stats.improvement([1, 2, 3], [2, 4, 0]) == pytest.approx((1.5 + 3 + 0) / 9)
    assert stats.improvement([1, 1], [1, 1]) == 0.5
    assert math.isnan(stats.improvement([5], [6, 7]))
