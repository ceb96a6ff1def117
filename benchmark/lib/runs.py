"""A run as results keep it, made from the directory that a script leaves: checked, thinned, without paths."""

from __future__ import annotations

import json
import math
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP = "step"  # environment steps; of the exact iteration on a matrix game, iterations
POINTS = 200  # evaluations that are kept of a run
RETURN, WIN_RATE, KL = "eval/episodic_return", "eval/win_rate", "dpo/kl"
KEPT = (
    *(RETURN, WIN_RATE, "J", "p", "q"),
    *("charts/SPS", "time/env", "time/act", "time/update", "losses/entropy", "losses/explained_variance"),
    *(KL, "dpo/sqrt_kl", "dpo/beta1", "dpo/beta2", "dpo/below_band", "dpo/above_band"),
)
"""Columns that are kept: those that some picture or table is made of."""
VERSIONS = ("python", "torch", "numpy", "numba", "gymnasium", "mujoco", "pettingzoo")
PLACES = ("runs_dir", "resume")
PATH = re.compile(r"(^|[\s=:,\"])(/|~|file:|[A-Za-z]:[\\/])")
# What results are computed with, so that it must be a number wherever it stands.
NUMBERS = {"seed", "total_timesteps", "d_target", "delta", "beta_min", RETURN, WIN_RATE}

Array = NDArray[np.float64]
Columns = dict[str, list[float]]


class ResultsError(ValueError):
    """Results that cannot be recorded, read or drawn; says which, and what to do."""


class NoEvaluationError(ResultsError):
    """A run that was not evaluated yet."""


@dataclass
class Run:
    """One seed: what it was, where it was made, how far it came; and its columns, (points,) float64 each."""

    key: str
    env: str
    script: str
    label: str
    seed: int
    device: str
    steps_reached: int
    total_timesteps: float
    absolute_return: float  # of the parameters that evaluated best; nan until the run is finished
    absolute_win_rate: float
    optimum: float
    git_commit: str
    machine: str
    backend: str
    started: str
    versions: dict[str, str]
    settings: dict[str, Any]
    columns: dict[str, Array] = field(default_factory=dict)
    method: str = ""  # the name of its curve, where it is drawn

    @property
    def finished(self) -> bool:
        """Whether it came to its end, where its best parameters are evaluated once more."""
        return not math.isnan(self.absolute_return)

    @property
    def steps(self) -> Array:
        """The steps at which it was evaluated."""
        return self.columns[STEP]


# --- reading a run directory ------------------------------------------------------------------------------


def read_log(path: Path, whole: bool = False) -> Columns:
    """Columns of a metrics.csv by name, nan where a field is empty; its steps never fall.

    A last line without its end is left out, as the run is writing it, unless the log is whole. ResultsError
    where the file is missing or is not such a table.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(
            f"{path} cannot be read ({type(error).__name__}); give a directory of a run."
        ) from None
    lines = (text if whole else text[: text.rfind("\n") + 1]).splitlines()
    header, *rows = [line.split(",") for line in lines] or [[]]
    steps = {"global_step", "iteration"}.intersection(header)
    if len(steps) != 1 or len(set(header)) < len(header):
        raise ResultsError(
            f"{path} has no column global_step in its first line, or a column twice; it is no log of a run."
        )
    names = [STEP if name in steps else name for name in header]
    columns: Columns = {name: [] for name in names}
    for number, row in enumerate(rows, start=2):
        for name, value in zip(names, read_fields(row, names, f"{path}, line {number}"), strict=True):
            columns[name].append(value)
    previous = 0.0
    for step in columns[STEP]:
        if not previous <= step < math.inf:
            raise ResultsError(
                f"{path}: steps run backwards or are missing; restore the file or leave the run out."
            )
        previous = step
    return columns


def read_fields(row: list[str], names: list[str], where: str) -> list[float]:
    """The numbers of a line; ResultsError, with where it is, if it has another number of fields or a word."""
    remedy = "restore the file or leave the run out"
    if len(row) != len(names):
        raise ResultsError(f"{where}: {len(names)} fields are expected, there are {len(row)}; {remedy}.")
    values = []
    for name, text in zip(names, row, strict=True):
        try:
            values.append(float(text) if text else math.nan)
        except ValueError:
            raise ResultsError(f"{where}: {text[:40]!r} in column {name} is no number; {remedy}.") from None
        if name == "charts/SPS" and values[-1] <= 0:
            raise ResultsError(f"{where}: {text[:40]} steps a second cannot be; {remedy}.")
    return values


def thin(columns: Columns, every: int) -> Columns:
    """A row per evaluation, the first of each `every` steps; nan where nothing was logged in between.

    Of eval/* columns the value at that step; of any other the mean over the rows since the row before: of
    steps per second the harmonic one, by which steps make hours. Updates after the last evaluation wait for
    the next one.
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
            mean = statistics.harmonic_mean if name == "charts/SPS" else statistics.fmean
            thinned[name].append(mean(values) if values else math.nan)
        first = i + 1
    return thinned


def thin_iterations(columns: Columns) -> Columns:
    """Of the exact iteration the first hundred rows, then some fifty a decade, and the last.

    A row at which J is less than before is kept with the one before it, so that what is published shows it.
    """
    J, last = np.array(columns["J"]), len(columns["J"]) - 1
    spaced = np.geomspace(100, max(last, 100), max(50 * (len(str(last)) - 2), 1)).astype(int)
    falls = np.flatnonzero(np.diff(J) < -1e-12)
    kept = {*range(100), *spaced.tolist(), *falls.tolist(), *(falls + 1).tolist(), last}
    kept = {row for row in kept if row <= last}
    return {name: [values[i] for i in sorted(kept)] for name, values in columns.items()}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ResultsError where there is none, or no number where there must be one."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read ({type(error).__name__}); restore the file.") from None
    if not isinstance(value, dict):
        raise ResultsError(f"{path} does not hold a JSON object; restore the file.")
    for name, number in value.items():
        if name in NUMBERS and not isinstance(number, int | float):
            raise ResultsError(f"{path}: {name} is {number!r:.40}, which is no number; restore the file.")
    return value


def portable(args: dict[str, Any]) -> dict[str, Any]:
    """args.json without what names a place on the machine that ran it."""
    return {
        name: value
        for name, value in args.items()
        if name not in PLACES and not PATH.search(json.dumps(value))
    }


def count_agents(env: str, args: dict[str, Any]) -> int | None:
    """Agents of the task, from args.json or from the map's name; None if neither tells."""
    if isinstance(args.get("num_agents"), int):
        return args["num_agents"]
    if env.startswith("smac-"):
        from envs.smac.generated import GENERATED
        from envs.smac.maps import MAPS

        battle = (MAPS | GENERATED).get(str(args.get("map")))
        return battle.num_agents if battle else None
    return None


def read_run(directory: Path, label: str = "", key: str = "") -> Run:
    """The run in a directory, thinned to about POINTS evaluations; ResultsError where it cannot be read."""
    parts = directory.resolve().name.rsplit("__", 3)
    if len(parts) != 4 or not all(parts) or not parts[2].isdecimal():
        raise ResultsError(
            f"{directory} is not named ENV__SCRIPT__SEED__TIME; give the directory that a script made."
        )
    env, script, seed, started = parts
    log = read_log(directory / "metrics.csv", whole=(directory / "done").exists())
    args = read_json(directory / "args.json")
    done = read_json(directory / "done") if (directory / "done").exists() else {}
    last = log[STEP][-1] if log[STEP] else 0.0
    budget = float(args.get("total_timesteps", last))
    rows = thin_iterations(log) if "J" in log else thin(log, max(int(budget) // POINTS, 1))
    if not rows[STEP]:
        raise NoEvaluationError(f"{directory}/metrics.csv holds no evaluation yet; record the run later.")
    settings = portable(args) | {"num_agents": count_agents(env, args)}
    told = {name: str(settings.pop(name, "")) for name in ("device", "git_commit", "machine", "backend")}
    optima = [*log.get("eval/optimum", []), done.get("optimum", math.nan)]
    return Run(
        key=key or "__".join(filter(None, [env, script, label, seed])),
        env=env,
        script=script,
        label=label,
        seed=int(seed),
        device=told["device"] or "cpu",
        steps_reached=int(last),
        total_timesteps=budget,
        absolute_return=float(done.get(RETURN, done.get("J", math.nan))),
        absolute_win_rate=float(done.get(WIN_RATE, math.nan)),
        optimum=next((x for x in optima if not math.isnan(x)), math.nan),
        git_commit=told["git_commit"] or "unknown",
        machine=told["machine"],
        backend=told["backend"] or "not recorded",
        started=started,
        versions={name: str(settings.pop(name)) for name in VERSIONS if name in settings},
        settings={name: x for name, x in settings.items() if name not in ("seed", "total_timesteps")},
        columns={name: np.array(rows[name]) for name in (STEP, *KEPT) if name in rows},
    )
