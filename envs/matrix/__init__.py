"""Cooperative games small enough for tables: sampled as environments, and solved without sampling."""

from envs.matrix.games import PAYOFFS, MatrixGame, StochasticGame, TabularGame

__all__ = ["PAYOFFS", "MatrixGame", "StochasticGame", "TabularGame"]
