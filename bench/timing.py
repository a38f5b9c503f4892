"""Seconds per call: the median of several calls, without the first."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

MIN_CALLS = 3
MIN_SECONDS = 3.0
LONG_SECONDS = 8.0


def seconds_per_call(call: Callable[[], object]) -> float:
    """Median over at least MIN_CALLS calls and MIN_SECONDS, or of a single long call. Waits for the GPU."""
    _timed(call)  # may compile
    times = [_timed(call)]
    if times[0] >= LONG_SECONDS:
        return times[0]
    while len(times) < MIN_CALLS or sum(times) < MIN_SECONDS:
        times.append(_timed(call))
    return statistics.median(times)


def _timed(call: Callable[[], object]) -> float:
    _synchronise()
    start = time.perf_counter()
    call()
    _synchronise()
    return time.perf_counter() - start


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
