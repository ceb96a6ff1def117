"""The battle itself: one compiled kernel that plays 8 game loops in each of a batch of environments.

Every game loop has two phases, so that neither side gains by being handled first:
1. every unit alive at its start chooses a target and acts from the positions at the start of the loop. Damage
   counts at once (a second shooter sees a target at health 0 and does not waste its shot on it), death takes
   effect at the end of the loop (a unit killed in a loop still acts in it). Healers act last.
2. all units move together, then units of one plane that overlap push each other apart, half the overlap each.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from envs.compiled import njit, piece
from envs.smac import combat, units
from envs.smac.combat import (
    AGGRESSION_MEMORY,
    AROUND_GAP,
    ARRIVED,
    ATTACK,
    ATTACK_MOVE,
    ATTACKER,
    ATTRIBUTES,
    BLAST,
    BY_X,
    CD,
    DAMAGE_POINT,
    DELAY_HIGH,
    DELAY_LOW,
    EN,
    ENEMY_X,
    ENEMY_Y,
    ENERGY_MAX,
    ENERGY_RATE,
    EXPLODES,
    FACE_X,
    FIRES_WALKING,
    FIRST_WINDUP,
    GOAL_X,
    GOAL_X1,
    GOAL_X2,
    GOAL_Y,
    GOAL_Y1,
    GOAL_Y2,
    HEAL,
    HEAL_COST,
    HEAL_MINIMUM,
    HEAL_RATE,
    HEALED_AT,
    HIT_IN,
    HIT_ON,
    HP,
    HPMAX,
    HUNT,
    HUNTS,
    HURT_AT,
    JITTER,
    LEAST_WINDUP,
    LIT,
    LOOPS,
    MELEE_PERIOD,
    MELEE_POINT,
    MOVE,
    NEVER,
    ORDER,
    PACE,
    PERIOD,
    RADIUS,
    RANGE,
    REGENERATION,
    SECOND_HIT,
    SEPARATION,
    SH,
    SHIELD_DELAY,
    SHIELD_RATE,
    SHMAX,
    SLOP,
    SPENT,
    SPLASH,
    STOP,
    TARGET,
    WINDUP,
    X,
    Y,
    can_hit,
    explode,
    find_nearest,
    find_patient,
    find_prey,
    find_target,
    fire,
    gap_between,
    go_around,
    goes_straight,
    hurt,
    in_melee,
    push,
    stride,
    strike,
    travel,
    turn,
    uniform,
    walk,
)
from envs.smac.maps import HAND_TO_HAND, START_JITTER, SmacMap
from envs.smac.units import BIOLOGICAL, LOOPS_PER_SECOND, UnitType


def columns(kinds: Sequence[UnitType]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of unit types for the kernels, in game loops.

    Returns floats (len(FLOATS), n) float64, ints (len(INTS), n) int64 and bodies (4, n) float64: full health,
    full shield, starting energy, a number of the type.
    """
    floats = np.array([[float(getattr(kind, name)) for kind in kinds] for name in combat.FLOATS])
    for row in (
        combat.ENERGY_RATE,
        combat.SPEED,
        combat.MISSILE_SPEED,
        combat.HEAL_RATE,
        combat.REGENERATION,
    ):
        floats[row] /= LOOPS_PER_SECOND
    for row in (
        combat.SECOND_HIT,
        combat.PERIOD,
        combat.DAMAGE_POINT,
        combat.HIT_DELAY,
        combat.MELEE_POINT,
        combat.MELEE_PERIOD,
    ):
        floats[row] *= LOOPS_PER_SECOND
    floats[combat.ACCEL] /= LOOPS_PER_SECOND**2
    ints = np.array([[int(getattr(kind, name)) for kind in kinds] for name in combat.INTS], dtype=np.int64)
    names = [kind.name for kind in kinds]
    kind_of = [float(names.index(name)) for name in names]
    bodies = np.array(
        [[k.health for k in kinds], [k.shield for k in kinds], [k.energy for k in kinds], kind_of], float
    )
    return floats, ints, bodies


def rules_of(battle: SmacMap) -> np.ndarray:
    """(21,) float64: the rules that hold for all units of a map."""
    points = (*battle.ally_point, *battle.enemy_point)
    explodes = any(kind.blast > 0 for kind in battle.kinds)
    rules = (
        units.FIRST_WINDUP,
        units.MINIMUM_DAMAGE,
        units.SHIELD_DELAY,
        units.SHIELD_RATE,
        units.STEP_LOOPS,
    )
    goal = battle.goal or (battle.ally_point, battle.ally_point)
    orders = (*goal[0], *goal[1], battle.hunt + battle.drawn, explodes, battle.crowded)
    table = np.array(
        [*battle.fence, *points, 0.0 if battle.drawn else START_JITTER, *units.WEAPON_DELAY, *rules, *orders],
        dtype=np.float64,
    )
    return table


@piece
def _begin_loop(u, k, alive, attacker, A, floats, table, plain, now):
    """Who lives, cooldowns, shields, energy. Returns whether any (ally, enemy) was hit lately."""
    alarm_ally = alarm_enemy = False
    for i in range(u.shape[1]):
        alive[i] = u[HP, i] > 0.0
        quiet = now - u[HURT_AT, i]
        if not alive[i] or quiet >= AGGRESSION_MEMORY:
            k[ATTACKER, i] = -1
        elif k[ATTACKER, i] >= 0:
            if i < A:
                alarm_ally = True
            else:
                alarm_enemy = True
        attacker[i] = k[ATTACKER, i]
        if not alive[i]:
            continue
        if quiet >= table[SHIELD_DELAY] and u[SH, i] < u[SHMAX, i]:
            u[SH, i] = min(u[SHMAX, i], u[SH, i] + table[SHIELD_RATE])
        if not plain and floats[REGENERATION, i] > 0.0:
            u[HP, i] = min(u[HPMAX, i], u[HP, i] + floats[REGENERATION, i])
        u[CD, i] = max(0.0, u[CD, i] - 1.0)
        if not plain and floats[HEAL_RATE, i] > 0.0:
            u[EN, i] = min(floats[ENERGY_MAX, i], u[EN, i] + floats[ENERGY_RATE, i])
    return alarm_ally, alarm_enemy


@piece
def _land_hits(u, k, alive, attacker, A, floats, ints, table, plain, now):
    """Missiles and beams that arrive, and second hits."""
    for i in range(u.shape[1]):
        j = k[HIT_ON, i]
        if j < 0:
            continue
        u[HIT_IN, i] -= 1.0
        if u[HIT_IN, i] > 0.0:
            continue
        k[HIT_ON, i] = -1
        lands = u[HP, j] > 0.0
        if floats[SECOND_HIT, i] > 0.0:
            lands = lands and alive[i] and gap_between(u, floats, i, j) <= floats[RANGE, i] + floats[SLOP, i]
            if lands:
                hurt(u, attacker, floats, ints, table, now, i, j)
        elif lands or (not plain and floats[SPLASH, i] > 0.0):
            low, high = (A, u.shape[1]) if i < A else (0, A)
            strike(u, attacker, floats, ints, table, plain, now, i, j, low, high)


@piece
def _follow(u, step, floats, ints, cells, hops, plain, i, what):
    """Unit i, which has no target, walks to its goal or stands."""
    if what == MOVE:
        walk(u, step, floats, i, u[GOAL_X, i], u[GOAL_Y, i], 0.0)
    elif what == ATTACK_MOVE:
        travel(u, step, floats, ints, cells, hops, plain, i, u[GOAL_X, i], u[GOAL_Y, i], ARRIVED)
    else:
        u[PACE, i] = 0.0


@piece
def _random_delay(rng, b, table):
    """What StarCraft II adds to a weapon's period, loops."""
    return table[DELAY_LOW] + (table[DELAY_HIGH] - table[DELAY_LOW]) * uniform(rng, b)


@piece
def _fight(u, k, rng, b, step, attacker, alarm, A, floats, ints, table, cells, hops, plain, now, i):
    """Unit i, armed, acts."""
    n = u.shape[1]
    low, high = (A, n) if i < A else (0, A)
    what = k[ORDER, i]
    target = before = k[TARGET, i]
    dx = dy = distance = gap = 0.0
    if before >= 0:
        dx, dy = u[X, before] - u[X, i], u[Y, before] - u[Y, i]
        distance = math.sqrt(dx * dx + dy * dy)
        gap = distance - floats[RADIUS, i] - floats[RADIUS, before]
    if what == ATTACK_MOVE:
        own_low, own_high = (0, A) if i < A else (A, n)
        target = find_target(u, k, alarm, floats, ints, plain, now, i, gap, own_low, own_high, low, high)
        if target != before:
            k[TARGET, i] = target
            u[WINDUP, i] = -1.0
    elif what == ATTACK:
        if u[HP, target] <= 0.0 or not can_hit(floats, ints, plain, i, target):
            k[ORDER, i] = STOP
            k[TARGET, i] = target = -1
    elif not plain and what == HUNT:
        if target < 0 or u[HP, target] <= 0.0:
            k[TARGET, i] = target = find_prey(u, floats, ints, cells, hops, i, low, high)
            u[WINDUP, i] = -1.0
    else:
        target = -1
    if target < 0:
        u[WINDUP, i] = -1.0
        _follow(u, step, floats, ints, cells, hops, plain, i, what)
        return
    if target != before:
        dx, dy = u[X, target] - u[X, i], u[Y, target] - u[Y, i]
        distance = math.sqrt(dx * dx + dy * dy)
        gap = distance - floats[RADIUS, i] - floats[RADIUS, target]
    if u[WINDUP, i] >= 0.0:
        u[WINDUP, i] -= 1.0
    elif gap > floats[RANGE, i]:
        if (
            floats[RANGE, i] < HAND_TO_HAND
            and gap < AROUND_GAP
            and goes_straight(u, cells, hops, plain, i, target)
            and go_around(u, step, floats, i, dx, dy, distance)
        ):
            return
        reach = floats[RANGE, i] + floats[RADIUS, i] + floats[RADIUS, target]
        if not plain and hops.shape[0] > 0:
            travel(u, step, floats, ints, cells, hops, plain, i, u[X, target], u[Y, target], reach - 1e-6)
        else:
            stride(u, step, floats, i, dx, dy, distance, reach - 1e-6)
        if not plain and ints[FIRES_WALKING, i] and what >= ATTACK_MOVE and u[CD, i] <= 0.0:
            target = find_nearest(u, floats, ints, i, low, high)
            if target >= 0:
                u[CD, i] = floats[PERIOD, i] + _random_delay(rng, b, table)
                fire(u, k, attacker, floats, ints, table, plain, now, i, target, low, high)
        return
    else:
        u[PACE, i] = 0.0
        if plain or floats[BLAST, i] <= 0.0:  # else it neither turns nor stops
            scale = 1.0 / max(distance, 1e-9)
            faces = turn(u, i, dx * scale, dy * scale) or distance <= 1e-9
            if not faces or u[CD, i] > 0.0:
                return
        point = floats[MELEE_POINT if in_melee(floats, plain, i, gap) else DAMAGE_POINT, i]
        u[WINDUP, i] = max(point, u[LEAST_WINDUP, i])
        u[LEAST_WINDUP, i] = 0.0
    u[PACE, i] = 0.0
    if u[WINDUP, i] <= 0.0:
        u[WINDUP, i] = -1.0
        if gap <= floats[RANGE, i] + floats[SLOP, i]:
            # The period counts from the start of the attack, which is the damage point ago.
            claws = in_melee(floats, plain, i, gap)
            period = floats[MELEE_PERIOD if claws else PERIOD, i]
            started = math.ceil(floats[MELEE_POINT if claws else DAMAGE_POINT, i])
            u[CD, i] = period + _random_delay(rng, b, table) - started
            fire(u, k, attacker, floats, ints, table, plain, now, i, target, low, high)


@piece
def _mend(u, k, step, A, floats, ints, cells, hops, plain, now, i):
    """Unit i, a healer, acts."""
    what = k[ORDER, i]
    target = -1
    if what in (ATTACK_MOVE, HUNT):
        own_low, own_high = (0, A) if i < A else (A, u.shape[1])
        k[TARGET, i] = target = find_patient(u, k, floats, ints, i, own_low, own_high)
        if not plain and target < 0 and what == HUNT:
            # It comes along, as near to the other side as it would heal.
            low, high = (A, u.shape[1]) if i < A else (0, A)
            prey = find_prey(u, floats, ints, cells, hops, i, low, high)
            if prey >= 0:
                walk(u, step, floats, i, u[X, prey], u[Y, prey], floats[RANGE, i])
            return
    elif what == HEAL:
        target = k[TARGET, i]
        if u[HP, target] <= 0.0 or not ints[ATTRIBUTES, target] & BIOLOGICAL:
            k[ORDER, i] = STOP
            k[TARGET, i] = target = -1
    if target < 0:
        _follow(u, step, floats, ints, cells, hops, plain, i, what)
        return
    missing = u[HPMAX, target] - u[HP, target]
    if missing > 0.0 and gap_between(u, floats, i, target) > floats[RANGE, i]:
        reach = floats[RANGE, i] + floats[RADIUS, i] + floats[RADIUS, target]
        walk(u, step, floats, i, u[X, target], u[Y, target], reach - 1e-6)
        return
    u[PACE, i] = 0.0
    # A heal under way goes on while there is energy; a new one needs the minimum.
    if u[EN, i] >= floats[HEAL_MINIMUM, i] or now - u[HEALED_AT, i] <= 1.0:
        healed = min(floats[HEAL_RATE, i], missing, u[EN, i] / floats[HEAL_COST, i])
        if healed > 0.0:
            u[HP, target] += healed
            u[EN, i] -= healed * floats[HEAL_COST, i]
            u[HEALED_AT, i] = now


@piece
def _explosions(u, k, attacker, A, floats, ints, table, now):
    """Those that blow up when killed; whom they kill by it follows in the next loop."""
    for i in range(u.shape[1]):
        if floats[BLAST, i] > 0.0 and u[HP, i] <= 0.0 and k[ORDER, i] != SPENT:
            k[ORDER, i] = LIT
    for i in range(u.shape[1]):
        if k[ORDER, i] == LIT:
            low, high = (A, u.shape[1]) if i < A else (0, A)
            explode(u, k, attacker, floats, ints, table, now, i, low, high)


@piece
def _loop(
    u, k, rng, b, alive, step, line, who, attacker, A, floats, ints, widest, table, walls, cells, hops, plain,
    now
):  # fmt: skip
    """One game loop of environment b."""
    n = u.shape[1]
    alarm_ally, alarm_enemy = _begin_loop(u, k, alive, attacker, A, floats, table, plain, now)
    _land_hits(u, k, alive, attacker, A, floats, ints, table, plain, now)
    for i in range(n):
        if alive[i] and (plain or floats[HEAL_RATE, i] <= 0.0):
            alarm = alarm_ally if i < A else alarm_enemy
            _fight(u, k, rng, b, step, attacker, alarm, A, floats, ints, table, cells, hops, plain, now, i)
    for i in range(0 if plain else n):
        if alive[i] and floats[HEAL_RATE, i] > 0.0:
            _mend(u, k, step, A, floats, ints, cells, hops, plain, now, i)
    if not plain and table[EXPLODES] > 0.0:
        _explosions(u, k, attacker, A, floats, ints, table, now)
    for i in range(n):
        # Who hit whom is only known from the next loop on: else the side handled last would answer sooner.
        k[ATTACKER, i] = attacker[i]
    push(u, k[TARGET], k[BY_X], step, line, who, floats, ints, widest, table, walls, plain)


@piece
def _command(u, k, views, i, action, A, no_attack, healer, table):
    """Give agent i its order for this step: SMAC's action as a StarCraft II order.

    A look around is not an order: it turns views (N,), and the order under way goes on.
    """
    if 6 <= action < no_attack:
        views[i] = action - 6
        return
    before, old = k[ORDER, i], k[TARGET, i]
    target = -1
    if action <= 1:
        what = STOP
    elif action <= 5:
        what = MOVE
        u[GOAL_X, i] = u[X, i] + (2.0 if action == 4 else -2.0 if action == 5 else 0.0)
        u[GOAL_Y, i] = u[Y, i] + (2.0 if action == 2 else -2.0 if action == 3 else 0.0)
    elif healer:
        what, target = HEAL, action - no_attack
    else:
        what, target = ATTACK, A + action - no_attack
    if what != before or target != old:
        # Another order cancels an attack that has not gone off yet.
        u[WINDUP, i] = -1.0
        u[LEAST_WINDUP, i] = table[FIRST_WINDUP]
    k[ORDER, i], k[TARGET, i] = what, target


@njit(nogil=True, error_model="numpy")
def check_kernel(mask, actions):
    """The first flat index of an action (B, N) int64 that is not in mask (B, N, A) bool; -1 if all are."""
    for b in range(mask.shape[0]):
        for i in range(mask.shape[1]):
            a = actions[b, i]
            if a < 0 or a >= mask.shape[2] or not mask[b, i, a]:
                return b * mask.shape[1] + i
    return -1


def _source_digest() -> int:
    folder = Path(__file__).parent
    names = ("terrain.py", "units.py", "maps.py", "combat.py", "engine.py")
    return zlib.crc32(b"".join((folder / name).read_bytes() for name in names))


def _compile(digest: int) -> tuple[Callable[..., None], Callable[..., None]]:
    # numba's disk cache only watches the file a kernel is written in. The digest, a part of the cache's key,
    # makes it watch every file whose code and constants the kernels are compiled from.

    @njit(nogil=True, error_model="numpy")
    def reset_kernel(units, links, rng, select, sizes, bodies, starts, table):
        """Put the units of the selected (B,) environments at their places, the enemy ordered to attack.

        bodies (1 or B, 4, U), starts (1 or B, 2, U): the same for all environments, or each one's own.
        """
        _ = digest
        for b in range(units.shape[0]):
            if not select[b]:
                continue
            u, k = units[b], links[b]
            row = b if starts.shape[0] > 1 else 0
            body, start = bodies[row], starts[row]
            along = 0.0
            if table[GOAL_X1] != table[GOAL_X2] or table[GOAL_Y1] != table[GOAL_Y2]:
                along = uniform(rng, b)
            goal_x = table[GOAL_X1] + along * (table[GOAL_X2] - table[GOAL_X1])
            goal_y = table[GOAL_Y1] + along * (table[GOAL_Y2] - table[GOAL_Y1])
            u[:] = 0.0
            k[:] = -1
            for i in range(u.shape[1]):
                u[X, i] = start[0, i] + table[JITTER] * (2.0 * uniform(rng, b) - 1.0)
                u[Y, i] = start[1, i] + table[JITTER] * (2.0 * uniform(rng, b) - 1.0)
                u[HP, i] = u[HPMAX, i] = body[0, i]
                u[SH, i] = u[SHMAX, i] = body[1, i]
                u[EN, i] = body[2, i]
                # Agents are numbered by where they stand at last: by type, then x, then y.
                j = i
                while 0 < j < sizes[0] and body[3, j - 1] == body[3, i]:
                    x, y = u[X, j - 1], u[Y, j - 1]
                    if x < u[X, j] or (x == u[X, j] and y <= u[Y, j]):
                        break
                    u[X, j - 1], u[Y, j - 1] = u[X, j], u[Y, j]
                    u[X, j], u[Y, j] = x, y
                    j -= 1
                u[FACE_X, i] = 1.0 if i < sizes[0] else -1.0
                u[HURT_AT, i] = u[HEALED_AT, i] = NEVER
                u[WINDUP, i] = -1.0
                k[BY_X, i] = i
                k[ORDER, i] = STOP
                if i >= sizes[0]:
                    k[ORDER, i] = HUNT if table[HUNTS] > 0.0 else ATTACK_MOVE
                    u[GOAL_X, i], u[GOAL_Y, i] = goal_x, goal_y

    @njit(nogil=True, error_model="numpy")
    def sample_kernel(rng, mask, actions):
        """Draw actions (B, N) int64 uniformly from those available in mask (B, N, A) bool."""
        _ = digest
        for b in range(mask.shape[0]):
            for i in range(mask.shape[1]):
                count = 0
                for a in range(mask.shape[2]):
                    count += mask[b, i, a]
                left = int(uniform(rng, b) * count)
                for a in range(mask.shape[2]):
                    if mask[b, i, a]:
                        if left == 0:
                            actions[b, i] = a
                            break
                        left -= 1

    return reset_kernel, sample_kernel


def _compile_step(digest: int, plain: bool) -> Callable[..., None]:
    @njit(nogil=True, error_model="numpy")
    def step_kernel(
        units, links, views, rng, actions, before, won, over, length, all_floats, all_ints, scripted, sizes,
        table, walls, cells, hops
    ):  # fmt: skip
        """Play one step in every environment.

        actions (B, N) int64, none of which `check_kernel` finds. Fills before (B, 2, E), the enemies' health
        and shield of a step ago, won (B,) and over (B,) bool (decided, also without a winner); length (B,)
        counts steps. all_floats (1 or B, len(FLOATS), U), all_ints (1 or B, len(INTS), U): the same for all
        environments, or each one's own. scripted: the allies attack-move to the enemy's point instead, or
        hunt as the enemy does. walls, cells, hops: the map's (`SmacMap.walls`, `SmacMap.ways`).
        """
        _ = digest
        B, n = units.shape[0], units.shape[2]
        A, E, no_attack = sizes[0], sizes[1], sizes[6]
        floats, ints = all_floats[0], all_ints[0]
        alive = np.empty(n, np.bool_)
        step = np.zeros((2, n))
        line = np.empty((6, n))
        who = np.empty(n, np.int64)
        attacker = np.empty(n, np.int64)
        widest = floats[SEPARATION].max()
        loops = int(table[LOOPS])
        for b in range(B):
            u, k = units[b], links[b]
            if b > 0 and all_floats.shape[0] > 1:
                floats, ints = all_floats[b], all_ints[b]
                widest = floats[SEPARATION].max()
            for j in range(E):
                before[b, 0, j] = u[HP, A + j]
                before[b, 1, j] = u[SH, A + j]
            for i in range(A):
                if u[HP, i] > 0.0:
                    if scripted:
                        k[ORDER, i] = HUNT if table[HUNTS] > 1.0 else ATTACK_MOVE
                        u[GOAL_X, i], u[GOAL_Y, i] = table[ENEMY_X], table[ENEMY_Y]
                    else:
                        healer = floats[HEAL_RATE, i] > 0.0
                        _command(u, k, views[b], i, actions[b, i], A, no_attack, healer, table)
            for loop in range(loops):
                now = float(length[b] * loops + loop)
                _loop(
                    u, k, rng, b, alive, step, line, who, attacker, A, floats, ints, widest, table, walls,
                    cells, hops, plain, now,
                )  # fmt: skip
            length[b] += 1
            ally_fighters = enemy_fighters = 0
            for i in range(n):
                if u[HP, i] > 0.0 and floats[HEAL_RATE, i] <= 0.0:
                    if i < A:
                        ally_fighters += 1
                    else:
                        enemy_fighters += 1
            # Healers alone do not count: a side that has nothing else left has lost.
            won[b] = ally_fighters > 0 and enemy_fighters == 0
            over[b] = ally_fighters == 0 or enemy_fighters == 0

    return step_kernel


_DIGEST = _source_digest()
reset_kernel, sample_kernel = _compile(_DIGEST)
STEP_KERNELS = {plain: _compile_step(_DIGEST, plain) for plain in (False, True)}
"""For any battle, and for those that are `SmacMap.plain`, where it does the same without what they lack."""
