"""The results store: `runs.csv`, a row per run, and `curves/ENV.csv`, a row per evaluation of a run."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.lib.runs import KEPT, STEP, Array, ResultsError, Run

try:
    import fcntl
except ImportError:  # on Windows benchmark/run.py does not run, and nobody else writes
    fcntl = None  # type: ignore[assignment]

PUBLISHED = Path(__file__).resolve().parents[1] / "results"
DIGITS = {"J": 17, "p": 17, "q": 17} | dict.fromkeys(("time/env", "time/act", "time/update"), 3)
"""Of the exact iteration's columns, where a fall by 1e-12 is to be seen, and of shares; of all others six."""
DRAWN = ("random", "noop", "greedy")  # of references.csv, which also has a script that does little better
FIELDS = tuple(f for f in dataclasses.fields(Run) if f.name not in ("columns", "method"))


class Store:
    """The runs of a folder. It is read as it was when this was made, and again before anything is put in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = self.read_rows()
        self.curves: dict[str, dict[str, dict[str, Array]]] = {}  # env -> key -> columns, as far as read

    def read_rows(self) -> dict[str, Run]:
        """Every run of runs.csv by its key, without curves; none where there is no such file."""
        path = self.folder / "runs.csv"
        if not path.exists():
            return {}
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        try:
            return {
                row["key"]: Run(**{f.name: from_field(row[f.name], str(f.type)) for f in FIELDS})
                for row in rows
            }
        except (KeyError, TypeError, ValueError) as error:
            raise ResultsError(f"{path} cannot be read ({error!r:.80}); restore the file.") from None

    def load(self, key: str) -> Run:
        """A run with its curves, a copy that may be changed; ResultsError where they cannot be read."""
        run = self.runs[key]
        if run.env not in self.curves:
            self.curves[run.env] = self.read_curves(run.env)
        if key not in self.curves[run.env]:
            raise ResultsError(f"{self.curve_path(run.env)} has no row of {key}; restore the file.")
        return dataclasses.replace(run, columns=dict(self.curves[run.env][key]))

    def curve_path(self, env: str) -> Path:
        """Where the curves of an environment are."""
        return self.folder / "curves" / f"{env}.csv"

    def read_curves(self, env: str) -> dict[str, dict[str, Array]]:
        """All curves of an environment, by key."""
        path = self.curve_path(env)
        if not path.exists():
            return {}
        with open(path, newline="") as file:
            header, *lines = list(csv.reader(file)) or [[]]
        if header[:2] != ["key", STEP] or any(len(line) != len(header) for line in lines):
            raise ResultsError(f"{path} is no table of curves, or a line is cut off; restore the file.")
        rows: dict[str, list[list[float]]] = {}
        for key, *fields in lines:
            try:
                rows.setdefault(key, []).append([float(x) if x else math.nan for x in fields])
            except ValueError as error:
                raise ResultsError(f"{path}: {error}, of {key}; restore the file.") from None
        return {key: dict(zip(header[1:], np.array(x).T, strict=True)) for key, x in rows.items()}

    # --- writing ------------------------------------------------------------------------------------------

    def put(self, run: Run, of_command: bool) -> None:
        """Adds a run, or replaces an earlier state of it.

        of_command: its key names its command, so that another run of the same key is as good. ResultsError
        where an unfinished run, or an older copy with fewer steps, would replace a finished one, or, else,
        where the key is another run's.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.locked():
            self.runs, self.curves = self.read_rows(), {}
            before = self.runs.get(run.key)
            if before is not None and before.started != run.started:
                if not of_command:
                    raise ResultsError(
                        f"{run.key} is another run's; delete its rows, or tell this one apart with --label."
                    )
                if before.finished and not run.finished:
                    raise ResultsError(f"{run.key} goes on, and one of the same command is finished; wait.")
            elif before is not None and before.finished and run.steps_reached < before.steps_reached:
                raise ResultsError(f"{run.key} is recorded as it finished; this is an older copy of it.")
            self.runs[run.key] = run
            self.write(run.env)

    def write(self, env: str) -> None:
        """The curves of this environment, of each run its own where it has some, else those that the file
        has; and runs.csv last: a run is recorded once it is there, whatever fails before."""
        self.runs = dict(sorted(self.runs.items()))
        curves = self.read_curves(env)
        curves |= {run.key: run.columns for run in self.runs.values() if run.env == env and run.columns}
        curves = {key: curves[key] for key in self.runs if key in curves}
        names = [name for name in KEPT if any(logged(x.get(name)) for x in curves.values())]
        self.curve_path(env).parent.mkdir(exist_ok=True)
        replace(self.curve_path(env), as_csv(["key", STEP, *names], curve_rows(curves, names)))
        names = [f.name for f in FIELDS]
        rows = ([as_field(getattr(run, name)) for name in names] for run in self.runs.values())
        replace(self.folder / "runs.csv", as_csv(names, rows))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Waits until no other process writes here."""
        if fcntl is None:
            yield  # type: ignore[unreachable]
            return
        # A file: on NFS a lock on a folder is this machine's alone.
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def logged(values: Array | None) -> bool:
    """Whether a column has a number."""
    return values is not None and not np.isnan(values).all()


def curve_rows(curves: dict[str, dict[str, Array]], names: list[str]) -> Iterator[list[str]]:
    """The lines of a file of curves."""
    for key, columns in curves.items():
        absent = np.full_like(columns[STEP], np.nan)
        for step, *values in zip(columns[STEP], *(columns.get(name, absent) for name in names), strict=True):
            yield [key, f"{step:.0f}", *map(number, values, (DIGITS.get(name, 6) for name in names))]


def number(value: float, digits: int) -> str:
    """A number to so many digits; nothing for nan."""
    return "" if math.isnan(value) else f"{value:.{digits}g}"


def as_field(value: Any) -> str:
    """A field of runs.csv: numbers to ten digits, nothing for nan, JSON for what has parts."""
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        return number(value, 10)
    return str(value)


def from_field(text: str, kind: str) -> Any:
    """What a field of runs.csv says; kind: as Run annotates it."""
    if kind.startswith("dict"):
        return json.loads(text)
    if kind == "float":
        return float(text or "nan")
    return int(text) if kind == "int" else text


def as_csv(header: list[str], rows: Iterable[list[str]]) -> str:
    """The text of a CSV file."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()


def replace(path: Path, text: str) -> None:
    """Writes a file so that it is there whole, the old or the new one, whenever somebody looks."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(new, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a power loss may leave the new name with nothing in it
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file, none where there is no file; ResultsError where it has not these columns."""
    if not path.exists():
        return []
    try:
        with open(path, newline="") as file:
            header, *lines = list(csv.reader(file)) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise ResultsError(f"{path} cannot be read ({error}); restore it, or name another file.") from None
    if header != [*columns] or any(len(line) != len(header) for line in lines):
        raise ResultsError(f"{path} is no table of {', '.join(columns)}; restore it, or name another file.")
    return [dict(zip(header, line, strict=True)) for line in lines]


def merge_table(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Writes rows into a CSV file, each in the place of the one with the same names; all others stay."""
    columns = [*rows[0]]
    both = [*read_table(path, columns), *rows]
    merged = {tuple(row[name] for name in names): row for row in both}
    replace(path, as_csv(columns, ([str(row[name]) for name in columns] for row in merged.values())))


def read_references(env: str) -> dict[str, float]:
    """Returns to compare with in an environment, by name: random play, doing nothing, a greedy script."""
    path = PUBLISHED / "references.csv"
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return {
            row["name"]: float(row["return"]) for row in rows if row["env"] == env and row["name"] in DRAWN
        }
    except (KeyError, TypeError, ValueError):
        raise ResultsError(f"{path} must have columns env, name and return, a number; restore it.") from None
