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

    def __init__(self, changed: bool, continuous: bool):
        self.changed, self.steps, self.continuous = changed, 0, continuous
        box, choices = gym.spaces.Box(-1.0, 1.0, (N, A), np.float32), gym.spaces.MultiDiscrete([A] * N)
        self.single_action_space = box if continuous else choices
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
        masks = {} if self.continuous else {"action_mask": np.ones((E, N, A), bool)}
        masks["alive"] = np.ones((E, N), bool)
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


def make_agents(script, continuous: bool):
    if script is dpo_mamujoco:
        return dpo_mamujoco.Agents(OBS, (A,) * N)
    if script is ippo:
        return ippo.Agents(N, OBS, A, actor=ippo.Gaussian if continuous else ippo.Categorical)
    return script.Agents(N, OBS, A)


@pytest.mark.parametrize(
    ("script", "continuous", "flags"),
    [
        (dpo_matrix, False, {}),
        (dpo_mpe, False, {}),
        (dpo_mamujoco, True, {}),
        (ippo, False, {}),
        (ippo, True, dict(value_norm=True)),
        (ippo, True, dict(value_norm=True, kl_penalty=True)),
    ],
    ids=["dpo_matrix", "dpo_mpe", "dpo_mamujoco", "ippo", "ippo-gaussian", "ippo-gaussian-kl"],
)
def test_whole_training_of_an_agent_ignores_what_another_agent_sees(
    script, continuous, flags, tmp_path, monkeypatch, handlers
):
    """From rollout to Adam only the reward and the end of the episode are common to the agents."""
    monkeypatch.setattr(script, "CHUNK", 16)
    args = script.Args(num_envs=E, total_timesteps=5 * E * LIMIT, update_epochs=2, eval_every=10**6, **flags)
    args.num_steps = LIMIT
    trained, initial = [], []
    for changed in (False, True):
        torch.manual_seed(0)
        agents, directory = make_agents(script, continuous), tmp_path / str(changed)
        betas = agents.beta if script is ippo else agents.betas
        betas += 0.01
        initial = [p.detach().clone() for p in agents.parameters()]
        evaluated = () if script is dpo_matrix else (Recording(False, continuous),)
        script.train(args, Recording(changed, continuous), *evaluated, agents, {}, directory)
        adam = script.load(directory / "checkpoint.pt")["optimizers"][0]["state"]
        moments = [adam[k][name] for k in adam for name in ("exp_avg", "exp_avg_sq")]
        # Betas and running statistics are (N, ...), but for DPO's betas, (2, N), and a count common to all.
        buffers = [x.T if x is betas and x.dim() > 1 else x for x in agents.buffers() if x.dim()]
        trained.append([*(p.detach() for p in agents.parameters()), *moments, *buffers])
    for one, other in zip(*trained, strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])
    assert not torch.equal(trained[0][0][1], trained[1][0][1])
    for before, after in zip(initial, trained[0], strict=False):
        assert all(not torch.equal(before[i], after[i]) for i in range(N))
