"""Whole runs of dpo_smac.py: reproducible, killed and resumed, refused with a sentence, evaluated, learning.

The reference run is a real command line. The others are too, but in processes forked from one that has
imported torch already, which saves seconds each and lets a test make the machine fail at a given moment.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import itertools
import json
import multiprocessing
import os
import pickle
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import imageio
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dpo_smac
import envs
from envs.smac import SmacVectorEnv

SCRIPT = Path(dpo_smac.__file__)
TINY = ["--map=3m", "--backend=embedded", "--num-envs=4", "--num-steps=16", "--total-timesteps=512"]
TINY += ["--eval-every=256", "--checkpoint-every=128", "--update-epochs=3"]
CLOCK = {"charts/SPS", "time/env", "time/act", "time/update"}  # the columns that a run need not repeat

fork = multiprocessing.get_context("forkserver")
fork.set_forkserver_preload(["dpo_smac", "torch._dynamo", "envs.smac.env"])


class Result(NamedTuple):
    code: int
    out: str
    err: str


def on_call(owner, name: str, at: int, action, applies=lambda *args: True) -> None:
    """Have `action` done before the call number `at` (from 1) of owner.name for which `applies` holds."""
    original, calls = getattr(owner, name), [0]

    def wrapped(*args, **kwargs):
        calls[0] += applies(*args)
        if calls[0] == at and applies(*args):
            action()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def training(env: SmacVectorEnv, *_) -> bool:
    return env.num_envs == 4


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def kill_in_battle() -> None:
    """After 5 updates and 7 steps, one update past the checkpoint at step 256."""
    on_call(SmacVectorEnv, "step", 5 * 16 + 7, lambda: send(signal.SIGKILL), training)


def kill_while_saving() -> None:
    """In the third checkpoint, its file written but not yet in place."""
    on_call(os, "replace", 3, lambda: send(signal.SIGKILL))


def terminate_in_battle() -> None:
    on_call(SmacVectorEnv, "step", 5 * 16 + 7, lambda: send(signal.SIGTERM), training)


def interrupt_in_battle() -> None:
    on_call(SmacVectorEnv, "step", 5 * 16 + 7, lambda: send(signal.SIGINT), training)


def full_disk() -> None:
    """In the third checkpoint."""

    def fail():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    on_call(os, "replace", 3, fail)


def command(argv: list[str], directory: Path, fault) -> None:
    """In the new process: the script as `python dpo_smac.py ...` runs it, streams into files."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(directory / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    if fault:
        fault()
    sys.argv = [str(SCRIPT), *argv]
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        sys.stdout.flush()


@pytest.fixture
def run(tmp_path):
    """run(*argv, fault=None) -> Result; `fault` is called in the process before the script begins."""

    def run(*argv, fault=None) -> Result:
        process = fork.Process(target=command, args=([str(x) for x in argv], tmp_path, fault))
        process.start()
        process.join(timeout=200)
        if process.is_alive():
            process.kill()
            pytest.fail(f"{argv} did not end")
        return Result(process.exitcode, (tmp_path / "out").read_text(), (tmp_path / "err").read_text())

    return run


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """The run directory of an uninterrupted tiny run, made by the real command line."""
    runs = tmp_path_factory.mktemp("runs")
    argv = [sys.executable, str(SCRIPT), *TINY, "--runs-dir", str(runs)]
    done = subprocess.run(argv, cwd=SCRIPT.parent, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return only(runs)


def only(runs: Path) -> Path:
    """The one run directory in `runs`."""
    (directory,) = runs.iterdir()
    return directory


def rows(directory: Path) -> list[dict[str, str]]:
    with open(directory / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]


def same(a, b) -> bool:
    """Bit for bit, through dicts, lists and tensors."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    return a == b


def assert_same_run(one: Path, other: Path) -> None:
    """Same rows, final checkpoint (all but paths and the file's size) and absolute metric."""
    assert rows(one) == rows(other)
    a, b = (dpo_smac.load(directory / "checkpoint.pt") for directory in (one, other))
    assert a.keys() == b.keys()
    for key in a.keys() - {"args", "metrics_bytes"}:
        assert same(a[key], b[key]), key
    assert (one / "done").read_text() == (other / "done").read_text()


def assert_sentence(result: Result) -> None:
    """Refused: one line that says who speaks, no traceback; PyTorch may have warned before."""
    assert result.code == 1
    assert "Traceback" not in result.err
    *warnings, line = result.err.strip().splitlines()
    assert not warnings or "UserWarning" in warnings[0]
    assert line.startswith("dpo_smac: ") and line.endswith(".")


# What a run leaves behind.


def test_run_directory_tells_how_the_run_was_made(reference):
    """Without versions, commit, machine and every argument a result cannot be reproduced."""
    name = reference.name.split("__")
    assert name[:3] == ["smac-3m-embedded", "dpo_smac", "1"] and name[3].isdigit()
    saved = json.loads((reference / "args.json").read_text())
    assert saved["map"] == "3m" and saved["num_envs"] == 4 and saved["beta_min"] == dpo_smac.Args.beta_min
    assert dpo_smac.Args.__dataclass_fields__.keys() < saved.keys()
    assert saved["torch"] == torch.__version__ and saved["numpy"] == np.__version__
    assert saved["python"] == ".".join(map(str, sys.version_info[:3])) and saved["backend"] == "embedded"
    assert saved["git_commit"] and saved["machine"] and saved["numba"] and saved["gymnasium"]
    assert (reference / "done").exists() and (reference / "checkpoint.pt").exists()


def test_metrics_hold_every_update_and_evaluation_once_and_tensorboard_the_same(reference):
    """Curves are drawn from metrics.csv alone: on a fixed grid of environment steps, nothing twice."""
    table = rows(reference)
    updates = [int(row["global_step"]) for row in table if row["dpo/kl"]]
    evaluations = [int(row["global_step"]) for row in table if row["eval/win_rate"]]
    assert updates == list(range(64, 513, 64)) and evaluations == [0, 256, 512]
    assert len(table) == len(updates) + len(evaluations)
    with open(reference / "metrics.csv", newline="") as file:
        text = file.read()
    assert text.splitlines()[0].split(",") == dpo_smac.COLUMNS and "\r" not in text
    for row in table:
        if row["dpo/kl"]:
            assert float(row["dpo/kl"]) > 0 and float(row["dpo/beta1"]) > 0
            assert float(row["dpo/sqrt_kl"]) >= float(row["dpo/kl"])
    events = EventAccumulator(str(reference)).Reload()
    assert set(events.Tags()["scalars"]) == set(dpo_smac.COLUMNS) - {"global_step"}
    kl = events.Scalars("dpo/kl")
    assert [event.step for event in kl] == updates
    written = [float(row["dpo/kl"]) for row in table if row["dpo/kl"]]
    assert np.allclose([event.value for event in kl], written, rtol=1e-4)


# The same again.


def test_same_seed_gives_the_same_run_and_another_seed_another(reference, run, tmp_path):
    """A result that its own seed does not reproduce cannot be checked by anyone."""
    assert run(*TINY, "--runs-dir", tmp_path / "again").code == 0
    assert_same_run(reference, only(tmp_path / "again"))
    other = run(*TINY, "--seed", 2, "--total-timesteps", 64, "--runs-dir", tmp_path / "other")
    assert other.code == 0
    assert rows(only(tmp_path / "other"))[:2] != rows(reference)[:2]


def test_two_threads_learn_what_one_learns(reference, run, tmp_path):
    """--torch-threads is for speed. Not bit for bit: one agent's matrix products add up in another order."""
    argv = ["--torch-threads", 2, "--total-timesteps", 128, "--runs-dir", tmp_path / "two"]
    assert run(*TINY, *argv).code == 0
    one, two = ([r for r in rows(d) if r["dpo/kl"]][:2] for d in (reference, only(tmp_path / "two")))
    assert len(two) == 2
    for row, other in zip(one, two, strict=True):
        for name in ("losses/value_loss", "losses/entropy", "dpo/kl", "dpo/beta1", "losses/grad_norm"):
            assert float(other[name]) == pytest.approx(float(row[name]), rel=1e-3)


# Stopped and resumed.


@pytest.mark.parametrize("fault", [kill_in_battle, kill_while_saving])
def test_killed_run_resumes_to_the_uninterrupted_one_bit_for_bit(reference, run, tmp_path, fault):
    """A machine that dies may cost one checkpoint's interval, never the result."""
    runs = tmp_path / "runs"
    assert run(*TINY, "--runs-dir", runs, fault=fault).code == -signal.SIGKILL
    directory = only(runs)
    step = dpo_smac.load(directory / "checkpoint.pt")["counters"][0]
    written = [int(row["global_step"]) for row in rows(directory)]
    assert 0 < step < 512 and not (directory / "done").exists()
    if fault is kill_in_battle:
        assert max(written) > step  # rows that the resumed run writes again
    resumed = run("--resume", directory)
    assert resumed.code == 0, resumed.err
    assert_same_run(reference, directory)


@pytest.mark.parametrize("fault", [terminate_in_battle, interrupt_in_battle])
def test_stopped_run_saves_itself_says_requeue_and_resumes(reference, run, tmp_path, fault):
    """A cluster that takes its machine back sends SIGTERM; the runner reads code 75 as `start me again`."""
    runs = tmp_path / "runs"
    stopped = run(*TINY, "--runs-dir", runs, fault=fault)
    directory = only(runs)
    assert stopped.code == 75 and f"--resume {directory}" in stopped.out and not stopped.err
    assert dpo_smac.load(directory / "checkpoint.pt")["counters"][0] == 6 * 64  # the update it was in
    assert not (directory / "done").exists()
    assert run("--resume", directory).code == 0
    assert_same_run(reference, directory)


def test_full_disk_is_a_sentence_and_the_previous_checkpoint_resumes(reference, run, tmp_path):
    """A full disk is met at night; what was saved before it must still be good in the morning."""
    runs = tmp_path / "runs"
    failed = run(*TINY, "--runs-dir", runs, fault=full_disk)
    assert_sentence(failed)
    assert "No space left" in failed.err and "--resume" in failed.err
    assert dpo_smac.load(only(runs) / "checkpoint.pt")["counters"][0] == 128
    assert run("--resume", only(runs)).code == 0
    assert_same_run(reference, only(runs))


def test_finished_run_can_be_prolonged(reference, run, tmp_path):
    """`--resume --total-timesteps` continues: the same as one run of that length."""
    runs = tmp_path / "runs"
    assert run(*TINY, "--total-timesteps", 256, "--runs-dir", runs).code == 0
    assert len(rows(only(runs))) == 6
    assert run("--resume", only(runs), "--total-timesteps", 512).code == 0
    assert_same_run(reference, only(runs))


def test_resumed_run_remembers_which_parameters_evaluated_best(reference, run, tmp_path):
    """The absolute metric is of the best parameters, also where they are older than the last interruption."""
    directory = tmp_path / "finished"
    shutil.copytree(reference, directory)
    state = torch.load(directory / "checkpoint.pt")
    state["best"] = {name: x + 0.01 for name, x in state["best"].items()}
    state["counters"] = (*state["counters"][:2], 1e9)
    torch.save(state, directory / "checkpoint.pt")
    assert run("--resume", directory, "--total-timesteps", 576).code == 0
    assert same(dpo_smac.load(directory / "checkpoint.pt")["best"], state["best"])
    evaluated = run("--eval-only", "--checkpoint", directory).out
    assert json.loads(evaluated[evaluated.index("{") :]) == json.loads((directory / "done").read_text())


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(run, tmp_path):
    """Hours of training on NaN, and a checkpoint overwritten with it, would both be lost."""
    runs = tmp_path / "runs"
    failed = run(*TINY, "--learning-rate", "1e30", "--runs-dir", runs)
    assert_sentence(failed)
    assert "not finite" in failed.err and "diagnostic.pt" in failed.err
    directory = only(runs)
    batch = torch.load(directory / "diagnostic.pt", weights_only=True)["batch"]
    assert batch["obs"].isfinite().all() and batch["obs"].shape == (3, 16 * 4, 30)
    state = dpo_smac.load(directory / "checkpoint.pt")
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
        torch.save(torch.load(good) | {"script": "iql"}, path)
    elif kind == "other version":
        state = torch.load(good)
        torch.save(state | {"args": {**state["args"], "retired_flag": 1}}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Payload(path.with_name("executed"))))
    else:
        torch.save(torch.load(good) | {"agents": Payload(path.with_name("executed"))}, path)


KINDS = ["truncated", "empty", "text", "foreign", "tensor", "other script", "other version", "pickle", "code"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_checkpoint_of_ours_is_refused_unexecuted_and_untouched(reference, run, tmp_path, kind):
    """A stranger's file must not run code here, and a damaged one must not begin a run that looks resumed."""
    path = tmp_path / "run" / "checkpoint.pt"
    path.parent.mkdir()
    broken(kind, reference / "checkpoint.pt", path)
    before = path.read_bytes()
    for argv in (("--resume", path.parent), ("--eval-only", "--checkpoint", path)):
        refused = run(*argv)
        assert_sentence(refused)
        assert str(path) in refused.err
    assert list(path.parent.iterdir()) == [path] and path.read_bytes() == before


def test_the_code_in_those_files_would_have_run(tmp_path):
    """Else the test above shows nothing."""
    (tmp_path / "pickle").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    pickle.loads((tmp_path / "pickle").read_bytes())
    assert (tmp_path / "executed").exists()


REFUSED = {
    "resume with other arguments": (["--resume", "RUN", "--num-envs", 8], "num_envs"),
    "resume on another map": (["--resume", "RUN", "--map", "8m"], "map"),
    "resume of nothing": (["--resume", "TMP/none"], "TMP/none"),
    "evaluation of nothing": (["--eval-only", "--checkpoint", "TMP/none"], "TMP/none"),
    "evaluation without checkpoint": (["--eval-only"], "--checkpoint"),
    "checkpoint without evaluation": (["--checkpoint", "RUN"], "--eval-only"),
    "evaluation on another map": (["--eval-only", "--checkpoint", "RUN", "--map", "8m"], "map"),
    "unknown map": (["--map", "3x"], "3s"),
    "unknown backend": (["--map", "3m", "--backend", "sc3"], "embedded"),
    "no GPU": (["--map", "3m", "--device", "cuda"], "--device cpu"),
    "unknown device": (["--map", "3m", "--device", "abacus"], "--device is cpu or cuda"),
    "GPU by number": (["--map", "3m", "--device", "cuda:1"], "CUDA_VISIBLE_DEVICES"),
    "runs directory in a file": ([*TINY, "--runs-dir", "TMP/file/runs"], "TMP/file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_with_a_sentence_that_names_it(reference, run, tmp_path, case):
    """A traceback, or a run other than the one asked for, costs a user an hour."""
    if case == "no GPU" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    (tmp_path / "file").write_text("")
    argv, named = REFUSED[case]
    before = {path: path.read_bytes() for path in reference.iterdir()}
    here = lambda x: str(x).replace("RUN", str(reference)).replace("TMP", str(tmp_path))  # noqa: E731
    refused = run("--runs-dir", tmp_path / "runs", *map(here, argv))
    assert_sentence(refused)
    assert here(named) in refused.err
    assert {path: path.read_bytes() for path in reference.iterdir()} == before
    assert not (tmp_path / "runs").exists()


# Evaluated.


def test_saved_run_evaluates_to_the_numbers_of_its_end(reference, run):
    """The published number must come out of the published checkpoint."""
    done = json.loads((reference / "done").read_text())
    assert done.keys() == {"eval/episodic_return", "eval/win_rate"}
    for path in (reference, reference / "checkpoint.pt"):
        evaluated = run("--eval-only", "--checkpoint", path)
        assert evaluated.code == 0, evaluated.err
        assert json.loads(evaluated.out[evaluated.out.index("{") :]) == done


def test_video_shows_a_battle(reference, run):
    """A video of nothing, or one that no player opens, is found when it is to be shown."""
    with contextlib.suppress(FileNotFoundError):
        (reference / "video.mp4").unlink()
    shown = run("--eval-only", "--capture-video", "--checkpoint", reference)
    assert shown.code == 0, shown.err
    frames = imageio.mimread(reference / "video.mp4", memtest=False)
    assert len(frames) > 20 and frames[0].ndim == 3 and frames[0].shape[2] == 3
    moved = [np.abs(a.astype(int) - b.astype(int)).max() for a, b in itertools.pairwise(frames)]
    assert np.mean(np.array(moved) > 50) > 0.5
    (reference / "video.mp4").unlink()


# Over a story of which each part is known.


class Replay:
    """An environment whose story does not depend on the actions, so that one agent's part can be changed."""

    num_envs, num_agents, num_actions, obs_dim, backend = 4, 3, 5, 7, "replay"

    def __init__(self, changed: bool):
        self.rng, self.other, self.changed = np.random.default_rng(0), np.random.default_rng(1), changed
        self.alive = np.ones((4, 3), dtype=bool)

    def part(self, draw) -> np.ndarray:
        """`draw(rng)` (E, N, ...), of which agent 1 may see another."""
        own, other = draw(self.rng), draw(self.other)
        if self.changed:
            own[:, 1] = other[:, 1]
        return own

    def look(self, ended: np.ndarray):
        obs = self.part(lambda rng: rng.normal(size=(4, 3, 7)).astype(np.float32))
        mask = self.part(lambda rng: rng.random((4, 3, 5)) < 0.7)
        mask[..., 0] = True
        self.alive = self.alive & self.part(lambda rng: rng.random((4, 3)) < 0.9) | ended[:, None]
        return obs, {"action_mask": mask, "alive": self.alive}

    def reset(self, seed=None):
        return self.look(np.ones(4, dtype=bool))

    def step(self, actions):
        ended, won = self.rng.random((2, 4)) < 0.15
        reward, cut = self.rng.normal(size=4).astype(np.float32), self.rng.random(4) < 0.5
        infos = {"final_obs": self.part(lambda rng: rng.normal(size=(4, 3, 7)).astype(np.float32))}
        infos |= {"_episode": ended, "battle_won": won, "episode": {"r": reward, "l": np.ones(4, dtype=int)}}
        obs, seen = self.look(ended)
        return obs, reward, ended & ~cut, ended & cut, infos | seen

    def get_state(self):
        return {}


def test_evaluation_takes_equally_many_episodes_of_each_environment():
    """Counting the first to end would over-represent short battles, mostly lost ones."""
    vector_env, counted = Replay(False), []
    step = vector_env.step

    def watched(actions):
        result = step(actions)
        counted.append((result[4]["_episode"].copy(), result[4]["episode"]["r"].copy()))
        return result

    vector_env.step = watched
    result = dpo_smac.evaluate(dpo_smac.Agents(3, 7, 5), vector_env, 8, [1, 2], "cpu")
    returns = [[r[e] for ended, r in counted if ended[e]] for e in range(4)]
    first = [played[:2] for played in returns]
    assert min(map(len, returns)) == 2 < max(map(len, returns))
    assert result["eval/episodic_return"] == pytest.approx(float(np.mean(first)), rel=1e-6)


@pytest.fixture
def handlers():
    """`train` takes over SIGTERM and SIGINT; the tests' own are given back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_parameters_that_are_not_finite_are_never_saved(tmp_path, monkeypatch, handlers):
    """The last epoch's step can break the critic while every logged number is still finite."""
    original = dpo_smac.update

    def poisoned(agents, *args, **options):
        stats = original(agents, *args, **options)
        agents.critic.biases[2].data[1] = torch.nan
        return stats

    monkeypatch.setattr(dpo_smac, "update", poisoned)
    args = dpo_smac.Args(num_envs=4, num_steps=16, total_timesteps=256, checkpoint_every=64)
    with pytest.raises(SystemExit, match="not finite"):
        dpo_smac.train(args, Replay(False), Replay(False), dpo_smac.Agents(3, 7, 5), {}, tmp_path / "run")
    saved = dpo_smac.load(tmp_path / "run" / "checkpoint.pt")["agents"]
    assert all(x.isfinite().all() for x in saved.values())


def test_of_parameters_that_evaluate_alike_the_last_are_kept(tmp_path, monkeypatch, handlers):
    """The first 32 battles that are all won are luck; what was trained on since should not be thrown away."""
    perfect = {"eval/episodic_return": 20.0, "eval/win_rate": 1.0}
    monkeypatch.setattr(dpo_smac, "evaluate", lambda *args, **options: dict(perfect))
    args = dpo_smac.Args(num_envs=4, num_steps=16, total_timesteps=256, eval_every=64)
    agents = dpo_smac.Agents(3, 7, 5)
    best = dpo_smac.train(args, Replay(False), Replay(False), agents, {}, tmp_path / "run")
    assert all(torch.equal(best[name], x) for name, x in agents.state_dict().items())


def test_whole_training_of_an_agent_ignores_what_another_agent_sees(tmp_path, monkeypatch, handlers):
    """Strictly decentralized, from rollout to Adam: only the reward and the end of the episode are common."""
    monkeypatch.setattr(dpo_smac, "CHUNK", 16)
    args, trained, states = (
        dpo_smac.Args(num_envs=4, num_steps=16, total_timesteps=256, eval_every=9999),
        [],
        [],
    )
    args.update_epochs = 2
    for changed in (False, True):
        torch.manual_seed(0)
        agents, directory = dpo_smac.Agents(3, 7, 5), tmp_path / str(changed)
        agents.betas += 0.01
        initial = [p.detach().clone() for p in agents.parameters()]
        dpo_smac.train(args, Replay(changed), Replay(False), agents, {}, directory)
        trained.append([p.detach() for p in agents.parameters()] + [agents.betas.T])
        adam = dpo_smac.load(directory / "checkpoint.pt")["optimizers"][0]["state"]
        states.append([adam[k][name] for k in adam for name in ("exp_avg", "exp_avg_sq")])
    for one, other in zip(trained[0] + states[0], trained[1] + states[1], strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])
    assert not torch.equal(trained[0][0][1], trained[1][0][1])
    assert all(
        not torch.equal(p[i], q[i]) for p, q in zip(initial, trained[0], strict=False) for i in range(3)
    )


# Learning.


def random_play(episodes: int) -> tuple[float, float]:
    """Mean return and win rate of uniformly random available actions on 3m."""
    vector_env, rng = envs.make("smac/3m", 32, seed=7, backend="embedded"), np.random.default_rng(0)
    _, infos = vector_env.reset()
    found: list[tuple[float, bool]] = []
    while len(found) < episodes:
        mask = infos["action_mask"]
        infos = vector_env.step((rng.random(mask.shape) * mask).argmax(-1))[4]
        ended = infos["_episode"]
        found += zip(infos["episode"]["r"][ended], infos["battle_won"][ended], strict=True)
    mean_return, win_rate = np.mean(np.array(found, dtype=float), axis=0)
    return float(mean_return), float(win_rate)


def test_dpo_learns_to_win_battles(run, tmp_path):
    """All the equations right and nothing learnt is no DPO: three marines learn to beat three."""
    argv = "--map 3m --backend embedded --num-envs 16 --num-steps 64 --update-epochs 8 --learning-rate 1e-3"
    argv += " --d-target 0.05 --total-timesteps 24576 --eval-every 4096 --checkpoint-every 100000"
    learnt = run(*argv.split(), "--runs-dir", tmp_path / "runs")
    assert learnt.code == 0, learnt.err
    with open(only(tmp_path / "runs") / "metrics.csv") as file:
        evals = [row for row in csv.DictReader(file) if row["eval/win_rate"]]
    mean_return, win_rate = random_play(300)
    # The best of seven: greedy policies this young lose a battle they won 4,096 steps ago.
    assert max(float(row["eval/win_rate"]) for row in evals) > win_rate + 0.05
    assert max(float(row["eval/episodic_return"]) for row in evals) > 3 * mean_return
