"""Where a run of the benchmark lives, how it is started or resumed, and who executes it.

Every run has a place, a folder named by its key, that holds one run directory, `log.txt` and `lock`. Whoever
works on a run holds a lock on that file, and so does the script's process, which inherits it: a run whose
runner was killed stays locked until its script has ended as well, so that no run is made twice at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.figures import Run

try:
    import fcntl
except ImportError:  # locks, sessions and signals of processes are what it is made of
    sys.exit("run: benchmark/run.py needs Linux or macOS; on Windows use its Linux subsystem.")

ROOT = Path(__file__).resolve().parents[2]
EXIT_REQUEUE = 75  # what a script ends with when a signal stopped it and its checkpoint is on disk
# The latter where the machine, as it goes down, ends a process that has hardly begun.
INTERRUPTED = {EXIT_REQUEUE, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}
ONE_THREAD = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMBA", "VECLIB_MAXIMUM")
}
# Jobs in a SLURM array; clusters allow 1,001 unless configured otherwise. All figures fit into one, and the
# limit of jobs at a time is one of an array.
ARRAY_SIZE = 1000
SLURM_POLL = 15.0  # seconds between questions to the controller, which many share
# Seconds that a job waits for SLURM to end it, after something else than this program stopped its script.
PREEMPTION_WAIT = 120.0


# --- a run's place ----------------------------------------------------------------------------------------


def changed_at(path: Path) -> float:
    """When it was last changed; 0 if another process has removed it since."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def run_directory(place: Path) -> Path | None:
    """The run directory in a place: the finished one, else the newest that can be resumed, else none."""
    found = sorted((path for path in place.glob("*/") if path.is_dir()), key=changed_at)
    for wanted in (finished, lambda path: (path / "checkpoint.pt").exists()):
        for path in reversed(found):
            if wanted(path):
                return path
    return None


def finished(directory: Path | None) -> bool:
    """Whether a run directory has its done marker, and whole: the machine may have failed while writing."""
    try:
        return directory is not None and isinstance(json.loads((directory / "done").read_text()), dict)
    except (OSError, ValueError):
        return False


def command(run: Run, place: Path, device: str) -> list[str]:
    """What brings the run to its end: a new start, or its checkpoint resumed under its own arguments."""
    directory = run_directory(place)
    if directory is not None:
        return [sys.executable, str(ROOT / run.script), "--resume", str(directory)]
    settings = ["--runs-dir", str(place), "--device", device, "--torch-threads", "1"]
    return [sys.executable, str(ROOT / run.script), *run.arguments[1:], *settings]


def steps_done(place: Path) -> int:
    """Environment steps in the newest log of a place, from its last whole line; 0 before there is one."""
    newest = max(place.glob("*/metrics.csv"), key=changed_at, default=None)
    if newest is None:
        return 0
    lines: list[str] = []
    with contextlib.suppress(FileNotFoundError), open(newest, "rb") as file:
        file.seek(max(os.path.getsize(newest) - 4096, 0))
        lines = file.read().decode(errors="replace").split("\n")[:-1]
    number = lines[-1].partition(",")[0] if lines else ""
    return int(number) if number.isdecimal() else 0


class NoLocksError(OSError):
    """A file system without locks, which is no single run's failure."""


def take_lock(place: Path) -> int | None:
    """A file descriptor that locks the place until all its copies are closed; None if another has it."""
    place.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        what = f"the file system of {place} has no locks ({error.strerror}); give a --runs-dir on another"
        raise NoLocksError(what) from None
    return descriptor


def start(run: Run, place: Path, device: str, lock: int, gpu: str | None = None) -> subprocess.Popen:
    """Starts the run's script, which inherits the lock. Remains that cannot be resumed are removed."""
    argv = command(run, place, device)
    keep = run_directory(place)
    for path in place.iterdir():
        if path.is_dir() and path != keep:
            shutil.rmtree(path)
    environment = os.environ | ONE_THREAD | {"PYTHONUNBUFFERED": "1"}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    with open(place / "log.txt", "a") as log:
        print(f"$ {shlex.join(argv)}", file=log, flush=True)
        # A session of its own: Ctrl-C reaches the runner alone, which then asks each script to stop.
        return subprocess.Popen(
            argv,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock,),
            start_new_session=True,
            preexec_fn=ignore_usr2,
        )


def ignore_usr2() -> None:
    """SLURM sends the signal that is meant for submitit to every process of a job; it would end a script."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def last_words(place: Path) -> str:
    """The last line of a run's log that says something; a progress line, as after a traceback, does not."""
    log = place / "log.txt"
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    said = (line for line in reversed(lines) if line.strip() and not line.lstrip().startswith("step "))
    return next(said, "it printed nothing")


# --- this machine -----------------------------------------------------------------------------------------


@dataclass
class Local:
    """Processes on this machine, at most `slots` at a time; with GPUs a slot belongs to one of them."""

    runs_dir: Path
    slots: int
    device: str = "cpu"
    gpus: Sequence[str] = ()
    live: dict[str, tuple[subprocess.Popen, int, str | None]] = field(default_factory=dict)

    def free(self) -> int:
        """How many more runs can be started now."""
        return self.slots - len(self.live)

    def start(self, runs: Sequence[Run]) -> dict[str, OSError | None]:
        """Starts what it can of these; returns the keys of the others, with what the system refused, None
        where another runner works on the run or has finished it."""
        not_started: dict[str, OSError | None] = {}
        for run in runs:
            try:
                begun = self.start_one(run)
            except NoLocksError:
                raise
            except OSError as error:
                not_started[run.key] = error
            else:
                if not begun:
                    not_started[run.key] = None
        return not_started

    def start_one(self, run: Run) -> bool:
        """Starts a run, unless another runner works on it or has finished it; whether it did."""
        place = self.runs_dir / run.key
        lock = take_lock(place)
        if lock is None:
            return False
        used = [gpu for _, _, gpu in self.live.values()]
        gpu = min(self.gpus, key=used.count) if self.gpus else None
        try:
            if not finished(run_directory(place)):
                self.live[run.key] = start(run, place, self.device, lock, gpu), lock, gpu
        finally:
            if run.key not in self.live:
                os.close(lock)
        return run.key in self.live

    def ended(self) -> dict[str, int]:
        """Exit codes of the runs that have ended since the last call, by key."""
        codes = {key: code for key, (child, *_) in self.live.items() if (code := child.poll()) is not None}
        for key in codes:
            os.close(self.live.pop(key)[1])
        return codes

    def stop(self) -> None:
        """Asks every script to write its checkpoint and end, and waits until they have."""
        for child, *_ in self.live.values():
            child.terminate()
        for child, *_ in self.live.values():
            child.wait()


# --- SLURM ------------------------------------------------------------------------------------------------


class SlurmJob:
    """What a job executes: one run, from wherever it stands to its end."""

    def __init__(self, run: Run, place: Path, device: str) -> None:
        self.run, self.place, self.device = run, place, device
        self.child: subprocess.Popen | None = None

    def __call__(self) -> None:
        while (lock := take_lock(self.place)) is None:
            time.sleep(SLURM_POLL)  # e.g. a runner on another machine has it
        while not finished(run_directory(self.place)):
            self.child = start(self.run, self.place, self.device, lock)
            while self.child.poll() is None:
                time.sleep(
                    0.5
                )  # not wait(): it holds a lock that checkpoint, a signal's handler, would wait for
            if self.child.returncode in INTERRUPTED:
                # SLURM stopped the script and will end this job, to start it again elsewhere. Ending by
                # ourselves would make it a finished job, which is not started again.
                time.sleep(PREEMPTION_WAIT)
            elif self.child.returncode:
                sys.exit(
                    f"{self.run.key} failed with exit code {self.child.returncode}: {last_words(self.place)}"
                )
        os.close(lock)

    def checkpoint(self) -> Any:
        """Called by submitit on preemption and before the time limit: stops the script; submitit requeues."""
        import submitit

        if self.child is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                self.child.terminate()
                os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(SlurmJob(self.run, self.place, self.device))

    __submitit_checkpoint__ = checkpoint  # its name in later versions


class SlurmError(RuntimeError):
    """Jobs that were not accepted; says why."""


@dataclass
class Slurm:
    """Jobs of a SLURM cluster, in arrays of at most `slots` at a time, through submitit."""

    runs_dir: Path
    slots: int
    device: str = "cpu"
    parameters: dict[str, Any] = field(default_factory=dict)
    live: dict[str, str] = field(default_factory=dict)  # key -> job
    gone: set[str] = field(default_factory=set)
    asked: float = -1e9

    def free(self) -> int:
        """How many more runs can be submitted now: SLURM does the queueing."""
        return ARRAY_SIZE

    def start(self, runs: Sequence[Run]) -> dict[str, OSError | None]:
        """Submits these as one array, save those of which an earlier call's job is still in the queue.

        Returns keys and error of those for which submitit's files could not be written.
        """
        queued, fresh = self.queue(), []
        if queued is None:  # then nobody knows what would be submitted twice
            raise SlurmError("SLURM's controller does not answer (squeue fails); call again when it does")
        for run in runs:
            path = self.runs_dir / run.key / "slurm_job"
            job = path.read_text().strip() if path.exists() else ""
            if job in queued:
                self.live[run.key] = job
            else:
                fresh.append(run)
        if fresh:
            calls = [SlurmJob(run, self.runs_dir / run.key, self.device) for run in fresh]
            # Jobs start in the folder that they were submitted from, and find this module there.
            try:
                with contextlib.chdir(ROOT):
                    jobs = self.submit(calls)
            except OSError as error:
                return {run.key: error for run in fresh}
            for run, job in zip(fresh, jobs, strict=True):
                self.live[run.key] = job.job_id
                place = self.runs_dir / run.key
                # Without it a later call submits the run again, as a job that waits for this one.
                with contextlib.suppress(OSError):
                    place.mkdir(parents=True, exist_ok=True)
                    (place / "slurm_job").write_text(f"{job.job_id}\n")
        return {}

    def submit(self, calls: Sequence[SlurmJob]) -> list[Any]:
        """submitit's jobs, with this cluster's parameters; SlurmError if SLURM or submitit refuses them."""
        import submitit

        # A run that outlasts its time limit goes on in the next one, however often that is.
        executor = submitit.AutoExecutor(
            self.runs_dir / "slurm" / "%j", cluster="slurm", slurm_max_num_timeout=10_000
        )
        executor.update_parameters(name="dpo-benchmark", cpus_per_task=1, slurm_array_parallelism=self.slots)
        executor.update_parameters(timeout_min=1440, mem_gb=4)
        if self.device == "cuda":
            executor.update_parameters(gpus_per_node=1)
        try:
            executor.update_parameters(**{f"slurm_{name}": value for name, value in self.parameters.items()})
            return executor.submit_array(calls)
        except (ValueError, NameError, submitit.core.utils.FailedJobError) as error:
            reason = str(error).splitlines()[0]
            raise SlurmError(f"SLURM takes no such jobs; change --slurm. It says: {reason}") from None

    def queue(self) -> set[str] | None:
        """This user's jobs that wait or run; None if the controller did not answer."""
        argv = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
        answer = subprocess.run(argv, capture_output=True, text=True)
        return set(answer.stdout.split()) if answer.returncode == 0 else None

    def ended(self) -> dict[str, int]:
        """Runs whose job has left the queue, and 0 or, if they are not finished, 1.

        Only what two answers in a row do not know has ended: files may arrive later than the news.
        """
        if time.monotonic() < self.asked + SLURM_POLL or not self.live:
            return {}
        self.asked, queued = time.monotonic(), self.queue()
        if queued is None:
            return {}
        missing = {key for key, job in self.live.items() if job not in queued}
        ended, self.gone = missing & self.gone, missing
        for key in ended:
            del self.live[key]
        return {key: int(not finished(run_directory(self.runs_dir / key))) for key in ended}

    def stop(self) -> None:
        """Jobs go on in the cluster; the next call finds them."""
