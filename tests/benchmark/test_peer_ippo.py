"""The comparison with BenchMARL, as far as it goes without BenchMARL."""

import sys
from math import nan
from types import SimpleNamespace

import numpy as np
import pytest

from benchmark.lib.runs import Run
from benchmark.lib.study_tables import peer_table
from benchmark.peers import peer_ippo, sides
from envs import mpe


def test_without_benchmarl_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    """Else a user's first run ends in a traceback, or seems to have succeeded."""
    bare = tmp_path / "python"  # sees no installed packages
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    argv = ["peer_ippo.py", "--peer-python", str(bare), "--results", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stop:
        peer_ippo.main()
    assert not (tmp_path / "out").exists()
    (line,) = str(stop.value.code).splitlines()
    assert "has no benchmarl, mpe2, pettingzoo" in line and "pip install benchmarl mpe2 pettingzoo" in line
    assert "no working Python" in peer_ippo.missing(str(tmp_path / "nowhere"))
    assert (
        peer_ippo.missing(sys.executable).count("mpe2") < 2
    )  # which is installed here: named as advice only


def peer_run(side, seed, final, parts):
    facts = dict.fromkeys(
        ("key", "env", "script", "label", "git_commit", "machine", "backend", "started"), ""
    )
    numbers = {"steps_reached": 100_000, "total_timesteps": 100_000, "absolute_return": final}
    numbers |= {"absolute_win_rate": nan, "optimum": nan}
    return Run(**facts, **numbers, seed=seed, device="cpu", versions={}, settings=parts, method=side)


def test_table_of_synthetic_runs():
    """Else the published ratios would not be those of the runs beside them."""
    runs = []
    for seed, slower in ((1, 4.0), (2, 6.0), (3, 5.0)):
        seconds = {"collect": [10.0, 5.0], "update": [90.0, 45.0]}
        theirs = {name: (slower * np.array(pair)).tolist() for name, pair in seconds.items()}
        for side, parts, final in (("ippo.py", seconds, -50.0), ("BenchMARL", theirs, -60.0 - seed)):
            runs.append(peer_run(side, seed, final, parts))
    header, rule, ours, peers, ratios = (line.split(" | ") for line in peer_table(runs).splitlines())
    assert len({len(line) for line in (header, rule, ours, peers, ratios)}) == 1
    assert ours == ["| ippo.py, 3 seeds", "-50.00 ± 0.00", "1,000", "2,000", "50", "450 |"]
    # Student's t for three seeds, 4.303, times a deviation of 1 over the root of 3
    assert peers == ["| BenchMARL, 3 seeds", "-62.00 ± 2.48", "200", "400", "250", "2,250 |"]
    assert ratios[2:] == ["5.0 (4.0 to 6.0)"] * 3 + ["5.0 (4.0 to 6.0) |"]
    alone = peer_table(runs[:1]).splitlines()
    assert len(alone) == 3 and "| -50.00 |" in alone[2]


def trace(episodes: int = 2, num_envs: int = 3) -> dict[str, np.ndarray]:
    """What BenchMARL's side would record, had it played in our world: float32 observations and rewards."""
    rng, N, length = np.random.default_rng(0), sides.AGENTS, sides.LENGTH
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("obs", "next_obs", "actions", "reward")}
    for _ in range(episodes):
        pos, land = rng.uniform(-1, 1, (2, num_envs, N, 2)).astype(np.float32).astype(float)
        vel = np.zeros_like(pos)
        seen = mpe.observe("simple_spread", pos, vel, land, variant="mpe2")
        for _ in range(length):
            actions = rng.integers(0, 5, (num_envs, N))
            before = seen
            pos, vel, seen, reward = mpe.step("simple_spread", pos, vel, land, actions, variant="mpe2")
            step = before, seen, actions, np.tile(reward[:, None, None], (1, N, 1))
            for series, value in zip(found.values(), step, strict=True):
                series.append(value if value.dtype == int else value.astype(np.float32))
    arrays = {name: np.stack(series, axis=1) for name, series in found.items()}
    ends = np.arange(1, episodes * length + 1) % length == 0
    arrays["done"] = np.tile(ends[:, None], (num_envs, 1, 1))
    return arrays | {"terminated": np.zeros_like(arrays["done"])}


def test_the_same_task_passes_and_another_does_not():
    """Else the two sides could be paid for different things and still be compared."""
    played = trace()
    worst = peer_ippo.compare_trace(played)
    assert set(worst) == {"observation", "reward", "episode return"} and max(worst.values()) < 1e-3
    mixed = played["reward"].copy()
    mixed[:, 7, 2] -= 0.5  # one agent pays for a collision, as with local_ratio 0.5
    shared = np.tile(played["obs"][:1], (3, 1, 1, 1))
    damaged = {"reward": mixed, "done": np.roll(played["done"], 1, axis=1), "terminated": played["done"]}
    damaged |= {"actions": (played["actions"] + 1) % 5, "obs": shared}
    for name, array in damaged.items():
        with pytest.raises(AssertionError, match=r"task|steps|truncated|alike"):
            peer_ippo.compare_trace(played | {name: array})


def test_clock_counts_each_second_once(tmp_path, monkeypatch):
    """Else evaluations would slow the side that evaluates, and the parts would not add up to the whole."""
    now = np.zeros(2)  # wall clock, processor
    told = SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: now[1])
    monkeypatch.setattr(sides, "time", told)
    clock = sides.Clock(tmp_path)
    now += 1, 1  # what was before is not counted
    clock.start()
    now += 4, 2
    clock.lap("collect")
    now += 8, 3
    with clock.stopped("update"):
        now += 100, 100
        clock.save(3200, {"x": np.arange(3)})
    now += 16, 5
    clock.lap("update")
    assert {name: list(seconds) for name, seconds in clock.parts.items()} == {
        "collect": [4, 2],
        "update": [24, 8],
    }
    assert clock.rows == [{"global_step": 3200, "seconds": 12.0, "cpu_seconds": 5.0}]
    assert np.load(tmp_path / "3200.npz")["x"].tolist() == [0, 1, 2]
