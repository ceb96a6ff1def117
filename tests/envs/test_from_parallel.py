"""Any ParallelEnv of PettingZoo as a vector environment of ours: small ones that do everything odd."""

import functools
import itertools
import re

import gymnasium as gym
import numpy as np
import pytest

import envs
from envs.pettingzoo import ParallelVectorEnv
from tests.standin.toys import Reach, Toy

LINE = "pettingzoo:mpe2.simple_line_v1"


def toys(num_envs=1, seed=0, reward="shared", **changes):
    """A vector environment of Toys."""
    return ParallelVectorEnv(functools.partial(Toy, **changes), num_envs, seed, reward)


def available(rng, infos):
    """Random available actions (E, N)."""
    return (rng.random(infos["action_mask"].shape) * infos["action_mask"]).argmax(-1)


def test_rewards_that_differ_are_not_silently_merged():
    """Else one agent's reward, or a sum nobody asked for, is published as the team's."""
    with pytest.raises(ValueError, match=r'a0 1, a1 3\): give the option reward="sum" or reward="mean"'):
        env = toys(pay=(1.0, 3.0))
        env.reset()
        env.step([[0, 0]])
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        env.step([[0, 0]])
    for reward, expected in (("sum", [4, 4, 3]), ("mean", [2, 2, 1.5])):
        env = toys(reward=reward, pay=(1.0, 3.0), leaves=((2, "terminated"), (3, "terminated")))
        env.reset()
        assert [env.step([[0, 0]])[1][0] for _ in range(3)] == expected

    class Remembers(Toy):
        def step(self, actions):
            seen, rewards, *rest = super().step(actions)
            return seen, {agent: 0.0 for agent in self.possible_agents} | rewards, *rest

    env = ParallelVectorEnv(functools.partial(Remembers, leaves=((1, "terminated"), (3, "terminated"))))
    env.reset()
    assert [env.step([[0, 0]])[1][0] for _ in range(3)] == [
        1,
        1,
        1,
    ]  # who has left earns nothing: no conflict
    env = toys(pay=(0.3, 0.1 + 0.2))  # the same but for rounding
    env.reset()
    assert env.step([[0, 0]])[1][0] == np.float32(0.3)
    spread = envs.make("pettingzoo:mpe2.simple_spread_v3", 8, reward="shared")
    spread.reset()
    with pytest.raises(ValueError, match='reward="sum"'):  # local_ratio 0.5: who collides is fined alone
        for _ in range(1000):
            spread.step(spread.action_space.sample())


def test_unequal_agents_are_padded_and_masked():
    """Else agents of unequal sizes either do not fit or are offered actions that they do not have."""
    env = toys(2)
    assert env.agent_obs_dims == (2, 4) and env.agent_act_dims == (2, 3) and env.num_actions == 3
    assert env.single_observation_space.shape == (2, 4) and env.single_action_space.nvec.tolist() == [2, 3]
    obs, infos = env.reset()
    assert obs.shape == (2, 2, 4) and obs.dtype == np.float32 and env.observation_space.contains(obs)
    assert obs[0].tolist() == [[0, 0, 0, 0], [10, 10, 10, 10]]
    assert infos["action_mask"].tolist() == [[[True, True, False], [True, True, True]]] * 2
    env.step([[1, 2], [0, 1]])
    assert [env.envs[e].played[-1] for e in range(2)] == [{"a0": 8, "a1": 9}, {"a0": 7, "a1": 8}]  # start=7
    with pytest.raises(ValueError, match=r"Action 2 of agent 0 in environment 1 .* available are \[0, 1\]"):
        env.step([[0, 2], [2, 0]])
    assert len(env.envs[0].played) == 1  # nothing was played
    many = toys(64)
    many.reset()
    many.step(many.action_space.sample())  # what the space has can be played


@pytest.mark.parametrize(
    ("leaves", "terminates"),
    [
        (((2, "terminated"), (4, "terminated")), True),
        (((2, "terminated"), (4, "truncated")), False),
        (((2, "truncated"), (4, "terminated")), False),
        (((4, "truncated"), (4, "terminated")), False),
    ],
)
def test_agents_that_leave_early_wait_for_the_end_of_the_episode(leaves, terminates):
    """Else the dead are trained on, or a time limit is taken for an end that is worth nothing."""
    env = toys(leaves=leaves)
    obs, infos = env.reset()
    for t in range(1, 9):
        was = infos["alive"][0].copy()
        obs, reward, terminated, truncated, infos = env.step(available(np.random.default_rng(t), infos))
        over = t % 4 == 0
        assert reward[0] == 1 and terminated[0] == (over and terminates)
        assert truncated[0] == (over and not terminates)
        assert infos["_final_obs"][0] == infos["_episode"][0] == over
        here = [over or t % 4 < leaf for leaf, _ in leaves]
        assert infos["alive"][0].tolist() == here
        time = t % 4  # 0: the next episode has begun
        assert obs[0, 0].tolist() == ([time, time, 0, 0] if here[0] else [0] * 4)
        assert obs[0, 1].tolist() == [time + 10] * 4
        if not here[0]:
            assert infos["action_mask"][0, 0].tolist() == [True, False, False]
            with pytest.raises(ValueError, match=r"Action 1 of agent 0 .* available are \[0\]"):
                env.step([[1, 0]])
        if over:
            assert infos["final_obs"][0].tolist() == [[4 * was[0]] * 2 + [0, 0], [14] * 4]
            # Who was terminated on the step that others were cut at has nothing to expect.
            lives = [terminates or kind == "truncated" for _, kind in leaves]
            assert infos["final_alive"][0].tolist() == [was[0] and lives[0], lives[1]]
            assert (infos["episode"]["r"][0], infos["episode"]["l"][0]) == (4, 4)
        else:
            assert not infos["final_obs"].any() and infos["episode"]["l"][0] == 0
            assert not infos["final_alive"].any()


def test_agents_may_join_late():
    """Else environments that spawn agents cannot be played."""
    env = toys(look=lambda agents: {a: np.ones((2, 1 + int(a[1]))) for a in agents})
    env.reset()
    env.envs[0].agents.remove("a1")
    alive = [env.step([[0, 0]])[4]["alive"][0].tolist()]
    env.envs[0].agents.append("a1")
    alive.append(env.step([[0, 0]])[4]["alive"][0].tolist())
    assert alive == [[True, False], [True, True]]


def test_who_was_alive_when_an_episode_ended():
    """Else a learner bootstraps for those who had left or died, or not for those who lived."""

    class Lingers(Toy):
        """Keeps naming an agent that has left among its agents, and says who is alive, where `tells`."""

        def step(self, actions):
            seen, rewards, ends, *rest, about = super().step(actions)
            ends |= {"a0": self.t >= 1}
            if self.t < 3:
                self.agents = list(self.possible_agents)
            return seen, rewards, ends, *rest, about | {"a1": {"alive": self.t < 2}} if self.tells else about

    for tells, expected in ((False, [False, True]), (True, [False, False])):
        env = ParallelVectorEnv(functools.partial(Lingers, tells=tells))
        env.reset()
        for step in (1, 2, 3):
            *_, infos = env.step([[0, 0]])
            assert infos["final_alive"][0].tolist() == (expected if step == 3 else [False, False])


def test_each_environment_ends_and_begins_on_its_own():
    """Else one environment's end is recorded for another, or cuts it short."""
    lasts = iter([2, 3])
    env = ParallelVectorEnv(lambda: Toy(leaves=((next(lasts), "truncated"),), pay=(1.0,)), 2)
    env.reset()
    for t in range(1, 13):
        obs, _, terminated, truncated, infos = env.step([[0], [0]])
        over = [t % 2 == 0, t % 3 == 0]
        assert truncated.tolist() == infos["_episode"].tolist() == over and not terminated.any()
        assert obs[:, 0, 0].tolist() == [t % 2, t % 3]
        assert infos["final_obs"][:, 0, 0].tolist() == [2 * over[0], 3 * over[1]]
        assert infos["episode"]["l"].tolist() == infos["episode"]["r"].tolist() == [2 * over[0], 3 * over[1]]


def test_each_episode_ends_in_its_own_way():
    """Else one time limit makes all later ends of that environment time limits."""

    class Alternates(Toy):
        def reset(self, seed=None, options=None):
            how = ("truncated", "terminated")[len(self.seeds) % 2]
            self.leaves = ((1, how), (1, how))
            return super().reset(seed)

    env = ParallelVectorEnv(Alternates)
    env.reset()
    assert [env.step([[0, 0]])[2][0] for _ in range(4)] == [False, True, False, True]


def test_the_episode_limit_truncates_what_has_not_ended_before():
    """Terminated at the limit itself stays terminated, and an agent that stays makes it truncated."""
    forever = (99, "terminated")
    for leaves, length, terminates in [
        ((forever, forever), 4, False),
        (((2, "terminated"), forever), 4, False),
        (((4, "terminated"), forever), 4, False),
        (((2, "terminated"), (4, "terminated")), 4, True),
        (((3, "terminated"), (3, "terminated")), 3, True),
    ]:
        env = ParallelVectorEnv(functools.partial(Toy, leaves=leaves), 2, episode_limit=np.int64(4))
        assert env.episode_limit == 4 and type(env.describe()["episode_limit"]) is int  # for args.json
        _, infos = env.reset()
        for episode in range(2):
            for t in range(1, length + 1):
                _, _, terminated, truncated, infos = env.step(np.zeros((2, 2), dtype=int))
                over = t == length
                assert (terminated == (over and terminates)).all(), (leaves, episode, t)
                assert (truncated == (over and not terminates)).all(), (leaves, episode, t)
            assert (infos["episode"]["l"] == length).all()
            if leaves[1] == forever:  # who is still there when time is up has a last observation
                assert (infos["final_obs"][:, 1] == 10 + length).all()
    for wrong in (0, -1, 2.5, "4", True):
        with pytest.raises(ValueError, match="episode_limit must be"):
            ParallelVectorEnv(Toy, 1, episode_limit=wrong)


def test_returned_arrays_are_not_written_again():
    """Else a rollout that keeps them without copying learns from later steps."""
    env = toys(2, leaves=((2, "terminated"), (3, "terminated")))
    begun = env.reset()
    steps = [begun] + [env.step(np.zeros((2, 2), int)) for _ in range(4)]
    assert [step[0][0, 1, 0] for step in steps] == [10, 11, 12, 10, 11]
    assert [bool(step[-1]["alive"][0, 0]) for step in steps] == [True, True, False, True, True]
    assert [step[-1]["action_mask"][0, 0].sum() for step in steps] == [2, 2, 1, 2, 2]


def test_agents_still_listed_after_their_end_have_left():
    """Environments that leave ended agents in `agents` would otherwise never end an episode."""

    class Keeps(Toy):
        def step(self, actions):
            out = super().step(actions)
            self.agents = list(self.possible_agents)
            return out

    env = ParallelVectorEnv(Keeps)
    _, infos = env.reset()
    ends = [env.step([[0, 0]])[2][0] for _ in range(6)]
    assert ends == [False, False, True] * 2


def test_action_masks_of_the_environment_are_kept():
    """Else an agent plays what its game forbids; masks come in observations or in infos."""

    class InInfos(Toy):
        def about(self, agents):
            return {agent: {"action_mask": self.mask(agent)} for agent in agents}

        def mask(self, agent):
            n = self.action_space(agent).n
            return np.roll(np.eye(n, dtype=np.int8)[0], self.t)

    class InObservations(InInfos):
        def observation_space(self, agent):
            mask = gym.spaces.Box(0, 1, (self.action_space(agent).n,), np.int8)
            return gym.spaces.Dict({"observation": super().observation_space(agent), "action_mask": mask})

        def look(self, agents):
            seen = super().look(agents)
            return {agent: {"observation": seen[agent], "action_mask": self.mask(agent)} for agent in seen}

        def about(self, agents):
            return {agent: {} for agent in agents}

    for kind in (InInfos, InObservations):
        env = ParallelVectorEnv(kind)
        obs, infos = env.reset()
        for t in range(1, 8):
            assert obs[0, 1, 0] == 10 + (t - 1) % 3
            obs, _, _, _, infos = env.step(infos["action_mask"].argmax(-1))
            now = t % 3
            expected, final = np.zeros((2, 2, 3), dtype=bool)
            expected[0, now % 2] = expected[1, now] = True
            final[0, 1] = final[1, 0] = now == 0  # the masks of step 3
            assert np.array_equal(infos["action_mask"][0], expected)
            assert np.array_equal(infos["final_action_mask"][0], final)
    for wrong in ([1, 1, 1, 1], [0, 0]):
        with pytest.raises(ValueError, match="action_mask of a0 of toy must hold 2 entries, one of them"):
            toys(about=lambda agents, mask=wrong: {a: {"action_mask": mask} for a in agents}).reset()


def test_what_may_be_done_at_the_end_of_an_episode():
    """Else what follows a time limit is valued by actions that an agent does not have, or by none."""

    def masks(zeros, dead):
        def about(agents):
            told = {
                agent: {"action_mask": np.zeros(2 + int(agent[1]))} if zeros() else {} for agent in agents
            }
            return told | ({"a1": told["a1"] | {"alive": False}} if dead else {})

        return about

    first, own = [True, False, False], [[True, True, False], [True, True, True]]
    late = ((3, "truncated"), (3, "truncated"))
    for leaves, zeros, dead, expected in [
        (late, False, False, own),
        (late, True, False, own),  # nothing can be done any more
        (late, True, True, [own[0], first]),
        (late, False, True, own),
        (((2, "terminated"), late[1]), False, False, [first, own[1]]),
        (((3, "terminated"), late[1]), False, False, [first, own[1]]),
    ]:
        toy = Toy(leaves=leaves)
        toy.about = masks(lambda zeros=zeros, toy=toy: zeros and toy.t == 3, dead)
        env = ParallelVectorEnv(lambda toy=toy: toy)
        env.reset()
        for step in (1, 2, 3):
            final = env.step([[0, 0]])[-1]["final_action_mask"][0]
            assert final.tolist() == expected if step == 3 else not final.any()
    wide = toys(about=lambda agents: {})
    wide.reset()
    wide.envs[0].about = lambda agents: {"a0": {"action_mask": [1, 1, 1, 1]}} if wide.envs[0].t == 3 else {}
    for _ in range(2):
        wide.step([[0, 0]])
    with pytest.raises(envs.BrokenEnvironment, match=r"action_mask of a0 .* 2 entries.*step 3 of episode 1"):
        wide.step([[0, 0]])
    real = ParallelVectorEnv(functools.partial(Reach, leaves=((2, "terminated"), late[1])))
    real.reset()
    for _ in range(3):
        infos = real.step(np.zeros((1, 2, 2)))[-1]
    assert infos["final_action_mask"].tolist() == [[[True, False], [True, True]]]


def test_continuous_actions_reach_each_agent_in_its_own_shape_and_range():
    """Else padding or out-of-range noise of a Gaussian policy reaches the game."""
    env = ParallelVectorEnv(Reach, 2)
    assert env.single_action_space.shape == (2, 2) and env.agent_act_dims == (1, 2) and env.num_actions == 2
    assert env.single_action_space.low.tolist() == [[-1, 0], [-1, -1]]
    assert env.single_action_space.high.tolist() == [[1, 0], [1, 1]]
    _, infos = env.reset()
    assert infos["action_mask"].tolist() == [[[True, False], [True, True]]] * 2
    actions = np.array([[[5.0, 9.0], [0.75, -7.0]], [[-0.5, 0.0], [0.0, 0.25]]], dtype=np.float32)
    env.step(actions)
    assert env.envs[0].played[0]["a0"].tolist() == [[1.0]]
    assert env.envs[0].played[0]["a1"].tolist() == [[1.5, -2.0]]
    assert env.envs[1].played[0]["a0"].tolist() == [[-0.5]]
    assert env.envs[1].played[0]["a1"].tolist() == [[0.0, 0.5]]
    actions[1, 0, 0] = np.nan
    with pytest.raises(ValueError, match="agent 0 in environment 1 is not finite"):
        env.step(actions)
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\)"):
        env.step(actions[:1])


def test_imported_environments_do_not_depend_on_how_many_there_are():
    """Results must not change with num_envs, nor from one run to the next."""
    many, few = toys(3, seed=4, noise=1.0), toys(2, seed=4, noise=1.0)
    first = many.reset()[0]
    assert np.array_equal(first[:2], few.reset()[0]) and (first[0] != first[1]).any()
    for _ in range(7):
        assert np.array_equal(many.step(np.zeros((3, 2), int))[0][:2], few.step(np.zeros((2, 2), int))[0])
    seeds = [seed for env in many.envs for seed in env.seeds]
    assert len(set(seeds)) == len(seeds) == 9  # three episodes each
    assert np.array_equal(many.reset(seed=4)[0], first)
    assert (many.reset()[0] != first).any() and (many.reset(seed=5)[0] != first).any()


def test_what_cannot_be_saved_says_so_and_goes_on_reproducibly():
    """A resumed run must know that its episodes are new, and be the same whenever it is resumed."""
    env = toys(2, seed=4, noise=1.0)
    env.reset()
    for _ in range(4):
        env.step(np.zeros((2, 2), int))
    state = env.get_state()
    assert {key: array.tolist() for key, array in state.items()} == {"seed": 4, "episodes": [2, 2]}
    env.step(np.zeros((2, 2), int))
    after = []
    for other in (env, toys(2, seed=0, noise=1.0)):
        with pytest.warns(UserWarning, match="cannot continue saved episodes: new ones have begun"):
            other.set_state(state)
        steps = [other.step(np.zeros((2, 2), int)) for _ in range(5)]
        after.append(np.stack([step[0] for step in steps]))
        assert [step[2][0] for step in steps] == [False, False, True, False, False]  # from their beginning
    assert np.array_equal(*after)
    assert env.envs[0].seeds[-2:] == toys_seeds(4, 4)[2:]
    for wrong in ({}, {**state, "episodes": np.zeros(3, int)}, {**state, "episodes": np.array([-1, 0])}):
        with pytest.raises(ValueError, match="not one of 2 environments of pettingzoo:toy"):
            env.set_state(wrong)


def toys_seeds(seed, episodes):
    """The seeds of environment 0's first episodes."""
    env = toys(seed=seed)
    for _ in range(episodes):
        env.reset()
    return env.envs[0].seeds


def test_observations_of_a_reset_stay_true_when_a_state_is_set_after_it():
    """Scripts resume by reset(), set_state(), step(): else they act on observations of another episode."""
    env = toys(seed=4, noise=1.0)
    env.reset()
    with pytest.warns(UserWarning, match="cannot continue"):
        env.set_state({"seed": np.array(4), "episodes": np.array([6])})
    assert len(env.envs[0].seeds) == 1
    for _ in range(3):
        env.step([[0, 0]])
    assert env.envs[0].seeds[1] == toys_seeds(4, 7)[6]
    env.reset()
    for episodes in (6, 2):  # the second has no fresh episode to keep
        env.set_state({"seed": np.array(4), "episodes": np.array([episodes])})
    assert env.envs[0].seeds[-1] == toys_seeds(4, 3)[2]


def test_imported_environments_are_drawn_and_closed():
    """Else --capture-video fails after training, or windows and processes stay."""
    env = envs.make(LINE, 2, render_mode="rgb_array")
    env.reset()
    first = env.render(1)
    assert first.dtype == np.uint8 and first.ndim == 3 and first.shape[2] == 3 and first.std() > 0
    for _ in range(10):
        env.step(np.full((2, 4), 2))
    assert (env.render(1) != first).any()
    env.close()
    env = ParallelVectorEnv(lambda render_mode: Toy(), 2, render_mode="rgb_array")
    env.reset()
    assert env.render(1).shape == (4, 6, 3)
    env.close()
    assert [toy.closed for toy in env.envs] == [True, True]
    with pytest.raises(ValueError, match='render_mode="rgb_array"'):
        toys().render()
    with pytest.raises(ValueError, match="draws no picture"):
        ParallelVectorEnv(lambda render_mode: Toy(render=lambda: None), render_mode="rgb_array").render()


@pytest.mark.parametrize(
    ("path", "error", "sentence"),
    [
        (
            "mpe2.simple_spred_v3",
            ValueError,
            "no module 'mpe2.simple_spred_v3'; the nearest are mpe2.simple_spread_v3",
        ),
        ("nowhere.at_all", ValueError, "no module 'nowhere.at_all'; install its package"),
        ("", ValueError, "no module ''"),
        ("json", ValueError, r"json has no parallel_env\(\): name a module"),
        ("pettingzoo.classic.tictactoe_v3", ValueError, r"only env, whose agents act in turn \(AEC\)"),
        ("pettingzoo.mpe.simple_spread_v3", ImportError, "cannot be imported: .*mpe2"),
    ],
)
def test_modules_that_do_not_fit_are_refused_with_a_sentence(path, error, sentence):
    """Else a typing error in an id ends in a traceback of the import system."""
    with pytest.raises(error, match=sentence):
        envs.make(f"pettingzoo:{path}", 1)


def test_a_missing_dependency_is_named(tmp_path, monkeypatch):
    """Else 'No module named ...' reads as if the environment itself were missing."""
    (tmp_path / "needy_game.py").write_text("import a_package_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="needy_game needs 'a_package_that_is_missing'"):
        envs.make("pettingzoo:needy_game", 1)


def spaces(**kinds):
    """A change of Toy: the given observation or action space for a1."""
    return {
        f"{kind}_space": lambda agent, kind=kind, space=space: (
            space if agent == "a1" else getattr(Toy(), f"{kind}_space")(agent)
        )
        for kind, space in kinds.items()
    }


BOX = gym.spaces.Box(0, 1, (3,))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            spaces(observation=gym.spaces.Dict({"map": BOX})),
            "a1 of toy observes a Dict of map: .*'observation'",
        ),
        (spaces(observation=gym.spaces.Discrete(4)), r"a1 of toy observes Discrete\(4\): wrap it"),
        (
            spaces(observation=gym.spaces.Dict({"observation": gym.spaces.Discrete(4)})),
            "a1 of toy observes Disc",
        ),
        (spaces(action=BOX), r"a0 of toy acts in Discrete.* but a1 in Box.*all actions must be Discrete"),
        (spaces(action=gym.spaces.MultiDiscrete([2, 2])), "only Discrete and float Box actions fit"),
        (spaces(action=gym.spaces.Box(0, 3, (2,), np.int64)), "only Discrete and float Box actions fit"),
        ({"possible_agents": []}, "no agents in possible_agents"),
        (spaces(observation=BOX), "a1 of toy sees 4 numbers, but its observation space has 3"),
        ({"look": lambda agents: {"a0": np.zeros((2, 1))}}, "no observation of a1, which is in agents"),
    ],
)
def test_environments_that_do_not_fit_are_refused_with_a_sentence(changes, sentence):
    """Else the user of an odd environment debugs our code instead of reading what to change."""
    with pytest.raises(ValueError, match=sentence):
        toys(**changes).reset()


def test_what_is_not_a_parallel_env_is_refused_with_a_sentence():
    """Else a wrong argument shows as an AttributeError deep inside."""
    from pettingzoo.classic import tictactoe_v3

    class Nobody(Toy):
        def reset(self, seed=None, options=None):
            super().reset(seed)
            self.agents = []
            return {}, {}

    one, begun = Toy(), toys()
    begun.reset()
    makers = itertools.cycle([Toy, functools.partial(Toy, leaves=((1, "terminated"),), pay=(1.0,))])
    wrong = {
        "is an AECEnv, whose agents act in turn": lambda: ParallelVectorEnv(tictactoe_v3.env),
        "a ParallelEnv has possible_agents, NoneType has not": lambda: ParallelVectorEnv(lambda: None),
        "make a new environment at each call": lambda: ParallelVectorEnv(lambda: one, 2),
        "makes unequal environments": lambda: ParallelVectorEnv(lambda: next(makers)(), 2),
        "cannot be made with env_kwargs {'colour': 3}": lambda: envs.make(LINE, 1, env_kwargs={"colour": 3}),
        "env_kwargs must be a dict": lambda: ParallelVectorEnv(Toy, env_kwargs=[1]),
        'reward must be "shared", "sum" or "mean"': lambda: toys(reward="max"),
        "num_envs must be at least 1": lambda: toys(0),
        "render_mode must be None": lambda: ParallelVectorEnv(Toy, render_mode="human"),
        "no option 'rewards'; did you mean 'reward'": lambda: envs.make(LINE, 1, rewards="sum"),
        "nearest ids are pettingzoo:mpe2": lambda: envs.make(LINE.replace(":", "/"), 1),
        "has no agents after reset": lambda: ParallelVectorEnv(Nobody).reset(),
        "must be integers of shape (1, 2)": lambda: begun.step([[0.5, 0.5]]),
    }
    for sentence, make in wrong.items():
        with pytest.raises(ValueError, match=re.escape(sentence)):
            make()
