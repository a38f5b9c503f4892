"""Seconds per call: warm-ups left out, the median of the rest."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def seconds_per_call(call: Callable[[], object], *, calls: int, warmup: int) -> float:
    """Median over `calls`; waits for the GPU where there is one."""
    for _ in range(warmup):
        call()
    _synchronise()
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        _synchronise()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
