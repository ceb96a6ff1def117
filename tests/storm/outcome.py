"""What came of each thing that was tried, and the table of all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmark.lib.tables import markdown

KINDS = {
    "kills": "SIGKILL at random times, several a run, of all seven scripts; then resumed",
    "lines": "bad command lines of the scripts and of `benchmark/*.py`",
    "checkpoints": "damaged checkpoints, resumed",
    "environments": "environments that do something odd, played by every script that can",
}
"""What is tried, by the names that outcomes have."""


@dataclass
class Outcome:
    """Of one thing that was tried: what it was, and in what it failed, if it did."""

    kind: str
    name: str
    wrong: str = ""
    count: int = 1  # things tried at once: the kills of a run
    special: int = 0  # of these: while a checkpoint was written


def table(outcomes: Iterable[Outcome]) -> str:
    """A row per kind: tried, held, and what did not hold."""
    outcomes = list(outcomes)
    rows = []
    for kind, words in KINDS.items():
        own = [one for one in outcomes if one.kind == kind]
        if not own:
            continue
        tried, held = sum(one.count for one in own), sum(one.count for one in own if not one.wrong)
        if kind == "kills":
            special = sum(one.special for one in own)
            words = f"{words} ({len(own)} runs; {special} kills while a checkpoint was written)"
        wrong = "; ".join(f"{one.name}: {one.wrong}" for one in own if one.wrong)
        rows.append([words, str(tried), str(held), wrong.replace("|", "\\|").replace("\n", " ")])
    return markdown(["what", "tried", "held", "what did not"], rows)
