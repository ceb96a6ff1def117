"""The wrappers: one's own last action to see, and tensors with the agents in front."""

import copy
import functools
import io
import pickle

import numpy as np
import pytest
import torch

import envs
from envs.pettingzoo import ParallelVectorEnv
from envs.wrappers import AgentsFirst, LastAction
from tests.standin.toys import Reach, Toy


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
        assert np.array_equal(infos["final_alive"], base.any(-1))
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


@pytest.mark.parametrize("last_action", [False, True])
def test_the_dead_count_where_one_asks_for_it(last_action):
    """The released code's way: all else, the action mask and what the dead see included, is as without."""
    plain, counting = (
        envs.make("smac/3m", 16, seed=4, backend="embedded", last_action=last_action, exclude_dead=on)
        for on in (True, False)
    )
    expected, expected_infos = plain.reset()
    obs, infos = counting.reset()
    deaths = ends = 0
    for _ in range(60):
        assert np.array_equal(obs, expected) and infos["alive"].all()
        for name in ("action_mask", "final_obs", "final_action_mask", "_final_obs"):
            assert np.array_equal(infos[name], expected_infos[name]), name
        actions = plain.sample_actions()
        expected, _, _, _, expected_infos = plain.step(actions)
        obs, _, terminated, truncated, infos = counting.step(actions)
        ended = terminated | truncated
        assert np.array_equal(infos["final_alive"], np.repeat(ended[:, None], 3, axis=1))
        deaths += (~expected_infos["alive"]).sum()
        ends += ended.sum()
    assert deaths and ends


def test_actions_in_tuples_are_shown_as_those_in_arrays():
    """Else an index of tuples picks single numbers, and what an agent sees changes its size."""
    env, twin = (envs.make("smac/3m", 2, backend="embedded", last_action=True) for _ in range(2))
    env.reset()
    twin.reset()
    actions = env.unwrapped.sample_actions()
    assert np.array_equal(env.step(tuple(map(tuple, actions.tolist())))[0], twin.step(actions)[0])


def toys(kind, num_envs, seed, **changes):
    return ParallelVectorEnv(functools.partial(kind, noise=1.0, **changes), num_envs, seed)


GAMES = {
    "smac": lambda seed, E: envs.make("smac/3m", E, seed, backend="embedded"),
    "last action": lambda seed, E: envs.make("smac/3m", E, seed, backend="embedded", last_action=True),
    "dead counted": lambda seed, E: envs.make("smac/3m", E, seed, backend="embedded", exclude_dead=False),
    "mpe": lambda seed, E: envs.make("mpe/circle_control", E, seed, num_agents=3),
    "tables": lambda seed, E: envs.make(
        "matrix/stochastic", E, seed, num_states=4, num_agents=3, num_actions=2
    ),
    "matrix": lambda seed, E: envs.make("matrix/2", E, seed),
    "mamujoco": lambda seed, E: envs.make("mamujoco/Humanoid-9|8", E, seed, threads=1),
    "pettingzoo": lambda seed, E: toys(Toy, E, seed, leaves=((2, "truncated"), (5, "terminated"))),
    "pettingzoo, real": lambda seed, E: toys(Reach, E, seed),
}
RESTORABLE = [game for game in GAMES if "pettingzoo" not in game]


class Recorded(AgentsFirst):
    """Keeps the arrays that it makes tensors of."""

    def _tensor(self, array):
        self.arrays.append(array)
        return super()._tensor(array)


def act(env, infos, generator):
    """Random actions: available ones, or numbers beyond the bounds and in the padding."""
    chances = torch.rand(infos["action_mask"].shape, generator=generator)
    return (chances * infos["action_mask"]).argmax(-1) if env.discrete else 6 * chances - 3


def same(tensor, array):
    expected = array if torch.is_tensor(array) else torch.from_numpy(array)
    return tensor.dtype == expected.dtype and torch.equal(tensor, expected)


@pytest.mark.parametrize("game", GAMES)
def test_tensors_are_the_environments_arrays_agents_first(game):
    """Else a learner sees, does or is paid something else than the environment says."""
    plain, env = GAMES[game](3, 6), Recorded(GAMES[game](3, 6))
    N, generator, ends, deaths = env.num_agents, torch.Generator().manual_seed(0), 0, 0
    env.arrays = []
    expected, told = plain.reset()
    obs, infos = env.reset()
    for _ in range(70):
        assert obs.shape == (N, 6, env.obs_dim) and same(obs.transpose(0, 1), expected)
        assert np.shares_memory(obs.numpy(), env.arrays[0])  # nothing is copied
        ended = told["_final_obs"]
        for name in ("action_mask", "alive"):
            assert same(infos[name].transpose(0, 1), told[name])
            assert any(np.shares_memory(infos[name].numpy(), array) for array in env.arrays)
        for name in ("final_obs", "final_action_mask", "final_alive"):
            assert (name in infos) == ended.any()
            assert name not in infos or same(infos[name].transpose(0, 1), told[name])
        assert [episode["env"] for episode in infos["episodes"]] == np.flatnonzero(told["_episode"]).tolist()
        for episode in infos["episodes"]:
            e = episode.pop("env")
            wanted = {"episodic_return": told["episode"]["r"][e], "episodic_length": told["episode"]["l"][e]}
            wanted |= {"win_rate": told["battle_won"][e]} if plain.wins else {}
            assert episode == wanted and all(type(value) is float for value in episode.values())
        ends, deaths = ends + ended.sum(), deaths + (~told["alive"]).sum()
        actions = act(env, infos, generator)
        given = actions.transpose(0, 1).numpy()
        if not env.discrete:
            assert (given > plain.single_action_space.high).any()
            given = np.clip(given, plain.single_action_space.low, plain.single_action_space.high)
        env.arrays = []
        obs, *paid, infos = env.step(actions)
        expected, *wanted, told = plain.step(given)
        assert len(paid) == 3 and all(map(same, paid, wanted))
    assert ends and (
        deaths or game in ("dead counted", "mpe", "tables", "matrix", "mamujoco", "pettingzoo, real")
    )


@pytest.mark.parametrize("game", ["smac", "mpe", "tables", "mamujoco", "pettingzoo", "pettingzoo, real"])
def test_actions_of_another_shape_are_refused(game):
    """Else one agent's action drives all of them, or one number fills all joints of a robot."""
    env = AgentsFirst(GAMES[game](1, 4))
    _, infos = env.reset()
    before = env.get_state()
    actions = act(env, infos, torch.Generator().manual_seed(0))
    fewer = actions[:1], actions[:, :1], actions[..., :1]
    for wrong in (*fewer, actions.flatten(), actions[None], actions.swapaxes(0, 1), actions.numpy(), None):
        with pytest.raises(ValueError, match=r"a tensor of shape \(\d, 4.* \(num_agents, num_envs.*; got"):
            env.step(wrong)
    assert all(torch.equal(array, before[name]) for name, array in env.get_state().items())
    env.step(actions)


@pytest.mark.parametrize("game", ["mamujoco", "pettingzoo, real"])
def test_actions_of_a_policy_that_diverged_end_the_run_in_a_sentence(game):
    """Else infinity is clipped to a full torque, and a run whose networks are lost goes on."""
    env = AgentsFirst(GAMES[game](1, 2))
    _, infos = env.reset()
    before = env.get_state()
    actions = act(env, infos, torch.Generator().manual_seed(0))
    for wrong in (float("nan"), float("inf")):
        broken = actions.clone()
        broken[1, 1, 0] = wrong
        actions[~infos["action_mask"]] = wrong  # padding may hold anything
        with pytest.raises(envs.BrokenEnvironment, match=r"^Actions are not finite; .* --learning-rate\.$"):
            env.step(broken)
    assert all(torch.equal(array, before[name]) for name, array in env.get_state().items())
    env.step(actions)


@pytest.mark.parametrize("game", ["mpe", "mamujoco"])
def test_actions_straight_from_a_network_can_be_played(game):
    """Else a policy in bfloat16, or one whose gradient is on, ends in a traceback of PyTorch."""
    env, twin = AgentsFirst(GAMES[game](1, 2)), AgentsFirst(GAMES[game](1, 2))
    _, infos = env.reset()
    twin.reset()
    actions = act(env, infos, torch.Generator().manual_seed(0))
    if env.discrete:
        with pytest.raises(ValueError, match="actions must be integers"):
            env.step(actions.bfloat16())
        return
    for half in (torch.bfloat16, torch.float16):
        rough = actions.to(half).requires_grad_()
        assert same(env.step(rough)[0], twin.step(rough.detach().float())[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("game", ["smac", "mamujoco"])
def test_a_gpu_gets_the_same_tensors(game):
    """Else copies that are not waited for arrive too late, or a run depends on its device."""
    host, env = AgentsFirst(GAMES[game](3, 6)), AgentsFirst(GAMES[game](3, 6), "cuda")
    generator = torch.Generator().manual_seed(0)
    expected, told = host.reset()
    obs, infos = env.reset()
    for _ in range(40):
        assert obs.is_cuda and torch.equal(obs.cpu(), expected) and infos["episodes"] == told["episodes"]
        tensors = {name: tensor for name, tensor in told.items() if torch.is_tensor(tensor)}
        assert all(torch.equal(infos[name].cpu(), tensor) for name, tensor in tensors.items())
        assert infos.keys() == told.keys()
        actions = act(host, told, generator)
        expected, *wanted, told = host.step(actions)
        obs, *paid, infos = env.step(actions.cuda())
        assert all(
            tensor.is_cuda and torch.equal(tensor.cpu(), w) for tensor, w in zip(paid, wanted, strict=True)
        )
    assert all(
        torch.equal(a, b) for a, b in zip(host.get_state().values(), env.get_state().values(), strict=True)
    )
    env.set_state({name: tensor.cuda() for name, tensor in env.get_state().items()})


def saved_and_loaded(state):
    """What a checkpoint makes of a state; loading it executes nothing."""
    buffer = io.BytesIO()
    torch.save({"envs": state}, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)["envs"]


def played(env, infos, steps, seed):
    """What each of `steps` of random play returned, and the last obs and infos."""
    generator, seen = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        obs, *rest, infos = env.step(act(env, infos, generator))
        seen.append((obs, *rest, infos["action_mask"], infos["alive"], infos["episodes"]))
    return seen, obs, infos


def equal(one, other):
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in pairs)


@pytest.mark.parametrize("game", RESTORABLE)
def test_a_checkpoint_goes_on_exactly(game):
    """Else a resumed run is not the run that was stopped."""
    env, other = AgentsFirst(GAMES[game](5, 4)), AgentsFirst(GAMES[game](99, 4))
    _, infos = env.reset()
    _, obs, infos = played(env, infos, 30, seed=0)
    state = env.get_state()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    assert same(obs.transpose(0, 1), state["next_obs"])
    assert all(tensor.device.type == "cpu" for tensor in state.values())
    ahead, *_ = played(env, infos, 40, seed=1)
    obs.zero_()
    assert all(torch.equal(state[name], kept[name]) for name in kept)  # nothing later writes into it
    returned, about = other.set_state(saved_and_loaded(state))
    assert same(returned.transpose(0, 1), state["next_obs"])
    assert all(torch.equal(about[name], infos[name]) for name in ("action_mask", "alive"))
    assert about["episodes"] == [] and "final_obs" not in about
    again = other.get_state()
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)
    behind, *_ = played(other, about, 40, seed=1)
    assert all(map(equal, ahead, behind))


class OnGpu(torch.Tensor):
    """As a tensor on a GPU, which NumPy cannot have."""

    def numpy(self, **_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy.")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_a_state_stays_as_it_is_and_may_be_on_a_gpu():
    """Else torch.load's map_location ends in a traceback, or a learner that scales what it sees in place
    changes the checkpoint that it was given."""
    env = AgentsFirst(GAMES["mpe"](5, 4))
    env.reset()
    state = env.get_state()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    obs, infos = env.set_state({name: tensor.as_subclass(OnGpu) for name, tensor in state.items()})
    assert same(obs.transpose(0, 1), kept["next_obs"])
    obs.fill_(9.0)
    infos["action_mask"].fill_(False)
    obs, infos = env.set_state(state)
    obs.fill_(9.0)
    infos["alive"].fill_(False)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state.items())


def test_what_cannot_go_on_begins_anew_and_returns_how():
    """Else a resumed learner acts on observations of episodes that are gone."""
    env, other = (AgentsFirst(GAMES["pettingzoo"](seed, 3)) for seed in (5, 99))
    _, infos = env.reset()
    _, obs, _ = played(env, infos, 4, seed=0)
    state = saved_and_loaded(env.get_state())
    with pytest.warns(UserWarning, match="cannot continue saved episodes"):
        returned, about = other.set_state(state)
    assert not torch.equal(returned, obs) and about["alive"].all() and about["episodes"] == []
    assert not {seed for one in env.envs for seed in one.seeds} & {one.seeds[-1] for one in other.envs}
    assert (returned[0, :, 0] // 1).tolist() == [one.t for one in other.envs] == [0, 0, 0]
    assert other.get_state()["seed"] == 5


@pytest.mark.parametrize("game", [*RESTORABLE, "pettingzoo"])
def test_states_that_do_not_fit_are_refused(game):
    """Else a run goes on from something else, and nobody knows; what is refused has changed nothing."""
    env, twin, wide = (AgentsFirst(GAMES[game](1, E)) for E in (2, 2, 3))
    wide.reset()
    _, infos = env.reset()
    twin.reset()
    with pytest.raises(ValueError, match="not one of 2 environments"):
        env.set_state(wide.get_state())
    if not env.restorable:
        assert all(map(equal, played(env, infos, 5, 0)[0], played(twin, infos, 5, 0)[0]))
        return
    _, _, infos = played(env, infos, 3, 0)
    played(twin, infos, 3, 0)
    state = env.get_state()
    for bad in (None, [], state | {"length": None}, state | {"length": state["length"].tolist()}):
        with pytest.raises(envs.BrokenEnvironment, match=r"not one of 2 environments .* a dict of tensors"):
            env.set_state(bad)
    for name in ("next_obs", "next_action_mask", "next_alive"):
        missing = {key: tensor for key, tensor in state.items() if key != name}
        for bad in (missing, state | {name: state[name][:1]}, state | {name: state[name].to(torch.float64)}):
            with pytest.raises(ValueError, match=f"not one of 2 environments of .*'{name}' must be"):
                env.set_state(bad)
    for name in (name for name in state if not name.startswith("next_")):  # cast, random streams lose digits
        other = torch.float32 if state[name].dtype == torch.float64 else torch.float64
        with pytest.raises(ValueError, match="not one of 2 environments"):
            env.set_state(state | {name: state[name].to(other)})
    for damage in (-1, 10**9):
        with pytest.raises(ValueError, match="damaged: 'length'"):
            env.set_state(state | {"length": torch.full_like(state["length"], damage)})
    assert all(torch.equal(tensor, state[name]) for name, tensor in env.get_state().items())
    assert all(map(equal, played(env, infos, 30, 1)[0], played(twin, infos, 30, 1)[0]))


def test_an_environment_can_be_made_with_tensors():
    """Else every script wraps what `make` returns."""
    options = {"seed": 3, "backend": "embedded", "last_action": True, "render_mode": "rgb_array"}
    env, plain = envs.make("smac/3m", 2, device="cpu", **options), envs.make("smac/3m", 2, **options)
    assert isinstance(env, AgentsFirst) and isinstance(plain, LastAction)
    assert same(env.reset(seed=4)[0].transpose(0, 1), plain.reset(seed=4)[0])
    assert env.device == torch.device("cpu")
    assert envs.env_name(env) == envs.env_name(plain) == "smac-3m-embedded2"
    assert envs.describe(env) == envs.describe(plain)
    for name in ("num_envs", "obs_dim", "num_actions", "episode_limit", "wins", "backend", "metadata"):
        assert getattr(env, name) == getattr(plain, name)
    assert env.single_observation_space == plain.single_observation_space
    assert np.array_equal(env.render(1), plain.render(1)) and (env.render(0) != env.render(1)).any()
    with pytest.raises(AttributeError, match="wings"):
        _ = env.wings
    env.close()
    assert env.unwrapped.closed
    with pytest.raises(ValueError, match="no option 'devise'"):
        envs.make("mpe/simple_spread", 1, devise="cpu")


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_wrapped_environments_can_be_copied(duplicate):
    """Else a look-up of an attribute on a half-made copy recurses for ever."""
    env = AgentsFirst(GAMES["last action"](1, 2))
    _, infos = env.reset()
    twin = duplicate(env)
    assert all(map(equal, played(env, infos, 5, 0)[0], played(twin, infos, 5, 0)[0]))


def test_scripted_steps_do_not_pass_a_wrapper():
    """Their results would be undecorated, and a state afterwards older than the battle."""
    env = envs.make("smac/3m", 1, backend="embedded", last_action=True)
    assert not hasattr(env, "step_scripted") and hasattr(env.env, "step_scripted")
