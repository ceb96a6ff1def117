"""SMAC's maps with zerg units and terrain: walls, ways, blasts, beams, claws, and what the enemy is told."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from envs.smac import SmacVectorEnv, combat, maps, terrain, units
from envs.smac.maps import SmacMap, get_map
from tests.envs.test_smac_engine import allow, arrange, only, play

GRIDS = np.load(Path(__file__).parent / "data" / "smac_grids.npz")
"""(32, 32) bool, [x, y]: cells of SMAC's map files, with the corners of diagonal cliffs cut off."""
WALLED = list(terrain.PICTURES)


def battle(monkeypatch, allies, enemies, places, **options) -> SmacVectorEnv:
    """One battle of those units, at places (x, y), allies first; the enemy stands still until it is hit."""
    monkeypatch.setitem(maps.MAPS, "test", SmacMap("test", 100, allies, enemies, **options))
    env = SmacVectorEnv("test", seed=1)
    env.reset()
    state = env.get_state()
    state["units"][0, combat.X], state["units"][0, combat.Y] = np.array(places, float).T
    state["links"][0, combat.ORDER, env.num_agents :] = combat.STOP
    env.set_state(state)
    return env


def health(env: SmacVectorEnv) -> np.ndarray:
    return env.get_state()["units"][0, combat.HP]


def attack(env: SmacVectorEnv, agent: int, target: int = 0, steps: int = 1) -> None:
    """One agent attacks, the others stop."""
    for _ in range(steps):
        allow(env, agent, 6 + target)
        actions = only(env, 1)
        actions[0, agent] = 6 + target
        env.step(actions)


# Terrain.


@pytest.mark.parametrize("name", WALLED)
def test_ground_is_that_of_smacs_map_files(name):
    """Agents could walk, or would be barred, where SMAC's mask says otherwise."""
    np.testing.assert_array_equal(get_map(name).pathing_grid, GRIDS[f"{name}/walkable"])
    np.testing.assert_array_equal(terrain.walkable(terrain.PICTURES[name], "."), GRIDS[f"{name}/reachable"])


@pytest.mark.parametrize("name", WALLED)
def test_moves_are_masked_by_the_ground(name):
    """The mask looks one cell ahead of where an agent is, in the map's own grid."""
    env, grid = SmacVectorEnv(name, num_envs=16, seed=3), GRIDS[f"{name}/walkable"]
    barred = 0
    env.reset()
    for _ in range(40):
        *_, infos = env.step(env.sample_actions())
        u = env.get_state()["units"]
        x, y = u[:, combat.X, : env.num_agents], u[:, combat.Y, : env.num_agents]
        ahead = [(x, y + 1), (x, y - 1), (x + 1, y), (x - 1, y)]
        cells = np.trunc(np.moveaxis(np.array(ahead), 0, -1)).astype(int)
        inside = ((cells >= 0) & (cells < 32)).all(0)
        free = inside & grid[tuple(np.clip(cells, 0, 31))]
        np.testing.assert_array_equal(infos["action_mask"][..., 2:6], free & infos["alive"][..., None])
        barred += (~free & infos["alive"][..., None]).sum()
    assert barred


@pytest.mark.parametrize("name", WALLED)
def test_walls_keep_what_walks_on_the_ground(name):
    """Units would cut through cliffs, and arrive in no time."""
    env = SmacVectorEnv(name, num_envs=16, seed=5)
    kinds = env.map.ally_types + env.map.enemy_types
    walkers = np.array([kind.plane == units.GROUND for kind in kinds])
    for _ in play(env, 80):
        u = env.get_state()["units"]
        assert (u[:, combat.HP] <= u[:, combat.HPMAX]).all()
        cells = np.floor(u[:, [combat.X, combat.Y]]).astype(int)[:, :, walkers]
        assert GRIDS[f"{name}/reachable"][cells[:, 0], cells[:, 1]].all()


@pytest.mark.parametrize("name", WALLED)
def test_nothing_but_walls_bounds_the_ground(name):
    """The band of the open maps cut off where corridor's zerglings start, and where they are sent."""
    env, grid = SmacVectorEnv(name, seed=5), GRIDS[f"{name}/reachable"]
    rows = np.flatnonzero(grid.any(axis=0))
    for y in (rows[0], rows[-1]):
        x = np.flatnonzero(grid[:, y]).mean().round()
        x = min(np.flatnonzero(grid[:, y]), key=lambda one: abs(one - x)) + 0.5
        env.reset()
        arrange(env, X={0: x}, Y={0: y + 0.5})
        env.step(only(env, 1))
        u = env.get_state()["units"][0]
        assert np.hypot(u[combat.X, 0] - x, u[combat.Y, 0] - y - 0.5) < 0.5


def test_the_end_of_a_wall_is_no_diagonal_cliff():
    """Cut off at its corners, 2c_vs_64zg's wall would be two cells shorter, and the swarm there sooner."""
    wall = ~get_map("2c_vs_64zg").pathing_grid[:, 12:14]
    assert wall[4:28].all() and not wall[:4].any() and not wall[28:].any()


def test_who_is_held_up_behind_a_wall_does_not_go_around_through_it():
    """It would walk along the wall, away from its way, for a cell that is near only as the crow flies."""
    env = SmacVectorEnv("2c_vs_64zg", seed=1)
    env.reset()
    away = {i: 2.5 + 0.4 * i for i in range(3, 66)}
    arrange(
        env, X={0: 16.0, 1: 16.5, 2: 15.0} | away, Y={0: 15.5, 1: 15.5, 2: 11.0} | dict.fromkeys(away, 8.0)
    )
    state = env.get_state()
    state["units"][0, [combat.LAST_X, combat.LAST_Y], 2] = state["units"][0, [combat.X, combat.Y], 2]
    state["units"][0, combat.PACE, 2] = 0.4
    env.set_state(state)
    env.step(only(env, 1))
    assert env.get_state()["units"][0, combat.ASIDE, 2] == 0.0


def test_flyers_leave_the_band():
    """Walls are for those that walk: a medivac is sent where the mask says that it may go."""
    env = SmacVectorEnv("MMM", seed=1)
    env.reset()
    medivac = [kind.plane for kind in env.unit_types(0)].index(units.AIR)
    arrange(env, X={medivac: 5.0}, Y={medivac: 23.5})
    north = only(env, 1)
    north[0, medivac] = 2
    env.step(north)
    assert env.get_state()["units"][0, combat.Y, medivac] > 23.6


def test_a_battles_version_is_the_last_that_changed_it():
    """Runs of corridor would mix with those before it, or runs of 8m be thrown away for nothing."""
    changed = {name for name in maps.MAPS if get_map(name).version == 3}
    walled = {"2m_vs_1z", "so_many_baneling", "bane_vs_bane", "corridor", "2c_vs_64zg"}
    assert changed == {*walled, "MMM", "MMM2"} and units.ENGINE_VERSION == 3
    assert {get_map(name).version for name in maps.MAPS.keys() - changed} == {2}
    assert SmacVectorEnv("corridor").label == "embedded3" and SmacVectorEnv("6h_vs_8z").label == "embedded2"


def test_a_state_is_of_its_map():
    """Zealots would go on with the health of marines."""
    env = SmacVectorEnv("3m", seed=1)
    env.reset()
    with pytest.raises(ValueError, match="of another battle: 3s_vs_3z has changed since, or the engine"):
        SmacVectorEnv("3s_vs_3z").set_state(env.get_state())
    unnumbered = env.get_state() | {"battle": np.zeros(1, np.uint64)}  # as up to version 2
    env.set_state(unnumbered)
    changed = SmacVectorEnv("corridor", seed=1)
    changed.reset()
    with pytest.raises(ValueError, match="the engine plays it otherwise"):
        changed.set_state(changed.get_state() | {"battle": np.zeros(1, np.uint64)})


@pytest.mark.parametrize("name", ["corridor", "so_many_baneling", "2c_vs_64zg"])
def test_ways_lead_around_walls_and_end(name):
    """Units would run against a wall for ever, or take a long way round."""
    grid = GRIDS[f"{name}/reachable"]
    cells, hops = terrain.ways(grid)
    rng = np.random.default_rng(0)
    free = np.argwhere(grid)
    turns = []
    for start, goal in free[rng.integers(len(free), size=(40, 2))]:
        at, stops = start + 0.5, [start + 0.5]
        while (hop := hops[cells[tuple(at.astype(int))], cells[tuple(goal)]]) >= 0:
            at = np.array(divmod(int(hop), 32)) + 0.5
            stops.append(at)
            assert len(stops) < 10
        stops.append(goal + 0.5)
        for a, b in itertools.pairwise(stops):
            for t in np.linspace(0, 1, 200):
                assert grid[tuple(np.floor((1 - t) * a + t * b).astype(int))]
        turns.append(len(stops) - 2)
        # The same by the kernel.
        length = sum(np.hypot(*(b - a)) for a, b in itertools.pairwise(stops))
        assert np.isclose(terrain.way_length(cells, hops, *(start + 0.5), *(goal + 0.5)), length)
    assert max(turns) > 0


def test_convex_grounds_have_no_ways_to_look_up():
    """Maps would pay for tables that they do not need."""
    for name in ("2m_vs_1z", "2s_vs_1sc", "6h_vs_8z", "bane_vs_bane"):
        assert get_map(name).ways[1].shape == (0, 0)


def test_zerglings_come_round_both_ends_of_the_cliff():
    """On 2c_vs_64zg they would stand below the colossi and be shot."""
    env = SmacVectorEnv("2c_vs_64zg", seed=2)
    env.reset()
    for _ in range(12):
        env.step(only(env, 1))
    u = env.get_state()["units"][0]
    north = u[combat.Y, 2:] > 13
    assert north.sum() > 40
    assert (u[combat.X, 2:][north] < 14).any() and (u[combat.X, 2:][north] > 18).any()


def test_pictures_that_are_none_are_refused():
    """A ground with a row too few would be read shifted."""
    with pytest.raises(ValueError, match="16 rows of 16"):
        terrain.walkable("####\n....")


# What agents see, by SMAC's description, unit by unit.

COOLDOWNS = {"marine": 15, "stalker": 35, "zealot": 22, "colossus": 24, "hydralisk": 10, "zergling": 11}
SHIELDED = {"stalker": 80, "zealot": 50, "colossus": 150}
COLUMNS = {"bane_vs_bane": ("baneling", "zergling")}


def fractions(u: np.ndarray, kind: str, shields: bool, name: str) -> list[float]:
    """Health, shield and type of a unit (8,), as every block of observation and state ends."""
    bits = [float(kind == column) for column in COLUMNS.get(name, ())]
    return [u[2] / u[3], *([u[4] / SHIELDED.get(kind, 1)] if shields else []), *bits]


def by_description(name: str, u: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observations (N, obs_dim) and state (state_dim,) of units (U, 8), written out again."""
    m = get_map(name)
    A, kinds = m.num_agents, [kind.name for kind in m.ally_types + m.enemy_types]
    sides = [any(kind in SHIELDED for kind in side) for side in (kinds[:A], kinds[A:])]
    blank = [len(fractions(u[0], kinds[0], side, name)) for side in sides]
    obs, state = [], []
    for i in range(A):
        own: list[float] = []
        x, y = u[i, :2]
        for dx, dy in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            a, b = int(x + dx), int(y + dy)
            own.append(float(0 <= a < 32 and 0 <= b < 32 and GRIDS[f"{name}/walkable"][a, b]))
        for j in [*range(A, len(u)), *(j for j in range(A) if j != i)]:
            enemy, (dx, dy) = j >= A, u[j, :2] - u[i, :2]
            distance = np.hypot(dx, dy)
            if u[j, 2] <= 0 or distance >= 9:
                own += [0.0] * (4 + blank[enemy])
                continue
            first = float(distance <= 6) if enemy else 1.0
            own += [first, distance / 9, dx / 9, dy / 9, *fractions(u[j], kinds[j], sides[enemy], name)]
        own += fractions(u[i], kinds[i], sides[0], name)
        obs.append(own if u[i, 2] > 0 else [0.0] * len(own))
    for j in range(len(u)):
        enemy = j >= A
        health, *rest = fractions(u[j], kinds[j], sides[enemy], name)
        cooldown = [] if enemy else [u[j, 7] / {"baneling": 1}.get(kinds[j], COOLDOWNS.get(kinds[j], 1))]
        block = [health, *cooldown, (u[j, 0] - 16) / 32, (u[j, 1] - 16) / 32, *rest]
        state += block if u[j, 2] > 0 else [0.0] * len(block)
    return np.array(obs), np.array([*state, *np.eye(m.num_actions)[last].ravel()])


@pytest.mark.parametrize("name", WALLED)
def test_observation_and_state_are_as_smac_describes_them(name):
    """Agents would see other numbers than in SMAC: other dividers, other types, another order."""
    env = SmacVectorEnv(name, num_envs=4, seed=2)
    env.reset()
    for step in range(24):
        actions = env.sample_actions()
        obs, _, terminated, truncated, _ = env.step(actions)
        if step % 4 == 3:
            for e in np.flatnonzero(~(terminated | truncated)):
                wanted, state = by_description(name, env.get_state()["units"][e, :8].T, actions[e])
                np.testing.assert_allclose(obs[e], wanted, atol=1e-6)
                np.testing.assert_allclose(env.state()[e], state, atol=1e-6)


# What the enemy is told.


@pytest.mark.parametrize(
    ("name", "goal"),
    [
        ("6h_vs_8z", (14.5998, 9.49)),
        ("bane_vs_bane", (16, 8)),
        ("corridor", (4.47, 4.3298)),
        ("so_many_baneling", (4.47, 4.3298)),
    ],
)
def test_enemies_attack_towards_the_maps_point(name, goal):
    """On corridor they would stop among the allies instead of going on past them."""
    env = SmacVectorEnv(name, num_envs=3, seed=1)
    env.reset()
    state = env.get_state()
    assert (state["links"][:, combat.ORDER, env.num_agents :] == combat.ATTACK_MOVE).all()
    for row, value in zip((combat.GOAL_X, combat.GOAL_Y), goal, strict=True):
        np.testing.assert_allclose(state["units"][:, row, env.num_agents :], value)


def test_the_zealot_of_2m_vs_1z_goes_anywhere_between_the_marines():
    """A fixed point would favour one of them."""
    env = SmacVectorEnv("2m_vs_1z", num_envs=200, seed=1)
    env.reset()
    u = env.get_state()["units"]
    x, y = u[:, combat.GOAL_X, 2], u[:, combat.GOAL_Y, 2]
    assert (y == 12).all() and x.min() < 13.5 and x.max() > 18.5 and 15.5 < x.mean() < 16.5


def test_hunters_take_the_nearest_and_then_the_other():
    """On 2c_vs_64zg an agent could draw the swarm to and fro, or nobody would come for the second."""
    env = SmacVectorEnv("2c_vs_64zg", seed=1)
    env.reset()
    arrange(env, X={0: 10.0, 1: 22.0, 2: 11.0, 3: 21.0}, Y={0: 16.0, 1: 16.0, 2: 16.0, 3: 16.0})
    env.step(only(env, 1))
    assert env.get_state()["links"][0, combat.TARGET, [2, 3]].tolist() == [0, 1]
    arrange(env, HP={0: 0.0}, SH={0: 0.0})
    env.step(only(env, 1))
    assert (env.get_state()["links"][0, combat.TARGET, 2:] == 1).all()


def test_agents_and_enemies_of_bane_vs_bane_are_in_smacs_order():
    """Agent 0 would be another unit than in SMAC."""
    m = get_map("bane_vs_bane")
    assert [kind.name for kind in m.ally_types] == ["baneling"] * 4 + ["zergling"] * 20
    assert [kind.name for kind in m.enemy_types] == ["zergling"] * 20 + ["baneling"] * 4
    assert m.ally_bits.index("baneling") == m.enemy_bits.index("baneling") == 0


# Units.


@pytest.mark.parametrize(
    ("victim", "needed"), [(units.ZEALOT, 5), (units.ZERGLING, 1), (units.BANELING, 2), (units.MARINE, 2)]
)
def test_so_many_banelings_kill_a_unit(monkeypatch, victim, needed):
    """so_many_baneling and bane_vs_bane would be other battles."""
    places = [(4.0 + 2 * i, 10.0) for i in range(6)] + [(20.0, 20.0)]
    env = battle(monkeypatch, ((units.BANELING, 6),), ((victim, 1),), places)
    for i in range(needed):
        assert health(env)[6] > 0
        arrange(env, X={i: 20.0 - 0.9, 6: 20.0}, Y={i: 20.0, 6: 20.0})
        before = env.get_state()["units"]
        attack(env, i)
        # A won battle has begun anew by now.
        after = env.get_state()
        assert (after["length"][0] == 0) == (i == needed - 1)
        assert i == needed - 1 or (after["units"][0, combat.HP, i] == 0 and before[0, combat.HP, i] > 0)


def test_blasts_reach_enemies_around_and_spare_their_own_side(monkeypatch):
    """Banelings would kill each other, or only their target."""
    rim = 2.2 + 0.375
    places = [(10, 16), (10.5, 16.5), (10, 17.5), (10.8, 16), (10 - rim + 0.05, 16), (10, 16 - rim - 0.1)]
    allies = ((units.BANELING, 1), (units.ZERGLING, 2))
    env = battle(monkeypatch, allies, ((units.MARINE, 3),), places)
    attack(env, 0)
    hp = health(env)
    assert hp[0] == 0
    assert hp[3] <= 10 and hp[4] <= 10 and hp[5] == 45
    assert (hp[1:3] > 0).all()


def test_banelings_that_are_killed_explode_once(monkeypatch):
    """Killing them from afar would be the same as killing them beside oneself."""
    places = [(10, 16), (20, 10), (10.9, 16), (12.5, 16)]
    enemies = ((units.BANELING, 2),)
    env = battle(monkeypatch, ((units.ZEALOT, 1), (units.MARINE, 1)), enemies, places)
    arrange(env, HP={2: 1.0})
    before = env.get_state()["units"][0]
    attack(env, 0, 0, steps=2)
    u = env.get_state()["units"][0]
    lost = (before[combat.HP] + before[combat.SH] - u[combat.HP] - u[combat.SH])[0]
    assert u[combat.HP, 2] == 0 and u[combat.HP, 3] == 30, "the other baneling is on its side"
    # It may have attacked, or have been killed: one blast of 35 either way, and no armour on the shield.
    assert lost == 35
    assert env.get_state()["links"][0, combat.ORDER, 2] == combat.SPENT


def test_agents_banelings_do_not_explode_unless_told(monkeypatch):
    """Stopping, or passing by, would cost them their lives."""
    places = [(10, 16), (25, 10), (11.3, 16)]
    env = battle(monkeypatch, ((units.BANELING, 1), (units.MARINE, 1)), ((units.SPINE_CRAWLER, 1),), places)
    arrange(env, CD={2: 1000.0})
    for action in (1, 2, 3):
        env.step(only(env, action))
    assert health(env)[0] > 0
    attack(env, 0)
    # Structures take 80, less 2 of armour.
    np.testing.assert_allclose(300 - health(env)[2], 78, atol=0.2)


def test_banelings_come_for_no_structure_that_hits_them(monkeypatch):
    """Not even when they are called for help."""
    places = [(10, 16), (25, 10), (16.5, 16), (17.5, 16)]
    allies = ((units.SPINE_CRAWLER, 1), (units.MARINE, 1))
    env = battle(monkeypatch, allies, ((units.BANELING, 2),), places)
    state = env.get_state()
    state["links"][0, combat.ORDER, 2:] = combat.ATTACK_MOVE
    state["units"][0, combat.HP, 2:] = state["units"][0, combat.HPMAX, 2:] = 1000.0
    env.set_state(state)
    hurt = False
    for _ in range(4):
        attack(env, 0)
        state = env.get_state()
        hurt |= (state["links"][0, combat.ATTACKER, 2:] == 0).any()
        assert (state["links"][0, combat.TARGET, 2:] != 0).all()
    assert hurt


def test_beams_hit_what_stands_in_line_across(monkeypatch):
    """Colossi would be worth little against zerglings."""
    places = [(8, 16), (13, 16), (13, 17.2), (13, 14.8), (13, 18.2), (14.2, 16)]
    env = battle(monkeypatch, ((units.COLOSSUS_UNIT, 1),), ((units.ZERGLING, 5),), places)
    attack(env, 0, 0, steps=2)
    hp = health(env)
    # Two beams of 15 on a line of 2.5 cells through the target; those beyond its end or behind have luck.
    assert (hp[1:4] < 8).all() and (hp[4:] > 34).all()


def test_structures_stand_still_and_in_the_way(monkeypatch):
    """A spine crawler would be pushed aside."""
    env = SmacVectorEnv("2s_vs_1sc", seed=1)
    env.reset()
    arrange(env, X={0: 13.9, 1: 16.0}, Y={0: 18.0, 1: 20.0}, HP={0: 1e6, 1: 1e6}, HPMAX={0: 1e6, 1: 1e6})
    at = env.get_state()["units"][0, [combat.X, combat.Y], 2]
    for _ in range(6):
        actions = only(env, 2)
        actions[0, 1] = only(env, 5)[0, 1]
        env.step(actions)
    u = env.get_state()["units"][0]
    np.testing.assert_array_equal(u[[combat.X, combat.Y], 2], at)
    apart = np.hypot(u[combat.X, :2] - at[0], u[combat.Y, :2] - at[1])
    assert (apart > 0.8 * (0.625 + 0.875)).all()


def test_zerg_units_regenerate_all_the_time():
    """Kiting zerglings would pay more than it should."""
    env = SmacVectorEnv("corridor", seed=1)
    env.reset()
    arrange(env, HP={6: 10.0, 7: 34.99}, HURT_AT={6: 0.0})
    env.step(only(env, 1))
    np.testing.assert_allclose(health(env)[[6, 7]], [10 + 8 * 0.2734 / 16, 35.0])


def test_hydralisks_claw_at_what_is_near(monkeypatch):
    """Their missiles' damage point would hold beside a zealot, too."""
    monkeypatch.setattr(units, "STEP_LOOPS", 1)
    monkeypatch.setattr(units, "FIRST_WINDUP", 0.0)
    first = {}
    for gap in (0.4, 3.0):
        places = [(10, 16), (10 + 0.625 + 0.5 + gap, 16)]
        env = battle(monkeypatch, ((units.HYDRALISK, 1),), ((units.ZEALOT, 1),), places)
        while env.get_state()["units"][0, combat.SH, 1] == 50:
            attack(env, 0)
            state = env.get_state()
            state["units"][0, combat.CD, 1] = 100.0  # the zealot only watches
            state["links"][0, combat.ORDER, 1] = combat.STOP
            env.set_state(state)
        first[gap] = env.get_state()["length"][0]
    # 0.3 s of raising its claws, against 0.208 s and a missile at 40 cells a second.
    assert first[0.4] == 1 + np.ceil(0.3 * 16)
    assert first[3.0] == 1 + np.ceil(0.208 * 16) + np.ceil((3 + 1.125) / 40 * 16)


@pytest.mark.parametrize("name", ["6h_vs_8z", "corridor", "2c_vs_64zg"])
def test_random_play_does_not_win(name):
    """A battle won by chance teaches nothing."""
    env = SmacVectorEnv(name, num_envs=32, seed=1)
    ended = 0
    for _, (_, _, _, _, infos) in play(env, 60):
        ended += infos["_episode"].sum()
        assert not infos["battle_won"].any()
    assert ended >= 32


def test_mutual_destruction_is_no_win(monkeypatch):
    """SMAC ends such a battle without a winner, and pays no bonus."""
    env = battle(monkeypatch, ((units.BANELING, 1),), ((units.ZERGLING, 1),), [(10, 16), (10.8, 16)])
    allow(env, 0, 6)
    _, reward, terminated, _, infos = env.step(np.array([[6]]))
    assert terminated[0] and not infos["battle_won"][0]
    np.testing.assert_allclose(reward[0], (35 + 10) / ((200 + 10 + 35) / 20), rtol=1e-5)


def test_suicides_of_enemies_are_paid(monkeypatch):
    """On so_many_baneling an agent earns what the enemy's banelings had left, and 10 each."""
    env = battle(monkeypatch, ((units.ZEALOT, 2),), ((units.BANELING, 1),), [(10, 16), (20, 20), (10.9, 16)])
    state = env.get_state()
    state["links"][0, combat.ORDER, 2] = combat.ATTACK_MOVE
    env.set_state(state)
    _, reward, terminated, _, infos = env.step(only(env, 1))
    assert terminated[0] and infos["battle_won"][0]
    np.testing.assert_allclose(reward[0], 20.0, rtol=1e-5)
