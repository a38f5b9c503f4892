"""The bounds of a dataset: their published and their closed-form values, and how they are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_fixtures import digits_study

from dit.data import measure as measuring
from dit.data.measure import iter_latents, load_bounds
from dit.diffusion.schedule import linear_schedule
from dit.errors import UnhealthyError
from dit.health.bounds import RUNGS, Bounds, BoundsSums
from dit.results.stages import PREPARE, Work, bounds, dataset
from dit.results.state import is_complete, look, require
from dit.stages import prepare
from dit.storage import Store, open_store, read_record
from dit.study import layout
from dit.study.records import BoundsRecord, DatasetManifest

ABAR = linear_schedule().alphas_cumprod


def sums(latents: np.ndarray, labels: np.ndarray, batch: int = 64) -> Bounds:
    adding = BoundsSums(latents.mean(axis=(0, 2, 3)), latents.shape[-1], int(labels.max()) + 1)
    for start in range(0, len(latents), batch):
        rows = slice(start, start + batch)
        adding.add(
            latents[rows], labels[rows], [str(index).encode() for index in range(start, start + len(labels[rows]))]
        )
    return adding.finish()


def test_of_the_digits(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    prepare.run(digits_study(), store)
    record = read_record(store, layout.bounds(digits_study()), BoundsRecord)
    assert record is not None
    assert record.errors == {
        "a": pytest.approx(0.2304, abs=5e-5),
        "b": pytest.approx(0.1750, abs=5e-5),
        "bm": pytest.approx(0.1655, abs=5e-5),
        "cls": pytest.approx(0.1405, abs=5e-5),
    }


def test_of_stable_diffusions_latents() -> None:
    """Independent values with the published standard deviations: 0.2228, from every rung but the corrected last."""
    std = np.array([0.760, 0.842, 0.676, 0.597])
    random = np.random.default_rng(0)
    latents = (random.standard_normal((512, 4, 32, 32)) * std[:, None, None]).astype(np.float32)
    found = sums(latents, random.integers(0, 2, 512))
    assert found.errors_T("a", ABAR).mean() == pytest.approx(0.2228, abs=2e-4)
    assert found.errors_T("cls", ABAR).mean() == pytest.approx(0.2228, abs=2e-3)
    assert abs(found.class_information) < 5


def test_batches_and_bytes_change_nothing() -> None:
    random = np.random.default_rng(1)
    latents, labels = random.standard_normal((130, 2, 4, 4)).astype(np.float32), random.integers(0, 3, 130)
    one, many = sums(latents, labels, 130), sums(latents, labels, 7)
    again = Bounds.from_bytes(many.to_bytes(), "here")
    for rung in RUNGS:
        assert np.allclose(one.errors_T(rung, ABAR), again.errors_T(rung, ABAR), rtol=1e-5)
    assert (again.count, again.duplicates) == (130, 0)
    assert np.array_equal(again.probe_labels_N, labels)


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(str(tmp_path)) if request.param == "file" else request.getfixturevalue("s3_store")


def test_a_dataset_that_was_prepared_before_is_measured_without_being_encoded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = digits_study()
    work = Work(config, store)
    prepare.run(config, store)
    before = require(work, dataset(work))
    store.delete(layout.bounds(config))
    assert not is_complete(PREPARE, work)
    assert load_bounds(work) is None
    monkeypatch.setattr(prepare, "ShardEncoder", None)
    prepare.run(config, store)
    assert is_complete(PREPARE, work)
    assert require(work, dataset(work)) == before
    measured = load_bounds(work)
    assert measured is not None
    assert measured.count == 1797


def test_bounds_of_other_shards_are_measured_again(tmp_path: Path) -> None:
    config, store = digits_study(), open_store(str(tmp_path))
    prepare.run(config, store)
    key = layout.bounds(config)
    old = read_record(store, key, BoundsRecord)
    assert old is not None
    store.write(key, old.model_copy(update={"config_hash": "other"}).to_json())
    assert not look(Work(config, store), bounds(Work(config, store))).complete
    prepare.run(config, store)
    assert read_record(store, key, BoundsRecord) == old


def test_a_dataset_of_copies_is_refused_before_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that were written over each other: one in eight is left."""
    config, store = digits_study(), open_store(str(tmp_path))
    original = iter_latents

    def copies(config: object, store: object, manifest: DatasetManifest) -> object:
        for x, y, digests in original(config, store, manifest):  # type: ignore[arg-type]
            yield x, y, [digests[index % (len(digests) // 8)] for index in range(len(digests))]

    monkeypatch.setattr(measuring, "iter_latents", copies)
    for _ in range(2):
        with pytest.raises(UnhealthyError, match=r"samples are copies of others"):
            prepare.run(config, store)
    assert not is_complete(PREPARE, Work(config, store))
