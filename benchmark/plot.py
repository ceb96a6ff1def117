"""Curves, diagnostics and tables: of a figure of the paper, or of a folder of collected runs.

    python benchmark/plot.py fig1 --scale small           # runs made by benchmark/run.py fig1 --scale small
    python benchmark/plot.py benchmark/results/smac       # runs thinned by benchmark/collect.py

A figure's runs are collected into --into, and it is drawn there (benchmark/paper.py says what). Of a
folder there are, per environment, {env}.png (evaluations) and {env}-diagnostics.png (what eq. (21) does with
KL and the betas), and the table, printed and written into its README.md between two marker comments.
Where figures.json in the folder says which methods belong together, as {"figure": ["script label", ...]},
there is {env}-{figure}.png for each instead, and diagnostics of the first. Columns eval/optimum, and returns
in references.csv (env, name, return), are drawn as dotted lines.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmark.lib.records import CollectError, read_json
from benchmark.lib.drawing import RC, draw_curve, draw_return_limits, finish, read_references, styled
from benchmark.figures import FIGURES, SEEDS
from benchmark.lib.groups import Group, band, band_shares, group_runs, read_runs
from benchmark.lib.cells import NoRunError, plot_figure
from benchmark.lib.tables import make_table

BEGIN = "<!-- table: begin (written by benchmark/plot.py) -->"
END = "<!-- table: end -->"
DIAGNOSTICS = ("dpo/kl", "dpo/beta1", "dpo/beta2", "dpo/below_band", "dpo/above_band")
SHARES = (("below", "#cfe3f2", ""), ("inside", "#ffffff", ""), ("above", "#8c4a1f", "////"))


def draw_shares(ax: Axes, group: Group) -> None:
    """Shares of updates below, inside and above the band, stacked, named where each is widest."""
    shares, x = band_shares(group).mean(axis=1), group.steps() / 1e6
    logged = ~np.isnan(shares).any(axis=0)
    shares, x = shares[:, logged], x[logged]
    tops = np.cumsum(shares, axis=0)
    for (name, colour, hatch), share, top in zip(SHARES, shares, tops, strict=True):
        ax.fill_between(x, top - share, top, facecolor=colour, edgecolor="#333333", hatch=hatch, lw=0.6)
        # In the middle half, so that the word stays within the axes.
        inner = slice(len(x) // 4, max(3 * len(x) // 4, len(x) // 4 + 1))
        widest = inner.start + int(np.argmax(share[inner]))
        if share[widest] > 0.12:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            ax.text(x[widest], (top - share / 2)[widest], name, ha="center", va="center", bbox=box)
    ax.set(ylim=(0, 1), ylabel="share of updates", xlim=(x[0], x[-1]) if len(x) > 1 else None)


def draw_evaluations(env: str, groups: Sequence[Group], path: Path) -> None:
    """Win rate, where there is one, and return of the evaluated policies, side by side."""
    panels = [("eval/win_rate", "win rate"), ("eval/episodic_return", "return")]
    panels = [(column, name) for column, name in panels if any(group.has(column) for group in groups)]
    how = "exact" if env.startswith("matrix") else "greedy episodes"
    with rc_context(RC):
        figure = Figure(figsize=(5.0 * len(panels) if len(panels) > 1 else 7.5, 4.4), layout="constrained")
        axes = list(figure.subplots(1, len(panels), squeeze=False).flat)
        for ax, (column, name) in zip(axes, panels, strict=True):
            for group, style in styled(groups):
                if group.has(column):
                    draw_curve(ax, group, column, style)
            ax.set(ylabel=f"{name} ({how})", xlim=(0, None))
            if column == "eval/win_rate":
                ax.set_ylim(-0.02, 1.02)
            else:
                draw_return_limits(ax, groups, read_references(path.parent, env, groups))
        if len(groups) > 1:
            axes[0].legend(fontsize=10)
        finish(figure, axes, env, groups, path)


def draw_diagnostics(env: str, groups: Sequence[Group], path: Path) -> None:
    """What eq. (21) does: shares of updates below, inside and above the band (a panel per method), KL, betas.

    Nothing is drawn of a method without an adaptive KL penalty: it has no such columns.
    """
    groups = [group for group in groups if group.has(*DIAGNOSTICS)]
    if not groups:
        return
    with rc_context(RC):
        panels, rows = len(groups) + 3, math.ceil((len(groups) + 3) / 2)
        figure = Figure(figsize=(10.0, 3.1 * rows + 0.9), layout="constrained")
        axes = list(figure.subplots(rows, 2, squeeze=False).flat)
        for ax in axes[panels:]:
            ax.remove()
        for ax, group in zip(axes, groups, strict=False):
            draw_shares(ax, group)
            name = f": {group.method}" if len(groups) > 1 else ""
            ax.set_title(f"KL against the band{name}", loc="left")
        kl, *betas = axes[len(groups) : panels]
        for group, style in styled(groups):
            draw_curve(kl, group, "dpo/kl", style)
        for low, target, high in sorted({band(group) for group in groups}):
            kl.axhspan(low, high, color="#bbbbbb", alpha=0.4, lw=0)
            kl.axhline(target, color="#555555", lw=1.0, ls=":")
        kl.set(yscale="log", ylabel="KL (nats)", xlim=(0, None))
        kl.set_title("KL(old || new); grey: band, dotted: target", loc="left")
        # beta_min bounds N times beta; where N is unknown, beta is drawn as it is, without the floor.
        agents = [group.runs[0].info.get("num_agents") for group in groups]
        words = "N " if all(agents) else ""
        infos = [run.info for group, N in zip(groups, agents, strict=True) if N for run in group.runs]
        floors = sorted({float(info.get("beta_min", 0)) for info in infos} - {0.0})  # 0 has no logarithm
        for ax, name in zip(betas, ("beta1", "beta2"), strict=True):
            for (group, style), N in zip(styled(groups), agents, strict=True):
                draw_curve(ax, group, f"dpo/{name}", style, scale=N or 1.0)
            for floor in floors:
                ax.axhline(floor, color="#555555", lw=1.0, ls=":")
            ax.set(ylabel=f"{words}{name}", xlim=(0, None))
            if all((group.values(f"dpo/{name}")[:, 1:] > 0).all() for group in groups):
                ax.set_yscale("log")
            ax.set_title(f"{words}{name}, mean over agents{'; dotted: floor' if floors else ''}", loc="left")
        if len(groups) > 1:
            kl.legend(fontsize=10)
        finish(figure, axes[:panels], f"{env}: adaptive KL penalty", groups, path)


def update_readme(path: Path, table: str) -> None:
    """Puts the table between the two markers of a README, at its end if it has none; the rest stays.

    Raises CollectError if only one marker is there, or they are in the wrong order.
    """
    text = path.read_text() if path.exists() else f"# Results: {path.parent.resolve().name}\n"
    if (text.count(BEGIN), text.count(END)) not in ((0, 0), (1, 1)) or text.find(BEGIN) > text.find(END):
        raise CollectError(f"{path} must hold {BEGIN} and after it {END}, once each; restore them.")
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    path.write_text(f"{before}{BEGIN}\n{table}{after}")


@dataclass
class Args:
    what: tyro.conf.Positional[tuple[str, ...]]
    """fig1 ... fig12, all, or a folder with collected runs, e.g. benchmark/results/smac"""
    scale: Literal["smoke", "small", "paper"] = "small"
    """of a figure: the scale at which benchmark/run.py made its runs"""
    seeds: int = 0
    """of a figure: seeds 1 to this; 0: as many as benchmark/run.py makes by default"""
    runs_dir: Path = Path("runs/benchmark")
    """of a figure: where benchmark/run.py kept its runs"""
    into: Path = Path("runs/figures")
    """of a figure: collected runs go into the folder runs in here, pictures and tables into SCALE; with
    benchmark/results the published runs are drawn anew"""


def plot_folder(folder: Path) -> str:
    """Draws all environments of a folder and writes its README; returns the table."""
    groups = group_runs(read_runs(folder))
    path = folder / "figures.json"
    figures = read_json(path) if path.exists() else {"": None}
    known = {group.method for members in groups.values() for group in members}
    for name, methods in figures.items() if path.exists() else ():
        if not isinstance(methods, list) or not known.issuperset(methods):
            raise CollectError(f"{path}: {name} must list some of: {', '.join(sorted(known))}.")
    for (env, members), (name, methods) in itertools.product(groups.items(), figures.items()):
        chosen = [group for group in members if methods is None or group.method in methods]
        chosen.sort(key=lambda group: methods.index(group.method) if methods else 0)
        if len(chosen) > (methods is not None):
            draw_evaluations(env, chosen, folder / f"{'-'.join(filter(None, [env, name]))}.png")
            if name == next(iter(figures)):
                draw_diagnostics(env, chosen, folder / f"{env}-diagnostics.png")
    table = make_table(groups)
    update_readme(folder / "README.md", table)
    return table


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    figures = list(FIGURES) if "all" in args.what else []
    wrong = [what for what in args.what if what not in (*FIGURES, "all") and not Path(what).is_dir()]
    if not args.what or wrong or args.seeds < 0:
        what = f"there is no {' '.join(wrong)}; " if wrong else ""
        sys.exit(
            f"plot: {what}give fig1 ... fig12, all, or a folder of collect.py's; --seeds is not negative."
        )
    try:
        for what in (*figures, *(what for what in args.what if what not in (*figures, "all"))):
            if what not in FIGURES:
                print(plot_folder(Path(what)))
                continue
            seeds = range(1, (args.seeds or SEEDS[args.scale]) + 1)
            try:
                print(plot_figure(what, args.scale, seeds, args.runs_dir, args.into))
            except NoRunError as error:
                if what not in figures:
                    raise
                print(f"plot: {error}", file=sys.stderr)
    except (CollectError, OSError) as error:
        sys.exit(f"plot: {error}")


if __name__ == "__main__":
    main()
