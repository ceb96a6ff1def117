"""The claim that battles are not won, beside the claims of test_claims.py: its bound is one in twenty."""

import numpy as np
from made_curves import POINTS, found

from benchmark.lib.claims import Unwon
from benchmark.lib.runs import WIN_RATE


def ends_at(rate):
    """Win rates of two seeds which won every battle but in the last tenth."""
    values = np.ones((2, POINTS))
    values[:, -3:] = rate
    return values


def test_unwon_is_less_than_one_battle_in_twenty_at_the_end():
    """A page that says that nobody wins would say so of whoever does, or of whoever was never asked."""
    curves = {"DPO": ends_at(0.04), "IPPO": ends_at(0.05), "IQL": ends_at(0.06)}
    test = Unwon(("DPO", "IPPO", "IQL", "IDDPG"))
    assert found(test, curves, metric=WIN_RATE) == {"DPO": 1, "IPPO": -1, "IQL": -1, "IDDPG": 0}
    assert found(test, curves) == dict.fromkeys(test.methods, 0)  # returns alone
