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
from matplotlib.transforms import ScaledTranslation

from benchmark.lib.cells import Cell, aggregates, interquartile_means, seeds_in_all
from benchmark.lib.groups import Group, band, provenance
from benchmark.lib.runs import KL, RETURN, STEP, WIN_RATE
from benchmark.lib.statistics import hours, mean_ci

Style = tuple[str, str]
Clock = tuple[str, float]  # a unit of time, and its length in hours
LEGEND_ROW = TITLE_ROW = 0.17  # inches, of a legend above a panel and of the lines of axes' titles
TITLE_WIDTH = 44  # letters, as many as fit above axes
# Okabe and Ito's colours, neighbours differing in lightness too; dashes tell them apart in print.
COLOURS = ("#000000", "#D55E00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#E69F00", "#8C8C8C")
STYLES: tuple[Style, ...] = tuple(zip(COLOURS, ("-", "--", "-.", ":") * 2, strict=True))
RC: Any = {"font.size": 11.0, "axes.titlesize": 11.0, "axes.spines.top": False, "axes.spines.right": False}
RC |= {"legend.frameon": False, "hatch.linewidth": 0.6, "figure.dpi": 110.0}


def draw_curve(
    ax: Axes,
    group: Group,
    column: str,
    style: Style,
    scale: float = 1.0,
    unit: float = 1e6,
    extremes: bool = False,
) -> None:
    """Mean over seeds, its 95 % band, and each seed as a thin line; values times scale, steps in units.

    Two seeds get no band: Student's t of one degree of freedom, 12.7, makes it wider than the figure.
    extremes: the band is from the least seed to the greatest, for a logarithmic axis, where Student's,
    which may reach below 0, would be a block down to the axis.
    """
    colour, dashes = style
    for run in group.runs:
        logged = ~np.isnan(run.columns[column])
        x, y = run.steps[logged] / unit, scale * run.columns[column][logged]
        ax.plot(x, y, color=colour, lw=0.6, alpha=0.5)
    values = scale * group.values(column)
    mean, low, high = mean_ci(values)
    if extremes:
        low, high = values.min(axis=0), values.max(axis=0)
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
    band: str = "its 95 % confidence band (Student t)",
) -> bytes:
    """Title above, axis labels, below what the lines are and where they come from; the PNG."""
    for ax in axes:
        ax.set_xlabel(x)
        ax.grid(axis="y", color="#dddddd", lw=0.6)
        ax.set_axisbelow(True)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    if any(len(group.runs) == 2 for group in groups):
        band += ", from three seeds on"
    caption = f"Thick: mean over seeds; shaded: {band}; thin: single seeds. "
    if all(len(group.runs) == 1 for group in groups):
        caption = "Thick: one seed, hence no confidence band. "
    story = f"{caption}{note}Runs: {provenance(groups)}"
    lines = textwrap.wrap(story, int(figure.get_figwidth() * 12))
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=10)
    return png(figure)


# --- learning curves --------------------------------------------------------------------------------------


def draw_cells(
    cells: Sequence[Cell], title: str, timed: bool = False, aggregate: bool = True, note: str = ""
) -> bytes | None:
    """A set of axes per cell, and one per panel that several tasks can be aggregated over; below them a note.

    timed: against wall-clock time; None if no cell has times that can be compared.
    """
    if timed:
        cells = [cell for cell in cells if cell.has_hours and any(g.has("charts/SPS") for g in cell.groups)]
    if not cells:
        return None
    several = aggregates(cells) if aggregate and not timed else []
    one_panel = len({cell.panel for cell in cells}) == 1
    clock = clock_of(cells) if timed else None
    with rc_context(RC):
        figure, axes = grid(len(cells) + len(several), room_above(cells, len(several), one_panel))
        for ax, cell in zip(axes, cells, strict=False):
            draw_cell(ax, cell, clock)
        title += draw_legends(figure, axes, cells, one_panel)
        for ax, (members, words) in zip(axes[len(cells) :], several, strict=True):
            draw_aggregate(ax, members, words)
        share_scales(axes[len(cells) :], [members for members, _ in several])
        groups = [group for cell in cells for group in cell.groups]
        if clock is None:
            return finish(figure, axes[: len(cells)], title, groups, note=note)
        note = "Time is integrated from the steps per second of updates, evaluations do not count; means "
        note += "end with the fastest seed; compare only what was run side by side. "
        return finish(figure, axes[: len(cells)], title, groups, f"wall-clock {clock[0]}", note)


def clock_of(cells: Sequence[Cell]) -> Clock:
    """Minutes where all runs took less than an hour, else hours."""
    timed = [group for cell in cells for group in cell.groups if group.has("charts/SPS")]
    longest = max(run.steps[-1] for group in timed for run in on_the_clock(group).runs)
    return ("minutes", 1 / 60) if longest < 1 else ("hours", 1.0)


def columns_of(count: int) -> int:
    """How many of so many axes stand side by side."""
    return 2 if count == 4 else min(count, 3)


def grid(count: int, room: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes, and so many inches more for legends and long titles."""
    columns = columns_of(count)
    rows = math.ceil(count / columns)
    size = max(4.6 * columns, 7.5), 3.6 * rows + 1.2 + room
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def room_above(cells: Sequence[Cell], several: int, one_panel: bool) -> float:
    """Inches that legends and titles of more than a line need, row after row of axes; several: aggregates."""
    first = set() if one_panel else {(cell.task, cell.panel) for cell in first_cells(cells)}
    heights = [TITLE_ROW * wrapped(cell.title).count("\n") for cell in cells]
    for i, cell in enumerate(cells):
        if (cell.task, cell.panel) in first:
            heights[i] += LEGEND_ROW * legend_rows(cell)
    columns = columns_of(len(cells) + several)
    return sum(max(heights[start : start + columns]) for start in range(0, len(heights), columns))


def wrapped(title: str) -> str:
    """The title of axes, in as many lines as it needs; the panel, in brackets, on a line of its own."""
    lines = [title] if len(title) <= TITLE_WIDTH else title.replace(" (", "\n(", 1).splitlines()
    return "\n".join(textwrap.fill(line, TITLE_WIDTH, break_on_hyphens=False) for line in lines)


def style_of(cell: Cell, method: str) -> Style:
    """Colour and dashes of a method: the same in all tasks of the panel, whatever is missing there."""
    return STYLES[cell.methods.index(method) % len(STYLES)]


def draw_cell(ax: Axes, cell: Cell, clock: Clock | None) -> None:
    """The curves of one task, against environment steps, or against time."""
    for group in cell.groups:
        style = style_of(cell, group.method)
        if group.has(cell.metric):
            if clock is None:
                draw_curve(ax, group, cell.metric, style)
            elif group.has("charts/SPS"):
                draw_curve(ax, on_the_clock(group), cell.metric, style, unit=clock[1])
    how = "exact" if cell.family == "matrix" else "greedy"
    ax.set_xlim(0, None)
    if cell.metric == WIN_RATE:
        ax.set(ylabel=f"win rate ({how})", ylim=(-0.02, 1.02))
    elif cell.metric == KL:
        draw_band(ax, cell.groups[0])
    else:
        ax.set_ylabel(f"return ({how})")
        draw_return_limits(ax, cell.groups, cell.references)
    ax.set_title(wrapped(cell.title), loc="left")


def draw_band(ax: Axes, group: Group) -> None:
    """The target of eq. (21) and its band, to measure an update's KL by."""
    low, target, high = band(group)
    ax.axhline(target, color="#555555", lw=1.0, ls=":")
    ax.axhspan(low, high, color="#555555", alpha=0.1, lw=0)
    ax.set(ylabel="KL of an update, mean of agents (nats)", ylim=(0, None))


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


def first_cells(cells: Sequence[Cell]) -> list[Cell]:
    """The first cell of each panel."""
    return list({cell.panel: cell for cell in reversed(cells)}.values())[::-1]


def legend_columns(cell: Cell) -> int:
    """Two columns above a panel where the methods' names are short."""
    return 2 if max(len(method) for method in cell.methods) <= 20 else 1


def legend_rows(cell: Cell) -> int:
    """Rows of the legend above a panel."""
    return math.ceil(len(cell.methods) / legend_columns(cell))


def draw_legends(figure: Figure, axes: Sequence[Axes], cells: Sequence[Cell], one_panel: bool) -> str:
    """Above all axes where they are of one panel; else above each panel's first, as styles mean others there.

    None lies in axes, where it would cover curves. Returns what to add to the figure's title for room.
    """
    told: dict[tuple[str, str], Artist] = {}
    for ax, cell in zip(axes, cells, strict=False):
        handles, labels = ax.get_legend_handles_labels()
        new = {(cell.panel, label): line for line, label in zip(handles, labels, strict=True)}
        if not one_panel and not new.keys() <= told.keys():
            # Above the title, of which each line is a fifth higher than its letters.
            points = 9 + 1.2 * RC["axes.titlesize"] * (1 + ax.get_title(loc="left").count("\n"))
            above = ScaledTranslation(0, points / 72, figure.dpi_scale_trans)
            place: Any = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0, "borderpad": 0}
            place |= {"bbox_transform": ax.transAxes + above}
            ax.legend(ncols=legend_columns(cell), fontsize=9, labelspacing=0.2, columnspacing=1.0, **place)
        told |= new
    return legend_below_title(figure, list(told.values()), [label for _, label in told]) if one_panel else ""


def legend_below_title(figure: Figure, lines: Sequence[Artist], names: Sequence[str]) -> str:
    """One legend for all axes, and the blank lines to add to the figure's title, into which it is put."""
    widest = 0.085 * max(map(len, names), default=1) + 0.6  # inches, of its letters and its line
    columns = max(1, min(4, int(figure.get_figwidth() / widest)))
    top = 1 - 0.27 / figure.get_figheight()
    place: Any = {"loc": "upper left", "bbox_to_anchor": (0.005, top), "ncols": columns, "borderpad": 0}
    figure.legend(lines, names, labelspacing=0.2, **place)
    return "\n " * math.ceil(
        1.3 * math.ceil(len(names) / columns)
    )  # a legend's rows are higher than a title's


def draw_aggregate(ax: Axes, cells: Sequence[Cell], words: str) -> None:
    """Point and interval per method, in the order and with the colours of the curves."""
    means, seeds = interquartile_means(cells), seeds_in_all(cells)
    for i, (method, (value, low, high)) in enumerate(means.items()):
        colour, _ = style_of(cells[0], method)
        ax.plot([low, high], [i, i], color=colour, lw=3.0)
        ax.plot([value], [i], "o", color=colour, markeredgecolor="white", ms=9)
    ax.set_ylim(-0.6, len(means) - 0.4)
    ax.locator_params(axis="x", nbins=5)
    names = [textwrap.fill(name, 18) for name in means]
    if len(set(seeds.values())) > 1:
        names = [f"{name}\n({n} seed{'s' * (n > 1)})" for name, n in zip(names, seeds.values(), strict=True)]
    ax.set_yticks(range(len(means)), names, fontsize=9)
    ax.invert_yaxis()
    ax.grid(axis="x", color="#dddddd", lw=0.6)
    panel = cells[0].panel
    title = f"IQM over {len(cells)} tasks" + (f" ({panel})" if panel else "")
    ax.set_title(wrapped(title), loc="left")
    ax.set_xlabel("\n".join(textwrap.wrap(f"normalised final score ({words})", 50)), fontsize=9)


def share_scales(axes: Sequence[Axes], panels: Sequence[Sequence[Cell]]) -> None:
    """The same limits for aggregates of the same scale, so that equal scores look equal side by side."""
    alike: dict[str, list[Axes]] = {}
    for ax, cells in zip(axes, panels, strict=True):
        alike.setdefault(str([(cell.task, cell.scale()) for cell in cells]), []).append(ax)
    for same in alike.values():
        lows, highs = zip(*(ax.get_xlim() for ax in same), strict=True)
        for ax in same:
            ax.set_xlim(min(lows), max(highs))
