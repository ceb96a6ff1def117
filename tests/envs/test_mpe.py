"""The particle world: against recorded trajectories, the mpe2 library and scipy, and its contract."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from scipy.optimize import linear_sum_assignment
from scipy.stats import ks_2samp

import envs
from benchmark.calibrate.calibrate_mpe import play
from envs import mpe
from envs.mpe import TASKS, MpeVectorEnv
from envs.mpe import world as mpe_world

REFERENCE = np.load(Path(__file__).parent / "data" / "mpe_reference.npz")
RECORDED = sorted({tuple(key.split("/")[:2]) for key in REFERENCE.files})
MPE2 = dict(zip(TASKS, ("simple_spread_v3", "simple_line_v1", "simple_formation_v1"), strict=True))


def world(task, num_agents, num_envs=64, seed=0, width=1.0):
    """Random positions, velocities, landmarks and actions; a small width makes a crowd."""
    rng = np.random.default_rng(seed)
    pos, vel = rng.uniform(-width, width, (2, num_envs, num_agents, 2))
    land = rng.uniform(-0.3, 0.3, (num_envs, mpe.num_landmarks(task, num_agents), 2))
    return pos, vel, land, rng.integers(0, 5, (num_envs, num_agents))


def distances(pos, goal):
    return np.linalg.norm(pos[:, :, None] - goal[:, None], axis=-1)


def scipy_pairs(cost):
    """Distances (B, N) of each agent to its target under scipy's assignment."""
    return np.stack([matrix[linear_sum_assignment(matrix)] for matrix in cost])


def at_rest(task, pos, land, **options):
    """The step that an idle team makes from rest, far from contact: nothing moves."""
    idle = np.zeros(pos.shape[:2], dtype=int)
    return mpe.step(task, pos, np.zeros_like(pos), land, idle, **options)


def test_every_task_was_recorded():
    """A task without a trajectory would be compared with nothing."""
    assert {task for task, _ in RECORDED} == set(TASKS)


@pytest.mark.parametrize(("task", "num_agents"), RECORDED)
def test_the_authors_trajectories_are_reproduced(task, num_agents):
    """Else a return here would not be comparable with the paper's, contacts included."""
    names = "agent_pos", "agent_vel", "landmark_pos", "actions", "obs", "reward"
    pos, vel, land, actions, obs, reward = (REFERENCE[f"{task}/{num_agents}/{name}"] for name in names)
    size = mpe.VARIANTS["paper"][task].size
    gaps = np.linalg.norm(pos[:, :, :, None] - pos[:, :, None], axis=-1)[
        ..., ~np.eye(len(pos[0, 0]), dtype=bool)
    ]
    assert (gaps < 2 * size).sum() >= 4  # the excerpt has contacts
    width = mpe.obs_dim(task, int(num_agents))
    assert not obs[..., width:].any() and obs.shape[-1] == width + 2 * (int(num_agents) - 1)
    x, v = pos[:, 0], vel[:, 0]
    np.testing.assert_allclose(mpe.observe(task, x, v, land), obs[:, 0, :, :width], atol=1e-9, rtol=0)
    for t in range(25):
        x, v, seen, paid = mpe.step(task, x, v, land, actions[:, t])
        for ours, theirs in ((x, pos[:, t + 1]), (v, vel[:, t + 1]), (seen, obs[:, t + 1, :, :width])):
            np.testing.assert_allclose(ours, theirs, atol=1e-9, rtol=0)
        np.testing.assert_allclose(paid, reward[:, t], atol=1e-9, rtol=0)


@pytest.mark.parametrize("num_agents", [2, 4, 9])
@pytest.mark.parametrize("task", TASKS)
def test_mpe2_is_reproduced(task, num_agents):
    """Else the variant `mpe2` would not be the library that others report numbers on."""
    options = {"local_ratio": 0.0} if task == "simple_spread" else {}
    theirs = importlib.import_module(f"mpe2.{MPE2[task]}").parallel_env(N=num_agents, **options)
    rng, contacts, far = np.random.default_rng(num_agents), 0, 0
    for episode in range(4):
        seen, _ = theirs.reset(seed=episode)
        agents = theirs.unwrapped.world.agents
        if episode:
            for agent in agents:  # a crowd, and a team that is so far away that distances are clipped
                agent.state.p_pos = agent.state.p_pos * (4.0 if episode == 2 else 0.1)
            seen = {agent: theirs.unwrapped.observe(agent) for agent in theirs.agents}
        x = np.array([[agent.state.p_pos for agent in agents]])
        v = np.zeros_like(x)
        land = np.array([[landmark.state.p_pos for landmark in theirs.unwrapped.world.landmarks]])
        obs, width = mpe.observe(task, x, v, land, variant="mpe2"), mpe.obs_dim(task, num_agents, "mpe2")
        for _ in range(25):
            told = np.array(list(seen.values()))
            assert not told[:, width:].any()  # the channel that nobody speaks on
            np.testing.assert_allclose(obs[0], told[:, :width], atol=1e-5, rtol=0)
            actions = rng.integers(0, 5, num_agents)
            x, v, obs, reward = mpe.step(task, x, v, land, actions[None], variant="mpe2")
            seen, rewards, *_ = theirs.step(dict(zip(theirs.agents, actions, strict=True)))
            for ours, name in ((x, "p_pos"), (v, "p_vel")):
                state = [getattr(agent.state, name) for agent in agents]
                np.testing.assert_allclose(ours[0], state, atol=1e-9, rtol=0)
            np.testing.assert_allclose(list(rewards.values()), reward[0], atol=1e-9, rtol=0)
            gaps = distances(x, x)[0] + 9 * np.eye(num_agents)
            contacts += (gaps < 2 * mpe.VARIANTS["mpe2"][task].size).any()
            far += (scipy_pairs(distances(x, mpe.targets(task, x, land))) > 2).any()
    assert contacts > 0 and far > 0


def test_a_push_by_hand():
    """Else the order of integration, the force or the damping could drift without any file to notice."""
    x, v = np.array([[[0.0, 0.0], [3.0, 3.0]]]), np.array([[[1.0, -1.0], [0.0, 0.0]]])
    land = np.zeros((1, 1, 2))
    for action, push in enumerate(([0, 0], [-5, 0], [5, 0], [0, -5], [0, 5])):
        after = 0.75 * v[0, 0] + 0.1 * np.array(push)
        for variant, moved_by in (("paper", after), ("mpe2", v[0, 0])):
            pos, vel, *_ = mpe.step("circle_control", x, v, land, np.array([[action, 0]]), variant=variant)
            np.testing.assert_allclose(vel[0, 0], after, atol=1e-15)
            np.testing.assert_allclose(pos[0, 0], 0.1 * moved_by, atol=1e-15)
    assert mpe_world.NUM_ACTIONS == 5


def test_contacts_push_both_apart_alike():
    """Else a crowd gains momentum from nowhere, or agents in one place become not-a-number."""
    pos, vel, land, _ = world("line_control", 6, width=0.05)
    pos[0, 1] = pos[0, 0]
    pos[1] = 0.1
    idle = np.zeros(pos.shape[:2], dtype=int)
    after, faster, obs, reward = mpe.step("line_control", pos, vel, land, idle)
    assert all(np.isfinite(array).all() for array in (after, faster, obs, reward))
    np.testing.assert_allclose(faster.sum(1), 0.75 * vel.sum(1), atol=1e-12)
    assert np.array_equal(faster[1], 0.75 * vel[1])  # no direction to push each other in
    # Two that overlap by 0.02: force 100 * 0.02 and a tail below the margin; touching: 100 * margin * log 2.
    for gap, force in ((0.04, 2.0), (0.06, 0.1 * np.log(2)), (0.0605, 0.1 * np.log1p(np.exp(-0.5)))):
        pair = np.array([[[0.0, 0.0], [0.0, gap]]])
        _, faster, *_ = mpe.step("line_control", pair, 0 * pair, land[:1], idle[:1, :2])
        np.testing.assert_allclose(faster[0], [[0, -0.1 * force], [0, 0.1 * force]], rtol=1e-8, atol=0)


@pytest.mark.parametrize("num_agents", range(2, 31))
def test_the_assignment_is_scipys(num_agents):
    """Else a team would be paid for worse pairs than the best ones, whichever method finds them."""
    rng = np.random.default_rng(num_agents)
    cost = rng.uniform(0, 2, (20, num_agents, num_agents))
    cost[10:] = np.round(cost[10:])  # ties
    column = mpe.assign(cost)
    assert (np.sort(column) == np.arange(num_agents)).all()
    found = np.take_along_axis(cost, column[..., None], 2).sum((1, 2))
    np.testing.assert_allclose(found, scipy_pairs(cost).sum(1), atol=1e-12)
    for task in TASKS:
        pos, _, land, _ = world(task, num_agents, 8, num_agents, width=num_agents)
        pos += 0.5 * np.arange(num_agents)[:, None]  # apart, so that nobody moves
        for variant in ("paper", "mpe2") if task != "simple_spread" else ("paper",):
            after, _, _, reward = at_rest(task, pos, land, variant=variant)
            cost = distances(after, mpe.targets(task, after, land))
            pairs = np.minimum(scipy_pairs(cost), np.inf if variant == "paper" else 2.0)
            least = -15.0 if variant == "paper" else -np.inf
            np.testing.assert_allclose(reward, np.maximum(-pairs.mean(1), least), atol=1e-12)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("num_agents", [2, 9])
def test_the_papers_reward_is_clipped_as_a_whole(task, num_agents):
    """Else one agent that has run away costs less than it did the authors, or the penalty passes the clip."""
    pos, _, land, _ = world(task, num_agents, 8, width=0.1)
    pos += 0.5 * np.arange(num_agents)[:, None]  # apart, so that nobody moves
    clipped = []
    for far in (1.0, 10.0 * num_agents, 20.0 * num_agents, 1e6):
        pos[:, 0, 0] -= far
        mean = scipy_pairs(distances(pos, mpe.targets(task, pos, land))).mean(1)
        for penalty in (0.0, 2.0):  # of each agent with itself, half of it
            reward = at_rest(task, pos, land, collision_penalty=penalty)[3]
            np.testing.assert_allclose(reward, np.maximum(-mean - penalty / 2, -15.0), rtol=1e-12)
            clipped.append((reward == -15.0).any())
    assert clipped == [False, False, False, False, True, True, True, True]


def test_two_agents_of_which_one_is_far():
    """The clip in numbers: a distance of 30 counts in full until the mean is beyond 15."""
    land = np.array([[[0.0, 0.0], [0.0, 1.0]]])
    for far, reward in ((30.0, -15.0), (20.0, -10.25)):
        pos = np.array([[[far, 0.0], [0.5, 1.0]]])
        assert at_rest("simple_spread", pos, land)[3][0] == pytest.approx(reward, rel=1e-12)
    line = np.array([[[0.0, 0.0], [0.0, 1.25]]])
    pos = np.array([[[30.0, 0.0], [0.5, 1.25]]])
    assert at_rest("line_control", pos, line)[3][0] == -15.0
    assert at_rest("line_control", pos, line, variant="mpe2")[3][0] == -1.25  # (2 + 0.5) / 2


def test_both_methods_of_assignment_agree():
    """Else the team's size decides how it is paid."""
    for num_agents in range(2, mpe_world.MOST_SUBSETS + 1):
        pos, vel, land, actions = world("line_control", num_agents)
        rewards = []
        for table in (mpe_world.subset_table(num_agents), mpe_world.subset_table(99)):
            obs, reward = np.empty((64, num_agents, mpe.obs_dim("line_control", num_agents))), np.empty(64)
            rules = mpe.env._numbers("line_control", "paper", 1.0, 0.0)
            mpe_world.advance(pos.copy(), vel.copy(), land, actions, rules, table, obs, reward)
            rewards.append(reward)
        assert len(mpe_world.subset_table(num_agents)) == num_agents * 2 ** (num_agents - 1)
        np.testing.assert_allclose(*rewards, atol=1e-14)


def test_targets_of_the_line_and_of_the_circle():
    """Else agents would be paid for another formation than the one described."""
    rng = np.random.default_rng(0)
    pos, land = rng.uniform(-1, 1, (200, 5, 2)), rng.uniform(-1, 1, (200, 2, 2))
    line = mpe.targets("line_control", pos, land)
    assert np.array_equal(line[:, 0], land[:, 0])
    np.testing.assert_allclose(line[:, -1], land[:, 1], atol=1e-15)
    np.testing.assert_allclose(np.diff(line, n=2, axis=1), 0, atol=1e-15)
    pos[0, 3], pos[1, 2] = land[0, 0], land[1, 0] + [0.3, 0.0]  # in the centre, and at angle 0
    pos[0, 0] = land[0, 0] + [0.1, 0.2]
    pos[2] = land[2, 0] + [[-0.3, 0.0], [-0.3, -0.0], [0.0, -0.2], [0.4, -1e-9], [-0.1, 1e-9]]
    circle = mpe.targets("circle_control", pos, land[:, :1])
    angles = np.arctan2(*(pos - land[:, :1]).transpose(2, 0, 1)[::-1])
    first = np.where(angles < 0, angles + 2 * np.pi, angles).min(1)
    turn = first[:, None] + 2 * np.pi * np.arange(5) / 5
    expected = land[:, :1] + 0.5 * np.stack([np.cos(turn), np.sin(turn)], axis=-1)
    np.testing.assert_allclose(circle, expected, atol=1e-12)
    assert first[0] == first[1] == 0
    assert np.array_equal(mpe.targets("simple_spread", pos, pos[:, ::-1]), pos[:, ::-1])


def test_vision_hides_what_is_far():
    """Else agents see more, or less, than the task lets them."""
    pos, vel, land, actions = world("line_control", 4, width=1.5)
    for vision in (0.3, 1.0, 2.0):
        x, _, obs, _ = mpe.step("line_control", pos, vel, land, actions, vision=vision)
        _, _, everything, _ = mpe.step("line_control", pos, vel, land, actions, vision=None)
        assert everything[..., 4:].all()
        for i in range(4):
            far = np.concatenate([distances(x[:, [i]], land), distances(x[:, [i]], np.delete(x, i, 1))], -1)[
                :, 0
            ]
            hidden = (far >= vision).repeat(2, axis=1)
            assert hidden.any() and not hidden.all()
            assert np.array_equal(obs[:, i, 4:], np.where(hidden, 0, everything[:, i, 4:]))
    assert mpe.step("simple_spread", *world("simple_spread", 4, width=3))[2].all()
    at = np.array([[[0.0, 0.0], [1.0, 0.0]]])  # just as far as one sees: the authors have it hidden
    for vision, seen in ((1.0, False), (1.0 + 1e-9, True)):
        obs = mpe.observe("circle_control", at, np.ones_like(at), at[:, :1] + [0.0, 1.0], vision=vision)
        assert obs[0, 0, 4:].any() == obs[0, 1, 6:].any() == seen


def test_collision_penalty_counts_ordered_pairs_and_oneself():
    """Else --collision-penalty means something else than in the authors' scenario."""
    crowd = world("line_control", 5, width=0.15)
    free = mpe.step("line_control", *crowd)
    paid = mpe.step("line_control", *crowd, collision_penalty=0.5)
    touching = (distances(free[0], free[0]) < 0.06).sum((1, 2))
    assert touching.min() == 5 and len(np.unique(touching)) > 2  # five with themselves, and some pairs
    np.testing.assert_allclose(free[3] - paid[3], 0.5 * touching / (2 * 5), atol=1e-15)
    assert all(np.array_equal(a, b) for a, b in zip(free[:3], paid[:3], strict=True))


@pytest.mark.parametrize("variant", mpe.VARIANTS)
@pytest.mark.parametrize("task", TASKS)
def test_environment_and_step_are_the_same_world(task, variant):
    """Else what was checked against the references is not what agents learn in."""
    env = MpeVectorEnv(task, 33, seed=3, num_agents=4, variant=variant, collision_penalty=0.1)
    env.reset()
    for _ in range(30):
        state, actions = env.get_state(), env.sample_actions()
        given = state["agent_pos"], state["agent_vel"], state["landmark_pos"], actions
        x, v, obs, reward = mpe.step(task, *given, variant=variant, collision_penalty=0.1)
        got, paid, _, truncated, infos = env.step(actions)
        shown = np.where(truncated[:, None, None], infos["final_obs"], got)
        assert np.array_equal(shown, obs.astype(np.float32))
        assert np.array_equal(paid, reward.astype(np.float32))
        after, going_on = env.get_state(), ~truncated
        assert np.array_equal(after["agent_pos"][going_on], x[going_on])
        assert np.array_equal(after["agent_vel"][going_on], v[going_on])


def test_step_leaves_its_arguments_alone():
    """Else code that pastes `step` finds its own arrays changed."""
    given = world("circle_control", 5)
    kept = [array.copy() for array in given]
    first, again = mpe.step("circle_control", *given), mpe.step("circle_control", *given)
    assert all(np.array_equal(a, b) for a, b in zip(given, kept, strict=True))
    assert all(np.array_equal(a, b) and a.dtype == np.float64 for a, b in zip(first, again, strict=True))
    halves = mpe.step("circle_control", *(array.astype(np.float32) for array in given[:3]), given[3])
    np.testing.assert_allclose(halves[0], first[0], atol=1e-6)


@pytest.mark.parametrize("variant", mpe.VARIANTS)
@pytest.mark.parametrize("task", TASKS)
def test_episodes_start_where_the_task_says(task, variant):
    """Else returns are those of an easier or a harder draw."""
    env = MpeVectorEnv(task, 4000, seed=1, variant=variant)
    env.reset()
    state = env.get_state()
    pos, land = state["agent_pos"], state["landmark_pos"]
    assert not state["agent_vel"].any()
    start = {"simple_spread": 1.0, "line_control": 0.25}.get(task, 0.25 if variant == "paper" else 0.5)
    uniform = land[:, :1] if task == "line_control" else land
    for points, width in ((pos, 1.0), (uniform, start)):
        assert 0.99 * width < np.abs(points).max() < width
        np.testing.assert_allclose(points.mean((0, 1)), 0, atol=0.04 * width)
        np.testing.assert_allclose(points.var((0, 1)), width**2 / 3, rtol=0.06)
    if task == "line_control":
        way = land[:, 1] - land[:, 0]
        np.testing.assert_allclose(np.linalg.norm(way, axis=-1), 1.25, atol=1e-12)
        assert (np.abs(land[:, 1]) < 1).all()
        rng = np.random.default_rng(0)
        centre, angle = rng.uniform(-0.25, 0.25, (4000, 2)), rng.uniform(0, 2 * np.pi, 4000)
        for _ in range(72):  # turned on by 5 degrees until it lies inside
            end = centre + 1.25 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
            angle += np.where((np.abs(end) < 1).all(-1), 0, np.pi / 36)
        found = np.arctan2(way[:, 1], way[:, 0])
        quarter = np.pi / 2  # the four corners of the square are alike
        assert ks_2samp(found % quarter, angle % quarter).pvalue > 0.01
        assert (np.abs([((found // quarter) % 4 == k).mean() - 0.25 for k in range(4)]) < 0.04).all()


def test_an_environment_depends_on_the_seed_and_its_index_alone():
    """Results must not change with the number of environments beside it."""
    few, many = (MpeVectorEnv("line_control", n, seed=7) for n in (3, 8))
    first, same = few.reset()[0], many.reset()[0]
    assert np.array_equal(first, same[:3])
    for _ in range(60):
        actions = many.sample_actions()
        assert np.array_equal(few.sample_actions(), actions[:3])
        for a, b in zip(few.step(actions[:3])[:4], many.step(actions)[:4], strict=True):
            assert np.array_equal(a, b[:3])
    assert np.array_equal(few.reset(seed=7)[0], first) and not np.array_equal(few.reset()[0], first)
    assert not np.array_equal(few.reset(seed=8)[0], first) and not np.array_equal(first[0], first[1])


@pytest.mark.parametrize("task", TASKS)
def test_contract_of_steps_and_episodes(task):
    """Shapes, dtypes, autoreset and statistics that learners rely on, beside gymnasium's own recorder."""
    env = envs.make(f"mpe/{task}", 3, seed=1, num_agents=4, episode_length=6)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP and env.env_id == f"mpe/{task}"
    assert (env.num_agents, env.num_actions, env.episode_limit, env.backend) == (4, 5, 6, "embedded")
    assert env.agent_obs_dims == (env.obs_dim,) * 4 and env.agent_act_dims == (5,) * 4
    recorder = RecordEpisodeStatistics(env, stats_key="theirs")
    obs, infos = recorder.reset()
    assert env.observation_space.contains(obs) and obs.dtype == np.float32
    assert infos["action_mask"].all() and not infos["final_obs"].any() and not infos["_episode"].any()
    kept, total = [], np.zeros(3)
    for t in range(1, 20):
        before = env.get_state()
        actions = env.action_space.sample()
        obs, reward, terminated, truncated, infos = recorder.step(actions)
        assert env.observation_space.contains(obs)
        assert reward.shape == (3,) and reward.dtype == np.float32 and (reward < 0).all()
        assert terminated.dtype == truncated.dtype == np.bool_ and not terminated.any()
        assert (truncated == (t % 6 == 0)).all()
        assert infos["action_mask"].shape == (3, 4, 5) and infos["action_mask"].all()
        assert infos["alive"].shape == (3, 4) and infos["alive"].all()
        assert np.array_equal(infos["_final_obs"], truncated) and np.array_equal(infos["_episode"], truncated)
        total += reward
        if t % 6 == 0:
            given = before["agent_pos"], before["agent_vel"], before["landmark_pos"], actions
            assert np.array_equal(infos["final_obs"], mpe.step(task, *given)[2].astype(np.float32))
            now = env.get_state()
            assert not np.array_equal(now["landmark_pos"], before["landmark_pos"])
            assert not obs[..., :2].any() and not now["length"].any() and not now["return"].any()
            np.testing.assert_allclose(infos["episode"]["r"], total, rtol=1e-5)
            np.testing.assert_allclose(infos["episode"]["r"], infos["theirs"]["r"], rtol=1e-5)
            assert (infos["episode"]["l"] == 6).all() and (infos["theirs"]["l"] == 6).all()
            total[:] = 0
            assert infos["final_action_mask"].all()
        else:
            assert not infos["final_obs"].any() and not infos["final_action_mask"].any()
            assert not infos["episode"]["l"].any() and not infos["episode"]["r"].any()
        infos["action_mask"][:] = infos["alive"][:] = False  # a caller's own: the next step has new ones
        kept.append([(array, array.copy()) for array in (obs, reward, truncated)])
        kept[-1] += [(infos[name], infos[name].copy()) for name in ("final_obs", "final_action_mask")]
    assert all(np.array_equal(array, copy) for step in kept for array, copy in step)  # never written again


def test_episodes_of_unequal_age_end_each_on_their_own():
    """Else environments put back from a checkpoint end together, or lose their returns."""
    env = MpeVectorEnv("circle_control", 3, seed=0, episode_length=5)
    env.reset()
    state = env.get_state()
    state["length"][:] = 0, 3, 4
    env.set_state(state)
    ended = np.array([env.step(env.sample_actions())[3] for _ in range(6)])
    assert np.array_equal(
        ended.T, [[t == 4 for t in range(6)], [t == 1 for t in range(6)], [t in (0, 5) for t in range(6)]]
    )


def test_state_continues_exactly():
    """A resumed run must see the episodes that the uninterrupted one sees."""
    env = MpeVectorEnv("simple_spread", 4, seed=2)
    env.reset()
    for _ in range(30):
        env.step(env.sample_actions())
    state = env.get_state()
    expected = [env.step(env.sample_actions()) for _ in range(40)]
    fresh = MpeVectorEnv("simple_spread", 4, seed=99)
    fresh.set_state(state)
    for ours, (obs, reward, *_) in zip(
        (fresh.step(fresh.sample_actions()) for _ in range(40)), expected, strict=True
    ):
        assert np.array_equal(ours[0], obs) and np.array_equal(ours[1], reward)
    assert sum(array.nbytes for array in state.values()) < 4 * 500
    with pytest.raises(ValueError, match="not one of 3 environments"):
        MpeVectorEnv("simple_spread", 3).set_state(state)
    with pytest.raises(ValueError, match="not one of 4 environments"):
        MpeVectorEnv("line_control", 4).set_state(state)
    for name, value in (("length", 25), ("length", -1), ("agent_pos", np.nan), ("landmark_pos", np.inf)):
        damaged = {**state, name: np.full_like(state[name], value)}
        with pytest.raises(ValueError, match=f"damaged: '{name}'"):
            fresh.set_state(damaged)


def test_bad_input_ends_in_a_sentence():
    """Mistakes of a user are named, and nothing is played."""
    env = MpeVectorEnv("simple_spread", 2, num_agents=3)
    env.reset()
    before = env.get_state()
    for actions, message in (
        (np.zeros((2, 2), int), r"shape \(2, 3\)"),
        (np.zeros((2, 3)), "float64"),
        (np.array([[0, 0, 0], [0, 5, 0]]), r"Action 5 of agent 1 in environment 1 .*\[0, 1, 2, 3, 4\]"),
        (np.array([[-1, 0, 0], [0, 1, 0]]), "Action -1 of agent 0 in environment 0"),
    ):
        with pytest.raises(ValueError, match=message):
            env.step(actions)
    assert all(np.array_equal(before[name], now) for name, now in env.get_state().items())
    pos, vel, land, actions = world("line_control", 3, 2)
    for call, message in (
        (
            lambda: mpe.num_landmarks("tag", 3),
            "task must be one of simple_spread, line_control, .* got 'tag'",
        ),
        (lambda: envs.make("mpe/simple_spraed", 1), "nearest ids are mpe/simple_spread"),
        (lambda: envs.make("mpe/line_control", 1, agents=3), "did you mean 'num_agents'"),
        (lambda: envs.make("mpe/line_control", 1, num_agents=1), "num_agents at least 2"),
        (lambda: envs.make("mpe/line_control", 0), "at least 1"),
        (lambda: envs.make("mpe/line_control", 1, episode_length=0), "at least 1"),
        (lambda: envs.make("mpe/line_control", 1, vision=0), "positive distance"),
        (lambda: MpeVectorEnv("line_control", vision=float("nan")), "positive distance"),
        (lambda: envs.make("mpe/simple_spread", 1, vision=0.5), "leave vision out"),
        (lambda: envs.make("mpe/line_control", 1, vision=0.5, variant="mpe2"), "leave vision out"),
        (lambda: envs.make("mpe/line_control", 1, variant="mpe3"), "paper, mpe2"),
        (lambda: envs.make("mpe/line_control", 1, collision_penalty=-1), "from 0, below 1e"),
        (lambda: envs.make("mpe/line_control", 1, collision_penalty=1e39), "from 0, below 1e"),
        (lambda: envs.make("mpe/line_control", 1, render_mode="human"), "rgb_array"),
        (lambda: MpeVectorEnv("line"), "simple_spread, line_control, circle_control"),
        (lambda: mpe.step("line", pos, vel, land, actions), "simple_spread, line_control, circle_control"),
        (lambda: mpe.step("line_control", pos[0], vel, land, actions), r"agent_pos .*got \(3, 2\)"),
        (lambda: mpe.step("line_control", pos[:, :1], vel, land, actions), "at least 2 agents"),
        (lambda: mpe.step("line_control", pos, vel[:1], land, actions), r"agent_vel .*\(2, 3, 2\)"),
        (lambda: mpe.step("line_control", pos, vel, land[:, :1], actions), r"landmark_pos .*\(2, 2, 2\)"),
        (lambda: mpe.step("line_control", pos, vel, land, actions + 5), "is not available"),
        (lambda: mpe.step("line_control", pos * np.nan, vel, land, actions), "agent_pos .*finite"),
        (lambda: mpe.assign(np.zeros((2, 3, 4))), r"cost must have shape \(any, 4, any\)"),
        (lambda: mpe.assign(np.zeros(())), "cost must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("task", TASKS)
def test_pictures_show_agents_and_targets(task):
    """Else --capture-video needs a display, shows a still, or writes frames that no codec takes."""
    env = envs.make(f"mpe/{task}", 2, seed=1, render_mode="rgb_array")
    env.reset()
    first, other = env.render(), env.render(1)
    assert first.dtype == np.uint8 and first.shape == other.shape == (512, 480, 3)
    assert first.shape[0] % 16 == first.shape[1] % 16 == 0
    for colour in ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0)):
        assert (first == colour).all(-1).sum() > 50
    for _ in range(6):
        env.step(env.sample_actions())
    assert (env.render() != first).any() and (first != other).any()
    with pytest.raises(ValueError, match="render_mode"):
        MpeVectorEnv(task).render()


def test_pictures_follow_agents_that_leave():
    """Else whoever drifts away, as idle agents with a push do, is out of the picture."""
    env = MpeVectorEnv("circle_control", 1, num_agents=2, episode_length=200, render_mode="rgb_array")
    env.reset()
    for _ in range(150):
        env.step(np.array([[2, 0]]))
    assert env.get_state()["agent_pos"].max() > 10
    assert (env.render() == (0, 114, 178)).all(-1).sum() > 50


@pytest.mark.parametrize(
    ("task", "variant", "floor", "idle", "greedy"),
    [
        ("simple_spread", "paper", -18.7, -16.6, -3.9),
        ("line_control", "paper", -22.2, -20.1, -4.8),
        ("circle_control", "paper", -16.4, -13.7, -3.3),
        ("simple_spread", "mpe2", -69.1, -62.9, -20.9),
    ],
)
def test_scripts_earn_what_they_earn_in_the_authors_scenarios(task, variant, floor, idle, greedy):
    """Else the reference lines of every curve are those of another world. Known to ± 0.25."""
    for policy, expected in (("random", floor), ("noop", idle), ("greedy", greedy)):
        returns = play(task, variant, 5, policy, 2048, seed=5)
        error = np.hypot(returns.std() / len(returns) ** 0.5, 0.25)
        assert abs(returns.mean() - expected) < 3 * error


def test_a_state_of_its_own_is_never_refused():
    """Returns are as large as the penalty that a user asks for."""
    env = MpeVectorEnv("simple_spread", 2, seed=0, num_agents=3, variant="mpe2", collision_penalty=9e8)
    env.reset()
    for _ in range(20):
        env.step(env.sample_actions())
    state = env.get_state()
    assert np.abs(state["return"]).max() > 1e9
    env.set_state(state)
