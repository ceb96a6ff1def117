"""Vector environments of the benchmark, by id.

    env = envs.make("smac/2s3z", num_envs=64, seed=1)  # NumPy arrays, environments first
    obs, infos = env.reset()  # (64, 5, 80)
    obs, reward, terminated, truncated, infos = env.step(env.sample_actions())

    env = envs.make("smac/2s3z", num_envs=64, seed=1, device="cuda")  # tensors, agents first
    obs, infos = env.reset()  # (5, 64, 80)

`envs.base.TeamVectorEnv` is the contract that all keep, `envs.wrappers.AgentsFirst` what tensors change.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import inspect
import os
import platform
import re
import subprocess
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from envs.base import (
    BrokenEnvironment,
    TeamVectorEnv,
    check_memory,
    failure,
    free_bytes,
    is_whole,
    keep_freed_memory,
    short,
    usable_cores,
)
from envs.options import check
from envs.options import parse as parse_options

if TYPE_CHECKING:
    from envs.pettingzoo import ParallelView
    from envs.wrappers import AgentsFirst

__all__ = [
    "BrokenEnvironment",
    "TeamVectorEnv",
    "check_memory",
    "describe",
    "env_ids",
    "env_name",
    "free_bytes",
    "keep_freed_memory",
    "make",
    "parallel_env",
    "parse_options",
    "usable_cores",
]


def _build(
    env_id: str,
    kind: Callable[..., TeamVectorEnv],
    num_envs: int,
    seed: int,
    options: dict[str, Any],
    also: Iterable[str] = (),
) -> TeamVectorEnv:
    """Call kind([name,] num_envs, seed, **options); ValueError, one sentence, for an option that it does not
    have or that has the wrong type. also: further options of the family, which have been read already."""
    parameters = list(inspect.signature(kind).parameters)
    name = [] if parameters[0] == "num_envs" else [env_id.partition("/")[2]]
    known = [*parameters[len(name) + 2 :], *also]
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{env_id} has no option {option!r}; {hint}It has: {', '.join(known)}.")
    whole: Any = kind.func if isinstance(kind, functools.partial) else kind
    check(env_id, typing.get_type_hints(whole.__init__), options)
    return kind(*name, num_envs, seed, **options)


@functools.cache
def _say_embedded(reason: str) -> None:
    """Print, once for each reason, that the embedded engine stands in for the real game."""
    print(f"Playing the embedded engine, not StarCraft II. {reason}", flush=True)


SMAC_OWN = {"last_action": bool, "exclude_dead": bool, "backend": str}
"""Options of both engines that neither gets to see, by their types."""
SMAC_OPTIONS = SMAC_OWN | {"game_version": str | None}
"""Options that are read before there is an engine."""


def _make_smac(env_id: str, num_envs: int, seed: int, options: dict[str, Any]) -> Any:
    options = dict(options)
    own = {name: options[name] for name in SMAC_OPTIONS if name in options}
    check(env_id, SMAC_OPTIONS, own)
    if not options.pop("exclude_dead", True):
        from envs.wrappers import CountDead

        return CountDead(_make_smac(env_id, num_envs, seed, options))
    if options.pop("last_action", False):
        from envs.wrappers import LastAction

        return LastAction(_make_smac(env_id, num_envs, seed, options))
    backend = options.pop("backend", "auto")
    if backend not in ("auto", "embedded", "starcraft"):
        raise ValueError(f'backend must be "auto", "embedded" or "starcraft", got {backend!r}.')
    from envs.smac.generated import GENERATED

    name = env_id.partition("/")[2]
    if name in GENERATED and backend == "starcraft":
        raise ValueError(
            f"{env_id} is played on the embedded engine alone; leave out backend, or 'embedded'."
        )
    from envs.smac.starcraft import StarCraftVectorEnv, available

    ours_alone = name in GENERATED or name.endswith(".toml")  # which the game cannot play
    if backend == "starcraft" or (backend == "auto" and not ours_alone):
        version = {key: options[key] for key in ("game_version",) if key in options}
        playable, reason = available(name, **version)
        if playable or backend == "starcraft":
            options.pop("threads", None)  # every game is a process of its own
            return _build(env_id, StarCraftVectorEnv, num_envs, seed, options, SMAC_OWN)
        _say_embedded(reason)
    from envs.smac.env import SmacVectorEnv

    ours, games = (inspect.signature(kind).parameters for kind in (SmacVectorEnv, StarCraftVectorEnv))
    for option in options:
        if option in games and option not in ours:
            raise ValueError(
                f"{option} is an option of the real game, and {env_id} is played on the embedded engine: "
                "leave it out."
            )
    return _build(env_id, SmacVectorEnv, num_envs, seed, options, SMAC_OWN)


def _make_matrix(env_id: str, num_envs: int, seed: int, options: dict[str, Any]) -> TeamVectorEnv:
    from envs.matrix import MatrixGame, StochasticGame

    if env_id not in env_ids():
        raise _unknown(env_id)
    kind = StochasticGame if env_id == "matrix/stochastic" else MatrixGame
    return _build(env_id, kind, num_envs, seed, options)


def _make_pettingzoo(env_id: str, num_envs: int, seed: int, options: dict[str, Any]) -> TeamVectorEnv:
    from envs.pettingzoo import ParallelVectorEnv

    kind = functools.partial(ParallelVectorEnv, env_id.partition(":")[2])
    return _build(env_id, kind, num_envs, seed, options)


def _make_mpe(env_id: str, num_envs: int, seed: int, options: dict[str, Any]) -> TeamVectorEnv:
    from envs.mpe import MpeVectorEnv

    if env_id not in env_ids():
        raise _unknown(env_id)
    return _build(env_id, MpeVectorEnv, num_envs, seed, options)


def _make_mamujoco(env_id: str, num_envs: int, seed: int, options: dict[str, Any]) -> TeamVectorEnv:
    try:
        from envs.mamujoco.env import MaMujocoVectorEnv
    except (AttributeError, ImportError, RuntimeError) as error:
        missing = isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] == "mujoco"
        if not missing and (wish := os.environ.get("MUJOCO_GL")):
            # It names something missing or unknown; PyOpenGL's own errors say nothing useful.
            sentence = f"MuJoCo cannot start with MUJOCO_GL={wish!r}; unset it or set another."
        else:
            reason = str(error).partition("\n")[0].rstrip(".")
            sentence = f"MuJoCo cannot be loaded ({reason}); pip install -r requirements.txt."
        raise ValueError(sentence) from error
    if env_id not in env_ids() and "partition" not in options:
        raise _unknown(env_id)
    return _build(env_id, MaMujocoVectorEnv, num_envs, seed, options)


FAMILIES: dict[str, Callable[[str, int, int, dict[str, Any]], TeamVectorEnv]] = {
    "smac": _make_smac,
    "matrix": _make_matrix,
    "mpe": _make_mpe,
    "mamujoco": _make_mamujoco,
}
"""By the part of an id before the slash. Each imports what it needs when it is used."""


def env_ids() -> list[str]:
    """Ids that `make` knows on every machine."""
    from envs.mamujoco import ROBOTS
    from envs.matrix import PAYOFFS
    from envs.mpe import TASKS
    from envs.smac.generated import GENERATED
    from envs.smac.maps import MAPS

    robots = [f"{robot}-{name}" for robot in ROBOTS for name in ROBOTS[robot].partitions]
    families = {
        "smac": (*MAPS, *GENERATED),
        "matrix": ("stochastic", *PAYOFFS),
        "mpe": TASKS,
        "mamujoco": robots,
    }
    return [f"{family}/{name}" for family, names in families.items() for name in names]


def _check_device(device: Any) -> None:
    """BrokenEnvironment unless PyTorch knows the device and, of GPUs, has it: before a minute of building."""
    import torch

    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise BrokenEnvironment(
            f'device must be "cpu" or "cuda", as PyTorch names them, or None for NumPy arrays; got '
            f"{short(device)}."
        ) from error
    if wanted.type == "cuda" and (wanted.index or 0) >= (count := torch.cuda.device_count()):
        raise BrokenEnvironment(f'PyTorch finds {count} GPUs here, so that there is no {wanted}; take "cpu".')


def _unknown(env_id: str) -> ValueError:
    known = [*env_ids(), "pettingzoo:mpe2.simple_spread_v3"]  # the latter stands for any module
    near = difflib.get_close_matches(env_id, known, n=3, cutoff=0.3) or known
    return ValueError(f"Unknown environment {env_id!r}; the nearest ids are {', '.join(near)}.")


@overload
def make(env_id: str, num_envs: int, seed: int = 0, device: None = None, **options: Any) -> TeamVectorEnv: ...


@overload
def make(env_id: str, num_envs: int, seed: int = 0, *, device: str, **options: Any) -> AgentsFirst: ...


def make(
    env_id: str, num_envs: int, seed: int = 0, device: str | None = None, **options: Any
) -> TeamVectorEnv | AgentsFirst:
    """Make `num_envs` environments of `env_id` ("family/name") as one gymnasium vector environment.

    device: where PyTorch is to have observations, "cpu" or "cuda"; the environment then uses tensors, as
    `envs.wrappers.AgentsFirst` says. None: NumPy arrays, as `envs.base.TeamVectorEnv` says.

    "pettingzoo:module.path" is what the module's parallel_env() makes, for instance
    "pettingzoo:mpe2.simple_spread_v3".

    "smac/my_battle.toml" is a battle of one's own, from a file (docs/envs.md).
    Options of smac: backend ("auto": StarCraft II where it can be played, else the embedded engine;
    "embedded"; "starcraft"), reward_fix, render_mode, last_action (append each agent's own last action,
    one-hot, to its observation), exclude_dead (False: the dead are reported as alive), conic_view (of
    SMACv2's maps), threads, and those of `StarCraftVectorEnv` on the real game.
    Options of matrix: those of `StochasticGame` and `MatrixGame`.
    Options of pettingzoo: reward, env_kwargs, episode_limit and render_mode of `ParallelVectorEnv`.
    Options of mpe: num_agents, vision, collision_penalty, episode_length, variant ("paper" or "mpe2") and
    render_mode, those of `MpeVectorEnv`.
    mamujoco/Robot-PARTITION: mamujoco/Hopper-3x1, HalfCheetah-3x2, Walker2d-3x2, Ant-4x2, Humanoid-17x1 and
    the rest of `env_ids()`; mamujoco/Robot with option partition, the labels of each agent's joints. Options:
    those of `MaMujocoVectorEnv`, as agent_obsk, obs ("khop" or "full"), version ("v5" or "v4") and threads.
    Without a device: ValueError on an unknown id or a bad option, number or seed, and where MuJoCo cannot be
    loaded; BrokenEnvironment where a third-party environment fails; ImportError for another package that is
    missing; MemoryError where tables do not fit into the memory; RuntimeError where StarCraft II does not
    start, or nothing can draw MuJoCo's pictures. With one, BrokenEnvironment for all of these and for a
    device that does not exist, with a message that a script can exit with.
    """
    if device is not None:
        _check_device(device)
    family, slash, _ = env_id.partition("/")
    try:
        if not is_whole(num_envs):
            raise ValueError(f"num_envs must be one whole number, got {short(num_envs)}.")
        if env_id.startswith("pettingzoo:"):
            env = _make_pettingzoo(env_id, num_envs, seed, options)
        elif family in FAMILIES and slash:
            env = FAMILIES[family](env_id, num_envs, seed, options)
        else:
            raise _unknown(env_id)
    except (ValueError, RuntimeError, ImportError, MemoryError) as error:  # sentences of ours
        if device is None:
            raise
        raise BrokenEnvironment(str(error) or f"{env_id} does not fit into the memory.") from error
    except Exception as error:
        if device is None:
            raise
        raise BrokenEnvironment(f"{env_id} cannot be made: {failure(error)}.") from error
    if device is None:
        return env
    from envs.wrappers import AgentsFirst

    return AgentsFirst(env, device)


def parallel_env(env_id: str, seed: int = 0, **options: Any) -> ParallelView:
    """One environment, by the id and options of `make`, as a PettingZoo ParallelEnv. Errors as of `make`."""
    for option in ("num_envs", "device"):
        if option in options:
            raise ValueError(
                f"parallel_env() makes one environment of NumPy arrays: leave {option} out, or call make()."
            )
    from envs.pettingzoo import ParallelView

    return ParallelView(make(env_id, 1, seed=seed, **options))


def env_name(vector_env: TeamVectorEnv | AgentsFirst) -> str:
    """Name for run directories and plots: the id, and what else tells tasks apart (size, engine)."""
    return re.sub("[/:]", "-", f"{vector_env.env_id}-{vector_env.label}".rstrip("-"))


def _installed(library: str) -> str:
    """Its version."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def describe(vector_env: TeamVectorEnv | AgentsFirst) -> dict[str, Any]:
    """What results of `vector_env` depend on besides its arguments, as plain values for args.json.

    Engine (of the real game also its version), versions of the libraries, git commit and machine.
    """
    libraries = ("torch", "numpy", "numba", "gymnasium", "mujoco", "pettingzoo")
    try:
        git = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    except FileNotFoundError:
        commit = "unknown: git is not installed"
    return {
        "backend": vector_env.backend,
        "git_commit": commit or "unknown: not a git checkout",
        "python": platform.python_version(),
        **{name: _installed(name) for name in libraries},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        **vector_env.describe(),
    }
