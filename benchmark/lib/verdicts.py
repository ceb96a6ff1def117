"""Verdicts on what the paper claims, of the signs that the tests of `benchmark.lib.claims` found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmark.lib.cells import Cell
from benchmark.lib.claims import BESIDE, LEVEL, MISSING, Claim, Finding
from benchmark.lib.groups import Group, million

# What docs/verdicts.md says of evidence, and of the paper's words that name no number.
EVIDENCE = (
    (
        "above, below",
        "the other method, by final scores, or by averages of the time that is spoken of; Welch's p",
    ),
    ("later, sooner", "it needs more or fewer steps"),
    ("more, less", "it fluctuates more or less"),
    ("< 5 %", "the 95 % interval leaves no advantage of 5 % of what training gains"),
    ("1.9 times (p 0.3)", "where seeds differ: the deviation over the other's; Brown and Forsythe's p"),
    ("-0.14 (p 0.1)", "a drop; p of a paired t test, times nine (any of nine tenths could be the best)"),
    ("-3 to +2 %", "how far the other is off: the 95 % interval in percent of what training gains"),
    ("–", "runs are missing, or a single seed gives no p"),
)
OURS = (
    ("far below the optimum", "1", "less than 90 % of it"),
    ("to fluctuate", "1", "the deviation of the steps between evaluations in the last half"),
    ("at first", "2, 3", "the first quarter of the run, without the untrained policy"),
    ("fast", "2", "90 % of the way of the one that ends lower"),
    ("a drop", "2", "from the best tenth of the run, without the untrained policy, to the last"),
    ("to win nothing", "4", "less than 5 % of the battles"),
    ("obvious", "5, 6, 7", "more than 5 % of what training gains"),
    ("limited, similar or small influence", "6, 7, 9, 10", "within 10 % of what training gains"),
    ("close together", "8", "within 5 % of what training gains"),
    ("converged", "8", "90 % of the way to one's own end"),
    ("over the run, on the way there", "9, 10", "the average of all evaluations but the untrained policy's"),
    ("clips", "10", "0.05 to 0.3"),
    ("never falls", "11", "by more than 1e-12"),
    ("converges", "11", "p and q move less than 1e-4 in the last tenth"),
    ("small KL", "12", "on average below the upper end of the band"),
    ("stable KL", "12", "in no tenth of the run more than three times off"),
)


@dataclass(frozen=True)
class Judgement:
    """holds, does not hold, open or not run; the numbers by method and task, seeds and steps of the runs."""

    verdict: str
    evidence: str = ""


def judge(
    claim: Claim,
    cells: Sequence[Cell],
    roles: dict[str, str],
    seeds: int,
    complete: bool,
    short: bool,
    tasks: int = 0,
) -> Judgement:
    """The verdict on a claim by the cells of a panel. roles: method's name -> the name that claims use.

    seeds: of each method, when all are there. complete: no run of the paper's is missing. short: runs have
    fewer steps than they should in the end. tasks: how many the claim is about, with those that have no cell.
    """
    found: list[Finding] = []
    numbers: dict[str, list[str]] = {}
    used: list[Group] = []
    present: set[str] = set()
    cells = [cell for cell in cells if not claim.test.tasks or cell.task in claim.test.tasks]
    for cell in cells:
        groups = {roles.get(group.method, group.method): group for group in cell.groups}
        present |= groups.keys()
        complete = complete and groups.keys() >= set(claim.test.methods)
        if claim.test.methods and claim.test.methods[0] not in groups:
            for name in claim.test.methods[1:] or claim.test.methods:
                numbers.setdefault(name, []).append(MISSING.words)
                found.append(MISSING)
            continue
        here = [groups[name] for name in claim.test.methods or groups if name in groups]
        used += here
        whole = all(run.finished for group in here for run in group.runs)
        few = {name for name, group in groups.items() if len(group.runs) < seeds}
        for name, finding in claim.test.look(cell, groups):
            told_by = {*claim.test.methods[:1], *name.split(BESIDE)}
            # Runs that are to come may turn it.
            found.append(finding if whole and not few & told_by else replace(finding, sign=0))
            numbers.setdefault(name, []).append(finding.words)
    if not used:
        return Judgement("not run")
    lacking = [
        name
        for name, words in numbers.items()
        if set(words) == {MISSING.words} and not set(name.split(BESIDE)) <= present
    ]
    told = [
        f"{name}: {', '.join(words)}".removeprefix(": ")
        for name, words in numbers.items()
        if name not in lacking
    ]
    told += [f"missing: {' / '.join(lacking)}"] * bool(lacking)
    if not any("J" in group.runs[0].columns for group in used):  # the exact iteration has neither
        counts = sorted({len(group.runs) for group in used})
        budgets = sorted({run.total_timesteps for group in used for run in group.runs}, reverse=True)
        words = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        told.append(f"{words} seed{'s' * (counts[-1] > 1)}, {', '.join(map(million, budgets))}")
    # One comparison of many is enough to bear out "some", and to refute "all": it has to be significant at a
    # level that all of them share, those of tasks that were not run yet included.
    enough = {"some": 1, "all": -1, "most": 0}[claim.on]
    comparisons = len(found) * max(tasks, len(cells)) / len(cells)
    signs = [0 if one.sign == enough and one.p >= LEVEL / comparisons else one.sign for one in found]
    return Judgement(verdict(signs, complete, short, claim.on), "; ".join(told))


def verdict(signs: Sequence[int], complete: bool, short: bool, on: str = "all") -> str:
    """holds, does not hold or open, of the signs that were found on all tasks.

    The opposite on one task is enough, except in short runs, and where the statement is of most comparisons
    (then more than half must hold) or of some (then one that holds is enough, once all are there, and all
    must be the opposite to refute it). What is neither seen nor excluded is open, when all runs are there as
    well: five seeds see a difference of 1.5 deviations every other time.
    """
    need = {"all": len(signs), "most": len(signs) // 2 + 1, "some": 1}[on]
    if short:
        return "open"
    if len(signs) - signs.count(-1) < need and (complete or on == "all"):
        return "does not hold"
    return "holds" if complete and signs.count(1) >= need else "open"
