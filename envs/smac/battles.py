"""Battles of one's own: a TOML file as a map of the embedded SMAC engine. Its fields are in docs/envs.md."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from envs.smac import terrain, units
from envs.smac.maps import MAPS, SIZE, Point, SmacMap
from envs.smac.units import UnitType

ENDING = ".toml"
UNITS: dict[str, tuple[UnitType, UnitType]] = {
    kind.name: (kind, units.ENEMY_MEDIVAC if kind is units.MEDIVAC else kind)
    for kind in (
        units.BANELING,
        units.COLOSSUS_UNIT,
        units.HYDRALISK,
        units.MARAUDER,
        units.MARINE,
        units.MEDIVAC,
        units.SPINE_CRAWLER,
        units.STALKER,
        units.ZEALOT,
        units.ZERGLING,
    )
}
"""What a file may ask for: of the agents and of the enemy."""
MOST_UNITS = 100
"""Of each side. An agent has an action, and inputs, for every enemy."""
LONGEST = 10_000
FIELDS, GROUP_FIELDS = ("limit", "allies", "enemies", "ground", "goal", "hunt"), ("unit", "count", "at")
SIDES = ("allies", "enemies")

Groups = tuple[tuple[UnitType, int], ...]


def load(path: str) -> SmacMap:
    """The battle in a TOML file, named after it; ValueError, one sentence, where there is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise ValueError(f"The battle {path} cannot be read: {reason}.") from error
    try:
        fields = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"The battle {path} is not TOML: {error}.") from error
    name = Path(path).name
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise ValueError(f"The battle {path} names runs: letters, digits, '_', '-' and '.' alone, please.")
    try:
        battle = _battle(name, fields)
        _ = battle.starts
    except ValueError as error:
        raise ValueError(f"The battle {path} cannot be played: {error}.") from error
    return battle


def _battle(name: str, fields: dict[str, Any]) -> SmacMap:
    _known(fields, FIELDS, "field")
    for field in ("limit", *SIDES):
        if field not in fields:
            raise ValueError(f"{field} is missing")
    picture, band = _ground(fields.get("ground", "8m"))
    allies, ally_points = _side(fields["allies"], 0)
    enemies, enemy_points = _side(fields["enemies"], 1)
    # SMAC numbers agents by type; the enemy keeps the file's order.
    order = sorted(range(len(allies)), key=lambda group: allies[group][0].name)
    first = ally_points[0]
    goal = _point(fields["goal"], "goal") if "goal" in fields else first
    hunt = fields.get("hunt", False)
    if not isinstance(hunt, bool):
        raise ValueError(f"hunt must be true or false, got {hunt!r}")
    names = sorted({kind.name for kind, _ in allies + enemies})
    several = max(len({kind.name for kind, _ in side}) for side in (allies, enemies)) > 1
    battle = SmacMap(
        name,
        _whole(fields["limit"], "limit", LONGEST),
        tuple(allies[group] for group in order),
        enemies,
        ally_bits=tuple(names) if several else (),
        enemy_bits=tuple(names) if several else (),
        ally_point=first,
        enemy_point=enemy_points[0],
        band=band,
        ally_points=tuple(ally_points[group] for group in order),
        enemy_points=enemy_points,
        goal=(goal, goal),
        hunt=hunt,
        ground=picture,
        source=json.dumps(fields, sort_keys=True),
    )
    for what, points in (("allies", ally_points), ("enemies", enemy_points), ("goal", (goal,))):
        for x, y in points:
            if not battle.reachable[int(x), int(y)]:
                raise ValueError(f"{what} at [{x:g}, {y:g}] is not on walkable ground")
    return battle


def _known(given: Collection[str], fields: Collection[str], what: str) -> None:
    for name in given:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f", did you mean {near[0]!r}?" if near else f"; there are {', '.join(fields)}"
            raise ValueError(f"there is no {what} {name!r}{hint}".rstrip("?"))


def _whole(value: Any, what: str, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{what} must be a whole number from 1 to {most}, got {value!r}")
    return value


def _point(value: Any, what: str) -> Point:
    numbers = isinstance(value, list) and all(type(number) in (int, float) for number in value)
    if not numbers or len(value) != 2 or not all(0 <= number < SIZE for number in value):
        raise ValueError(f"{what} must be [x, y], two numbers from 0 to less than {SIZE}, got {value!r}")
    return float(value[0]), float(value[1])


def _ground(value: Any) -> tuple[str, Point]:
    """Picture and band of a map's name, or of a picture."""
    if not isinstance(value, str):
        raise ValueError(f"ground must be a map's name or a picture in text, got {value!r}")
    if "\n" in value:
        terrain.walkable(value)
        return value, (0.0, float(SIZE))
    if value not in MAPS:
        near = difflib.get_close_matches(value, MAPS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}" if near else f"there are {', '.join(MAPS)}"
        raise ValueError(f"ground {value!r} is no map; {hint}")
    return MAPS[value].ground, MAPS[value].band


def _side(groups: Any, enemy: int) -> tuple[Groups, tuple[Point, ...]]:
    """Types with counts, and points, of one side."""
    side = SIDES[enemy]
    if not isinstance(groups, list) or not groups or not all(isinstance(group, dict) for group in groups):
        raise ValueError(f"{side} must be tables, [[{side}]], at least one")
    kinds, points = [], []
    for group in groups:
        _known(group, GROUP_FIELDS, f"field of {side}")
        for field in GROUP_FIELDS:
            if field not in group:
                raise ValueError(f"{field} is missing in {side}")
        if not isinstance(group["unit"], str):
            raise ValueError(f"unit in {side} must be text, got {group['unit']!r}")
        _known([group["unit"]], UNITS, "unit")
        kinds.append((UNITS[group["unit"]][enemy], _whole(group["count"], f"count in {side}", MOST_UNITS)))
        points.append(_point(group["at"], f"at in {side}"))
    if sum(count for _, count in kinds) > MOST_UNITS:
        raise ValueError(f"{side} are more than {MOST_UNITS} units")
    if all(kind.heal > 0 for kind, _ in kinds):
        raise ValueError(f"{side} have nobody who fights, and have lost before they begin")
    return tuple(kinds), tuple(points)
