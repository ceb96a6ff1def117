"""Exact quantities of small tabular games that go on for ever, discounted: section 3 of arXiv 2211.03032.

S states, N agents, A actions. rewards (S, A, ..., A), transitions (S, A, ..., A, S) have one axis per agent,
policies (N, S, A) hold pi_i(a | s), all float64. Games start in state 0: J = V(0). (Returns of the finite
episodes of `envs.matrix.games` are its own `exact_return` and `optimum`.)
"""

from __future__ import annotations

import numpy as np


def over_others(table: np.ndarray, policies: np.ndarray, agent: int) -> np.ndarray:
    """Expectation of table (S, A, ..., A[, X]) over the actions of all agents but one: (S, A[, X])."""
    N = len(policies)
    out = np.asarray(table, dtype=np.float64)
    for j in reversed(range(N)):  # from the last, so that the axes still to go keep their numbers
        if j != agent:
            shape = [1] * out.ndim
            shape[0], shape[1 + j] = policies[j].shape
            out = (out * policies[j].reshape(shape)).sum(axis=1 + j)
    return out


def decentralized_backup(rewards, transitions, policies, agent, q, gamma):
    """The operator of eq. (5), once, on agent i's q (S, A): its own action, the others' expectation.

    (Gamma q)(s, a_i) = E_a_-i [ r(s, a) + gamma E_s' E_a_i'~pi_i [ q(s', a_i') ] ],  eq. (4)
    """
    r = over_others(rewards, policies, agent)
    p = over_others(transitions, policies, agent)
    return r + gamma * p @ (policies[agent] * q).sum(axis=-1)


def evaluate_exactly(rewards, transitions, policies, gamma):
    """Exact values of a product policy: V (S,), q_i(s, a_i) (N, S, A) and advantages A_i = q_i − V (N, S, A).

    q_i of eq. (4) is the fixed point of (5), E_a_-i Q(s, a_i, a_-i); so E_a_i q_i = V. A_i is eq. (7).
    """
    N, S, _ = policies.shape
    models = [(over_others(rewards, policies, i), over_others(transitions, policies, i)) for i in range(N)]
    r = (policies[0] * models[0][0]).sum(axis=-1)
    p = (policies[0][..., None] * models[0][1]).sum(axis=1)
    value = np.linalg.solve(np.eye(S) - gamma * p, r)
    q = np.stack([own_r + gamma * own_p @ value for own_r, own_p in models])
    return value, q, q - value[:, None]


def visitation(transitions, policies, gamma):
    """Discounted visits rho(s) = sum_t gamma^t Pr(s_t = s) from state 0; they sum to 1 / (1 − gamma)."""
    p = (policies[0][..., None] * over_others(transitions, policies, 0)).sum(axis=1)
    start = np.eye(len(p))[0]
    return np.linalg.solve(np.eye(len(p)) - gamma * p.T, start)
