"""Tuning: equal effort for both methods, every trial told, and the same trials however often it is killed.

Most tests run a stand-in for a training script, which takes a moment; its return depends on its settings. One
tunes a tiny game.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

import envs
from benchmark import tune
from benchmark.figures import BEST, FIGURES, SMOKE_GAME, panel_runs
from benchmark.lib import space, tuning
from benchmark.lib.runs import ResultsError
from benchmark.lib.space import FINAL_SEEDS, METHODS, TASKS, TUNING_SEED, known_trials, space_of
from benchmark.lib.tuning import Plan, Tuning
from benchmark.lib.tuning_report import report

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "benchmark" / "results" / "tuning"

# Three evaluations; best at learning rate 5e-4. From the eleventh run on it waits as long as there is a file
# named hold beside it. It fails above 1.2e-3, and below 1.3e-4 its return is nan.
SCRIPT = """
import json, math, signal, sys, time
from pathlib import Path

stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "--resume" in flags:
    folder = Path(flags["--resume"])
    flags = json.loads((folder / "checkpoint.pt").read_text())
else:
    place = Path(flags["--runs-dir"])
    folder = place / f"stub__stub__{flags['--seed']}__{time.time_ns()}"
    folder.mkdir()
    (folder / "args.json").write_text(json.dumps({"seed": int(flags["--seed"]), "git_commit": "c0ffee"}))
with open(folder.parent.parent / "order", "a") as file:
    print(folder.parent.name, file=file)
rate = float(flags["--learning-rate"])
if rate > 1.2e-3:
    sys.exit(f"stub: losses or parameters are not finite at step 5; {folder}/diagnostic.pt holds the batch")
if Path(__file__).with_name("full").exists():
    sys.exit("stub: No space left on device.")
order, hold = folder.parent.parent / "order", Path(__file__).with_name("hold")
while True:
    held = hold.exists() and len(order.read_text().splitlines()) >= 11
    if stop:
        (folder / "checkpoint.pt").write_text(json.dumps(flags))
        sys.exit(75)
    if not held:
        break
    time.sleep(0.01)
final = -math.log(rate / 5e-4) ** 2 + int(flags["--seed"]) / 100 if rate > 1.3e-4 else math.nan
rows = [f"{step},{value}" for step, value in ((0, -99), (10, -50), (20, final))]
if math.isnan(final):
    rows = []
(folder / "metrics.csv").write_text("\\n".join(["global_step,eval/episodic_return", *rows, ""]))
(folder / "done").write_text(json.dumps({"eval/episodic_return": 5.0}))
"""

# The tuner's command line, with the stand-in for every script.
COMMAND = """
import sys
from dataclasses import replace
from benchmark import tune
from benchmark.lib import tuning
true = tuning.trial_runs
tuning.trial_runs = lambda *told: [replace(run, script={script!r}) for run in true(*told)]
try:
    sys.exit(tune.main())
except (tune.ResultsError, OSError) as error:
    sys.exit(f"tune: {{error}}")
"""
SIZE = ("--trials", "10", "--seeds-per-trial", "2", "--steps", "20", "--retries", "0")


class Bench:
    """The tuner's command in a folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "stub.py").write_text(SCRIPT)
        (folder / "command.py").write_text(COMMAND.format(script=str(folder / "stub.py")))

    def start(self, *flags, method="dpo", **options):
        argv = [sys.executable, str(self.folder / "command.py"), "matrix/stochastic", method, *SIZE]
        argv += ["--runs-dir", str(self.folder / "runs"), "--results", str(self.folder / "results")]
        argv += ["--jobs", "2", *flags]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
        )

    def finish(self, *flags, **options):
        process = self.start(*flags, **options)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def published(self, method="dpo"):
        return json.loads((self.folder / "results" / f"matrix-stochastic__{method}.json").read_text())

    def begun(self):
        """How many runs were begun."""
        order = self.folder / "runs" / "matrix-stochastic__dpo" / "order"
        return len(order.read_text().splitlines()) if order.exists() else 0


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What a tuning publishes when nothing happens to it."""
    bench = Bench(tmp_path_factory.mktemp("reference"))
    code, output = bench.finish()
    assert code == 0, output
    return bench


# --- the space --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_both_methods_are_searched_alike(task):
    """Else the better one may be the one that was searched more."""
    dpo, ippo = (space_of(task, method) for method in METHODS)
    shared = dpo.keys() & ippo.keys()
    assert len(dpo) == len(ippo) and len(shared) == 4
    assert all(dpo[name] == ippo[name] for name in shared)
    assert {"learning_rate", "update_epochs", "ent_coef"} < shared and shared & {"num_envs", "num_steps"}
    starts = [known_trials(task, method)[0][1] for method in METHODS]
    assert all(starts[0][name] == starts[1][name] for name in shared)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_known_settings_are_the_first_trials_and_within_the_space(task, method):
    """The published defaults, and DPO's best known settings, as figures have them."""
    known = known_trials(task, method)
    assert [origin for origin, _ in known] == ["the paper's", "best known"][: 2 if method == "dpo" else 1]
    for _, settings in known:
        assert space.within(settings, space_of(task, method)) == settings
    if method == "dpo":
        assert known[1][1] == known[0][1] | BEST[task.family][1] != known[0][1]
    runs = space.trial_runs(task, method, 0, known[0][1], 300_000, 1)
    defaults = json.loads(space.make_run(task, space.Method("", method), 1, "paper").settings)
    told = json.loads(runs[0].settings)
    assert {name for name in told if told[name] != defaults[name]} == {"seed", "total_timesteps"}


def test_tuning_seeds_are_no_final_seeds():
    """A method must not be judged on the seeds that chose its settings."""
    last = TUNING_SEED + space.SEEDS_PER_TRIAL
    used = {run.seed for figure in FIGURES.values() for *_, run in panel_runs(figure, "paper", FINAL_SEEDS)}
    assert not set(range(TUNING_SEED, last)) & (used | set(FINAL_SEEDS))
    task = TASKS["matrix/stochastic"]
    runs = space.trial_runs(task, "ippo", 3, known_trials(task, "ippo")[0][1], 1000, 3)
    assert [run.seed for run in runs] == [101, 102, 103] and len({run.key for run in runs}) == 3
    assert "for seed in 11 12 13 14 15 16 17 18 19 20;" in space.final_command(
        task, "ippo", {"clip_coef": 0.1}
    )


# --- trials -----------------------------------------------------------------------------------------------


def test_all_trials_are_told_failed_ones_as_failed(reference):
    """With settings, seeds and commit; a failed run makes no good trial, and names no place of a machine."""
    told = reference.published()
    assert [row["number"] for row in told["trials"]] == list(range(10))
    assert [row["origin"] for row in told["trials"][:3]] == ["the paper's", "best known", "sampled"]
    assert told["seeds"] == [101, 102] and told["steps"] == 20 and told["planned_trials"] == 10
    assert told["sampler"].startswith(f"Optuna {optuna.__version__}, TPE")
    notes = set()
    for row in told["trials"]:
        rate = row["settings"]["learning_rate"]
        if rate > 1.2e-3:
            assert "seed 101: stub: losses or parameters are not finite at step 5; … holds" in row["note"]
        if 1.3e-4 < rate <= 1.2e-3:
            assert row["state"] == "complete" and row["commit"] == "c0ffee" and not row["note"]
            assert row["value"] == pytest.approx(sum(row["by_seed"]) / 2)
            assert row["by_seed"][1] - row["by_seed"][0] == pytest.approx(0.01, abs=1e-4)
        else:
            assert row["state"] == "failed" and row["value"] is None and row["by_seed"] == [None, None]
        notes.add(row["note"][:32])
    assert notes == {"", "seed 101: stub: losses or parame", "seed 101: its return is no numbe"}
    assert told["trials"][0]["value"] == pytest.approx(1.015)  # of the last evaluation, not of the first


@pytest.mark.parametrize(("number", "asked"), [(signal.SIGTERM, 6), (signal.SIGKILL, 10)])
def test_a_stopped_tuning_goes_on_with_the_same_trials(number, asked, tmp_path, reference):
    """And ends with what an undisturbed one publishes; also if fewer trials were asked for at first."""
    bench = Bench(tmp_path)
    (tmp_path / "hold").touch()
    process = bench.start("--trials", str(asked))
    deadline = time.monotonic() + 60
    while bench.begun() < 11:  # in the second generation; the first has four trials of two runs
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=60) == (75 if number == signal.SIGTERM else -number)
    so_far = bench.published()["trials"]
    assert 4 <= len(so_far) < 8 and all(row in reference.published()["trials"] for row in so_far)
    (tmp_path / "hold").unlink()
    code, output = bench.finish("--jobs", "1")
    assert code == 0 and "best: 1.015, trial 0" in output, output
    assert bench.published() == reference.published()
    folder = bench.folder / "runs" / "matrix-stochastic__dpo"
    assert all(len(list(place.glob("stub__*"))) == 1 for place in folder.glob("matrix-stochastic__*"))


def test_a_full_disk_ends_no_trial(tmp_path, reference):
    """A method would lose settings to the machine, and both would count as tuned with equal effort."""
    bench = Bench(tmp_path)
    (tmp_path / "full").touch()
    code, output = bench.finish()
    assert code == 1 and "trial 0 has a run that did not end by itself: seed 101: stub: No space" in output
    assert not [trial for trial in bench.published()["trials"] if "space" in trial["note"]]
    (tmp_path / "full").unlink()
    code, output = bench.finish()
    assert code == 0 and bench.published() == reference.published(), output


def test_runs_at_a_time_are_those_of_the_containers_share(tmp_path, monkeypatch):
    """Each of sixty-four runs on two cores would take a day."""
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    monkeypatch.setattr(envs.base, "CONTAINER", tmp_path)
    monkeypatch.setattr(envs.base.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    slots = []
    monkeypatch.setattr(tune, "stops_by_signals", lambda: [signal.SIGTERM])  # before anything is begun
    monkeypatch.setattr(tune, "Local", lambda folder, jobs: slots.append(jobs))
    argv = ["tune.py", "matrix/stochastic", "dpo", "--runs-dir", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", [*argv, "--results", str(tmp_path / "results")])
    assert tune.main() == 75 and slots == [2]


def test_a_finished_tuning_runs_nothing_again(reference, monkeypatch):
    """Else a second call would repeat days of computing."""
    true, script = tuning.trial_runs, str(reference.folder / "stub.py")
    monkeypatch.setattr(tuning, "trial_runs", lambda *x: [replace(run, script=script) for run in true(*x)])
    monkeypatch.setattr(tune, "stops_by_signals", list)  # signals are for pytest
    before, begun = reference.published(), reference.begun()
    argv = ["tune.py", "matrix/stochastic", "dpo", *SIZE, "--runs-dir", str(reference.folder / "runs")]
    monkeypatch.setattr(sys, "argv", [*argv, "--results", str(reference.folder / "results")])
    assert tune.main() == 0
    assert reference.published() == before and reference.begun() == begun == 20


def test_later_trials_are_nearer_the_best(tmp_path):
    """The sampler is given the values of earlier generations; else tuning would be random search."""
    made = Tuning(Plan(TASKS["matrix/stochastic"], "ippo", 20, 1, 0), tmp_path)
    off = []
    while made.is_open(48):
        for trial in made.sample(48):
            off.append(abs(math.log(trial.params["learning_rate"] / 5e-4)))
            made.study.tell(trial.number, -off[-1])
    assert len(off) == 48 and sum(off[-16:]) < 0.5 * sum(off[1:17])


# --- the report -------------------------------------------------------------------------------------------


def test_the_report_names_the_best_and_the_final_runs(tmp_path, reference):
    """The best trial's settings, in the command with fresh seeds; and that one method alone tells nothing."""
    results = reference.folder / "results"
    told = reference.published()
    best = max((row for row in told["trials"] if row["value"] is not None), key=lambda row: row["value"])
    text = report(results)
    rate = f"{best['settings']['learning_rate']:g}"
    assert f"{best['value']:.4g} (trial {best['number']})" in text and f"learning_rate {rate}" in text
    assert f"--learning-rate {best['settings']['learning_rate']}" in text and "--seed $seed" in text
    assert "20 of 1 M" in text.replace("0.02 k", "20") and "only dpo is tuned" in text


def test_unequal_effort_is_said(tmp_path, reference):
    """A table of 10 trials of one method and 9 of the other would look like a comparison."""
    told = reference.published()
    other = told | {"method": "ippo", "trials": [dict(row) for row in told["trials"]]}
    for row in other["trials"]:
        row["settings"] = known_trials(TASKS["matrix/stochastic"], "ippo")[0][1]
    (tmp_path / "matrix-stochastic__dpo.json").write_text(json.dumps(told))
    path = tmp_path / "matrix-stochastic__ippo.json"
    path.write_text(json.dumps(other))
    assert "not equal" not in report(tmp_path) and "Not yet" not in report(tmp_path)
    path.write_text(json.dumps(other | {"trials": other["trials"][:9]}))
    assert "**not equal**" in report(tmp_path) and "9 of 10" in report(tmp_path)
    # Of both methods a trial is missing: equal so far, but not finished.
    (tmp_path / "matrix-stochastic__dpo.json").write_text(json.dumps(told | {"trials": told["trials"][:9]}))
    assert "**not equal**" not in report(tmp_path) and "Not yet worth running" in report(tmp_path)


def test_the_published_report_is_of_the_published_trials():
    """`python benchmark/tune.py --report --results benchmark/results/tuning` writes it."""
    assert (PUBLISHED / "README.md").read_text() == report(PUBLISHED)


# --- bad input --------------------------------------------------------------------------------------------


def refusal(monkeypatch, *flags):
    """What the tuner ends with, before anything runs, where a command is bad."""
    monkeypatch.setattr(sys, "argv", ["tune.py", *map(str, flags)])
    with pytest.raises((SystemExit, ResultsError, OSError)) as error:
        tune.main()
    (words,) = str(error.value).splitlines()
    return words


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["matrix/chess", "dpo"], "no task 'matrix/chess'"),
        (["matrix/stochastic", "qmix"], "no method 'qmix'"),
        (["matrix/stochastic"], "no method ''"),
        (["matrix/stochastic", "dpo", "--trials", "0"], "--trials must be from 1"),
        (["matrix/stochastic", "dpo", "--steps", "-1"], "--steps must be from 1"),
        (["matrix/stochastic", "dpo", "--seeds-per-trial", "0"], "--seeds-per-trial must be from 1"),
        (["matrix/stochastic", "dpo", "--jobs", "-1"], "--jobs must be from 0"),
        (["--report", "--results", "."], "has no tuning"),
    ],
)
def test_bad_input_is_one_sentence(flags, words, tmp_path, monkeypatch):
    """Before anything runs."""
    monkeypatch.chdir(tmp_path)
    assert words in refusal(monkeypatch, *flags)


def sentence(*command):
    """The same of a process: one line, and no traceback."""
    run = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 1 and run.stderr.count("\n") == 1, run.stderr
    return run.stderr


def test_results_that_cannot_be_written_are_known_before_anything_runs(tmp_path):
    """Not after the hours that the first trials take."""
    (tmp_path / "file").touch()
    flags = [
        "matrix/stochastic",
        "dpo",
        "--runs-dir",
        tmp_path / "runs",
        "--results",
        tmp_path / "file" / "x",
    ]
    assert "tune: [Errno 20] Not a directory" in sentence(ROOT / "benchmark" / "tune.py", *flags)
    assert not (tmp_path / "runs").exists()


def test_without_optuna_it_says_so():
    """Its absence is known at the first line, not after a traceback."""
    script = ROOT / "benchmark" / "tune.py"
    code = f"import runpy, sys; sys.modules['optuna'] = None; runpy.run_path({str(script)!r})"
    assert "tune: Optuna is not installed; pip install" in sentence("-c", code)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps", "30"], "steps 20 instead of 30"),
        (["--seeds-per-trial", "1"], "seeds [101, 102] instead of [101]"),
        (["--sampler-seed", "1"], "sampler seed 0 instead of 1"),
    ],
)
def test_trials_of_another_tuning_are_not_mixed_in(flags, words, reference, tmp_path, monkeypatch):
    """Neither in the study nor in what is published: trials of other budgets would stand side by side."""
    before = reference.published()
    command = [
        "matrix/stochastic",
        "dpo",
        *SIZE,
        "--runs-dir",
        reference.folder / "runs",
        *flags,
        "--results",
    ]
    told = refusal(monkeypatch, *command, reference.folder / "results")
    assert words in told and ".json" in told
    told = refusal(monkeypatch, *command, tmp_path)
    assert words in told and "study.db" in told
    assert reference.published() == before


def test_a_study_of_another_space_is_refused(tmp_path, monkeypatch):
    """After the space has changed, old trials are of another search."""
    plan = Plan(TASKS["matrix/stochastic"], "dpo", 20, 1, 0)
    Tuning(plan, tmp_path)
    monkeypatch.setitem(space.BATCHES, "matrix", {"num_envs": space.Choice((16, 32))})
    with pytest.raises(ResultsError, match="another tuning: space"):
        Tuning(plan, tmp_path)
    (tmp_path / "study.db").write_text("no database")
    with pytest.raises(ResultsError, match="cannot be read"):
        Tuning(plan, tmp_path)


# --- a real one -------------------------------------------------------------------------------------------


def test_a_tiny_game_is_tuned(tmp_path, monkeypatch):
    """Real scripts of both methods take every setting of the space."""
    game = replace(TASKS["matrix/stochastic"], options=SMOKE_GAME)
    monkeypatch.setitem(TASKS, "matrix/stochastic", game)
    monkeypatch.setattr(tune, "stops_by_signals", list)  # signals are for pytest
    for method in METHODS:
        argv = f"tune.py matrix/stochastic {method} --trials 2 --steps 640 --retries 0 --jobs 1".split()
        argv += ["--runs-dir", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
        monkeypatch.setattr(sys, "argv", argv)
        assert tune.main() == 0
        told = json.loads((tmp_path / "results" / f"{game.name}__{method}.json").read_text())
        assert [row["state"] for row in told["trials"]] == ["complete"] * 2, told
    assert "only" not in report(tmp_path / "results") and "not equal" not in report(tmp_path / "results")
