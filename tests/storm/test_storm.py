"""A part of the storm (`python -m tests.storm`), and that it would see what it is for."""

from __future__ import annotations

import json
import random
import shutil
import sys

import pytest

from benchmark.lib.documents import blocks
from tests.scripts.running import ROOT
from tests.storm import __main__ as storm
from tests.storm import checkpoints, environments, kills, lines
from tests.storm.launch import Ended, run, what_is_wrong
from tests.storm.outcome import KINDS, Outcome, table

STORM = ROOT / "benchmark" / "results" / "studies" / "storm" / "storm.json"
SCRIPT = ("dpo_matrix",)  # the quickest


def quiet(_: str) -> None:
    pass


def wrong(outcomes) -> list[str]:
    return [f"{one.name}: {one.wrong}" for one in outcomes if one.wrong]


def test_killed_runs_end_as_if_nothing_had_been(tmp_path):
    """Else a crash of the machine changes a result, or loses one."""
    found = list(kills.storm(4, 1, tmp_path, quiet, SCRIPT))
    assert sum(one.count for one in found) == 4 and not wrong(found)


def test_bad_command_lines_end_in_a_sentence(tmp_path):
    """Else a typing error costs a traceback to read, or a day of the wrong run."""
    found = list(lines.storm(6, 3, tmp_path, quiet))
    assert len(found) == 6 and not wrong(found)


def test_damaged_checkpoints_are_refused_or_do_no_harm(tmp_path):
    """Else a failing disk changes a result."""
    found = list(checkpoints.storm(4, 1, tmp_path, quiet, SCRIPT))
    assert len(found) == 4 and not wrong(found)


def test_odd_environments_are_played_or_refused(tmp_path):
    """Some are played, some refused, one would not end; scripts that know no deaths say so."""
    names = ["iql, OldReset", "iql, BlindEnd", "ippo, NoInfos", "ippo, Endless", "ippo, ActorsDie"]
    names += ["dpo_mamujoco, ActorsDie", "iddpg, ActorsDie", "dpo_mamujoco, LeavesLast", "iddpg, LeavesLast"]
    found = [one for name in names for one in environments.storm(tmp_path / name, quiet, name)]
    assert len(found) == len(names) and not wrong(found)


@pytest.mark.parametrize(
    ("ended", "told"),
    [
        (Ended(1, "", "ippo: there is no such thing.\n"), ""),
        (Ended(2, "", "╭─ Parsing error ─╮\n│ --gamma must be │\n"), ""),
        (Ended(1, "", "step 3 of 9\nippo: stop.\n"), ""),
        (Ended(0, "fine", ""), "accepted"),
        (Ended(None, "", ""), "did not end"),
        (Ended(-11, "", ""), "signal 11"),
        (Ended(2, "", ""), "without a word"),
        (Ended(1, "", "ippo: one.\nippo: two.\n"), "2 lines"),
        (Ended(1, "", "KeyError\n"), "1 lines"),
        (Ended(1, "", "Traceback (most recent call last):\n  File\nKeyError: 3\n"), "traceback: KeyError: 3"),
        (Ended(75, "", "ippo: stopped.\n"), "exit code 75"),
    ],
)
def test_only_one_sentence_passes(ended, told):
    """A storm that calls a traceback a sentence shows nothing."""
    assert told in what_is_wrong(ended, "ippo") and bool(what_is_wrong(ended, "ippo")) == bool(told)


def test_a_run_that_ended_otherwise_is_seen(tmp_path):
    """So is one that cannot go on, and a checkpoint whose damage went unnoticed."""
    runs = tmp_path / "runs"
    assert run(*kills.command("dpo_matrix", runs)).code == 0
    whole = next(runs.iterdir())
    other = shutil.copytree(whole, tmp_path / "other")
    rows = (other / "metrics.csv").read_text().splitlines()
    (other / "metrics.csv").write_text("\n".join(rows[:-1]) + "\n")
    assert kills.compare("dpo_matrix", runs, whole) == ""
    assert kills.compare("dpo_matrix", runs, other).startswith("ended otherwise")
    assert checkpoints.resume("dpo_matrix", whole, other).startswith("accepted, and ended otherwise")
    (whole / "metrics.csv").unlink()
    assert kills.compare("dpo_matrix", runs, other).startswith("resumed, exit code 1")


def test_every_program_and_script_gets_bad_lines():
    """A program that is left out may do anything."""
    folders = (ROOT / "benchmark", ROOT / "benchmark" / "calibrate")
    programs = {str(path.relative_to(ROOT)) for folder in folders for path in folder.glob("*.py")}
    programs = {name for name in programs if not name.endswith(("/__init__.py", "/figures.py"))}  # are none
    assert programs <= lines.PROGRAMS.keys()
    drawn = {program for program, _ in lines.draw_lines(60, random.Random(1))}
    assert drawn == {*lines.PROGRAMS, *(f"{script}.py" for script in kills.COMMANDS)}


def test_table_counts_what_held_and_names_what_did_not():
    """It is all that most will read."""
    found = [
        Outcome("kills", "a", "", 5, 2),
        Outcome("kills", "b", "lost | a row", 3, 0),
        Outcome("lines", "c"),
    ]
    first, second = table(found).splitlines()[2:]
    assert "(2 runs; 2 kills while a checkpoint was written) | 8 | 5 | b: lost \\| a row |" in first
    assert second == f"| {KINDS['lines']} | 1 | 1 |  |"


def test_published_table_is_that_of_the_published_storm():
    """A table written by hand would be a claim without evidence."""
    found = [Outcome(**one) for one in json.loads(STORM.read_text())]
    assert {one.kind for one in found} == set(KINDS)
    assert table(found) in blocks((ROOT / "docs" / "faults.md").read_text())


def test_parts_of_a_storm_are_added_to_its_file(tmp_path):
    """One kind is run anew without the half hour of the others."""
    path = tmp_path / "storm.json"
    storm.add(path, [Outcome("kills", "a"), Outcome("lines", "b", "traceback")])
    storm.add(path, [Outcome("lines", "b")])
    assert [(one["kind"], one["wrong"]) for one in json.loads(path.read_text())] == [
        ("kills", ""),
        ("lines", ""),
    ]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--kills=-1"], "storm: --kills must be between 0 and 1e+06, got -1."),
        (["--json=nowhere/x.json"], "storm: --json nowhere/x.json is in a folder that does not exist."),
    ],
)
def test_the_storms_own_command_line_is_checked(monkeypatch, tmp_path, flags, told):
    """It asks others for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["storm", *flags])
    with pytest.raises(SystemExit) as stop:
        storm.main()
    assert stop.value.code == told and not list(tmp_path.iterdir())
