"""What published tunings came to, as a page: the best of each method, and the commands of the final runs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.figures import Method, make_run
from benchmark.lib.groups import million
from benchmark.lib.runs import ResultsError
from benchmark.lib.space import FINAL_SEEDS, METHODS, TASKS, Choice, final_command, own_space, shared_space
from benchmark.lib.tables import markdown
from benchmark.lib.tuning import GENERATION, complete, importances, read_published

ENOUGH = 12  # trials with a value, below which importances say more of the sampling than of the settings
HEAD = [
    "task",
    "method",
    "trials",
    "steps a run",
    "seeds a trial",
    "the paper's settings",
    "best known settings",
]
HEAD += ["best trial", "its settings", "what decides"]


def read_all(results: Path) -> list[dict[str, Any]]:
    """The published tunings of a folder, by task and method; ResultsError if there are none."""
    tunings = [read_published(path) for path in results.glob("*__*.json")]
    for told in tunings:
        if told["task"] not in TASKS or told["method"] not in METHODS:
            raise ResultsError(f"{results} has a tuning of {told['method']} on {told['task']}; take it away.")
    if not tunings:
        raise ResultsError(f"{results} has no tuning; make one with benchmark/tune.py matrix/stochastic dpo.")
    places = list(itertools.product(TASKS, METHODS))
    return sorted(tunings, key=lambda told: places.index((told["task"], told["method"])))


def best_of(told: dict[str, Any]) -> dict[str, Any] | None:
    """The trial with the highest value, the first of equals; None if none has one."""
    return max(complete(told), key=lambda row: row["value"], default=None)


def value_of(told: dict[str, Any], origin: str) -> str:
    """What the trial of known settings came to."""
    rows = [row for row in told["trials"] if row["origin"] == origin]
    return next((in_digits(row) for row in rows), "–")


def in_digits(row: dict[str, Any]) -> str:
    return "failed" if row["state"] == "failed" else f"{row['value']:.4g}"


def in_words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in settings.items())


def importance_in_words(told: dict[str, Any]) -> str:
    """Settings and their shares of importance, the highest three; nothing where there are too few trials."""
    if len(complete(told)) < ENOUGH:
        return f"fewer than {ENOUGH} trials"
    task = TASKS[told["task"]]
    shares = importances(told, shared_space(task) | own_space(task, told["method"]))
    highest = sorted(shares.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in highest)


def row_of(told: dict[str, Any]) -> list[str]:
    """A tuning's line of the table."""
    rows, best = told["trials"], best_of(told)
    failed = len(rows) - len(complete(told))
    trials = f"{len(rows)}" + f" of {told['planned_trials']}" * (len(rows) < told["planned_trials"])
    run = make_run(TASKS[told["task"]], Method("", told["method"]), FINAL_SEEDS[0], "paper")
    whole = json.loads(run.settings)["total_timesteps"]
    return [
        told["task"],
        told["method"],
        trials + f", {failed} failed" * bool(failed),
        f"{million(told['steps'])}" + f" of {million(whole)}" * (told["steps"] < whole),
        str(len(told["seeds"])),
        value_of(told, "the paper's"),
        value_of(told, "best known"),
        f"{in_digits(best)} (trial {best['number']})" if best else "–",
        in_words(best["settings"]) if best else "–",
        importance_in_words(told),
    ]


def unequal(tunings: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for each task whose methods were not tuned with the same effort."""
    told = []
    for task in TASKS:
        own = [x for x in tunings if x["task"] == task]
        efforts = [(len(x["trials"]), x["steps"], len(x["seeds"])) for x in own]
        if len(own) < len(METHODS):
            told += (
                [f"- {task}: only {own[0]['method']} is tuned; nothing is to be compared.\n"] if own else []
            )
        elif len(set(efforts)) > 1:
            told.append(f"- {task}: the effort was **not equal**; compare nothing yet.\n")
    return told


def report(results: Path) -> str:
    """The page: table, how to read it, and the commands of the final runs."""
    tunings = read_all(results)
    notes = "".join(unequal(tunings))
    seeds = f"{FINAL_SEEDS[0]} to {FINAL_SEEDS[-1]}"
    commands = []
    for told in tunings:
        if best := best_of(told):
            line = final_command(TASKS[told["task"]], told["method"], best["settings"])
            commands.append(f"# {told['task']}, {told['method']}\n{line}\n")
    unfinished = any(len(told["trials"]) < told["planned_trials"] for told in tunings)
    warned = "Not yet worth running: the tuning above is not finished, or not equal.\n\n"
    early = warned if notes or unfinished else ""
    space = "".join(f"| {name} | {words} |\n" for name, words in ranges())
    return f"""# Tuning with equal effort

Both methods are given as many trials, as many settings, the same budget and the same tuning seeds. Trial 0 is
the paper's settings; DPO's trial 1 the best known ones, which earlier and unequal effort found, and of
which IPPO has none; the rest is sampled by Optuna's TPE, {GENERATION} at a time. A trial's value is its
return in the last tenth of the evaluations, mean over its seeds; a trial fails where one of its runs
diverges. All trials are in this folder's JSON files.

{markdown(HEAD, map(row_of, tunings))}
The best of many noisy numbers is better than its settings are, and short runs favour what learns fast:
this table chooses settings, and does not compare methods. Seeds {seeds}, which no trial has used, do.
What decides: PED-ANOVA, shares of the importance for being among the best trials.

{notes + chr(10) if notes else ""}| setting | searched, logarithmically or by choice |
| --- | --- |
{space}
## Final runs

{early}```bash
{"".join(commands)}```
"""


def ranges() -> list[tuple[str, str]]:
    """Every setting, and what is searched of it; by family where that differs."""
    told: dict[str, dict[str, list[str]]] = {}
    for task in TASKS.values():
        spaces = [("", shared_space(task)), *((f" ({m.upper()})", own_space(task, m)) for m in METHODS)]
        for whose, space in spaces:
            for name, of in space.items():
                if isinstance(of, Choice):
                    words = ", ".join(map(str, of.values))
                else:
                    words = f"{of.low:g} to {of.high:g}"
                told.setdefault(name + whose, {}).setdefault(words, []).append(task.family)
    return [
        (name, "; ".join(f"{words} ({', '.join(families)})" for words, families in by_words.items()))
        if len(by_words) > 1 or len(next(iter(by_words.values()))) < len(TASKS)
        else (name, next(iter(by_words)))
        for name, by_words in told.items()
    ]
