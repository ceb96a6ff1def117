"""benchmark/gpu.py: minutes on a GPU are few, so what is brought home must be whole, and in time."""

import fcntl
import io
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benchmark import gpu, speed
from benchmark.gpu import ROOT


def unpacked(out: Path) -> dict[str, int]:
    """Sizes of the files in the pieces, by name."""
    data = b"".join(piece.read_bytes() for piece in sorted(out.glob("runs.tar.gz.*")))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: member.size for member in tar.getmembers()}


def run(runs: Path, key: str, checkpoint: bytes, done: bool = False) -> None:
    """A run directory in its place."""
    folder = runs / key / "run"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("global_step\n1\n")
    (folder / "events.out.tfevents.1").write_text("more")
    (folder / "checkpoint.pt").write_bytes(checkpoint)
    if done:
        (folder / "done").write_text("{}")


def test_pieces_hold_what_is_needed_to_go_on(tmp_path, monkeypatch):
    """Numbers of finished runs, checkpoints of the others; not the largest, if there is no room."""
    monkeypatch.setattr(gpu, "PIECE", 1000)
    noise = bytes((i * i * 31 + i // 7) % 251 for i in range(100_000))
    run(tmp_path / "runs", "done", noise, done=True)
    run(tmp_path / "runs", "small", noise[:50])
    ends = time.monotonic() + 600
    assert gpu.pack(tmp_path / "runs", tmp_path, ends) == []
    found = unpacked(tmp_path)
    assert found == {
        "done/run/done": 2,
        "done/run/metrics.csv": 14,
        "small/run/checkpoint.pt": 50,
        "small/run/metrics.csv": 14,
    }
    run(tmp_path / "runs", "large", random.Random(0).randbytes(20_000))
    assert gpu.pack(tmp_path / "runs", tmp_path, ends) == ["large"]
    assert "large/run/metrics.csv" in unpacked(tmp_path) and "large/run/checkpoint.pt" not in unpacked(
        tmp_path
    )
    assert all(piece.stat().st_size <= 1000 for piece in tmp_path.glob("runs.tar.gz.*"))


def test_what_is_packed_first_is_whole_without_the_checkpoints(tmp_path, monkeypatch):
    """Whoever lends the GPU may end it while they are packed; numbers weigh more. tar must read either."""
    monkeypatch.setattr(gpu, "PIECE", 10_000)
    for key, size in (("a", 9_000), ("b", 12_000), ("c", 3_000), ("d", 2_000)):
        run(tmp_path / "runs", key, random.Random(size).randbytes(size))
    real, packed = gpu.zipped, []

    def zipped(paths, runs):
        if packed:
            early = unpacked(tmp_path)
            assert set(early) == {f"{key}/run/metrics.csv" for key in "abcd"}
        packed.append([path.parts[-3] for path in paths])
        return real(paths, runs)

    monkeypatch.setattr(gpu, "zipped", zipped)
    assert gpu.pack(tmp_path / "runs", tmp_path, time.monotonic() - 1) == ["d", "c", "a", "b"]  # no time
    assert packed == [["a", "b", "c", "d"]]
    packed.clear()
    assert gpu.pack(tmp_path / "runs", tmp_path, time.monotonic() + 600, pieces=2) == ["b"]
    assert packed == [["a", "b", "c", "d"], ["d"], ["c"], ["a"]]  # each once
    assert sum(piece.stat().st_size for piece in tmp_path.glob("runs.tar.gz.*")) <= 20_000
    pieces = sorted(map(str, tmp_path.glob("runs.tar.gz.*")))
    listed = f"cat {' '.join(pieces)} | tar tz"
    names = subprocess.run(["sh", "-c", listed], capture_output=True, text=True, check=True)
    assert names.stdout.split() == [*unpacked(tmp_path)] and not names.stderr
    assert names.stdout.split()[4:] == [f"{key}/run/checkpoint.pt" for key in "dca"]


def test_there_is_time_to_pack_within_the_minutes(tmp_path, monkeypatch):
    """At their end the machine is gone, with all that was made."""
    allowed = []
    monkeypatch.setattr(gpu, "told", lambda command, log, seconds: allowed.append(seconds))
    gpu.make_runs(gpu.Args(tmp_path, device="cpu"), time.monotonic() + 300)
    assert 0 < allowed[0] <= 300 - gpu.STOPPING - gpu.PACKING


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_brings_home_what_was_made(tmp_path, number):
    """The batch system takes the machine back early: runs were left unpacked, and going on."""
    out = tmp_path / "out"
    argv = [sys.executable, str(ROOT / "benchmark" / "gpu.py"), str(out), "--device", "cpu", "--jobs", "1"]
    argv += ["--parts", "runs", "--scale", "small", "--figures", "fig1", "--only", "dpo_matrix__1"]
    program = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not [log for log in out.glob("unpacked/*/*/metrics.csv") if log.read_text().count("\n") > 3]:
        assert time.monotonic() < deadline and program.poll() is None
        time.sleep(0.1)
    program.send_signal(number)
    _, said = program.communicate(timeout=120)
    assert program.returncode == 1
    assert said == f"gpu: stopped by a signal; {out} holds what was done by then.\n"
    found = unpacked(out)
    assert any(name.endswith("/checkpoint.pt") for name in found) and "results/runs.csv" in found
    assert not (out / "unpacked").exists() and "stopped: 1 runs write their" in (out / "runs.txt").read_text()


def begun(log, word):
    """Popen whose time limit begins once its log has this word: a busy machine takes long to begin."""

    class Begun(subprocess.Popen):
        def wait(self, timeout=None):
            while timeout is not None and self.poll() is None and word not in log.read_text().splitlines():
                time.sleep(0.02)
            return super().wait(timeout)

    return Begun


def test_a_program_that_is_late_is_stopped(tmp_path, monkeypatch):
    """Else nothing comes home at all: first by SIGTERM, and where that is not heard, at once."""
    monkeypatch.setattr(gpu, "STOPPING", 1.0)
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    deaf = f"{ignore}; print('hi', flush=True); time.sleep(60)"
    assert gpu.told(["-c", "import time; time.sleep(60)"], tmp_path / "log", 1.0) == -15

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", begun(tmp_path / "log", "hi"))
        assert gpu.told(["-c", deaf], tmp_path / "log", 1.0) == -9
    text = (tmp_path / "log").read_text()
    assert "hi" in text.splitlines() and text.count("stopped at the time limit\n") == 2
    assert gpu.told(["-c", "print('in time')"], tmp_path / "other", 60.0) == 0
    assert (tmp_path / "other").read_text().endswith("in time\n")


@pytest.mark.parametrize("deaf", [False, True])
def test_nothing_goes_on_after_a_program(tmp_path, monkeypatch, deaf):
    """Else the script of a late speed.py takes the GPU from what is next; or one of run.py, which are in
    sessions of their own, from what comes after."""
    monkeypatch.setattr(gpu, "STOPPING", 1.0)
    child = "import fcntl, sys, time; fcntl.flock(file := open(sys.argv[1], 'w'), fcntl.LOCK_EX); "
    child += "print('locked', flush=True); time.sleep(100)"
    script = "import signal, subprocess, sys, time; "
    script += "signal.signal(signal.SIGTERM, signal.SIG_IGN); " * deaf
    script += f"subprocess.Popen([sys.executable, '-c', {child!r}, sys.argv[1]], start_new_session={deaf}); "
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", begun(tmp_path / "log", "locked"))
        gpu.told(["-c", script + "time.sleep(100)", str(tmp_path / "lock")], tmp_path / "log", 1.0)
    assert "locked" in (tmp_path / "log").read_text().splitlines()
    with open(tmp_path / "lock") as file:
        for _ in range(50):  # the lock goes with the process, soon after the signal
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)
    raise AssertionError("it still runs")


@pytest.mark.parametrize(("probe", "within"), [("pass", ["-d"]), ("raise SystemExit(1)", ["-d", "quit"])])
def test_the_gpu_is_left_as_it_was(tmp_path, monkeypatch, capfd, probe, within):
    """A daemon that nobody ends keeps whoever called waiting; one with which CUDA fails fails all runs."""
    control, calls = tmp_path / "nvidia-cuda-mps-control", tmp_path / "calls"
    control.write_text(f'#!/bin/sh\nset -- $* $(cat)\necho "$*" >> {calls}\necho noise\n')
    control.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(gpu, "PROBE", probe)
    with pytest.raises(KeyboardInterrupt), gpu.sharing():
        assert calls.read_text().split() == within
        raise KeyboardInterrupt
    assert calls.read_text().split() == ["-d", "quit"] and "noise" not in capfd.readouterr().out
    calls.unlink()
    control.write_text(f'#!/bin/sh\nset -- $* $(cat)\necho "$*" >> {calls}\nexit 1\n')  # it runs already
    with gpu.sharing():
        pass
    assert calls.read_text().split() == ["-d"]  # whoever started it ends it


def test_the_tests_that_need_a_gpu_are_chosen():
    """They must not wait for others, which compile for minutes, nor be left out."""
    listed = [sys.executable, "-m", "pytest", "--collect-only", "-q", *gpu.TESTS.replace("-v", "").split()]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "::test_a_gpu_gets_the_same_tensors[" in names and "::test_cuda_graph_replays_" in names
    assert "_on_a_gpu_" in names and "without_a_compiler" not in names and "test_compiled" not in names


def test_a_speed_that_comes_too_late_loses_no_other(monkeypatch, capsys):
    """A part of few minutes may end before its table does."""

    def rates(command):
        if "corridor" in command:
            raise KeyboardInterrupt
        return {"charts/SPS": 1234.0, "time/env": 0.5, "time/act": 0.25, "time/update": 0.25}

    monkeypatch.setattr("benchmark.lib.learners.script_rates", rates)
    with pytest.raises(KeyboardInterrupt):
        speed.time_e2e(speed.Args("e2e", "smac", ("3m", "corridor"), threads=(1,)), {})
    assert "| 3m | 1 threads | 1,234 | 50.0% | 25.0% | 25.0% |  |\n" in capsys.readouterr().out


def test_an_earlier_calls_runs_are_not_overwritten(tmp_path, monkeypatch):
    """Nor may the pieces of two calls be mixed."""
    (tmp_path / "runs.tar.gz.00").touch()
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path), "--parts", "runs"])
    with pytest.raises(SystemExit, match="holds an earlier call's runs; give another folder"):
        gpu.main()


def test_runs_come_home(tmp_path):
    """The whole way, on a CPU."""
    program = [sys.executable, str(ROOT / "benchmark" / "gpu.py"), str(tmp_path / "out"), "--device", "cpu"]
    flags = [
        "--parts",
        "runs",
        "--scale",
        "smoke",
        "--figures",
        "fig11",
        "--only",
        "m-hat-0.0__1",
        "--seeds",
        "1",
        "--minutes",
        "9",
    ]
    subprocess.run([*program, *flags], check=True, capture_output=True)
    found = unpacked(tmp_path / "out")
    assert "results/runs.csv" in found and any(name.endswith("/done") for name in found)
