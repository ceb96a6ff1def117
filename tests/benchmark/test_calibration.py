"""The embedded engine's battles are as hard as SMAC's: not won by chance, even between equals, winnable."""

import numpy as np
import pytest

from benchmark.calibrate.calibrate_smac import play, wilson


@pytest.mark.parametrize("name", ["8m", "2s3z"])
def test_random_play_loses_and_equals_are_even(name):
    """Else win rates on this engine would mean something else than on SMAC."""
    random, script = (play(name, policy, 256, 64, seed=1) for policy in ("random", "script"))
    assert random[:, 0].mean() < 0.02 and 1.5 < random[:, 1].mean() < 5.5
    assert 0.3 < script[:, 0].mean() < 0.7


def test_the_big_battle_is_lost_by_the_script_and_won_by_tactics():
    """Else learning 27m_vs_30m would be trivial, or impossible."""
    script, line = (play("27m_vs_30m", policy, 64, 32, seed=1) for policy in ("script", "line"))
    assert script[:, 0].mean() < 0.1
    assert line[:, 0].mean() > 0.6


def test_wilson_interval_is_the_textbooks():
    """Else the calibration table states the wrong certainty."""
    assert wilson(0, 100) == pytest.approx((0.0, 0.0370), abs=1e-3)
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-3)
    low, high = wilson(256, 512)
    assert np.isclose(low + high, 1.0)
