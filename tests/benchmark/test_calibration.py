"""What results are held against: battles as hard as SMAC's (winnable by tactics alone, random play as in its
logs) and the returns of scripts in the particle worlds.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmark.calibrate import calibrate_mpe, calibrate_smac, random_play
from benchmark.calibrate.calibrate_smac import play, wilson
from benchmark.lib.runs import ResultsError
from benchmark.lib.store import PUBLISHED
from envs.smac.maps import MAPS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "envs.md"


def test_the_big_battle_is_lost_by_the_script_and_won_by_tactics():
    """Else learning 27m_vs_30m would be trivial, or impossible."""
    script, line = (play("27m_vs_30m", policy, 64, 32, seed=1) for policy in ("script", "line"))
    assert script[:, 0].mean() < 0.1
    assert line[:, 0].mean() > 0.15


def test_wilson_interval_is_the_textbooks():
    """Else the calibration table states the wrong certainty."""
    assert wilson(0, 100) == pytest.approx((0.0, 0.0370), abs=1e-3)
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-3)
    low, high = wilson(256, 512)
    assert np.isclose(low + high, 1.0)


def test_the_committed_reference_returns_are_those_of_this_code():
    """Else curves are drawn against scripts that no longer exist."""
    with open(PUBLISHED / "references.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * 4 * 4
    for row in rows[:: len(calibrate_mpe.POLICIES) + 3]:
        assert int(row["episodes"]) >= 4096
        _, task, num_agents, *variant = row["env"].split("-")
        returns = calibrate_mpe.play(
            task, (variant or ["paper"])[0], int(num_agents), row["name"], 512, seed=9
        )
        error = np.hypot(returns.std() / len(returns) ** 0.5, float(row["standard_error"]))
        assert abs(returns.mean() - float(row["return"])) < 4 * error


def test_playing_scripts_publishes_nothing_unless_told_to(tmp_path, monkeypatch):
    """A look at one task would else change what all curves are drawn against."""
    before, path = (PUBLISHED / "references.csv").read_bytes(), tmp_path / "references.csv"
    few = ["--tasks", "simple_spread", "--variants", "paper", "--num-agents", "3", "--episodes", "8"]
    for more in ([], ["--csv", str(path)]):
        monkeypatch.setattr(sys, "argv", ["calibrate_mpe.py", *few, *more])
        assert not path.exists()
        calibrate_mpe.main()
        assert (PUBLISHED / "references.csv").read_bytes() == before
    assert len(path.read_text().splitlines()) == 1 + len(calibrate_mpe.POLICIES)


@pytest.mark.parametrize(
    ("program", "name", "flags", "played"),
    [
        (
            calibrate_mpe,
            "references.csv",
            "--tasks simple_spread --variants paper --num-agents 3 --policies random --episodes 8",
            ["mpe-simple_spread-3,random,"],
        ),
        (
            calibrate_smac,
            "scripted_play.csv",
            "--maps 3m --policies random script --episodes 2 --num-envs 2",
            ["3m,2,random,2,", "3m,2,script,2,"],
        ),
        (random_play, "random_play.csv", "--maps 3m --episodes 2 --num-envs 2", ["3m,2,"]),
    ],
)
def test_what_was_not_played_stays_in_the_table(monkeypatch, tmp_path, program, name, flags, played):
    """A look at one map or policy would delete what all others are published with."""
    path = tmp_path / name
    before = (PUBLISHED / name).read_text().splitlines()
    path.write_text("\n".join([*before, ""]))
    monkeypatch.setattr(sys, "argv", ["calibrate.py", *flags.split(), f"--csv={path}"])
    program.main()
    after = path.read_text().splitlines()
    assert len(after) == len(before)
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert [new.startswith(start) for (_, new), start in zip(changed, played, strict=True)] == [True] * len(
        played
    )
    assert all(old.split(",")[0] == new.split(",")[0] for old, new in changed)
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("held", [b"\xff\xfe", b"a,b\n1,2\n", b"", "cut off"])
@pytest.mark.parametrize(
    ("program", "name"), [(calibrate_mpe, "references"), (calibrate_smac, "scripted_play")]
)
def test_a_table_that_cannot_be_read_is_told_and_kept(monkeypatch, tmp_path, program, name, held):
    """A traceback after minutes of play, or a file of somebody else's overwritten."""
    path = tmp_path / "table.csv"
    path.write_bytes((PUBLISHED / f"{name}.csv").read_bytes()[:-9] if held == "cut off" else held)
    before = path.read_bytes()
    monkeypatch.setattr(program, "play", None)  # nothing is played
    monkeypatch.setattr(sys, "argv", ["calibrate.py", f"--csv={path}"])
    with pytest.raises(ResultsError, match="restore it, or name another file"):
        program.main()
    assert path.read_bytes() == before


def test_a_map_that_is_not_built_in_is_refused_before_minutes_of_play(monkeypatch):
    """Of a battle of one's own the table knows no version."""
    monkeypatch.setattr(calibrate_smac, "play", None)  # nothing is played
    monkeypatch.setattr(sys, "argv", ["calibrate.py", "--maps", "my_battle.toml"])
    with pytest.raises(SystemExit, match=r"calibrate_smac: no map my_battle.toml; there are 10gen"):
        calibrate_smac.main()


def test_pooled_logs_are_the_mean_and_the_error_of_their_episodes():
    """Else the real game's random play, and how sure it is, would be misstated."""
    rng = np.random.default_rng(0)
    batches = [rng.normal(2, 1, size) for size in (8, 1, 4, 11)]
    pooled = random_play.pool([(len(x), x.mean(), x.std()) for x in batches])
    episodes = np.concatenate(batches)
    assert pooled.episodes == 24
    assert pooled.mean == pytest.approx(episodes.mean())
    assert pooled.error == pytest.approx(episodes.std(ddof=1) / 24**0.5)
    theirs = random_play.Sample(9, 1.0, 0.3)
    assert random_play.z_score(random_play.Sample(9, 2.0, 0.4), theirs) == pytest.approx(2.0)


def test_a_log_of_another_largest_reward_is_brought_to_the_maps():
    """Some of 3m's logs divide by 500 instead of 365: its random play would seem to return less."""
    sample, _ = random_play.real("3m")
    returns, lengths = random_play.real("8m")  # not every log has lengths
    assert (returns.episodes, lengths.episodes) == (73, 63)
    expected = ((0.96 + 0.72) * 500 / 365 + 8 * 1.3418 + 1.6438) / 11
    assert sample.episodes == 11 and sample.mean == pytest.approx(expected)


def random_play_rows():
    """Rows of benchmark/results/random_play.csv by map."""
    with open(PUBLISHED / "random_play.csv") as file:
        return {row["map"]: row for row in csv.DictReader(file)}


def test_the_page_has_the_published_table(monkeypatch, capsys):
    """Else docs/envs.md would vouch for an engine with numbers of another."""
    rows = random_play_rows()
    numbers = {
        name: {key: value if key == "map" else json.loads(value) for key, value in row.items()}
        for name, row in rows.items()
    }
    monkeypatch.setattr(random_play, "compare", lambda name, *_: numbers[name])
    monkeypatch.setattr(sys, "argv", ["random_play.py"])
    random_play.main()
    printed = capsys.readouterr().out.splitlines()[2:]
    page = PAGE.read_text().replace("**", "").replace("−", "-").splitlines()
    head = next(i for i, line in enumerate(page) if line.startswith("| map | real game: episodes, return"))
    table = page[head + 2 : page.index("", head)]
    assert len(table) == len(rows) == len(printed) == 13
    for line in printed:
        assert any(row.startswith(line) for row in table), line


def test_the_published_table_is_of_this_engine_and_near_the_game():
    """Else docs/envs.md would vouch for battles that are not played any more."""
    rows = random_play_rows()
    for name, row in rows.items():
        assert int(row["engine_version"]) == MAPS[name].version
        sample, lengths = random_play.real(name)
        assert float(row["real_return"]) == pytest.approx(sample.mean, abs=1e-3)
        assert float(row["real_length"]) == pytest.approx(lengths.mean, abs=0.1)
        assert abs(float(row["z"])) <= 2.5
    for name in ("8m", "2s3z", "MMM2"):
        battles = play(name, "random", 512, 64, seed=7)[:, 1]
        error = np.hypot(battles.std() / 512**0.5, float(rows[name]["return_error"]))
        assert abs(battles.mean() - float(rows[name]["return"])) < 4 * error
