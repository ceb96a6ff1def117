"""Figures of the paper: recorded whole, aggregated as published, and readable by other tools."""

import io
import itertools
import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import made_runs
import numpy as np
import pytest
from made_runs import EVALS, FIGURE_EVERY, final, level, made, make_runs, record_runs, whole
from matplotlib.image import imread
from test_statistics import welch

from benchmark import plot
from benchmark.figures import FIGURES, panel_runs
from benchmark.lib import statistics as stats
from benchmark.lib.cells import (
    Cell,
    aggregate_table,
    aggregates,
    by_panel,
    comparison_table,
    interquartile_means,
    p_words,
    shown,
)
from benchmark.lib.drawing import draw_cells
from benchmark.lib.gather import NoRunError, figure_cells
from benchmark.lib.groups import Group, engine
from benchmark.lib.marl_eval import marl_eval
from benchmark.lib.published import (
    claim_rows,
    claims_in_words,
    figure_pictures,
    figure_text,
    lacking,
    plan,
    still_to_run,
)
from benchmark.lib.record import record
from benchmark.lib.runs import RETURN, ResultsError
from benchmark.lib.store import PUBLISHED, Store
from envs.smac.maps import SmacMap

SEEDS = (1, 2, 3)
BELOW = "below (p < 0.001)"
TASKS = tuple(f"mpe-{task}" for task in ("simple_spread", "line_control", "circle_control"))


@pytest.fixture(scope="module")
def figure_2(tmp_path_factory):
    """All runs of Figure 2; read only."""
    return made(tmp_path_factory.mktemp("fig2"), "fig2")


def test_a_figure_is_drawn_and_tabulated(figure_2):
    """From runs to what is published: nothing may be left out or made up on the way."""
    text = figure_text("fig2", "small", SEEDS, figure_2)
    assert "missing" not in text and all(claim.text in text for claim in FIGURES["fig2"].claims)
    pictures = figure_pictures("fig2", "small", SEEDS, figure_2, hours=True)
    assert list(pictures) == ["fig2.png", "fig2-time.png"]
    assert all(imread(io.BytesIO(picture)).std() > 0.05 for picture in pictures.values())
    assert len(figure_2.runs) == 36  # three tasks and seeds, DPO also at its best known settings
    values = [final("IQL", "mpe-line_control", seed) for seed in SEEDS]
    (row,) = (line for line in text.splitlines() if line.startswith("| mpe-line_control | IQL |"))
    assert f"| 3 | 300 k | {np.mean(values):.2f} ± " in row
    assert "seeds 1, 2, 3; budget 300 k environment steps; engine: embedded; git commit c0ffee7." in text


def test_scales_share_equal_runs(tmp_path):
    """The game has one budget: neither running nor drawing a larger scale may ask for its runs again."""
    store = made(tmp_path, "fig9", scale="small")
    cells, gaps = figure_cells("fig9", "paper", SEEDS, store)
    assert [(cell.family, len(cell.groups)) for cell in cells] == [("matrix", 7)] * 2
    assert gaps.missing == gaps.unfinished == set()
    made(tmp_path, "fig2", seeds=(1,), scale="small")  # the particle worlds have other budgets
    with pytest.raises(NoRunError, match="no run of fig2 at scale paper"):
        figure_cells("fig2", "paper", SEEDS, Store(tmp_path / "results"))


def test_a_figure_is_published_at_the_scale_of_which_more_is_run():
    """Runs at scale paper must be drawn, but the first of them, though long, may not hide all others."""

    def store(**seeds):
        runs = [run for scale, own in seeds.items() for *_, run in panel_runs(FIGURES["fig5"], scale, own)]
        return SimpleNamespace(runs={run.key: SimpleNamespace(steps_reached=run.steps) for run in runs})

    assert plan("fig5", store()) == ("paper", range(1, 6))
    assert plan("fig5", store(small=(1, 2))) == ("small", range(1, 6))
    assert plan("fig5", store(small=(1, 2), paper=(1,)))[0] == "small"
    assert plan("fig5", store(small=(1, 2), paper=(1, 2)))[0] == "paper"
    assert plan("fig11", store())[0] == "paper"
    eight = [run for *_, run in panel_runs(FIGURES["fig4"], "small", (1,)) if run.task == "smac-8m"]
    few = SimpleNamespace(runs={run.key: SimpleNamespace(steps_reached=run.steps) for run in eight})
    assert plan("fig4", few)[0] == "paper"  # whose runs these are as well


def test_a_picture_of_battles_is_of_the_engine_of_today(tmp_path, monkeypatch):
    """Curves of battles that go otherwise would be compared, or averaged."""
    with monkeypatch.context() as before:
        before.setattr(SmacMap, "version", 1)
        make_runs(tmp_path / "runs", "fig7", seeds=(1,))
    make_runs(tmp_path / "runs", "fig7", seeds=(2,))
    store = record_runs(tmp_path / "runs", tmp_path / "results")
    cells, gaps = figure_cells("fig7", "small", (1, 2), store)
    assert len(gaps.missing) == len(store.runs) / 2 and not gaps.unfinished
    runs = [run for cell in cells for group in cell.groups for run in group.runs]
    assert {run.seed for run in runs} == {2}
    assert {engine(run) for run in runs} == {"embedded engine 2, not StarCraft II"}


def test_runs_of_full_length_are_judged_at_scale_small(tmp_path, monkeypatch):
    """8m and 2s3z have the paper's length there: they refute, but the other maps stay open."""
    make_runs(tmp_path / "runs", "fig4", seeds=range(1, 6))
    store = record_runs(tmp_path / "runs", tmp_path / "results")
    on_all, unwon = claim_rows("fig4", "small", range(1, 6), store)
    assert unwon[1] == "not run"
    assert on_all[1] == "does not hold" and "IQL: equal (p 1, < 5 %)" in on_all[2]
    monkeypatch.setattr(made_runs, "level", lambda method, task, seed: -3.0 - (method != "DPO") + 0.1 * seed)
    make_runs(tmp_path / "better", "fig4", seeds=range(1, 6))
    store = record_runs(tmp_path / "better", tmp_path / "best")
    row = claim_rows("fig4", "small", range(1, 6), store)[0]
    assert row[1] == "open" and row[2].count(BELOW) == 4
    assert claim_rows("fig4", "small", (1, 2, 3), Store(tmp_path / "results"))[0][1] == "open"
    # Two of five robots, and for a shorter time.
    make_runs(tmp_path / "robots", "fig3", seeds=range(1, 6))
    store = record_runs(tmp_path / "robots", tmp_path / "other")
    assert {row[1] for row in claim_rows("fig3", "small", range(1, 6), store)} == {"open"}


def test_runs_of_the_game_and_of_the_engine_are_not_compared(tmp_path):
    """A win rate on StarCraft II beside one on the embedded engine would tell engines apart, not methods."""
    make_runs(tmp_path / "runs", "fig7", seeds=(1, 2))
    paths = list((tmp_path / "runs").glob("*__ippo__*/*/args.json"))
    assert len(paths) == 2 * 2  # both seeds on both maps
    for path in paths:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"backend": "starcraft"}))
    store = record_runs(tmp_path / "runs", tmp_path / "results")
    told = "was played as .*, embedded and as .*, starcraft, which are not to be compared; delete the rows"
    with pytest.raises(ResultsError, match=told):
        figure_cells("fig7", "small", (1, 2), store)


def test_methods_of_the_game_have_no_hours_beside_each_other(tmp_path):
    """DPO sums the samples of a state there and baselines do not: hours would flatter it."""
    cells, _ = figure_cells("fig1", "small", (1,), made(tmp_path, "fig1", seeds=(1,)))
    hours = {cell.panel: cell.has_hours for cell in cells}
    assert hours == {"a": False, "a, best known settings": False, "b": True}  # b has DPO alone
    assert draw_cells(cells[:2], "", timed=True) is None


def test_pictures_and_tables_of_scale_smoke_say_that_they_are_no_results(tmp_path, monkeypatch):
    """Its games are tiny, so a heading that promises 100 states and 6 agents would be false."""
    headings = []
    monkeypatch.setattr(
        "benchmark.lib.published.draw_cells", lambda cells, title, **_: headings.append(title) or b""
    )
    for scale in ("smoke", "small"):
        store = made(tmp_path / scale, "fig1", seeds=(1,), scale=scale)
        figure_pictures("fig1", scale, (1,), store, hours=True)
        headings.append(figure_text("fig1", scale, (1,), store).splitlines()[0])
    smoke, small = headings[:3], headings[3:]
    assert all("no result" in heading and "100 states" not in heading for heading in smoke)
    assert all("100 states" in heading and "no result" not in heading for heading in small)
    assert len(smoke) == len(small) == 3


def test_aggregates_are_interquartile_means_of_normalised_scores(figure_2):
    """What a figure says of several tasks at once must follow from their scores and their references."""
    cells, gaps = figure_cells("fig2", "small", SEEDS, figure_2)
    assert (gaps.missing, gaps.unfinished) == (set(), set())
    panels = by_panel(cells)
    assert [len(members) for members in panels] == [3, 3]
    references = {  # benchmark/results/references.csv
        "mpe-simple_spread": (-18.8163, -3.8744),
        "mpe-line_control": (-22.4540, -4.8088),
        "mpe-circle_control": (-16.4408, -3.4443),
    }
    table = aggregate_table(cells)
    for members, first in zip(panels, ("DPO", "DPO, floor 0.2"), strict=True):
        assert members[0].methods == (first, "IPPO", "IQL")
        for method in members[0].methods:
            row = f"| {method} | 3 |"
            for expected, summary in ((final, stats.final_means), (whole, stats.run_means)):
                scores = [
                    [
                        (expected(method, task, seed) - low) / (high - low)
                        for task, (low, high) in references.items()
                    ]
                    for seed in (1, 2, 3)
                ]
                value, low, high = found = interquartile_means(members, summary)[method]
                assert found == pytest.approx(stats.bootstrap_iqm(scores), rel=1e-4) and low < value < high
                row += f" {value:.3f} ({low:.3f} to {high:.3f}) |"
            assert row in table.splitlines()


def test_two_seeds_have_no_interval(tmp_path):
    """Drawn from two, they would look surer than five."""
    cells, _ = figure_cells("fig2", "small", (1, 2), made(tmp_path, "fig2", seeds=(1, 2)))
    found = interquartile_means(cells[:3])["DPO"]
    assert found[0] == found[1] == found[2]
    assert "to" not in next(x for x in aggregate_table(cells).splitlines() if x.startswith("| DPO |"))


def test_a_single_seed_is_no_yardstick(tmp_path):
    """The luckiest of single runs would be 1, and what has five seeds look worse than it is known to be."""
    make_runs(tmp_path / "runs", "fig3")
    for place in (tmp_path / "runs").glob("*__dpo_mamujoco__[23]__*"):
        shutil.rmtree(place)  # of the best method, as these runs are made
    store = record_runs(tmp_path / "runs", tmp_path / "results")
    cell = next(cell for cell in figure_cells("fig3", "small", SEEDS, store)[0] if not cell.panel)
    means = {x.method: stats.final_means(x.values(RETURN)).mean() for x in cell.groups}
    assert max(means, key=lambda name: means[name]) == "DPO"
    assert cell.scale()[1] == pytest.approx(means["IPPO"])
    assert cell.scores("DPO")[1] > 1 > 0 == pytest.approx(1 - np.mean([*cell.scores("IPPO").values()]))


def test_panels_without_their_first_method_are_not_drawn_twice(tmp_path):
    """IPPO alone beside the same IPPO with DPO looked like a result of the paper's settings."""
    make_runs(tmp_path / "runs", "fig6")
    for place in (tmp_path / "runs").glob("mamujoco-Hopper-3x1__dpo_mamujoco__*"):
        if "beta-min" not in place.name:
            shutil.rmtree(place)
    cells, _ = figure_cells("fig6", "small", SEEDS, record_runs(tmp_path / "runs", tmp_path / "results"))
    best = "best known settings"
    hopper, cheetah = "mamujoco-Hopper-3x1", "mamujoco-HalfCheetah-3x2"
    places = [(cell.task, cell.panel) for cell in cells]
    assert places == [(hopper, ""), (cheetah, ""), (hopper, best), (cheetah, best)]
    assert [(cell.task, cell.panel) for cell in shown(cells)] == places[1:]
    text = figure_text("fig6", "small", SEEDS, Store(tmp_path / "results"))
    told = "Not drawn, as the first method is missing there and the others are in another panel too"
    assert f"{told}: {hopper}.\n" in text
    assert f"on {hopper}\n" in text and f"| {hopper} | IPPO | 3 |" in text  # what is missing, what is there
    # Where neither panel has its first method, one of them stays.
    for cell in cells:
        cell.groups = [group for group in cell.groups if group.method == "IPPO"]
    assert [(cell.task, cell.panel) for cell in shown(cells)] == places[:2]
    assert not aggregates(cells) and not aggregate_table(cells)  # of a method by itself alone


def test_battles_of_todays_engine_share_a_panel_whatever_their_version():
    """MMM2 is of version 3 and 8m of 2: both as the engine plays them now; those of version 1 are not."""

    def cells(*envs):
        runs = [SimpleNamespace(env=env) for env in envs]
        tasks = [env.rpartition("-")[0] for env in envs]
        return [
            Cell(task, "", ("DPO",), RETURN, [Group([run])]) for task, run in zip(tasks, runs, strict=True)
        ]

    assert len(by_panel(cells("smac-8m-embedded2", "smac-MMM2-embedded3"))) == 1
    assert len(by_panel(cells("smac-8m-embedded2", "smac-MMM2-embedded2"))) == 2
    assert len(by_panel(cells("smac-8m-embedded", "smac-MMM2-embedded"))) == 1


def test_methods_are_compared_with_the_first_of_their_panel(tmp_path):
    """p of Welch's test from its definition, per task and of the seeds' means over tasks."""
    make_runs(tmp_path / "runs", "fig2")
    (place,) = (tmp_path / "runs").glob("mpe-line_control__ippo__2*")
    shutil.rmtree(place)
    store = record_runs(tmp_path / "runs", tmp_path / "results")
    panels = by_panel(figure_cells("fig2", "small", SEEDS, store)[0])
    for cells, first in zip(panels, ("DPO", "DPO, floor 0.2"), strict=True):
        tests, _, chances = comparison_table(cells).partition("\n\n| probability of being above ")
        rows = {line.split(" | ")[0]: line for line in tests.splitlines()}
        dpo, ippo = (
            [[final(name, cell.task, seed) for seed in (1, 2, 3)] for cell in cells]
            for name in (first, "IPPO")
        )
        spans = [high - low for low, high in (cell.scale()[:2] for cell in cells)]
        ps = [welch(dpo[0], ippo[0]), welch(dpo[1], ippo[1][::2]), welch(dpo[2], ippo[2])]
        means = [
            np.mean([np.divide(x, span) for x, span in zip(xs, spans, strict=True)], 0) for xs in (dpo, ippo)
        ]
        ps.append(welch(means[0], means[1][::2]))
        assert rows["| IPPO, final"] == f"| IPPO, final | {' | '.join(map(p_words, ps))} |"
        pairs = zip(dpo, [ippo[0], ippo[1][::2], ippo[2]], strict=True)
        above = [np.mean([x > y for x, y in itertools.product(theirs, ours)]) for ours, theirs in pairs]
        told = " | ".join(f"{chance:.2f}" for chance in (*above, np.mean(above)))
        assert f"{first} | mpe" in chances and f"\n| IPPO: final | {told} |\n" in chances
        assert list(rows)[2:6:2] == ["| IPPO, final", "| IQL, final"]
        assert next(iter(rows)) == f"| p against {first}"


def test_exported_data_follows_marl_evals_rules(tmp_path):
    """It refuses commas in names, which figures have, and algorithms with different seeds."""
    make_runs(tmp_path / "runs", "fig9")
    (place,) = (tmp_path / "runs").glob("matrix*__omega-4.0__3*")
    shutil.rmtree(place)
    store = record_runs(tmp_path / "runs", tmp_path / "results")
    data = marl_eval(figure_cells("fig9", "small", SEEDS, store)[0])
    runs = {
        environment: {tuple(runs) for algorithms in tasks.values() for runs in algorithms.values()}
        for environment, tasks in data.items()
    }
    assert runs == {
        "matrix": {("seed_1", "seed_2")},
        "matrix best known settings": {("seed_1", "seed_2", "seed_3")},
    }
    names = {name for tasks in data.values() for algorithms in tasks.values() for name in algorithms}
    assert len(names) == 14 and not any("," in name for name in names)


def test_exported_tasks_have_the_same_algorithms(tmp_path):
    """marl-eval refuses others; and where nothing is common, an empty file would be one that it reads."""
    make_runs(tmp_path / "runs", "fig2")
    for place in (tmp_path / "runs").glob("mpe-line_control*__iql__*"):
        shutil.rmtree(place)
    cells, _ = figure_cells("fig2", "small", SEEDS, record_runs(tmp_path / "runs", tmp_path / "results"))
    data = marl_eval(cells)
    assert {tuple(algorithms) for algorithms in data["mpe"].values()} == {("DPO", "IPPO")}
    with pytest.raises(ResultsError, match=r"no algorithm has finished with the same seed on all of"):
        marl_eval(
            [replace(cells[0], groups=cells[0].groups[:1]), replace(cells[1], groups=cells[1].groups[1:])]
        )


def test_exported_data_has_marl_evals_schema(tmp_path, monkeypatch):
    """environment, task, algorithm, run, step_k: as many evaluations everywhere, else it refuses."""
    made(tmp_path, "fig1")
    argv = ["fig1", "--results", str(tmp_path / "results"), "--marl-eval", str(tmp_path / "fig1.json")]
    monkeypatch.setattr(sys, "argv", ["plot.py", *argv])
    assert plot.main() == 0
    data = json.loads((tmp_path / "fig1.json").read_text())
    methods = {method.name for panel in FIGURES["fig1"].panels for method in panel.methods}
    with_commas = {name.replace(",", ""): name for name in methods}
    assert list(data) == ["matrix a", "matrix a, best known settings", "matrix b"]
    for tasks in data.values():
        assert len({tuple(algorithms) for algorithms in tasks.values()}) == 1
        for task, algorithms in tasks.items():
            for method, runs in algorithms.items():
                assert list(runs) == ["seed_1", "seed_2", "seed_3"]
                for seed, run in enumerate(runs.values(), start=1):
                    assert list(run) == [f"step_{k}" for k in range(EVALS + 1)] + ["absolute_metrics"]
                    assert run["step_20"]["step_count"] == EVALS * FIGURE_EVERY
                    end = level(with_commas[method], task, seed)
                    assert run["step_0"]["return"] == pytest.approx([3 * end], rel=1e-5)
                    assert run["absolute_metrics"] == {"return": [pytest.approx(end)]}


def test_claims_are_judged_by_the_panel_of_their_settings(tmp_path):
    """From runs to a verdict: of whole runs, of each panel's own, in the words that a reader finds."""
    make_runs(tmp_path / "runs", "fig5", seeds=range(1, 6), scale="paper")
    make_runs(tmp_path / "runs", "fig2", seeds=range(1, 6), scale="paper")
    store = record_runs(tmp_path / "runs", tmp_path / "results")
    whole = {name: claim_rows(name, "paper", range(1, 6), store) for name in ("fig2", "fig5")}
    (text, *paper_and_best), (most, *obviously) = whole["fig5"]
    assert (
        text == "leaving out either term lowers DPO on all (4.5)"
        and most == "obviously on most (ours: of this figure's tasks) (4.5)"
    )
    method, other = "DPO without KL term", "DPO without sqrt term (IPPO-KL)"
    numbers = f"{method}: {', '.join([BELOW] * 3)}; {other}: {', '.join([BELOW] * 3)}"
    assert paper_and_best == ["holds", f"{numbers}; 5 seeds, 2 M"] * 2 == obviously  # both name the roles
    # DPO is made to be above IPPO and level with IQL, and below both with a floor.
    (_, verdict, evidence, best, its), *_ = whole["fig2"]
    assert verdict == best == "does not hold"
    ps = [welch(*([final(x, task, s) for s in range(1, 6)] for x in ("DPO", "IPPO"))) for task in TASKS]
    ippo, iql = (f"below (p {p_words(p)})" for p in ps), ["equal (p 1, < 5 %)"] * 3
    assert evidence.startswith(f"IPPO: {', '.join(ippo)}; IQL: {', '.join(iql)}; 5")
    assert its.startswith(f"IPPO: {', '.join(['above (p < 0.001)'] * 3)}; IQL: ")
    words = claims_in_words("fig5", "paper", range(1, 6), store)
    same = "with the best known settings: the same"
    told = "; ".join(f"{claim}: holds [{numbers}; 5 seeds, 2 M]; {same}" for claim in (text, most))
    assert words == f"The paper says, and in its settings here: {told}. "
    # What is missing of one panel leaves the other's verdict, as does one that goes on.
    for spoil in (shutil.rmtree, lambda place: next(place.glob("*/done")).unlink()):
        shutil.copytree(tmp_path / "runs", tmp_path / "some")
        (place,) = (tmp_path / "some").glob("mpe-line_control__dpo_mpe__beta-min-0.2-no-kl-term__3__*")
        spoil(place)
        (_, verdict, _, best, _), _ = claim_rows(
            "fig5", "paper", range(1, 6), record_runs(tmp_path / "some", tmp_path / "some-results")
        )
        assert (verdict, best) == ("holds", "open")
        shutil.rmtree(tmp_path / "some")
        shutil.rmtree(tmp_path / "some-results")
    make_runs(tmp_path / "short", "fig5")
    (_, verdict, _, best, _), _ = claim_rows(
        "fig5", "small", SEEDS, record_runs(tmp_path / "short", tmp_path / "short-results")
    )
    assert verdict == best == "open"


def test_what_is_still_to_run_is_what_scale_paper_lacks(tmp_path):
    """Five seeds at the paper's scale, whatever is published: a gap that is not told is never filled."""
    make_runs(tmp_path / "runs", "fig9", seeds=range(1, 6), scale="paper")
    store = record_runs(tmp_path / "runs", tmp_path / "results")
    figure = FIGURES["fig9"]
    assert still_to_run("fig9", figure, store) == []
    first, second, *_ = store.runs
    store.runs[first].absolute_return = float("nan")
    del store.runs[second]
    assert still_to_run("fig9", figure, store) == [["9", "2", "70", "matrix-stochastic"]]
    exact = still_to_run("fig11", FIGURES["fig11"], store)  # without seeds
    assert exact == [["11", "16", "16", "matrix-1, matrix-2, matrix-3, matrix-4"]]


def test_missing_runs_are_counted(tmp_path):
    """A figure of half the runs must say so; the store is enough to draw it again."""
    store = made(tmp_path, "fig2", seeds=(1, 2))
    shutil.rmtree(tmp_path / "runs")
    text = figure_text("fig2", "small", SEEDS, store)
    assert "of the runs at scale small with 3 seeds 12 are missing, and 0 are not finished:" in text
    tasks = ", ".join(TASKS)
    assert f"- DPO / IPPO / IQL on {tasks}, seed 3\n" in text
    assert f"- DPO, floor 0.2 on {tasks} (best known settings), seed 3\n" in text
    runs = list(panel_runs(FIGURES["fig2"], "small", SEEDS))
    assert lacking(runs, {run.key for *_, run in runs}).startswith(f"- DPO / IPPO / IQL on {tasks}\n")
    again = Store(tmp_path / "results")
    assert figure_text("fig2", "small", SEEDS, again) == text
    assert figure_pictures("fig2", "small", SEEDS, again) == figure_pictures("fig2", "small", SEEDS, store)


def test_runs_on_a_gpu_are_told_and_not_timed_beside_others(tmp_path):
    """Seeds of a method may come from a GPU; hours that mix both would compare machines, not methods."""
    store = made(tmp_path, "fig2", seeds=(1,), device="cuda")
    text = figure_text("fig2", "small", (1,), store)
    assert text.count("2,000 (10 / 20 / 70 %, GPU)") == 18
    assert list(figure_pictures("fig2", "small", (1,), store, hours=True)) == ["fig2.png", "fig2-time.png"]
    store = made(tmp_path, "fig2")
    text = figure_text("fig2", "small", SEEDS, store)
    assert list(figure_pictures("fig2", "small", SEEDS, store, hours=True)) == ["fig2.png"]
    assert text.count("engine: embedded; 3 of 9 runs on a GPU; git commit c0ffee7.") == 6
    assert "2,000 (10" not in text  # a median over both is nobody's speed


def test_the_exact_iteration_has_a_figure_and_table_of_its_own(tmp_path):
    """It has iterations in the place of steps, and what matters is whether J ever fell."""
    rises, falls, *_ = (method.name for method in FIGURES["fig11"].panels[0].methods)
    for _, task, method, run in panel_runs(FIGURES["fig11"], "small", [1]):
        folder = tmp_path / "runs" / run.key / f"{task.name}__dpo_matrix__1__100"
        folder.mkdir(parents=True)
        last = 7.5 if method.name == falls else 9.25
        longer = f"3,{last},0.8,0.7\n" * (method.name == falls)  # iterations differ in length
        (folder / "metrics.csv").write_text(
            f"iteration,J,p,q\n0,5.0,0.5,0.5\n1,8.0,0.75,0.625\n2,{last},0.8,0.7\n{longer}"
        )
        steady = "true" if method.name == rises else "false"
        (folder / "args.json").write_text(
            f'{{"seed": 1, "backend": "embedded", "git_commit": "c0ffee7", "steady": {steady}}}'
        )
        (folder / "done").write_text('{"J": 9.25, "optimum": 10.0}')
        record(folder, tmp_path / "results", run.label, run.key)
    text = figure_text("fig11", "small", SEEDS, store := Store(tmp_path / "results"))
    assert f"| matrix-2 | {rises} | 5.0000 | 9.2500 | 10.0000 | never | 0.8000, 0.7000 | 2 |" in text
    assert f"| matrix-2 | {falls} | 5.0000 | 7.5000 | 10.0000 | yes | 0.8000, 0.7000 | not by 3 |" in text
    verdicts = {row[0]: row[1:3] for row in claim_rows("fig11", "small", SEEDS, store)}
    names = [method.name for method in FIGURES["fig11"].panels[0].methods]
    ends = ", ".join(f"{7.5 if name == falls else 9.25:.3f} ({name})" for name in names)
    ends = ", ".join([f"ends at {ends} of 10"] * 2)
    falls = ", ".join(["least step -0.5"] * 4)
    assert verdicts == {
        "J never falls (C)": ["does not hold", falls],
        "p and q converge in all four games (C)": ["holds", ", ".join(["last tenth moves 0"] * 4)],
        "games 1 and 2 can be trapped in a sub-optimum (C)": ["holds", ends],
    }
    (picture,) = figure_pictures("fig11", "small", SEEDS, store).values()
    assert imread(io.BytesIO(picture)).std() > 0.05


def test_seeds_of_other_settings_are_refused(tmp_path):
    """Their mean would be of no method."""
    make_runs(tmp_path / "runs", "fig2")
    path = next((tmp_path / "runs").glob("*iql__2*/*/args.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"learning_rate": 0.1}))
    with pytest.raises(ResultsError, match="differ in learning_rate; delete"):
        figure_text("fig2", "small", SEEDS, record_runs(tmp_path / "runs", tmp_path / "results"))


def test_a_benchmark_that_goes_on_can_be_drawn(tmp_path):
    """A look at half-made results: a run that is not finished is left out where others are."""
    make_runs(tmp_path / "runs", "fig2")
    logs = sorted((tmp_path / "runs").rglob("metrics.csv"))
    shutil.rmtree(logs[0].parents[1])
    (logs[2].parent / "done").rename(logs[2].parent / "checkpoint.pt")
    text = figure_text("fig2", "small", SEEDS, record_runs(tmp_path / "runs", tmp_path / "results"))
    assert "of the runs at scale small with 3 seeds 1 are missing, and 1 are not finished:" in text


def test_no_runs_and_bad_input_get_a_sentence(tmp_path, monkeypatch):
    """The command that would make the runs is what a user needs to read, and what is published stays."""
    for argv, words in (
        (["fig3", "--results", str(tmp_path)], "benchmark/run.py fig3 --scale small"),
        (["fig3", "--seeds", "-1"], "--seeds -1 is not from 0 to 10,000"),
        (["fig3", "--seeds", "9" * 20], "is not from 0 to 10,000"),
        (["fig13"], "there is no fig13; give fig1 ... fig12, recorded, or all."),
        *(([name, "--results", str(PUBLISHED)], "benchmark/plot.py all") for name in ("fig3", "recorded")),
        ([], "give fig1 ... fig12"),
        (["fig1", "fig2", "--marl-eval", "x.json"], "--marl-eval writes one figure"),
        (["fig1", "--check"], "plot.py all --check"),
        (["all", "--scale", "paper"], "give all without these flags"),
        (["recorded", "--hours"], "--hours is of figures"),
        (["recorded", "--marl-eval", "x.json"], "--marl-eval writes one figure"),
        (["recorded", "--beside", "fig11"], "--beside goes with recorded, and takes one of fig1 fig2"),
        (["fig2", "--beside", "fig2"], "--beside goes with recorded"),
    ):
        monkeypatch.setattr(sys, "argv", ["plot.py", *argv])
        with pytest.raises(SystemExit) as stop:
            plot.main()
        assert str(stop.value.code).startswith("plot: ") and words in str(stop.value.code)


def test_all_draws_the_figures_that_have_runs(tmp_path, monkeypatch, capsys):
    """As run.py takes it; a figure without a run is named and no reason to stop."""
    made(tmp_path, "fig2")
    monkeypatch.setattr("benchmark.lib.published.draw_cells", lambda *_, **__: b"")
    monkeypatch.setattr(sys, "argv", ["plot.py", "all", "--results", str(tmp_path / "results")])
    assert plot.main() == 0
    drawn = {path.parent.name for path in (tmp_path / "results" / "figures").glob("*/table.md")}
    assert drawn == {"fig2", "fig5"}  # which share runs
    assert capsys.readouterr().err.count("plot: no run of fig") == 10
