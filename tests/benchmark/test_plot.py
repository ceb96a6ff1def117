"""Curves and tables: runs are collected whole or refused, and every drawn or printed number is the runs'."""

import itertools
import json
import shutil
import statistics
import subprocess
import sys
from math import nan, sqrt
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from matplotlib.figure import Figure
from matplotlib.image import imread

from benchmark import collect, plot, stats
from benchmark.lib.drawing import STYLES, draw_curve, finish
from benchmark.lib.groups import group_runs, provenance, read_runs
from benchmark.lib.tables import make_table

ROOT = Path(__file__).resolve().parents[2]
EVERY, UPDATES, EVALS = 20_480, 5, 20  # steps and updates between evaluations; evaluations after the first
ENV, SEEDS = "smac-8m-embedded", (1, 2, 3)
KL = ("dpo/kl", "dpo/beta1", "dpo/beta2", "dpo/below_band", "dpo/above_band")
T2, T1 = 4.302653, 12.706205  # Student t, two-sided 95 %, 2 and 1 degrees of freedom: from a printed table


def evaluated(seed, k):
    """Return and win rate of evaluation k."""
    return k + 0.5 * seed, min(1.0, (k + seed + 0.3) / 20)


def updated(seed, i):
    """Steps/s, the time's split and the columns of KL of update i."""
    shares = float(i % (seed + 1) == 0), float(i % (seed + 1) == 1)
    return 1000 * seed + i, 0.1, 0.2, 0.7, 0.01 * (1 + i % 4), 0.02 + 0.001 * seed, 0.03, *shares


def write_run(folder, env=ENV, script="dpo_smac", seed=1, start=100, evals=EVALS, done=True, kl=True, **args):
    """A run directory as the scripts write it: evaluation 0, then one after every five updates."""
    names = ["global_step", "eval/episodic_return", "eval/win_rate"]
    names += ["charts/SPS", "time/env", "time/act", "time/update", *(KL if kl else ())]
    lines, blank = [",".join(names)], len(names) - 3
    for k in range(evals + 1):
        for i in range((k - 1) * UPDATES, k * UPDATES) if k else ():
            values = updated(seed, i)[:blank]
            lines.append(f"{(i + 1) * EVERY // UPDATES},,," + ",".join(f"{x:.6g}" for x in values))
        lines.append(f"{k * EVERY}," + ",".join(f"{x:.6g}" for x in evaluated(seed, k)) + "," * blank)
    run = folder / f"{env}__{script}__{seed}__{start}"
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    saved = {"seed": seed, "map": "8m", "backend": "embedded", "total_timesteps": EVALS * EVERY}
    saved |= {"d_target": 0.02, "delta": 1.5, "beta_min": 0.05, "git_commit": "c0ffee" * 6, "runs_dir": "/x"}
    (run / "args.json").write_text(json.dumps(saved | args))
    if done:
        absolute = {"eval/episodic_return": 19 + 0.5 * seed, "eval/win_rate": 0.9 + 0.01 * seed}
        (run / "done").write_text(json.dumps(absolute))
    return run


@pytest.fixture
def errors(monkeypatch, capsys):
    """Runs a command within this process; the lines it fails with, none if its exit status is 0."""

    def call(main, *args):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, args)])
        capsys.readouterr()
        try:
            main()
        except SystemExit as stop:
            assert isinstance(stop.code, str)  # a sentence: status 1
            return [*capsys.readouterr().err.splitlines(), stop.code]
        return []

    return call


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*")}


def collected(folder, *runs):
    for run in runs:
        collect.collect(run, folder, 20_000)
    return group_runs(read_runs(folder))


def test_thinning_averages_updates_and_keeps_evaluations():
    """Else a curve of KL would show single updates, or one of returns something that was never evaluated."""
    log = {"global_step": [0, 10, 20, 20, 30, 40, 40, 50], "eval/r": [1.5, nan, nan, 7, nan, nan, 9, nan]}
    log |= {"kl": [nan, 1, 2, nan, 3, 7, nan, 100], "ret": [nan, nan, 6, nan, nan, nan, nan, 5]}
    expected = {"global_step": [0, 20, 40], "eval/r": [1.5, 7, 9], "kl": [nan, 1.5, 5], "ret": [nan, 6, nan]}
    np.testing.assert_equal(collect.thin(log, 20), expected)
    # A coarser grid skips evaluations, never updates; after a gap it is the same grid.
    coarse = collect.thin(log, 30)
    assert coarse["global_step"] == [0, 40] and coarse["eval/r"] == [1.5, 9] and coarse["kl"][1] == 13 / 4
    gap = {"global_step": [0, 95, 98, 100, 109, 110], "eval/r": [1, 2, 3, 4, 5, 6]}
    assert collect.thin(gap, 10)["global_step"] == [0, 95, 100, 110]


def test_a_run_is_collected_as_far_as_it_is(tmp_path):
    """A look at a run that goes on, its last line half written, must neither fail nor read half a number."""
    run = write_run(tmp_path, evals=3, done=False)
    assert "NOT finished: at step 61,440 of 409,600" in collect.collect(run, tmp_path / "whole", 20_000)
    (whole,) = read_runs(tmp_path / "whole")
    assert whole.columns["global_step"].tolist() == [0, 20_480, 40_960, 61_440]
    text = (run / "metrics.csv").read_text()
    last_eval = text.rstrip().rfind("\n") + 1
    for cut in range(last_eval - 30, len(text)):
        (run / "metrics.csv").write_text(text[:cut])
        collect.collect(run, tmp_path / "cut", 20_000)
        (part,) = read_runs(tmp_path / "cut")
        for name, values in whole.columns.items():
            np.testing.assert_array_equal(part.columns[name], values[:-1])
        assert part.info["last_step"] == (61_440 if cut >= last_eval else 57_344)
        assert part.info["absolute"] is None


# The file, what of it is replaced (None: all of it), by what (None: the file is missing).
DAMAGES = [
    *(("metrics.csv", None, new) for new in (None, "", "\xff\xfe", "global_step,eval/win_rate\n4096,\n")),
    *(("metrics.csv", old, new) for old, new in (("global_step", "step"), ("time/act", "time/env"))),
    *(("metrics.csv", ",1005,", new) for new in (",oops,", ',"1005,', ",")),
    *(("metrics.csv", old, new) for old, new in (("\n40960,", "\n10,"), ("\n40960,", "\n,"))),
    ("metrics.csv", "\n409600,", "\ninf,"),
    *(("args.json", None, new) for new in (None, '{"seed": 1, "total', "[1]")),
    *(("args.json", "409600", new) for new in ('"many"', "null")),
    *(("done", old, new) for old, new in ((None, ""), (None, '{"eval/win_rate": 0.'), ("0.91", '"high"'))),
]


@pytest.mark.parametrize(("name", "old", "new"), DAMAGES)
def test_a_damaged_run_is_refused_and_nothing_overwritten(name, old, new, tmp_path, errors):
    """Else a disk's hiccup would replace good results by wrong ones, or end in a traceback."""
    run, other, into = write_run(tmp_path), write_run(tmp_path, seed=2), tmp_path / "into"
    assert not errors(collect.main, run, "--into", into)
    before, text = contents(into), (run / name).read_text()
    assert old is None or old in text
    (run / name).unlink()
    if new is not None:
        (run / name).write_bytes((text.replace(old, new) if old else new).encode("latin-1"))
    sentence, summary = errors(collect.main, run, other, "--into", into)
    assert f"{run}/{name}" in sentence and sentence.endswith(".") and "1 of 2 runs were not" in summary
    assert len(contents(into)) == 4 and contents(into) | before == contents(into)


@pytest.mark.parametrize("name", ["run", "8m__dpo__100", "8m__dpo____100", "8m__dpo__one__100"])
def test_a_directory_of_another_name_is_refused(name, tmp_path, errors):
    """The name says which environment, script and seed it was: guessed ones would mix up curves."""
    run = write_run(tmp_path).rename(tmp_path / name)
    sentence, _ = errors(collect.main, run, "--into", tmp_path / "into")
    assert str(run) in sentence and "ENV__SCRIPT__SEED__TIME" in sentence
    assert not contents(tmp_path / "into")


def test_the_same_run_replaces_and_another_is_refused(tmp_path, errors):
    """Else a rerun would silently take the place of results, or a run's end never that of its beginning."""
    run, into = write_run(tmp_path, evals=3, done=False), tmp_path / "into"
    assert not errors(collect.main, run, "--into", into)
    early = contents(into)
    shutil.rmtree(run)
    write_run(tmp_path)
    assert not errors(collect.main, run, "--into", into)
    late = contents(into)
    assert set(late) == set(early) and all(late[name] != early[name] for name in early)
    again = write_run(tmp_path, start=200)
    sentence, _ = errors(collect.main, again, "--into", into)
    assert str(again) in sentence and "--label" in sentence and contents(into) == late
    assert not errors(collect.main, again, "--into", into, "--label", "no-sqrt")
    assert len(contents(into)) == 4 and contents(into) | late == contents(into)
    groups = group_runs(read_runs(into))[ENV]
    assert [(group.method, len(group.runs)) for group in groups] == [("dpo_smac", 1), ("dpo_smac no-sqrt", 1)]
    for flag, value in (("--label", "../up"), ("--every", "0")):
        assert flag in errors(collect.main, run, "--into", into, flag, value)[0]


def test_no_path_of_the_machine_is_committed(tmp_path):
    """Collected files are published: where a user keeps things is not for others to read."""
    args = {"runs_dir": "runs", "resume": None, "checkpoint": "x", "game": "/opt/game", "home": "at ~/x"}
    args |= {"drive": "C:\\games", "url": "file:///x", "flag": "--to=/x", "list": ["a", "/x"]}
    kept = {"map": "8m", "seed": 1, "ratio": "1/2", "machine": "Linux x86_64, 4 cores", "none": None}
    assert collect.portable(args | kept) == kept
    collected(tmp_path / "into", write_run(tmp_path / "private", **args))
    (saved,) = (text for name, text in contents(tmp_path / "into").items() if name.endswith(".json"))
    assert not [word for word in (b"private", b"/x", b"/opt", b"games") if word in saved]


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_confidence_interval_is_students(seeds):
    """The shaded band is called a 95 % interval: a normal one would be far too narrow for three seeds."""
    values = np.random.default_rng(seeds).normal(3, 2, (seeds, 7))
    for confidence in (0.95, 0.5):
        mean, low, high = stats.mean_ci(values, confidence)
        expected = scipy.stats.t.interval(confidence, seeds - 1, values.mean(0), scipy.stats.sem(values))
        np.testing.assert_allclose((mean, low, high), (values.mean(0), *expected), rtol=1e-12)
    mean, low, high = stats.mean_ci(values[:1])
    assert (mean == values[0]).all() and np.isnan([low, high]).all()


def test_iqm_is_the_trimmed_mean_and_its_interval_is_stratified():
    """Aggregates over tasks are what papers compare: theirs must be the published definition."""
    rng = np.random.default_rng(0)
    for shape in [(1, 1), (3, 1), (5, 1), (3, 2), (7, 1), (5, 4), (10, 3)]:
        scores = rng.exponential(size=shape)
        assert stats.iqm(scores) == pytest.approx(scipy.stats.trim_mean(scores, 0.25, axis=None), rel=1e-12)
    few, many = rng.normal(size=(4, 3)), rng.normal(size=(40, 3))
    value, low, high = stats.bootstrap_iqm(few)
    assert low < value == stats.iqm(few) < high
    assert stats.bootstrap_iqm(few) == (value, low, high) != stats.bootstrap_iqm(few, seed=1)
    for narrower in (stats.bootstrap_iqm(few, confidence=0.5), stats.bootstrap_iqm(many)):
        assert 0 < narrower[2] - narrower[1] < 0.6 * (high - low)
    assert stats.bootstrap_iqm(np.tile([1.0, 5.0], (4, 1))) == (3.0, 3.0, 3.0)
    with pytest.raises(ValueError, match=r"\(4,\)"):
        stats.bootstrap_iqm(few[:, 0])


def test_interpolation_is_exact_where_known_and_empty_outside():
    """A seed must not be drawn beyond its end, nor a value made up where it logged none."""
    x, y = np.array([0.0, 10, 20, 40]), np.array([nan, 1.0, nan, 4.0])
    at = np.array([-5.0, 0, 5, 10, 15, 20, 25, 40, 41])
    expected = [nan, nan, nan, 1, 1 + 3 * 5 / 30, nan, 2.5, 4, nan]
    np.testing.assert_allclose(stats.interpolate(at, x, y), expected)
    assert np.isnan(stats.interpolate(at, x, np.full(4, nan))).all()


def test_first_reached_final_and_run_means():
    """'0.9 at 205 k' and 'final' of the table: the first step at or above, the last tenth rounded up."""
    steps, values = np.array([0.0, 10, 20, 30]), np.array([0.1, 0.5, 0.4, 0.9])
    assert [stats.first_reached(steps, values, at) for at in (0.1, 0.5, 0.6, 0.91)] == [0, 10, 30, None]
    scores = np.arange(42.0).reshape(2, 21) ** 2
    expected = [(18**2 + 19**2 + 20**2) / 3, (39**2 + 40**2 + 41**2) / 3]
    np.testing.assert_allclose(stats.final_means(scores), expected)
    np.testing.assert_allclose(stats.final_means(scores[:, :4]), scores[:, 3])
    np.testing.assert_allclose(stats.run_means(scores[:, :3]), (scores[:, 1] + scores[:, 2]) / 2)
    np.testing.assert_allclose(stats.run_means(scores[:, :1]), scores[:, 0])


def interval(values, t, digits):
    spread = t * statistics.stdev(values) / sqrt(len(values))
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"


def test_table_is_computed_from_the_runs(tmp_path):
    """The README's numbers, here recomputed from what was logged, without plot.py's functions."""
    runs = [write_run(tmp_path, seed=seed) for seed in SEEDS]
    runs += [write_run(tmp_path, script="ippo", seed=seed, kl=False) for seed in (1, 2)]
    runs += [write_run(tmp_path, script="ippo", seed=3, kl=False, evals=10, done=False)]
    table = make_table(collected(tmp_path / "into", *runs))
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


def pixels(folder):
    return {path.name: imread(path) for path in sorted(folder.glob("*.png"))}


def test_figures_show_the_data_and_nothing_else(tmp_path):
    """A figure that does not change with the data, or changes without it, proves nothing."""
    runs = [write_run(tmp_path, seed=seed) for seed in SEEDS]
    runs += [write_run(tmp_path, script="ippo", seed=4, kl=False)]

    def drawn(name, column=None):
        """Figures of the runs, in one seed's `column` the last value but one changed by a tenth."""
        groups = collected(tmp_path / name, *runs)[ENV]
        groups[0].runs[1].columns.get(column, np.ones(2))[-2] *= 0.9
        plot.draw_evaluations("8m", groups, tmp_path / name / "8m.png")
        plot.draw_diagnostics("8m", groups, tmp_path / name / "8m-diagnostics.png")
        return pixels(tmp_path / name)

    first, changed = drawn("first"), {}
    for name, column in (("same", None), ("return", "eval/episodic_return"), ("beta", "dpo/beta2")):
        figures = drawn(name, column)
        changed[name] = [not np.array_equal(figures[file], first[file]) for file in sorted(first)]
    # In the order of the files: diagnostics, evaluations.
    assert changed == {"same": [False, False], "return": [False, True], "beta": [True, False]}
    groups = collected(tmp_path / "ippo", runs[3])[ENV]
    plot.draw_diagnostics("8m", groups, tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()


@pytest.mark.parametrize(
    ("seeds", "bands", "said"),
    [(1, 0, "no confidence band."), (2, 0, "band (Student t), from three seeds on;"), (3, 1, "(Student t);")],
)
def test_a_band_needs_three_seeds(seeds, bands, said, tmp_path):
    """Two seeds' interval is 12.7 standard errors to each side: it would hide all other curves."""
    runs = [write_run(tmp_path, seed=seed) for seed in SEEDS[:seeds]]
    (group,) = collected(tmp_path / "into", *runs)[ENV]
    figure = Figure()
    draw_curve(figure.add_subplot(), group, "eval/episodic_return", STYLES[0])
    finish(figure, figure.axes, "8m", [group], tmp_path / "8m.png")
    (ax,) = figure.axes
    assert (len(ax.lines), len(ax.collections)) == (seeds + 1, bands)
    assert said in " ".join(figure.get_supxlabel().split())


def test_a_floor_of_zero_does_not_stretch_the_axis_of_beta(tmp_path, monkeypatch):
    """On a logarithmic axis 0 is endlessly far down, and the betas would be a line at the top."""
    floors = {"dpo_smac": 0.0, "dpo_smac-floor": 0.04}
    runs = [write_run(tmp_path, script=s, beta_min=floor, num_agents=2) for s, floor in floors.items()]
    figures = []
    monkeypatch.setattr(plot, "finish", lambda figure, *_: figures.append(figure))
    plot.draw_diagnostics("8m", collected(tmp_path / "into", *runs)[ENV], tmp_path / "8m.png")
    *_, beta1, beta2 = figures[0].axes
    for ax in (beta1, beta2):
        low, high = ax.get_ylim()
        assert 0.01 < low < 0.04 < high < 0.1 and ax.get_yscale() == "log"


def test_readme_is_changed_between_the_markers_alone(tmp_path, errors):
    """What a person wrote around the table must survive every redrawing."""
    path = tmp_path / "README.md"
    path.write_text(f"# Mine\n\nwords {plot.BEGIN}\nold\n{plot.END}\n\nmore")
    for table in ("| new |\n", "| newer |\n"):
        plot.update_readme(path, table)
        assert path.read_text() == f"# Mine\n\nwords {plot.BEGIN}\n{table}{plot.END}\n\nmore"
    path.write_text("words")
    plot.update_readme(path, "| new |\n")
    assert path.read_text() == f"words\n\n{plot.BEGIN}\n| new |\n{plot.END}\n"
    collected(tmp_path, write_run(tmp_path / "runs"))
    for markers in ([plot.BEGIN], [plot.END], [plot.END, plot.BEGIN], [plot.BEGIN, plot.BEGIN, plot.END]):
        path.write_text(" words ".join(["", *markers, ""]))
        kept = path.read_bytes()
        (sentence,) = errors(plot.main, tmp_path)
        assert str(path) in sentence and path.read_bytes() == kept


def test_a_damaged_folder_is_not_drawn(tmp_path, errors):
    """Else a figure of fewer seeds than thought, or a traceback, would be what is left of a bad copy."""
    assert "collect.py" in errors(plot.main, tmp_path / "none")[0]
    collected(tmp_path / "good", *(write_run(tmp_path, seed=seed) for seed in (1, 2)))
    name = "smac-8m-embedded__dpo_smac__2"
    cases = [(".csv", "global_step\n"), (".csv", "x"), (".json", "{"), (".json", "{}"), (".json", None)]
    for i, (suffix, text) in enumerate(cases):
        folder, bad = tmp_path / str(i), tmp_path / str(i) / (name + suffix)
        shutil.copytree(tmp_path / "good", folder)
        bad.unlink() if text is None else bad.write_text(text)
        (sentence,) = errors(plot.main, folder)
        assert f"{folder}/{name}" in sentence
        assert not list(folder.glob("*.png")) and not (folder / "README.md").exists()


def test_commands_from_runs_to_readme(tmp_path):
    """The two commands as they are typed: else the documentation promises what does not work."""
    names = [(env, script) for env in ("mpe-line", ENV) for script in ("dpo", "ippo")]
    runs = [
        str(write_run(tmp_path / "runs", env, script, seed, evals=6, kl=script == "dpo"))
        for (env, script), seed in itertools.product(names, SEEDS)
    ]
    for name, *args in (["collect.py", *runs, "--into", "results"], ["plot.py", "results"]):
        argv = [sys.executable, str(ROOT / "benchmark" / name), *args]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    figures = [f"{env}{end}.png" for env in ("mpe-line", ENV) for end in ("-diagnostics", "")]
    assert list(pixels(tmp_path / "results")) == figures
    readme = (tmp_path / "results" / "README.md").read_text()
    assert done.stdout.strip() in readme and readme.startswith("# Results: results\n")
    rows = [line.split(" | ")[:3] for line in readme.splitlines() if " | 3 | " in line]
    assert rows == [[f"| {env}", script, "3"] for env, script in names]


def test_chosen_methods_are_drawn_together_beside_what_to_compare_with(tmp_path, errors):
    """figures.json decides who is in a figure; a return in references.csv shows in figures of returns."""
    runs = [write_run(tmp_path, seed=seed, script=script) for seed in (1, 2) for script in ("a", "b", "c")]

    def drawn(name, figures, references=""):
        collected(tmp_path / name, *runs)
        (tmp_path / name / "figures.json").write_text(json.dumps(figures))
        (tmp_path / name / "references.csv").write_text(f"env,name,return\n{references}")
        assert errors(plot.main, tmp_path / name) == []
        return pixels(tmp_path / name)

    pairs = {"pair": ["a", "b"], "other": ["a", "c"], "alone": ["b"]}
    first = drawn("first", pairs)
    assert sorted(first) == [f"{ENV}-diagnostics.png", f"{ENV}-other.png", f"{ENV}-pair.png"]
    same, lined = drawn("same", pairs, "elsewhere,random,3\n"), drawn("lined", pairs, f"{ENV},random,3\n")
    changed = [[not np.array_equal(x[file], first[file]) for file in sorted(first)] for x in (same, lined)]
    assert changed == [[False, False, False], [False, True, True]]
    for name, text in (("figures.json", '{"pair": ["a", "d"]}'), ("references.csv", "env,name\n8m,random\n")):
        before = (tmp_path / "same" / name).read_text()
        (tmp_path / "same" / name).write_text(text.replace("8m", ENV))
        (sentence,) = errors(plot.main, tmp_path / "same")
        assert name in sentence
        (tmp_path / "same" / name).write_text(before)


def test_runs_of_other_settings_are_not_averaged(tmp_path, errors):
    """Else a forgotten --label would hide that a curve is of two methods."""
    for run in (write_run(tmp_path, seed=1), write_run(tmp_path, seed=2, d_target=0.1)):
        collect.collect(run, tmp_path / "mixed", 20_000)
    (sentence,) = errors(plot.main, tmp_path / "mixed")
    assert "seeds 1 and 2" in sentence and "d_target" in sentence and "--label" in sentence


def test_captions_say_which_method_has_which_seeds_where(tmp_path):
    """A method with a missing seed in one environment of two is named for each of the two by itself."""
    names = {("smac-8m-embedded", "dpo_smac"): (1, 2), ("smac-8m-embedded", "ippo"): (1, 2)}
    names |= {("smac-3m-embedded", "dpo_smac"): (1, 2), ("smac-3m-embedded", "ippo"): (1,)}
    runs = [write_run(tmp_path, env, script, s) for (env, script), seeds in names.items() for s in seeds]
    groups = [group for members in collected(tmp_path / "runs", *runs).values() for group in members]
    caption = provenance(groups)
    assert caption.startswith("dpo_smac on smac-3m-embedded and smac-8m-embedded: seeds 1, 2; budget")
    assert "; ippo on smac-3m-embedded: seed 1; budget" in caption
    assert provenance([x for x in groups if x.runs[0].env == "smac-8m-embedded"]).startswith("seeds 1, 2; ")
