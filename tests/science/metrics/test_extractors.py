"""The digits extractor, InceptionV3's loading, and precision and recall on features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_fixtures import digits_study
from safetensors.torch import save_file
from sample_fixtures import save_inception, small_study

from dit.data.sources import iter_source_images
from dit.errors import DataError, MismatchError, MissingError
from dit.metrics import digits_extractor
from dit.metrics.bootstrap import random_halves
from dit.metrics.extractors import INCEPTION, Extractor, open_digits, open_inception
from dit.metrics.frechet import FeatureSums, Gaussian, frechet_distance
from dit.metrics.inputs import INCEPTION_SHA256, find_inception
from dit.metrics.precision_recall import Manifold
from dit.metrics.torch_fidelity_api import create_feature_extractor
from dit.storage import open_store
from dit.study import layout

from torch_fidelity.metric_prc import prc_features_to_metric  # isort: skip  (after the metrics, which mend torchvision)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset() -> tuple[np.ndarray, np.ndarray]:
    _, images, labels = zip(*iter_source_images(digits_study()), strict=True)
    return np.stack(images), np.array(labels)


@pytest.fixture(scope="module")
def classifier(dataset: tuple[np.ndarray, np.ndarray]) -> tuple[dict[str, torch.Tensor], float, int]:
    return digits_extractor.train(*dataset)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("weights") / layout.INCEPTION_FILE
    return path, save_inception(path)


def extractor_of(weights: dict[str, torch.Tensor], folder: Path) -> Extractor:
    save_file(weights, folder / "digits.safetensors")
    return open_digits(folder / "digits.safetensors", "d" * 64, CPU, "fp32")


def test_digits_left_out_of_its_training_are_read_right(classifier: tuple[dict[str, torch.Tensor], float, int]) -> None:
    _, accuracy, tests = classifier
    assert tests > 300
    assert accuracy > 0.95


def test_training_gives_the_same_weights_whatever_ran_before(
    dataset: tuple[np.ndarray, np.ndarray], classifier: tuple[dict[str, torch.Tensor], float, int]
) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(12345)
    state = torch.random.get_rng_state()
    again, _, _ = digits_extractor.train(*dataset)
    assert all(torch.equal(again[name], tensor) for name, tensor in classifier[0].items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_stored_weights_see_what_the_trained_ones_did(
    tmp_path: Path, dataset: tuple[np.ndarray, np.ndarray], classifier: tuple[dict[str, torch.Tensor], float, int]
) -> None:
    images, labels = dataset
    seen = extractor_of(classifier[0], tmp_path)(images)
    assert seen.features.shape == (1797, 64)
    assert float((seen.logits.argmax(dim=1).numpy() == labels).mean()) > 0.97


def test_weights_that_are_not_finite_are_refused_before_any_work(
    tmp_path: Path, classifier: tuple[dict[str, torch.Tensor], float, int]
) -> None:
    weights = {name: tensor.clone() for name, tensor in classifier[0].items()}
    weights["embed.0.bias"][0] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        extractor_of(weights, tmp_path)


def test_more_noise_is_farther_away_up_to_noise_alone(
    tmp_path: Path, dataset: tuple[np.ndarray, np.ndarray], classifier: tuple[dict[str, torch.Tensor], float, int]
) -> None:
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


def gaussian_of(features_ND: torch.Tensor) -> Gaussian:
    sums = FeatureSums(features_ND.shape[1])
    sums.add(features_ND)
    return sums.gaussian()


def test_features_do_not_depend_on_the_batch(
    tmp_path: Path, dataset: tuple[np.ndarray, np.ndarray], classifier: tuple[dict[str, torch.Tensor], float, int]
) -> None:
    extractor = extractor_of(classifier[0], tmp_path)
    images = dataset[0][:40]
    parts = torch.cat([extractor(part).features for part in np.array_split(images, 7)])
    torch.testing.assert_close(parts, extractor(images).features, rtol=1e-4, atol=1e-4)


def test_published_weights_are_asked_for_by_name_place_and_digest(tmp_path: Path) -> None:
    config = small_study("evaluation.extractor=inception")
    with pytest.raises(MissingError) as error:
        find_inception(config, open_store(tmp_path))
    line = str(error.value)
    assert "\n" not in line
    for part in (
        layout.INCEPTION_FILE,
        INCEPTION_SHA256,
        f"{tmp_path}/weights/{layout.INCEPTION_FILE}",
        "evaluation.extractor_weights",
    ):
        assert part in line


def test_a_named_file_that_is_missing_is_named(tmp_path: Path) -> None:
    config = small_study("evaluation.extractor=inception", f"evaluation.extractor_weights={tmp_path}/no.pth")
    with pytest.raises(MissingError, match=r"no\.pth.*evaluation\.extractor_weights"):
        find_inception(config, open_store(tmp_path))


def test_other_weights_are_refused_unless_they_are_meant(tmp_path: Path) -> None:
    path = tmp_path / "weights" / layout.INCEPTION_FILE
    path.parent.mkdir()
    path.write_bytes(b"other weights")
    store = open_store(tmp_path)
    with pytest.raises(MismatchError, match=r"set evaluation\.extractor_sha256=[0-9a-f]{64}$") as error:
        find_inception(small_study("evaluation.extractor=inception"), store)
    sha256 = str(error.value).rpartition("=")[2]
    meant = small_study("evaluation.extractor=inception", f"evaluation.extractor_sha256={sha256}")
    assert find_inception(meant, store) == (path, sha256)


@pytest.mark.parametrize("content", [b"nothing of the kind", "a dictionary"])
def test_a_file_that_holds_no_such_weights_is_one_line(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / layout.INCEPTION_FILE
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"fc.weight": torch.zeros(2)}, path)
    with pytest.raises(MismatchError) as error:
        open_inception(path, "0" * 64, CPU, "fp32")
    assert "\n" not in str(error.value)


def test_inception_sees_images_as_torch_fidelity_does(inception: tuple[Path, str]) -> None:
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


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def random_features(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed)) + shift


def test_precision_and_recall_are_torch_fidelitys() -> None:
    generated, real = random_features(400, 0, shift=0.4), random_features(500, 1)
    expected = prc_features_to_metric(generated, real, verbose=False)
    assert float(Manifold(real).covers(generated).float().mean()) == pytest.approx(expected["precision"])
    assert float(Manifold(generated).covers(real).float().mean()) == pytest.approx(expected["recall"])
    assert 0.05 < expected["precision"] < 0.95


def test_identical_sets_cover_each_other_and_distant_ones_do_not() -> None:
    here, far = random_features(100, 0), random_features(100, 1, shift=100)
    assert bool(Manifold(here).covers(here.clone()).all())
    assert not bool(Manifold(far).covers(here).any())


def test_a_draw_covers_what_its_images_would_cover_alone() -> None:
    generated, real = random_features(100, 0), random_features(300, 1)
    halves = list(random_halves(100, 3))
    alone = [float(Manifold(generated[torch.from_numpy(half)]).covers(real).double().mean()) for half in halves]
    assert Manifold(generated).shares(real, halves) == pytest.approx(alone)


def test_three_images_span_no_manifold() -> None:
    with pytest.raises(ValueError, match="more than 3"):
        Manifold(random_features(3, 1))
