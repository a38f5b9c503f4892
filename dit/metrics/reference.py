"""What generated images are measured against: statistics of real images, and some of their features."""

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
"""How many real images' features precision and recall need; ADM's evaluator uses as many."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Mean and covariance of real images' features, and the features [M, D] of at most 10,000 of them."""

    gaussian: Gaussian
    features: Tensor | None
    count: int
    """Images behind the Gaussian; 0 where that is unknown."""

    def to_bytes(self) -> bytes:
        """As an npz of mu, sigma and features."""
        mean, covariance = self.gaussian.mean.cpu().numpy(), self.gaussian.covariance.cpu().numpy()
        buffer = io.BytesIO()
        if self.features is None:
            np.savez(buffer, mu=mean, sigma=covariance)
        else:
            np.savez(buffer, mu=mean, sigma=covariance, features=self.features.numpy())
        return buffer.getvalue()

    @classmethod
    def from_file(cls, path: Path, count: int) -> Self:
        """What `to_bytes` wrote; DataError for anything else."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                gaussian = Gaussian(torch.from_numpy(arrays["mu"]), torch.from_numpy(arrays["sigma"]))
                features = torch.from_numpy(arrays["features"]) if "features" in arrays else None
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: damaged ({error}); remove its folder and run `dit evaluate` again") from error
        return cls(gaussian, features, count)


def from_source(source: Source, extractor: Extractor, ranks: Ranks, batch: int) -> Reference:
    """Statistics of every readable image of a dataset, each rank taking its share.

    InputError when there are fewer than two.
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
            few = [i for i, number in enumerate(numbers) if number < len(kept)]
            rows = [numbers[i] for i in few]
            kept[rows], present[rows] = features[few], 1.0
            bar.advance(len(numbers))
    ranks.barrier()
    for tensor in (sums.packed, kept, present):
        ranks.all_reduce_sum(tensor)
    if sums.count < 2:
        raise InputError(f"the dataset has {sums.count} readable images; reference statistics need two or more")
    gaussian = sums.gaussian()
    return Reference(Gaussian(gaussian.mean.cpu(), gaussian.covariance.cpu()), kept[present > 0], sums.count)


def from_adm(path: Path, extractor: Extractor, ranks: Ranks, batch: int) -> Reference:
    """Statistics of ADM's npz: mu and sigma as they are, features of its images arr_0 where it holds any.

    InputError for a file without mu and sigma of this extractor's dimensions.
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
    """Numbers and images [n, H, W, C] of the readable ones among these items."""
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
