"""When games of StarCraft II are started, and how hard they play, over the stand-in for oxwhirl SMAC."""

import warnings
from types import SimpleNamespace

import pytest

from envs.smac import starcraft


@pytest.fixture
def slept(monkeypatch):
    """The seconds that the environment sleeps, on a clock that nothing else moves on."""
    seconds = []
    clock = SimpleNamespace(sleep=seconds.append, monotonic=lambda: 100.0 + sum(seconds))
    monkeypatch.setattr(starcraft, "time", clock)
    return seconds


def test_a_game_that_fails_again_is_waited_for_twice_as_long(machine, make, slept):
    """A machine out of memory would be asked for another game at once, five times, and the run given up; or
    the last of many restarts would come after an hour."""
    machine.faults(*({"at": "reset", "launch": launch, "kind": "raise"} for launch in range(4)))
    env = make(backoff=20.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, infos = env.reset()
    assert [seconds for seconds in slept if seconds] == [20, 40, 60, 60]  # never more than a minute
    assert infos["alive"].all() and len(machine.events("launch")) == 5


def test_games_are_not_launched_at_the_same_time(machine, make, slept):
    """Two that look for a free port at once may take the same, and one of them fails."""
    make(num_envs=3, stagger=3.0).reset()
    assert slept == [0, 3, 3] and len(machine.events("launch")) == 3


def test_the_difficulty_that_is_asked_for_is_played(machine, make):
    """Else win rates against another computer are published as those against very hard."""
    for options, level in (({"difficulty": "9"}, "9"), ({}, "7")):
        env = make(**options)
        env.reset()
        assert machine.events("difficulty")[-1][2] == env.describe()["difficulty"] == level
    assert len(machine.events("difficulty")) == 2
