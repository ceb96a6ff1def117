"""Numbers of StarCraft II's units, written down once more from the game's data, and rules that one or a few
units show: single blows, an attack-move's end, how bodies make way for each other and for walls.
"""

from __future__ import annotations

import numpy as np
import pytest

from envs.smac import SmacVectorEnv, combat, engine, terrain, units
from envs.smac.battles import UNITS
from envs.smac.maps import MAPS, get_map
from tests.envs.test_smac_engine import arrange, health, loops_until_hurt, one_loop, only

# Health, shield, armour, regeneration, speed, acceleration, sight, radius, separation, attributes. A spine
# crawler is biological as well, but nothing asks for that: no bonus, and medivacs heal no structure.
BODIES = {
    "marine": (45, 0, 0, 0, 2.25, 1000, 9, 0.375, 0.375, "light biological"),
    "marauder": (125, 0, 1, 0, 2.25, 1000, 10, 0.5625, 0.5, "armoured biological"),
    "medivac": (150, 0, 1, 0, 2.75, 2.3125, 11, 0.75, 0.75, "armoured"),
    "stalker": (80, 80, 1, 0, 2.9531, 1000, 10, 0.625, 0.625, "armoured"),
    "zealot": (100, 50, 1, 0, 2.25, 1000, 9, 0.5, 0.375, "light biological"),
    "colossus": (200, 150, 1, 0, 2.25, 1000, 10, 1.0, 0.75, "armoured"),
    "zergling": (35, 0, 0, 0.2734, 2.9531, 1000, 8, 0.375, 0.375, "light biological"),
    "baneling": (30, 0, 0, 0.2734, 2.5, 1000, 8, 0.375, 0.375, "biological"),
    "hydralisk": (80, 0, 0, 0.2734, 2.25, 1000, 9, 0.625, 0.5, "light biological"),
    "spine_crawler": (300, 0, 2, 0.2734, 0, 1000, 11, 0.875, 0.875, "armoured structure"),
}
BODY = ("health", "shield", "armour", "regeneration", "speed", "accel", "sight", "radius", "separation")
# Damage, bonus and against whom, attacks, period, range, scan range, slop, damage point.
WEAPONS = {
    "marine": (6, 0, "", 1, 0.8608, 5, 5.5, 1, 0.05),
    "marauder": (10, 10, "armoured", 1, 1.5, 6, 6.5, 1, 0),
    "stalker": (13, 5, "armoured", 1, 1.87, 6, 6.5, 1, 0.167),
    "zealot": (8, 0, "", 2, 1.2, 0.1, 5, 1, 0),
    "colossus": (10, 5, "light", 2, 1.5, 7, 7.5, 0, 0.083),
    "zergling": (5, 0, "", 1, 0.696, 0.1, 5, 1, 0.167),
    "baneling": (20, 15, "light", 1, 0.833, 0.25, 5, 1, 0),
    "hydralisk": (12, 0, "", 1, 0.825, 5, 5.5, 1, 0.208),
    "spine_crawler": (25, 5, "armoured", 1, 1.85, 7, 7, 0, 0.3332),
}
WEAPON = ("damage", "bonus", "bonus_attributes", "hits", "period", "range", "scan", "slop", "damage_point")
SPECIAL = {
    "stalker": {"missile_speed": 18.75},
    "zealot": {"second_hit": 0.28},
    "colossus": {"splash": 1.25, "fires_walking": True},
    "baneling": {"blast": 2.2, "structure_bonus": 80 - 20},
    "hydralisk": {"missile_speed": 40, "melee_range": 0.5, "melee_point": 0.3, "melee_period": 0.75},
    "medivac": {
        "damage": 0,
        "range": 4,
        "scan": 6,
        "heal": 9,
        "heal_cost": 0.33,
        "heal_minimum": 5,
        "energy": 50,
        "energy_max": 200,
        "energy_rate": 0.5625,
        "always_threatens": True,
    },
}
ATTRIBUTES = {
    "light": units.LIGHT,
    "armoured": units.ARMOURED,
    "biological": units.BIOLOGICAL,
    "structure": units.STRUCTURE,
}
# Cooldown and speed as players read them: the "faster" game runs 1.4 times as fast as the data's seconds.
PUBLISHED = {
    "marine": (0.61, 3.15),
    "marauder": (1.07, 3.15),
    "stalker": (1.34, 4.13),
    "zealot": (0.86, 3.15),
    "colossus": (1.07, 3.15),
    "zergling": (0.497, 4.13),
    "hydralisk": (0.59, 3.15),
    "spine_crawler": (1.32, 0),
}


def bits(attributes: str) -> int:
    return sum(ATTRIBUTES[name] for name in attributes.split())


def stand(env: SmacVectorEnv) -> None:
    """The enemy of environment 0 stands, and shoots at nobody."""
    state = env.get_state()
    state["links"][0, combat.ORDER, env.num_agents :] = combat.STOP
    env.set_state(state)


def pushed(kind, places, paces=(), crowded=True, fight=False, walls=None) -> np.ndarray:
    """Where bodies of one type end (2, n) that were put at places (x, y), once they have made way.

    paces: at which they came, 0 if not told; fight: whether they have targets.
    """
    n = len(places)
    floats, ints, _ = engine.columns((kind,) * n)
    u, table = np.zeros((combat.STATE_ROWS, n)), engine.rules_of(get_map("corridor"))
    u[combat.HP], u[[combat.X, combat.Y]] = 1.0, np.array(places, float).T
    u[combat.PACE], table[combat.CROWDED] = paces or 0.0, crowded
    target, by_x, who = np.full(n, 0 if fight else -1), np.arange(n), np.empty(n, np.int64)
    step, line, widest = np.zeros((2, n)), np.empty((6, n)), floats[combat.SEPARATION].max()
    walls = np.zeros((0, 0), np.int8) if walls is None else walls
    combat.push(u, target, by_x, step, line, who, floats, ints, widest, table, walls, False)
    return u[[combat.X, combat.Y]]


@pytest.mark.parametrize("name", UNITS)
def test_units_are_those_of_the_games_data(name):
    """Battles would be won or lost by numbers that StarCraft II does not have."""
    ours, theirs = UNITS[name]
    *body, attributes = BODIES[name]
    assert [getattr(ours, field) for field in BODY] == body and ours.attributes == bits(attributes)
    if name in WEAPONS:
        weapon = [bits(value) if isinstance(value, str) else value for value in WEAPONS[name]]
        assert [getattr(ours, field) for field in WEAPON] == weapon
        assert ours.hits_air == (name in ("marine", "stalker", "hydralisk"))
    for field, value in SPECIAL.get(name, {}).items():
        assert getattr(ours, field) == value, field
    if name == "medivac":  # the agents' copy is the campaign's
        assert (theirs.speed, theirs.accel, theirs.always_threatens) == (2.5, 2.25, False)
    else:
        assert theirs is ours


@pytest.mark.parametrize("name", PUBLISHED)
def test_cooldowns_and_speeds_are_the_published_ones_in_normal_seconds(name):
    """On the clock of the ladder everything would fire and walk 1.4 times as fast."""
    cooldown, speed = PUBLISHED[name]
    kind, _ = UNITS[name]
    assert kind.period == pytest.approx(1.4 * cooldown, abs=0.01)
    assert kind.speed == pytest.approx(speed / 1.4, abs=0.01)


def test_a_blow_that_the_shield_and_the_armour_take_costs_half_a_point(monkeypatch):
    """DamageMinimum of the game's data: the last bit of a shield would stop any shot."""
    stalker, zealot = 0, 3
    env = one_loop("3s_vs_3z", monkeypatch, X={stalker: 14.0, zealot: 19.0}, SH={zealot: 12.8})
    arrange(env, HURT_AT={zealot: 0.0})
    loops_until_hurt(env, zealot, {stalker: 6})
    u = env.get_state()["units"][0]
    # Of 13 the shield takes 12.8; 0.2 less an armour of 1 is none.
    assert u[combat.SH, zealot] == 0 and u[combat.HP, zealot] == 99.5


@pytest.mark.parametrize(
    ("change", "falls"),
    [
        ({}, True),
        ({"HP": {2: 0.0}}, False),  # whoever struck has died
        ({"X": {5: 13.0 + 1.125 + 0.9}}, True),
        ({"X": {5: 13.0 + 1.125 + 1.3}}, False),  # beyond its range of 0.1 and the slop of 1
    ],
)
def test_a_zealots_second_blade_falls_a_quarter_second_later_if_it_can(change, falls, monkeypatch):
    """A stalker that steps back, or kills the zealot, would be hit twice all the same, or both at once."""
    zealot, stalker = 2, 5
    env = one_loop("2s3z", monkeypatch, X={zealot: 13.0, 3: 4.0, stalker: 14.1})
    stand(env)
    loops_until_hurt(env, stalker, {zealot: 6})
    assert health(env, stalker) == 160 - 8
    arrange(env, **change)
    if falls:
        assert loops_until_hurt(env, stalker, {}) == 5  # 0.28 s are 4.48 loops
        assert health(env, stalker) == 160 - 2 * 8
    else:
        with pytest.raises(AssertionError, match="not hurt"):
            loops_until_hurt(env, stalker, {}, most=12)


def test_a_target_that_leaves_the_range_is_hit_within_the_slop_and_a_colossus_has_none(monkeypatch):
    """Whoever backs off while a marine raises its gun would go free; or kiting a colossus would cost more."""
    slop = {kind.name: kind.slop for m in MAPS.values() for kind in m.ally_types}
    assert slop.pop("colossus") == 0.0 and set(slop.values()) == {1.0}
    for gap, hit in ((5.9, True), (6.1, False)):  # of a range of 5, edge to edge
        env = one_loop("3m", monkeypatch, X={0: 13.0, 3: 13.0 + 0.75 + 4.9})
        stand(env)
        with pytest.raises(AssertionError, match="not hurt"):  # the wind-up of two loops begins
            loops_until_hurt(env, 3, {0: 6}, most=1)
        arrange(env, X={3: 13.0 + 0.75 + gap})
        if hit:
            assert loops_until_hurt(env, 3, {0: 6}, most=2) == 2
        else:
            with pytest.raises(AssertionError, match="not hurt"):
                loops_until_hurt(env, 3, {0: 6}, most=2)


def test_an_attack_move_is_over_one_cell_from_its_goal(monkeypatch):
    """Enemies would crowd onto one point, or stop before they see who waits there."""
    enemy = 3
    env = one_loop("3m", monkeypatch, X={0: 30.0, enemy: 14.0}, Y={0: 9.0, enemy: 18.0})
    gone = []
    for _ in range(48):
        env.step(only(env, 1))
        u = env.get_state()["units"][0, :, enemy]
        gone.append(np.hypot(u[combat.X] - 9, u[combat.Y] - 16))
    # 29 ** 0.5 cells off, at 2.25 / 16 a loop: there after 32 loops.
    assert gone[30] > 1.01
    np.testing.assert_allclose(gone[31:], 1.0)


@pytest.mark.parametrize(("crowded", "gap"), [(True, 0.71875), (False, 0.625)])
def test_a_crowd_makes_way_three_times_a_loop(crowded, gap):
    """After one pass zerglings stand so close that too many of them reach what they surround."""
    # Apart they would be 0.75. An outer one first moves by half of its two overlaps, 0.25 + 0.125; then the
    # middle one stays, and half of what is left of a gap closes: 0.625, 0.6875, 0.71875.
    x, y = pushed(units.ZERGLING, [(10, 16), (10.25, 16), (10.5, 16)], crowded=crowded)
    np.testing.assert_allclose(np.diff(x), gap)
    np.testing.assert_allclose([x[1], *y], [10.25, 16, 16, 16])


@pytest.mark.parametrize("paces", [(0.1, 0.0), (0.0, 0.1)])
def test_in_a_crowd_who_stands_and_fights_makes_way_less(paces):
    """Those who come would shove aside those who bite already, or never find a place."""
    places = [(10, 16), (10.5, 16)]  # of 0.75: 0.25 too near
    x, _ = pushed(units.ZERGLING, places, paces, fight=True)
    firm, walker = (1, 0) if paces[0] else (0, 1)
    moved = np.abs(x - [10, 10.5])
    np.testing.assert_allclose([moved[firm], moved[walker]], [0.3 * 0.25, 0.7 * 0.25])
    # Half each without a target, in no crowd, and between those who shoot.
    for kind, changes in (
        (units.ZERGLING, {"fight": False}),
        (units.ZERGLING, {"fight": True, "crowded": False}),
        (units.MARINE, {"fight": True}),
    ):
        x, _ = pushed(kind, places, paces, **changes)
        np.testing.assert_allclose(x, [9.875, 10.625])


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("place", "end"), [(10.2, 10.375), (21.8, 21.625)])
def test_a_wall_keeps_bodies_off_by_their_radius(axis, place, end):
    """They would stand in it by half, or be caught at the corners of its cells."""
    cells = np.arange(32)
    free = cells >= 10 if place < 16 else cells < 22
    walls = terrain.near_walls(np.broadcast_to(np.expand_dims(free, 1 - axis), (32, 32)))
    for along in (16.5, 16.05, 16.95):
        at, wanted = np.full(2, along), np.full(2, along)
        at[axis], wanted[axis] = place, end
        np.testing.assert_allclose(terrain.off_walls(walls, *at, 0.375, *at), wanted)
        np.testing.assert_allclose(pushed(units.ZERGLING, [at], walls=walls)[:, 0], wanted)
