"""What to do with a GPU that is there for minutes: its tests, its speeds, then as many runs as it makes.

    python benchmark/gpu.py OUT --minutes 9  # tests, speed, Figures 2 and 5
    python benchmark/gpu.py OTHER --minutes 9 --parts tests
    python benchmark/gpu.py ELSEWHERE --minutes 9 --parts runs --figures fig4 fig7 fig10 fig12 --jobs 12

and elsewhere, later, with KEY of a finished run from OUT/runs.txt:

    mkdir -p runs/benchmark && cat OUT/runs.tar.gz.* | tar xz -C runs/benchmark
    python benchmark/run.py fig2 fig5 --scale paper --seeds 5 --only KEY …  # records it

Every part writes as it goes, and what is late is stopped: OUT holds tests.txt, speed.txt, runs.txt (what
run.py said) and, in pieces, the run directories, finished ones without their checkpoint. Ctrl-C and SIGTERM
do the same earlier. A run that was begun on a GPU is resumed on one.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmark.lib.arguments import out_of_range  # noqa: E402
from benchmark.lib.letters import in_utf8  # noqa: E402

PIECE = 15 << 20
"""Bytes of a piece of what is packed."""
STOPPING = 25.0
"""Seconds that runs have to write their checkpoints."""
PACKING = 15.0
"""Seconds that are kept for packing them."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
END = gzip.compress(bytes(1024))
"""The end mark of a tar file."""
TESTS = "-v -p no:cacheprovider -m gpu tests/envs/test_wrappers.py tests/scripts/test_gpu.py"
PROBE = "import torch; torch.zeros(1, device='cuda')"
"""A program that fails where CUDA does."""
SPEEDS = ("learner smac", "e2e smac --names 2s3z 27m_vs_30m", "e2e mpe --names simple_spread")


@dataclass
class Args:
    out: tyro.conf.Positional[Path]
    """folder for what is to be kept"""
    minutes: float = 9.0
    """time for everything; beside other parts, tests take up to a third of it, and speed another"""
    parts: tuple[Literal["tests", "speed", "runs"], ...] = ("tests", "speed", "runs")
    """what is done, in this order"""
    figures: tuple[str, ...] = ("fig2", "fig5")
    """figures whose runs are made"""
    only: tuple[str, ...] = ()
    """only runs whose key contains one of these"""
    scale: Literal["smoke", "small", "paper"] = "paper"
    """scale of the runs"""
    seeds: int = 5
    """seeds of the runs"""
    jobs: int = 16
    """runs at a time; the GPU is shared by MPS where that can be started"""
    device: Literal["cpu", "cuda"] = "cuda"
    """cpu: to try this out"""


RANGES: dict[str, tuple[float, float]] = {"minutes": (0.5, 600), "seeds": (1, 1000), "jobs": (1, 1000)}


def told(command: Sequence[str], log: Path, seconds: float) -> int:
    """Runs a program of this Python with its output in a file; SIGTERM when time is up, then SIGKILL.

    What it started does not outlast it.
    """
    with open(log, "a") as file:
        print(f"$ {' '.join(command)}", file=file, flush=True)
        program = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=file, stderr=file, start_new_session=True
        )
        try:
            program.wait(max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            print("stopped at the time limit", file=file, flush=True)
        finally:
            with signals_wait():
                stop(program)
        return program.wait()


def stop(program: subprocess.Popen) -> None:
    """Ends a program and what it has started."""
    if program.poll() is None:
        program.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(STOPPING)
    # Scripts of speed.py are in its group, those of run.py in groups of their own: unless it is killed,
    # run.py waits for them.
    left = children(program.pid) if program.poll() is None else []
    for leader in (program.pid, *left):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader if leader == program.pid else os.getpgid(leader), signal.SIGKILL)


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM do nothing; they come when it ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def children(parent: int) -> list[int]:
    """Processes that a running one has started, where the system is Linux and tells."""
    found = []
    for path in Path(f"/proc/{parent}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # that thread has just ended
            found += [int(child) for child in path.read_text().split()]
    return found


def works(command: Sequence[str], text: str = "", seconds: float = 60.0) -> bool:
    """Whether a program that reads `text` ends well and in time; what it or its daemon prints is dropped."""
    quiet = subprocess.DEVNULL
    try:
        return not subprocess.run(
            command, input=text, text=True, timeout=seconds, stdout=quiet, stderr=quiet
        ).returncode
    except subprocess.TimeoutExpired:
        return False


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Within, processes share the GPU by MPS; in turns, where it cannot be started or CUDA fails with it."""
    control = shutil.which("nvidia-cuda-mps-control") or ""
    started = bool(control) and works([control, "-d"])  # not if it ran already: another will end it
    try:
        if started and not works([sys.executable, "-c", PROBE]):
            started = not works([control], "quit\n")
        yield
    finally:
        if started:
            with signals_wait():
                works([control], "quit\n", STOPPING)


def zipped(paths: Sequence[Path], runs: Path) -> bytes:
    """Files as a part of an archive: a tar file without its end mark, so that another part may follow."""
    data = io.BytesIO()
    with gzip.GzipFile(fileobj=data, mode="wb") as part:
        tar = tarfile.open(fileobj=part, mode="w")  # noqa: SIM115
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # of a script that still ends
                tar.add(path, path.relative_to(runs))
    return data.getvalue()


def pack(runs: Path, out: Path, ends: float, pieces: int = 4) -> list[str]:
    """The run directories under `runs` as out/runs.tar.gz.00, …; the keys whose checkpoint is not in it.

    Without TensorBoard's files and the checkpoints of finished runs. Those of others are added last, the
    smallest first, as long as there is room and, on the clock, time.
    """
    files = sorted(path for path in runs.rglob("*") if path.is_file() and not path.match("events.*"))
    files = [path for path in files if path.suffix != ".tmp"]
    data = bytearray(zipped([path for path in files if path.name != "checkpoint.pt"], runs))
    write_pieces(data, out)
    checkpoints = [path for path in files if path.name == "checkpoint.pt"]
    sizes = {path: path.stat().st_size for path in checkpoints if not (path.parent / "done").exists()}
    left: list[str] = []
    first = len(data) // PIECE
    for path in sorted(sizes, key=lambda path: sizes[path]):
        most = sizes[path] + sizes[path] // 100 + 2048  # with what tar and gzip add to bytes that look random
        if len(data) + most <= pieces * PIECE and time.monotonic() < ends:
            data += zipped([path], runs)
        else:
            left.append(path.relative_to(runs).parts[0])
    write_pieces(data, out, first)
    return left


def write_pieces(data: bytearray, out: Path, first: int = 0) -> None:
    """Writes an archive from this piece on; those before it are as they were."""
    whole = bytes(data) + END
    for number in range(first, -(-len(whole) // PIECE)):
        (out / f"runs.tar.gz.{number:02}").write_bytes(whole[number * PIECE : (number + 1) * PIECE])


def make_runs(args: Args, ends: float) -> None:
    """The runs of the figures, until `ends` on the clock, and their directories packed."""
    runs = args.out / "unpacked"
    command = ["benchmark/run.py", *args.figures, "--scale", args.scale, "--seeds", str(args.seeds)]
    command += ["--jobs", str(args.jobs), "--device", args.device, "--runs-dir", str(runs.resolve())]
    command += [
        "--results",
        str((runs / "results").resolve()),
        *(["--only", *args.only] if args.only else []),
    ]
    with sharing() if args.device == "cuda" else contextlib.nullcontext():
        try:
            told(command, args.out / "runs.txt", ends - time.monotonic() - STOPPING - PACKING)
        finally:
            with signals_wait():
                left = pack(runs, args.out, ends)
                shutil.rmtree(runs, ignore_errors=True)  # a killed script may still be writing its last file
                if left:
                    what = "No room or no time for the checkpoints of"
                    print(f"{what} {', '.join(left)}: these cannot be resumed.")


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if wrong := out_of_range(args, RANGES):
        sys.exit(f"gpu: {wrong}")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        if "runs" in args.parts and any(args.out.glob("runs.tar.gz.*")):
            sys.exit(f"gpu: {args.out} holds an earlier call's runs; give another folder.")
    except OSError as error:
        sys.exit(f"gpu: {args.out} cannot be made ({error.strerror}); give another folder.")
    for number in SIGNALS:  # Ctrl-C as well: a shell starts what it runs in the background deaf to it
        signal.signal(number, signal.default_int_handler)
    try:
        make_parts(args)
    except KeyboardInterrupt:
        sys.exit(f"gpu: stopped by a signal; {args.out} holds what was done by then.")
    except OSError as error:
        sys.exit(f"gpu: {error}")


def make_parts(args: Args) -> None:
    """All that is asked for, in its order."""
    begun, total = time.monotonic(), 60 * args.minutes
    share = total / 3 if len(args.parts) > 1 else total - STOPPING
    for part in args.parts:
        if part == "tests":
            told(["-m", "pytest", *TESTS.split()], args.out / "tests.txt", share)
        elif part == "speed":
            for what in SPEEDS:
                spent = time.monotonic() - begun
                command = ["benchmark/speed.py", *what.split(), "--device", args.device]
                told(command, args.out / "speed.txt", min(share, total - spent - STOPPING) / len(SPEEDS))
        else:
            make_runs(args, begun + total)
        print(f"{part}: done after {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    in_utf8()
    main()
