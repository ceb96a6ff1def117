"""Multi-agent MuJoCo against gymnasium and gymnasium-robotics, step by step in the same process."""

import json
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium_robotics import mamujoco_v1

import envs
from envs.mamujoco.env import load_model
from envs.mamujoco.robots import ROBOTS, V4, observation_index

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


def generator(seed, e=0):
    """The random generator that environment e of a seed has."""
    return np.random.default_rng(np.random.SeedSequence(seed).spawn(e + 1)[e])


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
            described = factorization(kind, partition)
            theirs = mamujoco_v1.parallel_env(kind, "3x2", agent_obsk=k, agent_factorization=described)
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
        theirs.single_agent_env.unwrapped.np_random = generator(3)
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
    for e, env in enumerate(theirs):
        env.unwrapped.np_random = generator(5, e)
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


@pytest.mark.filterwarnings("ignore:.*out of date")
@pytest.mark.parametrize("kind", V4)
def test_steps_of_version_4_are_gymnasiums(kind):
    """The robots that the paper has, v2 of old, as far as they still run: friction, health and contacts."""
    count = len(ROBOTS[kind].joints)
    ours = envs.make(f"mamujoco/{kind}-1x{count}", 1, seed=5, obs="full", version="v4")
    theirs = gym.make(f"{kind}-v4")
    theirs.unwrapped.np_random = generator(5)
    assert envs.env_name(ours) == f"mamujoco-{kind}-1x{count}-v4"
    nq, nv, bodies = theirs.unwrapped.model.nq, theirs.unwrapped.model.nv, theirs.unwrapped.model.nbody

    def seen(known):
        if kind != "Humanoid":
            return known.astype(np.float32)
        parts = np.split(known, np.cumsum((nq - 2, nv, 10 * bodies, 6 * bodies, nv)))
        behind = (0, 0, 10, 6, 6, 6)  # the world's inertia, velocity and force, and the free joint's
        return np.concatenate([part[at:] for part, at in zip(parts, behind, strict=True)]).astype(np.float32)

    obs, _ = ours.reset()
    assert np.array_equal(obs[0, 0], seen(theirs.reset()[0]))
    rng, ends = rngs(1), 0
    for _ in range(200):
        actions = random_actions(ours, rng)
        obs, reward, terminated, _, infos = ours.step(actions)
        known, expected, over, *_ = theirs.step(actions[0, 0])
        assert terminated[0] == over
        assert np.array_equal((infos["final_obs"] if over else obs)[0, 0], seen(known))
        np.testing.assert_allclose(reward[0], expected, rtol=1e-6, atol=1e-6)
        if over:
            assert np.array_equal(obs[0, 0], seen(theirs.reset()[0]))
            ends += 1
    assert (ends > 1) == (kind != "HalfCheetah")
    with pytest.raises(ValueError, match=r"of Hopper, HalfCheetah, Walker2d, .*; got .v4. of Swimmer"):
        envs.make("mamujoco/Swimmer-2x1", 1, version="v4")


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
    _, _, terminated, _, infos = ours.step(np.zeros((E, 1, ours.num_actions)))
    full = mujoco.mjtState.mjSTATE_INTEGRATION
    for e in range(E):
        mujoco.mj_setState(model.model, model.data, physics[e], full)
        _, _, over, _, terms = model.step(np.zeros(ours.num_actions))
        assert terminated[e] == over, e
        for name in set(terms) & {"reward_survive", "reward_contact", "reward_impact"}:
            np.testing.assert_allclose(infos[name][e], terms[name], rtol=1e-6, atol=1e-6)
    assert kind == "HumanoidStandup" or 20 < terminated.sum() < E - 20
    assert "Humanoid" not in kind or min(infos.get("reward_contact", infos.get("reward_impact"))) == -10


def test_episodes_are_truncated_after_a_thousand_steps():
    """One whole episode beside gymnasium's: a learner bootstraps there, and nowhere else."""
    ours, theirs = envs.make("mamujoco/HalfCheetah-3x2", 1, seed=1), gym.make("HalfCheetah-v5")
    theirs.unwrapped.np_random = generator(1)
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
