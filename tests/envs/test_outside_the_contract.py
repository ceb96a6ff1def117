"""Environments that are not as PettingZoo has them: played where it is clear what they mean, else refused in
one sentence that says what is wrong and where. They are played as scripts play them, with tensors."""

import functools
import re
import sys
import types
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import envs
from envs.pettingzoo import ParallelVectorEnv
from envs.wrappers import AgentsFirst
from tests.standin.toys import Reach, Toy

LONG = ((6, "truncated"), (6, "truncated"))


@pytest.fixture
def game(monkeypatch):
    """Puts a module with this parallel_env in reach, as pettingzoo:a_game."""

    def game(parallel_env):
        module = types.ModuleType("a_game")
        module.parallel_env = parallel_env
        monkeypatch.setitem(sys.modules, "a_game", module)

    return game


def play(steps=14, num_envs=2, **options):
    """Rewards and alive of random play, environment 1 first in the order of failing where it matters."""
    env = envs.make("pettingzoo:a_game", num_envs, seed=1, device="cpu", **options)
    _, infos = env.reset()
    told = []
    for _ in range(steps):
        chances = torch.rand(infos["action_mask"].shape)
        actions = (chances * infos["action_mask"]).argmax(-1) if env.discrete else chances
        obs, reward, _, _, infos = env.step(actions)
        told.append((obs, reward, infos))
    return told


def changed(when=3, **parts):
    """A Toy whose step `when` returns other parts: functions of what it would return, by name."""

    class Changed(Toy):
        def step(self, actions):
            names = "observations", "rewards", "terminations", "truncations", "infos"
            returned = dict(zip(names, super().step(actions), strict=True))
            if self.t == when:
                returned |= {name: change(returned[name]) for name, change in parts.items()}
            return tuple(returned.values())

    return functools.partial(Changed, leaves=LONG)


def of_a1(value):
    return lambda part: {**part, "a1": value}


PLACE = r" \(in environment 0, step 3 of episode 1\)\.$"


@pytest.mark.parametrize(
    ("parallel_env", "sentence"),
    [
        (
            changed(observations=of_a1(np.full((2, 2), np.nan))),
            "a1 of a_game sees nan as number 0 of its obs",
        ),
        (
            changed(observations=of_a1(np.array([[11, 11], [11, -np.inf]]))),
            "a1 of a_game sees -inf as number 3",
        ),
        (changed(observations=of_a1(np.full((2, 2), 1e39))), "a1 of a_game sees inf as number 0"),
        (changed(observations=of_a1("wall")), "a1 of a_game sees no numbers but 'wall'"),
        (changed(observations=of_a1({"seen": 3})), "a1 of a_game sees no numbers but {'seen': 3}"),
        (changed(rewards=of_a1(np.nan)), "a1 of a_game earns nan"),
        (changed(rewards=of_a1(np.inf)), "a1 of a_game earns inf"),
        (changed(rewards=of_a1(None)), "a1 of a_game earns None, where one number is wanted"),
        (changed(rewards=of_a1("much")), "a1 of a_game earns 'much', where one number"),
        (changed(rewards=of_a1(np.ones(3))), r"a1 of a_game earns array\(.*weigh its parts.*LinearizeReward"),
        (changed(rewards=lambda _: {0: 1.0, 1: 1.0}), r"a_game has rewards for \[0, 1\], none of its agents"),
        (changed(rewards=lambda _: 1.0), r"returned from step\(\) 1.0 for rewards, not a dict by agent"),
        (changed(terminations=lambda _: False), "False for terminations, not a dict by agent"),
        (changed(infos=of_a1(7)), "info of a1 of a_game must be a dict; got 7"),
        (changed(infos=of_a1({"action_mask": [0, 0, 0]})), r"action_mask of a1 of a_game.*got \[0, 0, 0\]"),
        (changed(infos=of_a1({"action_mask": [1, np.nan, 0]})), r"action_mask of a1 .*got \[1.0, nan, 0.0\]"),
        (
            changed(infos=of_a1({"action_mask": [0, -np.inf, 0]})),
            "action_mask of a1 .*one of them 1 at least",
        ),
        (changed(rewards=of_a1(3.0)), r"unequal rewards \(a0 1, a1 3\): give the option"),
    ],
)
def test_what_an_environment_does_wrong_is_said_with_agent_and_step(game, parallel_env, sentence):
    """Else a NaN of the environment is blamed on the learning rate, and the rest ends in tracebacks."""
    game(parallel_env)
    with pytest.raises(envs.BrokenEnvironment, match=sentence + ".*" + PLACE) as error:
        play()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("space", ["discrete", "real"])
def test_the_right_environment_and_the_last_step_are_named(space):
    """Else the search begins at the wrong place; an episode's last observation is one like the others."""
    made = []

    def make():
        made.append((Toy if space == "discrete" else Reach)(leaves=((3, "terminated"), (3, "terminated"))))
        return made[-1]

    env = AgentsFirst(ParallelVectorEnv(make, 3))
    env.reset()
    nothing = torch.zeros(2, 3, dtype=torch.int64) if env.discrete else torch.zeros(2, 3, env.num_actions)
    for _ in range(5):
        env.step(nothing)
    look = made[1].look
    made[1].look = lambda agents: look(agents) | {"a0": np.full((2, 1), np.nan)}
    with pytest.raises(
        envs.BrokenEnvironment, match=r"a0 of toy sees nan.*environment 1, step 3 of episode 2"
    ):
        env.step(nothing)
    with pytest.raises(envs.BrokenEnvironment, match=r"reset\(\) before the first step"):
        env.step(nothing)
    with pytest.raises(
        envs.BrokenEnvironment, match=r"a0 of toy sees nan.*environment 1, step 0 of episode 3"
    ):
        env.reset()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"reset": lambda seed=None: {"a0": 0, "a1": 0}},
            r"another.* API .* reset\(\) returned {'a0': 0, 'a1'",
        ),
        ({"reset": lambda seed=None: [1]}, r"reset\(\) returned 1 values, not the 2 \(observations, infos\)"),
        (
            {"reset": lambda: ({}, {})},
            r"a_game takes no seed: its reset must be reset\(seed=None, options=None\)",
        ),
        ({"reset": lambda seed=None: ({}, {})}, r"a_game has no agents after reset\(\)"),
        (
            {"step": lambda actions: ({}, {}, {}, {})},
            r"step\(\) returned 4 values, not the 5 \(observations,",
        ),
        ({"step": lambda actions: None}, r"step\(\) returned None, not the 5"),
        (
            {"step": lambda actions: 1 // 0},
            r"failed in environment 0, step 1 of .*: ZeroDivisionError: .*test_out",
        ),
        ({"possible_agents": ["a0", "a0"]}, "a_game names an agent twice in possible_agents"),
        ({"possible_agents": None}, r"does not tell its agents' spaces: TypeError: .*iterable \("),
        (
            {"observation_space": {}},
            "does not tell its agents' spaces: TypeError: 'dict' object is not callable",
        ),
        ({"action_space": lambda agent: {}[agent]}, r"tell its agents' spaces: KeyError: 'a0' \(.*test_out"),
        (
            {"observation_space": lambda agent: gym.spaces.Box(0, 1, (0,))},
            r"observes Box\(.*it observes a Box",
        ),
    ],
)
def test_environments_of_another_api_are_refused_with_a_sentence(game, changes, sentence):
    """Else an old environment ends in "too many values to unpack", or is played with names for numbers."""

    def make():
        env = Toy()
        for name, value in changes.items():
            setattr(env, name, value)
        env.agents = [] if "reset" in changes else env.agents
        return env

    game(make)
    with pytest.raises(envs.BrokenEnvironment, match=sentence) as error:
        play()
    assert "\n" not in str(error.value)


def test_agents_that_nobody_announced_are_refused(game):
    """Else they are never asked to act, and their episode never ends."""
    game(Toy)
    env = envs.make("pettingzoo:a_game", 1, device="cpu")
    env.reset()
    env.envs[0].agents.append("a7")
    env.envs[0].step = lambda actions: ({}, dict.fromkeys(actions, 1.0), {}, {}, {})
    with pytest.raises(
        envs.BrokenEnvironment, match=r"a_game has \['a7'\] in agents, not in possible_agents"
    ):
        env.step(torch.zeros(2, 1, dtype=torch.int64))


def needs(players, size=3):
    assert size < 9, "too large a board"
    return Toy(leaves=LONG, pay={3: (1.0, 1.0)}[size]) if players else len(players)


@pytest.mark.parametrize(
    ("env_kwargs", "sentence"),
    [
        (
            {},
            r"cannot be made with env_kwargs {}: .* missing .*: 'players'\.$",
        ),
        (
            {"player": 2},
            r"cannot be made with env_kwargs {'player': 2}: .*unexpected keyword argument 'player'\.$",
        ),
        (
            {"players": 2, "size": 9},
            r"cannot be made: AssertionError: too large .*\(.*test_out.*, line \d",
        ),
        ({"players": 2, "size": 4}, r"cannot be made: KeyError: 4 \(.*test_out.*, line \d+\)\.$"),
        (
            {"players": 0},
            r"cannot be made: TypeError: object of type 'int' has no len\(\) \(.*test_out.*, line \d",
        ),
    ],
)
def test_errors_of_a_constructor_say_where_they_are_from(game, env_kwargs, sentence):
    """Else a mistake inside an environment is called a wrong keyword, or ends in a traceback."""
    game(needs)
    with pytest.raises(envs.BrokenEnvironment, match="a_game " + sentence):
        envs.make("pettingzoo:a_game", 2, device="cpu", env_kwargs=env_kwargs)


@pytest.mark.parametrize(
    ("env_kwargs", "broken"), [({"players": 2, "size": 4}, True), ({"player": 2}, False)]
)
def test_whose_fault_it_is_is_told_without_a_device_too(game, env_kwargs, broken):
    """Else who catches BrokenEnvironment, as make() says, does not catch an error of the constructor."""
    game(needs)
    with pytest.raises(ValueError, match="cannot be made") as error:
        envs.make("pettingzoo:a_game", 1, env_kwargs=env_kwargs)
    assert isinstance(error.value, envs.BrokenEnvironment) == broken


def test_keywords_that_are_handed_on_are_still_named(game):
    """Factories hand keywords on: the error is from below them, the keyword from the command line."""
    game(lambda **keywords: needs(players=2, **keywords))
    with pytest.raises(envs.BrokenEnvironment, match=r"made with env_kwargs {'colour': 3}: .*'colour'"):
        envs.make("pettingzoo:a_game", 1, device="cpu", env_kwargs={"colour": 3})


def test_memory_that_is_not_there_is_not_blamed_on_the_environment(game):
    """Scripts have their own words for memory that a step does not get."""

    def full(actions):
        raise MemoryError("Unable to allocate 9 GiB")

    game(lambda: Toy(step=full))
    with pytest.raises(MemoryError, match="9 GiB"):
        play()
    game(lambda: full(None))
    with pytest.raises(envs.BrokenEnvironment, match="9 GiB"):  # before the start it is
        play()


@pytest.mark.parametrize("infos", [None, {}, {"a0": None, "a1": None}])
def test_infos_may_be_none(game, infos):
    """What says nothing is clear: everyone lives and may do anything."""

    class Silent(Toy):
        def reset(self, seed=None, options=None):
            return super().reset(seed)[0], infos

        def step(self, actions):
            return *super().step(actions)[:-1], infos

    game(functools.partial(Silent, leaves=LONG))
    told = play()
    assert all(about["alive"].all() for _, _, about in told)
    assert [about["episodes"][0]["episodic_length"] for *_, about in told if about["episodes"]] == [6, 6]


@pytest.mark.parametrize("number", [np.ones(1), np.float32(1), np.array(1), [1], True, np.ones((1, 1))])
def test_a_reward_may_be_an_array_of_one_number(game, number):
    """What is one number in any form is that number."""
    game(functools.partial(Toy, leaves=LONG, pay=(number, number)))
    assert all(reward.tolist() == [1, 1] for _, reward, _ in play())
    assert all(reward.tolist() == [2, 2] for _, reward, _ in play(reward="sum"))


def test_the_dead_that_stay_are_told_at_every_step(game):
    """Else a critic learns from what the dead see, and diverges."""

    class Stays(Toy):
        """a1 dies at step 2 and stays listed, and goes on seeing."""

        def about(self, agents):
            dead = {"alive": False, "action_mask": np.zeros(3)} if self.t >= 2 else {"alive": np.True_}
            return {"a0": {}, "a1": dead}

    game(functools.partial(Stays, leaves=((5, "truncated"), (5, "truncated"))))
    for step, (obs, _, infos) in enumerate(play(steps=10), start=1):
        time = step % 5
        lives = time < 2
        assert infos["alive"].tolist() == [[True, True], [lives, lives]]
        assert obs[1, 0].tolist() == [10 + time] * 4  # what it sees is left to it
        assert infos["action_mask"][1, 0].tolist() == [True, lives, lives]  # no action: the first
        assert ("final_alive" in infos) == (time == 0)
        if time == 0:
            assert infos["final_alive"].tolist() == [[True, True], [False, False]]
            assert infos["final_obs"][1, 0].tolist() == [15] * 4


def test_who_joins_on_the_last_step_is_there_at_its_end(game):
    """Else a truncated episode is bootstrapped without it."""
    look = lambda agents: {a: np.ones((2, 1 + int(a[1]))) for a in agents}  # noqa: E731
    game(functools.partial(Toy, look=look, leaves=LONG))
    env = envs.make("pettingzoo:a_game", 1, device="cpu", episode_limit=2)
    env.reset()
    toy = env.envs[0]
    toy.agents.remove("a1")
    assert env.step(torch.zeros(2, 1, dtype=torch.int64))[-1]["alive"].tolist() == [[True], [False]]
    step = toy.step

    def joining(actions):
        seen, *rest = step(actions)
        toy.agents = ["a0", "a1"]
        return toy.look(toy.agents), *rest

    toy.step = joining
    infos = env.step(torch.zeros(2, 1, dtype=torch.int64))[-1]
    assert infos["final_alive"].tolist() == [[True], [True]] and infos["final_obs"][1].any()


def test_what_a_package_exports_is_found(tmp_path, monkeypatch):
    """Documented names, as gymnasium_robotics.mamujoco_v1, are often no files of their own."""
    package = tmp_path / "arcade"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("from arcade.deep import inner_v1 as outer_v1\nnothing_v0 = 3\n")
    (package / "deep" / "__init__.py").write_text("")
    (package / "deep" / "inner_v1.py").write_text("from tests.standin.toys import Toy as parallel_env\n")
    (package / "broken_v1.py").write_text("x = {}\nx['board']\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert envs.make("pettingzoo:arcade.outer_v1", 2).env_id == "pettingzoo:arcade.outer_v1"
    for path, told in {
        "arcade.nothing_v0": r"arcade.nothing_v0 has no parallel_env\(\)",
        "arcade.outer_v2": "no module 'arcade.outer_v2'",
        "arcade.broken_v1": r"broken_v1 cannot be imported: KeyError: 'board' \(arcade.broken_v1, line 2\)",
        ".arcade": "no module '.arcade'",
    }.items():
        with pytest.raises(envs.BrokenEnvironment, match=told):
            envs.make(f"pettingzoo:{path}", 1, device="cpu")


def test_documented_robots_of_gymnasium_robotics_are_played():
    """Else `pettingzoo:gymnasium_robotics.mamujoco_v1`, as its manual has it, is called no module."""
    robot = {"scenario": "Humanoid", "agent_conf": "9|8"}
    env = envs.make("pettingzoo:gymnasium_robotics.mamujoco_v1", 1, device="cpu", env_kwargs=robot)
    env.reset()
    played, theirs = [], env.envs[0]
    step = theirs.step
    theirs.step = lambda actions: (played.append(actions), step(actions))[1]
    env.step(torch.full((2, 1, 9), 0.5))
    np.testing.assert_allclose(played[0]["agent_0"], np.full(9, 0.2), rtol=1e-6)  # of ±0.4


def test_errors_of_a_picture_are_a_sentence(game):
    """Else --capture-video ends in a traceback of a drawing library."""
    game(lambda render_mode: Toy(render=lambda: {}["screen"]))
    env = envs.make("pettingzoo:a_game", 1, device="cpu", render_mode="rgb_array")
    env.reset()
    with pytest.raises(
        envs.BrokenEnvironment, match=r"a_game failed in environment 0, .*: KeyError: 'screen'"
    ):
        env.render()
    game(lambda render_mode: Toy(render=lambda: None))
    with pytest.raises(envs.BrokenEnvironment, match="a_game draws no picture"):
        envs.make("pettingzoo:a_game", 1, device="cpu", render_mode="rgb_array").render()


def test_one_that_cannot_be_closed_leaves_none_open(game):
    """Else windows and processes of the others stay until the run ends."""
    made = []

    def make():
        made.append(Toy(leaves=LONG))
        return made[-1]

    game(make)
    env = envs.make("pettingzoo:a_game", 4, device="cpu")
    env.reset()
    made[1].close = lambda: {}["window"]
    with pytest.raises(envs.BrokenEnvironment, match=r"failed in environment 1, .*: KeyError: 'window'"):
        env.close()
    assert [toy.closed for toy in made] == [True, False, True, True]
    made[0].closed = False
    env.close()
    assert not made[0].closed  # none is closed twice


@pytest.mark.parametrize(
    ("third", "sentence"),
    [
        (lambda: {}["board"], "a_game cannot be made: KeyError: 'board'"),
        (lambda: Toy(leaves=((1, "truncated"),)), "makes unequal environments"),
        (lambda: Toy(action_space=None), "does not tell its agents' spaces"),
    ],
)
def test_one_that_cannot_be_made_leaves_none_open(game, third, sentence):
    """Else every attempt to make them leaves windows and processes behind."""
    made = []

    def make():
        made.append(third() if len(made) == 2 else Toy(leaves=LONG))
        return made[-1]

    game(make)
    with pytest.raises(envs.BrokenEnvironment, match=sentence):
        envs.make("pettingzoo:a_game", 4, device="cpu")
    assert len(made) >= 2 and all(toy.closed for toy in made)


def test_robots_that_diverge_are_named(monkeypatch):
    """Else NaN of the physics is blamed on the learning rate."""
    env = envs.make("mamujoco/Hopper-3x1", 3, seed=0, device="cpu", threads=1)
    env.reset()
    robots = env.unwrapped
    still = torch.zeros(3, 3, 1)
    for _ in range(4):
        env.step(still)
    measure, flat = robots._measure, robots._flat

    def diverged():
        measure()
        flat[2, 4] = np.nan  # the foot's joint, which agent 0 is too far away to see

    index = robots._index.copy()
    first = next(i for i in range(3) if 4 in index[i])
    monkeypatch.setattr(robots, "_measure", diverged)
    told = f"mamujoco/Hopper-3x1 has diverged: what agent {first} sees is not .*environment 2, step 5 of"
    with pytest.raises(envs.BrokenEnvironment, match=told):
        env.step(still)
    monkeypatch.setattr(robots, "_measure", measure)
    env.reset()
    monkeypatch.setattr(robots, "_terms", lambda *_: {"reward_forward": np.array([0.0, np.inf, 0.0])})
    with pytest.raises(envs.BrokenEnvironment, match=r"reward of all agents is not finite .* 1, step 1 of"):
        env.step(still)


def test_a_game_that_keeps_failing_is_a_sentence(make, machine):
    """Scripts end with a BrokenEnvironment's sentence, and with a traceback of all else."""
    env = AgentsFirst(make("3m", 1))
    with pytest.raises(envs.BrokenEnvironment, match=r"reset\(\) before the first step"):
        env.step(torch.zeros(3, 1, dtype=torch.int64))
    _, infos = env.reset()
    env.env.close()
    with pytest.raises(envs.BrokenEnvironment, match="environment is closed"):
        env.step(infos["action_mask"].int().argmax(-1))


def test_what_is_no_picture_is_refused():
    """Else a picture of shares from 0 to 1 is black, and one of four channels breaks the film."""
    grey, floats = np.zeros((4, 6), np.uint8), np.zeros((4, 6, 3))
    for wrong in (
        None,
        grey,
        floats,
        np.zeros((4, 6, 4), int),
        np.full((4, 6, 3), 256),
        np.zeros((0, 6, 3), int),
    ):
        make = functools.partial(Toy, render=lambda wrong=wrong: wrong)
        env = ParallelVectorEnv(lambda render_mode, make=make: make(), render_mode="rgb_array")
        with pytest.raises(
            envs.BrokenEnvironment, match=r"toy draws no picture .* \(H, W, 3\) of whole numbers"
        ):
            env.render()


def test_a_reset_that_failed_leaves_nothing_to_be_played():
    """Else the next step plays what was left of the episodes before, some of them anew, and some not."""
    env = ParallelVectorEnv(Toy, 2)
    env.reset()
    env.envs[1].reset = lambda seed: 1 // 0
    with pytest.raises(envs.BrokenEnvironment, match="ZeroDivisionError"):
        env.reset()
    with pytest.raises(RuntimeError, match=r"Call reset\(\)"):
        env.step(np.zeros((2, 2), int))
    del env.envs[1].reset
    with pytest.raises(ValueError, match="seed must be"):
        env.reset(seed=-1)
    env.reset()
    with pytest.raises(ValueError, match="seed must be"):  # which has begun nothing, and ended nothing
        env.reset(seed=-1)
    env.step(np.zeros((2, 2), int))


def test_padding_of_real_actions_may_hold_anything():
    """Else a learner that leaves the padding unset is refused here, and played on MuJoCo's robots."""
    env, twin = (ParallelVectorEnv(Reach) for _ in range(2))
    env.reset()
    twin.reset()
    actions = np.full((1, 2, 2), 0.5)
    odd = actions.copy()
    odd[0, 0, 1] = np.nan
    assert np.array_equal(env.step(odd)[0], twin.step(actions)[0])
    for one, other in zip(env.envs[0].played, twin.envs[0].played, strict=True):
        assert all(np.array_equal(one[agent], other[agent]) for agent in one)
    odd[0, 1, 1] = np.nan
    with pytest.raises(ValueError, match="agent 1 in environment 0 is not finite"):
        env.step(odd)


def test_the_documented_wrapper_of_tuple_spaces_plays(tmp_path, monkeypatch):
    """docs/third-party.md: a module of one's own is enough."""
    page = (Path(envs.__file__).parents[1] / "docs" / "third-party.md").read_text()
    teams, _ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "teams.py").write_text(teams)
    monkeypatch.syspath_prepend(tmp_path)

    class Pair(gym.Env):
        """Ends after three steps."""

        observation_space = gym.spaces.Tuple([gym.spaces.Box(0, 9, (1,), np.float32)] * 2)
        action_space = gym.spaces.Tuple([gym.spaces.Discrete(2)] * 2)

        def reset(self, seed=None, options=None):
            self.steps = 0
            return (np.zeros(1, np.float32),) * 2, {}

        def step(self, actions):
            self.steps += 1
            seen = np.full(1, self.steps, np.float32)
            return (seen, seen), [1.0, 1.0], self.steps == 3, False, {}

    monkeypatch.setitem(gym.registry, "pair-v0", gym.envs.registration.EnvSpec("pair-v0", Pair))
    env = envs.make("pettingzoo:teams", 2, env_kwargs={"name": "pair-v0"})
    try:
        env.reset()
        ends = [env.step(np.zeros((2, 2), int))[2].tolist() for _ in range(6)]
    finally:
        sys.modules.pop("teams", None)
    assert ends == [[False] * 2, [False] * 2, [True] * 2] * 2
