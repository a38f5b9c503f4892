"""Noise, labels, parts, previews and export of sample sets."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dit.errors import StoreError
from dit.sampling import grid, noise
from dit.sampling.adm import write_npz
from dit.sampling.noise import NoiseStream, draws_per_sample, sample_labels
from dit.study.config import SamplingConfig
from dit.study.variants import InputSpec

INPUTS = InputSpec(channels=2, size=4, classes=10)
CPU = torch.device("cpu")


def sampling(**keys: object) -> SamplingConfig:
    return SamplingConfig.model_validate({"steps": 7, "num_samples": 40, **keys})


def all_draws(config: SamplingConfig, indices: list[int]) -> torch.Tensor:
    """[draws, N, C, H, W]."""
    with NoiseStream(config, indices, INPUTS, CPU) as stream:
        return torch.stack([stream(k) for k in range(draws_per_sample(config))])


@settings(max_examples=25, deadline=None)
@given(indices=st.lists(st.integers(0, 10**6), min_size=1, max_size=6, unique=True), chunk=st.integers(1, 4000))
def test_a_samples_noise_depends_on_its_number_alone(indices: list[int], chunk: int) -> None:
    """Not on who shares its batch, in which order, nor on how many draws are made at once."""
    alone = torch.cat([all_draws(sampling(), [index]) for index in indices], dim=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "CHUNK_BYTES", chunk)
        assert torch.equal(all_draws(sampling(), indices), alone)


def test_noise_is_standard_normal_and_never_repeats() -> None:
    drawn = all_draws(sampling(steps=50), list(range(100)))
    assert drawn.shape == (50, 100, 2, 4, 4)
    assert float(drawn.mean()) == pytest.approx(0, abs=0.01)
    assert float(drawn.std()) == pytest.approx(1, abs=0.01)
    assert len(drawn.unique()) > 0.99 * drawn.numel()


def test_another_seed_gives_other_noise_and_labels() -> None:
    one, other = sampling(seed=0), sampling(seed=1)
    assert not torch.equal(all_draws(one, [3]), all_draws(other, [3]))
    assert not np.array_equal(sample_labels(one, 1000), sample_labels(other, 1000))


@pytest.mark.parametrize(
    ("keys", "draws"),
    [({}, 7), ({"sampler": "ddim", "eta": 0.0}, 1), ({"sampler": "ddim", "eta": 0.5}, 7)],
)
def test_no_noise_is_drawn_that_the_sampler_does_not_use(keys: dict[str, object], draws: int) -> None:
    config = sampling(**keys)
    assert draws_per_sample(config) == draws
    with NoiseStream(config, [0], INPUTS, CPU) as stream, pytest.raises(IndexError):
        stream(draws)


def test_noise_comes_in_order() -> None:
    with NoiseStream(sampling(steps=900), list(range(600)), INPUTS, CPU) as stream:
        stream(899)
        with pytest.raises(IndexError, match="after draw"):
            stream(0)


def test_labels_of_a_smaller_set_begin_those_of_a_larger() -> None:
    small, large = sampling(num_samples=100), sampling(num_samples=5000)
    assert np.array_equal(sample_labels(small, 1000), sample_labels(large, 1000)[:100])


def test_random_labels_are_even_over_all_classes() -> None:
    counts = np.bincount(sample_labels(sampling(num_samples=20_000), 10), minlength=10)
    assert counts.min() > 1800
    assert counts.max() < 2200


def test_balanced_labels_take_turns() -> None:
    labels = sample_labels(sampling(labels="balanced", num_samples=25), 10)
    assert labels.tolist() == [*range(10), *range(10), *range(5)]


def test_a_preview_of_few_classes_has_a_row_for_each() -> None:
    rows = grid.choose(np.arange(40) % 4, 4)
    assert [len(row) for row in rows] == [8] * 4
    assert rows[2] == [2, 6, 10, 14, 18, 22, 26, 30]


def test_a_preview_of_many_classes_shows_the_first_samples() -> None:
    rows = grid.choose(np.arange(1000), 1000)
    assert [index for row in rows for index in row] == list(range(64))
    assert grid.choose(np.arange(3), 1000) == [[0, 1, 2]]


def test_small_images_grow_without_smoothing() -> None:
    """Every pixel becomes a square of its own value."""
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8, 1) * 4
    with Image.open(io.BytesIO(grid.render([[(pixels, "7")]]))) as image:
        drawn = np.asarray(image.convert("L"))
    tile = drawn[grid.MARGIN : grid.MARGIN + 64, grid.MARGIN : grid.MARGIN + 64]
    assert np.array_equal(tile, pixels[..., 0].repeat(8, 0).repeat(8, 1))


def test_an_export_is_what_adms_evaluator_reads(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    parts = [(random.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8), np.arange(n)) for n in (5, 3)]
    write_npz(tmp_path / "out" / "samples.npz", iter(parts), 8, 8)
    with np.load(tmp_path / "out" / "samples.npz", allow_pickle=False) as arrays:
        assert arrays.files == ["arr_0", "arr_1"]
        assert arrays["arr_0"].dtype == np.uint8
        assert np.array_equal(arrays["arr_0"], np.concatenate([images for images, _ in parts]))
        assert arrays["arr_1"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


def test_grey_samples_are_exported_as_rgb(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    write_npz(tmp_path / "samples.npz", [(grey, np.zeros(4, dtype=np.int64))], 4, 8)
    with np.load(tmp_path / "samples.npz") as arrays:
        assert np.array_equal(arrays["arr_0"], grey.repeat(3, axis=3))


def test_an_export_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="file"):
        write_npz(tmp_path / "file" / "samples.npz", [], 0, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
