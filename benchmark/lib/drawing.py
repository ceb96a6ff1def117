"""Pictures as PNG files: curves with confidence bands, aggregates; styles that survive greyscale."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmark.lib.cells import Cell, aggregates, interquartile_means
from benchmark.lib.groups import Group, provenance
from benchmark.lib.runs import RETURN, STEP, WIN_RATE
from benchmark.lib.statistics import hours, mean_ci

Style = tuple[str, str]
# Okabe and Ito's colours, neighbours differing in lightness too; dashes tell them apart in print.
COLOURS = ("#000000", "#D55E00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#E69F00")
STYLES: tuple[Style, ...] = tuple(zip(COLOURS, ("-", "--", "-.", ":", "-", "--", "-."), strict=True))
RC: Any = {"font.size": 11.0, "axes.titlesize": 11.0, "axes.spines.top": False, "axes.spines.right": False}
RC |= {"legend.frameon": False, "hatch.linewidth": 0.6, "figure.dpi": 110.0}


def draw_curve(
    ax: Axes, group: Group, column: str, style: Style, scale: float = 1.0, unit: float = 1e6
) -> None:
    """Mean over seeds, its 95 % band, and each seed as a thin line; values times scale, steps in units.

    Two seeds get no band: Student's t of one degree of freedom, 12.7, makes it wider than the figure.
    """
    colour, dashes = style
    for run in group.runs:
        logged = ~np.isnan(run.columns[column])
        x, y = run.steps[logged] / unit, scale * run.columns[column][logged]
        ax.plot(x, y, color=colour, lw=0.6, alpha=0.5)
    mean, low, high = (scale * x for x in mean_ci(group.values(column)))
    x, logged = group.steps() / unit, ~np.isnan(mean)
    ax.plot(x[logged], mean[logged], dashes, color=colour, lw=2.0, label=group.method)
    if len(group.runs) > 2:
        ax.fill_between(x[logged], low[logged], high[logged], color=colour, alpha=0.18, lw=0)


def styled(groups: Sequence[Group]) -> list[tuple[Group, Style]]:
    """Each group with its colour and dashes."""
    return list(zip(groups, itertools.cycle(STYLES)))


def png(figure: Figure) -> bytes:
    """The picture: the same bytes for the same data, so without the date and the version of what drew it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def finish(
    figure: Figure,
    axes: Sequence[Axes],
    title: str,
    groups: Sequence[Group],
    x: str = "environment steps (millions)",
    note: str = "",
) -> bytes:
    """Title above, axis labels, below what the lines are and where they come from; the PNG."""
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
    return png(figure)


# --- learning curves --------------------------------------------------------------------------------------


def draw_cells(
    cells: Sequence[Cell], title: str, timed: bool = False, aggregate: bool = True
) -> bytes | None:
    """A set of axes per cell, and one per panel that several tasks can be aggregated over.

    timed: against wall-clock hours; None if no cell has hours that can be compared.
    """
    cells = [cell for cell in cells if cell.has_hours or not timed]
    if not cells:
        return None
    several = aggregates(cells) if aggregate and not timed else []
    one_panel = len({cell.panel for cell in cells}) == 1
    with rc_context(RC):
        figure, axes = grid(len(cells) + len(several))
        for ax, cell in zip(axes, cells, strict=False):
            draw_cell(ax, cell, timed)
        draw_legends(figure, axes, cells, one_panel)
        for ax, (members, words) in zip(axes[len(cells) :], several, strict=True):
            draw_aggregate(ax, members, words)
        if one_panel:  # room for the legend
            title += "\n " * math.ceil(max(len(cell.groups) for cell in cells) / 4)
        groups = [group for cell in cells for group in cell.groups]
        if not timed:
            return finish(figure, axes[: len(cells)], title, groups)
        note = "Hours are integrated from the steps per second of updates, evaluations do not count; means "
        note += "end with the fastest seed; compare only what was run side by side. "
        return finish(figure, axes[: len(cells)], title, groups, "wall-clock hours", note)


def grid(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes."""
    columns = 2 if count == 4 else min(count, 3)
    rows = math.ceil(count / columns)
    size = max(4.6 * columns, 7.5), 3.6 * rows + 1.2
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def style_of(cell: Cell, method: str) -> Style:
    """Colour and dashes of a method: the same in all tasks of the panel, whatever is missing there."""
    return STYLES[cell.methods.index(method) % len(STYLES)]


def draw_cell(ax: Axes, cell: Cell, timed: bool) -> None:
    """The curves of one task."""
    for group in cell.groups:
        style = style_of(cell, group.method)
        if group.has(cell.metric):
            if not timed:
                draw_curve(ax, group, cell.metric, style)
            elif group.has("charts/SPS"):
                draw_curve(ax, on_the_clock(group), cell.metric, style, unit=1.0)
    how = "exact" if cell.family == "matrix" else "greedy"
    ax.set(ylabel=f"{'win rate' if cell.metric == WIN_RATE else 'return'} ({how})", xlim=(0, None))
    if cell.metric == WIN_RATE:
        ax.set_ylim(-0.02, 1.02)
    else:
        draw_return_limits(ax, cell.groups, cell.references)
    ax.set_title(cell.title, loc="left")


def on_the_clock(group: Group) -> Group:
    """The same runs with hours in the place of environment steps."""
    runs = []
    for run in group.runs:
        clock = hours(run.steps, run.columns["charts/SPS"])
        runs.append(dataclasses.replace(run, columns=run.columns | {STEP: clock}))
    return Group(runs)


def draw_return_limits(ax: Axes, groups: Sequence[Group], references: dict[str, float]) -> None:
    """Dotted lines of references; limits by trained seeds: a wide band of few would flatten all curves."""
    found = [run.columns[RETURN] for group in groups if group.has(RETURN) for run in group.runs]
    values = [x[1:] if len(x) > 1 else x for x in found]  # an untrained policy may be worse than random
    values.append(np.array(list(references.values())))
    low, high = np.nanmin(np.concatenate(values)), np.nanmax(np.concatenate(values))
    margin = 0.06 * (high - low) or 1.0
    ax.set_ylim(low - margin, high + margin)
    for label, value in references.items():
        ax.axhline(value, color="#555555", lw=1.0, ls=":")
        ax.annotate(label, (1, value), (-3, 2), ("axes fraction", "data"), "offset points", ha="right")


def draw_legends(figure: Figure, axes: Sequence[Axes], cells: Sequence[Cell], one_panel: bool) -> None:
    """Above all axes where they are of one panel; else in each panel's first, as styles mean others there."""
    told: dict[tuple[str, str], Artist] = {}
    for ax, cell in zip(axes, cells, strict=False):
        handles, labels = ax.get_legend_handles_labels()
        new = {(cell.panel, label): line for line, label in zip(handles, labels, strict=True)}
        if not one_panel and not new.keys() <= told.keys():
            ax.legend(fontsize=9, frameon=True, framealpha=0.85, edgecolor="none")
        told |= new
    if one_panel:  # into the blank lines below the title
        top = 1 - 0.27 / figure.get_figheight()
        names = [label for _, label in told]
        place: Any = {"loc": "upper left", "bbox_to_anchor": (0.005, top), "ncols": 4, "borderpad": 0}
        figure.legend(told.values(), names, **place)


def draw_aggregate(ax: Axes, cells: Sequence[Cell], words: str) -> None:
    """Point and interval per method, in the order and with the colours of the curves."""
    means = interquartile_means(cells)
    for i, (method, (value, low, high)) in enumerate(means.items()):
        colour, _ = style_of(cells[0], method)
        ax.plot([low, high], [i, i], color=colour, lw=3.0)
        ax.plot([value], [i], "o", color=colour, markeredgecolor="white", ms=9)
    ax.set_ylim(-0.6, len(means) - 0.4)
    ax.locator_params(axis="x", nbins=5)
    ax.set_yticks(range(len(means)), [textwrap.fill(method, 18) for method in means], fontsize=9)
    ax.invert_yaxis()
    ax.grid(axis="x", color="#dddddd", lw=0.6)
    panel = cells[0].panel
    ax.set_title(f"IQM over {len(cells)} tasks" + (f" ({panel})" if panel else ""), loc="left")
    ax.set_xlabel("\n".join(textwrap.wrap(f"normalised final score ({words})", 50)), fontsize=9)
