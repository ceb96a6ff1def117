"""Options of environments: parsing them from a command line, and checking their types."""

from __future__ import annotations

import ast
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from envs.base import BrokenEnvironment

MAKERS_OWN = ("env_id", "num_envs", "seed", "device")
"""What `make` takes itself: scripts have flags for it."""
WORDS = {
    bool: ("True or False", "truth values"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "text"),
    type(None): ("None", "None"),
}
"""By type: singular and plural."""


def parse(pairs: Iterable[str]) -> dict[str, Any]:
    """Options of `make` as a command line has them, "name=value", the value as in Python or JSON: numbers,
    True or true, None or null, lists, dicts and quoted text; anything else is text as it stands.
    BrokenEnvironment if one is no pair, is given twice, or is a list or a dict that is not whole."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = (part.strip() for part in pair.partition("="))
        if not equals or not name:
            raise BrokenEnvironment(f"Options are name=value pairs, e.g. num_agents=3; got {pair!r}.")
        if name in options:
            raise BrokenEnvironment(f"The option {name} is given twice, as {options[name]!r} and {text!r}.")
        if name in MAKERS_OWN:
            raise BrokenEnvironment(f"{name} is no option of an environment: it has a flag of its own.")
        options[name] = _value(name, text)
    return options


def _value(name: str, text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that literal_eval has
            continue
    if text[:1] in ("[", "{", "(", '"', "'"):
        raise BrokenEnvironment(f"The option {name} cannot be read: {text!r} is neither Python nor JSON.")
    return text


def check(env_id: str, hints: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """ValueError unless every option is of the type that `hints` has for it."""
    for name, value in options.items():
        if _fits(value, hints[name]):
            continue
        hint = ""
        if isinstance(value, int | float) and _fits("", hints[name]):  # 4.10 was read as 4.1
            hint = f"; where text reads as a number, quote it twice: {name}='\"...\"'"
        wanted = _words(hints[name])
        raise ValueError(f"The option {name} of {env_id} takes {wanted}; got {value!r}{hint}.")


def _fits(value: Any, hint: Any) -> bool:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, kind) for kind in inside)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if origin is tuple:
        return (
            isinstance(value, list | tuple) and len(value) == len(inside) and all(map(_fits, value, inside))
        )
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(_fits(one, inside[0]) for one in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_fits(key, inside[0]) for key in value)
    if hint is bool or isinstance(value, bool | np.bool_):  # which Python counts among the integers
        return hint is bool and isinstance(value, bool | np.bool_)
    if hint is int:
        return isinstance(value, int | np.integer) and abs(int(value)) < 2**63
    if hint is float:  # NaN is not a number
        return isinstance(value, int | float | np.integer | np.floating) and value == value
    return isinstance(value, hint)


def _words(hint: Any, many: bool = False) -> str:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_words, inside))
    if origin is tuple:
        return f"a list of {len(inside)} {_words(inside[0], many=True)}"
    if origin is Sequence:
        return f"{'lists' if many else 'a list'} of {_words(inside[0], many=True)}"
    return "a dict of keywords" if origin is Mapping else WORDS[hint][many]
