"""Measurements that take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch


def steps_per_second(steps: Callable[[], int], seconds: float) -> float:
    """Call `steps`, which returns how many environment steps it made, for about `seconds`."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += steps()
    return count / (time.perf_counter() - start)


def take_turns(figures: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """`repeats` measurements of each figure, one of each in turn, so that all meet the same machine."""
    found: dict[str, list[float]] = {name: [] for name in figures}
    for _ in range(repeats):
        for name, measure in figures.items():
            found[name].append(measure())
    return found


def sgemm_gflops(seconds: float, size: int = 1024) -> float:
    """GFLOP/s of float32 products of `size` x `size` matrices on one thread, over about `seconds`."""
    a, b, c = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        torch.mm(a, b, out=c)
        products += 1
    return products * 2 * size**3 / (time.perf_counter() - start) / 1e9


def sgemm_gflops_cuda(seconds: float, size: int = 8192) -> float:
    """The same on a GPU, in float32 as PyTorch's defaults have it."""
    a, b, c = (torch.randn(size, size, device="cuda") for _ in range(3))
    torch.cuda.synchronize()
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        torch.mm(a, b, out=c)
        torch.cuda.synchronize()
        products += 1
    return products * 2 * size**3 / (time.perf_counter() - start) / 1e9
