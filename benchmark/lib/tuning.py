"""A tuning: its trials in an Optuna study on disk, and the same, all of them, as they are published.

A trial follows from the study's seed, the trial's number and what the generations before it came to, from
nothing else. So a tuning that was killed ends with the same trials as one that was not, whatever --jobs is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from benchmark.figures import Method, Task, make_run
from benchmark.figures import Run as Planned
from benchmark.lib.jobs import finished, last_words, run_directory
from benchmark.lib.runs import RETURN, ResultsError, read_json, read_run
from benchmark.lib.space import (
    TUNING_SEED,
    Choice,
    Space,
    as_json,
    known_trials,
    rounded,
    space_of,
    trial_runs,
    within,
)
from benchmark.lib.statistics import final_means
from benchmark.lib.store import Store, replace

GENERATION = 4  # trials that are sampled together, before any of them is run
SAMPLED = "sampled"
PATH = re.compile(r"(?<!\w)/\S+")  # of the machine, which is not published
IDENTITY = ("task", "method", "options", "steps", "seeds", "sampler_seed", "space", "defaults")


@dataclass(frozen=True)
class Plan:
    """What a tuning is, but for how many trials it has."""

    task: Task
    method: str
    steps: int
    seeds: int
    sampler_seed: int

    @property
    def name(self) -> str:
        return f"{self.task.name}__{self.method}"

    @property
    def space(self) -> Space:
        return space_of(self.task, self.method)

    def identity(self) -> dict[str, Any]:
        """All of it as JSON, with what is not tuned; trials of another one do not belong with these."""
        script = make_run(self.task, Method(self.method, self.method, {}), TUNING_SEED, "paper")
        tuned = {"seed", "total_timesteps", *self.space}
        return {
            "task": self.task.env_id,
            "method": self.method,
            "options": self.task.options,
            "steps": self.steps,
            "seeds": [TUNING_SEED + i for i in range(self.seeds)],
            "sampler_seed": self.sampler_seed,
            "space": as_json(self.space),
            "defaults": {k: v for k, v in json.loads(script.settings).items() if k not in tuned},
        }


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space in Optuna's terms."""
    told: dict[str, BaseDistribution] = {}
    for name, of in space.items():
        if isinstance(of, Choice):
            told[name] = CategoricalDistribution(of.values)
        elif of.whole:
            told[name] = IntDistribution(int(of.low), int(of.high), log=True)
        else:
            told[name] = FloatDistribution(of.low, of.high, log=True)
    return told


class Tuning:
    """The trials of a plan, in `folder`/study.db; with the runs they are made of beside it."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self.study = optuna.create_study(
                storage=f"sqlite:///{folder / 'study.db'}",
                study_name=plan.name,
                direction="maximize",
                load_if_exists=True,
            )
        except Exception as error:  # of SQLAlchemy or Alembic, whatever is wrong with the file
            raise ResultsError(
                f"{folder / 'study.db'} cannot be read ({type(error).__name__}); restore it or delete it."
            ) from None
        held = self.study.user_attrs.get("plan")
        if held is None:
            self.study.set_user_attr("plan", plan.identity())
        else:
            check_same(held, plan.identity(), folder / "study.db", "--runs-dir")

    def trials(self) -> list[FrozenTrial]:
        """All trials so far, by number; those that wait or run have the state RUNNING."""
        return self.study.get_trials(deepcopy=False)

    def is_open(self, count: int) -> bool:
        """Whether some of `count` trials have not ended."""
        trials = self.trials()
        return len(trials) < count or any(trial.state == TrialState.RUNNING for trial in trials)

    def sample(self, count: int) -> list[FrozenTrial]:
        """The next generation, or what is left of the present one; of `count` trials in all.

        A trial is put into the study at once and with all its parameters: no kill leaves half of one.
        """
        going = [trial for trial in self.trials() if trial.state == TrialState.RUNNING]
        finished = len(self.trials()) - len(going)
        # While a generation is being sampled none of its trials has run, so `finished` ends the one before.
        end = min((finished // GENERATION + 1) * GENERATION, count)
        known = known_trials(self.plan.task, self.plan.method)
        for number in range(len(self.trials()), end):
            origin, params = known[number] if number < len(known) else (SAMPLED, self.sampled(number))
            self.study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.RUNNING,
                    params=params,
                    distributions=distributions(self.plan.space),
                    user_attrs={"origin": origin},
                )
            )
        return [trial for trial in self.trials() if trial.state == TrialState.RUNNING]

    def sampled(self, number: int) -> dict[str, Any]:
        """What TPE proposes after the generations before this trial's, drawn with a seed of its own."""
        earlier = number // GENERATION * GENERATION
        sampler = optuna.samplers.TPESampler(seed=self.plan.sampler_seed * 100_003 + number)
        past = optuna.create_study(sampler=sampler, direction="maximize")
        past.add_trials([trial for trial in self.trials() if trial.number < earlier])
        return past.ask(distributions(self.plan.space)).params

    def runs(self, trial: FrozenTrial) -> list[Planned]:
        """The runs of a trial, one per seed."""
        plan = self.plan
        return trial_runs(plan.task, plan.method, trial.number, rounded(trial.params), plan.steps, plan.seeds)

    def tell(self, trial: FrozenTrial, store: Store) -> str:
        """Ends a trial of which no run goes on, as good as its runs are; a line that says how it ended.

        ResultsError, with the trial still open, where it was not its settings that ended a run.
        """
        values, _, notes = outcome(self.runs(trial), self.folder, store)
        if notes:
            note = "; ".join(notes)
            if not all(any(told in one for told in DIVERGED) for one in notes):
                what = f"trial {trial.number} has a run that did not end by itself"
                raise ResultsError(f"{what}: {note}; mend that, and the same command tries it again.")
            self.study.tell(trial.number, state=TrialState.FAIL)
            return f"trial {trial.number} failed: {note}"
        value = math.fsum(x for x in values if x is not None) / len(values)
        self.study.tell(trial.number, value)
        return f"trial {trial.number}: {value:.4g}"

    def as_published(self, count: int, store: Store) -> dict[str, Any]:
        """All trials that have ended, with their settings, seeds, values, and how failed ones failed."""
        rows = []
        for trial in self.trials():
            if trial.state == TrialState.RUNNING:
                continue
            values, commits, notes = outcome(self.runs(trial), self.folder, store)
            rows.append(
                {
                    "number": trial.number,
                    "origin": trial.user_attrs["origin"],
                    "state": "failed" if trial.state == TrialState.FAIL else "complete",
                    "value": None if trial.value is None else six_digits(trial.value),
                    "by_seed": values,
                    "settings": rounded(trial.params),
                    "commit": ", ".join(commits),
                    "note": "; ".join(notes),
                }
            )
        made_with = f"Optuna {optuna.__version__}, TPE, {GENERATION} trials a generation"
        return self.plan.identity() | {"sampler": made_with, "planned_trials": count, "trials": rows}


DIVERGED = ("are not finite", "has diverged", "its return is no number")
"""What a run says that its settings ended."""


def six_digits(value: float) -> float:
    return float(f"{value:.6g}")


def outcome(
    runs: Sequence[Planned], folder: Path, store: Store
) -> tuple[list[float | None], list[str], list[str]]:
    """Of a trial's runs their final returns, commits, and, of each that has no return, why.

    The final return is the tables': the mean of the last tenth of the evaluations.
    """
    values: list[float | None] = []
    commits, notes = set[str](), []
    for run in runs:
        made = store.load(run.key) if run.key in store.runs else None
        final = math.nan
        if made is not None:
            commits.add(made.git_commit)
            if made.finished and RETURN in made.columns:
                (final,) = final_means(made.columns[RETURN][None])
        values.append(six_digits(final) if math.isfinite(final) else None)
        if values[-1] is None:
            place = folder / run.key
            directory = run_directory(place)
            said = PATH.sub("…", last_words(place))
            if finished(directory):
                said = "its return is no number"
                if made is None and directory and can_be_read(directory):  # the disk was full, say
                    said = "it is finished, and not recorded"
            notes.append(f"seed {run.seed}: {said}")
    return values, sorted(commits), notes


def can_be_read(directory: Path) -> bool:
    """Whether a run's directory holds what the store takes."""
    try:
        read_run(directory)
    except ResultsError:
        return False
    return True


# --- published tunings ------------------------------------------------------------------------------------


def check_same(held: dict[str, Any], asked: dict[str, Any], where: Path, remedy: str) -> None:
    """ResultsError where a file holds trials of another tuning."""
    asked = json.loads(json.dumps(asked))
    for name in IDENTITY:
        if held.get(name) != asked[name]:
            raise ResultsError(
                f"{where} holds another tuning: {name.replace('_', ' ')} {held.get(name)!s:.60} instead of "
                f"{asked[name]!s:.60}; repeat its settings, delete it, or give another {remedy}."
            )


def publish(path: Path, told: dict[str, Any]) -> None:
    """Writes a tuning, a trial a line."""
    told = dict(told)
    rows = ",\n  ".join(json.dumps(row) for row in told.pop("trials"))
    head = ",\n ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in told.items())
    replace(path, f'{{{head},\n "trials": [\n  {rows}\n ]}}\n')


def read_published(path: Path) -> dict[str, Any]:
    """A published tuning; ResultsError where the file is none."""
    told = read_json(path)
    rows = told.get("trials")
    of_trial = {"number", "origin", "state", "value", "settings"}
    if not isinstance(rows, list) or not all(isinstance(x, dict) and of_trial <= x.keys() for x in rows):
        raise ResultsError(f"{path} is no published tuning: it has no list of trials; restore the file.")
    if missing := [name for name in IDENTITY[:-1] if name not in told]:
        raise ResultsError(f"{path} is no published tuning: it lacks {missing[0]}; restore the file.")
    return told


def importances(told: dict[str, Any], space: Space) -> dict[str, float]:
    """How much each setting decides which trials are among the best (PED-ANOVA), in shares of 1."""
    study = optuna.create_study(direction="maximize")
    for row in complete(told):
        # Settings are published rounded, which may carry one over the end of its range.
        study.add_trial(
            optuna.trial.create_trial(
                value=row["value"], params=within(row["settings"], space), distributions=distributions(space)
            )
        )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def complete(told: dict[str, Any]) -> list[dict[str, Any]]:
    """The trials that have a value."""
    return [row for row in told["trials"] if row["state"] == "complete"]
