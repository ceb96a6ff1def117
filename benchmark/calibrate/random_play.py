"""How near the embedded engine's battles are to the real game's, by uniformly random play.

    python benchmark/calibrate/random_play.py  # a Markdown table; a minute on one core
    python benchmark/calibrate/random_play.py --maps 8m --episodes 4000
    python benchmark/calibrate/random_play.py --csv benchmark/results/random_play.csv  # as docs/envs.md

The real game's side is real_random_play.csv beside this file: the first statistics, at epsilon 1, that public
training runs on StarCraft II logged, a row per log line. z is the difference of two means over their joint
standard error; with the four episodes that some maps have, the real one's is itself rough.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmark.calibrate.calibrate_smac import play  # noqa: E402
from benchmark.lib.arguments import nowhere, out_of_range  # noqa: E402
from benchmark.lib.letters import in_utf8  # noqa: E402
from benchmark.lib.runs import ResultsError  # noqa: E402
from benchmark.lib.store import merge_table  # noqa: E402
from envs.smac.maps import MAPS  # noqa: E402

LOGS = Path(__file__).with_name("real_random_play.csv")


RANGES: dict[str, tuple[float, float]] = {"episodes": (1, 10**6), "num_envs": (1, 10**5), "seed": (0, 2**31)}


@dataclass
class Args:
    maps: tuple[str, ...] = ()
    """maps to play; all that have logs and that the engine offers unless given"""
    episodes: int = 2000
    """battles of the engine on each map"""
    num_envs: int = 64
    """battles at a time"""
    seed: int = 0
    """seed of the battles"""
    csv: Path | None = None
    """file for the table as well, none by default; rows in it of other maps stay"""


@dataclass
class Sample:
    """A mean over episodes and its standard error."""

    episodes: int
    mean: float
    error: float


def pool(rows: list[tuple[int, float, float]]) -> Sample:
    """All episodes of rows (episodes, mean, standard deviation over them) as one sample."""
    count, mean, spread = np.array(rows, float).T
    total = count.sum()
    middle = (count * mean).sum() / total
    squares = (count * (spread**2 + (mean - middle) ** 2)).sum()
    error = np.sqrt(squares / (total - 1) / total) if total > 1 else np.nan
    return Sample(int(total), float(middle), float(error))


def real(name: str) -> tuple[Sample, Sample]:
    """Returns and lengths of the real game's random play on a map.

    A log whose largest return was counted from another max_reward is brought to the map's. Most logs give no
    spread of lengths: the error of their mean is not known from here.
    """
    with open(LOGS, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["map"] == name]
    battle = MAPS[name]
    returns, lengths = [], []
    for row in rows:
        scale = float(row["max_reward"]) / battle.max_reward
        episodes = int(row["episodes"])
        returns.append((episodes, float(row["return"]) * scale, float(row["return_sd"]) * scale))
        if row["length"]:
            lengths.append((episodes, float(row["length"]), 0.0))
    return pool(returns), pool(lengths)


def z_score(ours: Sample, theirs: Sample) -> float:
    """Difference of the means in joint standard errors; nan where the real game's is unknown."""
    return float((ours.mean - theirs.mean) / np.hypot(ours.error, theirs.error))


def compare(name: str, episodes: int, num_envs: int, seed: int) -> dict[str, Any]:
    """One row of the table."""
    battles = play(name, "random", episodes, num_envs, seed)
    returns, lengths = (pool([(1, value, 0.0) for value in column]) for column in battles[:, 1:].T)
    real_return, real_length = real(name)
    # As many lengths of the engine's spread as the game was logged.
    real_length.error = lengths.error * (lengths.episodes / real_length.episodes) ** 0.5
    return {
        "map": name,
        "engine_version": MAPS[name].version,
        "real_episodes": real_return.episodes,
        "real_return": round(real_return.mean, 3),
        "real_return_error": round(real_return.error, 3),
        "real_length": round(real_length.mean, 1),
        "episodes": len(battles),
        "return": round(returns.mean, 3),
        "return_error": round(returns.error, 3),
        "length": round(lengths.mean, 1),
        "z": round(z_score(returns, real_return), 1),
        "z_length": round(z_score(lengths, real_length), 1),
    }


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if wrong := out_of_range(args, RANGES) or nowhere("csv", args.csv):
        sys.exit(f"random_play: {wrong}")
    with open(LOGS, newline="") as file:
        logged = dict.fromkeys(row["map"] for row in csv.DictReader(file))
    offered = [name for name in logged if name in MAPS]
    for name in args.maps:
        if name not in offered:
            sys.exit(
                f"random_play: no logs of {name!r}, or no such map here; there are {', '.join(offered)}."
            )
    table = []
    print("| map | real game: episodes, return, length | engine: return, length | z: return, length |")
    print("|---|---|---|---|")
    for name in args.maps or offered:
        row = compare(name, args.episodes, args.num_envs, args.seed)
        print(
            f"| {name} | {row['real_episodes']}: {row['real_return']:.2f} ± {row['real_return_error']:.2f}, "
            f"{row['real_length']:.0f} "
            f"| {row['return']:.2f} ± {row['return_error']:.2f}, {row['length']:.0f} "
            f"| {row['z']:+.1f}, {row['z_length']:+.1f} |",
            flush=True,
        )
        table.append(row)
    if args.csv:
        merge_table(args.csv, table, ["map"])


if __name__ == "__main__":
    in_utf8()
    try:
        main()
    except (ResultsError, OSError) as error:
        sys.exit(f"random_play: {error}")
