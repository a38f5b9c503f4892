"""Seconds that a rank computes by itself in each step, which show for whom the others wait."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

ItemT = TypeVar("ItemT")


class Pace:
    """Measures, in each step, the wait for the batch and the forward passes with their losses.

    The time of a whole step is equal on all ranks: gradients are reduced in every step, so the fast ranks wait inside
    the backward pass for the slowest. What is measured here comes before the step's first collective. It is wall time,
    because a process whose CPU is throttled uses no more CPU time than others, it only takes longer. On a GPU, events
    on the stream measure it without waiting for the device; they include the time in which it waits for a slow host.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._steps: list[tuple[float, list[tuple[torch.cuda.Event, torch.cuda.Event]]]] = []

    def batches(self, batches: Iterable[ItemT]) -> Iterator[ItemT]:
        """Yield the batches; the wait for each counts."""
        iterator = iter(batches)
        while True:
            began = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._seconds += time.perf_counter() - began
            yield batch

    @contextmanager
    def forward(self) -> Iterator[None]:
        """The body is a forward pass; it contains no collective."""
        if self._on_gpu:
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            began.record()
            yield
            ended.record()
            self._events.append((began, ended))
        else:
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start

    def end_step(self) -> None:
        """Close a step."""
        self._steps.append((self._seconds, self._events))
        self._seconds, self._events = 0.0, []

    def read(self) -> float:
        """Return the median over the steps since the last call, 0 without a step. The device must be idle."""
        steps, self._steps = self._steps, []
        # The median leaves out the first step, which includes compilation, and single pauses.
        return statistics.median(map(_total, steps)) if steps else 0.0


def _total(step: tuple[float, list[tuple[torch.cuda.Event, torch.cuda.Event]]]) -> float:
    seconds, events = step
    return seconds + float(sum(began.elapsed_time(ended) for began, ended in events)) / 1000
