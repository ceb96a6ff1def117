"""The embedded SMAC battles: rules of the game, the vector environment's contract, reproducibility."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import envs
from envs.smac import SmacVectorEnv, combat, engine, units
from envs.smac import env as smac_env
from envs.smac.maps import MAPS, get_map

PLAYED = ("2s3z", "MMM", "3s_vs_5z", "1c3s5z", "27m_vs_30m")
MIRRORED = ("8m", "2s3z", "3s5z", "1c3s5z")


def random_actions(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (rng.random(mask.shape) * mask).argmax(-1)


def play(env: SmacVectorEnv, steps: int, seed: int = 0):
    """Random valid play; yields the mask acted under, then what step returned."""
    rng = np.random.default_rng(seed)
    _, infos = env.reset()
    for _ in range(steps):
        mask = infos["action_mask"]
        result = env.step(random_actions(mask, rng))
        infos = result[-1]
        yield mask, result


def only(env: SmacVectorEnv, action: int) -> np.ndarray:
    """Everyone takes this action where it is available, else stops, else (dead) does nothing."""
    mask = env.get_state()["action_mask"]
    return np.where(mask[..., action], action, np.where(mask[..., 1], 1, 0))


def arrange(env: SmacVectorEnv, **rows: dict[int, float]) -> None:
    """Set single numbers of units in environment 0, e.g. HP={3: 10.0} (allies first)."""
    state = env.get_state()
    for row, values in rows.items():
        for unit, value in values.items():
            state["units"][0, getattr(combat, row), unit] = value
    env.set_state(state)


def allow(env: SmacVectorEnv, agents: int | slice, action: int) -> None:
    """Make an action available in environment 0, as it is once `arrange` has put its target near."""
    state = env.get_state()
    state["action_mask"][0, agents, action] = True
    env.set_state(state)


# Rules of the game.


@pytest.mark.parametrize("name", PLAYED)
def test_bodies_stay_within_bounds(name):
    """Health above its maximum, a unit outside the arena: the battle would be no SMAC battle."""
    env = SmacVectorEnv(name, num_envs=8, seed=5)
    low, high = env.map.band
    for _ in play(env, 60):
        u = env.get_state()["units"]
        assert np.isfinite(u).all()
        for now, most in ((combat.HP, combat.HPMAX), (combat.SH, combat.SHMAX)):
            assert (u[:, now] >= 0).all() and (u[:, now] <= u[:, most]).all()
        assert (u[:, combat.EN] >= 0).all() and (u[:, combat.EN] <= 200).all()
        assert (u[:, combat.CD] >= 0).all()
        assert (u[:, combat.X] > 0).all() and (u[:, combat.X] < 32).all()
        assert (u[:, combat.Y] > low).all() and (u[:, combat.Y] < high).all()


@pytest.mark.parametrize("name", PLAYED)
def test_the_dead_do_nothing(name):
    """Dead agents would walk, or be asked for a choice."""
    env = SmacVectorEnv(name, num_envs=8, seed=6)
    before = None
    seen = 0
    for mask, (_, _, terminated, truncated, infos) in play(env, 60):
        u = env.get_state()["units"]
        if before is not None:
            dead = (before[:, combat.HP] <= 0) & ~(terminated | truncated)[:, None]
            seen += dead.sum()
            for row in (combat.X, combat.Y, combat.HP):
                np.testing.assert_array_equal(u[:, row][dead], before[:, row][dead])
        before = u
        mask, alive = infos["action_mask"], infos["alive"]
        np.testing.assert_array_equal(alive, u[:, combat.HP, : env.num_agents] > 0)
        np.testing.assert_array_equal(mask[..., 0], ~alive)
        assert not mask[..., 1:][~alive].any() and mask[..., 1][alive].all()
    assert seen > 0


@pytest.mark.parametrize(("name", "cells"), [("8m", 1.125), ("3s_vs_3z", 2.9531 / 2)])
def test_walking_speed_is_that_of_normal_seconds(name, cells):
    """On another clock units would cover 1.4 times the distance, and kiting would be another game."""
    env = SmacVectorEnv(name, seed=1)
    env.reset()
    start = env.get_state()["units"][0, combat.X, : env.num_agents]
    for _ in range(3):
        env.step(only(env, 5))
    moved = start - env.get_state()["units"][0, combat.X, : env.num_agents]
    np.testing.assert_allclose(moved.max(), 3 * cells, atol=0.05)


def test_damage_takes_shields_first_then_health_less_armour():
    """Stalkers and zealots would live too long or too short."""
    env = SmacVectorEnv("3s_vs_3z", seed=1)
    env.reset()
    stalker, zealot = 0, 3
    arrange(
        env, X={stalker: 14, zealot: 20}, Y={stalker: 16, zealot: 16}, SH={zealot: 5}, HURT_AT={zealot: 0}
    )
    allow(env, 0, 6)
    for _ in range(2):
        actions = only(env, 1)
        actions[0, 0] = 6
        env.step(actions)
    u = env.get_state()["units"][0]
    # 13 damage, no bonus against a light unit: 5 on the shield, 8 less 1 armour on the health.
    assert u[combat.SH, zealot] == 0 and u[combat.HP, zealot] == 100 - 7


def test_instant_weapons_do_not_overkill():
    """Groups would waste volleys that StarCraft II's units hold back."""
    env = SmacVectorEnv("3m", seed=1)
    env.reset()
    places = {0: 13.0, 1: 13.0, 2: 13.0, 3: 17.0}
    arrange(env, X=places, Y={0: 15.0, 1: 16.0, 2: 17.0, 3: 16.0}, HP={3: 6.0})
    allow(env, slice(None), 6)
    env.step(np.full((1, 3), 6))
    u = env.get_state()["units"][0]
    assert u[combat.HP, 3] == 0
    assert (u[combat.CD, :3] > 0).sum() == 1


def test_shots_come_one_period_and_a_random_delay_apart(monkeypatch):
    """Without the random delay win rates become step functions; a wrong period changes every fight."""
    monkeypatch.setattr(units, "STEP_LOOPS", 1)  # to see each shot
    env = SmacVectorEnv("3m", seed=3)
    env.episode_limit = 1000
    env.reset()
    arrange(env, X={0: 13.0, 3: 17.0}, Y={0: 16.0, 3: 16.0}, HP={0: 1e6, 3: 1e6}, HPMAX={0: 1e6, 3: 1e6})
    shots, health = [], 1e6
    for loop in range(400):
        allow(env, 0, 6)
        actions = only(env, 1)
        actions[0, 0] = 6
        env.step(actions)
        now = env.get_state()["units"][0, combat.HP, 3]
        if now < health:
            assert health - now == 6
            shots.append(loop)
        health = now
    gaps = np.diff(shots)
    assert gaps.min() >= 12 and gaps.max() <= 17 and len(set(gaps)) > 1
    assert abs(gaps.mean() - 14.8) < 0.6


def test_healing_spends_energy():
    """A medivac would heal for nothing."""
    env = SmacVectorEnv("MMM", seed=1)
    env.reset()
    medic, hurt = 9, 2
    arrange(env, HP={hurt: 10.0}, X={hurt: 5.0, medic: 6.0}, Y={hurt: 12.0, medic: 12.0})
    allow(env, medic, 6 + hurt)
    actions = only(env, 1)
    actions[0, medic] = 6 + hurt
    env.step(actions)
    u = env.get_state()["units"][0]
    healed = u[combat.HP, hurt] - 10.0
    np.testing.assert_allclose(healed, 8 * 9 / 16)
    np.testing.assert_allclose(u[combat.EN, medic], 50 + 8 * 0.5625 / 16 - healed * 0.33)


def test_energy_is_capped_and_a_heal_needs_the_minimum_to_start():
    """Medivacs would store energy without end, or dribble it out."""
    env = SmacVectorEnv("MMM", num_envs=1, seed=1)
    env.reset()
    medic, hurt = 9, 2
    arrange(
        env,
        HP={hurt: 10.0},
        X={hurt: 5.0, medic: 6.0},
        Y={hurt: 12.0, medic: 12.0},
        EN={medic: 1.0, 19: 199.9},
    )
    allow(env, medic, 6 + hurt)
    actions = only(env, 1)
    actions[0, medic] = 6 + hurt
    env.step(actions)
    u = env.get_state()["units"][0]
    assert u[combat.HP, hurt] == 10.0 and u[combat.EN, 19] == 200.0


def test_shields_come_back_after_ten_seconds_without_a_hit():
    """Protoss units would be too weak or too strong in long fights."""
    env = SmacVectorEnv("3s_vs_3z", seed=1)
    env.reset()
    arrange(env, SH={0: 10.0, 1: 10.0, 2: 10.0}, HURT_AT={0: -155.0, 1: -165.0, 2: 0.0})
    env.step(only(env, 1))
    shields = env.get_state()["units"][0, combat.SH, :3]
    # Ten seconds are 160 loops: they are over for the last three of this step's 8, for all of them, for none.
    np.testing.assert_allclose(shields, [10.0 + 3 * 2 / 16, 10.0 + 8 * 2 / 16, 10.0])


def one_loop(name: str, monkeypatch, **rows: dict[int, float]) -> SmacVectorEnv:
    """A battle whose steps are single game loops; units that `rows` does not place are dead."""
    monkeypatch.setattr(units, "STEP_LOOPS", 1)
    monkeypatch.setattr(units, "WEAPON_DELAY", (0.0, 0.0))
    env = SmacVectorEnv(name, seed=1)
    env.episode_limit = 1000
    env.reset()
    state = env.get_state()
    u = state["units"][0]
    absent = [i for i in range(u.shape[1]) if i not in rows["X"]]
    u[combat.HP, absent] = 0.0
    env.set_state(state)
    arrange(env, **{"Y": dict.fromkeys(rows["X"], 16.0)} | rows)
    return env


def health(env: SmacVectorEnv, unit: int) -> float:
    u = env.get_state()["units"][0]
    return u[combat.HP, unit] + u[combat.SH, unit]


def loops_until_hurt(env: SmacVectorEnv, unit: int, orders: dict[int, int], most: int = 100) -> int:
    """Game loops until a unit is hurt first, while these agents attack and all others stop."""
    before = health(env, unit)
    for loop in range(1, most + 1):
        actions = only(env, 1)
        for agent, action in orders.items():
            allow(env, agent, action)
            actions[0, agent] = action
        env.step(actions)
        if health(env, unit) < before:
            return loop
    raise AssertionError(f"unit {unit} was not hurt within {most} loops")


@pytest.mark.parametrize("name", list(MAPS))
def test_agents_are_numbered_by_type_and_then_by_where_they_start(name):
    """A policy per agent, as SMAC's users train, would be that of another place here."""
    env = SmacVectorEnv(name, num_envs=16, seed=3)
    env.reset()
    u = env.get_state()["units"]
    kinds = [kind.name for kind in env.map.ally_types]
    for b in range(16):
        for i in range(1, env.num_agents):
            if kinds[i] == kinds[i - 1]:
                assert (u[b, combat.X, i - 1], u[b, combat.Y, i - 1]) < (u[b, combat.X, i], u[b, combat.Y, i])
    assert len(np.unique(u[:, combat.X, 0])) == 16


def test_enemies_of_the_bio_maps_are_in_the_order_of_the_script():
    """Enemy 0 of MMM is a marine: an attack on the wrong unit would be learned."""
    for name, marauders, marines in (("MMM", 2, 7), ("MMM2", 3, 8)):
        kinds = [kind.name for kind in get_map(name).enemy_types]
        assert kinds == ["marine"] * marines + ["marauder"] * marauders + ["medivac"]


@pytest.mark.parametrize(
    ("degrees", "loops"),
    [(0, 0), (11, 0), (12, 1), (60, 1), (75, 2), (120, 2), (130, 2), (140, 3), (180, 3), (-75, 2)],
)
def test_units_turn_towards_their_target_before_they_fire(degrees, loops, monkeypatch):
    """62.5 degrees a loop, until 11.25 are left: without it random play hits more often than in the game."""
    env = one_loop("3m", monkeypatch, X={0: 13.0, 3: 17.0}, HP={0: 45.0, 3: 45.0})
    ahead = loops_until_hurt(env, 3, {0: 6})
    angle = np.radians(degrees)
    env = one_loop("3m", monkeypatch, X={0: 13.0, 3: 17.0}, HP={0: 45.0, 3: 45.0})
    arrange(env, FACE_X={0: np.cos(angle)}, FACE_Y={0: np.sin(angle)})
    assert loops_until_hurt(env, 3, {0: 6}) - ahead == loops


def test_walking_turns_a_unit(monkeypatch):
    """A unit that has fled would shoot back at once."""
    env = one_loop("3m", monkeypatch, X={0: 13.0, 3: 25.0})
    for _ in range(4):
        env.step(only(env, 5))
    u = env.get_state()["units"][0]
    np.testing.assert_allclose(u[[combat.FACE_X, combat.FACE_Y], 0], [-1, 0], atol=1e-9)


def test_a_new_attack_orders_wind_up_takes_two_loops_at_least(monkeypatch):
    """The assumption that the logs bear out would be off, or hold for the enemy, which gets no new orders."""
    marines = {"X": {0: 13.0, 3: 17.0}, "HP": {0: 45.0, 3: 45.0}}
    fired, answered, late = [], [], []
    for least in (0.0, 2.0):
        monkeypatch.setattr(units, "FIRST_WINDUP", least)
        fired.append(loops_until_hurt(one_loop("3m", monkeypatch, **marines), 3, {0: 6}))
        answered.append(loops_until_hurt(one_loop("3m", monkeypatch, **marines), 0, {}))
        env = one_loop("6h_vs_8z", monkeypatch, X={0: 12.0, 6: 16.0}, Y={0: 14.0, 6: 14.0})
        late.append(loops_until_hurt(env, 6, {0: 6}))
    # Damage points: a marine's 0.8 loops, a hydralisk's 3.3, which are more than two anyway.
    assert fired == [2, 3] and answered == [2, 2] and late[0] == late[1]
    monkeypatch.undo()
    assert units.FIRST_WINDUP == 2.0


def test_an_order_that_goes_on_costs_no_loop(monkeypatch):
    """Agents that repeat their attack, as they must every step, would fire later each time."""
    env = one_loop("3m", monkeypatch, X={0: 13.0, 3: 17.0}, HP={0: 1e6, 3: 1e6}, HPMAX={0: 1e6, 3: 1e6})
    loops_until_hurt(env, 3, {0: 6})
    assert loops_until_hurt(env, 3, {0: 6}) in (13, 14)  # 13.77 loops a shot


def test_the_agents_medivac_always_draws_fire_and_the_enemys_only_when_it_heals(monkeypatch):
    """AlwaysThreatens of SMAC's own medivac: MMM's agents would keep it for nothing."""
    agent, medivac = 2, 9  # a marine
    env = one_loop("MMM", monkeypatch, X={agent: 13.0, medivac: 14.0, 10: 17.0})
    loops_until_hurt(env, medivac, {})
    assert health(env, agent) == 45
    env = one_loop("MMM", monkeypatch, X={agent: 13.0, 10: 17.0, 19: 16.0})
    for _ in range(3):
        env.step_scripted()
    assert env.get_state()["links"][0, combat.TARGET, agent] == 10
    for loops, target in ((0, 19), (15, 19), (17, 10)):  # a healer is a threat for a second, 16 loops
        state = env.get_state()
        state["links"][0, combat.TARGET, agent] = -1
        state["units"][0, combat.HEALED_AT, 19] = state["length"][0] - loops
        env.set_state(state)
        env.step_scripted()
        assert env.get_state()["links"][0, combat.TARGET, agent] == target


@pytest.mark.parametrize(("apart", "comes"), [(3.9, True), (4.1, False)])
def test_friends_within_four_cells_come_to_help(apart, comes, monkeypatch):
    """CallForHelp of the game's data: enemies would be drawn out one by one, or all at once."""
    # A stalker shoots a zealot from out of its scan range; another stands `apart`, edge to edge.
    places = {0: 13.0, 3: 20.1, 4: 20.1}
    env = one_loop("3s_vs_3z", monkeypatch, X=places, Y={0: 16.0, 3: 16.0, 4: 15.0 - apart})
    arrange(env, GOAL_X={3: 20.1, 4: 20.1}, GOAL_Y={3: 16.0, 4: 15.0 - apart})
    loops_until_hurt(env, 3, {0: 6})
    before = env.get_state()["units"][0, combat.X]
    for _ in range(40):  # the missile was the only hit: 32 loops of help, then back
        env.step(only(env, 1))
        if env.get_state()["links"][0, combat.TARGET, 3] < 0:
            break
        helps = env.get_state()["links"][0, combat.TARGET, 4] == 0
    assert helps == comes
    moved = before - env.get_state()["units"][0, combat.X]
    assert moved[3] > 2 and (moved[4] > 2) == comes


def test_a_call_for_help_lasts_two_seconds(monkeypatch):
    """Enemies would pursue whoever hit them for longer than the game's do."""
    assert combat.AGGRESSION_MEMORY == 2 * units.LOOPS_PER_SECOND
    env = one_loop("3s_vs_3z", monkeypatch, X={0: 14.0, 3: 21.0})
    arrange(env, HURT_AT={3: 0.0}, GOAL_X={3: 21.0}, GOAL_Y={3: 16.0})
    state = env.get_state()
    state["links"][0, combat.ATTACKER, 3] = 0
    env.set_state(state)
    pursued = 0
    while True:
        env.step(only(env, 5))  # away, faster than a zealot
        if env.get_state()["links"][0, combat.TARGET, 3] != 0:
            break
        pursued += 1
    assert pursued == 32


@pytest.mark.parametrize(("name", "agent", "speed"), [("3s_vs_3z", 0, 18.75), ("MMM", 0, 20.0)])
def test_missiles_fly_at_the_datas_speeds(name, agent, speed, monkeypatch):
    """Kiting and overkill hang on when a shot lands."""
    enemy = SmacVectorEnv(name).num_agents
    distance = 6.0
    env = one_loop(name, monkeypatch, X={agent: 13.0, enemy: 13.0 + distance})
    fired = None
    before = health(env, enemy)
    for loop in range(1, 30):
        actions = only(env, 1)
        allow(env, agent, 6)
        actions[0, agent] = 6
        env.step(actions)
        u = env.get_state()["units"][0]
        if fired is None and u[combat.CD, agent] > 0:
            fired = loop
            flight = u[combat.HIT_IN, agent]
            gone = np.hypot(*(u[[combat.X, combat.Y], enemy] - u[[combat.X, combat.Y], agent]))
            # The enemy has walked on for the rest of the loop.
            assert abs(flight - gone / speed * 16) < 0.15 / speed * 16 + 1e-9
        if health(env, enemy) < before:
            break
    assert loop - fired == int(np.ceil(flight))


def test_a_colossus_beam_lands_a_third_of_a_second_after_it_was_fired(monkeypatch):
    """Its volleys would strike what has moved on by then, and kill at once."""
    colossus, zealot = 0, 13
    env = one_loop("1c3s5z", monkeypatch, X={colossus: 10.0, zealot: 15.0}, SH={zealot: 50.0})
    allow(env, colossus, 6 + zealot - 9)
    cooled, loop = None, 0
    while health(env, zealot) == 150:
        loop += 1
        actions = only(env, 1)
        allow(env, colossus, 6 + zealot - 9)
        actions[0, colossus] = 6 + zealot - 9
        env.step(actions)
        if cooled is None and env.get_state()["units"][0, combat.CD, colossus] > 0:
            cooled = loop
    assert loop - cooled == np.ceil(0.36 * 16)
    assert health(env, zealot) == 150 - 2 * 15  # both beams, light


def test_an_attack_moving_colossus_fires_while_it_walks_and_an_ordered_one_does_not(monkeypatch):
    """OnlyFireWhileInAttackOrder = 0: the enemy's colossus would be weaker than the game's."""
    shots = {}
    for scripted in (True, False):
        env = one_loop("1c3s5z", monkeypatch, X={0: 10.0, 9: 30.0, 13: 18.0}, Y={0: 16.0, 9: 9.0, 13: 16.0})
        # Its target is the far one, on which it walks; another is within its range of 7.
        state = env.get_state()
        state["links"][0, combat.ORDER, 9:] = combat.STOP
        env.set_state(state)
        before = health(env, 13)
        for _ in range(12):
            if scripted:
                state = env.get_state()
                state["links"][0, combat.ORDER, 9:] = combat.STOP
                env.set_state(state)
                env.step_scripted()
            else:
                actions = only(env, 1)
                allow(env, 0, 6)
                actions[0, 0] = 6
                env.step(actions)
        shots[scripted] = health(env, 13) < before
    assert shots == {True: True, False: False}


@pytest.mark.parametrize("name", MIRRORED)
def test_mirrored_sides_fight_a_mirrored_battle(name, monkeypatch):
    """One side would gain by being handled first."""
    monkeypatch.setattr(units, "WEAPON_DELAY", (0.0, 0.0))
    env = SmacVectorEnv(name, num_envs=8, seed=7)
    env.reset()
    state = env.get_state()
    n = env.num_agents
    u = state["units"]
    # Jittered places have no ties, which rounding would break differently on the two sides.
    u[:, combat.X, n:] = 32 - u[:, combat.X, :n]
    u[:, combat.Y, n:] = u[:, combat.Y, :n]
    env.set_state(state)
    hurt = 0.0
    for _ in range(20):
        over = env.step_scripted()[2]
        assert not over.any()
        u = env.get_state()["units"]
        np.testing.assert_allclose(u[:, combat.X, :n] + u[:, combat.X, n:], 32, atol=1e-6)
        for row in (combat.Y, combat.HP, combat.SH, combat.CD):
            np.testing.assert_allclose(u[:, row, :n], u[:, row, n:], atol=1e-6)
        hurt = (u[:, combat.HPMAX] + u[:, combat.SHMAX] - u[:, combat.HP] - u[:, combat.SH]).max()
    assert hurt > 30


@pytest.mark.parametrize("name", MIRRORED)
def test_equal_forces_under_one_script_win_about_half(name):
    """The enemy would be stronger or weaker than its units are."""
    env = SmacVectorEnv(name, num_envs=64, seed=11)
    env.reset()
    won = ended = 0
    while ended < 400:
        _, _, _, _, infos = env.step_scripted()
        won += infos["battle_won"].sum()
        ended += infos["_episode"].sum()
    assert 0.35 <= won / ended <= 0.65


@pytest.mark.parametrize("name", ["8m", "2s3z"])
def test_random_play_never_wins(name):
    """A battle won by chance teaches nothing."""
    env = SmacVectorEnv(name, num_envs=32, seed=1)
    ended = 0
    for _, (_, _, _, _, infos) in play(env, 180):
        ended += infos["_episode"].sum()
        assert not infos["battle_won"].any()
    assert ended >= 64


def test_starts_are_packed_without_overlap():
    """Units would burst apart on the first step."""
    for name in MAPS:
        m = get_map(name)
        kinds, places = m.ally_types + m.enemy_types, m.starts
        for i in range(len(kinds)):
            for j in range(i):
                if kinds[i].plane == kinds[j].plane:
                    apart = np.hypot(*(places[:, i] - places[:, j]))
                    assert apart >= kinds[i].separation + kinds[j].separation - 1e-9


# The vector environment's contract.


@pytest.mark.parametrize("name", ["2s3z", "MMM2"])
def test_outputs_fit_the_declared_spaces(name):
    """Libraries that allocate buffers from the spaces would break."""
    env = envs.make(f"smac/{name}", 4, seed=1, backend="embedded")
    E, N, A = 4, env.num_agents, env.num_actions
    obs, infos = env.reset()
    assert env.observation_space.contains(obs) and env.action_space.contains(infos["action_mask"].argmax(-1))
    for _, (obs, reward, terminated, truncated, infos) in play(env, 20):
        assert env.observation_space.contains(obs) and env.observation_space.contains(infos["final_obs"])
        assert reward.shape == terminated.shape == truncated.shape == (E,)
        assert (reward.dtype, terminated.dtype, truncated.dtype) == (np.float32, bool, bool)
        assert infos["action_mask"].shape == (E, N, A) and infos["alive"].shape == (E, N)
        assert env.state().shape == (E, env.state_dim) and env.state().dtype == np.float32
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert env.agent_obs_dims == (env.obs_dim,) * N and env.agent_act_dims == (A,) * N


def test_episode_statistics_are_the_sums():
    """Logged returns and lengths would not be those of the episodes."""
    env = SmacVectorEnv("2s3z", num_envs=6, seed=2)
    total, length, ended = np.zeros(6), np.zeros(6, int), 0
    for _, (_, reward, terminated, truncated, infos) in play(env, 200):
        total += reward
        length += 1
        done = terminated | truncated
        np.testing.assert_array_equal(infos["_episode"], done)
        np.testing.assert_array_equal(infos["_final_obs"], done)
        np.testing.assert_allclose(infos["episode"]["r"][done], total[done], rtol=1e-5)
        np.testing.assert_array_equal(infos["episode"]["l"][done], length[done])
        ended += done.sum()
        total[done], length[done] = 0, 0
    assert ended > 6


def test_the_step_limit_truncates_and_the_last_observation_is_kept():
    """Learners would bootstrap from the next episode's start, or take a time-out for a defeat."""
    env, twin = (SmacVectorEnv("2s3z", num_envs=3, seed=4) for _ in range(2))
    first, _ = env.reset()
    twin.reset()
    env.episode_limit = 5
    for step in range(1, 6):
        obs, _, terminated, truncated, infos = env.step(only(env, 4))
        last = twin.step(only(twin, 4))[0]
        assert not terminated.any() and truncated.all() == (step == 5)
    np.testing.assert_array_equal(infos["final_obs"], last)
    assert not infos["battle_won"].any() and (infos["episode"]["l"] == 5).all()
    # A new battle: full health for everyone, other places.
    assert infos["alive"].all() and (obs[..., -4:] == first[..., -4:]).all() and (obs != first).any()
    np.testing.assert_array_equal(env.get_state()["length"], 0)


def test_a_decided_battle_terminates_and_its_win_is_reported():
    """Win rates would be wrong, or the bonus for a win missing."""
    env = SmacVectorEnv("2s3z", num_envs=32, seed=8)
    env.reset()
    wins = losses = 0
    for _ in range(120):
        _, reward, terminated, truncated, infos = env.step_scripted()
        won = infos["battle_won"]
        assert not truncated.any() and not (won & ~terminated).any()
        enemies = infos["final_obs"][..., 4:44].reshape(32, 5, 5, 8)
        assert not enemies[won].any() and (infos["final_obs"][won][..., -4] > 0).any(-1).all()
        assert (reward[won] >= 200 / 51).all()
        assert not infos["final_obs"][terminated & ~won].any(axis=(1, 2)).any()
        wins, losses = wins + won.sum(), losses + (terminated & ~won).sum()
    assert wins and losses


def test_a_side_with_only_a_medivac_has_lost():
    """Battles would go on until the limit with nobody left who can fight."""
    for dead, victory in ((range(10, 21), True), (range(9), False)):
        env = SmacVectorEnv("MMM2", seed=1)
        env.reset()
        arrange(env, HP=dict.fromkeys(dead, 0.0))
        _, _, terminated, _, infos = env.step_scripted()
        assert terminated[0] and infos["battle_won"][0] == victory


def test_returned_arrays_are_not_overwritten():
    """A rollout that keeps references would hold the last step many times."""
    env = SmacVectorEnv("3m", num_envs=2, seed=1)
    kept = []
    for _, (obs, reward, _, _, infos) in play(env, 5):
        kept += [(a, a.copy()) for a in (obs, reward, infos["action_mask"], infos["alive"])]
    for array, copy in kept:
        np.testing.assert_array_equal(array, copy)


def test_forbidden_actions_are_refused_before_anything_is_played():
    """A bad action would corrupt the battle, or leave the user without a hint which one it was."""
    env = SmacVectorEnv("2s3z", num_envs=3, seed=1)
    env.reset()
    before = env.get_state()
    actions = only(env, 1)
    actions[2, 3] = 8
    with pytest.raises(ValueError, match=r"Action 8 of agent 3 in environment 2 .* available are \[1, "):
        env.step(actions)
    actions[2, 3] = 11
    with pytest.raises(ValueError, match="Action 11 of agent 3 in environment 2"):
        env.step(actions)
    for bad in (np.ones((3, 4), int), np.ones((5, 3), int), np.ones((3, 5))):
        with pytest.raises(ValueError, match=r"actions must be integers of shape \(3, 5\)"):
            env.step(bad)
    after = env.get_state()
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_names_and_options_that_do_not_exist_are_explained():
    """A typing error would end in a traceback from the depths."""
    with pytest.raises(ValueError, match=r"2s3z"):
        envs.make("smac/2s3x", 1, backend="embedded")
    with pytest.raises(ValueError, match=r"nearest ids are .*smac/2s3z"):
        envs.make("smax/2s3z", 1)
    with pytest.raises(ValueError, match="no option 'rewardfix'; did you mean 'reward_fix'"):
        envs.make("smac/2s3z", 1, backend="embedded", rewardfix=True)
    with pytest.raises(ValueError, match="backend must be"):
        envs.make("smac/2s3z", 1, backend="sc2")
    with pytest.raises(ValueError, match="num_envs must be at least 1"):
        envs.make("smac/2s3z", 0, backend="embedded")
    with pytest.raises(ValueError, match="render_mode must be"):
        envs.make("smac/2s3z", 1, backend="embedded", render_mode="human")


# Reproducibility.


def trace(env: SmacVectorEnv, steps: int, seed: int = 0) -> np.ndarray:
    """Observations and rewards of random play in which environment e's actions depend on e alone."""
    rngs = [np.random.default_rng((seed, e)) for e in range(env.num_envs)]
    mask = env.get_state()["action_mask"]
    out = []
    for _ in range(steps):
        actions = np.stack([random_actions(m, rng) for m, rng in zip(mask, rngs, strict=True)])
        obs, reward, _, _, infos = env.step(actions)
        mask = infos["action_mask"]
        out.append(np.concatenate([obs.reshape(env.num_envs, -1), reward[:, None]], axis=1))
    return np.stack(out)


@pytest.mark.parametrize("name", ["2s3z", "MMM2"])
def test_an_environment_depends_on_the_seed_and_its_place_alone(name):
    """Results could not be repeated, or would change with the number of environments."""
    traces = []
    for num_envs in (5, 5, 2):
        env = SmacVectorEnv(name, num_envs=num_envs, seed=3)
        env.reset()
        traces.append(trace(env, 70))
    np.testing.assert_array_equal(traces[0], traces[1])
    np.testing.assert_array_equal(traces[0][:, :2], traces[2])
    assert (traces[0][-1, 0] != traces[0][-1, 1]).any()


def test_sampled_actions_are_available_and_varied():
    """Random baselines and speed tables would be refused, or would not be random play."""
    env = SmacVectorEnv("MMM2", num_envs=32, seed=3)
    env.reset()
    for _ in range(20):
        mask = env.get_state()["action_mask"]
        counts = np.zeros(mask.shape)
        for _ in range(30):
            actions = env.sample_actions()
            np.put_along_axis(
                counts, actions[..., None], np.take_along_axis(counts, actions[..., None], 2) + 1, 2
            )
        assert not counts[~mask].any()
        env.step(actions)
    # 30 draws of each agent's: every available action shows up for almost all agents.
    assert (counts[mask] > 0).mean() > 0.9


def test_a_seed_restarts_the_streams_and_none_continues_them():
    """reset(seed) would not repeat, or every reset would repeat."""
    env = SmacVectorEnv("2s3z", num_envs=2, seed=3)
    first, _ = env.reset()
    second, _ = env.reset()
    again, _ = env.reset(seed=3)
    other, _ = env.reset(seed=4)
    np.testing.assert_array_equal(first, again)
    assert (first != second).any() and (first != other).any()


def test_state_can_be_saved_and_continued_exactly():
    """A resumed run would not be the run that was stopped."""
    env = SmacVectorEnv("MMM2", num_envs=3, seed=9)
    env.reset()
    trace(env, 25)
    state = env.get_state()
    smac_state = env.state()
    ahead = trace(env, 60, seed=1)
    twin = SmacVectorEnv("MMM2", num_envs=3, seed=0)
    twin.set_state(state)
    np.testing.assert_array_equal(twin.state(), smac_state)
    np.testing.assert_array_equal(trace(twin, 60, seed=1), ahead)
    with pytest.raises(ValueError, match="not one of 2 environments of smac/MMM2"):
        SmacVectorEnv("MMM2", num_envs=2).set_state(state)


def test_a_damaged_state_is_refused_before_compiled_code_sees_it():
    """Else a stranger's checkpoint makes the engine read and write outside its arrays."""
    env = envs.make("smac/2s3z", 2, seed=0, backend="embedded")
    env.reset()
    for _ in range(30):
        env.step(env.sample_actions())
    state, U = env.get_state(), 10
    harm = [
        ("links", np.s_[:], 10**9),
        ("links", np.s_[:], -2),
        ("links", np.s_[:, combat.TARGET], U),
        ("links", np.s_[:, combat.ORDER], 99),
        ("links", np.s_[:, combat.ORDER], -1),
        ("links", np.s_[:, combat.BY_X], 0),
        ("units", np.s_[:], np.nan),
        ("units", np.s_[:, combat.X], 40.0),
        ("units", np.s_[:, combat.Y], -0.5),
        ("units", np.s_[:, combat.GOAL_X], -5.0),
        ("units", np.s_[:, combat.GOAL_Y], 32.0),
        ("action_mask", np.s_[:], False),
        ("last_action", np.s_[:], 99),
        ("length", np.s_[:], -1),
    ]
    # All enemies walk to their goals around walls, for which the goal's cell is looked up.
    assert (state["links"][:, combat.ORDER, env.num_agents :] == combat.ATTACK_MOVE).all()
    for key, where, value in harm:
        damaged = {name: array.copy() for name, array in state.items()}
        damaged[key][where] = value
        with pytest.raises(ValueError, match=f"damaged: '{key}'"):
            env.set_state(damaged)
    # Whoever moves at the map's edge has a goal beyond it.
    state["links"][:, combat.ORDER] = combat.MOVE
    state["units"][:, combat.GOAL_X] = -1.0
    env.set_state(state)
    env.step(env.sample_actions())


@pytest.mark.parametrize("name", ["27m_vs_30m", "corridor", "10gen_zerg_5_vs_5"])
def test_battles_are_the_same_on_any_number_of_threads(name, monkeypatch):
    """Threads step slices of the batch; a seed must not mean other battles on another machine."""
    monkeypatch.setattr(smac_env, "UNITS_A_THREAD", 1)  # a slice may be a single battle
    monkeypatch.setattr(smac_env, "usable_cores", lambda: 5)  # what None means
    played = []
    for threads in (1, 2, 3, None):
        env = envs.make(f"smac/{name}", 7, seed=5, backend="embedded", threads=threads)
        cut = len(env._slices.slices)
        assert cut == (threads or 5)
        steps = [env.reset()[0]]
        for _ in range(40):
            obs, reward, *ends, infos = env.step(env.sample_actions())
            steps += [obs, reward, *ends, infos["action_mask"], infos["final_obs"]]
        played.append([*steps, *env.get_state().values()])
    for other in played[1:]:
        assert all(np.array_equal(one, same) for one, same in zip(played[0], other, strict=True))
    with pytest.raises(ValueError, match="not available"):
        env.step(np.full((7, env.num_agents), env.num_actions))
    after = env.get_state().values()
    assert all(np.array_equal(*pair) for pair in zip(after, played[-1][-len(after) :], strict=True))


@pytest.mark.parametrize("name", ["3m", "27m_vs_30m", "2s3z", "3s5z_vs_3s6z", "3s_vs_5z"])
def test_the_kernel_of_plain_battles_plays_the_same_battles(name, monkeypatch):
    """It leaves out what a plain map lacks: anything more, and that map would have rules of its own."""
    assert get_map(name).plain
    battles = []
    for plain in (True, False):
        monkeypatch.setitem(engine.STEP_KERNELS, True, engine.STEP_KERNELS[plain])
        env = SmacVectorEnv(name, 6, seed=9)
        env.reset()
        seen = []
        for step in range(80):
            *_, infos = env.step_scripted() if step % 3 == 2 else env.step(env.sample_actions())
            seen.append(infos["_episode"].sum())
        battles.append((seen, env.get_state()))
    (seen, state), (general_seen, general_state) = battles
    assert seen == general_seen and sum(seen) >= 6
    assert all(np.array_equal(state[key], general_state[key]) for key in state)


def test_battles_with_anything_special_are_not_plain():
    """Else the special would be left out without a word: medivacs, colossi, zerg, walls, a hunt."""
    plain = {name for name in MAPS if get_map(name).plain}
    marines = {"3m", "8m", "25m", "5m_vs_6m", "8m_vs_9m", "10m_vs_11m", "27m_vs_30m"}
    assert plain == {*marines, "2s3z", "3s5z", "3s5z_vs_3s6z", "3s_vs_3z", "3s_vs_4z", "3s_vs_5z"}
    battle = get_map("2s3z")
    for change in ({"hunt": True}, {"ground": "corridor"}, {"allies": ((units.ZEALOT, 7),)}):
        assert not replace(battle, **change).plain, change


def test_the_engines_version_is_told_and_names_runs():
    """Curves of battles that go otherwise would be taken for one another's."""
    env = envs.make("smac/3m", 1, backend="embedded")
    assert envs.describe(env)["engine_version"] == env.unwrapped.map.version == 2
    assert envs.env_name(env) == "smac-3m-embedded2"
