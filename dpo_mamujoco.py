"""DPO, Decentralized Policy Optimization (not direct preference optimization), on multi-agent MuJoCo.

Paper: A Fully Decentralized Surrogate for Multi-Agent Policy Optimization (Su & Lu, TMLR 2024).
Details, and every difference from the paper and its released code: docs/dpo.md
Run: python dpo_mamujoco.py --task Hopper-3x1

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

from envs import describe, env_name
from envs import make as make_envs

SCRIPT = Path(__file__).stem
EXIT_REQUEUE = 75  # EX_TEMPFAIL: a signal stopped the run, its checkpoint is on disk, --resume goes on
EVAL_EPISODES = 32  # per evaluation; ten times as many for the absolute metric at the end
HALF_LOG_2_PI_E = 0.5 * math.log(2 * math.pi * math.e)
BETA_INIT = 0.01  # of beta1 and beta2
CHUNK = 512  # rows of 8 agents or more whose activations stay in the cache of one core
STATS = ["losses/policy_loss", "losses/value_loss", "losses/entropy", "losses/grad_norm", "dpo/kl"]
STATS += ["dpo/sqrt_kl", "losses/explained_variance", "dpo/beta1", "dpo/beta2"]
STATS += ["dpo/below_band", "dpo/above_band"]
COLUMNS = ["global_step", "eval/episodic_return", "charts/episodic_return", "charts/episodic_length"]
COLUMNS += ["charts/SPS", "time/env", "time/act", "time/update", *STATS]


@dataclass
class Args:
    task: str = "HalfCheetah-3x2"
    """ROBOT-PARTITION: Hopper-3x1, HalfCheetah-3x2, Walker2d-3x2, Ant-4x2, Humanoid-17x1, ..."""
    agent_obsk: int = 2
    """joints are observed up to this many hops from one's own"""
    obs: str = "khop"
    """khop: own neighbourhood; full: everything, for all agents"""
    seed: int = 1
    """seed of environments, parameters and sampled actions"""
    total_timesteps: int = 2_000_000
    """environment steps (one moves all agents of one environment; never agent-steps)"""
    num_envs: int = 16
    """environments stepped together"""
    num_steps: int = 64
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
    """logarithm of the policies' standard deviation at the start"""
    layer_norm: bool = False
    """LayerNorm after each hidden layer"""
    value_norm: bool = True
    """critics learn returns in units of their running deviation, per agent"""
    d_target: float = 0.001
    """KL per update that eq. (21) steers each agent to"""
    delta: float = 1.5
    """eq. (21): the betas change where KL leaves [d_target / delta, d_target * delta]"""
    omega: float = 2.0
    """eq. (21): the factor by which they change"""
    beta_min: float = 0.2
    """floor of N * beta, without which the betas vanish late in training, and the trust region with them"""
    beta_max: float = 1000.0
    """ceiling of N * beta (N times, because the surrogate of eq. (20) has weight 1/N)"""
    sqrt_kl_term: bool = True
    """off: beta1 = 0, the ablation DPO_w/o_sqrt (IPPO-KL)"""
    kl_term: bool = True
    """off: beta2 = 0, the ablation DPO_w/o_kl"""
    eval_every: int = 50_000
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
    """CPU threads of the physics, and of the learner, where each has a group of agents to itself"""
    compile: bool = False
    """torch.compile the loss: faster updates after 10 to 40 s; a CPU needs g++"""


RESUME_MAY_CHANGE = {"total_timesteps", "eval_only", "checkpoint", "resume", "capture_video", "runs_dir"}
EVAL_MAY_NOT_CHANGE = {"task", "agent_obsk", "obs", "layer_norm"}
PRESETS = {  # by task
    "HalfCheetah-3x2": dict(log_std_init=-1.0),
    "Ant-4x2": dict(log_std_init=-2.0),
    "Humanoid-17x1": dict(log_std_init=-2.0),
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


class RunningNorm(nn.Module):
    """Mean and variance of all samples so far, per agent and coordinate (N, 1, dim), in the checkpoint."""

    def __init__(self, num_agents: int, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_agents, 1, dim))
        self.register_buffer("var", torch.ones(num_agents, 1, dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @property
    def deviation(self) -> torch.Tensor:
        return (self.var + 1e-8).sqrt()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, batch, dim) as deviations from the mean, at most 10 standard ones."""
        return ((x - self.mean) / self.deviation).clamp(-10, 10)

    def add(self, x: torch.Tensor) -> None:
        """Takes a batch (N, rows, dim) into account (Chan et al., 1979)."""
        var, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        share = float(x.shape[1] / (self.count + x.shape[1]))
        gap = mean - self.mean
        self.mean += share * gap
        self.var.copy_((1 - share) * self.var + share * var + share * (1 - share) * gap.square())
        self.count += x.shape[1]


class Agents(nn.Module):
    """Gaussian actor pi_i, critic V_i, coefficients beta1_i, beta2_i and running statistics of N agents.

    act_dims: each agent's number of actions; the actor's further outputs are padding, and act_mask (N, 1, D)
    takes them out of probabilities, entropy and KL.
    """

    def __init__(
        self, obs_dim: int, act_dims: tuple[int, ...], layer_norm: bool = False, log_std_init: float = 0.0
    ):
        super().__init__()
        num_agents, act_dim = len(act_dims), max(act_dims)
        self.actor = StackedMLP(num_agents, obs_dim, act_dim, 0.01, layer_norm)
        self.actor.log_std = nn.Parameter(torch.full((num_agents, 1, act_dim), log_std_init))
        self.critic = StackedMLP(num_agents, obs_dim, 1, 1.0, layer_norm)
        self.register_buffer("betas", torch.zeros(2, num_agents))
        self.register_buffer("act_mask", (torch.arange(act_dim) < torch.tensor(act_dims)[:, None])[:, None])
        self.obs_norm, self.return_norm = RunningNorm(num_agents, obs_dim), RunningNorm(num_agents, 1)

    def value(self, obs: torch.Tensor) -> torch.Tensor:
        """V_i, in units of return_norm, of own normalised observations: (N, batch, obs_dim) -> (N, batch)."""
        return self.critic(obs).squeeze(-1)

    def in_reward_units(self, values: torch.Tensor) -> torch.Tensor:
        """What the critics put out, (N, ...), as sums of rewards."""
        shape = -1, *[1] * (values.dim() - 1)
        return values * self.return_norm.deviation.view(shape) + self.return_norm.mean.view(shape)

    @torch.no_grad()
    def rescale(self, returns: torch.Tensor) -> torch.Tensor:
        """Takes returns (N, T, E) into return_norm and gives them in its units; V stays (PopArt)."""
        rows, norm = returns.flatten(1).unsqueeze(-1), self.return_norm
        mean, deviation = norm.mean.clone(), norm.deviation
        norm.add(rows)
        self.critic.weights[-1].mul_(deviation / norm.deviation)
        self.critic.biases[-1].mul_(deviation).add_(mean - norm.mean).div_(norm.deviation)
        return norm(rows).view_as(returns)

    def log_prob(self, mean: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """log pi_i(a_i | o_i), up to a constant: (N, batch, D), (N, batch, D) -> (N, batch)."""
        z = (actions - mean) * (-self.actor.log_std).exp()
        return -((0.5 * z.square() + self.actor.log_std) * self.act_mask).sum(-1)

    def group(self, part: slice) -> "Agents":
        """Some of the agents as a module of their own, whose parameters are views of this one's."""
        group = copy.deepcopy(self)
        for mine, whole in zip(group.parameters(), self.parameters(), strict=True):
            mine.data = whole.data[part]
        group.betas = self.betas.data[:, part]  # .data: a version counter of its own, for autograd in threads
        group.act_mask = self.act_mask[part]
        return group


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, ippo ---
def exp_minus_linear(x: torch.Tensor) -> torch.Tensor:
    """exp(x) - 1 - x, never negative; near 0 its gradient, expm1(x), is exact where autograd's is noise."""
    at, slope = x.detach(), torch.expm1(x.detach())
    return (slope - at).clamp(min=0.0) + slope * (x - at)


def gaussian_kl(old_mean, old_log_std, mean, log_std, act_mask) -> torch.Tensor:
    """KL(pi_old || pi) of each state in closed form, (N, batch, D) -> (N, batch), never negative.

    Per dimension, with y = 2 (log std_old - log std): (exp(y) - 1 - y + ((mean - mean_old) / std)^2) / 2.
    """
    y = exp_minus_linear(2 * (old_log_std - log_std))
    return 0.5 * ((y + ((mean - old_mean) * (-log_std).exp()).square()) * act_mask).sum(-1)


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe ---
def gae(rewards, values, next_value, final_values, terminations, truncations, gamma, lam):
    """Generalised advantage estimation: advantages and returns, (N, T, E).

    rewards, terminations, truncations: (T, E), the team's; values, final_values: (N, T, E), per agent;
    final_values is V of the observation before autoreset, used where an episode was truncated; next_value:
    (N, E), after the last step.
    """
    advantages, advantage, value = torch.zeros_like(values), torch.zeros_like(next_value), next_value
    for t in reversed(range(len(rewards))):
        done = terminations[t] | truncations[t]
        target = rewards[t] + gamma * torch.where(done, final_values[:, t] * ~terminations[t], value)
        advantages[:, t] = advantage = target - values[:, t] + gamma * lam * advantage * ~done
        value = values[:, t]
    return advantages, advantages + values


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe ---
def standardize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x (N, T, E) to mean 0, deviation 1 over each agent's own samples; also the deviations, (N, 1, 1)."""
    deviation, mean = torch.std_mean(x, dim=(1, 2), correction=0, keepdim=True)
    return (x - mean) / (deviation + 1e-8), deviation


def dpo_loss(
    agents,
    obs,
    actions,
    old_mean,
    old_log_std,
    old_logprob,
    advantages,
    returns,
    weight,
    ent_coef,
    num_agents,
):
    """Loss of a chunk of rows, summed over agents (whose parameters are disjoint), and its parts, (3, N).

    weight (N, rows): 1 / (rows of the batch), so that sums over its chunks are means.
    """
    mean, log_std = agents.actor(obs), agents.actor.log_std
    ratio = (agents.log_prob(mean, actions) - old_logprob).exp()
    surrogate = (weight * ratio * advantages).sum(1)
    entropy = ((log_std + HALF_LOG_2_PI_E) * agents.act_mask).sum((1, 2)) * weight.sum(1)
    kl_s = gaussian_kl(old_mean, old_log_std, mean, log_std, agents.act_mask)
    sqrt_kl, kl = (weight * (kl_s + 1e-12).sqrt()).sum(1), (weight * kl_s).sum(1)
    beta1, beta2 = agents.betas
    objective = (surrogate + ent_coef * entropy) / num_agents - beta1 * sqrt_kl - beta2 * kl  # eq. (20)
    v_loss = (weight * (agents.value(obs) - returns).square()).sum(1)  # eq. (8)
    # N times eq. (20) has the same maximiser, and leaves Adam's eps and the clip at the scale of IPPO's.
    return (v_loss - num_agents * objective).sum(), torch.stack([-surrogate, v_loss, entropy]).detach()


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, iddpg, ippo, iql ---
def clip_grad_norm_per_agent(network: nn.Module, max_norm: float) -> torch.Tensor:
    """Scales each agent's gradient to norm <= max_norm, in place; returns the norms before, (N,)."""
    grads = [p.grad for p in network.parameters()]
    norm = torch.stack([g.flatten(1).norm(dim=1) for g in grads]).norm(dim=0)
    for grad in grads:
        grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0).view(-1, 1, 1))
    return norm


def update(agents, optimizer, batch, args, num_agents, loss_fn=dpo_loss) -> torch.Tensor:
    """update_epochs Adam steps of n agents on the whole batch, then their betas; changes the agents in place.

    batch: tensors (n, rows, ...) named as in `dpo_loss`, taken in cache-sized chunks whose gradients add up.
    Returns the first six of STATS, (6, n): losses and gradient norm of the last epoch; KL and sqrt(KL), over
    the whole batch, of the updated policy against the old one.
    """
    n, rows = batch["obs"].shape[:2]
    size = rows if batch["obs"].is_cuda else CHUNK * max(1, 8 // n)  # longer for few: threads share Python
    chunks = [{name: x[:, i : i + size] for name, x in batch.items()} for i in range(0, rows, size)]
    for _ in range(args.update_epochs):
        optimizer.zero_grad()
        losses = 0.0
        for chunk in chunks:
            loss, parts = loss_fn(agents, **chunk, ent_coef=args.ent_coef, num_agents=num_agents)
            loss.backward()
            losses = losses + parts
        grad_norm = clip_grad_norm_per_agent(agents.actor, args.max_grad_norm)
        clip_grad_norm_per_agent(agents.critic, args.max_grad_norm)
        optimizer.step()
    kls = torch.zeros_like(agents.betas)
    with torch.no_grad():
        for chunk in chunks:
            mean, log_std = agents.actor(chunk["obs"]), agents.actor.log_std
            kl_s = gaussian_kl(chunk["old_mean"], chunk["old_log_std"], mean, log_std, agents.act_mask)
            kls += (chunk["weight"] * torch.stack([kl_s, kl_s.sqrt()])).sum(2)
        agents.betas.copy_(adapt_betas(agents.betas, kls[0], args, num_agents))
    return torch.cat([losses, grad_norm[None], kls])


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


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac ---
def adapt_betas(betas: torch.Tensor, kl: torch.Tensor, args: Args, num_agents: int) -> torch.Tensor:
    """eq. (21), per agent: betas (2, n) times omega where kl (n,) is above the band, divided where below."""
    up, down = kl > args.d_target * args.delta, kl < args.d_target / args.delta
    betas = betas * torch.where(up, args.omega, torch.where(down, 1 / args.omega, 1.0))
    beta1, beta2 = betas.clamp(args.beta_min / num_agents, args.beta_max / num_agents)
    return torch.stack([beta1 * args.sqrt_kl_term, beta2 * args.kl_term])


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, iddpg, ippo, iql ---
def to_agents(x: np.ndarray, device: str) -> torch.Tensor:
    """(E, N, ...) array of the environment's side -> (N, E, ...) tensor of the learner's."""
    tensor = torch.from_numpy(x)
    if device != "cpu":  # from pinned memory the copy to a GPU need not be waited for
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor.transpose(0, 1)


def to_envs(actions: torch.Tensor, space) -> np.ndarray:
    """(N, E, D) actions as drawn -> (E, N, D) actions within the environment's bounds.

    Clipped for the environment only: probabilities are of the actions as they were drawn.
    """
    return np.clip(actions.transpose(0, 1).cpu().numpy(), space.low, space.high)


@torch.no_grad()
def evaluate(agents, envs, episodes: int, entropy: list[int], device: str, frames: list | None = None):
    """Episodes of mean actions, equally many in each environment (or short ones would count too often)."""
    obs, _ = envs.reset(seed=int(np.random.SeedSequence(entropy).generate_state(1)[0]))
    finished, results = np.zeros(envs.num_envs, dtype=int), []
    while (finished < episodes / envs.num_envs).any():
        if frames is not None:
            frames.append(envs.render())
        actions = agents.actor(agents.obs_norm(to_agents(obs, device)))
        obs, _, _, _, infos = envs.step(to_envs(actions, envs.single_action_space))
        ended = infos["_episode"] & (finished < episodes / envs.num_envs)
        finished += ended
        results += infos["episode"]["r"][ended].tolist()
    return {"eval/episodic_return": float(np.mean(results))}


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


# --- same in: dpo_mamujoco, dpo_mpe ---
def parse_args(argv: list[str] | None = None) -> tuple[Args, dict, Path]:
    """Command line over the task's preset, or over the arguments of a saved run; its state and directory."""
    args, state = tyro.cli(Args, args=argv, description=__doc__), {}
    if args.eval_only != bool(args.checkpoint) or (args.eval_only and args.resume):
        sys.exit(f"{SCRIPT}: give --eval-only and --checkpoint RUN_DIRECTORY together, or --resume alone.")
    path = run_dir = Path(args.checkpoint or args.resume)
    if args.eval_only or args.resume:
        path = path / "checkpoint.pt" if path.is_dir() else path
        state, run_dir = load(path), path.parent
    base = Args(**state["args"] if state else {"task": args.task} | PRESETS.get(args.task, {}))
    args = tyro.cli(Args, args=argv, default=base, description=__doc__)
    changed = {name for name, value in asdict(args).items() if value != getattr(base, name)}
    changed = changed & EVAL_MAY_NOT_CHANGE if args.eval_only else changed - RESUME_MAY_CHANGE
    if state and changed:
        sys.exit(f"{SCRIPT}: {path} was made with another {', '.join(sorted(changed))}; drop the flag.")
    for name in ("num_envs", "num_steps", "update_epochs", "torch_threads", "eval_every", "checkpoint_every"):
        if getattr(args, name) < 1:
            sys.exit(f"{SCRIPT}: --{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}.")
    if not (args.learning_rate > 0 and args.max_grad_norm > 0 and 0 <= args.seed < 2**63):
        sys.exit(f"{SCRIPT}: --learning-rate and --max-grad-norm must be positive, --seed 0 to 2**63 - 1.")
    if not (0 <= args.gamma <= 1 and 0 <= args.gae_lambda <= 1 and 0 <= args.ent_coef < float("inf")):
        sys.exit(f"{SCRIPT}: --gamma and --gae-lambda must be 0 to 1, --ent-coef finite and not negative.")
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
    """Rollout, GAE, update and adaptive betas, over and over; returns the parameters that evaluated best."""
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
    loss_fn = torch.compile(dpo_loss, options=options) if args.compile else dpo_loss
    learn = functools.partial(update, args=args, num_agents=N, loss_fn=loss_fn)
    updates = [functools.partial(learn, *pair) for pair in zip(learners, optimizers, strict=True)]
    updates = updates if device == "cpu" else [CudaGraph(learn) for learn in updates]
    generator = torch.Generator(device).manual_seed(args.seed + 2**32)  # not the initial parameters' stream
    global_step, next_eval, best_return, best = 0, 0, -float("inf"), agents.state_dict()
    metrics = run_dir / "metrics.csv"
    next_obs, _ = envs.reset()
    if state:
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        generator.set_state(state["generator"])
        (global_step, next_eval, best_return), best = state["counters"], state["best"]
        try:
            envs.set_state({name: x.numpy() for name, x in state["envs"].items()})
        except ValueError as error:
            sys.exit(f"{SCRIPT}: {run_dir}/checkpoint.pt cannot be resumed. {error}")
        next_obs = state["next"].numpy()
        if not metrics.exists() or metrics.stat().st_size < state["metrics_bytes"]:
            sys.exit(f"{SCRIPT}: {metrics} is not as the checkpoint knows it; restore it or start a new run.")
        os.truncate(metrics, state["metrics_bytes"])  # later rows will be written again
    else:
        run_dir.mkdir(parents=True)
        (run_dir / "args.json").write_text(json.dumps(asdict(args) | describe(envs), indent=1) + "\n")
        metrics.write_text(",".join(COLUMNS) + "\n")
    writer = SummaryWriter(str(run_dir), purge_step=global_step + 1)
    print(f"{run_dir}: {N} agents, {envs.obs_dim} inputs, {envs.act_dim} actions each", flush=True)

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
    raw_obs, obs, old_logprob = zeros(N, T, E, envs.obs_dim), zeros(N, T, E, envs.obs_dim), zeros(N, T, E)
    actions, old_mean = zeros(2, N, T, E, envs.act_dim)
    noise = zeros(N, E, envs.act_dim)
    values, final_values, rewards = zeros(N, T, E), zeros(N, T, E), torch.zeros(T, E)
    weight = torch.full_like(values, 1 / (T * E))
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
            checkpoint["next"] = torch.from_numpy(next_obs)
            checkpoint["metrics_bytes"] = metrics.stat().st_size
            save(run_dir / "checkpoint.pt", checkpoint)
        if finished:
            break
        if signals:
            print(f"{SCRIPT}: stopped at step {global_step:,}; go on with --resume {run_dir}")
            sys.exit(EXIT_REQUEUE)

        start, env_s, episodes = time.perf_counter(), 0.0, []
        for step in range(T):
            with torch.no_grad():
                raw_obs[:, step] = to_agents(next_obs, device)
                obs[:, step] = agents.obs_norm(raw_obs[:, step])
                old_mean[:, step], values[:, step] = agents.actor(obs[:, step]), agents.value(obs[:, step])
                noise.normal_(generator=generator)
                actions[:, step] = old_mean[:, step] + noise * agents.actor.log_std.exp()
                old_logprob[:, step] = agents.log_prob(old_mean[:, step], actions[:, step])
            env_start = time.perf_counter()
            next_obs, reward, terminated, truncated, infos = envs.step(
                to_envs(actions[:, step], envs.single_action_space)
            )
            env_s += time.perf_counter() - env_start
            rewards[step], terminations[step] = torch.from_numpy(reward), torch.from_numpy(terminated)
            truncations[step] = torch.from_numpy(truncated)
            if truncated.any():
                final_obs = to_agents(infos["final_obs"], device)
                with torch.no_grad():
                    final_values[:, step] = agents.value(agents.obs_norm(final_obs))
            ended = infos["_episode"]
            episodes += zip(infos["episode"]["r"][ended], infos["episode"]["l"][ended], strict=True)
        global_step += T * E

        with torch.no_grad():
            next_value = agents.value(agents.obs_norm(to_agents(next_obs, device)))
            old_log_std = agents.actor.log_std.detach().clone()
        # Critics learn in units of return_norm, which moves with the returns; GAE is in units of the reward.
        own, own_next, own_final = map(agents.in_reward_units, (values, next_value, final_values))
        ends = terminations.to(device), truncations.to(device), args.gamma, args.gae_lambda
        advantages, returns = gae(rewards.to(device), own, own_next, own_final, *ends)
        agents.obs_norm.add(raw_obs.flatten(1, 2))  # for the next rollout: this batch was acted on without it
        batch = dict(obs=obs, actions=actions, old_mean=old_mean, old_logprob=old_logprob, weight=weight)
        batch["old_log_std"] = old_log_std[:, None].expand(N, T, E, -1)
        batch["returns"] = agents.rescale(returns) if args.value_norm else returns
        batch["advantages"] = standardize(advantages)[0]
        rollout_s = time.perf_counter() - start
        parts = [{name: x[group].flatten(1, 2) for name, x in batch.items()} for group in groups]
        stats = torch.cat(list(pool.map(operator.call, updates, parts)), dim=1)
        error, spread = standardize(returns - own)[1], standardize(returns)[1]
        explained = 1 - (error / (spread + 1e-8)).square()
        below, above = stats[4] < args.d_target / args.delta, stats[4] > args.d_target * args.delta
        stats = torch.stack([*stats, explained.flatten(), *agents.betas, below, above]).mean(1).tolist()
        if not (np.isfinite(stats[:6]).all() and all(p.isfinite().all() for p in agents.parameters())):
            diagnostic = {"args": asdict(args), "agents": agents.state_dict(), "batch": batch}
            save(run_dir / "diagnostic.pt", diagnostic)
            where = f"at step {global_step}; {run_dir}/diagnostic.pt holds the batch, checkpoint.pt is intact"
            sys.exit(f"{SCRIPT}: the loss is not finite {where}. Start again with a smaller --learning-rate.")

        seconds = time.perf_counter() - start
        sps = T * E / seconds
        split = env_s / seconds, (rollout_s - env_s) / seconds, 1 - rollout_s / seconds
        means = np.mean(episodes or [[np.nan] * 2], axis=0, dtype=float).tolist()
        log(dict(zip(COLUMNS[2:], [*means, sps, *split, *stats], strict=True)))
        status = f"return {means[0]:.2f}" if episodes else "no episode has ended"
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
        options = dict(seed=args.seed, agent_obsk=args.agent_obsk, obs=args.obs, threads=args.torch_threads)
        make = functools.partial(make_envs, f"mamujoco/{args.task}", **options)
        envs, eval_envs = make(args.num_envs), make(EVAL_EPISODES)
        video_envs = make(1, render_mode="rgb_array") if args.capture_video else None
    except (ValueError, RuntimeError) as error:
        sys.exit(f"{SCRIPT}: {error}")
    agents = Agents(envs.obs_dim, envs.agent_act_dims, args.layer_norm, args.log_std_init)
    agents.betas += BETA_INIT * torch.tensor([[args.sqrt_kl_term], [args.kl_term]])
    agents.to(args.device)
    if state:
        agents.load_state_dict(state["best" if args.eval_only else "agents"])
    else:
        run_dir = Path(args.runs_dir) / f"{env_name(envs)}__{SCRIPT}__{args.seed}__{time.time_ns() // 10**6}"
    if not args.eval_only:
        agents.load_state_dict(train(args, envs, eval_envs, agents, state, run_dir))
    absolute = evaluate(agents, eval_envs, 10 * EVAL_EPISODES, [args.seed, 1], args.device)
    print(f"{run_dir}, {10 * EVAL_EPISODES} greedy episodes: {json.dumps(absolute)}")
    if not args.eval_only:
        (run_dir / "done").write_text(json.dumps(absolute) + "\n")
    if video_envs:
        frames: list[np.ndarray] = []
        evaluate(agents, video_envs, 1, [args.seed, 2], args.device, frames)
        imageio.mimsave(run_dir / "video.mp4", frames, fps=20, macro_block_size=1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(f"{SCRIPT}: interrupted.")
    except OSError as error:
        sys.exit(f"{SCRIPT}: {error}; make room or allow writing, then --resume the last checkpoint.")
