"""What plot.py makes of a store, as files' bytes: pictures, tables, verdicts, the numbers in documents."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmark.figures import FIGURES, SEEDS, Figure, Method, Panel, Run, Task, panel_runs, steps_of
from benchmark.lib.basins import basins_table, draw_basins
from benchmark.lib.cells import Cell, aggregate_table, comparison_table, shown
from benchmark.lib.diagnostics import draw_diagnostics
from benchmark.lib.documents import fill, put_between
from benchmark.lib.drawing import draw_cells
from benchmark.lib.exact import draw_exact, exact_table
from benchmark.lib.gather import (
    NoRunError,
    cells_beside,
    figure_cells,
    recorded_cells,
    study_cells,
)
from benchmark.lib.groups import Group
from benchmark.lib.runs import ResultsError
from benchmark.lib.speed_tables import speed_text
from benchmark.lib.store import PUBLISHED, Store
from benchmark.lib.studies import STUDIES, Study
from benchmark.lib.study_tables import battles_table, learning_table, peer_table
from benchmark.lib.tables import make_table, markdown
from benchmark.lib.verdicts import EVIDENCE, OURS, judge

ROOT = PUBLISHED.parents[1]
DOCUMENTS = ("README.md", "docs/*.md", "benchmark/results/studies/*/README.md")

CLAIMS_HEAD = ["the paper says", "paper's settings", "evidence", "best known settings", "its evidence"]
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
    note = claims_in_words(name, scale, seeds, store)
    if figure.exact:
        return {f"{name}.png": draw_exact(cells, title, note)}
    files = {f"{name}.png": draw_cells(shown(cells), title, note=note)}
    if hours:
        files[f"{name}-time.png"] = draw_cells(shown(cells), title, timed=True)
    return {file: data for file, data in files.items() if data is not None}


def claims_in_words(name: str, scale: str, seeds: Sequence[int], store: Store) -> str:
    """What the paper says of a figure, and what became of it in its settings, for below the picture."""
    told = []
    for claim, verdict, evidence, best, _ in claim_rows(name, scale, seeds, store):
        words = f"{claim}: {verdict}" + f" [{evidence}]" * bool(evidence)
        same = "the same" if best == verdict else best
        told.append(words + f"; with the best known settings: {same}" * bool(best))
    note = f"{FIGURES[name].note} " * bool(FIGURES[name].note)
    return f"{note}The paper says, and in its settings here: {'; '.join(told)}. "


def heading(name: str, figure: Figure, scale: str) -> str:
    """A figure's name and title. At scale smoke games are not those that the title names."""
    if scale == "smoke" and not figure.exact:
        return f"{name} with tiny games and settings, no result"
    return f"{name}: {figure.title}"


def figure_text(name: str, scale: str, seeds: Sequence[int], store: Store) -> str:
    """A figure's table.md: what the paper says and what became of it, what is missing, and the tables."""
    cells, gaps = figure_cells(name, scale, seeds, store)
    figure = FIGURES[name]
    text = f"# {heading(name, figure, scale)}\n\n"
    text += f"{markdown(CLAIMS_HEAD, claim_rows(name, scale, seeds, store))}\n"
    text += "[What the words and numbers mean](../../../../docs/verdicts.md)\n\n"
    text += f"{figure.note}\n\n" * bool(figure.note)
    if gaps.missing or gaps.unfinished:
        seeds_too = "" if figure.exact else f" with {len(seeds)} seed{'s' * (len(seeds) != 1)}"
        text += f"Not complete: of the runs at scale {scale}{seeds_too} {len(gaps.missing)} are missing, and "
        text += f"{len(gaps.unfinished)} are not finished:\n\n"
        text += f"{lacking(list(panel_runs(figure, scale, seeds)), gaps.missing | gaps.unfinished)}\n"
    if figure.exact:
        return text + exact_table(cells)
    drawn = shown(cells)
    there = {cell.title for cell in drawn}
    if hidden := [cell.title for cell in cells if cell.title not in there]:
        text += "Not drawn, as the first method is missing there and the others are in another panel too: "
        text += f"{', '.join(hidden)}.\n\n"
    runs = make_table({cell.title: cell.groups for cell in cells})
    return text + aggregate_table(drawn) + comparison_table(cells) + runs


def lacking(planned: Sequence[tuple[Panel, Task, Method, Run]], keys: set[str]) -> str:
    """Which runs these are: a line of Markdown for methods that lack the same seeds on the same tasks of a
    panel. A run that two panels have is told with the first of them."""
    seeds: dict[tuple[str, str, str], list[int]] = {}
    told: set[str] = set()
    for panel, task, method, run in planned:
        if run.key in keys - told:
            told.add(run.key)
            seeds.setdefault((panel.title, method.name, task.name), []).append(run.seed)
    every = len({run.seed for *_, run in planned})
    tasks: dict[tuple[str, str, str], list[str]] = {}
    for (panel_title, name, task_name), some in seeds.items():
        words = "" if len(some) == every else f", seed{'s' * (len(some) > 1)} {', '.join(map(str, some))}"
        tasks.setdefault((panel_title, name, words), []).append(task_name)
    methods: dict[str, list[str]] = {}
    for (panel_title, name, words), on in tasks.items():
        where = f"{', '.join(on)}{f' ({panel_title})' * bool(panel_title)}{words}"
        methods.setdefault(where, []).append(name)
    return "".join(f"- {' / '.join(names)} on {where}\n" for where, names in methods.items())


def claim_rows(name: str, scale: str, seeds: Sequence[int], store: Store) -> list[list[str]]:
    """A row per claim of a figure: verdict and evidence in the paper's settings, and in the best known."""
    figure = FIGURES[name]
    cells, gaps = figure_cells(name, scale, seeds, store)
    runs = list(panel_runs(figure, scale, seeds))
    count = 1 if figure.exact else max(len(seeds), SEEDS["paper"])
    rows = []
    for claim in figure.claims:
        row = [f"{claim.text} ({claim.section})", "", "", "", ""]
        for panel in figure.panels:
            if panel.name == claim.panel:
                own = [cell for cell in cells if cell.panel == panel.title]
                keys = {
                    run.key
                    for of, task, method, run in runs
                    if of == panel and claim.needs(task.name, method.role or method.name)
                }
                complete = not keys & (gaps.missing | gaps.unfinished)
                roles = {method.name: method.role for method in panel.methods if method.role}
                about = [task for task in panel.tasks if task.name in (claim.test.tasks or [task.name])]
                there = [task for task in about if task.name in {cell.task for cell in own}]
                complete = complete and there == about
                short = not figure.exact and any(
                    steps_of(task, scale) < steps_of(task, "paper") for task in there
                )
                judgement = judge(claim, own, roles, count, complete, short, len(about))
                row[1 + 2 * panel.best : 3 + 2 * panel.best] = [judgement.verdict, judgement.evidence]
        rows.append(row)
    return rows


def study_pictures(study: Study, store: Store) -> dict[str, bytes]:
    """A study's curves, and what eq. (21) does where it asks for that."""
    if "basins" in study.tables:
        return {"basins.png": draw_basins()}
    cells = study_cells(study.panels, store)
    aggregate = "IQM" in study.tables
    files = {"curves.png": draw_cells(cells, study.title, aggregate=aggregate)} if study.picture else {}
    if study.hours:
        files["time.png"] = draw_cells(cells, study.title, timed=True)
    told = next((cell for cell in cells if cell.env == study.diagnostics), None)
    if told is not None:
        files["diagnostics.png"] = draw_diagnostics(told.env, told.groups)
    return {file: data for file, data in files.items() if data is not None}


def study_text(study: Study, store: Store) -> str:
    """What plot.py writes into a study's README.md."""
    if "basins" in study.tables:
        return basins_table()
    cells = study_cells(study.panels, store)
    if "peer" in study.tables:
        return peer_table([run for cell in cells for group in cell.groups for run in group.runs])
    text = aggregate_table(cells) if "IQM" in study.tables else ""
    text += comparison_table(cells) if "p" in study.tables else ""
    if "runs" in study.tables:
        text += make_table(each_once(cells))
    if "battles" in study.tables:
        text += "\n" + battles_table(cells)
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


def files_beside(own: Store, name: str) -> dict[str, bytes]:
    """Picture and table of the runs that were recorded by hand beside those of a published figure."""
    published = Store(PUBLISHED)
    cells, others = cells_beside(own, name, *plan(name, published), published)
    text = f"# Recorded runs beside {heading(name, FIGURES[name], 'paper')}\n\n"
    text += (
        "Means and scores of a task end where its shortest curve does, so that all are of the same steps.\n"
    )
    if others:
        text += f"Not in this figure: {', '.join(sorted(others))}.\n"
    text += f"\n{aggregate_table(cells)}{comparison_table(cells)}"
    text += make_table({cell.title: cell.groups for cell in cells})
    picture = draw_cells(cells, f"recorded runs beside {heading(name, FIGURES[name], 'paper')}")
    return {"curves.png": picture, "table.md": text.encode()} if picture else {"table.md": text.encode()}


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
                drawn = figure_pictures(name, *plan(name, store), store)
            files |= {folder / file: data for file, data in drawn.items()}
    return files


def plan(name: str, store: Store) -> tuple[str, range]:
    """Scale and seeds at which a figure is published: the scale of whose steps a larger share is recorded.

    It is paper where that has all runs of small.
    """
    seeds = range(1, SEEDS["paper"] + 1)
    paper, small = (
        {run.key: run for *_, run in panel_runs(FIGURES[name], scale, seeds)} for scale in ("paper", "small")
    )

    def share(runs: dict[str, Run]) -> float:
        done = sum(store.runs[key].steps_reached for key in runs.keys() & store.runs.keys())
        return done / sum(run.steps for run in runs.values())

    as_paper = small.keys() <= paper.keys() or share(paper) >= share(small)
    return "paper" if as_paper else "small", seeds


def folder_of(name: str, results: Path = PUBLISHED) -> Path:
    """Where a figure or study of a store is drawn."""
    return results / ("studies" if name in STUDIES else "figures") / name


def published_texts(store: Store) -> Files:
    """All tables, the verdicts, and the documents with their numbers as these have them."""
    tables: dict[str, str] = {}
    files: Files = {}
    for name in FIGURES:
        with contextlib.suppress(NoRunError):
            tables[name] = figure_text(name, *plan(name, store), store)
            files[folder_of(name) / "table.md"] = tables[name].encode()
    tables |= {name: study_text(study, store) for name, study in STUDIES.items()}
    tables["discussion"] = (PUBLISHED / "studies/discussion/README.md").read_text()  # by discussion.py
    tables["tuning"] = (PUBLISHED / "tuning/README.md").read_text()  # by tune.py --report
    tables["speed"] = speed_text()
    verdicts = verdict_page(store)
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
        if path.is_relative_to(PUBLISHED) and study in (*STUDIES, "speed"):
            text = put_between(text, tables[study])
        return fill(text, tables)
    except ValueError as error:
        raise ResultsError(f"{path}: {error}") from None


def verdict_page(store: Store) -> str:
    """docs/verdicts.md: a line per claim, and what is still to run."""
    rows: list[list[str]] = []
    todo: list[list[str]] = []
    for name, figure in FIGURES.items():
        link = f"[{name.removeprefix('fig')}](../benchmark/results/figures/{name}/table.md)"
        try:
            rows += [[link, *row] for row in claim_rows(name, *plan(name, store), store)]
        except NoRunError:
            rows += [
                [name.removeprefix("fig"), f"{claim.text} ({claim.section})", "not run", "", "", ""]
                for claim in figure.claims
            ]
        todo += still_to_run(name, figure, store)
    return f"""# Verdicts

Written by `python benchmark/plot.py all`. What the paper says on its figures, in our words, with its
section, and what our runs give; each line links its figure's table. [findings.md](findings.md) says why,
[benchmark.md](benchmark.md) how to run a figure again.

*Holds*: as claimed, p < 0.05, on every task, with all seeds and steps. *Does not hold*: in runs of full
length, on some task the opposite or, except for "lowers", an advantage of less than 5 % of what training
gains, at 0.05 divided by the number of comparisons, those of tasks not run yet included (Bonferroni). "On
most": more than half of the comparisons, each at 0.05. "On some": at least one, at 0.05 divided by their
number (Bonferroni); refuted where all are the opposite.
*Open*: tasks, seeds or steps are missing, or five seeds do not tell.

Evidence, task after task: "IPPO: above (p 0.003)" is that IPPO's final scores are above those of the method
that the claim is about; Welch's p, uncorrected. The settings and the other words: [below the
table](#what-the-words-mean).

{markdown(["figure", *CLAIMS_HEAD], rows)}
## What the words mean

*Paper's settings*: its hyper-parameters, the scripts' defaults. Batches of many environments, one step for
actor and critic, an entropy bonus, bounds on beta, LayerNorm on SMAC, the robots' version and
normalisation, and more, are not the paper's ([dpo.md](dpo.md#paper-released-code-ours) says whose), nor are
Figure 11's M̂ of 0.35 and 0: which ones the paper used is not known. *Best
known settings*: of each method ([tuning.md](tuning.md)); they were chosen on these tasks and, among others,
these seeds, so that their p is optimistic. On SMAC they are 8m's; on other maps nothing better than the
paper's settings is known. SMAC is the embedded engine, not StarCraft II ([envs.md](envs.md)).

{markdown(["evidence", "means"], EVIDENCE)}
Where the paper gives no number, ours are:

{markdown(["word", "figure", "ours"], OURS)}
## Still to run

Of each figure's runs at scale paper, with its {SEEDS["paper"]} seeds (a figure is drawn and judged at the
scale, small or paper, of whose steps a larger share has been run):

{markdown(["figure", "missing", "of", "tasks"], todo)}
`python benchmark/run.py FIGURE --scale paper --results benchmark/results` does what is missing of a figure,
and records it there. What a figure's table misses at scale small, with as many seeds, is made by `--scale
small --seeds {SEEDS["paper"]}`.
"""


def still_to_run(name: str, figure: Figure, store: Store) -> list[list[str]]:
    """The row of a figure of whose runs at scale paper some are missing or not finished."""
    seeds = range(1, SEEDS["paper"] + 1)
    runs = {run.key: run for *_, run in panel_runs(figure, "paper", seeds)}
    left = [run for key, run in runs.items() if key not in store.runs or not store.runs[key].finished]
    tasks = ", ".join(dict.fromkeys(run.task for run in left))
    return [[name.removeprefix("fig"), str(len(left)), str(len(runs)), tasks]] if left else []
