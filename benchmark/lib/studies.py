"""What was measured beyond the paper's figures, as data: which runs, drawn and tabulated together how."""

from __future__ import annotations

from dataclasses import dataclass

from benchmark.figures import BEST, label_of
from benchmark.lib.runs import RETURN, WIN_RATE

FIGURE_RUN = "?__????????"  # how the key of a figure's run ends: its seed, and a hash of its settings


@dataclass(frozen=True)
class Curves:
    """Methods in some environments: name -> how the keys of its runs end, `?` being the seed."""

    envs: tuple[str, ...]
    methods: dict[str, str]
    name: str = ""
    metric: str = RETURN
    steps: int = 0  # only runs with this budget; 0: with any


@dataclass(frozen=True)
class Study:
    """A folder of results/studies: README.md, whose table is generated, and pictures that pages link."""

    title: str
    panels: tuple[Curves, ...] = ()
    picture: bool = True
    hours: bool = False  # another one against wall-clock time
    diagnostics: str = ""  # an environment of the first panel, of which eq. (21) is drawn
    tables: tuple[str, ...] = ("p", "runs")  # of: IQM, p, runs, learning, battles, peer, basins


def sweep(
    script: str, flag: str, *values: str, before: str = "", default: str, ends: str = "?"
) -> dict[str, str]:
    """Runs with a flag at several values; `before`: of their label; the default's has the flag not in it."""
    found = {}
    for value in values:
        label = "-".join(filter(None, [before, "" if value == default else f"{flag}-{value}"]))
        found[f"{flag.replace('-', '_')} {value}"] = "__".join(filter(None, [script, label, ends]))
    return found


GAME, SMALL_GAME = GAMES = tuple(f"matrix-stochastic-{size}" for size in ("100x6x5", "30x3x5"))
GAMES_OF_N = (SMALL_GAME, "matrix-stochastic-30x6x2", "matrix-stochastic-30x12x2")
MPE = tuple(f"mpe-{task}-5" for task in ("simple_spread", "line_control", "circle_control"))
ROBOTS = ("Hopper-3x1", "HalfCheetah-3x2", "Walker2d-3x2", "Ant-4x2", "Humanoid-17x1")
HOPPER, CHEETAH, *_ = MUJOCO = tuple(f"mamujoco-{robot}" for robot in ROBOTS)
EIGHT, STALKERS, MANY = (f"smac-{name}-embedded" for name in ("8m", "2s3z", "27m_vs_30m"))

# With which floor (and target) a family's runs were made before the paper's own rule was the default.
WORDS = {family: words for family, (words, _) in BEST.items()} | {"smac": "floor 0.05"}
OLD = {family: label_of(settings) for family, (_, settings) in BEST.items()} | {"smac": "beta-min-0.05"}


def with_floor(family: str, ends: str, ippo: bool = True) -> dict[str, str]:
    """DPO and its ablations with the floor that served their family, and IPPO; `ends`: of their keys."""
    script, words = f"dpo_{family}__{OLD[family]}", WORDS[family]
    methods = {
        f"DPO, {words}": f"{script}__{ends}",
        f"DPO without sqrt term (IPPO-KL), {words}": f"{script}-sqrt-kl-term-off__{ends}",
        f"DPO without KL term, {words}": f"{script}-no-kl-term__{ends}",
    }
    return methods | ({"IPPO": f"ippo__{ends}"} if ippo else {})


def d_targets(family: str, *values: str) -> dict[str, str]:
    """DPO with its family's floor at these targets, in runs of figures."""
    ends = {f"DPO, {WORDS[family]}": f"dpo_{family}__{OLD[family]}__{FIGURE_RUN}"}
    return ends | {
        f"{WORDS[family]}, d_target {value}": f"dpo_{family}__{OLD[family]}-d-target-{value}__{FIGURE_RUN}"
        for value in values
    }


PAIRS = {
    f"{name} {value}": f"{name}-{value}"
    for name, values in (("delta", ("1.2", "2.0", "3.0")), ("omega", ("1.2", "1.5", "4.0")))
    for value in values
}


def pairs(family: str) -> dict[str, str]:
    """DPO with its family's floor and other constants of eq. (21)."""
    script = f"dpo_{family}__{OLD[family]}"
    ends = {f"DPO, {WORDS[family]}": f"{script}__{FIGURE_RUN}"}
    return ends | {
        f"{WORDS[family]}, {name}": f"{script}-{label}__{FIGURE_RUN}" for name, label in PAIRS.items()
    }


def clips(end: str = FIGURE_RUN) -> dict[str, str]:
    """IPPO with other clips."""
    return {"IPPO": f"ippo__{end}"} | {
        f"IPPO, clip {clip}": f"ippo__clip-coef-{clip}__{end}" for clip in ("0.05", "0.1", "0.3")
    }


FLOOR = {
    "DPO, floor 0.2": "dpo_matrix__beta-min-0.2-d-target-0.01__?",
    "floor 0.2, without sqrt term": "dpo_matrix__beta-min-0.2-d-target-0.01-sqrt-kl-term-off__?",
    "floor 0.2, without KL term": "dpo_matrix__beta-min-0.2-d-target-0.01-no-kl-term__?",
    "IPPO, clip 0.1": "ippo__clip-coef-0.1__?",
}
OTHERS = {
    f"DPO, {WORDS['matrix']}": f"dpo_matrix__{OLD['matrix']}__?",
    **{f"entropy {x}": f"dpo_matrix__{OLD['matrix']}-ent-coef-{x}__?" for x in ("0.0", "0.1")},
    **{f"{n} environments": f"dpo_matrix__{OLD['matrix']}-num-envs-{n}__?" for n in (8, 128)},
    **{
        f"learning rate {x}": f"dpo_matrix__{OLD['matrix']}-learning-rate-{x}__?" for x in ("0.0001", "0.002")
    },
}

STUDIES = {
    "game": Study(
        "DPO and IPPO on the stochastic game, d_target 0.01",
        (
            Curves(
                GAMES,
                with_floor("matrix", "?", ippo=False)
                | {"IPPO, clip 0.2": f"ippo__{FIGURE_RUN}", "IPPO, clip 0.1": "ippo__clip-coef-0.1__?"},
                "ablations, IPPO",
            ),
            Curves(
                GAMES,
                sweep(
                    "dpo_matrix",
                    "d-target",
                    "0.01",
                    "0.001",
                    "0.1",
                    "1.0",
                    before="beta-min-0.05",
                    default="0.1",
                ),
                "d_target at floor 0.05",
            ),
            Curves(
                GAMES,
                {
                    f"floor {x}": f"dpo_matrix__beta-min-{x}-d-target-0.01__?"
                    for x in ("0.05", "0.0", "0.01", "0.2", "0.3")
                },
                "floor of N·beta at d_target 0.01",
            ),
            Curves((SMALL_GAME,), FLOOR, "floor 0.2"),
            Curves((SMALL_GAME,), OTHERS, "other settings"),
        ),
        diagnostics=GAME,
    ),
    "departures": Study(
        "Departures from the paper's settings",
        (
            Curves(
                (GAME,),
                {
                    "DPO": f"dpo_matrix__{FIGURE_RUN}",
                    "d_target 0.01": f"dpo_matrix__d-target-0.01__{FIGURE_RUN}",
                    "floor 0.05": f"dpo_matrix__beta-min-0.05__{FIGURE_RUN}",
                    "floor 0.05, d_target 0.01": f"dpo_matrix__{OLD['matrix']}__{FIGURE_RUN}",
                    "no floor": "dpo_matrix__beta-min-0.0__?",
                    "root of the average": "dpo_matrix__sqrt-kl-term-average__?",
                    "root of the average, d_target 0.01": "dpo_matrix__d-target-0.01-sqrt-kl-term-average__?",
                    "no entropy bonus": "dpo_matrix__ent-coef-0.0__?",
                },
                "stochastic game",
                steps=1_000_000,
            ),
            Curves(
                (GAME,),
                {
                    "DPO": f"dpo_matrix__{FIGURE_RUN}",
                    "advantages as they are": "dpo_matrix__no-advantage-norm__?",
                },
                "advantages",
                steps=1_000_000,
            ),
            Curves(  # where eq. (21) is at work, so that it may show which root it is
                (GAME,),
                {
                    "d_target 0.01": f"dpo_matrix__d-target-0.01__{FIGURE_RUN}",
                    "root of the average, d_target 0.01": "dpo_matrix__d-target-0.01-sqrt-kl-term-average__?",
                },
                "the root at d_target 0.01",
                steps=1_000_000,
            ),
            Curves(
                (GAME,),
                {
                    "DPO (300k steps)": "dpo_matrix__300k__?",
                    "batches of one episode": "dpo_matrix__num-envs-1__?",
                },
                "stochastic game, 300k steps",
                steps=300_000,
            ),
            Curves(
                MPE,
                {
                    "DPO": f"dpo_mpe__{FIGURE_RUN}",
                    "floor 0.2": f"dpo_mpe__{OLD['mpe']}__{FIGURE_RUN}",
                },
                "particle worlds",
                steps=2_000_000,
            ),
            Curves(
                ("mamujoco-Hopper-3x1", "mamujoco-HalfCheetah-3x2"),
                {
                    "DPO (robots)": f"dpo_mamujoco__{FIGURE_RUN}",
                    "floor 0.2 (robots)": f"dpo_mamujoco__{OLD['mamujoco']}__{FIGURE_RUN}",
                },
                "robots",
                steps=500_000,
            ),
            Curves(
                (CHEETAH,),
                {
                    "DPO (robots)": f"dpo_mamujoco__{FIGURE_RUN}",
                    "the whole observation": "dpo_mamujoco__obs-full__?",
                    "observations as they are": "dpo_mamujoco__no-obs-norm__?",
                    "advantages as they are": "dpo_mamujoco__no-advantage-norm__?",
                    "returns as they are": "dpo_mamujoco__no-value-norm__?",
                    "LayerNorm": "dpo_mamujoco__layer-norm__?",
                    "initial std 1": "dpo_mamujoco__log-std-init-0__?",
                },
                "HalfCheetah-3x2",
                steps=500_000,
            ),
            Curves(
                (f"{CHEETAH}-v4",),
                {"gymnasium's v4": "dpo_mamujoco__version-v4__?"},
                "HalfCheetah-3x2, v4",
                steps=500_000,
            ),
            Curves(
                (STALKERS + "2",),
                {
                    "DPO": "dpo_smac__?",
                    "floor 0.05": "dpo_smac__beta-min-0.05__?",
                    "the dead learned from": "dpo_smac__exclude-dead-false__?",
                    "root of the average": "dpo_smac__sqrt-kl-term-average__?",
                    "no LayerNorm": "dpo_smac__no-layer-norm__?",
                    "advantages as they are": "dpo_smac__no-advantage-norm__?",
                },
                "2s3z, engine 2",
                WIN_RATE,
                steps=500_000,
            ),
            Curves(
                (EIGHT + "2",),
                {
                    "DPO (8m)": f"dpo_smac__{FIGURE_RUN}",
                    "d_target 0.005 (8m)": f"dpo_smac__d-target-0.005__{FIGURE_RUN}",
                },
                "8m, engine 2",
                WIN_RATE,
            ),
        ),
    ),
    "literal": Study(
        "Algorithm 1 to the letter on the stochastic game",
        (
            Curves(
                (GAME,),
                {
                    "DPO": "dpo_matrix__num-envs-1__?",
                    "IPPO": "ippo__num-envs-1__?",
                    "DPO, 32 episodes": "dpo_matrix__300k__?",
                    "IPPO, 32 episodes": "ippo__300k__?",
                },
                steps=300_000,
            ),
        ),
        diagnostics=GAME,
    ),
    "basins": Study(
        "Where the exact iteration ends on the games of Table 3", picture=False, tables=("basins",)
    ),
    "agents": Study(
        "Number of agents on stochastic games",
        (
            Curves(
                GAMES_OF_N,
                {
                    f"DPO, {WORDS['matrix']}": f"dpo_matrix__{OLD['matrix']}__{FIGURE_RUN}",
                    "IPPO": f"ippo__{FIGURE_RUN}",
                },
            ),
        ),
        tables=("IQM", "p", "runs"),
    ),
    "d-target": Study(
        "d_target with floors",
        (
            Curves(MPE, d_targets("mpe", "0.001", "0.1", "1.0"), "particle worlds", steps=2_000_000),
            Curves(
                (HOPPER, CHEETAH), d_targets("mamujoco", "0.0001", "0.01", "0.1"), "MuJoCo", steps=500_000
            ),
            Curves(
                (EIGHT, STALKERS), d_targets("smac", "0.002", "0.1", "1.0"), "SMAC", WIN_RATE, steps=500_000
            ),
        ),
        tables=("IQM", "p", "runs"),
    ),
    "pairs": Study(
        "Other constants (δ, ω) of eq. (21), with floors",
        (
            Curves((GAME,), pairs("matrix"), "stochastic game"),
            Curves(MPE, pairs("mpe"), "particle worlds", steps=2_000_000),
        ),
        tables=("IQM", "p", "runs"),
    ),
    "clips": Study(
        "IPPO's clip on easier tasks",
        (
            Curves((GAME,), clips(), "stochastic game"),
            Curves(MPE[:1], clips(), "particle world", steps=300_000),
        ),
    ),
    "fig2-300k": Study(
        "Figure 2 at 300k steps, with floor 0.2",
        (
            Curves(
                MPE,
                {
                    "DPO, floor 0.2": f"dpo_mpe__beta-min-0.2__{FIGURE_RUN}",
                    "IPPO": f"ippo__{FIGURE_RUN}",
                    "IQL": f"iql__{FIGURE_RUN}",
                },
                steps=300_000,
            ),
        ),
        tables=("IQM", "p", "runs"),
    ),
    "d-target-300k": Study(
        "d_target on the particle worlds at 300k steps, with floor 0.2",
        (Curves(MPE, d_targets("mpe", "0.001", "0.1", "1.0"), steps=300_000),),
        tables=("IQM", "p", "runs"),
    ),
    "mpe": Study(
        "DPO with floor 0.2 on the particle worlds",
        (
            Curves(
                MPE,
                {"DPO, floor 0.2": f"dpo_mpe__beta-min-0.2__{FIGURE_RUN}"},
                "2M steps",
                steps=2_000_000,
            ),
            Curves(
                tuple(f"mpe-circle_control-{agents}" for agents in (3, 10, 20)),
                {"DPO, floor 0.2": "dpo_mpe__beta-min-0.2__?"},
                "number of agents",
            ),
        ),
        diagnostics=MPE[0],
        tables=("runs",),
    ),
    "mpe-floor": Study(
        "The floor of N·beta on the particle worlds",
        (Curves(MPE, {f"floor {x}": f"dpo_mpe__beta-min-{x}__?" for x in ("0.2", "0.05", "0.0")}),),
        picture=False,
        tables=("runs",),
    ),
    "mujoco": Study(
        "DPO on multi-agent MuJoCo",
        (Curves(MUJOCO, {"DPO, floor 0.2": "dpo_mamujoco__beta-min-0.2__?"}),),
        diagnostics=CHEETAH,
        tables=("runs",),
    ),
    "smac": Study(
        "DPO on SMAC maps, embedded engine, version 1",
        (
            Curves(
                (EIGHT, STALKERS), {"DPO, floor 0.05": "dpo_smac__beta-min-0.05__?"}, "win rate", WIN_RATE
            ),
            Curves((MANY,), {"DPO, floor 0.05": "dpo_smac__beta-min-0.05__?"}, "return; no battle is won"),
            Curves((EIGHT, STALKERS), with_floor("smac", FIGURE_RUN), "500k steps", WIN_RATE, 500_000),
        ),
        diagnostics=EIGHT,
        tables=("p", "runs"),
    ),
    "maps": Study(
        "DPO on further battles, engines 2 and 3",
        (
            Curves(
                (EIGHT + "2",),
                {"DPO": "dpo_smac__?", "DPO, floor 0.05": "dpo_smac__beta-min-0.05__?"},
                "win rate",
                WIN_RATE,
            ),
            *(
                Curves((f"smac-{name}",), {"DPO, floor 0.05": "dpo_smac__beta-min-0.05__?"}, "return")
                for name in ("6h_vs_8z-embedded2", "corridor-embedded3", "10gen_terran_5_vs_5-embedded2")
            ),
        ),
        tables=("runs", "battles"),
    ),
    "2s3z": Study(
        "What holds DPO back on 2s3z: explanations tried",
        (
            Curves(
                (STALKERS,),
                {
                    "DPO, floor 0.05": f"dpo_smac__beta-min-0.05__{FIGURE_RUN}",
                    "floor 0.05, root of the average": "dpo_smac__beta-min-0.05-sqrt-kl-term-average__?",
                    "floor 0.05, ω 1.2": "dpo_smac__beta-min-0.05-omega-1.2__?",
                    "floor 0.05, d_target 0.01": "dpo_smac__beta-min-0.05-d-target-0.01__?",
                    "floor 0.05, d_target 0.005": "dpo_smac__beta-min-0.05-d-target-0.005__?",
                },
                metric=WIN_RATE,
                steps=500_000,
            ),
        ),
        picture=False,
        tables=("p", "runs", "learning"),
    ),
    "baselines": Study(
        "IQL and IDDPG",
        (
            Curves((EIGHT,), {"IQL": "iql__?"}, metric=WIN_RATE),
            Curves(MPE[:1], {"IQL": "iql__?"}),
            Curves((CHEETAH,), {"IDDPG": "iddpg__?"}, "IDDPG"),
        ),
        tables=("runs",),
    ),
    "learning": Study(
        "How DPO, its ablations and IPPO learn",
        (
            Curves(MPE, with_floor("mpe", FIGURE_RUN), "particle worlds", steps=2_000_000),
            Curves((HOPPER, CHEETAH), with_floor("mamujoco", FIGURE_RUN), "MuJoCo", steps=500_000),
            Curves((EIGHT, STALKERS), with_floor("smac", FIGURE_RUN), "SMAC", WIN_RATE, 500_000),
            Curves(
                (EIGHT + "2", STALKERS + "2"),
                {
                    "DPO": f"dpo_smac__{FIGURE_RUN}",
                    "DPO, d_target 0.005": f"dpo_smac__d-target-0.005__{FIGURE_RUN}",
                    "IPPO": f"ippo__{FIGURE_RUN}",
                },
                "SMAC, engine 2",
                WIN_RATE,
            ),
        ),
        picture=False,
        tables=("learning",),
    ),
    "peer": Study(
        "ippo.py beside BenchMARL's IPPO",
        (Curves(("mpe-simple_spread-5-mpe2",), {"ippo.py": "ippo__peer__?", "BenchMARL": "BenchMARL__?"}),),
        hours=True,
        tables=("peer",),
    ),
}
