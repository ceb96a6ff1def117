"""What the paper discusses without measuring it (sections 3.4, D and E), measured on the stochastic game.

    python benchmark/discussion.py   # measured.csv and README.md's tables, in results/studies/discussion

Every finished run is kept in measured.part.csv; the same command goes on with the others.

Agents, losses, updates and advantages are those of dpo_matrix.py and ippo.py. What is looked at here beyond
one agent (joint ratios, exact advantages) is the benchmark's alone; no agent sees it, but where a run is said
to learn from exact advantages. Axes: agents N, steps T, environments E, states S, actions A.
"""

from __future__ import annotations

import copy
import csv
import importlib
import io
import itertools
import json
import os
import sys
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # before NumPy and PyTorch read them

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import tyro  # noqa: E402
from torch import Tensor, nn  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import envs as environments  # noqa: E402
from benchmark.lib.arguments import out_of_range  # noqa: E402
from benchmark.lib.letters import in_utf8  # noqa: E402
from benchmark.lib.runs import ResultsError  # noqa: E402
from benchmark.lib.statistics import welch  # noqa: E402
from benchmark.lib.store import replace as replace_file  # noqa: E402
from benchmark.lib.tables import markdown, plus_minus  # noqa: E402
from envs.matrix.exact import evaluate_exactly  # noqa: E402
from envs.matrix.games import check_memory  # noqa: E402

# By name, as mypy checks envs and benchmark alone.
dpo_matrix = importlib.import_module("dpo_matrix")
ippo = importlib.import_module("ippo")

METHODS: dict[str, tuple[ModuleType, dict[str, Any]]] = {
    "DPO, d_target 0.1": (dpo_matrix, {"d_target": 0.1}),
    "DPO, d_target 0.01": (dpo_matrix, {"d_target": 0.01}),
    "IPPO, clip 0.2": (ippo, {"clip_coef": 0.2, "layer_norm": False}),
}
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "15 steps": ("", {"ent_coef": 0.0}),
    "100 steps": ("", {"ent_coef": 0.0, "update_epochs": 100}),
    "maximiser of the batch's (20)": ("ratios", {}),
    "maximiser for mean advantages": ("means", {}),
}
STAGES = ("first third", "second third", "last third")
COSTS = {"final return": "final return lost", "return over the run": "return over the run lost"}
PS = [f"p of {cost}" for cost in COSTS.values()]
KL = "KL of an agent; KL of the joint policy"
ATTAINED = "attained in 15 steps; attained in 100 steps; KL of the maximiser"
SIGNS = "samples of wrong sign; sum of samples of wrong sign; means of wrong sign; sum of means of wrong sign"
ROOT_SHARES = "root's share of the penalty; root's share of the slope; states with KL above 1/4"
TABLES = {  # by title: the part of the measurements, and its quantities
    "Ratios outside of 0.8 to 1.2, % of samples": f"runs; own; some own; joint; joint, no own; {KL}",
    "Signs of GAE's advantages, % against exact ones": f"runs; {SIGNS}",
    "Noise on exact advantages": f"noise; {SIGNS.split('; ')[1]}; {'; '.join(COSTS)}; KL of an agent",
    "What noise costs, and p against IPPO's cost": "; ".join(["noise", *COSTS.values(), *PS]),
    "Gain of (20), % of the attainable": f"runs; {ATTAINED}",
    "Solvers of (20) in equal samples": f"solvers; {'; '.join(COSTS)}; KL of an agent",
    "The root's share of the penalty, %": f"runs; {ROOT_SHARES}; states with KL above 1",
}
BEGIN = "<!-- tables: begin (written by benchmark/discussion.py) -->"
END = "<!-- tables: end -->"


@dataclass
class Args:
    sizes: tuple[str, ...] = ("30x3x5", "30x6x5")  # states x agents x actions; 100x6x5 is the paper's, slower
    updates: int = 100  # of every run, each after one episode in 32 environments
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)  # of the first game, the only one with exact advantages
    other_seeds: tuple[int, ...] = (1, 2, 3)  # of the other games
    sigmas: tuple[float, ...] = (3.0, 10.0)  # noise, in deviations of the exact advantages
    probe_every: int = 10  # updates between two looks at signs and at the maximiser of eq. (20)
    out: Path = ROOT / "benchmark" / "results" / "studies" / "discussion"  # folder of what is measured
    measure: bool = True  # off: writes the tables of the measured.csv that is there


RANGES: dict[str, tuple[float, float]] = {
    "updates": (1, 10**6),
    "seeds": (0, 2**31),
    "other_seeds": (0, 2**31),
    "sigmas": (1e-6, 1e6),  # 0 is measured anyway
    "probe_every": (1, 10**6),
}


class Row(NamedTuple):
    part: str
    game: str
    method: str
    setting: str
    seed: int
    quantity: str
    value: float


class Episodes(NamedTuple):
    """One episode in every environment; they end at the limit only."""

    states: Tensor  # (T, E)
    actions: Tensor  # (N, T, E)
    old_logp: Tensor  # (N, S, A)
    advantages: Tensor  # (N, T, E), by GAE
    returns: Tensor  # (N, T, E)

    def at(self, table: Tensor) -> Tensor:
        """A table (N, S, A) at the samples, (N, T, E)."""
        return table[:, self.states].gather(-1, self.actions.unsqueeze(-1)).squeeze(-1)


class Table(nn.Module):
    """Logits per agent, state and action in the place of an actor's network."""

    def __init__(self, *sizes: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(sizes))

    def forward(self, obs: Tensor) -> Tensor:
        return obs @ self.logits


@torch.no_grad()
def policies(agents: Any, num_states: int) -> Tensor:
    """log pi of all states, (N, S, A)."""
    return F.log_softmax(agents.actor(torch.eye(num_states).expand(agents.team_size, -1, -1)), dim=-1)


@torch.no_grad()
def play(envs: Any, agents: Any, args: Any, generator: torch.Generator) -> Episodes:
    N, S, T, E = envs.num_agents, envs.num_states, envs.episode_limit, args.num_envs
    old_logp = policies(agents, S)
    value = agents.value(torch.eye(S).expand(N, -1, -1))
    states = torch.zeros(T + 1, E, dtype=torch.int64)
    actions = torch.zeros(N, T, E, dtype=torch.int64)
    rewards, final_values = torch.zeros(T, E), torch.zeros(N, T, E)
    obs, _ = envs.reset()
    for step in range(T):
        states[step] = obs[0].argmax(-1)
        gumbel = -torch.empty(N, E, envs.num_actions).exponential_(generator=generator).log()
        actions[:, step] = (old_logp[:, states[step]] + gumbel).argmax(-1)
        obs, rewards[step], _, _, infos = envs.step(actions[:, step])
    states[T] = infos["final_obs"][0].argmax(-1)
    final_values[:, -1] = value[:, states[T]]
    terminations, truncations = torch.zeros(2, T, E, dtype=torch.bool)
    truncations[-1] = True
    ends = (final_values, terminations, truncations)
    estimates = dpo_matrix.gae(rewards, value[:, states], *ends, args.gamma, args.gae_lambda)
    return Episodes(states[:-1], actions, old_logp, *estimates)


def dpo_batch(episodes: Episodes, advantages: Tensor) -> dict[str, Tensor]:
    """What `dpo_matrix.update` takes, as dpo_matrix.py makes it."""
    N, S, A = episodes.old_logp.shape
    eye = torch.eye(S).expand(N, -1, -1)
    samples = [x.flatten(1) for x in (episodes.actions, advantages, episodes.returns)]
    table = dpo_matrix.tabulate(eye[:, episodes.states.flatten()], *samples, A)
    return table | dict(obs=eye, old_logp=episodes.old_logp)


def ippo_batch(episodes: Episodes, advantages: Tensor) -> dict[str, Tensor]:
    """What `ippo.update` takes; a row per state, action and sign of the advantage stands for its samples.

    For one sign min(ratio A, clipped A) is linear in A, so that their mean has the samples' gradients.
    """
    N, S, A = episodes.old_logp.shape
    cells = (2 * (episodes.states * A + episodes.actions) + (advantages > 0)).flatten(1)
    sums = torch.zeros(3, N, 2 * S * A)
    for total, x in zip(sums, (torch.ones_like(advantages), advantages, episodes.returns), strict=True):
        total.scatter_add_(1, cells, x.flatten(1))
    state = torch.arange(S).repeat_interleave(2 * A)
    action = torch.arange(A).repeat_interleave(2).repeat(S)
    means = sums[1:] / sums[0].clamp(min=1)
    batch = dict(weight=sums[0] / episodes.states.numel(), advantages=means[0], returns=means[1])
    batch |= dict(obs=torch.eye(S)[state].expand(N, -1, -1), actions=action.expand(N, -1))
    batch |= dict(logprobs=episodes.old_logp[:, state, action], outputs=episodes.old_logp[:, state])
    return batch | dict(action_mask=torch.ones_like(batch["outputs"], dtype=torch.bool))


def ratios(episodes: Episodes, logp: Tensor, clip: float = 0.2) -> dict[str, float]:
    """How far an update moved the agents' policies and their product: shares of samples, and KL."""
    own = episodes.at(logp - episodes.old_logp)
    outside = (own.exp() - 1).abs() > clip
    joint = (own.sum(0).exp() - 1).abs() > clip
    kl = dpo_matrix.categorical_kl(episodes.old_logp, logp)[:, episodes.states].mean((1, 2))
    some = outside.any(0)
    shares = {"own": outside, "some own": some, "joint": joint, "joint, no own": joint & ~some}
    found = {name: 100 * share.float().mean().item() for name, share in shares.items()}
    return found | {"KL of an agent": kl.mean().item(), "KL of the joint policy": kl.sum().item()}


def wrong_signs(episodes: Episodes, advantages: Tensor, exact: Tensor) -> dict[str, float]:
    """Shares of samples, and of sum |A_i|, where advantages or means by state and action miss its sign."""
    truth = episodes.at(exact)
    found = {}
    means = episodes.at(dpo_batch(episodes, advantages)["advantages"])
    for name, x in {"samples": advantages, "means": means}.items():
        wrong = (x * truth < 0).float()
        found[f"{name} of wrong sign"] = 100 * wrong.mean().item()
        found[f"sum of {name} of wrong sign"] = 100 * ((wrong * truth.abs()).sum() / truth.abs().sum()).item()
    return found


def penalty_shares(kl: Tensor, weight: Tensor, beta1: Tensor, beta2: Tensor) -> dict[str, float]:
    """The root's share of the penalty of KL (N, S), and of its slope in KL, averaged over states."""
    root = beta1 * (weight * kl.sqrt()).sum(1)
    slope = 0.5 * beta1[:, None] * (kl + 1e-12).rsqrt()
    steep = (weight * slope / (slope + beta2[:, None])).sum(1)
    shares = {
        "root's share of the penalty": root / (root + beta2 * (weight * kl).sum(1)),
        "root's share of the slope": steep,
        "states with KL above 1/4": (weight * (kl > 0.25)).sum(1),
        "states with KL above 1": (weight * (kl > 1)).sum(1),
    }
    return {name: 100 * share.nanmean().item() for name, share in shares.items()}


def surrogate(batch: dict[str, Tensor], logp: Tensor, agents: Any) -> float:
    """Eq. (20) of a batch at log pi (N, S, A), less its value at the old policies, summed over agents."""
    old_logp, logp = batch["old_logp"].double(), logp.double()
    gain = (batch["advantages"] * torch.expm1(logp - old_logp)).sum((1, 2)) / agents.team_size
    kl = dpo_matrix.categorical_kl(old_logp, logp)
    penalty = agents.beta1[:, None] * kl.sqrt() + agents.beta2[:, None] * kl
    return (gain - (batch["weight"] * penalty).sum(1)).sum().item()


def maximiser(batch: dict[str, Tensor], agents: Any, counts: Tensor | None = None) -> Tensor:
    """log pi, (N, S, A), that maximises eq. (20) in every state, at the agents' own betas.

    As the batch has it, with ratios; or, of counts (N, S, A), shares of the samples, eq. (17)'s <pi, A_i>
    with the mean of the samples for A_i(s, a).
    """
    old = batch["old_logp"].double().exp()
    shares = batch["weight"].unsqueeze(-1) * old if counts is None else counts
    gain = torch.where(shares > 0, batch["advantages"] / shares, 0.0) / agents.team_size
    tables = (old.numpy(), gain.double().numpy(), agents.beta1.tolist(), agents.beta2.tolist())
    new = [dpo_matrix.solve_surrogate(*own) for own in zip(*tables, strict=True)]
    return torch.from_numpy(np.stack(new)).clamp(min=1e-30).log()


def make_adam(module: nn.Module, args: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)


def attained(batch: dict[str, Tensor], agents: Any, adam: Any, args: Any) -> dict[str, float]:
    """Shares of eq. (20)'s attainable gain that Adam's steps get, on copies and without entropy bonus."""
    best_logp = maximiser(batch, agents)
    best = surrogate(batch, best_logp, agents)
    kl = dpo_matrix.categorical_kl(batch["old_logp"].double(), best_logp)
    found = {"KL of the maximiser": (batch["weight"] * kl).sum(1).mean().item()}
    for epochs in (15, 100):
        copied = copy.deepcopy(agents)
        copied_adam = make_adam(copied, args)
        copied_adam.load_state_dict(copy.deepcopy(adam.state_dict()))
        dpo_matrix.update(copied, copied_adam, batch, replace(args, update_epochs=epochs, ent_coef=0.0))
        gain = surrogate(batch, policies(copied, batch["obs"].shape[1]), agents)
        found[f"attained in {epochs} steps"] = 100 * gain / best if best > 0 else np.nan
    return found


def train(
    envs: Any, script: Any, settings: dict[str, Any], args: Args, seed: int, **options: Any
) -> Iterator[dict[str, float]]:
    """A run; yields what is measured at every update.

    Options: exact, whether exact advantages are looked at; noise, ("samples" or "values", sigma), what is
    added to them to learn from, fresh at every update for each sample or each state and action; solver, what
    takes the place of the actors' Adam steps, see `SOLVERS`.
    """
    own = script.Args(seed=seed, **settings)
    torch.manual_seed(seed)
    envs.reset(seed=seed)
    sizes = (envs.num_agents, envs.num_states, envs.num_actions)
    agents = ippo.Agents(*sizes, layer_norm=False) if script is ippo else dpo_matrix.Agents(*sizes)
    agents.team_size = envs.num_agents
    if script is dpo_matrix:
        agents.beta1 += own.beta_init
        agents.beta2 += own.beta_init
    solver, noise = options.get("solver", ""), options.get("noise")
    if solver:
        agents.actor = Table(*sizes)
    # A maximiser leaves Adam the critics alone; `update` trains these and adapts the betas all the same.
    adam = make_adam(agents.critic if solver else agents, own)
    generator = torch.Generator().manual_seed(seed)
    for k in range(args.updates):
        episodes = play(envs, agents, own, generator)
        pi = episodes.old_logp.double().softmax(-1).numpy()
        found = {"return": envs.exact_return(pi)}
        probed = k % args.probe_every == 0 and not noise and not solver
        advantages = episodes.advantages
        if noise or (probed and options.get("exact")):
            _, _, in_float64 = evaluate_exactly(envs.rewards, envs.transitions, pi, own.gamma)
            exact = torch.from_numpy(in_float64).float()
        if noise:
            kind, sigma = noise
            truth = episodes.at(exact)
            drawn = torch.randn((truth if kind == "samples" else exact).shape, generator=generator)
            drawn = drawn if kind == "samples" else episodes.at(drawn)
            advantages = truth + sigma * truth.std((1, 2), keepdim=True) * drawn
        advantages = dpo_matrix.standardize(advantages)
        if noise or (probed and options.get("exact")):
            found |= wrong_signs(episodes, advantages, exact)
        if script is ippo:
            ippo.update(agents, adam, ippo_batch(episodes, advantages), own)
        else:
            batch = dpo_batch(episodes, advantages)
            if probed:
                found |= attained(batch, agents, adam, own)
            if solver:
                counts = dpo_batch(episodes, torch.ones_like(advantages))["advantages"]
                best = maximiser(batch, agents, counts if solver == "means" else None)
                agents.actor.logits.data = best.float()
            betas = (agents.beta1.clone(), agents.beta2.clone())
            dpo_matrix.update(agents, adam, batch, own)
        logp = policies(agents, envs.num_states)
        found |= ratios(episodes, logp)
        if script is dpo_matrix:
            kl = dpo_matrix.categorical_kl(episodes.old_logp, logp)
            found |= penalty_shares(kl, batch["weight"], *betas)
        yield found


def make_game(size: str) -> Any:
    names = ("num_states", "num_agents", "num_actions")
    options = dict(zip(names, map(int, size.split("x")), strict=True))
    return environments.make("matrix/stochastic", 32, device="cpu", **options)


def means(run: list[dict[str, float]]) -> dict[str, float]:
    """Of every quantity over the updates at which it was measured."""
    names = dict.fromkeys(name for found in run for name in found)
    return {name: float(np.nanmean([found[name] for found in run if name in found])) for name in names}


def whole(run: list[dict[str, float]]) -> dict[str, float]:
    """Of a run as a whole: its return, also over the last tenth, KL, and signs where they were looked at."""
    found = means(run)
    last = means(run[-max(len(run) // 10, 1) :])["return"]
    names = [name for name in ("KL of an agent", *SIGNS.split("; ")[:2]) if name in found]
    return {"final return": last, "return over the run": found["return"]} | {
        name: found[name] for name in names
    }


def rows_of(
    found: dict[str, float], part: str, game: str, method: str, setting: str, seed: int
) -> Iterator[Row]:
    print(part, game, method, setting, seed, sep=", ", flush=True)
    return (Row(part, game, method, setting, seed, name, x) for name, x in found.items())


def measure(args: Args, done: Container[tuple[Any, ...]]) -> Iterator[list[Row]]:
    """Everything, run by run, but the runs of which there are rows: part, game, method, setting and seed."""
    noises = [("values", 0.0), *itertools.product(("samples", "values"), args.sigmas)]
    for size in args.sizes:
        envs, first = make_game(size), size == args.sizes[0]
        for seed in args.seeds if first else args.other_seeds:
            for method, (script, settings) in METHODS.items():
                if ("runs", size, method, STAGES[0], seed) not in done:
                    run = list(train(envs, script, settings, args, seed, exact=first))
                    rows: list[Row] = []
                    for stage, third in zip(STAGES, np.array_split(np.array(run), 3), strict=True):
                        rows += rows_of(means(third.tolist()), "runs", size, method, stage, seed)
                    setting = "15 steps, entropy bonus"
                    yield [*rows, *rows_of(whole(run), "solvers", size, method, setting, seed)]
                for kind, sigma in noises if first else ():
                    setting = f"{kind}, sigma {sigma:g}"
                    if ("noise", size, method, setting, seed) not in done:
                        run = list(train(envs, script, settings, args, seed, noise=(kind, sigma)))
                        yield [*rows_of(whole(run), "noise", size, method, setting, seed)]
                for name, (solver, changes) in SOLVERS.items() if first and script is dpo_matrix else ():
                    if ("solvers", size, method, name, seed) not in done:
                        run = list(train(envs, script, settings | changes, args, seed, solver=solver))
                        yield [*rows_of(whole(run), "solvers", size, method, name, seed)]


def costs(rows: list[Row]) -> Iterator[Row]:
    """What noise costs of the same seed's return, and p of DPO's costs against IPPO's (Welch)."""
    noisy = [row for row in rows if row.part == "noise" and row.quantity in COSTS]
    exact = {(row.method, row.seed, row.quantity): row.value for row in noisy if row.setting.endswith(" 0")}
    lost: dict[tuple[str, str, str], list[float]] = {}
    for row in noisy:
        cost = exact[row.method, row.seed, row.quantity] - row.value
        lost.setdefault((row.method, row.setting, row.quantity), []).append(cost)
        yield row._replace(quantity=COSTS[row.quantity], value=cost)
    for (method, setting, quantity), own in lost.items():
        if method != "IPPO, clip 0.2":
            p = welch(lost["IPPO, clip 0.2", setting, quantity], own)
            yield Row("noise", noisy[0].game, method, setting, 0, f"p of {COSTS[quantity]}", p)


def table(rows: list[Row], part: str, *names: str) -> str:
    """Mean over seeds ± half the 95 % interval of a part's quantities, by game, method and setting."""
    values: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for row in rows:
        if row.part == part and row.quantity in names and not np.isnan(row.value):
            own = values.setdefault((row.game, row.method, row.setting), {})
            own.setdefault(row.quantity, []).append(row.value)
    digits = {name: 4 if name.startswith("KL") else 3 if name.startswith("p ") else 1 for name in names}
    lines = [
        (*key, *(plus_minus(own.get(name, []), digits[name]) for name in names))
        for key, own in values.items()
    ]
    return markdown(("game", "method", "setting", *names), lines)


def fault(args: Args) -> str:
    """What is wrong with the command line, in a sentence; empty if nothing is."""
    for name in ("sizes", "seeds", "other_seeds", "sigmas"):
        if not getattr(args, name):
            return f"--{name.replace('_', '-')} is empty; give one at least."
    for size in args.sizes:
        numbers = size.split("x")
        if len(numbers) != 3 or not all(number.isdecimal() and 1 <= int(number) < 1000 for number in numbers):
            return f"--sizes are states x agents x actions, as 30x3x5; got {size!r}."
    for size in args.sizes * args.measure:  # before hours are spent on those that fit
        try:
            check_memory(*map(int, size.split("x")))
        except MemoryError as error:
            return str(error)
    if not args.measure and not (args.out / "measured.csv").is_file():
        return f"there is no {args.out / 'measured.csv'}; measure it, without --no-measure."
    return out_of_range(args, RANGES)


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if wrong := fault(args):
        sys.exit(f"discussion: {wrong}")
    try:
        write(args)
    except (OSError, MemoryError, ResultsError, environments.BrokenEnvironment) as error:
        sys.exit(f"discussion: {error}")
    except KeyboardInterrupt:
        sys.exit("discussion: stopped; the same command goes on.")


def read_rows(text: str, path: Path) -> list[Row]:
    """The rows of a file that has this text, its first line their names."""
    try:
        lines = list(csv.reader(text.splitlines()))[1:]
        return [Row(a, b, c, d, int(e), f, float(g)) for a, b, c, d, e, f, g in lines]
    except ValueError:
        raise ResultsError(f"{path} cannot be read; delete it, and measure it anew.") from None


def fill(measured: Path, args: Args) -> None:
    """Measures what is missing. measured.part.csv (the arguments, then rows) grows by each run, and becomes
    measured.csv with the last; that of other arguments is begun anew."""
    part = measured.with_suffix(".part.csv")
    asked = {name: value for name, value in vars(args).items() if name not in ("out", "measure")}
    head = f"{json.dumps(asked)}\n"
    text = part.read_text() if part.exists() else ""
    text = text.removeprefix(head) if text.startswith(head) else f"{','.join(Row._fields)}\n"
    done = {row[:5] for row in read_rows(text, part)}
    for rows in measure(args, done):
        lines = io.StringIO()
        values = ((*row[:-1], f"{row.value:.6g}") for row in rows)
        csv.writer(lines, lineterminator="\n").writerows(values)
        text += lines.getvalue()
        replace_file(part, head + text)
    replace_file(measured, text)
    part.unlink(missing_ok=True)


def write(args: Args) -> None:
    """measured.csv, when all is measured, and the tables of README.md."""
    torch.set_num_threads(1)
    measured, page = args.out / "measured.csv", args.out / "README.md"
    if args.measure:
        args.out.mkdir(parents=True, exist_ok=True)
        fill(measured, args)
    rows = read_rows(measured.read_text(), measured)
    rows += costs(rows)
    tables = [f"**{title}**\n\n{table(rows, *what.split('; '))}" for title, what in TABLES.items()]
    text = page.read_text() if page.exists() else f"{BEGIN}{END}\n"
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    page.write_text("\n".join([f"{before}{BEGIN}\n", *tables, f"{END}{after}"]))


if __name__ == "__main__":
    in_utf8()
    main()
