"""The figures as data are the paper's: its tasks, methods and values by the number of the figure."""

import json

import pytest

from benchmark.figures import BEST, FIGURES, SEEDS, panel_runs
from benchmark.lib.runs import KL, RETURN
from envs.matrix import PAYOFFS

GAME = {"matrix/stochastic"}
WORLDS = {"mpe/simple_spread", "mpe/line_control", "mpe/circle_control"}
ROBOTS = {"Hopper-3x1", "HalfCheetah-3x2", "Walker2d-3x2", "Ant-4x2", "Humanoid-17x1"}
ROBOTS = {f"mamujoco/{robot}" for robot in ROBOTS}
HARD = {"smac/27m_vs_30m", "smac/MMM2"}
MAPS = {"smac/2s3z", "smac/8m", "smac/3s5z"} | HARD

D_TARGETS = {"matrix": 0.1, "mpe": 0.01, "mamujoco": 0.001, "smac": 0.02}  # Table 2
TABLE_2 = {"learning_rate": 5e-4, "update_epochs": 15, "beta_init": 0.01}  # of all scripts that have these


def curve(algorithm, **settings):
    """A curve as what it stands for: its algorithm, and the settings that figures vary."""
    return algorithm, frozenset(settings.items())


def dpo(**departures):
    """DPO as Table 2 has it but for this; no d_target: the family's."""
    return curve("dpo", **{"delta": 1.5, "omega": 2.0, "sqrt_kl_term": "state", "kl_term": True} | departures)


IPPO, IQL, IDDPG = curve("ippo", clip_coef=0.2), curve("iql"), curve("iddpg")
NO_SQRT, NO_KL = dpo(sqrt_kl_term="off"), dpo(kl_term=False)  # w/o_sqrt, which is IPPO-KL; w/o_kl
ABLATIONS = [dpo(), NO_KL, NO_SQRT, IPPO]
PAIRS = ((1.5, 2), (1.5, 4), (1.5, 6), (1.1, 2), (3, 2), (3, 6), (1.1, 6))

LEARNED = {
    ("fig1", "a"): (GAME, [dpo(), IPPO, IQL]),
    ("fig1", "b"): (GAME, [dpo(d_target=x) for x in (0.001, 0.01, 0.1, 1)]),
    ("fig2", ""): (WORLDS, [dpo(), IPPO, IQL]),
    ("fig3", ""): (ROBOTS, [dpo(), IPPO, IDDPG]),
    ("fig4", ""): (MAPS, [dpo(), IPPO, IQL]),
    ("fig5", ""): (WORLDS, ABLATIONS),
    ("fig6", ""): (ROBOTS, ABLATIONS),
    ("fig7", ""): (MAPS, ABLATIONS),
    ("fig8", ""): (GAME, [*ABLATIONS, IQL]),
    ("fig9", ""): (GAME, [dpo(delta=delta, omega=omega) for delta, omega in PAIRS]),
    ("fig10", ""): (HARD, [dpo(), *(curve("ippo", clip_coef=clip) for clip in (0.05, 0.1, 0.2, 0.3))]),
    ("fig12", ""): (HARD, [dpo()]),
}


VARIED = ("delta", "omega", "sqrt_kl_term", "kl_term", "clip_coef", "d_target")


def at_target(method, d_target):
    """The same curve with its family's d_target, if it is DPO's and has none of its own."""
    algorithm, settings = method[0], dict(method[1])
    return curve(algorithm, **({"d_target": d_target} if algorithm == "dpo" else {}) | settings)


def curves(figure, panel):
    """(task, curve) of every run of a panel, with all settings of the run."""
    for of, task, method, run in panel_runs(figure, "paper", [1]):
        if of == panel:
            yield task, method, run, json.loads(run.settings)


def paper_panel(name, panel):
    (found,) = (x for x in FIGURES[name].panels if x.name == panel and not x.best)
    return found


def test_no_figure_has_another_panel():
    """Of the paper's settings; those of the best known ones are told apart below."""
    there = [(name, panel.name) for name, x in FIGURES.items() for panel in x.panels if not panel.best]
    assert sorted(there) == sorted([*LEARNED, ("fig11", "")])


@pytest.mark.parametrize(("name", "panel"), LEARNED)
def test_a_figure_has_exactly_the_papers_tasks_and_methods(name, panel):
    """One curve more or less, or another value, would be a figure of another paper."""
    tasks, methods = LEARNED[name, panel]
    found = {}
    for task, _, run, settings in curves(FIGURES[name], paper_panel(name, panel)):
        algorithm = run.script.removesuffix(".py").replace(f"dpo_{task.family}", "dpo")
        varied = {x: settings[x] for x in VARIED if x in settings}
        found.setdefault(task.env_id, []).append(curve(algorithm, **varied))
        assert {x: settings[x] for x in TABLE_2 if x in settings}.items() <= TABLE_2.items()
    assert found.keys() == tasks
    for env_id, there in found.items():
        expected = {at_target(method, D_TARGETS[env_id.partition("/")[0]]) for method in methods}
        assert len(there) == len(methods) and set(there) == expected


def test_metrics_are_the_papers():
    """Win rates, but the return on the maps that nobody can win (4.4), and Figure 12's KL."""
    metrics = {}
    for name, figure in FIGURES.items():
        for panel in figure.panels:
            for task in panel.tasks:
                metrics.setdefault((task.env_id, name == "fig12"), set()).add(task.metric)
    for (env_id, is_12), found in metrics.items():
        assert found == {KL if is_12 else RETURN if env_id in HARD else ""}, env_id


def test_figure_11_iterates_exactly_with_the_papers_c():
    """On the four games of Table 3, without learning."""
    assert list(PAYOFFS.values()) == [(5, 7, 6, 4), (1, 3, 5, 4), (7, 1, 1, 3), (20, 0, 0, 10)]
    assert FIGURES["fig11"].exact and not any(x.exact for name, x in FIGURES.items() if name != "fig11")
    games = {}
    for task, _, run, settings in curves(FIGURES["fig11"], paper_panel("fig11", "")):
        games.setdefault(task.env_id, []).append(settings["m_hat"])
        assert settings["c"] == 10 and settings["game"] == task.env_id[-1] and run.script == "dpo_matrix.py"
    assert games == {f"matrix/{game}": [0.35, 0.0, 0.0, "theory"] for game in (1, 2, 3, 4)}


def test_five_seeds_of_tasks_as_they_are():
    """All learning curves have five seeds (3); 100 states, N = 5 and agent_obsk 2 are the defaults."""
    assert SEEDS["paper"] == 5
    assert not any(task.options for x in FIGURES.values() for panel in x.panels for task in panel.tasks)


def test_best_known_settings_are_given_to_every_variant_of_dpo():
    """A panel beside that of the paper's settings: the same curves by role, baselines left as they are."""
    count = 0
    for name, figure in FIGURES.items():
        for panel in (panel for panel in figure.panels if panel.best):
            paper = paper_panel(name, panel.name)
            rows = zip(curves(figure, paper), curves(figure, panel), strict=True)
            for (task, method, _, before), (same_task, variant, _, after) in rows:
                count += 1
                assert task == same_task and (variant.role or variant.name) == method.name
                differ = {x: after[x] for x in before.keys() | after.keys() if before[x] != after[x]}
                words, settings = BEST[task.family]
                if method.algorithm == "dpo":
                    assert differ == settings and variant.name == f"{method.name}, {words}"
                else:
                    assert not differ and variant == method
    assert count > 100


def test_claims_speak_of_what_their_panels_have():
    """A name that is not there would leave a claim 'not run' for ever."""
    for name, figure in FIGURES.items():
        assert figure.claims
        for claim in figure.claims:
            panels = [panel for panel in figure.panels if panel.name == claim.panel]
            assert panels and claim.section, (name, claim.text)
            for panel in panels:
                roles = {method.role or method.name for method in panel.methods}
                assert roles >= set(claim.test.methods), (name, claim.text)
                assert {task.name for task in panel.tasks} >= set(claim.test.tasks), (name, claim.text)
