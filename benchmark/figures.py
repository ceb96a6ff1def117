"""The paper's Figures 1-12 as data: which runs each needs, and what the paper says of it.

A figure has panels; a panel crosses tasks with methods; seeds multiply them. Panels come in two kinds: the
paper's settings (its hyper-parameters, which are the scripts' defaults), and the best known settings of each
method. `manifest` lists the runs of some figures, each once: a run's key depends on its task and on all of
its settings, those that are not typed included, so that figures share what they have in common and a changed
default is another run. Budgets are environment steps. The paper's text does not state its own; its
released code stops at 10M by default.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from benchmark.lib.claims import (
    Above,
    Alike,
    AlikeOnTheWay,
    Behind,
    Claim,
    Clearly,
    Converges,
    Drops,
    FarBelow,
    Faster,
    Fluctuates,
    Higher,
    NeverFalls,
    OtherWay,
    Sooner,
    Steady,
    Together,
    Trapped,
    Unwon,
    Varies,
)
from benchmark.lib.groups import EMBEDDED, LATER
from benchmark.lib.runs import KL, RETURN
from envs.smac.maps import MAPS

# smoke: seconds a run, tiny settings, to see that all works. small: hours a figure (3, 4 and 10 half a day)
# on four cores, fewer tasks and steps. paper: everything, at the scripts' own settings but for `STEPS`.
SEEDS = {"smoke": 1, "small": 3, "paper": 5}


@dataclass(frozen=True)
class Task:
    """An environment id, options that make it another task, and the column of its curves if not the usual."""

    env_id: str
    options: dict[str, Any] = field(default_factory=dict)
    metric: str = ""

    @property
    def name(self) -> str:
        sizes = "x".join(str(value) for value in self.options.values())
        return "-".join(filter(None, [self.env_id.replace("/", "-"), sizes]))

    @property
    def family(self) -> str:
        return self.env_id.partition("/")[0]


@dataclass(frozen=True)
class Method:
    """A curve: its name in legends, the algorithm, and the settings in which it departs from the defaults.

    `role`: the name under which claims speak of it, where `name` tells a variant."""

    name: str
    algorithm: str
    settings: dict[str, Any] = field(default_factory=dict)
    role: str = ""


@dataclass(frozen=True)
class Panel:
    """Every method on every task. At scale small the first `small` tasks remain, at smoke the first.

    `best`: not the paper's settings, but the best known ones of each method.
    """

    tasks: tuple[Task, ...]
    methods: tuple[Method, ...]
    name: str = ""
    small: int = 99
    best: bool = False

    @property
    def title(self) -> str:
        """Its name in pictures and tables."""
        return ", ".join(filter(None, [self.name, "best known settings" * self.best]))


@dataclass(frozen=True)
class Figure:
    """`exact`: no learning, the iteration (17), (18) on 2x2 games. `note`: what a reader has to know."""

    title: str
    panels: tuple[Panel, ...]
    claims: tuple[Claim, ...]
    exact: bool = False
    note: str = ""


@dataclass(frozen=True)
class Run:
    """One process: a script, its flags, a seed. `label` tells methods of one script and task apart."""

    script: str
    flags: tuple[str, ...]
    seed: int
    task: str
    label: str
    steps: int
    settings: str = ""  # all of them, as JSON: what `key` is made of

    @property
    def arguments(self) -> list[str]:
        """Script and flags, without what depends on where it runs."""
        return [self.script, *self.flags, "--seed", str(self.seed)]

    @property
    def key(self) -> str:
        """Names the run's place: readable, and another for other settings."""
        digest = hashlib.sha256(f"{self.settings or self.flags}".encode()).hexdigest()[:8]
        script = self.script.rpartition("/")[2].removesuffix(".py")
        return "__".join(filter(None, [self.task, script, self.label, str(self.seed), digest]))


# --- tasks and methods ------------------------------------------------------------------------------------

GAME = Task("matrix/stochastic")
PAYOFFS = tuple(Task(f"matrix/{game}") for game in (1, 2, 3, 4))
SPREAD, LINE, CIRCLE = MPE = tuple(
    Task(f"mpe/{name}") for name in ("simple_spread", "line_control", "circle_control")
)
# Cheap ones first: a smaller scale takes the first.
MUJOCO = HOPPER, CHEETAH, WALKER, ANT, HUMANOID = tuple(
    Task(f"mamujoco/{name}")
    for name in ("Hopper-3x1", "HalfCheetah-3x2", "Walker2d-3x2", "Ant-4x2", "Humanoid-17x1")
)
# Of maps that nobody wins the paper shows returns (4.4).
MMM2, MANY = HARD = (Task("smac/MMM2", metric=RETURN), Task("smac/27m_vs_30m", metric=RETURN))
SMAC = EIGHT, STALKERS, *_ = (Task("smac/8m"), Task("smac/2s3z"), Task("smac/3s5z"), *HARD)

DPO, IPPO, IQL, IDDPG = (Method(name, name.lower()) for name in ("DPO", "IPPO", "IQL", "IDDPG"))
NO_SQRT = Method("DPO without sqrt term (IPPO-KL)", "dpo", {"sqrt_kl_term": "off"})
NO_KL = Method("DPO without KL term", "dpo", {"kl_term": False})
ABLATIONS = (DPO, NO_KL, NO_SQRT, IPPO)
CLIPS = tuple(Method(f"IPPO, clip {clip}", "ippo", {"clip_coef": clip}) for clip in (0.05, 0.1, 0.3))


def pair(delta: float, omega: float) -> Method:
    """DPO with these constants of eq. (21); the default pair is DPO itself."""
    settings = ({"delta": delta} if delta != 1.5 else {}) | ({"omega": omega} if omega != 2 else {})
    return Method(f"DPO, δ {delta:g}, ω {omega:g}", "dpo", settings)


PAIRS = tuple(
    pair(delta, omega)
    for delta, omega in ((1.5, 4.0), (1.5, 6.0), (1.1, 2.0), (3.0, 2.0), (3.0, 6.0), (1.1, 6.0))
)


def d_targets(*values: float) -> tuple[Method, ...]:
    """DPO at each of these targets; the script's default is DPO itself."""
    return tuple(Method(f"DPO, d_target {value:g}", "dpo", {"d_target": value}) for value in values)


# What is known to serve DPO best (docs/tuning.md); of IPPO, IQL and IDDPG nothing better is known.
BEST: dict[str, tuple[str, dict[str, Any]]] = {
    "matrix": ("floor 0.05, d_target 0.01", {"beta_min": 0.05, "d_target": 0.01}),
    "mpe": ("floor 0.2", {"beta_min": 0.2}),
    "mamujoco": ("floor 0.2", {"beta_min": 0.2}),
    "smac": ("d_target 0.005", {"d_target": 0.005}),
}


def at_best(panel: Panel) -> Panel:
    """The same panel with the best known settings of each method."""
    words, settings = BEST[panel.tasks[0].family]
    methods = tuple(
        replace(m, name=f"{m.name}, {words}", settings=settings | m.settings, role=m.name)
        if m.algorithm == "dpo"
        else m
        for m in panel.methods
    )
    return replace(panel, methods=methods, best=True)


def both(panel: Panel) -> tuple[Panel, Panel]:
    """A panel in the paper's settings, and in the best known ones."""
    return panel, at_best(panel)


def without_terms(little: Task | None = None) -> tuple[Claim, ...]:
    """What 4.5 says of the two ablations on a family's tasks, with little influence on one of them."""
    others = (NO_KL.name, NO_SQRT.name)
    claims = (
        Claim("leaving out either term lowers DPO on all", "4.5", "", Higher("DPO", others)),
        Claim("obviously on most (ours: of this figure's tasks)", "4.5", "", Clearly("DPO", others), "most"),
    )
    if little is None:
        return claims
    name = little.env_id.partition("/")[2].partition("-")[0]
    small = Alike("DPO", others, 0.1, (little.name,))
    return (*claims, Claim(f"the influence is small on {name}", "4.5", "", small))


# The paper's M̂, "defined by the payoff matrix", is not known; with the theorem's nothing moves.
EXACT = (
    Method("M̂ = 0.35", "dpo", {"m_hat": 0.35}),
    Method("M̂ = 0", "dpo", {"m_hat": 0.0}),
    Method("M̂ = 0, from p = 0.3, q = 0.8", "dpo", {"m_hat": 0.0, "start": (0.3, 0.8)}),
    Method("M̂ of the theorem", "dpo"),
)

FOUND_ON_8M = "d_target 0.005 was found on 8m; on 2s3z its one seed wins almost nothing."
IQL_NOTE = "IQL is scored by 32 greedy episodes, the others by the exact return of their stochastic policies."

FIGURES = {
    "fig1": Figure(
        "Didactic stochastic game (100 states, 6 agents, 5 actions)",
        (
            *both(Panel((GAME,), (DPO, IPPO, IQL), "a")),
            Panel((GAME,), (DPO, *d_targets(0.001, 0.01, 1.0)), "b"),
        ),
        (
            Claim("DPO ends above IPPO and IQL", "4.1", "a", Above("DPO", ("IPPO", "IQL"))),
            Claim("IQL differs most between seeds", "4.1", "a", Varies("IQL", ("DPO", "IPPO"))),
            Claim("DPO ends far below the optimum", "4.1", "a", FarBelow("DPO", 0.9)),
            Claim(
                "d_target 0.001 and 0.01 end below 0.1",
                "4.1",
                "b",
                Above("DPO", ("DPO, d_target 0.001", "DPO, d_target 0.01")),
            ),
            Claim("d_target 1 fluctuates", "4.1", "b", Fluctuates("DPO, d_target 1", ("DPO",))),
        ),
        note=IQL_NOTE,
    ),
    "fig2": Figure(
        "Particle worlds, 5 agents",
        both(Panel(MPE, (DPO, IPPO, IQL))),
        (
            Claim("DPO ends above IPPO and IQL on all three", "4.2", "", Above("DPO", ("IPPO", "IQL"))),
            Claim(
                "at first DPO may be behind IPPO or IQL on some",
                "4.2",
                "",
                Behind("DPO", ("IPPO", "IQL")),
                "some",
            ),
            Claim(
                "IQL learns fast (ours: sooner than DPO and IPPO, on most)",
                "4.2",
                "",
                Faster("IQL", ("DPO", "IPPO")),
                "most",
            ),
            Claim("IQL drops", "4.2", "", Drops("IQL"), "some"),
            Claim("IQL's seeds settle apart (ours: more than DPO's)", "4.2", "", Varies("IQL", ("DPO",))),
        ),
    ),
    "fig3": Figure(
        "Multi-agent MuJoCo",
        both(Panel(MUJOCO, (DPO, IPPO, IDDPG), small=2)),
        (
            Claim("DPO ends above IPPO and IDDPG on all five", "4.3", "", Above("DPO", ("IPPO", "IDDPG"))),
            Claim(
                "DPO is behind IPPO at first on HalfCheetah",
                "4.3",
                "",
                Behind("DPO", ("IPPO",), (CHEETAH.name,)),
            ),
        ),
    ),
    "fig4": Figure(
        "SMAC",
        both(Panel(SMAC, (DPO, IPPO, IQL), small=2)),
        (
            Claim("DPO ends above IPPO and IQL on all five", "4.4", "", Above("DPO", ("IPPO", "IQL"))),
            Claim(
                "nobody wins 27m_vs_30m and MMM2",
                "4.4",
                "",
                Unwon(("DPO", "IPPO", "IQL"), tuple(task.name for task in HARD)),
            ),
        ),
        note=FOUND_ON_8M,
    ),
    "fig5": Figure("Ablations on particle worlds", both(Panel(MPE, ABLATIONS)), without_terms()),
    "fig6": Figure(
        "Ablations on multi-agent MuJoCo",
        both(Panel(MUJOCO, ABLATIONS, small=2)),
        without_terms(WALKER),
    ),
    "fig7": Figure(
        "Ablations on SMAC",
        both(Panel(SMAC, ABLATIONS, small=2)),
        without_terms(STALKERS),
        note=FOUND_ON_8M,
    ),
    "fig8": Figure(
        "Ablations and baselines on the stochastic game",
        both(Panel((GAME,), (DPO, NO_KL, IPPO, NO_SQRT, IQL))),
        (
            Claim(
                "DPO ends above IPPO-KL, IPPO and DPO without KL",
                "C",
                "",
                Above("DPO", (NO_SQRT.name, "IPPO", NO_KL.name)),
            ),
            Claim(
                "these three end close together",
                "C",
                "",
                Together(("IPPO", NO_SQRT.name, NO_KL.name), 0.05),
            ),
            Claim("IQL ends below IPPO", "C", "", Above("IPPO", ("IQL",))),
            Claim("IQL converges sooner than IPPO", "C", "", Sooner("IQL", ("IPPO",))),
        ),
        note=IQL_NOTE,
    ),
    "fig9": Figure(
        "The pairs (δ, ω) of eq. (21) on the stochastic game",
        both(Panel((GAME,), (DPO, *PAIRS))),
        (
            Claim(
                "the influence of (δ, ω) is limited: at the end",
                "C",
                "",
                Alike("DPO", tuple(method.name for method in PAIRS), 0.1),
            ),
            Claim(
                "the influence of (δ, ω) is limited: over the run",
                "C",
                "",
                AlikeOnTheWay("DPO", tuple(method.name for method in PAIRS), 0.1),
            ),
        ),
    ),
    "fig10": Figure(
        "IPPO's clip on the two hard maps",
        (Panel(HARD, (DPO, IPPO, *CLIPS)),),
        (
            Claim(
                "IPPO ends alike with any clip",
                "4.4, C",
                "",
                Alike("IPPO", tuple(method.name for method in CLIPS), 0.1),
            ),
            Claim(
                "clips change IPPO's way there",
                "C",
                "",
                OtherWay("IPPO", tuple(method.name for method in CLIPS)),
                "some",
            ),
        ),
    ),
    "fig11": Figure(
        "The exact iteration (17), (18) on the 2x2 games of Table 3, C = 10 (the paper's M̂ is not known)",
        (Panel(PAYOFFS, EXACT),),
        (
            Claim("J never falls", "C", "", NeverFalls()),
            Claim("p and q converge in all four games", "C", "", Converges()),
            Claim(
                "games 1 and 2 can be trapped in a sub-optimum",
                "C",
                "",
                Trapped((PAYOFFS[0].name, PAYOFFS[1].name)),
            ),
        ),
        exact=True,
        note="M̂ = 0.35 and 0 are our choice.",
    ),
    "fig12": Figure(
        "KL divergence of DPO's updates, mean of all agents, on the two hard maps",
        (Panel(tuple(replace(task, metric=KL) for task in HARD), (DPO,)),),
        (Claim("KL is small and stable", "C", "", Steady("DPO")),),
    ),
}

# --- budgets and settings ---------------------------------------------------------------------------------

# Environment steps by task or family.
STEPS: dict[str, dict[str, int]] = {
    "smoke": {"matrix": 800, "mpe": 1_000, "mamujoco": 1_024, "smac": 512},
    "small": {"matrix": 1_000_000, "mpe": 300_000, "mamujoco": 500_000, "smac": 2_000_000},
    "paper": {"matrix": 1_000_000, "mpe": 2_000_000, "mamujoco": 10_000_000, "smac": 10_000_000},
}
STEPS["paper"] |= {"smac-8m": 1_000_000, "smac-2s3z": 2_000_000, "smac-3s5z": 5_000_000}
STEPS["small"] |= {"smac-8m": 1_000_000, "smac-27m_vs_30m": 1_000_000}

# DPO's script for each family, and the flag that names the task there; the baselines take --env-id.
DPO_SCRIPTS = {
    "matrix": ("dpo_matrix.py", "game"),
    "mpe": ("dpo_mpe.py", "task"),
    "mamujoco": ("dpo_mamujoco.py", "task"),
    "smac": ("dpo_smac.py", "map"),
}
# What baselines must be told to be evaluated as often as DPO, and in batches of whole episodes on the game.
LIKE_DPO: dict[tuple[str, str], dict[str, Any]] = {
    ("ippo", "matrix"): {"num_steps": 100},
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
    ("iql", "matrix"): {"num_envs": 4, "batch_episodes": 4},
    ("iql", "mpe"): {"num_envs": 4, "batch_episodes": 4},
    ("iql", "smac"): {"num_envs": 4, "batch_episodes": 2, "buffer_episodes": 50},
    ("iddpg", "mamujoco"): {"warmup_steps": 512, "buffer_steps": 2_000},
}
# Settings that are not part of what a run computes: where it is kept, how often it is saved, on what it runs.
NOT_OF_A_RUN = {"runs_dir", "resume", "eval_only", "capture_video", "checkpoint_every", "memory_share"}
NOT_OF_A_RUN |= {"device", "torch_threads", "compile"}


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


def label_of(settings: dict[str, Any]) -> str:
    """Settings as part of a key: beta-min-0.05-no-kl-term."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(as_flags(settings))).strip("-")


def resolve(script: str, settings: dict[str, Any]) -> dict[str, Any]:
    """All settings of a script that is told these: its defaults and its environment's presets as well."""
    module = importlib.import_module(script.removesuffix(".py"))
    env_id = module.Args(**settings).env_id
    presets = module.PRESETS.get(env_id.partition("/")[0], {}) | module.PRESETS.get(env_id, {})
    resolved = asdict(module.Args(**presets | settings))
    return {
        name: value
        for name, value in resolved.items()
        if name not in NOT_OF_A_RUN and (name, value) not in LATER.items()
    }


def steps_of(task: Task, scale: str) -> int:
    """Environment steps of a run."""
    return STEPS[scale].get(task.name, STEPS[scale][task.family])


def make_run(task: Task, method: Method, seed: int, scale: str, exact: bool = False) -> Run:
    """One seed of a method on a task: its command and its settings."""
    family, algorithm = task.family, method.algorithm
    steps = 0 if exact else steps_of(task, scale)
    options = SMOKE_GAME if scale == "smoke" and family == "matrix" and not exact else task.options
    settings = dict(LIKE_DPO.get((algorithm, family), {}))
    if algorithm == "ippo" and "num_states" in options:
        settings["num_steps"] = options["num_states"]
    if not exact:
        settings["total_timesteps"] = steps
        if scale == "smoke":
            settings |= SMOKE[algorithm, family] | {"eval_every": steps // 4, "checkpoint_every": steps // 4}
    settings |= method.settings
    # Not of a run's key, which holds the engine's version: auto may be the game.
    simulator: dict[str, Any] = {}
    if algorithm == "dpo":
        script, name = DPO_SCRIPTS[family]
        settings = {name: task.env_id.partition("/")[2]} | options | settings
        if family == "smac":
            simulator = {"backend": "embedded"}
    else:
        script = f"{algorithm}.py"
        settings = {"env_id": task.env_id} | settings
        if options:
            settings["env_options"] = tuple(f"{name}={value}" for name, value in options.items())
        if family == "smac":
            simulator = {"env_options": (*settings.get("env_options", ()), EMBEDDED)}
    told = resolve(script, settings | {"seed": seed})
    if family == "smac":
        told["engine_version"] = MAPS[task.env_id.removeprefix("smac/")].version
    resolved = json.dumps(told, sort_keys=True)
    flags = as_flags(settings | simulator)
    return Run(script, flags, seed, task.name, label_of(method.settings), steps, resolved)


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
