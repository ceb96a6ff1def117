"""SMACv2's battles: teams and starts that are drawn anew for every episode.

Written from SMACv2's published distributions (`weighted_teams` and `surrounded_and_reflect`). A battle's draw
is kinds (U,), the type of each unit, allies first, as an index of the race's three, and starts (2, U), cells.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from envs.compiled import njit
from envs.smac.combat import PLANE, SEPARATION, uniform
from envs.smac.maps import (
    HAND_TO_HAND,
    REWARD_DEATH,
    REWARD_SCALE,
    REWARD_WIN,
    SIZE,
    SmacMap,
    looks_of,
    spiral,
)
from envs.smac.units import (
    BANELING,
    COLOSSUS_UNIT,
    ENEMY_MEDIVAC,
    HYDRALISK,
    MARAUDER,
    MARINE,
    MEDIVAC,
    STALKER,
    ZEALOT,
    ZERGLING,
    UnitType,
)

WEIGHTS = (0.45, 0.45, 0.1)
"""Of a race's types, for each unit by itself."""
REFLECT = 0.5
"""Share of battles whose sides are each other's reflection; in the others the allies are surrounded."""
BUFFER, AROUND = 1.0, 2.0
"""Cells that reflected sides keep from the middle line, and groups around the allies, along x and y, off."""
LEAST_SHOOT = 2.0
"""Cells: from here attacking is available whatever the weapon's range."""
VIEWS = 12
"""Directions of the conic view."""
LIMIT = 200
SIZES = ((5, 5), (10, 10), (20, 20), (10, 11), (20, 23))
RACES: dict[str, tuple[UnitType, UnitType, UnitType]] = {
    "protoss": (STALKER, ZEALOT, COLOSSUS_UNIT),
    "terran": (MARINE, MARAUDER, MEDIVAC),
    "zerg": (ZERGLING, HYDRALISK, BANELING),
}
"""Types in the order of the one-hots and of `WEIGHTS`."""
_NEVER_ALONE = ("medivac", "baneling")


@dataclass(frozen=True)
class GeneratedMap(SmacMap):
    """A battle of SMACv2. `allies` and `enemies` hold its sizes; who they are is drawn."""

    race: tuple[UnitType, UnitType, UnitType] = RACES["terran"]
    drawn = True

    @cached_property
    def kinds(self) -> tuple[UnitType, ...]:
        """(6,) the types a unit may be: the agents' three, then the enemy's."""
        return self.race + tuple(ENEMY_MEDIVAC if kind is MEDIVAC else kind for kind in self.race)

    @property
    def melee(self) -> tuple[int, int]:
        """How many agents and how many enemies may fight hand to hand."""
        some = any(kind.range < HAND_TO_HAND for kind in self.race)
        return (self.num_agents, self.num_enemies) if some else (0, 0)

    @cached_property
    def cast_looks(self) -> np.ndarray:
        """(5, 6) float64: `looks_of` each; sight is a unit's own, and so is the range it may attack from."""
        bits = tuple(kind.name for kind in self.race)
        rows = [looks_of(kind, bits, kind.sight, max(kind.range, LEAST_SHOOT)) for kind in self.kinds]
        return np.array(rows, dtype=np.float64).T.copy()

    @cached_property
    def draft_rules(self) -> np.ndarray:
        """(3, 3) float64: cumulative weights, places in SMAC's order of types, who may not be alone."""
        names = [kind.name for kind in self.race]
        ranks = [sorted(names).index(name) for name in names]  # which is the order of SMAC's unit ids
        return np.array([np.cumsum(WEIGHTS), ranks, [name in _NEVER_ALONE for name in names]], dtype=float)


GENERATED: dict[str, GeneratedMap] = {
    f"10gen_{name}_{allies}_vs_{enemies}": GeneratedMap(
        f"10gen_{name}_{allies}_vs_{enemies}",
        LIMIT,
        ((race[0], allies),),
        ((race[0], enemies),),
        ally_bits=tuple(kind.name for kind in race),
        enemy_bits=tuple(kind.name for kind in race),
        band=(0.0, float(SIZE)),
        hunt=True,
        own_position=True,
        race=race,
    )
    for name, race in RACES.items()
    for allies, enemies in SIZES
}


SPIRAL = spiral(0.25)


def _source_digest() -> int:
    folder = Path(__file__).parent
    names = ("terrain.py", "units.py", "maps.py", "combat.py", "generated.py")
    return zlib.crc32(b"".join((folder / name).read_bytes() for name in names))


def _compile(digest: int) -> tuple[Callable[..., None], Callable[..., None]]:
    # As in `envs.smac.engine`: the digest makes numba's cache watch every file that kernels are made of.

    @njit(nogil=True, error_model="numpy")
    def draft_kernel(rng, select, sizes, rules, cast_floats, cast_ints, spiral, kinds, starts):
        """Draw kinds (B, U) and starts (B, 2, U) for the selected (B,) environments.

        Units are made one after another, each at the free place nearest to its own; then the agents are put
        in SMAC's order: by type, x and y. The enemy's stay in the order in which they were made.
        """
        _ = digest
        A, E = sizes[0], sizes[1]
        for b in range(kinds.shape[0]):
            if not select[b]:
                continue
            kind, start = kinds[b], starts[b]
            # Teams: the enemy copies the agents' and has some more.
            for low, high in ((0, A), (A + A, A + E)):
                again = high > low
                while again:
                    for i in range(low, high):
                        draw = uniform(rng, b)
                        kind[i] = 0 if draw < rules[0, 0] else 1 if draw < rules[0, 1] else 2
                    again = True
                    for i in range(low, high):
                        again = again and rules[2, kind[i]] > 0.0
            for i in range(A):
                kind[A + i] = kind[i]
            # Starts.
            if uniform(rng, b) <= REFLECT:
                for i in range(A):
                    start[0, i] = uniform(rng, b) * (SIZE / 2 - BUFFER)
                    start[1, i] = uniform(rng, b) * SIZE
                    start[0, A + i], start[1, A + i] = SIZE - start[0, i], start[1, i]
                for i in range(2 * A, A + E):
                    start[0, i] = SIZE / 2 * (1.0 + uniform(rng, b))
                    start[1, i] = uniform(rng, b) * SIZE
            else:
                start[:, :A] = SIZE / 2
                groups = 1 + int(4.0 * uniform(rng, b))
                x, y = np.empty(groups), np.empty(groups)
                taken = 0
                for group in range(groups):
                    # One of the corners that are left.
                    corner = int((4 - group) * uniform(rng, b))
                    for c in range(4):
                        if not taken & (1 << c):
                            if corner == 0:
                                break
                            corner -= 1
                    taken |= 1 << c
                    east, north = c % 2, c // 2
                    t = uniform(rng, b)
                    x[group] = t * (SIZE / 2 + AROUND * (2 * east - 1)) + (1.0 - t) * SIZE * east
                    y[group] = t * (SIZE / 2 + AROUND * (2 * north - 1)) + (1.0 - t) * SIZE * north
                # Sizes of groups are multinomial; the units of one follow each other.
                sizes_of = np.zeros(groups, np.int64)
                for _ in range(E):
                    sizes_of[int(groups * uniform(rng, b))] += 1
                i = A
                for group in range(groups):
                    for _ in range(sizes_of[group]):
                        start[0, i], start[1, i] = x[group], y[group]
                        i += 1
            for i in range(A + E):
                own = kind[i] + (3 if i >= A else 0)
                r, plane = cast_floats[SEPARATION, own], cast_ints[PLANE, own]
                for place in range(spiral.shape[1]):
                    px = min(max(start[0, i], r), SIZE - r) + spiral[0, place]
                    py = min(max(start[1, i], r), SIZE - r) + spiral[1, place]
                    free = r <= px <= SIZE - r and r <= py <= SIZE - r
                    for j in range(i):
                        if not free:
                            break
                        other = kind[j] + (3 if j >= A else 0)
                        if cast_ints[PLANE, other] == plane:
                            apart = math.hypot(px - start[0, j], py - start[1, j])
                            free = apart >= r + cast_floats[SEPARATION, other]
                    if free:
                        start[0, i], start[1, i] = px, py
                        break
            for i in range(1, A):
                j = i
                while j > 0:
                    before, after = rules[1, kind[j - 1]], rules[1, kind[j]]
                    x0, x1 = start[0, j - 1], start[0, j]
                    if before < after or (
                        before == after and (x0 < x1 or (x0 == x1 and start[1, j - 1] <= start[1, j]))
                    ):
                        break
                    kind[j - 1], kind[j] = kind[j], kind[j - 1]
                    start[0, j - 1], start[0, j] = x1, x0
                    start[1, j - 1], start[1, j] = start[1, j], start[1, j - 1]
                    j -= 1

    @njit(nogil=True, error_model="numpy")
    def cast_kernel(
        select, kinds, sizes, cast_floats, cast_ints, cast_bodies, cast_looks, floats, ints, bodies, looks,
        divisors,
    ):  # fmt: skip
        """Fill all units' numbers (B, rows, U) and the reward's divisors (B,) from their kinds (B, U)."""
        _ = digest
        A, U = sizes[0], kinds.shape[1]
        for b in range(kinds.shape[0]):
            if not select[b]:
                continue
            total = REWARD_WIN
            for i in range(U):
                own = kinds[b, i] + (3 if i >= A else 0)
                floats[b, :, i] = cast_floats[:, own]
                ints[b, :, i] = cast_ints[:, own]
                bodies[b, :, i] = cast_bodies[:, own]
                looks[b, :, i] = cast_looks[:, own]
                if i >= A:
                    total += REWARD_DEATH + cast_bodies[0, own] + cast_bodies[1, own]
            divisors[b] = total / REWARD_SCALE

    return draft_kernel, cast_kernel


draft_kernel, cast_kernel = _compile(_source_digest())
