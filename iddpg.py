"""IDDPG, independent deep deterministic policy gradient, on continuous actions: a baseline of DPO.

Paper: Continuous control with deep reinforcement learning (Lillicrap et al., 2016, arXiv 1509.02971), for
every agent on its own: each critic sees only its agent's observation and action.
Details: docs/iddpg.md
Reproduce: python iddpg.py --total-timesteps 100000  (see benchmark/results/studies/baselines/README.md)

Tensors are (num_agents N, num_envs E, ...) or (N, batch, ...): agents come first, except in the replay
buffer. They share nothing; stacking their networks only batches the arithmetic.
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
GROUP_AGENTS = 4  # rough number of agents per group, in at most 8 groups; a thread trains one group at a time
LOG_EVERY = 2048  # least environment steps of a row of metrics.csv; none before an update
# Columns of metrics.csv; a row leaves empty what it does not report.
COLUMNS = """
global_step eval/episodic_return eval/episodic_length
charts/episodic_return charts/episodic_length charts/SPS time/env time/act time/update
losses/policy_loss losses/value_loss losses/q_values losses/grad_norm
""".split()  # noqa: SIM905


@dataclass
class Args:
    env_id: str = "mamujoco/HalfCheetah-3x2"  # mamujoco/ROBOT-PARTITION; or pettingzoo:MODULE
    env_options: tuple[str, ...] = ()  # its options, e.g. agent_obsk=1; docs/envs.md lists them
    seed: int = 1  # seed of environments, parameters, exploration and replay
    total_timesteps: int = 1_000_000  # environment steps: one moves all agents of one environment
    num_envs: int = 8  # environments stepped together

    learning_rate: float = 5e-4  # Adam's learning rate, for actors and critics
    gamma: float = 0.99  # discount factor
    tau: float = 0.005  # share of the networks that goes into the target networks at every update (Polyak)
    buffer_steps: int = 1_000_000  # environment steps in the replay buffer
    memory_share: float = 0.5  # share of the free memory that the replay buffer may take
    batch_size: int = 256  # steps in a batch
    updates_per_step: float = 1.0  # gradient steps per environment step
    exploration_noise: float = 0.1  # standard deviation of Gaussian noise on actions in [-1, 1]
    warmup_steps: int = 10_000  # environment steps of uniformly random actions before the first update
    max_grad_norm: float = 10.0  # gradient clip, per agent and per network

    eval_every: int = 20_480  # environment steps between evaluations, 32 greedy episodes each
    checkpoint_every: int = 102_400  # environment steps between checkpoints, which hold the replay buffer
    runs_dir: str = "runs"  # where run directories are made
    resume: str = ""  # run directory (or .pt file) to continue, with the arguments it began with
    eval_only: bool = False  # with --resume: only the final evaluation, of its best parameters
    capture_video: bool = False  # record greedy episodes as video.mp4 in the run directory, at the end
    device: Literal["cpu", "cuda"] = "cpu"  # cuda: the first GPU that CUDA_VISIBLE_DEVICES names
    torch_threads: int = 0  # CPU threads of physics and learner, 0: one per core; results are the same

    compile = False  # no flag

    def __post_init__(self):
        check_ranges(self)


RANGES = {
    "total_timesteps buffer_steps eval_every checkpoint_every": (1, 10**12),
    "num_envs": (1, 2**14),
    "batch_size": (1, 10**5),
    "torch_threads": (0, 1024),
    "warmup_steps": (0, 10**12),
    "seed": (0, 2**63 - 1),
    "max_grad_norm": (1e-12, 1e12),
    "learning_rate tau": (1e-12, 1),
    "gamma": (0, 1),
    "memory_share": (1e-6, 1),
    "exploration_noise": (0, 1e12),
    "updates_per_step": (1e-6, 10**4),
}
PRESETS: dict[str, dict] = {}  # by environment; one setting serves all of them


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
    """Deterministic actor and critic of N agents. Actions are in [-1, 1]; `to_bounds` scales them.

    bounds: the environment's action space, (N, D). Of unequal agents some have fewer than D actions; act_mask
    (N, 1, D) says which are their own.
    """

    def __init__(self, obs_dim: int, act_dims: tuple[int, ...], bounds):
        super().__init__()
        num_agents = len(act_dims)
        act_dim = max(act_dims)
        self.actor = StackedMLP(num_agents, obs_dim, act_dim, head_gain=0.01, layer_norm=False)
        self.critic = StackedMLP(num_agents, obs_dim + act_dim, 1, head_gain=1.0, layer_norm=False)
        self.register_buffer("act_mask", (torch.arange(act_dim) < torch.tensor(act_dims)[:, None])[:, None])
        self.register_buffer("low", torch.tensor(bounds.low)[:, None], persistent=False)
        self.register_buffer("high", torch.tensor(bounds.high)[:, None], persistent=False)

    def group(self, part: slice) -> "Agents":
        """Some of the agents, as a module of views: training it trains these agents.

        Its bounds are the whole team's: `update`, for which it is made, uses none.
        """
        members = copy.deepcopy(self)
        for mine, whole in zip(members.parameters(), self.parameters(), strict=True):
            mine.data = whole.data[part]
        members.act_mask = self.act_mask[part]
        return members

    def act(self, obs: torch.Tensor) -> torch.Tensor:
        """Actions in [-1, 1], 0 where padded: (N, batch, obs_dim) -> (N, batch, D)."""
        return torch.tanh(self.actor(obs)) * self.act_mask

    def to_bounds(self, actions: torch.Tensor) -> torch.Tensor:
        """Actions (N, batch, D) in [-1, 1] -> within the environment's bounds."""
        return self.low + (actions + 1) / 2 * (self.high - self.low)

    def value(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Q_i of own observation and action: (N, batch, obs_dim), (N, batch, D) -> (N, batch)."""
        return self.critic(torch.cat([obs, actions], dim=-1)).squeeze(-1)


# --- same in: iddpg, iql ---
def copy_rows(array: np.ndarray, saved: torch.Tensor) -> None:
    """Copies a part of a saved replay buffer into array; ValueError if its shape or type differs."""
    if (saved.shape, saved.numpy().dtype) != (array.shape, array.dtype):
        raise ValueError(f"{saved.dtype} {tuple(saved.shape)} where {array.dtype} {array.shape} was")
    array[:] = saved.numpy()


class Replay:
    """The last environment steps, as arrays (steps, ...)."""

    def __init__(self, args: Args, envs, steps: int):
        """steps: the most that the run will add; if fewer than --buffer-steps, less memory is needed."""
        obs = (envs.num_agents, envs.obs_dim)
        kinds = {
            "obs": (obs, np.float32),
            "next_obs": (obs, np.float32),
            "actions": ((envs.num_agents, envs.num_actions), np.float32),
            "rewards": ((), np.float32),
            "terminations": ((), np.bool_),
        }
        step = sum(int(np.prod(size)) * np.dtype(kind).itemsize for size, kind in kinds.values())
        self.capacity = min(args.buffer_steps, steps)
        need = self.capacity * step
        advice = "lower --buffer-steps or raise --memory-share"
        environments.check_memory(need, "The replay buffer needs", advice, args.memory_share)
        print(f"Replay buffer: {need / 1e9:.2f} GB.", flush=True)
        self.added = 0
        self.data = {name: np.zeros((self.capacity, *size), kind) for name, (size, kind) in kinds.items()}

    def add(self, **step: torch.Tensor) -> None:
        """Adds a step of every environment: tensors (N, E, ...), the team's (E,). Overwrites the oldest."""
        where = (self.added + np.arange(len(step["rewards"]))) % self.capacity
        for name, x in step.items():
            x = x.transpose(0, 1) if x.dim() > 1 else x
            self.data[name][where] = x.cpu().numpy()
        self.added += len(where)

    def sample(self, size: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Steps drawn uniformly with replacement, as `critic_loss` wants them."""
        which = rng.integers(min(self.added, self.capacity), size=size)
        batch = {name: torch.from_numpy(x[which]) for name, x in self.data.items()}
        return {name: x.transpose(0, 1).contiguous() if x.dim() > 1 else x for name, x in batch.items()}

    def state_dict(self) -> dict:
        """Everything, as tensors."""
        data = {name: torch.from_numpy(x[: self.added]) for name, x in self.data.items()}
        return {"added": self.added, "data": data}

    def load_state_dict(self, state: dict) -> None:
        """Goes on from a `state_dict`."""
        self.added = int(state["added"])
        for name, array in self.data.items():
            copy_rows(array[: self.added], state["data"][name])


def critic_loss(agents, target, batch, gamma: float):
    """Squared error to y = r + gamma (1 - terminated) Q_target(o', pi_target(o')), and its parts, (n,) each.

    batch, of the n agents of a group: obs, next_obs (n, rows, obs_dim), actions (n, rows, D), and the team's
    rewards, terminations (rows,). The loss is summed over agents (whose parameters are disjoint).
    """
    with torch.no_grad():
        following = target.value(batch["next_obs"], target.act(batch["next_obs"]))
        targets = batch["rewards"] + gamma * ~batch["terminations"] * following
    q = agents.value(batch["obs"], batch["actions"])
    loss = (q - targets).square().mean(1)
    return loss.sum(), {"losses/value_loss": loss.detach(), "losses/q_values": q.mean(1).detach()}


def actor_loss(agents, batch):
    """-Q_i(o_i, pi_i(o_i)), the mean over the batch, summed over agents; and its parts, (n,) each."""
    loss = -agents.value(batch["obs"], agents.act(batch["obs"])).mean(1)
    return loss.sum(), {"losses/policy_loss": loss.detach()}


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, iddpg, ippo, iql ---
def clip_grad_norm_per_agent(network: nn.Module, max_norm: float) -> torch.Tensor:
    """Scales each agent's gradient to norm <= max_norm, in place; returns the norms before, (N,)."""
    grads = [p.grad for p in network.parameters()]
    norm = torch.stack([g.flatten(1).norm(dim=1) for g in grads]).norm(dim=0)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0).view(-1, 1, 1)
    for grad in grads:
        grad.mul_(scale)
    return norm


def update(agents, target, optimizers, batch, args) -> dict[str, torch.Tensor]:
    """A gradient step of all critics, then of all actors, then of the targets, in place.

    Returns what is logged of it, (n,) each.
    """
    actor_optimizer, critic_optimizer = optimizers
    critic_optimizer.zero_grad()
    loss, stats = critic_loss(agents, target, batch, args.gamma)
    loss.backward()
    clip_grad_norm_per_agent(agents.critic, args.max_grad_norm)
    critic_optimizer.step()

    actor_optimizer.zero_grad()
    loss, parts = actor_loss(agents, batch)
    loss.backward(inputs=list(agents.actor.parameters()))  # the critics only pass it on
    grad_norm = clip_grad_norm_per_agent(agents.actor, args.max_grad_norm)
    actor_optimizer.step()

    with torch.no_grad():
        for ours, theirs in zip(agents.parameters(), target.parameters(), strict=True):
            theirs.lerp_(ours, args.tau)
    return stats | parts | {"losses/grad_norm": grad_norm}


class Learner:
    """Runs `update` for groups of agents on threads; on a GPU for all agents at once, as a CUDA graph.

    Agents share nothing, so groups train in parallel without synchronisation. Groups depend on the number of
    agents and the device, never on the number of threads: results are the same on any.
    """

    def __init__(self, agents: Agents, args: Args):
        cuda = args.device == "cuda"
        self.target = copy.deepcopy(agents)
        num_agents = len(agents.act_mask)
        count = 1 if cuda else min(8, math.ceil(num_agents / GROUP_AGENTS))
        bounds = np.linspace(0, num_agents, count + 1).astype(int).tolist()
        self.groups = [slice(first, last) for first, last in itertools.pairwise(bounds)]
        self.optimizers = []  # of actors and critics, for each group
        self.updates = []
        for group in self.groups:
            members = agents.group(group)
            settings = dict(lr=args.learning_rate, fused=True, capturable=cuda)
            networks = (members.actor, members.critic)
            optimizers = [torch.optim.Adam(network.parameters(), **settings) for network in networks]
            step = functools.partial(update, members, self.target.group(group), optimizers, args=args)
            self.optimizers += optimizers
            self.updates.append(CudaGraph(step) if cuda else step)
        workers = min(count, thread_count(args))
        self.pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))

    def learn(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Updates every group with its part of a batch and the team's; returns what is logged, (N,) each."""
        team = ("rewards", "terminations")
        own = {name: x for name, x in batch.items() if name not in team}
        parts = [batch | {name: x[group] for name, x in own.items()} for group in self.groups]
        stats = list(self.pool.map(operator.call, self.updates, parts))
        return {name: torch.cat([part[name] for part in stats]) for name in stats[0]}


def greedy(agents: Agents, obs: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
    """Actions without noise, (N, E, D); action_mask says the same as act_mask."""
    return agents.to_bounds(agents.act(obs))


def explore(actions, act_mask, args: Args, global_step: int, rng: np.random.Generator) -> torch.Tensor:
    """Actions (N, E, D) with noise, or uniformly random during warm-up; in [-1, 1], 0 where padded.

    Both are drawn at every step, so that no draw depends on another.
    """
    N, E, D = actions.shape
    noise = torch.from_numpy(rng.normal(size=(E, N, D))).to(actions.device).transpose(0, 1)
    uniform = torch.from_numpy(rng.uniform(-1, 1, size=(E, N, D))).to(actions.device).transpose(0, 1)
    if global_step < args.warmup_steps:
        explored = uniform
    else:
        explored = actions + args.exploration_noise * noise
    return explored.clamp(-1, 1).float() * act_mask


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


# --- same in: iddpg, iql ---
def new_window(start: int) -> dict:
    """What the next row of metrics.csv averages over: all since step `start`."""
    return {"start": start, "episodes": [], "updates": 0, "sums": {}}


# --- same in: iddpg, iql ---
def add_update(window: dict, stats: dict[str, torch.Tensor]) -> None:
    """Adds to a window what an update returned."""
    window["updates"] += 1
    for name, x in stats.items():
        total = window["sums"].get(name, 0.0)
        window["sums"][name] = torch.as_tensor(total, device=x.device) + x


def train(args: Args, envs, eval_envs, agents: Agents, state: dict) -> tuple[Path, dict]:
    """Alternates steps with their updates. Returns the run directory and the state_dict that scored best."""
    learner = Learner(agents, args)
    longest = max(args.total_timesteps, state.get("global_step", 0))
    replay = Replay(args, envs, longest + args.num_envs)
    rng = np.random.default_rng([args.seed, 2])  # exploration and replay

    # --- begin or resume ---
    with restoring(args, state):
        global_step = state.get("global_step", 0)
        window = new_window(global_step)
        batch: dict[str, torch.Tensor] = {}
        if state:
            agents.load_state_dict(state["agents"])
            learner.target.load_state_dict(state["target"])
            for optimizer, saved in zip(learner.optimizers, state["optimizers"], strict=True):
                restore_optimizer(optimizer, saved)
            rng.bit_generator.state = json.loads(state["random"])
            replay.load_state_dict(state["replay"])
            window = state["window"]
        next_obs, infos = envs.set_state(state["envs"]) if state else envs.reset()
        run = Run(args, envs, state)
    clock = Clock()
    timed_from = global_step

    def snapshot() -> dict:
        """What a resumed run needs to go on as if it had never stopped."""
        return {
            "agents": agents.state_dict(),
            "target": learner.target.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in learner.optimizers],
            "random": json.dumps(rng.bit_generator.state),
            "replay": replay.state_dict(),
            "window": window,
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

        # --- act ---
        clock.last = time.perf_counter()  # evaluations and checkpoints are not timed
        obs = next_obs
        with torch.no_grad():
            actions = agents.act(obs)
        actions = explore(actions, agents.act_mask, args, global_step, rng)
        clock.lap("act")
        next_obs, rewards, terminated, truncated, infos = envs.step(agents.to_bounds(actions))
        clock.lap("env")

        # --- store ---
        after, alive = next_obs, infos["alive"]
        if "final_obs" in infos:
            over = terminated | truncated
            after = torch.where(over[:, None], infos["final_obs"], next_obs)
            alive = alive & (infos["final_alive"] | ~truncated)
        if not alive.all():
            raise environments.BrokenEnvironment(f"Agents of {args.env_id} die; use ippo.py for it.")
        replay.add(obs=obs, next_obs=after, actions=actions, rewards=rewards, terminations=terminated)
        window["episodes"] += infos["episodes"]
        clock.lap("act")

        # --- update ---
        before = int(global_step * args.updates_per_step)
        global_step += args.num_envs
        if global_step > args.warmup_steps:
            for _ in range(int(global_step * args.updates_per_step) - before):
                batch = replay.sample(args.batch_size, rng)
                add_update(window, learner.learn(batch))
        if batch:
            run.check_finite(global_step, {}, agents, batch)
        clock.lap("update")

        # --- log ---
        if global_step >= window["start"] + LOG_EVERY and window["updates"]:
            row = {name: float(x.mean()) / window["updates"] for name, x in window["sums"].items()}
            run.check_finite(global_step, row, agents, batch)
            row |= mean_over_episodes(window["episodes"], "charts/")
            run.log(global_step, row | clock.row(global_step - timed_from))
            window = new_window(global_step)
            clock = Clock()
            timed_from = global_step


def main() -> None:
    args, state = parse_args()
    torch.set_num_threads(1)  # per operator: --torch-threads are for groups of agents in parallel
    torch.set_float32_matmul_precision("highest")  # no TF32, even if TORCH_ALLOW_TF32_CUBLAS_OVERRIDE is set
    torch.manual_seed(args.seed)
    options = {"threads": thread_count(args)} if args.env_id.startswith("mamujoco/") else {}
    options |= environments.parse_options(args.env_options)
    make = functools.partial(environments.make, args.env_id, seed=args.seed, device=args.device, **options)
    envs = make(args.num_envs)
    if envs.discrete:
        sys.exit(f"{SCRIPT}: {args.env_id} has discrete actions; IDDPG needs continuous ones.")
    eval_envs = make(EVAL_EPISODES if envs.cheap_copies else args.num_envs)
    video_envs = make(1, render_mode="rgb_array") if args.capture_video else None
    if video_envs:
        video_envs.reset()
        video_envs.render()  # where nothing can be drawn, this fails now and not after the training

    agents = Agents(envs.obs_dim, envs.agent_act_dims, envs.single_action_space)
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
        evaluate(agents, video_envs, 1, [args.seed, 2], frames := [])
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
