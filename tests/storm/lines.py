"""Bad command lines, drawn at random, of every script and of every program of the benchmark."""

from __future__ import annotations

import importlib
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.scripts.running import SCRIPTS
from tests.storm.launch import run, what_is_wrong
from tests.storm.outcome import Outcome

Words = list[str]

TASK = {"dpo_smac": "map", "dpo_mamujoco": "task", "dpo_mpe": "task", "dpo_matrix": "game"}  # else env-id
TASKS = [
    "",
    "chess",
    "smac/",
    "smac/9m",
    "mpe/simple_spred",
    "mamujoco/Hopper-4x9",
    "matrix/7",
    "/",
    "../runs",
]
TASKS += [
    "pettingzoo:",
    "pettingzoo:no.such_module",
    "pettingzoo:json",
    "pettingzoo:..envs",
    "gym/CartPole-v1",
]
OPTIONS = ["num_agents", "=3", "colour=red", "num_agents=[3", "seed=3", "render_mode=7", "num_agents=1e400"]
PROGRAMS: dict[str, list[Words]] = {
    "benchmark/run.py": [
        [],
        ["fig99"],
        ["fig1", "--scale=huge"],
        ["fig1", "--seeds=-1"],
        ["fig1", "--seeds", "9" * 20],
        ["fig1", "--jobs=-2"],
        ["fig1", "--retries=-1"],
        ["fig1", "--only", "nothing-has-this"],
        ["fig1", "--slurm", "partition", "--cluster=slurm"],
        ["fig1", "--runs-dir=TMP/file/runs"],
        ["fig1", "--results=TMP/file/results"],
        ["--record", "TMP/none", "--label=x"],
        ["--record", "TMP", "--label=x"],
        ["--record", "TMP", "--dry-run"],
        ["fig1", "--record", "TMP", "--label=x"],
        ["--label=x"],
        ["fig1", "--label=x"],
        ["fig1", "--record", "TMP"],
        ["fig1", "--device=abacus"],
    ],
    "benchmark/plot.py": [
        [],
        ["fig99"],
        ["fig1", "--seeds=-3"],
        ["fig1", "--seeds=many"],
        ["fig1", "--results=TMP/none"],
        ["recorded", "--results=TMP/file"],
        ["recorded", "--beside=fig99"],
        ["fig1", "--check"],
        ["all", "--marl-eval=TMP/x.json"],
        ["fig1", "--results=benchmark/results"],
        ["all", "--check", "--results=TMP"],
        ["fig1", "--scale=huge"],
    ],
    "benchmark/gpu.py": [
        [],
        ["TMP/out", "--minutes=0"],
        ["TMP/out", "--minutes=nan"],
        ["TMP/out", "--parts", "chess"],
        ["TMP/out", "--jobs=0"],
        ["TMP/file"],
        ["TMP/file/out"],
    ],
    "benchmark/since.py": [
        [],
        ["no-such-commit"],
        ["HEAD", "--names", "99z"],
        ["HEAD", "--turns=-1"],
        ["HEAD", "--scripts", "--threads=0"],
        ["HEAD", "--num-envs=0"],
        ["HEAD", "--seconds=nan"],
    ],
    "benchmark/speed.py": [
        [],
        ["env", "chess"],
        ["env", "smac", "--names", "99z"],
        ["env", "smac", "--num-envs=0"],
        ["all", "--names", "2s3z"],
        ["e2e", "baselines", "--names", "iql.py"],
        ["learner", "matrix"],
        ["learner", "smac", "--rows", "9" * 20],
        ["learner", "smac", "--device=abacus"],
        ["e2e", "mpe", "--json=TMP/none/x.json"],
        ["env", "mpe", "--seconds=nan"],
        ["env", "mamujoco", "--names", "Hopper-9x9"],
    ],
    "benchmark/tune.py": [
        ["nowhere", "dpo"],
        ["matrix/stochastic", "nothing"],
        ["matrix/stochastic", "dpo", "--trials=0"],
        ["matrix/stochastic", "dpo", "--steps=many"],
        ["matrix/stochastic", "ippo", "--results=TMP/file/results"],
    ],
    "benchmark/discussion.py": [
        ["--sizes", "big"],
        ["--sizes", "0x0x0"],
        ["--sizes", "9999999x9x9"],
        ["--updates=0"],
        ["--updates=nan"],
        ["--seeds", "-1"],
        ["--sigmas", "nan"],
        ["--sigmas", "0"],
        ["--probe-every=0"],
        ["--out=TMP/file/x"],
        ["--no-measure"],
        ["fig1"],
    ],
    "benchmark/calibrate/calibrate_mpe.py": [
        ["--tasks", "chess"],
        ["--policies", "genius"],
        ["--variants", "mpe9"],
        ["--episodes=0"],
        ["--num-agents=0"],
        ["--seed=-1"],
        ["--csv=TMP/none/x.csv"],
        ["--csv=TMP/file"],
    ],
    "benchmark/calibrate/random_play.py": [
        ["--maps", "99z"],
        ["--episodes=0"],
        ["--num-envs=0"],
        ["--seed=-1"],
        ["--csv=TMP/none/x.csv"],
    ],
    "benchmark/calibrate/calibrate_smac.py": [
        ["--maps", "99z"],
        ["--policies", "genius"],
        ["--episodes=0"],
        ["--num-envs=-4"],
        ["--seed=-1"],
        ["--csv=TMP/none/x.csv"],
        ["--csv=TMP/file"],
    ],
}
"""Command lines that must be refused; TMP is an empty folder with one file, named `file`."""

ELSEWHERE = {
    "benchmark/run.py": ["runs-dir", "results"],
    "benchmark/tune.py": ["runs-dir", "results"],
    "benchmark/discussion.py": ["out"],
}
"""Flags by which a program that accepts a line keeps to the folder; of scripts it is runs-dir."""


def out_of_range(script: Any, draw: random.Random) -> Words:
    """A flag beyond what the script's table allows, or what is no number of its kind."""
    names, (low, high) = draw.choice([*script.RANGES.items()])
    name = draw.choice(names.split())
    whole = isinstance(getattr(script.Args(), name), int)
    values = [f"{-1 - low:.0f}", "", "many", "1,000", "0x10"]
    values += [f"{int(high) * 10 + 1}", "9" * 25] if math.isfinite(high) else []
    values += ["3.5", "1e3"] if whole else ["nan", "-inf"]
    return [f"--{name.replace('_', '-')}", draw.choice(values)]


def another_task(script: Any, draw: random.Random) -> Words:
    """A task that there is not."""
    return [f"--{TASK.get(script.__name__, 'env-id')}", draw.choice(TASKS)]


def another_option(script: Any, draw: random.Random) -> Words:
    """An option that no environment has, or a flag that no script has."""
    if hasattr(script.Args(), "env_options"):
        return ["--env-options", draw.choice(OPTIONS)]
    return draw.choice(
        [["--num-agent=3"], ["--colour"], ["smac/3m"], ["-x"], ["--"], ["--env_id=mpe/simple"]]
    )


def no_run(script: Any, draw: random.Random) -> Words:
    """A run to go on with that there is not, or that is none."""
    path = draw.choice(
        ["TMP/none", "TMP", "TMP/file", "README.md", "envs", "/dev/null", "TMP/file/x", "", "\n"]
    )
    return ["--resume", path, *draw.choice([[], ["--eval-only"]])]


def nowhere(script: Any, draw: random.Random) -> Words:
    """A place where nothing can be written, or a device or an evaluation that cannot be had."""
    words = ["--runs-dir=TMP/file/runs"], ["--runs-dir", "a\nb"], ["--runs-dir="], ["--runs-dir=/proc/runs"]
    return draw.choice(
        [*words, ["--device=abacus"], ["--device=cuda:7"], ["--eval-only"], ["--torch-threads=-3"]]
    )


FAULTS = [out_of_range, another_task, another_option, no_run, nowhere]


def draw_lines(lines: int, draw: random.Random) -> Iterator[tuple[str, Words]]:
    """Programs and what they are given; every other line is a script's, each in its turn."""
    scripts, programs = list(SCRIPTS), list(PROGRAMS)
    left = {name: draw.sample(given, len(given)) for name, given in PROGRAMS.items()}
    for number in range(lines):
        if number % 3 < 2:
            name = scripts[(number - number // 3) % len(scripts)]
            yield f"{name}.py", draw.choice(FAULTS)(importlib.import_module(name), draw)
        else:
            name = programs[number // 3 % len(programs)]
            left[name] = left[name] or list(PROGRAMS[name])
            yield name, left[name].pop()


def storm(lines: int, seed: int, folder: Path, say: Callable[[str], None]) -> Iterator[Outcome]:
    """One outcome per command line."""
    for number, (program, given) in enumerate(draw_lines(lines, random.Random(seed))):
        own = folder / f"line-{number}"
        own.mkdir()
        (own / "file").write_text("")
        words = [word.replace("TMP", str(own)) for word in given]
        for flag in ELSEWHERE.get(program, ["runs-dir"] if "/" not in program else []):
            if not any(word.startswith(f"--{flag}") for word in words):
                words.append(f"--{flag}={own / flag}")
        wrong = what_is_wrong(run(program, *words, longest=60), Path(program).stem)
        there = sorted(path.name for path in own.iterdir())
        if not wrong and there != ["file"]:
            wrong = f"refused, but made {there}"
        name = " ".join([program, *map(repr, given)])
        say(f"{name}: {wrong or 'refused'}")
        yield Outcome("lines", name, wrong)
