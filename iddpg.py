"""IDDPG, independent deep deterministic policy gradient, on continuous actions: a baseline of DPO.

Paper: Continuous control with deep reinforcement learning (Lillicrap et al., 2016, arXiv 1509.02971), by
every agent on its own: the critic sees its agent's observation and action only.
Details: docs/iddpg.md
Run: python iddpg.py --env-id mamujoco/HalfCheetah-3x2  (results: benchmark/results/baselines/README.md)

Axis order: the environment's arrays are (num_envs E, num_agents N, ...), the learner's tensors
(N, batch, ...). Agents share nothing; stacking their networks only batches the arithmetic.
"""

import copy
import csv
import functools
import io
import itertools
import json
import os
import signal
import sys
import time
import warnings
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
from envs.matrix import free_bytes

SCRIPT = Path(__file__).stem
EXIT_REQUEUE = 75  # EX_TEMPFAIL: a signal stopped the run, its checkpoint is on disk, --resume goes on
EVAL_EPISODES = 32  # per evaluation; ten times as many for the absolute metric at the end
LOG_EVERY = 2048  # environment steps that a row of metrics.csv averages over, at least
STATS = ["losses/policy_loss", "losses/value_loss", "losses/q_values", "losses/grad_norm"]
COLUMNS = ["global_step", "eval/episodic_return", "charts/episodic_return", "charts/episodic_length"]
COLUMNS += ["charts/SPS", "time/env", "time/act", "time/update", *STATS]


@dataclass
class Args:
    env_id: str = "mamujoco/HalfCheetah-3x2"
    """family/name: mamujoco/ROBOT-PARTITION, or pettingzoo:MODULE with continuous actions"""
    env_options: tuple[str, ...] = ()
    """options of the environment, e.g. agent_obsk=1; docs/envs.md lists them"""
    seed: int = 1
    """seed of environments, parameters, exploration and replay"""
    total_timesteps: int = 1_000_000
    """environment steps (one moves all agents of one environment; never agent-steps)"""
    num_envs: int = 8
    """environments stepped together"""
    learning_rate: float = 5e-4
    """Adam's learning rate, for actors and critics"""
    gamma: float = 0.99
    """discount factor"""
    tau: float = 0.005
    """share of the networks that goes into the target networks at every update (Polyak)"""
    buffer_steps: int = 1_000_000
    """environment steps in the replay buffer"""
    memory_share: float = 0.5
    """share of the free memory that the replay buffer may take"""
    batch_size: int = 256
    """steps in a batch"""
    updates_per_step: float = 1.0
    """gradient steps per environment step"""
    exploration_noise: float = 0.1
    """deviation of the Gaussian noise on actions, which go from -1 to 1"""
    warmup_steps: int = 10_000
    """environment steps of uniformly random actions before the first update"""
    max_grad_norm: float = 10.0
    """gradient clip, per agent and per network"""
    eval_every: int = 20_480
    """environment steps between evaluations (32 greedy episodes in separate environments)"""
    checkpoint_every: int = 102_400
    """environment steps between checkpoints, which hold the replay buffer"""
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
    """CPU threads of single operators"""


RESUME_MAY_CHANGE = {"total_timesteps", "eval_only", "checkpoint", "resume", "capture_video", "runs_dir"}
EVAL_MAY_NOT_CHANGE = {"env_id", "env_options"}
PRESETS: dict[str, dict] = {}  # by task; one setting serves all of them so far


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


class Agents(nn.Module):
    """Deterministic actor and critic of N agents. act_mask (N, 1, D): an agent's own actions, not padding."""

    def __init__(self, obs_dim: int, act_dims: tuple[int, ...]):
        super().__init__()
        num_agents, act_dim = len(act_dims), max(act_dims)
        self.actor = StackedMLP(num_agents, obs_dim, act_dim, 0.01, layer_norm=False)
        self.critic = StackedMLP(num_agents, obs_dim + act_dim, 1, 1.0, layer_norm=False)
        self.register_buffer("act_mask", (torch.arange(act_dim) < torch.tensor(act_dims)[:, None])[:, None])

    def act(self, obs: torch.Tensor) -> torch.Tensor:
        """Actions in [-1, 1], 0 where padded: (N, batch, obs_dim) -> (N, batch, D)."""
        return torch.tanh(self.actor(obs)) * self.act_mask

    def value(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Q_i of own observation and action: (N, batch, obs_dim), (N, batch, D) -> (N, batch)."""
        return self.critic(torch.cat([obs, actions], dim=-1)).squeeze(-1)


class Replay:
    """The last `capacity` environment steps, as arrays (capacity, ...)."""

    def __init__(self, capacity: int, num_agents: int, obs_dim: int, act_dim: int, share: float):
        shapes = {"obs": (num_agents, obs_dim), "next_obs": (num_agents, obs_dim)}
        shapes |= {"actions": (num_agents, act_dim), "rewards": (), "terminations": ()}
        kinds = {name: np.bool_ if name == "terminations" else np.float32 for name in shapes}
        need = sum(capacity * int(np.prod(shapes[k])) * np.dtype(kinds[k]).itemsize for k in shapes)
        free = free_bytes()
        if free is not None and need > share * free:
            what = f"A replay buffer of {capacity} steps needs {need / 1e9:.2f} GB"
            limit = f"{share:.0%} of {free / 1e9:.2f} GB that are free"
            raise MemoryError(f"{what}, more than {limit}; lower --buffer-steps or raise --memory-share.")
        print(f"Replay buffer: {capacity} steps, {need / 1e9:.2f} GB.", flush=True)
        self.data = {name: np.zeros((capacity, *shapes[name]), kinds[name]) for name in shapes}
        self.capacity, self.added = capacity, 0

    def add(self, **steps: np.ndarray) -> None:
        """Takes E steps, arrays (E, ...), in the place of the oldest."""
        where = (self.added + np.arange(len(steps["rewards"]))) % self.capacity
        for name, array in self.data.items():
            array[where] = steps[name]
        self.added += len(where)

    def sample(self, size: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        """Steps drawn uniformly with replacement, (size, ...)."""
        which = random.integers(min(self.added, self.capacity), size=size)
        return {name: x[which] for name, x in self.data.items()}


def critic_loss(agents, target, batch, gamma: float):
    """Squared error to y = r + gamma (1 - terminated) Q_target(o', pi_target(o')), and parts (2, N).

    batch: obs, next_obs (N, rows, obs_dim), actions (N, rows, D), the team's rewards, terminations (rows,).
    Summed over agents (whose parameters are disjoint); the parts are the loss and the mean of Q.
    """
    with torch.no_grad():
        following = target.value(batch["next_obs"], target.act(batch["next_obs"]))
        targets = batch["rewards"] + gamma * ~batch["terminations"] * following
    q = agents.value(batch["obs"], batch["actions"])
    loss = (q - targets).square().mean(1)
    return loss.sum(), torch.stack([loss, q.mean(1)]).detach()


def actor_loss(agents, batch):
    """-Q_i(o_i, pi_i(o_i)), the mean over the batch, summed over agents, and the parts (N,)."""
    loss = -agents.value(batch["obs"], agents.act(batch["obs"])).mean(1)
    return loss.sum(), loss.detach()


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, iddpg, ippo, iql ---
def clip_grad_norm_per_agent(network: nn.Module, max_norm: float) -> torch.Tensor:
    """Scales each agent's gradient to norm <= max_norm, in place; returns the norms before, (N,)."""
    grads = [p.grad for p in network.parameters()]
    norm = torch.stack([g.flatten(1).norm(dim=1) for g in grads]).norm(dim=0)
    for grad in grads:
        grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0).view(-1, 1, 1))
    return norm


def update(agents, target, optimizers, batch, args) -> torch.Tensor:
    """A gradient step of all critics, then of all actors, then of the targets; returns STATS, (4, N)."""
    actor_optimizer, critic_optimizer = optimizers
    critic_optimizer.zero_grad()
    loss, (value_loss, q) = critic_loss(agents, target, batch, args.gamma)
    loss.backward()
    clip_grad_norm_per_agent(agents.critic, args.max_grad_norm)
    critic_optimizer.step()
    actor_optimizer.zero_grad()
    loss, policy_loss = actor_loss(agents, batch)
    loss.backward()  # reaches the critics as well, whose gradients the next update clears
    grad_norm = clip_grad_norm_per_agent(agents.actor, args.max_grad_norm)
    actor_optimizer.step()
    with torch.no_grad():
        for ours, theirs in zip(agents.parameters(), target.parameters(), strict=True):
            theirs.lerp_(ours, args.tau)
    return torch.stack([policy_loss, value_loss, q, grad_norm])


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


def to_batch(steps: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """A sample of Replay, (rows[, N, ...]) -> the tensors of `critic_loss`."""
    batch = {name: torch.from_numpy(x) for name, x in steps.items()}
    return {name: x.transpose(0, 1).contiguous() if x.dim() > 1 else x for name, x in batch.items()}


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, iddpg, ippo, iql ---
def to_agents(x: np.ndarray, device: str) -> torch.Tensor:
    """(E, N, ...) array of the environment's side -> (N, E, ...) tensor of the learner's."""
    tensor = torch.from_numpy(x)
    if device != "cpu":  # from pinned memory the copy to a GPU need not be waited for
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor.transpose(0, 1)


def to_envs(actions: np.ndarray, space) -> np.ndarray:
    """Actions (E, N, D) in [-1, 1] -> within the environment's bounds."""
    return space.low + (actions + 1) / 2 * (space.high - space.low)


@torch.no_grad()
def evaluate(agents, envs, episodes: int, entropy: list[int], device: str, frames: list | None = None):
    """Episodes without noise, equally many in each environment (or short ones would count too often)."""
    obs, _ = envs.reset(seed=int(np.random.SeedSequence(entropy).generate_state(1)[0]))
    finished, returns = np.zeros(envs.num_envs, dtype=int), []
    while (finished < episodes / envs.num_envs).any():
        if frames is not None:
            frames.append(envs.render())
        actions = agents.act(to_agents(obs, device)).transpose(0, 1).cpu().numpy()
        obs, _, _, _, infos = envs.step(to_envs(actions, envs.single_action_space))
        ended = infos["_episode"] & (finished < episodes / envs.num_envs)
        finished += ended
        returns += infos["episode"]["r"][ended].tolist()
    return {"eval/episodic_return": float(np.mean(returns))}


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
    base = Args(**state["args"] if state else {"env_id": args.env_id} | PRESETS.get(args.env_id, {}))
    args = tyro.cli(Args, args=argv, default=base, description=__doc__)
    changed = {name for name, value in asdict(args).items() if value != getattr(base, name)}
    changed = changed & EVAL_MAY_NOT_CHANGE if args.eval_only else changed - RESUME_MAY_CHANGE
    if state and changed:
        sys.exit(f"{SCRIPT}: {path} was made with another {', '.join(sorted(changed))}; drop the flag.")
    for name in ("num_envs", "batch_size", "buffer_steps", "eval_every", "checkpoint_every"):
        if getattr(args, name) < 1:
            sys.exit(f"{SCRIPT}: --{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}.")
    if not all("=" in option for option in args.env_options):
        sys.exit(f"{SCRIPT}: --env-options takes name=value pairs, e.g. num_agents=3.")
    if not (args.learning_rate > 0 and args.max_grad_norm > 0 and 0 <= args.seed < 2**63):
        sys.exit(f"{SCRIPT}: --learning-rate and --max-grad-norm must be positive, --seed 0 to 2**63 - 1.")
    if not 0 <= args.gamma <= 1:
        sys.exit(f"{SCRIPT}: --gamma must be 0 to 1, got {args.gamma}.")
    if not (0 < args.tau <= 1 and args.updates_per_step >= 0 and args.exploration_noise >= 0):
        sys.exit(
            f"{SCRIPT}: --tau must be in (0, 1], --updates-per-step and --exploration-noise not negative."
        )
    if args.device not in ("cpu", "cuda"):
        sys.exit(f"{SCRIPT}: --device is cpu or cuda, got {args.device}; CUDA_VISIBLE_DEVICES names the GPU.")
    if args.device != "cpu" and not torch.cuda.is_available():
        sys.exit(f"{SCRIPT}: --device {args.device}, but PyTorch sees no GPU here; use --device cpu.")
    return args, state, run_dir


def train(args: Args, envs, eval_envs, agents: Agents, state: dict, run_dir: Path) -> dict:
    """Steps into the replay buffer, and as many updates; returns the parameters that evaluated best."""
    device, N, E, D = args.device, envs.num_agents, args.num_envs, envs.act_dim
    replay = Replay(args.buffer_steps, N, envs.obs_dim, D, args.memory_share)
    target = copy.deepcopy(agents)
    settings = dict(lr=args.learning_rate, fused=True, capturable=device != "cpu")
    adam = functools.partial(torch.optim.Adam, **settings)
    optimizers = adam(agents.actor.parameters()), adam(agents.critic.parameters())
    learn = functools.partial(update, agents, target, optimizers, args=args)
    learn = learn if device == "cpu" else CudaGraph(learn)
    random = np.random.default_rng([args.seed, 2])  # exploration and replay
    global_step, next_eval, best_return, best = 0, 0, -float("inf"), agents.state_dict()
    metrics = run_dir / "metrics.csv"
    next_obs, _ = envs.reset()
    if state:
        target.load_state_dict(state["target"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        random.bit_generator.state = json.loads(state["random"])
        global_step, next_eval, best_return, replay.added = state["counters"]
        best = state["best"]
        for name, x in state["replay"].items():
            replay.data[name][: len(x)] = x.numpy()
        try:
            envs.set_state({name: x.numpy() for name, x in state["envs"].items()})
        except ValueError as error:
            sys.exit(f"{SCRIPT}: {run_dir}/checkpoint.pt cannot be resumed. {error}")
        if envs.backend not in ("starcraft", "pettingzoo"):  # those have begun new episodes
            next_obs = state["next"].numpy()
        if not metrics.exists() or metrics.stat().st_size < state["metrics_bytes"]:
            sys.exit(f"{SCRIPT}: {metrics} is not as the checkpoint knows it; restore it or start a new run.")
        os.truncate(metrics, state["metrics_bytes"])  # later rows will be written again
    else:
        run_dir.mkdir(parents=True)
        (run_dir / "args.json").write_text(json.dumps(asdict(args) | describe(envs), indent=1) + "\n")
        metrics.write_text(",".join(COLUMNS) + "\n")
    writer = SummaryWriter(str(run_dir), purge_step=global_step + 1)
    print(f"{run_dir}: {N} agents, {envs.obs_dim} inputs, {D} actions each", flush=True)

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
    bar = tqdm(total=args.total_timesteps, initial=global_step, unit="step", disable=not sys.stderr.isatty())
    next_checkpoint, next_line, env_s, update_s, start = global_step, 0.0, 0.0, 0.0, time.perf_counter()
    next_log, logged, episodes, stats = state["log"] if state else (LOG_EVERY, 0, [], [])
    stats = list(stats[1:].to(device)) if state else []
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
            checkpoint |= {"target": target.state_dict(), "random": json.dumps(random.bit_generator.state)}
            checkpoint["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
            checkpoint["counters"] = global_step, next_eval, best_return, replay.added
            held = min(replay.added, replay.capacity)
            checkpoint["replay"] = {name: torch.from_numpy(x[:held]) for name, x in replay.data.items()}
            checkpoint["envs"] = {name: torch.from_numpy(x) for name, x in envs.get_state().items()}
            checkpoint["next"] = torch.from_numpy(next_obs)
            stacked = torch.stack([torch.zeros(len(STATS), N, device=device), *stats])
            checkpoint["log"] = next_log, logged, episodes, stacked.cpu()
            checkpoint["metrics_bytes"] = metrics.stat().st_size
            save(run_dir / "checkpoint.pt", checkpoint)
        if finished:
            break
        if signals:
            print(f"{SCRIPT}: stopped at step {global_step:,}; go on with --resume {run_dir}")
            sys.exit(EXIT_REQUEUE)

        with torch.no_grad():
            chosen = agents.act(to_agents(next_obs, device)).transpose(0, 1).cpu().numpy()
        noise, uniform = random.normal(size=(E, N, D)), random.uniform(-1, 1, size=(E, N, D))
        explored = uniform if global_step < args.warmup_steps else chosen + args.exploration_noise * noise
        mask = agents.act_mask.transpose(0, 1).cpu().numpy()
        actions = (explored.clip(-1, 1) * mask).astype(np.float32)
        obs, env_start = next_obs, time.perf_counter()
        next_obs, reward, terminated, truncated, infos = envs.step(to_envs(actions, envs.single_action_space))
        env_s += time.perf_counter() - env_start
        over = terminated | truncated
        seen = np.where(over[:, None, None], infos["final_obs"], next_obs)
        replay.add(obs=obs, next_obs=seen, actions=actions, rewards=reward, terminations=terminated)
        ended = infos["_episode"]
        episodes += [
            [float(x) for x in pair] for pair in zip(*(infos["episode"][k][ended] for k in "rl"), strict=True)
        ]
        update_start = time.perf_counter()
        due = int((global_step + E) * args.updates_per_step) - int(global_step * args.updates_per_step)
        global_step += E
        for _ in range(due if global_step > args.warmup_steps else 0):
            batch = to_batch(replay.sample(args.batch_size, random))
            stats.append(learn(batch))
        update_s += time.perf_counter() - update_start
        if global_step < next_log or not stats:
            continue
        values = torch.stack(stats).mean((0, 2)).tolist()
        if not (np.isfinite(values).all() and all(p.isfinite().all() for p in agents.parameters())):
            diagnostic = {"args": asdict(args), "agents": agents.state_dict(), "batch": batch}
            save(run_dir / "diagnostic.pt", diagnostic)
            where = f"at step {global_step}; {run_dir}/diagnostic.pt holds the batch, checkpoint.pt is intact"
            sys.exit(f"{SCRIPT}: the loss is not finite {where}. Start again with a smaller --learning-rate.")
        seconds, steps = time.perf_counter() - start, global_step - logged
        split = env_s / seconds, 1 - (env_s + update_s) / seconds, update_s / seconds
        means = np.mean(episodes or [[np.nan] * 2], axis=0, dtype=float).tolist()
        log(dict(zip(COLUMNS[2:], [*means, steps / seconds, *split, *values], strict=True)))
        status = f"return {means[0]:.2f}" if episodes else "no episode has ended"
        bar.set_postfix_str(status, refresh=False)
        bar.update(steps)
        if bar.disable and time.perf_counter() > next_line:
            next_line, sps = time.perf_counter() + 10, steps / seconds
            eta = max(args.total_timesteps - global_step, 0) / sps / 60
            print(f"step {global_step:,}, {sps:,.0f} steps/s, {status}, ETA {eta:.0f} min", flush=True)
        next_log, logged, episodes, stats = global_step + LOG_EVERY, global_step, [], []
        env_s, update_s, start = 0.0, 0.0, time.perf_counter()
    bar.close()
    writer.close()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return best


def main() -> None:
    args, state, run_dir = parse_args()
    torch.set_num_threads(args.torch_threads)
    torch.manual_seed(args.seed)
    try:
        options = {name: literal(value) for name, _, value in (x.partition("=") for x in args.env_options)}
        make = functools.partial(make_envs, args.env_id, seed=args.seed, **options)
        envs = make(args.num_envs)
        if not hasattr(envs, "act_dim"):
            raise ValueError(f"{args.env_id} has discrete actions; IDDPG needs continuous ones.")
        eval_envs = make(EVAL_EPISODES if envs.backend == "mujoco" else args.num_envs)
        video_envs = make(1, render_mode="rgb_array") if args.capture_video else None
    except (ValueError, TypeError, RuntimeError, ImportError, MemoryError) as error:
        sys.exit(f"{SCRIPT}: {error}")
    agents = Agents(envs.obs_dim, envs.agent_act_dims)
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
    except (MemoryError, BrokenEnvironment) as error:
        sys.exit(f"{SCRIPT}: {error}")
    except OSError as error:
        sys.exit(f"{SCRIPT}: {error}; make room or allow writing, then --resume the last checkpoint.")
