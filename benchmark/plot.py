"""Pictures and tables, from the runs that benchmark/run.py recorded.

    python benchmark/plot.py fig1                    # runs/results/figures/fig1: picture and table.md
    python benchmark/plot.py fig1 fig4 --scale paper --hours
    python benchmark/plot.py recorded                # runs taken in by run.py --record: runs/results/recorded
    python benchmark/plot.py recorded --beside fig2  # the same, and the published runs of Figure 2
    python benchmark/plot.py all                     # all that is published, from benchmark/results
    python benchmark/plot.py all --check             # exit status 1 if a file is not what the runs give

`all` also writes docs/verdicts.md, and the numbers that README.md and docs/ cite (benchmark/lib/documents.py
says how a page cites one).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmark.figures import FIGURES, SEEDS
from benchmark.lib.gather import NoRunError, figure_cells
from benchmark.lib.letters import in_utf8
from benchmark.lib.marl_eval import marl_eval
from benchmark.lib.published import (
    ROOT,
    Files,
    figure_pictures,
    figure_text,
    files_beside,
    folder_of,
    published_pictures,
    published_texts,
    recorded_files,
)
from benchmark.lib.runs import ResultsError
from benchmark.lib.store import PUBLISHED, Store
from benchmark.lib.studies import STUDIES


@dataclass
class Args:
    figures: tyro.conf.Positional[tuple[str, ...]]
    """fig1 ... fig12, recorded, or all"""
    scale: Literal["smoke", "small", "paper"] = "small"
    """the scale at which benchmark/run.py made the runs"""
    seeds: int = 0
    """seeds 1 to this; 0: as many as benchmark/run.py makes by default"""
    results: Path | None = None
    """where benchmark/run.py recorded the runs, by default runs/results; pictures and tables go into its
    folder figures. benchmark/results, which is published, is drawn by all without this option"""
    beside: str = ""
    """with recorded: in pictures and tables with the published runs of this figure"""
    hours: bool = False
    """also draw against wall-clock hours"""
    marl_eval: Path | None = None
    """write finished runs of the one figure that is named into this file, as JSON that marl-eval reads"""
    check: bool = False
    """with all: write nothing, and name the files that are not what the runs give"""


def published(check: bool) -> int:
    """Writes everything that is published, or names what differs; the exit status."""
    store = Store(PUBLISHED)
    files = published_pictures(store, [*FIGURES, *STUDIES]) | published_texts(store)
    stale = [path for path, data in files.items() if not path.exists() or path.read_bytes() != data]
    if not check:
        write({path: files[path] for path in stale})
    for path in stale:
        print(f"{'differs' if check else 'wrote'}: {path.relative_to(ROOT)}")
    print(f"{len(files)} files from {len(store.runs)} runs, {len(stale)} differ.")
    return int(check and bool(stale))


def write(files: Files) -> None:
    """Puts files where they belong."""
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def plot(name: str, args: Args, results: Path) -> None:
    """One figure of a store, or its recorded runs: the files are written, the table is printed."""
    store = Store(results)
    if name == "recorded":
        files = files_beside(store, args.beside) if args.beside else recorded_files(store)
        folder = results / "recorded" / args.beside
    else:
        seeds = range(1, (args.seeds or SEEDS[args.scale]) + 1)
        text = figure_text(name, args.scale, seeds, store)
        files = figure_pictures(name, args.scale, seeds, store, args.hours) | {"table.md": text.encode()}
        folder = folder_of(name, results)
        if args.marl_eval:
            cells, _ = figure_cells(name, args.scale, seeds, store)
            args.marl_eval.write_text(json.dumps(marl_eval(cells), indent=1) + "\n")
    write({folder / file: data for file, data in files.items()})
    print(files["table.md"].decode())


def has_curves(name: str) -> bool:
    """Whether this is a figure of learning curves."""
    return name in FIGURES and not FIGURES[name].exact


def main() -> int:
    args = tyro.cli(Args, description=__doc__)
    wrong = [name for name in args.figures if name not in (*FIGURES, "recorded", "all")]
    if not args.figures or wrong:
        what = f"there is no {' '.join(wrong)}; " if wrong else ""
        sys.exit(f"plot: {what}give fig1 ... fig12, recorded, or all.")
    if not 0 <= args.seeds <= 10_000:
        sys.exit(f"plot: --seeds {args.seeds} is not from 0 to 10,000; give how many, or 0.")
    if args.results and args.results.resolve() == PUBLISHED.resolve():
        sys.exit(
            "plot: what is published has its own scales and seeds; python benchmark/plot.py all draws it."
        )
    if args.marl_eval and (len(args.figures) > 1 or args.figures[0] in ("all", "recorded")):
        sys.exit("plot: --marl-eval writes one figure; name it.")
    if "all" in args.figures and args.results is None and (args.scale != "small" or args.seeds or args.hours):
        sys.exit(
            "plot: what is published has its own scales, seeds and pictures; give all without these flags."
        )
    if args.beside and (args.figures != ("recorded",) or not has_curves(args.beside)):
        names = " ".join(name for name in FIGURES if has_curves(name))
        sys.exit(f"plot: --beside goes with recorded, and takes one of {names}.")
    if args.hours and "recorded" in args.figures:
        sys.exit("plot: --hours is of figures; name them.")
    if args.check and (args.results or "all" not in args.figures):
        sys.exit("plot: --check is of all that is published: plot.py all --check.")
    try:
        if "all" in args.figures and args.results is None:
            return published(args.check)
        for name in FIGURES if "all" in args.figures else args.figures:
            try:
                plot(name, args, args.results or Path("runs/results"))
            except NoRunError as error:
                if "all" not in args.figures:
                    raise
                print(f"plot: {error}", file=sys.stderr)
    except (ResultsError, OSError) as error:
        sys.exit(f"plot: {error}")
    return 0


if __name__ == "__main__":
    in_utf8()
    sys.exit(main())
