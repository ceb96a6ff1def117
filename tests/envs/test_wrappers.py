"""The wrapper that appends an agent's own last action to its observation."""

import numpy as np

import envs


def test_last_action_is_appended_for_the_living_only():
    """Else a policy is told of an action it did not play, or of one from a battle that is over."""
    plain, wrapped = (
        envs.make("smac/3m", 16, seed=4, backend="embedded", last_action=on) for on in (False, True)
    )
    expected, _ = plain.reset()
    obs, infos = wrapped.reset()
    assert obs.shape == (16, 3, 30 + 9) and wrapped.single_observation_space.shape == (3, 39)
    assert np.array_equal(obs[..., :30], expected) and not obs[..., 30:].any()
    ends = deaths = 0
    for _ in range(60):
        actions = plain.sample_actions()
        expected, _, _, _, plain_infos = plain.step(actions)
        obs, _, terminated, truncated, infos = wrapped.step(actions)
        ended = terminated | truncated
        told = np.eye(9)[actions] * (infos["alive"] & ~ended[:, None])[..., None]
        assert np.array_equal(obs[..., :30], expected) and np.array_equal(obs[..., 30:], told)
        final, base = infos["final_obs"], plain_infos["final_obs"]
        assert np.array_equal(final[..., :30], base)
        assert np.array_equal(final[..., 30:], np.eye(9)[actions] * base.any(-1)[..., None])
        assert wrapped.observation_space.contains(obs)
        ends, deaths = ends + ended.sum(), deaths + (~infos["alive"]).sum()
    assert ends and deaths


def test_last_action_wrapper_keeps_what_a_script_uses():
    """Else --last-action breaks resuming, or the run's name loses its engine."""
    wrapped = envs.make("smac/3m", 2, seed=0, backend="embedded", last_action=True)
    wrapped.reset()
    state = wrapped.get_state()
    actions = wrapped.unwrapped.sample_actions()
    first = wrapped.step(actions)[0]
    wrapped.set_state(state)
    assert np.array_equal(wrapped.step(actions)[0], first)
    assert (wrapped.backend, wrapped.num_agents, wrapped.num_actions, wrapped.obs_dim) == (
        "embedded",
        3,
        9,
        39,
    )
    assert envs.describe(wrapped)["backend"] == "embedded"
