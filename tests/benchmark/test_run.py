"""The benchmark runner: nothing lost and nothing run twice, whatever is killed and however often called.

Most tests run a stand-in for a training script: it keeps the scripts' promises on --resume, checkpoints, exit
codes and the done marker, and takes a second instead of minutes. One runs a real script.
"""

import csv
import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import envs
from benchmark import run
from benchmark.figures import Run, as_flags
from benchmark.lib import jobs
from benchmark.lib.store import Store

ROOT = Path(__file__).resolve().parents[2]

# Adds up a sequence that depends on seed and step. Logs who worked on which step, and refuses company. Before
# step 21 it waits as long as there is a file named hold beside it.
SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path

flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
if "--resume" in flags:
    folder = Path(flags["--resume"])
    state = json.loads((folder / "checkpoint.pt").read_text())
else:
    folder = Path(flags["--runs-dir"]) / f"stub__stub__{flags['--seed']}__{time.time_ns()}"
    folder.mkdir()
    (folder / "metrics.csv").write_text("global_step,value,eval/episodic_return\\n")
    (folder / "args.json").write_text(json.dumps({"seed": int(flags["--seed"])}))
    state = {"step": 0, "value": int(flags["--seed"]), "total": int(flags["--total"]), "bytes": None}
    state["fail"] = flags["--fail"]
if state["bytes"] is not None:
    os.truncate(folder / "metrics.csv", state["bytes"])
alone, hold = folder.parent / "alone", Path(__file__).with_name("hold")
(folder.parent / "gpu").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
(folder.parent / "threads").write_text(os.environ.get("OMP_NUM_THREADS", "none"))
with open(folder.parent / "starts", "a") as file:
    file.write(f"{state['step']}\\n")
while state["step"] < state["total"]:
    while state["step"] == 20 and hold.exists() and not stop:
        time.sleep(0.01)
    os.close(os.open(alone, os.O_CREAT | os.O_EXCL)) if state["step"] % 5 == 0 else None
    time.sleep(0.02)
    state["step"] += 1
    state["value"] = state["value"] * 6364136223846793005 % 2**61
    with open(folder / "metrics.csv", "a") as file:
        file.write(f"{state['step']},{state['value']},{state['step'] / 2}\\n")
    alone.unlink(missing_ok=True)
    once = state["fail"] == "once" and not (folder.parent / "failed").exists()
    if once or state["fail"] == "always" or state["fail"] == "late" and state["step"] == 15:
        (folder.parent / "failed").touch()
        sys.exit("stub: out of luck; try again.")
    if state["step"] % 10 == 0 or stop:
        state["bytes"] = os.path.getsize(folder / "metrics.csv")
        (folder / "new").write_text(json.dumps(state))
        (folder / "new").replace(folder / "checkpoint.pt")
    if stop:
        sys.exit(75)
(folder / "done").write_text(json.dumps({"eval/episodic_return": 1.5}))
"""

# The runner's command line, with other runs than the figures'.
COMMAND = """
import sys
from benchmark import run
from benchmark.figures import Run
runs = [Run(*entry) for entry in {entries!r}]
run.manifest = lambda *_: runs
sys.exit(run.main())
"""


class Bench:
    """Stand-in runs in a folder, and the runner's command for them."""

    def __init__(self, folder, steps=40, seeds=(1, 2, 3), fail="never"):
        self.folder = folder
        (folder / "stub.py").write_text(SCRIPT)
        flags = ("--total", str(steps), "--fail", fail)
        entries = [(str(folder / "stub.py"), flags, seed, "stub", "", steps) for seed in seeds]
        self.runs = [Run(*entry) for entry in entries]
        (folder / "command.py").write_text(COMMAND.format(entries=entries))

    def start(self, *flags, **options):
        """The runner, going on."""
        argv = [sys.executable, str(self.folder / "command.py"), "fig1", "--scale", "smoke"]
        argv += ["--runs-dir", str(self.folder / "runs"), "--results", str(self.folder / "results")]
        argv += ["--jobs", "2", *flags]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
        return subprocess.Popen(argv, env=environment, text=True, **options)

    def finish(self, *flags):
        """The runner to its end: exit status and output."""
        process = self.start(*flags)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def place(self, seed):
        (found,) = (run for run in self.runs if run.seed == seed)
        return self.folder / "runs" / found.key

    def steps(self):
        """Steps done, per run."""
        return [jobs.steps_done(self.place(run.seed)) for run in self.runs]

    def starts(self):
        """At which steps processes took up each run."""
        return [(self.place(run.seed) / "starts").read_text().split() for run in self.runs]

    def recorded(self):
        """What the store has of each run: its last step, and whether it was finished."""
        runs = Store(self.folder / "results").runs
        return {run.seed: (run.steps_reached, run.finished) for run in runs.values()}

    def results(self):
        """What each run logged; there must be one run directory in each place, finished and recorded."""
        assert self.recorded() == {run.seed: (run.steps, True) for run in self.runs}
        folders = [list(self.place(run.seed).glob("stub__*")) for run in self.runs]
        assert all(len(found) == 1 and (found[0] / "done").exists() for found in folders)
        return [(found[0] / "metrics.csv").read_text() for found in folders]


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What the runs log when nothing happens to them."""
    bench = Bench(tmp_path_factory.mktemp("reference"))
    code, output = bench.finish()
    assert code == 0 and "3 finished, 0 running, 0 waiting, 0 failed; 100 % of all steps" in output
    assert bench.starts() == [["0"]] * 3
    return bench.results()


def test_finished_runs_are_skipped(tmp_path, reference):
    """Else a second call would repeat days of computing."""
    bench = Bench(tmp_path)
    bench.finish("--only", "__1__", "__2__")
    before = [path.stat().st_mtime_ns for seed in (1, 2) for path in sorted(bench.place(seed).rglob("*"))]
    code, output = bench.finish()
    assert code == 0 and output.count("started") == 1
    assert bench.results() == reference and bench.starts() == [["0"]] * 3
    after = [path.stat().st_mtime_ns for seed in (1, 2) for path in sorted(bench.place(seed).rglob("*"))]
    assert after == before


def test_what_is_recorded_as_finished_is_not_made_again(tmp_path):
    """So --results benchmark/results does what is not published yet; a run that was begun anew goes on."""
    bench = Bench(tmp_path, steps=12)
    bench.finish()
    shutil.rmtree(bench.place(1))
    shutil.rmtree(bench.place(2))
    (done,) = bench.place(3).glob("*/done")
    done.unlink()
    output = bench.finish("--dry-run")[1]
    assert f"# {bench.place(1).name}: finished, recorded in {tmp_path / 'results'}\n" in output
    assert f"# {bench.place(3).name}: logged to step 12\n" in output and output.count("stub.py") == 1
    code, output = bench.finish()
    assert code == 0 and output.count("started") == 1 and "3 finished, 0 running" in output
    assert not bench.place(1).exists() and not bench.place(2).exists() and done.exists()


def test_finished_runs_are_recorded_once_and_damaged_ones_said(tmp_path):
    """Also those of an earlier call, or for another store: plotting reads nothing else."""
    bench = Bench(tmp_path, steps=5)
    bench.finish()
    shutil.rmtree(tmp_path / "results")
    (log,) = bench.place(2).glob("*/metrics.csv")
    whole = log.read_text()
    log.write_text(whole.replace("\n3,", "\n9,"))
    code, output = bench.finish()
    assert code == 1 and output.count(f"not recorded: {log}") == 2 and "3 finished" in output
    assert f"keep {bench.place(2)}; the same command records it" in output
    assert bench.recorded() == {1: (5, True), 3: (5, True)}
    log.write_text(whole)
    before = (tmp_path / "results" / "runs.csv").stat().st_ino
    assert "not recorded" not in bench.finish()[1] and len(bench.recorded()) == 3
    after = (tmp_path / "results" / "runs.csv").stat().st_ino
    bench.finish()
    assert before != after == (tmp_path / "results" / "runs.csv").stat().st_ino


@pytest.mark.parametrize(
    ("number", "is_read"), [(signal.SIGTERM, True), (signal.SIGINT, True), (signal.SIGINT, False)]
)
def test_a_stopped_benchmark_goes_on_where_it_was(number, is_read, tmp_path, reference):
    """Ctrl-C and a batch system's SIGTERM: every script writes its checkpoint, and loses not one step.

    Also in `run.py fig1 | tee log`, where Ctrl-C ends tee first, and nobody reads the output any more.
    """
    bench = Bench(tmp_path)
    (tmp_path / "hold").touch()  # else on a busy machine the runs may be over before the signal is sent
    process = bench.start()
    wait_for(lambda: bench.steps()[:2] == [20, 20])
    if not is_read:
        process.stdout.close()
    process.send_signal(number)
    assert process.wait(timeout=30) == 75
    (tmp_path / "hold").unlink()
    stopped = bench.steps()
    assert all(20 <= step < 40 for step in stopped[:2])
    assert bench.recorded() == {seed: (stopped[seed - 1], False) for seed in (1, 2)}
    code, output = bench.finish()
    assert code == 0 and f"logged to step {stopped[0]}" in output
    assert bench.results() == reference
    assert bench.starts()[:2] == [["0", str(stopped[0])], ["0", str(stopped[1])]]


def test_nohup_keeps_a_benchmark_alive(tmp_path, reference):
    """It is started over ssh, and the connection is closed."""
    bench = Bench(tmp_path)
    process = bench.start(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for(lambda: bench.steps()[0] > 3)
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "3 finished" in output
    assert bench.results() == reference


def test_a_killed_runner_loses_nothing_and_nothing_runs_twice(tmp_path, reference):
    """Its scripts go on alone; the next runner waits for them instead of starting them a second time."""
    bench = Bench(tmp_path, seeds=(1, 2, 3))
    process = bench.start()
    wait_for(lambda: min(bench.steps()[:2]) > 3)
    process.kill()
    process.wait()
    code, output = bench.finish()
    assert code == 0 and "3 finished" in output
    assert bench.results() == reference and bench.starts() == [["0"]] * 3


def test_two_runners_share_the_work(tmp_path, reference):
    """Called twice by mistake, or on two machines: each run is made once, and both end well."""
    bench = Bench(tmp_path)
    processes = [bench.start(), bench.start()]
    for process in processes:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and "3 finished" in output
    assert bench.results() == reference and bench.starts() == [["0"]] * 3


def test_a_killed_script_is_resumed_from_its_checkpoint(tmp_path, reference):
    """The machine took its memory, say: a failure that costs at most one checkpoint interval."""
    bench = Bench(tmp_path)
    (tmp_path / "hold").touch()
    process = bench.start()
    wait_for(lambda: bench.steps()[0] == 20)
    # The script is the child that works in the first run's place.
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (victim,) = (
        pid for pid in children if str(bench.place(1)).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    os.kill(int(victim), signal.SIGKILL)
    (tmp_path / "hold").unlink()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "exit code -9" in output and "tried again" in output
    assert bench.results() == reference
    assert bench.starts()[0] in (["0", "10"], ["0", "20"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_script_that_the_machine_ended_was_interrupted_and_did_not_fail(tmp_path, number):
    """As it goes down it signals every process, also those that cannot answer yet. SIGKILL is no farewell."""
    bench, said = Bench(tmp_path), []
    executor = jobs.Local(tmp_path / "runs", 1)
    benchmark = run.Benchmark(bench.runs, executor, tmp_path / "results", 0, said.append)
    key = bench.runs[0].key
    benchmark.judge(key, -number)
    failed = number == signal.SIGKILL
    assert benchmark.status[key].state == ("failed" if failed else "waiting") and len(said) == failed


@pytest.mark.parametrize("program", ["run.py", "plot.py", "speed.py"])
def test_help_is_printed_under_an_ascii_locale(program):
    """Containers often have no other, and pages and tables have more letters."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    argv = [sys.executable, ROOT / "benchmark" / program, "--help"]
    ended = subprocess.run(argv, env=os.environ | plain, capture_output=True)
    assert ended.returncode == 0 and not ended.stderr
    assert "usage" in ended.stdout.decode()


def test_without_file_locks_the_runner_says_which_systems_it_needs():
    """Windows has no fcntl: the import would be a traceback."""
    code = "import sys; sys.modules['fcntl'] = None; import benchmark.run"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr == "run: benchmark/run.py needs Linux or macOS; on Windows use its Linux subsystem.\n"


def test_a_file_system_without_locks_is_a_sentence(tmp_path, monkeypatch):
    """As Lustre without -o flock: a bare errno would not say which of the paths is meant."""

    def none(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(jobs.fcntl, "flock", none)
    with pytest.raises(OSError, match="has no locks"):
        jobs.take_lock(tmp_path / "place")


def test_remains_without_a_checkpoint_are_started_over(tmp_path, reference):
    """A script killed in its first seconds leaves a run directory that nothing can be resumed from."""
    bench = Bench(tmp_path)
    for name, seed in itertools.product(("stub__stub__1__1", "stub__stub__1__2"), (1, 2)):
        (bench.place(seed) / name).mkdir(parents=True)
        (bench.place(seed) / name / "metrics.csv").write_text("global_step,value\n7,7\n")
    (bench.place(2) / "stub__stub__1__2" / "done").write_text("")  # the machine failed while it was written
    assert bench.finish()[0] == 0
    assert bench.results() == reference


def test_a_variable_alone_makes_no_gpu(monkeypatch):
    """With a PyTorch for CPUs every run would start, fail and be tried again."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.usable_gpus() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert run.usable_gpus() == ["0", "1"]


def test_the_reason_of_a_failure_is_not_the_progress_line_below_it(tmp_path):
    """The bar of a run is closed after its last sentence was printed."""
    (tmp_path / "log.txt").write_text(
        "dpo_mpe: the disk is full.\n\rstep 12.3k of 500k, 1.2k/s, ETA 05:00\n\n"
    )
    assert jobs.last_words(tmp_path) == "dpo_mpe: the disk is full."


def test_every_run_has_a_gpu_and_one_thread_and_gpus_take_turns(tmp_path, monkeypatch):
    """Else all runs would crowd the first GPU, compute beside it, or take the cores from each other."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    bench = Bench(tmp_path, steps=5, seeds=(1, 2, 3, 4))
    executor = jobs.Local(tmp_path / "runs", 4, "cuda", ["5", "7"])
    benchmark = run.Benchmark(bench.runs, executor, tmp_path / "results", 0, lambda line: None)
    wait_for(lambda: not benchmark.step())
    assert benchmark.summary().startswith("4 finished")
    assert sorted((bench.place(seed) / "gpu").read_text() for seed in (1, 2, 3, 4)) == ["5", "5", "7", "7"]
    for seed in (1, 2, 3, 4):
        assert (bench.place(seed) / "threads").read_text() == "1"
        assert "--device cuda --torch-threads 1" in (bench.place(seed) / "log.txt").read_text()


def test_failed_runs_are_tried_again_and_listed(tmp_path):
    """A run that fails for good must not be lost among those that succeed, nor stop them."""
    (tmp_path / "once").mkdir()
    code, output = Bench(tmp_path / "once", steps=3, fail="once").finish()
    assert code == 0 and output.count("tried again") == 3 and "3 finished" in output
    (tmp_path / "always").mkdir()
    bench = Bench(tmp_path / "always", steps=3, seeds=(1, 2), fail="always")
    code, output = bench.finish("--retries", "2")
    assert code == 1 and output.count("tried again") == 4 and "2 failed" in output
    for seed in (1, 2):
        listed = f"failed: {bench.place(seed).name}, exit code 1: stub: out of luck; try again.\n"
        assert listed in output and str(bench.place(seed) / "log.txt") in output
    (tmp_path / "late").mkdir()
    bench = Bench(tmp_path / "late", steps=30, seeds=(1,), fail="late")  # as one that diverges does
    assert bench.finish()[0] == 1 and bench.recorded() == {1: (15, False)}


@pytest.mark.parametrize(("times", "state"), [(1, "3 finished"), (9, "2 finished, 0 running, 0 waiting, 1 ")])
def test_a_full_disk_costs_the_run_it_hits_alone(tmp_path, monkeypatch, times, state):
    """It used to end the runner, which stopped all other runs as well."""
    bench, real, refused = Bench(tmp_path, steps=5), jobs.start, []

    def start(entry, place, *more):
        if place == bench.place(2) and len(refused) < times:
            refused.append(place)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place / "log.txt"))
        return real(entry, place, *more)

    monkeypatch.setattr(jobs, "start", start)
    said = []
    benchmark = run.Benchmark(
        bench.runs, jobs.Local(tmp_path / "runs", 1), tmp_path / "results", 1, said.append
    )
    benchmark.work([], run.Display())
    key = bench.place(2).name
    assert benchmark.summary().startswith(state)
    assert any(line.startswith(f"failed {key}, not started: [Errno 28] No space left") for line in said)
    assert ("No space left" in benchmark.status[key].note) and len(refused) == min(times, 2)


def test_an_output_that_is_full_stops_no_run(tmp_path, reference):
    """A log on the disk that the runs fill; the exit status must go on telling how they ended."""
    bench = Bench(tmp_path)
    with open("/dev/full", "w") as full:
        assert bench.start(stdout=full, stderr=full).wait(timeout=60) == 0
    assert bench.results() == reference


def test_runs_at_a_time_are_those_of_the_containers_share(tmp_path, monkeypatch):
    """Sixty-four runs on two cores would each take a day, and the memory of all."""
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    monkeypatch.setattr(envs.base, "CONTAINER", tmp_path)
    monkeypatch.setattr(envs.base.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert run.choose_executor(run.Args(("fig1",))).slots == 2
    assert run.choose_executor(run.Args(("fig1",), jobs=5)).slots == 5


def test_dry_run_prints_commands_and_does_nothing(tmp_path):
    """What will it do, and how far is it? Printed commands must work when they are pasted."""
    bench = Bench(tmp_path, steps=12)
    code, output = bench.finish("--dry-run")
    assert code == 0 and output.count(": new\n") == 3 and not (tmp_path / "runs").exists()
    bench.place(1).mkdir(parents=True)
    assert subprocess.run(output.splitlines()[1], shell=True, cwd=ROOT).returncode == 0
    (done,) = bench.place(1).glob("stub__*")
    assert f"# {bench.place(1).name}: finished\n" in bench.finish("--dry-run")[1]
    (done / "done").unlink()
    output = bench.finish("--dry-run")[1]
    assert f"# {bench.place(1).name}: logged to step 12\n" in output and f"--resume {done}\n" in output


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["fig99"], "fig99"),
        (["fig1", "--only", "nowhere"], "nowhere"),
        (["fig1", "--seeds", "-1"], "--seeds"),
        (["fig1", "--jobs", "9" * 20], "from 0 to 10,000"),
        (["fig1", "--slurm", "partition=cpu"], "add --cluster slurm"),
        (["fig1", "--cluster", "slurm", "--slurm", "partition"], "name=value"),
        ([], "no figure is named"),
        (["fig1", "--label", "mine"], "--label names runs that --record takes in; add --record DIR"),
        (
            ["fig1", "fig2", "--record", "runs/x"],
            "--record makes no runs; leave out fig1 fig2, or make two calls",
        ),
        (["--record", "runs/x", "--label", "mine"], "1 of 1 runs were not recorded"),
    ],
)
def test_bad_input_gets_a_sentence(flags, word, monkeypatch):
    """One line that says what to do, and a status that scripts notice."""
    monkeypatch.setattr(sys, "argv", ["run.py", *flags])
    with pytest.raises(SystemExit) as stop:
        run.main()
    assert str(stop.value.code).startswith("run: ") and word in str(stop.value.code)


def test_a_figure_at_scale_smoke_ends_in_its_table(tmp_path):
    """The first commands of the README for whoever wants to know whether everything works."""
    one = ["--only", "__ippo__", "--jobs", "1", "--runs-dir", str(tmp_path / "runs")]
    for program, *more in (["run.py", *one], ["plot.py"]):
        argv = [sys.executable, str(ROOT / "benchmark" / program), "fig1", "--scale", "smoke", *more]
        argv += ["--results", str(tmp_path / "results")]
        ended = subprocess.run(argv, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
    assert "| IPPO | 1 |" in (tmp_path / "results" / "figures" / "fig1" / "table.md").read_text()


def test_a_real_run_ends_as_if_never_stopped(tmp_path):
    """The same with a training script: SIGTERM in the middle, and the numbers of a run left alone."""
    settings = {"game": "stochastic", "num_states": 10, "num_agents": 2, "num_actions": 3, "num_envs": 4}
    settings |= {"total_timesteps": 2400, "eval_every": 400, "update_epochs": 30, "checkpoint_every": 100_000}
    job = Run("dpo_matrix.py", as_flags(settings), 1, "game", "", 2400)

    executors = {name: jobs.Local(tmp_path / name, 1) for name in ("whole", "stopped")}
    benches = {
        name: run.Benchmark([job], executor, tmp_path / "results", 0, lambda line: None)
        for name, executor in executors.items()
    }
    places = {name: bench.place(job.key) for name, bench in benches.items()}
    was_stopped = False
    while any([bench.step() for bench in benches.values()]):
        if not was_stopped and jobs.steps_done(places["stopped"]) > 300:
            executors["stopped"].stop()
            was_stopped = True
        time.sleep(0.02)
    rows = {name: logged(place) for name, place in places.items()}
    assert all(bench.summary().startswith("1 finished") for bench in benches.values())
    assert "--resume" in (places["stopped"] / "log.txt").read_text() and len(rows["whole"]) > 20
    assert rows["stopped"] == rows["whole"]


def logged(place):
    """What a run logged, but for times."""
    (path,) = place.glob("*/metrics.csv")
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    timed = {"charts/SPS", "time/env", "time/act", "time/update"}
    return [{name: x for name, x in row.items() if name not in timed} for row in rows]
