"""Particle worlds for benchmark/speed.py: ours, mpe2, VMAS and JaxMARL doing the same work.

Everyone plays as many agents, uniformly random actions drawn while the clock runs, and new episodes every
25 steps. A function that plays is called without arguments and returns how many environment steps it made.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

LENGTH = 25
MPE2 = {
    "simple_spread": "simple_spread_v3",
    "line_control": "simple_line_v1",
    "circle_control": "simple_formation_v1",
}
PEERS = {"VMAS": "vmas", "JaxMARL": "jaxmarl"}
"""Label and module of what is timed where it is installed, on simple_spread, which is the task they have."""


def missing() -> list[str]:
    """Labels of the peers that are not installed."""
    return [label for label, module in PEERS.items() if importlib.util.find_spec(module) is None]


def ours(task: str, num_agents: int, num_envs: int) -> tuple[Callable[[], int], Any]:
    """Our environment, and itself."""
    import envs

    env: Any = envs.make(f"mpe/{task}", num_envs, seed=1, num_agents=num_agents, episode_length=LENGTH)
    env.reset()

    def play() -> int:
        env.step(env.sample_actions())
        return num_envs

    play()
    return play, env


def mpe2(task: str, num_agents: int) -> Callable[[], int]:
    """mpe2's environment of the same formation, one at a time, which is all it has, by its parallel API."""
    module = importlib.import_module(f"mpe2.{MPE2[task]}")
    env: Any = module.parallel_env(N=num_agents, max_cycles=LENGTH)
    rng = np.random.default_rng(0)
    env.reset(seed=1)

    def play() -> int:
        if not env.agents:
            env.reset()
        env.step(dict(zip(env.agents, rng.integers(0, 5, num_agents).tolist(), strict=True)))
        return 1

    return play


def vmas(num_agents: int, num_envs: int) -> Callable[[], int]:
    """VMAS's simple_spread on one thread."""
    import torch
    from vmas import make_env

    torch.set_num_threads(1)
    env: Any = make_env("simple_spread", num_envs, continuous_actions=False, seed=1, n_agents=num_agents)
    num_actions, steps = env.action_space[0].n, [0]
    env.reset()

    def play() -> int:
        if steps[0] % LENGTH == 0:
            env.reset()
        steps[0] += 1
        env.step(list(torch.randint(num_actions, (num_agents, num_envs))))
        return num_envs

    return play


def jaxmarl(num_agents: int, num_envs: int, length: int = 100) -> Callable[[], int]:
    """JaxMARL's simple_spread, `length` steps of all environments inside one compiled scan."""
    import jax
    from jaxmarl import make

    env: Any = make("MPE_simple_spread_v3", num_agents=num_agents, max_steps=LENGTH)

    def step(carry, _):
        key, state = carry
        key, *keys = jax.random.split(key, 3)
        drawn = jax.random.randint(keys[0], (num_agents, num_envs), 0, 5)
        actions = dict(zip(env.agents, drawn, strict=True))
        obs, state, reward, *_ = jax.vmap(env.step)(jax.random.split(keys[1], num_envs), state, actions)
        return (key, state), (sum(o.sum() for o in obs.values()), sum(r.sum() for r in reward.values()))

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length))
    _, state = jax.vmap(env.reset)(jax.random.split(jax.random.PRNGKey(0), num_envs))
    carry = [jax.block_until_ready(run(run((jax.random.PRNGKey(1), state))[0]))[0]]  # both calls compile

    def play() -> int:
        carry[0] = jax.block_until_ready(run(carry[0]))[0]
        return num_envs * length

    return play


def simulators(
    task: str, num_agents: int, sizes: tuple[int, ...]
) -> tuple[dict[str, Callable[[], int]], dict[str, Any]]:
    """What to time for one task, by label; and our environments, by theirs."""
    plays: dict[str, Callable[[], int]] = {}
    made: dict[str, Any] = {}
    for n in sizes:
        label = f"ours, {n} envs"
        plays[label], made[label] = ours(task, num_agents, n)
    plays["mpe2"] = mpe2(task, num_agents)
    absent = missing()
    if task == "simple_spread":
        for n in sizes:
            if "VMAS" not in absent:
                plays[f"VMAS, {n} envs"] = vmas(num_agents, n)
            if "JaxMARL" not in absent:
                plays[f"JaxMARL, {n} envs"] = jaxmarl(num_agents, n)
    return plays, made
