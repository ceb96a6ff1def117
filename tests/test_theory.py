"""Section 3 of the paper on random games and policies, and the exact iteration built on it.

Every quantity the claims need is computed here a second time, by enumerating joint actions.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import dpo_matrix as dpo
from envs.matrix import PAYOFFS, MatrixGame, StochasticGame, exact

quick = settings(max_examples=60, deadline=None, derandomize=True)


class Game:
    """A random game with an old and a new joint policy, and its exact quantities by enumeration."""

    def __init__(self, seed, S, N, A, gamma, closeness):
        rng = np.random.default_rng(seed)
        self.S, self.N, self.A, self.gamma = S, N, A, gamma
        self.rewards = rng.uniform(-5, 5, (S, *[A] * N))
        self.transitions = rng.dirichlet(np.full(S, 0.3), (S, *[A] * N))
        sharpness = rng.choice([0.1, 1.0, 10.0])
        self.old = rng.dirichlet(np.full(A, sharpness), (N, S)) + 1e-9
        self.old /= self.old.sum(axis=-1, keepdims=True)
        other = rng.dirichlet(np.full(A, sharpness), (N, S))
        self.new = (1 - closeness) * self.old + closeness * other
        self.r_max = np.abs(self.rewards).max()
        self.m_hat = dpo.m_hat_theory(N, self.r_max, gamma)
        self.value, self.q = self.solve(self.old)
        self.advantage = self.q - self.value[:, None]
        self.rng = rng

    def joint(self, policies):
        """Probabilities (S, A^N) of joint actions, one at a time."""
        rows = itertools.product(range(self.A), repeat=self.N)
        return np.stack(
            [np.prod([pi[:, a] for pi, a in zip(policies, row, strict=True)], axis=0) for row in rows], axis=1
        )

    def solve(self, policies):
        """V (S,) and Q (S, A^N) of a product policy."""
        r, p = self.rewards.reshape(self.S, -1), self.transitions.reshape(self.S, -1, self.S)
        joint = self.joint(policies)
        p_pi = np.einsum("sa,sat->st", joint, p)
        value = np.linalg.solve(np.eye(self.S) - self.gamma * p_pi, (joint * r).sum(axis=1))
        return value, r + self.gamma * p @ value

    def own_q(self):
        """E_a_-i Q(s, a_i, a_-i) of every agent, (N, S, A)."""
        own = np.zeros((self.N, self.S, self.A))
        for k, row in enumerate(itertools.product(range(self.A), repeat=self.N)):
            for i in range(self.N):
                others = [self.old[j, :, row[j]] for j in range(self.N) if j != i]
                own[i, :, row[i]] += np.prod(others, axis=0) * self.q[:, k]
        return own

    def surrogates(self):
        """Per state: the joint surrogate L (S,), each agent's L_i (N, S), and KL_i (N, S)."""
        joint = (self.joint(self.new) * self.advantage).sum(axis=1)
        own = (self.new * (self.own_q() - self.value[:, None])).sum(axis=-1)
        kls = (self.old * np.log(self.old / self.new)).sum(axis=-1)
        return joint, own, np.maximum(kls, 0.0)


games = st.builds(
    Game,
    seed=st.integers(0, 2**32),
    S=st.integers(1, 4),
    N=st.integers(2, 3),
    A=st.integers(2, 3),
    gamma=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    closeness=st.sampled_from([1e-4, 0.03, 0.3, 1.0]),
)


def test_coefficient_of_the_theorem_by_hand():
    """sqrt((N - 1) / N) 2 r_max / (1 - gamma): the other tests take the number from the code."""
    assert np.isclose(dpo.m_hat_theory(2, 1.0, 0.0), np.sqrt(2.0))
    assert np.isclose(dpo.m_hat_theory(5, 3.0, 0.9), 0.894427191 * 60.0)


@given(games)
@quick
def test_decentralized_critic_is_the_expectation_over_the_others(game):
    """Eq. (4): else an agent that learns from its own actions alone would not learn its true value."""
    value, q, advantages = exact.evaluate_exactly(game.rewards, game.transitions, game.old, game.gamma)
    np.testing.assert_allclose(value, game.value, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(q, game.own_q(), rtol=1e-9, atol=1e-9)
    for i in range(game.N):
        backed_up = exact.decentralized_backup(game.rewards, game.transitions, game.old, i, q[i], game.gamma)
        np.testing.assert_allclose(backed_up, q[i], rtol=1e-9, atol=1e-9)
        # eq. (6): all agents agree on V, and an agent's advantages average to 0 under its own policy.
        np.testing.assert_allclose((game.old[i] * q[i]).sum(axis=-1), game.value, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose((game.old * advantages).sum(axis=-1), 0.0, atol=1e-8)


@given(games)
@quick
def test_decentralized_backup_contracts_by_gamma(game):
    """Eq. (5): else independent critics need not converge."""
    first, second = game.rng.normal(0.0, 100.0, (2, game.S, game.A))
    for i in range(game.N):
        after = [
            exact.decentralized_backup(game.rewards, game.transitions, game.old, i, q, game.gamma)
            for q in (first, second)
        ]
        assert np.abs(after[0] - after[1]).max() <= game.gamma * np.abs(first - second).max() + 1e-9


@given(games)
@quick
def test_own_surrogates_bound_the_joint_one(game):
    """Lemma 3.2, in every state: without it an agent's own surrogate says nothing about the team's.

    |L(s) − (1/N) sum_i L_i(s)| <= M̂ sum_i sqrt(KL_i(s)).
    """
    joint, own, kls = game.surrogates()
    assert (np.abs(joint - own.mean(axis=0)) <= game.m_hat * np.sqrt(kls).sum(axis=0) + 1e-9).all()


@given(games)
@quick
def test_improvement_is_bounded_from_below(game):
    """Theorem 3.3 (eq. 12): the guarantee on which DPO rests; without it, its penalties are arbitrary.

    J(new) − J(old) >= sum_s rho(s) ((1/N) sum_i L_i(s) − M̂ sum_i sqrt(KL_i(s))) − C sum_i max_s KL_i(s), with
    rho the discounted visits of the old policy and C = 4 gamma max|A| / (1 − gamma)^2.
    """
    joint, own, kls = game.surrogates()
    rho = exact.visitation(game.transitions, game.old, game.gamma)
    assert abs(rho.sum() - 1 / (1 - game.gamma)) < 1e-9 / (1 - game.gamma)
    gain = game.solve(game.new)[0][0] - game.value[0]
    c = 4 * game.gamma * np.abs(game.advantage).max() / (1 - game.gamma) ** 2
    rest = c * kls.max(axis=1).sum()
    assert gain >= rho @ joint - rest - 1e-8
    assert gain >= rho @ (own.mean(axis=0) - game.m_hat * np.sqrt(kls).sum(axis=0)) - rest - 1e-8


def test_bound_needs_the_penalty_weighted_by_visits():
    """With max_s KL_i(s) outside the sum over visits, which is 1 / (1 − gamma), eq. (12) would be no bound.

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


@given(games)
@quick
def test_theoretical_penalty_exceeds_every_gain(game):
    """With the M̂ of Theorem 3.3 an agent's best move is none: J does not fall as nothing moves (Theorem 3.4).

    By Pinsker the penalty is at least sqrt(2 N (N − 1)) times the gain, for any policy.
    """
    _, own, kls = game.surrogates()
    factor = np.sqrt(2 * game.N * (game.N - 1))
    assert (game.m_hat * np.sqrt(kls) >= factor * own / game.N - 1e-9).all()
    new, value = dpo.dpo_step(game.rewards, game.transitions, game.old, game.gamma, game.m_hat, 0.0)
    assert (new == game.old).all()
    assert value == pytest.approx(game.value[0], abs=1e-9)


@given(st.integers(0, 2**32), st.integers(2, 5), st.sampled_from([0.0, 0.3, 0.97, 1.03, 2.0]), st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_exact_update_is_the_maximiser(seed, A, relative, data):
    """Eq. (18): neither random search nor a numerical optimiser finds better policies than the update."""
    rng = np.random.default_rng(seed)
    old = rng.dirichlet(np.full(A, data.draw(st.sampled_from([0.2, 1.0, 5.0])))) + 1e-6
    old /= old.sum()
    gain = rng.normal(0.0, data.draw(st.sampled_from([0.1, 1.0, 10.0])), A)
    m_hat = relative * np.sqrt(
        2 * (old * (gain - old @ gain) ** 2).sum()
    )  # 1: not moving becomes a local maximum
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


@pytest.mark.parametrize("game", PAYOFFS)
@pytest.mark.parametrize("start", [(0.5, 0.5), (0.55, 0.55), (0.3, 0.45)])
def test_matrix_games_climb_with_a_small_penalty_and_stay_with_the_theoretical(game, start):
    """The curves that dpo_matrix.py draws: M̂ = 0.3 moves and J never falls; M̂ of the theorem stays put."""
    env = MatrixGame(game)
    policies = np.array([[[p, 1 - p]] for p in start])
    _, returns = dpo.iterate(env.rewards, env.transitions, policies, 0.0, 0.3, 10.0, 60)
    assert (np.diff(returns) >= -1e-12).all()
    # (0.5, 0.5) is the saddle of game 2: no agent sees a difference between its actions.
    assert (returns[-1] > returns[0] + 0.5) == ((game, start) != ("2", (0.5, 0.5)))
    m_hat = dpo.m_hat_theory(2, np.abs(env.rewards).max(), 0.0)
    still, _ = dpo.iterate(env.rewards, env.transitions, policies, 0.0, m_hat, 10.0, 3)
    assert (still == policies).all()


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
    env = MatrixGame(payoff=tuple(scale * x for x in payoff))
    policies = np.array([[[p, 1 - p]] for p in start])
    _, returns = dpo.iterate(env.rewards, env.transitions, policies, 0.0, m_hat, c, 8)
    assert (np.diff(returns) >= -1e-5).all()  # payoffs are float32: the bound holds up to their rounding


def test_too_small_penalties_let_the_return_fall():
    """The penalties are what makes it monotone: two agents that miss each other swap sides without them."""
    env = MatrixGame("2")
    policies = np.array([[[0.4, 0.6]], [[0.6, 0.4]]])
    _, returns = dpo.iterate(env.rewards, env.transitions, policies, 0.0, 0.0, 0.1, 5)
    assert np.diff(returns).min() < -1.0


@pytest.mark.parametrize("game_seed", range(3))
def test_small_stochastic_games_climb(game_seed):
    """Measured, not proven: with M̂ = 0.3 and C = 10 the return of three agents rises at every iteration."""
    env = StochasticGame(1, 0, num_states=4, num_agents=3, num_actions=3, game_seed=game_seed)
    policies = np.full((3, 4, 3), 1 / 3)
    _, returns = dpo.iterate(env.rewards, env.transitions, policies, 0.9, 0.3, 10.0, 25)
    assert (np.diff(returns) >= -1e-10).all()
    assert returns[-1] > returns[0] + 1.0
