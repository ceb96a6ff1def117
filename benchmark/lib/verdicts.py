"""Verdicts on what the paper claims, of the signs that the tests of `benchmark.lib.claims` found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmark.lib.cells import Cell
from benchmark.lib.claims import BESIDE, LEVEL, MISSING, Claim, Finding
from benchmark.lib.groups import Group, million


@dataclass(frozen=True)
class Judgement:
    """holds, does not hold, open or not run; the numbers by method and task, seeds and steps of the runs."""

    verdict: str
    evidence: str = ""


def judge(
    claim: Claim, cells: Sequence[Cell], roles: dict[str, str], seeds: int, complete: bool, short: bool
) -> Judgement:
    """The verdict on a claim by the cells of a panel. roles: method's name -> the name that claims use.

    seeds: of each method, when all are there. complete: no run of the paper's is missing. short: runs have
    fewer steps than they should in the end.
    """
    found: list[Finding] = []
    numbers: dict[str, list[str]] = {}
    used: list[Group] = []
    for cell in cells:
        if claim.test.tasks and cell.task not in claim.test.tasks:
            continue
        groups = {roles.get(group.method, group.method): group for group in cell.groups}
        complete = complete and groups.keys() >= set(claim.test.methods)
        if claim.test.methods and claim.test.methods[0] not in groups:
            for name in claim.test.methods[1:] or claim.test.methods:
                numbers.setdefault(name, []).append(MISSING.words)
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
    told = [
        f"{name}: {', '.join(words)}".removeprefix(": ")
        for name, words in numbers.items()
        if set(words) != {"–"}
    ]
    lacking = [name for name, words in numbers.items() if set(words) == {"–"}]
    told += [f"missing: {' / '.join(lacking)}"] * bool(lacking)
    if not any("J" in group.runs[0].columns for group in used):  # the exact iteration has neither
        counts = sorted({len(group.runs) for group in used})
        budgets = sorted({run.total_timesteps for group in used for run in group.runs}, reverse=True)
        words = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        told.append(f"{words} seed{'s' * (counts[-1] > 1)}, {', '.join(map(million, budgets))}")
    # One comparison of many is enough: so each has to hold at a level that all of them share.
    level = LEVEL / len(found) if claim.on == "some" else LEVEL
    signs = [0 if one.sign == 1 and one.p >= level else one.sign for one in found]
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
