"""Claims: on made-up runs whose answer is known by construction every test finds it, and verdicts follow."""

from math import nan, sqrt

import numpy as np
import pytest
import scipy.stats
from made_curves import (
    EVERY,
    HIGH,
    LOW,
    POINTS,
    RISES,
    STANDS,
    WIDE,
    K,
    cell,
    found,
    games,
    group,
    iteration,
    rising,
    words,
)

from benchmark.lib.cells import Cell, p_words
from benchmark.lib.claims import (
    Above,
    Alike,
    AlikeOnTheWay,
    Behind,
    Clearly,
    Converges,
    Drops,
    FarBelow,
    Faster,
    Fluctuates,
    Higher,
    NeverFalls,
    OtherWay,
    Sooner,
    Steady,
    Together,
    Trapped,
    Varies,
)
from benchmark.lib.groups import end_together
from benchmark.lib.runs import KL, RETURN

# --- tests that compare methods ---------------------------------------------------------------------------


def test_above_is_of_final_scores():
    """The last tenth of the evaluations decides: what lay above on the way there is beaten."""
    loses = np.where(K < 18, 50.0, LOW)
    curves = {"a": HIGH, "b": loses, "c": WIDE}
    assert found(Above("a", ("b", "c")), curves) == {"b": 1, "c": 0}
    assert found(Above("b", ("a", "c")), curves) == {"a": -1, "c": 0}
    ps = [
        scipy.stats.ttest_ind([10, 11, 12], other, equal_var=False).pvalue
        for other in ([1, 2, 3], [1, 6, 11])
    ]
    assert ps[0] < 0.05 < ps[1]
    near = {"a": HIGH, "b": rising(7, 8, 9), "c": rising(8, 9, 10)}  # p = 0.02 and 0.07
    assert found(Above("a", ("b", "c")), near) == {"b": 1, "c": 0}
    assert words(Above("a", ("b", "c")), curves) == {
        name: f"below (p {p_words(p)})" for name, p in zip("bc", ps, strict=True)
    }
    assert words(Above("b", ("a",)), curves) == {"a": f"above (p {p_words(ps[0])})"}


def test_behind_is_of_the_first_quarter_without_untrained_policies():
    """DPO may start slowly and win: neither its end nor its untrained policy may hide or feign that."""
    late = np.where(K < 6, 0.1 * HIGH, 5 * HIGH)
    assert found(Behind("late", ("b",)), {"late": late, "b": HIGH}) == {"b": 1}
    assert found(Above("late", ("b",)), {"late": late, "b": HIGH}) == {"b": 1}
    assert found(Behind("b", ("late",)), {"late": late, "b": HIGH}) == {"late": -1}
    for same_in_between in (np.where(K == 0, -1e6, HIGH), np.where(K >= 5, -1e6, HIGH)):
        assert found(Behind("a", ("b",)), {"a": same_in_between, "b": HIGH}) == {"b": 0}
    made, early = cell({"late": late}), late[:, 1:5].mean(1)
    np.testing.assert_allclose(Behind("late", ()).numbers(made, made.groups[0]), early)
    p = scipy.stats.ttest_ind(early, HIGH[:, 1:5].mean(1), equal_var=False).pvalue
    assert words(Behind("late", ("b",)), {"late": late, "b": HIGH}) == {"b": f"above (p {p_words(p)})"}


def test_sooner_is_of_the_way_to_a_methods_own_end():
    """IQL may converge first and lower: what counts are steps to 90 % of its own rise."""
    fast, slow = (
        np.concatenate([rising(end, at=at, start=-9) for end, at in pairs])
        for pairs in (((1, 3), (2, 4), (3, 5)), ((10, 12), (11, 14), (12, 16)))
    )
    curves = {"fast": fast, "slow": slow}
    assert found(Sooner("fast", ("slow",)), curves) == {"slow": 1}
    assert found(Sooner("slow", ("fast",)), curves) == {"fast": -1}
    made = cell(curves)
    expected = {"fast": [3, 4, 5], "slow": [11, 13, 15]}  # 0.9 of 3, 4, 5 and of 12, 14, 16, rounded up
    for of in made.groups:
        assert Sooner("fast", ()).numbers(made, of) == [EVERY * k for k in expected[of.method]]
    both = np.concatenate([rising(end, at=at) for end, at in ((1, 2), (2, 8), (3, 18))])
    assert found(Sooner("fast", ("both",)), {"fast": fast, "both": both}) == {"both": 0}


def test_fluctuates_is_from_evaluation_to_evaluation_in_the_last_half():
    """A curve that still rises, or was wild at first, does not fluctuate in the end."""
    sizes = np.array([[1.0], [1.1], [1.2]])
    wild = HIGH + sizes * (-1.0) ** K
    smooth = HIGH + 0.1 * sizes * (-1.0) ** K
    wild_at_first = np.where(K < 10, 9 * wild, 40 * K + smooth)
    curves = {"wild": wild, "smooth": smooth, "first": wild_at_first}
    assert found(Fluctuates("wild", ("smooth", "first")), curves) == {"smooth": 1, "first": 1}
    assert found(Fluctuates("first", ("wild", "smooth")), curves) == {"wild": -1, "smooth": 0}
    made = cell(curves)
    for of, size in zip(made.groups, (1.0, 0.1, 0.1), strict=True):
        # Ten steps of twice the size, up and down: their deviation, whatever the trend.
        numbers = Fluctuates("wild", ()).numbers(made, of)
        np.testing.assert_allclose(numbers, 2 * size * sizes[:, 0])


def test_varies_is_between_seeds():
    """Seeds that settle apart, whatever the level: p is of an analysis of variance of deviations."""
    wide, narrow = rising(0, 10, 30, 80, 100), rising(500, 501, 502, 503, 504)
    some = rising(0, 10, 20, 30, 60)
    curves = {"wide": wide, "narrow": narrow, "some": some}
    assert found(Varies("wide", ("narrow", "some")), curves) == {"narrow": 1, "some": 0}
    assert found(Varies("narrow", ("wide",)), curves) == {"wide": -1}
    # The deviations of two seeds do not differ at all, which is no reason to be sure.
    pair, same = {"a": wide[[0, 4]], "b": narrow[:2]}, {"a": wide[[1, 1, 1]], "b": narrow[[0, 0, 0]]}
    assert words(Varies("a", ("b",)), pair) == {"b": "100.0 times (p –)"}
    assert found(Varies("a", ("b",)), pair) == {"b": 0}
    assert found(Varies("a", ("b",)), same) == {"b": 0}
    deviations = [np.abs(x[:, -1] - np.median(x[:, -1])) for x in (wide, narrow)]
    p = scipy.stats.f_oneway(*deviations).pvalue
    assert words(Varies("wide", ("narrow",)), curves) == {
        "narrow": f"{np.std([0, 10, 30, 80, 100]) / np.std(range(5)):.1f} times (p {p_words(p)})"
    }


def test_alike_measures_by_what_training_gains():
    """Two percent of a return may be all that there was to learn: margins are of the way, not the level."""
    base, way = rising(99.9, 100, 100.1, start=90), 10
    offsets = {"same": 0.3, "above": 3.0, "below": -3.0}
    curves = {"base": base} | {name: base + offset for name, offset in offsets.items()}
    curves["noisy"] = rising(80, 100, 120, start=90)
    expected = {"same": 1, "above": -1, "below": -1, "noisy": 0}
    assert found(Alike("base", tuple(expected), 0.1), curves) == expected
    half = scipy.stats.t.ppf(0.975, 4) * sqrt(2 / 3) * 0.1  # equal variances of 0.1 squared: 4 degrees
    low, high = 100 * (3 - half) / way, 100 * (3 + half) / way
    assert words(Alike("base", ("above",), 0.1), curves) == {"above": f"{low:+.0f} to {high:+.0f} %"}
    # A wider margin lets the same difference pass; one in between is neither.
    margins = (0.2, high / 100 + 0.01, (low + high) / 200)
    assert [found(Alike("base", ("above",), x), curves)["above"] for x in margins] == [-1, 1, 0]
    falls = {name: -x for name, x in curves.items()}
    assert found(Alike("base", tuple(expected), 0.1), falls) == expected


def test_like_ends_hide_no_other_way_there():
    """Figure 9's pairs may end alike and learn at other times: that is no limited influence."""
    base, rise = np.array([[0.0], [0.1], [0.2]]), np.minimum(np.linspace(0, 12.5, 101), 10)
    curves = {"base": base + rise, "late": base + rise**3 / 100, "same": base + rise + 0.01}
    assert found(Alike("base", ("late", "same"), 0.1), curves) == {"late": 1, "same": 1}
    assert found(AlikeOnTheWay("base", ("late", "same"), 0.1), curves) == {"late": -1, "same": 1}


def test_the_way_there_differs_above_or_below_and_not_by_what_is_next_to_nothing():
    """Clips "only affect the performance of IPPO during the training process" (C): like ends hide nothing."""
    base, rise = np.array([[0.0], [0.1], [0.2]]), np.minimum(np.linspace(0, 12.5, 101), 10)
    curves = {"base": base + rise, "early": base + np.minimum(2 * rise, 10), "late": base + rise**3 / 100}
    curves |= {"same": base + rise + 0.01, "noisy": 30 * base + rise}
    assert found(OtherWay("base", ("early", "late", "same", "noisy")), curves) == {
        "early": 1, "late": 1, "same": -1, "noisy": 0,
    }  # fmt: skip
    assert found(Higher("base", ("early", "late")), curves) == {"early": 0, "late": 0}


def test_what_training_gains_begins_at_random_play_where_untrained_policies_are_worse(monkeypatch):
    """Greedy untrained particles run away: 5 % of the way back is no small difference of what they learn."""
    curves = {"a": rising(-5.6, -5.5, -5.4, start=-40), "b": rising(-6.6, -6.5, -6.4, start=-40)}
    assert found(Alike("a", ("b",), 0.05), curves) == {"b": 1}
    monkeypatch.setattr(Cell, "references", {"random": -15.0})
    assert found(Alike("a", ("b",), 0.05), curves) == {"b": -1}
    slow = {"a": np.linspace(-40, -5, POINTS) + np.zeros((3, 1)), "b": np.linspace(-40, -5, POINTS)[None]}
    reached = Sooner("a", ("b",)).numbers(cell(slow), cell(slow).groups[0])
    assert reached == [EVERY * 19.0] * 3  # -15 + 0.9 * 10 less what the last tenth is below -5


def test_seeds_without_spread_that_differ_are_a_difference():
    """A method that wins all battles with every seed is above one that wins none."""
    flat = {"a": np.ones((3, POINTS)), "b": np.zeros((3, POINTS)), "c": np.ones((3, POINTS))}
    flat["a"][:, 0] = 0.0
    assert found(Above("a", ("b",)), flat) == {"b": 1} and found(Higher("b", ("a",)), flat) == {"a": -1}
    assert found(Higher("a", ("c",)), flat) == {"c": 0}
    late = {"a": np.tile(np.minimum(K / 5, 1), (3, 1)), "b": np.tile(np.minimum(K / 6, 1), (3, 1))}
    assert found(Sooner("a", ("b",)), late) == {"b": 0}  # evaluations are no finer than that


def test_higher_is_refuted_by_the_opposite_alone():
    """4.5 grants small influence on some tasks: an advantage of next to nothing does not refute 'lowers'."""
    near = {"a": rising(10, 10.1, 10.2), "b": rising(10.05, 10.1, 10.15), "c": rising(20, 21, 22)}
    assert found(Above("a", ("b", "c")), near) == {"b": -1, "c": -1}
    assert found(Higher("a", ("b", "c")), near) == {"b": 0, "c": -1}
    assert found(Higher("c", ("a",)), near) == {"a": 1}


def test_obviously_is_by_more_than_next_to_nothing():
    """An advantage that is significant and small is no obvious one."""
    near = {"a": rising(100, 100.1, 100.2), "b": rising(98, 98.1, 98.2), "c": rising(80, 80.1, 80.2)}
    assert found(Above("a", ("b", "c")), near) == {"b": 1, "c": 1}
    assert found(Clearly("a", ("b", "c")), near) == {"b": -1, "c": 1}
    wide = near | {"b": rising(92, 96, 100)}  # 4 ± 10: it may be more than 5 % or less
    assert found(Clearly("a", ("b",)), wide) == {"b": 0}
    assert found(Clearly("b", ("a",)), near) == {"a": -1}


def test_faster_is_of_a_common_level():
    """A method that rises quickly to little, or falls back, must not pass for one that learns fast."""
    low, high, quick = (
        np.concatenate([rising(end, at=at) for end, at in pairs])
        for pairs in (
            ((2, 2), (2.1, 3), (2.2, 4)),
            ((10, 10), (11, 12), (12, 14)),
            ((10, 2), (11, 3), (12, 4)),
        )
    )
    assert found(Sooner("low", ("high",)), {"low": low, "high": high}) == {"high": 1}
    assert found(Faster("low", ("high",)), {"low": low, "high": high}) == {"high": 0}
    assert found(Faster("quick", ("high",)), {"quick": quick, "high": high}) == {"high": 1}
    assert found(Faster("high", ("quick",)), {"quick": quick, "high": high}) == {"quick": -1}


def test_untrained_policies_are_not_fast():
    """Whose untrained policy happens to score above the goal would have learned before its first update."""
    low, high = (
        np.concatenate([rising(end, at=at, start=-9) for end, at in zip((2, 2.01, 2.02), ats, strict=True)])
        for ats in ((2, 3, 4), (10, 11, 12))
    )
    lucky = np.where(K == 0, 10.0, high)
    assert found(Faster("low", ("lucky",)), {"low": low, "lucky": lucky}) == {"lucky": 1}


def test_together_is_of_every_pair():
    """Two that are each near a third may be far from each other."""
    curves = {"a": rising(100, 100.1, 100.2), "b": rising(104, 104.1, 104.2), "c": rising(96, 96.1, 96.2)}
    assert found(Together(("a", "b", "c"), 0.05), curves) == {"b": 1, "c": 1, "c to b": -1}
    assert found(Together(("a", "b", "d"), 0.05), curves) == {"b": 1, "d": 0, "d to b": 0}


def test_a_drop_is_from_the_best_tenth_to_the_last():
    """What only rises, or swings within its noise, does not drop."""
    K101 = np.arange(101)
    falls = np.array([10 - slope * np.maximum(K101 - 50, 0) for slope in (0.05, 0.051, 0.052)])
    assert found(Drops("a"), {"a": falls}) == {"a": 1}
    assert found(Drops("a"), {"a": rising(10, 11, 12)}) == {"a": -1}
    one_of_three = np.array([K101 / 10 - 5 * (K101 > 90), K101 / 10, K101 / 10])
    assert found(Drops("a"), {"a": one_of_three}) == {"a": 0}
    assert found(Drops("a"), {"a": falls[:1]}) == {"a": 0}
    noise = np.random.default_rng(0)
    flat = [found(Drops("a"), {"a": noise.normal(size=(5, 101))})["a"] for _ in range(200)]
    assert sum(flat) < 10  # of a level of 0.05


def test_a_fast_learners_first_tenth_may_be_its_best():
    """An untrained policy far below all else, within the first tenth, hid every fall from there."""
    K101 = np.arange(101)
    early = np.array([[-900.0], [-1000.0], [-1100.0]])
    falls = np.where(K101 == 0, early, np.where(K101 <= 10, 10.0, [[7.9], [8.0], [8.1]]))
    assert found(Drops("a"), {"a": falls}) == {"a": 1}
    assert words(Drops("a"), {"a": falls})["a"].startswith("-2 ")
    assert words(Drops("a"), {"a": falls[:, :10]}) == {"a": "–"}


@pytest.mark.parametrize(
    "test", [Above, Behind, Sooner, Fluctuates, OtherWay, Varies, lambda *x: Alike(*x, 0.1)]
)
def test_missing_methods_and_single_seeds_prove_nothing(test):
    """Else a figure of one seed would have a verdict: there is no spread to judge the difference by."""
    one = HIGH[:1] + (-1.0) ** K
    for curves in ({"a": one, "b": LOW}, {"a": HIGH, "b": one}, {"a": one, "b": LOW[:1]}):
        assert found(test("a", ("b", "c")), curves) == {"b": 0, "c": 0}
        told = words(test("a", ("b", "c")), curves)
        assert told["b"] in ("–", *(f"{said} (p –)" for said in getattr(test, "said", ())))
        assert told["c"] == "–"


# --- tests of one method ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "sign"),
    [((6.8, 7, 7.2), 1), ((7, 7, 7), 1), ((8.9, 9.6, 9.7), 0), ((9.4, 9.5, 9.6), -1), ((6,), 0), ((9.9,), 0)],
)
def test_far_below_is_of_the_optimum_with_its_interval(ends, sign):
    """One seed, or a mean within the noise of nine tenths, is neither far nor near."""
    curves = {"a": rising(*ends), "b": rising(*(9 + x for x in ends))}
    assert found(FarBelow("a", 0.9), curves, optimum=10.0) == {"a": sign}
    assert words(FarBelow("a", 0.9), curves, optimum=10.0) == {"a": f"{10 * np.mean(ends):.0f} % of it"}


def kl(**changed):
    """KL of three seeds of 101 evaluations, of which the first, of untrained policies, has none."""
    values = np.full((3, 101), 0.0299)
    values[:, 0] = nan
    for name, value in changed.items():
        first, _, last = name.removeprefix("at").partition("to")
        values[:, int(first) : int(last or first) + 1] = value
    return values


@pytest.mark.parametrize(
    ("values", "sign", "told"),
    [
        (kl(), 1, "0.03 on average, tenths 0.03 to 0.03"),
        (kl(at1to100=1e-9), 1, "1e-09 on average, tenths 1e-09 to 1e-09"),
        (kl(at1to100=0.0301), -1, "0.03 on average, tenths 0.03 to 0.03"),
        (kl(at1to100=0.01, at91to100=0.05), -1, "0.014 on average, tenths 0.01 to 0.05"),
        (kl(at1to100=0.01, at1to10=0.001), -1, "0.0091 on average, tenths 0.001 to 0.01"),
        (kl(at1to100=0.01, at91to100=0.02), 1, "0.011 on average, tenths 0.01 to 0.02"),
        (kl()[:, :22], 1, "0.03 on average, tenths 0.03 to 0.03"),  # the first evaluation has none
        (kl()[:, :6], 0, "–"),
    ],
)
def test_steady_is_small_on_average_and_alike_in_every_tenth_of_the_run(values, sign, told):
    """KL that grows or dies is not stable, above the band it is not small; single updates may be above."""
    test, curves = Steady("a"), {"a": {KL: values}}
    assert found(test, curves, metric=KL) == {"a": sign}
    assert words(test, curves, metric=KL) == {"a": told}


# --- tests of the exact iteration -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("test", "iterations", "sign", "told"),
    [
        (NeverFalls(), [RISES], 1, "least step 0"),
        (NeverFalls(), [RISES, iteration((5, 8, 7.5, 10))], -1, "least step -0.5"),
        (NeverFalls(), [iteration((5, 8, 8 - 1e-9, 10)), RISES], -1, "least step -1e-09"),
        (Converges(), [RISES, STANDS], 1, "last tenth moves 0"),
        (Converges(), [RISES, iteration((5, 8), q=np.linspace(0, 1, 21))], -1, "last tenth moves 0.1"),
        (
            Converges(),
            [iteration((5, 8), p=0.5 + 0.5 ** np.arange(2, 23)), RISES],
            1,
            "last tenth moves 7e-07",
        ),
        (Trapped(), [RISES, iteration((5, 7))], 1, "ends at 10.000 (M̂ 0), 7.000 (M̂ 1) of 10"),
        (Trapped(), [RISES, STANDS], -1, "ends at 10.000 (M̂ 0) of 10"),
        (Trapped(), [STANDS], -1, "nothing moves"),
        (Trapped(), [iteration((5, 9.995))], -1, "ends at 9.995 (M̂ 0) of 10"),
        (Trapped(), [iteration((5, 7), p=(0.5,))], 1, "ends at 7.000 (M̂ 0) of 10"),  # q alone moves
    ],
)
def test_exact_iterations_are_judged_by_all_or_by_some(test, iterations, sign, told):
    """One fall, or one that goes on moving, refutes; to be trapped is enough once, for one that moves."""
    made = games(*iterations)
    ((_, finding),) = test.look(made, {group.method: group for group in made.groups})
    assert (finding.sign, finding.words) == (sign, told)


def test_methods_end_with_the_last_evaluation_that_all_have():
    """Scripts of before did not evaluate at the end: the last tenth would be of other steps."""
    whole, before = group("a", {RETURN: rising(1, 2)}), group("b", {RETURN: rising(1, 2)[:, :-1]})
    going = group("c", {RETURN: rising(1, 2)[:, :3]}, finished=False)
    end_together([whole, before, going])
    assert [len(x.steps()) for x in (whole, before, going)] == [POINTS - 1, POINTS - 1, 3]
    assert whole.values(RETURN).shape == before.values(RETURN).shape == (2, POINTS - 1)
