"""The paper's Figures 1-12 as data: which runs each needs, and which claim it tests.

A figure has panels; a panel crosses tasks with methods; seeds multiply them. `manifest` lists the runs of
some figures, each once: a run's key depends on task and command alone, so that figures share what
they have in common.
Where the paper's text was not at hand, `claim` says "our reading": that figure's contents are this project's.
Budgets are environment steps. The paper does not state its own; its released code stops at 10M by default.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

SCALES = ("smoke", "small", "paper")
"""smoke: seconds a run, tiny settings, to see that everything works. small: an hour or two a figure on four
cores, fewer tasks and steps. paper: everything, at the scripts' own settings."""
SEEDS = {"smoke": 1, "small": 3, "paper": 5}


@dataclass(frozen=True)
class Task:
    """An environment id, and options that make it another task."""

    env_id: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        sizes = "x".join(str(value) for value in self.options.values())
        return "-".join(filter(None, [self.env_id.replace("/", "-"), sizes]))

    @property
    def family(self) -> str:
        return self.env_id.partition("/")[0]


@dataclass(frozen=True)
class Method:
    """A curve: its name in legends, the algorithm, and the flags in which it departs from the defaults."""

    name: str
    algorithm: str
    flags: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """Every method on every task. At scale small the first `small` tasks remain, at smoke the first."""

    tasks: tuple[Task, ...]
    methods: tuple[Method, ...]
    name: str = ""
    small: int = 99


@dataclass(frozen=True)
class Verdict:
    """A line of docs/verdicts.md: the claim in short, at most six words on what was found; and p's of final
    scores: a word for what is compared with DPO, the method, and the column of the figure's table."""

    claim: str
    words: str
    ps: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Figure:
    """`scale`, `seeds`: of what is published. `exact`: no learning, the iteration (17), (18) on 2x2 games."""

    title: str
    claim: str
    panels: tuple[Panel, ...]
    verdict: Verdict
    scale: str = "paper"
    seeds: int = 5
    exact: bool = False


@dataclass(frozen=True)
class Run:
    """One process: a script, its flags, a seed. `label` tells methods of one script and task apart."""

    script: str
    flags: tuple[str, ...]
    seed: int
    task: str
    label: str
    steps: int

    @property
    def arguments(self) -> list[str]:
        """Script and flags, without what depends on where it runs."""
        return [self.script, *self.flags, "--seed", str(self.seed)]

    @property
    def key(self) -> str:
        """Names the run's place: readable, and another for another command."""
        digest = hashlib.sha256(shlex.join(self.arguments).encode()).hexdigest()[:8]
        script = self.script.rpartition("/")[2].removesuffix(".py")
        return "__".join(filter(None, [self.task, script, self.label, str(self.seed), digest]))


# --- tasks and methods ------------------------------------------------------------------------------------

GAME = Task("matrix/stochastic")
GAMES_OF_N = tuple(
    Task("matrix/stochastic", {"num_states": 30, "num_agents": agents, "num_actions": actions})
    for agents, actions in ((3, 5), (6, 2), (12, 2))
)
PAYOFFS = tuple(Task(f"matrix/{game}") for game in (1, 2, 3, 4))
SPREAD, LINE, CIRCLE = MPE = tuple(
    Task(f"mpe/{name}") for name in ("simple_spread", "line_control", "circle_control")
)
# Cheap ones first: a smaller scale takes the first.
MUJOCO = tuple(
    Task(f"mamujoco/{name}")
    for name in ("Hopper-3x1", "HalfCheetah-3x2", "Walker2d-3x2", "Ant-4x2", "Humanoid-17x1")
)
SMAC = tuple(Task(f"smac/{name}") for name in ("8m", "2s3z", "3s5z", "MMM2", "27m_vs_30m"))

DPO, IPPO, IQL, IDDPG = (Method(name, name.lower()) for name in ("DPO", "IPPO", "IQL", "IDDPG"))
NO_SQRT = Method("DPO without sqrt term (IPPO-KL)", "dpo", {"sqrt_kl_term": False})
NO_KL = Method("DPO without KL term", "dpo", {"kl_term": False})
ABLATIONS = (DPO, NO_SQRT, NO_KL)
ABLATED = (("without sqrt", NO_SQRT.name, "all tasks"), ("without KL", NO_KL.name, "all tasks"))
CLIPS = tuple(Method(f"IPPO, clip {clip}", "ippo", {"clip_coef": clip}) for clip in (0.05, 0.1, 0.3))
# The default pair (1.5, 2), and three other values of each.
PAIRS = tuple(Method(f"DPO, δ {delta}, ω 2", "dpo", {"delta": delta}) for delta in (1.2, 2.0, 3.0))
PAIRS += tuple(Method(f"DPO, δ 1.5, ω {omega}", "dpo", {"omega": omega}) for omega in (1.2, 1.5, 4.0))


def d_targets(*values: float) -> tuple[Method, ...]:
    """DPO at each of these targets; the script's default is DPO itself."""
    return tuple(Method(f"DPO, d_target {value:g}", "dpo", {"d_target": value}) for value in values)


EXACT = (
    Method("M̂ = 0.3", "dpo", {"m_hat": 0.3}),
    Method("M̂ = 0.3, off the centre", "dpo", {"m_hat": 0.3, "start": (0.55, 0.55)}),
    Method("M̂ = 0.1", "dpo", {"m_hat": 0.1}),
    Method("M̂ of the theorem", "dpo"),
)

FIGURES = {
    "fig1": Figure(
        "Didactic stochastic game (100 states, 6 agents, 5 actions)",
        "(a) DPO ends above IPPO, near the optimum. (b) DPO ends above both of its ablations, without the "
        "sqrt term and without the KL term, and with few agents as with many (our reading of (b)).",
        (
            Panel((GAME,), (DPO, IPPO), "a"),
            Panel((GAME,), ABLATIONS, "b"),
            Panel(GAMES_OF_N, (DPO, IPPO), "b, number of agents"),
        ),
        Verdict(
            "DPO ends above IPPO and both ablations",
            "holds, but not the KL term",
            (
                ("IPPO", "IPPO", "matrix-stochastic"),
                ("without sqrt", NO_SQRT.name, "matrix-stochastic"),
                ("without KL", NO_KL.name, "matrix-stochastic"),
            ),
        ),
    ),
    "fig2": Figure(
        "Particle worlds, 5 agents",
        "DPO ends above IPPO and IQL on simple_spread, line_control and circle_control.",
        (Panel(MPE, (DPO, IPPO, IQL)),),
        Verdict(
            "DPO ends above IPPO and IQL",
            "IPPO: does not hold; IQL: partly",
            (("IPPO", "IPPO", "all tasks"), ("IQL", "IQL", "all tasks")),
        ),
    ),
    "fig3": Figure(
        "Multi-agent MuJoCo",
        "DPO ends above IPPO and IDDPG in most of the five tasks.",
        (Panel(MUJOCO, (DPO, IPPO, IDDPG), small=2),),
        Verdict(
            "DPO ends above IPPO and IDDPG",
            "open; IDDPG hardly run",
            (("IPPO", "IPPO", "all tasks"),),
        ),
        scale="small",
        seeds=3,
    ),
    "fig4": Figure(
        "SMAC",
        "DPO wins at least as often as IPPO and more often than IQL, on easy maps and hard ones (our reading "
        "of the list of maps).",
        (Panel(SMAC, (DPO, IPPO, IQL), small=2),),
        Verdict(
            "DPO wins as often as IPPO, more than IQL",
            "open; IQL not yet run",
            (("IPPO, 8m", "IPPO", "smac-8m"), ("2s3z", "IPPO", "smac-2s3z")),
        ),
        scale="small",
    ),
    "fig5": Figure(
        "Ablations on particle worlds",
        "Both terms of the penalty are needed: DPO ends above DPO without sqrt(KL) and without KL (our "
        "reading of the tasks).",
        (Panel(MPE, ABLATIONS),),
        Verdict("both terms are needed", "does not hold", ABLATED),
    ),
    "fig6": Figure(
        "Ablations on multi-agent MuJoCo",
        "Both terms of the penalty are needed, with continuous actions as well (our reading of the tasks).",
        (Panel(MUJOCO, ABLATIONS, small=2),),
        Verdict(
            "both terms are needed",
            "open: as claimed, within noise",
            ABLATED,
        ),
        scale="small",
        seeds=3,
    ),
    "fig7": Figure(
        "Ablations on SMAC",
        "Both terms of the penalty are needed, on SMAC as well (our reading of the maps).",
        (Panel(SMAC, ABLATIONS, small=2),),
        Verdict(
            "both terms are needed",
            "open: no difference seen",
            ABLATED,
        ),
        scale="small",
    ),
    "fig8": Figure(
        "d_target on the stochastic game and the particle worlds",
        "d_target matters, and one value serves all tasks of a family (our reading of tasks and values).",
        (
            Panel((GAME,), (DPO, *d_targets(0.001, 0.1, 1.0)), "stochastic game"),
            Panel(MPE, (DPO, *d_targets(0.001, 0.1, 1.0)), "particle worlds"),
        ),
        Verdict(
            "d_target matters, one value serves a family",
            "game: matters; particles: one serves",
            (
                ("d_target 1, game", "DPO, d_target 1", "matrix-stochastic"),
                ("particles", "DPO, d_target 1", "all tasks"),
            ),
        ),
    ),
    "fig9": Figure(
        "The pairs (δ, ω) of eq. (21)",
        "DPO is not sensitive to (δ, ω): seven pairs end alike (the default and six others; which six, and "
        "on which tasks, is our reading).",
        (
            Panel((GAME,), (DPO, *PAIRS), "stochastic game"),
            Panel(MPE, (DPO, *PAIRS), "particle worlds"),
        ),
        Verdict("DPO is not sensitive to (δ, ω)", "holds, within two percent"),
    ),
    "fig10": Figure(
        "IPPO's clip",
        "No clip value lifts IPPO above DPO (our reading of tasks and values; one task of each family).",
        (Panel((GAME, SPREAD, MUJOCO[1], SMAC[1]), (DPO, IPPO, *CLIPS), small=2),),
        Verdict(
            "no clip lifts IPPO above DPO",
            "open: on the game as claimed",
            (
                ("clip 0.2, game", "IPPO", "matrix-stochastic"),
                ("simple_spread", "IPPO", "mpe-simple_spread"),
            ),
        ),
        scale="small",
        seeds=3,
    ),
    "fig11": Figure(
        "The exact iteration (17), (18) on 2x2 matrix games",
        "J never falls, and p and q converge (with the theorem's M̂ nothing moves, see docs/dpo.md; the "
        "payoffs of games 1-4 are this project's).",
        (Panel(PAYOFFS, EXACT),),
        Verdict("the exact iteration never falls and converges", "holds with a smaller M̂"),
        exact=True,
    ),
    "fig12": Figure(
        "d_target on multi-agent MuJoCo and SMAC",
        "What the paper shows here could not be established. Our reading: d_target on the larger tasks, "
        "where one value again serves a family.",
        (
            Panel(MUJOCO[:2], (DPO, *d_targets(0.0001, 0.01, 0.1)), "MuJoCo"),
            Panel(SMAC[:2], (DPO, *d_targets(0.002, 0.1, 1.0)), "SMAC"),
        ),
        Verdict("one d_target serves a family (our reading)", "open: mostly single seeds"),
        scale="small",
    ),
}

STILL_TO_RUN = {
    "10": ("HalfCheetah at 10M steps and 2s3z at 2M, all clips", "50 and 20 minutes each"),
    "3, 6, 12": (
        "the scripts' own 10M steps, five seeds; three more robots; IDDPG",
        "one to six hours each, IDDPG more than a day",
    ),
    "4, 7, 12": (
        "the scripts' own 1M to 10M steps, five seeds; 3s5z, MMM2, 27m_vs_30m; IQL",
        "10 minutes to seven hours each, IQL more than a day",
    ),
}
"""By figures: what, and how long it takes."""

# --- budgets and settings ---------------------------------------------------------------------------------

# Environment steps by task or family.
STEPS: dict[str, dict[str, int]] = {
    "smoke": {"matrix": 800, "mpe": 1_000, "mamujoco": 1_024, "smac": 512},
    "small": {"matrix": 1_000_000, "mpe": 300_000, "mamujoco": 500_000, "smac": 500_000},
    "paper": {"matrix": 1_000_000, "mpe": 2_000_000, "mamujoco": 10_000_000, "smac": 10_000_000},
}
STEPS["small"] |= {game.name: 480_000 for game in GAMES_OF_N}
STEPS["paper"] |= {game.name: 480_000 for game in GAMES_OF_N}
STEPS["paper"] |= {"smac-8m": 1_000_000, "smac-2s3z": 2_000_000, "smac-3s5z": 5_000_000}

# DPO's script for each family, and the flag that names the task there; the baselines take --env-id.
DPO_SCRIPTS = {
    "matrix": ("dpo_matrix.py", "game"),
    "mpe": ("dpo_mpe.py", "task"),
    "mamujoco": ("dpo_mamujoco.py", "task"),
    "smac": ("dpo_smac.py", "map"),
}
# What baselines must be told to be evaluated as often as DPO; ippo.py has all of DPO's settings itself.
LIKE_DPO: dict[tuple[str, str], dict[str, Any]] = {
    ("iql", "mpe"): {"eval_every": 32_000},
    ("iddpg", "mamujoco"): {"eval_every": 50_000},
}
SMOKE_GAME = {"num_states": 10, "num_agents": 2, "num_actions": 3}
ON_POLICY = {"num_envs": 4, "update_epochs": 2}
SMOKE = {
    ("dpo", "matrix"): ON_POLICY,
    ("dpo", "mpe"): ON_POLICY,
    ("dpo", "mamujoco"): ON_POLICY | {"num_steps": 128},
    ("dpo", "smac"): ON_POLICY | {"num_steps": 64},
    ("ippo", "matrix"): ON_POLICY | {"num_steps": 10},
    ("ippo", "mpe"): ON_POLICY,
    ("ippo", "mamujoco"): ON_POLICY | {"num_steps": 128},
    ("ippo", "smac"): ON_POLICY | {"num_steps": 64},
    ("iql", "mpe"): {"num_envs": 4, "batch_episodes": 4},
    ("iql", "smac"): {"num_envs": 4, "batch_episodes": 2, "buffer_episodes": 50},
    ("iddpg", "mamujoco"): {"warmup_steps": 512, "buffer_steps": 2_000},
}


def as_flags(settings: dict[str, Any]) -> tuple[str, ...]:
    """Settings as they are typed: kl_term=False is --no-kl-term, start=(1, 2) is --start 1 2."""
    flags: list[str] = []
    for name, value in settings.items():
        name = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return tuple(flags)


def make_run(task: Task, method: Method, seed: int, scale: str, exact: bool = False) -> Run:
    """The command of one seed of a method on a task."""
    family, algorithm = task.family, method.algorithm
    steps = 0 if exact else STEPS[scale].get(task.name, STEPS[scale][family])
    options = SMOKE_GAME if scale == "smoke" and family == "matrix" and not exact else task.options
    settings = dict(LIKE_DPO.get((algorithm, family), {}))
    if algorithm == "ippo" and "num_states" in options:
        settings["num_steps"] = options["num_states"]  # a rollout is one episode, as in dpo_matrix.py
    if not exact:
        settings["total_timesteps"] = steps
        if scale == "smoke":
            settings |= SMOKE[algorithm, family] | {"eval_every": steps // 4, "checkpoint_every": steps // 4}
    settings |= method.flags
    if algorithm == "dpo":
        script, name = DPO_SCRIPTS[family]
        flags = as_flags({name: task.env_id.partition("/")[2]} | options | settings)
    else:
        script = f"{algorithm}.py"
        pairs = [f"{name}={value}" for name, value in options.items()]
        flags = as_flags({"env_id": task.env_id} | settings) + (("--env-options", *pairs) if pairs else ())
    label = "-".join(as_flags(method.flags)).replace("--", "-").strip("-")
    return Run(script, flags, seed, task.name, re.sub(r"[^A-Za-z0-9.-]", "-", label), steps)


def panel_runs(figure: Figure, scale: str, seeds: Sequence[int]) -> Iterable[tuple[Panel, Task, Method, Run]]:
    """All runs of a figure with what they are of. The exact iteration has no randomness, hence one seed."""
    for panel in figure.panels:
        count = {"smoke": 1, "small": panel.small, "paper": len(panel.tasks)}[scale]
        for task in panel.tasks[:count]:
            for method in panel.methods:
                for seed in seeds[:1] if figure.exact else seeds:
                    yield panel, task, method, make_run(task, method, seed, scale, figure.exact)


def manifest(names: Sequence[str], scale: str, seeds: Sequence[int]) -> list[Run]:
    """The runs of these figures, each once, seed by seed, so that every curve has its first seed early."""
    runs = {run.key: run for name in names for *_, run in panel_runs(FIGURES[name], scale, seeds)}
    return sorted(runs.values(), key=lambda run: run.seed)
