"""Run directories as scripts leave them, with curves that are known by heart."""

import json
import math

from benchmark.figures import FIGURES, panel_runs
from benchmark.lib.groups import Group
from benchmark.lib.record import record
from benchmark.lib.runs import read_run
from benchmark.lib.store import Store

EVERY, UPDATES, EVALS = 20_480, 5, 20  # steps and updates between evaluations; evaluations after the first
ENV, SEEDS = "smac-8m-embedded", (1, 2, 3)
KL = ("dpo/kl", "dpo/beta1", "dpo/beta2", "dpo/below_band", "dpo/above_band")


def evaluated(seed, k):
    """Return and win rate of evaluation k."""
    return k + 0.5 * seed, min(1.0, (k + seed + 0.3) / 20)


def updated(seed, i):
    """Steps/s, the time's split and the columns of KL of update i."""
    shares = float(i % (seed + 1) == 0), float(i % (seed + 1) == 1)
    return 1000 * seed + i, 0.1, 0.2, 0.7, 0.01 * (1 + i % 4), 0.02 + 0.001 * seed, 0.03, *shares


def write_run(folder, env=ENV, script="dpo_smac", seed=1, start=100, evals=EVALS, done=True, kl=True, **args):
    """A run directory as the scripts write it: evaluation 0, then one after every five updates."""
    names = ["global_step", "eval/episodic_return", "eval/win_rate"]
    names += ["charts/SPS", "time/env", "time/act", "time/update", *(KL if kl else ())]
    lines, blank = [",".join(names)], len(names) - 3
    for k in range(evals + 1):
        for i in range((k - 1) * UPDATES, k * UPDATES) if k else ():
            values = updated(seed, i)[:blank]
            lines.append(f"{(i + 1) * EVERY // UPDATES},,," + ",".join(f"{x:.6g}" for x in values))
        lines.append(f"{k * EVERY}," + ",".join(f"{x:.6g}" for x in evaluated(seed, k)) + "," * blank)
    run = folder / f"{env}__{script}__{seed}__{start}"
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    saved = {"seed": seed, "map": "8m", "backend": "embedded", "total_timesteps": EVALS * EVERY}
    saved |= {"d_target": 0.02, "delta": 1.5, "beta_min": 0.05, "git_commit": "c0ffee" * 6, "runs_dir": "/x"}
    (run / "args.json").write_text(json.dumps(saved | args))
    if done:
        absolute = {"eval/episodic_return": 19 + 0.5 * seed, "eval/win_rate": 0.9 + 0.01 * seed}
        (run / "done").write_text(json.dumps(absolute))
    return run


def recorded(results, *runs):
    """The store with these runs."""
    for run in runs:
        record(run, results)
    return Store(results)


def groups_of(store):
    """Environment -> groups of the recorded runs, by the script's name."""
    found = {}
    for key in store.runs:
        run = store.load(key)
        run.method = run.script
        found.setdefault(run.env, {}).setdefault(run.method, Group([])).runs.append(run)
    return {env: list(groups.values()) for env, groups in found.items()}


# --- runs of figures --------------------------------------------------------------------------------------

FIGURE_EVERY, SPS, OPTIMUM = 15_000, 2_000.0, 5.0
ENVS = {"mpe": "{}-5", "smac": "{}-embedded", "matrix": "{}-100x6x5", "mamujoco": "{}"}


def level(method, task, seed):
    """Where a run's curve ends: apart for methods, tasks and seeds."""
    return -3.0 - 0.3 * len(method) - 0.1 * len(task) + 0.1 * seed


def at(method, task, seed, k):
    """Evaluation k of a run, which rises to `level`."""
    return level(method, task, seed) * (1 + 2 * math.exp(-k / 4))


def won(method, task, seed, k):
    """Its win rate there, on maps."""
    return 1 + at(method, task, seed, k) / 200


def logged(task, method, run, k):
    """The columns of evaluation k, and of the updates before it."""
    told = {"eval/episodic_return": at(method, task.name, run.seed, k)}
    if task.family == "smac":
        told["eval/win_rate"] = won(method, task.name, run.seed, k)
    if task.family == "matrix":
        told["eval/optimum"] = OPTIMUM
    updates = {"charts/SPS": SPS, "time/env": 0.1, "time/act": 0.2, "time/update": 0.7}
    if run.script.startswith("dpo_"):
        updates["dpo/kl"] = json.loads(run.settings)["d_target"] * (0.5 + 0.1 * run.seed)
    return told, updates


def make_runs(folder, name, seeds=SEEDS, scale="small", done=True, device="cpu"):
    """Run directories of a figure as benchmark/run.py leaves them."""
    for _, task, method, run in panel_runs(FIGURES[name], scale, seeds):
        env = ENVS[task.family].format(task.name)
        place = folder / run.key / f"{env}__{run.script.removesuffix('.py')}__{run.seed}__100"
        if place.exists():
            continue
        place.mkdir(parents=True)
        names = ["global_step", *(column for part in logged(task, method.name, run, 0) for column in part)]
        lines = [",".join(names)]
        for k in range(EVALS + 1):
            evaluation, updates = logged(task, method.name, run, k)
            for row in (updates, evaluation) if k else (evaluation,):
                row = {"global_step": k * FIGURE_EVERY} | row
                lines.append(",".join(f"{row[column]:.6g}" if column in row else "" for column in names))
        (place / "metrics.csv").write_text("\n".join(lines) + "\n")
        args = json.loads(run.settings) | {"backend": "embedded", "device": device, "git_commit": "c0ffee7"}
        (place / "args.json").write_text(json.dumps(args))
        if done:
            end = level(method.name, task.name, run.seed)
            (place / "done").write_text(json.dumps({"eval/episodic_return": end}))


def record_runs(folder, results):
    """Takes all of a folder's runs into a store, at once; one at a time every file is written for each."""
    results.mkdir(parents=True, exist_ok=True)
    store = Store(results)
    for place in sorted(folder.glob("*")):
        (directory,) = place.glob("*__*")
        label = place.name.split("__")[2] if place.name.count("__") == 4 else ""
        store.runs[place.name] = read_run(directory, label, place.name)
    for env in {run.env for run in store.runs.values()}:
        store.write(env)
    return Store(results)


def made(folder, name, **options):
    """The store with all runs of a figure."""
    make_runs(folder / "runs", name, **options)
    return record_runs(folder / "runs", folder / "results")


def final(method, task, seed):
    """The mean of the last tenth of a run's evaluations, as the table defines it."""
    return sum(at(method, task, seed, k) for k in range(EVALS - 2, EVALS + 1)) / 3


def whole(method, task, seed):
    """The mean of a run's evaluations but the first, of untrained policies."""
    return sum(at(method, task, seed, k) for k in range(1, EVALS + 1)) / EVALS
