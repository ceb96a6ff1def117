"""benchmark/gpu.py: minutes on a GPU are few, so what is brought home must be whole, and in time."""

import io
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from benchmark import gpu
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
    assert gpu.pack(tmp_path / "runs", tmp_path) == []
    found = unpacked(tmp_path)
    assert found == {
        "done/run/done": 2,
        "done/run/metrics.csv": 14,
        "small/run/checkpoint.pt": 50,
        "small/run/metrics.csv": 14,
    }
    run(tmp_path / "runs", "large", random.Random(0).randbytes(20_000))
    assert gpu.pack(tmp_path / "runs", tmp_path) == ["large"]
    assert "large/run/metrics.csv" in unpacked(tmp_path) and "large/run/checkpoint.pt" not in unpacked(
        tmp_path
    )
    assert all(piece.stat().st_size <= 1000 for piece in tmp_path.glob("runs.tar.gz.*"))


def test_a_program_that_is_late_is_stopped(tmp_path, monkeypatch):
    """Else nothing comes home at all: first by SIGTERM, and where that is not heard, at once."""
    monkeypatch.setattr(gpu, "STOPPING", 1.0)
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    deaf = f"{ignore}; print('hi', flush=True); time.sleep(60)"
    assert gpu.told(["-c", "import time; time.sleep(60)"], tmp_path / "log", 1.0) == -15
    assert gpu.told(["-c", deaf], tmp_path / "log", 2.0) == -9
    assert "hi" in (tmp_path / "log").read_text()


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
