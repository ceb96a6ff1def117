"""Verdicts: no word stronger than the runs behind it, of what the tests of claims found."""

import re

import numpy as np
import pytest
from made_curves import HIGH, LOW, POINTS, RISES, WIDE, cell, found, games, iteration, rising, words

from benchmark.lib.claims import (
    Above,
    Alike,
    Behind,
    Claim,
    Clearly,
    Higher,
    NeverFalls,
    Steady,
    Together,
    Trapped,
)
from benchmark.lib.runs import KL, RETURN
from benchmark.lib.statistics import welch
from benchmark.lib.verdicts import judge, verdict

HOLDS, NOT, OPEN = "holds", "does not hold", "open"


@pytest.mark.parametrize(
    ("signs", "complete", "short", "word"),
    [
        ([1, 1], True, False, HOLDS),
        ([1, 0], True, False, OPEN),
        ([0, 0], True, False, OPEN),
        ([1, -1], True, False, NOT),
        ([1, 1], False, False, OPEN),
        ([1, 0], False, False, OPEN),
        ([1, -1], False, False, NOT),
        *(([1, x], complete, True, OPEN) for x in (1, 0, -1) for complete in (True, False)),
    ],
)
def test_verdicts_by_their_table(signs, complete, short, word):
    """What is said of the paper: no word stronger than the runs behind it, however they are ordered."""
    for order in (signs, signs[::-1]):
        assert verdict(order, complete, short) == word


@pytest.mark.parametrize(
    ("on", "signs", "complete", "short", "word"),
    [
        ("most", [1, 1, 0], True, False, HOLDS),
        ("most", [1, 1, -1], True, False, HOLDS),
        ("most", [1, 0], True, False, OPEN),
        ("most", [-1, 0], True, False, NOT),  # one of two is not most
        ("most", [-1, -1, 0], True, False, NOT),
        ("most", [-1, -1, 0], False, False, OPEN),
        ("most", [1, 1, 0], False, False, OPEN),
        ("most", [1, 1, 0], True, True, OPEN),
        ("some", [1, -1, 0], False, False, OPEN),
        ("some", [1, -1, 0], True, False, HOLDS),
        ("some", [1], True, True, OPEN),
        ("some", [-1, -1], True, False, NOT),
        ("some", [-1, -1], False, False, OPEN),
        ("some", [-1, 0], True, False, OPEN),
    ],
)
def test_statements_on_most_and_on_some(on, signs, complete, short, word):
    """'May fall behind in some tasks' is borne out by one; 'in most' by more than half."""
    for order in (signs, signs[::-1]):
        assert verdict(order, complete, short, on) == word


def judged(test, cells, roles=None, complete=True, short=False, seeds=0, on="all", tasks=0):
    seeds = seeds or max((len(group.runs) for one in cells for group in one.groups), default=0)
    found = judge(Claim("text", "4", "", test, on), cells, roles or {}, seeds, complete, short, tasks)
    return found.verdict, found.evidence


A_ABOVE = Above("a", ("b",))


def test_seeds_that_are_to_come_may_turn_a_comparison():
    """Two of five seeds refute nothing, not even where the others have five."""
    five = {"a": rising(1, 2, 3, 1, 2), "b": rising(10, 11, 12, 10, 11)}
    few = {"a": rising(1, 2), "b": rising(10, 11, 12, 10, 11)}
    assert judged(A_ABOVE, [cell(five)])[0] == NOT
    assert judged(A_ABOVE, [cell(few, task="y"), cell({**five, "a": five["b"] + 5}, task="x")])[0] == OPEN
    assert judged(A_ABOVE, [cell(few)], complete=False)[0] == OPEN
    both = {"a": rising(1, 1.1), "b": rising(10, 10.1)}
    assert judged(A_ABOVE, [cell(both)])[0] == NOT
    assert judged(A_ABOVE, [cell(both)], complete=False, seeds=5)[0] == OPEN
    small = {"a": {KL: np.full((1, POINTS), 1.0)}}
    assert judged(Steady("a"), [cell(small)])[0] == NOT
    assert judged(Steady("a"), [cell(small)], complete=False, seeds=5)[0] == OPEN
    pairs, base = Together(("a", "b", "c"), 0.05), rising(100, 100.1, 100.2)
    assert judged(pairs, [cell({"a": base, "b": base + 4, "c": base - 4})])[0] == NOT
    assert judged(pairs, [cell({"a": base, "b": base + 4, "c": base[:2] - 4})])[0] == OPEN


def test_every_task_must_bear_a_claim_out():
    """'On all five' is refuted by one; numbers stand task after task."""
    good, even, bad = (
        cell({"a": HIGH, "b": x}, task=task) for task, x in (("x", LOW), ("y", WIDE), ("z", 5 * HIGH))
    )
    assert judged(A_ABOVE, [good, good])[0] == HOLDS
    assert judged(A_ABOVE, [good, even])[0] == OPEN
    assert judged(A_ABOVE, [good, bad], complete=False)[0] == NOT
    p, q = (words(A_ABOVE, {"a": HIGH, "b": x})["b"] for x in (LOW, 5 * HIGH))
    assert judged(A_ABOVE, [good, bad], short=True) == (OPEN, f"b: {p}, {q}; 3 seeds, 300 k")
    assert p.startswith("below (p ") and q.startswith("above (p ")


def test_an_advantage_that_cannot_be_large_is_none():
    """Many alike seeds refute a difference that few noisy ones leave open; 5 % of what training gains."""
    base = rising(99.8, 100, 100.2, start=90)  # gains 10; the interval is 0.45 to either side
    for offset, sign in ((0.0, -1), (0.02, -1), (0.2, 0), (3.0, 1)):
        curves = {"a": base + offset, "b": base}
        assert found(A_ABOVE, curves) == {"b": sign}, offset
        assert words(A_ABOVE, curves)["b"].endswith(", < 5 %)") == (sign == -1)


def test_a_claim_on_some_tasks_ignores_the_others():
    """HalfCheetah's claim must not depend on what happens on Hopper, nor hold where it was not run."""
    good, bad = (cell({"a": HIGH, "b": x}, task=task) for task, x in (("x", LOW), ("z", 5 * HIGH)))
    assert judged(Above("a", ("b",), ("x",)), [bad, good])[0] == HOLDS
    assert judged(Above("a", ("b",), ("z",)), [bad, good])[0] == NOT
    assert judged(Above("a", ("b",), ("elsewhere",)), [bad, good]) == ("not run", "")


def test_what_is_missing_leaves_a_claim_open_and_is_named():
    """A method that nobody ran is no evidence, whatever the others show."""
    test = Above("a", ("b", "c"))
    two, three = ({"a": HIGH, "b": LOW} | more for more in ({}, {"c": LOW}))
    assert judged(test, [cell(three)])[0] == HOLDS
    word, told = judged(test, [cell(two)])
    assert word == OPEN and "missing: c; 3 seeds" in told and told.startswith("b: below (p ")
    word, told = judged(test, [cell(three, task="x"), cell(two, task="y")])
    assert word == OPEN and "missing" not in told and re.search(r"c: below [^,]+, –;", told)
    # A task without the method itself: the claim is open however the rest went.
    assert judged(test, [cell(three, task="x"), cell({"b": LOW}, task="y")])[0] == OPEN
    assert judged(test, [cell({"b": LOW})]) == judged(test, []) == ("not run", "")
    assert judged(test, [cell({"a": HIGH, "b": 5 * HIGH})])[0] == NOT


def test_what_a_single_seed_cannot_tell_is_not_called_missing():
    """All runs are there: who reads 'missing' looks for runs that nobody can make."""
    one = cell({name: HIGH[:1] for name in "abc"})
    assert judged(Together(("a", "b", "c"), 0.05), [one], complete=False) == (
        OPEN,
        "b: –; c: –; c to b: –; 1 seed, 300 k",
    )


def test_a_worse_result_refutes_no_less():
    """Being below at p 0.03 excludes an advantage of 5 % all the more than being below at p 0.08."""
    spread = (99, 99.5, 100, 100.5, 101)
    others = {name: rising(*spread) for name in "bcdefg"}
    for lower in (1.0, 1.3, 3.0):
        mine = rising(*(end - lower for end in spread))
        assert judged(Above("a", tuple(others)), [cell({"a": mine, **others})])[0] == NOT, lower


def test_tasks_that_nobody_has_run_yet_are_comparisons_as_well():
    """Else the first of five tasks could refute a claim on all of them at a level that is its alone."""
    curves = {"a": rising(*range(5)), "b": rising(*(end + 2.9 for end in range(5)))}
    assert words(A_ABOVE, curves) == {"b": "above (p 0.02)"}
    verdicts = [judged(A_ABOVE, [cell(curves)], complete=False, tasks=n)[0] for n in (0, 1, 5)]
    assert verdicts == [NOT, NOT, OPEN]


def test_single_seeds_leave_no_verdict_but_that_more_are_needed():
    """One seed of one method: neither 'holds' nor, while seeds are missing, 'does not hold'."""
    word, told = judged(A_ABOVE, [cell({"a": HIGH[:1], "b": LOW})], complete=False)
    assert (word, told) == (OPEN, "b: below (p –); 1 to 3 seeds, 300 k")
    assert judged(A_ABOVE, [cell({"a": HIGH[:1], "b": LOW[:1]})], complete=False)[1].endswith(
        "; 1 seed, 300 k"
    )


def test_runs_that_go_on_prove_nothing():
    """Half a run of DPO is below a whole one of IPPO, which says nothing of where it will end."""
    half = {"a": {RETURN: LOW[:, :5]}, "b": {RETURN: HIGH}}
    assert judged(A_ABOVE, [cell(half)], complete=False)[0] == NOT
    assert judged(A_ABOVE, [cell(half, finished=False)], complete=False)[0] == OPEN
    whole = cell({"a": HIGH, "b": 5 * HIGH}, task="y")
    assert judged(A_ABOVE, [cell(half, finished=False), whole], complete=False)[0] == NOT


def test_variants_are_judged_in_their_roles():
    """Of the panel at the best settings 'DPO, floor 0.2' is DPO; who else is there does not matter."""
    curves = {"a, floor 0.2": HIGH, "b": LOW, "else": 5 * HIGH}
    assert judged(A_ABOVE, [cell(curves)]) == ("not run", "")
    word, told = judged(A_ABOVE, [cell(curves)], {"a, floor 0.2": "a"})
    assert word == HOLDS and told == judged(A_ABOVE, [cell({"a": HIGH, "b": LOW})])[1]
    curves = {"a": LOW, "b, best": HIGH}
    word, told = judged(A_ABOVE, [cell(curves)], {"b, best": "b"})
    assert word == NOT and told.startswith("b: above (p ")


def test_exact_claims_have_neither_seeds_nor_steps():
    """Their evidence is the number alone; claims of games name the games."""
    trapped, free = games(iteration((5, 7))), games(RISES)
    trapped.task, free.task = "one", "three"
    assert judged(Trapped(("one",)), [trapped, free]) == (HOLDS, "ends at 7.000 (M̂ 0) of 10")
    assert judged(Trapped(), [trapped, free]) == (
        NOT,
        "ends at 7.000 (M̂ 0) of 10, ends at 10.000 (M̂ 0) of 10",
    )
    assert judged(NeverFalls(), [trapped, free])[0] == HOLDS
    assert judged(NeverFalls(), [trapped, free], complete=False)[0] == OPEN
    assert judged(NeverFalls(), []) == ("not run", "")


def test_one_of_many_comparisons_must_hold_at_a_level_that_all_share():
    """Of six at 0.05, one in four papers would 'hold' by chance."""
    near = {"a": rising(10, 11, 12, 13, 14), "b": rising(12.6, 13.6, 14.6, 15.6, 16.6)}
    tasks = [cell(near, task=f"task {i}") for i in range(6)]
    p = welch(near["a"][:, -1], near["b"][:, -1])
    assert 0.05 / 6 < p < 0.05
    assert judged(Higher("b", ("a",)), tasks[:1], on="some")[0] == HOLDS
    assert judged(Higher("b", ("a",)), tasks, on="some")[0] == OPEN


def test_one_of_many_refutes_all_at_the_level_that_they_share():
    """Of ten methods that are alike, one at 0.05 is above by chance in every fifth figure."""
    near = {"a": rising(12.6, 13.6, 14.6, 15.6, 16.6), "b": rising(10, 11, 12, 13, 14)}
    tasks = [cell(near, task=f"task {i}") for i in range(6)]
    p = welch(near["a"][:, -1], near["b"][:, -1])
    assert 0.05 / 6 < p < 0.05
    for test in (Higher("b", ("a",)), Above("b", ("a",)), Behind("a", ("b",))):
        assert judged(test, tasks[:1])[0] == NOT
        assert judged(test, tasks)[0] == OPEN
    # Tasks that were not run are comparisons as well, and it takes more than half of "most".
    assert (
        judged(Higher("b", ("a",)), [*tasks[:1], *(cell({"a": LOW}, task=str(i)) for i in range(5))])[0]
        == OPEN
    )
    assert judged(Higher("b", ("a",)), tasks, on="most")[0] == NOT


def test_advantages_next_to_nothing_refute_at_the_level_that_all_share():
    """They are tests too: their intervals are no wider for there being many of them."""
    base = rising(99, 99.5, 100, 100.5, 101, start=0)
    alike = {"a": base + 3.8, "b": base}
    p = welch(alike["a"][:, -1] - 0.05 * 103.8, base[:, -1])  # of an advantage of 5 % of what training gains
    assert 0.05 / 6 < p < 0.05
    tasks = [cell(alike, task=f"task {i}") for i in range(6)]
    assert judged(Clearly("a", ("b",)), tasks[:1])[0] == NOT
    assert judged(Clearly("a", ("b",)), tasks)[0] == OPEN
    apart = {"a": base, "b": base + 11.4}  # 10 % of what training gains is 10
    assert judged(Alike("a", ("b",), 0.1), [cell(apart)])[0] == NOT
    assert judged(Alike("a", ("b",), 0.1), [cell(apart, task=f"task {i}") for i in range(6)])[0] == OPEN
