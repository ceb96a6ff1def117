"""SMAC's observation, state, action mask and reward, compiled, and the same as pure functions.

Written from the interface of oxwhirl/smac's StarCraft2Env at its default options. The embedded engine calls
the kernels below; `observe` and `reward` are the same kernels on plain arrays, for anyone who has a battle's
units from elsewhere.

A unit is 8 numbers, in this order: x, y, health, health_max, shield, shield_max, energy, weapon_cooldown
(cells and game loops). The kernels take them as (batch, 8 or more, allies then enemies).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from envs.compiled import njit
from envs.smac.maps import REWARD_DEATH, REWARD_SCALE, REWARD_WIN, SIZE, SmacMap, get_map

UNIT_COLUMNS = ("x", "y", "health", "health_max", "shield", "shield_max", "energy", "weapon_cooldown")
HALF_CONE = math.cos(math.radians(15.0))
"""Cosine of half the angle that an agent with a conic view sees."""
NO_ACTION = -1
"""`last_action` of an agent that has not acted yet in this episode."""
_X, _Y, _HP, _HPMAX, _SH, _SHMAX, _EN, _CD = range(8)


def _source_digest() -> int:
    folder = Path(__file__).parent
    names = ("terrain.py", "maps.py", "contract.py")
    return zlib.crc32(b"".join((folder / name).read_bytes() for name in names))


def _compile(digest: int) -> tuple[Callable[..., None], Callable[..., None], Callable[..., None]]:
    # As in `envs.smac.engine`: the digest makes numba's cache watch every file that kernels are made of.

    @njit(nogil=True, error_model="numpy")
    def observe_kernel(units, views, select, obs, mask, alive, all_looks, sizes, grid):
        """Write obs (B, N, obs_dim) float32, mask (B, N, A) and alive (B, N) bool where select (B,) is True.

        views (B, N) int64: where agents look, of sizes[8] directions. all_looks (1 or B, 5, U):
        `SmacMap.looks`, the same for all environments or each one's own.
        """
        _ = digest
        A, E, n_act = sizes[0], sizes[1], sizes[2]
        sh_a, sh_e, bits = sizes[3], sizes[4], sizes[5]
        no_attack, own_position, cones = sizes[6], sizes[7], sizes[8]
        looks = all_looks[0]
        view_x, view_y = 1.0, 0.0
        health = np.zeros(A + E)
        shield = np.zeros(A + E)
        for b in range(units.shape[0]):
            if not select[b]:
                continue
            u = units[b]
            if all_looks.shape[0] > 1:
                looks = all_looks[b]
            for t in range(A + E):
                health[t] = u[_HP, t] / u[_HPMAX, t]
                shield[t] = u[_SH, t] / u[_SHMAX, t] if u[_SHMAX, t] > 0.0 else 0.0
            for i in range(A):
                for k in range(obs.shape[2]):
                    obs[b, i, k] = 0.0
                for k in range(n_act):
                    mask[b, i, k] = False
                living = health[i] > 0.0
                alive[b, i] = living
                if not living:
                    mask[b, i, 0] = True
                    continue
                x, y = u[_X, i], u[_Y, i]
                mask[b, i, 1] = True
                for k in range(4):
                    # SMAC looks one cell ahead and truncates as Python's int() does.
                    cx = int(x + (1.0 if k == 2 else -1.0 if k == 3 else 0.0))
                    cy = int(y + (1.0 if k == 0 else -1.0 if k == 1 else 0.0))
                    if 0 <= cx < SIZE and 0 <= cy < SIZE and grid[cx, cy]:
                        mask[b, i, 2 + k] = True
                        obs[b, i, k] = 1.0
                sight, shoot = looks[3, i], looks[4, i]
                scale = 1.0 / sight
                if cones > 0:
                    angle = 2.0 * math.pi * views[b, i] / cones
                    view_x, view_y = math.cos(angle), math.sin(angle)
                    for k in range(cones):
                        mask[b, i, 6 + k] = True
                healer = looks[2, i] > 0.0
                if healer:
                    for j in range(A):
                        if looks[2, j] <= 0.0 and health[j] > 0.0:
                            dx, dy = u[_X, j] - x, u[_Y, j] - y
                            squared = dx * dx + dy * dy
                            if cones == 0 or dx * view_x + dy * view_y > HALF_CONE * math.sqrt(squared):
                                mask[b, i, no_attack + j] = squared <= shoot * shoot
                k = 4
                for t in range(A, A + E):
                    dx, dy = u[_X, t] - x, u[_Y, t] - y
                    squared = dx * dx + dy * dy
                    if squared < sight * sight and health[t] > 0.0:
                        distance = math.sqrt(squared)
                        if cones > 0 and dx * view_x + dy * view_y <= HALF_CONE * distance:
                            k += 5 + sh_e + bits
                            continue
                        if not healer and squared <= shoot * shoot:
                            mask[b, i, no_attack + t - A] = True
                        # A healer sees here whether it can heal the ally of this index: SMAC does so too.
                        obs[b, i, k] = 1.0 if mask[b, i, no_attack + t - A] else 0.0
                        obs[b, i, k + 1] = distance * scale
                        obs[b, i, k + 2] = dx * scale
                        obs[b, i, k + 3] = dy * scale
                        obs[b, i, k + 4] = health[t]
                        if sh_e:
                            obs[b, i, k + 5] = shield[t]
                        if bits:
                            obs[b, i, k + 5 + sh_e + int(looks[0, t])] = 1.0
                    k += 5 + sh_e + bits
                for t in range(A):
                    if t == i:
                        continue
                    dx, dy = u[_X, t] - x, u[_Y, t] - y
                    squared = dx * dx + dy * dy
                    if squared < sight * sight and health[t] > 0.0:
                        distance = math.sqrt(squared)
                        if cones > 0 and dx * view_x + dy * view_y <= HALF_CONE * distance:
                            k += 5 + sh_a + bits
                            continue
                        obs[b, i, k] = 1.0
                        obs[b, i, k + 1] = distance * scale
                        obs[b, i, k + 2] = dx * scale
                        obs[b, i, k + 3] = dy * scale
                        obs[b, i, k + 4] = health[t]
                        if sh_a:
                            obs[b, i, k + 5] = shield[t]
                        if bits:
                            obs[b, i, k + 5 + sh_a + int(looks[0, t])] = 1.0
                    k += 5 + sh_a + bits
                obs[b, i, k] = health[i]
                k += 1
                if sh_a:
                    obs[b, i, k] = shield[i]
                    k += 1
                if own_position:
                    obs[b, i, k], obs[b, i, k + 1] = x / SIZE, y / SIZE
                    k += 2
                if cones > 0:
                    obs[b, i, k], obs[b, i, k + 1] = view_x, view_y
                    k += 2
                if bits:
                    obs[b, i, k + int(looks[0, i])] = 1.0

    @njit(nogil=True, error_model="numpy")
    def state_kernel(units, views, last_action, sizes, all_looks, state):
        """Write SMAC's state (B, state_dim) float32; last_action (B, N) int64, NO_ACTION before the first."""
        _ = digest
        A, E, n_act = sizes[0], sizes[1], sizes[2]
        sh_a, sh_e, bits = sizes[3], sizes[4], sizes[5]
        cones = sizes[8]
        looks = all_looks[0]
        for b in range(units.shape[0]):
            u = units[b]
            s = state[b]
            if all_looks.shape[0] > 1:
                looks = all_looks[b]
            s[:] = 0.0
            k = 0
            for t in range(A + E):
                enemy = t >= A
                shields = sh_e if enemy else sh_a
                width = (3 if enemy else 4 + 2 * (cones > 0)) + shields + bits
                if u[_HP, t] > 0.0:
                    c = k
                    s[c] = u[_HP, t] / u[_HPMAX, t]
                    if not enemy:
                        c += 1
                        charge = u[_EN, t] if looks[2, t] > 0.0 else u[_CD, t]
                        s[c] = charge / looks[1, t]
                    s[c + 1] = (u[_X, t] - SIZE / 2) / SIZE
                    s[c + 2] = (u[_Y, t] - SIZE / 2) / SIZE
                    if shields and u[_SHMAX, t] > 0.0:
                        s[c + 3] = u[_SH, t] / u[_SHMAX, t]
                    if cones > 0 and not enemy:
                        angle = 2.0 * math.pi * views[b, t] / cones
                        s[c + 3 + shields], s[c + 4 + shields] = math.cos(angle), math.sin(angle)
                    if bits:
                        s[k + width - bits + int(looks[0, t])] = 1.0
                k += width
            for i in range(A):
                if last_action[b, i] >= 0:
                    s[k + last_action[b, i]] = 1.0
                k += n_act

    @njit(nogil=True, error_model="numpy")
    def reward_kernel(before, units, sizes, divisors, fix, won, out):
        """Write the scaled team reward (B,) float32.

        before (B, 2, E): the enemies' health and shield a step ago; divisors (1 or B,): max_reward / 20;
        won (B,) adds the bonus for a win.
        """
        _ = digest
        A, E = sizes[0], sizes[1]
        for b in range(units.shape[0]):
            total = 0.0
            for j in range(E):
                if before[b, 0, j] > 0.0:
                    whole = before[b, 0, j] + before[b, 1, j]
                    if units[b, _HP, A + j] <= 0.0:
                        total += whole + REWARD_DEATH
                    else:
                        total += whole - units[b, _HP, A + j] - units[b, _SH, A + j]
            total = max(0.0, total) if fix else abs(total)
            if won[b]:
                total += REWARD_WIN
            out[b] = total / divisors[b if len(divisors) > 1 else 0]

    return observe_kernel, state_kernel, reward_kernel


observe_kernel, state_kernel, reward_kernel = _compile(_source_digest())


def _columns_first(
    side: np.ndarray, lead: tuple[int, ...], count: int, what: str, map_name: str
) -> np.ndarray:
    """Units (*lead, count, 8) as (battles, 8, count); ValueError on another shape."""
    side = np.asarray(side, dtype=np.float64)
    if side.ndim < 2 or side.shape[-2:] != (count, 8):
        raise ValueError(
            f"{what} of map {map_name!r} must have shape (..., {count}, 8), a row per unit with "
            f"{', '.join(UNIT_COLUMNS)}; got {side.shape}."
        )
    if side.shape[:-2] != lead:
        raise ValueError(f"{what} is of battles {side.shape[:-2]}, and ally of {lead}: give as many of each.")
    return side.reshape(-1, count, 8).transpose(0, 2, 1)


def _known_teams(map_name: str) -> SmacMap:
    battle = get_map(map_name)
    if battle.drawn:
        raise ValueError(
            f"The teams of {map_name} are drawn for every episode; play it to see what agents see."
        )
    return battle


def observe(
    map_name: str,
    ally: np.ndarray,
    enemy: np.ndarray,
    last_action: np.ndarray,
    pathing_grid: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """SMAC's observations, global state and action mask of a battle's units.

    ally (..., N, 8) and enemy (..., E, 8): `UNIT_COLUMNS` per unit; health 0 is dead. last_action (..., N)
    int, NO_ACTION (-1) before an agent's first. pathing_grid (32, 32) bool, indexed [x, y]: by default the
    map's own.
    Returns obs (..., N, obs_dim) float32, state (..., state_dim) float32, action_mask (..., N, A) bool.
    ValueError on an unknown map or a wrong shape.
    """
    battle = _known_teams(map_name)
    A, E = battle.num_agents, battle.num_enemies
    lead = np.shape(ally)[:-2]
    allies = _columns_first(ally, lead, A, "ally", map_name)
    enemies = _columns_first(enemy, lead, E, "enemy", map_name)
    units = np.ascontiguousarray(np.concatenate([allies, enemies], axis=2))
    grid = battle.pathing_grid if pathing_grid is None else np.ascontiguousarray(pathing_grid, dtype=np.bool_)
    if grid.shape != (SIZE, SIZE):
        raise ValueError(f"pathing_grid must have shape ({SIZE}, {SIZE}), indexed [x, y]; got {grid.shape}.")
    last = np.ascontiguousarray(last_action, dtype=np.int64)
    if (
        last.shape != (*lead, A)
        or last.min(initial=0) < NO_ACTION
        or last.max(initial=0) >= battle.num_actions
    ):
        raise ValueError(
            f"last_action must have shape {(*lead, A)} with values from -1 (none yet) to "
            f"{battle.num_actions - 1}; got shape {last.shape}."
        )
    B = units.shape[0]
    obs = np.empty((B, A, battle.obs_dim), dtype=np.float32)
    mask = np.empty((B, A, battle.num_actions), dtype=np.bool_)
    state = np.empty((B, battle.state_dim), dtype=np.float32)
    everyone = np.ones(B, dtype=np.bool_)
    alive = np.empty((B, A), dtype=np.bool_)
    views = np.zeros((B, A), dtype=np.int64)
    observe_kernel(units, views, everyone, obs, mask, alive, battle.looks, battle.sizes, grid)
    state_kernel(units, views, last.reshape(B, A), battle.sizes, battle.looks, state)
    return obs.reshape(*lead, A, -1), state.reshape(*lead, -1), mask.reshape(*lead, A, -1)


def reward(
    map_name: str,
    prev_ally: np.ndarray,
    ally: np.ndarray,
    prev_enemy: np.ndarray,
    enemy: np.ndarray,
    reward_fix: bool = False,
) -> np.ndarray:
    """SMAC's shaped reward of one step, without the bonus for a win.

    Units as in `observe`, before (prev_) and after the step; shape (...) float32. Damage dealt and 10 per
    kill, divided by max_reward / 20. SMAC takes the absolute value, so enemy shields that regenerate pay as
    well; reward_fix=True takes max(0, .) instead. The allies' units do not enter SMAC's default reward; they
    are arguments so that a call holds the whole step. ValueError on an unknown map or a wrong shape.
    """
    battle = _known_teams(map_name)
    A, E = battle.num_agents, battle.num_enemies
    lead = np.shape(ally)[:-2]
    _columns_first(prev_ally, lead, A, "prev_ally", map_name)
    before = _columns_first(prev_enemy, lead, E, "prev_enemy", map_name)
    before = np.ascontiguousarray(before[:, [_HP, _SH]])
    allies = _columns_first(ally, lead, A, "ally", map_name)
    enemies = _columns_first(enemy, lead, E, "enemy", map_name)
    units = np.ascontiguousarray(np.concatenate([allies, enemies], axis=2))
    out = np.empty(units.shape[0], dtype=np.float32)
    lost = np.zeros(units.shape[0], dtype=np.bool_)
    divisors = np.array([battle.max_reward / REWARD_SCALE])
    reward_kernel(before, units, battle.sizes, divisors, reward_fix, lost, out)
    return out.reshape(lead)
