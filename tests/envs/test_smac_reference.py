"""The embedded engine's interface against arrays recorded from oxwhirl/smac's own code on made-up battles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from envs.smac import SmacVectorEnv, combat, observe, reward
from envs.smac.contract import UNIT_COLUMNS
from envs.smac.maps import MAPS, get_map
from tests.envs.test_smac_engine import arrange, only

REFERENCE = np.load(Path(__file__).parent / "data" / "smac_reference.npz")
RECORDED = sorted({key.split("/")[0] for key in REFERENCE.files})

# agents, enemies, actions, observation, state, limit, max_reward: as SMAC computes them.
SIZES = {
    "3m": (3, 3, 9, 30, 48, 60, 365),
    "8m": (8, 8, 14, 80, 168, 120, 640),
    "25m": (25, 25, 31, 250, 950, 150, 1575),
    "5m_vs_6m": (5, 6, 12, 55, 98, 70, 530),
    "8m_vs_9m": (8, 9, 15, 85, 179, 120, 695),
    "10m_vs_11m": (10, 11, 17, 105, 243, 150, 805),
    "27m_vs_30m": (27, 30, 36, 285, 1170, 180, 1850),
    "MMM": (10, 10, 16, 160, 290, 150, 1015),
    "MMM2": (10, 12, 18, 176, 322, 180, 1205),
    "2s3z": (5, 5, 11, 80, 120, 120, 1020),
    "3s5z": (8, 8, 14, 128, 216, 150, 1510),
    "3s5z_vs_3s6z": (8, 9, 15, 136, 230, 170, 1670),
    "3s_vs_3z": (3, 3, 9, 36, 54, 150, 680),
    "3s_vs_4z": (3, 4, 10, 42, 61, 200, 840),
    "3s_vs_5z": (3, 5, 11, 48, 68, 250, 1000),
    "1c3s5z": (9, 9, 15, 162, 270, 180, 1870),
    "2m_vs_1z": (2, 1, 7, 16, 26, 150, 360),
    "2s_vs_1sc": (2, 1, 7, 17, 27, 300, 510),
    "so_many_baneling": (7, 32, 38, 202, 397, 100, 1480),
    "bane_vs_bane": (24, 24, 30, 336, 984, 200, 1260),
    "6h_vs_8z": (6, 8, 14, 78, 140, 150, 1480),
    "corridor": (6, 24, 30, 156, 282, 400, 1280),
    "2c_vs_64zg": (2, 64, 70, 332, 342, 400, 3080),
}

# Where the map files put each type of the agents, and of the enemies; on all other maps as on 3m.
POINTS = {
    "3m": ([(9, 16)], [(23, 16)]),
    "2m_vs_1z": ([(13, 12), (19, 12)], [(16, 19)]),
    "2s_vs_1sc": ([(11.1208, 10.338), (16.976, 10.3662)], [(13.92, 20.0397)]),
    "so_many_baneling": ([(11.469, 12.0234)], [(27.91, 28.24)]),
    "bane_vs_bane": ([(16, 8), (16, 11)], [(16, 21), (16, 24)]),
    "6h_vs_8z": ([(14.5998, 9.49)], [(14.41, 16.7597)]),
    "corridor": ([(19.0397, 19.1198)], [(27.91, 28.24)]),
    "2c_vs_64zg": ([(16, 16)], [(16, 9)]),
}


def battle(name: str, *keys: str) -> list[np.ndarray]:
    return [recorded(name, key) for key in keys]


def recorded(name: str, key: str) -> np.ndarray:
    """What was recorded, its enemies in the order in which the map's script makes them.

    SMAC takes enemies in the game's order, and the recording of MMM and MMM2 put marauders before marines.
    """
    array = REFERENCE[f"{name}/{key}"]
    if not name.startswith("MMM"):
        return array
    types = REFERENCE[f"{name}/enemy_types"]
    order = np.array(
        [*np.flatnonzero(types == "marine"), *np.flatnonzero(types == "marauder"), len(types) - 1]
    )
    healer = get_map(name).num_agents - 1  # whose columns "attackable" are of allies
    array = array.copy()
    if key in ("enemy", "prev_enemy"):
        return array[:, order]
    if key == "enemy_types":
        return array[order]
    if key == "avail":
        array[:, :healer, 6:] = array[:, :healer, 6 + order]
    if key == "obs":
        blocks = array[..., 4 : 4 + 8 * len(order)].reshape(*array.shape[:2], len(order), 8)
        moved = blocks[:, :, order]
        seen = moved[:, healer, :, 1] > 0
        moved[:, healer, :, 0] = seen * REFERENCE[f"{name}/avail"][:, healer, 6:]
        array[..., 4 : 4 + 8 * len(order)] = moved.reshape(*array.shape[:2], -1)
    if key == "state":
        low = 7 * get_map(name).num_agents
        enemies = array[:, low : low + 6 * len(order)].reshape(len(array), -1, 6)
        array[:, low : low + 6 * len(order)] = enemies[:, order].reshape(len(array), -1)
    return array


def test_reference_covers_the_maps_it_should():
    """If the recording lost its maps, every parity test below would silently check nothing."""
    assert len(RECORDED) == 13 and set(RECORDED) < set(MAPS)


@pytest.mark.parametrize("name", RECORDED)
def test_observation_state_and_mask_are_smacs(name):
    """A policy or a critic would see other numbers here than in SMAC."""
    units = battle(name, "ally", "enemy", "last_action", "pathing_grid")
    obs, state, mask = observe(name, *units)
    assert obs.dtype == state.dtype == np.float32
    np.testing.assert_allclose(obs, recorded(name, "obs"), atol=1e-5)
    np.testing.assert_allclose(state, recorded(name, "state"), atol=1e-5)
    np.testing.assert_array_equal(mask, recorded(name, "avail").astype(bool))


@pytest.mark.parametrize("name", RECORDED)
def test_reward_is_smacs(name):
    """Returns could not be compared with published ones."""
    units = battle(name, "prev_ally", "ally", "prev_enemy", "enemy")
    np.testing.assert_allclose(reward(name, *units), REFERENCE[f"{name}/reward"], atol=1e-5)


@pytest.mark.parametrize("name", RECORDED)
def test_units_are_listed_in_smacs_order(name):
    """Agent 3 here would be another kind of unit than agent 3 in SMAC."""
    ours = get_map(name)
    assert [kind.name for kind in ours.ally_types] == battle(name, "ally_types")[0].tolist()
    assert [kind.name for kind in ours.enemy_types] == battle(name, "enemy_types")[0].tolist()


def test_every_map_of_smac_is_here():
    """Else one that is dropped is not tested either."""
    assert set(SIZES) == set(MAPS) and len(MAPS) == 23


@pytest.mark.parametrize("name", list(MAPS))
def test_sizes_are_smacs(name):
    """Networks trained on one could not be loaded for the other."""
    m = get_map(name)
    ours = (m.num_agents, m.num_enemies, m.num_actions, m.obs_dim, m.state_dim, m.limit, m.max_reward)
    assert ours == SIZES[name]


@pytest.mark.parametrize("name", list(MAPS))
def test_units_start_where_the_map_files_put_them(name):
    """The sides would meet sooner, or start on the wrong side of a wall."""
    m, first = get_map(name), 0
    for types, points in zip((m.allies, m.enemies), POINTS.get(name, POINTS["3m"]), strict=True):
        together = len(points) == 1
        team = m.starts[:, first : first + sum(count for _, count in types)]
        for (_, count), point in zip(types, points * len(types) if together else points, strict=True):
            at = np.array(point)[:, None]
            group = m.starts[:, first : first + count]
            assert np.hypot(*(group - at).mean(1)) < 1
            assert np.isclose(np.hypot(*((team if together else group) - at)).min(), 0)
            first += count


def test_leading_dimensions_are_free():
    """Code that holds (time, batch) arrays could not use the functions."""
    ally, enemy, last, grid = battle("2s3z", "ally", "enemy", "last_action", "pathing_grid")
    flat = observe("2s3z", ally, enemy, last, grid)
    for whole, parts in zip(
        flat,
        observe("2s3z", *(a.reshape(2, 3, *a.shape[1:]) for a in (ally, enemy, last)), grid),
        strict=True,
    ):
        np.testing.assert_array_equal(whole, parts.reshape(whole.shape))
    for whole, single in zip(flat, observe("2s3z", ally[4], enemy[4], last[4], grid), strict=True):
        np.testing.assert_array_equal(whole[4], single)
    assert reward("2s3z", ally[0], ally[0], enemy[0], enemy[0]).shape == ()


def test_agents_that_have_not_acted_have_no_last_action():
    """The state at the start of an episode would claim that everyone had done nothing."""
    ally, enemy = battle("3m", "ally", "enemy")
    _, state, _ = observe("3m", ally, enemy, np.full((6, 3), -1))
    assert not state[:, 21:].any()
    _, state, _ = observe("3m", ally, enemy, np.zeros((6, 3), dtype=int))
    assert (state[:, 21:].reshape(6, 3, 9)[:, :, 0] == 1).all()


def test_regenerating_shields_pay_unless_fixed():
    """The switch for SMAC's known reward flaw would do nothing, or the default would not be SMAC's."""
    ally, enemy = battle("2s3z", "ally", "enemy")
    before, after = enemy.copy(), enemy.copy()
    before[..., 2] = after[..., 2] = 50
    before[..., 4], after[..., 4] = 10, 14
    np.testing.assert_allclose(reward("2s3z", ally, ally, before, after), 5 * 4 / 51)
    np.testing.assert_array_equal(reward("2s3z", ally, ally, before, after, reward_fix=True), 0)
    np.testing.assert_allclose(reward("2s3z", ally, ally, after, before, reward_fix=True), 5 * 4 / 51)


@pytest.mark.parametrize(("fix", "paid"), [(False, 1 / 34), (True, 0.0)])
def test_a_battle_pays_for_regenerating_shields_unless_fixed(fix, paid):
    """The switch would do nothing: a shield regains 1 in a step, of 680 that are scaled to 20."""
    env = SmacVectorEnv("3s_vs_3z", seed=1, reward_fix=fix)
    env.reset()
    arrange(env, SH={3: 10.0})
    np.testing.assert_allclose(env.step(only(env, 1))[1], paid, rtol=1e-5)


@pytest.mark.parametrize("name", ["2s3z", "MMM2", "1c3s5z", "corridor"])
def test_battles_are_seen_and_paid_as_the_functions_say(name):
    """Parity with SMAC is that of `observe` and `reward`: what the environment returns must be theirs."""
    env, A = SmacVectorEnv(name, num_envs=8, seed=4), get_map(name).num_agents
    env.reset()
    fields = slice(0, len(UNIT_COLUMNS))
    paid, dead = 0.0, False
    for _ in range(40):
        before = env.get_state()["units"][:, fields].swapaxes(1, 2)
        actions = env.sample_actions()
        obs, rewards, terminated, truncated, infos = env.step(actions)
        after = env.get_state()["units"][:, fields].swapaxes(1, 2)
        going = ~(terminated | truncated)
        seen, state, mask = observe(name, after[:, :A], after[:, A:], actions)
        np.testing.assert_allclose(obs[going], seen[going], atol=1e-6)
        np.testing.assert_allclose(env.state()[going], state[going], atol=1e-6)
        np.testing.assert_array_equal(infos["action_mask"][going], mask[going])
        own = reward(name, before[:, :A], after[:, :A], before[:, A:], after[:, A:])
        np.testing.assert_allclose(rewards[going], own[going], atol=1e-5)
        paid, dead = paid + float(own[going].sum()), dead or bool((after[going][:, :, combat.HP] <= 0).any())
    assert paid > 0 and dead


def test_wrong_shapes_are_named():
    """A transposed array would be read as nonsense, or fail with a message about strides."""
    ally, enemy, last = battle("2s3z", "ally", "enemy", "last_action")
    with pytest.raises(ValueError, match=r"ally of map '2s3z' must have shape \(\.\.\., 5, 8\)"):
        observe("2s3z", ally.swapaxes(1, 2), enemy, last)
    with pytest.raises(ValueError, match="last_action must have shape"):
        observe("2s3z", ally, enemy, last[:, :4])
    with pytest.raises(ValueError, match="pathing_grid must have shape"):
        observe("2s3z", ally, enemy, last, np.ones((16, 16), bool))
    two = np.stack([enemy, enemy])
    with pytest.raises(ValueError, match=r"enemy is of battles \(2, 6\), and ally of \(6,\)"):
        observe("2s3z", ally, two, last)
    with pytest.raises(ValueError, match=r"prev_enemy is of battles \(6,\), and ally of \(2, 6\)"):
        reward("2s3z", np.stack([ally] * 2), np.stack([ally] * 2), enemy, two)
