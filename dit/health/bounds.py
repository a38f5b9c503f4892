"""What a dataset's second moments say about every denoiser: the errors below which a model has learned something.

For data whose covariance has the eigenvalues l, the best linear denoiser's squared noise error at step t is the mean
over l of abar_t l / (abar_t l + 1 - abar_t) (the Wiener filter, with DDPM eq. 4 as the observation). The covariance is
taken as diagonal in the 2-D cosine transform (DCT-II), apart from the channels of each mode.

Shapes: N samples, C channels, H and W sides of the latent, K classes, T diffusion steps.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from dit.errors import DataError

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Rung = Literal["a", "b", "bm", "cls"]
RUNGS: tuple[Rung, ...] = ("a", "b", "bm", "cls")
PROBES = 256
"""Samples that are kept with the bounds, for probes of models where the shards are not at hand."""


@lru_cache(maxsize=8)
def cosine_matrix(side: int) -> Float32:
    """Return the orthonormal DCT-II matrix [side, side]; rows are modes, row 0 is constant."""
    k, i = np.arange(side)[:, None], np.arange(side)[None]
    matrix = np.sqrt(2 / side) * np.cos(np.pi * (2 * i + 1) * k / (2 * side))
    matrix[0] /= np.sqrt(2)
    return np.asarray(matrix, dtype=np.float32)


def to_modes(x_NCHW: npt.NDArray[Any]) -> Float32:
    """Return the cosine coefficients [N, C, H, W]; the transform keeps lengths, so white noise stays white."""
    matrix = cosine_matrix(x_NCHW.shape[-1])
    modes: Float32 = matrix @ x_NCHW.astype(np.float32) @ matrix.T
    return modes


def neighbour_correlation(x_NCHW: npt.NDArray[Any], mean_C: Float64) -> tuple[float, float]:
    """Return sums over horizontal and vertical neighbours: (products, squares); their ratio is the correlation."""
    x = x_NCHW - mean_C[:, None, None].astype(x_NCHW.dtype)
    products = float((x[..., 1:] * x[..., :-1]).sum() + (x[..., 1:, :] * x[..., :-1, :]).sum())
    squares = sum(float(np.square(part).sum()) / 2 for part in (x[..., 1:], x[..., :-1], x[..., 1:, :], x[..., :-1, :]))
    return products, squares


@dataclass(frozen=True)
class Bounds:
    """Second moments of a dataset's scaled latents, in cosine modes about the mean of each channel."""

    count: int
    """Latents that were added."""
    duplicates: int
    """Latents whose stored bytes occurred before."""
    mean_C: Float64
    moment_HWCC: Float64
    """Second moments between channels of each mode, about `mean_C`."""
    class_modes_KCHW: Float32
    """Mean coefficients of each class, about `mean_C`; 0 for a class without samples."""
    class_counts_K: npt.NDArray[np.int64]
    power_C: Float64
    """Mean over latents of a channel's mean square."""
    power_std_C: Float64
    """Its standard deviation between latents."""
    neighbours: float
    """Correlation of horizontal and vertical neighbours."""
    probe_NCHW: npt.NDArray[np.float16]
    """Latents of the first samples."""
    probe_labels_N: npt.NDArray[np.int64]

    @cached_property
    def std_C(self) -> Float64:
        """Standard deviation per channel."""
        variance = np.einsum("hwcc->c", self.moment_HWCC) / self.moment_HWCC[..., 0, 0].size
        return np.asarray(np.sqrt(variance), dtype=np.float64)

    @cached_property
    def mean_modes_CHW(self) -> Float64:
        """Mean coefficients of all latents, about `mean_C`: the mean image."""
        total = np.einsum("k,kchw->chw", self.class_counts_K.astype(np.float64), self.class_modes_KCHW)
        return np.asarray(total / self.count, dtype=np.float64)

    def covariance_HWCC(self, rung: Rung) -> Float64:
        """Return what a denoiser of this rung knows: the covariance of each mode's channels.

        a: variances per channel only. b: about the channels' means. bm: about the mean image. cls: about the mean of
        the sample's class, corrected for the number of classes.
        """
        if rung == "a":
            return np.broadcast_to(np.diag(np.square(self.std_C)), self.moment_HWCC.shape)
        if rung == "b":
            return self.moment_HWCC
        if rung == "bm":
            about = np.einsum("chw,dhw->hwcd", self.mean_modes_CHW, self.mean_modes_CHW)
            return np.asarray(self.moment_HWCC - about)
        classes = int((self.class_counts_K > 0).sum())
        share = self.class_counts_K / self.count
        modes = self.class_modes_KCHW.astype(np.float64)
        within = self.moment_HWCC - np.einsum("k,kchw,kdhw->hwcd", share, modes, modes)
        # Estimated class means take away one degree of freedom each.
        return np.asarray(within * (self.count / max(1, self.count - classes)))

    def errors_T(self, rung: Rung, alphas_cumprod_T: Float64) -> Float64:
        """Return the squared noise error of the best linear denoiser of this rung at every step, float64 [T]."""
        eigenvalues = np.linalg.eigvalsh(self.covariance_HWCC(rung)).clip(min=0).ravel()
        abar = alphas_cumprod_T[:, None]
        return np.asarray((abar * eigenvalues / (abar * eigenvalues + 1 - abar)).mean(axis=1))

    @property
    def class_information(self) -> float:
        """Return how far the classes' means differ, in standard deviations of what labels by chance would give.

        The variance between classes, per degree of freedom, is that within classes if labels are random (the F test).
        """
        classes = int((self.class_counts_K > 0).sum())
        if classes < 2 or self.count <= classes:
            return 0.0
        within = np.einsum("hwcc->chw", self.covariance_HWCC("cls"))
        between = np.einsum("hwcc->chw", self.covariance_HWCC("bm")) - within * (1 - classes / self.count)
        # The lowest modes, where classes differ most.
        low = np.s_[:, :4, :4]
        ratio = float(between[low].sum() / within[low].sum()) * self.count / (classes - 1)
        # Correlated modes count as fewer: the effective number is (sum)^2 / sum of squares.
        modes = float(np.square(within[low].sum()) / np.square(within[low]).sum())
        return float((ratio - 1) / np.sqrt(2 / ((classes - 1) * modes)))

    def to_bytes(self) -> bytes:
        """Return an npz of the fields."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Self:
        """Return what `to_bytes` wrote. Raises DataError, which names `where`, when it is something else."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                values = {field.name: arrays[field.name] for field in fields(cls)}
        except (ValueError, KeyError, EOFError, OSError) as error:
            raise DataError(
                f"{where}: not the bounds of a dataset ({error}); delete it and run `dit prepare`"
            ) from None
        return cls(**{name: value.item() if value.ndim == 0 else value for name, value in values.items()})


class BoundsSums:
    """Adds up latents, batch by batch, in float64."""

    def __init__(self, mean_C: Float64, side: int, classes: int) -> None:
        """`mean_C` is the channels' mean, about which moments are taken."""
        channels = len(mean_C)
        self._mean_C = np.asarray(mean_C, dtype=np.float64)
        self._moment = np.zeros((side, side, channels, channels))
        self._classes = np.zeros((classes, channels, side, side))
        self._counts = np.zeros(classes, dtype=np.int64)
        self._power = np.zeros((2, channels))
        self._neighbours = np.zeros(2)
        self._digests: set[bytes] = set()
        self._seen = 0
        self._probe: list[npt.NDArray[np.float16]] = []
        self._probe_labels: list[npt.NDArray[np.int64]] = []

    def add(self, x_NCHW: Float32, labels_N: npt.NDArray[np.int64], digests: list[bytes]) -> None:
        """Add latents with their labels and a hash of each sample's stored bytes."""
        modes = to_modes(x_NCHW - self._mean_C[:, None, None].astype(np.float32))
        by_mode = np.ascontiguousarray(modes.transpose(2, 3, 1, 0))  # [H, W, C, N]
        self._moment += by_mode @ by_mode.swapaxes(-1, -2)
        order = np.argsort(labels_N, kind="stable")
        present, starts = np.unique(labels_N[order], return_index=True)
        self._classes[present] += np.add.reduceat(modes[order], starts, axis=0)
        self._counts += np.bincount(labels_N, minlength=len(self._counts))
        power_NC = np.square(x_NCHW).mean(axis=(2, 3), dtype=np.float64)
        self._power += np.stack([power_NC.sum(axis=0), np.square(power_NC).sum(axis=0)])
        self._neighbours += neighbour_correlation(x_NCHW, self._mean_C)
        self._digests.update(digests)
        self._seen += len(digests)
        wanted = PROBES - sum(map(len, self._probe))
        if wanted > 0:
            self._probe.append(x_NCHW[:wanted].astype(np.float16))
            self._probe_labels.append(labels_N[:wanted].astype(np.int64))

    def finish(self) -> Bounds:
        """Return the bounds of everything that was added. Raises DataError when nothing was."""
        if not self._seen:
            raise DataError("the dataset has no latents; run `dit prepare` again")
        mean, square = self._power / self._seen
        return Bounds(
            count=self._seen,
            duplicates=self._seen - len(self._digests),
            mean_C=self._mean_C,
            moment_HWCC=self._moment / self._seen,
            class_modes_KCHW=(self._classes / np.maximum(self._counts, 1)[:, None, None, None]).astype(np.float32),
            class_counts_K=self._counts,
            power_C=mean,
            power_std_C=np.sqrt(np.maximum(square - np.square(mean), 0)),
            neighbours=float(self._neighbours[0] / max(self._neighbours[1], 1e-30)),
            probe_NCHW=np.concatenate(self._probe),
            probe_labels_N=np.concatenate(self._probe_labels),
        )
