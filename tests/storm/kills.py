"""SIGKILL at random times, many a run; then the run is resumed and must end as one that nobody killed."""

from __future__ import annotations

import contextlib
import random
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.scripts import running
from tests.storm.launch import Program, must, run
from tests.storm.outcome import Outcome

COMMANDS = {
    "dpo_smac": "--map=3m --backend=embedded --num-envs=4 --num-steps=16 --update-epochs=2",
    "dpo_mpe": "--task=line_control --num-agents=3 --num-envs=8 --num-steps=10 --update-epochs=2",
    "dpo_mamujoco": "--task=Hopper-3x1 --num-envs=4 --num-steps=16 --update-epochs=2",
    "dpo_matrix": "--num-states=6 --num-agents=3 --num-actions=4 --num-envs=5 --update-epochs=2",
    "ippo": "--env-id=smac/3m --env-options backend=embedded --num-envs=4 --num-steps=16 --update-epochs=2",
    "iql": "--env-id=matrix/stochastic --env-options num_states=6 num_agents=3 num_actions=4 --num-envs=5 "
    "--batch-episodes=8 --buffer-episodes=40 --target-every=20 --epsilon-steps=400",
    "iddpg": "--env-id=mamujoco/Hopper-3x1 --num-envs=4 --warmup-steps=100 --batch-size=16 "
    "--buffer-steps=400 --updates-per-step=0.25",
}
STEPS = {
    "dpo_smac": 64,
    "dpo_mpe": 80,
    "dpo_mamujoco": 64,
    "dpo_matrix": 60,
    "ippo": 64,
    "iql": 60,
    "iddpg": 64,
}
"""A small run of every script; environment steps from one checkpoint to the next."""
CHECKPOINTS = 12  # of a run; a third as many evaluations
MOST = 12  # kills of one run
WHILE_SAVING = 0.4  # share of the kills that wait until a checkpoint is being written


def command(script: str, runs: Path) -> list[str]:
    """The small run of a script."""
    every = STEPS[script]
    steps = f"--total-timesteps={CHECKPOINTS * every} --checkpoint-every={every} --eval-every={4 * every}"
    return [f"{script}.py", *shlex.split(COMMANDS[script]), *steps.split(), f"--runs-dir={runs}"]


def half_written(runs: Path) -> set[tuple[Path, int]]:
    """Checkpoints that are being written, or were when a process died, each with its time."""
    found = set()
    for path in runs.glob("*/checkpoint.tmp"):
        with contextlib.suppress(FileNotFoundError):  # it is whole by now
            found.add((path, path.stat().st_mtime_ns))
    return found


def resumable(runs: Path) -> Path | None:
    """The run directory to go on with; None where there is none yet, and the run begins anew."""
    return next((path.parent for path in runs.glob("*/checkpoint.pt")), None)


def wait_for_a_moment(program: Program, runs: Path, draw: random.Random, length: float) -> None:
    """Until the process is to be killed, a few times in the length of a run, or until it has ended."""
    if draw.random() > WHILE_SAVING:
        end = program.started + draw.uniform(0, length / 3)
        while program.running() and time.monotonic() < end:
            time.sleep(0.001)
        return
    for _ in range(draw.randint(1, 2)):  # which checkpoint
        for there in (False, True):
            while program.running() and bool(half_written(runs)) is not there:
                time.sleep(0.0001)
    time.sleep(draw.uniform(0, 0.002))


def killed(script: str, runs: Path, kills: int, length: float, draw: random.Random) -> Iterator[bool]:
    """Kills a run so many times, or until it ends before; for each whether it was writing a checkpoint."""
    for _ in range(kills):
        directory, before = resumable(runs), half_written(runs)
        words = [f"{script}.py", "--resume", directory] if directory else command(script, runs)
        program = Program(*words)
        wait_for_a_moment(program, runs, draw, length)
        program.signal(signal.SIGKILL)
        if program.wait().code != -signal.SIGKILL:
            return
        yield bool(half_written(runs) - before)


def compare(script: str, runs: Path, reference: Path) -> str:
    """Ends a run that was killed; nothing if it then is as the reference, else in what it is not."""
    directory = resumable(runs)
    words = [f"{script}.py", "--resume", directory] if directory else command(script, runs)
    ended = run(*words)
    if ended.code != 0:
        return f"resumed, exit code {ended.code}: {ended.err.strip()[-300:]}"
    done = [path.parent for path in runs.glob("*/done")]
    if len(done) != 1:
        return f"{len(done)} run directories are done"
    try:
        running.assert_same_run(reference, done[0])
    except AssertionError as error:
        return f"ended otherwise: {str(error)[:300]}"
    return ""


def storm(
    kills: int, seed: int, folder: Path, say: Callable[[str], None], scripts: tuple[str, ...] = ()
) -> Iterator[Outcome]:
    """One outcome per run, of the script that was killed least so far, until there were so many kills."""
    draw = random.Random(seed)
    references: dict[str, tuple[Path, float]] = {}
    counts = dict.fromkeys(scripts or COMMANDS, 0)
    for number in range(10 * kills):
        left = kills - sum(counts.values())
        if not left:
            return
        script = min(counts, key=lambda name: counts[name])
        if script not in references:
            start = time.monotonic()
            runs = folder / f"{script}-whole"
            must(run(*command(script, runs)), 0, command(script, runs))
            references[script] = running.only(runs), time.monotonic() - start
        reference, length = references[script]
        runs = folder / f"{script}-{number}"
        runs.mkdir(parents=True)
        found = list(killed(script, runs, min(left, draw.randint(MOST // 3, MOST)), length, draw))
        counts[script] += len(found)
        if not found:  # it was quicker than we
            continue
        wrong = compare(script, runs, reference)
        name = f"{script}, {len(found)} kills, {sum(found)} of them while a checkpoint was written"
        say(f"{name}: {wrong or 'equal'}")
        yield Outcome("kills", name, wrong, len(found), sum(found))
