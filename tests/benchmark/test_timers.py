"""What speed.py and since.py time: that it is the work they say, counted right. How fast is asked nowhere."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmark import since
from benchmark.lib import learners, timing
from benchmark.peers import battles, particles, robots


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by a quarter of a second each time it is read."""
    read = []
    now = SimpleNamespace(perf_counter=lambda: read.append(None) or len(read) / 4)
    monkeypatch.setattr(timing, "time", now)
    return read


def test_measurements_take_turns():
    """One after the other, a machine that slows down would make the last look slow."""
    calls = []
    figures = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    assert timing.take_turns(figures, 2) == {"a": [1, 3], "b": [2, 4]}
    assert calls == ["a", "b", "a", "b"]


def test_speeds_are_counts_over_seconds(clock):
    """A published steps/s must be what was played by the time that it took."""
    # Read at 0.25; then 0.5, 0.75 and 1 are within 0.8 s and 1.25 is not; the last is 1.5.
    assert timing.steps_per_second(lambda: 10, 0.8) == 3 * 10 / 1.25
    clock.clear()
    assert timing.sgemm_gflops(0.8, size=8) == pytest.approx(3 * 2 * 8 * 8 * 8 / 1.25 / 1e9)


def test_flops_of_an_update_are_the_usual_count():
    """The published share of the machine's peak would be of another amount of work."""
    actor, critic = torch.nn.Linear(3, 2), torch.nn.Linear(3, 1)  # 8 and 4 parameters
    agents = SimpleNamespace(actor=actor, critic=critic)
    learner = learners.Learner(None, agents, {"obs": torch.zeros(2, 5, 3)}, "")
    assert learner.flops == 6 * (8 + 4) * 5 * 3 + 2 * 8 * 5  # five rows, three epochs


@pytest.mark.parametrize(
    ("family", "name", "sizes"),
    [
        ("mpe", "simple_spread", "N 5, obs 22, actions 5"),
        ("mpe", "line_control/3", "N 3, obs 12, actions 5"),
        ("smac", "3m", "N 3, obs 30, actions 9"),
        ("mamujoco", "Ant-4x2", "N 4, obs 45, actions 2"),
    ],
)
def test_every_learner_that_is_timed_learns(family, name, sizes):
    """A change of a script's update would only be noticed after an hour of timing, as a traceback."""
    learner = learners.made_up(family, name, 16, "cpu")
    assert learner.sizes == sizes
    before = [p.clone() for p in learner.agents.actor.parameters()]
    measure = learners.learner_gflops(learner, 1, False)
    assert measure() > 0
    after = learner.agents.actor.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(("name", "task"), [("iql", "mpe/simple_spread"), ("iddpg", "mamujoco/Hopper-3x1")])
def test_learners_of_baselines_learn_and_their_products_are_counted(name, task, monkeypatch):
    """The count of products is compared with what PyTorch's own counter says of an update."""
    monkeypatch.setitem(learners.OFF_POLICY, f"{name} here", task)
    learner = learners.made_up_baseline(f"{name} here", "cpu")
    before = [p.clone() for p in learner.agents.parameters()]
    measure = learners.learner_gflops(learner, 1, False)
    assert measure() > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, learner.agents.parameters(), strict=True))
    groups = learner.script.Learner(learner.agents, learner.script.Args(torch_threads=1))
    groups.pool = SimpleNamespace(map=map)  # the counter does not see what other threads do
    with FlopCounterMode(display=False) as counter:
        groups.learn(learner.batch)
    # It counts neither heads with a single column nor, as we do, biases and first layers' input gradients.
    assert counter.get_total_flops() == pytest.approx(learner.flops, rel=0.06)


def test_rates_of_a_script_are_those_after_its_first_updates(monkeypatch, tmp_path):
    """The first three compile; medians that have them in would be nobody's speed."""
    speeds = [1, 1, 1, 400, 100, 300]  # of which the last three count
    lines = ["global_step,eval/r,charts/SPS,time/env,time/act,time/update", "0,1.5,,,,"]
    lines += [f"{step},,{speed},0.1,0.2,0.7" for step, speed in enumerate(speeds)]

    def run(command, **_):
        assert command[1] == str(tmp_path / "dpo_mpe.py") and command[2:5] == ["--task", "x", "--runs-dir"]
        folder = learners.Path(command[5]) / "run"
        folder.mkdir()
        (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(learners.subprocess, "run", run)
    rates = learners.script_rates(["dpo_mpe.py", "--task", "x"], tmp_path)
    assert rates == {"charts/SPS": 300.0, "time/env": 0.1, "time/act": 0.2, "time/update": 0.7}
    del lines[-3:]
    with pytest.raises(RuntimeError, match="ended before the fourth row of its log; give it more steps"):
        learners.script_rates(["dpo_mpe.py", "--task", "x"], tmp_path)


def test_battles_are_played_and_their_memory_is_counted():
    """kB of an environment are in docs/envs.md, and a step counts once for each environment."""
    arrays = {"a": np.zeros(3, np.float32), "b": [np.zeros(2), (np.ones(1, bool), None)], "c": "text"}
    assert battles.array_bytes(arrays) == 3 * 4 + 2 * 8 + 1
    play, size = battles.smac_steps("3m", 2)
    assert play() == play() == 2 and 100 < size < 10_000


def test_particle_worlds_are_played_beside_mpe2():
    """Two episodes of each: a peer that is not reset would be asked to step what is over."""
    plays, made = particles.simulators("line_control", 3, (1, 2))
    assert plays.keys() - {"mpe2"} == made.keys() == {"ours, 1 envs", "ours, 2 envs"}
    counts = {label: {play() for _ in range(51)} for label, play in plays.items()}
    assert counts == {"ours, 1 envs": {1}, "ours, 2 envs": {2}, "mpe2": {1}}
    assert made["ours, 2 envs"].num_agents == 3 and made["ours, 2 envs"].episode_limit == 25


def test_robots_are_played_beside_gymnasium(monkeypatch):
    """As many environments on every side, all with actions that differ from step to step."""
    monkeypatch.setattr(robots.mujoco, "set_mju_user_warning", lambda _: None)  # of this whole process
    plays = robots.simulators("Hopper-3x1", 2, (1,))
    assert plays.keys() >= {"ours, 1 threads", "gymnasium SyncVectorEnv"}
    assert all(play() == play() == 2 for play in plays.values())
    draw = robots.random_actions(2, np.array([1.0, 0.5]))
    first, second = draw(), draw()
    assert first.shape == (2, 2) and first.dtype == np.float32 and (first != second).all()
    drawn = np.stack([first, second, *(draw() for _ in range(126))])
    assert (np.abs(drawn).max((0, 1)) <= [1, 0.5]).all() and (np.abs(drawn).max((0, 1)) > [0.9, 0.45]).all()
    assert np.array_equal(draw(), first)  # drawn beforehand: drawing is not what is timed


SIDE = """
import json, sys
for turn, line in enumerate(sys.stdin):
    print(turn * (2.0 if sys.argv[1].endswith("now") else 1.0), flush=True)
print(json.dumps([sys.argv[3:], float(line)]), file=open("told", "w"))
"""


def test_the_best_tenth_of_the_turns_counts_on_both_sides(tmp_path, monkeypatch):
    """Whatever else the machine does slows some turns down, and never makes one faster."""
    folders = [tmp_path / "then", tmp_path / "now"]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setattr(since, "SIDE", SIDE)
    assert since.speeds(folders, "8m", 64, 11, 0.5) == [9.0, 18.0]  # of 0 to 10, and twice that
    for folder in folders:
        assert json.loads((folder / "told").read_text()) == [["8m", "64"], 0.5]


def test_scripts_of_both_trees_take_turns(monkeypatch):
    """The same command in each; the ratio is the median of those within a turn, not that of the medians."""
    asked, speeds = [], iter([100.0, 300.0, 50.0, 100.0, 10.0, 40.0])

    def rates(command, root):
        asked.append((command, root))
        return {"charts/SPS": next(speeds)}

    monkeypatch.setattr(since, "script_rates", rates)
    monkeypatch.setattr(since, "SCRIPTS", {"iql.py --env-id smac/8m": 70})
    table = since.scripts(["then", "now"], since.Args("abc", scripts=True, threads=(2,), turns=3))
    assert "| iql.py --env-id smac/8m | 2 | 50 | 100 | 3.00 |" in table.splitlines()
    command = ["iql.py", "--env-id", "smac/8m", "--total-timesteps", "70", "--eval-every", "1000000000"]
    assert asked == [([*command, "--torch-threads", "2"], root) for root in ("then", "now")] * 3


def test_a_side_of_since_plays_this_trees_battles():
    """What it asks of an environment must go on being there."""
    assert since.speeds([since.ROOT], "3m", 1, 2, 1e-6)[0] > 0
