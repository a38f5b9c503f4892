"""The digits extractor and its training, and InceptionV3."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_fixtures import digits_study
from safetensors.torch import save_file
from sample_fixtures import gaussian_of, save_inception

from dit.data.sources import iter_source_images
from dit.errors import DataError, MismatchError
from dit.metrics import digits_extractor
from dit.metrics.extractors import INCEPTION, Extractor, open_digits, open_inception
from dit.metrics.frechet import frechet_distance
from dit.metrics.torch_fidelity_api import create_feature_extractor
from dit.study import layout

CPU = torch.device("cpu")
Dataset = tuple[np.ndarray, np.ndarray]
Trained = tuple[dict[str, torch.Tensor], float, int]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    _, images, labels = zip(*iter_source_images(digits_study()), strict=True)
    return np.stack(images), np.array(labels)


@pytest.fixture(scope="module")
def classifier(dataset: Dataset) -> Trained:
    return digits_extractor.train(*dataset)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("weights") / layout.INCEPTION_FILE
    return path, save_inception(path)


def extractor_of(weights: dict[str, torch.Tensor], folder: Path) -> Extractor:
    save_file(weights, folder / "digits.safetensors")
    return open_digits(folder / "digits.safetensors", "d" * 64, CPU, "fp32")


def test_the_digits_extractor_classifies_digits_left_out_of_its_training(classifier: Trained) -> None:
    _, accuracy, tests = classifier
    assert tests > 300
    assert accuracy > 0.95


def test_training_the_digits_extractor_is_reproducible_and_changes_no_random_state(
    dataset: Dataset, classifier: Trained
) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(12345)
    state = torch.random.get_rng_state()
    again, _, _ = digits_extractor.train(*dataset)
    assert all(torch.equal(again[name], tensor) for name, tensor in classifier[0].items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_stored_weights_classify_like_the_trained_ones(tmp_path: Path, dataset: Dataset, classifier: Trained) -> None:
    images, labels = dataset
    output = extractor_of(classifier[0], tmp_path)(images)
    assert output.features.shape == (1797, 64)
    assert float((output.logits.argmax(dim=1).numpy() == labels).mean()) > 0.97


def test_weights_that_are_not_finite_are_refused_on_opening(tmp_path: Path, classifier: Trained) -> None:
    weights = {name: tensor.clone() for name, tensor in classifier[0].items()}
    weights["embed.0.bias"][0] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        extractor_of(weights, tmp_path)


def test_the_distance_grows_with_noise_up_to_noise_alone(tmp_path: Path, dataset: Dataset, classifier: Trained) -> None:
    extractor = extractor_of(classifier[0], tmp_path)
    images, noise = dataset[0], np.random.default_rng(0).standard_normal(dataset[0].shape)
    real = gaussian_of(extractor(images).features)
    distances = [
        frechet_distance(gaussian_of(extractor(grey_levels(kept * images + deviation * noise)).features), real)
        for kept, deviation in ((1, 4), (1, 16), (1, 64), (1, 128), (0, 256))
    ]
    assert distances == sorted(distances)
    assert distances[0] < distances[-1] / 50


def grey_levels(values: np.ndarray) -> np.ndarray:
    return values.round().clip(0, 255).astype(np.uint8)


def test_features_do_not_depend_on_the_batch(tmp_path: Path, dataset: Dataset, classifier: Trained) -> None:
    extractor = extractor_of(classifier[0], tmp_path)
    images = dataset[0][:40]
    parts = torch.cat([extractor(part).features for part in np.array_split(images, 7)])
    torch.testing.assert_close(parts, extractor(images).features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("content", [b"nothing of the kind", "a dictionary"])
def test_a_file_without_inceptions_weights_is_refused_in_one_line(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / layout.INCEPTION_FILE
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"fc.weight": torch.zeros(2)}, path)
    with pytest.raises(MismatchError) as error:
        open_inception(path, "0" * 64, CPU, "fp32")
    assert "\n" not in str(error.value)


def test_inception_features_equal_torch_fidelitys(inception: tuple[Path, str]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    plain = create_feature_extractor(
        INCEPTION, ["2048", "logits_unbiased"], cuda=False, feature_extractor_weights_path=str(inception[0])
    )
    features, logits = plain(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
    full = open_inception(*inception, CPU, "fp32")(images)
    assert full.features.shape == (2, 2048)
    assert full.logits.shape == (2, 1008)
    assert relative_error(full.features, features) < 1e-4
    assert relative_error(full.logits, logits) < 1e-4

    half = open_inception(*inception, CPU, "bf16")(images).features
    assert half.dtype == torch.float32
    assert 0 < relative_error(half, features) < 0.05


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())
