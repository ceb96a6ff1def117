"""Learning curves, diagnostics and the table of a folder of runs thinned by benchmark/collect.py.

    python benchmark/plot.py benchmark/results/smac

Draws, per environment, {env}.png (evaluations) and {env}-diagnostics.png (what eq. (21) does with KL and the
betas) into that folder, prints the table, and writes it into its README.md between two marker comments.
Where figures.json in the folder says which methods belong together, as {"figure": ["script label", ...]},
there is {env}-{figure}.png for each instead, and diagnostics of the first. Columns eval/optimum, and returns
in references.csv (env, name, return), are drawn as dotted lines.
"""

from __future__ import annotations

import csv
import itertools
import math
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import tyro
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmark.collect import STEP, CollectError, read_json, read_table  # noqa: E402

Array = NDArray[np.float64]

BEGIN = "<!-- table: begin (written by benchmark/plot.py) -->"
END = "<!-- table: end -->"
THRESHOLDS = (0.5, 0.75, 0.9)
# What seeds of one method may differ in: how far they went, and where and with which versions they ran.
MAY_DIFFER = {"seed", "started", "last_step", "absolute", "total_timesteps", "eval_only", "capture_video"}
MAY_DIFFER |= {
    "git_commit",
    "machine",
    "device",
    "torch_threads",
    "compile",
    "checkpoint_every",
    "memory_share",
}
MAY_DIFFER |= {"python", "torch", "numpy", "numba", "gymnasium", "mujoco", "pettingzoo"}
DIAGNOSTICS = ("dpo/kl", "dpo/beta1", "dpo/beta2", "dpo/below_band", "dpo/above_band")
# Okabe and Ito's colours, neighbours differing in lightness too; dashes tell them apart in print.
COLOURS = ("#000000", "#D55E00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#E69F00")
STYLES = tuple(zip(COLOURS, ("-", "--", "-.", ":", "-", "--", "-."), strict=True))
SHARES = (("below", "#cfe3f2", ""), ("inside", "#ffffff", ""), ("above", "#8c4a1f", "////"))
RC: Any = {"font.size": 11.0, "axes.titlesize": 11.0, "axes.spines.top": False, "axes.spines.right": False}
RC |= {"legend.frameon": False, "hatch.linewidth": 0.6, "figure.dpi": 110.0}


@dataclass
class Run:
    """One seed: its columns on the grid of its evaluations, float64 (points,), and what its .json says."""

    columns: dict[str, Array]
    info: dict[str, Any]

    @property
    def env(self) -> str:
        return str(self.info["env"])

    @property
    def method(self) -> str:
        """Script and label: what the curves of one environment are told apart by."""
        return " ".join(filter(None, [self.info["script"], self.info.get("label", "")]))

    @property
    def steps(self) -> Array:
        return self.columns[STEP]


@dataclass
class Group:
    """The seeds of one method in one environment."""

    runs: list[Run]

    @property
    def method(self) -> str:
        return self.runs[0].method

    def steps(self) -> Array:
        """The evaluation grid that all seeds reached: the shortest run's, (points,)."""
        return min((run.steps for run in self.runs), key=lambda steps: steps[-1])

    def values(self, column: str) -> Array:
        """A column on that grid, (seeds, points); nan where nothing was logged.

        Seeds whose evaluations fell on other steps are interpolated linearly.
        """
        return np.stack([interpolate(self.steps(), run.steps, run.columns[column]) for run in self.runs])

    def has(self, *columns: str) -> bool:
        """Whether every seed logged every one of these columns at some time."""
        logged = (run.columns.get(column, np.empty(0)) for run in self.runs for column in columns)
        return all(not np.isnan(values).all() for values in logged)


# --- statistics: arrays in, arrays out --------------------------------------------------------------------


def interpolate(x: Array, known_x: Array, known_y: Array) -> Array:
    """known_y (m,) at x (n,): exact where x is known, nan included; linear in between, nan outside."""
    exact = dict(zip(known_x.tolist(), known_y.tolist(), strict=True))
    finite = ~np.isnan(known_y)
    if not finite.any():
        return np.full_like(x, np.nan)
    between = np.interp(x, known_x[finite], known_y[finite], left=np.nan, right=np.nan)
    return np.array([exact.get(at, y) for at, y in zip(x.tolist(), between.tolist(), strict=True)])


def mean_ci(values: ArrayLike, confidence: float = 0.95) -> tuple[Array, Array, Array]:
    """Mean over seeds of values (seeds, points), and the ends of its Student t interval; each (points,).

    The interval is nan for a single seed, which tells nothing about the spread.
    """
    values = np.asarray(values, dtype=np.float64)
    seeds, mean = len(values), np.mean(values, axis=0)
    if seeds < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    standard_error = np.std(values, axis=0, ddof=1) / math.sqrt(seeds)
    half = scipy.stats.t.ppf((1 + confidence) / 2, seeds - 1) * standard_error
    return mean, mean - half, mean + half


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean: of all scores but the lowest and the highest quarter (rounded down)."""
    ordered = np.sort(np.asarray(scores, dtype=np.float64), axis=None)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def bootstrap_iqm(
    scores: ArrayLike, reps: int = 2000, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float, float]:
    """IQM of scores (runs, tasks) and its stratified percentile bootstrap interval.

    Runs are drawn with replacement within each task (Agarwal et al., NeurIPS 2021), so that no task is drawn
    more often than another. The same seed gives the same interval.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2:
        raise ValueError(f"Scores are a table (runs, tasks), not of shape {scores.shape}; reshape them.")
    draws = np.random.default_rng(seed).integers(len(scores), size=(reps, *scores.shape))
    resampled = np.take_along_axis(scores[None], draws, axis=1)
    ends = (1 - confidence) / 2, (1 + confidence) / 2
    low, high = np.quantile([iqm(sample) for sample in resampled], ends)
    return iqm(scores), float(low), float(high)


def final_means(values: Array, share: float = 0.1) -> Array:
    """Each seed's mean over the last `share` of its evaluations (at least 1): (seeds, points) -> (seeds,)."""
    return values[:, -math.ceil(share * values.shape[1]) :].mean(axis=1)


def first_reached(steps: Array, values: Array, threshold: float) -> float | None:
    """The first of steps (points,) at which values (points,) are at least the threshold; None if none is."""
    reached = np.flatnonzero(values >= threshold)
    return float(steps[reached[0]]) if len(reached) else None


def band_shares(group: Group) -> Array:
    """Shares of updates with KL below, inside and above the band of eq. (21): (3, seeds, points)."""
    below, above = group.values("dpo/below_band"), group.values("dpo/above_band")
    return np.stack([below, 1 - below - above, above])


# --- reading ----------------------------------------------------------------------------------------------


def read_runs(folder: Path) -> list[Run]:
    """All runs in a folder of collect.py's, ordered by name; CollectError where one cannot be read."""
    runs = []
    for path in sorted(folder.glob("*__*.csv")):
        info = read_json(path.with_suffix(".json"))
        absent = [name for name in ("env", "script", "seed", "last_step") if name not in info]
        columns = {name: np.array(values) for name, values in read_table(path).items()}
        if absent or not len(columns[STEP]):
            raise CollectError(f"{path} is not a file of benchmark/collect.py's; collect the run again.")
        runs.append(Run(columns, info))
    if not runs:
        raise CollectError(f"{folder} holds no collected run; make some with benchmark/collect.py.")
    return runs


def group_runs(runs: Sequence[Run]) -> dict[str, list[Group]]:
    """Environment -> its groups, one per method, the runs of each ordered by seed.

    CollectError where runs of one method differ in more than MAY_DIFFER: their mean would be of no method.
    """
    groups: dict[str, dict[str, Group]] = {}
    for run in sorted(runs, key=lambda run: (run.env, run.method, int(run.info["seed"]))):
        groups.setdefault(run.env, {}).setdefault(run.method, Group([])).runs.append(run)
    for first, *others in (group.runs for members in groups.values() for group in members.values()):
        for other in others:
            settings = (first.info.keys() | other.info.keys()) - MAY_DIFFER
            differ = sorted(name for name in settings if first.info.get(name) != other.info.get(name))
            if differ:
                which = (
                    f"seeds {first.info['seed']} and {other.info['seed']} of {first.method} in {first.env}"
                )
                raise CollectError(
                    f"{which} differ in {', '.join(differ)}; collect one of them with another --label."
                )
    return {env: list(members.values()) for env, members in groups.items()}


# --- words ------------------------------------------------------------------------------------------------


def million(steps: float) -> str:
    """Steps in words: 1.5 M, 20 k."""
    return f"{steps / 1e6:.3g} M" if steps >= 999_500 else f"{steps / 1e3:.3g} k"


def engine(run: Run) -> str:
    """What simulated the run."""
    if run.info.get("backend") == "embedded" and run.env.startswith("smac"):
        return "embedded engine, not StarCraft II"
    if run.info.get("backend") == "starcraft":
        return " ".join(["StarCraft II", str(run.info.get("game_version", ""))]).strip()
    return f"engine: {run.info.get('backend', 'not recorded')}"


def provenance(groups: Sequence[Group]) -> str:
    """Seeds, budget, engine and commits behind a figure."""
    told: dict[str, list[str]] = {}
    for group in groups:
        seeds = ", ".join(str(run.info["seed"]) for run in group.runs)
        budgets = sorted({float(run.info.get("total_timesteps", run.steps[-1])) for run in group.runs})
        story = [f"seed{'s' if len(group.runs) > 1 else ''} {seeds}"]
        story += [f"budget {' or '.join(map(million, budgets))} environment steps", *unfinished(group)]
        told.setdefault("; ".join(story), []).append(group.method)
    parts = [f"{', '.join(who)}: {story}" if len(told) > 1 else story for story, who in told.items()]
    runs = [run for group in groups for run in group.runs]
    commits = sorted({str(run.info.get("git_commit", "unknown"))[:7] for run in runs})
    parts += sorted({engine(run) for run in runs})
    parts.append(f"git commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}")
    return "; ".join(parts) + "."


def unfinished(group: Group) -> list[str]:
    """How far seeds came that were stopped before their budget, and what that does to the mean."""
    short = [run for run in group.runs if run.info.get("absolute") is None]
    reached = [f"seed {run.info['seed']} stopped at {million(run.info['last_step'])}" for run in short]
    ends = {float(run.steps[-1]) for run in group.runs}
    if len(ends) > 1:
        reached.append(f"mean and band end where the shortest run does, at {million(min(ends))}")
    return reached


# --- drawing ----------------------------------------------------------------------------------------------


def draw_curve(ax: Axes, group: Group, column: str, style: tuple[str, str], scale: float = 1.0) -> None:
    """Mean over seeds, its 95 % band, and each seed as a thin line; values times scale."""
    colour, dashes = style
    for run in group.runs:
        logged = ~np.isnan(run.columns[column])
        ax.plot(run.steps[logged] / 1e6, scale * run.columns[column][logged], color=colour, lw=0.6, alpha=0.5)
    mean, low, high = (scale * x for x in mean_ci(group.values(column)))
    x, logged = group.steps() / 1e6, ~np.isnan(mean)
    ax.plot(x[logged], mean[logged], dashes, color=colour, lw=2.0, label=group.method)
    ax.fill_between(x[logged], low[logged], high[logged], color=colour, alpha=0.18, lw=0)


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


def styled(groups: Sequence[Group]) -> list[tuple[Group, tuple[str, str]]]:
    """Each group with its colour and dashes."""
    return list(zip(groups, itertools.cycle(STYLES)))


def finish(figure: Figure, axes: Sequence[Axes], title: str, groups: Sequence[Group], path: Path) -> None:
    """Title above, axis labels, below what the lines are and where they come from; writes the PNG."""
    for ax in axes:
        ax.set_xlabel("environment steps (millions)")
        ax.grid(axis="y", color="#dddddd", lw=0.6)
        ax.set_axisbelow(True)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    caption = "Thick: mean over seeds; shaded: its 95 % confidence band (Student t); thin: single seeds. "
    if all(len(group.runs) == 1 for group in groups):
        caption = "Thick: one seed, hence no confidence band. "
    lines = textwrap.wrap(caption + provenance(groups), int(figure.get_figwidth() * 12))
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
            ax.set_title(f"KL of an update against the band{name}", loc="left")
        kl, *betas = axes[len(groups) : panels]
        for group, style in styled(groups):
            draw_curve(kl, group, "dpo/kl", style)
        for low, target, high in sorted({band(group) for group in groups}):
            kl.axhspan(low, high, color="#bbbbbb", alpha=0.4, lw=0)
            kl.axhline(target, color="#555555", lw=1.0, ls=":")
        kl.set(yscale="log", ylabel="KL (nats)", xlim=(0, None))
        kl.set_title("KL(old || new), mean over agents; grey: band, dotted: target", loc="left")
        # beta_min bounds N times beta; where N is unknown, beta is drawn as it is, without the floor.
        agents = [group.runs[0].info.get("num_agents") for group in groups]
        words = "N " if all(agents) else ""
        infos = [run.info for group, N in zip(groups, agents, strict=True) if N for run in group.runs]
        floors = sorted({float(info["beta_min"]) for info in infos if "beta_min" in info})
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


def band(group: Group) -> tuple[float, float, float]:
    """Lower end, target and upper end of the band of eq. (21)."""
    info = group.runs[0].info
    target, delta = float(info.get("d_target", math.nan)), float(info.get("delta", math.nan))
    return target / delta, target, target * delta


# --- the table --------------------------------------------------------------------------------------------


def plus_minus(values: ArrayLike, digits: int) -> str:
    """Mean over seeds ± half its 95 % interval, of values (seeds,); – if there are none."""
    values = np.asarray(values, dtype=np.float64)
    if not len(values) or np.isnan(values).any():
        return "–"
    mean, _, high = mean_ci(values[:, None])
    spread = "" if np.isnan(high[0]) else f" ± {high[0] - mean[0]:.{digits}f}"
    return f"{mean[0]:.{digits}f}{spread}"


def absolute_cell(group: Group, name: str, digits: int) -> str:
    """A metric of the best checkpoints over the seeds that finished, and how many did if not all."""
    finished = [run.info["absolute"][name] for run in group.runs if name in (run.info.get("absolute") or {})]
    missing = f" ({len(finished)} of {len(group.runs)} seeds)" if 0 < len(finished) < len(group.runs) else ""
    return plus_minus(finished, digits) + missing


def speed_cell(group: Group) -> str:
    """Median environment steps per second, and the shares of env, act and update in the time."""
    names = ("charts/SPS", "time/env", "time/act", "time/update")
    if not group.has(*names):
        return "–"
    sps, *split = (np.nanmedian(np.concatenate([run.columns[name] for run in group.runs])) for name in names)
    return f"{sps:,.0f} ({' / '.join(f'{100 * share:.0f}' for share in split)} %)"


def shares_cell(group: Group) -> str:
    """Shares of updates below, inside and above the band, over the run."""
    if not group.has("dpo/below_band", "dpo/above_band"):
        return "–"
    return " / ".join(f"{100 * share:.0f}" for share in np.nanmean(band_shares(group), axis=(1, 2))) + " %"


def table_row(env: str, group: Group) -> list[str]:
    """The cells of one line, in the order of the table's head."""
    steps = group.steps()
    budget = max(float(run.info.get("total_timesteps", 0)) for run in group.runs)
    reached = million(steps[-1]) + (f" of {million(budget)}" if steps[-1] < budget else "")
    cells = [env, group.method, str(len(group.runs)), reached]
    for column, digits in (("eval/win_rate", 2), ("eval/episodic_return", 1)):
        cells.append(plus_minus(final_means(group.values(column)), digits) if group.has(column) else "–")
    cells += [absolute_cell(group, "eval/win_rate", 2), absolute_cell(group, "eval/episodic_return", 1)]
    won = group.values("eval/win_rate").mean(axis=0) if group.has("eval/win_rate") else np.zeros_like(steps)
    firsts = [first_reached(steps, won, threshold) for threshold in THRESHOLDS]
    cells.append(" / ".join("–" if first is None else million(first) for first in firsts))
    return [*cells, speed_cell(group), shares_cell(group)]


def make_table(groups: dict[str, list[Group]]) -> str:
    """The Markdown table of all groups, and the lines that explain it."""
    head = ["environment", "method", "seeds", "steps", "final win rate", "final return", "absolute win rate"]
    head += ["absolute return", f"win rate {' / '.join(map(str, THRESHOLDS))} at"]
    head += ["steps/s (env / act / update)", "KL below / in / above band"]
    rows = [head, ["---"] * len(head)]
    rows += [table_row(env, group) for env, members in groups.items() for group in members]
    kept = [set(column) - {"–", "– / – / –"} != set(column[:2]) for column in zip(*rows, strict=True)]
    rows = [list(itertools.compress(row, kept)) for row in rows]
    exact = all(env.startswith("matrix") for env in groups)
    absolute = (
        "the last parameters, exact"
        if exact
        else "the parameters that evaluated\nbest, on 320 greedy episodes"
    )
    notes = f"""Mean over seeds ± half the 95 % confidence interval (Student t; none for one seed).
Final: the last 10 % of the evaluations that all seeds reached. Absolute: {absolute}.
Steps/s: median; how fast depends on the machine and what else it ran."""
    notes += "" if exact else "\nThe win rate's thresholds are of its mean over seeds."
    lines = ["| " + " | ".join(row) + " |" for row in rows] + ["", notes, ""]
    lines += [f"- {env}: {provenance(members)}" for env, members in groups.items()]
    return "\n".join(lines) + "\n"


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
    folder: tyro.conf.Positional[Path]
    """folder with the thinned runs, e.g. benchmark/results/smac"""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    try:
        groups = group_runs(read_runs(args.folder))
        path = args.folder / "figures.json"
        figures = read_json(path) if path.exists() else {"": None}
        known = {group.method for members in groups.values() for group in members}
        for name, methods in figures.items() if path.exists() else ():
            if not isinstance(methods, list) or not known.issuperset(methods):
                raise CollectError(f"{path}: {name} must list some of: {', '.join(sorted(known))}.")
        for (env, members), (name, methods) in itertools.product(groups.items(), figures.items()):
            chosen = [group for group in members if methods is None or group.method in methods]
            chosen.sort(key=lambda group: methods.index(group.method) if methods else 0)
            if len(chosen) > (methods is not None):
                draw_evaluations(env, chosen, args.folder / f"{'-'.join(filter(None, [env, name]))}.png")
                if name == next(iter(figures)):
                    draw_diagnostics(env, chosen, args.folder / f"{env}-diagnostics.png")
        table = make_table(groups)
        print(table)
        update_readme(args.folder / "README.md", table)
    except (CollectError, OSError) as error:
        sys.exit(f"plot: {error}")


if __name__ == "__main__":
    main()
