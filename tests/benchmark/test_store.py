"""The results store: runs are recorded whole or refused, and nothing that is there is lost."""

import errno
import json
import multiprocessing
import os
import shutil
import sys
from math import nan

import numpy as np
import pytest
from made_runs import ENV, SEEDS, recorded, write_run

from benchmark import run as runner
from benchmark.lib import runs
from benchmark.lib.record import record
from benchmark.lib.store import Store, replace


@pytest.fixture
def errors(monkeypatch, capsys):
    """run.py --record within this process; the lines it fails with, none if its exit status is 0."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["run.py", "--record", *map(str, args)])
        capsys.readouterr()
        try:
            assert runner.main() == 0
        except SystemExit as stop:
            assert isinstance(stop.code, str)  # a sentence: status 1
            return [*capsys.readouterr().err.splitlines(), stop.code]
        return []

    return call


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_thinning_averages_updates_and_keeps_evaluations():
    """Else a curve of KL would show single updates, or one of returns something that was never evaluated."""
    log = {"step": [0, 10, 20, 20, 30, 40, 40, 50], "eval/r": [1.5, nan, nan, 7, nan, nan, 9, nan]}
    log |= {"kl": [nan, 1, 2, nan, 3, 7, nan, 100], "ret": [nan, nan, 6, nan, nan, nan, nan, 5]}
    expected = {"step": [0, 20, 40], "eval/r": [1.5, 7, 9], "kl": [nan, 1.5, 5], "ret": [nan, 6, nan]}
    np.testing.assert_equal(runs.thin(log, 20), expected)
    # A coarser grid skips evaluations, never updates; after a gap it is the same grid.
    coarse = runs.thin(log, 30)
    assert coarse["step"] == [0, 40] and coarse["eval/r"] == [1.5, 9] and coarse["kl"][1] == 13 / 4
    # Hours are steps by this speed: ten steps at 1 and ten at 3 a second take as long as twenty at 1.5.
    speed = runs.thin(
        {"step": [0, 10, 20, 20], "eval/r": [0, nan, nan, 1], "charts/SPS": [nan, 1, 3, nan]}, 20
    )
    assert speed["charts/SPS"][1] == 1.5
    gap = {"step": [0, 95, 98, 100, 109, 110], "eval/r": [1, 2, 3, 4, 5, 6]}
    assert runs.thin(gap, 10)["step"] == [0, 95, 100, 110]


def test_iterations_are_thinned_but_for_every_fall_of_J():
    """Figure 11 claims that J never falls: of thousands of rows those that show a fall must be left."""
    steps = [float(i) for i in range(5000)]
    J = [1 - 0.5**i if i != 3333 else 0.2 for i in range(5000)]
    kept = runs.thin_iterations({"step": steps, "J": J})
    assert kept["step"][:100] == steps[:100] and kept["step"][-1] == 4999
    assert {3332.0, 3333.0} <= set(kept["step"]) and len(kept["step"]) < 250
    assert [J[int(step)] for step in kept["step"]] == kept["J"] and kept["step"] == sorted(kept["step"])
    short = {"step": steps[:5], "J": J[:5]}
    assert runs.thin_iterations(short) == short


def test_a_run_is_recorded_as_far_as_it_is(tmp_path):
    """A look at a run that goes on, its last line half written, must neither fail nor read half a number."""
    run = write_run(tmp_path, evals=3, done=False)
    assert "NOT finished: at step 61,440 of 409,600" in record(run, tmp_path / "whole")
    key = f"{ENV}__dpo_smac__1"
    whole = Store(tmp_path / "whole").load(key)
    assert whole.columns["step"].tolist() == [0, 20_480, 40_960, 61_440]
    text = (run / "metrics.csv").read_text()
    last_eval = text.rstrip().rfind("\n") + 1
    for cut in range(last_eval - 30, len(text)):
        (run / "metrics.csv").write_text(text[:cut])
        part = recorded(tmp_path / "cut", run).load(key)
        for name, values in whole.columns.items():
            np.testing.assert_array_equal(part.columns[name], values[:-1])
        assert part.steps_reached == (61_440 if cut >= last_eval else 57_344)
        assert not part.finished


# The file, what of it is replaced (None: all of it), by what (None: the file is missing).
DAMAGES = [
    *(("metrics.csv", None, new) for new in (None, "", "\xff\xfe", "global_step,eval/win_rate\n4096,\n")),
    *(("metrics.csv", old, new) for old, new in (("global_step", "step"), ("time/act", "time/env"))),
    *(("metrics.csv", ",1005,", new) for new in (",oops,", ",-5,", ',"1005,', ",")),
    *(("metrics.csv", old, new) for old, new in (("\n40960,", "\n10,"), ("\n40960,", "\n,"))),
    ("metrics.csv", "\n409600,", "\ninf,"),
    *(("args.json", None, new) for new in (None, '{"seed": 1, "total', "[1]")),
    *(("args.json", "409600", new) for new in ('"many"', "null")),
    *(("done", old, new) for old, new in ((None, ""), (None, '{"eval/win_rate": 0.'), ("0.91", '"high"'))),
]


@pytest.mark.parametrize(("name", "old", "new"), DAMAGES)
def test_a_damaged_run_is_refused_and_nothing_overwritten(name, old, new, tmp_path, errors):
    """Else a disk's hiccup would replace good results by wrong ones, or end in a traceback."""
    run, other, results = write_run(tmp_path), write_run(tmp_path, seed=2), tmp_path / "results"
    assert not errors(run, "--results", results)
    before, text = Store(results), (run / name).read_text()
    assert old is None or old in text
    (run / name).unlink()
    if new is not None:
        (run / name).write_bytes((text.replace(old, new) if old else new).encode("latin-1"))
    sentence, summary = errors(run, other, "--results", results)
    assert f"{run}/{name}" in sentence and sentence.endswith(".") and "1 of 2 runs were not" in summary
    after, (key,) = Store(results), before.runs
    assert len(after.runs) == 2
    np.testing.assert_equal(after.runs[key].__dict__, before.runs[key].__dict__)
    np.testing.assert_equal(after.load(key).columns, before.load(key).columns)


@pytest.mark.parametrize("name", ["run", "8m__dpo__100", "8m__dpo____100", "8m__dpo__one__100"])
def test_a_directory_of_another_name_is_refused(name, tmp_path, errors):
    """The name says which environment, script and seed it was: guessed ones would mix up curves."""
    run = write_run(tmp_path).rename(tmp_path / name)
    sentence, _ = errors(run, "--results", tmp_path / "results")
    assert str(run) in sentence and "ENV__SCRIPT__SEED__TIME" in sentence
    assert not contents(tmp_path / "results")


def test_the_same_run_replaces_and_another_is_refused(tmp_path, errors):
    """Else a rerun would silently take the place of results, or a run's end never that of its beginning."""
    run, results = write_run(tmp_path, evals=3, done=False), tmp_path / "results"
    assert not errors(run, "--results", results)
    early = contents(results)
    shutil.rmtree(run)
    write_run(tmp_path)
    assert not errors(run, "--results", results)
    late = contents(results)
    assert set(late) == set(early) and all(late[name] != early[name] for name in early)
    again = write_run(tmp_path, start=200)
    sentence, _ = errors(again, "--results", results)
    assert f"{ENV}__dpo_smac__1" in sentence and "--label" in sentence and contents(results) == late
    assert not errors(again, "--results", results, "--label", "no-sqrt")
    labels = {run.label: (key, run.started) for key, run in Store(results).runs.items()}
    assert labels == {
        "": (f"{ENV}__dpo_smac__1", "100"),
        "no-sqrt": (f"{ENV}__dpo_smac__no-sqrt__1", "200"),
    }
    assert "--label" in errors(run, "--results", results, "--label", "../up")[0]


def test_a_run_of_a_command_takes_the_place_of_another(tmp_path):
    """A user who reruns a figure must see their own runs, never half-made ones in the place of whole ones."""
    results, key = tmp_path / "results", "8m__dpo_smac__1__0123abcd"
    record(write_run(tmp_path), results, key=key)
    record(write_run(tmp_path, start=200), results, key=key)
    assert Store(results).runs[key].started == "200"
    with pytest.raises(runs.ResultsError, match=r"goes on, and one of the same command is finished"):
        record(write_run(tmp_path, start=300, evals=3, done=False), results, key=key)
    with pytest.raises(runs.ResultsError, match=r"recorded as it finished; this is an older copy of it"):
        record(write_run(tmp_path / "backup", start=200, evals=3, done=False), results, key=key)
    assert Store(results).runs[key].started == "200" and len(Store(results).load(key).steps) == 21


def test_a_log_that_is_whole_may_end_without_a_newline(tmp_path):
    """Logs of other code bases do; while a run goes on, such a line is half of one."""
    run = write_run(tmp_path)
    (run / "metrics.csv").write_text((run / "metrics.csv").read_text().rstrip("\n"))
    assert len(runs.read_run(run).steps) == 21
    (run / "done").unlink()
    assert len(runs.read_run(run).steps) == 20


def test_recording_has_no_dry_run(tmp_path, errors):
    """It would do what --dry-run promises not to."""
    (sentence,) = errors(write_run(tmp_path), "--dry-run", "--results", tmp_path / "results")
    assert sentence == "run: --record has no --dry-run; leave one of them out."
    assert not (tmp_path / "results").exists()


def test_what_is_recorded_comes_back_as_it_was(tmp_path):
    """Of every run, with its settings, whatever is put in beside it and after it."""
    written = [write_run(tmp_path, seed=seed, note='a, "b"\nc') for seed in SEEDS]
    written.append(write_run(tmp_path, "mpe-line-5", "ippo", kl=False, learning_rate=0.00025, num_agents=5))
    store = recorded(tmp_path / "results", *written)
    for directory in written:
        expected = runs.read_run(directory)
        found = store.load(expected.key)
        columns, expected.columns = expected.columns, {}
        assert found.settings == expected.settings and found.versions == expected.versions
        np.testing.assert_equal(store.runs[expected.key].__dict__, expected.__dict__)
        assert found.columns.keys() == columns.keys() | {"step"}
        for name, values in columns.items():
            np.testing.assert_allclose(found.columns[name], values, rtol=1e-5)


def test_a_run_is_recorded_last_of_all(tmp_path, monkeypatch):
    """A full disk between two files: the run must not pass for recorded while its curve is missing."""
    first, second = (write_run(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 2)))
    record(first, tmp_path / "store")
    writes = []

    def full(path, data):
        writes.append(path.name)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("benchmark.lib.store.replace", full)
    with pytest.raises(OSError, match="No space"):
        record(second, tmp_path / "store")
    assert writes == [f"{ENV}.csv"] and len(Store(tmp_path / "store").runs) == 1


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path, monkeypatch):
    """Half a runs.csv, or an empty one after a power loss, would cost the results of all runs before."""
    path, synced = tmp_path / "runs.csv", []

    def full(descriptor):
        synced.append(os.fstat(descriptor).st_size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    replace(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            replace(path, "longer")
    assert synced == [6]  # all of the new text was on its way to the disk
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    replace(path, "longer")
    assert path.read_text() == "longer" and list(tmp_path.iterdir()) == [path]


def put_some(folder, results, first):
    for seed in range(first, first + 5):
        record(write_run(folder, seed=seed, evals=2), results)


def test_several_processes_record_at_once(tmp_path):
    """Two runners share a benchmark, and both record what they finish: none may drop the other's rows."""
    context = multiprocessing.get_context("fork")
    pairs = [(tmp_path / str(first), tmp_path / "results", first) for first in (1, 11, 21)]
    processes = [context.Process(target=put_some, args=pair) for pair in pairs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    store = Store(tmp_path / "results")
    assert len(store.runs) == 15 and all(len(store.load(key).steps) == 3 for key in store.runs)


def test_no_path_of_the_machine_is_published(tmp_path):
    """Results are published: where a user keeps things is not for others to read."""
    args = {"runs_dir": "runs", "resume": None, "game": "/opt/game", "home": "at ~/x"}
    args |= {"drive": "C:\\games", "url": "file:///x", "flag": "--to=/x", "list": ["a", "/x"]}
    kept = {"map": "8m", "seed": 1, "ratio": "1/2", "machine": "Linux x86_64, 4 cores", "none": None}
    assert runs.portable(args | kept) == kept
    recorded(tmp_path / "results", write_run(tmp_path / "private", **args))
    for text in contents(tmp_path / "results").values():
        assert not [word for word in (b"private", b"/x", b"/opt", b"games") if word in text]


def test_a_damaged_store_is_not_drawn(tmp_path, monkeypatch):
    """Else a figure of fewer seeds than thought, or a traceback, would be what is left of a bad copy."""
    from benchmark import plot

    def sentence(results):
        monkeypatch.setattr(sys, "argv", ["plot.py", "recorded", "--results", str(results)])
        with pytest.raises(SystemExit) as stop:
            plot.main()
        assert str(stop.value.code).startswith("plot: ")
        return stop.value.code

    assert "run.py --record" in sentence(tmp_path / "none")
    recorded(tmp_path / "good", *(write_run(tmp_path, seed=seed) for seed in (1, 2)))
    curves = f"curves/{ENV}.csv"
    whole = (tmp_path / "good" / curves).read_text()
    cases = [(curves, text) for text in ("key,step\n", "x", None, whole[:-60], whole.replace(",0.1,", ",a,"))]
    rows = (tmp_path / "good" / "runs.csv").read_text()
    cases += [("runs.csv", text) for text in ("x\n1\n", rows.replace("{", ""), rows.replace(",cpu,", ","))]
    for i, (name, text) in enumerate(cases):
        folder = tmp_path / str(i)
        shutil.copytree(tmp_path / "good", folder)
        (folder / name).unlink() if text is None else (folder / name).write_text(text)
        assert f"{folder}/{name}" in sentence(folder)
        assert not (folder / "recorded").exists()


def test_settings_are_the_scripts_own(tmp_path):
    """All resolved arguments are in runs.csv, as JSON that other tools read."""
    store = recorded(tmp_path / "results", write_run(tmp_path, learning_rate=0.1, kl_term=False))
    (run,) = store.runs.values()
    assert json.loads(json.dumps(run.settings))["learning_rate"] == 0.1
    assert run.settings["kl_term"] is False and run.settings["num_agents"] == 8
    assert run.git_commit.startswith("c0ffee") and run.total_timesteps == 409_600
