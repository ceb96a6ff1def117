"""Environments that do something odd, played by every script that can: the right value, or one sentence."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio

from tests.scripts import running
from tests.standin import odd
from tests.storm.launch import Program, run, what_is_wrong
from tests.storm.outcome import Outcome

DISCRETE = {
    "ippo": "--num-envs=2 --num-steps=12 --total-timesteps=96",
    "dpo_smac": "--num-envs=2 --num-steps=12 --total-timesteps=96",
    "iql": "--num-envs=2 --batch-episodes=4 --buffer-episodes=16 --total-timesteps=96",
}
REAL = {
    "ippo": DISCRETE["ippo"],
    "dpo_mamujoco": DISCRETE["ippo"],
    "iddpg": "--num-envs=2 --warmup-steps=20 --batch-size=8 --buffer-steps=64 --total-timesteps=96",
}
TASK = {"dpo_smac": "map", "dpo_mamujoco": "task"}  # else env-id
PLACE = "(in environment 0, step"
REFUSED = {
    "OldReset": f"older API than PettingZoo's ParallelEnv: reset() returned {PLACE}",
    "OldStep": f"older API than PettingZoo's ParallelEnv: step() returned 4 values {PLACE}",
    "NoSeed": "takes no seed",
    "AllMasked": f"The action_mask of left {PLACE} 3",
    "NaNs": f"right of sees nan {PLACE} 4",
    "InfiniteReward": f"right of earns inf {PLACE} 4",
    "Unequal": f'unequal rewards left right reward="sum" {PLACE} 3',
    "Vectors": f"left of earns weigh its parts {PLACE} 1",
    "BlindEnd": f"no observation of left at its time limit {PLACE} 6",
    "Fails": "cannot be made: KeyError: 'board'",
    "Unbounded": "Action 0 of left of lies in [-inf, inf] wrap the environment",
    "HalfBounded": "Action 0 of left of lies in [0, inf] wrap the environment",
    "Huge": "Action 0 of left of lies in [-3.4e+38, 3.4e+38] wrap the environment",
}
"""Words that the one sentence must have."""
PLAYED = ["Plain", "NoInfos", "ArrayReward", "Large", "DeadStay", "ActorsDie", "LeavesLast"]
"""Six steps that pay 1 each: `done` says so, and every parameter is finite."""
NOT_BY = {("dpo_mamujoco", "ActorsDie"), ("iddpg", "ActorsDie"), ("iddpg", "LeavesLast")}
"""Scripts that know no deaths refuse what others play."""


def command(script: str, kind: str, runs: Path, *more: str) -> list[str]:
    """A small run of a script in an odd environment."""
    task = f"--{TASK.get(script, 'env-id')}=pettingzoo:tests.standin.odd"
    kwargs = json.dumps({"kind": kind})
    options = ["--env-options", f"env_kwargs={kwargs}", *(["episode_limit=8"] if script == "iql" else [])]
    words = (DISCRETE if is_discrete(kind) else REAL)[script].split()
    return [f"{script}.py", task, *words, f"--runs-dir={runs}", *more, *options]


def is_discrete(kind: str) -> bool:
    return hasattr(odd.KINDS[kind].actions, "n") and not issubclass(odd.KINDS[kind], odd.Aim)


def refused(script: str, kind: str, runs: Path) -> str:
    """In what a refusal is not the one that it should be."""
    ended = run(*command(script, kind, runs))
    words = REFUSED.get(kind, "die; use ippo.py for it")
    lacking = [word for word in words.split() if word not in ended.err]
    return what_is_wrong(ended, script) or (f"{ended.err.strip()} lacks {lacking}" if lacking else "")


def played(script: str, kind: str, runs: Path) -> str:
    """In what a run is not the one that it should be."""
    ended = run(*command(script, kind, runs))
    if ended.code != 0:
        return f"exit code {ended.code}: {ended.err.strip()[-300:]}"
    directory = running.only(runs)
    result = json.loads((directory / "done").read_text())
    if result["eval/episodic_return"] != odd.LENGTH:
        return f"a return of {result['eval/episodic_return']}, not {odd.LENGTH}"
    numbers = [x for x in running.load(directory)["agents"].values() if x.is_floating_point()]
    wild = [x for x in numbers if not x.isfinite().all() or x.abs().max() > 1e3]
    return f"{len(wild)} parameters are not finite, or diverge" if wild else ""


def stopped(script: str, kind: str, runs: Path) -> str:
    """In what SIGTERM does not end a run, in the endless first episode of an evaluation."""
    program = Program(*command(script, kind, runs))
    while program.running() and not list(runs.glob("*/args.json")):
        time.sleep(0.01)
    time.sleep(0.5)
    program.signal(signal.SIGTERM)
    ended = program.wait(30)  # a moment, but on a busy machine
    return "" if ended.code == 75 else f"SIGTERM: exit code {ended.code}: {ended.err.strip()[-300:]}"


def given_up(script: str, runs: Path) -> str:
    """In what episodes that never end are not refused at the start."""
    ended = run(*[word for word in command(script, "Endless", runs) if "episode_limit" not in word])
    said = "episode_limit=STEPS" in ended.err
    return what_is_wrong(ended, script) or ("" if said else f"does not say what to do: {ended.err.strip()}")


def same_range(script: str, runs: Path) -> str:
    """In what actions in [5, 35] are not played and learned from as their like in [-1, 1]."""
    results = []
    for kind in ("Aim", "AimElsewhere"):
        ended = run(*command(script, kind, runs / kind))
        if ended.code != 0:
            return f"{kind}, exit code {ended.code}: {ended.err.strip()[-300:]}"
        results.append(json.loads((running.only(runs / kind) / "done").read_text())["eval/episodic_return"])
    one, other = results
    return "" if abs(one - other) < 1e-3 else f"returns of {one} and {other}"


def filmed(script: str, runs: Path) -> str:
    """In what a video of odd size cannot be played."""
    ended = run(*command(script, "Plain", runs, "--capture-video"))
    if ended.code != 0:
        return f"exit code {ended.code}: {ended.err.strip()[-300:]}"
    frames = imageio.mimread(running.only(runs) / "video.mp4")
    return "" if frames and frames[0].shape == (34, 48, 3) else f"{len(frames)} frames"


def trials() -> Iterator[tuple[str, str, Callable[..., str], tuple[str, ...]]]:
    """What is tried: the script, in words what, and the check with what it wants to know."""
    for kind in odd.KINDS:
        for script in DISCRETE if is_discrete(kind) else REAL:
            if kind in REFUSED or (script, kind) in NOT_BY:
                yield script, kind, refused, (kind,)
            elif kind in PLAYED:
                yield script, kind, played, (kind,)
            elif kind == "Aim":
                yield script, "Aim, AimElsewhere", same_range, ()
            elif kind == "Endless" and script == "iql":  # which does not begin without a limit
                yield script, "Endless", given_up, ()
            elif kind == "Endless":
                yield script, "Endless, SIGTERM", stopped, (kind,)
    for script in DISCRETE:
        yield script, "Plain, --capture-video", filmed, ()


def storm(folder: Path, say: Callable[[str], None], only: str = "") -> Iterator[Outcome]:
    """One outcome per environment and script; `only` those whose name has this."""
    for number, (script, what, check, kinds) in enumerate(trials()):
        name = f"{script}, {what}"
        if only not in name:
            continue
        wrong = check(script, *kinds, folder / f"environment-{number}")
        say(f"{name}: {wrong or 'as it should'}")
        yield Outcome("environments", name, wrong)
