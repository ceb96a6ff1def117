"""A machine where StarCraft II seems to be installed, and its environments."""

import sys

import pytest

from envs.smac import starcraft
from tests.envs.machine import QUICK, Machine, assert_all_end, assert_removed


@pytest.fixture
def machine(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch)
    yield machine
    assert_all_end(machine.processes())
    assert_removed(machine.folders())
    for name in [name for name in sys.modules if name.split(".")[0] == "smac"]:
        del sys.modules[name]


@pytest.fixture
def make(machine, monkeypatch):
    made = []
    monkeypatch.setattr(starcraft, "CLOSE_SECONDS", 1.0)

    def make(map_name="3m", num_envs=1, **options):
        made.append(starcraft.StarCraftVectorEnv(map_name, num_envs, **(QUICK | options)))
        return made[-1]

    yield make
    for env in made:
        env.close()
