"""Figures of the paper: collected whole, aggregated as published, and readable by other tools."""

import json
import math
import shutil
import sys

import numpy as np
import pytest
import scipy.stats
from matplotlib.image import imread

from benchmark import paper, plot, stats
from benchmark.lib.records import CollectError
from benchmark.figures import FIGURES, panel_runs

EVALS, EVERY, SPS = 20, 15_000, 2_000.0
ENVS = {"mpe": "{}-5", "smac": "{}-embedded", "matrix": "{}-100x6x5", "mamujoco": "{}"}


def level(method, task, seed):
    """Where a run's curve ends: apart for methods, tasks and seeds."""
    return -6.0 - len(method) - 0.1 * len(task) + 0.3 * seed


def made(folder, name, seeds=(1, 2, 3), scale="small", done=True, device="cpu"):
    """Run directories of a figure as benchmark/run.py leaves them, with curves that rise to `level`."""
    for _, task, method, run in panel_runs(FIGURES[name], scale, seeds):
        env = ENVS[task.family].format(task.name)
        script = run.script.removesuffix(".py")
        place = folder / run.key / f"{env}__{script}__{run.seed}__100"
        if place.exists():
            continue
        place.mkdir(parents=True)
        end = level(method.name, task.name, run.seed)
        lines = ["global_step,eval/episodic_return,charts/SPS,time/env,time/act,time/update"]
        for k in range(EVALS + 1):
            lines += [f"{k * EVERY},,{SPS},0.1,0.2,0.7"] * (k > 0)
            lines.append(f"{k * EVERY},{end * (1 + 2 * math.exp(-k / 4)):.6g},,,,")
        (place / "metrics.csv").write_text("\n".join(lines) + "\n")
        args = {
            "total_timesteps": run.steps,
            "seed": run.seed,
            "backend": "embedded",
            "git_commit": "c0ffee7",
            "device": device,
        }
        (place / "args.json").write_text(json.dumps(args))
        if done:
            (place / "done").write_text(json.dumps({"eval/episodic_return": end}))


def final(method, task, seed):
    """The mean of the last tenth of a run's evaluations, as the table defines it."""
    last = range(EVALS - 2, EVALS + 1)
    return sum(level(method, task, seed) * (1 + 2 * math.exp(-k / 4)) for k in last) / 3


def whole(method, task, seed):
    """The mean of a run's evaluations but the first, of untrained policies."""
    return sum(level(method, task, seed) * (1 + 2 * math.exp(-k / 4)) for k in range(1, EVALS + 1)) / EVALS


def test_a_figure_is_drawn_tabulated_and_exported(tmp_path):
    """One command from runs to what is published: nothing may be left out or made up on the way."""
    made(tmp_path / "runs", "fig2")
    text = paper.plot_figure("fig2", "small", (1, 2, 3), tmp_path / "runs", tmp_path / "into")
    assert text == (tmp_path / "into" / "small" / "fig2.md").read_text() and "missing" not in text
    assert FIGURES["fig2"].claim in text
    for name in ("fig2.png", "fig2-time.png"):
        assert imread(tmp_path / "into" / "small" / name).std() > 0.05
    assert len(list((tmp_path / "into" / "runs").glob("*.csv"))) == 27
    values = [final("IQL", "mpe-line_control", seed) for seed in (1, 2, 3)]
    (row,) = (line for line in text.splitlines() if line.startswith("| mpe-line_control | IQL |"))
    assert f"| 3 | 300 k | {np.mean(values):.2f} ± " in row
    assert "seeds 1, 2, 3; budget 300 k environment steps; engine: embedded; git commit c0ffee7." in text


def test_scales_share_equal_runs(tmp_path):
    """The game has one budget: neither running nor drawing a larger scale may ask for its runs again."""
    made(tmp_path / "runs", "fig9", scale="small")
    cells, missing, _ = paper.gather("fig9", "paper", (1, 2, 3), tmp_path / "runs", tmp_path / "into")
    assert [(cell.task.family, len(cell.groups)) for cell in cells] == [("matrix", 7)]
    assert missing == 7 * 3 * 3  # the particle worlds have other budgets


def test_pictures_and_tables_of_scale_smoke_say_that_they_are_no_results(tmp_path, monkeypatch):
    """Its games are tiny, so a heading that promises 100 states and 6 agents would be false."""
    headings = []
    monkeypatch.setattr(paper, "draw_cells", lambda cells, title, *_, **__: headings.append(title))
    for scale in ("smoke", "small"):
        made(tmp_path / "runs", "fig1", (1,), scale)
        text = paper.plot_figure("fig1", scale, (1,), tmp_path / "runs", tmp_path / "into")
        headings.append(text.splitlines()[0])
    smoke, small = headings[:3], headings[3:]
    assert all("no result" in heading and "100 states" not in heading for heading in smoke)
    assert all("100 states" in heading and "no result" not in heading for heading in small)
    assert len(smoke) == len(small) == 3


def test_aggregates_are_interquartile_means_of_normalised_scores(tmp_path):
    """What a figure says of several tasks at once must follow from their scores and their references."""
    made(tmp_path / "runs", "fig2")
    cells, *incomplete = paper.gather("fig2", "small", (1, 2, 3), tmp_path / "runs", tmp_path / "into")
    assert incomplete == [0, 0] and len(cells) == 3
    references = {  # benchmark/results/mpe/references.csv
        "mpe-simple_spread": (-18.8163, -3.8744),
        "mpe-line_control": (-22.4540, -4.8088),
        "mpe-circle_control": (-16.4408, -3.4443),
    }
    table = paper.aggregate_table(cells)
    for method in ("DPO", "IPPO", "IQL"):
        row = f"| {method} | 3 |"
        for expected, summary in ((final, stats.final_means), (whole, stats.run_means)):
            scores = [
                [
                    (expected(method, task, seed) - low) / (high - low)
                    for task, (low, high) in references.items()
                ]
                for seed in (1, 2, 3)
            ]
            value, low, high = found = paper.interquartile_means(cells, summary)[method]
            assert found == pytest.approx(stats.bootstrap_iqm(scores), rel=1e-4) and low < value < high
            row += f" {value:.3f} ({low:.3f} to {high:.3f}) |"
        assert row in table.splitlines()


def test_methods_are_compared_with_the_first_of_their_panel(tmp_path):
    """p of Welch's test from its definition, per task and of the seeds' means over tasks."""
    made(tmp_path / "runs", "fig2", seeds=(1, 2, 3))
    (place,) = (tmp_path / "runs").glob("mpe-line_control__ippo__2*")
    shutil.rmtree(place)
    cells, *_ = paper.gather("fig2", "small", (1, 2, 3), tmp_path / "runs", tmp_path / "into")
    rows = {line.split(" | ")[0]: line for line in paper.comparison_table(cells).splitlines()}
    dpo, ippo = (
        [[final(name, cell.task.name, seed) for seed in (1, 2, 3)] for cell in cells]
        for name in ("DPO", "IPPO")
    )
    spans = [high - low for low, high in (cell.ends() for cell in cells)]
    ps = [welch(dpo[0], ippo[0]), welch(dpo[1], ippo[1][::2]), welch(dpo[2], ippo[2])]
    means = [
        np.mean([np.divide(x, span) for x, span in zip(xs, spans, strict=True)], 0) for xs in (dpo, ippo)
    ]
    ps.append(welch(means[0], means[1][::2]))
    assert rows["| IPPO, final"] == f"| IPPO, final | {' | '.join(map(paper.p_words, ps))} |"
    assert 0.001 < ps[3] < ps[1] and list(rows)[2:6:2] == ["| IPPO, final", "| IQL, final"]


def welch(a, b):
    """From the definition; only the t distribution is a library's."""
    va, vb = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    t = (np.mean(a) - np.mean(b)) / math.sqrt(va + vb)
    return 2 * scipy.stats.t.sf(abs(t), (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1)))


def test_welchs_test_says_nothing_of_single_seeds_and_equal_constants():
    """p by the definition; where there is nothing to compare no number, which would look like a result."""
    a, b = [1.0, 2.0, 4.0, 4.5], [3.0, 5.0, 9.0]
    assert stats.welch(a, b) == pytest.approx(welch(a, b), rel=1e-12)
    assert all(np.isnan(stats.welch(*pair)) for pair in ((a, [1.0]), ([], a), ([0.1, 0.1], [0.1, 0.3 - 0.2])))
    assert [paper.p_words(p) for p in (math.nan, 2e-4, 0.0349, 0.96)] == ["–", "< 0.001", "0.03", "1"]


def test_wall_clock_is_integrated_from_the_speed():
    """Hours of a run that slowed down in the middle, by hand; an update without a speed takes the mean."""
    steps, speeds = np.array([0.0, 3600, 7200, 10800]), np.array([np.nan, 1.0, 0.5, np.nan])
    np.testing.assert_allclose(stats.hours(steps, speeds), [0, 1, 3, 3 + 1 / 0.75])
    assert np.isnan(stats.hours(steps, np.full(4, np.nan))).all()


def test_exported_data_follows_marl_evals_rules(tmp_path):
    """It refuses commas in names, which figures have, and algorithms with different seeds."""
    made(tmp_path / "runs", "fig9")
    (place,) = (tmp_path / "runs").glob("matrix*omega-4.0__3*")
    shutil.rmtree(place)
    paper.plot_figure("fig9", "small", (1, 2, 3), tmp_path / "runs", tmp_path / "into")
    data = json.loads((tmp_path / "into" / "small" / "fig9.json").read_text())
    runs = {
        environment: {tuple(runs) for algorithms in tasks.values() for runs in algorithms.values()}
        for environment, tasks in data.items()
    }
    assert runs == {
        "matrix stochastic game": {("seed_1", "seed_2")},
        "mpe particle worlds": {("seed_1", "seed_2", "seed_3")},
    }
    names = {name for tasks in data.values() for algorithms in tasks.values() for name in algorithms}
    assert len(names) == 7 and not any("," in name for name in names)


def test_exported_data_has_marl_evals_schema(tmp_path):
    """environment, task, algorithm, run, step_k: as many evaluations everywhere, else it refuses."""
    made(tmp_path / "runs", "fig1")
    paper.plot_figure("fig1", "small", (1, 2, 3), tmp_path / "runs", tmp_path / "into")
    data = json.loads((tmp_path / "into" / "small" / "fig1.json").read_text())
    assert list(data) == ["matrix a", "matrix b", "matrix b, number of agents"]
    for tasks in data.values():
        assert len({tuple(algorithms) for algorithms in tasks.values()}) == 1
        for task, algorithms in tasks.items():
            for method, runs in algorithms.items():
                assert list(runs) == ["seed_1", "seed_2", "seed_3"]
                for seed, run in enumerate(runs.values(), start=1):
                    assert list(run) == [f"step_{k}" for k in range(EVALS + 1)] + ["absolute_metrics"]
                    assert run["step_20"]["step_count"] == EVALS * EVERY
                    end = level(method, task, seed)
                    assert run["step_0"]["return"] == pytest.approx([3 * end], rel=1e-5)
                    assert run["absolute_metrics"] == {"return": [pytest.approx(end)]}


def test_missing_runs_are_counted_and_collected_ones_suffice(tmp_path):
    """A figure of half the runs must say so; a fresh clone redraws it from what is committed."""
    made(tmp_path / "runs", "fig2", seeds=(1, 2))
    text = paper.plot_figure("fig2", "small", (1, 2, 3), tmp_path / "runs", tmp_path / "into")
    assert "of the runs at scale small 9 are missing, and 0 that" in text
    pictures = imread(tmp_path / "into" / "small" / "fig2.png")
    again = paper.plot_figure("fig2", "small", (1, 2, 3), tmp_path / "nowhere", tmp_path / "into")
    assert again == text and (imread(tmp_path / "into" / "small" / "fig2.png") == pictures).all()


def test_runs_on_a_gpu_are_told_and_not_timed_beside_others(tmp_path):
    """Seeds of a method may come from a GPU; hours that mix both would compare machines, not methods."""
    made(tmp_path / "runs", "fig2", seeds=(1,), device="cuda")
    paper.plot_figure("fig2", "small", (1,), tmp_path / "runs", tmp_path / "into")
    timed = tmp_path / "into" / "small" / "fig2-time.png"
    assert (tmp_path / "into" / "small" / "fig2.md").read_text().count("2,000 (10 / 20 / 70 %, GPU)") == 9
    assert timed.exists()
    made(tmp_path / "runs", "fig2", seeds=(1, 2, 3))
    text = paper.plot_figure("fig2", "small", (1, 2, 3), tmp_path / "runs", tmp_path / "into")
    assert not timed.exists()
    assert text.count("engine: embedded; 3 of 9 runs on a GPU; git commit c0ffee7.") == 3
    assert "2,000 (10" not in text  # a median over both is nobody's speed


def test_the_exact_iteration_has_a_figure_and_table_of_its_own(tmp_path):
    """It has iterations in the place of steps, and what matters is whether J ever fell."""
    for _, task, method, run in panel_runs(FIGURES["fig11"], "small", [1]):
        folder = tmp_path / "runs" / run.key / f"{task.name}__dpo_matrix__1__100"
        folder.mkdir(parents=True)
        last = 7.5 if method.name == "M̂ = 0.1" else 9.25
        (folder / "metrics.csv").write_text(
            f"iteration,J,p,q\n0,5.0,0.5,0.5\n1,8.0,0.75,0.625\n2,{last},0.8,0.7\n"
        )
        (folder / "args.json").write_text('{"seed": 1, "backend": "embedded", "git_commit": "c0ffee7"}')
        (folder / "done").write_text('{"J": 9.25, "optimum": 10.0}')
    text = paper.plot_figure("fig11", "small", (1, 2, 3), tmp_path / "runs", tmp_path / "into")
    assert "| matrix-2 | M̂ = 0.3 | 5.0000 | 9.2500 | 10.0000 | never | 0.8000, 0.7000 |" in text
    assert "| matrix-2 | M̂ = 0.1 | 5.0000 | 7.5000 | 10.0000 | yes | 0.8000, 0.7000 |" in text
    assert imread(tmp_path / "into" / "small" / "fig11.png").std() > 0.05


def test_runs_take_the_place_of_published_ones_of_the_same_command(tmp_path):
    """A user who reruns a figure must see their own runs, never a mixture with half-made ones unannounced."""
    made(tmp_path / "published", "fig9")
    paper.plot_figure("fig9", "small", (1, 2, 3), tmp_path / "published", tmp_path / "into")
    made(tmp_path / "runs", "fig9")
    (run,) = (tmp_path / "runs").glob("matrix*omega-4.0__1*/*")
    again = run.rename(run.with_name(run.name.replace("__100", "__200")))
    (again / "metrics.csv").write_text((again / "metrics.csv").read_text().replace("300000,-", "300000,-9"))
    paper.plot_figure("fig9", "small", (1, 2, 3), tmp_path / "runs", tmp_path / "into")
    collected = tmp_path / "into" / "runs" / f"{again.parent.name}.csv"
    assert "300000,-9" in collected.read_text()
    (again / "done").rename(again / "checkpoint.pt")
    again.rename(again.with_name(again.name.replace("__200", "__300")))
    with pytest.raises(CollectError, match=r"goes on, and .* is of a finished run of the same command"):
        paper.plot_figure("fig9", "small", (1, 2, 3), tmp_path / "runs", tmp_path / "into")


def test_seeds_of_other_settings_are_refused(tmp_path):
    """Their mean would be of no method."""
    made(tmp_path / "runs", "fig2")
    path = next((tmp_path / "runs").glob("*iql__2*/*/args.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"learning_rate": 0.1}))
    with pytest.raises(CollectError, match="differ in learning_rate; delete"):
        paper.plot_figure("fig2", "small", (1, 2, 3), tmp_path / "runs", tmp_path / "into")


def test_a_benchmark_that_goes_on_can_be_drawn(tmp_path):
    """A look at half-made results: a run that was not evaluated yet is missing, a damaged one is an error."""
    made(tmp_path / "runs", "fig2")
    logs = sorted((tmp_path / "runs").rglob("metrics.csv"))
    logs[0].write_text("global_step,eval/episodic_return\n")
    (logs[0].parent / "done").unlink()
    text = paper.plot_figure("fig2", "small", (1, 2, 3), tmp_path / "runs", tmp_path / "into")
    assert "of the runs at scale small 1 are missing, and 0 that" in text
    (logs[2].parent / "done").rename(logs[2].parent / "checkpoint.pt")
    text = paper.plot_figure("fig2", "small", (1, 2, 3), tmp_path / "runs", tmp_path / "into")
    assert "1 are missing, and 1 that are not finished are left out" in text
    logs[1].write_text("global_step,eval/episodic_return\n7,\n")
    with pytest.raises(CollectError, match=logs[1].parent.name):
        paper.plot_figure("fig2", "small", (1, 2, 3), tmp_path / "runs", tmp_path / "into")


def test_no_runs_and_bad_input_get_a_sentence(tmp_path, monkeypatch):
    """The command that would make the runs is what a user needs to read."""
    argv = ["plot.py", "--runs-dir", str(tmp_path / "runs"), "--into", str(tmp_path)]
    for extra, words in (
        (["fig3"], "benchmark/run.py fig3 --scale small"),
        (["fig3", "--seeds", "-1"], "--seeds"),
        (["fig13"], "there is no fig13; give fig1 ... fig12"),
        ([], "give fig1 ... fig12"),
    ):
        monkeypatch.setattr(sys, "argv", argv + extra)
        with pytest.raises(SystemExit) as stop:
            plot.main()
        assert str(stop.value.code).startswith("plot: ") and words in str(stop.value.code)


def test_all_draws_the_figures_that_have_runs(tmp_path, monkeypatch, capsys):
    """As run.py takes it; a figure without a run is named and no reason to stop."""
    made(tmp_path / "runs", "fig2")
    argv = ["plot.py", "all", "--runs-dir", str(tmp_path / "runs"), "--into", str(tmp_path / "into")]
    monkeypatch.setattr(sys, "argv", argv)
    plot.main()
    drawn = {path.name for path in (tmp_path / "into" / "small").glob("fig*.md")}
    assert drawn == {"fig2.md", "fig5.md", "fig8.md", "fig9.md", "fig10.md"}  # which share runs with Figure 2
    assert capsys.readouterr().err.count("plot: no run of fig") == 7
