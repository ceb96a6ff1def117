"""Where the exact iteration (18) ends on the games of Table 3, from a grid of starts: picture and table.

`dpo_matrix.solve_surrogate`, for any number of actions, would take ten minutes for so many starts: `update`
is the same maximiser for two, compiled, and tests/benchmark/test_basins.py holds one against the other.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numba
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmark.lib.drawing import RC, png
from benchmark.lib.runs import Array
from benchmark.lib.tables import markdown
from envs.matrix import PAYOFFS

C = 10.0  # the paper's
M_HATS = (0.0, 0.35, math.inf)  # inf: the theorem's, which is the game's own
STARTS = 41  # of p, and of q: the middles of so many parts of (0, 1)
STEADY = 1e-8  # a start is followed until no probability changes by more
TINY = 1e-10  # steps that are as good as none
LIMIT = 100_000  # iterations at most
NEAR = 0.1  # p and q that end so close to a pure equilibrium's are taken to have reached it
FATES = {
    "at the optimum": "#56B4E9",
    "at the other equilibrium": "#E69F00",
    "stopped on the way": "#C8C8C8",
    "never moved": "#FFFFFF",
}


class Basins(NamedTuple):
    """Of one game and M̂: a value for each start, axes (p, q)."""

    fates: np.ndarray  # index into FATES
    J: Array  # where it ends
    fall: float  # the most that J fell in an iteration, from any start
    iterations: int  # the most that a start took


# --- the iteration, compiled ------------------------------------------------------------------------------


@numba.njit(cache=True)
def kl_term(z: float) -> float:
    """z − log(1 + z), which is not negative, by its series for small z."""
    if abs(z) < 1e-3:
        return z * z * (1 / 2 - z * (1 / 3 - z * (1 / 4 - z * (1 / 5 - z / 6))))
    return z - math.log1p(z)


@numba.njit(cache=True)
def judge(p: float, gain: float, step: float, m_hat: float, c: float) -> tuple[float, float]:
    """Eq. (18) where p rises by a step: its value, and its slope in p."""
    kl = p * kl_term(step / p) + (1 - p) * kl_term(-step / (1 - p))
    root = math.sqrt(kl)
    slope_kl = step / ((p + step) * (1 - p - step))
    return gain * step - m_hat * root - c * kl, gain - (c + 0.5 * m_hat / root) * slope_kl


@numba.njit(cache=True)
def rise(p: float, gain: float, m_hat: float, c: float) -> float:
    """By how much p rises to the maximiser of eq. (18); gain > 0: of the first action over the second, by N.

    Without the root it is the solution of a quadratic equation. The root makes it less: as much as where, on
    the way back to p, the slope is no longer negative; or nothing, where that is not better than to stay.
    """
    far = 2 * gain * p * (1 - p) / (c - gain + 2 * gain * p + math.sqrt((c - gain) ** 2 + 4 * gain * c * p))
    if m_hat == 0:
        return far
    near = 0.6 * far
    while near > TINY and judge(p, gain, near, m_hat, c)[1] < 0:
        far, near = near, 0.6 * near
    if near <= TINY:
        return 0.0
    for _ in range(20):
        middle = 0.5 * (near + far)
        if judge(p, gain, middle, m_hat, c)[1] < 0:
            far = middle
        else:
            near = middle
    return near if judge(p, gain, near, m_hat, c)[0] > 0 else 0.0


@numba.njit(cache=True)
def update(p: float, gain: float, m_hat: float, c: float) -> float:
    """The maximiser of eq. (18) over p, whichever action gains."""
    return p + rise(p, gain, m_hat, c) if gain > 0 else p - rise(1 - p, -gain, m_hat, c)


@numba.njit(cache=True)
def follow(payoff: Array, p: float, q: float, m_hat: float, c: float, limit: int) -> Array:
    """The iteration from p and q until it is steady, `limit` at most: (iterations + 1, 2)."""
    path = [(p, q)]
    while len(path) <= limit:
        gain_p = (payoff[0] - payoff[2]) * q + (payoff[1] - payoff[3]) * (1 - q)
        gain_q = (payoff[0] - payoff[1]) * p + (payoff[2] - payoff[3]) * (1 - p)
        p, q = update(p, gain_p / 2, m_hat, c), update(q, gain_q / 2, m_hat, c)
        path.append((p, q))
        if max(abs(p - path[-2][0]), abs(q - path[-2][1])) <= STEADY:
            break
    return np.array(path)


# --- basins -----------------------------------------------------------------------------------------------


def returns(payoff: Array, p: Array, q: Array) -> Array:
    """J of p and q."""
    a, b, c, d = payoff
    return p * (a * q + b * (1 - q)) + (1 - p) * (c * q + d * (1 - q))


def equilibria(payoff: Array) -> list[tuple[int, int]]:
    """The pure ones as (p, q), the best first: no agent alone gains by its other action."""
    at = {(p, q): payoff[2 * (1 - p) + 1 - q] for p in (0, 1) for q in (0, 1)}
    found = [(p, q) for p, q in at if at[p, q] >= max(at[1 - p, q], at[p, 1 - q])]
    return sorted(found, key=lambda corner: -at[corner])


def value_of(m_hat: float, payoff: Array) -> float:
    """M̂ as a number. Theorem 3.3's, sqrt((N − 1) / N) · 2 r_max / (1 − gamma), is the game's own."""
    return math.sqrt(0.5) * 2 * float(np.abs(payoff).max()) if math.isinf(m_hat) else m_hat


def grid(starts: int) -> Array:
    """Starts of p and of q."""
    return (np.arange(starts) + 0.5) / starts


@functools.cache
def basins(game: str, m_hat: float, starts: int) -> Basins:
    """Where the iteration ends from each of starts × starts."""
    payoff = np.array(PAYOFFS[game])
    fates = np.zeros((starts, starts), dtype=np.int64)
    J, fall, longest = np.zeros(fates.shape), 0.0, 0
    for i, p in enumerate(grid(starts)):
        for j, q in enumerate(grid(starts)):
            path = follow(payoff, p, q, value_of(m_hat, payoff), C, LIMIT)
            along = returns(payoff, path[:, 0], path[:, 1])
            fates[i, j] = fate(path, equilibria(payoff))
            J[i, j] = along[-1]
            fall = max(fall, float(-np.diff(along).min()))
            longest = max(longest, len(path) - 1)
    return Basins(fates, J, fall, longest)


def fate(path: Array, corners: list[tuple[int, int]]) -> int:
    """Index into FATES: the equilibrium that a path ends at, or how it stopped elsewhere."""
    if (path == path[0]).all():
        return 3
    near = [np.abs(path[-1] - corner).max() <= NEAR for corner in corners]
    return near.index(True) if any(near) else 2


# --- picture and table ------------------------------------------------------------------------------------


def draw_basins(starts: int = STARTS) -> bytes:
    """A row per M̂, a column per game: where each start ends, and some of the ways there."""
    with rc_context(RC):
        figure = Figure(figsize=(12.0, 2.85 * len(M_HATS) + 1.0), layout="constrained")
        axes = figure.subplots(len(M_HATS), len(PAYOFFS), squeeze=False, sharex=True, sharey=True)
        for row, m_hat in zip(axes, M_HATS, strict=True):
            for ax, game in zip(row, PAYOFFS, strict=True):
                draw_basin(ax, game, m_hat, starts)
            row[0].set_ylabel(f"{words(m_hat)}\nq", fontsize=11)
        for ax, (game, payoff) in zip(axes[0], PAYOFFS.items(), strict=True):
            ax.set_title(f"game {game} ({', '.join(f'{x:g}' for x in payoff)})", loc="left")
        for ax in axes[-1]:
            ax.set_xlabel("p")
        patches = [Patch(facecolor=colour, edgecolor="#888888", label=name) for name, colour in FATES.items()]
        figure.legend(handles=patches, loc="upper left", bbox_to_anchor=(0, 0.98), ncols=len(FATES))
        title = f"Where the exact iteration of (18) ends from each start (p, q), C = {C:g}"
        figure.suptitle(
            f"{title}\n\n",  # lines for the legend
            x=0.01,
            ha="left",
            fontsize=12,
            fontweight="bold",
        )
        story = "Lines: ways from a start to its end (dot). Stars: equilibria, the optimum's filled."
        figure.supxlabel(story, x=0.01, ha="left", fontsize=10)
        return png(figure)


def draw_basin(ax: Axes, game: str, m_hat: float, starts: int) -> None:
    """One game at one M̂: fates as colours, paths with a dot where they end, stars for equilibria."""
    payoff = np.array(PAYOFFS[game])
    colours, most = ListedColormap([*FATES.values()]), len(FATES) - 1
    fates = basins(game, m_hat, starts).fates.T  # imshow's rows are q
    ax.imshow(fates, colours, vmin=0, vmax=most, origin="lower", extent=(0, 1, 0, 1))
    for p in grid(5):
        for q in grid(5):
            path = follow(payoff, p, q, value_of(m_hat, payoff), C, LIMIT)
            ax.plot(*path.T, color="black", lw=0.8)
            ax.plot(*path[-1], "o", color="black", ms=3.5, clip_on=False)
    for k, corner in enumerate(equilibria(payoff)):
        fill = "#F0E442" if k == 0 else "white"
        ax.plot(*corner, "*", color="black", mfc=fill, ms=13, clip_on=False, zorder=3)
    ax.spines[["top", "right"]].set_visible(True)
    ax.set_xticks([0, 0.5, 1])
    ax.set_yticks([0, 0.5, 1])


def words(m_hat: float) -> str:
    """M̂ in a label."""
    return "M̂ of the theorem" if math.isinf(m_hat) else f"M̂ = {m_hat:g}"


def basins_table(starts: int = STARTS) -> str:
    """Shares of the starts by where they end, per game and M̂; the mean J; whether J fell from any start."""
    rows = []
    for game, payoff in PAYOFFS.items():
        for m_hat in M_HATS:
            found = basins(game, m_hat, starts)
            shares = [f"{100 * (found.fates == k).mean():.0f} %" for k in range(len(FATES))]
            if len(equilibria(np.array(payoff))) == 1:
                shares[1] = "–"
            name = words(m_hat)
            if math.isinf(m_hat):
                name += f", {value_of(m_hat, np.array(payoff)):.3g}"
            fell = "never" if found.fall < 1e-12 else "yes"
            ends = [f"{found.J.mean():.2f}", f"{max(payoff):.2f}", fell]
            rows.append([game, name, *shares, *ends])
    head = ["game", "method", *FATES, "J at the end, mean", "optimum", "J fell"]
    return f"""{markdown(head, rows)}
Of {starts} × {starts} starts (p, q), C = {C:g}: the share that ends with p and q within {NEAR:g} of
a pure equilibrium, the share that stops elsewhere, and the share that never moves, wherever it is. J fell:
in any iteration from any start.
"""
