"""Damaged checkpoints: each is refused in one sentence with nothing touched, or goes on to the right end."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.scripts import running
from tests.storm.kills import COMMANDS, command
from tests.storm.launch import Program, must, run, what_is_wrong
from tests.storm.outcome import Outcome


def flip_a_bit(path: Path, draw: random.Random) -> str:
    """One bit of the file."""
    whole = bytearray(path.read_bytes())
    place, bit = draw.randrange(len(whole)), draw.randrange(8)
    whole[place] ^= 1 << bit
    path.write_bytes(whole)
    return f"bit {bit} of byte {place} flipped"


def truncate(path: Path, draw: random.Random) -> str:
    """The end is missing, a few bytes or nearly all."""
    whole = path.read_bytes()
    length = draw.choice([draw.randrange(len(whole)), len(whole) - draw.randint(1, 100)])
    path.write_bytes(whole[:length])
    return f"cut after {length} of {len(whole)} bytes"


def leaves(part: Any, at: tuple = ()) -> Iterator[tuple]:
    """Where every part of a nested state is, the containers as well."""
    if at:
        yield at
    items = (
        part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list | tuple) else ()
    )
    for name, inner in items:
        yield from leaves(inner, (*at, name))


def changed(part: Any, at: tuple, change: Callable[[Any, Any], None]) -> Any:
    """A copy of a nested state in which change(container, name) was done at one place."""
    name, *rest = at
    copy = dict(part) if isinstance(part, dict) else list(part)
    if rest:
        copy[name] = changed(copy[name], tuple(rest), change)
    else:
        change(copy, name)
    return tuple(copy) if isinstance(part, tuple) else copy


def missing(container: Any, name: Any) -> None:
    del container[name]


def none(container: Any, name: Any) -> None:
    container[name] = None


def other_type(container: Any, name: Any) -> None:
    was = container[name]
    if isinstance(was, torch.Tensor):
        container[name] = was.half() if was.is_floating_point() else was.float()
    else:
        container[name] = 3 if isinstance(was, str | dict | list) else "three"


def other_shape(container: Any, name: Any) -> None:
    was = container[name]
    container[name] = was.flatten()[:-1] if isinstance(was, torch.Tensor) else {"in": was}


def spoil_a_part(path: Path, draw: random.Random) -> str:
    """The file stays well-formed: only a look at every part tells that one is not what it was."""
    state = running.load(path)
    change = draw.choice([missing, none, other_type, other_shape])
    tops = [name for name in state if name != "script"]  # each alike, or parameters were nearly all
    top = draw.choice(tops)
    at = draw.choice([*leaves(state[top], (top,))])
    torch.save(changed(state, at, change), path)
    return f"{change.__name__.replace('_', ' ')}: {'.'.join(map(str, at))}"


DAMAGES = [flip_a_bit, truncate, spoil_a_part, spoil_a_part]


def stopped(script: str, folder: Path, checkpoint: int = 3) -> Path:
    """The directory of a small run that a signal ended after some checkpoints."""
    runs = folder / f"{script}-stopped"
    program = Program(*command(script, runs))
    seen: set[int] = set()
    while program.running() and len(seen) < checkpoint:
        seen |= {path.stat().st_mtime_ns for path in runs.glob("*/checkpoint.pt")}
        time.sleep(0.001)
    program.signal(signal.SIGTERM)
    must(program.wait(), 75, f"{script}.py, after SIGTERM,")
    return running.only(runs)


def resume(script: str, directory: Path, whole: Path) -> str:
    """Nothing if a run is refused untouched, or goes on to the same end as `whole`; else what is wrong."""
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    ended = run(f"{script}.py", "--resume", directory)
    if ended.code == 0:
        try:
            running.assert_same_run(whole, directory)
        except AssertionError as error:
            return f"accepted, and ended otherwise: {str(error)[:200]}"
        return ""
    wrong = what_is_wrong(ended, script)
    if not wrong and {path.name: path.read_bytes() for path in directory.iterdir()} != before:
        wrong = "refused, but the directory has changed"
    return wrong


def storm(
    number: int, seed: int, folder: Path, say: Callable[[str], None], scripts: tuple[str, ...] = ()
) -> Iterator[Outcome]:
    """One outcome per damaged checkpoint, of the scripts in turn."""
    draw = random.Random(seed)
    made: dict[str, tuple[Path, Path]] = {}
    scripts = scripts or tuple(COMMANDS)
    for count in range(number):
        script = scripts[count % len(scripts)]
        if script not in made:
            begun = stopped(script, folder)
            whole = shutil.copytree(begun, folder / f"{script}-ended" / begun.name)
            must(run(f"{script}.py", "--resume", whole), 0, f"{script}.py --resume")
            made[script] = begun, whole
        begun, whole = made[script]
        directory = shutil.copytree(begun, folder / f"{script}-{count}" / begun.name)
        damage = DAMAGES[count % len(DAMAGES)](directory / "checkpoint.pt", draw)
        wrong = resume(script, directory, whole)
        say(f"{script}, {damage}: {wrong or 'refused, or as whole'}")
        yield Outcome("checkpoints", f"{script}, {damage}", wrong)
