"""SMAC battles and their peers, doing the same work, for `speed.py env smac`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

PUBLISHED = {
    "SMAX (JaxMARL)": {"2s3z": 52_000, "27m_vs_30m": 2_500},
    "SMAClite": {"2s3z": 166, "3s5z": 123, "27m_vs_30m": 43, "MMM2": 75},
}
"""Environment steps per second measured earlier on one core of a like 4-core server, random valid actions,
SMAX with 64 environments. For orientation where the peer is not installed; not of this run."""


SMAX_NAMES = {"10gen_terran_5_vs_5": "smacv2_5_units", "10gen_terran_10_vs_10": "smacv2_10_units"}
"""What SMAX calls its battles of that size between random teams, which are of more races than one."""


def array_bytes(value: Any) -> int:
    """Bytes of the arrays in nested dicts and sequences."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, dict):
        return sum(array_bytes(x) for x in value.values())
    return sum(array_bytes(x) for x in value) if isinstance(value, (tuple, list)) else 0


def smac_steps(name: str, num_envs: int) -> tuple[Callable[[], int], int]:
    """A function that plays one step of random valid actions everywhere, and the bytes per environment."""
    import envs

    battle: Any = envs.make(f"smac/{name}", num_envs, seed=1, backend="embedded")
    battle.reset()
    outputs = battle.step(battle.sample_actions())

    def play() -> int:
        battle.step(battle.sample_actions())
        return num_envs

    return play, (array_bytes(vars(battle)) + array_bytes(outputs)) // num_envs


def smaclite_steps(name: str) -> Callable[[], int]:
    """The same work in SMAClite, one environment at a time, which is all it has."""
    import gymnasium
    import smaclite  # noqa: F401 - registers its environments

    battle: Any = gymnasium.make(f"smaclite/{name}-v0", use_cpp_rvo2=False).unwrapped
    rng, ended = np.random.default_rng(0), [True]

    def play() -> int:
        if ended[0]:
            battle.reset()
        masks = np.array(battle.get_avail_actions())
        actions = (rng.random(masks.shape) * masks).argmax(1)
        _, _, terminated, truncated, _ = battle.step([int(a) for a in actions])
        ended[0] = terminated or truncated
        return 1

    return play


def smax_steps(name: str, num_envs: int, length: int = 100) -> Callable[[], int] | None:
    """The same work in SMAX, `length` steps of all environments in one compiled scan; None: no such map."""
    import jax
    from jaxmarl import make as jax_make
    from jaxmarl.environments.smax import map_name_to_scenario

    try:
        scenario = map_name_to_scenario(SMAX_NAMES.get(name, name))
    except KeyError:
        return None
    battle = jax_make("HeuristicEnemySMAX", scenario=scenario)

    def step(carry, _):
        key, state = carry
        key, *keys = jax.random.split(key, 3)
        masks = jax.vmap(battle.get_avail_actions)(state)
        noise = jax.random.uniform(keys[0], (num_envs, len(battle.agents)))
        actions = {}
        for i, agent in enumerate(battle.agents):
            mask = masks[agent]
            rank = jax.numpy.floor(noise[:, i] * mask.sum(-1)).astype(int) + 1
            actions[agent] = (jax.numpy.cumsum(mask, -1) >= rank[:, None]).argmax(-1)
        _, state, *_ = jax.vmap(battle.step)(jax.random.split(keys[1], num_envs), state, actions)
        return (key, state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length)[0])
    _, state = jax.vmap(battle.reset)(jax.random.split(jax.random.PRNGKey(0), num_envs))
    carry = [jax.block_until_ready(run(run((jax.random.PRNGKey(1), state))))]  # both calls compile

    def play() -> int:
        carry[0] = jax.block_until_ready(run(carry[0]))
        return num_envs * length

    return play
