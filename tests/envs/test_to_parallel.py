"""Our environments seen through PettingZoo, and back; mpe2's environments seen as ours."""

import functools
import importlib
import warnings

import numpy as np
import pytest
from pettingzoo.test import parallel_api_test, parallel_seed_test

import envs
from envs.pettingzoo import ParallelVectorEnv, ParallelView

OURS = ["smac/3m", "smac/2s3z", "smac/MMM", "mpe/simple_spread", "mpe/line_control", "mpe/circle_control"]
MPE2 = ["mpe2.simple_spread_v3", "mpe2.simple_line_v1", "mpe2.simple_formation_v1"]


def options_of(env_id):
    """The embedded engine, where there is a choice."""
    return {"backend": "embedded"} if env_id.startswith("smac") else {}


@pytest.mark.parametrize("env_id", OURS)
def test_view_passes_pettingzoos_own_tests(env_id):
    """Else tools written for PettingZoo break on our environments."""
    make = functools.partial(envs.parallel_env, env_id, **options_of(env_id))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(make(), num_cycles=300)
        parallel_seed_test(make, num_cycles=300)


@pytest.mark.parametrize("env_id", ["smac/3m", "mpe/line_control"])
def test_view_plays_the_episode_that_the_vector_environment_plays(env_id):
    """Else results through PettingZoo are results on another game."""
    view = envs.parallel_env(env_id, seed=3, **options_of(env_id))
    plain = envs.make(env_id, 1, 3, **options_of(env_id))
    observations, _ = view.reset()
    obs, infos = plain.reset()
    steps = episodes = won = 0
    while episodes < 2 or (plain.wins and not won and episodes < 50):
        for i, agent in enumerate(view.agents):
            assert np.array_equal(observations[agent]["observation"], obs[0, i])
            assert np.array_equal(observations[agent]["action_mask"], infos["action_mask"][0, i])
            assert view.observation_space(agent).contains(observations[agent])
        actions = {agent: view.action_space(agent).sample() for agent in view.agents}
        if plain.wins:  # to win some: agents stand, and attack what is in reach
            own = [row.nonzero()[0] for row in infos["action_mask"][0]]
            actions = {agent: x[-1] if x[-1] >= 6 else x[0] for agent, x in zip(actions, own, strict=True)}
        observations, rewards, terminations, truncations, about = view.step(actions)
        obs, reward, terminated, truncated, infos = plain.step(np.array([list(actions.values())]))
        assert set(rewards.values()) == {float(reward[0])}
        assert set(terminations.values()) == {bool(terminated[0])}
        assert set(truncations.values()) == {bool(truncated[0])}
        steps += 1
        if not view.agents:
            assert steps == infos["episode"]["l"][0]
            for i, agent in enumerate(view.possible_agents):
                assert np.array_equal(observations[agent]["observation"], infos["final_obs"][0, i])
                assert not observations[agent]["action_mask"].any()
                told = {"alive": infos["final_alive"][0, i]}
                assert about[agent] == (told | {"battle_won": infos["battle_won"][0]} if plain.wins else told)
            won += plain.wins and infos["battle_won"][0]
            observations, _ = view.reset()
            steps, episodes = 0, episodes + 1
    assert 0 < won < episodes if plain.wins else won == 0


def test_view_samples_available_actions_only():
    """Else the usual `action_space(agent).sample()` loop dies on the first step."""
    view = envs.parallel_env("smac/3m", backend="embedded")
    observations, _ = view.reset(seed=0)
    for _ in range(200):
        for agent in view.possible_agents:
            assert observations[agent]["action_mask"][view.action_space(agent).sample()] == 1
    assert view.action_space("agent_0").sample(mask=np.eye(9, dtype=np.int8)[4]) == 4


def test_view_says_what_is_wrong():
    """Else a user debugs array shapes instead of reading a sentence."""
    with pytest.raises(ValueError, match="num_envs=1"):
        ParallelView(envs.make("smac/3m", 2, backend="embedded"))
    view = envs.parallel_env("smac/3m", backend="embedded")
    with pytest.raises(ValueError, match="reset"):
        view.step({})
    view.reset(seed=0)
    with pytest.raises(ValueError, match=r"agent_1 gave 1\.5"):
        view.step({"agent_0": 1, "agent_1": 1.5, "agent_2": 1})
    with pytest.raises(ValueError, match="agent_1, agent_2"):
        view.step({"agent_0": 1})
    with pytest.raises(ValueError, match="not available"):
        view.step({"agent_0": 1, "agent_1": 0, "agent_2": 1})
    with pytest.raises(ValueError, match="seed must be"):
        view.reset(seed=-1)
    assert len(view.agents) == 3
    view.step(dict.fromkeys(view.agents, 1))
    robot = envs.parallel_env("mamujoco/Humanoid-9|8", threads=1)
    robot.reset(seed=0)
    whole = {"agent_0": np.zeros(9), "agent_1": np.zeros(8)}
    for wrong in (0.5, np.zeros(1), np.zeros(9), np.zeros((1, 8)), np.zeros(8, bool)):  # one for all joints
        with pytest.raises(ValueError, match=r"An action of agent_1 has shape \(8,\); it gave"):
            robot.step(whole | {"agent_1": wrong})
    robot.step(whole)


def test_the_state_and_the_picture_after_an_episode_are_said_to_be_the_next_ones():
    """Else a learner bootstraps from another episode's beginning; but loops that ask at every step go on."""
    view = envs.parallel_env("smac/3m", backend="embedded", render_mode="rgb_array")
    view.reset(seed=0)
    while view.agents:
        with warnings.catch_warnings(action="error"):
            state = view.state()
            assert state.shape == (view.vector_env.state_dim,) and view.render().dtype == np.uint8
        view.step({agent: view.action_space(agent).sample() for agent in view.agents})
    with pytest.warns(UserWarning, match=r"state\(\) after an episode's last step is of the next one"):
        after = view.state()
    with pytest.warns(UserWarning, match=r"render\(\) after an episode's last step is of the next one"):
        view.render()
    view.reset()
    assert np.array_equal(view.state(), after) and not np.array_equal(after, state)


@pytest.mark.parametrize("env_id", ["mpe/line_control", "matrix/1", f"pettingzoo:{MPE2[0]}"])
def test_no_global_state_is_said_as_pettingzoo_does(env_id):
    """Tools for PettingZoo expect a NotImplementedError, and would end in an AttributeError."""
    view = envs.parallel_env(env_id)
    view.reset(seed=0)
    with pytest.raises(NotImplementedError, match=f"{env_id} has no global state"):
        view.state()


@pytest.mark.parametrize("path", MPE2)
@pytest.mark.parametrize("continuous", [False, True])
def test_mpe2_is_played_as_it_is(path, continuous):
    """Else what is learned through `pettingzoo:` is learned on another game than the library's."""
    options = {"N": 3, "continuous_actions": continuous}
    if "spread" in path:
        options["local_ratio"] = 0.0  # else collisions make unequal rewards
    env = envs.make(f"pettingzoo:{path}", 2, seed=5, env_kwargs=options)
    assert env.env_id == f"pettingzoo:{path}" and env.backend == envs.describe(env)["backend"] == "pettingzoo"
    assert env.num_agents == 3 and env.agent_act_dims == (5, 5, 5)
    obs, infos = env.reset()
    same = importlib.import_module(path).parallel_env(**options)
    rng = np.random.default_rng(0)
    for episode in range(2):
        seed = np.random.SeedSequence(5).spawn(2)[1].spawn(episode + 1)[episode].generate_state(1)[0]
        seen, _ = same.reset(seed=int(seed) & 0x7FFFFFFF)
        total, length = 0.0, 0
        while same.agents:
            assert env.observation_space.contains(obs)
            assert np.array_equal(obs[1], [seen[agent] for agent in same.possible_agents])
            if continuous:
                own = rng.random((3, 5), dtype=np.float32)
                actions = np.stack([own, 2 * own - 1])  # theirs are in [0, 1]
            else:
                assert infos["action_mask"].all()
                actions = rng.integers(0, 5, (2, 3))
                own = actions[1].tolist()
            assert infos["alive"].all() and infos["alive"].shape == (2, 3)
            seen, rewards, _, _, _ = same.step(dict(zip(same.possible_agents, own, strict=True)))
            obs, reward, terminated, truncated, infos = env.step(actions)
            assert reward.dtype == np.float32 and reward[1] == np.float32(rewards["agent_0"])
            total, length = total + reward[1], length + 1
        assert truncated.all() and not terminated.any() and length == infos["episode"]["l"][1] == 25
        np.testing.assert_allclose(infos["episode"]["r"][1], total, rtol=1e-6)
        assert np.array_equal(infos["final_obs"][1], [seen[agent] for agent in same.possible_agents])


@pytest.mark.parametrize("env_id", ["smac/3m", "smac/2s3z", "matrix/2", "mpe/circle_control"])
def test_our_environments_come_back_from_pettingzoo_unchanged(env_id):
    """Both directions must be views of the same game: same observations, masks, deaths, rewards and ends."""
    options = options_of(env_id)
    seeds = []

    class Recorded(ParallelView):
        def reset(self, seed=None, options=None):
            seeds.append(seed)
            return super().reset(seed=seed)

    back = ParallelVectorEnv(lambda: Recorded(envs.make(env_id, 1, **options)), seed=3)
    plain = envs.make(env_id, 1, **options)
    assert back.single_observation_space.shape == plain.single_observation_space.shape
    assert back.single_action_space == plain.single_action_space
    returned, about = back.reset()
    obs, infos = plain.reset(seed=seeds[0])
    rng = np.random.default_rng(1)
    for _ in range(200):
        assert np.array_equal(returned, obs)
        for key in ("action_mask", "alive"):
            assert np.array_equal(about[key], infos[key])
        actions = (rng.random(infos["action_mask"].shape) * infos["action_mask"]).argmax(-1)
        returned, *result, about = back.step(actions)
        obs, *expected, infos = plain.step(actions)
        for a, b in zip(result, expected, strict=True):
            assert np.array_equal(a, b) and a.dtype == b.dtype
        for key in ("final_obs", "final_alive", "_final_obs", "_episode"):
            assert np.array_equal(about[key], infos[key])
        if infos["_episode"][0]:
            break
    assert infos["_episode"][0] and about["episode"]["l"] == infos["episode"]["l"]
    np.testing.assert_allclose(about["episode"]["r"], infos["episode"]["r"])
    assert len(seeds) == 2 and seeds[0] != seeds[1]


@pytest.mark.parametrize("continuous", [False, True])
def test_imported_environments_pass_pettingzoos_own_tests(continuous):
    """Padding and autoreset must still be what PettingZoo's tools expect after a way there and back."""
    options = {"env_kwargs": {"continuous_actions": continuous}}
    make = functools.partial(envs.parallel_env, f"pettingzoo:{MPE2[1]}", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(make(), num_cycles=60)
        parallel_seed_test(make, num_cycles=60)


def test_a_mask_that_was_returned_is_the_callers_own():
    """Else who changes the mask in what it saw changes which actions are sampled."""
    view = envs.parallel_env("mpe/line_control", seed=0)
    seen, _ = view.reset()
    seen["agent_0"]["action_mask"][:] = [0, 0, 0, 0, 1]
    assert len({view.action_space("agent_0").sample() for _ in range(50)}) > 1
