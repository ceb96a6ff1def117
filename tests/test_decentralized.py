"""Strict decentralization of whole trainings: what an agent sees never reaches another's parameters.

dpo_smac.py has the same test, with deaths and masks, in tests/test_dpo_smac_runs.py.
"""

import signal
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

import dpo_mamujoco
import dpo_matrix
import dpo_mpe
import ippo

E, N, OBS, A, LIMIT = 4, 3, 6, 3, 8


class Recording:
    """Environments that play a recording, whatever is done: if `changed`, agent 1 saw something else.

    Every agent's observations are its own, one-hot; rewards and ends, the team's, are the same in both.
    """

    num_envs, num_agents, num_states, obs_dim, num_actions, act_dim = E, N, OBS, OBS, A, A
    agent_act_dims, episode_limit, backend, env_id = (A,) * N, LIMIT, "embedded", "recording"
    single_action_space = gym.spaces.Box(-1.0, 1.0, (N, A), np.float32)

    def __init__(self, changed: bool):
        self.changed, self.steps = changed, 0
        self.reset()

    def reset(self, seed=None):
        self.steps = 0
        return self.look(), self.infos(self.look())

    def look(self):
        seen = np.random.default_rng(self.steps).integers(OBS, size=(E, N))
        seen[:, 1] = (seen[:, 1] * (2 if self.changed else 1)) % OBS
        return np.eye(OBS, dtype=np.float32)[seen]

    def infos(self, obs):
        over = np.full(E, self.steps > 0 and self.steps % LIMIT == 0)
        episode = {"r": np.ones(E, np.float32), "l": np.full(E, LIMIT)}
        masks = {"action_mask": np.ones((E, N, A), bool), "alive": np.ones((E, N), bool)}
        return masks | {"final_obs": obs, "episode": episode, "_episode": over}

    def step(self, actions):
        reward = np.random.default_rng([self.steps, 1]).random(E, dtype=np.float32)
        self.steps += 1
        infos = self.infos(self.look())
        return self.look(), reward, np.zeros(E, bool), infos["_episode"], infos

    def get_state(self):
        return {"steps": np.array(self.steps)}

    def exact_return(self, policies):
        return 0.0

    def optimum(self):
        return SimpleNamespace(value=1.0)


@pytest.fixture
def handlers():
    """Signal handlers as they were before a training within this process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def make_agents(script):
    if script is dpo_mamujoco:
        return dpo_mamujoco.Agents(OBS, (A,) * N)
    return script.Agents(N, OBS, A)


@pytest.mark.parametrize(
    "script", [dpo_matrix, dpo_mpe, dpo_mamujoco, ippo], ids=lambda script: script.__name__
)
def test_whole_training_of_an_agent_ignores_what_another_agent_sees(script, tmp_path, monkeypatch, handlers):
    """From rollout to Adam only the reward and the end of the episode are common to the agents."""
    monkeypatch.setattr(script, "CHUNK", 16)
    args = script.Args(num_envs=E, total_timesteps=5 * E * LIMIT, update_epochs=2, eval_every=10**6)
    args.num_steps = LIMIT
    trained, initial = [], []
    for changed in (False, True):
        torch.manual_seed(0)
        agents, directory = make_agents(script), tmp_path / str(changed)
        if script is not ippo:
            agents.betas += 0.01
        initial = [p.detach().clone() for p in agents.parameters()]
        evaluated = () if script is dpo_matrix else (Recording(False),)
        script.train(args, Recording(changed), *evaluated, agents, {}, directory)
        adam = script.load(directory / "checkpoint.pt")["optimizers"][0]["state"]
        moments = [adam[k][name] for k in adam for name in ("exp_avg", "exp_avg_sq")]
        betas = [] if script is ippo else [agents.betas.T]
        trained.append([*(p.detach() for p in agents.parameters()), *moments, *betas])
    for one, other in zip(*trained, strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])
    assert not torch.equal(trained[0][0][1], trained[1][0][1])
    for before, after in zip(initial, trained[0], strict=False):
        assert all(not torch.equal(before[i], after[i]) for i in range(N))
