"""Batches for training: the contract of order and randomness, kept by arithmetic instead of state.

Sample n of a run (from 0) is sample n % N of epoch n // N. Step k (from 1) takes samples (k - 1) B to k B - 1 of the
run, so that each is seen exactly once an epoch, at any number of processes, and a resume has nothing to catch up with.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dit.codec.base import pixels_to_latents, sample_posterior
from dit.data.draws import Purpose, epoch_order, generator, normals
from dit.data.shard_set import ShardSet
from dit.study.config import DIFFUSION_STEPS, TrainConfig

_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One process's slice of a step's global batch, on the CPU."""

    step: int
    x0_NCHW: Tensor
    """float32 scaled latents: drawn from the posterior, mirrored or not."""
    t_N: Tensor
    """int64 timesteps, 0..999."""
    noise_NCHW: Tensor
    """float32 standard normal."""
    y_N: Tensor
    """int64 labels; the number of classes where the label was dropped."""


class BatchMaker:
    """Makes any step's batch, in any order."""

    def __init__(self, shards: ShardSet, train: TrainConfig, *, rank: int, world_size: int) -> None:
        if train.global_batch % world_size:
            raise ValueError(f"global_batch={train.global_batch} is not divisible by world_size={world_size}")
        share = train.global_batch // world_size
        self._shards, self._train = shards, train
        self._slice = range(rank * share, (rank + 1) * share)
        self._orders: OrderedDict[int, npt.NDArray[np.int64]] = OrderedDict()

    def batch(self, step: int) -> StepBatch:
        """The batch that leads from `step - 1` updates to `step`."""
        whole, mine = self._train.global_batch, slice(self._slice.start, self._slice.stop)
        timesteps = self._generator(Purpose.TIMESTEP, step).integers(0, DIFFUSION_STEPS, whole)[mine]
        dropped = self._generator(Purpose.LABEL_DROP, step).random(whole)[mine] < self._train.label_drop
        mirrored = self._generator(Purpose.MIRROR, step).random(whole)[mine] < 0.5
        values, labels = self._shards.gather(self.samples(step), mirrored & self._shards.manifest.mirror)
        x0_NCHW = self._latents(values, step)
        return StepBatch(
            step=step,
            x0_NCHW=x0_NCHW,
            t_N=torch.from_numpy(timesteps),
            noise_NCHW=self._normals(Purpose.NOISE, step, x0_NCHW.shape[1:]),
            y_N=torch.from_numpy(np.where(dropped, self._shards.manifest.classes, labels)),
        )

    def samples(self, step: int) -> npt.NDArray[np.int64]:
        """Positions in the dataset of this process's samples of a step."""
        numbers = np.arange(self._slice.start, self._slice.stop) + (step - 1) * self._train.global_batch
        epochs, places = np.divmod(numbers, len(self._shards))
        found = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            found[chosen] = self._order(int(epoch))[places[chosen]]
        return found

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """An epoch's order, kept while steps need it: two epochs at most, for a batch that spans both."""
        if epoch not in self._orders:
            self._orders[epoch] = epoch_order(self._train.seed, epoch, len(self._shards))
            if len(self._orders) > 2:
                self._orders.popitem(last=False)
        return self._orders[epoch]

    def _latents(self, values: npt.NDArray[np.generic], step: int) -> Tensor:
        tensor = torch.from_numpy(values)
        if self._shards.is_pixels:
            return pixels_to_latents(tensor)
        channels = self._shards.manifest.latent_channels
        noise = self._normals(Purpose.POSTERIOR, step, (channels, *tensor.shape[2:]))
        return sample_posterior(tensor, noise, self._shards.manifest.scale_factor)

    def _normals(self, purpose: Purpose, step: int, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(normals(self._train.seed, purpose, step, self._slice, tuple(shape)))

    def _generator(self, purpose: Purpose, step: int) -> np.random.Generator:
        return generator(self._train.seed, purpose, step)


class TrainingStream:
    """Iterates over the batches of steps start_step + 1 to stop_step, made ahead by a background thread."""

    def __init__(
        self,
        shards: ShardSet,
        train: TrainConfig,
        *,
        rank: int,
        world_size: int,
        start_step: int,
        stop_step: int,
        prefetch: int,
    ) -> None:
        """`prefetch` batches wait at most; 0 makes each when it is asked for, without a thread."""
        self._maker = BatchMaker(shards, train, rank=rank, world_size=world_size)
        self._steps = range(start_step + 1, stop_step + 1)
        self._ready: queue.Queue[StepBatch | BaseException | None] = queue.Queue(maxsize=max(prefetch, 1))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="loader", daemon=True) if prefetch else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[StepBatch]:
        """Yield each step's batch once; a stream is used for one pass."""
        if self._thread is None:
            for step in self._steps:
                yield self._maker.batch(step)
            return
        if self._closed.is_set():
            return
        self._thread.start()
        try:
            while (made := self._ready.get()) is not None:
                if isinstance(made, BaseException):
                    raise made
                yield made
        finally:
            self.close()

    def close(self) -> None:
        """Stop the thread and wait for it; safe at any time, also more than once."""
        self._closed.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()

    def _produce(self) -> None:
        try:
            for step in self._steps:
                if not self._hand_over(self._maker.batch(step)):
                    return
            self._hand_over(None)
        except BaseException as error:
            # Raised again by the consumer, in its own thread.
            self._hand_over(error)

    def _hand_over(self, made: StepBatch | BaseException | None) -> bool:
        """Wait for room; False when the consumer has gone."""
        while not self._closed.is_set():
            try:
                self._ready.put(made, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False
