"""The tabular games: their tables, how they are sampled, and their exact quantities against brute force."""

import itertools

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import envs
from envs.matrix import MatrixGame, StochasticGame, TabularGame, games


def small(num_envs=1, seed=0, **options):
    return StochasticGame(num_envs, seed, **{"num_states": 4, "num_agents": 3, "num_actions": 2, **options})


def random_policies(game, seed=0):
    shape = (game.num_agents, game.num_states)
    return np.random.default_rng(seed).dirichlet(np.ones(game.num_actions), shape)


def rollout(env, steps, seed=0):
    """Play random actions, environment e's own; returns obs, rewards and truncations by step."""
    rngs = [np.random.default_rng((seed, e)) for e in range(env.num_envs)]
    played = []
    for _ in range(steps):
        actions = np.stack([rng.integers(0, env.num_actions, env.num_agents) for rng in rngs])
        obs, reward, _, truncated, _ = env.step(actions)
        played.append((obs, reward, truncated))
    return [np.stack(arrays) for arrays in zip(*played, strict=True)]


def brute_force_joint(game, policies):
    """The induced chain, one joint action at a time."""
    r, p = np.zeros(game.num_states), np.zeros((game.num_states, game.num_states))
    for s in range(game.num_states):
        for row in itertools.product(range(game.num_actions), repeat=game.num_agents):
            chance = np.prod([policies[i, s, a] for i, a in enumerate(row)])
            r[s] += chance * float(game.rewards[(s, *row)])
            p[s] += chance * game.transitions[(s, *row)].astype(np.float64)
    return r, p


def test_generator_makes_the_didactic_game():
    """Rewards 10·U − 5 and transitions softmax(4·U − 2): another game would not be the paper's."""
    game = StochasticGame(1, 0, num_states=20, num_agents=3, num_actions=5)
    assert game.rewards.shape == (20, 5, 5, 5) and game.rewards.dtype == np.float32
    assert game.transitions.shape == (20, 5, 5, 5, 20) and game.transitions.dtype == np.float32
    assert -5 <= game.rewards.min() < -4.9 and 4.9 < game.rewards.max() <= 5
    assert abs(game.rewards.mean()) < 0.2 and abs(game.rewards.std() - 10 / np.sqrt(12)) < 0.1
    np.testing.assert_allclose(game.transitions.sum(axis=-1), 1.0, atol=1e-6)
    # Within a row, log P is 4·U − 2 up to a constant: variance 4²/12, range below 4.
    logs = np.log(game.transitions.astype(np.float64)).reshape(-1, 20)
    assert abs(logs.var(axis=-1, ddof=1).mean() - 16 / 12) < 0.02
    assert 3.9 < np.ptp(logs, axis=-1).max() <= 4.0001
    assert game.episode_limit == 20


def test_game_seed_alone_makes_the_tables():
    """A curve is comparable only with curves of the same game: the environments' seed must not change it."""
    tables = [small(num_envs, seed, game_seed=g) for num_envs, seed, g in ((1, 0, 5), (3, 9, 5), (1, 0, 6))]
    assert (tables[0].transitions == tables[1].transitions).all()
    assert (tables[0].rewards == tables[1].rewards).all()
    assert (tables[0].rewards != tables[2].rewards).all()
    names = [envs.env_name(table) for table in tables]  # of run directories and of curves
    assert names[0] == names[1] == "matrix-stochastic-4x3x2-game5" and names[2].endswith("-game6")
    assert envs.env_name(small()) == "matrix-stochastic-4x3x2"


def test_next_states_follow_the_table():
    """Sampled frequencies against the table: else what is learned and what is evaluated are two games."""
    rng = np.random.default_rng(0)
    transitions = rng.dirichlet([0.5, 2.0, 0.5, 1.0, 3.0], (5, 2, 2)).astype(np.float32)
    transitions[0, 0, 1] = [0.0, 0.25, 0.0, 0.75, 0.0]
    E = 100_000
    env = TabularGame(rng.normal(size=(5, 2, 2)), transitions, 2, num_envs=E, seed=3)
    for row in itertools.product(range(2), repeat=2):
        env.reset()
        obs, reward, *_ = env.step(np.tile(row, (E, 1)))
        assert (reward == env.rewards[(0, *row)]).all()
        counts, expected = obs[:, 0].sum(axis=0), E * transitions[(0, *row)].astype(np.float64)
        assert (counts[expected == 0] == 0).all()
        possible = expected > 0
        assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() < 25  # 4 degrees: p < 1e-4


def test_no_state_is_drawn_that_cannot_follow():
    """The sum of a row is rounded, here by 9e-4: what is drawn beyond it is no reason to leave the game."""
    transitions = np.tile([0.25, 0.7491, 0.0, 0.0, 0.0], (5, 2, 2, 1))
    games = 16_384  # of which some fifteen draw beyond
    env = TabularGame(np.zeros((5, 2, 2)), transitions, 2, num_envs=games, seed=3)
    env.reset()
    obs, *_ = env.step(np.zeros((games, 2), int))
    first, second, *others = obs[:, 0].sum(axis=0)
    assert others == [0, 0, 0] and first + second == games
    assert abs(first - games / 4) < 5 * np.sqrt(games * 0.25 * 0.75)


def test_an_environment_depends_on_the_seed_and_its_index_alone():
    """Results must not change with the number of environments beside it."""
    few, many = small(2, seed=7), small(5, seed=7)
    first = few.reset()[0]
    assert (first == many.reset()[0][:2]).all()
    for a, b in zip(rollout(few, 30), rollout(many, 30), strict=True):
        assert (a == b[:, :2]).all()
    few.reset(seed=7)
    again = rollout(few, 30)[0]
    assert (again == rollout(small_after_reset(2, 7), 30)[0]).all()
    assert (again != rollout(small_after_reset(2, 8), 30)[0]).any()
    assert (again[:, 0] != again[:, 1]).any()


def small_after_reset(num_envs, seed):
    env = small(num_envs, seed)
    env.reset()
    return env


def test_contract_of_steps_and_episodes():
    """Shapes, dtypes, autoreset and statistics that learners rely on."""
    env = envs.make("matrix/stochastic", 3, seed=1, num_states=4, num_agents=3, num_actions=2)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP and env.env_id == "matrix/stochastic"
    obs, infos = env.reset()
    assert obs.shape == (3, 3, 4) and obs.dtype == np.float32 and (obs[:, :, 0] == 1).all()
    total = np.zeros(3)
    for t in range(1, 9):
        actions = np.random.default_rng(t).integers(0, 2, (3, 3))
        obs, reward, terminated, truncated, infos = env.step(actions)
        kept = obs.copy()
        assert env.observation_space.contains(obs) and (obs.sum(axis=-1) == 1).all()
        assert (obs == obs[:, :1]).all()  # every agent sees the state
        assert reward.shape == (3,) and reward.dtype == np.float32
        assert terminated.dtype == truncated.dtype == np.bool_ and not terminated.any()
        assert (truncated == (t % 4 == 0)).all()
        assert infos["action_mask"].shape == (3, 3, 2) and infos["action_mask"].all()
        assert infos["alive"].shape == (3, 3) and infos["alive"].all()
        assert (infos["_final_obs"] == truncated).all() and (infos["_episode"] == truncated).all()
        total += reward
        if t % 4 == 0:
            assert (obs[:, :, 0] == 1).all()  # already the new episode
            assert (infos["final_obs"].sum(axis=-1) == 1).all()
            np.testing.assert_allclose(infos["episode"]["r"], total, rtol=1e-5)
            assert (infos["episode"]["l"] == 4).all() and infos["final_action_mask"].all()
            total[:] = 0
        else:
            assert not infos["final_obs"].any() and not infos["episode"]["l"].any()
            assert not infos["final_action_mask"].any()
    env.step(actions)
    assert (obs == kept).all()  # not overwritten by the next step


def test_matrix_game_is_one_step_that_ends():
    """A bandit bootstraps with 0; its payoff is the reward of the chosen cell."""
    env = envs.make("matrix/1", 4, payoff=(1, 2, 3, 4))
    env.reset()
    obs, reward, terminated, truncated, infos = env.step(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]))
    assert reward.tolist() == [1, 2, 3, 4]
    assert terminated.all() and not truncated.any() and infos["_episode"].all()
    assert obs.shape == (4, 2, 1) and (infos["episode"]["l"] == 1).all()
    assert [envs.make(f"matrix/{game}", 1).env_id for game in "1234"] == [f"matrix/{game}" for game in "1234"]
    assert env.optimum().value == 4 and env.exact_return(np.full((2, 1, 2), 0.5)) == 2.5


def test_state_continues_exactly():
    """A resumed run must see the transitions that the uninterrupted one sees."""
    env = small(4, seed=2)
    env.reset()
    rollout(env, 6)
    state = env.get_state()
    expected = rollout(env, 11, seed=1)
    fresh = small(4, seed=99)
    fresh.set_state(state)
    for a, b in zip(expected, rollout(fresh, 11, seed=1), strict=True):
        assert (a == b).all()
    with pytest.raises(ValueError, match="not one of 3 environments"):
        small(3).set_state(state)
    for name, value in (("state", 4), ("state", -1), ("length", 4), ("length", -1), ("return", np.nan)):
        with pytest.raises(ValueError, match=f"damaged: '{name}'"):
            small(4).set_state({**state, name: np.full_like(state[name], value)})


def test_optimum_is_the_best_of_all_joint_policies():
    """Every curve is drawn against it: checked by plain backward induction and by trying random policies."""
    for seed in range(5):
        game = small(game_seed=seed, num_states=5)
        value = np.zeros(5)
        for _ in range(5):
            q = game.rewards.reshape(5, -1) + game.transitions.reshape(5, -1, 5).astype(np.float64) @ value
            value = q.max(axis=1)
        value_of, actions = game.optimum()
        assert value_of == pytest.approx(value[0], abs=1e-9)
        assert actions.shape == (5, 5, 3)
        greedy = np.eye(2)[actions].transpose(0, 2, 1, 3)
        assert game.exact_return(greedy) == pytest.approx(value_of, abs=1e-9)
        assert max(game.exact_return(random_policies(game, k)) for k in range(20)) < value_of


def test_optimum_skips_no_action_that_matters():
    """The bound that saves sweeps over all joint actions, where values change a lot from step to step."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        transitions = rng.dirichlet(np.full(6, 0.05), (6, 3, 3)).astype(np.float32)  # nearly deterministic
        game = TabularGame(rng.normal(0, 5, (6, 3, 3)) * rng.choice([0, 1, 10], (6, 1, 1)), transitions, 12)
        value = np.zeros(6)
        for _ in range(12):
            q = game.rewards.reshape(6, -1) + game.transitions.reshape(6, -1, 6).astype(np.float64) @ value
            value = q.max(axis=1)
        assert game.optimum().value == pytest.approx(value[0], rel=1e-9)


def test_exact_return_sums_over_joint_actions():
    """Evaluation without sampling equals enumeration, for fixed and for step-dependent policies."""
    game = small(num_states=5, num_actions=3)
    policies = np.stack([random_policies(game, k) for k in range(5)])
    r, p = brute_force_joint(game, policies[0])
    np.testing.assert_allclose(game.induced(policies[0])[0], r, atol=1e-12)
    np.testing.assert_allclose(game.induced(policies[0])[1], p, atol=1e-12)
    value = np.zeros(5)
    for _ in range(5):
        value = r + p @ value
    assert game.exact_return(policies[0]) == pytest.approx(value[0], abs=1e-9)
    assert game.exact_return(policies[0].astype(np.float32)) == pytest.approx(value[0], abs=1e-5)
    value = np.zeros(5)
    for own in policies[::-1]:
        r, p = brute_force_joint(game, own)
        value = r + p @ value
    assert game.exact_return(policies) == pytest.approx(value[0], abs=1e-9)


def test_exact_return_is_the_mean_of_played_episodes():
    """What is evaluated exactly is what is played: 20,000 episodes agree within their standard error."""
    E = 20_000
    game = small(E, seed=1, num_states=6)
    policies = random_policies(game, 3)
    rng = np.random.default_rng(0)
    obs, _ = game.reset()
    for _ in range(6):
        states = obs[:, 0].argmax(axis=-1)
        chance = policies[:, states].transpose(1, 0, 2).cumsum(axis=-1)
        obs, *_, infos = game.step((rng.random((E, 3, 1)) > chance).sum(axis=-1))
    returns = infos["episode"]["r"]
    assert abs(returns.mean() - game.exact_return(policies)) < 4 * returns.std() / np.sqrt(E)


def test_memory_is_announced_and_refused_before_it_is_taken(monkeypatch, capsys):
    """A game that does not fit must end in a sentence, not in a machine that swaps."""
    assert games.table_bytes(100, 6, 5) == 4 * (100 * 5**6 + 100 * 5**6 * 100)
    with pytest.raises(MemoryError, match=r"12 agents and 5 actions needs tables of .* MB, more than 50%"):
        StochasticGame(1, 0, num_agents=12)
    monkeypatch.setattr(games, "free_bytes", lambda: 1_000_000)
    with pytest.raises(MemoryError, match="allow a larger share"):
        StochasticGame(1, 0, num_states=30, num_agents=3, memory_share=0.4)
    small()
    assert capsys.readouterr().err == ""
    games.check_memory(100, 5, 5, share=1e6)
    assert "100 states, 5 agents and 5 actions needs tables of 126 MB" in capsys.readouterr().out
    monkeypatch.setattr(games, "free_bytes", lambda: None)
    games.check_memory(100, 12, 5)  # where the system does not tell, the user decides


def test_bad_input_ends_in_a_sentence():
    """Mistakes of a user are named, and nothing is played."""
    env = small_after_reset(2, 0)
    before = env.get_state()
    for actions, message in (
        (np.zeros((2, 2), int), r"shape \(2, 3\)"),
        (np.zeros((2, 3)), "float64"),
        (
            np.array([[0, 0, 0], [0, 2, 0]]),
            r"Action 2 of agent 1 in environment 1 is not available.*\[0, 1\]",
        ),
        (np.array([[-1, 0, 0], [0, 1, 0]]), "Action -1 of agent 0 in environment 0"),
    ):
        with pytest.raises(ValueError, match=message):
            env.step(actions)
    assert all((before[key] == now).all() for key, now in env.get_state().items())
    with pytest.raises(ValueError, match="summing to 1"):
        env.exact_return(np.ones((3, 4, 2)))
    with pytest.raises(ValueError, match=r"\(3, 4, 2\)"):
        env.exact_return(np.ones((3, 5, 2)) / 2)
    with pytest.raises(ValueError, match="of 4 steps"):
        env.exact_return(np.ones((3, 3, 4, 2)) / 2)
    for build, message in (
        (lambda: envs.make("matrix/stochastik", 1), "nearest ids are matrix/stochastic"),
        (lambda: envs.make("matrix/5", 1), "Unknown environment"),
        (lambda: envs.make("matrix/1", 1, pay=(1, 2, 3, 4)), "did you mean 'payoff'"),
        (lambda: envs.make("matrix/stochastic", 1, states=3), "did you mean 'num_states'"),
        (lambda: MatrixGame(payoff=(1, 2)), "four numbers"),
        (lambda: MatrixGame("5"), "1, 2, 3, 4"),
        (lambda: small(num_states=0), "at least 1"),
        (lambda: small(0), "num_envs"),
        (lambda: small(render_mode="human"), "rgb_array"),
        (lambda: TabularGame(np.ones((2, 3, 2)), np.ones((2, 3, 2, 2)), 1), "one axis A per agent"),
    ):
        with pytest.raises(ValueError, match=message):
            build()


def test_picture_shows_the_state():
    """render() works without a screen and marks the state that the environment is in."""
    env = small(2, render_mode="rgb_array")
    env.reset()
    picture = env.render(1)
    assert picture.dtype == np.uint8 and picture.shape == (48, 48, 3)
    assert picture[12, 12, 0] == 200 and picture[12, 12, 1] == 30 and (picture[12, 36] == 200).all()
    with pytest.raises(ValueError, match="rgb_array"):
        small().render()


def test_tables_that_are_no_probabilities_are_refused():
    """Else returns and optima are computed of a game that there is not, and nobody is told."""
    sound = np.full((2, 3, 3, 2), 0.5)
    TabularGame(np.zeros((2, 3, 3)), sound + 4e-4, 1)
    for row in ((0.5, 0.6), (1.5, -0.5), (np.nan, 1.0)):
        wrong = sound.copy()
        wrong[1, 2, 0] = row
        with pytest.raises(
            ValueError, match=r"must be probabilities: .* those of state 1 and actions \[2, 0\]"
        ):
            TabularGame(np.zeros((2, 3, 3)), wrong, 1)


def test_names_of_games_tell_payoffs_apart():
    """Runs of two games under one name would be drawn as seeds of one."""
    payoffs = [(5, 0.1, -2, 0), (1234567, 0, 0, 0), (1234568, 0, 0, 0), (1e-9, 0, 0, 0)]
    names = [envs.make("matrix/1", 1, payoff=payoff).env_id for payoff in payoffs]
    assert names[0] == "matrix/5_0.1_-2_0" and len(set(names)) == 4
