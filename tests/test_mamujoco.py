"""Multi-agent MuJoCo against gymnasium and gymnasium-robotics in the same process, and its own promises."""

import ctypes.util
import importlib
import json
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium_robotics import mamujoco_v1
from pettingzoo.test import parallel_api_test, parallel_seed_test

import envs
from envs.mamujoco import load_model
from envs.mamujoco_robots import ROBOTS, observation_index
from envs.pettingzoo import parallel_env

DATA = Path(__file__).parent / "data" / "mamujoco_obsk2_index.json"
PAPER = ("Hopper-3x1", "HalfCheetah-3x2", "Walker2d-3x2", "Ant-4x2", "Humanoid-17x1")


@pytest.fixture(autouse=True)
def quiet_folder(tmp_path, monkeypatch):
    """gymnasium's own loading of HalfCheetah leaves a MUJOCO_LOG.TXT in the working directory."""
    monkeypatch.chdir(tmp_path)


def started(name, num_envs=2, seed=0, **options):
    env = envs.make(f"mamujoco/{name}", num_envs, seed, **options)
    env.reset()
    return env


def random_actions(env, rng, scale=1.0):
    """Within `scale` of the range, environment by environment, so that num_envs does not matter."""
    high = env.single_action_space.high
    return np.stack([rng[e].uniform(-scale, scale, high.shape) * high for e in range(env.num_envs)])


def rngs(num_envs, seed=0):
    return [np.random.default_rng((seed, e)) for e in range(num_envs)]


def swap_abdomen(index):
    """gymnasium-robotics gives abdomen_y the numbers of abdomen_z and the reverse; undo it."""
    swap = {5: 6, 6: 5, 28: 29, 29: 28, 253: 254, 254: 253}  # positions, velocities, forces of actuators
    return [swap.get(int(place), int(place)) for place in index]


def factorization(kind, partition):
    """The library's description of a partition of ours, made of its own joints and edges."""
    parts, edges, roots = mamujoco_v1.get_parts_and_edges(kind, None)
    nodes = {node.label: node for node in parts[0]}
    agents = [tuple(nodes[joint] for joint in joints) for joints in ROBOTS[kind].partitions[partition]]
    return {"partition": agents, "edges": edges, "globals": roots}


@pytest.mark.parametrize("name", PAPER)
def test_what_agents_see_and_move_is_what_the_benchmark_says(name):
    """The paper's tasks: another index would be another task, and its results not comparable."""
    expected, kind = json.loads(DATA.read_text())[name], name.partition("-")[0]
    env = envs.make(f"mamujoco/{name}", 1)
    order = list(ROBOTS[kind].joints)
    index = [observation_index(ROBOTS[kind], env.model, joints, 2) for joints in env.agent_joints]
    known = expected["obs_index"]
    assert index == ([swap_abdomen(part) for part in known] if kind == "Humanoid" else known)
    assert [[order.index(joint) for joint in joints] for joints in env.agent_joints] == expected["act_ids"]
    assert env.state_dim == expected["state_dim"] and env.obs_dim == max(map(len, known))
    assert env.agent_obs_dims == tuple(map(len, known))
    assert (env.single_action_space.high == np.float32(expected["high"])).all()
    assert (env.single_action_space.low == np.float32(expected["low"])).all()


@pytest.mark.parametrize("kind", ["Hopper", "HalfCheetah", "Walker2d", "Ant", "Humanoid", "Swimmer"])
def test_index_agrees_with_gymnasium_robotics_at_every_distance(kind):
    """Every partition there is, seeing 0 to 3 joints away."""
    model = load_model(ROBOTS[kind].xml)
    for partition, agents in ROBOTS[kind].partitions.items():
        for k in range(4):
            # agent_conf has to be given, or the library forgets about agents; the factorization decides.
            theirs = mamujoco_v1.parallel_env(
                kind, "3x2", agent_obsk=k, agent_factorization=factorization(kind, partition)
            )
            for i, joints in enumerate(agents):
                known = [int(place) for place in theirs.observation_factorization[f"agent_{i}"]]
                known = swap_abdomen(known) if kind == "Humanoid" else known
                assert observation_index(ROBOTS[kind], model, joints, k) == known, (partition, k, i)


@pytest.mark.parametrize("name", [*PAPER, "Ant-2x4d", "Humanoid-9|8", "HumanoidStandup-9|8", "Swimmer-2x1"])
def test_rollouts_agree_with_gymnasium_robotics(name):
    """Observations and rewards step by step, ends of episodes included: else our index misreads the state."""
    kind, _, partition = name.partition("-")
    theirs = mamujoco_v1.parallel_env(
        kind, "3x2", agent_obsk=2, agent_factorization=factorization(kind, partition)
    )
    ours = envs.make(f"mamujoco/{name}", 1, seed=3)
    theirs.single_agent_env.unwrapped.np_random = np.random.default_rng(np.random.SeedSequence(3).spawn(1)[0])
    agents = theirs.possible_agents

    def agree(obs, known):
        for i, agent in enumerate(agents):
            index, width = theirs.observation_factorization[agent], ours.agent_obs_dims[i]
            seen = known[agent]
            if kind == "Walker2d":  # the library forgets that v5 clips velocities
                seen = np.where(index >= 8, np.clip(seen, -10, 10), seen)
            if kind.startswith("Humanoid"):
                seen = theirs.state()[swap_abdomen(index)]
            assert np.array_equal(obs[i, :width], seen.astype(np.float32)), agent
            assert not obs[i, width:].any()

    obs, _ = ours.reset()
    agree(obs[0], theirs.reset()[0])
    rng, ends = rngs(1), 0
    for _ in range(80):
        actions = random_actions(ours, rng)
        obs, reward, terminated, truncated, infos = ours.step(actions)
        played = {agent: actions[0, i, : ours.agent_act_dims[i]] for i, agent in enumerate(agents)}
        known, rewards, terminations, _, _ = theirs.step(played)
        over = terminated[0] or truncated[0]
        agree(infos["final_obs"][0] if over else obs[0], known)
        np.testing.assert_allclose(reward[0], rewards["agent_0"], rtol=1e-6, atol=1e-6)
        assert terminated[0] == terminations["agent_0"]
        if over:
            agree(obs[0], theirs.reset()[0])
            ends += 1
    assert ends or kind in ("HalfCheetah", "HumanoidStandup", "Swimmer", "Ant")


def test_arms_agree_with_gymnasium_robotics():
    """Reacher and Pusher, whose observations the library does not index: the numbers themselves."""
    for name in ("Reacher-2x1", "Pusher-3p"):
        kind, _, partition = name.partition("-")
        theirs = mamujoco_v1.parallel_env(kind, partition, agent_obsk=1)
        ours = envs.make(f"mamujoco/{name}", 1, seed=3, agent_obsk=1)
        theirs.single_agent_env.unwrapped.np_random = np.random.default_rng(
            np.random.SeedSequence(3).spawn(1)[0]
        )
        theirs.reset()
        ours.reset()
        rng = rngs(1)
        for _ in range(30):
            actions = random_actions(ours, rng)
            obs, reward, *_ = ours.step(actions)
            agents = enumerate(theirs.possible_agents)
            known, rewards, *_ = theirs.step({a: actions[0, i, : ours.agent_act_dims[i]] for i, a in agents})
            np.testing.assert_allclose(reward[0], rewards["agent_0"], rtol=1e-6, atol=1e-6)
            for i, agent in enumerate(theirs.possible_agents):
                own, seen = obs[0, i, : ours.agent_obs_dims[i]], known[agent].astype(np.float32)
                if kind == "Pusher":  # three of its joints share a name there, so their order is arbitrary
                    own, seen = np.sort(own), np.sort(seen)
                elif i == 1:  # the height between fingertip and target, not in v5's observation
                    seen = np.delete(seen, 5)
                assert np.array_equal(own, seen)


@pytest.mark.parametrize("kind", ROBOTS)
def test_steps_are_gymnasiums(kind):
    """Observations bit for bit, rewards, their terms, ends, new episodes; actions beyond the range, too."""
    E, count = 3, len(ROBOTS[kind].joints)
    ours = envs.make(f"mamujoco/{kind}-1x{count}", E, seed=5, obs="full", threads=2)
    theirs = [gym.make(f"{kind}-v5") for _ in range(E)]
    for env, child in zip(theirs, np.random.SeedSequence(5).spawn(E), strict=True):
        env.unwrapped.np_random = np.random.default_rng(child)
    known = np.stack([env.reset()[0] for env in theirs])
    obs, _ = ours.reset()
    rng, ends, terminations = rngs(E), 0, 0
    assert ours.dt == theirs[0].unwrapped.dt and ours.state_dim == known.shape[1]
    assert ours.episode_limit == theirs[0].spec.max_episode_steps
    assert np.array_equal(obs[:, 0], known.astype(np.float32))
    for _ in range(300):
        actions = random_actions(ours, rng, scale=1.3)
        obs, reward, terminated, truncated, infos = ours.step(actions)
        for e, env in enumerate(theirs):
            known, expected, over, late, terms = env.step(actions[e, 0])
            assert terminated[e] == over and truncated[e] == (late and not over)
            seen = infos["final_obs"] if over or late else obs
            assert np.array_equal(seen[e, 0], known.astype(np.float32))
            np.testing.assert_allclose(reward[e], expected, rtol=1e-6, atol=1e-6)
            names = {name for name in terms if name.startswith("reward_")}
            assert names == {name for name in infos if name.startswith("reward_")}
            for name in names:
                np.testing.assert_allclose(infos[name][e], terms[name], rtol=1e-6, atol=1e-6)
            if over or late:
                assert np.array_equal(obs[e, 0], env.reset()[0].astype(np.float32))
                ends, terminations = ends + 1, terminations + over
    assert (terminations > 5) == (kind in ("Hopper", "Walker2d", "Ant", "Humanoid"))
    assert ends or ours.episode_limit == 1000


@pytest.mark.parametrize("kind", ["Hopper", "Walker2d", "Ant", "Humanoid", "HumanoidStandup"])
def test_limits_are_gymnasiums(kind):
    """Wild states, put into both: when an episode ends, and how much a hard fall costs at most."""
    E, model = 300, gym.make(f"{kind}-v5").unwrapped
    ours = started(f"{kind}-1x{model.model.nu}", E)
    rng, state, nq = np.random.default_rng(1), ours.get_state(), model.model.nq
    physics = state["physics"]  # time, qpos, qvel, ...
    if nq == model.model.nv:  # planar: height, tilt
        physics[:, 2:4] += rng.uniform(-1.0, 1.0, (E, 2)) * (1.0, 1.2 if kind == "Walker2d" else 0.3)
        physics[:, 1 + nq : 1 + 2 * nq] *= 10 ** rng.uniform(0, 5, (E, 1))
    else:
        physics[:, 3] = rng.uniform(0.1, 2.5, E)
        physics[:, 3 + nq] = -(10 ** rng.uniform(0, 2.5, E))  # falling
    ours.set_state(state)
    _, _, terminated, _, infos = ours.step(np.zeros((E, 1, ours.act_dim)))
    full = mujoco.mjtState.mjSTATE_INTEGRATION
    for e in range(E):
        mujoco.mj_setState(model.model, model.data, physics[e], full)
        _, _, over, _, terms = model.step(np.zeros(ours.act_dim))
        assert terminated[e] == over, e
        for name in set(terms) & {"reward_survive", "reward_contact", "reward_impact"}:
            np.testing.assert_allclose(infos[name][e], terms[name], rtol=1e-6, atol=1e-6)
    assert kind == "HumanoidStandup" or 20 < terminated.sum() < E - 20
    assert "Humanoid" not in kind or min(infos.get("reward_contact", infos.get("reward_impact"))) == -10


def test_episodes_are_truncated_after_a_thousand_steps():
    """One whole episode beside gymnasium's: a learner bootstraps there, and nowhere else."""
    ours, theirs = envs.make("mamujoco/HalfCheetah-3x2", 1, seed=1), gym.make("HalfCheetah-v5")
    theirs.unwrapped.np_random = np.random.default_rng(np.random.SeedSequence(1).spawn(1)[0])
    ours.reset()
    theirs.reset()
    order, total, rng = [2, 1, 0, 5, 4, 3], 0.0, rngs(1)  # actuators of bfoot, bshin, bthigh, ffoot, ...
    for step in range(1000):
        actions = random_actions(ours, rng)
        obs, _, terminated, truncated, infos = ours.step(actions)
        joint = np.empty(6)
        joint[order] = actions[0].ravel()
        known, reward, _, late, _ = theirs.step(joint)
        total += reward
        assert not terminated[0] and truncated[0] == late == (step == 999) == infos["_episode"][0]
    assert infos["_final_obs"].all() and infos["episode"]["l"][0] == 1000
    np.testing.assert_allclose(infos["episode"]["r"][0], total, rtol=1e-6)
    index = observation_index(ROBOTS["HalfCheetah"], ours.model, ours.agent_joints[0], 2)
    assert np.array_equal(infos["final_obs"][0, 0, :11], known[index].astype(np.float32))
    assert np.array_equal(obs[0, 0, :11], theirs.reset()[0][index].astype(np.float32))


def test_time_and_falling_end_an_episode_only_once():
    """A robot that falls on its last step has failed: bootstrapping from there would reward it."""
    env = started("Hopper-3x1", 64, seed=2)
    state = env.get_state()
    fell = late = 0
    for left in range(1, 12):
        env.set_state({**state, "length": np.full(64, 1000 - left)})
        for _ in range(left):
            *_, terminated, truncated, infos = env.step(np.full((64, 3, 1), -1.0))
            assert not (terminated & truncated).any()
            fell += (terminated & (infos["episode"]["l"] == 1000)).sum()
            late += truncated.sum()
    assert fell and late


def test_threads_change_nothing():
    """Else the same seed gives another result on another machine."""
    for name in PAPER:
        played = []
        for threads in (1, 4):
            env = started(name, 6, seed=3, threads=threads)
            assert env.threads == threads
            rng = rngs(6)
            played.append([env.step(random_actions(env, rng)) for _ in range(30)])
            played[-1].append(env.get_state())
        for one, four in zip(*played, strict=True):
            for a, b in zip(leaves(one), leaves(four), strict=True):
                assert np.array_equal(a, b)


def leaves(value):
    """Arrays inside nested dicts and sequences."""
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for part in value for leaf in leaves(part)] if isinstance(value, (tuple, list)) else [value]


def test_an_environment_depends_on_the_seed_and_its_index_alone():
    """Results must not change with the number of environments beside it."""
    few, many = started("Walker2d-3x2", 2, seed=7), started("Walker2d-3x2", 5, seed=7)
    other = started("Walker2d-3x2", 2, seed=8)
    rng, wide = rngs(2), rngs(5)
    ends = 0
    for _ in range(60):
        a, b = few.step(random_actions(few, rng)), many.step(random_actions(many, wide))
        for x, y in zip(leaves(a), leaves(b), strict=True):
            assert np.array_equal(x, y[:2])
        ends += a[-1]["_episode"].sum()
    assert ends and (few.state() != other.state()).any() and (few.state()[0] != few.state()[1]).any()
    few.reset(seed=7)
    assert np.array_equal(few.state(), started("Walker2d-3x2", 2, seed=7).state())


@pytest.mark.parametrize("name", ["Hopper-3x1", "Ant-4x2", "Humanoid-17x1", "Pusher-3p"])
def test_a_state_continues_exactly(name):
    """A resumed run must be the run: physics, warm starts of the solver and random streams included."""
    env = started(name, 3, seed=4)
    rng = rngs(3)
    for _ in range(25):
        env.step(random_actions(env, rng))
    state, seen = env.get_state(), env.state()
    actions = [random_actions(env, rng) for _ in range(90)]
    first = [leaves(env.step(action)) for action in actions]
    last = env.get_state()
    elsewhere = envs.make(f"mamujoco/{name}", 3, seed=99)
    elsewhere.set_state({key: np.array(value) for key, value in state.items()})
    assert np.array_equal(elsewhere.state(), seen)
    again = [leaves(elsewhere.step(action)) for action in actions]
    assert all(
        np.array_equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert all(np.array_equal(value, elsewhere.get_state()[key]) for key, value in last.items())
    assert not np.array_equal(last["rng"], state["rng"])  # episodes ended on the way
    assert (last["length"] < 115).any()


def test_states_that_do_not_fit_are_refused():
    """Else a run goes on from something else, and nobody knows."""
    env = started("Hopper-3x1")
    before = env.get_state()
    state = env.get_state()
    broken = state["physics"].copy()
    broken[1, 3] = np.nan
    for bad, message in (
        (started("Walker2d-3x2").get_state(), "not one of 2 environments of mamujoco/Hopper-3x1"),
        (started("Hopper-3x1", 3).get_state(), "not one of 2 environments"),
        ({key: value for key, value in state.items() if key != "rng"}, "'rng'"),
        ({**state, "physics": broken}, "damaged: 'physics'"),
        ({**state, "length": np.array([0, 1000])}, "damaged: 'length'"),
    ):
        with pytest.raises(ValueError, match=message):
            env.set_state(bad)
    assert all(np.array_equal(value, before[key]) for key, value in env.get_state().items())


def test_contract_of_steps_and_episodes():
    """Shapes, dtypes, autoreset and statistics that learners rely on."""
    env = envs.make("mamujoco/HalfCheetah-3x2", 4, seed=1)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP and env.metadata["render_fps"] == 20
    assert (env.env_id, env.num_agents, env.obs_dim, env.act_dim) == ("mamujoco/HalfCheetah-3x2", 3, 13, 2)
    assert env.agent_obs_dims == (11, 13, 12) and env.agent_act_dims == (2, 2, 2)
    assert env.backend == "mujoco" and envs.describe(env)["backend"] == "mujoco"
    obs, infos = env.reset()
    assert obs.shape == (4, 3, 13) and obs.dtype == np.float32 and env.observation_space.contains(obs)
    assert infos["alive"].all() and infos["alive"].shape == (4, 3)
    env.action_space.seed(0)
    kept = obs.copy()
    out = env.step(env.action_space.sample())
    assert np.array_equal(obs, kept)  # the next step does not write into what was returned
    obs, reward, terminated, truncated, infos = out
    assert reward.shape == (4,) and reward.dtype == np.float32
    assert terminated.dtype == truncated.dtype == bool and not (terminated | truncated).any()
    assert infos["final_obs"].shape == (4, 3, 13) and not infos["_final_obs"].any()
    assert infos["episode"]["r"].dtype == np.float32 and infos["episode"]["l"].dtype == np.int64
    hopper, total, lengths = started("Hopper-3x1", 8, seed=1), np.zeros(8), np.zeros(8, int)
    rng, ends = rngs(8), 0
    for _ in range(60):
        _, reward, terminated, truncated, infos = hopper.step(random_actions(hopper, rng))
        total, lengths = total + reward, lengths + 1
        done = terminated | truncated
        assert np.array_equal(done, infos["_episode"]) and np.array_equal(done, infos["_final_obs"])
        np.testing.assert_allclose(infos["episode"]["r"], np.where(done, total, 0), rtol=1e-5)
        assert np.array_equal(infos["episode"]["l"], np.where(done, lengths, 0))
        assert infos["final_obs"][done].any(axis=(1, 2)).all() and not infos["final_obs"][~done].any()
        total[done], lengths[done] = 0, 0
        ends += done.sum()
    assert ends


def test_padding_is_zero_to_see_and_does_nothing_to_act_on():
    """Agents of unequal width are stacked: what fills the gaps must not carry or change anything."""
    a, b = started("Humanoid-9|8"), started("Humanoid-9|8")
    assert a.agent_act_dims == (9, 8) and a.act_dim == 9 and a.agent_obs_dims == (244, 174)
    assert a.single_action_space.high[1, 8] == a.single_action_space.low[1, 8] == 0
    rng = rngs(2)
    for _ in range(10):
        actions = random_actions(a, rng)
        other = actions.copy()
        other[:, 1, 8] = np.nan
        x, y = a.step(actions), b.step(other)
        assert all(np.array_equal(p, q) for p, q in zip(leaves(x), leaves(y), strict=True))
        assert not x[0][:, 1, 174:].any() and x[0][:, 1, :174].any()


def test_full_observation_and_custom_partitions():
    """Every way to divide a robot drives the same robot."""
    parts = [["foot_joint"], ["thigh_joint", "leg_joint"]]
    custom = started("Hopper", partition=parts, obs="full", agent_obsk=0)
    plain = started("Hopper-3x1")
    assert custom.env_id == "mamujoco/Hopper-custom" and custom.agent_act_dims == (1, 2)
    assert custom.agent_obs_dims == (11, 11) and custom.agent_joints == (("foot_joint",), tuple(parts[1]))
    rng = rngs(2)
    for _ in range(30):
        thigh, leg, foot = np.stack([r.uniform(-1, 1, 3) for r in rng], axis=1)
        a = custom.step(np.stack([[foot, foot], [thigh, leg]]).transpose(2, 0, 1))
        b = plain.step(np.stack([thigh, leg, foot], axis=1)[..., None])
        assert np.array_equal(a[1], b[1]) and np.array_equal(a[0][:, 1], plain.state())
        assert np.array_equal(a[0][:, 0], plain.state())


def test_bad_input_ends_in_a_sentence():
    """Mistakes of a user are named, and nothing is played."""
    env = started("HalfCheetah-3x2")
    before = env.get_state()
    actions = np.zeros((2, 3, 2))
    actions[1, 2, 1] = np.inf
    for bad, message in (
        (np.zeros((2, 3)), r"shape \(2, 3, 2\)"),
        (np.zeros((2, 6)), r"\(2, 6\)"),
        (np.zeros((2, 3, 2), dtype=str), "numbers"),
        (actions, "agent 2 in environment 1 gave inf for fthigh"),
    ):
        with pytest.raises(ValueError, match=message):
            env.step(bad)
    assert all(np.array_equal(before[key], now) for key, now in env.get_state().items())
    with pytest.raises(RuntimeError, match="reset"):
        envs.make("mamujoco/Ant-4x2", 1).step(np.zeros((1, 4, 2)))
    halves = [["thigh_joint", "leg_joint"], ["leg_joint"]]
    for name, options, message in (
        ("HalfCheetah-2x2", {}, "nearest ids are mamujoco/HalfCheetah"),
        ("Hopper", {}, "nearest ids are mamujoco/Hopper"),
        ("Hoper", {"partition": halves}, "no robot 'Hoper'"),
        ("Hopper", {"partition": halves}, "each joint of Hopper to exactly one agent.*foot_joint"),
        ("Hopper-3x1", {"partition": halves}, "the robot alone: 'Hopper'"),
        ("Hopper-3x1", {"agent_obs": 1}, "did you mean 'agent_obsk'"),
        ("Hopper-3x1", {"agent_obsk": -1}, "agent_obsk at least 0"),
        ("Hopper-3x1", {"obs": "half"}, '"khop" or "full"'),
        ("Hopper-3x1", {"threads": 0}, "threads must be at least 1"),
        ("Hopper-3x1", {"render_mode": "human"}, "rgb_array"),
    ):
        with pytest.raises(ValueError, match=message):
            envs.make(f"mamujoco/{name}", 2, **options)
    with pytest.raises(ValueError, match="num_envs"):
        envs.make("mamujoco/Hopper-3x1", 0)


def test_nothing_is_written_to_the_working_directory(tmp_path):
    """MuJoCo warns of HalfCheetah's model in a log file where it is loaded; a user's folder stays clean."""
    warn = mujoco.get_mju_user_warning()
    started("HalfCheetah-3x2").close()
    assert not list(tmp_path.iterdir()) and mujoco.get_mju_user_warning() is warn


def test_view_passes_pettingzoos_own_tests():
    """Else tools written for PettingZoo break on agents of unequal width."""
    for name in ("HalfCheetah-3x2", "Humanoid-9|8", "Hopper-3x1"):
        view = parallel_env(f"mamujoco/{name}")
        parallel_api_test(view, num_cycles=60)
        parallel_seed_test(lambda name=name: parallel_env(f"mamujoco/{name}"), num_cycles=60)
        view.reset(seed=0)
        assert [view.action_space(agent).shape[0] for agent in view.agents] == list(
            view.vector_env.agent_act_dims
        )


def opengl_works():
    """Whether MuJoCo itself can draw here without a display."""
    if not ctypes.util.find_library("EGL"):
        return bool(ctypes.util.find_library("OSMesa"))
    try:
        importlib.import_module("mujoco.egl").GLContext(64, 64).free()
    except Exception:  # a library without a driver, say
        return False
    return True


def test_pictures_show_the_robot_or_say_what_is_missing(monkeypatch):
    """Machines without a display draw through EGL or OSMesa; without either a sentence says so."""
    env = started("Ant-4x2", render_mode="rgb_array")
    before = env.get_state()
    if opengl_works():
        one = env.render(1)
        assert one.dtype == np.uint8 and one.shape == (480, 480, 3) and len(np.unique(one)) > 50
        for _ in range(5):
            env.step(np.ones((2, 4, 2)))
        two = env.render(1)
        assert (one != two).mean() > 0.01 and np.array_equal(two, env.render(1))
        env.set_state(before)
        assert np.array_equal(one, env.render(1))
    else:
        with pytest.raises(RuntimeError, match="No picture can be drawn: .*Install EGL or OSMesa"):
            env.render(1)
    env.close()
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(RuntimeError, match=r"neither EGL nor OSMesa was found\. Install EGL or OSMesa"):
        env.render(0)
    with pytest.raises(ValueError, match='render_mode="rgb_array"'):
        started("Ant-4x2").render()
