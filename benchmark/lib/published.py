"""What plot.py makes of a store, as files' bytes: pictures, tables, verdicts, the numbers in documents."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmark.figures import FIGURES, STILL_TO_RUN, Figure
from benchmark.lib.cells import Cell, aggregate_table, comparison_table
from benchmark.lib.diagnostics import draw_diagnostics
from benchmark.lib.documents import fill, find_cell, put_between
from benchmark.lib.drawing import draw_cells
from benchmark.lib.exact import draw_exact, exact_table
from benchmark.lib.gather import NoRunError, figure_cells, recorded_cells, study_cells
from benchmark.lib.groups import Group, million
from benchmark.lib.runs import ResultsError
from benchmark.lib.store import PUBLISHED, Store
from benchmark.lib.studies import STUDIES, Study
from benchmark.lib.study_tables import learning_table, peer_table
from benchmark.lib.tables import make_table, markdown

ROOT = PUBLISHED.parents[1]
DOCUMENTS = ("README.md", "docs/*.md", "benchmark/results/studies/*/README.md")

LINK = re.compile(r"\[([^]]+)\]\([^)]+\)")

Files = dict[Path, bytes]


# --- a figure, a study ------------------------------------------------------------------------------------


def figure_pictures(
    name: str, scale: str, seeds: Sequence[int], store: Store, hours: bool = False
) -> dict[str, bytes]:
    """A figure's picture by the name of its file; hours: and another against wall-clock hours."""
    cells, _ = figure_cells(name, scale, seeds, store)
    figure = FIGURES[name]
    title = f"{heading(name, figure, scale)}; scale {scale}"
    if figure.exact:
        return {f"{name}.png": draw_exact(cells, title)}
    files = {f"{name}.png": draw_cells(cells, title)}
    if hours:
        files[f"{name}-time.png"] = draw_cells(cells, title, timed=True)
    return {file: data for file, data in files.items() if data is not None}


def heading(name: str, figure: Figure, scale: str) -> str:
    """A figure's name and title. At scale smoke games are not those that the title names."""
    if scale == "smoke" and not figure.exact:
        return f"{name} with tiny games and settings, no result"
    return f"{name}: {figure.title}"


def figure_text(name: str, scale: str, seeds: Sequence[int], store: Store, verdict: str = "") -> str:
    """A figure's table.md: the claim, the verdict on what is published, what is missing, and the tables."""
    cells, gaps = figure_cells(name, scale, seeds, store)
    figure = FIGURES[name]
    text = f"# {heading(name, figure, scale)}\n\nClaim tested: {figure.claim}\n\n"
    if verdict:
        text += f"Verdict: {verdict} ([what the words mean](../../../../docs/verdicts.md)).\n\n"
    if gaps.missing or gaps.unfinished:
        text += f"Not complete: of the runs at scale {scale} {gaps.missing} are missing, and "
        text += f"{gaps.unfinished} that are not finished are left out.\n\n"
    if figure.exact:
        return text + exact_table(cells)
    runs = make_table({cell.title: cell.groups for cell in cells})
    return text + aggregate_table(cells) + comparison_table(cells) + runs


def study_pictures(study: Study, store: Store) -> dict[str, bytes]:
    """A study's curves, and what eq. (21) does where it asks for that."""
    if study.figure:
        cells, _ = figure_cells(study.figure, study.scale, range(1, study.seeds + 1), store)
        files = {"curves.png": draw_cells(cells, f"{study.title}; scale {study.scale}")}
    else:
        cells = study_cells(study.panels, store)
        files = {"curves.png": draw_cells(cells, study.title, aggregate=False)} if study.picture else {}
    if study.hours:
        files["time.png"] = draw_cells(cells, study.title, timed=True)
    for env in study.diagnostics:
        cell = next(cell for cell in cells if cell.env == env)
        files["diagnostics.png"] = draw_diagnostics(env, cell.groups)
    return {file: data for file, data in files.items() if data is not None}


def study_text(study: Study, store: Store) -> str:
    """What plot.py writes into a study's README.md."""
    if study.figure:
        text = figure_text(study.figure, study.scale, range(1, study.seeds + 1), store)
        return text.partition("\n\n")[2]  # without the heading
    cells = study_cells(study.panels, store)
    if "peer" in study.tables:
        return peer_table([run for cell in cells for group in cell.groups for run in group.runs])
    text = comparison_table(cells) if "p" in study.tables else ""
    if "runs" in study.tables:
        text += make_table(each_once(cells))
    return text + ("\n" * bool(text) + learning_table(cells) if "learning" in study.tables else "")


def each_once(cells: Sequence[Cell]) -> dict[str, list[Group]]:
    """The groups of each environment; one that several panels have is told once."""
    told: dict[tuple[str, ...], Group] = {}
    for group in (group for cell in cells for group in cell.groups):
        told.setdefault(tuple(run.key for run in group.runs), group)
    by_env: dict[str, list[Group]] = {}
    for group in told.values():
        by_env.setdefault(group.runs[0].env, []).append(group)
    return by_env


def recorded_files(store: Store) -> dict[str, bytes]:
    """Pictures and table of the runs that were recorded by hand, by the names of their files."""
    cells = recorded_cells(store)
    drawn = {"curves.png": draw_cells(cells, "recorded runs", aggregate=False)}
    drawn |= {f"{cell.env}-diagnostics.png": draw_diagnostics(cell.env, cell.groups) for cell in cells}
    drawn["table.md"] = make_table(each_once(cells)).encode()
    return {file: data for file, data in drawn.items() if data is not None}


# --- all that is published --------------------------------------------------------------------------------


def published_pictures(store: Store, names: Iterable[str]) -> Files:
    """The pictures of these figures and studies, of those that have runs."""
    files: Files = {}
    for name in names:
        folder = folder_of(name)
        with contextlib.suppress(NoRunError):
            if name in STUDIES:
                drawn = study_pictures(STUDIES[name], store)
            else:
                drawn = figure_pictures(name, *plan(name), store)
            files |= {folder / file: data for file, data in drawn.items()}
    return files


def plan(name: str) -> tuple[str, range]:
    """Scale and seeds at which a figure is published."""
    return FIGURES[name].scale, range(1, FIGURES[name].seeds + 1)


def folder_of(name: str, results: Path = PUBLISHED) -> Path:
    """Where a figure or study of a store is drawn."""
    return results / ("studies" if name in STUDIES else "figures") / name


def published_texts(store: Store) -> Files:
    """All tables, the verdicts, and the documents with their numbers as these have them."""
    tables: dict[str, str] = {}
    files: Files = {}
    for name, figure in FIGURES.items():
        with contextlib.suppress(NoRunError):
            tables[name] = figure_text(name, *plan(name), store, figure.verdict.words)
            files[folder_of(name) / "table.md"] = tables[name].encode()
    tables |= {name: study_text(study, store) for name, study in STUDIES.items()}
    verdicts = verdict_page(store, tables)
    tables["verdicts"] = LINK.sub(r"\1", verdicts)  # for pages of other folders
    files[ROOT / "docs" / "verdicts.md"] = verdicts.encode()
    for path in (path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))):
        if path not in files:
            files[path] = document(path, tables).encode()
    return files


def document(path: Path, tables: dict[str, str]) -> str:
    """A page as the tables have it: its cited numbers, and a study's table in its README.md."""
    text, study = path.read_text(), path.parent.name
    try:
        if path.is_relative_to(PUBLISHED) and study in STUDIES:
            text = put_between(text, tables[study])
        return fill(text, tables)
    except ValueError as error:
        raise ResultsError(f"{path}: {error}") from None


def verdict_page(store: Store, tables: dict[str, str]) -> str:
    """docs/verdicts.md: a line per figure, and what is still to run."""
    rows = [verdict_row(name, figure, store, tables) for name, figure in FIGURES.items()]
    todo = [[name, *words] for name, words in STILL_TO_RUN.items()]
    head = ["figure", "claim", "verdict", "p", "seeds", "steps"]
    return f"""# Verdicts

Written by `python benchmark/plot.py all`. Each line links its figure's table;
[findings.md](findings.md) says why, [benchmark.md](benchmark.md) how to run a figure again.
*Holds*: the difference is there, p < 0.05 (Figure 9 claims that there is none: none is above two
percent); *does not hold*: at the full budget with five seeds there is none, or the opposite one;
*open*: within the noise of few seeds or of a short run. p: Welch's, of final scores against DPO's,
uncorrected. SMAC is the embedded engine, not StarCraft II. Claims and contents were written without
the paper's text at hand: where they differ from the figures of the same number in the paper, they
are this project's.

{markdown(head, rows)}
## Still to run

{markdown(["figures", "what", "time on one core"], todo)}
`python benchmark/run.py FIGURE --scale paper --seeds 5` does what is missing of a figure.
"""


def verdict_row(name: str, figure: Figure, store: Store, tables: dict[str, str]) -> list[str]:
    """A figure's line: what was claimed, what was found, on how many seeds and steps."""
    verdict = figure.verdict
    if name not in tables:
        return [name, verdict.claim, "not yet run", "", "", ""]
    cells, _ = figure_cells(name, *plan(name), store)
    groups = [group for cell in cells for group in cell.groups]
    counts = sorted({len(group.runs) for group in groups})
    budgets = sorted({run.total_timesteps for group in groups for run in group.runs}, reverse=True)
    ps = [
        f"{told} {find_cell(tables[name], [f'{method}, final'], column)}"
        for told, method, column in verdict.ps
    ]
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    link = f"[{name.replace('fig', '')}](../benchmark/results/figures/{name}/table.md)"
    steps = "exact" if figure.exact else ", ".join(map(million, budgets))
    return [link, verdict.claim, verdict.words, ", ".join(ps), "–" if figure.exact else seeds, steps]
