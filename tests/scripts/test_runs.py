"""Whole runs of all seven scripts: reproducible, stopped, killed and resumed, evaluated.

They hold by text that is the same in all scripts and by what each saves of its own; so each is tried, and
some with another family of environments, whose state is saved otherwise.
"""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import envs as environments
from tests.scripts import running
from tests.scripts.cases import Case
from tests.scripts.running import (
    ROOT,
    SCRIPTS,
    assert_same_run,
    full_disk,
    killed,
    load,
    only,
    rows,
    same,
    signal_in_step,
)

# What a run leaves behind.


def test_run_directory_tells_how_the_run_was_made(case, reference):
    """Without versions, commit, machine and every argument a result cannot be reproduced."""
    name = reference.name.split("__")
    assert name[:3] == [case.name, case.script, "1"] and name[3].isdigit()
    saved = json.loads((reference / "args.json").read_text())
    assert load(reference)["args"].keys() < saved.keys()
    assert saved["num_envs"] == case.num_envs and saved["checkpoint_every"] == case.checkpoint_every
    for flag in case.flags.split():
        if "=" in flag and flag.startswith("--"):
            option, _, value = flag.removeprefix("--").partition("=")
            assert str(saved[option.replace("-", "_")]) == value
    assert saved["torch"] == torch.__version__ and saved["numpy"] == np.__version__
    assert saved["python"] == ".".join(map(str, sys.version_info[:3]))
    assert saved["backend"] in ("embedded", "mujoco")
    assert saved["git_commit"] and saved["machine"] and saved["numba"] and saved["gymnasium"]
    files = {path.name for path in reference.iterdir() if not path.name.startswith("events.out.")}
    assert files == {"args.json", "metrics.csv", "checkpoint.pt", "policy.pt", "done"}
    policy = (reference / "policy.pt").stat().st_size
    assert policy < 0.5 * (reference / "checkpoint.pt").stat().st_size


def test_metrics_hold_every_update_and_evaluation_once_and_tensorboard_the_same(case, reference):
    """Curves are drawn from metrics.csv alone: on a fixed grid of environment steps, nothing twice."""
    table = rows(reference)
    learned = [row for row in table if row["losses/grad_norm"]]
    evaluated = [int(row["global_step"]) for row in table if row["eval/episodic_return"]]
    assert [int(row["global_step"]) for row in learned] == case.updates
    assert evaluated == list(range(0, case.total + 1, case.eval_every))
    assert len(table) == len(case.updates) + len(evaluated)
    with open(reference / "metrics.csv", newline="") as file:
        text = file.read()
    header = text.splitlines()[0].split(",")
    assert header == importlib.import_module(case.script).COLUMNS and header[0] == "global_step"
    assert running.CLOCK.issubset(header) and "\r" not in text
    for row in learned:
        assert float(row["losses/grad_norm"]) > 0
        if "dpo/beta1" in row:
            assert float(row["dpo/kl"]) > 0 and float(row["dpo/beta1"]) > 0
            assert float(row["dpo/sqrt_kl"]) >= float(row["dpo/kl"])
    events = EventAccumulator(str(reference)).Reload()
    filled = {name for row in table for name, value in row.items() if value} | running.CLOCK
    assert set(events.Tags()["scalars"]) == filled - {"global_step"}
    left_out = {"eval/win_rate", "charts/win_rate"} if "smac" not in case.name else set()
    left_out |= {"eval/episodic_length"} if case.exact else set()
    assert set(header) - filled == left_out & set(header)
    norms = events.Scalars("losses/grad_norm")
    assert [event.step for event in norms] == case.updates
    written = [float(row["losses/grad_norm"]) for row in learned]
    assert np.allclose([event.value for event in norms], written, rtol=1e-4)


def test_every_network_learns_as_often_as_the_flags_say(case, reference):
    """A run that takes fewer steps is only worse, or more, slower, than what its settings promise.

    8 updates of 3 epochs; for iql of 100 episodes those from the eighth on, which fills a batch; for iddpg
    every fourth of the 500 steps after the warm-up.
    """
    steps = {"iql": 93, "iddpg": 125}.get(case.script, 24)
    for optimizer in load(reference)["optimizers"]:
        assert optimizer["state"]
        assert {int(moments["step"]) for moments in optimizer["state"].values()} == {steps}


# The same again.


def test_same_seed_gives_the_same_run_and_another_seed_another(case, reference, tmp_path):
    """A result that its own seed does not reproduce cannot be checked by anyone."""
    case.finished(*case.tiny, "--runs-dir", tmp_path / "again")
    assert_same_run(reference, only(tmp_path / "again"))
    case.finished(*case.tiny, "--seed", 2, "--runs-dir", tmp_path / "other")
    other = only(tmp_path / "other")
    before, after = load(reference)["agents"], load(other)["agents"]
    assert rows(other)[:2] != rows(reference)[:2]
    assert not any(torch.equal(before[name], x) for name, x in after.items() if "weights" in name)


def small_groups(case: Case) -> dict[str, int]:
    """Constants with which three agents learn in several groups."""
    return {"GROUP_AGENTS": 1} | ({} if case.script in ("iql", "iddpg") else {"GROUP_ROWS": 1})


def test_results_are_the_same_bits_on_any_number_of_threads(case, tmp_path):
    """The default is as many as there are cores: a seed would mean another run on every machine."""
    small = small_groups(case)
    runs = []
    counts = (1, 2, 3, 0)
    for threads in counts:
        flags = [*case.tiny, "--torch-threads", threads, "--runs-dir", tmp_path / str(threads)]
        running.finished(case.script, *flags, **case.constants | small)
        runs.append(only(tmp_path / str(threads)))
    for other in runs[1:]:
        assert_same_run(runs[0], other)
    about = [json.loads((run / "args.json").read_text())["torch_threads"] for run in runs]
    assert about == [threads or environments.usable_cores() for threads in counts]
    groups = len(load(runs[0])["optimizers"])
    assert groups == {"iddpg": 6}.get(case.script, 3)  # of 3 agents, else nothing is divided


def test_run_goes_on_with_another_number_of_threads(case, tmp_path):
    """A machine that is free has seldom as many cores as the one before; agents learn in several groups."""
    constants = case.constants | small_groups(case)
    begin = [*case.tiny, "--torch-threads=1"]
    running.finished(case.script, *begin, "--runs-dir", tmp_path / "whole", **constants)
    halfway = case.total // 2 // case.turn * case.turn
    until = ["--total-timesteps", halfway, "--runs-dir", tmp_path / "parts"]
    running.finished(case.script, *begin, *until, **constants)
    directory = only(tmp_path / "parts")
    assert 0 < halfway < case.total and load(directory)["global_step"] == halfway
    resume = ["--resume", directory, "--torch-threads=2", "--total-timesteps", case.total]
    running.finished(case.script, *resume, **constants)
    assert json.loads((directory / "args.json").read_text())["torch_threads"] == 2
    parts, whole = load(directory), load(only(tmp_path / "whole"))
    assert parts["global_step"] == whole["global_step"]
    for name in {"agents", "target", "optimizers"} & whole.keys():
        assert same(parts[name], whole[name]), name


def test_what_a_run_goes_on_with_is_told(tmp_path):
    """Else a run that goes on after a change of the code would name the commit of its first steps alone."""
    tiny = ["--num-states=6", "--num-agents=2", "--num-envs=4", "--eval-every=48"]
    tiny = [*tiny, f"--runs-dir={tmp_path}"]
    running.finished("dpo_matrix", *tiny, "--total-timesteps=24")
    directory = only(tmp_path)
    about = json.loads((directory / "args.json").read_text())
    assert "resumed" not in about
    (directory / "args.json").write_text(json.dumps(about | {"git_commit": "older"}))
    running.finished("dpo_matrix", f"--resume={directory}", "--total-timesteps=48")
    running.finished("dpo_matrix", f"--resume={directory}", "--total-timesteps=72")
    told = json.loads((directory / "args.json").read_text())
    assert told["git_commit"] == "older"
    now = {"git_commit": about["git_commit"]}
    assert told["resumed"] == [{"global_step": 24} | now, {"global_step": 48} | now]


# Stopped and resumed.


PROGRESS = {"metrics_sha256", "args", "metrics_bytes", "evaluated", "best", "best_return"}
KILLS = {"in a step": signal_in_step, "while saving": running.kill_while_saving}


@pytest.mark.parametrize("moment", KILLS)
def test_killed_run_resumes_to_the_uninterrupted_one_bit_for_bit(case, reference, tmp_path, moment):
    """A machine that dies may cost one checkpoint's interval, never the result."""
    at = (signal.SIGKILL, case.die_at) if moment == "in a step" else (3,)
    flags = [*case.tiny, "--runs-dir", tmp_path]
    killed(case.script, *flags, fault=KILLS[moment], at=at, **case.constants)
    directory = only(tmp_path)
    step = load(directory)["global_step"]
    written = [int(row["global_step"]) for row in rows(directory)]
    assert 0 < step < case.total and not (directory / "done").exists()
    if moment == "in a step":
        assert max(written) > step  # rows that the resumed run writes again
    case.finished("--resume", directory)
    assert_same_run(reference, directory)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_run_saves_itself_says_requeue_and_resumes(case, reference, tmp_path, number):
    """A cluster that takes its machine back sends SIGTERM; the runner reads code 75 as `start me again`."""
    with signal_in_step(number, case.die_at):
        stopped = case.run(*case.tiny, "--runs-dir", tmp_path)
    directory = only(tmp_path)
    assert stopped.code == 75 and f"--resume {directory}" in stopped.out and "rror" not in stopped.err
    turns = -(-case.die_at // case.num_steps)  # the turn it was in is finished
    assert load(directory)["global_step"] == turns * case.turn
    assert not (directory / "done").exists()
    case.finished("--resume", directory)
    assert_same_run(reference, directory)


def test_run_that_goes_on_is_not_done_until_it_is(case, copied):
    """A plot, or a runner, would take the marker of the shorter run for the longer one's."""
    with signal_in_step(signal.SIGTERM, 1):
        stopped = case.run("--resume", copied, "--total-timesteps", case.total + 2 * case.turn)
    assert stopped.code == 75 and not (copied / "done").exists()
    case.finished("--resume", copied)
    assert (copied / "done").exists() and load(copied)["global_step"] == case.total + 2 * case.turn


def test_full_disk_is_a_sentence_and_the_previous_checkpoint_resumes(case, reference, tmp_path):
    """A full disk is met at night; what was saved before it must still be good in the morning."""
    with full_disk(3):
        sentence = case.refused(*case.tiny, "--runs-dir", tmp_path)
    assert "No space left" in sentence and "--resume" in sentence
    directory = only(tmp_path)
    assert 0 < load(directory)["global_step"] <= case.checkpoint_every + case.turn
    assert not list(directory.glob("*.tmp"))
    case.finished("--resume", directory)
    assert_same_run(reference, directory)


def test_prolonged_run_is_the_long_one_wherever_it_stopped(case, reference, tmp_path):
    """Ending between two evaluations leaves one more, and being resumed when finished already nothing."""
    stop = case.total // 8 * 5 // case.turn * case.turn + 1
    case.finished(*case.tiny, "--total-timesteps", stop, "--runs-dir", tmp_path)
    directory = only(tmp_path)
    assert (directory / "done").exists() and len(rows(directory)) < len(rows(reference))
    first = rows(directory)
    case.finished("--resume", directory)
    assert rows(directory) == first and first[-1]["eval/episodic_return"]
    case.finished("--resume", directory / "checkpoint.pt", "--total-timesteps", case.total)
    short, long = load(directory), load(reference)
    assert all(same(short[name], long[name]) for name in short.keys() - PROGRESS)
    assert [row for row in rows(directory) if row != first[-1]] == rows(reference)
    about = json.loads((directory / "args.json").read_text())
    assert about["total_timesteps"] == case.total
    if replay := load(directory).get("replay"):
        kept = len(replay["ended" if case.script == "iql" else "data"]["rewards"])
        assert replay["added"] > kept > 0  # it has wrapped around


def test_resumed_run_remembers_which_parameters_evaluated_best(case, copied):
    """The absolute metric is of the best parameters, also where they are older than the last interruption."""
    if case.exact:
        pytest.skip("the last parameters count: exact evaluation has no luck to correct for")
    state = load(copied)
    state["best"] = {name: x + 0.01 if x.is_floating_point() else x for name, x in state["best"].items()}
    state["best_return"] = 1e9
    torch.save(state, copied / "checkpoint.pt")
    case.finished("--resume", copied, "--total-timesteps", case.total + case.turn)
    assert same(load(copied)["best"], state["best"]) and same(
        load(copied / "policy.pt")["best"], state["best"]
    )
    evaluated = case.finished("--eval-only", "--resume", copied)
    assert json.loads(evaluated[evaluated.index("{") :]) == json.loads((copied / "done").read_text())


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(case, tmp_path):
    """Hours of training on NaN, and a checkpoint overwritten with it, would both be lost."""
    flags = [*case.tiny, f"--checkpoint-every={case.turn}", "--runs-dir", tmp_path]
    if case.script == "iql":  # whose hidden state saturates: no learning rate is too large
        flags += ["--env-id=matrix/1", "--env-options", "payoff=[1e30, 1e30, 1e30, 1e30]"]
    flags += ["--learning-rate=1e12"]  # more than the flag takes
    sentence = running.refused(case.script, *flags, RANGES={}, **case.constants)
    assert "not finite" in sentence and "diagnostic.pt" in sentence and "--learning-rate" in sentence
    directory = only(tmp_path)
    batch = load(directory / "diagnostic.pt")["batch"]
    seen = batch["inputs" if case.script == "iql" else "obs"]
    assert seen.isfinite().all() and seen.any()
    if case.num_steps > 1 and case.script != "dpo_matrix":  # a rollout
        assert batch["obs"].shape[:2] == (3, case.turn)
    state = load(directory)
    assert state["global_step"] < case.total and all(x.isfinite().all() for x in state["agents"].values())
    assert not (directory / "done").exists()


# Evaluated.


def result(printed: str) -> dict[str, float]:
    return json.loads(printed[printed.index("{") :])


def test_saved_run_evaluates_to_the_numbers_of_its_end(case, reference, copied):
    """The published number must come out of the published checkpoint, and of the small file beside it."""
    done = json.loads((reference / "done").read_text())
    assert "eval/episodic_return" in done and ("eval/win_rate" in done) == ("smac" in case.name)
    before = {path: path.read_bytes() for path in reference.iterdir()}
    for path in (reference, reference / "checkpoint.pt", reference / "policy.pt"):
        assert result(case.finished("--eval-only", "--resume", path)) == done
    assert {path: path.read_bytes() for path in reference.iterdir()} == before
    (copied / "checkpoint.pt").unlink()
    assert result(case.finished("--eval-only", "--resume", copied)) == done


# Of every script as it is called.


@pytest.mark.parametrize("script", SCRIPTS)
def test_there_are_few_flags(script):
    """More are not read in one sitting; the last two switch off what the paper does not have."""
    assert len(importlib.import_module(script).Args.__dataclass_fields__) <= 34


def test_command_line_ends_as_a_runner_expects(tmp_path):
    """A process of its own, told to stop from outside: it saves itself and exits with 75."""
    flags = ["--num-envs=8", "--num-steps=10", "--total-timesteps=1000000", f"--runs-dir={tmp_path}"]
    process = subprocess.Popen([sys.executable, "dpo_mpe.py", *flags], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not [path for path in tmp_path.glob("*/metrics.csv") if path.read_text().count("\n") > 3]:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=200) == 75
    assert load(only(tmp_path))["global_step"] > 0
