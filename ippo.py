"""IPPO, Independent Proximal Policy Optimization, on every environment family: the baseline of DPO.

Paper: Is Independent Learning All You Need in the StarCraft Multi-Agent Challenge? (de Witt et al., 2020,
arXiv 2011.09533). Here, as in DPO, agents share no parameters.
Details, and every difference from DPO: docs/ippo.md
Reproduce: python ippo.py --env-id matrix/stochastic  (return to expect: benchmark/results/matrix/README.md)

Axis order: the environment's arrays are (num_envs E, num_agents N, ...), the learner's tensors
(N, batch, ...). Agents share nothing; stacking their networks only batches the arithmetic.
"""

import copy
import csv
import functools
import io
import itertools
import json
import math
import operator
import os
import shutil
import signal
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import imageio
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from envs import BrokenEnvironment, describe, env_name
from envs import make as make_envs

SCRIPT = Path(__file__).stem
EXIT_REQUEUE = 75  # EX_TEMPFAIL: a signal stopped the run, its checkpoint is on disk, --resume goes on
EVAL_EPISODES = 32  # per evaluation; ten times as many for the absolute metric at the end
HALF_LOG_2_PI_E = 0.5 * math.log(2 * math.pi * math.e)
CHUNK = 512  # rows of 8 agents or more whose activations stay in the cache of one core
STATS = ["losses/policy_loss", "losses/value_loss", "losses/entropy", "losses/grad_norm"]
STATS += ["losses/approx_kl", "losses/clip_fraction", "dpo/kl", "losses/explained_variance"]
STATS += ["dpo/beta2", "dpo/below_band", "dpo/above_band"]  # with --kl-penalty
COLUMNS = ["global_step", "eval/episodic_return", "eval/win_rate", "charts/episodic_return"]
COLUMNS += ["charts/episodic_length", "charts/win_rate", "charts/SPS", "time/env", "time/act", "time/update"]
COLUMNS += STATS


@dataclass
class Args:
    env_id: str = "smac/2s3z"
    """smac/MAP, mpe/TASK, mamujoco/ROBOT-PARTITION, matrix/stochastic or pettingzoo:MODULE"""
    env_options: tuple[str, ...] = ()
    """options of the environment, e.g. num_agents=3 num_states=30; docs/envs.md lists them"""
    seed: int = 1
    """seed of environments, parameters and sampled actions"""
    total_timesteps: int = 10_000_000
    """environment steps (one moves all agents of one environment; never agent-steps)"""
    num_envs: int = 32
    """environments stepped together"""
    num_steps: int = 128
    """steps of each environment per update; the batch is num_envs * num_steps rows per agent"""
    learning_rate: float = 5e-4
    """Adam's learning rate, for actors and critics"""
    gamma: float = 0.99
    """discount factor"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation"""
    update_epochs: int = 15
    """gradient steps per update, each on the whole batch"""
    ent_coef: float = 0.01
    """coefficient c_H of the entropy bonus"""
    max_grad_norm: float = 10.0
    """gradient clip, per agent and per network"""
    log_std_init: float = 0.0
    """logarithm of the standard deviation of continuous actions at the start"""
    layer_norm: bool = True
    """LayerNorm after each hidden layer and, where actions are discrete, on the observation"""
    value_norm: bool = False
    """critics learn returns in units of their running deviation, per agent"""
    clip_coef: float = 0.2
    """the ratio of new to old probability counts only within 1 - clip_coef and 1 + clip_coef"""
    kl_penalty: bool = False
    """IPPO-KL: instead of the clip, the penalty beta * KL with the beta of eq. (21) of the DPO paper"""
    d_target: float = 0.02
    """KL per update that eq. (21) steers each agent to"""
    delta: float = 1.5
    """eq. (21): beta changes where KL leaves [d_target / delta, d_target * delta]"""
    omega: float = 2.0
    """eq. (21): the factor by which it changes"""
    beta_min: float = 0.05
    """floor of beta, which is N * beta2 of the DPO scripts"""
    beta_max: float = 1000.0
    """ceiling of beta"""
    eval_every: int = 20_480
    """environment steps between evaluations (32 greedy episodes in separate environments)"""
    checkpoint_every: int = 40_960
    """environment steps between checkpoints"""
    runs_dir: str = "runs"
    """where run directories are made"""
    resume: str = ""
    """run directory to go on with, under its own arguments"""
    checkpoint: str = ""
    """run directory or .pt file for --eval-only"""
    eval_only: bool = False
    """evaluate --checkpoint on 320 greedy episodes and stop"""
    capture_video: bool = False
    """record greedy episodes as video.mp4 in the run directory, at the end or with --eval-only"""
    device: str = "cpu"
    """cpu | cuda, the first GPU that CUDA_VISIBLE_DEVICES names"""
    torch_threads: int = 1
    """CPU threads of MuJoCo's physics, and of the learner, where each has a group of agents to itself"""
    compile: bool = False
    """torch.compile the loss: faster updates after 10 to 40 s; a CPU needs g++"""


RESUME_MAY_CHANGE = {"total_timesteps", "eval_only", "checkpoint", "resume", "capture_video", "runs_dir"}
EVAL_MAY_NOT_CHANGE = {"env_id", "env_options", "layer_norm"}
PRESETS = {  # by family and by id: the settings of the family's DPO script; dpo_smac.py's are the defaults
    "mpe": dict(total_timesteps=2_000_000, num_envs=128, num_steps=25, layer_norm=False, d_target=0.01)
    | dict(beta_min=0.2, eval_every=32_000, checkpoint_every=102_400),
    "mamujoco": dict(total_timesteps=2_000_000, num_envs=16, num_steps=64, layer_norm=False, value_norm=True)
    | dict(d_target=0.001, beta_min=0.2, eval_every=50_000),
    "mamujoco/HalfCheetah-3x2": dict(log_std_init=-1.0),
    "mamujoco/Ant-4x2": dict(log_std_init=-2.0),
    "mamujoco/Humanoid-17x1": dict(log_std_init=-2.0),
    "matrix/stochastic": dict(total_timesteps=1_000_000, num_steps=100, layer_norm=False, d_target=0.01)
    | dict(checkpoint_every=102_400),
    "smac/8m": dict(total_timesteps=1_000_000),
    "smac/2s3z": dict(total_timesteps=2_000_000),
    "smac/3s5z": dict(total_timesteps=5_000_000),
}


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, iddpg, ippo ---
class StackedMLP(nn.Module):
    """One 3-layer perceptron per agent, none shared: weights (N, in, out), biases (N, 1, out)."""

    def __init__(self, num_agents: int, in_dim: int, out_dim: int, head_gain: float, layer_norm: bool):
        super().__init__()
        dims, gains = (in_dim, 128, 128, out_dim), (2**0.5, 2**0.5, head_gain)
        self.layer_norm, self.weights, self.biases = layer_norm, nn.ParameterList(), nn.ParameterList()
        for (fan_in, fan_out), gain in zip(itertools.pairwise(dims), gains, strict=True):
            layer = [nn.init.orthogonal_(torch.empty(fan_in, fan_out), gain) for _ in range(num_agents)]
            self.weights.append(nn.Parameter(torch.stack(layer)))
            self.biases.append(nn.Parameter(torch.zeros(num_agents, 1, fan_out)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, batch, in) -> (N, batch, out); agent i's output depends on x[i] and its own parameters only."""
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer:
                x = (F.layer_norm(x, x.shape[-1:]) if self.layer_norm else x).relu_()
            if weight.shape[-1] > 1:
                x = torch.baddbmm(bias, x, weight)
            else:  # matrix products are slow where they have a single column
                x = (x * weight.mT).sum(-1, keepdim=True) + bias
        return x


# --- same in: dpo_smac, ippo ---
def masked_log_softmax(logits: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
    """log pi (..., A) of available actions; 0 at the others, whose probability and gradient are exactly 0."""
    logits = logits.masked_fill(~action_mask, -torch.inf)
    return F.log_softmax(logits, dim=-1).masked_fill(~action_mask, 0.0)


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, ippo ---
def exp_minus_linear(x: torch.Tensor) -> torch.Tensor:
    """exp(x) - 1 - x, never negative; near 0 its gradient, expm1(x), is exact where autograd's is noise."""
    at, slope = x.detach(), torch.expm1(x.detach())
    return (slope - at).clamp(min=0.0) + slope * (x - at)


class Categorical(StackedMLP):
    """Policies over A discrete actions. A batch of them is log pi, (N, batch, A), 0 where unavailable."""

    width = 1  # numbers per action that tell a policy

    def policy(self, obs: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
        return masked_log_softmax(self(obs), action_mask)

    def act(self, logp, action_mask, generator: torch.Generator | None = None) -> torch.Tensor:
        """Actions (N, batch), drawn or, without a generator, the most probable."""
        if generator:  # Gumbel-max: draws of a fixed shape, so that no agent's depend on another's policy
            logp = logp - torch.empty_like(logp).exponential_(generator=generator).log()
        return logp.masked_fill(~action_mask, -torch.inf).argmax(-1)

    def compare(self, old_logp, logp, action_mask, actions) -> tuple[torch.Tensor, ...]:
        """log pi(a) - log pi_old(a), KL(pi_old || pi) and the entropy of pi, each (N, batch).

        KL is sum pi_old (exp(x) - 1 - x), where no term is negative: sum pi_old (exp(x) - 1) = 0.
        """
        x = logp - old_logp
        kl = (old_logp.exp() * exp_minus_linear(x.clamp(max=88.0))).sum(-1)  # exp would overflow beyond
        return x.gather(-1, actions.unsqueeze(-1)).squeeze(-1), kl, -(logp.exp() * logp).sum(-1)


class Gaussian(StackedMLP):
    """Policies over D real actions, padding where action_mask is False; mean and log std, (N, batch, 2 D)."""

    width = 2

    def __init__(self, num_agents: int, in_dim: int, out_dim: int, head_gain: float, layer_norm: bool):
        super().__init__(num_agents, in_dim, out_dim, head_gain, layer_norm)
        self.log_std = nn.Parameter(torch.zeros(num_agents, 1, out_dim))

    def policy(self, obs: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
        mean = self(obs)
        return torch.cat([mean, self.log_std.expand_as(mean)], dim=-1)

    def act(self, policy, action_mask, generator: torch.Generator | None = None) -> torch.Tensor:
        """Actions (N, batch, D), drawn or, without a generator, the mean."""
        mean, log_std = policy.chunk(2, dim=-1)
        noise = torch.empty_like(mean).normal_(generator=generator) if generator else 0.0
        return mean + noise * log_std.exp()

    def compare(self, old_policy, policy, action_mask, actions) -> tuple[torch.Tensor, ...]:
        """log pi(a) - log pi_old(a), KL(pi_old || pi) and the entropy of pi, each (N, batch)."""
        (old_mean, old_log_std), (mean, log_std) = old_policy.chunk(2, dim=-1), policy.chunk(2, dim=-1)
        z, old_z = (actions - mean) * (-log_std).exp(), (actions - old_mean) * (-old_log_std).exp()
        logp, old_logp = 0.5 * z.square() + log_std, 0.5 * old_z.square() + old_log_std
        y = exp_minus_linear(2 * (old_log_std - log_std))
        kl = 0.5 * (y + ((mean - old_mean) * (-log_std).exp()).square())
        return tuple((x * action_mask).sum(-1) for x in (old_logp - logp, kl, log_std + HALF_LOG_2_PI_E))


class RunningNorm(nn.Module):
    """Mean and variance of all samples so far, per agent and coordinate (N, 1, dim), in the checkpoint."""

    def __init__(self, num_agents: int, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_agents, 1, dim))
        self.register_buffer("var", torch.ones(num_agents, 1, dim))
        self.register_buffer("count", torch.zeros(num_agents, 1, 1, dtype=torch.float64))

    @property
    def deviation(self) -> torch.Tensor:
        return (self.var + 1e-8).sqrt()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, batch, dim) as deviations from the mean, at most 10 standard ones."""
        return ((x - self.mean) / self.deviation).clamp(-10, 10)

    def add(self, x: torch.Tensor, valid: torch.Tensor) -> None:
        """Takes the valid (N, rows) of a batch (N, rows, dim) into account (Chan et al., 1979)."""
        rows = valid.sum(1).view(-1, 1, 1)
        weight = valid.unsqueeze(-1) / rows.clamp(min=1)
        mean = (weight * x).sum(1, keepdim=True)
        var = (weight * (x - mean).square()).sum(1, keepdim=True)
        share = (rows / (self.count + rows).clamp(min=1)).float()
        gap = mean - self.mean
        self.mean += share * gap
        self.var.copy_((1 - share) * self.var + share * var + share * (1 - share) * gap.square())
        self.count += rows


class Agents(nn.Module):
    """Actor pi_i, critic V_i, coefficient beta_i of the KL penalty and running statistics of N agents.

    Networks take observations that went through obs_norm: with continuous actions running statistics, else
    a LayerNorm without parameters, which needs computing once for every observation.
    """

    def __init__(self, num_agents: int, obs_dim: int, act_dim: int, layer_norm=True, actor=Categorical):
        super().__init__()
        self.actor = actor(num_agents, obs_dim, act_dim, 0.01, layer_norm)
        self.critic = StackedMLP(num_agents, obs_dim, 1, 1.0, layer_norm)
        self.register_buffer("beta", torch.zeros(num_agents))
        once = nn.LayerNorm(obs_dim, elementwise_affine=False) if layer_norm else nn.Identity()
        self.obs_norm = RunningNorm(num_agents, obs_dim) if actor is Gaussian else once
        self.return_norm = RunningNorm(num_agents, 1)

    def value(self, obs: torch.Tensor) -> torch.Tensor:
        """V_i, in units of the reward, of its own observation: (N, batch, obs_dim) -> (N, batch)."""
        return (self.critic(obs) * self.return_norm.deviation + self.return_norm.mean).squeeze(-1)

    @torch.no_grad()
    def rescale(self, returns: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Takes returns (N, T, E) into return_norm and gives them in its units; V stays (PopArt)."""
        rows, norm = returns.flatten(1).unsqueeze(-1), self.return_norm
        mean, deviation = norm.mean.clone(), norm.deviation
        norm.add(rows, valid.flatten(1))
        self.critic.weights[-1].mul_(deviation / norm.deviation)
        self.critic.biases[-1].mul_(deviation).add_(mean - norm.mean).div_(norm.deviation)
        return norm(rows).view_as(returns)

    def group(self, part: slice) -> "Agents":
        """Some of the agents as a module of their own, whose parameters are views of this one's."""
        group = copy.deepcopy(self)
        for mine, whole in zip(group.parameters(), self.parameters(), strict=True):
            mine.data = whole.data[part]
        group.beta = self.beta.data[part]  # .data: a version counter of its own, for autograd in threads
        return group


# --- same in: dpo_smac, ippo ---
def gae(rewards, values, next_value, final_values, terminations, truncations, alive, next_alive, gamma, lam):
    """Generalised advantage estimation: advantages, returns, and which samples to learn from, (N, T, E).

    rewards, terminations, truncations: (T, E), the team's; values, final_values, alive: (N, T, E), per agent;
    final_values is V of the observation before autoreset, used where an episode was truncated; next_value,
    next_alive: (N, E), after the last step. Once dead an agent has no value estimate (V is not trained on the
    dead): the discounted reward its team still earns stands in for it. Where the rollout ends before the
    episode, that sum is incomplete and the step of death no sample to learn from; nor are the dead's steps.
    """
    advantages, valid = torch.zeros_like(values), torch.zeros_like(alive)
    advantage, value, known = torch.zeros_like(next_value), next_value, next_alive
    for t in reversed(range(len(rewards))):
        done = terminations[t] | truncations[t]
        target = rewards[t] + gamma * torch.where(done, final_values[:, t] * ~terminations[t], value)
        advantage = target - values[:, t] + gamma * lam * advantage * ~done
        valid[:, t] = alive[:, t] & (known | done)
        advantages[:, t] = advantage = advantage * valid[:, t]
        value = torch.where(alive[:, t], values[:, t], target)
        known = known | done | alive[:, t]
    return advantages, advantages + values, valid


# --- same in: dpo_smac, ippo ---
def standardize(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x (N, T, E) to mean 0, deviation 1 over each agent's own samples; also the deviations, (N, 1, 1)."""
    x = x - (weight * x).sum((1, 2), keepdim=True)
    deviation = (weight * x.square()).sum((1, 2), keepdim=True).sqrt()
    return x / (deviation + 1e-8), deviation


def ippo_loss(agents, obs, action_mask, actions, old_policy, advantages, returns, weight, args):
    """Loss of a chunk of rows, summed over agents (whose parameters are disjoint), and its parts, (3, N).

    weight (N, rows): 1 / (the agent's samples in the batch), 0 where dead, so that sums are means.
    """
    policy = agents.actor.policy(obs, action_mask)
    logratio, kl, entropy = agents.actor.compare(old_policy, policy, action_mask, actions)
    ratio, penalty = logratio.exp(), agents.beta * (weight * kl).sum(1) if args.kl_penalty else 0.0
    surrogate = ratio * advantages
    if not args.kl_penalty:
        clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
        surrogate = torch.minimum(surrogate, clipped * advantages)
    surrogate, entropy = (weight * surrogate).sum(1), (weight * entropy).sum(1)
    v_loss = (weight * (agents.critic(obs).squeeze(-1) - returns).square()).sum(1)
    loss = v_loss - (surrogate + args.ent_coef * entropy - penalty)
    return loss.sum(), torch.stack([-surrogate, v_loss, entropy]).detach()


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, iddpg, ippo, iql ---
def clip_grad_norm_per_agent(network: nn.Module, max_norm: float) -> torch.Tensor:
    """Scales each agent's gradient to norm <= max_norm, in place; returns the norms before, (N,)."""
    grads = [p.grad for p in network.parameters()]
    norm = torch.stack([g.flatten(1).norm(dim=1) for g in grads]).norm(dim=0)
    for grad in grads:
        grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0).view(-1, 1, 1))
    return norm


def update(agents, optimizer, batch, args, loss_fn=ippo_loss) -> torch.Tensor:
    """update_epochs Adam steps of n agents on the whole batch, then their betas; changes the agents in place.

    batch: tensors (n, rows, ...) named as in `ippo_loss`, taken in cache-sized chunks whose gradients add up.
    Returns the first seven of STATS, (7, n): losses and gradient norm of the last epoch; estimated KL, share
    of clipped ratios and KL, over the whole batch, of the updated policy against the old one.
    """
    n, rows = batch["obs"].shape[:2]
    size = rows if batch["obs"].is_cuda else CHUNK * max(1, 8 // n)  # longer for few: threads share Python
    chunks = [{name: x[:, i : i + size] for name, x in batch.items()} for i in range(0, rows, size)]
    for _ in range(args.update_epochs):
        optimizer.zero_grad()
        losses = 0.0
        for chunk in chunks:
            loss, parts = loss_fn(agents, **chunk, args=args)
            loss.backward()
            losses = losses + parts
        grad_norm = clip_grad_norm_per_agent(agents.actor, args.max_grad_norm)
        clip_grad_norm_per_agent(agents.critic, args.max_grad_norm)
        optimizer.step()
    moved = torch.zeros(3, *batch["obs"].shape[:1], device=batch["obs"].device)
    with torch.no_grad():
        for chunk in chunks:
            mask, actions = chunk["action_mask"], chunk["actions"]
            policy = agents.actor.policy(chunk["obs"], mask)
            logratio, kl, _ = agents.actor.compare(chunk["old_policy"], policy, mask, actions)
            x = torch.expm1(logratio)
            moved += (chunk["weight"] * torch.stack([x - logratio, x.abs() > args.clip_coef, kl])).sum(2)
    if args.kl_penalty:
        sampled = batch["weight"].any(dim=1)  # an agent that died before the batch began has no KL to go by
        agents.beta.copy_(torch.where(sampled, adapt_beta(agents.beta, moved[2], args), agents.beta))
    return torch.cat([losses, grad_norm[None], moved])


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, iddpg, ippo, iql ---
class CudaGraph:
    """`update(batch)` as one launch of a CUDA graph; small networks would wait for thousands of launches.

    PyTorch wants real calls before it records one: the first two run as they are. What is recorded reads and
    writes the same memory at each replay, so every batch, on any device, is copied to where the first was.
    """

    def __init__(self, update):
        self.update, self.calls, self.batch = update, 0, {}
        self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()

    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.batch = self.batch or {name: torch.empty_like(x, device="cuda") for name, x in batch.items()}
        for name, x in batch.items():
            self.batch[name].copy_(x if x.is_cuda else x.pin_memory(), non_blocking=True)
        self.calls += 1
        if self.calls < 3:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.stats = self.update(self.batch)
            torch.cuda.current_stream().wait_stream(self.stream)
        elif self.calls == 3:
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.stats = self.update(self.batch)
        if self.calls >= 3:
            self.graph.replay()
        return self.stats.clone()


def adapt_beta(beta: torch.Tensor, kl: torch.Tensor, args: Args) -> torch.Tensor:
    """eq. (21), per agent: beta (n,) times omega where kl (n,) is above the band, divided where below."""
    up, down = kl > args.d_target * args.delta, kl < args.d_target / args.delta
    beta = beta * torch.where(up, args.omega, torch.where(down, 1 / args.omega, 1.0))
    return beta.clamp(args.beta_min, args.beta_max)


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, iddpg, ippo, iql ---
def to_agents(x: np.ndarray, device: str) -> torch.Tensor:
    """(E, N, ...) array of the environment's side -> (N, E, ...) tensor of the learner's."""
    tensor = torch.from_numpy(x)
    if device != "cpu":  # from pinned memory the copy to a GPU need not be waited for
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor.transpose(0, 1)


def to_envs(actions: torch.Tensor, space) -> np.ndarray:
    """(N, E, ...) actions as drawn -> (E, N, ...), clipped to the bounds, for the environment only."""
    array = actions.transpose(0, 1).cpu().numpy()
    return np.clip(array, space.low, space.high) if actions.is_floating_point() else array


def available(envs, infos: dict) -> np.ndarray:
    """(E, N, A) bool: actions that may be taken; if they are continuous, an agent's own, without padding."""
    if "action_mask" in infos:
        return infos["action_mask"]
    own = np.arange(envs.act_dim) < np.array(envs.agent_act_dims)[:, None]
    return np.tile(own, (envs.num_envs, 1, 1))


@torch.no_grad()
def evaluate(agents, envs, episodes: int, entropy: list[int], device: str, frames: list | None = None):
    """Greedy episodes, equally many in each environment (else short ones would be over-represented).

    In tabular games instead the exact return of the policies, as dpo_matrix.py evaluates.
    """
    if hasattr(envs, "exact_return") and frames is None:
        states = torch.eye(envs.obs_dim, device=device).expand(envs.num_agents, -1, -1)
        logits = agents.actor(agents.obs_norm(states))
        return {"eval/episodic_return": envs.exact_return(logits.double().softmax(-1).cpu().numpy())}
    obs, infos = envs.reset(seed=int(np.random.SeedSequence(entropy).generate_state(1)[0]))
    finished, returns, wins = np.zeros(envs.num_envs, dtype=int), [], []
    while (finished < episodes / envs.num_envs).any():
        if frames is not None:
            frames.append(envs.render())
        mask = to_agents(available(envs, infos), device)
        policy = agents.actor.policy(agents.obs_norm(to_agents(obs, device)), mask)
        actions = to_envs(agents.actor.act(policy, mask), envs.single_action_space)
        obs, _, _, _, infos = envs.step(actions)
        ended = infos["_episode"] & (finished < episodes / envs.num_envs)
        finished += ended
        returns += infos["episode"]["r"][ended].tolist()
        wins += infos["battle_won"][ended].tolist() if "battle_won" in infos else []
    won = {"eval/win_rate": float(np.mean(wins))} if wins else {}
    return {"eval/episodic_return": float(np.mean(returns))} | won


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, iddpg, ippo, iql ---
def save(path: Path, state: dict) -> None:
    """Writes `state` atomically: whenever the process dies, `path` is the old file or the new one."""
    buffer, temporary = io.BytesIO(), path.with_suffix(".tmp")
    torch.save(state | {"script": SCRIPT}, buffer)
    try:
        with open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, iddpg, ippo, iql ---
def load(path: Path) -> dict:
    """Reads what `save` wrote, executing nothing from it; one sentence if it is not ours or not whole."""
    try:
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True)
        script, names, _ = state["script"], set(state["args"]), state["counters"]
    except FileNotFoundError:
        sys.exit(f"{SCRIPT}: no checkpoint at {path}; give a run directory or a .pt file of {SCRIPT}.py.")
    except Exception:
        sys.exit(f"{SCRIPT}: {path} is truncated or no checkpoint of ours; use another or start a new run.")
    if script != SCRIPT or names != {field.name for field in fields(Args)}:
        sys.exit(f"{SCRIPT}: {path} is of {script}.py of another version; args.json names its git_commit.")
    return state


# --- same in: iddpg, ippo, iql ---
def literal(text: str) -> object:
    """The number, truth value or list that `text` is in JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse_args(argv: list[str] | None = None) -> tuple[Args, dict, Path]:
    """Command line over the task's preset, or over the arguments of a saved run; its state and directory."""
    args, state = tyro.cli(Args, args=argv, description=__doc__), {}
    if args.eval_only != bool(args.checkpoint) or (args.eval_only and args.resume):
        sys.exit(f"{SCRIPT}: give --eval-only and --checkpoint RUN_DIRECTORY together, or --resume alone.")
    path = run_dir = Path(args.checkpoint or args.resume)
    if args.eval_only or args.resume:
        path = path / "checkpoint.pt" if path.is_dir() else path
        state, run_dir = load(path), path.parent
    presets = PRESETS.get(args.env_id.partition("/")[0], {}) | PRESETS.get(args.env_id, {})
    base = Args(**state["args"] if state else {"env_id": args.env_id} | presets)
    args = tyro.cli(Args, args=argv, default=base, description=__doc__)
    changed = {name for name, value in asdict(args).items() if value != getattr(base, name)}
    changed = changed & EVAL_MAY_NOT_CHANGE if args.eval_only else changed - RESUME_MAY_CHANGE
    if state and changed:
        sys.exit(f"{SCRIPT}: {path} was made with another {', '.join(sorted(changed))}; drop the flag.")
    for name in ("num_envs", "num_steps", "update_epochs", "torch_threads", "eval_every", "checkpoint_every"):
        if getattr(args, name) < 1:
            sys.exit(f"{SCRIPT}: --{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}.")
    if not all("=" in option for option in args.env_options):
        sys.exit(f"{SCRIPT}: --env-options takes name=value pairs, e.g. num_agents=3.")
    if not (args.learning_rate > 0 and args.max_grad_norm > 0 and 0 <= args.seed < 2**63):
        sys.exit(f"{SCRIPT}: --learning-rate and --max-grad-norm must be positive, --seed 0 to 2**63 - 1.")
    if not (0 <= args.gamma <= 1 and 0 <= args.gae_lambda <= 1 and 0 <= args.ent_coef < float("inf")):
        sys.exit(f"{SCRIPT}: --gamma and --gae-lambda must be 0 to 1, --ent-coef finite and not negative.")
    if not args.clip_coef > 0:
        sys.exit(f"{SCRIPT}: --clip-coef must be positive, got {args.clip_coef}.")
    if not (args.d_target > 0 and args.delta > 1 and args.omega > 1 and 0 <= args.beta_min <= args.beta_max):
        sys.exit(f"{SCRIPT}: eq. (21) needs d_target > 0, delta > 1, omega > 1, 0 <= beta_min <= beta_max.")
    if args.device not in ("cpu", "cuda"):
        sys.exit(f"{SCRIPT}: --device is cpu or cuda, got {args.device}; CUDA_VISIBLE_DEVICES names the GPU.")
    if args.device != "cpu" and not torch.cuda.is_available():
        sys.exit(f"{SCRIPT}: --device {args.device}, but PyTorch sees no GPU here; use --device cpu.")
    if args.compile and not shutil.which(os.environ.get("CXX", "g++")):
        sys.exit(f"{SCRIPT}: --compile needs a C++ compiler; install g++ (or set CXX), or drop the flag.")
    return args, state, run_dir


def train(args: Args, envs, eval_envs, agents: Agents, state: dict, run_dir: Path) -> dict:
    """Rollout, GAE, update (and adaptive beta), over and over; returns the parameters that evaluated best."""
    device, N, T, E = args.device, envs.num_agents, args.num_steps, args.num_envs
    # Agents share nothing, so a group of them is a learner of its own, and threads need no synchronisation.
    cuts = np.linspace(0, N, min(args.torch_threads if device == "cpu" else 1, N) + 1).astype(int).tolist()
    groups = [slice(first, last) for first, last in itertools.pairwise(cuts)]
    learners = [agents.group(group) for group in groups]
    settings = dict(lr=args.learning_rate, eps=1e-5, fused=True, capturable=device != "cpu")
    adam = functools.partial(torch.optim.Adam, **settings)
    optimizers = [adam(learner.parameters()) for learner in learners]
    pool = ThreadPoolExecutor(len(groups), initializer=torch.set_num_threads, initargs=(1,))
    options = {"cpp_wrapper": True} if device == "cpu" else {}  # on a CPU it runs without Python's lock
    loss_fn = torch.compile(ippo_loss, options=options) if args.compile else ippo_loss
    learn = functools.partial(update, args=args, loss_fn=loss_fn)
    updates = [functools.partial(learn, *pair) for pair in zip(learners, optimizers, strict=True)]
    updates = updates if device == "cpu" else [CudaGraph(learn) for learn in updates]
    generator = torch.Generator(device).manual_seed(args.seed + 2**32)  # not the initial parameters' stream
    global_step, next_eval, best_return, best = 0, 0, -float("inf"), agents.state_dict()
    metrics = run_dir / "metrics.csv"
    next_obs, infos = envs.reset()
    next_mask, next_alive = available(envs, infos), infos["alive"]
    if state:
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        generator.set_state(state["generator"])
        (global_step, next_eval, best_return), best = state["counters"], state["best"]
        try:
            envs.set_state({name: x.numpy() for name, x in state["envs"].items()})
        except ValueError as error:
            sys.exit(f"{SCRIPT}: {run_dir}/checkpoint.pt cannot be resumed. {error}")
        if envs.backend not in ("starcraft", "pettingzoo"):  # those cannot return, they have begun anew
            next_obs, next_mask, next_alive = (x.numpy() for x in state["next"])
        if not metrics.exists() or metrics.stat().st_size < state["metrics_bytes"]:
            sys.exit(f"{SCRIPT}: {metrics} is not as the checkpoint knows it; restore it or start a new run.")
        os.truncate(metrics, state["metrics_bytes"])  # later rows will be written again
    else:
        run_dir.mkdir(parents=True)
        (run_dir / "args.json").write_text(json.dumps(asdict(args) | describe(envs), indent=1) + "\n")
        metrics.write_text(",".join(COLUMNS) + "\n")
    writer = SummaryWriter(str(run_dir), purge_step=global_step + 1)
    A, space = next_mask.shape[-1], envs.single_action_space
    print(f"{run_dir}: {N} agents, {envs.obs_dim} inputs, {A} actions, {envs.backend} engine", flush=True)

    def log(row: dict[str, float]) -> None:
        with open(metrics, "a", newline="") as file:
            values = {name: f"{value:.6g}" for name, value in row.items()}
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writerow({"global_step": global_step} | values)
            file.flush()
            os.fsync(file.fileno())
        for name, value in row.items():
            writer.add_scalar(name, value, global_step)

    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: signals.append(signum))
    zeros = functools.partial(torch.zeros, device=device)
    obs, old_policy = zeros(N, T, E, envs.obs_dim), zeros(N, T, E, agents.actor.width * A)
    action_mask, alive = zeros(N, T, E, A, dtype=torch.bool), zeros(N, T, E, dtype=torch.bool)
    actions = torch.from_numpy(np.zeros((N, T, E, *space.shape[1:]), space.dtype)).to(device)
    values, final_values, rewards = zeros(N, T, E), zeros(N, T, E), torch.zeros(T, E)
    terminations, truncations = torch.zeros(2, T, E, dtype=torch.bool)
    bar = tqdm(total=args.total_timesteps, initial=global_step, unit="step", disable=not sys.stderr.isatty())
    next_checkpoint, next_line = global_step, 0.0
    while True:
        if global_step >= next_eval:
            next_eval += args.eval_every
            result = evaluate(agents, eval_envs, EVAL_EPISODES, [args.seed, 0, global_step], device)
            log(result)
            if result["eval/episodic_return"] >= best_return:  # of equals the one that learned longer
                best_return, best = result["eval/episodic_return"], copy.deepcopy(agents.state_dict())
        finished = global_step >= args.total_timesteps
        if global_step >= next_checkpoint or finished or signals:
            next_checkpoint = global_step + args.checkpoint_every
            checkpoint = {"args": asdict(args), "agents": agents.state_dict(), "best": best}
            checkpoint["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
            checkpoint["generator"] = generator.get_state()
            checkpoint["counters"] = global_step, next_eval, best_return
            checkpoint["envs"] = {name: torch.from_numpy(x) for name, x in envs.get_state().items()}
            checkpoint["next"] = [torch.from_numpy(x) for x in (next_obs, next_mask, next_alive)]
            checkpoint["metrics_bytes"] = metrics.stat().st_size
            save(run_dir / "checkpoint.pt", checkpoint)
        if finished:
            break
        if signals:
            print(f"{SCRIPT}: stopped at step {global_step:,}; go on with --resume {run_dir}")
            sys.exit(EXIT_REQUEUE)

        start, env_s, episodes = time.perf_counter(), 0.0, []
        for step in range(T):
            obs[:, step] = to_agents(next_obs, device)
            action_mask[:, step] = to_agents(next_mask, device)
            alive[:, step] = to_agents(next_alive, device)
            with torch.no_grad():
                seen, mask = agents.obs_norm(obs[:, step]), action_mask[:, step]
                old_policy[:, step], values[:, step] = agents.actor.policy(seen, mask), agents.value(seen)
                actions[:, step] = agents.actor.act(old_policy[:, step], mask, generator)
            env_start = time.perf_counter()
            next_obs, reward, terminated, truncated, infos = envs.step(to_envs(actions[:, step], space))
            env_s += time.perf_counter() - env_start
            next_mask, next_alive = available(envs, infos), infos["alive"]
            rewards[step], terminations[step] = torch.from_numpy(reward), torch.from_numpy(terminated)
            truncations[step] = torch.from_numpy(truncated)
            if truncated.any():
                final_obs = to_agents(infos["final_obs"], device)
                with torch.no_grad():  # the dead see zeros and expect nothing
                    final_values[:, step] = agents.value(agents.obs_norm(final_obs)) * final_obs.any(-1)
            ended = infos["_episode"]
            won = infos.get("battle_won", np.full(E, np.nan))
            episodes += zip(*(x[ended] for x in (*infos["episode"].values(), won)), strict=True)
        global_step += T * E

        with torch.no_grad():
            next_value = agents.value(agents.obs_norm(to_agents(next_obs, device)))
        ends = terminations.to(device), truncations.to(device), alive, to_agents(next_alive, device)
        advantages, returns, valid = gae(
            rewards.to(device), values, next_value, final_values, *ends, args.gamma, args.gae_lambda
        )
        weight = valid / valid.sum((1, 2), keepdim=True).clamp(min=1)
        batch = dict(obs=obs, action_mask=action_mask, actions=actions, old_policy=old_policy, weight=weight)
        batch["returns"] = agents.rescale(returns, valid) if args.value_norm else returns
        batch["advantages"] = standardize(advantages, weight)[0]
        rollout_s = time.perf_counter() - start
        # Each agent's samples come first, and chunks of dead rows alone are dropped: whole chunks, so that no
        # agent's arithmetic depends on how long another lives. On a GPU none: to count them is to wait.
        rows = valid.flatten(1).int().argsort(dim=1, descending=True, stable=True)
        if device == "cpu":
            rows = rows[:, : -(-int(valid.sum((1, 2)).max()) // CHUNK) * CHUNK]
        which = torch.arange(N, device=device)[:, None], rows
        batch = {name: x.flatten(1, 2)[which] for name, x in batch.items()}
        batch["obs"] = agents.obs_norm(batch["obs"])
        if isinstance(agents.obs_norm, RunningNorm):  # for the next rollout: this one was acted on without it
            agents.obs_norm.add(obs.flatten(1, 2), alive.flatten(1))
        parts = [{name: x[group] for name, x in batch.items()} for group in groups]
        stats = torch.cat(list(pool.map(operator.call, updates, parts)), dim=1)
        error, spread = standardize(returns - values, weight)[1], standardize(returns, weight)[1]
        explained = 1 - (error / (spread + 1e-8)).square()
        below, above = stats[6] < args.d_target / args.delta, stats[6] > args.d_target * args.delta
        penalty = (agents.beta / N, below, above) if args.kl_penalty else ()
        stats = torch.stack([*stats, explained.flatten(), *penalty]).mean(1).tolist()
        if not (np.isfinite(stats[:7]).all() and all(p.isfinite().all() for p in agents.parameters())):
            diagnostic = {"args": asdict(args), "agents": agents.state_dict(), "batch": batch}
            save(run_dir / "diagnostic.pt", diagnostic)
            where = f"at step {global_step}; {run_dir}/diagnostic.pt holds the batch, checkpoint.pt is intact"
            sys.exit(f"{SCRIPT}: the loss is not finite {where}. Start again with a smaller --learning-rate.")

        seconds = time.perf_counter() - start
        sps = T * E / seconds
        split = env_s / seconds, (rollout_s - env_s) / seconds, 1 - rollout_s / seconds
        means = np.mean(episodes or [[np.nan] * 3], axis=0, dtype=float).tolist()
        log(dict(zip(COLUMNS[3:], [*means, sps, *split, *stats], strict=args.kl_penalty)))
        status = f"return {means[0]:.2f}" if episodes else "no episode has ended"
        status += "" if np.isnan(means[2]) else f", win rate {means[2]:.2f}"
        bar.set_postfix_str(status, refresh=False)
        bar.update(T * E)
        if bar.disable and time.perf_counter() > next_line:
            next_line, eta = time.perf_counter() + 10, max(args.total_timesteps - global_step, 0) / sps / 60
            print(f"step {global_step:,}, {sps:,.0f} steps/s, {status}, ETA {eta:.0f} min", flush=True)
    bar.close()
    writer.close()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return best


def main() -> None:
    args, state, run_dir = parse_args()
    torch.set_num_threads(1)  # cores are for groups of agents, --torch-threads, not for single operators
    torch.manual_seed(args.seed)
    try:
        options = {"threads": args.torch_threads} if args.env_id.startswith("mamujoco/") else {}
        options |= {name: literal(value) for name, _, value in (x.partition("=") for x in args.env_options)}
        make = functools.partial(make_envs, args.env_id, seed=args.seed, **options)
        envs = make(args.num_envs)
        tabular = hasattr(envs, "exact_return")  # is evaluated exactly, without playing
        if tabular and args.num_steps % envs.episode_limit:
            wanted = f"give --num-steps {envs.episode_limit}, the number of states"
            raise ValueError(f"Rollouts of tabular games are whole episodes, as in dpo_matrix.py: {wanted}.")
        compiled = envs.backend in ("embedded", "mujoco")
        eval_envs = envs if tabular else make(EVAL_EPISODES if compiled else args.num_envs)
        video_envs = make(1, render_mode="rgb_array") if args.capture_video else None
    except (ValueError, TypeError, RuntimeError, ImportError, MemoryError) as error:
        sys.exit(f"{SCRIPT}: {error}")
    actor, act_dim = (Gaussian, envs.act_dim) if hasattr(envs, "act_dim") else (Categorical, envs.num_actions)
    agents = Agents(envs.num_agents, envs.obs_dim, act_dim, args.layer_norm, actor)
    if actor is Gaussian:
        nn.init.constant_(agents.actor.log_std, args.log_std_init)
    agents.beta += 0.01 * envs.num_agents  # what beta2 = 0.01 is in the DPO scripts
    agents.to(args.device)
    if state:
        agents.load_state_dict(state["best" if args.eval_only and not tabular else "agents"])
    else:
        run_dir = Path(args.runs_dir) / f"{env_name(envs)}__{SCRIPT}__{args.seed}__{time.time_ns() // 10**6}"
    if not args.eval_only:
        best = train(args, envs, eval_envs, agents, state, run_dir)
        if not tabular:  # where evaluation has no luck to correct for, the last parameters count
            agents.load_state_dict(best)
    absolute = evaluate(agents, eval_envs, 10 * EVAL_EPISODES, [args.seed, 1], args.device)
    what = "exact" if tabular else f"{10 * EVAL_EPISODES} greedy episodes"
    print(f"{run_dir}, {what}: {json.dumps(absolute)}")
    if not args.eval_only:
        (run_dir / "done").write_text(json.dumps(absolute) + "\n")
    if video_envs:
        frames: list[np.ndarray] = []
        evaluate(
            agents, video_envs, 1 if envs.backend == "mujoco" else 4, [args.seed, 2], args.device, frames
        )
        fps = min(20, video_envs.metadata.get("render_fps", 8))
        imageio.mimsave(run_dir / "video.mp4", frames, fps=fps, macro_block_size=1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(f"{SCRIPT}: interrupted.")
    except BrokenEnvironment as error:
        sys.exit(f"{SCRIPT}: {error}")
    except OSError as error:
        sys.exit(f"{SCRIPT}: {error}; make room or allow writing, then --resume the last checkpoint.")
