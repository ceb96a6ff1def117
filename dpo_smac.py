"""DPO, Decentralized Policy Optimization (not direct preference optimization), on StarCraft battles (SMAC).

Paper: A Fully Decentralized Surrogate for Multi-Agent Policy Optimization (Su & Lu, TMLR 2024).
Details, and the differences from the paper and its released code: docs/dpo.md
Reproduce: python dpo_smac.py --map 8m --backend embedded  (the win rate to expect: README.md)

Each agent i maximises, from its own samples alone, eq. (20) plus an entropy bonus, c_H H / N. Eq. (20) is

    E[ratio A_i] / N - beta1_i E_s[sqrt KL_s] - beta2_i E_s[KL_s]

with ratio = pi / pi_old and KL_s = KL(pi_old || pi) in state s. After each update it multiplies its betas by
omega if E_s[KL_s] > d_target * delta, and divides them by omega if E_s[KL_s] < d_target / delta: eq. (21).
Here they are also bounded (--beta-min, --beta-max). To understand the algorithm, read gae, dpo_loss,
adapt_beta, update and train, in that order.

Tensors are (num_agents N, num_steps T, num_envs E, ...) or (N, batch, ...): agents come first, except in the
team's rewards, terminations and truncations, (T, E). n is the number of agents in a group that learns
together (see Learner). Agents share nothing; stacking their networks only batches the arithmetic.
"""

import os
import signal

# The imports take seconds; a signal during them exits with EXIT_REQUEUE's code, without a traceback.
if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(75))

import contextlib
import copy
import csv
import errno
import functools
import hashlib
import io
import itertools
import json
import math
import operator
import shutil
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import envs as environments
from envs.video import save_video

SCRIPT = Path(__file__).stem
EXIT_REQUEUE = 75  # EX_TEMPFAIL: a signal stopped it; the last line printed, if any, says how to go on
LONGEST_EPISODE = 100_000  # steps after which an evaluation gives up on an episode
EVAL_EPISODES = 32  # greedy episodes per evaluation; 10 times as many at the end, unless they are slow
CHUNK = 512  # rows per pass, to fit the cache; backward, 4 // n times as many for groups of n < 4 agents
GROUP_AGENTS = 4  # rough number of agents per group, in at most 8 groups; a thread trains one group at a time
GROUP_ROWS = 4096  # rough minimum of a group's rows, over all its agents: fewer are not worth a thread
# Columns of metrics.csv; a row leaves empty what it does not report.
COLUMNS = """
global_step eval/episodic_return eval/episodic_length eval/win_rate
charts/episodic_return charts/episodic_length charts/win_rate charts/SPS time/env time/act time/update
losses/policy_loss losses/value_loss losses/entropy losses/grad_norm losses/explained_variance
dpo/kl dpo/sqrt_kl dpo/beta1 dpo/beta2 dpo/below_band dpo/above_band
""".split()  # noqa: SIM905


@dataclass
class Args:
    map: str = "27m_vs_30m"  # SMAC's or SMACv2's: 8m, 10gen_terran_5_vs_5; my.toml; pettingzoo:MODULE
    backend: Literal["auto", "embedded", "starcraft"] = "auto"  # compiled engine, or the game if installed
    env_options: tuple[str, ...] = ()  # further options of the environment, name=value; docs/envs.md
    last_action: bool = False  # observe one's own last action, too
    seed: int = 1  # seed of environments, parameters and sampled actions
    total_timesteps: int = 10_000_000  # environment steps: one moves all agents of one environment
    num_envs: int = 32  # environments stepped together
    num_steps: int = 128  # steps of each environment per update: num_envs * num_steps rows per agent

    learning_rate: float = 5e-4  # Adam's learning rate, for actors and critics
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 0.95  # lambda of generalised advantage estimation
    update_epochs: int = 15  # gradient steps per update, each on the whole batch
    ent_coef: float = 0.01  # coefficient c_H of the entropy bonus, c_H H / N, which is added to eq. (20)
    max_grad_norm: float = 10.0  # gradient clip, per agent and per network
    advantage_norm: bool = True  # each agent's advantages have mean 0 and standard deviation 1 in every batch
    layer_norm: bool = True  # LayerNorm on the observation and before each ReLU
    d_target: float = 0.02  # KL per update that eq. (21) steers each agent to
    delta: float = 1.5  # eq. (21): the betas change where KL leaves [d_target / delta, d_target * delta]
    omega: float = 2.0  # eq. (21): the factor by which they change
    beta_init: float = 0.01  # initial beta1 and beta2 (themselves, not N times)
    beta_min: float = 0.001  # floor of N * beta after an update; if 0, beta is 0 for good after 143 halvings
    beta_max: float = 1000.0  # ceiling of N * beta (N times: the surrogate of eq. (20) has weight 1/N)
    # beta1's term. state: E_s[sqrt KL_s], eq. (20); average: sqrt E_s[KL_s], section 4.5; off: DPO_w/o_sqrt
    sqrt_kl_term: Literal["state", "average", "off"] = "state"
    kl_term: bool = True  # off: beta2 = 0, the ablation DPO_w/o_kl

    eval_every: int = 20_480  # environment steps between evaluations, 32 greedy episodes each
    checkpoint_every: int = 40_960  # environment steps between checkpoints
    runs_dir: str = "runs"  # where run directories are made
    resume: str = ""  # run directory (or .pt file) to continue, with the arguments it began with
    eval_only: bool = False  # with --resume: only the final evaluation, of its best parameters
    capture_video: bool = False  # record greedy episodes as video.mp4 in the run directory, at the end
    device: Literal["cpu", "cuda"] = "cpu"  # cuda: the first GPU that CUDA_VISIBLE_DEVICES names
    torch_threads: int = 0  # CPU threads of engine and learner, 0: one per core; results are the same
    compile: bool = False  # torch.compile the loss: faster updates after 10 to 40 s; a CPU needs g++

    @property
    def env_id(self) -> str:
        return self.map if ":" in self.map else f"smac/{self.map}"

    def __post_init__(self):
        check_ranges(self)
        if self.beta_min > self.beta_max:
            raise ValueError(f"--beta-min must be at most --beta-max {self.beta_max}, got {self.beta_min}.")


RANGES = {
    "total_timesteps eval_every checkpoint_every": (1, 10**12),
    "num_envs": (1, 2**14),
    "num_steps update_epochs": (1, 10**5),
    "torch_threads": (0, 1024),
    "seed": (0, 2**63 - 1),
    "max_grad_norm d_target": (1e-12, 1e12),
    "learning_rate": (1e-12, 1),
    "gamma gae_lambda": (0, 1),
    "ent_coef beta_init beta_min beta_max": (0, 1e12),
    "delta omega": (1.0001, 1e12),
}
PRESETS = {
    "smac/8m": dict(total_timesteps=1_000_000),
    "smac/2s3z": dict(total_timesteps=2_000_000),
    "smac/3s5z": dict(total_timesteps=5_000_000),
}


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, iddpg, ippo ---
class StackedMLP(nn.Module):
    """One 3-layer perceptron per agent, none shared: weights (N, in, out), biases (N, 1, out)."""

    def __init__(self, num_agents: int, in_dim: int, out_dim: int, head_gain: float, layer_norm: bool):
        super().__init__()
        self.layer_norm = layer_norm
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        dims = (in_dim, 128, 128, out_dim)
        gains = (2**0.5, 2**0.5, head_gain)
        for (fan_in, fan_out), gain in zip(itertools.pairwise(dims), gains, strict=True):
            layer = [nn.init.orthogonal_(torch.empty(fan_in, fan_out), gain) for _ in range(num_agents)]
            self.weights.append(nn.Parameter(torch.stack(layer)))
            self.biases.append(nn.Parameter(torch.zeros(num_agents, 1, fan_out)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, batch, in) -> (N, batch, out); agent i's output depends on x[i] and its own parameters only."""
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if weight.shape[-1] > 1:
                x = torch.baddbmm(bias, x, weight)
            else:  # a matrix product with a single column is slow
                x = (x * weight.mT).sum(-1, keepdim=True) + bias
            if layer < len(self.weights) - 1:
                x = F.layer_norm(x, x.shape[-1:]) if self.layer_norm else x
                x = x.relu_()
        return x


class Agents(nn.Module):
    """Actor pi_i, critic V_i and coefficients beta1_i, beta2_i of N agents."""

    def __init__(
        self, num_agents: int, obs_dim: int, num_actions: int, layer_norm: bool = True, norm_obs: bool = True
    ):
        super().__init__()
        self.team_size = num_agents  # N of eq. (20): the whole team's, also in a `group`
        self.actor = StackedMLP(num_agents, obs_dim, num_actions, 0.01, layer_norm)
        self.critic = StackedMLP(num_agents, obs_dim, 1, 1.0, layer_norm)
        self.register_buffer("beta1", torch.zeros(num_agents))
        self.register_buffer("beta2", torch.zeros(num_agents))
        # It has no parameters: observations go through it once, in the rollout, not at every epoch.
        norm = layer_norm and norm_obs
        self.obs_norm = nn.LayerNorm(obs_dim, elementwise_affine=False) if norm else nn.Identity()

    def value(self, obs: torch.Tensor) -> torch.Tensor:
        """V_i of its own observation after obs_norm: (N, batch, obs_dim) -> (N, batch)."""
        return self.critic(obs).squeeze(-1)

    def group(self, part: slice) -> "Agents":
        """Some of the agents, as a module of views: training it trains these agents."""
        members = copy.deepcopy(self)
        # .data gives each view its own version counter; else autograd would mistake another thread's step for
        # a change to a tensor that it saved.
        for mine, whole in zip(members.parameters(), self.parameters(), strict=True):
            mine.data = whole.data[part]
        members.beta1 = self.beta1.data[part]
        members.beta2 = self.beta2.data[part]
        return members


# --- same in: dpo_smac, ippo ---
def masked_log_softmax(logits: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
    """log pi (..., A) of the available actions, and 0 at the others.

    That 0 is not a log-probability: it makes terms like pi log pi and log pi - log pi_old vanish there. Code
    that sums pi = exp(log pi) alone must mask it.
    """
    logits = logits.masked_fill(~action_mask, -torch.inf)
    return F.log_softmax(logits, dim=-1).masked_fill(~action_mask, 0.0)


# --- same in: dpo_matrix, dpo_mpe, dpo_smac, ippo ---
def gumbel_like(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gumbel noise: argmax(logits + noise) samples pi. Its shape is fixed, so that no agent's draws depend on
    another's policy."""
    return -torch.empty_like(logits).exponential_(generator=generator).log()


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, ippo ---
def exp_minus_linear(x: torch.Tensor) -> torch.Tensor:
    """exp(x) - 1 - x, never negative; near 0 its gradient, expm1(x), is exact where autograd's is noise."""
    at = x.detach()
    slope = torch.expm1(at)
    value = (slope - at).clamp(min=0.0)
    return value + slope * (x - at)  # adds 0, whose gradient is the slope


# --- same in: dpo_matrix, dpo_mpe, dpo_smac, ippo ---
def categorical_kl(old_logp: torch.Tensor, logp: torch.Tensor) -> torch.Tensor:
    """KL(pi_old || pi) of each state, (..., A) -> (...), never negative, so that its square root is safe.

    With x = log pi - log pi_old it is sum pi_old (exp(x) - 1 - x), because sum pi_old (exp(x) - 1) = 0.
    Unavailable actions, 0 in both, add nothing.
    """
    x = (logp - old_logp).clamp(max=88.0)  # exp would overflow beyond, where pi_old < 1e-38
    return (old_logp.exp() * exp_minus_linear(x)).sum(-1)


# --- same in: dpo_smac, ippo ---
def gae(rewards, values, final_values, terminations, truncations, alive, gamma, lam):
    """Generalised advantage estimation: advantages, returns, and which samples are valid, (N, T, E).

    rewards, terminations, truncations: (T, E), the team's. values, alive: (N, T + 1, E), of the observations
    before each step and after the last. final_values: (N, T, E), V of the observation before autoreset, 0 for
    the dead; read only where an episode was truncated.

    V is not trained on the dead, so at the step at which an agent dies, V is replaced by the discounted
    reward that its team still earns until the episode ends. If the rollout ends before the episode does, that
    reward is unknown and the step is invalid, as are all steps at which the agent is dead.
    """
    advantages = torch.zeros_like(values[:, 1:])
    valid = torch.zeros_like(alive[:, 1:])
    advantage = torch.zeros_like(values[:, 0])
    next_value = values[:, -1]  # what an agent may expect after step t
    next_known = alive[:, -1]
    for t in reversed(range(len(rewards))):
        done = terminations[t] | truncations[t]
        next_value = torch.where(done, final_values[:, t] * ~terminations[t], next_value)
        next_known = next_known | done
        target = rewards[t] + gamma * next_value
        valid[:, t] = alive[:, t] & next_known
        advantage = target - values[:, t] + gamma * lam * advantage * ~done
        advantage = advantage * valid[:, t]  # nothing flows back from invalid steps
        advantages[:, t] = advantage
        # What it may expect after step t - 1: V if alive, else what its team earns from step t on.
        next_value = torch.where(alive[:, t], values[:, t], target)
        next_known = next_known | alive[:, t]
    return advantages, advantages + values[:, :-1], valid


# --- same in: dpo_smac, ippo ---
def weighted_std(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Standard deviation over each agent's own samples: x, weight (N, T, E) -> (N, 1, 1)."""
    mean = (weight * x).sum((1, 2), keepdim=True)
    return (weight * (x - mean).square()).sum((1, 2), keepdim=True).sqrt()


# --- same in: dpo_smac, ippo ---
def standardize(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (N, T, E) to mean 0 and standard deviation 1 over each agent's own samples."""
    mean = (weight * x).sum((1, 2), keepdim=True)
    return (x - mean) / (weighted_std(x, weight) + 1e-8)


# --- same in: dpo_smac, ippo ---
def samples_first(batch: dict[str, torch.Tensor], valid: torch.Tensor) -> dict[str, torch.Tensor]:
    """(N, T, E, ...) to (N, T * E, ...), each agent's valid samples first: `update` skips empty chunks."""
    rows = valid.flatten(1).int().argsort(dim=1, descending=True, stable=True)
    agent = torch.arange(len(rows), device=rows.device)[:, None]
    return {name: x.flatten(1, 2)[agent, rows] for name, x in batch.items()}


def dpo_loss(
    agents, obs, action_mask, actions, old_logp, advantages, returns, weight, ent_coef, sqrt_slope=None
):
    """Loss of a chunk of rows, summed over agents (whose parameters are disjoint); its parts, (n,) each.

    obs (n, rows, obs_dim); action_mask (n, rows, A) bool; actions (n, rows) int64; old_logp (n, rows, A), of
    all actions; advantages and returns (n, rows). weight (n, rows): 1 / (the agent's valid
    samples in the batch), 0 at invalid rows, so that sums over the batch's chunks are means.

    Per agent: eq. (20), with the entropy bonus beside its ratio term, and eq. (8), E[(V - return)^2].
    sqrt_slope (n,), only for --sqrt-kl-term average, where beta1 multiplies sqrt(KL_avg), KL_avg being that
    of the whole batch: d sqrt(KL_avg) / d KL_avg = 1 / (2 sqrt KL_avg).
    """
    logp = masked_log_softmax(agents.actor(obs), action_mask)
    ratio = (logp - old_logp).gather(-1, actions.unsqueeze(-1)).squeeze(-1).exp()
    surrogate = (weight * ratio * advantages).sum(1)
    entropy = -(weight * (logp.exp() * logp).sum(-1)).sum(1)
    kl_s = categorical_kl(old_logp, logp)
    kl = (weight * kl_s).sum(1)
    if sqrt_slope is None:
        sqrt_kl = (weight * (kl_s + 1e-12).sqrt()).sum(1)  # without 1e-12, NaN gradients at KL 0, the start
    else:
        sqrt_kl = sqrt_slope * kl  # has the gradient of sqrt(KL_avg), and half its value
    # N times eq. (20): the same maximiser, with gradients as large as IPPO's, which clip and Adam's eps suit.
    objective = surrogate - agents.team_size * (agents.beta1 * sqrt_kl + agents.beta2 * kl)
    v_loss = (weight * (agents.value(obs) - returns).square()).sum(1)  # eq. (8)
    loss = (v_loss - objective - ent_coef * entropy).sum()
    # As logged: the surrogate alone, without penalty and entropy.
    parts = {"losses/policy_loss": -surrogate, "losses/value_loss": v_loss, "losses/entropy": entropy}
    return loss, {name: x.detach() for name, x in parts.items()}


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, iddpg, ippo, iql ---
def clip_grad_norm_per_agent(network: nn.Module, max_norm: float) -> torch.Tensor:
    """Scales each agent's gradient to norm <= max_norm, in place; returns the norms before, (N,)."""
    grads = [p.grad for p in network.parameters()]
    norm = torch.stack([g.flatten(1).norm(dim=1) for g in grads]).norm(dim=0)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0).view(-1, 1, 1)
    for grad in grads:
        grad.mul_(scale)
    return norm


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac ---
def adapt_beta(beta: torch.Tensor, kl: torch.Tensor, args: Args, team_size: int) -> torch.Tensor:
    """eq. (21): beta (n,) times omega where kl (n,) > d_target * delta, divided where kl < d_target / delta.

    Both betas see the same KL, so beta1 = beta2 unless an ablation leaves one out.
    """
    above = kl > args.d_target * args.delta
    below = kl < args.d_target / args.delta
    factor = torch.ones_like(beta).masked_fill(above, args.omega).masked_fill(below, 1 / args.omega)
    return (beta * factor).clamp(args.beta_min / team_size, args.beta_max / team_size)


@torch.no_grad()
def mean_kl(agents, chunks) -> tuple[torch.Tensor, torch.Tensor]:
    """E_s[KL_s] and E_s[sqrt KL_s] of a whole batch, given in chunks; KL_s = KL(pi_old || pi); (n,) each."""
    kl = torch.zeros_like(agents.beta1)
    sqrt_kl = torch.zeros_like(agents.beta1)
    for chunk in chunks:
        logp = masked_log_softmax(agents.actor(chunk["obs"]), chunk["action_mask"])
        kl_s = categorical_kl(chunk["old_logp"], logp)
        kl += (chunk["weight"] * kl_s).sum(1)
        sqrt_kl += (chunk["weight"] * kl_s.sqrt()).sum(1)
    return kl, sqrt_kl


# --- same in: dpo_smac, ippo ---
def what_adam_changes(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Parameters and Adam's moments, (n, ., .) each; the moments exist from the first step on."""
    parameters = optimizer.param_groups[0]["params"]
    moments = [optimizer.state[p][name] for p in parameters for name in ("exp_avg", "exp_avg_sq")]
    return [p.data for p in parameters] + moments


def update(agents, optimizer, batch, args, loss_fn=dpo_loss) -> dict[str, torch.Tensor]:
    """Takes update_epochs full-batch Adam steps with n agents, then adapts their betas, all in place.

    batch: the tensors of `dpo_loss`, (n, rows, ...); gradients of its cache-sized chunks add up. Returns what
    is logged, (n,) each: losses of the last epoch, gradient norms of the actors before clipping, KL of the
    new policies from the old, and the new betas.
    """
    n, rows = batch["weight"].shape
    cuda = batch["obs"].is_cuda
    size = rows if cuda else CHUNK * max(1, 4 // n)
    chunks = [{name: x[:, i : i + size] for name, x in batch.items()} for i in range(0, rows, size)]
    # Chunks without a valid sample are skipped, but one is kept for the shapes; not on a GPU, where checking
    # means waiting. Chunk bounds are fixed, so an agent's death does not change how others' sums are rounded.
    chunks = [chunk for chunk in chunks if cuda or chunk["weight"].any()] or chunks[:1]
    # An agent without a valid sample, as one that is dead throughout, must not change, but Adam's momentum
    # would move it: it is restored after the epochs. In the first update there is no momentum yet.
    sampled = batch["weight"].any(dim=1)
    restore = bool(optimizer.state) and (cuda or not sampled.all())
    before = [x.clone() for x in what_adam_changes(optimizer)] if restore else []
    for _ in range(args.update_epochs):
        optimizer.zero_grad()
        losses = []
        sqrt_slope = None
        if args.sqrt_kl_term == "average":  # of the whole batch, so it is needed before the first chunk
            kl, _ = mean_kl(agents, chunks)
            sqrt_slope = 0.5 * (kl + 1e-12).rsqrt()
        for chunk in chunks:
            loss, parts = loss_fn(agents, **chunk, ent_coef=args.ent_coef, sqrt_slope=sqrt_slope)
            loss.backward()
            losses.append(parts)
        grad_norm = clip_grad_norm_per_agent(agents.actor, args.max_grad_norm)
        clip_grad_norm_per_agent(agents.critic, args.max_grad_norm)
        optimizer.step()
    if restore:
        for x, old in zip(what_adam_changes(optimizer), before, strict=True):
            x.copy_(torch.where(sampled.view(-1, 1, 1), x, old))
    stats = {name: sum(parts[name] for parts in losses) for name in losses[0]}
    stats["losses/grad_norm"] = grad_norm

    kl, sqrt_kl = mean_kl(agents, chunks)
    if args.sqrt_kl_term != "off":
        adapted = adapt_beta(agents.beta1, kl, args, agents.team_size)
        agents.beta1.copy_(torch.where(sampled, adapted, agents.beta1))
    if args.kl_term:
        adapted = adapt_beta(agents.beta2, kl, args, agents.team_size)
        agents.beta2.copy_(torch.where(sampled, adapted, agents.beta2))
    stats |= {"dpo/kl": kl, "dpo/sqrt_kl": sqrt_kl, "dpo/beta1": agents.beta1, "dpo/beta2": agents.beta2}
    stats["dpo/below_band"] = (sampled & (kl < args.d_target / args.delta)).float()
    stats["dpo/above_band"] = (kl > args.d_target * args.delta).float()
    return stats


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, ippo ---
class Learner:
    """Runs `update` for groups of agents on threads; on a GPU for all agents at once, as a CUDA graph.

    Agents share nothing, so groups train in parallel without synchronisation. Groups depend on the number of
    agents, the rows per update and the device, never on the number of threads: results are the same on any.
    """

    def __init__(self, agents: Agents, args: Args, loss_fn, rows: int):
        cuda = args.device == "cuda"
        if args.compile:
            # On a CPU C++ is generated, which releases the GIL, so that groups run in parallel.
            loss_fn = torch.compile(loss_fn, options={} if cuda else {"cpp_wrapper": True})
        size = max(GROUP_AGENTS, math.ceil(GROUP_ROWS / rows))
        count = 1 if cuda else min(8, math.ceil(agents.team_size / size))
        bounds = np.linspace(0, agents.team_size, count + 1).astype(int).tolist()
        self.groups = [slice(first, last) for first, last in itertools.pairwise(bounds)]
        self.optimizers = []
        self.updates = []
        for group in self.groups:
            members = agents.group(group)
            settings = dict(lr=args.learning_rate, eps=1e-5, fused=True, capturable=cuda)
            optimizer = torch.optim.Adam(members.parameters(), **settings)
            step = functools.partial(update, members, optimizer, args=args, loss_fn=loss_fn)
            self.optimizers.append(optimizer)
            self.updates.append(CudaGraph(step) if cuda else step)
        workers = min(count, thread_count(args))
        self.pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))

    def learn(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Updates every group with its part of a batch (N, rows, ...); returns what is logged, (N,) each."""
        parts = [{name: x[group] for name, x in batch.items()} for group in self.groups]
        stats = list(self.pool.map(operator.call, self.updates, parts))
        return {name: torch.cat([own[name] for own in stats]) for name in stats[0]}


def greedy(agents: Agents, obs: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
    """The most probable available actions, (N, E), of raw observations."""
    logits = agents.actor(agents.obs_norm(obs))
    return logits.masked_fill(~action_mask, -torch.inf).argmax(-1)


# --- same in: dpo_mamujoco, dpo_mpe, dpo_smac, iddpg ---
@torch.no_grad()
def evaluate(agents, envs, num_episodes: int, seed: list[int], frames: list | None = None):
    """Means over greedy episodes, equally many per environment: those that end first are shorter than most.

    seed: [args.seed, 0, global_step] during training, [args.seed, 1] at its end, [args.seed, 2] for a video.
    """
    obs, infos = envs.reset(seed=int(np.random.SeedSequence(seed).generate_state(1)[0]))
    per_env = math.ceil(num_episodes / envs.num_envs)
    episodes = [[] for _ in range(envs.num_envs)]
    steps = 0
    while (ended := min(len(own) for own in episodes)) < per_env:
        if steps >= LONGEST_EPISODE * (ended + 1):
            what = f"an episode did not end within {LONGEST_EPISODE:,} steps; give the environment a limit"
            raise environments.BrokenEnvironment(f"{what} (--env-options episode_limit=STEPS).")
        steps += 1
        if frames is not None:
            frames.append(envs.render())
        obs, _, _, _, infos = envs.step(greedy(agents, obs, infos["action_mask"]))
        for episode in infos["episodes"]:
            episodes[episode["env"]].append(episode)
    return mean_over_episodes([episode for own in episodes for episode in own[:per_env]], "eval/")


# --- same in: dpo_mamujoco, dpo_mpe, dpo_smac, ippo ---
def values_of(agents: Agents, obs: torch.Tensor, pool: ThreadPoolExecutor) -> torch.Tensor:
    """V_i of a rollout's observations, as `value` takes them: (N, T, E, obs_dim) -> (N, T, E).

    On a CPU in chunks of rows, which fit the cache, on the threads of `pool`.
    """
    rows = obs.flatten(1, 2)
    chunks = rows.split(rows.shape[1] if obs.is_cuda else CHUNK, dim=1)
    value = torch.no_grad()(agents.value)  # whether gradients are recorded is each thread's own setting
    return torch.cat([*pool.map(value, chunks)], dim=1).view(obs.shape[:3])


def train(args: Args, envs, eval_envs, agents: Agents, state: dict) -> tuple[Path, dict]:
    """Repeats rollout, advantages, update. Returns the run directory and the state_dict that scored best."""
    N, T, E = envs.num_agents, args.num_steps, args.num_envs
    if args.device == "cpu":
        row = 2 * envs.obs_dim + 6 * envs.num_actions  # numbers: the batch is sorted, old_logp made anew
        need = 4 * N * T * E * row  # bytes
        advice = "take fewer --num-envs, or shorter rollouts"
        environments.check_memory(need, "A rollout and its batch take", advice)
    zeros = functools.partial(torch.zeros, device=args.device)
    obs = zeros(N, T, E, envs.obs_dim)  # after obs_norm
    action_mask = zeros(N, T, E, envs.num_actions, dtype=torch.bool)
    actions = zeros(N, T, E, dtype=torch.int64)
    logits = zeros(N, T, E, envs.num_actions)
    alive = zeros(N, T + 1, E, dtype=torch.bool)
    values = zeros(N, T + 1, E)
    final_values = zeros(N, T, E)
    rewards = zeros(T, E)
    terminations = zeros(T, E, dtype=torch.bool)
    truncations = zeros(T, E, dtype=torch.bool)

    learner = Learner(agents, args, dpo_loss, T * E)
    # Actions must not reuse the numbers that drew the parameters; a CPU's generator reads 32 bits of a seed.
    stream = np.random.SeedSequence(args.seed, spawn_key=(1,)).generate_state(1)
    generator = torch.Generator(args.device).manual_seed(int(stream[0]))

    # --- begin or resume; same in: dpo_mamujoco, dpo_mpe, dpo_smac ---
    with restoring(args, state):
        global_step = state.get("global_step", 0)
        if state:
            agents.load_state_dict(state["agents"])
            for optimizer, saved in zip(learner.optimizers, state["optimizers"], strict=True):
                restore_optimizer(optimizer, saved)
            generator.set_state(state["generator"])
        next_obs, infos = envs.set_state(state["envs"]) if state else envs.reset()
        run = Run(args, envs, state)

    def snapshot() -> dict:
        """What a resumed run needs to go on as if it had never stopped."""
        return {
            "agents": agents.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in learner.optimizers],
            "generator": generator.get_state(),
            "envs": envs.get_state(),
        }

    while True:
        # --- evaluate and checkpoint; same in: dpo_mamujoco, dpo_mpe, dpo_smac, iddpg, ippo, iql ---
        if run.evaluation_due(global_step):
            with run.evaluation():
                result = evaluate(agents, eval_envs, EVAL_EPISODES, [args.seed, 0, global_step])
                run.add_evaluation(global_step, result, agents)
        run.checkpoint(global_step, snapshot)
        if global_step >= args.total_timesteps:
            return run.close()

        # --- rollout ---
        clock = Clock()
        episodes = []
        with torch.no_grad():
            for step in range(T):
                obs[:, step] = agents.obs_norm(next_obs)
                action_mask[:, step] = infos["action_mask"]
                alive[:, step] = infos["alive"]
                logits[:, step] = agents.actor(obs[:, step])
                scores = logits[:, step] + gumbel_like(logits[:, step], generator)
                action = scores.masked_fill(~action_mask[:, step], -torch.inf).argmax(-1)
                actions[:, step] = action
                clock.lap("act")
                next_obs, rewards[step], terminations[step], truncations[step], infos = envs.step(action)
                clock.lap("env")
                episodes += infos["episodes"]
                if "final_obs" in infos:
                    final_obs = agents.obs_norm(infos["final_obs"])
                    final_values[:, step] = agents.value(final_obs) * infos["final_alive"]
            # No action depends on these: they are computed for all steps at once.
            old_logp = masked_log_softmax(logits, action_mask)  # of all actions
            values[:, :T] = values_of(agents, obs, learner.pool)
            values[:, T] = agents.value(agents.obs_norm(next_obs))
            alive[:, T] = infos["alive"]
            clock.lap("act")
        global_step += T * E

        # --- advantages ---
        advantages, returns, valid = gae(
            rewards, values, final_values, terminations, truncations, alive, args.gamma, args.gae_lambda
        )
        weight = valid / valid.sum((1, 2), keepdim=True).clamp(min=1)
        batch = dict(obs=obs, action_mask=action_mask, actions=actions, old_logp=old_logp)
        if args.advantage_norm:
            advantages = standardize(advantages, weight)
        batch |= dict(advantages=advantages, returns=returns, weight=weight)
        batch = samples_first(batch, valid)

        # --- update; same in: dpo_smac, ippo ---
        stats = learner.learn(batch)
        error = weighted_std(returns - values[:, :-1], weight).square().flatten()
        variance = weighted_std(returns, weight).square().flatten()
        stats["losses/explained_variance"] = torch.where(variance > 1e-12, 1 - error / variance, 0.0)
        row = {name: float(x.mean()) for name, x in stats.items()}
        clock.lap("update")

        # --- log; same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, ippo ---
        run.check_finite(global_step, row, agents, batch)
        run.log(global_step, row | mean_over_episodes(episodes, "charts/") | clock.row(T * E))


def main() -> None:
    args, state = parse_args()
    torch.set_num_threads(1)  # per operator: --torch-threads are for groups of agents in parallel
    torch.set_float32_matmul_precision("highest")  # no TF32, even if TORCH_ALLOW_TF32_CUBLAS_OVERRIDE is set
    torch.manual_seed(args.seed)
    options = {"last_action": True} if args.last_action else {}
    if args.env_id.startswith("smac/"):
        options |= {"backend": args.backend, "threads": thread_count(args)}
    elif args.backend != "auto" and not state:
        sys.exit(f"{SCRIPT}: --backend is of SMAC's maps, not of {args.env_id}; drop the flag.")
    options |= environments.parse_options(args.env_options)
    make = functools.partial(environments.make, args.env_id, seed=args.seed, device=args.device, **options)
    envs = make(args.num_envs)
    if not envs.discrete:
        raise environments.BrokenEnvironment(f"{args.env_id} has real actions; use dpo_mamujoco.py for them.")
    eval_envs = make(EVAL_EPISODES if envs.cheap_copies else args.num_envs)
    video_envs = make(1, render_mode="rgb_array") if args.capture_video else None
    if video_envs:
        video_envs.reset()
        video_envs.render()  # where nothing can be drawn, this fails now and not after the training

    # LayerNorm would average in the padding of unequal agents; it maps one input to 0, two to +1 and -1.
    norm_obs = len(set(envs.agent_obs_dims)) == 1 and envs.obs_dim > 2
    agents = Agents(envs.num_agents, envs.obs_dim, envs.num_actions, args.layer_norm, norm_obs)
    if args.sqrt_kl_term != "off":
        agents.beta1.fill_(args.beta_init)
    if args.kl_term:
        agents.beta2.fill_(args.beta_init)
    agents.to(args.device)
    if args.eval_only:
        with restoring(args, state):
            agents.load_state_dict(state["best"])
        directory = checkpoint_path(args).parent
    else:
        directory, best = train(args, envs, eval_envs, agents, state)
        agents.load_state_dict(best)
    episodes = EVAL_EPISODES * (10 if envs.cheap_copies else 1)
    played = math.ceil(episodes / eval_envs.num_envs) * eval_envs.num_envs
    result = evaluate(agents, eval_envs, played, [args.seed, 1])
    finish(args, agents, directory, result, f"{played} greedy episodes")
    if video_envs:
        evaluate(agents, video_envs, 4, [args.seed, 2], frames := [])
        save_video(directory, video_envs, frames)


# ==== Plumbing, the same in all seven scripts: arguments, checkpoints, logs. Skip it on first reading. ====


def check_ranges(args: Args) -> None:
    """ValueError, in one sentence, for a flag outside of RANGES."""
    for names, (low, high) in RANGES.items():
        for name in names.split():
            value = getattr(args, name)
            if not low <= value <= high:
                flag = "--" + name.replace("_", "-")
                raise ValueError(f"{flag} must be between {low:g} and {high:g}, got {value}.")


RESUME_CHANGES = ("total_timesteps", "checkpoint_every", "memory_share", "capture_video")  # may be given anew


def parse_args(argv: list[str] | None = None) -> tuple[Args, dict]:
    """The arguments (flags override the preset or, with --resume, the run's own), and a checkpoint or {}."""
    argv = sys.argv[1:] if argv is None else argv
    for word in argv:
        if not word.strip() or word.endswith("=") or not word.isprintable():
            what = "is empty (a variable not set?), has several lines, or letters that this locale lacks"
            sys.exit(f"{SCRIPT}: the argument {word!a} {what} (set PYTHONUTF8=1).")
    # The first parse only finds --resume and the environment: the run's arguments, or the preset, become the
    # defaults of the second, which answers --help.
    asked = [word for word in argv if word not in ("-h", "--help")]
    args = tyro.cli(Args, args=asked, description=__doc__)
    if args.resume and not args.eval_only and asked == argv:
        lock(checkpoint_path(args).with_name("metrics.csv"))
    state = load(checkpoint_path(args)) if args.resume else {}
    preset = PRESETS.get(args.env_id.partition("/")[0], {}) | PRESETS.get(args.env_id, {})
    base = Args(**(state["args"] if state else preset))
    if state and ":" in base.env_id and base.env_id != args.env_id:  # foreign code, which would be imported
        sys.exit(f"{SCRIPT}: {args.resume} was made in {base.env_id}; name that here, too, if you trust it.")
    args = tyro.cli(Args, args=argv, default=base, description=__doc__)
    may_change = {*RESUME_CHANGES, "runs_dir", "resume", "eval_only", "torch_threads"}
    if args.eval_only:
        may_change |= {"seed", "num_envs", "device", "compile", "backend"}
    for name, before in state.get("args", {}).items():
        now = getattr(args, name)
        if now != before and name not in may_change:
            flag = "--" + name.replace("_", "-")
            sys.exit(f"{SCRIPT}: {flag} is {now}, but {args.resume} was made with {before}; drop the flag.")
    if args.eval_only and not state:
        sys.exit(f"{SCRIPT}: --eval-only evaluates a run; add --resume RUN_DIRECTORY.")
    if state and "envs" not in state and not args.eval_only:
        sys.exit(f"{SCRIPT}: {args.resume} holds policies, not a run to go on with; add --eval-only.")
    if args.eval_only and not state["best"]:
        sys.exit(f"{SCRIPT}: {args.resume} was stopped before it was evaluated; go on without --eval-only.")
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"{SCRIPT}: --device is cuda, but PyTorch sees no GPU here; use --device cpu.")
    if args.compile and not args.eval_only:
        variable, usual = {"cpu": ("CXX", ["g++"]), "cuda": ("CC", ["gcc", "clang"])}[args.device]
        compilers = [os.environ[variable]] if variable in os.environ else usual
        if not any(map(shutil.which, compilers)):
            what = f"install {usual[0]} (or set {variable}), or give --no-compile"
            sys.exit(f"{SCRIPT}: --compile needs a compiler; {what}.")
    return args, state


def thread_count(args: Args) -> int:
    """CPU threads to use."""
    return args.torch_threads or environments.usable_cores()


def checkpoint_path(args: Args) -> Path:
    """What --resume names: a file, or a directory's checkpoint.pt or, where there is none, policy.pt."""
    path = Path(args.resume)
    if path.is_dir():
        path /= "checkpoint.pt" if (path / "checkpoint.pt").exists() else "policy.pt"
    return path


@contextlib.contextmanager
def replacing(path: Path):
    """A file to write to: whenever the process dies, `path` is the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: dict) -> None:
    """Writes the values as JSON, one to a line."""
    with replacing(path) as file:
        file.write((json.dumps(values, indent=1) + "\n").encode())


def read_json(path: Path) -> dict:
    """Reads what `write_json` wrote; exits with one sentence if it cannot be read."""
    try:
        return {**json.loads(path.read_text())}  # TypeError unless it is an object
    except (OSError, ValueError, TypeError) as error:
        sys.exit(f"{SCRIPT}: {path} cannot be read ({error}); restore it, or start a new run.")


def form(part) -> object:
    """Types and shapes of a nested state, saved with it to reveal missing parts, or parts of another kind."""
    if isinstance(part, dict):
        return {name: form(x) for name, x in part.items()}
    if isinstance(part, list | tuple):
        return [form(x) for x in part]
    return (str(part.dtype), tuple(part.shape)) if torch.is_tensor(part) else type(part).__name__


def save(path: Path, state: dict) -> None:
    """Writes what `load` reads, without a copy in memory."""
    state = state | {"script": SCRIPT}
    with replacing(path) as file:
        try:
            torch.save(state | {"form": form(state)}, file)
        except RuntimeError as error:  # on a full disk, PyTorch complains about its file position
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def load(path: Path) -> dict:
    """Reads what `save` wrote, executing none of it; exits with one sentence if it is foreign or damaged.

    Its tensors stay on disk until they are used, so that a replay buffer is never in memory twice.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # PyTorch does not verify the checksums
                raise zipfile.BadZipFile
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        script = state["script"]
        if not isinstance(script, str):
            raise TypeError
        if script != SCRIPT:
            sys.exit(f"{SCRIPT}: {path} was made by {script}.py; resume it with that script.")
        of_before = "envs" in state and "form" not in state
        if of_before or set(state["args"]) != {field.name for field in fields(Args)}:
            what = f"is of another version of {SCRIPT}.py; args.json names its git_commit"
            sys.exit(f"{SCRIPT}: {path} {what}.")
        Args(**state["args"])  # ValueError if one is out of range
        if "form" in state:  # older policies have none
            saved_form = state.pop("form")
            if saved_form != form(state):
                raise ValueError
        return state
    except FileNotFoundError:
        sys.exit(f"{SCRIPT}: no checkpoint at {path}; give a run directory or a .pt file of {SCRIPT}.py.")
    except OSError as error:
        sys.exit(f"{SCRIPT}: {path} cannot be read: {error.strerror}.")
    except Exception:
        sys.exit(f"{SCRIPT}: {path} is damaged or no checkpoint of ours; use another or start a new run.")


@contextlib.contextmanager
def restoring(args: Args, state: dict):
    """Exits with one sentence if the checkpoint does not fit; frees its memory at the end of the block."""
    try:
        yield
    except (environments.BrokenEnvironment, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if not state or "allocate memory" in str(error):
            raise
        what = f"{checkpoint_path(args)} cannot be resumed here ({type(error).__name__}: {error})"
        sys.exit(f"{SCRIPT}: {' '.join(what.split()):.300}; use another or start a new run.")
    state.clear()


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Takes over Adam's moments; its settings are in the arguments."""
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": copy.deepcopy(saved["state"]), "param_groups": groups})


LOCKS: list[int] = []  # descriptors of files that no other process may lock before this one ends


def lock(path: Path) -> None:
    """Keeps other processes out of a run by locking its metrics.csv, which two writers would ruin."""
    try:
        import fcntl  # not on Windows

        LOCKS.append(os.open(path, os.O_RDWR))
        fcntl.flock(LOCKS[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"{SCRIPT}: another process is at work in {path.parent}; wait until it ends, or stop it.")
    except (ImportError, OSError):  # no such module or file, or a file system without locks
        return


class Stopped(BaseException):
    """A signal came; the text is for the user."""


def on_signal(handler) -> None:
    """What SIGTERM and Ctrl-C do from now on."""
    signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGINT, handler)


def leave(*_) -> None:
    """Signal handler until a run begins."""
    raise Stopped("stopped before anything was saved; the same command starts it again.")


class Run:
    """A run directory and what is written into it; and the signals that ask the run to stop."""

    def __init__(self, args: Args, envs, state: dict):
        self.args = args
        self.evaluated = state.get("evaluated", -1)  # the step of the last evaluation
        self.best_return = state.get("best_return", -math.inf)
        self.best = copy.deepcopy(state.get("best", {}))
        start_step = state.get("global_step", 0)
        if state:
            self.directory = checkpoint_path(args).parent
            self.metrics = self.directory / "metrics.csv"
            rows = self.metrics.read_bytes() if self.metrics.exists() else b""
            if hashlib.sha256(rows[: state["metrics_bytes"]]).hexdigest() != state["metrics_sha256"]:
                what = "does not match the checkpoint; restore it or start a new run"
                sys.exit(f"{SCRIPT}: {self.metrics} {what}.")
            about = read_json(self.directory / "args.json")
            now = environments.describe(envs)
            if differs := {name: x for name, x in now.items() if about.get(name) != x}:
                about.setdefault("resumed", []).append({"global_step": start_step} | differs)
            os.truncate(self.metrics, state["metrics_bytes"])  # later rows will be written again
            (self.directory / "done").unlink(missing_ok=True)
        else:
            name = f"{environments.env_name(envs)}__{SCRIPT}__{args.seed}__{time.time_ns() // 10**6}"
            self.directory = Path(args.runs_dir) / name
            self.directory.mkdir(parents=True)
            about = asdict(args) | environments.describe(envs)
            self.metrics = self.directory / "metrics.csv"
            self.append({name: name for name in COLUMNS})
            lock(self.metrics)
        about |= {name: value for name, value in asdict(args).items() if name in RESUME_CHANGES}
        about["torch_threads"] = thread_count(args)
        write_json(self.directory / "args.json", about)
        sizes = f"{envs.num_agents} agents, {envs.obs_dim} inputs, {envs.num_actions} actions"
        print(f"{self.directory}: {sizes}", flush=True)
        self.next_checkpoint = start_step
        self.writer = SummaryWriter(str(self.directory), purge_step=start_step + 1)
        # If the output is not a terminal, print a line every ten seconds instead of the bar.
        line = "step {n_fmt} of {total_fmt}, {rate_fmt}, ETA {remaining}{postfix}\n"
        look = {} if sys.stderr.isatty() else dict(mininterval=10, bar_format=line)
        self.bar = tqdm(
            total=args.total_timesteps, initial=start_step, unit=" steps", unit_scale=True, **look
        )
        self.stopping = False  # True: the run ends as soon as the current updates are over
        self.evaluating = False
        on_signal(self.stop)

    def stop(self, *_) -> None:
        """Signal handler: aborts an evaluation at once; otherwise the run stops after the current update."""
        self.stopping = True
        if self.evaluating:
            self.evaluating = False
            raise Stopped(f"stopped at step {self.bar.n:,}; go on with --resume {self.directory}")

    def evaluation_due(self, global_step: int) -> bool:
        """Every --eval-every steps, and at the end; not when a signal has come."""
        ended = global_step >= self.args.total_timesteps and global_step > self.evaluated
        due = ended or global_step // self.args.eval_every > self.evaluated // self.args.eval_every
        return due and not self.stopping

    @contextlib.contextmanager
    def evaluation(self):
        """A signal in this block aborts the evaluation; the resumed run repeats it from the start."""
        with contextlib.suppress(Stopped):
            self.evaluating = not self.stopping
            yield

    def add_evaluation(self, global_step: int, result: dict[str, float], agents: nn.Module) -> None:
        """Logs it, and keeps the parameters unless earlier ones were better; a tie goes to the later ones."""
        self.evaluating = False
        self.evaluated = global_step
        self.log(global_step, result)
        if result["eval/episodic_return"] >= self.best_return:
            self.best_return = result["eval/episodic_return"]
            self.best = copy.deepcopy(agents.state_dict())

    def log(self, global_step: int, row: dict[str, float]) -> None:
        """Writes a row to metrics.csv, on disk before this returns, and to TensorBoard and the bar."""
        self.append({"global_step": global_step} | {name: f"{value:.6g}" for name, value in row.items()})
        for name, value in row.items():
            self.writer.add_scalar(name, value, global_step)
        if "charts/episodic_return" in row:
            won = f", win rate {row['charts/win_rate']:.2f}" if "charts/win_rate" in row else ""
            self.bar.set_postfix_str(f"return {row['charts/episodic_return']:.2f}{won}", refresh=False)

    def append(self, row: dict) -> None:
        """Adds a row to metrics.csv; ValueError if it has no such column."""
        with open(self.metrics, "a", newline="") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
            file.flush()
            os.fsync(file.fileno())

    def check_finite(self, global_step: int, row: dict[str, float], agents: nn.Module, batch: dict) -> None:
        """After an update: ends a diverged run before it acts or saves; its last batch goes to disk."""
        finite = all(x.isfinite().all() for x in agents.state_dict().values())
        if finite and np.isfinite([*row.values()]).all():
            return
        self.bar.close()
        self.writer.close()
        diagnostic = self.directory / "diagnostic.pt"
        save(diagnostic, {"args": asdict(self.args), "agents": agents.state_dict(), "batch": batch})
        what = f"losses or parameters are not finite at step {global_step}; {diagnostic} holds the last batch"
        sys.exit(f"{SCRIPT}: {what}, checkpoint.pt is intact. Start again with a smaller --learning-rate.")

    def checkpoint(self, global_step: int, snapshot: Callable[[], dict]) -> None:
        """Saves snapshot() every --checkpoint-every steps, at the end, and when a signal asks to stop."""
        self.bar.total = max(self.bar.total, global_step)
        self.bar.update(global_step - self.bar.n)
        stopping = self.stopping  # a signal that comes from here on waits for the next time
        if global_step >= self.next_checkpoint or global_step >= self.args.total_timesteps or stopping:
            self.writer.flush()
            self.next_checkpoint = global_step + self.args.checkpoint_every
            rows = self.metrics.read_bytes()
            state = {
                "args": asdict(self.args),
                "global_step": global_step,
                "evaluated": self.evaluated,
                "best": self.best,
                "best_return": self.best_return,
                "metrics_bytes": len(rows),
                "metrics_sha256": hashlib.sha256(rows).hexdigest(),
            }
            save(self.directory / "checkpoint.pt", state | snapshot())
        if stopping:
            self.close()

    def close(self) -> tuple[Path, dict]:
        """The run directory, and the parameters that evaluated best. A signal after this loses nothing."""
        self.bar.close()
        self.writer.close()
        self.evaluating = True  # what follows counts as an evaluation: a signal ends it at once
        if self.stopping:
            self.stop()
        return self.directory, self.best


def finish(args: Args, agents: nn.Module, directory: Path, result: dict[str, float], how: str) -> None:
    """Prints a result; at the end of a run, saves it and policy.pt, which is all that --eval-only needs."""
    print(f"{directory}, {how}: {json.dumps(result)}")
    if not args.eval_only:
        settings = asdict(args) | {"runs_dir": "", "resume": ""}  # no paths in a file to hand on
        save(directory / "policy.pt", {"args": settings, "best": agents.state_dict()})
        write_json(directory / "done", result)


class Clock:
    """Seconds per phase; a lap is the time since the last one. Evaluation is not counted.

    A GPU is still working when the host moves on, so some of its time may be booked under the next phase.
    """

    def __init__(self):
        self.seconds = {"env": 0.0, "act": 0.0, "update": 0.0}
        self.last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] += now - self.last
        self.last = now

    def row(self, steps: int) -> dict[str, float]:
        """Environment steps per second, and the phases' shares of the time."""
        total = sum(self.seconds.values())
        return {"charts/SPS": steps / total} | {f"time/{name}": x / total for name, x in self.seconds.items()}


def mean_over_episodes(episodes: list[dict[str, float]], prefix: str) -> dict[str, float]:
    """Mean return, length and, in battles, win rate of episodes that ended; nothing if none did."""
    names = [name for name in episodes[0] if name != "env"] if episodes else []
    return {prefix + name: float(np.mean([episode[name] for episode in episodes])) for name in names}


class CudaGraph:
    """`update(batch)` as one launch of a CUDA graph, instead of thousands that small networks would wait for.

    PyTorch needs real calls before it can record one, so the first two run as they are. A recorded graph
    reads and writes the same memory at each replay, so every batch is copied to where the first one was; a
    replay buffer's batches come from host memory.
    """

    def __init__(self, update):
        self.update = update
        self.calls = 0
        self.batch: dict[str, torch.Tensor] = {}
        self.graph = torch.cuda.CUDAGraph()
        self.stream = torch.cuda.Stream()

    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.batch = self.batch or {name: torch.empty_like(x, device="cuda") for name, x in batch.items()}
        for name, x in batch.items():
            self.batch[name].copy_(x if x.is_cuda else x.pin_memory(), non_blocking=True)
        self.calls += 1
        if self.calls <= 2:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.stats = self.update(self.batch)
            torch.cuda.current_stream().wait_stream(self.stream)
        else:
            if self.calls == 3:  # recorded, which computes nothing yet
                with torch.cuda.graph(self.graph, stream=self.stream):
                    self.stats = self.update(self.batch)
            self.graph.replay()
        return {name: x.clone() for name, x in self.stats.items()}


class Unbroken(io.FileIO):
    """An output whose reader may be gone, as after `| head -1`: lines are lost, but the run goes on."""

    def write(self, data) -> int:
        with contextlib.suppress(BrokenPipeError):
            return super().write(data)
        return len(data)


def unbroken(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """The same stream, but Unbroken, and with codes for letters that its encoding lacks."""
    try:
        raw = io.BufferedWriter(Unbroken(stream.fileno(), "w", closefd=False))
    except io.UnsupportedOperation:  # it is no file, as in a notebook
        return stream
    return io.TextIOWrapper(raw, stream.encoding, "backslashreplace", line_buffering=True)


if __name__ == "__main__":
    sys.stdout = unbroken(sys.stdout)
    sys.stderr = unbroken(sys.stderr)
    environments.keep_freed_memory()
    on_signal(leave)
    try:
        main()
    except Stopped as stopped:
        on_signal(signal.SIG_IGN)  # a second one would be a traceback
        print(f"{SCRIPT}: {stopped}")
        sys.exit(EXIT_REQUEUE)
    except (environments.BrokenEnvironment, MemoryError) as error:
        sys.exit(f"{SCRIPT}: {str(error).rstrip('.') or 'not enough memory'}.")
    except OSError as error:
        room = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
        advice = "; make room or allow writing, then --resume the last checkpoint, if any" if room else ""
        sys.exit(f"{SCRIPT}: {error}{advice}.")
    except RuntimeError as error:
        if "out of memory" not in str(error) and "allocate memory" not in str(error):
            raise
        what = "not enough memory; take fewer --num-envs, or a shorter rollout or replay buffer"
        sys.exit(f"{SCRIPT}: {what}.")
    finally:
        on_signal(signal.SIG_IGN)  # nothing is left to stop
