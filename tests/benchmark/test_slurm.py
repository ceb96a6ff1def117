"""The benchmark on a real SLURM: submit, preempt, requeue, resume, finish.

The test starts a cluster of one node: munged, slurmctld and slurmd with a configuration of their own, on free
ports. Where they are missing it is skipped; `apt-get install slurm-wlm munge`, `pip install submitit==1.5.4`.
"""

import contextlib
import csv
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmark import run
from benchmark.figures import Run, as_flags
from benchmark.lib import jobs

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=30
PartitionName=high Nodes=ALL PriorityTier=2
"""


def missing():
    """Why there can be no cluster here; empty if there can."""
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    if absent:
        return f"no SLURM here: {', '.join(absent)} not found"
    if os.getuid() != 0:
        return "slurmctld and slurmd are started as root"
    try:
        import submitit  # noqa: F401
    except ImportError:
        return "submitit is not installed"
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


def shell(*argv):
    """Output of a command that must succeed."""
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A running SLURM with partitions low and high; jobs in high preempt those in low."""
    # Not tmp_path: sockets' paths must be short.
    folder = Path(shell("mktemp", "-d"))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    with socket.socket() as first, socket.socket() as second:
        for listener in (first, second):
            listener.bind(("127.0.0.1", 0))
        ports = {"controller": first.getsockname()[1], "daemon": second.getsockname()[1]}
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, folder=folder, **ports))
    (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
    (folder / "munge.key").chmod(0o600)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    processes = []
    try:
        for argv in (
            ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
            ["slurmctld", "-D"],
            ["slurmd", "-D"],
        ):
            with open(folder / f"{argv[0]}.out", "w") as output:
                processes.append(subprocess.Popen(argv, stdout=output, stderr=output))
            time.sleep(1)
        with contextlib.suppress(AssertionError):
            wait_for(lambda: "idle" in subprocess.getoutput("sinfo --noheader"), 20)
        if "idle" not in subprocess.getoutput("sinfo --noheader"):
            log = (folder / "slurmctld.log").read_text().splitlines()[-3:]
            pytest.skip(f"SLURM does not start here: {' | '.join(log)}")
        yield folder
    finally:
        subprocess.run(["scancel", "--me"], capture_output=True)
        for process in reversed(processes):
            process.terminate()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def rows(place):
    """What a run logged, but for times."""
    (path,) = place.glob("*/metrics.csv")
    timed = {"charts/SPS", "time/env", "time/act", "time/update"}
    with open(path, newline="") as file:
        return [{name: x for name, x in row.items() if name not in timed} for row in csv.DictReader(file)]


def test_preempted_and_requeued_runs_end_as_if_never_stopped(cluster, tmp_path):
    """On a shared cluster a job may be stopped and started again at any time, and must not notice."""
    settings = {"game": "stochastic", "num_states": 10, "num_agents": 2, "num_actions": 3, "num_envs": 4}
    settings |= {"total_timesteps": 6000, "eval_every": 500, "checkpoint_every": 1_000_000}
    settings |= {"update_epochs": 30}  # long enough to be caught in the middle
    job = Run("dpo_matrix.py", as_flags(settings), 1, "game", "", 6000)

    def benchmark(executor):
        return run.Benchmark([job], executor, tmp_path / "results", 0, print)

    executor = jobs.Slurm(tmp_path / "slurm", 2, "cpu", {"partition": "low", "mem_gb": 1, "timeout_min": 20})
    bench, place = benchmark(executor), tmp_path / "slurm" / job.key

    def going_on():
        assert bench.step()
        return True

    def starts():
        log = place / "log.txt"
        return log.read_text().count("$ ") if log.exists() else 0

    # 1. A job of a partition with priority takes the node: SIGUSR2, a checkpoint, submitit requeues.
    wait_for(lambda: going_on() and jobs.steps_done(place) > 500, 60)
    (name,) = executor.live.values()
    shell("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
    wait_for(lambda: going_on() and "stopped at step" in (place / "log.txt").read_text(), 60)
    wait_for(lambda: "PENDING" in shell("squeue", "--noheader", "--format=%T", f"--job={name}"), 60)

    # 2. Meanwhile the runner was killed, too: another finds the job in the queue, and submits none.
    executor = jobs.Slurm(tmp_path / "slurm", 2, "cpu", executor.parameters)
    bench = benchmark(executor)
    assert going_on() and list(executor.live.values()) == [name]
    wait_for(lambda: "R" not in shell("squeue", "--noheader", "--partition=high", "--format=%t"), 60)
    shell("scontrol", "update", f"jobid={name}", "starttime=now")  # SLURM would hold it for two minutes

    # 3. An administrator requeues it: SIGTERM to all its processes, then SIGKILL.
    before = jobs.steps_done(place)
    wait_for(lambda: going_on() and starts() == 2 and jobs.steps_done(place) > before + 500, 90)
    shell("scontrol", "requeue", name)
    wait_for(lambda: "PENDING" in shell("squeue", "--noheader", "--format=%T", f"--job={name}"), 60)
    shell("scontrol", "update", f"jobid={name}", "starttime=now")
    wait_for(lambda: not bench.step(), 150)

    assert bench.summary().startswith("1 finished") and starts() == 3
    log = (place / "log.txt").read_text()
    assert log.count("--resume") >= 2 and log.count("stopped at step") == 2
    local = benchmark(jobs.Local(tmp_path / "local", 1))
    wait_for(lambda: not local.step(), 120)
    assert rows(place) == rows(tmp_path / "local" / job.key)


def test_the_command_submits_an_array_and_says_what_slurm_refuses(cluster, tmp_path):
    """`--cluster slurm` as it is typed: all finished is status 0, and a wrong partition is a sentence."""
    argv = [sys.executable, str(ROOT / "benchmark" / "run.py"), "fig11", "--scale", "smoke"]
    argv += ["--cluster", "slurm", "--runs-dir", str(tmp_path), "--results", str(tmp_path / "results")]
    argv += ["--slurm", "mem_gb=1"]
    done = subprocess.run([*argv, "partition=nowhere"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("run: SLURM takes no such jobs")
    done = subprocess.run([*argv, "partition=low"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "4 finished, 0 running, 0 waiting, 0 failed" in done.stdout
    assert len(list(tmp_path.glob("*/slurm_job"))) == 4
    done = subprocess.run([*argv, "partition=low"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "started" not in done.stdout
