"""A picture of what eq. (21) does: KL against its band, and the betas that follow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmark.lib.drawing import RC, draw_curve, finish, legend_below_title, styled, wrapped
from benchmark.lib.groups import Group, band, band_shares

NEEDED = ("dpo/kl", "dpo/beta1", "dpo/beta2", "dpo/below_band", "dpo/above_band")
SHARES = (("below", "#cfe3f2", ""), ("inside", "#ffffff", ""), ("above", "#8c4a1f", "////"))


def draw_diagnostics(env: str, groups: Sequence[Group]) -> bytes | None:
    """Shares of updates below, inside and above the band (a panel per method), KL, betas.

    None if no method has an adaptive KL penalty: others have no such columns.
    """
    groups = [group for group in groups if group.has(*NEEDED)]
    if not groups:
        return None
    with rc_context(RC):
        panels = len(groups) + 3
        rows = math.ceil(panels / 2)
        figure = Figure(figsize=(10.0, 3.1 * rows + 0.9), layout="constrained")
        axes = list(figure.subplots(rows, 2, squeeze=False).flat)
        for ax in axes[panels:]:
            ax.remove()
        for ax, group in zip(axes, groups, strict=False):
            draw_shares(ax, group)
            name = f": {group.method}" if len(groups) > 1 else ""
            ax.set_title(wrapped(f"KL against the band{name}"), loc="left")
        kl, beta1, beta2 = axes[len(groups) : panels]
        draw_kl(kl, groups)
        draw_betas(beta1, "beta1", groups)
        draw_betas(beta2, "beta2", groups)
        title, band = f"{env}: adaptive KL penalty", "from the least to the greatest"
        if len(groups) > 1:
            title += legend_below_title(figure, *kl.get_legend_handles_labels())
        return finish(figure, axes[:panels], title, groups, band=band)


def draw_shares(ax: Axes, group: Group) -> None:
    """Shares of updates below, inside and above the band, stacked, named where each is widest."""
    shares, x = band_shares(group).mean(axis=1), group.steps() / 1e6
    logged = ~np.isnan(shares).any(axis=0)
    shares, x = shares[:, logged], x[logged]
    tops = np.cumsum(shares, axis=0)
    for (name, colour, hatch), share, top in zip(SHARES, shares, tops, strict=True):
        ax.fill_between(x, top - share, top, facecolor=colour, edgecolor="#333333", hatch=hatch, lw=0.6)
        # In the middle half, so that the word stays within the axes.
        first, last = len(x) // 4, max(3 * len(x) // 4, len(x) // 4 + 1)
        widest = first + int(np.argmax(share[first:last]))
        if share[widest] > 0.12:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            ax.text(x[widest], (top - share / 2)[widest], name, ha="center", va="center", bbox=box)
    ax.set(ylim=(0, 1), ylabel="share of updates", xlim=(x[0], x[-1]) if len(x) > 1 else None)


def draw_kl(ax: Axes, groups: Sequence[Group]) -> None:
    """KL of every method, and the bands."""
    for group, style in styled(groups):
        draw_curve(ax, group, "dpo/kl", style, extremes=True)
    for low, target, high in sorted({band(group) for group in groups}):
        ax.axhspan(low, high, color="#bbbbbb", alpha=0.4, lw=0)
        ax.axhline(target, color="#555555", lw=1.0, ls=":")
    ax.set(yscale="log", ylabel="KL (nats)", xlim=(0, None))
    ax.set_title("KL(old || new); grey: band, dotted: target", loc="left")


def draw_betas(ax: Axes, name: str, groups: Sequence[Group]) -> None:
    """N times a beta, which is what --beta-min bounds; where N is unknown beta itself, without the floor."""
    agents = [group.runs[0].settings.get("num_agents") for group in groups]
    known = [group for group, N in zip(groups, agents, strict=True) if N]
    floors = {float(run.settings.get("beta_min", 0)) for group in known for run in group.runs}
    floors -= {0.0}  # which has no logarithm
    for (group, style), N in zip(styled(groups), agents, strict=True):
        draw_curve(ax, group, f"dpo/{name}", style, scale=N or 1.0, extremes=True)
    for floor in sorted(floors):
        ax.axhline(floor, color="#555555", lw=1.0, ls=":")
    words = f"N {name}" if all(agents) else name
    ax.set(ylabel=words, xlim=(0, None))
    if all((group.values(f"dpo/{name}")[:, 1:] > 0).all() for group in groups):
        ax.set_yscale("log")
    ax.set_title(f"{words}, mean over agents{'; dotted: floor' if floors else ''}", loc="left")
