"""Thin run directories into small CSV files that can be committed and plotted.

    python benchmark/collect.py runs/smac-8m-* --into benchmark/results/smac
    python benchmark/plot.py benchmark/results/smac

Each run becomes {env}__{script}__{seed}.csv, a row per evaluation: the evaluation and, of every other column,
the mean over the updates since the evaluation before; and a .json of the same name: the run's arguments,
how far it came, and its absolute metric. A run that is still going is collected as far as it is, and a later
call replaces it.
"""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

STEP, ITERATION = "global_step", "iteration"  # of a training run, and of the exact iteration on a matrix game
PLACES = ("runs_dir", "resume", "checkpoint")
PATH = re.compile(r"(^|[\s=:,\"])(/|~|file:|[A-Za-z]:[\\/])")
# What plot.py computes with, so that it must be a number wherever it stands.
NUMBERS = {"seed", "total_timesteps", "last_step", "d_target", "delta", "beta_min"}
NUMBERS |= {"eval/episodic_return", "eval/win_rate"}

Columns = dict[str, list[float]]


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run directories, each with metrics.csv and args.json"""
    into: Path
    """folder for the thinned files, e.g. benchmark/results/smac"""
    every: int = 20_000
    """environment steps: of the evaluations within so many, the first is kept"""
    label: str = ""
    """name of a variant, e.g. no-sqrt: its runs are kept and drawn apart from those without"""


class CollectError(ValueError):
    """A run that cannot be collected, or a file that cannot be read; says which, and what to do."""


class NoEvaluationError(CollectError):
    """A run that was not evaluated yet."""


def read_table(path: Path, step: str = STEP) -> Columns:
    """Columns of a CSV file of numbers by name, nan where a field is empty; column `step` never falls.

    A last line without its end is left out: the run is writing it. CollectError where the file is missing or
    is not such a table.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CollectError(
            f"{path} cannot be read ({type(error).__name__}); give a directory of a run."
        ) from None
    lines = text[: text.rfind("\n") + 1].splitlines()
    header, *rows = [line.split(",") for line in lines] or [[]]
    if step not in header or len(set(header)) < len(header):
        raise CollectError(
            f"{path} has no column {step} in its first line, or a column twice; it is not the log of a run."
        )
    columns: Columns = {name: [] for name in header}
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            expected = f"{len(header)} fields are expected, there are {len(row)}"
            raise CollectError(f"{path}, line {number}: {expected}; restore the file or leave the run out.")
        for name, field in zip(header, row, strict=True):
            try:
                columns[name].append(float(field) if field else math.nan)
            except ValueError:
                wrong = f"{field[:40]!r} in column {name} is no number"
                raise CollectError(
                    f"{path}, line {number}: {wrong}; restore the file or leave the run out."
                ) from None
    steps = columns[step]
    if any(not earlier <= later < math.inf for earlier, later in zip([0.0, *steps], steps, strict=False)):
        raise CollectError(
            f"{path}: {step} runs backwards or is missing; restore the file or leave the run out."
        )
    return columns


def thin(columns: Columns, every: int) -> Columns:
    """A row per evaluation, the first of each `every` steps; nan where nothing was logged in between.

    Of eval/* columns the value at that step; of any other the mean over the rows since the row before.
    Updates after the last evaluation wait for the next one.
    """
    evals = [name for name in columns if name.startswith("eval/")]
    others = [name for name in columns if name not in evals and name != STEP]
    thinned: Columns = {name: [] for name in (STEP, *evals, *others)}
    first, due = 0, 0.0
    for i, step in enumerate(columns[STEP]):
        if step < due or all(math.isnan(columns[name][i]) for name in evals):
            continue
        due = (step // every + 1) * every
        thinned[STEP].append(step)
        for name in evals:
            thinned[name].append(columns[name][i])
        for name in others:
            values = [x for x in columns[name][first : i + 1] if not math.isnan(x)]
            thinned[name].append(math.fsum(values) / len(values) if values else math.nan)
        first = i + 1
    return thinned


def portable(args: dict[str, Any]) -> dict[str, Any]:
    """args.json without what names a place on the machine that ran it."""
    return {
        name: value
        for name, value in args.items()
        if name not in PLACES and not PATH.search(json.dumps(value))
    }


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; CollectError where there is none, or no number where there must be one."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CollectError(f"{path} cannot be read ({type(error).__name__}); restore the file.") from None
    if not isinstance(value, dict):
        raise CollectError(f"{path} does not hold a JSON object; restore the file.")
    absolute = value.get("absolute")
    for name, number in (value | (absolute if isinstance(absolute, dict) else {})).items():
        if name in NUMBERS and not isinstance(number, int | float):
            raise CollectError(f"{path}: {name} is {number!r:.40}, which is no number; restore the file.")
    return value


def count_agents(env: str, args: dict[str, Any]) -> int | None:
    """Agents of the task, from args.json or from the map's name; None if neither tells."""
    if isinstance(args.get("num_agents"), int):
        return args["num_agents"]
    if env.startswith("smac-"):
        from envs.smac.maps import MAPS

        return MAPS[args["map"]].num_agents if str(args.get("map")) in MAPS else None
    return None


def collect(run: Path, into: Path, every: int, label: str = "", key: str = "", step: str = STEP) -> str:
    """Thins one run into `into`; returns a line that says what was collected. Raises CollectError.

    The files are named by `key`, if there is one; a run of the same key takes the place of one that was
    collected before, since its command is the same. A log by ITERATION, not by STEP, is kept as it is.
    """
    parts = run.resolve().name.rsplit("__", 3)
    if len(parts) != 4 or not all(parts) or not parts[2].isdecimal():
        raise CollectError(
            f"{run} is not named ENV__SCRIPT__SEED__TIME; give the directory that a script made."
        )
    env, script, seed, started = parts
    columns = read_table(run / "metrics.csv", step)
    rows = thin(columns, every) if step == STEP else columns
    if not rows[step]:
        raise NoEvaluationError(f"{run}/metrics.csv holds no evaluation yet; collect the run later.")
    args = read_json(run / "args.json")
    absolute = read_json(run / "done") if (run / "done").exists() else None
    last_step = int(columns[step][-1])
    named = {"env": env, "script": script, "label": label, "seed": int(seed), "started": started}
    info = named | portable(args) | named  # args.json cannot rename the run, and names come first
    info |= {"num_agents": count_agents(env, args), "last_step": last_step, "absolute": absolute}

    if key:
        info["key"] = key
    name = key or "__".join([env, f"{script}-{label}" if label else script, seed])
    target = into / f"{name}.csv"
    before = read_json(target.with_suffix(".json")) if target.exists() else {}
    if before and before.get("started") != started:
        if not key:
            raise CollectError(
                f"{run}: {target} is of another run; delete it, or tell this one apart with --label."
            )
        if before.get("absolute") and not absolute:
            raise CollectError(
                f"{run} goes on, and {target} is of a finished run of the same command; wait, or collect "
                "into another folder (--into)."
            )
    into.mkdir(parents=True, exist_ok=True)
    lines = [",".join(rows)]
    for at, *values in zip(*rows.values(), strict=True):
        lines.append(",".join([f"{at:.0f}", *("" if math.isnan(x) else f"{x:.6g}" for x in values)]))
    target.with_suffix(".json").write_text(json.dumps(info, indent=1) + "\n")
    target.write_text("\n".join(lines) + "\n")
    total = args.get("total_timesteps", last_step)
    state = "finished" if absolute else f"NOT finished: at step {last_step:,} of {total:,}"
    return f"{name}: {len(rows[step])} evaluations, {last_step:,} steps, {state}"


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if args.every < 1:
        sys.exit("collect: --every is a number of environment steps, at least 1.")
    if args.label and not re.fullmatch(r"[A-Za-z0-9.-]+", args.label):
        sys.exit("collect: --label becomes part of file names; use letters, digits, dots and dashes.")
    failed = 0
    for run in args.runs:
        try:
            print(collect(run, args.into, args.every, args.label))
        except (CollectError, OSError) as error:
            failed += 1
            print(f"collect: {error}", file=sys.stderr)
    if failed:
        sys.exit(f"collect: {failed} of {len(args.runs)} runs were not collected, for the reasons above.")


if __name__ == "__main__":
    main()
