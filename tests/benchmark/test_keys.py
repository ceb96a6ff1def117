"""Keys of runs: one for each result that there can be, the same for all ways to type the same settings."""

import dataclasses
import hashlib
import importlib
import json
import re
from dataclasses import replace

import pytest

from benchmark import figures
from benchmark.figures import FIGURES, NOT_OF_A_RUN, SEEDS, make_run, manifest, panel_runs
from benchmark.lib.groups import EMBEDDED, LATER
from benchmark.lib.store import PUBLISHED, Store
from envs.smac.maps import MAPS, SmacMap
from envs.smac.units import ENGINE_VERSION

RUNS = {  # one of each
    "dpo_matrix": (figures.GAME, figures.DPO),
    "dpo_mpe": (figures.SPREAD, figures.DPO),
    "dpo_mamujoco": (figures.CHEETAH, figures.DPO),
    "dpo_smac": (figures.EIGHT, figures.DPO),
    "ippo": (figures.SPREAD, figures.IPPO),
    "iql": (figures.SPREAD, figures.IQL),
    "iddpg": (figures.CHEETAH, figures.IDDPG),
}
MODULES = {name: importlib.import_module(name) for name in RUNS}


def fields(script):
    """The settings of a script by name."""
    return {field.name: field for field in dataclasses.fields(MODULES[script].Args)}


def planned():
    """Every run of every figure at scale paper, in order."""
    return [entry for figure in FIGURES.values() for *_, entry in panel_runs(figure, "paper", [1])]


def change_default(monkeypatch, script, name, value):
    """The script as it were with another default."""
    field = fields(script)[name]
    new = [(name, field.type, dataclasses.field(default=value))]
    monkeypatch.setattr(
        MODULES[script], "Args", dataclasses.make_dataclass("Args", new, bases=(MODULES[script].Args,))
    )


def changed(before, after):
    """Which runs have another key; what is typed must not have changed."""
    assert [entry.arguments for entry in before] == [entry.arguments for entry in after]
    return {
        new.arguments[0] + " " + " ".join(new.flags)
        for old, new in zip(before, after, strict=True)
        if old.key != new.key
    }


def expected(runs, script, flag, task=""):
    """Runs of a script on a task that do not type a flag."""
    return {
        entry.arguments[0] + " " + " ".join(entry.flags)
        for entry in runs
        if entry.script == f"{script}.py" and entry.task.startswith(task) and flag not in entry.flags
    }


@pytest.mark.parametrize(
    ("script", "name", "value"),
    [
        ("dpo_matrix", "d_target", 0.05),  # which some methods type
        ("dpo_matrix", "c", 5.0),
        ("dpo_mpe", "beta_min", 0.01),
        ("dpo_mamujoco", "kl_term", False),
        ("dpo_smac", "env_options", ("a=1",)),
        ("dpo_smac", "advantage_norm", False),  # which came later than published runs
        ("ippo", "obs_norm", False),
        ("ippo", "clip_coef", 0.25),
        ("iql", "epsilon_end", 0.1),
        ("iddpg", "eval_every", 10),  # which every run types
    ],
)
def test_a_changed_default_is_another_run_where_it_is_not_typed(script, name, value, monkeypatch):
    """Else results of the old default would be drawn as those of the new one, or all be run again."""
    before = planned()
    change_default(monkeypatch, script, name, value)
    flag = "--" + name.replace("_", "-")
    flag = {"--kl-term": "--no-kl-term"}.get(flag, flag)
    found = changed(before, planned())
    assert found == expected(before, script, flag)
    assert bool(found) == (name != "eval_every")


@pytest.mark.parametrize(
    ("script", "env_id", "task"),
    [
        ("dpo_smac", "smac/8m", "smac-8m"),
        ("ippo", "mpe", "mpe-"),
        ("iql", "matrix/stochastic", "matrix-"),
        ("ippo", "mamujoco/Ant-4x2", "mamujoco-Ant"),
    ],
)
def test_a_changed_preset_is_another_run_of_its_tasks(script, env_id, task, monkeypatch):
    """A preset is a default of some environments; a family's gives way to that of one of its tasks."""
    before = planned()
    presets = MODULES[script].PRESETS
    monkeypatch.setitem(presets, env_id, presets.get(env_id, {}) | {"gamma": 0.5})
    once = planned()
    assert changed(before, once) == expected(before, script, "--gamma", task) != set()
    monkeypatch.setitem(
        presets, env_id.partition("/")[0], presets.get(env_id.partition("/")[0], {}) | {"gamma": 0.4}
    )
    if "/" in env_id:  # which keeps its own
        assert not changed(once, planned()) & expected(before, script, "--gamma", task)


def test_a_preset_hides_a_changed_default(monkeypatch):
    """What a task's preset sets does not depend on the default."""
    before = planned()
    change_default(monkeypatch, "dpo_mamujoco", "log_std_init", -0.5)
    preset = {"mamujoco-HalfCheetah-3x2", "mamujoco-Ant-4x2", "mamujoco-Humanoid-17x1"}
    assert {f"mamujoco-{robot.partition('/')[2]}" for robot in MODULES["dpo_mamujoco"].PRESETS} == preset
    touched = {old.task for old, new in zip(before, planned(), strict=True) if old.key != new.key}
    assert touched == {"mamujoco-Hopper-3x1", "mamujoco-Walker2d-3x2"}


@pytest.mark.parametrize("typed", [{"delta": 1.5}, {"beta_init": 0.01, "kl_term": True}])
def test_a_default_that_is_typed_is_the_same_run(typed, monkeypatch):
    """Settings make the hash, not words; else the same run would be made twice."""
    for task in (figures.GAME, figures.SPREAD, figures.CHEETAH, figures.EIGHT):
        plain = make_run(task, figures.DPO, 1, "paper")
        told = make_run(task, replace(figures.DPO, settings=typed), 1, "paper")
        assert told.flags != plain.flags and told.settings == plain.settings
        assert told.key.rpartition("__")[2] == plain.key.rpartition("__")[2]
    before = make_run(figures.GAME, figures.IPPO, 1, "paper")
    like = figures.LIKE_DPO["ippo", "matrix"] | {"clip_coef": MODULES["ippo"].Args().clip_coef}
    monkeypatch.setitem(figures.LIKE_DPO, ("ippo", "matrix"), like)
    after = make_run(figures.GAME, figures.IPPO, 1, "paper")
    assert after.key == before.key and after.flags != before.flags
    monkeypatch.setitem(figures.LIKE_DPO, ("ippo", "matrix"), like | {"clip_coef": 0.19})
    assert make_run(figures.GAME, figures.IPPO, 1, "paper").key != before.key


OTHER = {
    bool: lambda x: not x,
    int: lambda x: x + 1,
    float: lambda x: x / 2,
    str: lambda x: {"cpu": "cuda"}.get(x, "x"),
}


@pytest.mark.parametrize("name", sorted(NOT_OF_A_RUN))
def test_what_is_not_of_a_run_changes_no_key(name, monkeypatch):
    """A run is the same wherever it is kept, however often it is saved and on whatever it runs."""
    before = planned()
    having = [script for script in RUNS if name in fields(script)]
    assert having
    for script in having:
        default = fields(script)[name].default
        value = OTHER[type(default)](default)
        task, method = RUNS[script]
        plain = make_run(task, method, 1, "paper")
        typed = make_run(task, replace(method, settings={name: value}), 1, "paper")
        assert typed.flags != plain.flags and typed.settings == plain.settings
        change_default(monkeypatch, script, name, value)
    assert not changed(before, planned())


def test_all_other_settings_and_the_seed_are_in_the_key():
    """Two results under one key would be one."""
    for entry in planned():
        script = entry.script.removesuffix(".py")
        own = {"engine_version"} if entry.task.startswith("smac") else set()
        assert json.loads(entry.settings).keys() == fields(script).keys() - NOT_OF_A_RUN - LATER.keys() | own
    runs = [entry for scale in SEEDS for entry in manifest(list(FIGURES), scale, [1, 2])]
    by_key = {}
    for entry in runs:
        assert by_key.setdefault(entry.key, entry.settings) == entry.settings
    assert len({(entry.script, entry.settings) for entry in runs}) == len(by_key)


def test_resolved_settings_are_what_the_script_parses():
    """Also in type: 3 and 3.0 are one setting to a script, and would be two in a hash."""
    seen = set()
    for scale in SEEDS:
        for entry in manifest(list(FIGURES), scale, [1]):
            kind = entry.script, entry.flags
            if kind not in seen:
                seen.add(kind)
                script = entry.script.removesuffix(".py")
                args, _ = MODULES[script].parse_args(entry.arguments[1:])
                told = dataclasses.asdict(args)
                assert all(told.pop(name, usual) == usual for name, usual in LATER.items())
                told = {name: x for name, x in told.items() if name not in NOT_OF_A_RUN}
                if entry.task.startswith("smac"):  # where StarCraft is installed, auto would play it
                    told["engine_version"] = MAPS[entry.task.removeprefix("smac-")].version
                    asked = told.get("backend") or told["env_options"][-1]
                    assert asked in ("embedded", "backend=embedded")
                    told |= {"backend": "auto"} if "backend" in told else {"env_options": ()}
                assert entry.settings == json.dumps(told, sort_keys=True), entry.key
    assert {script for script, _ in seen} == {f"{script}.py" for script in RUNS}


def test_published_keys_are_hashes_of_their_own_settings():
    """A result under the key of other settings would be drawn as theirs."""
    store = Store(PUBLISHED)
    keys = [key for key in store.runs if re.search(r"__[0-9a-f]{8}$", key)]
    plans = {entry.key: entry for scale in SEEDS for entry in manifest(list(FIGURES), scale, range(1, 11))}
    assert plans.keys() & set(keys)
    for key in keys:
        run = store.runs[key]
        # A store keeps what the asked backend turned out to be.
        told = (
            {"backend": "auto"}
            | run.settings
            | {"seed": run.seed, "total_timesteps": int(run.total_timesteps)}
        )
        if "env_options" in told:
            told["env_options"] = [option for option in told["env_options"] if option != EMBEDDED]
        own_names = fields(run.script).keys() - NOT_OF_A_RUN | {"engine_version"}
        own = {name: told[name] for name in own_names if name in told}
        own = {name: x for name, x in own.items() if (name, x) not in LATER.items()}
        digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]
        parts = [key.partition("__")[0], run.script, run.label, str(run.seed), digest]
        assert key == "__".join(filter(None, parts))
        assert key not in plans or json.loads(plans[key].settings) == own


def test_an_engine_of_smac_has_results_of_its_own(monkeypatch):
    """Else battles that go otherwise would be drawn in one curve, or be taken for run already."""
    others = make_run(figures.SPREAD, figures.DPO, 1, "paper")
    now = make_run(figures.EIGHT, figures.DPO, 1, "paper")
    monkeypatch.setattr(SmacMap, "version", ENGINE_VERSION + 1)
    later = make_run(figures.EIGHT, figures.DPO, 1, "paper")
    assert now.key != later.key
    assert make_run(figures.SPREAD, figures.DPO, 1, "paper").key == others.key
    # Settings of runs on the first version tell none.
    published = {key for key in Store(PUBLISHED).runs if key.startswith("smac-8m__")}
    versions = {Store(PUBLISHED).runs[key].settings.get("engine_version") for key in published}
    assert published and versions <= {None, *range(2, ENGINE_VERSION + 1)}
