"""DPO, Decentralized Policy Optimization (not direct preference optimization), in tabular games.

Paper: A Fully Decentralized Surrogate for Multi-Agent Policy Optimization (Su & Lu, TMLR 2024).
Details, and every difference from the paper and its released code: docs/dpo.md
Reproduce: python dpo_matrix.py --game stochastic       # learns; returns: benchmark/results/matrix/README.md
           python dpo_matrix.py --game 3 --m-hat 0.3    # iterates (17), (18) exactly, without samples
           python dpo_matrix.py --game 3                # with the theorem's M-hat nothing moves: docs/dpo.md

Axis order: the environment's arrays are (num_envs E, num_agents N, ...), the learner's tensors
(N, batch, ...), its tables (N, states S, actions A). Agents share nothing; stacking their networks only
batches the arithmetic.
"""

import copy
import csv
import functools
import io
import itertools
import json
import operator
import os
import signal
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import matplotlib.figure
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from envs import describe, env_name
from envs import make as make_envs
from envs.exact import evaluate_exactly

SCRIPT = Path(__file__).stem
EXIT_REQUEUE = 75  # EX_TEMPFAIL: a signal stopped the run, its checkpoint is on disk, --resume goes on
ITERATIONS = 100  # of the exact iteration
CHUNK = 512  # rows of 8 agents or more whose activations stay in the cache of one core
STATS = ["losses/policy_loss", "losses/value_loss", "losses/entropy", "losses/grad_norm", "dpo/kl"]
STATS += ["dpo/sqrt_kl", "losses/explained_variance", "dpo/beta1", "dpo/beta2"]
STATS += ["dpo/below_band", "dpo/above_band"]
COLUMNS = [
    "global_step",
    "eval/episodic_return",
    "eval/greedy_return",
    "eval/optimum",
    "charts/episodic_return",
]
COLUMNS += ["charts/episodic_length", "charts/SPS", "time/env", "time/act", "time/update", *STATS]


@dataclass
class Args:
    game: str = "stochastic"
    """stochastic: the didactic random game, learned from samples; 1 to 4: a 2x2 game, iterated exactly"""
    num_states: int = 100
    """states of the stochastic game, and steps of its episodes"""
    num_agents: int = 6
    """agents of the stochastic game"""
    num_actions: int = 5
    """actions of each agent in the stochastic game"""
    game_seed: int = 0
    """which stochastic game: seed of its rewards and transitions"""
    seed: int = 1
    """seed of environments, parameters and sampled actions"""
    total_timesteps: int = 1_000_000
    """environment steps (one moves all agents of one environment; never agent-steps)"""
    num_envs: int = 32
    """environments stepped together, for one whole episode per update"""
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
    d_target: float = 0.01
    """KL per update that eq. (21) steers each agent to"""
    delta: float = 1.5
    """eq. (21): the betas change where KL leaves [d_target / delta, d_target * delta]"""
    omega: float = 2.0
    """eq. (21): the factor by which they change"""
    beta_init: float = 0.01
    """initial beta1 and beta2"""
    beta_min: float = 0.05
    """floor of N * beta, without which the betas vanish late in training, and the trust region with them"""
    beta_max: float = 1000.0
    """ceiling of N * beta (N times, because the surrogate of eq. (20) has weight 1/N)"""
    sqrt_kl_term: bool = True
    """off: beta1 = 0, the ablation DPO_w/o_sqrt (IPPO-KL)"""
    kl_term: bool = True
    """off: beta2 = 0, the ablation DPO_w/o_kl"""
    payoff: tuple[float, float, float, float] | None = None
    """R(1,1) R(1,2) R(2,1) R(2,2) of a 2x2 game of your own, iterated exactly"""
    m_hat: str = "theory"
    """exact iteration: coefficient of sqrt(KL) in eq. (18), theory (Theorem 3.3) or a number, e.g. 0.3"""
    c: float = 10.0
    """exact iteration: coefficient C of KL in eq. (18)"""
    start: tuple[float, float] = (0.5, 0.5)
    """exact iteration: initial p and q, the agents' probabilities of action 1"""
    eval_every: int = 20_480
    """environment steps between evaluations, which are exact: they solve for the return"""
    checkpoint_every: int = 102_400
    """environment steps between checkpoints"""
    runs_dir: str = "runs"
    """where run directories are made"""
    resume: str = ""
    """run directory to go on with, under its own arguments"""
    device: str = "cpu"
    """cpu | cuda, the first GPU that CUDA_VISIBLE_DEVICES names"""
    torch_threads: int = 1
    """CPU threads of the learner; each has a group of agents to itself"""


RESUME_MAY_CHANGE = {"total_timesteps", "resume", "runs_dir"}


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


# --- same in: dpo_matrix, dpo_mpe ---
class Agents(nn.Module):
    """Actor pi_i, critic V_i and coefficients beta1_i, beta2_i of N agents."""

    def __init__(self, num_agents: int, obs_dim: int, num_actions: int, layer_norm: bool = True):
        super().__init__()
        self.actor = StackedMLP(num_agents, obs_dim, num_actions, 0.01, layer_norm)
        self.critic = StackedMLP(num_agents, obs_dim, 1, 1.0, layer_norm)
        self.register_buffer("betas", torch.zeros(2, num_agents))

    def value(self, obs: torch.Tensor) -> torch.Tensor:
        """V_i of its own observation: (N, batch, obs_dim) -> (N, batch)."""
        return self.critic(obs).squeeze(-1)

    def group(self, part: slice) -> "Agents":
        """Some of the agents as a module of their own, whose parameters are views of this one's."""
        group = copy.deepcopy(self)
        for mine, whole in zip(group.parameters(), self.parameters(), strict=True):
            mine.data = whole.data[part]
        group.betas = self.betas.data[:, part]  # .data: a version counter of its own, for autograd in threads
        return group


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, ippo ---
def exp_minus_linear(x: torch.Tensor) -> torch.Tensor:
    """exp(x) - 1 - x, never negative; near 0 its gradient, expm1(x), is exact where autograd's is noise."""
    at, slope = x.detach(), torch.expm1(x.detach())
    return (slope - at).clamp(min=0.0) + slope * (x - at)


# --- same in: dpo_matrix, dpo_mpe, dpo_smac ---
def categorical_kl(old_logp: torch.Tensor, logp: torch.Tensor) -> torch.Tensor:
    """KL(pi_old || pi) of each state, (..., A) -> (...), never negative, so that its square root is safe.

    With x = log pi - log pi_old it is sum pi_old (exp(x) - 1 - x), because sum pi_old (exp(x) - 1) = 0.
    Unavailable actions, 0 in both, add nothing.
    """
    x = (logp - old_logp).clamp(max=88.0)  # exp would overflow beyond, where pi_old < 1e-38
    return (old_logp.exp() * exp_minus_linear(x)).sum(-1)


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


def tabulate(obs, actions, advantages, returns, num_actions: int) -> dict[str, torch.Tensor]:
    """Sums a batch of samples (N, rows, ...) by state and action, which changes no gradient of `dpo_loss`.

    Returns weight (N, S), the share of samples in a state; advantages (N, S, A), the sum over the samples
    there divided by rows, and returns (N, S), their mean.
    """
    visits = obs.transpose(1, 2) / obs.shape[1]
    weight = visits.sum(2)
    own = F.one_hot(actions, num_actions) * advantages.unsqueeze(-1)
    mean_returns = (visits @ returns.unsqueeze(-1)).squeeze(-1) / weight.clamp(min=0.5 / obs.shape[1])
    return dict(weight=weight, advantages=visits @ own, returns=mean_returns)


def dpo_loss(agents, obs, old_logp, advantages, returns, weight, ent_coef, num_agents):
    """Loss of a table of `tabulate`, summed over agents (whose parameters are disjoint); its parts (3, N)."""
    logp = F.log_softmax(agents.actor(obs), dim=-1)
    surrogate = (advantages * (logp - old_logp).exp()).sum((1, 2))
    entropy = -(weight * (logp.exp() * logp).sum(-1)).sum(1)
    kl_s = categorical_kl(old_logp, logp)
    sqrt_kl, kl = (weight * (kl_s + 1e-12).sqrt()).sum(1), (weight * kl_s).sum(1)
    beta1, beta2 = agents.betas
    objective = (surrogate + ent_coef * entropy) / num_agents - beta1 * sqrt_kl - beta2 * kl  # eq. (20)
    # eq. (8), less the spread of the returns within a state, which no critic can do anything about
    v_loss = (weight * (agents.value(obs) - returns).square()).sum(1)
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


# --- same in: dpo_matrix, dpo_mpe ---
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
            logp = F.log_softmax(agents.actor(chunk["obs"]), dim=-1)
            kl_s = categorical_kl(chunk["old_logp"], logp)
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


@torch.no_grad()
def evaluate(agents, envs, optimum: float) -> dict[str, float]:
    """Exact returns of an episode: of the policies, of their most probable actions, and the best of all."""
    states = torch.eye(envs.num_states).expand(envs.num_agents, -1, -1)
    logits = agents.actor(states.to(agents.betas.device)).double().cpu()
    greedy = F.one_hot(logits.argmax(-1), envs.num_actions)
    results = envs.exact_return(logits.softmax(-1).numpy()), envs.exact_return(greedy.numpy()), optimum
    return dict(zip(COLUMNS[1:4], results, strict=True))


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


def parse_args(argv: list[str] | None = None) -> tuple[Args, dict, Path]:
    """Command line over the defaults, or over the arguments of a saved run; its state and directory."""
    args, state = tyro.cli(Args, args=argv, description=__doc__), {}
    path = run_dir = Path(args.resume)
    if args.resume:
        path = path / "checkpoint.pt" if path.is_dir() else path
        state, run_dir = load(path), path.parent
    base = Args(**state["args"] if state else {})
    args = tyro.cli(Args, args=argv, default=base, description=__doc__)
    changed = {
        name for name, value in asdict(args).items() if value != getattr(base, name)
    } - RESUME_MAY_CHANGE
    if state and changed:
        sys.exit(f"{SCRIPT}: {path} was made with another {', '.join(sorted(changed))}; drop the flag.")
    for name in ("num_envs", "update_epochs", "torch_threads", "eval_every", "checkpoint_every"):
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
    return args, state, run_dir


def train(args: Args, envs, agents: Agents, state: dict, run_dir: Path) -> dict[str, float]:
    """Rollout, GAE, update and adaptive betas, over and over; returns the evaluation of the last policies."""
    device, N, T, E = args.device, envs.num_agents, envs.episode_limit, args.num_envs
    # Agents share nothing, so a group of them is a learner of its own, and threads need no synchronisation.
    cuts = np.linspace(0, N, min(args.torch_threads if device == "cpu" else 1, N) + 1).astype(int).tolist()
    groups = [slice(first, last) for first, last in itertools.pairwise(cuts)]
    learners = [agents.group(group) for group in groups]
    settings = dict(lr=args.learning_rate, eps=1e-5, fused=True, capturable=device != "cpu")
    adam = functools.partial(torch.optim.Adam, **settings)
    optimizers = [adam(learner.parameters()) for learner in learners]
    pool = ThreadPoolExecutor(len(groups), initializer=torch.set_num_threads, initargs=(1,))
    learn = functools.partial(update, args=args, num_agents=N)
    updates = [functools.partial(learn, *pair) for pair in zip(learners, optimizers, strict=True)]
    updates = updates if device == "cpu" else [CudaGraph(learn) for learn in updates]
    generator = torch.Generator(device).manual_seed(args.seed + 2**32)  # not the initial parameters' stream
    global_step, next_eval = 0, 0
    metrics = run_dir / "metrics.csv"
    next_obs, _ = envs.reset()
    if state:
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        generator.set_state(state["generator"])
        global_step, next_eval = state["counters"]
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
    optimum = envs.optimum().value
    print(f"{run_dir}: {N} agents, {envs.num_states} states, optimum {optimum:.2f}", flush=True)

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
    states = torch.eye(envs.num_states, device=device).expand(N, -1, -1)
    obs, noise = zeros(N, T, E, envs.num_states), zeros(N, E, envs.num_actions)
    actions, rewards = zeros(N, T, E, dtype=torch.int64), torch.zeros(T, E)
    values, final_values = zeros(N, T, E), zeros(N, T, E)
    terminations, truncations = torch.zeros(2, T, E, dtype=torch.bool)
    bar = tqdm(total=args.total_timesteps, initial=global_step, unit="step", disable=not sys.stderr.isatty())
    next_checkpoint, next_line = global_step, 0.0
    while True:
        if global_step >= next_eval:
            next_eval += args.eval_every
            log(evaluate(agents, envs, optimum))
        finished = global_step >= args.total_timesteps
        if global_step >= next_checkpoint or finished or signals:
            next_checkpoint = global_step + args.checkpoint_every
            checkpoint = {"args": asdict(args), "agents": agents.state_dict()}
            checkpoint["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
            checkpoint["generator"] = generator.get_state()
            checkpoint["counters"] = global_step, next_eval
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
        with torch.no_grad():  # the policies stay as they are during a rollout: tables of them will do
            old_logp, value = F.log_softmax(agents.actor(states), dim=-1), agents.value(states)
        for step in range(T):
            obs[:, step] = to_agents(next_obs, device)
            # Gumbel-max sampling: its draws have a fixed shape, so no agent's depend on another's policy.
            gumbel = -noise.exponential_(generator=generator).log()
            actions[:, step] = (obs[:, step] @ old_logp + gumbel).argmax(-1)
            env_start = time.perf_counter()
            next_obs, reward, terminated, truncated, infos = envs.step(actions[:, step].T.cpu().numpy())
            env_s += time.perf_counter() - env_start
            rewards[step], terminations[step] = torch.from_numpy(reward), torch.from_numpy(terminated)
            truncations[step] = torch.from_numpy(truncated)
            if truncated.any():
                final_obs = to_agents(infos["final_obs"], device)
                final_values[:, step] = (final_obs @ value.unsqueeze(-1)).squeeze(-1)
            ended = infos["_episode"]
            episodes += zip(infos["episode"]["r"][ended], infos["episode"]["l"][ended], strict=True)
        global_step += T * E

        values = (obs.flatten(1, 2) @ value.unsqueeze(-1)).view_as(values)
        next_value = (to_agents(next_obs, device) @ value.unsqueeze(-1)).squeeze(-1)
        ends = terminations.to(device), truncations.to(device), args.gamma, args.gae_lambda
        advantages, returns = gae(rewards.to(device), values, next_value, final_values, *ends)
        samples = obs, actions, standardize(advantages)[0], returns
        batch = tabulate(*(x.flatten(1, 2) for x in samples), envs.num_actions)
        batch |= dict(obs=states, old_logp=old_logp)
        rollout_s = time.perf_counter() - start
        parts = [{name: x[group] for name, x in batch.items()} for group in groups]
        stats = torch.cat(list(pool.map(operator.call, updates, parts)), dim=1)
        explained = 1 - (standardize(returns - values)[1] / (standardize(returns)[1] + 1e-8)).square()
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
        means = np.mean(episodes, axis=0, dtype=float).tolist()
        log(dict(zip(COLUMNS[4:], [*means, sps, *split, *stats], strict=True)))
        status = f"return {means[0]:.2f} of {optimum:.2f}"
        bar.set_postfix_str(status, refresh=False)
        bar.update(T * E)
        if bar.disable and time.perf_counter() > next_line:
            next_line, eta = time.perf_counter() + 10, max(args.total_timesteps - global_step, 0) / sps / 60
            print(f"step {global_step:,}, {sps:,.0f} steps/s, {status}, ETA {eta:.0f} min", flush=True)
    bar.close()
    writer.close()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return evaluate(agents, envs, optimum)


# --- the exact iteration: numpy, float64, no samples ---


def m_hat_theory(num_agents: int, r_max: float, gamma: float) -> float:
    """M̂ of Theorem 3.3: sqrt((N − 1) / N) · 2 r_max / (1 − gamma)."""
    return float(np.sqrt((num_agents - 1) / num_agents) * 2.0 * r_max / (1.0 - gamma))


def _kl(old, z, ratio):
    """KL(old ‖ old · ratio) = sum old (z − log ratio), z = ratio − 1, by its series for small z."""
    small = np.abs(z) < 0.05
    x = np.where(small, z, 0.0)
    series = np.zeros_like(x)
    for k in range(14, 1, -1):  # z²/2 − z³/3 + z⁴/4 − …
        series = 1.0 / k - x * series
    with np.errstate(divide="ignore"):  # an action given up altogether: KL is infinite
        exact = z - np.log(ratio)
    return (old * np.where(small, x * x * series, exact)).sum(axis=-1)


def kl(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """KL(old ‖ new) over the last axis, never negative; actions of probability 0 under old count nothing."""
    safe = np.where(old > 0, old, 1.0)
    new = np.where(old > 0, new, 1.0)
    return _kl(old, (new - old) / safe * (old > 0), new / safe)


def solve_surrogate(old: np.ndarray, gain: np.ndarray, m_hat: float, c: float) -> np.ndarray:
    """Exact maximiser over distributions pi of <pi, gain> − m_hat sqrt(K) − c K, K = KL(old ‖ pi): eq. (18).

    old, gain: (..., A); in DPO gain is A_i / N; m_hat + c > 0. Returns (..., A): exactly `old` where it is
    best not to move. Actions of probability 0 stay at 0. ValueError on negative coefficients.

    On {K = k} the best pi is stationary for <pi, gain> − eta K, so that pi = old · eta / (nu − gain) with
    nu > max gain; sum pi = 1 gives eta(nu), and the frontier k -> max <pi, gain> has slope eta. One unknown
    per row is left: the point of this curve where eta = c + m_hat / (2 sqrt(K)). −m_hat sqrt(K) is convex in
    K, so that a row may have several such points, and not moving (nu = infinity) is a local maximum whenever
    m_hat >= sqrt(2) · std_old(gain): a scan finds the best point, bisection makes it exact.
    """
    if not (m_hat >= 0 and c >= 0 and 0 < m_hat + c < np.inf):
        raise ValueError(f"m_hat and c must be finite, not negative, nor both 0, got {m_hat} and {c}.")
    shape = np.shape(gain)
    old, gain = np.reshape(old, (-1, shape[-1])), np.reshape(gain, (-1, shape[-1]))
    w = np.where(old > 0, gain - (old * gain).sum(axis=-1, keepdims=True), 0.0)
    top = np.where(old > 0, w, -np.inf).max(axis=-1)
    spread = top - np.where(old > 0, w, np.inf).min(axis=-1)
    spread = np.where(spread > 0, spread, 1.0)

    def point(log_y):
        """pi / old, the objective's gain over old, and its slope in K, at nu = top + spread · exp(log_y)."""
        nu = top + spread * np.exp(log_y)
        gap = (top[:, None] - w) + (spread * np.exp(log_y))[..., None]  # nu − w
        b = (old * w * w / gap).sum(axis=-1) / nu
        eta = nu / (1.0 + b)  # the same as 1 / sum(old / gap), because sum(old w) = 0
        ratio = eta[..., None] / gap
        near = (np.abs(ratio - 1.0) < 0.5) & (gap > spread[:, None])
        z = np.where(near, (w - (eta * b)[..., None]) / gap, ratio - 1.0)  # each where it is exact
        k = _kl(old, z, ratio)
        value = (old * w * z).sum(axis=-1) - m_hat * np.sqrt(k) - c * k
        return ratio, value, eta - c - 0.5 * m_hat / np.sqrt(np.maximum(k, 1e-300))

    grid = np.linspace(np.log(1e-15), np.log(1e9), 500)
    best = point(grid[:, None])[1].argmax(axis=0)
    low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]
    for _ in range(55):  # K falls with y: at the maximum the slope in K turns from + (above) to − (below)
        middle = 0.5 * (low + high)
        falls = point(middle)[2] < 0
        low, high = np.where(falls, middle, low), np.where(falls, high, middle)
    ratio, value, _ = point(0.5 * (low + high))
    new = old * ratio
    new /= new.sum(axis=-1, keepdims=True)
    moves = (value > 0) & (np.abs(w).max(axis=-1) > 0)
    return np.where(moves[:, None], new, old).reshape(shape)


def dpo_step(rewards, transitions, policies, gamma, m_hat, c):
    """One exact iteration: every agent, alone, solves eq. (18) in every state with its exact advantage.

    Returns the new policies (N, S, A) and J of the old ones.
    """
    value, _, advantages = evaluate_exactly(rewards, transitions, policies, gamma)
    return solve_surrogate(policies, advantages / len(policies), m_hat, c), float(value[0])


def iterate(rewards, transitions, policies, gamma, m_hat, c, iterations):
    """`iterations` exact DPO steps. Returns policies (iterations + 1, N, S, A) and J (iterations + 1,).

    A 2x2 matrix game is S = 1, N = A = 2, gamma = 0: p and q are policies[:, 0, 0, 0] and [:, 1, 0, 0].
    """
    path, returns = [np.asarray(policies, dtype=np.float64)], []
    for _ in range(iterations):
        new, value = dpo_step(rewards, transitions, path[-1], gamma, m_hat, c)
        path.append(new)
        returns.append(value)
    returns.append(float(evaluate_exactly(rewards, transitions, path[-1], gamma)[0][0]))
    return np.stack(path), np.array(returns)


def iterate_matrix_game(args: Args, env, run_dir: Path) -> None:
    """The exact iteration on a 2x2 game: J, p and q as metrics.csv and curves.png in the run directory."""
    if not (0 < args.start[0] < 1 and 0 < args.start[1] < 1):
        raise ValueError(f"--start takes two probabilities strictly between 0 and 1, got {args.start}.")
    theory = m_hat_theory(2, float(np.abs(env.rewards).max()), 0.0)
    try:
        m_hat = theory if args.m_hat == "theory" else float(args.m_hat)
    except ValueError:
        raise ValueError(f"--m-hat takes theory or a number, got {args.m_hat!r}.") from None
    policies = np.array([[[x, 1 - x]] for x in args.start])
    tables = env.rewards.astype(np.float64), env.transitions.astype(np.float64)
    path, returns = iterate(*tables, policies, 0.0, m_hat, args.c, ITERATIONS)
    p, q = path[:, 0, 0, 0], path[:, 1, 0, 0]
    run_dir.mkdir(parents=True)
    (run_dir / "args.json").write_text(json.dumps(asdict(args) | describe(env), indent=1) + "\n")
    with open(run_dir / "metrics.csv", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["iteration", "J", "p", "q"])
        table.writerows(zip(range(len(p)), returns, p, q, strict=True))
    optimum = env.optimum().value
    figure = matplotlib.figure.Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(returns, color="black", label="J")
    left.axhline(optimum, color="gray", linestyle=":", label="optimum")
    right.plot(p, color="#0072b2", label="p")
    right.plot(q, color="#d55e00", linestyle="--", label="q")
    right.set_ylim(-0.03, 1.03)
    for axes in (left, right):
        axes.set_xlabel("iteration")
        axes.legend()
    figure.suptitle(f"Payoff {env.payoff.ravel().tolist()}, M-hat = {m_hat:g}, C = {args.c:g}")
    figure.savefig(run_dir / "curves.png", dpi=120)
    (run_dir / "done").write_text(json.dumps({"J": returns[-1], "optimum": optimum}) + "\n")
    moved = "nothing moved" if (path == path[0]).all() else f"p, q = {p[-1]:.4f}, {q[-1]:.4f}"
    print(f"{run_dir}: M-hat {m_hat:g}, J {returns[0]:.4f} -> {returns[-1]:.4f} of {optimum:.4f}, {moved}")


def main() -> None:
    args, state, run_dir = parse_args()
    torch.set_num_threads(1)  # cores are for groups of agents, --torch-threads, not for single operators
    torch.manual_seed(args.seed)
    try:
        if args.payoff is None and args.game == "stochastic":
            names = "num_states", "num_agents", "num_actions", "game_seed"
            options = {name: getattr(args, name) for name in names}
            envs = make_envs("matrix/stochastic", args.num_envs, args.seed, **options)
        else:
            game = args.game if args.payoff is None else "1"  # any: the payoff stands for it
            envs = make_envs(f"matrix/{game}", 1, payoff=args.payoff)
        if not state:
            run_dir = (
                Path(args.runs_dir) / f"{env_name(envs)}__{SCRIPT}__{args.seed}__{time.time_ns() // 10**6}"
            )
        if envs.env_id != "matrix/stochastic":
            iterate_matrix_game(args, envs, run_dir)
            return
    except (ValueError, MemoryError) as error:
        sys.exit(f"{SCRIPT}: {error}")
    agents = Agents(envs.num_agents, envs.num_states, envs.num_actions, layer_norm=False)
    agents.betas += args.beta_init * torch.tensor([[args.sqrt_kl_term], [args.kl_term]])
    agents.to(args.device)
    if state:
        agents.load_state_dict(state["agents"])
    result = train(args, envs, agents, state, run_dir)
    print(f"{run_dir}: {json.dumps(result)}")
    (run_dir / "done").write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(f"{SCRIPT}: interrupted.")
    except OSError as error:
        sys.exit(f"{SCRIPT}: {error}; make room or allow writing, then --resume the last checkpoint.")
