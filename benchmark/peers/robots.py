"""Multi-agent MuJoCo and its peers, doing the same work, for `speed.py env mamujoco`."""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Callable
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.vector import AutoresetMode

BASES = ("gymnasium SyncVectorEnv", "gymnasium-robotics")
"""What the other simulators are compared with."""


def random_actions(num_envs: int, high: np.ndarray) -> Callable[[], np.ndarray]:
    """A function that gives float32 actions (num_envs, *high.shape), drawn beforehand from [-high, high]."""
    rng = np.random.default_rng(0)
    drawn = [(rng.uniform(-1, 1, (num_envs, *high.shape)) * high).astype(np.float32) for _ in range(128)]
    return functools.partial(next, itertools.cycle(drawn))


def vector_steps(robots: Any, num_envs: int) -> Callable[[], int]:
    """A function that plays one step of random actions in a vector environment, which resets by itself."""
    draw = random_actions(num_envs, getattr(robots, "single_action_space", robots.action_space).high)
    robots.reset()

    def play() -> int:
        robots.step(draw())
        return num_envs

    return play


def robotics_steps(name: str, num_envs: int) -> Callable[[], int]:
    """The same in gymnasium-robotics' MaMuJoCo, one environment after the other, which is all it has."""
    from gymnasium_robotics import mamujoco_v1

    from envs.mamujoco import ROBOTS

    kind, _, partition = name.partition("-")
    described = None
    if kind != "Pusher":  # it knows no robot without its own partition; of other robots it lacks partitions
        parts, edges, roots = mamujoco_v1.get_parts_and_edges(kind, None)
        nodes = {node.label: node for node in parts[0]}
        agents = [tuple(nodes[joint] for joint in joints) for joints in ROBOTS[kind].partitions[partition]]
        described = {"partition": agents, "edges": edges, "globals": roots}
    robots = [
        mamujoco_v1.parallel_env(kind, partition, agent_obsk=2, agent_factorization=described)
        for _ in range(num_envs)
    ]
    draw = random_actions(num_envs, robots[0].single_agent_env.action_space.high)
    cuts = np.cumsum([len(agent) for agent in ROBOTS[kind].partitions[partition]])[:-1]
    for robot in robots:
        robot.reset()

    def play() -> int:
        for robot, action in zip(robots, draw(), strict=True):
            robot.step(dict(zip(robot.possible_agents, np.split(action, cuts), strict=True)))
            if not robot.agents:
                robot.reset()
        return num_envs

    return play


def simulators(name: str, num_envs: int, threads: tuple[int, ...]) -> dict[str, Callable[[], int]]:
    """By label, functions that play one step in all environments of a task: ours, and what is installed.

    gymnasium and envpool play the robot without dividing it among agents.
    """
    import envs

    mujoco.set_mju_user_warning(lambda _: None)  # else gymnasium's HalfCheetah leaves a log file here
    robot = f"{name.partition('-')[0]}-v5"
    same = {"autoreset_mode": AutoresetMode.SAME_STEP}
    sync = gymnasium.make_vec(robot, num_envs, vectorization_mode="sync", vector_kwargs=same)
    made: dict[str, Any] = {}
    for n in threads:
        made[f"ours, {n} threads"] = envs.make(f"mamujoco/{name}", num_envs, seed=1, threads=n)
    made["gymnasium SyncVectorEnv"] = sync
    if importlib.util.find_spec("envpool"):
        import envpool

        for n in threads:
            pool = envpool.make_gymnasium(robot, num_envs=num_envs, num_threads=n, seed=1)
            made[f"envpool {envpool.__version__}, {n} threads"] = pool
    plays = {label: vector_steps(robots, num_envs) for label, robots in made.items()}
    if importlib.util.find_spec("gymnasium_robotics"):
        plays["gymnasium-robotics"] = robotics_steps(name, num_envs)
    return plays
