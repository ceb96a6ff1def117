"""What all figures share: lines with confidence bands, styles that survive greyscale, captions."""

from __future__ import annotations

import csv
import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmark.lib.records import CollectError
from benchmark.lib.groups import Group, provenance
from benchmark.lib.statistics import mean_ci

# Okabe and Ito's colours, neighbours differing in lightness too; dashes tell them apart in print.
COLOURS = ("#000000", "#D55E00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#E69F00")
STYLES = tuple(zip(COLOURS, ("-", "--", "-.", ":", "-", "--", "-."), strict=True))
RC: Any = {"font.size": 11.0, "axes.titlesize": 11.0, "axes.spines.top": False, "axes.spines.right": False}
RC |= {"legend.frameon": False, "hatch.linewidth": 0.6, "figure.dpi": 110.0}


def draw_curve(
    ax: Axes, group: Group, column: str, style: tuple[str, str], scale: float = 1.0, unit: float = 1e6
) -> None:
    """Mean over seeds, its 95 % band, and each seed as a thin line; values times scale, steps in units.

    Two seeds get no band: Student's t of one degree of freedom, 12.7, makes it wider than the figure.
    """
    colour, dashes = style
    for run in group.runs:
        logged = ~np.isnan(run.columns[column])
        ax.plot(
            run.steps[logged] / unit, scale * run.columns[column][logged], color=colour, lw=0.6, alpha=0.5
        )
    mean, low, high = (scale * x for x in mean_ci(group.values(column)))
    x, logged = group.steps() / unit, ~np.isnan(mean)
    ax.plot(x[logged], mean[logged], dashes, color=colour, lw=2.0, label=group.method)
    if len(group.runs) > 2:
        ax.fill_between(x[logged], low[logged], high[logged], color=colour, alpha=0.18, lw=0)


def styled(groups: Sequence[Group]) -> list[tuple[Group, tuple[str, str]]]:
    """Each group with its colour and dashes."""
    return list(zip(groups, itertools.cycle(STYLES)))


def finish(
    figure: Figure,
    axes: Sequence[Axes],
    title: str,
    groups: Sequence[Group],
    path: Path,
    x: str = "environment steps (millions)",
    note: str = "",
) -> None:
    """Title above, axis labels, below what the lines are and where they come from; writes the PNG."""
    for ax in axes:
        ax.set_xlabel(x)
        ax.grid(axis="y", color="#dddddd", lw=0.6)
        ax.set_axisbelow(True)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    caption = "Thick: mean over seeds; shaded: its 95 % confidence band (Student t); thin: single seeds. "
    if all(len(group.runs) == 1 for group in groups):
        caption = "Thick: one seed, hence no confidence band. "
    elif any(len(group.runs) == 2 for group in groups):
        caption = caption.replace("(Student t)", "(Student t), from three seeds on")
    lines = textwrap.wrap(caption + note + provenance(groups), int(figure.get_figwidth() * 12))
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=10)
    figure.savefig(path, metadata={"Software": None})


def read_references(folder: Path, env: str, groups: Sequence[Group]) -> dict[str, float]:
    """Returns to compare with, by name: the optimum that the runs logged, and the lines of references.csv."""
    optima = [
        run.columns["eval/optimum"][0] for group in groups for run in group.runs if group.has("eval/optimum")
    ]
    found = {"optimum": float(optima[0])} if optima else {}
    path = folder / "references.csv"
    if path.exists():
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        try:
            found |= {row["name"]: float(row["return"]) for row in rows if row["env"] == env}
        except (KeyError, TypeError, ValueError):
            raise CollectError(
                f"{path} must have columns env, name and return, a number; restore it."
            ) from None
    return found


def draw_return_limits(ax: Axes, groups: Sequence[Group], references: dict[str, float]) -> None:
    """Dotted lines of references; limits by trained seeds: a wide band of few would flatten all curves."""
    column = "eval/episodic_return"
    found = [run.columns[column] for group in groups if group.has(column) for run in group.runs]
    values = [x[1:] if len(x) > 1 else x for x in found]  # an untrained policy may be worse than random
    values.append(np.array(list(references.values())))
    low, high = np.nanmin(np.concatenate(values)), np.nanmax(np.concatenate(values))
    margin = 0.06 * (high - low) or 1.0
    ax.set_ylim(low - margin, high + margin)
    for label, value in references.items():
        ax.axhline(value, color="#555555", lw=1.0, ls=":")
        ax.annotate(label, (1, value), (-3, 2), ("axes fraction", "data"), "offset points", ha="right")
