"""What is installed of the real game: its version, its units, and what is said where something is missing."""

import importlib
import json
import sys

import pytest

import envs
from envs.smac import starcraft, starcraft_process
from tests.envs.machine import STANDIN, play

# ---------------------------------------------------------------- versions and the reward's scale


def test_version_is_recorded(machine, make):
    """If this fails, results of different versions of the game are mixed unnoticed."""
    env = make()
    about = env.describe()
    assert (env.game_version, env.game_build) == ("4.10", 75689)
    assert about["game_build"] == 75689 and about["max_reward"] == 365 and json.dumps(about)
    machine.add_build(69232)
    assert starcraft.require("3m", "4.6.2") == 69232 and starcraft.require("3m", None) == 75689
    machine.add_build(80000)
    assert starcraft.require("3m", None) == 80000 and starcraft.require("3m") == 75689
    for version, name in ((None, "Base80000"), ("4.10", "4.10"), ("4.6.2", "4.6.2")):
        env = make(game_version=version)
        env.reset()  # which compares with the game's own answer
        assert env.describe()["game_version"] == name


def test_folder_without_a_binary_is_not_launched(machine, make):
    """If this fails, what an update has left behind breaks every launch of a game that is installed."""
    (machine.sc2 / "Versions" / "Base80000").mkdir()
    for version in ("4.10", None):
        env = make(game_version=version)
        env.reset()
        assert env.game_build == 75689
    (machine.sc2 / "Versions" / "Base75689").rename(machine.sc2 / "Versions" / "Base79000")
    assert "PySC2 would start Base80000" in missing(game_version=None)
    (machine.sc2 / "Versions" / "Base80000").rmdir()
    env = make(game_version=None)
    env.reset()
    assert env.game_build == 79000


def test_folder_that_pysc2_cannot_read_is_told(machine):
    """If this fails, a copy of the game beside it breaks every launch, which is tried again and again."""
    (machine.sc2 / "Versions" / "Base75689.bak").mkdir()
    assert "Base75689.bak" in missing() and "move it elsewhere" in missing(game_version=None)


def test_worker_looks_where_the_check_looked(machine, make, monkeypatch, tmp_path):
    """If this fails, an empty SC2PATH passes the check and breaks every launch."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SC2PATH", "")
    env = make()
    _, infos = env.reset()
    assert infos["alive"].all() and starcraft_process.sc2_path() == machine.sc2
    monkeypatch.setattr(sys, "platform", "darwin")
    assert str(starcraft_process.sc2_path()) == "/Applications/StarCraft II"


def test_version_asked_for_decides_which_engine_plays(machine, make):
    """If this fails, backend "auto" refuses the one version that is installed, or plays another instead."""
    (machine.sc2 / "Versions" / "Base75689").rename(machine.sc2 / "Versions" / "Base69232")
    env = envs.make("smac/3m", 1, game_version="4.6.2", stagger=0.0)
    assert (env.backend, env.game_version) == ("starcraft", "4.6.2")
    env.close()
    assert envs.make("smac/3m", 1).backend == "embedded"
    with pytest.raises(ValueError, match="game_version of smac/3m takes text"):
        envs.make("smac/3m", 1, game_version=4.6)


def test_game_of_another_version_than_recorded_is_refused(machine, make, monkeypatch):
    """If this fails, the recorded version can be wrong."""
    monkeypatch.setenv("STANDIN_BUILD", "69232")
    env = make()
    with pytest.raises(starcraft.StarCraftError, match="says that it is Base69232"):
        env.reset()


def test_wrong_max_reward_is_set_right(machine, make):
    """If this fails, a slow start of the game makes all rewards of a run smaller."""
    plain = make(seed=2)
    _, infos = plain.reset()
    right = [r[1][0] for r in play(plain, infos, 20)]
    machine.faults({"at": "units", "kind": "slow"})
    env = make(seed=2)
    with pytest.warns(RuntimeWarning, match="max_reward 410"):
        _, infos = env.reset()
    assert [r[1][0] for r in play(env, infos, 20)] == right and max(right) > 0


def test_other_units_than_published_are_told(machine, make):
    """If this fails, rewards on another scale are compared with published ones."""
    env = make()
    env.max_reward = 400.0
    with pytest.warns(RuntimeWarning, match="not 400"):
        env.reset()


def test_fork_of_smac_with_other_sizes_is_refused(machine, make, monkeypatch):
    """If this fails, a fork's observations pass for SMAC's."""
    from envs.smac import maps

    monkeypatch.setitem(maps.MAPS, "3m", maps.MAPS["5m_vs_6m"])
    with pytest.raises(starcraft.StarCraftError, match="fork"):
        make("3m")


# ---------------------------------------------------------------- what is missing on a machine


def package(folder, monkeypatch, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()


def missing(**arguments):
    ok, why = starcraft.available(**arguments)
    assert not ok and why.count("\n") == 0
    with pytest.raises(starcraft.StarCraftError):
        starcraft.require(**arguments)
    return why


def test_complete_installation_is_available(machine):
    """If this fails, the real game is never chosen by itself."""
    ok, why = starcraft.available()
    assert ok and "75689" in why and starcraft.available("3m")[0]
    assert "smac" not in sys.modules


def test_smac_not_installed_is_told(machine, monkeypatch):
    """If this fails, the user is not told where SMAC comes from."""
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(STANDIN)])
    assert "github.com/oxwhirl/smac" in missing() and "unrelated" in missing()


def test_smac3_is_told_from_smac(machine, monkeypatch, tmp_path):
    """If this fails, PyPI's smac leads to an ImportError that says nothing."""
    package(tmp_path / "site", monkeypatch, {"smac/__init__.py": "", "smac/facade/__init__.py": ""})
    assert "SMAC3" in missing() and "pip uninstall smac" in missing()


def test_folder_named_smac_is_not_taken_for_a_package(machine, monkeypatch, tmp_path):
    """If this fails, a results folder named smac is reported as the wrong package."""
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(STANDIN)])
    package(tmp_path / "site", monkeypatch, {"smac/results.csv": ""})
    assert "not installed" in missing()


def test_game_folder_not_found_is_told(machine, monkeypatch, tmp_path):
    """If this fails, the user does not learn of SC2PATH."""
    monkeypatch.setenv("SC2PATH", str(tmp_path / "nowhere"))
    assert "nowhere is not a folder" in missing()
    monkeypatch.delenv("SC2PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "StarCraftII").rename(tmp_path / "elsewhere")
    assert "set SC2PATH" in missing()
    (tmp_path / "elsewhere").rename(tmp_path / "StarCraftII")
    assert starcraft.available()[0]


def test_missing_binary_is_told(machine):
    """If this fails, a half-unpacked game is only noticed when it is launched."""
    (machine.sc2 / "Versions" / "Base75689" / "SC2_x64").unlink()
    assert "no game binary" in missing()


def test_wrong_version_is_told(machine):
    """If this fails, 4.6.2 is played where 4.10 was meant."""
    (machine.sc2 / "Versions" / "Base75689").rename(machine.sc2 / "Versions" / "Base69232")
    assert "Base75689" in missing() and "Base69232 (4.6.2)" in missing()
    assert starcraft.available(game_version="4.6.2")[0]


def test_missing_maps_are_told_with_where_they_are(machine, monkeypatch, tmp_path):
    """If this fails, the user is told to copy maps that pip has left behind, or to load those at hand."""
    maps = machine.sc2 / "Maps" / "SMAC_Maps"
    (maps / "3m.SC2Map").unlink()
    assert starcraft.available()[0]
    why = missing(map_name="3m")
    assert "map 3m is missing" in why and "cp " not in why
    assert f"unpack {starcraft_process.MAPS_ZIP} in '{maps.parent}'" in why
    for file in maps.iterdir():
        file.unlink()
    assert "maps are missing" in missing()
    clone = tmp_path / "site" / "smac" / "env" / "starcraft2" / "maps" / "SMAC_Maps"
    package(tmp_path / "site", monkeypatch, {"smac/__init__.py": "", f"{clone}/3m.SC2Map": ""})
    assert f"cp -r '{clone}' '{maps.parent}'" in missing() and "http" not in missing()


@pytest.mark.parametrize(
    "error, words",
    [
        ("TypeError('Descriptors cannot not be created directly.')", "protobuf==3.20.3"),
        ("TypeError('Descriptors cannot be created directly.')", "PYTHON_IMPLEMENTATION=python"),
        ("ImportError(\"cannot import name 'runtime_version'\")", "s2clientprotocol==4.10.1.75800.0"),
        ("ImportError(\"cannot import name 'builder'\")", "s2clientprotocol==4.10.1.75800.0"),
        ("RuntimeError('mismatched Protobuf Gencode/Runtime')", "s2clientprotocol==4.10.1.75800.0"),
        ("ModuleNotFoundError('No module named pysc2')", "No module named pysc2"),
    ],
)
def test_smac_that_does_not_import_is_told(machine, monkeypatch, tmp_path, error, words):
    """If this fails, a protobuf clash or a half installation shows as a stack trace of another package."""
    files = {
        "smac/__init__.py": "",
        "smac/env/__init__.py": f"raise {error}",
        "smac/env/starcraft2/__init__.py": "",
    }
    package(tmp_path / "site", monkeypatch, files)
    starcraft_process._import_failure.cache_clear()
    assert words in missing()
