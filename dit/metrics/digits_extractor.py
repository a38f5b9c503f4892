"""A small classifier of handwritten digits. Its features replace Inception's for images of 8x8 pixels.

It learns to classify noisy digits and to estimate the strength of their noise. A classifier trained on clean digits
alone does not order images that are far from any digit: it ranks a model after a few training steps below pure noise.
It is trained once on the dataset, with the same result each time on the same machine, and kept with the dataset.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from dit.metrics.torch_fidelity_api import FeatureExtractorBase, register_feature_extractor

NAME = "digits-cnn"
FEATURES, LOGITS = "64", "logits"
CLASSES = 10

_EPOCHS, _BATCH, _LEARNING_RATE = 24, 64, 3e-3
_LARGEST_NOISE = 127.5
"""Standard deviation of the strongest noise in training, in grey levels: half of the range."""
_GRADE_WEIGHT = 4.0
"""Weight of the noise estimate's error in the loss."""
_TEST_SHARE = 5
"""One image in five is left out of training."""


class DigitsExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """Features [N, 64] and logits [N, 10] of uint8 images [N, 1, 8, 8]; the signature is torch-fidelity's."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None, **_: Any
    ) -> None:
        super().__init__(name, features_list)
        self.embed = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 64),
        )
        # Features are taken before this ReLU: without it they are closer to a Gaussian, which the distance assumes.
        self.classify = nn.Sequential(nn.ReLU(), nn.Linear(64, CLASSES))
        if feature_extractor_weights_path is not None:
            self.load_state_dict(load_file(feature_extractor_weights_path), strict=True)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """See FeatureExtractorBase."""
        return FEATURES, LOGITS

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """See FeatureExtractorBase."""
        return LOGITS if metric == "isc" else FEATURES

    @staticmethod
    def can_be_compiled() -> bool:
        """See FeatureExtractorBase."""
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        """See FeatureExtractorBase."""
        return torch.zeros(1, 1, 8, 8, dtype=torch.uint8)

    def forward(self, images_N1HW: Tensor) -> tuple[Tensor, ...]:
        """The layers in `features_list`: features [N, 64], logits [N, 10], float32."""
        # Grey levels 0 to 255 become -1 to 1, as in training.
        features = self.embed(images_N1HW.float() / 127.5 - 1)
        provided = {FEATURES: features.float(), LOGITS: self.classify(features).float()}
        return tuple(provided[name] for name in self.features_list)


def train(images_NHW1: npt.NDArray[np.uint8], labels_N: npt.NDArray[np.int64]) -> tuple[dict[str, Tensor], float, int]:
    """Train on four fifths of the images; the weights, their accuracy on the rest, and the number of the rest."""
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(labels_N))
    images = torch.from_numpy(images_NHW1[order].transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(labels_N[order])
    tests = len(labels) // _TEST_SHARE
    with _deterministic():
        model = DigitsExtractor(NAME, [FEATURES, LOGITS])
        _fit(model, images[tests:], labels[tests:])
        with torch.inference_mode():
            correct = model(images[:tests])[1].argmax(dim=1) == labels[:tests]
    return model.state_dict(), float(correct.double().mean()), tests


def _fit(model: DigitsExtractor, images: Tensor, labels: Tensor) -> None:
    grade = nn.Linear(int(FEATURES), 1)
    parameters = [*model.parameters(), *grade.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS * -(-len(images) // _BATCH))
    for _ in range(_EPOCHS):
        for batch in torch.split(torch.randperm(len(images)), _BATCH):
            # Squared, so that weak noise is more frequent: samples of good models differ in weak noise.
            strength_N1 = torch.rand(len(batch), 1).square()
            features, logits = model(_noised(images[batch], strength_N1))
            graded = functional.mse_loss(grade(features), strength_N1)
            loss = functional.cross_entropy(logits, labels[batch]) + _GRADE_WEIGHT * graded
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            scheduler.step()


def _noised(images_N1HW: Tensor, strength_N1: Tensor) -> Tensor:
    """uint8 images with Gaussian noise of `strength` times `_LARGEST_NOISE`, rounded and clipped as samples are."""
    noise = torch.randn(images_N1HW.shape) * _LARGEST_NOISE * strength_N1[..., None, None]
    return (images_N1HW + noise).round().clamp(0, 255).to(torch.uint8)


@contextmanager
def _deterministic() -> Iterator[None]:
    """A fixed seed and one thread, because the order of sums depends on the threads; both are restored afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


register_feature_extractor(NAME, DigitsExtractor)
