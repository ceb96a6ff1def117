"""Command lines of the benchmark's smaller programs: what they cannot do is a sentence before they begin."""

import sys

import pytest

from benchmark import discussion, run
from benchmark.calibrate import calibrate_mpe, calibrate_smac


def said(program, monkeypatch, *flags):
    """What a program ends with."""
    monkeypatch.setattr(sys, "argv", ["program.py", *map(str, flags)])
    with pytest.raises(SystemExit) as stop:
        program.main()
    return str(stop.value.code)


@pytest.mark.parametrize(
    ("program", "flags", "words"),
    [
        (
            discussion,
            ["--sizes", "big"],
            "discussion: --sizes are states x agents x actions, as 30x3x5; got 'big'",
        ),
        (discussion, ["--sizes", "0x3x5"], "got '0x3x5'"),
        (discussion, ["--sizes"], "--sizes is empty; give one at least."),
        (discussion, ["--updates=0"], "discussion: --updates must be between 1 and 1e+06, got 0."),
        (discussion, ["--sigmas", "1", "nan"], "--sigmas must be between 1e-06 and 1e+06, got nan."),
        (discussion, ["--sigmas", "0"], "--sigmas must be between 1e-06 and 1e+06, got 0.0."),
        (discussion, ["--seeds", "-1"], "--seeds must be between"),
        (discussion, ["--no-measure", "--out=none"], "there is no none/measured.csv; measure it"),
        (discussion, ["--out=file/x", "--updates=1"], "Not a directory"),
        (calibrate_mpe, ["--episodes=0"], "calibrate_mpe: --episodes must be between 2 and"),
        (calibrate_mpe, ["--num-agents", "3", "0"], "--num-agents must be between 1 and 1000, got 0."),
        (calibrate_mpe, ["--csv=none/x.csv"], "--csv none/x.csv is in a folder that does not exist."),
        (calibrate_smac, ["--num-envs=-4"], "calibrate_smac: --num-envs must be between 1 and"),
        (calibrate_smac, ["--csv=none/x.csv"], "--csv none/x.csv is in a folder that does not exist."),
    ],
)
def test_what_cannot_be_measured_gets_a_sentence(monkeypatch, tmp_path, program, flags, words):
    """A traceback after minutes of measuring loses them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    try:
        assert words in said(program, monkeypatch, *flags)
    except OSError as error:
        raise AssertionError(f"a traceback: {error}") from None
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_measurements_are_replaced_only_by_whole_ones(monkeypatch, tmp_path):
    """One that was stopped, or failed, would leave a published table without its numbers."""

    def fails(args, done):
        yield [discussion.Row("part", "game", "method", "setting", 1, "quantity", 2.0)]
        raise MemoryError("no room")

    (tmp_path / "measured.csv").write_text("before\n")
    monkeypatch.setattr(discussion, "measure", fails)
    assert said(discussion, monkeypatch, f"--out={tmp_path}") == "discussion: no room"
    assert (tmp_path / "measured.csv").read_text() == "before\n"
    assert (tmp_path / "measured.part.csv").read_text().endswith("\npart,game,method,setting,1,quantity,2\n")
    assert len([*tmp_path.iterdir()]) == 2
    (tmp_path / "measured.csv").write_text("part,game\nx\n")
    told = said(discussion, monkeypatch, f"--out={tmp_path}", "--no-measure")
    assert told == f"discussion: {tmp_path}/measured.csv cannot be read; delete it, and measure it anew."


def test_results_that_cannot_be_recorded_are_told_before_the_runs(monkeypatch, tmp_path):
    """Else the first run is made, and then the runner ends."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(run, "Benchmark", None)  # nothing is begun
    folders = [f"--results={tmp_path}/file/results", f"--runs-dir={tmp_path}/runs"]
    monkeypatch.setattr(sys, "argv", ["run.py", "fig1", "--scale=smoke", *folders])
    with pytest.raises(SystemExit, match=r"run: --results .*/file/results cannot be made or written to"):
        run.main()
    folders = [f"--results={tmp_path}/results", f"--runs-dir={tmp_path}/file/runs"]
    monkeypatch.setattr(sys, "argv", ["run.py", "fig1", "--scale=smoke", *folders])
    with pytest.raises(SystemExit, match=r"run: --runs-dir .*/file/runs cannot be made or written to"):
        run.main()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
