"""Scripts run as a user runs them, but in this process, and what they leave behind.

A process of its own imports PyTorch anew, three seconds each; only a run that is to be killed needs one.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import errno
import importlib
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch

from envs.wrappers import AgentsFirst

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("dpo_mamujoco", "dpo_matrix", "dpo_mpe", "dpo_smac", "iddpg", "ippo", "iql")
CLOCK = {"charts/SPS", "time/env", "time/act", "time/update"}  # the columns that a run need not repeat


class Result(NamedTuple):
    code: int
    out: str
    err: str


@contextlib.contextmanager
def undisturbed(script: Any) -> Iterator[None]:
    """Leaves this process's signal handlers, threads, arguments and locks as they were before the script."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    threads, argv = torch.get_num_threads(), sys.argv
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        torch.set_num_threads(threads)
        sys.argv = argv
        while script.LOCKS:
            os.close(script.LOCKS.pop())


def run(script: str, *argv: object, **constants: Any) -> Result:
    """What `python SCRIPT.py ARGV` exits with and prints, with some of the script's constants changed."""
    module = importlib.import_module(script)
    path = str(ROOT / f"{script}.py")
    *_, ending = ast.parse(Path(path).read_text()).body  # if __name__ == "__main__": ...
    started = compile(ast.Module([ending], []), path, "exec")
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        undisturbed(module),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.multiple(module, **{"SCRIPT": script} | constants),  # one at least, or it complains
    ):
        sys.argv = [path, *map(str, argv)]
        try:
            exec(started, vars(module) | {"__name__": "__main__"})
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=err)
    return Result(code, out.getvalue(), err.getvalue())


def finished(script: str, *argv: object, **constants: Any) -> Result:
    """`run` of a command that must succeed. A signal that stopped it was meant for all the tests."""
    result = run(script, *argv, **constants)
    if result.code == (requeue := importlib.import_module(script).EXIT_REQUEUE):
        pytest.exit(f"{script}.py was stopped by a signal", returncode=requeue)
    assert result.code == 0, result.err
    return result


def refused(script: str, *argv: object, **constants: Any) -> str:
    """`run` of a command that must end with one line that says who speaks, no traceback; the line."""
    result = run(script, *argv, **constants)
    assert result.code == 1, result
    lines = [line for line in result.err.splitlines() if line and not line.startswith("step ")]  # progress
    assert lines[-1].startswith(f"{script}: ") and lines[-1].endswith("."), result.err
    assert len(lines) == 1, result.err
    return lines[-1]


def rejected(script: str, *argv: object) -> str:
    """`run` of a command whose flags cannot be read; what is said about them, on one line."""
    result = run(script, *argv)
    assert result.code == 2 and "Traceback" not in result.err, result
    return " ".join(result.err.replace("-" * 9, "").split())  # the message is framed, and broken into lines


@contextlib.contextmanager
def on_call(owner: Any, name: str, at: int, action: Callable[[], None], applies=lambda *args: True):
    """`action` is done before the call number `at` (from 1) of owner.name for which `applies` holds."""
    original, calls = getattr(owner, name), [0]

    def wrapped(*args, **kwargs):
        calls[0] += applies(*args)
        if calls[0] == at and applies(*args):
            action()
        return original(*args, **kwargs)

    with mock.patch.object(owner, name, wrapped):
        yield


@contextlib.contextmanager
def signal_in_step(number: int, at: int) -> Iterator[None]:
    """This process gets the signal before step `at` of the environments that are trained in."""
    made: list[AgentsFirst] = []  # scripts make those first
    init = AgentsFirst.__init__

    def remember(self, *args, **kwargs):
        made.append(self)
        init(self, *args, **kwargs)

    send = lambda: os.kill(os.getpid(), number)  # noqa: E731
    training = lambda env, *_: env is made[0]  # noqa: E731
    with (
        mock.patch.object(AgentsFirst, "__init__", remember),
        on_call(AgentsFirst, "step", at, send, training),
    ):
        yield


def into_checkpoint(_, path: Path) -> bool:
    """Whether what is put in place is a checkpoint."""
    return path.name == "checkpoint.pt"


def kill_while_saving(at: int) -> contextlib.AbstractContextManager[None]:
    """In checkpoint number `at`, its file written but not yet in place."""
    return on_call(os, "replace", at, lambda: os.kill(os.getpid(), signal.SIGKILL), into_checkpoint)


def full_disk(at: int) -> contextlib.AbstractContextManager[None]:
    """In checkpoint number `at`."""

    def fail():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return on_call(os, "replace", at, fail, into_checkpoint)


fork = multiprocessing.get_context("forkserver")
fork.set_forkserver_preload(["dpo_smac", "torch._dynamo", "envs.smac.env", "envs.mamujoco.env"])


def _with_fault(fault: Callable[..., Any], at: tuple[int, ...], argv: list[str], constants: dict) -> None:
    with fault(*at):
        run(*argv, **constants)


def killed(*argv: object, fault: Callable[..., Any], at: tuple[int, ...], **constants: Any) -> None:
    """`run` in a process of its own, forked from one that has imported PyTorch, to its violent end by
    `fault(*at)`, a context manager."""
    process = fork.Process(target=_with_fault, args=(fault, at, [str(x) for x in argv], constants))
    process.start()
    process.join(timeout=200)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"{argv} did not end")
    assert process.exitcode == -signal.SIGKILL


def only(runs: Path) -> Path:
    """The one run directory in `runs`."""
    (directory,) = runs.iterdir()
    return directory


def rows(directory: Path) -> list[dict[str, str]]:
    """metrics.csv but for the clock's columns."""
    with open(directory / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]


def evaluations(directory: Path, name: str = "eval/episodic_return") -> list[float]:
    """A column of metrics.csv where it is filled."""
    return [float(row[name]) for row in rows(directory) if row[name]]


def load(path: Path) -> dict[str, Any]:
    """A file of a run, executing nothing from it; of a directory the checkpoint."""
    path = path / "checkpoint.pt" if path.is_dir() else path
    return torch.load(path, map_location="cpu", weights_only=True)


def same(a: Any, b: Any) -> bool:
    """Bit for bit, through dicts, lists and tensors."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    return a == b


def assert_same_run(one: Path, other: Path) -> None:
    """Same rows, final checkpoint (all but paths and the file's size) and absolute metric."""
    assert rows(one) == rows(other)
    a, b = load(one), load(other)
    assert a.keys() == b.keys()
    for key in a.keys() - {"args", "metrics_bytes", "metrics_sha256"}:  # the clock is in these
        assert same(a[key], b[key]), key
    assert (one / "done").read_text() == (other / "done").read_text()
