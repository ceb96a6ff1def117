"""Maps of the embedded SMAC engine: one table of battles, and the sizes SMAC derives from a map.

Unit lists, limits and points are those of SMAC's map files; `SmacMap` computes everything else.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from envs.smac.units import (
    COLOSSUS_UNIT,
    ENEMY_MEDIVAC,
    MARAUDER,
    MARINE,
    MEDIVAC,
    STALKER,
    ZEALOT,
    UnitType,
)

SIZE = 32
"""Every map is 32 by 32 cells."""
START_JITTER = 0.1
"""Cells: each unit starts up to this far, in x and in y, from its place: no two battles are the same."""
REWARD_WIN, REWARD_DEATH, REWARD_SCALE = 200.0, 10.0, 20.0


@dataclass(frozen=True)
class SmacMap:
    """One battle. Agents are listed in SMAC's order, by type (a battle orders each type by x and y, once the
    units stand); enemies in the order in which the map's script makes them."""

    name: str
    limit: int
    """Steps."""
    allies: tuple[tuple[UnitType, int], ...]
    enemies: tuple[tuple[UnitType, int], ...]
    ally_bits: tuple[str, ...] = ()
    """Types in the order of the allies' one-hot; empty where SMAC has no type columns."""
    enemy_bits: tuple[str, ...] = ()
    """The same for enemies: SMAC orders stalkers and zealots the other way round there."""
    ally_point: tuple[float, float] = (9.0, 16.0)
    enemy_point: tuple[float, float] = (23.0, 16.0)
    band: tuple[float, float] = (8.0, 24.0)
    """Walkable y; x is walkable over the whole width."""

    @cached_property
    def ally_types(self) -> tuple[UnitType, ...]:
        return tuple(kind for kind, count in self.allies for _ in range(count))

    @cached_property
    def enemy_types(self) -> tuple[UnitType, ...]:
        return tuple(kind for kind, count in self.enemies for _ in range(count))

    @property
    def num_agents(self) -> int:
        return len(self.ally_types)

    @property
    def num_enemies(self) -> int:
        return len(self.enemy_types)

    @property
    def num_actions(self) -> int:
        return 6 + self.num_enemies

    @property
    def bits(self) -> int:
        return len(self.ally_bits)

    @cached_property
    def ally_shields(self) -> int:
        return int(any(kind.shield > 0 for kind in self.ally_types))

    @cached_property
    def enemy_shields(self) -> int:
        return int(any(kind.shield > 0 for kind in self.enemy_types))

    @property
    def obs_dim(self) -> int:
        """4 moves, each enemy, each other ally, oneself."""
        enemy = 5 + self.enemy_shields + self.bits
        ally = 5 + self.ally_shields + self.bits
        own = 1 + self.ally_shields + self.bits
        return 4 + self.num_enemies * enemy + (self.num_agents - 1) * ally + own

    @property
    def state_dim(self) -> int:
        """Each ally, each enemy, each agent's last action one-hot."""
        ally = 4 + self.ally_shields + self.bits
        enemy = 3 + self.enemy_shields + self.bits
        return self.num_agents * (ally + self.num_actions) + self.num_enemies * enemy

    @cached_property
    def max_reward(self) -> float:
        """SMAC's largest sum of rewards before scaling: all damage once, all deaths, the win."""
        body = sum(kind.health + kind.shield for kind in self.enemy_types)
        return REWARD_WIN + REWARD_DEATH * self.num_enemies + body

    @cached_property
    def pathing_grid(self) -> np.ndarray:
        """(32, 32) bool, indexed [x, y]: True where a unit may walk."""
        grid = np.zeros((SIZE, SIZE), dtype=np.bool_)
        grid[:, int(self.band[0]) : int(self.band[1])] = True
        return grid

    @cached_property
    def sizes(self) -> np.ndarray:
        """(6,) int64 for the kernels: agents, enemies, actions, ally and enemy shield and type columns."""
        return np.array(
            [
                self.num_agents,
                self.num_enemies,
                self.num_actions,
                self.ally_shields,
                self.enemy_shields,
                self.bits,
            ],
            dtype=np.int64,
        )

    @cached_property
    def looks(self) -> np.ndarray:
        """(3, U) float64 for the observation: type column (-1 none), cooldown divisor, 1 for a healer."""
        kinds = self.ally_types + self.enemy_types
        looks = np.full((3, len(kinds)), -1.0)
        for u, kind in enumerate(kinds):
            bits = self.ally_bits if u < self.num_agents else self.enemy_bits
            looks[:, u] = (bits.index(kind.name) if bits else -1, kind.max_cooldown, kind.heal > 0)
        return looks

    @cached_property
    def starts(self) -> np.ndarray:
        """(2, U) float64: x and y of every unit's place, before `START_JITTER`."""
        allies = _sorted(_pack(self.ally_types, self.ally_point, self.band), self.ally_types)
        mirror = (SIZE - self.enemy_point[0], self.enemy_point[1])
        enemies = _pack(self.enemy_types, mirror, self.band)
        enemies[0] = SIZE - enemies[0]
        return np.concatenate([allies, enemies], axis=1)


def _pack(kinds: tuple[UnitType, ...], point: tuple[float, float], band: tuple[float, float]) -> np.ndarray:
    """Greedy packing: each unit in turn takes the free place nearest to the point. (2, n) float64."""
    grid = np.arange(-8, 8.01, 0.125)
    dx, dy = (a.ravel() for a in np.meshgrid(grid, grid, indexing="ij"))
    # The angle breaks ties of distance, so that the result does not hang on how a sort treats equals.
    order = np.lexsort((np.arctan2(dy, dx), np.round(np.hypot(dx, dy), 6)))
    places = np.stack([point[0] + dx[order], point[1] + dy[order]])
    out = np.zeros((2, len(kinds)))
    for u, kind in enumerate(kinds):
        free = (places[1] >= band[0] + kind.separation) & (places[1] <= band[1] - kind.separation)
        for other in range(u):
            if kinds[other].plane == kind.plane:
                apart = kind.separation + kinds[other].separation
                free &= np.hypot(places[0] - out[0, other], places[1] - out[1, other]) >= apart
        out[:, u] = places[:, np.argmax(free)]
    return out


def _sorted(places: np.ndarray, kinds: tuple[UnitType, ...]) -> np.ndarray:
    """Sort the places of each type by (x, y), as SMAC orders its agents."""
    names = [kind.name for kind in kinds]
    rank = [names.index(name) for name in names]
    return places[:, np.lexsort((places[1], places[0], rank))]


def _marines(name: str, allies: int, enemies: int, limit: int) -> SmacMap:
    return SmacMap(name, limit, ((MARINE, allies),), ((MARINE, enemies),))


def _gateway(name: str, allies: tuple[int, int], enemies: tuple[int, int], limit: int) -> SmacMap:
    return SmacMap(
        name,
        limit,
        ((STALKER, allies[0]), (ZEALOT, allies[1])),
        ((STALKER, enemies[0]), (ZEALOT, enemies[1])),
        ally_bits=("stalker", "zealot"),
        enemy_bits=("zealot", "stalker"),
    )


def _kite(name: str, enemies: int, limit: int) -> SmacMap:
    return SmacMap(name, limit, ((STALKER, 3),), ((ZEALOT, enemies),), band=(0.0, float(SIZE)))


def _bio(name: str, enemy_marauders: int, enemy_marines: int, limit: int) -> SmacMap:
    bits = ("marauder", "marine", "medivac")
    return SmacMap(
        name,
        limit,
        ((MARAUDER, 2), (MARINE, 7), (MEDIVAC, 1)),
        ((MARINE, enemy_marines), (MARAUDER, enemy_marauders), (ENEMY_MEDIVAC, 1)),
        ally_bits=bits,
        enemy_bits=bits,
    )


_TECH = ((COLOSSUS_UNIT, 1), (STALKER, 3), (ZEALOT, 5))
_TECH_BITS = ("colossus", "stalker", "zealot")

MAPS: dict[str, SmacMap] = {
    m.name: m
    for m in (
        _marines("3m", 3, 3, 60),
        _marines("8m", 8, 8, 120),
        _marines("25m", 25, 25, 150),
        _marines("5m_vs_6m", 5, 6, 70),
        _marines("8m_vs_9m", 8, 9, 120),
        _marines("10m_vs_11m", 10, 11, 150),
        _marines("27m_vs_30m", 27, 30, 180),
        _gateway("2s3z", (2, 3), (2, 3), 120),
        _gateway("3s5z", (3, 5), (3, 5), 150),
        _gateway("3s5z_vs_3s6z", (3, 5), (3, 6), 170),
        _kite("3s_vs_3z", 3, 150),
        _kite("3s_vs_4z", 4, 200),
        _kite("3s_vs_5z", 5, 250),
        SmacMap("1c3s5z", 180, _TECH, _TECH, ally_bits=_TECH_BITS, enemy_bits=_TECH_BITS),
        _bio("MMM", 2, 7, 150),
        _bio("MMM2", 3, 8, 180),
    )
}

NOT_YET = (
    "2c_vs_64zg",
    "2m_vs_1z",
    "2s_vs_1sc",
    "6h_vs_8z",
    "bane_vs_bane",
    "corridor",
    "so_many_baneling",
)
"""Maps of SMAC that the embedded engine does not offer."""


def get_map(name: str) -> SmacMap:
    """The map of that name; ValueError naming what there is otherwise."""
    if name in MAPS:
        return MAPS[name]
    offered = ", ".join(MAPS)
    if name in NOT_YET:
        raise ValueError(f"The embedded engine does not have SMAC's map {name!r} yet; use one of: {offered}.")
    near = difflib.get_close_matches(name, MAPS, n=3, cutoff=0.4)
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    raise ValueError(f"There is no SMAC map {name!r}{hint}; the embedded engine has: {offered}.")
