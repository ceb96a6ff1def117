"""What the runner makes of a SLURM controller's answers, without a SLURM: nothing lost, nothing run twice."""

from types import SimpleNamespace

import pytest

from benchmark.figures import Run
from benchmark.lib import jobs

RUNS = [Run("stub.py", (), seed, "stub", "", 40) for seed in (1, 2)]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Makes an executor whose controller gives these answers; what it submits is in `submitted`, by key."""

    def make(*answers):
        executor, left = jobs.Slurm(tmp_path, 2), iter(answers)

        def submit(calls):
            executor.submitted += [call.run.key for call in calls]
            return [SimpleNamespace(job_id=f"42_{i}") for i in range(len(calls))]

        executor.submitted = []
        monkeypatch.setattr(jobs, "SLURM_POLL", 0.0)
        monkeypatch.setattr(executor, "queue", lambda: next(left))
        monkeypatch.setattr(executor, "submit", submit)
        return executor

    return make


def test_a_job_has_ended_once_two_answers_in_a_row_do_not_know_it(cluster):
    """A controller that restarts forgets jobs for a moment: they would be taken for failed, and repeated."""
    key = RUNS[0].key
    executor = cluster(set(), {"7"}, set(), None, set())
    executor.live = {key: "7"}
    assert [executor.ended() for _ in range(5)] == [{}, {}, {}, {}, {key: 1}]
    assert executor.live == {} and executor.ended() == {}  # of nothing the controller is not asked


def test_a_job_that_ended_is_judged_by_its_run(cluster, tmp_path):
    """SLURM's word for it would not do: a job that wrote all of its results may be killed as it leaves."""
    directory = tmp_path / RUNS[0].key / "stub__stub__1__100"
    directory.mkdir(parents=True)
    (directory / "done").write_text("{}")
    executor = cluster(set(), set())
    executor.live = {run.key: str(run.seed) for run in RUNS}
    assert executor.ended() == {}
    assert executor.ended() == {RUNS[0].key: 0, RUNS[1].key: 1}


def test_the_controller_is_not_asked_at_every_look(cluster, monkeypatch):
    """Many share it, and administrators stop those who flood it."""
    executor = cluster({"7"})
    executor.live = {RUNS[0].key: "7"}
    assert executor.ended() == {}
    monkeypatch.setattr(jobs, "SLURM_POLL", 3600.0)
    assert executor.ended() == {}  # for which there is no second answer


def test_without_an_answer_nothing_is_submitted(cluster):
    """All that waits in the queue would be submitted a second time."""
    executor = cluster(None)
    with pytest.raises(jobs.SlurmError, match="controller does not answer"):
        executor.start(RUNS)
    assert not executor.submitted and not executor.live


def test_a_job_in_the_queue_is_not_submitted_again(cluster, tmp_path):
    """The runner was killed and called again: two jobs of a run would wait for each other for days."""
    for run, job in zip(RUNS, ("41_0", "41_1"), strict=True):
        (tmp_path / run.key).mkdir()
        (tmp_path / run.key / "slurm_job").write_text(f"{job}\n")
    executor = cluster({"41_0", "41_1"}, {"41_0", "77"})
    assert executor.start(RUNS) == {} and not executor.submitted
    assert executor.live == {RUNS[0].key: "41_0", RUNS[1].key: "41_1"}
    executor.live.clear()
    executor.start(RUNS)
    assert executor.submitted == [RUNS[1].key]
    assert executor.live == {RUNS[0].key: "41_0", RUNS[1].key: "42_0"}
    assert (tmp_path / RUNS[1].key / "slurm_job").read_text() == "42_0\n"


def test_the_queue_is_every_job_of_an_array_or_no_answer(tmp_path, monkeypatch):
    """squeue writes a waiting array as one job, and an empty queue is not the same as no controller."""
    squeue = tmp_path / "squeue"
    squeue.write_text('#!/bin/sh\ncase "$*" in *--array*) echo 41_0; echo 41_1;; *) echo "41_[0-1]";; esac\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    executor = jobs.Slurm(tmp_path, 2)
    assert executor.queue() == {"41_0", "41_1"}
    squeue.write_text("#!/bin/sh\n")
    assert executor.queue() == set()
    squeue.write_text("#!/bin/sh\necho 41_0\nexit 1\n")
    assert executor.queue() is None
