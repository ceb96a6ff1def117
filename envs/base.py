"""What all families of environments have in common: the contract, and what any of them may need."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

Step = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]
"""obs, reward, terminated, truncated and infos."""


class BrokenEnvironment(ValueError):
    """An environment cannot be made, or breaks its promises during a run; the message is for the user."""


def short(value: Any, most: int = 200) -> str:
    """A value as shown in a message: on one line, and cut if long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= most else f"{text[:most]}..."


def is_whole(value: Any) -> bool:
    """Whether it is a whole number; Python would count truth values as such."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def identity(*parts: Any) -> np.ndarray:
    """A number (1,) uint64 that distinguishes a task, defined by `parts`, from others of the same size.

    parts: arrays, and plain values that repr() shows whole.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return np.frombuffer(digest.digest()[:8], dtype="<u8").astype(np.uint64)


def failure(error: BaseException) -> str:
    """An error of foreign code in one line: its kind, what it says, and the module and line it is from."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" ({trace.tb_frame.f_globals.get('__name__')}, line {trace.tb_lineno})" if trace else ""
    told = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}{': ' if told else ''}{told[:500]}{place}"


class TeamVectorEnv(VectorEnv):
    """E environments of one task, stepped together, whose N agents share one reward: the contract of `envs`.

    Episodes that end are followed by new ones in the same step (gymnasium's SAME_STEP). `reset` returns obs
    (E, N, obs_dim) float32 and infos; `step` takes actions (E, N) int or (E, N, num_actions) real and returns
    obs, reward (E,) float32, terminated and truncated (E,) bool and infos. Attributes tell what a caller may
    ask about an environment; infos tell the rest, at every reset and step:

    action_mask (E, N, num_actions) bool: choices available at obs; of real actions the agent's own, not the
        padding.
    alive (E, N) bool: agents alive at obs.
    final_obs (E, N, obs_dim), final_action_mask (E, N, num_actions) bool, final_alive (E, N) bool: what an
        episode ended with, which choices were available then, and who was alive, where _final_obs (E,) bool;
        else zeros.
    episode {"r": (E,) float32, "l": (E,) int64}: return and length of an episode, where _episode (E,) bool.
    battle_won (E,) bool: the battle that ended was won; of environments with `wins`.
    """

    env_id: str
    label: str = ""
    """What besides the id tells tasks apart: a size, a variant, an engine."""
    backend: str
    """What plays: "embedded", "starcraft", "mujoco" or "pettingzoo"."""
    num_agents: int
    obs_dim: int
    num_actions: int
    """Choices of an agent, or real numbers that it acts with; of unequal agents the most."""
    agent_obs_dims: tuple[int, ...]
    agent_act_dims: tuple[int, ...]
    """Each agent's own obs_dim and num_actions; what is beyond them is padding."""
    episode_limit: int | None
    """Steps after which an episode ends, None where nothing limits it."""
    discrete: bool = True
    """Actions are choices, else real numbers."""
    restorable: bool = True
    """`set_state` goes on exactly; else it begins new episodes, and warns."""
    cheap_copies: bool = True
    """A step is compiled and more environments cost little: evaluation may play its episodes side by side."""
    exact: bool = False
    """`exact_return(policies)` computes what others have to estimate by playing."""
    wins: bool = False
    """Episodes are won or not: infos hold battle_won."""
    _mask: np.ndarray
    """(E, N, num_actions) bool: the action_mask now."""
    _started: bool = False
    """There are episodes to be played: `reset` or `set_state` has begun them."""

    def _seed_streams(self, seed: int) -> None:
        """Begin the environments' random streams anew."""
        raise NotImplementedError

    def _no_ends(self, action_mask: np.ndarray, alive: np.ndarray) -> dict[str, Any]:
        """The infos of a step on which no episode ended, with this mask (E, N, A) and alive (E, N)."""
        E = self.num_envs
        infos = {
            "action_mask": action_mask,
            "alive": alive,
            "final_obs": np.zeros((*alive.shape, self.obs_dim), dtype=np.float32),
            "final_action_mask": np.zeros_like(action_mask),
            "final_alive": np.zeros_like(alive),
            "episode": {"r": np.zeros(E, dtype=np.float32), "l": np.zeros(E, dtype=np.int64)},
        }
        ends = ("_final_obs", "_episode") + ("battle_won",) * self.wins
        return infos | {name: np.zeros(E, dtype=np.bool_) for name in ends}

    def _take_seed(self, seed: Any) -> int:
        """The seed as an int, which gymnasium's np_random begins with, too.

        ValueError unless it is a whole number, one for all environments, that a saved state can hold.
        """
        if not is_whole(seed) or not 0 <= int(seed) < 2**63:
            raise ValueError(
                f"seed must be one whole number from 0 to 2**63 - 1, from which each environment makes its "
                f"own; got {short(seed)}."
            )
        super().reset(seed=int(seed))
        return int(seed)

    def _before_reset(self, seed: Any, options: Any) -> None:
        """What every reset does first, and all that it does with its arguments. ValueError on bad ones."""
        if options:
            raise ValueError(
                f"reset() begins new episodes everywhere and takes no options; got {short(options)}. Options "
                "of an environment are given to envs.make."
            )
        if seed is not None:
            self._seed_streams(self._take_seed(seed))

    def _check_started(self) -> None:
        """RuntimeError where no episodes have begun."""
        if not self._started:
            raise RuntimeError("Call reset() before the first step, and after a step that failed.")

    def _check_form(self, state: Any) -> dict[str, np.ndarray]:
        """The state, if it holds what `get_state` does, in arrays of the same shapes and dtypes.

        Else ValueError; also where it was saved of another "task", since the sizes of two may be the same.
        States of older versions name none.
        """
        now = self._get_state()
        if isinstance(state, Mapping) and "task" in now:
            state = {"task": now["task"], **state}
        fits = f"This state is not one of {self.num_envs} environments of {self.env_id}"
        for key, array in now.items():
            given = state.get(key) if isinstance(state, Mapping) else None
            if not isinstance(given, np.ndarray) or (given.shape, given.dtype) != (array.shape, array.dtype):
                raise ValueError(f"{fits}: {key!r} must be {array.dtype} of shape {array.shape}.")
        if "task" in now and not np.array_equal(state["task"], now["task"]):
            raise ValueError(f"{fits} with these options: it was saved of another task of the same size.")
        return dict(state)

    def _check_picture(self, i: Any) -> None:
        """ValueError unless there are pictures, IndexError unless i is one of the environments."""
        if self.render_mode is None:
            raise ValueError('Nothing to render: make the environment with render_mode="rgb_array".')
        if not is_whole(i) or not 0 <= i < self.num_envs:
            raise IndexError(
                f"render(i) draws one of {self.num_envs} environments, i from 0 to {self.num_envs - 1}; "
                f"got {short(i)}."
            )

    def get_state(self) -> dict[str, np.ndarray]:
        """What `set_state` goes on from, as copies; RuntimeError where no episodes have begun."""
        self._check_started()
        return self._get_state()

    def _get_state(self) -> dict[str, np.ndarray]:
        """What `get_state` returns, also before the first reset, when only its form means something."""
        raise NotImplementedError

    def sample_actions(self) -> np.ndarray:
        """Random actions that can be played now, int (E, N) or float32 (E, N, num_actions).

        From a stream of their own, gymnasium's np_random, which changes no episode and no state. RuntimeError
        before the first reset.
        """
        self._check_started()
        if not self.discrete:
            bounds: Any = self.action_space
            return self.np_random.uniform(bounds.low, bounds.high).astype(np.float32)
        return np.where(self._mask, self.np_random.random(self._mask.shape), -1.0).argmax(-1)

    def describe(self) -> dict[str, Any]:
        """What rewards depend on besides the id and the label, as plain values for args.json.

        Seeds whose values differ are not averaged, nor are those of which only some have a value. So what
        older runs did not record is left out where it has the value that it had in all of them.
        """
        return {}


def integers(actions: Any, num_envs: int, num_agents: int) -> np.ndarray:
    """Actions (E, N) as an array; ValueError on another shape or dtype."""
    actions = np.asarray(actions)
    if actions.shape != (num_envs, num_agents) or actions.dtype.kind not in "iu":
        raise ValueError(
            f"actions must be integers of shape {(num_envs, num_agents)} (num_envs, num_agents); "
            f"got {actions.dtype} of shape {actions.shape}."
        )
    return actions


def playable(actions: Any, mask: np.ndarray) -> np.ndarray:
    """Actions (E, N) as an array; ValueError unless mask (E, N, A) has every one of them available."""
    actions = integers(actions, *mask.shape[:2])
    inside = (actions >= 0) & (actions < mask.shape[-1])
    chosen = np.where(inside, actions, 0)[..., None]
    bad = np.argwhere(~(inside & np.take_along_axis(mask, chosen, axis=2)[..., 0]))
    if len(bad):
        raise unavailable(actions, mask, *bad[0])
    return actions


def streams(seed: int, num_envs: int) -> np.ndarray:
    """(2, num_envs) uint64: the state of two streams of random numbers for each environment."""
    children = np.random.SeedSequence(seed).spawn(num_envs)
    return np.array([child.generate_state(2, np.uint64) for child in children]).T.copy()


def unavailable(actions: np.ndarray, mask: np.ndarray, env: int, agent: int) -> ValueError:
    """What to say of an agent's action (of all of them (E, N)) that mask (E, N, A) does not have."""
    return ValueError(
        f"Action {actions[env, agent]} of agent {agent} in environment {env} is not available; available are "
        f"{np.flatnonzero(mask[env, agent]).tolist()}. Choose by infos['action_mask']."
    )


MEMINFO = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores that this process may use: those it may run on, within its container's share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = CONTAINER / "cpu.max"
    if share.exists():
        quota, period = share.read_text().split()
        cores = min(cores, int(quota) // int(period)) if quota.isdigit() else cores  # "max": no limit
    return max(1, cores)


class Slices:
    """A batch of environments in equal slices, each for a thread of its own; one slice where a step is short.

    Compiled code works on a slice without Python's lock. Environments share nothing and have streams of their
    own, so that what comes out does not depend on how many threads there are.
    """

    def __init__(self, num_envs: int, threads: int, least: int) -> None:
        """least: environments that a slice must have to pay for its thread."""
        count = max(1, min(threads, num_envs // max(1, least)))
        bounds = [num_envs * i // count for i in range(count + 1)]
        self.slices = [slice(first, last) for first, last in itertools.pairwise(bounds)]

    def each(self, work: Callable[..., object], own: tuple[np.ndarray, ...], shared: tuple = ()) -> None:
        """Call work(*own, *shared) on every slice of own, arrays (num_envs, ...)."""
        if len(self.slices) == 1:
            work(*own, *shared)
        else:
            calls = [(*(x[part] for x in own), *shared) for part in self.slices]
            pool = _pool(len(self.slices), os.getpid())
            list(pool.map(lambda arguments: work(*arguments), calls))


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """One for all environments of a process, which step one after the other; a fork inherits no threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="envs")


def keep_freed_memory() -> None:
    """Lets glibc keep freed memory, instead of fetching it from the system again, zeroed page by page.

    Holds for all threads of this process, which then share what one of them frees. No effect without glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        trim_threshold, mmap_threshold, arena_max = -1, -3, -8
        for parameter, value in ((trim_threshold, 2**31 - 1), (mmap_threshold, 2**25), (arena_max, 1)):
            mallopt(parameter, value)


LIMITS = {
    ".": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Of a container (cgroup v2, v1): folder, files of its limit and of what is taken, name in memory.stat."""


def free_bytes() -> int | None:
    """Memory in bytes that this process may still take, None where the system does not tell.

    A container counts cached files as memory in use; those not in active use, its inactive_file, make room
    when memory is needed, and so count as free here.
    """
    found = []
    if MEMINFO.exists():
        found += [1024 * count for name, count in _counts(MEMINFO).items() if name == "MemAvailable:"]
    for folder, (limit, taken, cached) in LIMITS.items():
        files = CONTAINER / folder
        if (files / limit).exists() and (most := (files / limit).read_text().strip()).isdigit():  # or "max"
            used = int((files / taken).read_text())
            used -= _counts(files / "memory.stat").get(cached, 0)
            found.append(max(0, int(most) - max(0, used)))
    if not found and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return min(found, default=None)


def check_memory(need: float, what: str, advice: str, share: float = 1.0) -> None:
    """MemoryError, before anything is allocated, if `need` bytes exceed this share of the free memory."""
    free = free_bytes()
    if free is not None and need > share * free:
        limit = f"{share:.0%} of the {free / 1e9:,.2f} GB that are free"
        raise MemoryError(f"{what} {need / 1e9:,.2f} GB, more than {limit}; {advice}.")


def _counts(path: Path) -> dict[str, int]:
    """The first number of each line of a file, by the line's name; empty where there is no such file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: int(number) for name, number, *_ in map(str.split, lines)}
