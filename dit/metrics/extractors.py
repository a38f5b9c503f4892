"""Images to features, through torch-fidelity's registry of extractors.

Shapes: N images, H x W pixels, D feature dimensions, K classes.
"""

from __future__ import annotations

import importlib.metadata
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dit.console import Progress
from dit.errors import DataError, MismatchError
from dit.metrics import digits_extractor
from dit.metrics.torch_fidelity_api import create_feature_extractor
from dit.runtime.device import autocast, computed_in, matmul_precision
from dit.runtime.distributed import Ranks
from dit.sampling.sets import Images
from dit.study.fields import FeaturePrecision

INCEPTION = "inception-v3-compat"


@dataclass(frozen=True, slots=True)
class Features:
    """An extractor's output for N images: features [N, D] and class logits [N, K], float32, on the CPU."""

    features: Tensor
    logits: Tensor


class Extractor:
    """A feature extractor on a device."""

    def __init__(
        self, name: str, sha256: str, module: nn.Module, device: torch.device, precision: FeaturePrecision
    ) -> None:
        self.precision = computed_in(precision, device)
        version = importlib.metadata.version("torch-fidelity")
        self.evaluator = f"torch-fidelity {version} {name} {self.precision}, weights {sha256[:8]}"
        self.sha256 = sha256
        self._device = device
        # Channels last: 1.5 times as fast on a CPU, and tensor cores of a GPU need no transposition.
        to: Any = module.to  # torch's types lack the argument memory_format
        self._module: nn.Module = to(device=device, memory_format=torch.channels_last)
        self._channels = 3 if name == INCEPTION else 1
        matmul_precision("fp32", device)
        blank = self(np.zeros((1, 8, 8, self._channels), dtype=np.uint8))
        self.dimensions, self.classes = blank.features.shape[1], blank.logits.shape[1]

    @torch.inference_mode()
    def __call__(self, images_NHWC: Images) -> Features:
        """Features of one batch of uint8 images [N, H, W, 1 or 3]; an RGB extractor gets grey images as RGB.

        Raises DataError when a feature is not finite.
        """
        shape = (*images_NHWC.shape[:3], self._channels)
        pixels = torch.from_numpy(np.broadcast_to(images_NHWC, shape).copy()).to(self._device).permute(0, 3, 1, 2)
        with autocast(self.precision, self._device):
            features, logits = self._module(pixels)
        if not bool(torch.isfinite(features).all()):
            raise DataError(f"{self.evaluator}: features are not finite; the weights are damaged, replace them")
        return Features(features.float().cpu(), logits.float().cpu())


def open_inception(path: Path, sha256: str, device: torch.device, precision: FeaturePrecision) -> Extractor:
    """InceptionV3 of 2015, the network of FID (Heusel et al. 2017), in torch-fidelity's port, with these weights.

    Features [N, 2048] of the last pooling layer, logits [N, 1008] without bias.

    Raises MismatchError when the file does not hold these weights.
    """
    try:
        # torch-fidelity unpickles any file, and a pickle can run code. A file that loads here holds tensors only.
        torch.load(path, weights_only=True, map_location="meta")
        module = _create(INCEPTION, ["2048", "logits_unbiased"], path)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise MismatchError(f"{path}: not the weights of torch-fidelity's InceptionV3: {reason}") from None
    return Extractor(INCEPTION, sha256, module, device, precision)


def open_digits(path: Path, sha256: str, device: torch.device, precision: FeaturePrecision) -> Extractor:
    """The digits classifier that was trained on the dataset: features [N, 64], logits [N, 10]."""
    module = _create(digits_extractor.NAME, [digits_extractor.FEATURES, digits_extractor.LOGITS], path)
    return Extractor(digits_extractor.NAME, sha256, module, device, precision)


def extract(
    extractor: Extractor,
    shares: Iterable[tuple[int, Images]],
    total: int,
    ranks: Ranks,
    batch: int,
    progress: Progress | None = None,
) -> Features:
    """Features of `total` images on every rank; each rank passes its share as (number of the first image, images).

    Exactly one rank must pass each image.
    """
    features = torch.zeros(total, extractor.dimensions)
    logits = torch.zeros(total, extractor.classes)
    for first, images in shares:
        for start in range(0, len(images), batch):
            output = extractor(images[start : start + batch])
            rows = slice(first + start, first + start + len(output.features))
            features[rows], logits[rows] = output.features, output.logits
            if progress is not None:
                progress.advance(len(output.features))
    # Rows of other ranks are zero here, so the sum over ranks gathers all rows without rounding.
    ranks.barrier()
    return Features(ranks.all_reduce_sum(features), ranks.all_reduce_sum(logits))


def _create(name: str, layers: list[str], path: Path) -> nn.Module:
    module: nn.Module = create_feature_extractor(
        name, layers, cuda=False, feature_extractor_weights_path=str(path), verbose=False
    )
    return module
