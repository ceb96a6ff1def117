"""benchmark/speed.py's command line: what cannot be timed is a sentence, before anything is timed."""

import sys

import pytest

from benchmark import speed


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["env", "matrix"], "env is timed for smac, mpe, mamujoco, not for matrix."),
        (["env", "smac", "--names", "3m", "nowhere"], "there is no 'nowhere' in smac; give some of 3m, 8m,"),
        (["env", "mpe", "--names", "simple_spread/" + "9" * 20], "there is no 'simple_spread/9999"),
        (["learner", "mpe", "--names", "line_control/x"], "there is no 'line_control/x' in mpe"),
        (["e2e", "mamujoco", "--names", "Hopper"], "there is no 'Hopper' in mamujoco"),
        (["e2e", "matrix", "--names", "1"], "there is no '1' in matrix; give some of stochastic."),
        (["env", "--num-envs", "9" * 20], "--num-envs must be between 1 and 100000, got 9999"),
        (["env", "--repeats", "0"], "--repeats must be between 1 and 1000, got 0."),
        (["env", "--seconds", "nan"], "--seconds must be between 0.001 and 3600, got nan."),
        (["learner", "smac", "--threads", "1", "-1"], "--threads must be between 1 and 1024, got -1."),
        (["env", "--json", "nowhere/x.json"], "--json nowhere/x.json is in a folder that does not exist."),
    ],
)
def test_what_cannot_be_timed_gets_a_sentence(monkeypatch, tmp_path, flags, words):
    """A traceback after minutes of timing loses them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["speed.py", *flags])
    with pytest.raises(SystemExit) as stop:
        speed.main()
    assert str(stop.value.code).startswith(f"speed: {words}"[:60]) and words in str(stop.value.code)


def test_names_that_are_timed_by_default_are_accepted():
    """Else the check would stand in the way."""
    for (what, family), names in ((key, speed.DEFAULTS.get(key[1], ())) for key in speed.TIMERS):
        assert not speed.fault(speed.Args(what, family, names))
