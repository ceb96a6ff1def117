"""What all families of environments have in common, and which of their files may import which."""

import ast
import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest

import envs
from envs.base import TeamVectorEnv, identity
from envs.pettingzoo import ParallelVectorEnv
from tests.standin.toys import Reach, Toy

FOLDER = Path(envs.__file__).parent
E = 5
LEAVES = ((2, "truncated"), (5, "truncated"))
FAMILIES = {
    "smac": lambda: envs.make("smac/3m", E, seed=1, backend="embedded"),
    "last action": lambda: envs.make("smac/3m", E, seed=1, backend="embedded", last_action=True),
    "mpe": lambda: envs.make("mpe/line_control", E, seed=1),
    "tables": lambda: envs.make("matrix/stochastic", E, num_states=4, num_agents=3, num_actions=2),
    "matrix": lambda: envs.make("matrix/2", E),
    "mamujoco": lambda: envs.make("mamujoco/Humanoid-9|8", E, seed=1, threads=1),
    "pettingzoo": lambda: ParallelVectorEnv(functools.partial(Toy, leaves=LEAVES), E),
    "pettingzoo, real": lambda: ParallelVectorEnv(Reach, E),
}
# discrete, restorable, cheap_copies, exact, wins
ANSWERS = {
    "smac": (True, True, True, False, True),
    "last action": (True, True, True, False, True),
    "mpe": (True, True, True, False, False),
    "tables": (True, True, True, True, False),
    "matrix": (True, True, True, True, False),
    "mamujoco": (False, True, True, False, False),
    "pettingzoo": (True, False, False, False, False),
    "pettingzoo, real": (False, False, False, False, False),
}


def random_actions(env, infos, rng):
    """Available ones, or numbers within the bounds, 0 where those are padding."""
    mask = infos["action_mask"]
    if env.discrete:
        return (rng.random(mask.shape) * mask).argmax(-1)
    space = env.single_action_space
    return rng.uniform(space.low, space.high, mask.shape).astype(np.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_attributes_answer_what_a_caller_may_ask(family):
    """Else scripts guess what an environment can do from its name or its methods."""
    env = FAMILIES[family]()
    answers = env.discrete, env.restorable, env.cheap_copies, env.exact, env.wins
    assert answers == ANSWERS[family] and all(type(answer) is bool for answer in answers)
    assert env.exact == hasattr(env, "exact_return")
    assert env.episode_limit is None or env.episode_limit > 0
    assert envs.env_name(env) == "-".join(filter(None, [re.sub("[/:]", "-", env.env_id), env.label]))
    assert envs.describe(env)["backend"] == env.backend
    N, width = env.num_agents, (env.obs_dim, env.num_actions)
    assert env.single_observation_space.shape == (N, env.obs_dim)
    assert len(env.agent_obs_dims) == len(env.agent_act_dims) == N
    assert width == (max(env.agent_obs_dims), max(env.agent_act_dims))
    if env.discrete:
        assert env.single_action_space.nvec.tolist() == list(env.agent_act_dims)
    else:
        assert env.single_action_space.shape == (N, env.num_actions)


@pytest.mark.parametrize(
    ("env_id", "options", "told"),
    [
        ("smac/3m", {"reward_fix": True}, {"reward_fix": True}),
        ("mpe/line_control", {"episode_length": 50}, {"episode_length": 50}),
        (
            "mamujoco/Hopper",
            {"partition": [("thigh_joint",), ("leg_joint", "foot_joint")]},
            {"partition": [["thigh_joint"], ["leg_joint", "foot_joint"]]},
        ),
    ],
)
def test_what_a_user_has_changed_is_recorded(env_id, options, told):
    """Else runs of other rewards or agents are averaged; published runs, of defaults, hold no such key."""
    backend = {"backend": "embedded"} if env_id == "smac/3m" else {}
    about = envs.describe(envs.make(env_id, 1, **backend, **options))
    assert told.items() <= json.loads(json.dumps(about)).items()
    plain = "mamujoco/Hopper-3x1" if env_id == "mamujoco/Hopper" else env_id
    assert not told.keys() & envs.describe(envs.make(plain, 1, **backend)).keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_infos_are_the_same_in_all_families(family):
    """Else a learner that works with one family breaks on another."""
    env, rng = FAMILIES[family](), np.random.default_rng(0)
    N, A = env.num_agents, env.num_actions
    own = np.arange(A) < np.array(env.agent_act_dims)[:, None]
    wanted = {
        "action_mask": ((E, N, A), bool),
        "alive": ((E, N), bool),
        "final_obs": ((E, N, env.obs_dim), np.float32),
        "final_action_mask": ((E, N, A), bool),
        "final_alive": ((E, N), bool),
        "_final_obs": ((E,), bool),
        "_episode": ((E,), bool),
    } | ({"battle_won": ((E,), bool)} if env.wins else {})
    _, infos = env.reset()
    ended, ends = np.zeros(E, bool), 0
    for _ in range(60):
        assert {name: (infos[name].shape, infos[name].dtype) for name in wanted} == wanted
        assert env.wins == ("battle_won" in infos)
        assert not (infos["action_mask"] & ~own).any() and infos["action_mask"].any(-1).all()
        if not env.discrete:
            assert (infos["action_mask"] == own).all()
        assert (infos["_final_obs"] == ended).all()
        for name in ("final_obs", "final_action_mask", "final_alive"):
            assert not infos[name][~ended].any()
        assert not (infos["final_action_mask"] & ~own).any()
        assert infos["final_action_mask"][ended].any(-1).all()
        if not env.wins and "pettingzoo" not in family:
            assert (infos["final_action_mask"][ended] == own).all()
        # In all of these games who is alive sees something.
        assert (infos["final_alive"] <= infos["final_obs"].any(-1)).all()
        _, _, terminated, truncated, infos = env.step(random_actions(env, infos, rng))
        ended = terminated | truncated
        ends += ended.sum()
    assert ends


@pytest.mark.parametrize("family", FAMILIES)
def test_random_actions_can_be_played_and_change_no_episode(family):
    """Else a first try of a family ends in an error, or drawing an action without playing it matters."""
    env, twin, other = (FAMILIES[family]() for _ in range(3))
    for one in (env, twin, other):
        one.reset(seed=3)
    for _ in range(20):
        actions = env.unwrapped.sample_actions()
        assert np.array_equal(actions, twin.unwrapped.sample_actions())
        assert actions.shape[:2] == (E, env.num_agents) and env.action_space.contains(actions)
        seen = [one.step(actions)[0] for one in (env, twin, other)]
        assert np.array_equal(seen[0], seen[1]) and np.array_equal(seen[0], seen[2])
    assert len(np.unique(actions)) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_what_needs_a_reset_says_so(family):
    """Else action 0 of everyone, which SMAC leaves to the dead, is handed out as one that can be played, or a
    state is saved of episodes that never began."""
    env = FAMILIES[family]()
    for early in (env.unwrapped.sample_actions, env.get_state, lambda: env.step(env.action_space.sample())):
        with pytest.raises(
            RuntimeError, match=r"^Call reset\(\) before the first step, and after a step that"
        ):
            early()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_of_other_types_is_refused(family):
    """Else a list from a file of JSON, or None, ends in an AttributeError; nothing has changed then."""
    env = FAMILIES[family]()
    env.reset()
    before = env.get_state()
    lists = {name: array.tolist() for name, array in before.items()}
    for wrong in (None, [], {}, lists, *(before | {name: None} for name in before)):
        with pytest.raises(ValueError, match=f"not one of {E} environments of {re.escape(env.env_id)}: '"):
            env.set_state(wrong)
    assert all(np.array_equal(before[name], now) for name, now in env.get_state().items())


MPE = {"num_agents": 2, "num_envs": 2}
SMAC = {"backend": "embedded"}
TWINS = [
    ("mpe/simple_spread", "mpe/line_control", MPE, MPE),
    ("mpe/line_control", "mpe/line_control", MPE, MPE | {"variant": "mpe2"}),
    ("mpe/line_control", "mpe/line_control", MPE, MPE | {"vision": None}),
    ("mpe/line_control", "mpe/line_control", MPE, MPE | {"episode_length": 50}),
    ("mpe/line_control", "mpe/line_control", MPE | {"episode_length": 50}, MPE),
    ("smac/3m", "smac/3m", SMAC, SMAC | {"reward_fix": True}),
    ("matrix/1", "matrix/2", {}, {}),
    ("matrix/stochastic", "matrix/stochastic", *({"num_states": 3, "game_seed": k} for k in (0, 1))),
    ("mamujoco/HalfCheetah-3x2", "mamujoco/Walker2d-3x2", {}, {}),
    ("mamujoco/Humanoid-9|8", "mamujoco/HumanoidStandup-9|8", {}, {}),
    ("mamujoco/Hopper-3x1", "mamujoco/Hopper-3x1", {}, {"version": "v4"}),
]


@pytest.mark.parametrize(("one", "another", "of_one", "of_another"), TWINS)
def test_a_state_of_another_task_of_the_same_size_is_refused(one, another, of_one, of_another):
    """Else a cheetah goes on as a walker: the arrays fit, and nobody is told."""
    made = [
        envs.make(env_id, **({"num_envs": 2} | options))
        for env_id, options in ((one, of_one), (another, of_another), (one, of_one))
    ]
    for env in made:
        env.reset()
    saved = made[0].get_state()
    told = (
        f"not one of 2 environments of {re.escape(another)} with these options: it was saved of another task"
    )
    with pytest.raises(ValueError, match=told):
        made[1].set_state(saved)
    made[2].set_state(saved)
    made[2].set_state({name: array for name, array in saved.items() if name != "task"})  # of an older version
    assert made[2].get_state().keys() == saved.keys()


def test_states_of_the_usual_settings_from_before_go_on():
    """Else runs that were stopped cannot be resumed: what tells options apart was added to their states."""
    mpe = envs.make("mpe/line_control", 2)
    mpe.reset()
    assert mpe.get_state()["task"] == identity("paper", mpe._rules)
    smac = envs.make("smac/3m", 2, backend="embedded")
    smac.reset()
    smac.set_state({name: array for name, array in smac.get_state().items() if name != "task"})


DRAWN = {
    "smac/3m": {"backend": "embedded"},
    "mpe/line_control": {},
    "matrix/1": {},
    "pettingzoo:tests.standin.toys": {},
}


@pytest.mark.parametrize("env_id", DRAWN)
def test_only_environments_that_there_are_can_be_drawn(env_id):
    """Else render(-1) draws some other battle than asked for in one family, and fails in another."""
    env = envs.make(env_id, 2, render_mode="rgb_array", **DRAWN[env_id])
    env.reset()
    for wrong in (-1, 2, 1.0, None, True, "0"):
        with pytest.raises(IndexError, match=r"render\(i\) draws one of 2 environments, i from 0 to 1; got "):
            env.render(wrong)
    assert env.render(np.int64(1)).dtype == np.uint8


@pytest.mark.parametrize("family", FAMILIES)
def test_seeds_and_options_that_mean_something_else_are_refused(family):
    """Else a list of seeds is taken for one, what a caller asked for is ignored, or a run cannot be saved."""
    env, twin = FAMILIES[family](), FAMILIES[family]()
    env.reset(seed=2**63 - 1)
    assert env.unwrapped.np_random_seed == 2**63 - 1
    before = env.get_state()
    for wrong in (-1, 2**63, [1] * E, 1.0, True, "1", np.float64(3), np.array([3])):
        with pytest.raises(ValueError, match=r"seed must be one whole number from 0 to 2\*\*63 - 1") as error:
            env.reset(seed=wrong)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"reset\(\) begins new episodes everywhere and takes no options"):
        env.reset(seed=1, options={"reset_mask": np.ones(E, bool)})
    assert all(np.array_equal(before[name], now) for name, now in env.get_state().items())
    first = env.reset(seed=np.int64(7), options={})[0]
    assert np.array_equal(first, twin.reset(seed=7, options=None)[0])
    assert env.unwrapped.np_random_seed == 7


@pytest.mark.parametrize(
    "env_id", ["smac/3m", "mpe/line_control", "matrix/stochastic", "mamujoco/Hopper-3x1"]
)
def test_an_environment_is_not_made_with_a_seed_that_is_none(env_id):
    """Else the error is NumPy's, of a place that nobody knows."""
    options = {"backend": "embedded"} if env_id == "smac/3m" else {}
    options |= {"num_states": 4, "num_agents": 2} if env_id == "matrix/stochastic" else {}
    for wrong in (-1, 2**63, None, 0.5):
        with pytest.raises(ValueError, match=r"seed must be one whole number from 0 to 2\*\*63 - 1"):
            envs.make(env_id, 1, seed=wrong, **options)
    assert envs.make(env_id, 1, seed=np.uint32(3), **options).unwrapped.np_random_seed == 3
    with pytest.raises(ValueError, match="seed must be one whole number"):
        ParallelVectorEnv(Toy, seed=-1)


def test_the_dead_are_told_from_the_living_where_a_battle_ended():
    """Else values are bootstrapped for the dead, or the dead are told what they have not done."""
    env = envs.make("smac/2s3z", 32, seed=2, backend="embedded")
    env.reset()
    dead = living = 0
    for _ in range(130):
        before = env.get_state()["units"]
        _, _, terminated, truncated, infos = env.step_scripted()
        ended = terminated | truncated
        # Whoever is alive sees its own health, the dead see zeros; nobody rises.
        assert np.array_equal(infos["final_alive"], infos["final_obs"].any(-1))
        assert not (infos["final_alive"] & ended[:, None] & (before[:, 0, :5] <= 0)).any()
        dead += (~infos["final_alive"][ended]).sum()
        living += infos["final_alive"].sum()
    assert dead and living


def test_choices_at_the_end_are_those_of_the_last_observation():
    """Else a value of what a time limit cut off is the maximum over actions that nobody could play."""
    env, cut = (envs.make("smac/2s3z", 8, seed=2, backend="embedded") for _ in range(2))
    env.reset()
    dead = hits = 0
    for _ in range(90):
        cut.episode_limit = env.get_state()["length"] + 1  # of each battle: time is up after this step
        cut.set_state(env.get_state())
        actions = env.sample_actions()
        *_, terminated, _, going_on = env.step(actions)
        *_, truncated, infos = cut.step(actions)
        final, living = infos["final_action_mask"], infos["final_alive"]
        assert np.array_equal(truncated, ~terminated)
        assert np.array_equal(final[truncated], going_on["action_mask"][truncated])
        # SMAC shows where one can go first of all, and leaves the no-op to the dead alone.
        assert np.array_equal(final[living][:, 2:6], infos["final_obs"][living][:, :4] > 0)
        assert (final[~living] == (np.arange(env.num_actions) == 0)).all()
        dead, hits = dead + (~living[terminated]).sum(), hits + final[..., 6:].sum()
    assert dead and hits


def test_every_environment_lives_to_the_end_where_nobody_dies():
    """Else a truncated episode of robots or particles is bootstrapped with nothing."""
    for family in ("mpe", "tables", "mamujoco"):
        env, rng = FAMILIES[family](), np.random.default_rng(0)
        _, infos = env.reset()
        for _ in range(60):
            *_, infos = env.step(random_actions(env, infos, rng))
            assert np.array_equal(infos["final_alive"], np.tile(infos["_episode"][:, None], env.num_agents))


def imports(path, late=True):
    """Modules of this repository that a file imports, as dotted names; late: in its functions, too."""
    found, tree = set(), ast.parse(path.read_text())
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: write the whole name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {path.stem for path in FOLDER.parent.iterdir()}
    return {name for name in found if name.split(".")[0] in ours}


def test_no_import_runs_upwards():
    """Else a change in one family breaks another, and a circle of imports breaks all."""
    files = {path: imports(path) for path in FOLDER.rglob("*.py")}
    assert len(files) > 20
    for path, found in files.items():
        place = path.relative_to(FOLDER).parts
        if place in (("base.py",), ("compiled.py",), ("video.py",)):
            allowed = ()
        elif place in (("wrappers.py",), ("options.py",)):
            allowed = ("envs.base.",)
        elif place == ("__init__.py",):
            allowed = ("envs.",)
        else:  # a family
            allowed = ("envs.base.", "envs.compiled.", f"envs.{place[0]}.")
        assert all(name.startswith(allowed) for name in found), f"{path} imports {found}"
    assert "envs.base.TeamVectorEnv" in files[FOLDER / "smac" / "env.py"]  # the search does find them


def test_the_base_of_all_families_is_one():
    """Else an attribute is added to the contract and a family does not have it."""
    for family in FAMILIES:
        assert isinstance(FAMILIES[family]().unwrapped, TeamVectorEnv)
