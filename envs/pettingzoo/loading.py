"""PettingZoo environments by the path of their module: found, made, and refused if they make no team."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from pettingzoo import AECEnv

from envs.base import BrokenEnvironment, failure

WIDEST = 1e8
"""The largest bound of an action: what is called unbounded elsewhere has bounds of 1e10 or 3.4e38."""


def load(path: str) -> Callable[..., Any]:
    """parallel_env of the module `path`; ValueError if there is none, ImportError if importing it fails."""
    parent = path.rpartition(".")[0]
    try:
        if not path or path.startswith("."):
            raise ModuleNotFoundError(name=path)
        module: Any = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and not f"{path}.".startswith(f"{error.name}."):
            raise ImportError(f"{path} needs {error.name!r}, which is not installed: install it.") from error
        module = None
        with contextlib.suppress(ImportError, AttributeError, ValueError):
            module = pkgutil.resolve_name(path)  # what a package names among its own
        if module is None:
            beside = pkgutil.iter_modules(getattr(sys.modules.get(parent), "__path__", []))
            near = difflib.get_close_matches(path, [f"{parent}.{module.name}" for module in beside], n=3)
            hint = (
                f"the nearest are {', '.join(near)}" if near else "install its package, or correct the path"
            )
            raise ValueError(f"There is no module {path!r}; {hint}.") from error
    except ImportError as error:
        raise ImportError(f"{path} cannot be imported: {' '.join(str(error).split())}") from error
    except MemoryError:
        raise
    except Exception as error:
        raise ImportError(f"{path} cannot be imported: {failure(error)}.") from error
    if not callable(getattr(module, "parallel_env", None)):
        turns = ", only env, whose agents act in turn (AEC)" if hasattr(module, "env") else ""
        raise ValueError(f"{path} has no parallel_env(){turns}: name a module that defines one.")
    return module.parallel_env


@contextlib.contextmanager
def closed_on_failure(made: list[Any]) -> Iterator[None]:
    """Closes what has been made so far if the block fails; else game windows and processes would stay."""
    try:
        yield
    except BaseException:
        for env in made:
            with contextlib.suppress(Exception):  # of interest is the first error
                env.close()
        raise


def build(name: str, make: Callable[..., Any], env_kwargs: dict[str, Any], count: int) -> list[Any]:
    """`count` environments by make(**env_kwargs).

    ValueError where the keywords are at fault, BrokenEnvironment where the environment is.
    """
    made: list[Any] = []
    try:
        with closed_on_failure(made):
            for _ in range(count):
                made.append(make(**env_kwargs))
    except MemoryError:
        raise
    except Exception as error:
        # A call that does not fit has no frame of its own below ours; else keywords may be handed on.
        called = error.__traceback__ is not None and error.__traceback__.tb_next is not None
        named = any(f"'{keyword}'" in str(error) for keyword in env_kwargs)
        if isinstance(error, TypeError) and (named or not called):
            raise ValueError(f"{name} cannot be made with env_kwargs {env_kwargs}: {error}.") from error
        raise BrokenEnvironment(f"{name} cannot be made: {failure(error)}.") from error
    return made


def spaces_of(name: str, env: Any) -> tuple[list[gym.spaces.Box], list[Any]]:
    """The agents' observation Boxes, and their action spaces, all Discrete or all Box; else ValueError."""
    try:
        return _spaces_of(name, env)
    except BrokenEnvironment:
        raise
    except Exception as error:
        raise BrokenEnvironment(f"{name} does not tell its agents' spaces: {failure(error)}.") from error


def _spaces_of(name: str, env: Any) -> tuple[list[gym.spaces.Box], list[Any]]:
    if isinstance(env, AECEnv):
        raise BrokenEnvironment(
            f"{name} is an AECEnv, whose agents act in turn: give a ParallelEnv, for instance what "
            "pettingzoo.utils.aec_to_parallel makes of it where all may act at once."
        )
    for part in ("possible_agents", "observation_space", "action_space", "reset", "step"):
        if not hasattr(env, part):
            raise BrokenEnvironment(
                f"{name} does not fit: a ParallelEnv has {part}, {type(env).__name__} has not."
            )
    agents = list(env.possible_agents)
    if not agents or len(set(agents)) < len(agents):
        what = "has no agents" if not agents else "names an agent twice"
        raise BrokenEnvironment(f"{name} {what} in possible_agents: all that can ever act must be there.")
    try:
        inspect.signature(env.reset).bind(seed=0)
    except TypeError as error:
        raise BrokenEnvironment(
            f"{name} takes no seed: its reset must be reset(seed=None, options=None), as PettingZoo's are."
        ) from error
    except ValueError:  # compiled, without a signature
        pass
    boxes: list[gym.spaces.Box] = []
    choices: list[Any] = []
    for agent in agents:
        seen, choice = env.observation_space(agent), env.action_space(agent)
        if isinstance(seen, gym.spaces.Dict):
            if "observation" not in seen.spaces:
                raise BrokenEnvironment(
                    f"{agent} of {name} observes a Dict of {', '.join(seen.spaces)}: what it sees must be a "
                    "Box named 'observation', beside which only an 'action_mask' is used."
                )
            seen = seen["observation"]
        if not isinstance(seen, gym.spaces.Box) or 0 in seen.shape:
            raise BrokenEnvironment(f"{agent} of {name} observes {seen}: wrap it so that it observes a Box.")
        _check_choice(f"{agent} of {name}", choice)
        first = choices[0] if choices else choice
        if isinstance(choice, gym.spaces.Discrete) != isinstance(first, gym.spaces.Discrete):
            raise BrokenEnvironment(
                f"{agents[0]} of {name} acts in {first} but {agent} in {choice}: "
                "all actions must be Discrete, or all Box."
            )
        boxes.append(seen)
        choices.append(choice)
    return boxes, choices


def _check_choice(who: str, choice: Any) -> None:
    """BrokenEnvironment unless an action space is Discrete, or a float Box that [-1, 1] can be scaled to."""
    if isinstance(choice, gym.spaces.Discrete):
        return
    if not isinstance(choice, gym.spaces.Box) or choice.dtype.kind != "f" or 0 in choice.shape:
        raise BrokenEnvironment(f"{who} acts in {choice}: only Discrete and float Box actions fit.")
    low, high = choice.low.ravel(), choice.high.ravel()
    wild = ~((np.maximum(np.abs(low), np.abs(high)) <= WIDEST) & (low <= high))
    if wild.any():
        k = int(wild.argmax())
        raise BrokenEnvironment(
            f"Action {k} of {who} lies in [{low[k]:g}, {high[k]:g}], to which [-1, 1] cannot be scaled: wrap "
            f"the environment so that both bounds are finite and at most {WIDEST:g} in size."
        )
