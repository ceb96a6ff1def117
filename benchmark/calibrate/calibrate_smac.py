"""How hard the embedded SMAC engine's battles are: scripted play, win rates and returns.

    python benchmark/calibrate/calibrate_smac.py   # a Markdown table; about two minutes on one core
    python benchmark/calibrate/calibrate_smac.py --maps 8m --episodes 2000
    python benchmark/calibrate/calibrate_smac.py --maps all --csv benchmark/results/scripted_play.csv

The last is what plot.py tabulates beside trained policies, a quarter of an hour.

Policies of the allied team: `random`, uniform over available actions; `script`, the enemy's attack-move on
both sides; `near`, the nearest enemy that can be attacked, advancing once one is close; `line`, which falls
back into a curved line before the enemy comes, then focuses its fire, the weakest first, none on the dying.
`near` and `line` see the whole map, as a team that talks would.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import envs  # noqa: E402
from benchmark.lib.arguments import nowhere, out_of_range  # noqa: E402
from benchmark.lib.runs import ResultsError  # noqa: E402
from benchmark.lib.store import merge_table, read_table  # noqa: E402
from envs.smac import combat  # noqa: E402
from envs.smac.generated import GENERATED  # noqa: E402
from envs.smac.maps import MAPS  # noqa: E402

COLUMNS = ("map", "engine_version", "policy", "episodes", "win_rate", "return", "length")
STOP, NORTH, SOUTH, EAST, WEST, ATTACK = 1, 2, 3, 4, 5, 6
REACH = 5.75  # a marine's range with two marines' radii, centre to centre
CONTACT = 6.5
"""Distance at which waiting ends: SMAC lets attack from 6 cells."""


@dataclass
class Args:
    maps: tuple[str, ...] = ("2s3z", "8m", "3s5z", "27m_vs_30m", "MMM2")
    """maps to play; all: every map, and SMACv2's battles of five against five"""
    policies: tuple[str, ...] = ("random", "script", "near", "line")
    """policies to play them with"""
    episodes: int = 500
    """battles for each cell of the table"""
    num_envs: int = 64
    """battles at a time"""
    seed: int = 0
    """seed of the battles"""
    csv: Path | None = None
    """file for the table as well, none by default; rows in it of what is not played stay"""


RANGES: dict[str, tuple[float, float]] = {"episodes": (1, 10**6), "num_envs": (1, 10**5), "seed": (0, 2**31)}


class View:
    """What the scripts look at, of all battles (B) at once, allies (A) and enemies (E)."""

    def __init__(self, env: Any) -> None:
        units, A = env.get_state()["units"], env.num_agents
        x, y = units[:, combat.X], units[:, combat.Y]
        life = units[:, combat.HP] + units[:, combat.SH]
        self.x, self.y, self.enemy_life = x[:, :A], y[:, :A], life[:, A:]
        self.dx = x[:, None, A:] - x[:, :A, None]
        self.dy = y[:, None, A:] - y[:, :A, None]
        fallen = units[:, None, combat.HP, A:] <= 0
        self.distance = np.where(fallen, np.inf, np.hypot(self.dx, self.dy))

    def advance(self, mask: np.ndarray) -> np.ndarray:
        """Actions (B, A): a step towards the nearest enemy along the longer axis; stop where it is barred."""
        nearest = self.distance.argmin(-1)[..., None]
        dx, dy = (np.take_along_axis(d, nearest, 2)[..., 0] for d in (self.dx, self.dy))
        along_x, along_y = np.where(dx > 0, EAST, WEST), np.where(dy > 0, NORTH, SOUTH)
        return allowed(np.where(np.abs(dx) >= np.abs(dy), along_x, along_y), mask)


def allowed(actions: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`actions` (B, A) where available, else stop, or no-op for the dead."""
    fine = np.take_along_axis(mask, actions[..., None], 2)[..., 0]
    return np.where(fine, actions, np.where(mask[..., STOP], STOP, 0))


def engage(view: View, mask: np.ndarray, attack: np.ndarray) -> np.ndarray:
    """`attack` where it attacks; the others advance once an enemy is near any ally, and wait until then."""
    contact = (view.distance.min((1, 2)) <= CONTACT)[:, None]
    return np.where(attack >= ATTACK, attack, np.where(contact, view.advance(mask), allowed(attack, mask)))


def near(view: View, mask: np.ndarray) -> np.ndarray:
    """Attack the nearest enemy that SMAC lets attack, as agents without memory would."""
    distance = np.where(mask[..., ATTACK:], view.distance[..., : mask.shape[2] - ATTACK], np.inf)
    return engage(view, mask, np.where(np.isfinite(distance.min(-1)), ATTACK + distance.argmin(-1), STOP))


def spread_fire(view: View, mask: np.ndarray) -> np.ndarray:
    """Targets by turns, the closest shooter first: the weakest in reach that is not yet sure to die."""
    attack = np.full(view.x.shape, STOP)
    for b in range(len(attack)):
        shots_left = np.ceil(view.enemy_life[b] / 6.0)
        for i in np.argsort(view.distance[b].min(1)):
            targets = np.flatnonzero(mask[b, i, ATTACK:])
            if not len(targets):
                continue
            in_reach = targets[view.distance[b, i, targets] <= REACH]
            targets = in_reach if len(in_reach) else targets
            cost = view.enemy_life[b, targets] + 0.1 * view.distance[b, i, targets]
            target = targets[(cost + 1000.0 * (shots_left[targets] <= 0)).argmin()]
            shots_left[target] -= 1
            attack[b, i] = ATTACK + target
    return attack


def line(view: View, mask: np.ndarray) -> np.ndarray:
    """Fall back into a line that bends around the enemy's way, side by side; on contact, focus the fire.

    All then shoot at once at what comes first. Drawing back the badly hurt as well was tried, and loses: a
    marine that walks does not shoot.
    """
    rank = np.argsort(np.argsort(view.y + 1e-3 * view.x, axis=1), axis=1)
    place = (rank - (view.x.shape[1] - 1) / 2) * 0.6
    dy, dx = 16 + place - view.y, 4 + 3 * (place / 7) ** 2 - view.x
    by_y, by_x = np.where(dy > 0, NORTH, SOUTH), np.where(dx > 0, EAST, WEST)
    form = np.where(np.abs(dy) > 0.6, by_y, np.where(np.abs(dx) > 0.6, by_x, STOP))
    waiting = (view.distance.min((1, 2)) > CONTACT)[:, None]
    return np.where(waiting, allowed(form, mask), engage(view, mask, spread_fire(view, mask)))


SCRIPTS: dict[str, Callable[[View, np.ndarray], np.ndarray]] = {"near": near, "line": line}


def play(name: str, policy: str, episodes: int, num_envs: int, seed: int) -> np.ndarray:
    """(episodes, 3) float: win, return and length of the first battles of every environment."""
    env: Any = envs.make(f"smac/{name}", num_envs, seed=seed, backend="embedded")
    _, infos = env.reset()
    results: list[list[tuple[float, float, float]]] = [[] for _ in range(num_envs)]
    quota = -(-episodes // num_envs)
    while min(len(battles) for battles in results) < quota:
        if policy == "script":
            *_, infos = env.step_scripted()
        elif policy == "random":
            *_, infos = env.step(env.sample_actions())
        else:
            *_, infos = env.step(SCRIPTS[policy](View(env), infos["action_mask"]))
        for e in np.flatnonzero(infos["_episode"]):
            episode = infos["episode"]
            results[e].append((float(infos["battle_won"][e]), float(episode["r"][e]), float(episode["l"][e])))
    return np.array([battle for battles in results for battle in battles[:quota]])


def wilson(wins: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a win rate."""
    z, rate = 1.96, wins / trials
    middle = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * np.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials**2)) / (1 + z * z / trials)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    unknown = set(args.policies) - {"random", "script", *SCRIPTS}
    if unknown:
        sys.exit(f"calibrate_smac: no policy {', '.join(unknown)}; there are random, script, near and line.")
    known = {*MAPS, *GENERATED, "all"}
    if unknown := set(args.maps) - known:
        sys.exit(f"calibrate_smac: no map {', '.join(unknown)}; there are {', '.join(sorted(known))}.")
    if wrong := out_of_range(args, RANGES) or nowhere("csv", args.csv):
        sys.exit(f"calibrate_smac: {wrong}")
    if args.csv:
        read_table(args.csv, COLUMNS)  # one that cannot be read is told before minutes of play
    small = [name for name in GENERATED if name.endswith("_5_vs_5")]
    rows: list[dict[str, Any]] = []
    print("| map | policy | win rate (95 % interval) | return | length |\n|---|---|---|---|---|")
    for name in (*MAPS, *small) if args.maps == ("all",) else args.maps:
        for policy in args.policies:
            try:
                battles = play(name, policy, args.episodes, args.num_envs, args.seed)
            except ValueError as error:
                sys.exit(f"calibrate_smac: {error}")
            low, high = wilson(battles[:, 0].sum(), len(battles))
            win, score, length = battles.mean(0)
            print(
                f"| {name} | {policy} | {win:.1%} ({low:.1%} to {high:.1%}) | {score:.2f} | {length:.0f} |",
                flush=True,
            )
            found = (round(float(x), 4) for x in (win, score, length))
            row = (name, (MAPS | GENERATED)[name].version, policy, len(battles), *found)
            rows.append(dict(zip(COLUMNS, row, strict=True)))
    if args.csv and rows:
        merge_table(args.csv, rows, ("map", "policy"))


if __name__ == "__main__":
    try:
        main()
    except (ResultsError, OSError) as error:
        sys.exit(f"calibrate_smac: {error}")
