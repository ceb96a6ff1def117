"""numba's cache on disk: it saves time where it can, and fails in silence or in one sentence where not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import envs.compiled
from envs.compiled import njit
from envs.smac import contract, engine, generated
from tests.envs.test_contract import imports

ROOT = Path(envs.compiled.__file__).parents[1]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """What a new start finds: a function compiled in its module, with the cache in tmp_path."""
    source = tmp_path / "kernels.py"
    source.write_text("def triple(x):\n    return 3 * x\n\n\ndef shift(x):\n    return x + 10\n")
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path / "cache"))

    def start(name="triple"):
        found = {"__name__": "kernels"}
        exec(compile(source.read_text(), str(source), "exec"), found)
        kernel = njit(nogil=True)(found[name])
        assert kernel(np.float64(2.0)) == {"triple": 6.0, "shift": 12.0}[name]
        return sum(kernel.stats.cache_hits.values())

    return start


def files(tmp_path, suffix):
    return sorted((tmp_path / "cache").rglob(f"*.{suffix}"))


def test_a_second_start_does_not_compile(start):
    """Else every run waits a minute for its first step."""
    assert [start(), start(), start("shift"), start("shift")] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [(suffix, damage) for suffix in ("nbi", "nbc") for damage in ("emptied", "cut", "zeros")]
    + [("nbc", "flipped")],
)
def test_a_damaged_cache_is_compiled_anew(start, tmp_path, suffix, damage):
    """Else one interrupted copy of a checkout ends every later run in a traceback of pickle, or a crash."""
    start()
    (path,) = files(tmp_path, suffix)
    whole = path.read_bytes()
    middle = len(whole) // 2
    broken = {
        "emptied": b"",
        "cut": whole[:middle],
        "zeros": bytes(len(whole)),
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
    }
    path.write_bytes(broken[damage])
    assert start() == 0
    assert start() == 1  # and is whole again
    assert len(files(tmp_path, "nbc")) == 1


def test_a_cache_that_cannot_be_written_costs_no_run(start, tmp_path, monkeypatch, capsys):
    """Else a full disk stops a run that needs none."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(envs.compiled._CheckedFile, "save", full)
    envs.compiled._say_uncached.cache_clear()
    assert start() == 0 and start("shift") == 0
    assert capsys.readouterr().err.count("NUMBA_CACHE_DIR") == 1  # said once
    assert not files(tmp_path, "nbc")


@pytest.mark.parametrize("env_id", ["mpe/simple_spread", "matrix/1"])
def test_environments_play_where_nothing_can_be_written(tmp_path, env_id):
    """Else a read-only checkout without a home, as in containers, ends in "cannot cache function"."""
    nowhere = tmp_path / "file"
    nowhere.touch()
    # Root may write anywhere: folders that cannot be made stand for those that may not be written.
    play = f"""
import numba.core.caching as caching
for kind in (caching.InTreeCacheLocator, caching.UserWideCacheLocator):
    kind.get_cache_path = lambda self: {str(nowhere / "cache")!r}
import envs
import torch
env = envs.make({env_id!r}, 2, device="cpu")
env.reset()
print(env.step(torch.zeros(env.num_agents, 2, dtype=torch.int64))[1].isfinite().all().item())
"""
    told = subprocess.run(
        [sys.executable, "-c", play],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "NUMBA_CACHE_DIR": str(nowhere)},
    )
    assert told.returncode == 0 and told.stdout == "True\n", told.stderr
    assert told.stderr.count("\n") == 1 and "NUMBA_CACHE_DIR" in told.stderr


def test_kernels_follow_the_constants_of_other_files(tmp_path):
    """Else rewards stay as they were when maps.py is changed: numba looks at a kernel's own file alone."""
    shutil.copytree(ROOT / "envs", tmp_path / "envs", ignore=shutil.ignore_patterns("__pycache__"))
    maps = tmp_path / "envs" / "smac" / "maps.py"
    play = """
import numpy as np
from envs.smac import contract
ally, enemy = np.full((2, 3, 8), 45.0)
dead = enemy.copy()
dead[0, [2, 4]] = 0
print(float(contract.reward("3m", ally, ally, enemy, dead)) * contract.get_map("3m").max_reward / 20)
"""
    earned = []
    for death in ("10.0", "30.0"):
        assert "REWARD_DEATH, REWARD_SCALE = 200.0, 10.0, 20.0" in maps.read_text() or earned
        maps.write_text(maps.read_text().replace("200.0, 10.0, 20.0", f"200.0, {death}, 20.0"))
        told = subprocess.run(
            [sys.executable, "-c", play],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
        )
        assert told.returncode == 0, told.stderr
        earned.append(float(told.stdout))
    assert earned == pytest.approx([45 + 45 + 10, 45 + 45 + 30], rel=1e-6)


def made_of(path):
    """The files of envs.smac whose code and constants this one has, its own among them."""
    found, new = set(), {path}
    while new:
        found |= new
        names = {name.split(".")[2] for file in new for name in imports(file, late=False) if "smac" in name}
        new = {file for name in names if (file := path.with_name(f"{name}.py")).exists()} - found
    return {file.name for file in found}


@pytest.mark.parametrize(
    ("module", "left_out"),
    [(engine, set()), (generated, set()), (contract, {"units.py"})],  # units' numbers are its arguments
)
def test_the_cache_of_kernels_looks_at_every_file_they_are_made_of(module, left_out, monkeypatch):
    """Else a weapon hits as it did before units.py was changed, and nothing says so."""
    read, looked_at = Path.read_bytes, set()
    monkeypatch.setattr(Path, "read_bytes", lambda path: (looked_at.add(path.name), read(path))[1])
    module._source_digest()
    files = made_of(Path(module.__file__))
    assert {"units.py", "maps.py", "terrain.py", Path(module.__file__).name} <= files
    assert files - looked_at == left_out
