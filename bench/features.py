"""Inception features on this machine: memory layouts and precisions, and the effect of bf16 on a distance.

The network is InceptionV3 at full size with random weights, because speed does not depend on the weights. The effect of
bf16 on a distance is measured on the same network. It shows the size of rounding errors relative to the features, not
the effect on a published FID, which is why fp32 stays the default.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.harness import Row
from bench.timing import seconds_per_call
from dit.metrics.extractors import Extractor, open_inception
from dit.metrics.frechet import FeatureSums, frechet_distance
from dit.runtime.device import cpu_has_bf16, tune_process
from dit.runtime.torchvision_shim import ensure_torchvision
from dit.study.fields import FeaturePrecision

BATCH = 16
COMPARED = 96


def measure(side: str) -> dict[str, Any]:
    """Images of 256 x 256 per second."""
    if side.endswith("bf16") and not cpu_has_bf16():
        return {"skipped": "this CPU has no bf16 kernels; the extractor computes in fp32 instead"}
    images = _images()
    with tempfile.TemporaryDirectory() as folder:
        plain = random_inception(Path(folder) / "weights.pth")
        if side == "plain fp32":
            pixels = torch.from_numpy(images[:BATCH]).permute(0, 3, 1, 2).contiguous()
            with torch.inference_mode():
                return {"rate": BATCH / seconds_per_call(lambda: plain(pixels))}
        tune_process()
        extractor = _open(folder, "bf16" if side.endswith("bf16") else "fp32")
        seconds = seconds_per_call(lambda: extractor(images[:BATCH]))
        beside = {"distance": _shift(folder, images)} if extractor.precision == "bf16" else {}
    return {"rate": BATCH / seconds, "beside": beside}


def random_inception(path: Path) -> nn.Module:
    """InceptionV3 with random weights, also saved at `path` in the format of the trained weights."""
    ensure_torchvision()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class RandomInception(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, _: dict[str, Tensor]) -> None:
            # With torch's default initialisation, activations shrink from layer to layer until only rounding is left.
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            torch.save(self.state_dict(), path)

    torch.manual_seed(0)
    torch.save({}, path)
    return RandomInception("random", ["2048"], feature_extractor_weights_path=str(path))


def _images() -> np.ndarray:
    """Smooth random pictures, in two halves of different contrast."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (COMPARED, 16, 16, 3))
    coarse[COMPARED // 2 :] = coarse[COMPARED // 2 :] // 2 + 64
    return np.kron(coarse, np.ones((1, 16, 16, 1))).astype(np.uint8)


def _open(folder: str, precision: FeaturePrecision) -> Extractor:
    return open_inception(Path(folder) / "weights.pth", "0" * 64, torch.device("cpu"), precision)


def _shift(folder: str, images: np.ndarray) -> str:
    """The distance between the two halves in bf16, and in fp32."""
    distances = []
    for precision in ("bf16", "fp32"):
        extractor = _open(folder, precision)
        halves = []
        for half in np.split(images, 2):
            sums = FeatureSums(extractor.dimensions)
            for batch in np.split(half, len(half) // BATCH):
                sums.add(extractor(batch).features)
            halves.append(sums.gaussian())
        distances.append(frechet_distance(*halves))
    return f"bf16 {distances[0]:.5g}, fp32 {distances[1]:.5g}"


def rows() -> list[Row]:
    """torch-fidelity's own call, ours with channels last, ours in bf16."""
    sides = {side: {"side": side} for side in ("plain fp32", "channels last fp32", "channels last bf16")}
    return [Row("Inception features, 256 x 256", "images/s", __name__, sides)]
