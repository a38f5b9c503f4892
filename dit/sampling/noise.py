"""Noise and labels of sample i, functions of (seed, i) alone: any batches, processes and restarts draw the same images.

Drawn on the CPU, by numpy, whatever the device: so a CPU and a GPU start from the same noise too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dit.study.config import SamplingConfig
from dit.study.variants import InputSpec

CHUNK_BYTES = 64 << 20
# Separates the two streams of one seed.
_LABELS, _NOISE = 0, 1


def sample_labels(sampling: SamplingConfig, classes: int) -> npt.NDArray[np.int64]:
    """Class of every sample of a set, [num_samples]: in turn when balanced, else drawn evenly (paper, section 4).

    A smaller set with the same seed has the labels of the larger one's beginning.
    """
    count = sampling.num_samples
    if sampling.labels == "balanced":
        return np.arange(count, dtype=np.int64) % classes
    random = np.random.Generator(np.random.SFC64([sampling.seed, _LABELS]))
    return random.integers(classes, size=count, dtype=np.int64)


def draws_per_sample(sampling: SamplingConfig) -> int:
    """How often the sampler asks for noise: once to start, then in every step but the last, which adds none."""
    if sampling.sampler == "ddim" and sampling.eta == 0:
        return 1
    return sampling.steps


class NoiseStream:
    """Standard normal noise for some samples, draw after draw: `stream(k)` is draw k, [N, C, H, W] float32.

    Every sample has a generator of its own, from which its draws come in order; so `k` must never decrease. Draws are
    made in chunks, because a call for one draw of one sample costs more than the numbers. For a GPU the next chunk is
    made by a thread while the model works on this one. Use it as a context manager, which ends that thread.
    """

    def __init__(
        self, sampling: SamplingConfig, indices: Sequence[int], inputs: InputSpec, device: torch.device
    ) -> None:
        self._seeds = [(sampling.seed, _NOISE, int(index)) for index in indices]
        self._shape = (inputs.channels, inputs.size, inputs.size)
        self._draws = draws_per_sample(sampling)
        self._device = device
        self._chunks = self._make_chunks()
        self._pool = ThreadPoolExecutor(1, "noise") if device.type == "cuda" else None
        self._pending: Future[Tensor | None] | None = None
        self._first, self._chunk = 0, torch.empty(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __call__(self, draw: int) -> Tensor:
        """Draw number `draw`, counted from 0, for all samples; IndexError for one that is past or was never due."""
        while draw >= self._first + len(self._chunk):
            self._advance()
        if draw < self._first:
            raise IndexError(f"noise draw {draw} was asked for after draw {self._first}")
        return self._chunk[draw - self._first]

    def _advance(self) -> None:
        made = self._pending.result() if self._pending is not None else next(self._chunks, None)
        if made is None:
            raise IndexError(f"this sampler needs no more than {self._draws} draws of noise")
        self._first += len(self._chunk)
        # A blocking copy: the pinned buffer may be reused as soon as this returns.
        self._chunk = made.to(self._device)
        if self._pool is not None:
            self._pending = self._pool.submit(next, self._chunks, None)

    def _make_chunks(self) -> Iterator[Tensor]:
        """[draws, N, C, H, W] on the host, pinned for a GPU."""
        generators = [np.random.Generator(np.random.SFC64(seed)) for seed in self._seeds]
        draw_bytes = 4 * len(generators) * math.prod(self._shape)
        most = max(1, CHUNK_BYTES // draw_bytes)
        for first in range(0, self._draws, most):
            shape = (min(most, self._draws - first), len(generators), *self._shape)
            chunk = torch.empty(shape, dtype=torch.float32, pin_memory=self._device.type == "cuda")
            target = chunk.numpy()
            for position, generator in enumerate(generators):
                target[:, position] = generator.standard_normal((shape[0], *self._shape), dtype=np.float32)
            yield chunk
