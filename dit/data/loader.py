"""Batches for training as a function of the step, so that a resume needs no saved state.

With N samples in the dataset and a global batch of B: sample n of a run (from 0) is sample n % N of epoch n // N, and
step k (from 1) takes samples (k - 1) B to k B - 1 of the run. Each sample occurs once per epoch, at any number of
processes.

    maker = BatchMaker(ShardSet.open(store, config), config.train, rank=0, world_size=8)
    maker.batch(52_000).x0_NCHW  # [B / 8, C, H, W]
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dit.codec.base import pixels_to_latents, sample_posterior
from dit.data.draws import Purpose, epoch_order, generator, normals
from dit.data.shard_set import ShardSet
from dit.study.config import DIFFUSION_STEPS, TrainConfig

# How often a waiting thread checks whether the stream was closed.
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class StepBatch:
    """A process's slice of a step's global batch, on the CPU."""

    step: int
    x0_NCHW: Tensor
    """float32 scaled latents, drawn from the posterior of the image or of its mirror image."""
    t_N: Tensor
    """int64 timesteps, 0..999."""
    noise_NCHW: Tensor
    """float32 standard normal."""
    y_N: Tensor
    """int64 labels; a dropped label is the number of classes."""
    positions_N: npt.NDArray[np.int64] | None = None
    """Positions of the samples in the dataset; None in a batch that is not of a dataset."""


class BatchMaker:
    """Makes the batch of any step, in any order. `world_size` must divide the global batch."""

    def __init__(self, shards: ShardSet, train: TrainConfig, *, rank: int, world_size: int) -> None:
        share = train.global_batch // world_size
        self._shards, self._train = shards, train
        self._slice = range(rank * share, (rank + 1) * share)
        self._orders: OrderedDict[int, npt.NDArray[np.int64]] = OrderedDict()

    def batch(self, step: int) -> StepBatch:
        """Return this process's slice of the batch of a step, counted from 1."""
        seed, whole, mine = self._train.seed, self._train.global_batch, slice(self._slice.start, self._slice.stop)
        # Drawn for the global batch and sliced, so the numbers do not depend on the number of processes.
        timesteps = generator(seed, Purpose.TIMESTEP, step).integers(0, DIFFUSION_STEPS, whole)[mine]
        # Labels are dropped to train the unconditional model for guidance (Ho & Salimans 2022, algorithm 1).
        dropped = generator(seed, Purpose.LABEL_DROP, step).random(whole)[mine] < self._train.label_drop
        mirrored = generator(seed, Purpose.MIRROR, step).random(whole)[mine] < 0.5
        positions = self.samples(step)
        values, labels = self._shards.gather(positions, mirrored & self._shards.manifest.mirror)
        x0_NCHW = self._latents(values, step)
        return StepBatch(
            step=step,
            x0_NCHW=x0_NCHW,
            t_N=torch.from_numpy(timesteps),
            noise_NCHW=self._normals(Purpose.NOISE, step, x0_NCHW.shape[1:]),
            y_N=torch.from_numpy(np.where(dropped, self._shards.manifest.classes, labels)),
            positions_N=positions,
        )

    def samples(self, step: int) -> npt.NDArray[np.int64]:
        """Return the positions in the dataset of this process's samples of a step, int64 [B / world_size]."""
        numbers = np.arange(self._slice.start, self._slice.stop) + (step - 1) * self._train.global_batch
        epochs, places = np.divmod(numbers, len(self._shards))
        positions = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            positions[chosen] = self._order(int(epoch))[places[chosen]]
        return positions

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return an epoch's order. The last two are cached, because a batch can span two epochs."""
        if epoch not in self._orders:
            self._orders[epoch] = epoch_order(self._train.seed, epoch, len(self._shards))
            if len(self._orders) > 2:
                self._orders.popitem(last=False)
        return self._orders[epoch]

    def _latents(self, values: npt.NDArray[np.generic], step: int) -> Tensor:
        tensor = torch.from_numpy(values)
        if self._shards.is_pixels:
            return pixels_to_latents(tensor)
        # A new draw from the posterior each time, not its mean: the training set is the distribution of latents.
        channels = self._shards.manifest.latent_channels
        noise = self._normals(Purpose.POSTERIOR, step, (channels, *tensor.shape[2:]))
        return sample_posterior(tensor, noise, self._shards.manifest.scale_factor)

    def _normals(self, purpose: Purpose, step: int, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(normals(self._train.seed, purpose, step, self._slice, tuple(shape)))


class TrainingStream:
    """Iterates once over the batches of steps start_step + 1 to stop_step, which a thread makes ahead."""

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
        """At most `prefetch` batches wait; with 0 there is no thread, and each batch is made on demand."""
        self._maker = BatchMaker(shards, train, rank=rank, world_size=world_size)
        self._steps = range(start_step + 1, stop_step + 1)
        self._ready: queue.Queue[StepBatch | BaseException | None] = queue.Queue(maxsize=max(prefetch, 1))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="loader", daemon=True) if prefetch else None

    def __iter__(self) -> Iterator[StepBatch]:
        """Yield each step's batch. Raises DataError or StoreError when a shard cannot be read."""
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
        """Stop the thread and wait for it; may be called repeatedly."""
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
            # The consumer raises it in its own thread.
            self._hand_over(error)

    def _hand_over(self, made: StepBatch | BaseException | None) -> bool:
        """Wait for room in the queue; return False if the stream was closed."""
        while not self._closed.is_set():
            try:
                self._ready.put(made, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False
