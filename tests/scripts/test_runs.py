"""Whole runs of all seven scripts: reproducible, stopped, killed and resumed, refused, evaluated.

They hold by text that is the same in all scripts and by what each saves of its own; so each is tried, and
some with another family of environments, whose state is saved otherwise.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.scripts import running
from tests.scripts.running import (
    ROOT,
    SCRIPTS,
    Result,
    assert_same_run,
    full_disk,
    killed,
    load,
    only,
    rejected,
    rows,
    same,
    signal_in_step,
)


@dataclass(frozen=True)
class Case:
    """A tiny run. Steps are environment steps; a turn is once around the loop of `train`."""

    script: str
    name: str  # of the run directory, up to the script's
    flags: str
    other: str  # a flag that would make it a run in another environment
    num_envs: int
    num_steps: int  # in a turn, of each environment
    total: int
    eval_every: int
    checkpoint_every: int
    die_at: int  # step of the training environments before which a run is ended
    updates: list[int]  # at which rows of metrics.csv tell of learning
    constants: dict[str, int]  # of the script, changed for short runs

    @property
    def tiny(self) -> list[str]:
        flags = f"--num-envs={self.num_envs} --total-timesteps={self.total} --eval-every={self.eval_every}"
        return [*self.flags.split(), *flags.split(), f"--checkpoint-every={self.checkpoint_every}"]

    @property
    def exact(self) -> bool:
        return self.name == GAME_NAME and self.script != "iql"

    @property
    def turn(self) -> int:
        return self.num_envs * self.num_steps

    def run(self, *argv: object) -> Result:
        return running.run(self.script, *argv, **self.constants)

    def finished(self, *argv: object) -> str:
        return running.finished(self.script, *argv, **self.constants).out

    def refused(self, *argv: object) -> str:
        return running.refused(self.script, *argv, **self.constants)


def on_policy(script, name, flags, other, num_envs, num_steps) -> Case:
    """Eight updates; dies after the fifth, one past a checkpoint, the rows after which are written again."""
    turn = num_envs * num_steps
    flags += " --update-epochs=3" + f" --num-steps={num_steps}" * (script != "dpo_matrix")
    steps = dict(total=8 * turn, eval_every=4 * turn, checkpoint_every=2 * turn)
    steps |= dict(num_envs=num_envs, num_steps=num_steps, die_at=5 * num_steps + num_steps // 2)
    constants = {} if script == "dpo_matrix" else {"EVAL_EPISODES": 1 if "mamujoco" in name else 4}
    updates = list(range(turn, 8 * turn + 1, turn))
    return Case(script, name, flags, other, **steps, updates=updates, constants=constants)


def off_policy(script, name, flags, other, num_envs, updates) -> Case:
    """600 steps, more than the replay buffer holds; dies past a checkpoint at 240 and a row after it."""
    steps = dict(total=600, eval_every=200, checkpoint_every=120)
    steps |= dict(num_envs=num_envs, num_steps=1, die_at=320 // num_envs + 1)
    constants = {"LOG_EVERY": 100, "EVAL_EPISODES": 1 if "mamujoco" in name else 4}
    return Case(script, name, flags, other, **steps, updates=updates, constants=constants)


GAME = "--env-id=matrix/stochastic --env-options num_states=6 num_agents=3 num_actions=4"
GAME_NAME = "matrix-stochastic-6x3x4"
MARINES = "--env-id=smac/3m --env-options backend=embedded"
CASES = {
    "dpo_smac": on_policy(
        "dpo_smac", "smac-3m-embedded", "--map=3m --backend=embedded", "--map=8m", num_envs=4, num_steps=16
    ),
    "dpo_mpe": on_policy(
        "dpo_mpe",
        "mpe-line_control-3",
        "--task=line_control --num-agents=3",
        "--task=simple_spread",
        num_envs=8,
        num_steps=10,
    ),
    "dpo_mamujoco": on_policy(
        "dpo_mamujoco",
        "mamujoco-Hopper-3x1",
        "--task=Hopper-3x1",
        "--task=Walker2d-3x2",
        num_envs=4,
        num_steps=16,
    ),
    "dpo_matrix": on_policy(
        "dpo_matrix",
        GAME_NAME,
        "--num-states=6 --num-agents=3 --num-actions=4",
        "--game-seed=1",
        num_envs=5,
        num_steps=6,
    ),
    "ippo": on_policy("ippo", GAME_NAME, GAME, "--env-id=smac/3m", num_envs=5, num_steps=6),
    "ippo-smac": on_policy("ippo", "smac-3m-embedded", MARINES, "--env-id=smac/8m", num_envs=4, num_steps=16),
    "ippo-mamujoco": on_policy(
        "ippo",
        "mamujoco-Hopper-3x1",
        "--env-id=mamujoco/Hopper-3x1",
        "--env-id=mamujoco/Walker2d-3x2",
        num_envs=4,
        num_steps=16,
    ),
    "iql": off_policy(
        "iql",
        GAME_NAME,
        f"{GAME} --batch-episodes=8 --buffer-episodes=40 --target-every=20 --epsilon-steps=400",
        "--env-id=matrix/1",
        num_envs=5,
        updates=list(range(100, 601, 100)),
    ),
    "iddpg": off_policy(
        "iddpg",
        "mamujoco-Hopper-3x1",
        "--env-id=mamujoco/Hopper-3x1 --warmup-steps=100 --batch-size=16 --buffer-steps=200"
        " --updates-per-step=0.25",
        "--env-id=mamujoco/Walker2d-3x2",
        num_envs=4,
        updates=list(range(104, 600, 100)),  # the first after the warm-up
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def reference(case, tmp_path_factory) -> Path:
    """The run directory of an uninterrupted tiny run; only to look at."""
    runs = tmp_path_factory.mktemp("runs")
    case.finished(*case.tiny, "--runs-dir", runs)
    return only(runs)


@pytest.fixture
def copied(reference, tmp_path) -> Path:
    """A copy of the reference, to change."""
    return shutil.copytree(reference, tmp_path / reference.name)


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


def test_two_threads_learn_what_one_learns(case, reference, tmp_path):
    """--torch-threads is for speed. Not bit for bit: one agent's matrix products add up in another order."""
    if case.script in ("iql", "iddpg"):
        pytest.skip("the threads are those of PyTorch's operators")
    case.finished(*case.tiny, "--torch-threads", 2, "--runs-dir", tmp_path)
    one, two = ([row for row in rows(d) if row["losses/grad_norm"]][:2] for d in (reference, only(tmp_path)))
    assert len(two) == min(2, len(case.updates))
    for row, other in zip(one, two, strict=True):
        for name in row:
            if name.startswith(("losses/", "dpo/")) and row[name]:
                assert float(other[name]) == pytest.approx(float(row[name]), rel=1e-3, abs=1e-5), name
    if case.script == "dpo_matrix":  # on tables even a whole run differs by little
        ours, theirs = load(only(tmp_path))["agents"], load(reference)["agents"]
        assert all(torch.allclose(ours[name], x, atol=1e-4) for name, x in theirs.items())


# Stopped and resumed.


KILLS = {"in a step": signal_in_step, "while saving": running.kill_while_saving}


@pytest.mark.parametrize("moment", KILLS)
def test_killed_run_resumes_to_the_uninterrupted_one_bit_for_bit(case, reference, tmp_path, moment):
    """A machine that dies may cost one checkpoint's interval, never the result."""
    at = (signal.SIGKILL, case.die_at) if moment == "in a step" else (3,)
    flags = [*case.tiny, "--runs-dir", tmp_path]
    killed(case.script, *flags, fault=KILLS[moment], at=at, **case.constants)
    directory = only(tmp_path)
    step = load(directory)["counters"][0]
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
    assert load(directory)["counters"][0] == turns * case.turn
    assert not (directory / "done").exists()
    case.finished("--resume", directory)
    assert_same_run(reference, directory)


def test_run_that_goes_on_is_not_done_until_it_is(case, copied):
    """A plot, or a runner, would take the marker of the shorter run for the longer one's."""
    with signal_in_step(signal.SIGTERM, 1):
        stopped = case.run("--resume", copied, "--total-timesteps", case.total + 2 * case.turn)
    assert stopped.code == 75 and not (copied / "done").exists()
    case.finished("--resume", copied)
    assert (copied / "done").exists() and load(copied)["counters"][0] == case.total + 2 * case.turn


def test_full_disk_is_a_sentence_and_the_previous_checkpoint_resumes(case, reference, tmp_path):
    """A full disk is met at night; what was saved before it must still be good in the morning."""
    with full_disk(3):
        sentence = case.refused(*case.tiny, "--runs-dir", tmp_path)
    assert "No space left" in sentence and "--resume" in sentence
    directory = only(tmp_path)
    assert 0 < load(directory)["counters"][0] <= case.checkpoint_every + case.turn
    assert not list(directory.glob("*.tmp"))
    case.finished("--resume", directory)
    assert_same_run(reference, directory)


def test_prolonged_run_is_the_long_one_wherever_it_stopped(case, reference, tmp_path):
    """Ending between two evaluations, and being resumed when finished already, leave no trace."""
    stop = case.total // 8 * 5 // case.turn * case.turn + 1
    case.finished(*case.tiny, "--total-timesteps", stop, "--runs-dir", tmp_path)
    directory = only(tmp_path)
    assert (directory / "done").exists() and len(rows(directory)) < len(rows(reference))
    case.finished("--resume", directory)
    case.finished("--resume", directory / "checkpoint.pt", "--total-timesteps", case.total)
    assert_same_run(reference, directory)
    if replay := load(directory).get("replay"):
        kept = len(replay["ended" if case.script == "iql" else "data"]["rewards"])
        assert replay["added"] > kept > 0  # it has wrapped around


def test_resumed_run_remembers_which_parameters_evaluated_best(case, copied):
    """The absolute metric is of the best parameters, also where they are older than the last interruption."""
    if case.exact:
        pytest.skip("the last parameters count: exact evaluation has no luck to correct for")
    state = load(copied)
    state["best"] = {name: x + 0.01 if x.is_floating_point() else x for name, x in state["best"].items()}
    state["counters"] = (*state["counters"][:2], 1e9, *state["counters"][3:])
    torch.save(state, copied / "checkpoint.pt")
    case.finished("--resume", copied, "--total-timesteps", case.total + case.turn)
    assert same(load(copied)["best"], state["best"]) and same(
        load(copied / "policy.pt")["best"], state["best"]
    )
    evaluated = case.finished("--eval-only", "--resume", copied)
    assert json.loads(evaluated[evaluated.index("{") :]) == json.loads((copied / "done").read_text())


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(case, tmp_path):
    """Hours of training on NaN, and a checkpoint overwritten with it, would both be lost."""
    flags = [*case.tiny, f"--checkpoint-every={10 * case.total}", "--runs-dir", tmp_path]
    if case.script == "iql":  # whose hidden state saturates: no learning rate is too large
        flags += ["--env-id=matrix/1", "--env-options", "payoff=[1e30, 1e30, 1e30, 1e30]"]
    sentence = case.refused(*flags, "--learning-rate=1e12")
    assert "not finite" in sentence and "diagnostic.pt" in sentence and "--learning-rate" in sentence
    directory = only(tmp_path)
    batch = load(directory / "diagnostic.pt")["batch"]
    assert batch["obs"].isfinite().all() and batch["obs"].any()
    if case.num_steps > 1 and case.script != "dpo_matrix":  # a rollout
        assert batch["obs"].shape[:2] == (3, case.turn)
    state = load(directory)
    assert state["counters"][0] == 0 and all(x.isfinite().all() for x in state["agents"].values())
    assert not (directory / "done").exists()


# Refused.


class Payload:
    """A pickle that writes a file when it is loaded as pickles usually are."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "executed"))


def broken(kind: str, good: Path, path: Path) -> None:
    """Writes to `path` what is no checkpoint of ours; `good` is one."""
    whole = good.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "foreign":
        torch.save({"model": torch.zeros(3)}, path)
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "other script":
        torch.save(torch.load(good) | {"script": "another"}, path)
    elif kind == "other version":
        state = torch.load(good)
        torch.save(state | {"args": {**state["args"], "retired_flag": 1}}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Payload(path.with_name("executed"))))
    else:
        torch.save(torch.load(good) | {"agents": Payload(path.with_name("executed"))}, path)


KINDS = ["truncated", "empty", "text", "foreign", "tensor", "other script", "other version", "pickle", "code"]


@pytest.mark.filterwarnings("ignore:Using a non-tuple")  # PyTorch's, where a tensor is asked for its script
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_checkpoint_of_ours_is_refused_unexecuted_and_untouched(case, reference, tmp_path, kind):
    """A stranger's file must not run code here, and a damaged one must not begin a run that looks resumed."""
    path = tmp_path / "run" / "checkpoint.pt"
    path.parent.mkdir()
    broken(kind, reference / "checkpoint.pt", path)
    before = path.read_bytes()
    for argv in (("--resume", path.parent), ("--eval-only", "--resume", path)):
        assert str(path) in case.refused(*argv)
    assert list(path.parent.iterdir()) == [path] and path.read_bytes() == before


def test_the_code_in_those_files_would_have_run(tmp_path):
    """Else the test above shows nothing."""
    (tmp_path / "pickle").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    pickle.loads((tmp_path / "pickle").read_bytes())
    assert (tmp_path / "executed").exists()


REFUSED = {
    "resume with other arguments": (
        ["--resume", "RUN", "--learning-rate=0.1234"],
        "--learning-rate is 0.1234",
    ),
    "resume with other environments": (["--resume", "RUN", "--num-envs=7"], "--num-envs is 7"),
    "resume on another task": (["--resume", "RUN", "OTHER"], "OTHER is"),
    "resume of nothing": (["--resume", "TMP/none"], "no checkpoint at TMP/none"),
    "evaluation of nothing": (["--eval-only", "--resume", "TMP/none"], "no checkpoint at TMP/none"),
    "evaluation without a run": (["--eval-only"], "--resume"),
    "evaluation on another task": (["--eval-only", "--resume", "RUN", "OTHER"], "OTHER is"),
    "evaluation of another learner": (["--eval-only", "--resume", "RUN", "--gamma=0.5"], "--gamma is 0.5"),
    "no GPU": (["--device", "cuda"], "--device cpu"),
    "runs directory in a file": (["TINY", "--runs-dir", "TMP/file/runs"], "TMP/file"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_is_refused_with_a_sentence_that_names_it(case, reference, tmp_path, what):
    """A traceback, or a run other than the one asked for, costs a user an hour."""
    if what == "no GPU" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    (tmp_path / "file").write_text("")
    argv, named = REFUSED[what]
    flag = case.other.partition("=")[0]
    before = {path: path.read_bytes() for path in reference.iterdir()}
    here = lambda x: x.replace("RUN", str(reference)).replace("TMP", str(tmp_path))  # noqa: E731
    words = itertools.chain.from_iterable(case.tiny if x == "TINY" else [x] for x in argv)
    given = [case.other if word == "OTHER" else here(word) for word in words]
    assert here(named).replace("OTHER", flag) in case.refused("--runs-dir", tmp_path / "runs", *given)
    assert {path: path.read_bytes() for path in reference.iterdir()} == before
    assert not (tmp_path / "runs").exists()


OUT_OF_RANGE = {
    "--gamma=5": "--gamma must be between 0 and 1, got 5.0",
    "--learning-rate=0": "--learning-rate must be between",
    "--learning-rate=nan": "got nan",
    "--max-grad-norm=-1": "--max-grad-norm must be between",
    "--seed=-1": "--seed must be between 0 and",
    "--num-envs=0": "--num-envs must be between 1 and",
    "--eval-every=0": "--eval-every must be between 1 and",
    "--checkpoint-every=0": "--checkpoint-every must be between 1 and",
    "--total-timesteps=0": "--total-timesteps must be between 1 and",
    "--torch-threads=0": "--torch-threads must be between 1 and",
    "--device=abacus": "Expected one of ('cpu', 'cuda')",
    "--device=cuda:1": "Expected one of ('cpu', 'cuda')",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_out_of_range_are_rejected_with_what_is_allowed(script, tmp_path):
    """Bad input costs a user one line to read, and makes no run directory."""
    wrong = dict(OUT_OF_RANGE)
    if script == "dpo_matrix":  # has no such flag
        del wrong["--max-grad-norm=-1"]
    for flag, sentence in wrong.items():
        assert sentence in rejected(script, flag, "--runs-dir", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("change", ["missing", "shorter"])
def test_run_whose_metrics_were_tampered_with_is_not_resumed(case, copied, change):
    """Going on would leave a curve with a hole that no one sees."""
    metrics = copied / "metrics.csv"
    if change == "missing":
        metrics.unlink()
    else:
        os.truncate(metrics, metrics.stat().st_size - 1)
    before = (copied / "checkpoint.pt").read_bytes()
    sentence = case.refused("--resume", copied, "--total-timesteps", 2 * case.total)
    assert str(metrics) in sentence and "restore it or start a new run" in sentence
    assert (copied / "checkpoint.pt").read_bytes() == before and metrics.exists() == (change == "shorter")


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


def test_policy_alone_is_no_run_to_go_on_with(case, copied):
    """It has neither optimiser nor environments: going on from it would be another run."""
    (copied / "checkpoint.pt").unlink()
    for path in (copied, copied / "policy.pt"):
        sentence = case.refused("--resume", path, "--total-timesteps", 2 * case.total)
        assert str(path) in sentence and "add --eval-only" in sentence


# Of every script as it is called.


@pytest.mark.parametrize("script", SCRIPTS)
def test_there_are_few_flags(script):
    """More are not read in one sitting."""
    assert len(importlib.import_module(script).Args.__dataclass_fields__) <= 32


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
    assert load(only(tmp_path))["counters"][0] > 0
