"""Maps of the embedded SMAC engine: one table of battles, and the sizes SMAC derives from a map.

Unit lists, limits and points are those of SMAC's map files; `SmacMap` computes everything else.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from envs.smac import terrain
from envs.smac.terrain import PICTURES, SIZE
from envs.smac.units import (
    AIR,
    BANELING,
    COLOSSUS_UNIT,
    ENEMY_MEDIVAC,
    ENGINE_VERSION,
    GROUND,
    HYDRALISK,
    MARAUDER,
    MARINE,
    MEDIVAC,
    SPINE_CRAWLER,
    STALKER,
    STRUCTURE,
    ZEALOT,
    ZERGLING,
    UnitType,
)

Point = tuple[float, float]
START_JITTER = 0.1
"""Cells: each unit starts up to this far, in x and in y, from its place: no two battles are the same."""
SIGHT, SHOOT = 9.0, 6.0
"""Cells, centre to centre, at which SMAC's agents see, and may attack, whatever their type and weapon."""
HAND_TO_HAND = 1.0
"""Cells: weapons of less range have to surround what they hit."""
FEW = 6
"""Up to this many hand-to-hand fighters are no crowd."""
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
    ally_point: Point = (9.0, 16.0)
    """Where units start, and where the other side's attack-move goes."""
    enemy_point: Point = (23.0, 16.0)
    band: Point = (8.0, 24.0)
    """Walkable y; x is walkable over the whole width."""
    ally_points: tuple[Point, ...] = ()
    """Where each entry of `allies` starts, if not all at `ally_point`."""
    enemy_points: tuple[Point, ...] = ()
    goal: tuple[Point, Point] | None = None
    """Where the enemy's attack-move goes instead: a point between these two, drawn for each battle."""
    hunt: bool = False
    """The enemy is sent against the allied units themselves, wherever they are, instead of to a point."""
    own_position: bool = False
    """Agents see where on the map they are."""
    views: int = 0
    """Directions in which an agent may look, to see a cone (SMACv2's conic view); 0: it sees all around."""
    drawn = False
    """Whether teams and starts are drawn for every episode (`envs.smac.generated`)."""
    ground: str = ""
    """Picture of the terrain (`envs.smac.terrain`), in place of the band."""
    source: str = ""
    """Of a user's own battle: what its file says, as JSON."""

    @cached_property
    def ally_types(self) -> tuple[UnitType, ...]:
        return tuple(kind for kind, count in self.allies for _ in range(count))

    @cached_property
    def kinds(self) -> tuple[UnitType, ...]:
        """Types that take part."""
        return self.ally_types + self.enemy_types

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
    def no_attack(self) -> int:
        """Actions before the first attack: nothing, stop, four moves, looks."""
        return 6 + self.views

    @cached_property
    def num_actions(self) -> int:
        """Those, and one for each enemy; a medivac heals the ally of that number."""
        heals = any(kind.heal > 0 for kind in self.ally_types)
        return self.no_attack + max(self.num_enemies, self.num_agents if heals else 0)

    @cached_property
    def digest(self) -> int:
        """Distinguishes versions of a user's battle file; 0 for SMAC's own battles."""
        return int(hashlib.sha256(self.source.encode()).hexdigest()[:16], 16) if self.source else 0

    @cached_property
    def identity(self) -> int:
        """Distinguishes battles, also those of one name: by their file, or by the version of the engine."""
        told = f"{self.name} {self.version} {self.source}"
        return int(hashlib.sha256(told.encode()).hexdigest()[:16], 16)

    @property
    def version(self) -> int:
        """The last version of the engine that changed this battle (`units.ENGINE_VERSION`)."""
        low, high = int(self.band[0]), int(self.band[1])
        beyond = bool(self.ground) and (self.reachable[:, :low].any() or self.reachable[:, high:].any())
        fenced = self.band != (0.0, float(SIZE)) and any(kind.plane == AIR for kind in self.kinds)
        return ENGINE_VERSION if beyond or fenced or self.source else 2

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
        own = 1 + self.ally_shields + 2 * self.own_position + 2 * (self.views > 0) + self.bits
        return 4 + self.num_enemies * enemy + (self.num_agents - 1) * ally + own

    @property
    def state_dim(self) -> int:
        """Each ally, each enemy, each agent's last action one-hot."""
        ally = 4 + self.ally_shields + 2 * (self.views > 0) + self.bits
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
        if self.ground:
            return terrain.walkable(self.ground)
        grid = np.zeros((SIZE, SIZE), dtype=np.bool_)
        grid[:, int(self.band[0]) : int(self.band[1])] = True
        return grid

    @property
    def fence(self) -> Point:
        """The y within which the engine keeps who walks: the band, where there are no walls."""
        return (0.0, float(SIZE)) if self.ground else self.band

    @cached_property
    def reachable(self) -> np.ndarray:
        """(32, 32) bool: the part of the pathing grid on which the battle is fought."""
        return terrain.walkable(self.ground, ".") if self.ground else self.pathing_grid

    @property
    def melee(self) -> tuple[int, int]:
        """How many agents and how many enemies fight hand to hand."""
        sides = (self.ally_types, self.enemy_types)
        allies, enemies = (sum(0 < kind.range < HAND_TO_HAND for kind in side) for side in sides)
        return allies, enemies

    @property
    def crowded(self) -> bool:
        """Whether bodies are pushed apart three times a loop instead of once, and fighters stand firm.

        After one pass a crowd stands 0.5 cells apart instead of 0.75, so that too many of it reach what they
        surround: corridor lasted 28 steps instead of the game's 35. For fewer it makes no difference.
        """
        return max(self.melee) > FEW

    @cached_property
    def plain(self) -> bool:
        """Whether only ordinary fighters meet, on open ground, which have a kernel of their own.

        None heals, flies, explodes, stands still, regenerates, or fires while it walks, in a line or with
        claws; and no crowd fights hand to hand.
        """
        special = any(
            kind.plane != GROUND or kind.attributes & STRUCTURE or not kind.damage or kind.heal or kind.blast
            or kind.splash or kind.fires_walking or kind.melee_range or kind.regeneration
            for kind in self.kinds
        )  # fmt: skip
        return not (special or self.ground or self.crowded or self.hunt or self.drawn)

    @cached_property
    def walls(self) -> np.ndarray:
        """(32, 32) int8 of `terrain.BLOCKED`, BESIDE and OPEN; (0, 0) where the band is all there is."""
        if not self.ground:
            return np.zeros((0, 0), dtype=np.int8)
        return terrain.near_walls(self.pathing_grid)

    @cached_property
    def ways(self) -> tuple[np.ndarray, np.ndarray]:
        """`terrain.ways` over the ground that can be reached; empty where the band is all there is."""
        if not self.ground:
            return np.zeros((0, 0), dtype=np.int16), np.zeros((0, 0), dtype=np.int16)
        return terrain.ways(self.reachable)

    @cached_property
    def sizes(self) -> np.ndarray:
        """(9,) int64 for the kernels.

        Agents, enemies, actions, ally and enemy shield and type columns, actions before the first attack,
        whether agents see where they are, directions of view.
        """
        return np.array(
            [
                self.num_agents,
                self.num_enemies,
                self.num_actions,
                self.ally_shields,
                self.enemy_shields,
                self.bits,
                self.no_attack,
                self.own_position,
                self.views,
            ],
            dtype=np.int64,
        )

    @cached_property
    def looks(self) -> np.ndarray:
        """(1, 5, U) float64 for the observation, see `looks_of`; SMAC's ranges are the same for all types."""
        kinds = self.kinds
        looks = np.empty((1, 5, len(kinds)))
        for u, kind in enumerate(kinds):
            bits = self.ally_bits if u < self.num_agents else self.enemy_bits
            looks[0, :, u] = looks_of(kind, bits, SIGHT, SHOOT)
        return looks

    @cached_property
    def starts(self) -> np.ndarray:
        """(2, U) float64: x and y of every unit's place, before `START_JITTER`."""
        grid = self.reachable
        allies = _pack(self.ally_types, _each(self.allies, self.ally_points, self.ally_point), grid)
        # The enemy's units are packed as in a mirror.
        points = _each(self.enemies, self.enemy_points, self.enemy_point)
        enemies = _pack(self.enemy_types, [(SIZE - x, y) for x, y in points], grid[::-1])
        enemies[0] = SIZE - enemies[0]
        return np.concatenate([_sorted(allies, self.ally_types), enemies], axis=1)


def looks_of(kind: UnitType, bits: tuple[str, ...], sight: float, shoot: float) -> tuple[float, ...]:
    """A unit in the observation: type column (-1 none), cooldown divisor, 1 for a healer, ranges in cells."""
    return (bits.index(kind.name) if bits else -1, kind.max_cooldown, kind.heal > 0, sight, shoot)


def _each(
    groups: tuple[tuple[UnitType, int], ...], points: tuple[Point, ...], together: Point
) -> list[Point]:
    """Each unit's point, of those of the groups, if they have their own."""
    own = points or (together,) * len(groups)
    return [point for (_, count), point in zip(groups, own, strict=True) for _ in range(count)]


def spiral(spacing: float) -> np.ndarray:
    """(2, n) float64: offsets to the places within 8 cells, the nearest first."""
    grid = np.arange(-8, 8.01, spacing)
    dx, dy = (a.ravel() for a in np.meshgrid(grid, grid, indexing="ij"))
    # The angle breaks ties of distance, so that the result does not hang on how a sort treats equals.
    order = np.lexsort((np.arctan2(dy, dx), np.round(np.hypot(dx, dy), 6)))
    return np.stack([dx[order], dy[order]])


def _pack(kinds: tuple[UnitType, ...], points: Sequence[Point], grid: np.ndarray) -> np.ndarray:
    """Greedy packing: each unit in turn takes the free place nearest to its point. (2, n) float64.

    ValueError where there is none within 8 cells.
    """
    dx, dy = spiral(0.125)
    out = np.zeros((2, len(kinds)))
    at: Point | None = None
    for u, kind in enumerate(kinds):
        if points[u] != at:
            at = points[u]
            places = np.stack([at[0] + dx, at[1] + dy])
            room = terrain.room(grid, *places)
        free = room >= kind.separation
        for other in range(u):
            if kinds[other].plane == kind.plane:
                apart = kind.separation + kinds[other].separation
                free &= np.hypot(places[0] - out[0, other], places[1] - out[1, other]) >= apart
        if not free.any():
            raise ValueError(f"of {len(kinds)} units of one side only {u} fit around where they start")
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


_FAR_CORNER = ((4.47, 4.3298), (4.47, 4.3298))
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
        SmacMap(
            "2m_vs_1z",
            150,
            ((MARINE, 1), (MARINE, 1)),
            ((ZEALOT, 1),),
            ally_points=((13.0, 12.0), (19.0, 12.0)),
            enemy_point=(16.0, 19.0),
            goal=((13.0, 12.0), (19.0, 12.0)),
            ground=PICTURES["2m_vs_1z"],
        ),
        SmacMap(
            "2s_vs_1sc",
            300,
            ((STALKER, 1), (STALKER, 1)),
            ((SPINE_CRAWLER, 1),),
            ally_points=((11.1208, 10.338), (16.976, 10.3662)),
            enemy_point=(13.92, 20.0397),
            ground=PICTURES["2s_vs_1sc"],
        ),
        SmacMap(
            "so_many_baneling",
            100,
            ((ZEALOT, 7),),
            ((BANELING, 32),),
            ally_point=(11.469, 12.0234),
            enemy_point=(27.91, 28.24),
            goal=_FAR_CORNER,
            ground=PICTURES["so_many_baneling"],
        ),
        SmacMap(
            "bane_vs_bane",
            200,
            ((BANELING, 4), (ZERGLING, 20)),
            ((ZERGLING, 20), (BANELING, 4)),
            ally_bits=("baneling", "zergling"),
            enemy_bits=("baneling", "zergling"),
            ally_point=(16.0, 8.0),
            ally_points=((16.0, 8.0), (16.0, 11.0)),
            enemy_point=(16.0, 24.0),
            enemy_points=((16.0, 21.0), (16.0, 24.0)),
            ground=PICTURES["bane_vs_bane"],
        ),
        SmacMap(
            "6h_vs_8z",
            150,
            ((HYDRALISK, 6),),
            ((ZEALOT, 8),),
            ally_point=(14.5998, 9.49),
            enemy_point=(14.41, 16.7597),
            ground=PICTURES["6h_vs_8z"],
        ),
        SmacMap(
            "corridor",
            400,
            ((ZEALOT, 6),),
            ((ZERGLING, 24),),
            ally_point=(19.0397, 19.1198),
            enemy_point=(27.91, 28.24),
            goal=_FAR_CORNER,
            ground=PICTURES["corridor"],
        ),
        SmacMap(
            "2c_vs_64zg",
            400,
            ((COLOSSUS_UNIT, 2),),
            ((ZERGLING, 64),),
            ally_point=(16.0, 16.0),
            enemy_point=(16.0, 9.0),
            hunt=True,
            ground=PICTURES["2c_vs_64zg"],
        ),
    )
}


def get_map(name: str) -> SmacMap:
    """The map of that name, or the battle in that TOML file; ValueError naming what there is otherwise."""
    from envs.smac.generated import GENERATED  # which is made of this module's parts

    known = MAPS | GENERATED
    if name in known:
        return known[name]
    if name.endswith(".toml"):
        from envs.smac.battles import load

        return load(name)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    raise ValueError(
        f"There is no SMAC map {name!r}{hint}; the embedded engine has: {', '.join(MAPS)}, and of SMACv2: "
        f"10gen_RACE_SIZES, as {next(iter(GENERATED))}."
    )
