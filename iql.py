"""IQL, independent recurrent double Q-learning, on every family with discrete actions: a baseline of DPO.

Paper: Multi-Agent Reinforcement Learning: Independent vs. Cooperative Agents (Tan, 1993); networks, targets
and schedule as in PyMARL (arXiv 1902.04043), but agents share no parameters.
Details: docs/iql.md
Run: python iql.py --env-id smac/8m  (results: benchmark/results/baselines/README.md)

Axis order: the environment's arrays are (num_envs E, num_agents N, ...), the learner's tensors
(N, episodes B, steps T, ...). Agents share nothing; stacking their networks only batches the arithmetic.
"""

import copy
import csv
import functools
import io
import json
import os
import shutil
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

from envs import describe, env_name
from envs import make as make_envs
from envs.matrix import free_bytes

SCRIPT = Path(__file__).stem
EXIT_REQUEUE = 75  # EX_TEMPFAIL: a signal stopped the run, its checkpoint is on disk, --resume goes on
EVAL_EPISODES = 32  # per evaluation; ten times as many for the absolute metric at the end
HIDDEN = 128
LOG_EVERY = 2048  # environment steps that a row of metrics.csv averages over, at least
STATS = ["losses/td_loss", "losses/q_values", "losses/td_targets", "losses/grad_norm"]
COLUMNS = ["global_step", "eval/episodic_return", "eval/win_rate", "charts/episodic_return"]
COLUMNS += ["charts/episodic_length", "charts/win_rate", "charts/SPS", "time/env", "time/act", "time/update"]
COLUMNS += ["charts/epsilon", "charts/episodes", *STATS]


@dataclass
class Args:
    env_id: str = "smac/2s3z"
    """family/name: smac/MAP, mpe/TASK, matrix/stochastic"""
    env_options: tuple[str, ...] = ()
    """options of the environment, e.g. num_agents=3 num_states=30; docs/envs.md lists them"""
    seed: int = 1
    """seed of environments, parameters, exploration and replay"""
    total_timesteps: int = 2_000_000
    """environment steps (one moves all agents of one environment; never agent-steps)"""
    num_envs: int = 8
    """environments stepped together"""
    learning_rate: float = 5e-4
    """Adam's learning rate"""
    gamma: float = 0.99
    """discount factor"""
    buffer_episodes: int = 5000
    """episodes in the replay buffer"""
    memory_share: float = 0.5
    """share of the free memory that the replay buffer may take"""
    batch_episodes: int = 32
    """episodes in a batch"""
    updates_per_episode: int = 1
    """gradient steps after every episode collected"""
    target_every: int = 200
    """episodes between copies of the networks to the target networks"""
    epsilon_start: float = 1.0
    """probability of a random action at the start"""
    epsilon_end: float = 0.05
    """and from epsilon_steps on"""
    epsilon_steps: int = 50_000
    """environment steps over which it falls, linearly"""
    max_grad_norm: float = 10.0
    """gradient clip, per agent"""
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
    compile: bool = False
    """torch.compile the GRU cell, for GPUs; on a CPU, which needs g++, it gains nothing"""


RESUME_MAY_CHANGE = {"total_timesteps", "eval_only", "checkpoint", "resume", "capture_video", "runs_dir"}
EVAL_MAY_NOT_CHANGE = {"env_id", "env_options"}
PRESETS = {
    "smac/8m": dict(total_timesteps=1_000_000),
    "matrix/stochastic": dict(total_timesteps=1_000_000),
}


def gru_cell(inputs: torch.Tensor, memories: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """The next hidden state (N, B, HIDDEN); inputs, memories: the gates' products, (N, B, 3 HIDDEN)."""
    (gates_x, new_x), (gates_h, new_h) = (x.split((2 * HIDDEN, HIDDEN), dim=-1) for x in (inputs, memories))
    reset, keep = torch.sigmoid(gates_x + gates_h).chunk(2, dim=-1)
    return torch.lerp(torch.tanh(torch.addcmul(new_x, reset, new_h)), hidden, keep)


class QNetworks(nn.Module):
    """A recurrent Q-network per agent, none shared: Linear, ReLU, GRU cell, Linear; stacked (N, in, out)."""

    def __init__(self, num_agents: int, in_dim: int, num_actions: int):
        super().__init__()
        sizes = (in_dim, HIDDEN, in_dim), (HIDDEN, 3 * HIDDEN, HIDDEN), (HIDDEN, 3 * HIDDEN, HIDDEN)
        sizes += ((HIDDEN, num_actions, HIDDEN),)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out, scale in sizes:  # PyTorch's own initialisation of Linear and GRUCell
            bound = scale**-0.5
            self.weights.append(
                nn.Parameter(torch.empty(num_agents, fan_in, fan_out).uniform_(-bound, bound))
            )
            self.biases.append(nn.Parameter(torch.empty(num_agents, 1, fan_out).uniform_(-bound, bound)))

    def forward(self, x: torch.Tensor, hidden: torch.Tensor, cell=gru_cell) -> tuple[torch.Tensor, ...]:
        """Q of all actions after each step of a sequence, and the last hidden state.

        x: (N, T, B, in), hidden: (N, B, HIDDEN) before it -> (N, T, B, A), (N, B, HIDDEN).
        """
        N, T, B, _ = x.shape
        first, inner, recurrent, last = range(4)
        layer = lambda i, x: torch.baddbmm(self.biases[i], x, self.weights[i])  # noqa: E731
        gates = layer(inner, F.relu(layer(first, x.reshape(N, T * B, -1)))).view(N, T, B, -1)
        states = []
        for gate in gates.unbind(1):  # indexing would make backward fill a gradient of all steps at each
            hidden = cell(gate, layer(recurrent, hidden), hidden)
            states.append(hidden)
        q = layer(last, torch.stack(states, dim=1).view(N, T * B, -1))
        return q.view(N, T, B, -1), hidden


class Replay:
    """The last `capacity` episodes, as arrays (capacity, steps + 1, ...); zeros follow an episode's end.

    Observations are kept in half precision. Step t holds what was seen, possible and done at t; the last one
    what the episode ended with.
    """

    def __init__(
        self, capacity: int, steps: int, num_agents: int, obs_dim: int, num_actions: int, share: float
    ):
        shape = capacity, steps + 1, num_agents
        kinds = {"obs": ((*shape, obs_dim), np.float16), "action_mask": ((*shape, num_actions), np.bool_)}
        kinds |= {"actions": (shape, np.uint8 if num_actions < 256 else np.int32)}
        kinds |= {"rewards": (shape[:2], np.float32), "terminations": (shape[:2], np.bool_)}
        kinds |= {"lengths": (shape[:1], np.int32)}
        need, free = (sum(int(np.prod(s)) * np.dtype(t).itemsize for s, t in kinds.values()), free_bytes())
        if free is not None and need > share * free:
            what = f"A replay buffer of {capacity} episodes of {steps} steps needs {need / 1e9:.2f} GB"
            limit = f"{share:.0%} of {free / 1e9:.2f} GB that are free"
            raise MemoryError(f"{what}, more than {limit}; lower --buffer-episodes or raise --memory-share.")
        print(
            f"Replay buffer: {capacity} episodes of at most {steps} steps, {need / 1e9:.2f} GB.", flush=True
        )
        self.data = {name: np.zeros(shape, kind) for name, (shape, kind) in kinds.items()}
        self.capacity, self.added = capacity, 0

    def add(self, episode: dict[str, np.ndarray]) -> None:
        """Takes an episode (steps + 1, ...) in the place of the oldest."""
        for name, array in self.data.items():
            array[self.added % self.capacity] = episode[name]
        self.added += 1

    def sample(self, episodes: int, random: np.random.Generator, whole=False) -> dict[str, np.ndarray]:
        """Different episodes, uniformly, (episodes, T + 1, ...); T is the longest's or, whole, the limit."""
        which = random.choice(min(self.added, self.capacity), episodes, replace=False)
        steps = self.data["rewards"].shape[1] - 1 if whole else int(self.data["lengths"][which].max())
        return {name: x[which, : steps + 1] if x.ndim > 1 else x[which] for name, x in self.data.items()}


def own_actions(actions: torch.Tensor, num_actions: int) -> torch.Tensor:
    """The action before each step, one-hot, zeros before the first: (N, T, B) -> (N, T, B, A)."""
    return F.pad(F.one_hot(actions[:, :-1], num_actions).float(), (0, 0, 0, 0, 1, 0))


def td_loss(online, target, batch, gamma: float, cell=gru_cell):
    """Double Q-learning on whole episodes: loss, summed over agents whose parameters are disjoint, and parts.

    batch: obs (N, T + 1, B, obs_dim), action_mask (N, T + 1, B, A), actions (N, T + 1, B), and the team's
    rewards, terminations and filled (T + 1, B); step t + 1 follows step t, and filled is 0 from the end on.
    y = r + gamma (1 - terminated) Q_target(o', argmax Q_online(o', available a)). The parts, (3, N):
    loss, and means of Q of the actions taken and of y.
    """
    inputs = torch.cat([batch["obs"], own_actions(batch["actions"], batch["action_mask"].shape[-1])], dim=-1)
    hidden = inputs.new_zeros(inputs.shape[0], inputs.shape[2], HIDDEN)
    q, _ = online(inputs, hidden, cell)
    chosen = q.gather(-1, batch["actions"].unsqueeze(-1)).squeeze(-1)[:, :-1]
    with torch.no_grad():
        q_target, _ = target(inputs, hidden, cell)
        best = q.masked_fill(~batch["action_mask"], -torch.inf).argmax(-1, keepdim=True)
        following = q_target.gather(-1, best).squeeze(-1)[:, 1:]
        targets = batch["rewards"][:-1] + gamma * ~batch["terminations"][:-1] * following
    weight = batch["filled"][:-1] / batch["filled"][:-1].sum()
    loss = (weight * (chosen - targets).square()).sum((1, 2))
    means = [(weight * x).sum((1, 2)) for x in (chosen.detach(), targets)]
    return loss.sum(), torch.stack([loss.detach(), *means])


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, iddpg, ippo, iql ---
def clip_grad_norm_per_agent(network: nn.Module, max_norm: float) -> torch.Tensor:
    """Scales each agent's gradient to norm <= max_norm, in place; returns the norms before, (N,)."""
    grads = [p.grad for p in network.parameters()]
    norm = torch.stack([g.flatten(1).norm(dim=1) for g in grads]).norm(dim=0)
    for grad in grads:
        grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0).view(-1, 1, 1))
    return norm


def update(online, target, optimizer, batch, args, cell=gru_cell) -> torch.Tensor:
    """A gradient step of all agents; returns STATS, (4, N)."""
    optimizer.zero_grad()
    loss, parts = td_loss(online, target, batch, args.gamma, cell)
    loss.backward()
    grad_norm = clip_grad_norm_per_agent(online, args.max_grad_norm)
    optimizer.step()
    return torch.cat([parts, grad_norm[None]])


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


def to_batch(episodes: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """A sample of Replay, (B, T + 1[, N, ...]) -> the tensors of `td_loss`."""
    batch = {}
    for name in ("obs", "action_mask", "actions"):
        x = np.ascontiguousarray(np.moveaxis(episodes[name], 2, 0).swapaxes(1, 2))
        batch[name] = torch.from_numpy(x.astype({"actions": np.int64, "obs": np.float32}.get(name, x.dtype)))
    for name in ("rewards", "terminations"):
        batch[name] = torch.from_numpy(np.ascontiguousarray(episodes[name].T))
    steps = np.arange(episodes["rewards"].shape[1])[:, None]
    batch["filled"] = torch.from_numpy((steps < episodes["lengths"]).astype(np.float32))
    return batch


# --- same in: dpo_mamujoco, dpo_matrix, dpo_mpe, dpo_smac, iddpg, ippo, iql ---
def to_agents(x: np.ndarray, device: str) -> torch.Tensor:
    """(E, N, ...) array of the environment's side -> (N, E, ...) tensor of the learner's."""
    tensor = torch.from_numpy(x)
    if device != "cpu":  # from pinned memory the copy to a GPU need not be waited for
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor.transpose(0, 1)


def greedy(online, obs, action_mask, last, hidden, device: str):
    """Q of available actions (others -inf) for a step of E environments, (N, E, A), and the hidden state."""
    own = F.one_hot((last + 1).T, action_mask.shape[-1] + 1)[..., 1:]  # -1, nothing done yet: zeros
    x = torch.cat([to_agents(obs, device), own.to(device)], dim=-1)
    q, hidden = online(x.unsqueeze(1), hidden)
    return q[:, 0].masked_fill(~to_agents(action_mask, device), -torch.inf), hidden


@torch.no_grad()
def evaluate(online, envs, episodes: int, entropy: list[int], device: str, frames: list | None = None):
    """Greedy episodes, equally many in each environment (else short ones would be over-represented)."""
    obs, infos = envs.reset(seed=int(np.random.SeedSequence(entropy).generate_state(1)[0]))
    finished, returns, wins = np.zeros(envs.num_envs, dtype=int), [], []
    hidden = torch.zeros(envs.num_agents, envs.num_envs, HIDDEN, device=device)
    last = torch.full((envs.num_envs, envs.num_agents), -1)
    while (finished < episodes / envs.num_envs).any():
        if frames is not None:
            frames.append(envs.render())
        q, hidden = greedy(online, obs, infos["action_mask"], last, hidden, device)
        last = q.argmax(-1).T.cpu()
        obs, _, _, _, infos = envs.step(last.numpy())
        over = infos["_episode"]
        hidden[:, over], last[over] = 0.0, -1
        ended = over & (finished < episodes / envs.num_envs)
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
    base = Args(**state["args"] if state else {"env_id": args.env_id} | PRESETS.get(args.env_id, {}))
    args = tyro.cli(Args, args=argv, default=base, description=__doc__)
    changed = {name for name, value in asdict(args).items() if value != getattr(base, name)}
    changed = changed & EVAL_MAY_NOT_CHANGE if args.eval_only else changed - RESUME_MAY_CHANGE
    if state and changed:
        sys.exit(f"{SCRIPT}: {path} was made with another {', '.join(sorted(changed))}; drop the flag.")
    for name in (
        "num_envs",
        "batch_episodes",
        "buffer_episodes",
        "target_every",
        "eval_every",
        "checkpoint_every",
    ):
        if getattr(args, name) < 1:
            sys.exit(f"{SCRIPT}: --{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}.")
    if not all("=" in option for option in args.env_options):
        sys.exit(f"{SCRIPT}: --env-options takes name=value pairs, e.g. num_agents=3.")
    if not (args.learning_rate > 0 and args.max_grad_norm > 0 and 0 <= args.seed < 2**63):
        sys.exit(f"{SCRIPT}: --learning-rate and --max-grad-norm must be positive, --seed 0 to 2**63 - 1.")
    if not 0 <= args.gamma <= 1:
        sys.exit(f"{SCRIPT}: --gamma must be 0 to 1, got {args.gamma}.")
    if args.batch_episodes > args.buffer_episodes or not 0 <= args.epsilon_end <= args.epsilon_start <= 1:
        sys.exit(
            f"{SCRIPT}: --batch-episodes must fit into --buffer-episodes, and epsilon fall within 0 and 1."
        )
    if args.device not in ("cpu", "cuda"):
        sys.exit(f"{SCRIPT}: --device is cpu or cuda, got {args.device}; CUDA_VISIBLE_DEVICES names the GPU.")
    if args.device != "cpu" and not torch.cuda.is_available():
        sys.exit(f"{SCRIPT}: --device {args.device}, but PyTorch sees no GPU here; use --device cpu.")
    if args.compile and not shutil.which(os.environ.get("CXX", "g++")):
        sys.exit(f"{SCRIPT}: --compile needs a C++ compiler; install g++ (or set CXX), or drop the flag.")
    return args, state, run_dir


def train(args: Args, envs, eval_envs, online: QNetworks, state: dict, run_dir: Path) -> dict:
    """Episodes into the replay buffer, and updates after each; returns the parameters that evaluated best."""
    device, N, E, A, T = args.device, envs.num_agents, args.num_envs, envs.num_actions, envs.episode_limit
    replay = Replay(args.buffer_episodes, T, N, envs.obs_dim, A, args.memory_share)
    target = copy.deepcopy(online)
    settings = dict(lr=args.learning_rate, fused=True, capturable=device != "cpu")
    optimizer = torch.optim.Adam(online.parameters(), **settings)
    options = {"cpp_wrapper": True} if device == "cpu" else {}
    cell = torch.compile(gru_cell, options=options) if args.compile else gru_cell
    learn = functools.partial(update, online, target, optimizer, args=args, cell=cell)
    learn = learn if device == "cpu" else CudaGraph(learn)
    random = np.random.default_rng([args.seed, 2])  # exploration and replay
    global_step, next_eval, best_return, best = 0, 0, -float("inf"), online.state_dict()
    metrics = run_dir / "metrics.csv"
    next_obs, infos = envs.reset()
    next_mask = infos["action_mask"]
    hidden, last = torch.zeros(N, E, HIDDEN, device=device), torch.full((E, N), -1)
    # Episodes under way, one per environment, in the replay buffer's own shapes and kinds.
    begun = {name: np.zeros((E, *x.shape[1:]), x.dtype) for name, x in replay.data.items()}
    if state:
        target.load_state_dict(state["target"])
        optimizer.load_state_dict(state["optimizer"])
        random.bit_generator.state = json.loads(state["random"])
        global_step, next_eval, best_return, replay.added = state["counters"]
        best = state["best"]
        for name, x in state["replay"].items():
            replay.data[name][: len(x)] = x.numpy()
        try:
            envs.set_state({name: x.numpy() for name, x in state["envs"].items()})
        except ValueError as error:
            sys.exit(f"{SCRIPT}: {run_dir}/checkpoint.pt cannot be resumed. {error}")
        if envs.backend not in ("starcraft", "pettingzoo"):  # those cannot return, they have begun anew
            next_obs, next_mask = (x.numpy() for x in state["next"])
            hidden, last = state["memory"][0].to(device), state["memory"][1]
            begun = {name: x.numpy() for name, x in state["begun"].items()}
        if not metrics.exists() or metrics.stat().st_size < state["metrics_bytes"]:
            sys.exit(f"{SCRIPT}: {metrics} is not as the checkpoint knows it; restore it or start a new run.")
        os.truncate(metrics, state["metrics_bytes"])  # later rows will be written again
    else:
        run_dir.mkdir(parents=True)
        (run_dir / "args.json").write_text(json.dumps(asdict(args) | describe(envs), indent=1) + "\n")
        metrics.write_text(",".join(COLUMNS) + "\n")
    writer = SummaryWriter(str(run_dir), purge_step=global_step + 1)
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
    bar = tqdm(total=args.total_timesteps, initial=global_step, unit="step", disable=not sys.stderr.isatty())
    next_checkpoint, next_line, env_s, update_s, start = global_step, 0.0, 0.0, 0.0, time.perf_counter()
    next_log, logged, episodes, stats = state["log"] if state else (LOG_EVERY, 0, [], [])
    stats = list(stats[1:].to(device)) if state else []
    while True:
        if global_step >= next_eval:
            next_eval += args.eval_every
            result = evaluate(online, eval_envs, EVAL_EPISODES, [args.seed, 0, global_step], device)
            log(result)
            if result["eval/episodic_return"] >= best_return:  # of equals the one that learned longer
                best_return, best = result["eval/episodic_return"], copy.deepcopy(online.state_dict())
        finished = global_step >= args.total_timesteps
        if global_step >= next_checkpoint or finished or signals:
            next_checkpoint = global_step + args.checkpoint_every
            checkpoint = {"args": asdict(args), "agents": online.state_dict(), "best": best}
            checkpoint |= {"target": target.state_dict(), "optimizer": optimizer.state_dict()}
            checkpoint["random"] = json.dumps(random.bit_generator.state)
            checkpoint["counters"] = global_step, next_eval, best_return, replay.added
            held = min(replay.added, replay.capacity)
            checkpoint["replay"] = {name: torch.from_numpy(x[:held]) for name, x in replay.data.items()}
            checkpoint["begun"] = {name: torch.from_numpy(x) for name, x in begun.items()}
            checkpoint["envs"] = {name: torch.from_numpy(x) for name, x in envs.get_state().items()}
            checkpoint["next"] = [torch.from_numpy(x) for x in (next_obs, next_mask)]
            checkpoint["memory"] = hidden.cpu(), last
            stacked = torch.stack([torch.zeros(len(STATS), N, device=device), *stats])
            checkpoint["log"] = next_log, logged, episodes, stacked.cpu()
            checkpoint["metrics_bytes"] = metrics.stat().st_size
            save(run_dir / "checkpoint.pt", checkpoint)
        if finished:
            break
        if signals:
            print(f"{SCRIPT}: stopped at step {global_step:,}; go on with --resume {run_dir}")
            sys.exit(EXIT_REQUEUE)

        share = min(global_step / args.epsilon_steps, 1.0)
        epsilon = args.epsilon_start + share * (args.epsilon_end - args.epsilon_start)
        with torch.no_grad():
            q, hidden = greedy(online, next_obs, next_mask, last, hidden, device)
        # Draws of fixed shape, so that no agent's exploration depends on another's actions.
        explore, drawn = random.random((E, N)) < epsilon, random.random((E, N, A))
        actions = np.where(explore, (drawn * next_mask).argmax(-1), q.argmax(-1).T.cpu().numpy())
        env_start = time.perf_counter()
        after, reward, terminated, truncated, infos = envs.step(actions)
        env_s += time.perf_counter() - env_start
        at, every = begun["lengths"].copy(), np.arange(E)
        begun["obs"][every, at], begun["action_mask"][every, at] = next_obs, next_mask
        begun["actions"][every, at], begun["rewards"][every, at] = actions, reward
        begun["terminations"][every, at] = terminated
        begun["lengths"] += 1
        last, next_obs, next_mask = torch.from_numpy(actions), after, infos["action_mask"]
        global_step += E
        over = terminated | truncated
        for e in np.flatnonzero(over):
            begun["obs"][e, at[e] + 1] = infos["final_obs"][e]
            begun["action_mask"][e, at[e] + 1] = True  # environments do not tell what the end would allow
            replay.add({name: x[e] for name, x in begun.items()})
            if infos["_episode"][e]:
                won = infos["battle_won"][e] if "battle_won" in infos else np.nan
                episodes.append([float(infos["episode"][name][e]) for name in "rl"] + [float(won)])
            update_start = time.perf_counter()
            for _ in range(args.updates_per_episode if replay.added >= args.batch_episodes else 0):
                batch = to_batch(replay.sample(args.batch_episodes, random, whole=device != "cpu"))
                stats.append(learn(batch))
            if replay.added % args.target_every == 0:
                target.load_state_dict(online.state_dict())
            update_s += time.perf_counter() - update_start
        if over.any():
            hidden[:, over], last[over] = 0.0, -1
        for x in begun.values():
            x[over] = 0
        if global_step < next_log or not episodes or not stats:
            continue
        values = torch.stack(stats).mean((0, 2)).tolist()
        if not (np.isfinite(values).all() and all(p.isfinite().all() for p in online.parameters())):
            diagnostic = {"args": asdict(args), "agents": online.state_dict(), "batch": batch}
            save(run_dir / "diagnostic.pt", diagnostic)
            where = f"at step {global_step}; {run_dir}/diagnostic.pt holds the batch, checkpoint.pt is intact"
            sys.exit(f"{SCRIPT}: the loss is not finite {where}. Start again with a smaller --learning-rate.")
        seconds, steps = time.perf_counter() - start, global_step - logged
        split = env_s / seconds, 1 - (env_s + update_s) / seconds, update_s / seconds
        means = np.mean(episodes, axis=0, dtype=float).tolist()
        row = [*means, steps / seconds, *split, epsilon, replay.added, *values]
        log(dict(zip(COLUMNS[3:], row, strict=True)))
        status = f"return {means[0]:.2f}" + ("" if np.isnan(means[2]) else f", win rate {means[2]:.2f}")
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
        if not hasattr(envs, "num_actions"):
            raise ValueError(f"{args.env_id} has continuous actions; Q-learning needs discrete ones.")
        if envs.episode_limit is None:  # a place in the replay buffer is as long as an episode may be
            raise ValueError(
                f"{args.env_id} has episodes of any length; add --env-options episode_limit=STEPS."
            )
        eval_envs = make(EVAL_EPISODES if envs.backend == "embedded" else args.num_envs)
        video_envs = make(1, render_mode="rgb_array") if args.capture_video else None
    except (ValueError, TypeError, RuntimeError, ImportError, MemoryError) as error:
        sys.exit(f"{SCRIPT}: {error}")
    agents = QNetworks(envs.num_agents, envs.obs_dim + envs.num_actions, envs.num_actions)
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
        evaluate(agents, video_envs, 4, [args.seed, 2], args.device, frames)
        imageio.mimsave(run_dir / "video.mp4", frames, fps=8, macro_block_size=1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(f"{SCRIPT}: interrupted.")
    except MemoryError as error:
        sys.exit(f"{SCRIPT}: {error}")
    except OSError as error:
        sys.exit(f"{SCRIPT}: {error}; make room or allow writing, then --resume the last checkpoint.")
