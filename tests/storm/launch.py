"""Programs run as a user runs them, each in a process of its own, forked from one that imported PyTorch."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.scripts.running import ROOT, fork

LONGEST = 180.0  # seconds that a small run may take before it counts as hung


class Ended(NamedTuple):
    """How a process ended: its exit code, -9 after SIGKILL, and what it printed."""

    code: int | None
    out: str
    err: str


def _be(argv: list[str], out: str, err: str, path: list[str]) -> None:
    """What the forked process does: it becomes `python ARGV`."""
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(ROOT)
    program = str(ROOT / argv[0])
    sys.argv = [program, *argv[1:]]
    sys.path[:0] = [*path, str(Path(program).parent)]
    runpy.run_path(program, run_name="__main__")


class Program:
    """`python ARGV`, under way; PATH are folders with modules of the user's."""

    def __init__(self, *argv: object, path: tuple[str, ...] = ()):
        self.argv = [str(word) for word in argv]
        self.folder = tempfile.TemporaryDirectory()
        self.files = [Path(self.folder.name) / name for name in ("out", "err")]
        files = [str(file) for file in self.files]
        self.process = fork.Process(target=_be, args=(self.argv, *files, list(path)))
        self.process.start()
        self.started = time.monotonic()

    def running(self) -> bool:
        return self.process.is_alive()

    def signal(self, number: int) -> None:
        if self.process.pid and self.running():
            os.kill(self.process.pid, number)

    def wait(self, longest: float = LONGEST) -> Ended:
        """How it ends; code None where it had to be ended after this many seconds."""
        self.process.join(longest)
        hung = self.running()
        for number in (signal.SIGTERM, signal.SIGKILL):  # the first, for runs that a runner has started
            self.signal(number)
            self.process.join(60)
        out, err = (file.read_text(errors="replace") if file.exists() else "" for file in self.files)
        self.folder.cleanup()
        return Ended(None if hung else self.process.exitcode, out, err)


def run(*argv: object, path: tuple[str, ...] = (), longest: float = LONGEST) -> Ended:
    """`python ARGV` to its end."""
    return Program(*argv, path=path).wait(longest)


def must(ended: Ended, code: int, argv: object) -> None:
    """Ends the storm if a run that is to be harmed later does not even end as it should by itself."""
    if ended.code != code:
        sys.exit(f"storm: {argv} ended with exit code {ended.code}, not {code}: {ended.err.strip()[-500:]}")


def what_is_wrong(ended: Ended, name: str) -> str:
    """Nothing, if a program refused in one sentence; else in what it did not."""
    if ended.code is None:
        return "did not end"
    if "Traceback" in ended.err or "Traceback" in ended.out:
        return f"traceback: {ended.err.strip().splitlines()[-1]}"
    if ended.code < 0:
        return f"ended by signal {-ended.code}"
    if ended.code == 0:
        return "accepted"
    lines = [line for line in ended.err.splitlines() if line.strip() and not line.startswith("step ")]
    if ended.code == 1 and (len(lines) != 1 or not lines[0].startswith(f"{name}: ")):
        return f"exit code 1 with {len(lines)} lines: {' / '.join(lines)[:300]}"
    if ended.code == 2 and not lines:  # of tyro, in a frame
        return "exit code 2 without a word"
    return "" if ended.code in (1, 2) else f"exit code {ended.code}"
