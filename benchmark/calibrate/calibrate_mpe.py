"""What scripts earn in the particle world: the floors and the mark that learned policies are compared with.

    python benchmark/calibrate/calibrate_mpe.py   # half a minute; a Markdown table
    python benchmark/calibrate/calibrate_mpe.py --num-agents 5 --variants paper
    python benchmark/calibrate/calibrate_mpe.py --csv benchmark/results/references.csv   # publishes them anew

Policies of the team: `random`, uniform over the five actions; `noop`, which never moves; `greedy`, which
pairs agents and targets optimally at the start and keeps to it: every agent pushes with full force along the
axis on which it would be farther off after 0.25 more time units at its velocity, and rests within 0.06;
`lookahead`, the same pairs, but each agent takes the action that brings it nearest to its target at the first
position that the action has a part in. The last two see the whole world.
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
from envs import mpe  # noqa: E402
from envs.mpe import world as mpe_world  # noqa: E402

COLUMNS = ("env", "name", "return", "standard_error", "episodes")
COAST, REST = 0.25, 0.06
PUSHES = mpe_world.PUSH * np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], dtype=np.float64)


@dataclass
class Args:
    tasks: tuple[str, ...] = mpe.TASKS
    """tasks to play"""
    variants: tuple[str, ...] = tuple(mpe.VARIANTS)
    """variants to play them in"""
    num_agents: tuple[int, ...] = (3, 5, 10, 20)
    """sizes of the team"""
    policies: tuple[str, ...] = ("random", "noop", "greedy", "lookahead")
    """policies to play"""
    episodes: int = 4096
    """episodes for each row"""
    seed: int = 0
    """seed of the episodes"""
    csv: Path | None = None
    """file for the table as well, none by default; rows in it of what is not played stay"""


RANGES: dict[str, tuple[float, float]] = {"episodes": (2, 10**6), "seed": (0, 2**31), "num_agents": (1, 1000)}


class Pairs:
    """Each agent with the target that is its own from the start of the episode on."""

    def __init__(self, env: Any) -> None:
        self.env = env
        state = env.get_state()
        position, goal = state["agent_pos"], self.targets(state)
        self.column = mpe.assign(np.linalg.norm(position[:, :, None] - goal[:, None], axis=-1))[..., None]

    def targets(self, state: dict[str, np.ndarray]) -> np.ndarray:
        """All targets (E, N, 2) as they are now."""
        return mpe.targets(self.env.task, state["agent_pos"], state["landmark_pos"])

    def look(self) -> tuple[np.ndarray, np.ndarray]:
        """From every agent to its target, and its velocity, (E, N, 2) each."""
        state = self.env.get_state()
        own = np.take_along_axis(self.targets(state), self.column, axis=1)
        return own - state["agent_pos"], state["agent_vel"]


def random(pairs: Pairs) -> np.ndarray:
    """Actions (E, N), uniform."""
    return pairs.env.sample_actions()


def noop(pairs: Pairs) -> np.ndarray:
    """Actions (E, N), all 0."""
    return np.zeros((pairs.env.num_envs, pairs.env.num_agents), dtype=np.int64)


def greedy(pairs: Pairs) -> np.ndarray:
    """Actions (E, N): full force along the axis that is farther off, brakes included."""
    way, velocity = pairs.look()
    missing = way - COAST * velocity
    axis = np.abs(missing).argmax(-1)
    by = np.take_along_axis(missing, axis[..., None], axis=-1)[..., 0]
    return np.where(np.abs(by) < REST, 0, 1 + 2 * axis + (by > 0))


def lookahead(pairs: Pairs) -> np.ndarray:
    """Actions (E, N): nearest to the target at the first position that the action has a part in."""
    way, velocity = pairs.look()
    if mpe.VARIANTS[pairs.env.variant][pairs.env.task].position_first:
        way = way - mpe_world.DT * velocity
    after = (1 - mpe_world.DAMPING) * velocity[..., None, :] + mpe_world.DT * PUSHES
    return np.linalg.norm(way[..., None, :] - mpe_world.DT * after, axis=-1).argmin(-1)


POLICIES: dict[str, Callable[[Pairs], np.ndarray]] = {
    "random": random, "noop": noop, "greedy": greedy, "lookahead": lookahead,
}  # fmt: skip


def play(task: str, variant: str, num_agents: int, policy: str, episodes: int, seed: int) -> np.ndarray:
    """Returns (episodes,) of one episode in each of as many environments."""
    env: Any = envs.make(f"mpe/{task}", episodes, seed, variant=variant, num_agents=num_agents)
    env.reset()
    pairs = Pairs(env)
    for _ in range(env.episode_limit):
        *_, infos = env.step(POLICIES[policy](pairs))
    return infos["episode"]["r"].astype(np.float64)


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    unknown = set(args.policies) - set(POLICIES)
    if unknown:
        sys.exit(f"calibrate_mpe: no policy {', '.join(unknown)}; there are {', '.join(POLICIES)}.")
    if wrong := out_of_range(args, RANGES) or nowhere("csv", args.csv):
        sys.exit(f"calibrate_mpe: {wrong}")
    if args.csv:
        read_table(args.csv, COLUMNS)  # one that cannot be read is told before minutes of play
    rows: list[dict[str, Any]] = []
    print("| task | variant | agents | policy | return | s.e. |\n|---|---|---|---|---|---|")
    for task, variant, num_agents, policy in (
        (t, v, n, p)
        for t in args.tasks
        for v in args.variants
        for n in args.num_agents
        for p in args.policies
    ):
        try:
            returns = play(task, variant, num_agents, policy, args.episodes, args.seed)
        except ValueError as what:
            sys.exit(f"calibrate_mpe: {what}")
        mean, error = float(returns.mean()), float(returns.std(ddof=1)) / len(returns) ** 0.5
        print(f"| {task} | {variant} | {num_agents} | {policy} | {mean:.2f} | {error:.2f} |", flush=True)
        env = f"mpe-{task}-{num_agents}" + (f"-{variant}" if variant != "paper" else "")
        row = (env, policy, f"{mean:.4f}", f"{error:.4f}", len(returns))
        rows.append(dict(zip(COLUMNS, row, strict=True)))
    if args.csv and rows:
        merge_table(args.csv, rows, ("env", "name"))


if __name__ == "__main__":
    try:
        main()
    except (ResultsError, OSError) as error:
        sys.exit(f"calibrate_mpe: {error}")
