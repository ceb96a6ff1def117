"""Unit types of the embedded SMAC engine: the one table that holds every number of a unit.

Numbers are those of StarCraft II's multiplayer data (VoidMulti, version 4.10) as the game's data files state
them: seconds are "normal" seconds of 16 game loops, distances are map cells. The engine packs the
rows it needs into arrays, in game loops.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

ENGINE_VERSION = 3
"""Raised with whatever changes how battles go: results of different versions never mix. A battle has the last
version that changed it (`SmacMap.version`). The first had no turning and numbered agents before the jitter of
their starts; results of it hold no version. The second kept units on maps with walls, and flyers, within the
band of the open maps."""
LOOPS_PER_SECOND = 16
STEP_LOOPS = 8
"""Game loops in one environment step (SMAC's step_mul)."""

GROUND, AIR, COLOSSUS = 0, 1, 2
"""Planes: units collide within a plane; a colossus walks over ground units and anti-air weapons reach it."""

LIGHT, ARMOURED, BIOLOGICAL, STRUCTURE = 1, 2, 4, 8
"""Attribute bits, as weapons' bonus damage and healing ask for them."""

WEAPON_DELAY = (-1.0, 2.0)
"""Loops, uniform: the random delay StarCraft II adds to every weapon period (-0.0625 s to 0.125 s)."""
TURN_RATE = 999.84 / LOOPS_PER_SECOND
"""Degrees a unit, or its turret, turns in a loop."""
ARC_SLOP = 11.25
"""Degrees between a unit's facing and its target within which its weapon may go off."""
FIRST_WINDUP = 2.0
"""Loops that the wind-up of an agent's new attack order takes at least, whatever its damage point. Not in the
game's data: an assumption that the real game's logs bear out (docs/envs.md, Calibration); 0 is none."""
CALL_FOR_HELP = (4.0, 2.0)
"""Cells around a unit that is hit within which friends go for the attacker, and seconds for which."""
MINIMUM_DAMAGE = 0.5
SHIELD_DELAY = 160.0
"""Loops without a hit before shields regenerate (10 s)."""
SHIELD_RATE = 2.0 / LOOPS_PER_SECOND
"""Shield per loop (2 per s)."""


@dataclass(frozen=True)
class UnitType:
    """One row of the unit table. Lengths in cells, times in normal seconds, speeds in cells per second."""

    name: str
    health: float
    shield: float
    armour: float
    speed: float
    accel: float
    sight: float
    radius: float
    separation: float
    plane: int
    attributes: int
    max_cooldown: float
    """Divisor of the cooldown in SMAC's state, loops (a medivac's energy is divided by it)."""
    damage: float = 0.0
    bonus: float = 0.0
    bonus_attributes: int = 0
    hits: int = 1
    """Times the damage is applied, each less armour."""
    second_hit: float = 0.0
    """Delay of the second hit; 0 means that all hits land together."""
    period: float = 0.0
    range: float = 0.0
    scan: float = 5.0
    slop: float = 1.0
    """A target that backs off during the damage point is still hit up to this far beyond the range."""
    damage_point: float = 0.0
    hits_air: bool = False
    missile_speed: float = 0.0
    """0 hits at once, or after `hit_delay`."""
    hit_delay: float = 0.0
    fires_walking: bool = False
    """On an attack-move, walking to its target, it shoots at what else is in range."""
    always_threatens: bool = False
    """Enemies shoot at it as at armed units, whatever it does (AlwaysThreatens)."""
    splash: float = 0.0
    """Half length of the line across the target that is hit."""
    blast: float = 0.0
    """The unit explodes when it attacks or is killed: all enemies on the ground are hit whose bodies are
    within so many cells of its centre."""
    structure_bonus: float = 0.0
    """Damage added against structures."""
    melee_range: float = 0.0
    """Targets this near are hit without a missile, with this damage point and period; 0: none."""
    melee_point: float = 0.0
    melee_period: float = 0.0
    regeneration: float = 0.0
    """Health per second, at all times."""
    heal: float = 0.0
    """Health per second, at `range`; sought within `scan`."""
    heal_cost: float = 0.0
    """Energy per point of health."""
    heal_minimum: float = 0.0
    """Energy that a heal needs to start (from memory)."""
    energy: float = 0.0
    energy_max: float = 0.0
    energy_rate: float = 0.0


# Acceleration is as good as instant for every unit but the medivac.
_INSTANT = 1000.0

MARINE = UnitType(
    name="marine", health=45, shield=0, armour=0, speed=2.25, accel=_INSTANT, sight=9, radius=0.375,
    separation=0.375, plane=GROUND, attributes=LIGHT | BIOLOGICAL, max_cooldown=15, damage=6, period=0.8608,
    range=5, scan=5.5, damage_point=0.05, hits_air=True,
)  # fmt: skip
MARAUDER = UnitType(
    name="marauder", health=125, shield=0, armour=1, speed=2.25, accel=_INSTANT, sight=10, radius=0.5625,
    separation=0.5, plane=GROUND, attributes=ARMOURED | BIOLOGICAL, max_cooldown=25, damage=10, bonus=10,
    bonus_attributes=ARMOURED, period=1.5, range=6, scan=6.5,
    missile_speed=20,
)  # fmt: skip
MEDIVAC = UnitType(
    name="medivac", health=150, shield=0, armour=1, speed=2.75, accel=2.3125, sight=11, radius=0.75,
    separation=0.75, plane=AIR, attributes=ARMOURED, max_cooldown=200, range=4, scan=6, heal=9,
    heal_cost=0.33, heal_minimum=5, energy=50, energy_max=200, energy_rate=0.5625,
    always_threatens=True,
)  # fmt: skip
# SMAC's maps give the agents a copy of the medivac, with the campaign's speed and AlwaysThreatens; the enemy
# has the standard one.
ENEMY_MEDIVAC = replace(MEDIVAC, speed=2.5, accel=2.25, always_threatens=False)
STALKER = UnitType(
    name="stalker", health=80, shield=80, armour=1, speed=2.9531, accel=_INSTANT, sight=10, radius=0.625,
    separation=0.625, plane=GROUND, attributes=ARMOURED, max_cooldown=35, damage=13, bonus=5,
    bonus_attributes=ARMOURED, period=1.87, range=6, scan=6.5, damage_point=0.167, hits_air=True,
    missile_speed=18.75,
)  # fmt: skip
ZEALOT = UnitType(
    name="zealot", health=100, shield=50, armour=1, speed=2.25, accel=_INSTANT, sight=9, radius=0.5,
    separation=0.375, plane=GROUND, attributes=LIGHT | BIOLOGICAL, max_cooldown=22, damage=8, hits=2,
    second_hit=0.28, period=1.2, range=0.1,
)  # fmt: skip
COLOSSUS_UNIT = UnitType(
    name="colossus", health=200, shield=150, armour=1, speed=2.25, accel=_INSTANT, sight=10, radius=1.0,
    separation=0.75, plane=COLOSSUS, attributes=ARMOURED, max_cooldown=24, damage=10, bonus=5,
    bonus_attributes=LIGHT, hits=2, period=1.5, range=7, scan=7.5, slop=0, damage_point=0.083, splash=1.25,
    hit_delay=0.36,  # 0.25 s, and on average over the two beams 0.11 s until they get there
    fires_walking=True,
)  # fmt: skip
ZERGLING = UnitType(
    name="zergling", health=35, shield=0, armour=0, speed=2.9531, accel=_INSTANT, sight=8, radius=0.375,
    separation=0.375, plane=GROUND, attributes=LIGHT | BIOLOGICAL, max_cooldown=11, damage=5, period=0.696,
    range=0.1, damage_point=0.167, regeneration=0.2734,
)  # fmt: skip
BANELING = UnitType(
    name="baneling", health=30, shield=0, armour=0, speed=2.5, accel=_INSTANT, sight=8, radius=0.375,
    separation=0.375, plane=GROUND, attributes=BIOLOGICAL, max_cooldown=1, damage=20, bonus=15,
    bonus_attributes=LIGHT, period=0.833, range=0.25, blast=2.2, structure_bonus=60, regeneration=0.2734,
)  # fmt: skip
# The agents' copy, in SMAC's maps; the multiplayer game's own has 90 health.
HYDRALISK = UnitType(
    name="hydralisk", health=80, shield=0, armour=0, speed=2.25, accel=_INSTANT, sight=9, radius=0.625,
    separation=0.5, plane=GROUND, attributes=LIGHT | BIOLOGICAL, max_cooldown=10, damage=12, period=0.825,
    range=5, scan=5.5, damage_point=0.208, hits_air=True, missile_speed=40, melee_range=0.5, melee_point=0.3,
    melee_period=0.75, regeneration=0.2734,
)  # fmt: skip
# Biological, too, but a medivac does not heal structures. The missile stands for its tentacle, which takes a
# quarter of a second for seven cells. It keeps its health on SMAC's map, where its surroundings are creep.
SPINE_CRAWLER = UnitType(
    name="spine_crawler", health=300, shield=0, armour=2, speed=0, accel=_INSTANT, sight=11, radius=0.875,
    separation=0.875, plane=GROUND, attributes=ARMOURED | STRUCTURE, max_cooldown=15, damage=25, bonus=5,
    bonus_attributes=ARMOURED, period=1.85, range=7, scan=7, slop=0, damage_point=0.3332, missile_speed=28,
    regeneration=0.2734,
)  # fmt: skip
