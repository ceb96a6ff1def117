"""The real game's adapter, over the stand-in for oxwhirl SMAC in tests/standin (no StarCraft II needed)."""

import itertools
import os
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from envs.smac import starcraft
from envs.wrappers import AgentsFirst
from tests.envs.machine import ROOT, STANDIN, assert_all_end, assert_removed, attack, play, running


def direct(seed, **options):
    from smac.env import StarCraft2Env

    return StarCraft2Env(map_name="2s3z", seed=seed, continuing_episode=True, **options)


# ---------------------------------------------------------------- the same battle as SMAC plays


def test_episodes_are_those_that_smac_plays(machine, make):
    """If this fails, the agents see or are paid something other than what SMAC gives."""
    env = make("2s3z", seed=3)
    obs, infos = env.reset()
    twin = direct(int(machine.events("launch")[0][3]))
    try:
        seen, state = twin.reset()
        total, length, ended, won, fallen = 0.0, 0, 0, 0, 0
        while ended < 4:
            mask = np.array(twin.get_avail_actions(), dtype=bool)
            assert np.array_equal(obs[0], np.array(seen)) and np.array_equal(env.state()[0], state)
            assert np.array_equal(infos["action_mask"][0], mask)
            assert np.array_equal(infos["alive"][0], [unit.health > 0 for unit in twin.agents.values()])
            actions = attack(infos)
            obs, reward, terminated, truncated, infos = env.step(actions)
            twin_reward, over, info = twin.step(actions[0])
            total, length = total + np.float32(twin_reward), length + 1
            assert reward[0] == np.float32(twin_reward)
            assert terminated[0] == over and not truncated[0]
            assert infos["battle_won"][0] == info["battle_won"]
            assert infos["_episode"][0] == infos["_final_obs"][0] == over
            seen, state = twin.get_obs(), twin.get_state()
            if over:
                assert np.array_equal(infos["final_obs"][0], np.array(seen))
                living = [unit.health > 0 for unit in twin.agents.values()]
                assert np.array_equal(infos["final_alive"][0], living)
                assert np.array_equal(infos["final_action_mask"][0], np.array(twin.get_avail_actions()))
                fallen += living.count(False)
                assert infos["episode"]["r"][0] == pytest.approx(total) and infos["episode"]["l"][0] == length
                seen, state = twin.reset()
                total, length, ended, won = 0.0, 0, ended + 1, won + info["battle_won"]
            else:
                assert not infos["final_obs"].any() and not infos["final_alive"].any()
        assert 0 < won < 4 and 0 < fallen < 4 * 5
    finally:
        twin.close()


def test_results_have_the_shapes_and_types_of_the_contract(make):
    """If this fails, a learner written for the embedded engine breaks on the real game."""
    env = make("2s3z", 2)
    obs, infos = env.reset()
    results = [(obs, infos), *[(r[0], r[-1]) for r in play(env, infos, 3)]]
    for obs, infos in results:
        assert obs.shape == (2, 5, 80) and obs.dtype == np.float32 and env.observation_space.contains(obs)
        assert infos["action_mask"].shape == (2, 5, 11) and infos["action_mask"].dtype == bool
        assert infos["alive"].shape == (2, 5) and infos["final_obs"].shape == (2, 5, 80)
        assert infos["final_alive"].shape == (2, 5) and infos["final_alive"].dtype == bool
        for key in ("_final_obs", "_episode", "battle_won", "dropped"):
            assert infos[key].shape == (2,) and infos[key].dtype == bool
    kept = obs.copy()
    _, reward, terminated, truncated, _ = play(env, infos, 1)[0]
    assert np.array_equal(obs, kept)
    assert reward.dtype == np.float32 and terminated.dtype == truncated.dtype == bool
    assert (env.num_agents, env.num_actions, env.obs_dim, env.state_dim) == (5, 11, 80, 120)
    assert (env.episode_limit, env.backend, env.env_id) == (120, "starcraft", "smac/2s3z")
    assert (env.discrete, env.restorable, env.cheap_copies, env.exact, env.wins) == (
        True,
        False,
        False,
        False,
        True,
    )
    assert env.state().shape == (2, 120)


def test_a_large_map_can_be_played(make):
    """If this fails, a user with the real game cannot use all of its maps."""
    env = make("corridor")
    obs, _ = env.reset()
    assert obs.shape == (1, 6, 156) and env.max_reward == 1280


def test_step_limit_is_a_truncation_and_no_win(machine, make):
    """If this fails, values are cut off at the step limit as if the battle had been decided."""
    machine.faults({"at": "battle", "kind": "peace"})
    env = make()
    _, infos = env.reset()
    for step in range(1, 61):
        _, _, terminated, truncated, infos = env.step(np.ones((1, 3), dtype=int))
        assert truncated[0] == (step == 60) and not terminated[0]
    assert infos["episode"]["l"][0] == 60 and infos["_episode"][0]
    assert not infos["battle_won"][0] and not infos["dropped"][0]


def test_reward_fix_pays_nothing_for_shields_that_regenerate(machine, make):
    """If this fails, reward_fix does not change SMAC's reward or changes more than the sign's treatment."""
    env = make("2s3z", reward_fix=True, seed=3)
    _, infos = env.reset()
    twin = direct(int(machine.events("launch")[0][3]), reward_only_positive=False, reward_negative_scale=0.0)
    try:
        twin.reset()
        signed = []
        for step in range(25):
            # From step 12 on the living stop, and the shields that were hit come back.
            actions = np.where(infos["alive"], 1, 0) if step > 12 else attack(infos)
            _, reward, terminated, _, infos = env.step(actions)
            signed.append(twin.step(actions[0])[0])
            assert reward[0] == np.float32(max(0.0, signed[-1])) and not terminated[0]
        assert min(signed) < 0 < max(signed)
    finally:
        twin.close()


def test_environments_and_launches_have_seeds_of_their_own(machine, make):
    """If this fails, several environments play the same battles."""
    for num_envs in (2, 3):
        env = make(num_envs=num_envs, seed=5)
        env.reset()
        env.close()
    env = make(num_envs=1, seed=6)
    env.reset()
    seeds = [int(event[3]) for event in machine.events("launch")]
    assert len(set(seeds[:2])) == 2 and set(seeds[:2]) < set(seeds[2:5]) and len(set(seeds)) == 4


# ---------------------------------------------------------------- lost games


@pytest.mark.parametrize("kind", ["lost", "raise", "exit", "hang"])
def test_game_lost_in_a_step_costs_its_episode_and_nothing_else(machine, make, kind):
    """If this fails, a crash of the game stops the training, counts as a loss, or disturbs others."""
    env = make(num_envs=2, seed=1, step_timeout=2.0 if kind == "hang" else 20.0)
    env.reset()
    seeds = sorted(int(event[3]) for event in machine.events("launch"))
    env.close()
    machine.log.unlink()
    machine.faults({"at": "step", "n": 2, "seed": seeds[0], "kind": kind})
    env = make(num_envs=2, seed=1, step_timeout=2.0 if kind == "hang" else 20.0)
    _, infos = env.reset()
    before = play(env, infos, 2)[-1]
    with pytest.warns(RuntimeWarning, match="restart 1 of at most 5"):
        _, reward, terminated, truncated, infos = env.step(attack(before[-1]))
    e = int(np.argmax(infos["dropped"]))
    assert infos["dropped"].sum() == 1 and truncated[e] and not terminated[e] and reward[e] == 0
    assert infos["_final_obs"][e] and np.array_equal(infos["final_obs"][e], before[0][e])
    assert np.array_equal(infos["final_alive"], before[-1]["alive"] & infos["dropped"][:, None])
    assert np.array_equal(infos["final_action_mask"][e], before[-1]["action_mask"][e])
    assert not infos["_episode"].any() and not infos["battle_won"].any() and not infos["episode"]["l"].any()
    assert not truncated[1 - e] and infos["alive"].all() and env.restarts[e] == 1 and env.restarts.sum() == 1
    results = play(env, infos, 80)
    assert np.all(sum(r[-1]["_episode"] for r in results) > 1) and not any(
        r[-1]["dropped"].any() for r in results
    )
    seeds = [event[3] for event in machine.events("launch")]
    assert len(set(seeds)) == len(seeds) == 3  # one new game, with a seed of its own


@pytest.mark.parametrize("kind", ["lost", "raise", "exit", "hang"])
def test_game_lost_in_a_reset_is_replaced(machine, make, kind):
    """If this fails, a game that dies between episodes stops the training or hands out stale observations."""
    machine.faults({"at": "reset", "n": 1, "launch": 0, "kind": kind})
    env = make(reset_timeout=4.0 if kind == "hang" else 30.0)
    _, infos = env.reset()
    with pytest.warns(RuntimeWarning, match="lost its game"):
        results = play(env, infos, 60)
    ended = [r for r in results if r[-1]["_episode"].any()]
    assert ended and not any(r[-1]["dropped"].any() for r in results)
    assert env.restarts[0] == 1 and ended[0][-1]["alive"].all() and len(machine.events("launch")) == 2


def test_a_lost_battle_is_no_episode_of_a_learner(machine, make):
    """If this fails, crashes of the game lower the return and the win rate that are logged."""
    machine.faults({"at": "step", "n": 2, "launch": 0, "kind": "raise"})
    env = AgentsFirst(make(num_envs=2, seed=1))
    _, infos = env.reset()
    episodes, dropped = [], 0
    with pytest.warns(RuntimeWarning, match="lost its game"):
        for _ in range(60):
            actions = torch.from_numpy(attack({"action_mask": infos["action_mask"].numpy()}))
            _, _, terminated, truncated, infos = env.step(actions)
            ended = (terminated | truncated).numpy()
            assert ("final_obs" in infos) == ended.any()
            assert [e["env"] for e in infos["episodes"]] == np.flatnonzero(ended & ~infos["dropped"]).tolist()
            episodes, dropped = episodes + infos["episodes"], dropped + infos["dropped"].sum()
    assert dropped == 1 and len(episodes) > 2
    assert all(episode["episodic_length"] > 2 and episode["win_rate"] in (0.0, 1.0) for episode in episodes)


def test_first_launch_that_fails_is_tried_again(machine, make):
    """If this fails, one port clash at the start ends a run of many games."""
    machine.faults({"at": "reset", "launch": 0, "kind": "raise"})
    env = make(num_envs=2)
    with pytest.warns(RuntimeWarning, match="websocket closed"):
        _, infos = env.reset()
    assert infos["alive"].all() and not infos["dropped"].any()


def test_repeated_crashes_end_in_one_clear_error(machine, make):
    """If this fails, a game that can never run is started for ever, or leaves processes behind."""
    machine.faults({"at": "reset", "kind": "raise"})
    env = make(max_restarts=2)
    with warnings.catch_warnings(), pytest.raises(starcraft.StarCraftError) as error:
        warnings.simplefilter("ignore")
        env.reset()
    assert "3 times in a row" in str(error.value) and "websocket closed" in str(error.value)
    assert len(machine.events("launch")) == 3 and env.closed
    assert_all_end(machine.processes())


def test_crashes_in_a_row_are_counted_between_finished_episodes_only(machine, make):
    """If this fails, a long run with a rare crash is given up."""
    machine.faults(*[{"at": "reset", "n": 1, "launch": launch, "kind": "raise"} for launch in range(4)])
    env = make(max_restarts=1)
    _, infos = env.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = play(env, infos, 200)
    assert env.restarts[0] == 4 and sum(r[-1]["_episode"].sum() for r in results) > 4


def test_interrupted_step_leaves_no_stale_reply(machine, make, monkeypatch):
    """If this fails, Ctrl-C at the wrong moment pairs later actions with the wrong observations."""
    env = make()
    _, infos = env.reset()

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(starcraft, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            env.step(attack(infos))
    assert_all_end(machine.processes())
    with pytest.warns(RuntimeWarning, match="lost its game"):
        *_, infos = env.step(attack(infos))
    assert infos["dropped"][0] and infos["alive"].all()


def test_an_interrupt_ends_games_that_had_answered_as_well(machine, make, monkeypatch):
    """Their step is played, and its observation lost: the next action would be chosen by an old mask."""
    env = make(num_envs=2)
    _, infos = env.reset()
    true, calls = starcraft.wait, []

    def interrupt(connections, timeout):
        calls.append(len(connections))
        if len(calls) > 1:
            raise KeyboardInterrupt
        return true(connections, timeout)[:1]

    with monkeypatch.context() as patch:
        patch.setattr(starcraft, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            env.step(attack(infos))
    assert calls == [2, 1]
    assert_all_end(machine.processes())
    with pytest.warns(RuntimeWarning, match="lost its game"):
        *_, infos = env.step(attack(infos))
    assert infos["dropped"].all()


# ---------------------------------------------------------------- resets


def test_every_episode_is_reset_exactly_once(machine, make):
    """If this fails, SMAC is reset twice, after which trained agents play far worse (oxwhirl/smac #104)."""
    env = make(num_envs=2)
    _, infos = env.reset()
    env.reset()
    results = play(env, infos, 100)
    finished = int(sum(r[-1]["_episode"].sum() for r in results))
    assert finished > 4 and len(machine.events("reset")) == 2 + finished
    assert len(machine.events("launch")) == 2
    for worker in {event[0] for event in machine.events("launch")}:
        names = [event[1] for event in machine.events() if event[0] == worker]
        assert not any(a == b == "reset" for a, b in itertools.pairwise(names))


def test_reset_within_the_first_episode_does_not_leak_a_game(machine, make):
    """If this fails, SMAC launches a second game beside the first and nobody ends the first."""
    env = make()
    _, infos = env.reset()
    play(env, infos, 2)
    first = machine.processes()
    _, infos = env.reset()
    assert_all_end(first)
    assert len(machine.events("launch")) == 2 and infos["alive"].all()
    results = play(env, infos, 60)
    assert any(r[-1]["_episode"].any() for r in results)
    env.reset()
    assert len(machine.events("launch")) == 2


def test_relaunch_every_replaces_the_game_after_so_many_episodes(machine, make):
    """If this fails, the game's growing memory cannot be bounded, or a replaced game counts as a crash."""
    env = make(relaunch_every=2)
    _, infos = env.reset()
    results = play(env, infos, 150)
    finished = sum(r[-1]["_episode"].sum() for r in results)
    assert finished > 3 and len(machine.events("launch")) == 1 + finished // 2
    assert not any(r[-1]["dropped"].any() for r in results) and env.restarts[0] == 0


def test_game_is_replaced_before_its_last_loop(machine, make, monkeypatch):
    """If this fails, every game is lost after some 65,500 steps, all of them at about the same time."""
    monkeypatch.setenv("STANDIN_LOOPS", str(2**19 - 8 * 200))
    env = make(num_envs=2)
    _, infos = env.reset()
    results = play(env, infos, 400)
    assert not any(r[-1]["dropped"].any() for r in results) and not env.restarts.any()
    assert len(machine.events("launch")) > 4 and len({event[3] for event in machine.events("launch")}) > 4
    # Neither is a game thrown away that has room for one more episode.
    first = machine.events("launch")[0][0]
    loops = [int(event[2]) for event in machine.events("step") if event[0] == first]
    assert 524_000 - 2 * 8 * env.episode_limit < max(loops) <= 524_000


def test_step_is_half_a_second_of_the_game(machine, make):
    """If this fails, a SMAC with other defaults plays another game than the one of published results."""
    env = make()
    _, infos = env.reset()
    play(env, infos, 3)
    assert [int(event[2]) for event in machine.events("step")] == [8, 16, 24]


def test_saved_state_begins_new_episodes_and_says_so_once(machine, make):
    """If this fails, a resumed run crashes, plays the same battles again, or is silent about it."""
    env = make(seed=4)
    _, infos = env.reset()
    play(env, infos, 3)
    saved = {name: np.array(value.tolist()) for name, value in env.get_state().items()}
    env.close()
    env = make(seed=4)
    with pytest.warns(UserWarning, match="new episodes"):
        env.set_state(saved)
    _, infos = env.reset()
    assert infos["alive"].all() and len(machine.events("reset")) == 2
    seeds = [event[3] for event in machine.events("launch")]
    assert len(set(seeds)) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.set_state(saved)
    for other in ({"units": np.zeros(3)}, saved | {"launches": np.zeros(2)}):
        with pytest.raises(ValueError, match="not one of 1 environments"):
            env.set_state(other)


def test_a_resumed_learner_goes_on_from_the_new_battles(machine, make):
    """If this fails, a resumed run acts on observations of battles that are gone, or plays the same again."""
    env = AgentsFirst(make(num_envs=2, seed=4))
    env.reset()
    state = env.get_state()
    env.close()
    env = AgentsFirst(make(num_envs=2, seed=4))
    with pytest.warns(UserWarning, match="new episodes"):
        obs, infos = env.set_state(state)
    assert not torch.equal(obs, state["next_obs"].transpose(0, 1)) and infos["alive"].all()
    assert len(machine.events("reset")) == 4 and len({event[3] for event in machine.events("launch")}) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, _ = env.reset()  # the same battles, which have not begun
    assert torch.equal(again, obs)


# ---------------------------------------------------------------- processes


def test_close_ends_every_worker_and_game(machine, make):
    """If this fails, games fill the memory of the machine after each run."""
    env = make(num_envs=3)
    _, infos = env.reset()
    play(env, infos, 2)
    assert len(machine.processes()) == 6 and all(map(running, machine.processes()))
    env.close()
    assert_all_end(machine.processes())
    env.close()
    with pytest.raises(starcraft.StarCraftError, match="closed"):
        env.step(attack(infos))


def test_close_ends_games_that_do_not_close(machine, make):
    """If this fails, a hung game outlives the run."""
    machine.faults({"at": "close", "kind": "hang"})
    env = make()
    env.reset()
    env.close()
    assert_all_end(machine.processes())


def test_killed_worker_leaves_no_files(machine, make):
    """If this fails, each crash leaves a folder behind, until there is no room for another."""
    env = make()
    _, infos = env.reset()
    (folder,) = machine.folders()
    assert folder.is_dir()
    os.kill(env._workers[0].process.pid, signal.SIGKILL)
    with pytest.warns(RuntimeWarning, match="lost its game"):
        env.step(attack(infos))
    assert not folder.exists() and len(machine.folders()) == 2


@pytest.mark.parametrize(
    "end, faults",
    [
        ("raise RuntimeError", []),
        ("os.kill(os.getpid(), signal.SIGKILL)", []),
        ("os.kill(os.getpid(), signal.SIGKILL)", [{"at": "close", "kind": "hang"}]),
        ("del env; input()", []),
    ],
)
def test_games_end_with_the_program_however_it_ends(machine, end, faults):
    """If this fails, an exception, a kill, or a forgotten environment leaves games or their files behind."""
    machine.faults(*faults)
    code = f"""
import os, signal
from envs.smac.starcraft import StarCraftVectorEnv
env = StarCraftVectorEnv("3m", 2, stagger=0)
env.reset()
print("ready", flush=True)
{end}
"""
    path = os.pathsep.join([str(ROOT), str(STANDIN)])
    program = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert program.stdout.readline() == "ready\n"
        assert len(machine.processes()) == 4 and len(machine.folders()) == 2
        assert_all_end(machine.processes())
        assert_removed(machine.folders())
    finally:
        program.communicate("\n")


def test_worker_leads_a_session_of_its_own(machine, make):
    """If this fails, Ctrl-C in the terminal kills the games before the run can save itself."""
    env = make()
    env.reset()
    ((worker, _, game, _),) = machine.events("launch")
    assert os.getsid(int(worker)) == int(worker) == os.getsid(int(game)) != os.getsid(0)


# ---------------------------------------------------------------- bad input


def test_bad_actions_are_refused_before_any_game_moves(machine, make):
    """If this fails, a wrong action ends in an assertion deep inside SMAC and costs an episode."""
    env = make(num_envs=2)
    with pytest.raises(RuntimeError, match="Call reset"):
        env.step(np.ones((2, 3), dtype=int))
    with pytest.raises(ValueError, match="takes no options"):
        env.reset(options={"reset_mask": np.ones(2, bool)})
    _, infos = env.reset()
    actions = attack(infos)
    for bad, words in (
        (actions[:1], "shape"),
        (actions.astype(float), "integers"),
        (
            np.where([[False] * 3, [False, True, False]], 0, actions),
            "agent 1 in environment 1 .* available are",
        ),
        (np.where([[True, False, False], [False] * 3], 99, actions), "Action 99 of agent 0 in environment 0"),
    ):
        with pytest.raises(ValueError, match=words):
            env.step(bad)
    assert not machine.events("step")
    env.step(actions)
    assert len(machine.events("step")) == 2


@pytest.mark.parametrize(
    "options, words",
    [
        ({"map_name": "3mm"}, "nearest names are 3m"),
        ({"render_mode": "rgb_array"}, "save_replay"),
        ({"game_version": "4.11"}, "'4.10'"),
        ({"difficulty": "hard"}, "one of 1, 2, 3, 4, 5, 6, 7, 8, 9, A; got 'hard'"),
        ({"seed": -1}, "whole number"),
        ({"num_envs": 0}, "positive"),
        ({"step_timeout": 0.0}, "positive"),
    ],
)
def test_bad_arguments_are_refused_with_a_sentence(make, options, words):
    """If this fails, a typing error becomes a stack trace or a game that never starts."""
    with pytest.raises(ValueError, match=words):
        make(**options)


def test_replay_is_saved_by_smac(machine, make):
    """If this fails, there is no way to look at a battle of the real game, or nobody finds its file."""
    env = make(num_envs=2, replay_dir="replays")
    env.reset()
    env.save_replay(1)
    (event,) = machine.events("replay")
    assert event[0] == str(env._workers[1].process.pid) and event[2] == os.path.abspath("replays")
    env = make()
    env.reset()
    env.save_replay()
    assert machine.events("replay")[1][2] == str(machine.sc2 / "Replays") + os.sep


def test_what_cannot_be_had_of_the_game_is_a_sentence(make):
    """If this fails, no picture has a reason, and no-ops are drawn for living agents."""
    env = make()
    for early in (env.sample_actions, lambda: env.step(np.zeros((1, 3), int))):
        with pytest.raises(RuntimeError, match=r"Call reset\(\) before the first step"):
            early()
    env.reset()
    assert env.sample_actions().all()  # nobody is dead
    with pytest.raises(ValueError, match=r"real game is not drawn: call save_replay\(\)"):
        env.render(0)


def test_waits_that_cannot_be_are_refused_at_once(make):
    """If this fails, the error is an OverflowError on the first step, or comes after the first crash."""
    for wrong in ({"step_timeout": float("inf")}, {"reset_timeout": 1e30}, {"backoff": -1.0}):
        with pytest.raises(ValueError, match="backoff must not be negative"):
            make(**wrong)
