"""Tunes DPO and IPPO with equal effort: as many trials, settings, steps and seeds for both; resumes.

    python benchmark/tune.py matrix/stochastic dpo --trials 40 --steps 300000 --jobs 2
    python benchmark/tune.py matrix/stochastic ippo --trials 40 --steps 300000 --jobs 2
    python benchmark/tune.py --report      # both, as a table, with the commands of the final runs

Tasks: matrix/stochastic, mpe/simple_spread, mamujoco/HalfCheetah-3x2, smac/2s3z; the space is in
benchmark/lib/space.py. Ctrl-C and SIGTERM let every run write a checkpoint; the same command goes on. All
trials, failed ones as such, are kept in --results. Exit status: 0 all trials ended, 1 not one of them has a
value, 75 stopped by a signal.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    from optuna.exceptions import StorageInternalError
except ImportError:
    sys.exit("tune: Optuna is not installed; pip install -r requirements.txt.")

from benchmark.lib.jobs import EXIT_REQUEUE, Local, take_lock
from benchmark.lib.letters import in_utf8
from benchmark.lib.runs import ResultsError
from benchmark.lib.space import METHODS, SEEDS_PER_TRIAL, TASKS
from benchmark.lib.store import Store, replace
from benchmark.lib.tuning import Plan, Tuning, check_same, publish, read_published
from benchmark.lib.tuning_report import best_of, report
from benchmark.run import Benchmark, Display, stops_by_signals
from envs import usable_cores


@dataclass
class Args:
    task: tyro.conf.Positional[str] = ""
    """matrix/stochastic, mpe/simple_spread, mamujoco/HalfCheetah-3x2 or smac/2s3z"""
    method: tyro.conf.Positional[str] = ""
    """dpo or ippo"""
    trials: int = 40
    """how many in all; more of them may be asked for later"""
    steps: int = 300_000
    """environment steps of each run"""
    seeds_per_trial: int = 1
    """seeds 101, 102, ...; a trial's value is their mean. Seeds 11 to 20 are kept for the final runs"""
    sampler_seed: int = 0
    """of what is sampled"""
    jobs: int = 0
    """runs at a time, which changes no trial; 0: one per usable core"""
    retries: int = 1
    """how often a run that failed is tried again"""
    runs_dir: Path = Path("runs/tuning")
    """where the study and its runs are kept"""
    results: Path = Path("runs/results/tuning")
    """where all trials are kept to be shown; benchmark/results/tuning to publish them"""
    report: bool = False
    """make no runs, but print the table of what is in --results, and write it there as README.md"""


def choose_plan(args: Args) -> Plan:
    """What the command line asks for; exits with a sentence where it asks for what is not there."""
    if args.task not in TASKS:
        sys.exit(f"tune: there is no task {args.task!r} to tune on; give one of {' '.join(TASKS)}.")
    if args.method not in METHODS:
        sys.exit(f"tune: there is no method {args.method!r} to tune; give one of {' '.join(METHODS)}.")
    ranges = {"trials": (1, 10_000), "steps": (1, 10**12), "seeds_per_trial": (1, SEEDS_PER_TRIAL)}
    ranges |= {"sampler_seed": (0, 2**15), "jobs": (0, 10_000), "retries": (0, 10_000)}
    for name, (low, high) in ranges.items():
        if not low <= (value := getattr(args, name)) <= high:
            flag = name.replace("_", "-")
            sys.exit(f"tune: --{flag} must be from {low:,} to {high:,}, got {value:,}.")
    return Plan(TASKS[args.task], args.method, args.steps, args.seeds_per_trial, args.sampler_seed)


def check_results(path: Path, plan: Plan) -> None:
    """Before anything runs: that trials can be published here, and take no other tuning's place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass
    if path.exists():
        check_same(read_published(path), plan.identity(), path, "--results")


def run_generation(tuning: Tuning, executor: Local, args: Args, display: Display, stops: list[int]) -> None:
    """Runs what the trials that wait still need, and says what they came to; ResultsError after all of that
    where some run did not end by itself."""
    results = tuning.folder / "results"
    going = tuning.sample(args.trials)
    runs = {run.key: run for trial in going for run in tuning.runs(trial)}
    benchmark = Benchmark(list(runs.values()), executor, results, args.retries, display.say)
    benchmark.work(stops, display)
    still = {*benchmark.keys("waiting"), *benchmark.keys("running")}
    left: list[ResultsError] = []
    for trial in going:
        if not still.intersection(run.key for run in tuning.runs(trial)):
            try:
                display.say(tuning.tell(trial, Store(results)))
            except ResultsError as error:
                left.append(error)
    if left:
        raise left[0]


def main() -> int:
    args = tyro.cli(Args, description=__doc__)
    if args.report:
        text = report(args.results)
        replace(args.results / "README.md", text)
        print(text, end="")
        return 0
    plan = choose_plan(args)
    published = args.results / f"{plan.name}.json"
    check_results(published, plan)
    folder = args.runs_dir.resolve() / plan.name
    lock = take_lock(folder)
    if lock is None:
        sys.exit(f"tune: another process tunes in {folder}; wait for it, or give another --runs-dir.")
    try:
        return tune(args, Tuning(plan, folder), published)
    finally:
        os.close(lock)


def tune(args: Args, tuning: Tuning, published: Path) -> int:
    """Runs and publishes generation after generation; the exit status."""
    executor, display = Local(tuning.folder, args.jobs or usable_cores()), Display()
    stops = stops_by_signals()
    display.say(f"{args.trials} trials of {args.method} on {tuning.plan.task.name} in {tuning.folder}")
    while not stops and tuning.is_open(args.trials):
        try:
            run_generation(tuning, executor, args, display, stops)
        finally:
            publish(published, tuning.as_published(args.trials, Store(tuning.folder / "results")))
    told = tuning.as_published(args.trials, Store(tuning.folder / "results"))
    publish(published, told)
    if tuning.is_open(args.trials):
        display.say("stopped; the same command goes on")
        return EXIT_REQUEUE
    best = best_of(told)
    display.say(f"best: {best['value']:.4g}, trial {best['number']}" if best else "every trial failed")
    return int(best is None)


if __name__ == "__main__":
    in_utf8()
    try:
        sys.exit(main())
    except (ResultsError, OSError, StorageInternalError) as error:
        sys.exit(f"tune: {error}")
