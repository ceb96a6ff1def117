"""Runs what the paper's figures need, on this machine or on a SLURM cluster; goes on where it was stopped.

    python benchmark/run.py fig1 fig2 --scale smoke         # seconds a run: does everything work?
    python benchmark/run.py fig1 --scale paper --seeds 5    # then benchmark/plot.py fig1 --scale paper
    python benchmark/run.py fig3 --cluster slurm --slurm partition=cpu timeout_min=240

Every run has a folder of its own in --runs-dir. Finished runs are skipped, also those that --results has
without a folder (so --results benchmark/results does what is not published yet), interrupted ones resumed
from their checkpoints, failed ones tried again and listed. Ctrl-C and SIGTERM let every run write a
checkpoint; the same command then goes on. Exit status: 0 all finished, 1 some failed or
were not recorded, 75 stopped by a signal.
A run that finished or stopped is recorded in --results, from which benchmark/plot.py draws; one that was made
by hand is recorded by

    python benchmark/run.py --record runs/mpe-… --label beta-min-0.05
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmark.figures import FIGURES, SEEDS, Run, manifest
from benchmark.lib.arguments import no_folder
from benchmark.lib.jobs import (
    EXIT_REQUEUE,
    INTERRUPTED,
    Local,
    Slurm,
    SlurmError,
    command,
    finished,
    last_words,
    run_directory,
    steps_done,
)
from benchmark.lib.letters import in_utf8
from benchmark.lib.record import check_label, is_recorded, record
from benchmark.lib.runs import NoEvaluationError, ResultsError
from benchmark.lib.store import Store
from envs import usable_cores

TICK = 0.2  # seconds between looks at the processes
LINES = 60.0  # seconds between lines of progress where output is not a terminal


@dataclass
class Args:
    figures: tyro.conf.Positional[tuple[str, ...]]
    """fig1 ... fig12, or all"""
    scale: Literal["smoke", "small", "paper"] = "small"
    """smoke: seconds a run; small: hours a figure, 3, 4 and 10 half a day, on four cores; paper: all"""
    seeds: int = 0
    """seeds 1 to this; 0: 1 at scale smoke, 3 at small, 5 at paper"""
    only: tuple[str, ...] = ()
    """only runs whose key contains one of these, e.g. simple_spread iql; --dry-run shows keys"""
    jobs: int = 0
    """runs at a time; 0: one per usable core, per GPU with --device cuda, 256 on SLURM"""
    device: Literal["cpu", "cuda"] = "cpu"
    """cuda: each run sees one GPU, and GPUs take turns"""
    retries: int = 1
    """how often a run that failed is tried again"""
    cluster: Literal["local", "slurm"] = "local"
    """this machine, or SLURM through submitit; --runs-dir must then be on a file system that all nodes see"""
    slurm: tuple[str, ...] = ()
    """parameters of submitit's SLURM executor, e.g. partition=cpu account=lab timeout_min=240 mem_gb=8"""
    runs_dir: Path = Path("runs/benchmark")
    """where runs are kept, each in a folder of its own"""
    results: Path = Path("runs/results")
    """where runs are recorded when they finish or stop; benchmark/results to publish them"""
    record: tuple[Path, ...] = ()
    """make no runs, but record these run directories"""
    label: str = ""
    """of --record: name of a variant, e.g. beta-min-0.05, which tells its runs from those without"""
    dry_run: bool = False
    """print what would be done, and do nothing"""


@dataclass
class Status:
    """Where a run stands."""

    state: Literal["waiting", "running", "finished", "failed"] = "waiting"
    failures: int = 0
    started: float = 0.0  # when the present process was started, on time.monotonic's clock
    steps_before: int = 0  # steps done by then
    note: str = ""  # of a failure: what it ended with


class Benchmark:
    """The loop: starts runs where there is room, judges those that ended, and says so."""

    def __init__(
        self,
        runs: Sequence[Run],
        executor: Local | Slurm,
        results: Path,
        retries: int,
        say: Callable[[str], None],
    ) -> None:
        self.runs = {run.key: run for run in runs}
        self.executor = executor
        self.results = results
        self.recorded = Store(results)  # as it was before this
        self.retries = retries
        self.say = say
        self.not_recorded: dict[str, str] = {}
        self.status = {key: Status() for key in self.runs}
        for key in self.runs:
            if finished(run_directory(self.place(key))):
                self.finish(key)
            elif done_elsewhere(key, self.recorded, executor):
                self.status[key].state = "finished"

    def finish(self, key: str) -> None:
        """Notes that a run is finished, and records it unless that was done."""
        self.status[key].state = "finished"
        directory = run_directory(self.place(key))
        if directory is not None and not is_recorded(directory, key, self.recorded):
            self.record(key, directory)

    def record(self, key: str, directory: Path) -> None:
        """Takes a run into the results as far as it has come; a damaged one is said, and stops nothing."""
        try:
            record(directory, self.results, self.runs[key].label, key)
        except NoEvaluationError:
            return
        except (ResultsError, OSError) as error:
            self.not_recorded[key] = f"not recorded: {error}"
            self.say(self.not_recorded[key])
        else:
            self.not_recorded.pop(key, None)

    def place(self, key: str) -> Path:
        """The folder of a run."""
        return self.executor.runs_dir / key

    def keys(self, state: str) -> list[str]:
        """Runs in a state, in the manifest's order."""
        return [key for key, status in self.status.items() if status.state == state]

    def work(self, stops: Sequence[int], display: Display) -> None:
        """Until nothing remains to be done or a signal has come; scripts then write their checkpoints."""
        try:
            while not stops and self.step():
                display.show(self)
                time.sleep(TICK)
            if stops:
                going = len(self.keys("running"))
                local = isinstance(self.executor, Local)
                what = "write their checkpoints" if local else "go on in the cluster"
                self.say(f"stopped: {going} runs {what}; the same command goes on with them")
        finally:
            self.executor.stop()
        for key, code in self.executor.ended().items():
            self.judge(key, code)

    def step(self) -> bool:
        """Judges what ended and starts what there is room for; whether anything remains to be done."""
        for key, code in self.executor.ended().items():
            self.judge(key, code)
        waiting = [self.runs[key] for key in self.keys("waiting")]
        while waiting and (room := self.executor.free()) > 0:
            chosen, waiting = waiting[:room], waiting[room:]
            self.start(chosen)
        return bool(self.keys("waiting") or self.keys("running"))

    def start(self, chosen: Sequence[Run]) -> None:
        """Starts runs. One that another runner works on goes on waiting, and may turn out to be finished; one
        for which there is no room, on a full disk, has failed, and the others go on."""
        not_started = self.executor.start(chosen)
        for run in chosen:
            status, place = self.status[run.key], self.place(run.key)
            if run.key not in not_started:
                status.state = "running"
                status.started, status.steps_before = time.monotonic(), steps_done(place)
                self.say(
                    f"started {run.key}"
                    + (f", logged to step {status.steps_before:,}" * (status.steps_before > 0))
                )
            elif error := not_started[run.key]:
                self.fail(run.key, f"not started: {error}")
            elif finished(run_directory(place)):
                self.finish(run.key)

    def judge(self, key: str, code: int) -> None:
        """What an ended process means: finished, stopped and to be resumed, or failed."""
        directory = run_directory(self.place(key))
        if finished(directory):
            self.finish(key)
            self.say(f"finished {key}")
        elif code in INTERRUPTED:
            self.status[key].state = "waiting"
            if directory is not None:
                self.record(key, directory)
        else:
            self.fail(key, f"exit code {code}: {last_words(self.place(key))}")

    def fail(self, key: str, note: str) -> None:
        """Counts a failure: the run is tried again, or stays failed."""
        status, directory = self.status[key], run_directory(self.place(key))
        status.failures += 1
        status.note = note
        again = status.failures <= self.retries
        status.state = "waiting" if again else "failed"
        if not again and directory is not None:
            self.record(key, directory)  # one that diverged is told as not finished, and not as missing
        self.say(f"failed {key}, {note}" + ("; it is tried again" if again else ""))

    def summary(self) -> str:
        """All runs in one line."""
        states = Counter(status.state for status in self.status.values())
        counts = [f"{states[state]} {state}" for state in ("finished", "running", "waiting", "failed")]
        total = sum(run.steps for run in self.runs.values())
        done = sum(self.progress(key)[0] for key in self.runs)
        return ", ".join(counts) + (f"; {100 * done / total:.0f} % of all steps" if total else "")

    def progress(self, key: str) -> tuple[int, float]:
        """Steps that a run has done, and how many a second its present process does."""
        run, status = self.runs[key], self.status[key]
        if status.state == "finished":
            return run.steps, 0.0
        steps = min(steps_done(self.place(key)), run.steps)
        return steps, max(steps - status.steps_before, 0) / max(time.monotonic() - status.started, 1e-9)

    def table(self) -> list[str]:
        """The summary and a line for each run that is going on."""
        lines = [self.summary()]
        for key in self.keys("running"):
            total, (steps, speed) = self.runs[key].steps, self.progress(key)
            share = f"{100 * steps / total:3.0f} %" if total else "     "
            left = f"{(total - steps) / speed / 60:,.0f} min" if speed else "–"
            lines.append(f"  {share}  {steps:>11,} steps  {speed:>8,.0f}/s  {left:>9} left  {key}")
        return lines


def done_elsewhere(key: str, recorded: Store, executor: Local | Slurm) -> bool:
    """Whether a run is recorded as finished, and has no folder here in which it was begun anew."""
    return key in recorded.runs and recorded.runs[key].finished and not run_directory(executor.runs_dir / key)


class Display:
    """A table that is redrawn in place on a terminal; lines elsewhere."""

    def __init__(self) -> None:
        self.live, self.height, self.due = sys.stdout.isatty(), 0, 0.0

    def write(self, text: str) -> None:
        """To standard output, if it can be: Ctrl-C ends the other end of a pipe first, and disks get full."""
        try:
            print(text, end="", flush=True)
        except OSError:  # the text stays in its buffer, and would fail again at the exit
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115

    def say(self, line: str) -> None:
        """One event. On a terminal it stays above the table."""
        self.clear()
        self.write(f"{time.strftime('%H:%M:%S')} {line}\n")

    def clear(self) -> None:
        """Takes the table away."""
        if self.height:
            self.write(f"\x1b[{self.height}A\x1b[J")
        self.height = 0

    def show(self, benchmark: Benchmark) -> None:
        """The table, once a second, or the summary, once a minute."""
        if time.monotonic() < self.due:
            return
        self.due = time.monotonic() + (1.0 if self.live else LINES)
        if not self.live:
            self.say(benchmark.summary())
            return
        self.clear()
        columns, rows = shutil.get_terminal_size()
        lines = [line[: columns - 1] for line in benchmark.table()[: rows - 2]]
        self.write("\n".join([*lines, ""]))
        self.height = len(lines)


def usable_gpus() -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES allows, or all."""
    import torch

    if not torch.cuda.is_available():
        return []
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return allowed.split(",") if allowed else [str(i) for i in range(torch.cuda.device_count())]


def choose_executor(args: Args) -> Local | Slurm:
    """Who executes the runs; exits with a sentence where it is not there."""
    runs_dir = args.runs_dir.resolve()
    if args.cluster == "slurm":
        if not shutil.which("srun"):
            sys.exit("run: --cluster slurm, but this machine has no srun; call from a node of the cluster.")
        try:
            import submitit  # noqa: F401
        except ImportError:
            sys.exit("run: --cluster slurm needs submitit; pip install submitit==1.5.4.")
        pairs: dict[str, Any] = dict(pair.split("=", 1) for pair in args.slurm)
        parameters = {name: int(x) if x.isdecimal() else x for name, x in pairs.items()}
        return Slurm(runs_dir, args.jobs or 256, args.device, parameters)
    gpus = usable_gpus() if args.device == "cuda" else []
    if args.device == "cuda" and not gpus:
        sys.exit("run: --device cuda, but PyTorch sees no GPU here; use --device cpu.")
    return Local(runs_dir, args.jobs or len(gpus) or usable_cores(), args.device, gpus)


def choose_runs(args: Args) -> list[Run]:
    """The manifest of the command line; exits with a sentence where it asks for what is not there."""
    names = list(FIGURES) if "all" in args.figures else list(args.figures)
    unknown = [name for name in names if name not in FIGURES]
    if unknown or not names:
        wrong = f"there is no figure {' '.join(unknown)}" if unknown else "no figure is named"
        sys.exit(f"run: {wrong}; give some of {' '.join(FIGURES)}, or all.")
    if args.label:
        sys.exit("run: --label names runs that --record takes in; add --record DIR, or leave --label out.")
    if not all(0 <= number <= 10_000 for number in (args.seeds, args.jobs, args.retries)):
        sys.exit("run: --seeds, --jobs and --retries are from 0 to 10,000.")
    if args.slurm and args.cluster != "slurm":
        sys.exit("run: --slurm says how jobs are submitted; add --cluster slurm.")
    if not all("=" in pair for pair in args.slurm):
        sys.exit("run: --slurm takes name=value pairs, e.g. partition=cpu timeout_min=240.")
    runs = manifest(names, args.scale, range(1, (args.seeds or SEEDS[args.scale]) + 1))
    chosen = [run for run in runs if not args.only or any(part in run.key for part in args.only)]
    if not chosen:
        sys.exit(f"run: no key contains {' or '.join(args.only)}; --dry-run without --only shows all keys.")
    return chosen


def dry_run(runs: Sequence[Run], executor: Local | Slurm, recorded: Store) -> None:
    """Prints, per run, where it stands and the command that would be executed."""
    for run in runs:
        place = executor.runs_dir / run.key
        directory = run_directory(place)
        state = (
            "finished"
            if finished(directory)
            else f"logged to step {steps_done(place):,}"
            if directory
            else "new"
        )
        if done_elsewhere(run.key, recorded, executor):
            state = f"finished, recorded in {recorded.folder}"
        print(f"# {run.key}: {state}")
        if not state.startswith("finished"):
            print(shlex.join(command(run, place, executor.device)))


def stops_by_signals() -> list[int]:
    """A list to which Ctrl-C, SIGTERM and, but for nohup's, SIGHUP add their number from now on."""
    stops: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        stops.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup's
        signal.signal(signal.SIGHUP, stop)
    return stops


def record_all(args: Args) -> int:
    """Records the run directories of --record; exit status 1 if some were not."""
    failed = 0
    for directory in args.record:
        try:
            check_label(args.label)
            print(record(directory, args.results, args.label))
        except (ResultsError, OSError) as error:
            failed += 1
            print(f"run: {error}", file=sys.stderr)
    if failed:
        sys.exit(f"run: {failed} of {len(args.record)} runs were not recorded, for the reasons above.")
    return 0


def main() -> int:
    args = tyro.cli(Args, description=__doc__)
    if args.record and args.figures:
        sys.exit(f"run: --record makes no runs; leave out {' '.join(args.figures)}, or make two calls.")
    if args.record and args.dry_run:
        sys.exit("run: --record has no --dry-run; leave one of them out.")
    if args.record:
        return record_all(args)
    runs, executor, display = choose_runs(args), choose_executor(args), Display()
    if args.dry_run:
        dry_run(runs, executor, Store(args.results))
        return 0
    if wrong := no_folder("results", args.results) or no_folder("runs-dir", executor.runs_dir):
        sys.exit(f"run: {wrong}")
    args.results.mkdir(parents=True, exist_ok=True)
    stops = stops_by_signals()
    benchmark = Benchmark(runs, executor, args.results, args.retries, display.say)
    display.say(f"{len(runs)} runs in {executor.runs_dir}, {executor.slots} at a time")
    benchmark.work(stops, display)
    display.say(benchmark.summary())
    failed = benchmark.keys("failed")
    for key in failed:
        display.write(
            f"failed: {key}, {benchmark.status[key].note}\n        {benchmark.place(key) / 'log.txt'}\n"
        )
    for key, why in benchmark.not_recorded.items():
        display.write(f"{why}\n        keep {benchmark.place(key)}; the same command records it\n")
    return EXIT_REQUEUE if stops else int(bool(failed or benchmark.not_recorded))


if __name__ == "__main__":
    in_utf8()
    try:
        sys.exit(main())
    except (SlurmError, ResultsError, OSError) as error:
        sys.exit(f"run: {error}")
