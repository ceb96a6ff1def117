"""Options as a command line has them, and whether they are of the type that an environment takes."""

import importlib.metadata

import numpy as np
import pytest

import envs

LINE = "pettingzoo:mpe2.simple_line_v1"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("False", False),
        ("false", False),
        ("True", True),
        ("None", None),
        ("null", None),
        ("3", 3),
        ("-0.5", -0.5),
        ("1e3", 1000.0),
        ("1_000", 1000),
        ("mean", "mean"),
        ("/a/b=c", "/a/b=c"),
        ("", ""),
        ('"4.10"', "4.10"),
        ("'two words'", "two words"),
        ("[1, 2.5]", [1, 2.5]),
        ("(1, 2)", (1, 2)),
        ("[['a'], ['b', 'c']]", [["a"], ["b", "c"]]),
        ('{"N": 3, "dim": null}', {"N": 3, "dim": None}),
        ("{'N': 3, 'loud': True}", {"N": 3, "loud": True}),
    ],
)
def test_options_read_like_python_and_json(text, value):
    """Else last_action=False is a text, which is true."""
    (found,) = envs.parse_options([f"option={text}"]).values()
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        (["reward"], "name=value pairs.*'reward'"),
        (["=3"], "name=value pairs"),
        (["a=[1,"], r"option a cannot be read: '\[1,' is neither Python nor JSON"),
        (["a={True: null}"], "option a cannot be read"),
        (["a=1", "a=2"], "option a is given twice, as 1 and '2'"),
        (["seed=3"], "seed is no option of an environment"),
        (["device=cuda"], "device is no option"),
    ],
)
def test_options_that_cannot_be_read_are_refused(pairs, sentence):
    """Else half a list is taken for a text, or a script's own flag ends in a traceback."""
    with pytest.raises(envs.BrokenEnvironment, match=sentence):
        envs.parse_options(pairs)


@pytest.mark.parametrize(
    ("env_id", "option", "takes"),
    [
        ("smac/3m", "last_action=no", "True or False; got 'no'"),
        ("smac/3m", "last_action=1", "True or False; got 1"),
        ("smac/3m", "backend=3", "text; got 3"),
        ("smac/3m", "reward_fix=nope", "True or False; got 'nope'"),
        ("mpe/line_control", "vision=none", "a number or None; got 'none'"),
        ("mpe/line_control", "num_agents=3.0", "a whole number; got 3.0"),
        ("mpe/line_control", "num_agents=True", "a whole number; got True"),
        ("mpe/line_control", "num_agents=1000000000000000000000", "a whole number; got 1000"),
        ("mpe/line_control", "collision_penalty=NaN", "a number; got nan"),
        ("mpe/line_control", "variant=None", "text; got None"),
        ("matrix/stochastic", "num_states='4'", "a whole number; got '4'"),
        ("matrix/1", "payoff=[1, 2, 3]", r"a list of 4 numbers or None; got \[1, 2, 3\]"),
        ("matrix/1", "payoff=1 2 3 4", "a list of 4 numbers or None; got '1 2 3 4'"),
        ("mamujoco/Hopper", "partition=['leg_joint']", "a list of lists of text or None"),
        ("mamujoco/Hopper-3x1", "threads=all", "a whole number or None; got 'all'"),
        (LINE, "env_kwargs=N", "a dict of keywords or None; got 'N'"),
        (LINE, "env_kwargs={1: 2}", "a dict of keywords or None; got {1: 2}"),
        (LINE, "episode_limit=2.5", "a whole number or None; got 2.5"),
        (LINE, "reward=[]", r"text; got \[\]"),
    ],
)
def test_every_option_is_of_its_type(env_id, option, takes):
    """Else a wrong value is taken for another, or breaks the environment far from where it was given."""
    options = envs.parse_options([option])
    with pytest.raises(ValueError, match=f"The option {option.split('=')[0]} of {env_id} takes {takes}"):
        envs.make(env_id, 1, **({"backend": "embedded"} if env_id == "smac/3m" else {}) | options)


def test_the_game_version_is_text(machine):
    """Else 4.10 is the number 4.1, a version that was never made."""
    options = envs.parse_options(["game_version=4.10"])
    told = r"game_version of smac/3m takes text or None; got 4.1; .* game_version='\"...\"'"
    with pytest.raises(ValueError, match=told):
        envs.make("smac/3m", 1, backend="starcraft", **options)


def test_options_that_fit_are_taken():
    """Else the check refuses what is right."""
    makes = {
        "mpe/line_control": {"vision": None, "num_agents": np.int64(3), "collision_penalty": 1},
        "matrix/1": {"payoff": np.array([1.0, 2.0, 3.0, 4.0])},
        "matrix/2": {"payoff": (1, 2, 3, 4)},
        "mamujoco/Hopper": {"partition": [["thigh_joint", "leg_joint"], ("foot_joint",)], "threads": 1},
        LINE: {"env_kwargs": {"N": 2}, "episode_limit": None},
    }
    for env_id, options in makes.items():
        assert envs.make(env_id, 1, **options).num_agents == options.get("num_agents", 2)
    off = envs.make("smac/3m", 1, backend="embedded", **envs.parse_options(["last_action=False"]))
    on = envs.make("smac/3m", 1, backend="embedded", **envs.parse_options(["last_action=True"]))
    assert (off.obs_dim, on.obs_dim) == (30, 39)


def test_numbers_out_of_range_are_refused():
    """Else numpy's own words tell a user of a seed what an option was."""
    for option in ({"game_seed": -1}, {"memory_share": 0.0}, {"memory_share": 1e9}):
        with pytest.raises(ValueError, match="game_seed must be at least 0 and memory_share above 0"):
            envs.make("matrix/stochastic", 1, **option)
    for threads in (0, -3):
        with pytest.raises(ValueError, match=f"threads must be at least 1, or None .*, got {threads}"):
            envs.make("smac/3m", 1, backend="embedded", threads=threads)


@pytest.mark.parametrize("env_id", ["smac/3m", "smac/10gen_terran_5_vs_5"])
def test_a_mistyped_option_of_smac_is_answered_with_all_that_there_are(env_id):
    """Else whoever writes last_actions=True is told that smac has no such thing as last_action."""
    for wrong, near in (
        ("last_actions", "last_action"),
        ("exclude_death", "exclude_dead"),
        ("backends", "backend"),
    ):
        told = f"{env_id} has no option '{wrong}'; did you mean '{near}'\\? It has: .*threads, last_action, "
        with pytest.raises(ValueError, match=told):
            envs.make(env_id, 1, **{"backend": "embedded", wrong: True})
        with pytest.raises(ValueError, match=told):
            envs.make(
                env_id, 1, **{"backend": "embedded", "last_action": True, "exclude_dead": False, wrong: True}
            )


@pytest.mark.parametrize("backend", ["auto", "embedded"])
def test_options_of_the_game_where_it_is_not_played(backend, monkeypatch, tmp_path):
    """Else a documented option is called unknown on a machine that has no StarCraft II."""
    monkeypatch.setenv("SC2PATH", str(tmp_path / "nowhere"))
    for option in ({"difficulty": "7"}, {"game_version": "4.10"}, {"replay_dir": "here"}):
        (name,) = option
        with pytest.raises(
            ValueError, match=f"{name} is an option of the real game, and smac/3m is played on"
        ):
            envs.make("smac/3m", 1, backend=backend, **option)


def test_auto_says_that_the_embedded_engine_plays(machine, monkeypatch, tmp_path, capsys):
    """Else numbers of the embedded engine are taken for StarCraft II's, which was thought to be installed."""
    monkeypatch.setenv("SC2PATH", str(tmp_path / "nowhere"))
    envs._say_embedded.cache_clear()  # another test may have been told the same
    assert envs.make("smac/3m", 1).backend == "embedded"
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Playing the embedded engine, not StarCraft II. StarCraft II was not found")
    assert str(tmp_path / "nowhere") in line
    envs.make("smac/3m", 1)  # as the scripts do for evaluation: once is enough
    envs._say_embedded.cache_clear()
    envs.make("smac/3m", 1, backend="embedded")
    assert capsys.readouterr().out == ""


def test_the_real_game_lists_its_options_and_those_of_both(machine):
    """Else the list leaves out what it would take."""
    with pytest.raises(
        ValueError, match=r"mean 'exclude_dead'\? It has: .*difficulty.*replay_dir, last_action"
    ):
        envs.make("smac/3m", 1, backend="starcraft", exclude_deads=True)


@pytest.mark.parametrize("wrong", [2.5, "4", None, True, [2], np.float64(2)])
def test_the_number_of_environments_is_whole(wrong):
    """Else numpy's words for a shape are all that one hears of it."""
    told = r"^num_envs must be one whole number, got "
    for device, kind in ((None, ValueError), ("cpu", envs.BrokenEnvironment)):
        with pytest.raises(kind, match=told):
            envs.make("mpe/simple_spread", wrong, device=device)
    assert envs.make("mpe/simple_spread", np.int64(2)).num_envs == 2


def test_a_device_that_there_is_not_is_refused_before_anything_is_made(monkeypatch):
    """Else one waits a minute for robots, and is then shown a traceback of PyTorch."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setitem(envs.FAMILIES, "mpe", lambda *_: pytest.fail("made"))
    for device, told in (
        ("gpu", 'device must be "cpu" or "cuda", as PyTorch names them, .*; got \'gpu\''),
        (1.5, r"device must be .*; got 1\.5"),
        ("cuda:1", "PyTorch finds 1 GPUs here, so that there is no cuda:1"),
    ):
        with pytest.raises(envs.BrokenEnvironment, match=told) as error:
            envs.make("mpe/simple_spread", 1, device=device)
        assert "\n" not in str(error.value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(
        envs.BrokenEnvironment, match="PyTorch finds 0 GPUs here, so that there is no cuda; take"
    ):
        envs.make("mpe/simple_spread", 1, device="cuda")


def test_one_environment_of_pettingzoo_takes_no_number_and_no_device():
    """Else it ends in a TypeError about arguments that nobody gave, or in tensors that it cannot read."""
    for option in ({"num_envs": 1}, {"device": "cpu"}):
        (name,) = option
        with pytest.raises(ValueError, match=rf"parallel_env\(\) makes one environment.*leave {name} out"):
            envs.parallel_env("mpe/simple_spread", **option)


def test_a_library_that_is_missing_is_told_in_what_a_run_depends_on(monkeypatch):
    """Else a game of tables cannot be recorded on a machine without MuJoCo."""
    version = importlib.metadata.version

    def of(name):
        if name == "mujoco":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("importlib.metadata.version", of)
    about = envs.describe(envs.make("matrix/1", 1))
    assert about["mujoco"] == "not installed" and about["numpy"] == np.__version__
