"""IQL, independent recurrent double Q-learning, on every family with discrete actions: a baseline of DPO.

Paper: Multi-Agent Reinforcement Learning: Independent vs. Cooperative Agents (Tan, 1993); networks, targets
and schedule as in PyMARL (arXiv 1902.04043), but agents share no parameters.
Details: docs/iql.md
Reproduce: python iql.py --env-id mpe/simple_spread --eval-every 32000  (Figure 2 of docs/verdicts.md)

Tensors are (num_agents N, num_envs E, ...) or, of whole episodes, (N, rows, ...), see td_loss: agents come
first, except in the replay buffer. They share nothing; stacking their networks only batches the arithmetic.
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
HIDDEN = 128  # units of every layer
GROUP_AGENTS = 4  # rough number of agents per group, in at most 8 groups; a thread trains one group at a time
LOG_EVERY = 2048  # least environment steps of a row of metrics.csv; none before an update and an episode
# Columns of metrics.csv; a row leaves empty what it does not report.
COLUMNS = """
global_step eval/episodic_return eval/episodic_length eval/win_rate
charts/episodic_return charts/episodic_length charts/win_rate charts/SPS time/env time/act time/update
charts/epsilon charts/episodes losses/td_loss losses/q_values losses/td_targets losses/grad_norm
""".split()  # noqa: SIM905


@dataclass
class Args:
    env_id: str = "smac/2s3z"  # family/name: smac/MAP, mpe/TASK, matrix/GAME; or pettingzoo:MODULE
    env_options: tuple[str, ...] = ()  # its options, e.g. num_agents=3; docs/envs.md lists them
    seed: int = 1  # seed of environments, parameters, exploration and replay
    total_timesteps: int = 2_000_000  # environment steps: one moves all agents of one environment
    num_envs: int = 8  # environments stepped together

    learning_rate: float = 5e-4  # Adam's learning rate
    gamma: float = 0.99  # discount factor
    buffer_episodes: int = 5000  # episodes in the replay buffer
    memory_share: float = 0.5  # share of the free memory that the replay buffer may take
    batch_episodes: int = 32  # episodes in a batch
    updates_per_episode: int = 1  # gradient steps after every episode collected
    target_every: int = 200  # episodes between copies of the networks to the target networks
    epsilon_start: float = 1.0  # probability of a random action at the start
    epsilon_end: float = 0.05  # probability of a random action from step epsilon_steps on
    epsilon_steps: int = 50_000  # environment steps over which epsilon falls linearly
    max_grad_norm: float = 10.0  # gradient clip, per agent

    eval_every: int = 20_480  # environment steps between evaluations, 32 greedy episodes each
    checkpoint_every: int = 102_400  # environment steps between checkpoints, which hold the replay buffer
    runs_dir: str = "runs"  # where run directories are made
    resume: str = ""  # run directory (or .pt file) to continue, with the arguments it began with
    eval_only: bool = False  # with --resume: only the final evaluation, of its best parameters
    capture_video: bool = False  # record greedy episodes as video.mp4 in the run directory, at the end
    device: Literal["cpu", "cuda"] = "cpu"  # cuda: the first GPU that CUDA_VISIBLE_DEVICES names
    torch_threads: int = 0  # CPU threads of engine and learner, 0: one per core; results are the same
    compile: bool = False  # torch.compile the GRU cell, for GPUs; on a CPU, which needs g++, it gains nothing

    def __post_init__(self):
        check_ranges(self)
        if self.batch_episodes > self.buffer_episodes:
            limit = f"--buffer-episodes {self.buffer_episodes}"
            raise ValueError(f"--batch-episodes must be at most {limit}, got {self.batch_episodes}.")
        if self.epsilon_end > self.epsilon_start:
            limit = f"--epsilon-start {self.epsilon_start}"
            raise ValueError(f"--epsilon-end must be at most {limit}, got {self.epsilon_end}.")


RANGES = {
    "total_timesteps buffer_episodes batch_episodes target_every": (1, 10**12),
    "epsilon_steps eval_every checkpoint_every": (1, 10**12),
    "num_envs": (1, 2**14),
    "updates_per_episode": (1, 10**5),
    "torch_threads": (0, 1024),
    "seed": (0, 2**63 - 1),
    "max_grad_norm": (1e-12, 1e12),
    "learning_rate": (1e-12, 1),
    "gamma epsilon_start epsilon_end": (0, 1),
    "memory_share": (1e-6, 1),
}
PRESETS = {
    "smac/8m": dict(total_timesteps=1_000_000),
    "matrix/stochastic": dict(total_timesteps=1_000_000),
}


def gru_cell(
    gates: torch.Tensor, new_x: torch.Tensor, new_h: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    """The next hidden state (N, B, HIDDEN).

    gates (N, B, 2 HIDDEN): for the reset and keep gates, the contributions of input and hidden state, summed.
    new_x, new_h (N, B, HIDDEN): those to the new state, separate, as reset multiplies the hidden state's.
    """
    reset, keep = gates.sigmoid().chunk(2, dim=-1)
    return torch.lerp(torch.addcmul(new_x, reset, new_h).tanh_(), hidden, keep)


class QNetworks(nn.Module):
    """A recurrent Q-network per agent, none shared: Linear, ReLU, GRU cell, Linear; stacked (N, in, out)."""

    INPUT, INPUT_GATES, HIDDEN_GATES, OUTPUT = range(4)

    def __init__(self, num_agents: int, in_dim: int, num_actions: int):
        super().__init__()
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        dims = [(in_dim, HIDDEN), (HIDDEN, 3 * HIDDEN), (HIDDEN, 3 * HIDDEN), (HIDDEN, num_actions)]
        for fan_in, fan_out in dims:
            bound = fan_in**-0.5  # as PyTorch initialises Linear and GRUCell
            weight = torch.empty(num_agents, fan_in, fan_out).uniform_(-bound, bound)
            bias = torch.empty(num_agents, 1, fan_out).uniform_(-bound, bound)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))

    def layer(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """(N, rows, in) -> (N, rows, out)."""
        return torch.baddbmm(self.biases[index], x, self.weights[index])

    def group(self, part: slice) -> "QNetworks":
        """Some of the agents, as a module of views: training it trains these agents."""
        members = copy.deepcopy(self)
        for mine, whole in zip(members.parameters(), self.parameters(), strict=True):
            mine.data = whole.data[part]
        return members

    def empty_carry(self, num_envs: int) -> tuple[torch.Tensor, torch.Tensor]:
        """At the start of episodes: no last action (N, E, A), and a hidden state (N, E, HIDDEN) of zeros."""
        bias = self.biases[self.OUTPUT]
        num_agents, _, num_actions = bias.shape
        return bias.new_zeros(num_agents, num_envs, num_actions), bias.new_zeros(num_agents, num_envs, HIDDEN)

    def forward(
        self, x: torch.Tensor, hidden: torch.Tensor, cell=gru_cell, active: list[int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Q of all actions after each step of B sequences, (N, rows, A), and the last hidden states.

        x (N, rows, in): the rows of the first step, then those of the second, and so on; active: how many of
        them each step has, by default one step with all. Sequences that end first come last, so that each
        step takes the first rows of hidden, (N, B, HIDDEN).
        """
        x = self.layer(self.INPUT, x).relu_()
        parts = (2 * HIDDEN, HIDDEN)  # reset and keep; the new state
        w_x, w_x_new = self.weights[self.INPUT_GATES].split(parts, dim=-1)
        b_x, b_x_new = self.biases[self.INPUT_GATES].split(parts, dim=-1)
        w_h, w_h_new = self.weights[self.HIDDEN_GATES].split(parts, dim=-1)
        b_h, b_h_new = self.biases[self.HIDDEN_GATES].split(parts, dim=-1)
        gates = torch.baddbmm(b_x + b_h, x, w_x)
        new = torch.baddbmm(b_x_new, x, w_x_new)
        active = active or [x.shape[1]]
        states = []
        for gates_x, new_x in zip(gates.split(active, dim=1), new.split(active, dim=1), strict=True):
            hidden = hidden[:, : gates_x.shape[1]]
            new_h = torch.baddbmm(b_h_new, hidden, w_h_new)
            hidden = cell(torch.baddbmm(gates_x, hidden, w_h), new_x, new_h, hidden)
            states.append(hidden)
        return self.layer(self.OUTPUT, torch.cat(states, dim=1)), hidden


# --- same in: iddpg, iql ---
def copy_rows(array: np.ndarray, saved: torch.Tensor) -> None:
    """Copies a part of a saved replay buffer into array; ValueError if its shape or type differs."""
    if (saved.shape, saved.numpy().dtype) != (array.shape, array.dtype):
        raise ValueError(f"{saved.dtype} {tuple(saved.shape)} where {array.dtype} {array.shape} was")
    array[:] = saved.numpy()


class Replay:
    """The latest finished episodes, and those under way, one per environment: (episodes, steps + 1, ...).

    Step t holds what was seen, available and done at t, the step after the last what the episode ended with;
    zeros follow. An agent's observations are kept in half precision until one of them is too large for it.
    """

    HALF = 2048  # half precision is exact for integers up to this; its largest number is 65,504

    def __init__(self, args: Args, envs):
        shape = (envs.episode_limit + 1, envs.num_agents)
        kinds = {
            "obs": ((*shape, envs.obs_dim), np.float16),
            "action_mask": ((*shape, envs.num_actions), np.bool_),
            "actions": (shape, np.uint8 if envs.num_actions < 256 else np.int32),
            "rewards": (shape[:1], np.float32),
            "terminations": (shape[:1], np.bool_),
            "lengths": ((), np.int32),
        }
        bounds = np.abs([envs.single_observation_space.low, envs.single_observation_space.high])
        self.wide = (np.isfinite(bounds) & (bounds > self.HALF)).any((0, 2))  # (N,): in single precision
        if self.wide.any():
            kinds["obs"] = (kinds["obs"][0], np.float32)
        episode = sum(int(np.prod(size)) * np.dtype(kind).itemsize for size, kind in kinds.values())
        self.memory_share = args.memory_share
        self.announce((args.buffer_episodes + envs.num_envs) * episode)
        self.capacity = args.buffer_episodes
        self.added = 0
        self.ended = {name: np.zeros((self.capacity, *size), kind) for name, (size, kind) in kinds.items()}
        self.begun = {name: np.zeros((envs.num_envs, *size), kind) for name, (size, kind) in kinds.items()}

    def announce(self, need: int) -> None:
        """Prints how much memory will be used; MemoryError if that is more than --memory-share allows."""
        advice = "lower --buffer-episodes or raise --memory-share"
        environments.check_memory(need, "The replay buffer needs", advice, self.memory_share)
        print(f"Replay buffer: {need / 1e9:.2f} GB.", flush=True)

    def add(self, **step: torch.Tensor) -> None:
        """Takes a step of every environment: tensors (N, E, ...) of the agents, (E,) of the team."""
        lengths = self.begun["lengths"]
        for name, x in step.items():
            x = (x.transpose(0, 1) if x.dim() > 1 else x).cpu().numpy()
            x = self.as_kept(x) if name == "obs" else x
            self.begun[name][np.arange(len(lengths)), lengths] = x
        lengths += 1

    def end(self, env: int, final_obs: torch.Tensor, final_action_mask: torch.Tensor) -> None:
        """Ends an episode with final_obs (N, obs_dim) and its available actions (N, A); a new one begins."""
        last = self.begun["lengths"][env]
        self.begun["obs"][env, last] = self.as_kept(final_obs.cpu().numpy())
        self.begun["action_mask"][env, last] = final_action_mask.cpu().numpy()
        for name, array in self.ended.items():  # in the place of the oldest
            array[self.added % self.capacity] = self.begun[name][env]
            self.begun[name][env] = 0
        self.added += 1

    def as_kept(self, obs: np.ndarray) -> np.ndarray:
        """Observations (..., N, obs_dim) as they are stored: in half precision for agents that never had a
        large one, even where others need single precision."""
        large = np.abs(obs).max(-1) > self.HALF
        self.wide |= large.reshape(-1, len(self.wide)).any(0)
        if self.wide.any():
            self.widen()
        with np.errstate(over="ignore"):  # of agents that are kept in single precision
            return np.where(self.wide[:, None], obs, obs.astype(np.float16))

    def widen(self) -> None:
        """Makes room for single precision."""
        if self.ended["obs"].dtype == np.float16:
            self.announce(2 * (self.ended["obs"].nbytes + self.begun["obs"].nbytes))
            for episodes in (self.ended, self.begun):
                episodes["obs"] = episodes["obs"].astype(np.float32)

    def sample(self, episodes: int, rng: np.random.Generator, whole=False) -> dict:
        """Distinct episodes, drawn uniformly, in the form that `td_loss` takes.

        whole: all have rows up to the step limit, so that all batches have one shape.
        """
        which = rng.choice(min(self.added, self.capacity), episodes, replace=False)
        lengths = self.ended["lengths"][which]
        # A terminated episode's final observation is never bootstrapped from: it has no row.
        seen = lengths + ~self.ended["terminations"][which, lengths - 1]
        order = np.argsort(-seen, kind="stable")
        which, lengths, seen = which[order], lengths[order], seen[order]
        if whole:
            seen = np.full(episodes, self.ended["rewards"].shape[1])
        # Row r of the batch is step[r] of episode which[place[r]]; all first steps come first. Episodes
        # with 3, 2 and 1 rows give step 0 0 0 1 1 2, place 0 1 2 0 1 0, active 3 2 1, following 3 4 . 5 . .
        step, place = (seen > np.arange(seen[0])[:, None]).nonzero()
        active = np.bincount(step)
        rows = {name: x[which[place], step] for name, x in self.ended.items() if name != "lengths"}
        rows = {name: torch.from_numpy(x.swapaxes(0, 1) if x.ndim > 1 else x) for name, x in rows.items()}
        last_actions = self.ended["actions"][which[place[episodes:]], step[episodes:] - 1].astype(np.int64)
        obs_dim = rows["obs"].shape[-1]
        inputs = torch.zeros(*rows["action_mask"].shape[:2], obs_dim + rows["action_mask"].shape[-1])
        inputs[..., :obs_dim] = rows.pop("obs")
        inputs[:, episodes:].scatter_(-1, obs_dim + torch.from_numpy(last_actions.T).unsqueeze(-1), 1.0)
        batch = {name: x.contiguous() for name, x in rows.items()} | {"inputs": inputs}
        batch["actions"] = batch["actions"].long()
        batch["filled"] = torch.from_numpy(step < lengths[place]).float()
        batch["lengths"] = torch.from_numpy(lengths)
        batch["following"] = torch.from_numpy(np.arange(len(step)) + active[step]).clamp(max=len(step) - 1)
        return batch if whole else batch | {"active": active.tolist()}

    def state_dict(self) -> dict:
        """Everything, as tensors."""
        ended = {name: torch.from_numpy(x[: self.added]) for name, x in self.ended.items()}
        begun = {name: torch.from_numpy(x) for name, x in self.begun.items()}
        return {"added": self.added, "wide": torch.from_numpy(self.wide), "ended": ended, "begun": begun}

    def load_state_dict(self, state: dict, begun: bool) -> None:
        """Restores a `state_dict`; the episodes under way only if `begun`."""
        self.added = int(state["added"])
        copy_rows(self.wide, state["wide"])
        if self.wide.any():
            self.widen()
        for name, array in self.ended.items():
            copy_rows(array[: self.added], state["ended"][name])
            if begun:
                copy_rows(self.begun[name], state["begun"][name])


def td_loss(agents, target, batch, gamma: float, cell=gru_cell):
    """Double Q-learning on B whole episodes: loss, summed over agents (of disjoint parameters); parts (n,).

    batch: the rows of the first step, then those of the second, and so on; the longest episode first at every
    step. inputs (n, rows, obs_dim + A): observation and last action, one-hot; action_mask (n, rows, A) bool;
    actions (n, rows) int64; the team's rewards, terminations, filled, following (rows,). filled: 1 for steps
    taken, 0 for padding and for the final observation of an episode cut off by a time limit; following: the
    row of the next step, arbitrary if there is none; lengths (B,): steps of each episode. active: rows of
    each step, if not always B.
    """
    episodes = len(batch["lengths"])
    hidden = batch["inputs"].new_zeros(len(batch["inputs"]), episodes, HIDDEN)
    active = batch.get("active") or [episodes] * (len(batch["filled"]) // episodes)
    q, _ = agents(batch["inputs"], hidden, cell, active)
    chosen = q.gather(-1, batch["actions"].unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        # y = r + gamma (1 - terminated) Q_target(o', argmax Q(o', available a))
        q_target, _ = target(batch["inputs"], hidden, cell, active)
        best = q.masked_fill(~batch["action_mask"], -torch.inf).argmax(-1, keepdim=True)
        following = q_target.gather(-1, best).squeeze(-1)[:, batch["following"]]
        targets = batch["rewards"] + gamma * ~batch["terminations"] * following
    weight = batch["filled"] / batch["lengths"].sum()
    loss = (weight * (chosen - targets).square()).sum(1)
    parts = {"losses/td_loss": loss.detach()}
    parts["losses/q_values"] = (weight * chosen.detach()).sum(1)
    parts["losses/td_targets"] = (weight * targets).sum(1)
    return loss.sum(), parts


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, iddpg, ippo, iql ---
def clip_grad_norm_per_agent(network: nn.Module, max_norm: float) -> torch.Tensor:
    """Scales each agent's gradient to norm <= max_norm, in place; returns the norms before, (N,)."""
    grads = [p.grad for p in network.parameters()]
    norm = torch.stack([g.flatten(1).norm(dim=1) for g in grads]).norm(dim=0)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0).view(-1, 1, 1)
    for grad in grads:
        grad.mul_(scale)
    return norm


def update(agents, target, optimizer, batch, args, cell=gru_cell) -> dict[str, torch.Tensor]:
    """A gradient step of all agents, in place; returns what is logged of it, (n,) each."""
    optimizer.zero_grad()
    loss, stats = td_loss(agents, target, batch, args.gamma, cell)
    loss.backward()
    stats["losses/grad_norm"] = clip_grad_norm_per_agent(agents, args.max_grad_norm)
    optimizer.step()
    return stats


class Learner:
    """Runs `update` for groups of agents on threads; on a GPU for all agents at once, as a CUDA graph.

    Agents share nothing, so groups train in parallel without synchronisation. Groups depend on the number of
    agents and the device, never on the number of threads: results are the same on any.
    """

    def __init__(self, agents: QNetworks, args: Args):
        cuda = args.device == "cuda"
        cell = gru_cell
        if args.compile:
            cell = torch.compile(gru_cell, options={} if cuda else {"cpp_wrapper": True})
        self.target = copy.deepcopy(agents)
        num_agents = len(agents.biases[0])
        count = 1 if cuda else min(8, math.ceil(num_agents / GROUP_AGENTS))
        bounds = np.linspace(0, num_agents, count + 1).astype(int).tolist()
        self.groups = [slice(first, last) for first, last in itertools.pairwise(bounds)]
        self.optimizers = []
        self.updates = []
        for group in self.groups:
            members = agents.group(group)
            settings = dict(lr=args.learning_rate, fused=True, capturable=cuda)
            optimizer = torch.optim.Adam(members.parameters(), **settings)
            step = functools.partial(
                update, members, self.target.group(group), optimizer, args=args, cell=cell
            )
            self.optimizers.append(optimizer)
            self.updates.append(CudaGraph(step) if cuda else step)
        workers = min(count, thread_count(args))
        self.pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))

    def learn(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Updates every group with its part of a batch and the team's; returns what is logged, (N,) each."""
        team = ("rewards", "terminations", "filled", "lengths", "following", "active")
        own = {name: x for name, x in batch.items() if name not in team}
        parts = [batch | {name: x[group] for name, x in own.items()} for group in self.groups]
        stats = list(self.pool.map(operator.call, self.updates, parts))
        return {name: torch.cat([part[name] for part in stats]) for name in stats[0]}


def greedy(agents, obs, action_mask, carry) -> tuple[torch.Tensor, torch.Tensor]:
    """The best available actions, (N, E), of a step, and the hidden state after it; carry: of `remember`."""
    last_action, hidden = carry
    q, hidden = agents(torch.cat([obs, last_action], dim=-1), hidden)
    return q.masked_fill(~action_mask, -torch.inf).argmax(-1), hidden


def remember(actions, hidden, over: torch.Tensor, num_actions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a step carries to the next: its action, one-hot, and the hidden state; zeros where over (E,)."""
    last_action = F.one_hot(actions, num_actions).float()
    return last_action.masked_fill(over[:, None], 0.0), hidden.masked_fill(over[:, None], 0.0)


def explore(actions, action_mask, epsilon: float, rng: np.random.Generator) -> torch.Tensor:
    """Actions (N, E), each replaced by a random available one with probability epsilon.

    Draws have a fixed shape, so that no agent's exploration depends on another's actions.
    """
    N, E, A = action_mask.shape
    chance = torch.from_numpy(rng.random((E, N))).to(actions.device).T
    priority = torch.from_numpy(rng.random((E, N, A))).to(actions.device).transpose(0, 1)
    return torch.where(chance < epsilon, (priority * action_mask).argmax(-1), actions)


@torch.no_grad()
def evaluate(agents, envs, num_episodes: int, seed: list[int], frames: list | None = None):
    """Means over greedy episodes, equally many per environment: those that end first are shorter than most.

    seed: [args.seed, 0, global_step] during training, [args.seed, 1] at its end, [args.seed, 2] for a video.
    """
    obs, infos = envs.reset(seed=int(np.random.SeedSequence(seed).generate_state(1)[0]))
    per_env = math.ceil(num_episodes / envs.num_envs)
    episodes = [[] for _ in range(envs.num_envs)]
    carry = agents.empty_carry(envs.num_envs)
    steps = 0
    while (ended := min(len(own) for own in episodes)) < per_env:
        if steps >= LONGEST_EPISODE * (ended + 1):
            what = f"an episode did not end within {LONGEST_EPISODE:,} steps; give the environment a limit"
            raise environments.BrokenEnvironment(f"{what} (--env-options episode_limit=STEPS).")
        steps += 1
        if frames is not None:
            frames.append(envs.render())
        actions, hidden = greedy(agents, obs, infos["action_mask"], carry)
        obs, _, terminated, truncated, infos = envs.step(actions)
        carry = remember(actions, hidden, terminated | truncated, envs.num_actions)
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


def train(args: Args, envs, eval_envs, agents: QNetworks, state: dict) -> tuple[Path, dict]:
    """Alternates steps with updates for the episodes that ended.

    Returns the run directory and the state_dict that scored best.
    """
    learner = Learner(agents, args)
    replay = Replay(args, envs)
    rng = np.random.default_rng([args.seed, 2])  # exploration and replay

    # --- begin or resume ---
    with restoring(args, state):
        global_step = state.get("global_step", 0)
        window = new_window(global_step)
        batch: dict[str, torch.Tensor] = {}
        carry = agents.empty_carry(args.num_envs)
        if state:
            agents.load_state_dict(state["agents"])
            learner.target.load_state_dict(state["target"])
            for optimizer, saved in zip(learner.optimizers, state["optimizers"], strict=True):
                restore_optimizer(optimizer, saved)
            rng.bit_generator.state = json.loads(state["random"])
            replay.load_state_dict(state["replay"], begun=envs.restorable)
            window = state["window"]
            if envs.restorable:  # else new episodes have begun
                for own, saved in zip(carry, state["carry"], strict=True):
                    own.copy_(saved.view_as(own))
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
            "carry": carry,
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
        action_mask = infos["action_mask"]
        share = min(global_step / args.epsilon_steps, 1.0)
        epsilon = args.epsilon_start + share * (args.epsilon_end - args.epsilon_start)
        with torch.no_grad():
            actions, hidden = greedy(agents, obs, action_mask, carry)
        actions = explore(actions, action_mask, epsilon, rng)
        clock.lap("act")
        next_obs, rewards, terminated, truncated, infos = envs.step(actions)
        clock.lap("env")
        global_step += args.num_envs

        # --- store ---
        over = terminated | truncated
        carry = remember(actions, hidden, over, envs.num_actions)
        replay.add(
            obs=obs, action_mask=action_mask, actions=actions, rewards=rewards, terminations=terminated
        )
        window["episodes"] += infos["episodes"]
        clock.lap("act")

        # --- update ---
        for env in over.nonzero().flatten().tolist():
            replay.end(env, infos["final_obs"][:, env], infos["final_action_mask"][:, env])
            if replay.added >= args.batch_episodes:
                for _ in range(args.updates_per_episode):
                    batch = replay.sample(args.batch_episodes, rng, whole=args.device == "cuda")
                    add_update(window, learner.learn(batch))
            if replay.added % args.target_every == 0:
                learner.target.load_state_dict(agents.state_dict())
        if over.any():
            run.check_finite(global_step, {}, agents, batch)
        clock.lap("update")

        # --- log ---
        if global_step >= window["start"] + LOG_EVERY and window["episodes"] and window["updates"]:
            row = {name: float(x.mean()) / window["updates"] for name, x in window["sums"].items()}
            run.check_finite(global_step, row, agents, batch)
            row |= {"charts/epsilon": epsilon, "charts/episodes": replay.added}
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
    options = {"threads": thread_count(args)} if args.env_id.startswith("smac/") else {}
    options |= environments.parse_options(args.env_options)
    if options.get("exclude_dead") is False:
        sys.exit(f"{SCRIPT}: exclude_dead=false is for DPO and IPPO; here the dead are in the loss: drop it.")
    make = functools.partial(environments.make, args.env_id, seed=args.seed, device=args.device, **options)
    envs = make(args.num_envs)
    if not envs.discrete:
        sys.exit(f"{SCRIPT}: {args.env_id} has continuous actions; Q-learning needs discrete ones.")
    if envs.episode_limit is None:  # each slot of the replay buffer has room for the longest episode
        sys.exit(
            f"{SCRIPT}: {args.env_id} has episodes of any length; add --env-options episode_limit=STEPS."
        )
    eval_envs = make(EVAL_EPISODES if envs.cheap_copies else args.num_envs)
    video_envs = make(1, render_mode="rgb_array") if args.capture_video else None
    if video_envs:
        video_envs.reset()
        video_envs.render()  # where nothing can be drawn, this fails now and not after the training

    agents = QNetworks(envs.num_agents, envs.obs_dim + envs.num_actions, envs.num_actions)
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
