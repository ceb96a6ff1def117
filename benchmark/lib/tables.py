"""The Markdown table of groups of runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from benchmark.lib.groups import Group, band_shares, million, provenance
from benchmark.lib.statistics import final_means, first_reached, mean_ci, run_means

THRESHOLDS = (0.5, 0.75, 0.9)
REACHED = f"win rate {' / '.join(map(str, THRESHOLDS))} at"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "".join(map(line, [head, ["---"] * len(head), *rows]))


def line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |\n"


def plus_minus(values: ArrayLike, digits: int) -> str:
    """Mean over seeds ± half its 95 % interval, of values (seeds,); – if there are none."""
    values = np.asarray(values, dtype=np.float64)
    if not len(values) or np.isnan(values).any():
        return "–"
    mean, _, high = mean_ci(values[:, None])
    spread = "" if np.isnan(high[0]) else f" ± {high[0] - mean[0]:.{digits}f}"
    return f"{mean[0]:.{digits}f}{spread}"


def return_digits(group: Group) -> int:
    """Decimals of returns: hundredths where they are below 100 and differ by little, else tenths."""
    large = group.has(name := "eval/episodic_return") and np.abs(final_means(group.values(name))).max() >= 100
    return 1 if large else 2


def absolute_cell(group: Group, name: str, digits: int) -> str:
    """A metric of the best checkpoints over the seeds that finished, and how many did if not all."""
    finished = [x for run in group.runs if not math.isnan(x := getattr(run, name))]
    missing = f" ({len(finished)} of {len(group.runs)} seeds)" if 0 < len(finished) < len(group.runs) else ""
    return plus_minus(finished, digits) + missing


def speed_cell(group: Group) -> str:
    """Median environment steps per second, and the shares of env, act and update in the time.

    Nothing where some seeds ran on a GPU and others did not.
    """
    names = ("charts/SPS", "time/env", "time/act", "time/update")
    devices = {run.device for run in group.runs}
    if not group.has(*names) or len(devices) > 1:
        return "–"
    sps, *split = (np.nanmedian(np.concatenate([run.columns[name] for run in group.runs])) for name in names)
    gpu = "" if devices == {"cpu"} else ", GPU"
    return f"{sps:,.0f} ({' / '.join(f'{100 * share:.0f}' for share in split)} %{gpu})"


def shares_cell(group: Group) -> str:
    """Shares of updates below, inside and above the band, over the run."""
    if not group.has("dpo/below_band", "dpo/above_band"):
        return "–"
    return " / ".join(f"{100 * share:.0f}" for share in np.nanmean(band_shares(group), axis=(1, 2))) + " %"


def table_row(env: str, group: Group) -> list[str]:
    """The cells of one line, in the order of the table's head."""
    steps = group.steps()
    budget = max(run.total_timesteps for run in group.runs)
    last = steps[-1]
    reached = million(last) + (f" of {million(budget)}" if last < budget else "")
    cells = [env, group.method, str(len(group.runs)), reached]
    digits = return_digits(group)
    for column, decimals in (("eval/win_rate", 2), ("eval/episodic_return", digits)):
        for summary in (final_means, run_means):
            cells.append(plus_minus(summary(group.values(column)), decimals) if group.has(column) else "–")
    cells += [absolute_cell(group, "absolute_win_rate", 2), absolute_cell(group, "absolute_return", digits)]
    won = group.values("eval/win_rate").mean(axis=0) if group.has("eval/win_rate") else np.zeros_like(steps)
    firsts = [first_reached(steps, won, threshold) for threshold in THRESHOLDS]
    cells.append(" / ".join("–" if first is None else million(first) for first in firsts))
    return [*cells, speed_cell(group), shares_cell(group)]


def make_table(groups: dict[str, list[Group]]) -> str:
    """The Markdown table of all groups, and the lines that explain it."""
    head = ["environment", "method", "seeds", "steps", "final win rate", "win rate over the run"]
    head += ["final return", "return over the run", "absolute win rate", "absolute return"]
    head += [REACHED, "steps/s (env / act / update)", "KL below / in / above band"]
    rows = [table_row(env, group) for env, members in groups.items() for group in members]
    filled = [set(column) - {"–", "– / – / –"} for column in zip(*rows, strict=True)]
    head, *rows = (list(itertools.compress(row, filled)) for row in (head, *rows))
    exact = [env.startswith("matrix") for env in groups]
    absolute = "the parameters that\nevaluated best, on 320 greedy episodes"
    if any(exact):
        absolute = "the last\nparameters, exact" if all(exact) else f"{absolute} (of games the last, exact)"
    notes = f"""Mean over seeds ± half the 95 % confidence interval (Student t; none for one seed).
Final: the last 10 % of the evaluations that all seeds, and all finished methods, have. Over the run: all but
the first, of the untrained policies. Absolute: {absolute}. Steps/s: median; how fast depends on the machine
and what else it ran."""
    if REACHED in head:
        notes += "\nThe win rate's thresholds are of its mean over seeds."
    origins = "".join(f"- {env}: {provenance(members)}\n" for env, members in groups.items())
    return f"{markdown(head, rows)}\n{notes}\n\n{origins}"
