"""Noise and labels of sample i. They depend on (seed, i) alone, not on batches, processes or restarts.

numpy draws them on the CPU for every device, so that a CPU and a GPU start from the same noise.
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
# Second word of the generators' seeds, which keeps labels and noise independent.
_LABELS, _NOISE = 0, 1


def sample_labels(sampling: SamplingConfig, classes: int) -> npt.NDArray[np.int64]:
    """Class of every sample, int64 [num_samples]: in turn if `labels` is balanced, else drawn uniformly.

    With the same seed, a smaller set has the first labels of a larger one.
    """
    count = sampling.num_samples
    if sampling.labels == "balanced":
        return np.arange(count, dtype=np.int64) % classes
    random = np.random.Generator(np.random.SFC64([sampling.seed, _LABELS]))
    return random.integers(classes, size=count, dtype=np.int64)


def draws_per_sample(sampling: SamplingConfig) -> int:
    """Number of noise draws per sample: one for x_T, and one per reverse step but the last, which adds no noise."""
    # DDIM with eta = 0 is deterministic after x_T (Song et al. 2021, section 4.1).
    if sampling.sampler == "ddim" and sampling.eta == 0:
        return 1
    return sampling.steps


class NoiseStream:
    """Standard normal noise of some samples: `stream(k)` is draw k, float32 [N, C, H, W]; `k` must not decrease.

    Use it as a context manager, which ends its thread.
    """

    # Each sample has its own generator, so its noise does not depend on the batch. Draws are made in chunks, because
    # the call overhead of a single draw of one sample exceeds its cost. For a GPU, a thread makes the next chunk while
    # the model uses the current one.

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
        """Draw number `draw`, from 0, of all samples.

        Raises IndexError for an earlier draw than the last, or one that the sampler does not need.
        """
        while draw >= self._first + len(self._chunk):
            self._advance()
        if draw < self._first:
            raise IndexError(f"noise draw {draw} was requested after draw {self._first}")
        return self._chunk[draw - self._first]

    def _advance(self) -> None:
        made = self._pending.result() if self._pending is not None else next(self._chunks, None)
        if made is None:
            raise IndexError(f"this sampler needs no more than {self._draws} draws of noise")
        self._first += len(self._chunk)
        # A blocking copy, because the pinned buffer may be reused as soon as this returns.
        self._chunk = made.to(self._device)
        if self._pool is not None:
            self._pending = self._pool.submit(next, self._chunks, None)

    def _make_chunks(self) -> Iterator[Tensor]:
        """Chunks [draws, N, C, H, W] in host memory, pinned for a GPU."""
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
