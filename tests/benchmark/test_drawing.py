"""Pictures and tables: every drawn or printed number is the runs', and captions say whose."""

import io
import itertools
import statistics
import subprocess
import sys
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from made_curves import HIGH
from made_curves import cell as made_cell
from made_runs import (
    ENV,
    EVALS,
    FIGURE_EVERY,
    SEEDS,
    UPDATES,
    at,
    evaluated,
    groups_of,
    made,
    recorded,
    updated,
    write_run,
)
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from benchmark import plot
from benchmark.lib import diagnostics, drawing
from benchmark.lib.cells import Cell, aggregates
from benchmark.lib.diagnostics import draw_diagnostics
from benchmark.lib.drawing import (
    STYLES,
    draw_aggregate,
    draw_cell,
    draw_cells,
    draw_curve,
    draw_legends,
    finish,
    grid,
    share_scales,
)
from benchmark.lib.gather import recorded_cells, study_cells
from benchmark.lib.groups import Group, check_alike, provenance
from benchmark.lib.record import record
from benchmark.lib.runs import KL, RETURN, WIN_RATE, ResultsError
from benchmark.lib.statistics import mean_ci
from benchmark.lib.studies import Curves
from benchmark.lib.tables import make_table

ROOT = Path(__file__).resolve().parents[2]
T2, T1 = 4.302653, 12.706205  # Student t, two-sided 95 %, 2 and 1 degrees of freedom: from a printed table


def interval(values, t, digits):
    spread = t * statistics.stdev(values) / sqrt(len(values))
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"


def test_table_is_computed_from_the_runs(tmp_path):
    """The README's numbers, here recomputed from what was logged, without plot.py's functions."""
    runs = [write_run(tmp_path, seed=seed) for seed in SEEDS]
    runs += [write_run(tmp_path, script="ippo", seed=seed, kl=False) for seed in (1, 2)]
    runs += [write_run(tmp_path, script="ippo", seed=3, kl=False, evals=10, done=False)]
    table = make_table(groups_of(recorded(tmp_path / "results", *runs)))
    dpo, ippo = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:4])

    def finals(column, last, digits):
        each = [statistics.mean(evaluated(seed, k)[column] for k in last) for seed in SEEDS]
        return interval(each, T2, digits)

    blocks = [(seed, range(k * UPDATES, (k + 1) * UPDATES)) for seed in SEEDS for k in range(EVALS)]
    updates = [[updated(seed, i) for i in block] for seed, block in blocks]
    sps = statistics.median(statistics.mean(row[0] for row in block) for block in updates)
    below, above = (statistics.mean(row[i] for block in updates for row in block) for i in (-2, -1))
    assert dpo == [
        *(ENV, "dpo_smac", "3", "410 k"),
        *(finals(1, (18, 19, 20), 2), finals(1, range(1, 21), 2)),
        *(finals(0, (18, 19, 20), 2), finals(0, range(1, 21), 2)),
        *(interval([0.91, 0.92, 0.93], T2, 2), interval([19.5, 20.0, 20.5], T2, 2)),
        "164 k / 266 k / 328 k",  # (k + 2.3) / 20 first reaches 0.5, 0.75, 0.9 at k = 8, 13, 16
        f"{sps:,.0f} (10 / 20 / 70 %)",
        f"{100 * below:.0f} / {100 * (1 - below - above):.0f} / {100 * above:.0f} %",
    ]
    absolute = interval([0.91, 0.92], T1, 2), interval([19.5, 20.0], T1, 2)
    assert ippo[1:4] == ["ippo", "3", "205 k of 410 k"]
    assert ippo[4:8] == [
        *(finals(1, (9, 10), 2), finals(1, range(1, 11), 2)),
        *(finals(0, (9, 10), 2), finals(0, range(1, 11), 2)),
    ]
    assert ippo[8:11] == [*(f"{cell} (2 of 3 seeds)" for cell in absolute), "164 k / – / –"]
    assert ippo[12] == "–"
    assert "embedded engine, not StarCraft II; git commit c0ffeec." in table
    assert "seed 3 stopped at 205 k; mean and band end where the shortest run does, at 205 k" in table


def pixels(picture):
    return imread(io.BytesIO(picture))


def cell(groups, metric=RETURN):
    return Cell("8m", "", tuple(group.method for group in groups), metric, groups)


def test_figures_show_the_data_and_nothing_else(tmp_path):
    """A figure that does not change with the data, or changes without it, proves nothing."""
    runs = [write_run(tmp_path, seed=seed) for seed in SEEDS]
    runs += [write_run(tmp_path, script="ippo", seed=4, kl=False)]
    store = recorded(tmp_path / "results", *runs)

    def drawn(column=None):
        """Pictures of the runs, in one seed's `column` the last value but one changed by a tenth."""
        groups = groups_of(store)[ENV]
        if column:
            values = groups[0].runs[1].columns[column] = groups[0].runs[1].columns[column].copy()
            values[-2] *= 0.9
        wins = draw_cells([cell(groups, WIN_RATE)], "8m")
        return [pixels(x) for x in (draw_cells([cell(groups)], "8m"), wins, draw_diagnostics("8m", groups))]

    first, changed = drawn(), {}
    for name in (None, "eval/episodic_return", "eval/win_rate", "dpo/beta2"):
        changed[name] = [not np.array_equal(a, b) for a, b in zip(drawn(name), first, strict=True)]
    assert changed == {
        None: [False, False, False],
        "eval/episodic_return": [True, False, False],
        "eval/win_rate": [False, True, False],
        "dpo/beta2": [False, False, True],
    }
    assert draw_diagnostics("8m", groups_of(store)[ENV][1:]) is None


def test_kl_is_drawn_with_the_band_that_it_is_steered_into(tmp_path):
    """Figure 12: whether KL is small can only be seen beside the target and the ends of eq. (21)'s band."""
    runs = [write_run(tmp_path, seed=seed, d_target=0.03, delta=2.0) for seed in SEEDS]
    groups = groups_of(recorded(tmp_path / "results", *runs))[ENV]
    ax = Figure().add_subplot()
    draw_cell(ax, cell(groups, KL), None)
    *seeds, mean, target = ax.lines
    assert len(seeds) == 3 and list(target.get_ydata()) == [0.03, 0.03]
    blocks = [
        [updated(1, i)[4] for i in range(5 * k, 5 * k + 5)] for k in range(EVALS)
    ]  # the same for all seeds
    np.testing.assert_allclose(mean.get_ydata(), [statistics.mean(block) for block in blocks], rtol=1e-5)
    (band,) = (patch for patch in ax.patches if isinstance(patch, Rectangle))
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.015, 0.06))
    assert "KL" in ax.get_ylabel() and ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > 0.06
    two = [cell(groups, KL), Cell("other", "", ("dpo_smac",), KL, groups)]
    assert not aggregates(two)  # there is no score to compare tasks by
    picture = draw_cells(two, "fig12")
    assert picture == draw_cells(two, "fig12") != draw_cells([cell(groups), cell(groups)], "fig12")


def test_a_picture_is_the_same_bytes_again(tmp_path):
    """Else every redrawing would be a change to publish, and none could be checked."""
    store = recorded(tmp_path / "results", *(write_run(tmp_path, seed=seed) for seed in SEEDS))
    for draw in (lambda x: draw_cells([cell(x)], "8m"), lambda x: draw_diagnostics("8m", x)):
        assert draw(groups_of(store)[ENV]) == draw(groups_of(store)[ENV])


@pytest.mark.parametrize(
    ("seeds", "bands", "said"),
    [(1, 0, "no confidence band."), (2, 0, "band (Student t), from three seeds on;"), (3, 1, "(Student t);")],
)
def test_a_band_needs_three_seeds(seeds, bands, said, tmp_path):
    """Two seeds' interval is 12.7 standard errors to each side: it would hide all other curves."""
    runs = [write_run(tmp_path, seed=seed) for seed in SEEDS[:seeds]]
    (group,) = groups_of(recorded(tmp_path / "results", *runs))[ENV]
    figure = Figure()
    draw_curve(figure.add_subplot(), group, "eval/episodic_return", STYLES[0])
    finish(figure, figure.axes, "8m", [group])
    (ax,) = figure.axes
    assert (len(ax.lines), len(ax.collections)) == (seeds + 1, bands)
    assert said in " ".join(figure.get_supxlabel().split())


def test_a_floor_of_zero_does_not_stretch_the_axis_of_beta(tmp_path, monkeypatch):
    """On a logarithmic axis 0 is endlessly far down, and the betas would be a line at the top."""
    floors = {"dpo_smac": 0.0, "dpo_smac-floor": 0.04}
    runs = [write_run(tmp_path, script=s, beta_min=floor, num_agents=2) for s, floor in floors.items()]
    figures = []
    monkeypatch.setattr(diagnostics, "finish", lambda figure, *_, **__: figures.append(figure))
    draw_diagnostics("8m", groups_of(recorded(tmp_path / "results", *runs))[ENV])
    *_, beta1, beta2 = figures[0].axes
    for ax in (beta1, beta2):
        low, high = ax.get_ylim()
        assert 0.01 < low < 0.04 < high < 0.1 and ax.get_yscale() == "log"


def test_bands_on_logarithmic_axes_stay_with_the_seeds(tmp_path, monkeypatch):
    """Student's interval of unequal seeds reaches below 0: there it would be a block down to the axis."""
    runs = [write_run(tmp_path, seed=seed) for seed in SEEDS]
    groups = groups_of(recorded(tmp_path / "results", *runs))[ENV]
    for run, kl in zip(groups[0].runs, (0.001, 0.001, 0.02), strict=True):
        run.columns["dpo/kl"] = np.full_like(run.steps, kl)
    assert mean_ci(groups[0].values("dpo/kl"))[1].max() < 0
    captions = []
    monkeypatch.setattr(diagnostics, "finish", lambda figure, *_, band: captions.append((figure, band)))
    draw_diagnostics("8m", groups)
    ((figure, band),) = captions
    shaded = figure.axes[1].collections[0].get_paths()[0].vertices[:, 1]
    assert (shaded.min(), shaded.max()) == (0.001, 0.02) and band == "from the least to the greatest"


def test_legends_cover_no_curve(tmp_path):
    """A curve behind a legend is not shown, whatever the others do."""
    names = [(s, seed) for s in ("a", "b", "c") for seed in SEEDS]
    groups = groups_of(recorded(tmp_path / "r", *(write_run(tmp_path, script=s, seed=n) for s, n in names)))[
        ENV
    ]
    long = "right, with a title that is longer than the axes are wide"
    cells = [Cell("8m", panel, tuple("abc"), RETURN, groups) for panel in ("left", long)]
    figure, axes = grid(2)
    for ax, one in zip(axes, cells, strict=True):
        draw_cell(ax, one, None)
    draw_legends(figure, axes, cells, one_panel=False)
    figure.draw_without_rendering()
    for ax in axes:
        assert ax.get_legend().get_window_extent().y0 >= ax._left_title.get_window_extent().y1 > ax.bbox.y1
    figure, axes = grid(1)
    draw_cell(axes[0], cells[0], None)
    draw_legends(figure, axes, cells[:1], one_panel=True)
    figure.suptitle("title\n \n ")
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().y0 > axes[0].bbox.y1


def test_titles_end_with_their_axes(tmp_path, monkeypatch):
    """A name that is cut at the picture's edge, or runs into a neighbour's, cannot be read."""
    names = {"a": "DPO without sqrt term (IPPO-KL), floor 0.05, d_target 0.01", "b": "DPO, floor 0.05"}
    groups = groups_of(recorded(tmp_path / "r", *(write_run(tmp_path, script=s, seed=1) for s in names)))[ENV]
    for group in groups:
        group.runs[0].method = names[group.runs[0].script]
    cells = [
        Cell("matrix-stochastic-100x6x5", "floor of N·beta at d_target 0.01", ("x",), RETURN, groups)
    ] * 3
    figures = []
    for module in (diagnostics, drawing):
        monkeypatch.setattr(
            module, "finish", lambda figure, axes, title, *_, **__: figures.append((figure, title))
        )
    draw_diagnostics("8m", groups)
    monkeypatch.setattr(drawing, "style_of", lambda *_: STYLES[0])
    draw_cells(cells, "study")
    for figure, title in figures:
        figure.suptitle(title)
        figure.draw_without_rendering()
        for ax in figure.axes:
            assert ax._left_title.get_window_extent().x1 < ax.bbox.x1 + 30  # pixels, of a gap of a hundred
        (legend,) = figure.legends  # and none within axes
        assert legend.get_window_extent().y0 > max(ax.bbox.y1 for ax in figure.axes)
        assert legend.get_window_extent().x1 < figure.bbox.x1


def test_aggregates_tell_seeds_apart_and_share_their_scale(tmp_path):
    """One seed beside five is no equal, and equal scores at other places look like other scores."""
    store = recorded(tmp_path / "r", *(write_run(tmp_path, script=x, seed=n) for x in "ab" for n in SEEDS))
    a, b = groups_of(store)[ENV]
    b.runs = b.runs[:1]
    low = groups_of(store)[ENV][0]
    for run in low.runs:
        run.columns[WIN_RATE] = 0.2 * run.columns[WIN_RATE]
    panels = [[Cell(x, name, ("a", "b"), WIN_RATE, groups) for x in ("8m", "3m")] for name, groups in (
        ("one", [a, b]), ("other", [low, Group(a.runs)]),
    )]  # fmt: skip
    _, axes = grid(2)
    for ax, panel in zip(axes, panels, strict=True):
        draw_aggregate(ax, panel, "win rate")
    share_scales(axes, panels)
    told = [[label.get_text() for label in ax.get_yticklabels()] for ax in axes]
    assert told == [["a\n(3 seeds)", "b\n(1 seed)"], ["a"]]
    assert axes[0].get_xlim() == axes[1].get_xlim() and axes[0].get_xlim()[0] < 0.3
    panels[1].pop()
    axes[1].set_xlim(0, 9)
    share_scales(axes, panels)  # of other tasks
    assert axes[0].get_xlim() != axes[1].get_xlim()


def test_steps_are_of_the_window_that_numbers_are_of(tmp_path):
    """Two methods averaged to the same step, of which one seemed to have gone on for longer."""
    groups = groups_of(recorded(tmp_path / "r", write_run(tmp_path), write_run(tmp_path, script="ippo")))
    for group in groups[ENV]:
        group.until = 390_000
        for run in group.runs:
            run.columns["eval/win_rate"] *= 0.4
    table = make_table(groups)
    assert table.count("| 389 k of 410 k |") == 2
    assert "0.9 at" not in table and "thresholds" not in table  # a column that nobody reached, and its note


def test_a_recorded_run_that_goes_on_is_left_out_and_all_end_together(tmp_path):
    """As in figures: the mean of three seeds would end where the one stands that has just begun."""
    runs = [write_run(tmp_path, seed=seed) for seed in SEEDS[:2]]
    runs += [write_run(tmp_path, seed=3, evals=3, done=False), write_run(tmp_path, script="ippo", evals=19)]
    (cell,) = recorded_cells(recorded(tmp_path / "r", *runs))
    assert [[run.seed for run in group.runs] for group in cell.groups] == [[1, 2], [1]]
    assert [len(group.steps()) for group in cell.groups] == [20, 20]


def test_commands_from_runs_to_tables(tmp_path):
    """The two commands as they are typed: else the documentation promises what does not work."""
    names = [(env, script) for env in ("mpe-line", ENV) for script in ("dpo", "ippo")]
    runs = [
        str(write_run(tmp_path / "runs", env, script, seed, evals=6, kl=script == "dpo"))
        for (env, script), seed in itertools.product(names, SEEDS)
    ]
    for name, *args in (["run.py", "--record", *runs], ["plot.py", "recorded"]):
        argv = [sys.executable, str(ROOT / "benchmark" / name), *args]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "results" / "recorded"
    pictures = ["curves.png", "mpe-line-diagnostics.png", f"{ENV}-diagnostics.png"]
    assert sorted(path.name for path in folder.glob("*.png")) == pictures
    table = (folder / "table.md").read_text()
    assert done.stdout.strip() == table.strip()
    rows = [line.split(" | ")[:3] for line in table.splitlines() if " | 3 | " in line]
    assert rows == [[f"| {env}", script, "3"] for env, script in names]


def test_a_method_of_ones_own_is_drawn_beside_a_published_figure(tmp_path, monkeypatch, capsys):
    """From the three files that docs/benchmark.md asks for; scores end where the shortest curve does."""
    made(tmp_path, "fig2")
    monkeypatch.setattr("benchmark.lib.published.PUBLISHED", tmp_path / "results")
    for env, (seed, end) in itertools.product(("mpe-line_control-5", "mpe-mine"), ((1, 20.0), (2, 40.0))):
        run = tmp_path / "mine" / f"{env}__my_method__{seed}__1"
        run.mkdir(parents=True)
        steps = range(0, 11 * FIGURE_EVERY, FIGURE_EVERY)
        rows = ["global_step,eval/episodic_return", *(f"{k},{end * k / steps[-1]}" for k in steps)]
        (run / "metrics.csv").write_text("\n".join(rows) + "\n")
        (run / "args.json").write_text(f'{{"total_timesteps": {steps[-1]}}}')
        (run / "done").write_text(f'{{"eval/episodic_return": {end}}}')
        record(run, tmp_path / "own", "new")
    monkeypatch.setattr(
        sys, "argv", ["plot.py", "recorded", "--beside=fig2", f"--results={tmp_path / 'own'}"]
    )
    assert plot.main() == 0
    folder = tmp_path / "own" / "recorded" / "fig2"
    table = (folder / "table.md").read_text()
    assert (
        capsys.readouterr().out.strip() == table.strip() and (folder / "curves.png").stat().st_size > 10_000
    )
    assert "Not in this figure: mpe-mine." in table and "simple_spread" not in table
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| mpe-line_control")]
    names = [name for _, name, *_ in rows]
    assert names[:4] == ["DPO", "IPPO", "IQL", "my_method new"] and names[-1] == "my_method new"
    head = next(line for line in table.splitlines() if "final return" in line).split(" | ")
    final_return = head.index("final return")
    assert rows[3][final_return] == f"28.50 ± {T1 * 9.5:.2f}"  # 19 and 38: of eleven evaluations the last two
    expected = [sum(at("DPO", "mpe-line_control", seed, k) for k in (9, 10)) / 2 for seed in SEEDS]
    assert rows[0][final_return] == interval(expected, T2, 2)
    # One that has the name of a method of the figure is another method all the same.
    for run in (tmp_path / "mine").glob("mpe-line*"):
        record(run.rename(run.with_name(run.name.replace("my_method", "IPPO"))), tmp_path / "own")
    assert plot.main() == 0
    rows = [line.split(" | ") for line in (folder / "table.md").read_text().splitlines()]
    means = {row[1]: row[final_return] for row in rows if row[0] == "| mpe-line_control"}
    assert means["IPPO (recorded)"] == means["my_method new"] != means["IPPO"]


def test_runs_without_a_speed_yet_have_no_hours():
    """A look at the clock of runs that have just begun ended in a traceback."""
    begun, going = made_cell({"a": HIGH}), made_cell({"a": {RETURN: HIGH, "charts/SPS": np.ones_like(HIGH)}})
    assert draw_cells([begun], "title", timed=True) is None
    assert draw_cells([begun, going], "title", timed=True)


def test_a_study_draws_the_methods_it_names_beside_what_to_compare_with(tmp_path, monkeypatch):
    """Its data decide who is in a picture; a return in references.csv shows in pictures of returns."""
    for script in ("a", "b", "c"):
        store = recorded(tmp_path / "r", *(write_run(tmp_path, seed=s, script=script) for s in (1, 2)))
    references = {}
    monkeypatch.setattr("benchmark.lib.cells.read_references", lambda env: references.get(env, {}))

    def drawn(*methods):
        (cell,) = study_cells([Curves((ENV,), {f"method {x}": f"{x}__?" for x in methods})], store)
        assert [group.method for group in cell.groups] == [f"method {x}" for x in methods]
        return pixels(draw_cells([cell], "study"))

    pair, other = drawn("a", "b"), drawn("a")
    assert not np.array_equal(pair, other)
    references["elsewhere"] = {"random": 3.0}
    assert np.array_equal(drawn("a", "b"), pair)
    references[ENV] = {"random": 3.0}
    assert not np.array_equal(drawn("a", "b"), pair)


def test_runs_of_other_settings_are_not_averaged(tmp_path, monkeypatch):
    """Else a forgotten --label would hide that a curve is of two methods."""
    recorded(tmp_path / "mixed", write_run(tmp_path, seed=1), write_run(tmp_path, seed=2, d_target=0.1))
    monkeypatch.setattr(sys, "argv", ["plot.py", "recorded", "--results", str(tmp_path / "mixed")])
    with pytest.raises(SystemExit) as stop:
        plot.main()
    assert all(word in stop.value.code for word in ("seeds 1 and 2", "d_target", "--label"))


def test_seeds_that_asked_for_the_engine_by_name_are_as_those_that_had_no_choice(tmp_path):
    """The benchmark asks for it, since auto plays StarCraft where that is installed; older runs did not."""
    asked = [write_run(tmp_path, seed=s, env_options=x) for s, x in ((1, []), (2, ["backend=embedded"]))]
    ((group,),) = groups_of(recorded(tmp_path / "same", *asked)).values()
    check_alike(group)
    other = write_run(tmp_path, seed=3, env_options=["exclude_dead=false"])
    ((group,),) = groups_of(recorded(tmp_path / "same", other)).values()
    with pytest.raises(ResultsError, match="differ in env_options"):
        check_alike(group)


def test_captions_name_the_code_that_a_run_went_on_with(tmp_path):
    """Half of its steps may be of another commit than the one that it began with."""
    resumed = [{"global_step": 100, "git_commit": "decade" * 6}, {"global_step": 200, "machine": "m"}]
    ((group,),) = groups_of(recorded(tmp_path / "r", write_run(tmp_path, resumed=resumed))).values()
    assert provenance([group]).endswith("git commits c0ffeec, decaded.")


def test_captions_say_which_method_has_which_seeds_where(tmp_path):
    """A method with a missing seed in one environment of two is named for each of the two by itself."""
    names = {("smac-8m-embedded", "dpo_smac"): (1, 2), ("smac-8m-embedded", "ippo"): (1, 2)}
    names |= {("smac-3m-embedded", "dpo_smac"): (1, 2), ("smac-3m-embedded", "ippo"): (1,)}
    runs = [write_run(tmp_path, env, script, s) for (env, script), seeds in names.items() for s in seeds]
    groups = [
        group for members in groups_of(recorded(tmp_path / "results", *runs)).values() for group in members
    ]
    caption = provenance(groups)
    assert caption.startswith("dpo_smac on smac-3m-embedded and smac-8m-embedded: seeds 1, 2; budget")
    assert "; ippo on smac-3m-embedded: seed 1; budget" in caption
    assert provenance([x for x in groups if x.runs[0].env == "smac-8m-embedded"]).startswith("seeds 1, 2; ")
