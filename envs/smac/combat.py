"""The rules of a battle, unit by unit: targets, weapons, walking and bodies that push each other apart.

Compiled pieces of `envs.smac.engine`. They work on one environment: u (STATE_ROWS, U) float64 and
k (LINK_ROWS, U) int64 hold what changes, floats (len(FLOATS), U) and ints (len(INTS), U) what a unit's type
fixes. Units are numbered allies first, times are game loops, `now` is the loop since the battle's start.
plain is a constant where it is compiled: True for `SmacMap.plain`, and what such a battle does not have then
costs nothing.
"""

from __future__ import annotations

import math

import numpy as np

from envs.compiled import piece
from envs.smac.maps import HAND_TO_HAND
from envs.smac.terrain import SIZE, first_stop, off_walls, way_length
from envs.smac.units import (
    AIR,
    ARC_SLOP,
    BIOLOGICAL,
    CALL_FOR_HELP,
    GROUND,
    LOOPS_PER_SECOND,
    STRUCTURE,
    TURN_RATE,
)

# Rows of u; the first eight are contract.UNIT_COLUMNS.
X, Y, HP, HPMAX, SH, SHMAX, EN, CD, PACE, GOAL_X, GOAL_Y, HIT_IN, HURT_AT, WINDUP, HEALED_AT = range(15)
# Where a unit faces, a vector of length 1; the least wind-up of its next shot.
FACE_X, FACE_Y, LEAST_WINDUP = range(15, 18)
# Of who fights hand to hand: where it was a loop ago, and for how many loops it goes on around others, to the
# left (above 0) or to the right.
LAST_X, LAST_Y, ASIDE = range(18, 21)
STATE_ROWS = 21
NEVER = -1e9
# Rows of k. HIT_ON: target of a shot under way; ATTACKER: who has hit a unit lately; BY_X: the units by x.
ORDER, TARGET, HIT_ON, ATTACKER, BY_X = range(5)
LINK_ROWS = 5
STOP, MOVE, ATTACK, HEAL, ATTACK_MOVE, HUNT = range(6)
# Of the dead that explode: about to, and done.
LIT, SPENT = 6, 7

FLOATS = (
    "energy_max", "energy_rate", "armour", "speed", "accel", "sight", "radius", "separation", "damage",
    "bonus", "second_hit", "period", "range", "scan", "damage_point", "missile_speed", "splash", "heal",
    "heal_cost", "heal_minimum", "slop", "hit_delay", "blast", "structure_bonus", "melee_range",
    "melee_point", "melee_period", "regeneration",
)  # fmt: skip
(
    ENERGY_MAX, ENERGY_RATE, ARMOUR, SPEED, ACCEL, SIGHT, RADIUS, SEPARATION, DAMAGE,
    BONUS, SECOND_HIT, PERIOD, RANGE, SCAN, DAMAGE_POINT, MISSILE_SPEED, SPLASH, HEAL_RATE,
    HEAL_COST, HEAL_MINIMUM, SLOP, HIT_DELAY, BLAST, STRUCTURE_BONUS, MELEE_RANGE,
    MELEE_POINT, MELEE_PERIOD, REGENERATION,
) = range(28)  # fmt: skip
INTS = (
    "plane", "attributes", "bonus_attributes", "hits", "hits_air", "fires_walking", "always_threatens",
)  # fmt: skip
PLANE, ATTRIBUTES, BONUS_ATTRIBUTES, HITS, HITS_AIR, FIRES_WALKING, ALWAYS_THREATENS = range(7)
(
    BAND_LOW, BAND_HIGH, ALLY_X, ALLY_Y, ENEMY_X, ENEMY_Y, JITTER, DELAY_LOW, DELAY_HIGH, FIRST_WINDUP,
    LEAST_DAMAGE, SHIELD_DELAY, SHIELD_RATE, LOOPS, GOAL_X1, GOAL_Y1, GOAL_X2, GOAL_Y2, HUNTS, EXPLODES,
    CROWDED,
) = range(21)  # fmt: skip

BEAM_RADIUS = 0.15
"""Half the width of a splash line, cells."""
CALL_RADIUS = CALL_FOR_HELP[0]
AGGRESSION_MEMORY = CALL_FOR_HELP[1] * LOOPS_PER_SECOND
"""Loops for which a unit hit from outside its scan range, and its friends near by, go for the attacker."""
TURN_COS, TURN_SIN = math.cos(math.radians(TURN_RATE)), math.sin(math.radians(TURN_RATE))
ARC_COS = math.cos(math.radians(ARC_SLOP))
HEALER_THREAT = 16.0
"""Loops for which a medivac that has healed counts as a threat."""
HELD_UP = 0.3
"""A unit that gets less than this share of its pace ahead is held up by others."""
AROUND_LOOPS = 8.0
"""Loops for which it then walks to one side, at this angle to its way."""
AROUND_COS, AROUND_SIN = math.cos(math.radians(80.0)), math.sin(math.radians(80.0))
AROUND_GAP = 4.0
"""Cells from its target within which it does so."""
FIRM = 0.3
"""Share of an overlap by which, in a crowd, who stands and fights hand to hand makes way for who walks."""
ARRIVED = 1.0
"""Cells from the goal at which an attack-move is over."""


@piece
def uniform(rng, b):
    """Next double in [0, 1) of environment b's splitmix64 stream."""
    rng[b] += np.uint64(0x9E3779B97F4A7C15)
    z = rng[b]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@piece
def gap_between(u, floats, i, j):
    """Distance of two units edge to edge."""
    dx, dy = u[X, j] - u[X, i], u[Y, j] - u[Y, i]
    return math.sqrt(dx * dx + dy * dy) - floats[RADIUS, i] - floats[RADIUS, j]


@piece
def can_hit(floats, ints, plain, i, j):
    """Whether unit i has a weapon for unit j's plane."""
    return plain or (floats[DAMAGE, i] > 0.0 and (ints[PLANE, j] != AIR or ints[HITS_AIR, i] != 0))


@piece
def threatens(u, floats, ints, plain, now, i, j):
    """Whether unit j is a threat to unit i: it can hit it, has just healed, or counts as one at all times."""
    if plain or ints[ALWAYS_THREATENS, j]:
        return True
    if floats[HEAL_RATE, j] > 0.0:
        return now - u[HEALED_AT, j] < HEALER_THREAT
    return can_hit(floats, ints, plain, j, i)


@piece
def hurt(u, attacker, floats, ints, table, now, i, j):
    """One hit of unit i on unit j: shields first, the rest less armour."""
    damage = floats[DAMAGE, i]
    if ints[BONUS_ATTRIBUTES, i] & ints[ATTRIBUTES, j]:
        damage += floats[BONUS, i]
    if ints[ATTRIBUTES, j] & STRUCTURE:
        damage += floats[STRUCTURE_BONUS, i]
    absorbed = min(u[SH, j], damage)
    u[SH, j] -= absorbed
    if damage > absorbed:
        u[HP, j] = max(0.0, u[HP, j] - max(damage - absorbed - floats[ARMOUR, j], table[LEAST_DAMAGE]))
    u[HURT_AT, j] = now
    attacker[j] = i


@piece
def explode(u, k, attacker, floats, ints, table, now, i, low, high):
    """Unit i blows itself up among low to high, the units of the other side; its own are spared."""
    for t in range(low, high):
        if u[HP, t] > 0.0 and can_hit(floats, ints, False, i, t):
            dx, dy = u[X, t] - u[X, i], u[Y, t] - u[Y, i]
            reach = floats[BLAST, i] + floats[RADIUS, t]
            if dx * dx + dy * dy <= reach * reach:
                hurt(u, attacker, floats, ints, table, now, i, t)
    u[HP, i] = 0.0
    u[HURT_AT, i] = now
    k[ORDER, i] = SPENT


@piece
def in_melee(floats, plain, i, gap):
    """Whether a target at that gap is one for unit i's claws instead of its missile."""
    return not plain and floats[MELEE_RANGE, i] > 0.0 and gap <= floats[MELEE_RANGE, i]


@piece
def strike(u, attacker, floats, ints, table, plain, now, i, j, low, high):
    """Unit i's weapon takes effect on unit j; low to high are the units of j's side."""
    if not plain and floats[SPLASH, i] > 0.0:
        dx, dy = u[X, j] - u[X, i], u[Y, j] - u[Y, i]
        length = max(math.sqrt(dx * dx + dy * dy), 1e-9)
        dx, dy = dx / length, dy / length
        for t in range(low, high):
            if u[HP, t] > 0.0 and can_hit(floats, ints, plain, i, t):
                ox, oy = u[X, t] - u[X, j], u[Y, t] - u[Y, j]
                across = max(0.0, abs(oy * dx - ox * dy) - floats[SPLASH, i])
                along = ox * dx + oy * dy
                if math.sqrt(along * along + across * across) <= floats[RADIUS, t] + BEAM_RADIUS:
                    for _ in range(ints[HITS, i]):
                        hurt(u, attacker, floats, ints, table, now, i, t)
    else:
        for _ in range(ints[HITS, i]):
            hurt(u, attacker, floats, ints, table, now, i, j)


@piece
def fire(u, k, attacker, floats, ints, table, plain, now, i, j, low, high):
    """Unit i's weapon goes off on unit j; low to high are the units of j's side."""
    if not plain and floats[BLAST, i] > 0.0:
        explode(u, k, attacker, floats, ints, table, now, i, low, high)
    elif floats[MISSILE_SPEED, i] > 0.0 and not in_melee(floats, plain, i, gap_between(u, floats, i, j)):
        dx, dy = u[X, j] - u[X, i], u[Y, j] - u[Y, i]
        u[HIT_IN, i] = math.sqrt(dx * dx + dy * dy) / floats[MISSILE_SPEED, i]
        k[HIT_ON, i] = j
    elif floats[HIT_DELAY, i] > 0.0:
        u[HIT_IN, i] = floats[HIT_DELAY, i]
        k[HIT_ON, i] = j
    elif floats[SECOND_HIT, i] > 0.0:
        hurt(u, attacker, floats, ints, table, now, i, j)
        u[HIT_IN, i] = floats[SECOND_HIT, i]
        k[HIT_ON, i] = j
    else:
        strike(u, attacker, floats, ints, table, plain, now, i, j, low, high)


@piece
def turn(u, i, dx, dy):
    """Turn unit i towards a unit vector; returns whether it already faced it well enough to fire."""
    ahead = u[FACE_X, i] * dx + u[FACE_Y, i] * dy
    if ahead >= TURN_COS:
        u[FACE_X, i], u[FACE_Y, i] = dx, dy
        return ahead >= ARC_COS
    fx, fy = u[FACE_X, i], u[FACE_Y, i]
    side = TURN_SIN if fx * dy - fy * dx >= 0.0 else -TURN_SIN
    u[FACE_X, i] = fx * TURN_COS - fy * side
    u[FACE_Y, i] = fx * side + fy * TURN_COS
    return False


@piece
def find_target(u, k, alarm, floats, ints, plain, now, i, gap, own_low, own_high, low, high):
    """The target of a unit on an attack-move: low to high are the units of the other side. -1 is none.

    gap: to the target that it had, edge to edge. A target in reach is kept, unless it is harmless and a
    threat is near. Else the nearest threat within scan range, else the nearest unit within it, else whoever
    has just hit this unit or a friend near by.
    """
    current = k[TARGET, i]
    keep = current >= 0 and u[HP, current] > 0.0 and can_hit(floats, ints, plain, i, current)
    if keep and u[WINDUP, i] < 0.0:
        keep = gap <= floats[RANGE, i]
    if keep and (u[WINDUP, i] >= 0.0 or threatens(u, floats, ints, plain, now, i, current)):
        return current
    x, y = u[X, i], u[Y, i]
    scan = floats[SCAN, i] + floats[RADIUS, i]
    best, best_gap, best_threat = -1, math.inf, False
    for j in range(low, high):
        dx, dy = u[X, j] - x, u[Y, j] - y
        squared = dx * dx + dy * dy
        reach = scan + floats[RADIUS, j]
        if squared <= reach * reach and u[HP, j] > 0.0 and can_hit(floats, ints, plain, i, j):
            if not plain and floats[BLAST, i] > 0.0 and ints[ATTRIBUTES, j] & STRUCTURE:
                continue  # not worth it
            gap = math.sqrt(squared) - floats[RADIUS, j]
            threat = threatens(u, floats, ints, plain, now, i, j)
            if (threat and not best_threat) or (threat == best_threat and gap < best_gap):
                best, best_gap, best_threat = j, gap, threat
    if best_threat:
        return best
    if keep:
        return current
    if best >= 0 or not alarm:
        return best
    for friend in range(own_low, own_high):
        j = k[ATTACKER, friend]
        if j < 0 or u[HP, j] <= 0.0 or not can_hit(floats, ints, plain, i, j):
            continue
        if not plain and floats[BLAST, i] > 0.0 and ints[ATTRIBUTES, j] & STRUCTURE:
            continue
        if friend != i and gap_between(u, floats, i, friend) > CALL_RADIUS:
            continue
        dx, dy = u[X, j] - x, u[Y, j] - y
        squared = dx * dx + dy * dy
        gap = math.sqrt(squared) - floats[RADIUS, j]
        if squared <= floats[SIGHT, i] ** 2 and gap < best_gap:
            best, best_gap = j, gap
    return best


@piece
def find_prey(u, floats, ints, cells, hops, i, low, high):
    """Whom a unit on a hunt goes for: of units low to high the nearest by way that it can hit; -1 is none.

    A healer follows the nearest, whoever that is.
    """
    best, nearest = -1, math.inf
    for j in range(low, high):
        if u[HP, j] > 0.0 and (can_hit(floats, ints, False, i, j) or floats[HEAL_RATE, i] > 0.0):
            length = way_length(cells, hops, u[X, i], u[Y, i], u[X, j], u[Y, j])
            if length < nearest:
                best, nearest = j, length
    return best


@piece
def find_nearest(u, floats, ints, i, low, high):
    """The nearest of units low to high that unit i's weapon reaches from where it stands; -1 is none."""
    best, best_gap = -1, floats[RANGE, i]
    for j in range(low, high):
        if u[HP, j] > 0.0 and can_hit(floats, ints, False, i, j):
            gap = gap_between(u, floats, i, j)
            if gap <= best_gap:
                best, best_gap = j, gap
    return best


@piece
def find_patient(u, k, floats, ints, i, low, high):
    """Whom a healer on an attack-move heals: -1 is none.

    The friend it is healing already, else the one within its range that has the least life.
    """
    current = k[TARGET, i]
    hurt = current >= 0 and 0.0 < u[HP, current] < u[HPMAX, current]
    if hurt and gap_between(u, floats, i, current) <= floats[SCAN, i]:
        return current
    if u[EN, i] < floats[HEAL_MINIMUM, i]:
        return -1
    best, least, best_gap = -1, 1.0, 0.0
    for j in range(low, high):
        if j != i and ints[ATTRIBUTES, j] & BIOLOGICAL and 0.0 < u[HP, j] < u[HPMAX, j]:
            gap = gap_between(u, floats, i, j)
            life = u[HP, j] / u[HPMAX, j]
            if gap <= floats[SCAN, i] and (life < least or (life == least and gap < best_gap)):
                best, least, best_gap = j, life, gap
    return best


@piece
def stride(u, step, floats, i, dx, dy, distance, short):
    """Set unit i's step of this loop along (dx, dy), to stop `short` of that far."""
    if distance - short <= 1e-9:
        u[PACE, i] = 0.0
        return
    pace = min(u[PACE, i] + floats[ACCEL, i], floats[SPEED, i])
    u[PACE, i] = pace
    scale = 1.0 / distance
    go = min(pace, distance - short) * scale
    step[0, i], step[1, i] = dx * go, dy * go
    turn(u, i, dx * scale, dy * scale)


@piece
def walk(u, step, floats, i, gx, gy, short):
    """Set unit i's step of this loop towards a point, to stop `short` of it."""
    dx, dy = gx - u[X, i], gy - u[Y, i]
    stride(u, step, floats, i, dx, dy, math.sqrt(dx * dx + dy * dy), short)


@piece
def travel(u, step, floats, ints, cells, hops, plain, i, gx, gy, short):
    """As `walk`, but around walls, for who walks on the ground."""
    if not plain and hops.shape[0] > 0 and ints[PLANE, i] == GROUND:
        stop = first_stop(cells, hops, u[X, i], u[Y, i], gx, gy)
        if stop >= 0:
            gx, gy, short = stop // SIZE + 0.5, stop % SIZE + 0.5, 0.0
    walk(u, step, floats, i, gx, gy, short)


@piece
def goes_straight(u, cells, hops, plain, i, target):
    """Whether no wall is between unit i and its target."""
    if plain or hops.shape[0] == 0:
        return True
    return first_stop(cells, hops, u[X, i], u[Y, i], u[X, target], u[Y, target]) < 0


@piece
def go_around(u, step, floats, i, dx, dy, distance):
    """Walk past the bodies that hold unit i up on its way along (dx, dy); False if there are none.

    It starts to the side to which they push it, and turns back where it is held up again. Without it those
    behind wait in line for those in front, and nobody is surrounded.
    """
    mx, my = u[X, i] - u[LAST_X, i], u[Y, i] - u[LAST_Y, i]
    least = HELD_UP * u[PACE, i]
    held = mx * mx + my * my < least * least
    u[LAST_X, i], u[LAST_Y, i] = u[X, i], u[Y, i]
    if u[ASIDE, i] != 0.0:
        if held and abs(u[ASIDE, i]) < AROUND_LOOPS - 2.0:
            u[ASIDE, i] = -math.copysign(AROUND_LOOPS, u[ASIDE, i])
        u[ASIDE, i] -= math.copysign(1.0, u[ASIDE, i])
    elif held:
        u[ASIDE, i] = math.copysign(AROUND_LOOPS, dx * my - dy * mx)
    if u[ASIDE, i] == 0.0:
        return False
    side = math.copysign(AROUND_SIN, u[ASIDE, i])
    ox, oy = (dx * AROUND_COS - dy * side) / distance, (dx * side + dy * AROUND_COS) / distance
    u[PACE, i] = floats[SPEED, i]
    step[0, i], step[1, i] = ox * u[PACE, i], oy * u[PACE, i]
    turn(u, i, ox, oy)
    return True


@piece
def part(living, step, line, who, ints, widest, crowded, plain):
    """One pass over the pairs that overlap: they make way for each other, by half of it, or by `FIRM`.

    The living side by side in line and who, as `push` has them; how they move is added to step (2, U).
    """
    for a in range(living):
        x, y, r = line[0, a], line[1, a], line[2, a]
        i = who[a]
        for c in range(a + 1, living):
            dx = line[0, c] - x
            if dx >= r + widest:
                break
            dy = line[1, c] - y
            apart = r + line[2, c]
            squared = dx * dx + dy * dy
            if squared >= apart * apart:
                continue
            j = who[c]
            if not plain and ints[PLANE, i] != ints[PLANE, j]:
                continue
            distance = math.sqrt(squared)
            if distance > 1e-6:
                half = 0.5 * (apart - distance) / distance
                px, py = dx * half, dy * half
            else:
                px, py = 0.0, 0.5 * apart
            more = (1.0 - 2.0 * FIRM) * (line[3, c] - line[3, a]) if crowded else 0.0
            step[0, i] -= px * (1.0 + more)
            step[1, i] -= py * (1.0 + more)
            step[0, j] += px * (1.0 - more)
            step[1, j] += py * (1.0 - more)


@piece
def push(u, target, order, step, line, who, floats, ints, widest, table, walls, plain):
    """Move, then passes of pushing over pairs near in x.

    order (U,) stays sorted by x; step (2, U) is 0 for the dead and comes back as 0; line (6, U) and who
    (U,) are scratch.
    """
    n = u.shape[1]
    walled, crowded = not plain and walls.shape[0] > 0, not plain and table[CROWDED] > 0.0
    for i in range(n):
        if walled:
            line[4, i], line[5, i] = u[X, i], u[Y, i]
        u[X, i] += step[0, i]
        u[Y, i] += step[1, i]
        step[0, i] = step[1, i] = 0.0
    for a in range(1, n):
        i = order[a]
        x = u[X, i]
        c = a - 1
        while c >= 0 and u[X, order[c]] > x:
            order[c + 1] = order[c]
            c -= 1
        order[c + 1] = i
    # The living side by side in memory, in the order of x.
    living = 0
    for a in range(n):
        i = order[a]
        if u[HP, i] > 0.0:
            line[0, living], line[1, living] = u[X, i], u[Y, i]
            line[2, living], who[living] = floats[SEPARATION, i], i
            if crowded:
                firm = floats[RANGE, i] < HAND_TO_HAND and u[PACE, i] <= 0.0 and target[i] >= 0
                line[3, living] = 1.0 if firm else 0.0
            living += 1
    part(living, step, line, who, ints, widest, crowded, plain)
    for _ in range(2 if crowded else 0):
        for a in range(living):
            i = who[a]
            line[0, a] += step[0, i]
            line[1, a] += step[1, i]
            step[0, i] = step[1, i] = 0.0
        part(living, step, line, who, ints, widest, crowded, plain)
    for a in range(living):
        i, r = who[a], line[2, a]
        x = min(max(line[0, a] + step[0, i], r), SIZE - r)
        low, high = table[BAND_LOW], table[BAND_HIGH]
        if not plain and ints[PLANE, i] == AIR:
            low, high = 0.0, float(SIZE)
        y = min(max(line[1, a] + step[1, i], low + r), high - r)
        step[0, i] = step[1, i] = 0.0
        if not plain and ints[ATTRIBUTES, i] & STRUCTURE:
            continue
        if walled and ints[PLANE, i] == GROUND:
            x, y = off_walls(walls, x, y, r, line[4, i], line[5, i])
        u[X, i], u[Y, i] = x, y
