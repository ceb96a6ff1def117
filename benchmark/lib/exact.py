"""The exact iteration (17), (18) on 2x2 games: its picture and its table."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmark.lib.cells import Cell
from benchmark.lib.drawing import RC, png, style_of
from benchmark.lib.groups import origins
from benchmark.lib.runs import STEP, Run
from benchmark.lib.tables import markdown


def draw_exact(cells: Sequence[Cell], title: str, note: str) -> bytes:
    """J above, p and q below, a column per game; no seeds, no samples. Below them a note."""
    with rc_context(RC):
        figure = Figure(figsize=(max(3.4 * len(cells), 7.5), 6.4), layout="constrained")
        axes = figure.subplots(2, len(cells), squeeze=False, sharex=True)
        for (above, below), cell in zip(axes.T, cells, strict=True):
            draw_game(above, below, cell, longest(cells))
        axes[0, 0].set_ylabel("J (dotted: optimum)")
        axes[1, 0].set_ylabel("p (o) and q (x)")
        most = axes[0, np.argmax([len(cell.groups) for cell in cells])]
        lines, names = most.get_legend_handles_labels()
        figure.legend(lines, names, loc="upper left", bbox_to_anchor=(0, 0.96), ncols=len(names))
        # Below the title a line for the legend.
        figure.suptitle(f"{title}\n\n", x=0.01, ha="left", fontsize=12, fontweight="bold")
        lines = textwrap.wrap(f"{note}{origin(cells)}", int(12 * figure.get_figwidth()))
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=10)
        return png(figure)


def draw_game(above: Axes, below: Axes, cell: Cell, end: int) -> None:
    """One game: J of every method into one set of axes, p and q into another; what is steady, to the end."""
    for group in cell.groups:
        colour, dashes = style_of(cell, group.method)
        run = group.runs[0]
        shown = {name: run.columns[name] for name in (STEP, "J", "p", "q")}
        if is_steady(run):
            shown = {name: np.append(values, values[-1]) for name, values in shown.items()}
            shown[STEP][-1] = end
        above.plot(shown[STEP], shown["J"], dashes, color=colour, lw=2.0, label=group.method)
        for name, marker in (("p", "o"), ("q", "x")):
            below.plot(shown[STEP], shown[name], dashes, color=colour)
            at = np.geomspace(0.4, end, 7)
            values = np.interp(at, shown[STEP], shown[name], right=np.nan)
            below.plot(at, values, marker, color=colour, ms=6, mfc="none")
    above.axhline(cell.groups[0].runs[0].optimum, color="#555555", lw=1.0, ls=":")
    above.set_title(cell.title, loc="left")
    below.set_ylim(-0.05, 1.05)
    below.set_xlabel("iteration")
    below.set_xscale("symlog", linthresh=1)  # the start belongs to it, and what comes late is slow
    below.set_xlim(0, end)


def origin(cells: Sequence[Cell]) -> str:
    """Budget, engine and commit of the iterations."""
    groups = [group for cell in cells for group in cell.groups]
    return f"Exact: no samples, no seeds; at most {longest(cells)} iterations; {'; '.join(origins(groups))}."


def longest(cells: Sequence[Cell]) -> int:
    """The most iterations that any of the runs took."""
    return max(group.runs[0].steps_reached for cell in cells for group in cell.groups)


def is_steady(run: Run) -> bool:
    """Whether the iteration ended because nothing moved any more."""
    return bool(run.settings.get("steady"))


def exact_table(cells: Sequence[Cell]) -> str:
    """First and last J, whether J ever fell, the last p and q, and when they were steady."""
    rows = []
    for cell in cells:
        for group in cell.groups:
            run = group.runs[0]
            J, p, q = (run.columns[name] for name in ("J", "p", "q"))
            fell = "never" if (np.diff(J) >= -1e-12).all() else "yes"
            numbers = [f"{J[0]:.4f}", f"{J[-1]:.4f}", f"{run.optimum:.4f}"]
            when = f"{run.steps_reached}" if is_steady(run) else f"not by {run.steps_reached}"
            rows.append([cell.title, group.method, *numbers, fell, f"{p[-1]:.4f}, {q[-1]:.4f}", when])
    head = ["game", "method", "J, first", "J, last", "optimum", "J fell", "p, q, last", "steady after"]
    return f"{markdown(head, rows)}\n{origin(cells)}\n"
