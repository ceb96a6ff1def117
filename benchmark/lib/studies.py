"""What was measured beyond the paper's figures, as data: which runs, drawn and tabulated together how."""

from __future__ import annotations

from dataclasses import dataclass

from benchmark.lib.runs import RETURN, WIN_RATE

FIGURE_RUN = "?__????????"  # how the key of a figure's run ends: its seed, and a hash of its command


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
    diagnostics: tuple[str, ...] = ()  # environments of the first panel of which eq. (21) is drawn
    tables: tuple[str, ...] = ("p", "runs")  # of: IQM, p, runs, learning, peer
    figure: str = ""  # or a figure at a scale that is not the one it is published at
    scale: str = ""
    seeds: int = 5


def sweep(script: str, flag: str, *values: str, default: str) -> dict[str, str]:
    """Runs recorded by hand with a flag at several values; the default's have no label."""
    ends = {value: f"{script}__?" if value == default else f"{script}__{flag}-{value}__?" for value in values}
    return {f"{flag.replace('-', '_')} {value}": end for value, end in ends.items()}


GAME, SMALL_GAME = (f"matrix-stochastic-{size}" for size in ("100x6x5", "30x3x5"))
MPE = tuple(f"mpe-{task}-5" for task in ("simple_spread", "line_control", "circle_control"))
ROBOTS = ("Hopper-3x1", "HalfCheetah-3x2", "Walker2d-3x2", "Ant-4x2", "Humanoid-17x1")
HOPPER, CHEETAH, *_ = MUJOCO = tuple(f"mamujoco-{robot}" for robot in ROBOTS)
EIGHT, STALKERS, MANY = (f"smac-{name}-embedded" for name in ("8m", "2s3z", "27m_vs_30m"))

DPO = {"DPO": "dpo_matrix__?"}
ABLATIONS = {
    "DPO without sqrt term (IPPO-KL)": "dpo_matrix__no-sqrt-kl-term__?",
    "DPO without KL term": "dpo_matrix__no-kl-term__?",
}
IPPO = {"IPPO, clip 0.2": f"ippo__{FIGURE_RUN}", "IPPO, clip 0.1": "ippo__clip-coef-0.1__?"}
FLOOR = {
    "DPO, floor 0.2": "dpo_matrix__beta-min-0.2__?",
    "floor 0.2, without sqrt term": "dpo_matrix__beta-min-0.2-no-sqrt-kl-term__?",
    "floor 0.2, without KL term": "dpo_matrix__beta-min-0.2-no-kl-term__?",
    "IPPO, clip 0.1": "ippo__clip-coef-0.1__?",
}
OTHERS = {
    "DPO": "dpo_matrix__?",
    **{f"entropy {x}": f"dpo_matrix__ent-coef-{x}__?" for x in ("0", "0.1")},
    **{f"{n} environments": f"dpo_matrix__num-envs-{n}__?" for n in (8, 128)},
    **{f"learning rate {x}": f"dpo_matrix__learning-rate-{x}__?" for x in ("0.0001", "0.002")},
}


def figure_methods(script: str) -> dict[str, str]:
    """DPO, its ablations and IPPO as figures run them."""
    return {
        "DPO": f"{script}__{FIGURE_RUN}",
        "DPO without sqrt term (IPPO-KL)": f"{script}__no-sqrt-kl-term__{FIGURE_RUN}",
        "DPO without KL term": f"{script}__no-kl-term__{FIGURE_RUN}",
        "IPPO": f"ippo__{FIGURE_RUN}",
    }


STUDIES = {
    "game": Study(
        "DPO and IPPO on the stochastic game",
        (
            Curves((GAME, SMALL_GAME), DPO | ABLATIONS | IPPO, "ablations, IPPO"),
            Curves(
                (GAME, SMALL_GAME),
                sweep("dpo_matrix", "d-target", "0.01", "0.001", "0.1", "1", default="0.01"),
                "d_target",
            ),
            Curves(
                (GAME, SMALL_GAME),
                sweep("dpo_matrix", "beta-min", "0.05", "0", "0.01", "0.2", "0.3", default="0.05"),
                "floor of N·beta",
            ),
            Curves((SMALL_GAME,), FLOOR, "floor 0.2"),
            Curves((SMALL_GAME,), OTHERS, "other settings"),
            Curves(("matrix-stochastic-30x6x2", "matrix-stochastic-30x12x2"), DPO, "number of agents"),
        ),
        diagnostics=(GAME,),
    ),
    "mpe": Study(
        "DPO on the particle worlds",
        (
            Curves(MPE, {"DPO": f"dpo_mpe__{FIGURE_RUN}"}, "2M steps", steps=2_000_000),
            Curves(
                tuple(f"mpe-circle_control-{agents}" for agents in (3, 10, 20)),
                {"DPO": "dpo_mpe__?"},
                "number of agents",
            ),
        ),
        diagnostics=MPE[:1],
        tables=("runs",),
    ),
    "mpe-floor": Study(
        "The floor of N·beta on the particle worlds",
        (Curves(MPE, {f"floor {x}": f"dpo_mpe__beta-min-{x}__?" for x in ("0.2", "0.05", "0")}),),
        picture=False,
        tables=("runs",),
    ),
    "fig2-300k": Study("Figure 2 at 300k steps", figure="fig2", scale="small"),
    "fig8-300k": Study("Figure 8 at 300k steps on the particle worlds", figure="fig8", scale="small"),
    "mujoco": Study(
        "DPO on multi-agent MuJoCo",
        (Curves(MUJOCO, {"DPO": "dpo_mamujoco__?"}),),
        diagnostics=(CHEETAH,),
        tables=("runs",),
    ),
    "smac": Study(
        "DPO on SMAC maps, embedded engine",
        (
            Curves((EIGHT, STALKERS), {"DPO": "dpo_smac__?"}, "win rate", WIN_RATE),
            Curves((MANY,), {"DPO": "dpo_smac__?"}, "return; no battle is won"),
        ),
        diagnostics=(EIGHT,),
        tables=("runs",),
    ),
    "2s3z": Study(
        "What holds DPO back on 2s3z: explanations tried",
        (
            Curves(
                (STALKERS,),
                {
                    "DPO": f"dpo_smac__{FIGURE_RUN}",
                    "DPO, root of the mean KL": "dpo_smac__even-root__?",
                    "DPO, ω 1.2": "dpo_smac__omega-1.2__?",
                    "DPO, d_target 0.01": "dpo_smac__d-target-0.01__?",
                    "DPO, d_target 0.005": "dpo_smac__d-target-0.005__?",
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
            Curves(MPE, figure_methods("dpo_mpe"), "particle worlds", steps=2_000_000),
            Curves((HOPPER, CHEETAH), figure_methods("dpo_mamujoco"), "MuJoCo", steps=500_000),
            Curves((EIGHT, STALKERS), figure_methods("dpo_smac"), "SMAC", WIN_RATE, 500_000),
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
