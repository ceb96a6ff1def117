"""How much memory is free, by which runs that do not fit are refused, and how many cores there are to use."""

import multiprocessing
import threading
import warnings

import numpy as np
import pytest

import envs
from envs import base

MB = 1 << 20


def test_free_memory_is_read_where_the_system_tells():
    """A limit that reads as nothing, or as everything, would refuse every game or none."""
    free = envs.free_bytes()
    assert free is None or 2**20 < free < 2**50


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Pretends that the system says so, file by file."""
    monkeypatch.setattr(base, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(base, "CONTAINER", tmp_path / "cgroup")

    def machine(available=10_000, **files):
        (tmp_path / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {available * 1024} kB\nHuge: 0\n")
        for name, text in files.items():
            folder, _, file = name.rpartition("__")
            path = tmp_path / "cgroup" / folder / file.replace("memory_", "memory.", 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return envs.free_bytes()

    return machine


def test_files_that_a_container_has_read_count_as_free(machine):
    """Else reading a data set, or the checkpoint itself, makes every run too large."""
    stat = f"anon {700 * MB}\nfile {250 * MB}\ninactive_file {200 * MB}\nactive_file {50 * MB}"
    taken = dict(memory_max=1000 * MB, memory_current=950 * MB)
    assert machine(**taken) == 50 * MB
    assert machine(**taken, memory_stat=stat) == 250 * MB
    assert machine(available=100, **taken, memory_stat=stat) == 100 * MB  # the machine has less
    assert machine(memory_max="max") == 10_000 * MB
    assert machine(memory_max=900 * MB, memory_stat=f"inactive_file {10 * MB}") == 0  # lowered since


def test_containers_of_the_first_version_are_read_as_well(machine):
    """Older clusters have no other."""
    free = machine(
        memory__memory_limit_in_bytes=1000 * MB,
        memory__memory_usage_in_bytes=950 * MB,
        memory__memory_stat=f"inactive_file {MB}\ntotal_inactive_file {200 * MB}",
    )
    assert free == 250 * MB
    assert machine(memory__memory_limit_in_bytes=2**63 - 4096) == 10_000 * MB  # no limit


def test_what_does_not_fit_into_the_memory_is_refused_before_it_is_made(monkeypatch):
    """Else the system ends the run while it fills a buffer, without a word."""
    monkeypatch.setattr(base, "free_bytes", lambda: 4_000_000_000)
    envs.check_memory(4e9, "The buffer takes", "make it smaller")
    told = r"The buffer takes 3\.00 GB, more than 50% of the 4\.00 GB that are free; make it smaller\."
    with pytest.raises(MemoryError, match=f"^{told}$"):
        envs.check_memory(3e9, "The buffer takes", "make it smaller", share=0.5)
    monkeypatch.setattr(base, "free_bytes", lambda: None)  # where the system does not tell, the user decides
    envs.check_memory(1e18, "The buffer takes", "make it smaller")


@pytest.mark.parametrize(("share", "cores"), [("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1)])
def test_cores_are_those_of_the_container(tmp_path, monkeypatch, share, cores):
    """Threads beyond its share wait for each other."""
    monkeypatch.setattr(base, "CONTAINER", tmp_path)
    monkeypatch.setattr(base.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert envs.usable_cores() == 6
    (tmp_path / "cpu.max").write_text(f"{share}\n")
    assert envs.usable_cores() == cores


def test_a_forked_process_steps_on_threads_of_its_own():
    """Else whoever evaluates in a fork waits for ever for threads that only its parent has."""
    slices, rows = base.Slices(4, threads=2, least=1), np.zeros((4, 1))
    both = threading.Barrier(2)
    slices.each(lambda part: both.wait(20), (rows,))  # so that there are as many threads as there will be
    with warnings.catch_warnings():  # Python's own, that some of the parent's locks may be held
        warnings.simplefilter("ignore", DeprecationWarning)
        child = multiprocessing.get_context("fork").Process(
            target=slices.each, args=(lambda part: part.fill(1.0), (rows,))
        )
        child.start()
    child.join(20)
    alive = child.is_alive()
    child.kill()
    assert not alive and child.exitcode == 0
