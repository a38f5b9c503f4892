"""The reference of an evaluation: statistics of real images, and the features of some of them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from dit.console import progress
from dit.data.images import CorruptImageError
from dit.data.items import Item, Source, load_ahead
from dit.errors import DataError, InputError
from dit.metrics.extractors import Extractor, extract
from dit.metrics.frechet import FeatureSums, Gaussian
from dit.metrics.inputs import read_adm_images, read_adm_moments
from dit.runtime.distributed import Ranks
from dit.sampling.sets import Images

MAX_FEATURES = 10_000
"""Real images whose features are kept for precision and recall, as many as in ADM's evaluator."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Mean and covariance of real images' features, and the features [M, D] of at most 10,000 of them."""

    gaussian: Gaussian
    features: Tensor | None
    count: int
    """Images behind the Gaussian; 0 if unknown."""

    def to_bytes(self) -> bytes:
        """An npz with mu [D], sigma [D, D] and, if there are any, features [M, D]."""
        arrays = {"mu": self.gaussian.mean.cpu().numpy(), "sigma": self.gaussian.covariance.cpu().numpy()}
        if self.features is not None:
            arrays["features"] = self.features.numpy()
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy types every keyword as allow_pickle
        return buffer.getvalue()

    @classmethod
    def from_file(cls, path: Path, count: int) -> Self:
        """The reference that `to_bytes` wrote.

        Raises DataError when the file is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                gaussian = Gaussian(torch.from_numpy(arrays["mu"]), torch.from_numpy(arrays["sigma"]))
                features = torch.from_numpy(arrays["features"]) if "features" in arrays else None
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: damaged ({error}); remove its folder and run `dit evaluate` again") from error
        return cls(gaussian, features, count)


def from_source(source: Source, extractor: Extractor, ranks: Ranks, batch: int) -> Reference:
    """Statistics of every readable image of a dataset; all ranks share the work.

    Raises InputError when fewer than two images are readable.
    """
    sums = FeatureSums(extractor.dimensions, ranks.device)
    items = source.items
    kept = torch.zeros(min(MAX_FEATURES, len(items)), extractor.dimensions)
    present = torch.zeros(len(kept))
    mine = range(ranks.rank, len(items), ranks.world_size)
    with progress("reference statistics", len(mine), "images", enabled=ranks.is_main) as bar:
        for numbers, images in _batches(source, mine, batch):
            features = extractor(images).features
            sums.add(features)
            # The first images of the source, so that the choice does not depend on the number of ranks.
            chosen = [i for i, number in enumerate(numbers) if number < len(kept)]
            rows = [numbers[i] for i in chosen]
            kept[rows], present[rows] = features[chosen], 1.0
            bar.advance(len(numbers))
    ranks.barrier()
    for tensor in (sums.packed, kept, present):
        ranks.all_reduce_sum(tensor)
    if sums.count < 2:
        raise InputError(f"the dataset has {sums.count} readable images; reference statistics need two or more")
    gaussian = sums.gaussian()
    return Reference(Gaussian(gaussian.mean.cpu(), gaussian.covariance.cpu()), kept[present > 0], sums.count)


def from_adm(path: Path, extractor: Extractor, ranks: Ranks, batch: int) -> Reference:
    """Statistics of ADM's npz: its mu and sigma unchanged, and features of the images in its arr_0, if it has any.

    Raises InputError when the file lacks mu and sigma of this extractor's dimensions.
    """
    mean, covariance = read_adm_moments(path, extractor.dimensions)
    images = read_adm_images(path, MAX_FEATURES)
    features = None
    if images is not None:
        mine = range(ranks.rank * batch, len(images), ranks.world_size * batch)
        shares = ((first, images[first : first + batch]) for first in mine)
        with progress("reference features", len(mine) * batch, "images", enabled=ranks.is_main) as bar:
            features = extract(extractor, shares, len(images), ranks, batch, bar).features
    return Reference(Gaussian(torch.from_numpy(mean), torch.from_numpy(covariance)), features, 0)


def _batches(source: Source, numbers: Sequence[int], batch: int) -> Iterator[tuple[list[int], Images]]:
    """Numbers and images [n, H, W, C] of the readable items, in batches."""
    wanted: list[Item] = [source.items[number] for number in numbers]
    rows: list[int] = []
    images: list[Images] = []
    for number, (_, image) in zip(numbers, load_ahead(source, wanted), strict=True):
        if isinstance(image, CorruptImageError):
            continue
        rows.append(number)
        images.append(image)
        if len(rows) == batch:
            yield rows, np.stack(images)
            rows, images = [], []
    if rows:
        yield rows, np.stack(images)
