"""Takes a run directory into the results store."""

from __future__ import annotations

import re
from pathlib import Path

from benchmark.lib.runs import ResultsError, read_run
from benchmark.lib.store import Store


def record(directory: Path, results: Path, label: str = "", key: str = "") -> str:
    """Records a run as far as it has come; a line that says so. ResultsError where it cannot be.

    key: names the run's command, as a figure's run; without one the key is made of the directory's name.
    """
    run = read_run(directory, label, key)
    Store(results).put(run, of_command=bool(key))
    state = "finished"
    if not run.finished:
        state = f"NOT finished: at step {run.steps_reached:,} of {run.total_timesteps:,.0f}"
    return f"{run.key}: {len(run.steps)} evaluations, {run.steps_reached:,} steps, {state}"


def is_recorded(directory: Path, key: str, store: Store) -> bool:
    """Whether a store has this very run, to its end."""
    run = store.runs.get(key)
    return run is not None and run.finished and directory.name.endswith(f"__{run.started}")


def check_label(label: str) -> None:
    """ResultsError for a label that would not be a part of a key."""
    if label and not re.fullmatch(r"[A-Za-z0-9.-]+", label):
        raise ResultsError("--label becomes part of a key; use letters, digits, dots and dashes.")
