"""What goes wrong around a run, in every script: signals, damaged files, other processes, broken streams.

A run either goes on as if nothing had been or ends with one sentence that says what is the matter.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import json
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import envs as environments
from envs.mamujoco.env import MaMujocoVectorEnv
from envs.wrappers import AgentsFirst
from tests.scripts import running
from tests.scripts.cases import CASES
from tests.scripts.running import ROOT, assert_same_run, finished, load, on_call, only, refused

ENV_FLAG = {"dpo_smac": "map", "dpo_mamujoco": "task"}  # of others: env_id


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def evaluations_of(case) -> int:
    """During training; the one after it has the next number."""
    return case.total // case.eval_every + 1


# Signals.


@pytest.mark.parametrize("which", ["first", "last in training", "final"])
def test_signal_in_an_evaluation_ends_it_and_the_resumed_run_is_the_same(case, reference, tmp_path, which):
    """Evaluations of slow environments take minutes, which no cluster waits."""
    number = {"first": 1, "last in training": evaluations_of(case), "final": evaluations_of(case) + 1}[which]
    module = importlib.import_module(case.script)
    with on_call(module, "evaluate", number, send):
        stopped = case.run(*case.tiny, "--runs-dir", tmp_path)
    directory = only(tmp_path)
    assert stopped.code == 75 and f"--resume {directory}" in stopped.out and "Traceback" not in stopped.err
    assert load(directory)["global_step"] == (0 if which == "first" else case.total)
    assert not (directory / "done").exists()
    if which == "first" and not case.exact:  # as all parameters are there, but none of them is the best
        assert "stopped before it was evaluated" in case.refused("--eval-only", "--resume", directory)
    case.finished("--resume", directory)
    assert_same_run(reference, directory)


@pytest.mark.parametrize("which", [1, 3])
def test_signal_ends_an_evaluation_within_a_step(case, tmp_path, which):
    """An episode that never ends would be waited for, and Ctrl-C do nothing."""
    if case.exact or case.script == "dpo_matrix":
        pytest.skip("its evaluation takes no steps")
    module, steps, calls = importlib.import_module(case.script), [], [0]
    evaluate, step = module.evaluate, AgentsFirst.step

    def evaluating(*args, **kwargs):
        calls[0] += 1
        with mock.patch.object(AgentsFirst, "step", stepping):
            return evaluate(*args, **kwargs)

    def stepping(*args):
        steps.append(calls[0])
        if steps.count(which) == 2:
            send(signal.SIGINT)
        return step(*args)

    with mock.patch.object(module, "evaluate", evaluating):
        assert case.run(*case.tiny, "--runs-dir", tmp_path).code == 75
    assert calls == [which] and steps.count(which) == 2


def test_signal_before_training_is_a_sentence_and_leaves_nothing(case, tmp_path):
    """A traceback would look like a failure to whoever stopped a queue of runs."""
    with on_call(environments, "make", 1, send):
        stopped = case.run(*case.tiny, "--runs-dir", tmp_path / "runs")
    assert stopped.code == 75 and not stopped.err and not (tmp_path / "runs").exists()
    said = "stopped before anything was saved; the same command starts it again."
    assert stopped.out == f"{case.script}: {said}\n"


def test_signal_while_the_last_checkpoint_is_saved_is_not_lost(case, reference, tmp_path):
    """What comes after, the final evaluation, may take minutes."""

    def is_last(_, path: Path) -> bool:
        step = running.rows(path.parent)[-1:]
        return running.into_checkpoint(_, path) and step[0]["global_step"] == str(case.total)

    with on_call(os, "replace", 1, send, is_last):
        assert case.run(*case.tiny, "--runs-dir", tmp_path).code == 75
    directory = only(tmp_path)
    assert load(directory)["global_step"] == case.total and not (directory / "done").exists()
    case.finished("--resume", directory)
    assert_same_run(reference, directory)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell")
def test_ctrl_c_while_modules_are_imported_is_no_traceback():
    """It takes seconds, and is when a user sees the typing error."""
    process = subprocess.Popen([sys.executable, "iql.py"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    caught, deadline = 0, time.monotonic() + 60
    while not caught >> (signal.SIGTERM - 1) & 1:
        assert process.poll() is None and time.monotonic() < deadline
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 75 and process.stderr.read() == ""


# Other processes and closed streams.


def test_run_that_another_process_works_on_is_refused_untouched(case, copied):
    """Two writers ruin metrics.csv without a word."""
    before = {path: path.read_bytes() for path in copied.iterdir()}
    with open(copied / "metrics.csv", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for path in (copied, copied / "checkpoint.pt"):
            sentence = case.refused("--resume", path, "--total-timesteps", 2 * case.total)
            assert "another process is at work" in sentence and str(copied) in sentence
        case.finished("--eval-only", "--resume", copied)  # reads only
    assert {path: path.read_bytes() for path in copied.iterdir()} == before
    case.finished("--resume", copied)


def test_run_keeps_others_out_while_it_trains(case, tmp_path):
    """From its first update on, and after it was resumed; a lock that is let go too early is none."""
    module, tried = importlib.import_module(case.script), []

    def look():
        with open(only(tmp_path) / "metrics.csv", "a") as file, pytest.raises(BlockingIOError):
            tried.append(1)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    for number, more in enumerate((["--runs-dir", tmp_path], ["--resume"]), 1):
        more = more if number == 1 else [*more, only(tmp_path)]
        with on_call(module.Run, "check_finite", 2, look):
            case.finished(*case.tiny, *more, "--total-timesteps", number * case.total // 2)
        assert len(tried) == number


def test_system_without_file_locks_trains_and_resumes(tmp_path):
    """Windows has no fcntl."""
    case = CASES["dpo_matrix"]
    with mock.patch.dict(sys.modules, fcntl=None):
        finished(case.script, *case.tiny, "--runs-dir", tmp_path)
        finished(case.script, "--resume", only(tmp_path))


def test_closed_output_costs_no_steps(tmp_path):
    """`| head -1` is how one looks at a run, and its end is no reason to stop."""
    flags = [*CASES["dpo_mpe"].tiny, "--runs-dir", str(tmp_path)]
    for words in (["--help"], flags):
        argv = shlex.join([sys.executable, "dpo_mpe.py", *words])
        shell = f"set -o pipefail; {argv} | head -1"
        ended = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 0 and ended.stdout.count("\n") == 1
        assert "rror" not in ended.stderr
    assert (only(tmp_path) / "done").exists()


def test_stream_of_few_letters_gets_the_others_as_numbers(tmp_path):
    """Under an ASCII locale a run directory named Läufe would end the run."""
    with open(tmp_path / "out", "w", encoding="ascii") as stream:
        print("Läufe/1\nok", file=importlib.import_module("dpo_mpe").unbroken(stream))
    assert (tmp_path / "out").read_bytes() == b"L\\xe4ufe/1\nok\n"


def test_folder_of_letters_that_the_locale_lacks_is_a_sentence(tmp_path):
    """Containers often have no locale but ASCII, which TensorBoard does not ask."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    argv = [sys.executable, "dpo_matrix.py", *CASES["dpo_matrix"].tiny, "--runs-dir", tmp_path / "Läufe"]
    ended = subprocess.run(argv, cwd=ROOT, env=os.environ | plain, capture_output=True, text=True)
    assert ended.returncode == 1 and "set PYTHONUTF8=1" in ended.stderr and ended.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


# Damaged files.


def test_no_flipped_bit_changes_what_is_loaded(case, reference, tmp_path):
    """A disk or a copy that fails must not change a result in silence."""
    module = importlib.import_module(case.script)
    whole, path, refusals = (reference / "checkpoint.pt").read_bytes(), tmp_path / "checkpoint.pt", 0
    good = load(reference)
    del good["form"]
    draw = random.Random(case.name)
    for _ in range(20):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            assert running.same(module.load(path), good)  # it was in what pads the archive
        except SystemExit as end:
            assert f"{path} is damaged" in end.code
            refusals += 1
    assert refusals > 8


def test_checkpoint_that_lacks_a_part_or_has_another_for_it_is_refused(case, copied):
    """Well-formed, so that only a look at each part tells; else a traceback, or another run."""
    path = copied / "checkpoint.pt"
    good = load(copied)
    parts = [(name,) for name in good] + [("args", "seed"), ("args", "runs_dir"), ("args", "num_envs")]
    parts += [("agents", next(iter(good["agents"]))), ("best", next(iter(good["best"])))]
    before = (copied / "metrics.csv").read_bytes()
    for number, part in enumerate(parts):
        bad = dict(good)
        inner = bad
        for name in part[:-1]:
            inner[name] = dict(inner[name])
            inner = inner[name]
        was = inner.pop(part[-1])
        if number % 2:
            inner[part[-1]] = was.flatten()[:1] if isinstance(was, torch.Tensor) else None
        torch.save(bad, path)
        sentence = case.refused("--resume", copied, "--total-timesteps", 2 * case.total)
        assert str(copied) in sentence or "The saved environments cannot be resumed" in sentence, part
        assert (copied / "metrics.csv").read_bytes() == before and (copied / "done").exists(), part


def test_checkpoint_of_an_older_version_is_not_called_damaged(case, copied):
    """One from before checkpoints told their form is whole: its user looks for the fault in vain."""
    state = load(copied)
    del state["form"]
    torch.save(state, copied / "checkpoint.pt")
    assert "is of another version" in case.refused("--resume", copied, "--total-timesteps", 2 * case.total)


@pytest.mark.parametrize("change", ["shape", "missing", "none"])
def test_moments_of_another_network_are_refused(case, copied, change):
    """Adam does not look, and fails, or goes on without, at the first update."""
    state = load(copied)
    optimizer = state["optimizers"][0]
    if change == "shape":
        optimizer["state"][0]["exp_avg"] = torch.zeros(2, 3)
    elif change == "missing":
        del optimizer["state"][1]
    else:
        optimizer["state"][0]["exp_avg_sq"] = None
    torch.save(state, copied / "checkpoint.pt")
    assert "is damaged" in case.refused("--resume", copied, "--total-timesteps", 2 * case.total)


def test_checkpoint_of_a_stranger_imports_nothing(case, copied, tmp_path, monkeypatch):
    """`pettingzoo:MODULE` in its arguments would run that module's code."""
    if case.script in ("dpo_matrix", "dpo_mpe"):
        pytest.skip("it has tasks of its own only")
    (tmp_path / "of_a_stranger.py").write_text("open('executed', 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    name = ENV_FLAG.get(case.script, "env_id")
    for path in (copied / "checkpoint.pt", copied / "policy.pt"):
        state = load(path)
        state["args"] |= {name: "pettingzoo:of_a_stranger", "env_options": ()}
        del state["form"]
        importlib.import_module(case.script).save(path, state)
    flag = "--" + name.replace("_", "-")
    for words in (["--resume", copied], ["--eval-only", "--resume", copied / "policy.pt"]):
        assert "made in pettingzoo:of_a_stranger; name that here" in case.refused(*words)
    assert not Path("executed").exists()
    case.refused("--resume", copied, flag, "pettingzoo:of_a_stranger")  # who names it gets it
    assert Path("executed").exists()
    del sys.modules["of_a_stranger"]


def test_read_only_run_directory_is_a_sentence(case, copied):
    """A run that was handed over, or is on a disk that fell back to reading, can still be evaluated."""

    def fail():
        raise PermissionError(13, "Permission denied", str(copied / "metrics.csv"))

    with on_call(os, "truncate", 1, fail):
        sentence = case.refused("--resume", copied, "--total-timesteps", 2 * case.total)
    assert "Permission denied" in sentence and "allow writing" in sentence and "metrics.csv" in sentence
    assert (copied / "done").exists()


def test_checkpoint_that_fills_the_disk_says_so(tmp_path):
    """PyTorch reports its own position in the file instead."""
    module = importlib.import_module("iql")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            module.save(tmp_path / "checkpoint.pt", {"replay": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_file_is_on_disk_before_it_takes_the_old_one_s_place(tmp_path, monkeypatch):
    """A machine that loses its power in between would leave an empty checkpoint, and no other."""
    done = []
    for name in ("fsync", "replace"):
        true = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *told, name=name, true=true: done.append(name) or true(*told))
    with importlib.import_module("dpo_mpe").replacing(tmp_path / "file") as file:
        file.write(b"whole")
    assert done == ["fsync", "replace"] and (tmp_path / "file").read_bytes() == b"whole"


@pytest.mark.parametrize("at", [5, 7, 10, 18, 20])
def test_disk_that_is_full_wherever_it_is_written_to_costs_no_result(at, tmp_path):
    """Rows of metrics.csv and checkpoints both; what was written in part must not be gone on from."""
    case = CASES["dpo_mpe"]

    def fail():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    case.finished(*case.tiny, "--runs-dir", tmp_path / "whole")
    with on_call(os, "fsync", at, fail):
        assert "No space left" in case.refused(*case.tiny, "--runs-dir", tmp_path / "full")
    directory = only(tmp_path / "full")
    case.finished("--resume", directory)
    assert_same_run(only(tmp_path / "whole"), directory)


# Environments and learners.


def test_error_of_an_environment_is_told_as_it_is(case, tmp_path):
    """A missing file of an environment is not a full disk."""

    def fail():
        raise FileNotFoundError(2, "No such file or directory", "level.map")

    with on_call(AgentsFirst, "step", 2, fail):
        sentence = case.refused(*case.tiny, "--runs-dir", tmp_path)
    assert "No such file or directory: 'level.map'" in sentence and "make room" not in sentence


def test_episode_that_does_not_end_is_given_up_after_the_limit(case, tmp_path):
    """The first evaluation would hang."""
    if case.exact or case.script == "dpo_matrix":
        pytest.skip("its evaluation plays no episodes")
    played = []
    with on_call(AgentsFirst, "step", 10**9, send, lambda *_: played.append(1) or False):
        sentence = refused(
            case.script, *case.tiny, "--runs-dir", tmp_path, **case.constants | {"LONGEST_EPISODE": 3}
        )
    assert "did not end within 3 steps" in sentence and "episode_limit" in sentence
    assert len(played) == 3


def test_number_of_greedy_episodes_is_the_number_played(case, tmp_path):
    """It is cited beside a result."""
    if case.exact or case.script == "dpo_matrix":
        pytest.skip("its evaluation plays no episodes")
    module, counted = importlib.import_module(case.script), []
    mean = module.mean_over_episodes

    def counting(episodes, prefix):
        counted.append(len(episodes))
        return mean(episodes, prefix)

    with mock.patch.object(module, "mean_over_episodes", counting):
        printed = case.finished(*case.tiny, "--num-envs=3", "--runs-dir", tmp_path)
    assert counted[-1] >= 10 * case.constants["EVAL_EPISODES"]
    assert f"{only(tmp_path)}, {counted[-1]} greedy episodes: " in printed


@pytest.mark.filterwarnings("ignore:.*cannot continue saved episodes")
def test_last_evaluation_of_slow_environments_is_short(tmp_path):
    """Ten times the usual one could take longer than the training."""
    flags = ["--env-id=pettingzoo:tests.standin.identity", "--num-envs=4", "--num-steps=16"]
    printed = finished("ippo", *flags, "--total-timesteps=64", "--runs-dir", tmp_path, EVAL_EPISODES=6)
    assert f"{only(tmp_path)}, 8 greedy episodes: " in printed.out  # two in each


@pytest.mark.parametrize("name", ["dpo_mamujoco", "ippo-mamujoco", "iddpg"])
@pytest.mark.parametrize("evaluating", [False, True])
def test_policy_that_diverged_does_not_act(name, evaluating, tmp_path):
    """Robots answer NaN with a traceback, or with warnings for ever."""
    case = CASES[name]
    case.finished(*case.tiny, "--runs-dir", tmp_path)
    directory = only(tmp_path)
    state = load(directory)
    for name in ("agents", "best"):
        for parameter in state[name].values():
            if parameter.is_floating_point() and parameter.dim() > 1:
                parameter *= 3e38 / parameter.abs().clamp(min=1e-30)
    torch.save(state, directory / "checkpoint.pt")
    words = ["--eval-only"] if evaluating else ["--total-timesteps", 2 * case.total]
    acted = []
    with on_call(MaMujocoVectorEnv, "step", 10**9, send, lambda _, action: acted.append(action) or False):
        sentence = case.refused("--resume", directory, *words)
    assert "not finite" in sentence and "--learning-rate" in sentence
    assert all(np.isfinite(action).all() for action in acted)


def test_rollout_that_does_not_fit_is_refused_with_its_size(case, tmp_path, monkeypatch):
    """The system would end the process without a word, or the machine with it."""
    if case.script in ("iql", "iddpg"):
        pytest.skip("its replay buffer is tested with it")
    monkeypatch.setattr("envs.base.free_bytes", lambda: 1000)
    sentence = case.refused(*case.tiny, "--runs-dir", tmp_path / "runs")
    assert "A rollout and its batch take" in sentence and "--num-envs" in sentence
    assert not (tmp_path / "runs").exists()


def test_failed_allocation_is_a_sentence(case, tmp_path):
    """PyTorch's own is a traceback."""
    with mock.patch.object(torch, "zeros", lambda *_, **__: torch.empty(10**15)):
        sentence = case.refused(*case.tiny, "--runs-dir", tmp_path / "runs")
    assert "memory" in sentence


@pytest.mark.parametrize("name", ["iql", "iddpg"])
def test_run_that_fitted_once_fits_again(name, tmp_path, monkeypatch):
    """A replay buffer read from a checkpoint may not be in memory beside the one that it is copied to."""
    case = CASES[name]
    case.finished(*case.tiny, "--runs-dir", tmp_path)
    monkeypatch.setattr("envs.base.free_bytes", lambda: 10**6)
    more = ["--resume", only(tmp_path), "--total-timesteps", case.total + 100]
    assert "raise --memory-share" in case.refused(*more, "--memory-share=0.0001")
    case.finished(*more, "--memory-share=0.9")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell")
def test_checkpoint_is_loaded_without_being_in_memory(tmp_path):
    """Else the replay buffer is there twice on resuming."""

    def own_memory() -> int:
        return 1024 * int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0])

    module = importlib.import_module("iql")
    args = dict(vars(module.Args()))
    state = {"args": args, "best": {}, "replay": torch.ones(10_000_000)}
    module.save(tmp_path / "policy.pt", state)
    del state
    before = own_memory()
    loaded = module.load(tmp_path / "policy.pt")
    assert own_memory() - before < 20e6
    assert loaded["replay"].sum() == 10_000_000


LARGE = [
    "--env-id=pettingzoo:tests.standin.large",
    "--batch-episodes=8",
    "--num-envs=2",
    "--total-timesteps=100",
]


@pytest.mark.parametrize(
    ("growth", "bound", "dtype"),
    [
        (2.0, float("inf"), torch.float16),  # 16 at the end
        (13.0, float("inf"), torch.float32),  # 28,561, which half precision takes for 28,560
        (40.0, float("inf"), torch.float32),  # 2,560,000, which it takes for infinity
        (2.0, 1e5, torch.float32),
    ],
)
@pytest.mark.filterwarnings("ignore:.*cannot continue saved episodes")
def test_iql_remembers_observations_of_any_size(tmp_path, growth, bound, dtype):
    """Half precision ends at 65,504: all parameters would be NaN."""
    kwargs = json.dumps({"growth": growth} | ({"bound": bound} if bound < 1e9 else {}))
    flags = [*LARGE, "--env-options", "episode_limit=4", f"env_kwargs={kwargs}", "--runs-dir", tmp_path]
    finished("iql", *flags, EVAL_EPISODES=2)
    state = load(only(tmp_path))
    seen = state["replay"]["ended"]["obs"]  # (episodes, steps, agents, inputs)
    assert seen.dtype == dtype
    assert seen[:, :, 0, 0].unique().tolist() == [growth**t for t in range(5)]
    assert all(x.isfinite().all() for x in state["agents"].values())
    more = ["--resume", only(tmp_path), "--env-id=pettingzoo:tests.standin.large", "--total-timesteps=140"]
    finished("iql", *more, EVAL_EPISODES=2)
    again = load(only(tmp_path))["replay"]["ended"]["obs"]
    assert len(again) > len(seen) and torch.equal(again[: len(seen)], seen)


# Pictures.


@pytest.mark.parametrize("name", ["dpo_mpe", "iql", "iddpg"])
def test_environment_that_cannot_be_drawn_is_told_before_training(name, tmp_path):
    """Else after days of it."""

    def fail():
        raise environments.BrokenEnvironment("There is no display.")

    with on_call(AgentsFirst, "render", 1, fail):
        case = CASES[name]
        flags = ["--env-id=mpe/simple_spread"] if name == "iql" else []
        sentence = case.refused(
            *(case.tiny if name != "iql" else []), *flags, "--capture-video", "--runs-dir", tmp_path / "runs"
        )
    assert "There is no display" in sentence and not (tmp_path / "runs").exists()
