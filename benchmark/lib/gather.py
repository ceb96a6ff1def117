"""The runs of a figure or a study, from a store, as the cells that are drawn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from benchmark.figures import FIGURES, panel_runs
from benchmark.lib.cells import Cell
from benchmark.lib.groups import Group, check_alike, end_together
from benchmark.lib.runs import RETURN, WIN_RATE, ResultsError, Run
from benchmark.lib.store import Store
from benchmark.lib.studies import Curves


class NoRunError(ResultsError):
    """A figure or study of which there is no run."""


@dataclass(frozen=True)
class Gaps:
    """Keys of a figure's runs that are not there, and of those that are not finished."""

    missing: set[str]
    unfinished: set[str]


def as_groups(by_method: dict[str, list[Run]]) -> list[Group]:
    """The methods of one task that have runs, which are of one setting each and end together.

    A run that goes on is left out where other seeds of its method are finished: curves and scores would
    else end where it stands.
    """
    groups = []
    for method, runs in by_method.items():
        for run in runs:
            run.method = method
        runs = [run for run in runs if run.finished] or runs
        if runs:
            groups.append(Group(sorted(runs, key=lambda run: run.seed)))
            check_alike(groups[-1])
    end_together(groups)
    return groups


def figure_cells(name: str, scale: str, seeds: Sequence[int], store: Store) -> tuple[list[Cell], Gaps]:
    """What a store has of a figure."""
    figure, missing, unfinished = FIGURES[name], set[str](), set[str]()
    cells: dict[tuple[str, str], Cell] = {}
    found: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for panel, task, method, planned in panel_runs(figure, scale, seeds):
        if planned.key not in store.runs:
            missing.add(planned.key)
            continue
        run = store.load(planned.key)
        if not run.finished:
            unfinished.add(run.key)
        methods = tuple(method.name for method in panel.methods)
        metric = task.metric or (WIN_RATE if task.family == "smac" else RETURN)
        place = panel.title, task.name
        cells.setdefault(place, Cell(task.name, panel.title, methods, metric, []))
        found.setdefault(place, {}).setdefault(method.name, []).append(run)
    if not cells:
        raise NoRunError(
            f"no run of {name} at scale {scale} in {store.folder}; "
            f"make them with benchmark/run.py {name} --scale {scale}."
        )
    for place, cell in cells.items():
        cell.groups = as_groups(found[place])
        check_one_engine(cell)
    return list(cells.values()), Gaps(missing, unfinished)


def check_one_engine(cell: Cell) -> None:
    """ResultsError where methods of a task were not all played by the same simulator."""
    found = sorted({f"{run.env}, {run.backend}" for group in cell.groups for run in group.runs})
    if len(found) > 1:
        raise ResultsError(
            f"{cell.task} was played as {' and as '.join(found)}, which are not to be compared; "
            "delete the rows of one of them in runs.csv."
        )


def study_cells(panels: Iterable[Curves], store: Store) -> list[Cell]:
    """What a store has of a study, a cell for each environment of each panel."""
    cells = []
    for panel in panels:
        for env in panel.envs:
            found = {name: chosen(store, env, end, panel.steps) for name, end in panel.methods.items()}
            if groups := as_groups(found):
                cells.append(Cell(env, panel.name, tuple(panel.methods), panel.metric, groups))
    return cells


def chosen(store: Store, env: str, end: str, steps: int) -> list[Run]:
    """The runs in an environment whose keys end so, `?` the seed; steps: with this budget, 0: with any."""
    parts = (re.escape(part).replace(r"\?", ".") for part in end.split("__?", 1))
    ends = re.compile(r".*__" + r"__\d+".join(parts))
    rows = (run for run in store.runs.values() if run.env == env and ends.fullmatch(run.key))
    return [store.load(run.key) for run in rows if steps in (0, run.total_timesteps)]


def recorded_cells(store: Store) -> list[Cell]:
    """The runs that were recorded by hand: a cell per environment, a method per script and label."""
    found: dict[str, dict[str, list[Run]]] = {}
    for row in store.runs.values():
        parts = [row.env, row.script, row.label, str(row.seed)]
        if row.key == "__".join(filter(None, parts)):
            method = " ".join(filter(None, [row.script, row.label]))
            found.setdefault(row.env, {}).setdefault(method, []).append(store.load(row.key))
    if not found:
        raise NoRunError(f"{store.folder} has no recorded run; record some with benchmark/run.py --record.")
    methods = tuple(dict.fromkeys(method for groups in found.values() for method in groups))
    cells = []
    for env, by_method in found.items():
        groups = as_groups(by_method)
        metric = WIN_RATE if any(group.has(WIN_RATE) for group in groups) else RETURN
        cells.append(Cell(env, "", methods, metric, groups))
    return cells


def cells_beside(
    own: Store, name: str, scale: str, seeds: Sequence[int], published: Store
) -> tuple[list[Cell], set[str]]:
    """A published figure's cells in whose environments runs were recorded by hand, with these in them; and
    the environments of recorded runs that the figure does not have.

    Means of a cell end where its shortest curve does: scores are then of the same steps.
    """
    recorded = {cell.env: cell for cell in recorded_cells(own)}
    cells, _ = figure_cells(name, scale, seeds, published)
    envs = {cell.env for cell in cells}
    if not envs & recorded.keys():
        what = f"no recorded run is in an environment of {name} ({', '.join(sorted(envs))})"
        raise NoRunError(f"{what}, but in {', '.join(sorted(recorded))}.")
    beside = []
    for cell in cells:
        if cell.env in recorded:
            mine = recorded[cell.env]
            names = {name: f"{name} (recorded)" if name in cell.methods else name for name in mine.methods}
            renamed = [
                [replace(run, method=names[run.method]) for run in group.runs] for group in mine.groups
            ]
            groups = [Group(runs) for runs in (*(group.runs for group in cell.groups), *renamed)]
            end = min(float(group.steps()[-1]) for group in groups)
            for group in groups:
                group.until = end
            methods = (*cell.methods, *names.values())
            beside.append(Cell(cell.task, cell.panel, methods, cell.metric, groups))
    return beside, recorded.keys() - envs
