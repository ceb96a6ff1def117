"""benchmark/speed.py: what cannot be timed is a sentence at once, and tables are of what was measured."""

import json
import sys

import pytest

from benchmark import speed
from benchmark.lib.learners import script_rates
from benchmark.lib.speed_tables import MEASURED, short, speed_text
from benchmark.speed import summary


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["env", "matrix"], "env is timed for smac, mpe, mamujoco, not for matrix."),
        (["env", "smac", "--names", "3m", "nowhere"], "there is no 'nowhere' in smac; give some of 3m, 8m,"),
        (["env", "mpe", "--names", "simple_spread/" + "9" * 20], "there is no 'simple_spread/9999"),
        (["learner", "mpe", "--names", "line_control/x"], "there is no 'line_control/x' in mpe"),
        (["e2e", "mamujoco", "--names", "Hopper"], "there is no 'Hopper' in mamujoco"),
        (["e2e", "matrix", "--names", "1"], "there is no '1' in matrix; give some of stochastic."),
        (["env", "--num-envs", "9" * 20], "--num-envs must be between 1 and 100000, got 9999"),
        (["env", "--repeats", "0"], "--repeats must be between 1 and 1000, got 0."),
        (["env", "--seconds", "nan"], "--seconds must be between 0.001 and 3600, got nan."),
        (["learner", "smac", "--threads", "1", "-1"], "--threads must be between 1 and 1024, got -1."),
        (["all", "--names", "2s3z"], "--names are of one family's table; leave them out for all and"),
        (
            ["e2e", "baselines", "--names", "iql.py"],
            "--names are of one family's table; leave them out for all",
        ),
        (["env", "--json", "nowhere/x.json"], "--json nowhere/x.json is in a folder that does not exist."),
    ],
)
def test_what_cannot_be_timed_gets_a_sentence(monkeypatch, tmp_path, flags, words):
    """A traceback after minutes of timing loses them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["speed.py", *flags])
    with pytest.raises(SystemExit) as stop:
        speed.main()
    assert str(stop.value.code).startswith(f"speed: {words}"[:60]) and words in str(stop.value.code)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["env", "mpe"], "environments are stepped on the CPU; leave --device out."),
        (
            ["e2e", "mpe", "--peer-python", "x"],
            "BenchMARL is timed on the CPU; leave --device or --peer-python",
        ),
    ],
)
def test_no_number_of_the_cpu_is_called_one_of_the_gpu(monkeypatch, flags, words):
    """A table asked for with --device cuda would hold what no GPU had a part in."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["speed.py", *flags, "--device", "cuda"])
    with pytest.raises(SystemExit, match=f"speed: {words}"):
        speed.main()


def test_baselines_are_timed_as_asked(monkeypatch, capsys):
    """They were timed on the CPU and not compiled, whatever was asked for."""
    commands = []

    def rates(command):
        commands.append(command)
        return {"charts/SPS": 10.0, "time/env": 0.5, "time/act": 0.25, "time/update": 0.25}

    monkeypatch.setattr("benchmark.lib.learners.script_rates", rates)
    found = {}
    speed.time_baselines(speed.Args("e2e", "baselines", threads=(1,), device="cuda", compile=True), found)
    assert all(command[command.index("--device") + 1] == "cuda" for command in commands)
    assert len(commands) == len(found) == 2 * 5 + 2  # iddpg.py has nothing to compile
    assert sum("--compile" in command for command in commands) == 5
    assert "iql.py --env-id smac/8m, 1 threads, compiled" in found
    assert "| iql.py --env-id smac/8m | 1 threads, compiled | 10 |" in capsys.readouterr().out


def test_names_that_are_timed_by_default_are_accepted():
    """Else the check would stand in the way."""
    for (what, family), names in ((key, speed.DEFAULTS.get(key[1], ())) for key in speed.TIMERS):
        assert not speed.fault(speed.Args(what, family, names))


def test_speeds_have_three_digits():
    speeds = (34.4, 999.6, 9_999, 10_000, 999_499, 999_500, 1_234_567)
    assert [*map(short, speeds)] == ["34", "1,000", "9,999", "10k", "999k", "1M", "1.23M"]


def test_tables_are_of_what_was_measured(tmp_path):
    """A page's ratio must be the measurement's: best to best, medians of turns, shares of the peak."""
    battles = {"2s3z": {"ours, 1 envs": [100.0, 120.0, 110.0], "SMAX (JaxMARL)": [30.0, 40.0]}}
    battles["corridor"] = {"ours, 1 envs": [12_345.0]}
    worlds = {"simple_spread": {"ours, 1 envs": [2.5e6], "VMAS, 1 envs": [400.0], "mpe2": [2000.0]}}
    robot = {"ours, 1 threads": [30.0, 20.0], "gymnasium SyncVectorEnv": [20.0, 10.0]}
    robots = {"Ant-4x2 16": summary(robot, ["gymnasium SyncVectorEnv"])}
    battles, worlds = ({name: summary(x) for name, x in found.items()} for found in (battles, worlds))
    rates = {"charts/SPS": 4321.0, "time/env": 0.1, "time/act": 0.2, "time/update": 0.7}
    few = {**rates, "charts/SPS": 99.0}
    measured = {
        "machine": {"cores": "2"},
        "env smac": battles,
        "env mpe": worlds,
        "env mamujoco": robots,
        "learner mpe": {
            "simple_spread/10 1024": summary({"sgemm": [50.0, 100.0], "1 threads": [40.0, 60.0]}, ["sgemm"])
        },
        "learner baselines": {"iql 8m 1920": summary({"sgemm": [50.0], "2 threads": [40.0]}, ["sgemm"])},
        "e2e mpe": {
            "line_control, 2 threads": rates,
            "line_control, 2 threads, compiled": few,
            "line_control, 1 thread, batches of one episode": few,
            "beside BenchMARL": {"ippo.py": [rates, rates], "BenchMARL on VMAS": [few, few]},
        },
        "e2e baselines": {"iql.py --env-id smac/8m, 1 threads": few},
    }
    path = tmp_path / "speed.json"
    path.write_text(json.dumps(measured))
    lines = speed_text(path).splitlines()
    for line in (
        "| cores | 2 |",
        "| 2s3z | 110 | 35 | 3.0 |",
        "| corridor | 12.3k | – | – |",
        "| simple_spread | ours | 2.5M |",
        "| simple_spread | VMAS | 400 |",
        "| simple_spread | mpe2 | 2,000 |",
        "| ours, 1 threads | 1.75 |",
        "| simple_spread/10 | 1024 | 60% (70%) | – | 100 |",
        "| iql 8m | 1920 | – | 80% (80%) | 50 |",
        "| dpo_mpe.py line_control | 2 | 4,321 | 99 | 10 % | 20 % | 70 % |",
        "| dpo_mpe.py line_control | 1, batches of one episode | 99 | – | 10 % | 20 % | 70 % |",
        "| iql.py --env-id smac/8m | 1 | 99 | – | 10 % | 20 % | 70 % |",
        "| ippo.py | 4,321 | 43.65 |",
    ):
        assert line in lines, line


def test_a_late_failure_costs_only_itself(tmp_path, monkeypatch, capsys):
    """All of it takes an hour and a half, and hangs on the packages of others."""

    def fails(args, result):
        result["simple_spread"] = {"ours": 2}
        raise RuntimeError("peer.py ended with exit code 1\nand more")

    def fine(args, result):
        result["3m"] = {"ours": 1}

    timers = {("env", "smac"): fine, ("env", "mpe"): fails, ("env", "mamujoco"): fine}
    monkeypatch.setattr(speed, "TIMERS", timers)
    path = tmp_path / "speed.json"
    for flags, tables in ((["all"], ["env smac", "env mpe", "env mamujoco"]), (["env", "mpe"], [])):
        monkeypatch.setattr(sys, "argv", ["speed.py", *flags, f"--json={path}"])
        with pytest.raises(SystemExit) as stop:
            speed.main()
        assert stop.value.code == 1
        said = "speed: env mpe is not whole: RuntimeError: peer.py ended with exit code 1\n"
        assert capsys.readouterr().err == said
        found = json.loads(path.read_text())
        assert [name for name in found if name.startswith("env ")] == tables
        assert (found["env mpe"] if tables else found)["simple_spread"] == {"ours": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["speed.json"]


def test_a_script_that_fails_is_named(monkeypatch):
    """A CalledProcessError names a temporary folder, and not what to look at."""
    with pytest.raises(
        RuntimeError, match=r"dpo_matrix.py --game=chess ended with exit code 2; what it said"
    ):
        script_rates(["dpo_matrix.py", "--game=chess"])


@pytest.mark.parametrize("last", ["machine", "env smac", "env mpe", "e2e smac"])
def test_tables_that_were_not_measured_are_left_out(tmp_path, last):
    """plot.py ended in a KeyError where speed.py had been stopped."""
    whole = json.loads(MEASURED.read_text())
    names = list(whole)[: list(whole).index(last) + 1]
    path = tmp_path / "speed.json"
    path.write_text(json.dumps({name: whole[name] for name in names} | {"learner mpe": {}}))
    lines = speed_text(path).splitlines()
    assert lines and all(line in speed_text().splitlines() for line in lines if "| --- |" not in line)
    assert any(line.startswith("| battles") for line in lines) == ("env smac" in names)
    assert not any(line.startswith("| learner") for line in lines) or "learner smac" in names
