"""A figure of the paper from the runs of benchmark/run.py: curves, aggregates, tables, data for other tools.

fig2.png       evaluations against environment steps, one set of axes per task; for several tasks also the
               interquartile mean over them, with its stratified bootstrap interval
fig2-time.png  the same against wall-clock hours
fig2.md        the claim, the tables, and what is missing
fig2.json      finished runs in the schema that marl-eval reads

beside ../runs, the collected runs of all figures and scales, from which everything can be drawn again.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmark.lib.records import ITERATION, STEP, CollectError, NoEvaluationError, collect
from benchmark.lib.drawing import RC, STYLES, draw_curve, draw_return_limits, finish, read_references
from benchmark.figures import FIGURES, Panel, Task, panel_runs
from benchmark.lib.groups import Group, Run, check_alike, origins, read_run
from benchmark.lib.jobs import finished, run_directory
from benchmark.lib.statistics import Array, bootstrap_iqm, final_means, hours, run_means, welch
from benchmark.lib.tables import make_table

RESULTS = Path(__file__).resolve().parent / "results"  # references of some tasks are there
POINTS = 200  # evaluations that are kept of a run
SUMMARIES = {"final": final_means, "over the run": run_means}
WIN_RATE, RETURN = "eval/win_rate", "eval/episodic_return"


class NoRunError(CollectError):
    """A figure of which there is no run."""


@dataclass
class Cell:
    """One task of a panel: a set of axes, with a group of runs per method."""

    panel: Panel
    task: Task
    groups: list[Group]

    @property
    def title(self) -> str:
        return f"{self.task.name} ({self.panel.name})" if self.panel.name else self.task.name

    @property
    def metric(self) -> str:
        """What is compared: win rates where battles are won, else returns."""
        return WIN_RATE if self.task.family == "smac" else RETURN

    @property
    def references(self) -> dict[str, float]:
        """Returns to compare with, by name."""
        env = self.groups[0].runs[0].env
        return read_references(RESULTS / self.task.family, env, self.groups)

    @property
    def has_hours(self) -> bool:
        """Whether time tells methods apart: not where some ran on a GPU and others did not, nor on the game,
        where dpo_matrix.py sums the samples of a state and baselines do not."""
        runs = [run for group in self.groups for run in group.runs]
        scripts = {run.info["script"] for run in runs} if self.task.family == "matrix" else {""}
        return len(scripts) == len({run.info.get("device", "cpu") for run in runs}) == 1

    def scores(self, method: str, summary: Callable[[Array], Array] = final_means) -> dict[int, float]:
        """Normalised scores of a method by seed; `summary` makes them of evaluations (seeds, points)."""
        for group in self.groups:
            if group.method == method and group.has(self.metric):
                scores = self.normalised(summary(group.values(self.metric))).tolist()
                return {int(run.info["seed"]): x for run, x in zip(group.runs, scores, strict=True)}
        return {}

    def style(self, method: str) -> tuple[str, str]:
        """Colour and dashes of a method: the same in all tasks of the panel, whatever is missing there."""
        return STYLES[[other.name for other in self.panel.methods].index(method) % len(STYLES)]

    def normalised(self, values: Array) -> Array:
        """Scores on a scale that tasks share; `scale_words` says which."""
        low, high = self.ends()
        return (values - low) / (high - low) if high > low else np.zeros_like(values)

    def ends(self) -> tuple[float, float]:
        """What counts as 0 and as 1."""
        references = self.references
        if self.metric == WIN_RATE:
            return 0.0, 1.0
        if "optimum" in references:
            return 0.0, references["optimum"]
        if {"random", "greedy"} <= references.keys():
            return references["random"], references["greedy"]
        untrained = np.concatenate([group.values(RETURN)[:, 0] for group in self.groups])
        best = max(float(final_means(group.values(RETURN)).mean()) for group in self.groups)
        return float(untrained.mean()), best

    def scale_words(self) -> str:
        """How scores are normalised."""
        references = self.references
        if self.metric == WIN_RATE:
            return "win rate"
        if "optimum" in references:
            return "share of the optimum"
        if {"random", "greedy"} <= references.keys():
            return "0: random play, 1: a script that sees everything"
        return "0: untrained, 1: the best method's mean, for want of a reference"


def gather(
    name: str, scale: str, seeds: Sequence[int], runs_dir: Path, into: Path
) -> tuple[list[Cell], int, int]:
    """Collects what there is of a figure's runs; its cells, and how many runs are missing or left out.

    A run that goes on is left out where other seeds of its method are finished: curves and scores would
    else end where it stands.
    """
    figure, missing = FIGURES[name], set()
    cells: dict[tuple[int, str], Cell] = {}
    step = ITERATION if figure.exact else STEP
    for panel, task, method, run in panel_runs(figure, scale, seeds):
        directory, target = run_directory(runs_dir / run.key), into / "runs" / f"{run.key}.csv"
        if directory is not None:
            try:
                collect(directory, target.parent, max(run.steps // POINTS, 1), run.label, run.key, step)
            except NoEvaluationError:
                if finished(directory):
                    raise
        if not target.exists():
            missing.add(run.key)
            continue
        found = read_run(target, step)
        found.info |= {"method": method.name}
        cell = cells.setdefault((id(panel), task.name), Cell(panel, task, []))
        if not cell.groups or cell.groups[-1].method != method.name:
            cell.groups.append(Group([]))
        cell.groups[-1].runs.append(found)
    if not cells:
        raise NoRunError(
            f"no run of {name} at scale {scale} in {runs_dir} or {into}; "
            f"make them with benchmark/run.py {name} --scale {scale}."
        )
    unfinished = set()
    for group in (group for cell in cells.values() for group in cell.groups):
        check_alike(group, f"delete the collected files of one of them in {into / 'runs'}, and run it again")
        done = [run for run in group.runs if run.info.get("absolute")]
        if done:
            unfinished |= {run.info.get("key") for run in group.runs if not run.info.get("absolute")}
            group.runs = done
    return list(cells.values()), len(missing), len(unfinished)


def plot_figure(name: str, scale: str, seeds: Sequence[int], runs_dir: Path, into: Path) -> str:
    """Draws one figure and writes its table and data into `into` / `scale`; returns the table."""
    cells, missing, unfinished = gather(name, scale, seeds, runs_dir, into)
    figure, folder = FIGURES[name], into / scale
    folder.mkdir(exist_ok=True)
    heading = f"{name}: {figure.title}"
    if scale == "smoke" and not figure.exact:  # SMOKE_GAME is not the game that the title names
        heading = f"{name} with tiny games and settings, no result"
    title = f"{heading}; scale {scale}"
    text = f"# {heading}\n\nThe paper's claim: {figure.claim}\n\n"
    if missing or unfinished:
        text += f"Not complete: of the runs at scale {scale} {missing} are missing, and {unfinished} "
        text += "that are not finished are left out.\n\n"
    if figure.exact:
        draw_exact(cells, title, folder / f"{name}.png")
        text += exact_table(cells)
    else:
        draw_cells(cells, title, folder / f"{name}.png", timed=False)
        draw_cells(cells, title, folder / f"{name}-time.png", timed=True)
        text += aggregate_table(cells) + comparison_table(cells)
        text += make_table({cell.title: cell.groups for cell in cells})
        (folder / f"{name}.json").write_text(json.dumps(marl_eval(cells), indent=1) + "\n")
    (folder / f"{name}.md").write_text(text)
    return text


# --- learning curves --------------------------------------------------------------------------------------


def on_the_clock(group: Group) -> Group:
    """The same runs with hours in the place of environment steps."""
    runs = []
    for run in group.runs:
        clock = hours(run.steps, run.columns.get("charts/SPS", np.full_like(run.steps, np.nan)))
        runs.append(Run(run.columns | {STEP: clock}, run.info))
    return Group(runs)


def draw_cells(cells: Sequence[Cell], title: str, path: Path, timed: bool) -> None:
    """A set of axes per cell, and one per panel that several tasks can be aggregated over.

    Nothing is drawn if no cell has hours that can be compared.
    """
    cells = [cell for cell in cells if cell.has_hours or not timed]
    if not cells:
        return path.unlink(missing_ok=True)
    several = [] if timed else aggregates(cells)
    count = len(cells) + len(several)
    columns = 2 if count == 4 else min(count, 3)
    rows = math.ceil(count / columns)
    with rc_context(RC):
        figure = Figure(figsize=(max(4.6 * columns, 7.5), 3.6 * rows + 1.2), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for ax in axes[count:]:
            ax.remove()
        for ax, cell in zip(axes, cells, strict=False):
            draw_cell(ax, cell, timed)
        draw_legends(figure, axes, cells)
        for ax, (members, words) in zip(axes[len(cells) :], several, strict=False):
            draw_aggregate(ax, members, words)
        groups = [group for cell in cells for group in cell.groups]
        note = "Hours are integrated from the steps per second of updates, evaluations do not count; means "
        note += "end with the fastest seed; compare only what was run side by side. "
        x = "wall-clock hours" if timed else "environment steps (millions)"
        if len({id(cell.panel) for cell in cells}) == 1:  # room for the legend
            title += "\n " * math.ceil(max(len(cell.groups) for cell in cells) / 4)
        finish(figure, axes[: len(cells)], title, groups, path, x, note if timed else "")


def draw_legends(figure: Figure, axes: Sequence[Axes], cells: Sequence[Cell]) -> None:
    """Above all axes where they are of one panel; else in each panel's first, as styles mean others there."""
    told: dict[tuple[int, str], Artist] = {}
    panels = len({id(cell.panel) for cell in cells})
    for ax, cell in zip(axes, cells, strict=False):
        handles, labels = ax.get_legend_handles_labels()
        new = {(id(cell.panel), label): line for line, label in zip(handles, labels, strict=True)}
        if panels > 1 and not new.keys() <= told.keys():
            ax.legend(fontsize=9, frameon=True, framealpha=0.85, edgecolor="none")
        told |= new
    if panels == 1:  # into the blank lines below the title
        top = 1 - 0.27 / figure.get_figheight()
        names = [label for _, label in told]
        figure.legend(
            told.values(), names, loc="upper left", bbox_to_anchor=(0.005, top), ncols=4, borderpad=0
        )


def draw_cell(ax: Axes, cell: Cell, timed: bool) -> None:
    """The curves of one task."""
    for group in cell.groups:
        style = cell.style(group.method)
        if group.has(cell.metric):
            if not timed:
                draw_curve(ax, group, cell.metric, style)
            elif group.has("charts/SPS"):
                draw_curve(ax, on_the_clock(group), cell.metric, style, unit=1.0)
    how = "exact" if cell.task.family == "matrix" else "greedy"
    ax.set(ylabel=f"{'win rate' if cell.metric == WIN_RATE else 'return'} ({how})", xlim=(0, None))
    if cell.metric == WIN_RATE:
        ax.set_ylim(-0.02, 1.02)
    else:
        draw_return_limits(ax, cell.groups, cell.references)
    ax.set_title(cell.title, loc="left")


# --- aggregates over tasks --------------------------------------------------------------------------------


def by_panel(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells of each panel."""
    panels: dict[int, list[Cell]] = {}
    for cell in cells:
        panels.setdefault(id(cell.panel), []).append(cell)
    return list(panels.values())


def aggregates(cells: Sequence[Cell]) -> list[tuple[list[Cell], str]]:
    """Panels of which at least two tasks are there, each with the words for how scores are normalised."""
    several = [members for members in by_panel(cells) if len(members) > 1]
    return [(cells, "; ".join(dict.fromkeys(cell.scale_words() for cell in cells))) for cells in several]


def interquartile_means(
    cells: Sequence[Cell], summary: Callable[[Array], Array] = final_means
) -> dict[str, tuple[float, float, float]]:
    """IQM of normalised scores over tasks and its interval, per method that all tasks have.

    Every task counts as many seeds as the one with the fewest has.
    """
    found = {}
    for method in (group.method for group in cells[0].groups):
        columns = [list(cell.scores(method, summary).values()) for cell in cells]
        if all(columns):
            seeds = min(map(len, columns))
            found[method] = bootstrap_iqm(np.array([column[:seeds] for column in columns]).T)
    return found


def draw_aggregate(ax: Axes, cells: Sequence[Cell], words: str) -> None:
    """Point and interval per method, in the order and with the colours of the curves."""
    means = interquartile_means(cells)
    for i, (method, (value, low, high)) in enumerate(means.items()):
        colour, _ = cells[0].style(method)
        ax.plot([low, high], [i, i], color=colour, lw=3.0)
        ax.plot([value], [i], "o", color=colour, markeredgecolor="white", ms=9)
    ax.set_ylim(-0.6, len(means) - 0.4)
    ax.locator_params(axis="x", nbins=5)
    ax.set_yticks(range(len(means)), [textwrap.fill(method, 18) for method in means], fontsize=9)
    ax.invert_yaxis()
    ax.grid(axis="x", color="#dddddd", lw=0.6)
    panel = cells[0].panel.name
    ax.set_title(f"IQM over {len(cells)} tasks" + (f" ({panel})" if panel else ""), loc="left")
    ax.set_xlabel("\n".join(textwrap.wrap(f"normalised final score ({words})", 50)), fontsize=9)


def aggregate_table(cells: Sequence[Cell]) -> str:
    """Markdown tables of the interquartile means, and how they are normalised."""
    text = ""
    for members, words in aggregates(cells):
        tasks = ", ".join(cell.task.name for cell in members)
        text += "| method | seeds | final | over the run |\n| --- | --- | --- | --- |\n"
        columns = (interquartile_means(members, summary) for summary in SUMMARIES.values())
        final, whole = (
            {
                method: f"{value:.3f}" + (f" ({low:.3f} to {high:.3f})" if high > low else "")
                for method, (value, low, high) in means.items()
            }
            for means in columns
        )
        for method in final:
            groups = (group for cell in members for group in cell.groups if group.method == method)
            seeds = min(len(group.runs) for group in groups)
            text += f"| {method} | {seeds} | {final[method]} | {whole[method]} |\n"
        text += f"\nInterquartile mean over {tasks}, and its 95 % stratified bootstrap interval over seeds, "
        text += "which is too narrow for few of them. "
        text += f"Scores are normalised per task ({words}).\n\n"
    return text


def comparison_table(cells: Sequence[Cell]) -> str:
    """Markdown tables of Welch's p of each method against its panel's first, by task and over the tasks.

    Over the tasks it is the test of the seeds' means of normalised scores, of seeds that all tasks have.
    """
    text = ""
    for members in by_panel(cells):
        first, *others = (method.name for method in members[0].panel.methods)
        head = [f"p against {first}", *(cell.task.name for cell in members), "all tasks"]
        rows = []
        for method in others:
            for words, summary in SUMMARIES.items():
                pairs = [(cell.scores(first, summary), cell.scores(method, summary)) for cell in members]
                over_tasks = [
                    [
                        np.mean([score[seed] for score in scores])
                        for seed in set.intersection(*map(set, scores))
                    ]
                    for scores in zip(*pairs, strict=True)
                ]
                ps = [welch([*a.values()], [*b.values()]) for a, b in pairs] + [welch(*over_tasks)]
                if not np.isnan(ps).all():
                    rows.append([f"{method}, {words}", *map(p_words, ps)])
        if rows:
            width = len(head) if len(members) > 1 else 2
            lines = [head, ["---"] * len(head), *rows]
            text += "".join(f"| {' | '.join(line[:width])} |\n" for line in lines) + "\n"
    if text:
        text += "Welch's test of the seeds' scores, not corrected for the number of comparisons"
        text += "; of several tasks, of their means over tasks.\n\n" if aggregates(cells) else ".\n\n"
    return text


def p_words(p: float) -> str:
    """p to one digit."""
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.1g}"


# --- the exact iteration ----------------------------------------------------------------------------------


def draw_exact(cells: Sequence[Cell], title: str, path: Path) -> None:
    """J above, p and q below, a column per game; no seeds, no samples."""
    with rc_context(RC):
        figure = Figure(figsize=(max(3.4 * len(cells), 7.5), 6.4), layout="constrained")
        axes = figure.subplots(2, len(cells), squeeze=False, sharex=True)
        for column, cell in zip(axes.T, cells, strict=True):
            for group in cell.groups:
                (colour, dashes), data = cell.style(group.method), group.runs[0].columns
                column[0].plot(data[ITERATION], data["J"], dashes, color=colour, lw=2.0, label=group.method)
                for name, marker in (("p", "o"), ("q", "x")):
                    every = max(len(data[name]) // 6, 1)
                    style = {"color": colour, "marker": marker, "markevery": every, "ms": 6, "mfc": "none"}
                    column[1].plot(data[ITERATION], data[name], dashes, **style)
            column[0].axhline(float(optimum(cell.groups[0].runs[0])), color="#555555", lw=1.0, ls=":")
            column[0].set_title(cell.title, loc="left")
            column[1].set_ylim(-0.05, 1.05)
            column[1].set_xlabel("iteration")
        axes[0, 0].set_ylabel("J (dotted: optimum)")
        axes[1, 0].set_ylabel("p (o) and q (x)")
        axes[0, np.argmax([len(cell.groups) for cell in cells])].legend(fontsize=9)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        figure.supxlabel(exact_origin(cells), x=0.01, ha="left", fontsize=10)
        figure.savefig(path, metadata={"Software": None})


def exact_origin(cells: Sequence[Cell]) -> str:
    """Budget, engine and commit of the iterations."""
    groups = [group for cell in cells for group in cell.groups]
    most = max(int(group.runs[0].columns[ITERATION][-1]) for group in groups)
    return f"Exact: no samples, no seeds; at most {most} iterations; {'; '.join(origins(groups))}."


def optimum(run: Run) -> float:
    """The best J of a game; nan where the run did not end."""
    return float((run.info.get("absolute") or {}).get("optimum", math.nan))


def exact_table(cells: Sequence[Cell]) -> str:
    """First and last J, whether J ever fell, and the last p and q."""
    lines = ["| game | method | J, first | J, last | optimum | J fell | p, q, last |", "| --- " * 7 + "|"]
    for cell in cells:
        for group in cell.groups:
            data = group.runs[0].columns
            fell = "never" if (np.diff(data["J"]) >= -1e-12).all() else "yes"
            cells_ = [cell.title, group.method, f"{data['J'][0]:.4f}", f"{data['J'][-1]:.4f}"]
            cells_ += [f"{optimum(group.runs[0]):.4f}", fell, f"{data['p'][-1]:.4f}, {data['q'][-1]:.4f}"]
            lines.append(f"| {' | '.join(cells_)} |")
    return "\n".join([*lines, "", exact_origin(cells)]) + "\n"


# --- for other tools --------------------------------------------------------------------------------------


def marl_eval(cells: Sequence[Cell]) -> dict[str, Any]:
    """Finished runs as marl-eval reads them: environment, task, algorithm, run, step_k.

    It refuses an environment whose tasks do not have the same algorithms, so each panel of the figure is one;
    whose algorithms do not have the same seeds, so only common ones are exported; whose runs do not have
    equally many evaluations, so as many as the shortest run has are chosen, evenly; and names with commas.
    """
    data: dict[str, Any] = {}
    for cell in cells:
        environment = " ".join(filter(None, [cell.task.family, cell.panel.name]))
        algorithms = data.setdefault(environment, {}).setdefault(cell.task.name, {})
        for group in cell.groups:
            done = {f"seed_{run.info['seed']}": run for run in group.runs if run.info.get("absolute")}
            if done:
                algorithms[group.method.replace(",", "")] = done
    for tasks in data.values():
        named = [runs.keys() for methods in tasks.values() for runs in methods.values()]
        common = set.intersection(*map(set, named)) if named else set()
        for methods in tasks.values():
            for method, runs in methods.items():
                methods[method] = {seed: run for seed, run in runs.items() if seed in common}
        members = [run for methods in tasks.values() for runs in methods.values() for run in runs.values()]
        count = min((len(run.steps) for run in members), default=0)
        for methods in tasks.values():
            for runs in methods.values():
                runs |= {name: marl_eval_run(run, count) for name, run in runs.items()}
    return data


def marl_eval_run(run: Run, count: int) -> dict[str, Any]:
    """One run: `count` of its evaluations, and the absolute metrics."""
    names = {RETURN: "return", WIN_RATE: "win_rate"}
    chosen = np.linspace(0, len(run.steps) - 1, count).round().astype(int)
    entry: dict[str, Any] = {}
    for k, i in enumerate(chosen):
        values = {name: run.columns[column][i] for column, name in names.items() if column in run.columns}
        entry[f"step_{k}"] = {"step_count": int(run.steps[i])} | {
            name: [float(x)] for name, x in values.items() if not math.isnan(x)
        }
    absolute = run.info["absolute"]
    entry["absolute_metrics"] = {name: [absolute[key]] for key, name in names.items() if key in absolute}
    return entry
