"""SMACv2's battles: the interface's sizes and ranges, teams and starts as drawn, the hunt, the conic view."""

from __future__ import annotations

import numpy as np
import pytest

import envs
from envs.smac import SmacVectorEnv, combat, observe
from envs.smac.generated import GENERATED
from envs.smac.maps import SIZE

# actions, observation, state: from SMACv2's own methods.
CONTRACT = {
    ("terran", 5, 5): (11, 82, 120),
    ("terran", 10, 10): (16, 162, 290),
    ("terran", 20, 20): (26, 322, 780),
    ("terran", 10, 11): (17, 170, 306),
    ("terran", 20, 23): (29, 346, 858),
    ("protoss", 5, 5): (11, 92, 130),
    ("protoss", 10, 10): (16, 182, 310),
    ("protoss", 20, 20): (26, 362, 820),
    ("protoss", 10, 11): (17, 191, 327),
    ("protoss", 20, 23): (29, 389, 901),
}
CONTRACT |= {("zerg", *sizes[1:]): told for sizes, told in CONTRACT.items() if sizes[0] == "terran"}
TYPES = {
    "terran": ("marine", "marauder", "medivac"),
    "protoss": ("stalker", "zealot", "colossus"),
    "zerg": ("zergling", "hydralisk", "baneling"),
}
RANGES = {  # shoot, sight; centre to centre
    "marine": (5, 9), "marauder": (6, 10), "medivac": (4, 11), "stalker": (6, 10), "zealot": (2, 9),
    "colossus": (7, 10), "zergling": (2, 8), "hydralisk": (5, 9), "baneling": (2, 8),
}  # fmt: skip


def name_of(race: str, allies: int, enemies: int) -> str:
    return f"10gen_{race}_{allies}_vs_{enemies}"


def drawn(name: str, num_envs: int = 256, seed: int = 1) -> SmacVectorEnv:
    env = SmacVectorEnv(name, num_envs, seed=seed)
    env.reset()
    return env


def names(env: SmacVectorEnv) -> np.ndarray:
    """(E, U) names of the units' types."""
    return np.array([[kind.name for kind in env.unit_types(e)] for e in range(env.num_envs)])


def test_all_fifteen_battles_are_there():
    """A published comparison over SMACv2 would lack some of its battles."""
    assert set(GENERATED) == {name_of(*sizes) for sizes in CONTRACT}
    assert {f"smac/{name}" for name in GENERATED} < set(envs.env_ids())


@pytest.mark.parametrize("sizes", CONTRACT)
def test_sizes_are_smacv2s(sizes):
    """Networks trained on one could not be loaded for the other."""
    env = drawn(name_of(*sizes), 2)
    assert (env.num_actions, env.obs_dim, env.state_dim) == CONTRACT[sizes]
    assert (env.num_agents, env.map.num_enemies, env.episode_limit) == (*sizes[1:], 200)
    assert env.state().shape == (2, env.state_dim)
    for _ in range(30):
        obs, *_ = env.step(env.sample_actions())
        assert env.observation_space.contains(obs)


@pytest.mark.parametrize("race", TYPES)
def test_teams_are_drawn_with_smacv2s_weights_and_copied(race):
    """Battles would be easier or harder than SMACv2's, or the sides unequal."""
    env = drawn(name_of(race, 5, 5), 4000)
    kinds = names(env)
    allies, enemies = np.sort(kinds[:, :5], 1), np.sort(kinds[:, 5:], 1)
    assert (allies == enemies).all()
    rare = TYPES[race][2]
    # Teams of medivacs or of banelings alone, .1^5 of all, are drawn again: a share too small to see.
    shares = [(allies == kind).mean() for kind in TYPES[race]]
    assert np.allclose(shares, (0.45, 0.45, 0.1), atol=0.015)
    alone = (allies == rare).all(1)
    assert not alone.any() or rare == "colossus"


@pytest.mark.parametrize(("race", "redrawn"), [("terran", True), ("zerg", True), ("protoss", False)])
def test_nobody_fights_with_medivacs_or_banelings_alone(race, redrawn):
    """A team that has lost before it begins, or that is gone with one blow, is drawn again."""
    env = drawn(name_of(race, 10, 11), 4000)
    extra, rare = names(env)[:, -1], TYPES[race][2]  # the one enemy that is no copy, drawn as a team of one
    assert (extra == rare).any() != redrawn
    shares = [(extra == kind).mean() for kind in TYPES[race]]
    assert np.allclose(shares, (0.5, 0.5, 0) if redrawn else (0.45, 0.45, 0.1), atol=0.03)


@pytest.mark.parametrize("race", TYPES)
def test_agents_are_numbered_by_type_then_x_then_y(race):
    """Agent 0 here would be another unit than agent 0 in SMACv2."""
    env = drawn(name_of(race, 10, 10), 64)
    u, kinds = env.get_state()["units"], names(env)
    for e in range(64):
        order = [(kinds[e, i], u[e, combat.X, i], u[e, combat.Y, i]) for i in range(10)]
        assert order == sorted(order)  # the game's ids follow the alphabet


def test_half_of_the_battles_are_reflections_and_half_surround_the_agents():
    """Agents would learn a front that is not there in SMACv2."""
    env = drawn("10gen_protoss_5_vs_5", 2000, seed=5)
    x, y = env.get_state()["units"][:, [combat.X, combat.Y]].transpose(1, 0, 2)
    radius = np.hypot(x[:, :5] - 16, y[:, :5] - 16).max(1)
    surrounded = radius < 3.5
    assert 0.45 < surrounded.mean() < 0.58  # a few reflections lie there by chance
    sides = ~surrounded
    assert (x[sides, :5] < 16.7).all() and (x[sides, 5:] > 15.3).all()
    # Reflected, but for those who had to make room.
    matched = 0
    for e in np.flatnonzero(sides):
        for i in range(5):
            matched += np.hypot(32 - x[e, i] - x[e, 5:], y[e, i] - y[e, 5:]).min() < 0.01
    assert matched / (5 * sides.sum()) > 0.9
    # All over the left half, but for the edge.
    assert np.histogram(x[sides, :5], 5, (0, 15))[0].min() > 0.15 * 5 * sides.sum()
    # Around the agents: along the diagonals, in one to four corners.
    dx, dy = np.abs(x[surrounded, 5:] - 16), np.abs(y[surrounded, 5:] - 16)
    assert np.median(np.abs(dx - dy)) < 1.0
    corners = (x[surrounded, 5:] > 16) * 2 + (y[surrounded, 5:] > 16)
    count = np.array([len(set(row)) for row in corners])
    assert set(count) == {1, 2, 3, 4} and 0.25 < (count == 1).mean() < 0.42


def test_starts_do_not_overlap_and_lie_on_the_map():
    """Units would burst apart on the first step."""
    env = drawn("10gen_zerg_20_vs_23", 16)
    u, types = env.get_state()["units"], [env.unit_types(e) for e in range(16)]
    for e in range(16):
        r = np.array([kind.separation for kind in types[e]])
        x, y = u[e, combat.X], u[e, combat.Y]
        assert (x >= r).all() and (y >= r).all() and (x <= SIZE - r).all() and (y <= SIZE - r).all()
        apart = np.hypot(x[:, None] - x, y[:, None] - y) - r[:, None] - r + 10 * np.eye(43)
        assert apart.min() >= -1e-9


def place(env: SmacVectorEnv, kinds: list[int], at: list[tuple[float, float]]) -> None:
    """Put units of these kinds (agents first) at these places in environment 0."""
    state = env.get_state()
    state["kinds"][0] = kinds
    state["units"][0, combat.X], state["units"][0, combat.Y] = np.array(at).T
    env.set_state(state)
    state = env.get_state()
    for i, kind in enumerate(env.unit_types(0)):
        state["units"][0, combat.HP, i] = state["units"][0, combat.HPMAX, i] = kind.health
        state["units"][0, combat.SH, i] = state["units"][0, combat.SHMAX, i] = kind.shield
    env.set_state(state)


def look(env: SmacVectorEnv) -> tuple[np.ndarray, np.ndarray]:
    """Observations and mask of environment 0 as it stands."""
    obs, infos = env._observe()
    return obs[0], infos["action_mask"][0]


@pytest.mark.parametrize("race", TYPES)
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_ranges_are_the_units_own(race, kind):
    """Agents would see, or be allowed to shoot, from farther or nearer than in SMACv2."""
    shoot, sight = RANGES[TYPES[race][kind]]
    env = drawn(name_of(race, 5, 5), 1)
    healer = TYPES[race][kind] == "medivac"
    width = 9 if race == "protoss" else 8
    for distance, sees, shoots in (
        (shoot - 0.01, True, True),
        (shoot + 0.01, True, False),
        (sight - 0.01, True, False),
        (sight + 0.01, False, False),
    ):
        far = [(31.0, 1.0 + 2 * i) for i in range(4)]
        place(env, [kind, 0, 0, 0, 0, 0, 0, 0, 0, 0], [(5.0, 16.0), *far, (5.0 + distance, 16.0), *far])
        obs, mask = look(env)
        assert mask[0, 6] == (shoots and not healer)
        enemy = obs[0, 4 : 4 + width]
        assert (enemy[1] > 0) == sees
        if sees:
            np.testing.assert_allclose(enemy[1:3], distance / sight, rtol=1e-6)
    if healer:
        place(
            env, [2, 0, 0, 0, 2, *[0] * 5], [(5, 16), (8.9, 16), (9.1, 16), (30, 1), (6, 16), *[(31, 5)] * 5]
        )
        _, mask = look(env)
        assert mask[0, 6:].tolist() == [False, True, False, False, False]  # not itself, nor its like


def test_own_features_are_health_shield_place_and_type():
    """The columns that SMACv2 adds would be missing or elsewhere."""
    env = drawn("10gen_protoss_5_vs_5", 1)
    place(env, [2, 0, 1, 1, 1, *[0] * 5], [(8, 4), (16, 24), (2, 2), (4, 4), (6, 6), *[(30, 30)] * 5])
    state = env.get_state()
    state["units"][0, [combat.HP, combat.SH], 0] = 50, 75
    env.set_state(state)
    obs, _ = look(env)
    np.testing.assert_allclose(obs[0, -7:], [50 / 200, 75 / 150, 8 / 32, 4 / 32, 0, 0, 1])
    np.testing.assert_allclose(obs[1, -7:], [1, 1, 16 / 32, 24 / 32, 1, 0, 0])
    # State: health, cooldown, x and y from the centre, shield, type; the colossus's first.
    np.testing.assert_allclose(env.state()[0, :8], [0.25, 0, -8 / 32, -12 / 32, 0.5, 0, 0, 1])
    np.testing.assert_allclose(env.state()[0, 40:47], [1, 14 / 32, 14 / 32, 1, 1, 0, 0])


@pytest.mark.parametrize(("last", "health"), [(1, 125), (2, 150)])
def test_the_reward_is_scaled_by_this_episodes_enemies(last, health):
    """SMACv2 divides by the first episode's: the same battle would pay something else in each run."""
    env = drawn("10gen_terran_5_vs_5", 1)
    allies = [(2.0, 16.0), (2.0, 2.0), (2.0, 4.0), (2.0, 6.0), (2.0, 8.0)]
    place(env, [0] * 9 + [last], [*allies, (5.0, 16.0), *[(30.0, 2.0 + i) for i in range(4)]])
    state = env.get_state()
    state["units"][0, combat.HP, 5] = 6.0  # falls to the first shot
    state["action_mask"][0, 0, 6] = True
    env.set_state(state)
    _, reward, *_ = env.step(np.array([[6, 1, 1, 1, 1]]))
    np.testing.assert_allclose(reward, (6 + 10) / ((200 + 5 * 10 + 4 * 45 + health) / 20), rtol=1e-6)


def test_damage_is_that_of_the_units_drawn():
    """Statistics of one environment's units would be used in another's battle."""
    env = drawn("10gen_protoss_5_vs_5", 2)
    state = env.get_state()
    for e, kind in ((0, 0), (1, 1)):  # a stalker, a zealot
        state["kinds"][e] = [kind] * 5 + [0] * 5
        state["units"][e, combat.X] = [10.0, 1, 1, 1, 1, 11.2, 31, 31, 31, 31]
        state["units"][e, combat.Y] = [16.0, 1, 3, 5, 7, 16.0, 25, 27, 29, 31]
        state["units"][e, combat.HP] = state["units"][e, combat.HPMAX] = 80
        state["units"][e, combat.SH] = state["units"][e, combat.SHMAX] = 80
        state["units"][e, combat.HP, [1, 2, 3, 4, 6, 7, 8, 9]] = 0.0
    state["action_mask"][:, 0, 6] = True
    env.set_state(state)
    actions = np.where(state["units"][:, combat.HP, :5] > 0, 1, 0)
    actions[:, 0] = 6
    state["action_mask"][..., 0] = True
    env.set_state(state)
    env.step(actions)
    shields = 80 - env.get_state()["units"][:, combat.SH, 5]
    assert shields.tolist() == [13 + 5, 8 + 8]  # a stalker's shot at the armoured, a zealot's two blades


def test_the_enemy_hunts_the_nearest_agent_wherever_it_hides():
    """Agents could win by hiding until the limit, as they cannot in SMACv2."""
    env = drawn("10gen_terran_5_vs_5", 32, seed=3)
    length = np.zeros(32)
    for _ in range(200):
        mask = env.get_state()["action_mask"]
        away = np.where(mask[..., 5], 5, np.where(mask[..., 1], 1, 0))  # west, then stay
        *_, infos = env.step(away)
        length = np.maximum(length, infos["episode"]["l"])
    assert 0 < length.max() < 150
    env = drawn("10gen_terran_5_vs_5", 1)
    allies = [(2.0, 2.0), (30.0, 30.0), (30.0, 28.0), (28.0, 30.0), (28.0, 28.0)]
    place(env, [0] * 10, [*allies, (8.0, 8.0), (9.0, 8.0), (8.0, 9.0), (20.0, 20.0), (9.0, 9.0)])
    env.step(np.ones((1, 5), int))
    targets = env.get_state()["links"][0, combat.TARGET, 5:]
    assert targets[[0, 1, 2, 4]].tolist() == [0] * 4 and targets[3] == 4


def test_the_enemys_medivacs_come_along():
    """They would stay where they started, and the last of them could not be met."""
    env = drawn("10gen_terran_5_vs_5", 1)
    allies = [(2.0, 2.0 + i) for i in range(5)]
    place(env, [0] * 5 + [0, 0, 0, 0, 2], [*allies, *[(28.0, 26.0 + i) for i in range(4)], (30.0, 30.0)])
    for _ in range(10):
        env.step(np.ones((1, 5), int))
    x, y = env.get_state()["units"][0, [combat.X, combat.Y], 9]
    assert np.hypot(x - 2, y - 4) < np.hypot(28, 26) - 8


def test_shields_that_regenerate_do_not_pay():
    """SMACv2 takes max(0, .) where SMAC takes the absolute value."""
    env = drawn("10gen_protoss_5_vs_5", 1)
    assert env.reward_fix
    place(env, [0] * 10, [(2.0, 2.0 + i) for i in range(5)] + [(28.0, 24.0 + i) for i in range(5)])
    state = env.get_state()
    state["units"][0, combat.SH, 5:] -= 10.0
    env.set_state(state)
    assert env.step(np.ones((1, 5), int))[1] == 0
    assert (env.get_state()["units"][0, combat.SH, 5:] > state["units"][0, combat.SH, 5:]).all()


@pytest.mark.parametrize("race", TYPES)
def test_a_conic_view_sees_thirty_degrees_and_turns(race):
    """SMACv2's conic view: 12 more actions, 2 more features, nothing behind one's back."""
    plain, env = (SmacVectorEnv(name_of(race, 5, 5), 1, seed=1, conic_view=conic) for conic in (False, True))
    env.reset()
    assert envs.env_name(env) == f"{envs.env_name(plain)}-conic"
    assert (env.num_actions, env.obs_dim) == (plain.num_actions + 12, plain.obs_dim + 2)
    assert env.state_dim == plain.state_dim + 5 * 2 + 5 * 12
    distance = 1.9
    others = [(31.0, 1.0 + 2 * i) for i in range(4)]
    for degrees, turned, seen in (
        (0, 0, True),
        (14, 0, True),
        (16, 0, False),
        (90, 3, True),
        (180, 0, False),
    ):
        angle = np.radians(degrees)
        at = (8.0 + distance * np.cos(angle), 16.0 + distance * np.sin(angle))
        place(env, [0] * 10, [(8.0, 16.0), *others, at, *others])
        env._views[0, 0] = turned
        obs, mask = look(env)
        assert mask[0, 6:18].all() and mask[0, 18] == seen
        assert (obs[0, 4 + 1] > 0) == seen
        own = obs[0, -5:-3]
        np.testing.assert_allclose(own, [np.cos(np.pi * turned / 6), np.sin(np.pi * turned / 6)], atol=1e-6)


def test_looking_around_keeps_the_order_that_one_has():
    """In SMACv2 a look sends no command: a unit goes on with what it does."""
    env = SmacVectorEnv("10gen_terran_5_vs_5", 1, seed=1, conic_view=True)
    env.reset()
    east = np.full((1, 5), 4)
    place(env, [0] * 10, [(4.0, 4.0 + 3 * i) for i in range(5)] + [(30.0, 4.0 + 3 * i) for i in range(5)])
    env._mask[:] = env._observe()[1]["action_mask"]
    env.step(east)
    before = env.get_state()
    env.step(np.full((1, 5), 6 + 3))
    after = env.get_state()
    assert (after["views"] == 3).all() and (before["views"] == 0).all()
    moved = after["units"][0, combat.X, :5] - before["units"][0, combat.X, :5]
    np.testing.assert_allclose(moved, 0.875, atol=1e-6)  # to the end of the move, two cells from its start


@pytest.mark.parametrize("conic", [False, True])
@pytest.mark.parametrize("name", ["10gen_terran_5_vs_5", "10gen_zerg_10_vs_11"])
def test_battles_are_reproducible_and_resume_exactly(name, conic):
    """A resumed run would not be the run that was stopped, or depend on how many environments there are."""
    traces = []
    for num_envs in (4, 2):
        env = SmacVectorEnv(name, num_envs, seed=9, conic_view=conic)
        env.reset()
        rows = []
        for _ in range(120):
            obs, reward, *_ = env.step(env.sample_actions())
            rows.append(np.concatenate([obs[:2].reshape(2, -1), reward[:2, None]], 1))
        traces.append(np.array(rows))
    np.testing.assert_array_equal(*traces)
    state, ahead = env.get_state(), []
    for _ in range(150):
        ahead.append(env.step(env.sample_actions())[0])
    twin = SmacVectorEnv(name, 2, seed=0, conic_view=conic)
    twin.set_state(state)
    for obs in ahead:
        np.testing.assert_array_equal(twin.step(twin.sample_actions())[0], obs)
    assert (ahead[-1][0] != ahead[-1][1]).any()


def test_a_damaged_state_is_refused():
    """Else a stranger's checkpoint makes the engine read outside its tables."""
    env = drawn("10gen_terran_5_vs_5", 2)
    for key in ("kinds", "views"):
        state = env.get_state()
        state[key][:] = 3
        with pytest.raises(ValueError, match=key):
            env.set_state(state)


def test_what_cannot_be_played_is_told():
    """A typing error, or an option of other maps, would end in a traceback."""
    with pytest.raises(ValueError, match=r"did you mean '10gen_terran_5_vs_5'"):
        envs.make("smac/10gen_terran_5_vs_6", 1)
    with pytest.raises(ValueError, match="embedded engine alone"):
        envs.make("smac/10gen_terran_5_vs_5", 1, backend="starcraft")
    with pytest.raises(ValueError, match="conic_view is for the maps of SMACv2"):
        envs.make("smac/8m", 1, backend="embedded", conic_view=True)
    with pytest.raises(ValueError, match="drawn for every episode"):
        observe("10gen_terran_5_vs_5", np.zeros((5, 8)), np.zeros((5, 8)), np.zeros(5, int))


def test_both_sides_are_as_strong():
    """Under one script reflected teams must win as often as they lose."""
    env = SmacVectorEnv("10gen_protoss_10_vs_10", 64, seed=2)
    env.reset()
    won = ended = 0
    while ended < 300:
        *_, infos = env.step_scripted()
        won += infos["battle_won"].sum()
        ended += infos["_episode"].sum()
    assert 0.35 < won / ended < 0.7
    assert env.describe()["engine_version"] == env.map.version == 2


def test_pictures_show_the_units_of_their_battle():
    """A battle would be drawn with another one's units."""
    env = SmacVectorEnv("10gen_protoss_5_vs_5", 2, seed=1, render_mode="rgb_array")
    env.reset()
    for kind in (0, 2):
        place(env, [kind] * 10, [(4.0 + 2 * i, 6.0 + 2 * i) for i in range(10)])
        picture = env.render(0)
        assert picture.dtype == np.uint8 and picture.ndim == 3
        assert env.unit_types(0)[0].name == TYPES["protoss"][kind]
        if kind == 0:
            stalkers = picture
    assert (picture != stalkers).any()
