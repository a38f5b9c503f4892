"""Sums over the first batches of all ranks, as the checks `feed` and `labels` read them.

Shapes: N samples of a rank's slice, M samples of all ranks and steps, C channels, H and W sides of the latent.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dit.health.bounds import Bounds, to_modes
from dit.health.feed import FeedView, low_modes
from dit.runtime.distributed import Ranks
from dit.study.config import DIFFUSION_STEPS


class FeedSums:
    """Adds up a rank's batches; `view` adds up the ranks."""

    def __init__(self, bounds: Bounds, ranks: Ranks) -> None:
        self._bounds, self._ranks = bounds, ranks
        channels = len(bounds.mean_C)
        self._sums = np.zeros(2 * channels + 4)
        self._positions: list[npt.NDArray[np.int64]] = []
        self._labels: list[npt.NDArray[np.int64]] = []
        self._low: list[npt.NDArray[np.float32]] = []
        self.x0_power = 0.0
        """Mean square of the latents of this rank's first batch."""
        self.first_samples = 0
        """Samples of this rank's first batch."""

    def add(
        self, x0_NCHW: Tensor, t_N: Tensor, noise_NCHW: Tensor, y_N: Tensor, positions_N: npt.NDArray[np.int64]
    ) -> None:
        """Add a rank's slice of a step's batch; `positions_N` are the samples' positions in the dataset."""
        x, noise = x0_NCHW.cpu().numpy(), noise_NCHW.cpu().numpy()
        over = (2, 3)
        self._sums += np.concatenate(
            [
                x.mean(axis=over, dtype=np.float64).sum(axis=0),
                np.square(x).mean(axis=over, dtype=np.float64).sum(axis=0),
                [len(x), float(t_N.sum()), float(np.square(noise, dtype=np.float64).sum()), noise.size],
            ]
        )
        if not self._positions:
            self.x0_power, self.first_samples = float(np.square(x, dtype=np.float64).mean()), len(x)
        self._positions.append(positions_N)
        self._labels.append(y_N.cpu().numpy())
        self._low.append(low_modes(to_modes(x)))

    def view(self, *, label_drop: float, expected: int, epochs: int) -> FeedView:
        """Return the sums over all ranks. A collective."""
        reduce, bounds = self._ranks.all_reduce_sum, self._bounds
        sums = reduce(torch.from_numpy(self._sums.copy())).numpy()
        seen = np.bincount(np.concatenate(self._positions), minlength=bounds.count)
        occurrences = reduce(torch.from_numpy(seen.astype(np.int64))).numpy()
        channels, m = len(bounds.mean_C), sums[-4]
        return FeedView(
            bounds=bounds,
            label_drop=label_drop,
            diffusion_steps=DIFFUSION_STEPS,
            expected=expected,
            epochs=epochs,
            occurrences=occurrences,
            mean_C=sums[:channels] / m,
            power_C=sums[channels : 2 * channels] / m,
            noise_power=float(sums[-2] / sums[-1]),
            noise_values=int(sums[-1]),
            t_mean=float(sums[-3] / m),
            labels_M=self._gather(np.concatenate(self._labels)).astype(np.int64),
            low_MF=self._gather(np.concatenate(self._low)),
        )

    def _gather(self, mine: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Return every rank's rows, in the order of ranks: each adds its own to zeros. Slices are of equal length."""
        rows = np.zeros((self._ranks.world_size, *mine.shape), dtype=np.float32)
        rows[self._ranks.rank] = mine
        gathered: npt.NDArray[np.float32] = self._ranks.all_reduce_sum(torch.from_numpy(rows)).numpy()
        return gathered.reshape(-1, *mine.shape[1:])
