"""benchmark/lib/basins.py: the compiled iteration is the scripts', and a start is told by where it ends."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from matplotlib.image import imread

import dpo_matrix as dpo
from benchmark.lib import basins
from envs.matrix import PAYOFFS


@pytest.mark.parametrize(("m_hat", "c"), [(0.0, 10.0), (0.35, 10.0), (1.0, 10.0), (1.0, 1.0), (3.0, 0.5)])
def test_compiled_update_is_the_surrogates_maximiser(m_hat, c):
    """A second solver that is not the first would draw the basins of another algorithm."""
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.random(500), rng.beta(0.1, 0.1, 500)]).clip(1e-9, 1 - 1e-9)
    gain = rng.normal(size=1000) * rng.choice([0.1, 1.0, 5.0], 1000)
    old, gains = np.stack([p, 1 - p], axis=-1), np.stack([gain, 0 * gain], axis=-1)
    exact = dpo.solve_surrogate(old, gains, m_hat, c)[:, 0]
    ours = np.array([basins.update(*pair, m_hat, c) for pair in zip(p, gain, strict=True)])
    np.testing.assert_allclose(ours, exact, atol=1e-6)
    assert ((ours == p) == (exact == p)).mean() > 0.999
    assert m_hat == 0.0 or 0.05 < (ours == p).mean() < 0.95  # some stay, some move


@pytest.mark.parametrize("game", PAYOFFS)
@pytest.mark.parametrize("m_hat", [0.0, 0.35])
def test_compiled_path_is_that_of_the_script(game, m_hat):
    """Agents, payoffs and the 1 / N in their places: 150 iterations from a start that moves."""
    payoff, start = np.array(PAYOFFS[game]), (0.1, 0.45)
    policies = np.array([[[x, 1 - x]] for x in start])
    tables = payoff.reshape(1, 2, 2), np.ones((1, 2, 2, 1))
    path, returns = dpo.iterate(*tables, policies, 0.0, m_hat, basins.C, 150)
    ours = basins.follow(payoff, *start, m_hat, basins.C, 150)
    shared = min(len(path), len(ours))
    assert shared > 30 and np.abs(ours[-1] - start).max() > 0.05
    np.testing.assert_allclose(ours[:shared], path[:shared, :, 0, 0], atol=1e-5)
    np.testing.assert_allclose(basins.returns(payoff, *ours.T)[:shared], returns[:shared], atol=1e-4)


def test_theorems_m_hat_is_the_scripts():
    """The row that says that nothing moves is about this number."""
    for payoff in PAYOFFS.values():
        theirs = dpo.m_hat_theory(2, max(payoff), 0.0)
        assert basins.value_of(math.inf, np.array(payoff)) == pytest.approx(theirs)


def test_fates_are_told_apart():
    """A start that ends beside the optimum is not stuck, and one that never moved reached nothing."""
    corners = basins.equilibria(np.array(PAYOFFS["1"]))
    assert corners == [(1, 0), (0, 1)]
    assert basins.equilibria(np.array(PAYOFFS["2"])) == [(0, 1)]
    names, start = [*basins.FATES], [0.5, 0.5]
    ends = {(0.95, 0.05): 0, (0.02, 0.97): 1, (0.95, 0.5): 2, (0.5, 0.5): 3}
    for end, index in ends.items():
        assert names[basins.fate(np.array([start, end]), corners)] == names[index]
    assert basins.fate(np.array([[0.99, 0.01]] * 2), corners) == names.index("never moved")


def test_basins_of_table_3():
    """What the page says: two basins in game 1, one in game 2 without the root, and traps that it makes."""
    shares = {
        (game, m_hat): np.bincount(basins.basins(game, m_hat, 7).fates.ravel(), minlength=4) / 49
        for game in PAYOFFS
        for m_hat in basins.M_HATS
    }
    assert all(basins.basins(*key, 7).fall < 1e-12 for key in shares)
    assert all(basins.basins(*key, 7).iterations < basins.LIMIT for key in shares)
    for game in PAYOFFS:
        assert shares[game, math.inf].tolist() == [0, 0, 0, 1]
        assert shares[game, 0.0][2:].sum() == 0
        assert (shares[game, 0.0][1] > 0.1) == (game != "2")
    assert shares["1", 0.35][2:].sum() > 0.3 and shares["2", 0.35][2:].sum() > 0.8
    table, picture = basins.basins_table(7), imread(io.BytesIO(basins.draw_basins(7)))
    assert "| 2 | M̂ = 0 | 100 % | – | 0 % | 0 % | 5.00 | 5.00 | never |" in table
    assert "| 2 | M̂ of the theorem, 7.07 | 0 % | – | 0 % | 100 % | 3.25 | 5.00 | never |" in table
    assert picture.std() > 0.05
