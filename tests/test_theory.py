"""Sections 3.1 to 3.3, Proposition F.2 and Figure 11 of the paper, statement by statement.

On random games and policies, F.2 on one game; tests are named by the paper's numbers. Both readings of the
root, (20) and (21), are tested in `tests/scripts/test_learner.py`. Every quantity that a statement
needs is computed here a second time, by enumerating joint actions. What the paper says that is not so has
a counterexample.
"""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import dpo_matrix as dpo
from envs.matrix import PAYOFFS, StochasticGame, exact

quick = settings(max_examples=60, deadline=None, derandomize=True)
TABLE_3 = [*PAYOFFS.values()]
STARTS = [(0.5, 0.5), (0.2, 0.3), (0.3, 0.8)]
"""Of p and q: the centre of the matrix games, and two on either side of game 1's border between basins."""


def kl(old, new):
    """KL(old ‖ new) over the last axis, as a sum of terms that are not negative: its root is taken."""
    z = (new - old) / old
    log_ratio = np.where(np.abs(z) < 0.5, np.log1p(np.maximum(z, -0.5)), np.log(new / old))
    return (old * np.maximum(z - log_ratio, 0.0)).sum(axis=-1)


def product(policies):
    """Probabilities (S, A^n) of the joint actions of some agents (n, S, A), the last agent's fastest."""
    joint = np.ones((policies.shape[1], 1))
    for pi in policies:
        joint = (joint[:, :, None] * pi[:, None]).reshape(len(pi), -1)
    return joint


class Game:
    """A game with an old and a new joint policy, and its exact quantities by enumeration."""

    def __init__(self, rewards, transitions, old, new, gamma):
        self.rewards, self.transitions, self.old, self.new, self.gamma = rewards, transitions, old, new, gamma
        self.N, self.S, self.A = old.shape
        self.M = np.abs(rewards).max() / (1 - gamma)
        self.m_tilde = 2 * self.M  # Lemma 3.2
        self.m_hat = np.sqrt((self.N - 1) / self.N) * self.m_tilde  # Theorem 3.3, by (15) and (16)
        self.tol = 1e-10 * (1 + self.M)
        self.value, self.q = self.solve(old)
        self.advantage = self.q - self.value[:, None]

    @classmethod
    def random(cls, seed, S, N, A, gamma, closeness):
        rng = np.random.default_rng(seed)
        rewards = rng.uniform(-5, 5, (S, *[A] * N))
        transitions = rng.dirichlet(np.full(S, 0.3), (S, *[A] * N))
        sharpness = rng.choice([0.1, 1.0, 10.0])
        old = rng.dirichlet(np.full(A, sharpness), (N, S)) + 1e-9
        old /= old.sum(axis=-1, keepdims=True)
        other = rng.dirichlet(np.full(A, sharpness), (N, S))
        game = cls(rewards, transitions, old, (1 - closeness) * old + closeness * other, gamma)
        game.rng = rng
        return game

    def solve(self, policies):
        """Eq. (1), (2): V (S,) and Q (S, A^N) of a product policy."""
        r, p = self.rewards.reshape(self.S, -1), self.transitions.reshape(self.S, -1, self.S)
        joint = product(policies)
        p_pi = np.einsum("sa,sat->st", joint, p)
        value = np.linalg.solve(np.eye(self.S) - self.gamma * p_pi, (joint * r).sum(axis=1))
        return value, r + self.gamma * p @ value

    def own(self, table):
        """E_a_-i of a table (S, A^N[, X]) over the old policies of the others, by enumeration."""
        out = np.zeros((self.N, self.S, self.A, *table.shape[2:]))
        for k, row in enumerate(itertools.product(range(self.A), repeat=self.N)):
            for i in range(self.N):
                others = np.prod([self.old[j, :, row[j]] for j in range(self.N) if j != i], axis=0)
                out[i, :, row[i]] += (others * table[:, k].T).T
        return out

    def surrogates(self, new):
        """Per state: L of (3), L_i (N, S) of (7), KL of the joint policies and KL_i (N, S)."""
        joint = (product(new) * self.advantage).sum(axis=1)
        own = (new * self.own(self.advantage)).sum(axis=-1)
        return joint, own, kl(product(self.old), product(new)), kl(self.old, new)

    def moved(self, i, old, new, table):
        """E_a_i sum_a_-i |new - old| |table| in the proof of Lemma 3.2; old, new: the others' policy."""
        by_own = np.moveaxis(np.abs(table).reshape(self.rewards.shape), 1 + i, 1)
        return np.einsum("sa,sk,sak->s", self.new[i], np.abs(new - old), by_own.reshape(self.S, self.A, -1))


games = st.builds(
    Game.random,
    seed=st.integers(0, 2**32),
    S=st.integers(1, 4),
    N=st.integers(2, 3),
    A=st.integers(2, 3),
    gamma=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    closeness=st.sampled_from([1e-4, 0.03, 0.3, 1.0 - 1e-9]),
)


@given(games)
@quick
def test_lemma_3_1_joint_surrogate_above_its_penalty_raises_every_value(game):
    """Eq. (3) in every state gives V(new) >= V(old) in every state: what all the rest is for.

    Policies are made to meet (3): steps along the agents' own advantages, halved until L is nowhere negative.
    """
    gain = game.own(game.advantage)
    gain /= np.abs(gain).max()
    for step in 0.5 ** np.arange(60):
        new = game.old * np.exp(step * gain)
        new /= new.sum(axis=-1, keepdims=True)
        joint, _, kl_joint, _ = game.surrogates(new)
        if (joint >= 0).all():
            break
    else:
        pytest.fail("no step meets (3)")
    moved = kl_joint > 0
    c = game.rng.uniform() * (joint[moved] / kl_joint[moved]).min()
    assert (joint - c * kl_joint >= 0).all()
    value = game.solve(new)[0]
    assert (value >= game.value - game.tol).all()
    p = np.einsum("sa,sat->st", product(new), game.transitions.reshape(game.S, -1, game.S))
    difference = np.linalg.solve(np.eye(game.S) - game.gamma * p, joint)  # L, summed over the new visits
    np.testing.assert_allclose(value - game.value, difference, atol=game.tol)


@given(games)
@quick
def test_eq_4_decentralized_critic_is_the_expectation_over_the_others(game):
    """The fixed point of (5) is E_a_-i Q, and V_i = V: else an agent alone would not learn its true value."""
    value, q, advantages = exact.evaluate_exactly(game.rewards, game.transitions, game.old, game.gamma)
    np.testing.assert_allclose(value, game.value, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(q, game.own(game.q), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(advantages, game.own(game.advantage), rtol=1e-9, atol=1e-8)  # eq. (7)
    for i in range(game.N):
        backed_up = exact.decentralized_backup(game.rewards, game.transitions, game.old, i, q[i], game.gamma)
        np.testing.assert_allclose(backed_up, q[i], rtol=1e-9, atol=1e-9)
        # All agents agree on V, and an agent's advantages average to 0 under its own policy.
        np.testing.assert_allclose((game.old[i] * q[i]).sum(axis=-1), game.value, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose((game.old * advantages).sum(axis=-1), 0.0, atol=1e-8)


@given(games)
@quick
def test_eq_6_decentralized_backup_contracts_by_gamma(game):
    """In the maximum norm: else independent critics need not converge. The operator itself is eq. (5)."""
    pair = game.rng.normal(0.0, 100.0, (2, game.S, game.A))
    own_r = game.own(game.rewards.reshape(game.S, -1))
    own_p = game.own(game.transitions.reshape(game.S, -1, game.S))
    for i in range(game.N):
        backup = functools.partial(exact.decentralized_backup, game.rewards, game.transitions, game.old, i)
        first, second = (backup(q, game.gamma) for q in pair)
        expected = own_r[i] + game.gamma * own_p[i] @ (game.old[i] * pair[0]).sum(axis=-1)
        np.testing.assert_allclose(first, expected, rtol=1e-9, atol=1e-9)
        assert np.abs(first - second).max() <= game.gamma * np.abs(pair[0] - pair[1]).max() + 1e-9
        # By no more than gamma: tables that are a constant apart.
        np.testing.assert_allclose(backup(pair[0] + 1.0, game.gamma) - first, game.gamma, atol=1e-9)


@pytest.mark.parametrize("reward", ["expected", "sampled"])
def test_proposition_f_2_learning_along_one_trajectory_finds_the_decentralized_critic(reward):
    """Eq. (22): all agents at once, only the pair visited, step sizes n^-0.8 (eq. 23), any initial Q.

    With the paper's r_i, the expectation over the others; and with the reward as drawn, all an agent sees.
    """
    game = Game.random(seed=3, S=3, N=2, A=2, gamma=0.6, closeness=0.0)
    game.old = 0.8 * game.old + 0.1  # every pair is visited for ever
    rewards, transitions = game.rewards, game.transitions.cumsum(axis=-1)
    _, target, _ = exact.evaluate_exactly(rewards, game.transitions, game.old, game.gamma)
    own_r, pi = game.own(rewards.reshape(game.S, -1)).tolist(), game.old.tolist()
    rewards, transitions = rewards.tolist(), transitions.tolist()
    q, visits = game.rng.normal(0.0, 100.0, game.old.shape).tolist(), np.zeros(game.old.shape).tolist()
    errors, s = [], 0
    for t, (*draws, x) in enumerate(game.rng.uniform(size=(120_000, 3)).tolist()):
        a = [int(u > pi[i][s][0]) for i, u in enumerate(draws)]
        cumulative = transitions[s][a[0]][a[1]]
        after = (x > cumulative[0]) + (x > cumulative[1])
        for i in range(2):
            visits[i][s][a[i]] += 1
            r = own_r[i][s][a[i]] if reward == "expected" else rewards[s][a[0]][a[1]]
            next_value = pi[i][after][0] * q[i][after][0] + pi[i][after][1] * q[i][after][1]
            q[i][s][a[i]] += visits[i][s][a[i]] ** -0.8 * (r + game.gamma * next_value - q[i][s][a[i]])
        s = after
        if t + 1 in (100, 3000, 120_000):
            errors.append(np.abs(q - target).max())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02 * np.ptp(target)


@given(games)
@quick
def test_lemma_3_2_own_surrogates_bound_the_joint_one(game):
    """Eq. (9) to (11), for every agent: L >= L_i - M~ sqrt(sum_{j != i} KL_j), M~ = 2 r_max / (1 - gamma).

    Without it an agent's own surrogate says nothing about the team's. The proof needs Q for the paper's A
    (`test_counterexample_to_m_above_every_advantage`): V(s) cancels, and |Q| <= M.
    """
    assert np.abs(game.q).max() <= game.M + game.tol
    assert np.abs(game.advantage).max() <= 2 * game.M + game.tol  # twice the paper's M
    joint, own, _, kls = game.surrogates(game.new)
    for i in range(game.N):
        old, new = (product(np.delete(policies, i, axis=0)) for policies in (game.old, game.new))
        tv = 0.5 * np.abs(new - old).sum(axis=-1)
        of_q = game.moved(i, old, new, game.q)
        kl_others = kls.sum(axis=0) - kls[i]
        np.testing.assert_allclose(kl(old, new), kl_others, rtol=1e-6, atol=1e-15)  # eq. (11)
        assert (np.abs(joint - own[i]) <= of_q + 1e-9).all()
        assert (of_q <= game.m_tilde * tv + 1e-9).all()
        assert (2 * tv**2 <= kl_others + 1e-15).all()  # Pinsker's; the paper needs TV² <= KL
        assert (joint - own[i] >= -game.m_tilde * np.sqrt(kl_others) - 1e-9).all()  # eq. (9)
    assert (np.abs(joint - own.mean(axis=0)) <= game.m_hat * np.sqrt(kls).sum(axis=0) + 1e-9).all()


def test_lemma_3_2_is_generous_by_no_more_than_pinskers_root_of_two():
    """A smaller M~ than by the factor sqrt(2) would be no bound: the tests above could fail."""
    old, new = np.full((2, 1, 2), 0.5), np.full((2, 1, 2), 0.5)
    new[1] += [-1e-4, 1e-4]
    game = Game(np.array([[[1.0, -1.0], [1.0, -1.0]]]), np.ones((1, 2, 2, 1)), old, new, 0.0)
    joint, own, _, kls = game.surrogates(new)
    assert joint[0] - own[0, 0] == pytest.approx(-game.m_tilde * np.sqrt(kls[1, 0] / 2), rel=1e-6)


@given(games, st.sampled_from([0.01, 1.0, 100.0]))
@quick
def test_theorem_3_3_line_by_line(game, c):
    """Eq. (13) to (16), and so the first inequality of (12), in every state: (17) maximises a lower bound."""
    joint, own, kl_joint, kls = game.surrogates(game.new)
    N, mean, total = game.N, own.mean(axis=0), kls.sum(axis=0)
    np.testing.assert_allclose(kl_joint, total, rtol=1e-6, atol=1e-15)  # eq. (11), of all agents
    root_13 = np.sqrt(np.maximum([total - kls[i] for i in range(N)], 0.0)).sum(axis=0)
    root_14 = np.sqrt((N - 1) / N * total)
    line_13 = mean - game.m_tilde / N * root_13 - c * kl_joint
    line_14 = mean - game.m_tilde * root_14 - c * kl_joint
    line_15 = mean - game.m_tilde * root_14 - c * total
    line_16 = mean - game.m_hat * np.sqrt(kls).sum(axis=0) - c * total
    tol = 1e-9 + 1e-12 * c * total
    assert (joint - c * kl_joint >= line_13 - tol).all()
    assert (line_13 >= line_14 - tol).all()
    np.testing.assert_allclose(line_14, line_15, rtol=1e-9, atol=1e-9 * c)
    assert (line_15 >= line_16 - tol).all()
    assert (joint - c * kl_joint >= line_16 - tol).all()  # eq. (12)


def test_coefficient_of_theorem_3_3_by_hand():
    """sqrt((N - 1) / N) 2 r_max / (1 - gamma), as (16) needs it.

    Printed below (12) the root spans the whole product. So read, (12) is no bound: two agents that both leave
    the action that pays 100 lower L by more.
    """
    assert np.isclose(dpo.m_hat_theory(2, 1.0, 0.0), np.sqrt(2.0))
    assert np.isclose(dpo.m_hat_theory(5, 3.0, 0.9), 0.894427191 * 60.0)
    rewards, old = np.array([[[100.0, 0.0], [0.0, -100.0]]]), np.full((2, 1, 2), 0.5)
    game = Game(rewards, np.ones((1, 2, 2, 1)), old, old + np.array([-0.1, 0.1]), 0.0)
    joint, own, _, kls = game.surrogates(game.new)
    bound = own.mean(axis=0) - np.array([[game.m_hat], [np.sqrt(100.0)]]) * np.sqrt(kls).sum(axis=0)
    assert bound[0] < joint < bound[1]


@given(games, st.sampled_from([0.0, 0.3, 0.9]), st.booleans())
@quick
def test_theorem_3_4_no_value_falls_when_c_outweighs_the_interaction(game, kink, to_m):
    """Eq. (18), (19) where policies move: V falls in no state, whatever M-hat is, if C >= (N - 1) M / N.

    Not the paper's proof. At the maximiser of (18) L_i >= N C KL_i, and what the agents do not foresee is at
    most 4 M sum_{j<i} TV_i TV_j <= (N - 1) M sum KL_i. With C >= M condition (3) holds with this C.
    """
    c = game.M if to_m else (game.N - 1) / game.N * game.M
    gain = game.own(game.advantage) / game.N
    m_hat = kink * np.sqrt(2 * (game.old * gain**2).sum(axis=-1).max())  # of 1 and more no small step pays
    new, _ = dpo.dpo_step(game.rewards, game.transitions, game.old, game.gamma, m_hat, c)
    assert (new != game.old).any()
    joint, own, kl_joint, kls = game.surrogates(new)
    surrogate = own / game.N - m_hat * np.sqrt(kls) - c * kls
    assert (surrogate >= -game.tol).all()  # the last line of (19), per agent
    for share in (
        0.8,
        1.2,
    ):  # of the way: less or more is no better, which an objective other than (18) fails
        near = game.old ** (1 - share) * new**share
        near /= near.sum(axis=-1, keepdims=True)
        _, own_near, _, kls_near = game.surrogates(near)
        assert (own_near / game.N - m_hat * np.sqrt(kls_near) - c * kls_near <= surrogate + game.tol).all()
    assert (joint - (c * kl_joint if to_m else 0.0) >= -game.tol).all()
    assert (game.solve(new)[0] >= game.value - game.tol).all()


@pytest.mark.parametrize("seed", range(2))
def test_theorem_3_4_values_converge(seed):
    """V rises in every state and settles: bounded, it must; the steps shrink by a factor of 1000."""
    game = Game.random(seed=seed, S=2, N=2, A=2, gamma=0.5, closeness=0.0)
    start = np.full_like(game.old, 0.5)
    path, returns = dpo.iterate(game.rewards, game.transitions, start, game.gamma, 0.02, game.M / 2, 100)
    values = np.array([game.solve(policies)[0] for policies in path])
    np.testing.assert_allclose(values[:, 0], returns, atol=game.tol)
    steps = np.diff(values, axis=0)
    assert (steps >= -1e-12).all()
    assert (steps[0] > 0.5).any() and steps[-10:].max() < 1e-3 * steps[0].max()


@given(games)
@quick
def test_theorem_3_4_stands_still_with_its_own_coefficient(game):
    """With the M-hat of Theorem 3.3 an agent's best move is none: V does not fall as nothing moves.

    By Pinsker the penalty is at least sqrt(2 N (N - 1)) times the gain, for any policy. So the last ">= 0"
    of (12) fails for every policy but the old one, the maximiser; there it holds: all that (19) needs.
    """
    _, own, _, kls = game.surrogates(game.new)
    factor = np.sqrt(2 * game.N * (game.N - 1))
    assert (game.m_hat * np.sqrt(kls) >= factor * own / game.N - 1e-9).all()
    middle = own.mean(axis=0) - game.m_hat * np.sqrt(kls).sum(axis=0)
    assert (middle[np.sqrt(kls).sum(axis=0) * game.m_hat > 1e-8] < 0).all()
    new, value = dpo.dpo_step(game.rewards, game.transitions, game.old, game.gamma, game.m_hat, 0.0)
    assert (new == game.old).all()
    assert value == pytest.approx(game.value[0], abs=1e-9)


def test_counterexample_to_the_last_inequality_of_eq_12():
    """Its middle is negative though both agents step towards the only action that pays."""
    rewards, old = np.array([[[1.0, 0.0], [0.0, 0.0]]]), np.full((2, 1, 2), 0.5)
    game = Game(rewards, np.ones((1, 2, 2, 1)), old, old + np.array([0.1, -0.1]), 0.0)
    joint, own, _, kls = game.surrogates(game.new)
    assert joint > 0.1
    assert own.mean(axis=0) - game.m_hat * np.sqrt(kls).sum(axis=0) < -0.3  # even with C = 0


def test_counterexample_to_m_above_every_advantage():
    """M = r_max / (1 - gamma) may be as little as half of max |A|: then the second line before (10) fails.

    The second agent, who nearly always earns -1, shifts weight between two actions that earn 1.
    """
    rewards = np.tile([-1.0, 1.0, 1.0], (1, 3, 1))
    old = np.array([[[1 / 3, 1 / 3, 1 / 3]], [[0.98, 0.01, 0.01]]])
    new = old + np.array([[[0.0, 0.0, 0.0]], [[0.0, 0.005, -0.005]]])
    game = Game(rewards, np.ones((1, 3, 3, 1)), old, new, 0.0)
    assert game.M == 1.0
    assert np.abs(game.advantage).max() == pytest.approx(1.96)
    assert game.moved(0, old[1], new[1], game.advantage) > 1.9 * game.M * np.abs(new[1] - old[1]).sum()
    joint, own, _, _ = game.surrogates(new)
    assert joint - own[0] == pytest.approx(0.0, abs=1e-12)  # the lemma holds: nothing was gained or lost


def iterate_matrix_games(payoffs, starts, m_hat, c, iterations=dpo.ITERATIONS):
    """Exact iteration of 2x2 games side by side, as states: policies (t, 2, games, 2), J (t, games)."""
    rewards, p = np.reshape(payoffs, (-1, 2, 2)), np.array(starts).T
    transitions = np.ones((1, 2, 2, 1)) * np.eye(len(rewards))[:, None, None]
    path, _ = dpo.iterate(rewards, transitions, np.stack([p, 1 - p], axis=-1), 0.0, m_hat, c, iterations)
    return path, np.einsum("tsa,tsb,sab->ts", path[:, 0], path[:, 1], rewards)


def test_figure_11_moves_with_another_m_hat_than_the_theorems():
    """M-hat "defined by the payoff matrix" as in Theorem 3.3 leaves p and q where they are, from any start.

    So does the root as printed, from p = q = 1/2, and but for game 4 from any start. With a smaller M-hat J
    never falls, as C = 10 >= M / 2 in all games, and games 1 and 2 are trapped in a sub-optimum as in the
    figure: by the kink, not without it.
    """
    starts = np.random.default_rng(0).beta(0.5, 0.5, (50, 2))
    grid = np.stack(np.meshgrid(*[(np.arange(41) + 0.5) / 41] * 2), axis=-1).reshape(-1, 2)
    for payoff, m_hat in zip(TABLE_3, (9.9, 7.07, 9.9, 28.28), strict=True):
        assert dpo.m_hat_theory(2, max(payoff), 0.0) == pytest.approx(m_hat, abs=0.01)
        path, _ = iterate_matrix_games([payoff] * 50, starts, dpo.m_hat_theory(2, max(payoff), 0.0), 10.0, 1)
        assert (path[1] == path[0]).all()
        literal = np.sqrt(max(payoff))  # sqrt(1/2 · 2M)
        path, _ = iterate_matrix_games([payoff] * 51, [(0.5, 0.5), *starts], literal, 10.0, 1)
        assert (path[1, :, 0] == path[0, :, 0]).all()
        assert (path[1] == path[0]).all() == (payoff != PAYOFFS["4"])
        path, _ = iterate_matrix_games([payoff] * len(grid), grid, literal, 10.0, 1)
        moving = (path[1] != path[0]).any(axis=(0, 2))
        assert round(100 * moving.mean()) == (29 if payoff == PAYOFFS["4"] else 0)
        # (15 q - 5) sqrt(2 p (1 - p)) > sqrt(20) there, or the same with p for q.
        assert (grid[moving].max(axis=1) > 1 / 3 + np.sqrt(40) / 15).all()
        centre = [iterate_matrix_games(payoff, [(0.5, 0.5)], m_hat, 10.0, 1)[0] for m_hat in (0.353, 0.354)]
        assert [(path[1] == path[0]).all() for path in centre] == [False, payoff == PAYOFFS["1"]]
    optima = np.max(TABLE_3, axis=1)
    for m_hat, trapped in ((0.0, []), (0.35, [0, 1])):
        path, returns = iterate_matrix_games(TABLE_3, [(0.5, 0.5)] * 4, m_hat, 10.0, 100)
        assert (np.diff(returns, axis=0) >= -1e-12).all()
        assert np.abs(path[-1] - path[-2]).max() < 1e-3
        assert list(np.flatnonzero(optima - returns[-1] > 0.5)) == trapped
        assert list(np.flatnonzero((path[:, 1] == 0.5).all(axis=(0, 2)))) == trapped  # q stays


@functools.cache
def ends_on_table_3(m_hat):
    """Games of Table 3, each from each of STARTS; the exact iteration with C = 10 until it is steady."""
    cases = list(itertools.product(TABLE_3, STARTS))
    return cases, *iterate_matrix_games(
        [payoff for payoff, _ in cases], [start for _, start in cases], m_hat, 10
    )


@pytest.mark.parametrize("m_hat", [0.0, 0.5])
def test_figure_11_is_monotone_and_ends_where_no_agent_has_a_better_answer(m_hat):
    """J never falls on the whole way; at its end nothing on a fine grid is better for an agent in (18)."""
    cases, path, returns = ends_on_table_3(m_hat)
    assert (np.diff(returns, axis=0) >= -1e-12).all()
    assert dpo.is_steady(path) and len(path) < 2000
    x = np.linspace(0, 1, 100_001)[1:-1]
    for k, (payoff, _) in enumerate(cases):
        (a, b), (c, d) = np.reshape(payoff, (2, 2))
        p, q = path[-1, :, k]
        gains = (a - c) * q[0] + (b - d) * q[1], (a - b) * p[0] + (c - d) * p[1]
        for old, gain in zip((p, q), gains, strict=True):
            divergence = kl(old, np.stack([x, 1 - x], axis=-1))
            assert (gain / 2 * (x - old[0]) - m_hat * np.sqrt(divergence) - 10 * divergence).max() <= 1e-9


def test_figure_11_without_the_root_ends_at_the_equilibrium_of_its_basin():
    """p and q, game by game: with M-hat 0 only the game can trap the iteration, in an equilibrium."""
    cases, path, returns = ends_on_table_3(0.0)
    ends = [[(1, 0), (1, 0), (0, 1)], [(0, 1)] * 3, [(1, 1), (0, 0), (1, 1)], [(1, 1), (0, 0), (1, 1)]]
    np.testing.assert_allclose(path[-1, :, :, 0].T, np.concatenate(ends), atol=1e-9)
    np.testing.assert_allclose(returns[-1], [7, 7, 6, 5, 5, 5, 7, 3, 7, 20, 10, 20], atol=1e-9)


def test_figure_11_with_the_root_stops_short():
    """J at the end with M-hat 0.5, C = 10: games 1 and 2 stay far from their optimum, 3 and 4 near an end."""
    _, _, returns = ends_on_table_3(0.5)
    measured = [5.5, 6.0568, 5.54, 4.2808, 3.9844, 4.6460, 6.8258, 2.48, 6.8258, 19.9498, 9.8971, 19.9498]
    np.testing.assert_allclose(returns[-1], measured, atol=1e-4)


@pytest.mark.parametrize("m_hat", [0.0, 0.5])
def test_steady_is_steady(m_hat):
    """Another 1000 iterations change nothing: else the ends of Figure 11 would be ends of our patience."""
    cases, path, returns = ends_on_table_3(m_hat)
    policies, rewards = path[-1], np.reshape([payoff for payoff, _ in cases], (-1, 2, 2))
    transitions = np.ones((1, 2, 2, 1)) * np.eye(len(rewards))[:, None, None]
    for _ in range(1000):
        before = policies
        policies, _ = dpo.dpo_step(rewards, transitions, before, 0.0, m_hat, 10.0)
        if (policies == before).all():  # so it will be for ever
            break
    assert np.abs(policies - path[-1]).max() < 1e-9
    later = np.einsum("sa,sb,sab->s", *policies, rewards)
    np.testing.assert_allclose(later, returns[-1], atol=1e-9)


def test_iteration_that_only_creeps_is_not_called_steady():
    """1 1 1 0: 1 - p and 1 - q shrink as 1 / t, as each needs the other less and less; no end is in sight."""
    path, _ = iterate_matrix_games((1.0, 1.0, 1.0, 0.0), [(0.5, 0.5)], 0.0, 1.0, 800)
    assert len(path) == 801 and not dpo.is_steady(path)
    assert path[800, 0, 0, 1] == pytest.approx(path[400, 0, 0, 1] / 2, rel=0.02)


def pure_equilibria(payoff):
    """J of the cells that neither agent alone leaves with a gain."""
    table = np.reshape(payoff, (2, 2))
    best = (table == table.max(axis=0)) & (table == table.max(axis=1, keepdims=True))
    return sorted(table[best].tolist())


def test_equilibria_of_table_3():
    """Game 1 has two, so that the game itself can trap the iteration; game 2 has only its optimum."""
    assert [pure_equilibria(payoff) for payoff in TABLE_3] == [[6, 7], [5], [3, 7], [10, 20]]


def test_game_2_traps_only_in_the_dead_zone_of_the_root():
    """From (0.1, 0.1) nothing moves with M-hat 0.35 though both agents gain by another action; with 0 J is 5.

    The slope of the root at KL = 0 holds them: moving pays where |gain| / 2 > M-hat / sqrt(2 p (1 - p)).
    """
    payoff, start = PAYOFFS["2"], (0.1, 0.1)
    path, _ = iterate_matrix_games(payoff, [start], 0.35, 10.0)
    assert (path == path[0]).all()
    a, b, c, d = payoff
    for gain in ((a - c) * 0.1 + (b - d) * 0.9, (a - b) * 0.1 + (c - d) * 0.9):
        assert 0.5 < abs(gain) < 2 * 0.35 / np.sqrt(2 * 0.1 * 0.9)
    _, returns = iterate_matrix_games(payoff, [start], 0.0, 10.0)
    assert returns[-1, 0] == pytest.approx(5.0, abs=1e-9)


@given(games)
@quick
def test_return_is_bounded_from_below(game):
    """Not in the paper: what Lemma 3.2 says of J, by the bound of TRPO on the joint policy.

    J(new) − J(old) >= sum_s rho(s) ((1/N) sum_i L_i(s) − M̂ sum_i sqrt(KL_i(s))) − C sum_i max_s KL_i(s), with
    rho the discounted visits of the old policy and C = 4 gamma max|A| / (1 − gamma)^2.
    """
    joint, own, _, kls = game.surrogates(game.new)
    penalised = own.mean(axis=0) - game.m_hat * np.sqrt(kls).sum(axis=0)
    rho = exact.visitation(game.transitions, game.old, game.gamma)
    assert abs(rho.sum() - 1 / (1 - game.gamma)) < 1e-9 / (1 - game.gamma)
    gain = game.solve(game.new)[0][0] - game.value[0]
    c = 4 * game.gamma * np.abs(game.advantage).max() / (1 - game.gamma) ** 2
    rest = c * kls.max(axis=1).sum()
    assert gain >= rho @ joint - rest - 1e-8
    assert gain >= rho @ penalised - rest - 1e-8


def test_bound_needs_the_penalty_weighted_by_visits():
    """With max_s KL_i(s) outside the sum over visits, which is 1 / (1 − gamma), the bound on J would be none.

    Two agents walk a row of 40 rooms, where one of them decides each step; a slight drift moves J by more.
    """
    S, gamma = 40, 0.9999
    rewards, transitions = np.full((S, 2, 2), -1.0), np.zeros((S, 2, 2, S))
    rewards[S // 2 :] = 1.0
    for s in range(S):
        transitions[s, 0, :, min(s + 1, S - 1)] = transitions[s, 1, :, max(s - 1, 0)] = 1.0
    old, new = np.full((2, S, 2), 0.5), np.full((2, S, 2), 0.5)
    new[0] += [-1e-6, 1e-6]
    value, _, advantages = exact.evaluate_exactly(rewards, transitions, old, gamma)
    rho = exact.visitation(transitions, old, gamma)
    own, kls = (new * advantages).sum(axis=-1), dpo.kl_of_ratio(old, (new - old) / old, new / old)
    gain = exact.evaluate_exactly(rewards, transitions, new, gamma)[0][0] - value[0]
    m_hat, c = dpo.m_hat_theory(2, 1.0, gamma), 4 * gamma * np.abs(advantages).max() / (1 - gamma) ** 2
    rest = c * kls.max(axis=1).sum()
    assert gain < (rho @ own.T).mean() - m_hat * np.sqrt(kls.max(axis=1)).sum() - rest
    assert gain > rho @ (own.mean(axis=0) - m_hat * np.sqrt(kls).sum(axis=0)) - rest


@given(st.integers(0, 2**32), st.integers(2, 5), st.sampled_from([0.0, 0.3, 0.97, 1.03, 2.0]), st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_exact_update_is_the_maximiser(seed, A, relative, data):
    """Eq. (18): neither random search nor a numerical optimiser finds better policies than the update."""
    rng = np.random.default_rng(seed)
    old = rng.dirichlet(np.full(A, data.draw(st.sampled_from([0.2, 1.0, 5.0])))) + 1e-6
    old /= old.sum()
    gain = rng.normal(0.0, data.draw(st.sampled_from([0.1, 1.0, 10.0])), A)
    variance = (old * (gain - old @ gain) ** 2).sum()
    m_hat = relative * np.sqrt(2 * variance)  # 1: not moving becomes a local maximum
    c = data.draw(st.sampled_from([0.01, 1.0, 10.0]))

    def objective(pi):
        k = np.maximum((old * np.log(old / np.maximum(pi, 1e-300))).sum(axis=-1), 0.0)
        return pi @ gain - m_hat * np.sqrt(k) - c * k

    def loss(logits):
        weights = np.exp(logits - logits.max())
        return -objective(weights / weights.sum())

    new = dpo.solve_surrogate(old, gain, m_hat, c)
    found = rng.dirichlet(np.full(A, 0.5), 2000)
    start = found[objective(found).argmax()]
    best = max(objective(found).max(), *(-minimize(loss, np.log(pi + 1e-9)).fun for pi in (start, new, old)))
    assert new.sum() == pytest.approx(1.0, abs=1e-14)
    assert objective(new) >= best - 1e-7 * (1 + abs(best))
    if m_hat == 0.0:  # strictly concave: stationary is enough, and exact. pi_a (nu − gain_a) = c old_a
        nu = gain + c * old / new
        np.testing.assert_allclose(nu, nu[0], rtol=1e-8)


def test_update_stays_exactly_where_moving_does_not_pay():
    """A dead zone that only nearly stays put would let policies creep away from the theory's fixed point."""
    old, gain = np.array([0.5, 0.5]), np.array([1.0, 0.0])  # sqrt(2) · std = 0.7071
    assert (dpo.solve_surrogate(old, gain, 0.708, 1.0) == old).all()
    assert dpo.solve_surrogate(old, gain, 0.706, 1.0)[0] > 0.5
    assert (dpo.solve_surrogate(old, np.array([2.0, 2.0]), 0.0, 1.0) == old).all()
    far = dpo.solve_surrogate(np.array([0.999, 0.001]), np.array([0.0, 10.0]), 0.5, 0.0)
    assert far[1] > 0.9  # not moving is a local maximum here, a long way is the best
    old, gain = np.array([0.3, 0.2, 0.5]), np.array([13.0, -12.0, -6.0])
    nearly_greedy = dpo.solve_surrogate(old, gain, 0.0, 1e-6)
    assert nearly_greedy[0] > 1 - 1e-6
    np.testing.assert_allclose(nearly_greedy[1:] * (13.0 - gain[1:]), 1e-6 * old[1:], rtol=1e-5)
    sure = dpo.solve_surrogate(np.array([0.25, 0.75]), np.array([-1.11, 0.5]), 0.0, 8e-4)
    np.testing.assert_allclose(sure[0] * 1.61, 8e-4 * 0.25, rtol=1e-3)  # from an action likely already


def test_update_keeps_impossible_actions_impossible():
    """An action that is masked or was given up must not come back from a division by zero."""
    new = dpo.solve_surrogate(np.array([0.5, 0.5, 0.0]), np.array([1.0, 0.0, 50.0]), 0.1, 1.0)
    assert new[2] == 0.0
    assert new[0] > 0.5 and new.sum() == pytest.approx(1.0)


def test_matrix_games_climb_with_a_small_penalty_and_stay_with_the_theoretical():
    """The curves that dpo_matrix.py draws: M̂ = 0.3 moves and J never falls; M̂ of the theorem stays put."""
    cases = list(itertools.product(PAYOFFS, [(0.5, 0.5), (0.55, 0.55), (0.3, 0.45)]))
    payoffs, starts = np.array([PAYOFFS[game] for game, _ in cases]), [start for _, start in cases]
    _, returns = iterate_matrix_games(payoffs, starts, 0.3, 10.0, 60)
    assert (np.diff(returns, axis=0) >= -1e-12).all()
    # Near the centre of game 1 each agent's two actions earn nearly the same: the dead zone of the root.
    still = [cases[k] for k in np.flatnonzero(returns[-1] < returns[0] + 0.1)]
    assert still == [("1", (0.55, 0.55))]
    for payoff, start in zip(payoffs, starts, strict=True):
        m_hat = dpo.m_hat_theory(2, np.abs(payoff).max(), 0.0)
        path, _ = iterate_matrix_games(payoff, [start], m_hat, 10.0, 3)
        assert (path == path[0]).all()


@given(
    st.tuples(*[st.floats(-15, 15)] * 4),
    st.tuples(*[st.floats(0.01, 0.99)] * 2),
    st.floats(0.0, 2.0),
    st.floats(1.0, 10.0),
)
@quick
def test_matrix_games_never_fall_when_c_outweighs_the_interaction(payoff, start, m_hat, c):
    """Two agents, two actions: |a − b − c + d| <= 8 C is enough for J never to fall, whatever M̂ is.

    Both agents gain L_i >= 2 C KL_i >= 4 C d_i^2 for a change d_i of p or q; what they did not foresee is
    (a − b − c + d) d_1 d_2. This is why the iteration with C = 10 climbs in all games.
    """
    scale = min(1.0, 8 * c / max(abs(payoff[0] - payoff[1] - payoff[2] + payoff[3]), 1e-9))
    _, returns = iterate_matrix_games(scale * np.array(payoff), [start], m_hat, c, 8)
    assert (np.diff(returns, axis=0) >= -1e-10).all()


def test_too_small_penalties_let_the_return_fall():
    """The penalties are what makes it monotone: two agents that miss each other swap sides without them."""
    _, returns = iterate_matrix_games((10.0, 0.0, 0.0, 10.0), [(0.4, 0.6)], 0.0, 0.1, 5)
    assert np.diff(returns, axis=0).min() < -1.0


@pytest.mark.parametrize("game_seed", range(3))
def test_small_stochastic_games_climb(game_seed):
    """Measured, not proven: with M̂ = 0.3 and C = 10 the return of three agents rises at every iteration."""
    env = StochasticGame(1, 0, num_states=4, num_agents=3, num_actions=3, game_seed=game_seed)
    policies = np.full((3, 4, 3), 1 / 3)
    _, returns = dpo.iterate(env.rewards, env.transitions, policies, 0.9, 0.3, 10.0, 25)
    assert (np.diff(returns) >= -1e-10).all()
    assert returns[-1] > returns[0] + 1.0
