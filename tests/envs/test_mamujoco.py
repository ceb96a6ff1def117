"""What multi-agent MuJoCo promises beyond being gymnasium's: contract, seeds, states, threads, pictures."""

import ctypes.util
import importlib
import os
import signal
import subprocess
import sys
import threading

import mujoco
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from pettingzoo.test import parallel_api_test, parallel_seed_test

import envs


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
    for name in ("Hopper-3x1", "HalfCheetah-3x2", "Walker2d-3x2", "Ant-4x2", "Humanoid-17x1"):
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


@pytest.mark.parametrize("column", ["qpos", "qvel"])
def test_a_robot_that_flew_apart_is_said_so(column, tmp_path, monkeypatch):
    """Else MuJoCo puts it back to its rest in silence, and a run learns from an episode that never was."""
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes its log
    env, nq = started("HalfCheetah-3x2"), 9
    state, still = env.get_state(), np.zeros((2, 3, 2))
    wild = state | {"physics": state["physics"].copy(), "length": np.array([3, 4])}
    wild["physics"][1, 1 if column == "qpos" else 1 + nq] = 1e11  # time, qpos, qvel, ...
    told = (
        r"HalfCheetah-3x2 has diverged: MuJoCo .* reset the robot \(in environment 1, step 5 of its episode"
    )
    env.set_state(wild)
    with pytest.raises(envs.BrokenEnvironment, match=told) as error:
        env.step(still)
    assert "\n" not in str(error.value)
    with pytest.raises(envs.BrokenEnvironment, match="has diverged"):  # what stands there now is no episode
        env.step(still)
    env.set_state(state)
    expected = started("HalfCheetah-3x2").step(still)
    assert all(map(np.array_equal, leaves(env.step(still)), leaves(expected)))
    env.set_state(wild)
    with pytest.raises(envs.BrokenEnvironment, match="has diverged"):
        env.step(still)
    env.reset()
    env.step(still)


def test_contract_of_steps_and_episodes():
    """Shapes, dtypes, autoreset and statistics that learners rely on."""
    env = envs.make("mamujoco/HalfCheetah-3x2", 4, seed=1)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP and env.metadata["render_fps"] == 20
    assert (env.env_id, env.num_agents, env.obs_dim, env.num_actions) == (
        "mamujoco/HalfCheetah-3x2",
        3,
        13,
        2,
    )
    assert env.agent_obs_dims == (11, 13, 12) and env.agent_act_dims == (2, 2, 2)
    assert env.backend == "mujoco" and envs.describe(env)["backend"] == "mujoco"
    obs, infos = env.reset()
    assert obs.shape == (4, 3, 13) and obs.dtype == np.float32 and obs.flags.c_contiguous
    assert env.observation_space.contains(obs)
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
        assert infos["final_action_mask"][done].all() and not infos["final_action_mask"][~done].any()
        total[done], lengths[done] = 0, 0
        ends += done.sum()
    assert ends


def test_padding_is_zero_to_see_and_does_nothing_to_act_on():
    """Agents of unequal width are stacked: what fills the gaps must not carry or change anything."""
    a, b = started("Humanoid-9|8"), started("Humanoid-9|8")
    assert a.agent_act_dims == (9, 8) and a.num_actions == 9 and a.agent_obs_dims == (244, 174)
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
    custom = started("Hopper", partition=parts, obs="full")
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
    huge = np.full((2, 3, 2), 1e20)  # a control cost that float32 does not have
    for bad, message in (
        (np.zeros((2, 3)), r"shape \(2, 3, 2\)"),
        (np.zeros((2, 6)), r"\(2, 6\)"),
        (np.zeros((2, 3, 2), dtype=str), "numbers"),
        (actions, "agent 2 in environment 1 gave inf for fthigh"),
        (huge, r"at most 1e\+10 in size: agent . in environment 0 gave 1e\+20 for bthigh"),
    ):
        with pytest.raises(ValueError, match=message):
            env.step(bad)
    assert all(np.array_equal(before[key], now) for key, now in env.get_state().items())
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
        ("Hopper-3x1", {"obs": "full", "agent_obsk": 1}, "leave agent_obsk out"),
        ("Hopper-3x1", {"threads": 0}, "threads must be at least 1"),
        ("Hopper-3x1", {"render_mode": "human"}, "rgb_array"),
    ):
        with pytest.raises(ValueError, match=message):
            envs.make(f"mamujoco/{name}", 2, **options)
    with pytest.raises(ValueError, match="num_envs"):
        envs.make("mamujoco/Hopper-3x1", 0)


def test_nothing_is_written_to_the_working_directory(tmp_path, monkeypatch):
    """MuJoCo warns of HalfCheetah's model in a log file where it is loaded; a user's folder stays clean."""
    monkeypatch.chdir(tmp_path)
    warn = mujoco.get_mju_user_warning()
    started("HalfCheetah-3x2").close()
    assert not list(tmp_path.iterdir()) and mujoco.get_mju_user_warning() is warn


def test_view_passes_pettingzoos_own_tests():
    """Else tools written for PettingZoo break on agents of unequal width."""
    for name in ("HalfCheetah-3x2", "Humanoid-9|8", "Hopper-3x1"):
        view = envs.parallel_env(f"mamujoco/{name}")
        parallel_api_test(view, num_cycles=60)
        parallel_seed_test(lambda name=name: envs.parallel_env(f"mamujoco/{name}"), num_cycles=60)
        view.reset(seed=0)
        widths = [view.action_space(agent).shape[0] for agent in view.agents]
        assert widths == list(view.vector_env.agent_act_dims)


def opengl_works():
    """Whether MuJoCo itself can draw here without a display."""
    try:
        importlib.import_module("mujoco.egl").GLContext(64, 64).free()
        return True
    except Exception:  # no library, or one without a driver
        return False


def test_pictures_show_the_robot_or_say_what_is_missing(monkeypatch):
    """Machines without a display draw through EGL or OSMesa; without either a sentence says so."""
    if opengl_works():
        env = started("Ant-4x2", render_mode="rgb_array")
        before = env.get_state()
        one = env.render(1)
        assert one.dtype == np.uint8 and one.shape == (480, 480, 3) and len(np.unique(one)) > 50
        for _ in range(5):
            env.step(np.ones((2, 4, 2)))
        two = env.render(1)
        assert (one != two).mean() > 0.01 and np.array_equal(two, env.render(1))
        env.set_state(before)
        assert np.array_equal(one, env.render(1))
        env.close()
        other = started("Hopper-3x1", render_mode="rgb_array")
        other = started(
            "Hopper-3x1", render_mode="rgb_array"
        )  # the first one is freed, and takes nothing along
        assert np.array_equal(other.render(0), other.render(0)) and len(np.unique(other.render(0))) > 50
    else:
        with pytest.raises(RuntimeError, match=r"No picture can be drawn: .*Install EGL or OSMesa"):
            started("Ant-4x2", render_mode="rgb_array")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(RuntimeError, match=r"neither EGL nor OSMesa was found\. Install EGL or OSMesa"):
        started("Ant-4x2", render_mode="rgb_array")
    plain = started("Ant-4x2")
    with pytest.raises(ValueError, match='render_mode="rgb_array"'):
        plain.render()
    plain.close()
    plain.render_mode = "rgb_array"  # as if it had been drawn until then
    with pytest.raises(ValueError, match="this environment is closed"):
        plain.render()


@pytest.mark.skipif(ctypes.util.find_library("OSMesa") is not None, reason="OSMesa is there")
def test_a_wish_for_a_missing_library_is_one_sentence():
    """mujoco itself fails to import then, inside of PyOpenGL."""
    assert_told("osmesa", "ValueError: MuJoCo cannot start with MUJOCO_GL='osmesa'")


def test_a_wish_for_what_there_is_not_is_one_sentence():
    """A misspelt one is a RuntimeError of mujoco's."""
    assert_told("elg", "ValueError: MuJoCo cannot start with MUJOCO_GL='elg'; unset it or set another.")


def assert_told(wish, sentence, before=""):
    code = f'{before}import envs; envs.make("mamujoco/Hopper-3x1", num_envs=1)'
    env = os.environ | {"MUJOCO_GL": wish}
    env.pop("PYOPENGL_PLATFORM", None)  # mujoco.egl, imported by another test, leaves it behind
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert result.returncode and sentence in result.stderr, result.stderr


def test_a_missing_mujoco_is_one_sentence():
    """Whoever has not installed it must not be sent to look at MUJOCO_GL."""
    missing = 'import sys; sys.modules["mujoco"] = None; '
    for wish in ("", "egl"):
        assert_told(wish, "ValueError: MuJoCo cannot be loaded (import of mujoco", missing)
        assert_told(wish, "pip install -r requirements.txt.", missing)


def test_signal_is_heard_while_thousands_of_robots_are_made(monkeypatch):
    """It takes MuJoCo a minute, in which a cluster that has sent SIGTERM loses its patience."""
    from envs.mamujoco import env

    class Stopped(BaseException):
        pass

    def stop(*_):
        raise Stopped

    makers, over = [], threading.Event()

    def slow_batch(*_, **__):
        makers.append(threading.current_thread())
        os.kill(os.getpid(), signal.SIGTERM)
        over.wait(60)

    monkeypatch.setattr(env, "Batch", slow_batch)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(Stopped):
            env.make_batch(None, 1, 1, False)
        assert makers[0].is_alive() and makers[0] is not threading.main_thread()
    finally:
        over.set()
        signal.signal(signal.SIGTERM, before)

    def no_room(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(env, "Batch", no_room)
    with pytest.raises(MemoryError, match="no room"):
        env.make_batch(None, 1, 1, False)


def test_a_view_beyond_the_robot_is_the_whole_robot():
    """Who types a large number to see everything waited for ever."""
    everything, far = (envs.make("mamujoco/HalfCheetah-3x2", 1, seed=0, agent_obsk=k) for k in (9, 10**9))
    assert np.array_equal(everything.reset()[0], far.reset()[0])
