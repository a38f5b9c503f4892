"""The evaluate stage: metrics that separate good samples from bad ones, its records, and its refusals."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_fixtures import folder_study, image_folder, picture, pretend_autoencoder
from sample_fixtures import STEP, VARIANT, save_inception, small_study, write_checkpoint, write_samples
from study_records import fill, study

from dit.cli.commands import run
from dit.data.sources import iter_source_images
from dit.errors import ConfigError, DataError, InputError, MismatchError, MissingError
from dit.metrics.inputs import INCEPTION_SHA256
from dit.results.stages import Work
from dit.results.state import unfinished
from dit.sampling.noise import sample_labels
from dit.stages import evaluate, prepare, sample
from dit.storage import Store, open_store, read_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import ExtractorRecord, MetricsRecord, ReferenceRecord
from dit.study.study_file import load_text
from dit.tracking import read_points

Images = np.ndarray[Any, np.dtype[np.uint8]]
Judged = tuple[Store, dict[str, MetricsRecord]]
Pictures = tuple[Store, StudyConfig]


def digits_for_labels(config: StudyConfig) -> Images:
    """A real digit for every label of the sample set, as a perfect model would draw."""
    _, images, labels = zip(*iter_source_images(config), strict=True)
    pools = [[image for image, label in zip(images, labels, strict=True) if label == digit] for digit in range(10)]
    wanted = sample_labels(config.sampling, 10)
    return np.stack([pools[label][i // 10 % len(pools[label])] for i, label in enumerate(wanted)])


def blurred(images: Images) -> Images:
    wide = np.pad(images.astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
    return np.mean([wide[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)], axis=0).astype(np.uint8)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """Sample sets of known quality, one per study, with the same dataset."""
    store = open_store(tmp_path_factory.mktemp("judged"))
    config = small_study()
    prepare.run(config, store)
    real = digits_for_labels(config)
    random = np.random.default_rng(0)
    sets = {
        "real": real,
        "blurred": blurred(real),
        "noise": random.integers(0, 256, real.shape, dtype=np.uint8),
        "mislabelled": np.roll(real, 1, axis=0),
    }
    records = {}
    for name, images in sets.items():
        own = small_study(f"study={name}")
        write_samples(store, own, images)
        records[name] = evaluate.run(own, store, VARIANT)[0]
    return store, records


def test_worse_images_have_a_larger_distance(judged: Judged) -> None:
    distances = {name: record.metrics["fd_digits"] for name, record in judged[1].items()}
    assert distances["real"].high < distances["blurred"].low
    assert distances["real"].high < distances["noise"].low
    assert distances["real"].value < 0.05 * distances["noise"].value


def test_the_noise_floor_is_far_above_real_digits(judged: Judged) -> None:
    floors = {record.noise_floor for record in judged[1].values()}
    assert len(floors) == 1
    assert floors.pop() > 10 * judged[1]["real"].metrics["fd_digits"].value


def test_precision_recall_and_label_accuracy_separate_the_defects(judged: Judged) -> None:
    values = {name: {key: each.value for key, each in record.metrics.items()} for name, record in judged[1].items()}
    assert set(values["real"]) == {
        "fd_digits",
        "fd_digits_infinity",
        "kd_digits",
        "precision",
        "recall",
        "label_accuracy",
    }
    assert values["real"]["precision"] == 1
    assert values["real"]["recall"] > 0.5
    assert values["noise"]["precision"] < 0.2
    assert values["real"]["label_accuracy"] > 0.97
    # Real images with wrong labels differ in label accuracy alone.
    assert values["mislabelled"]["label_accuracy"] < 0.1
    assert values["mislabelled"]["fd_digits"] == pytest.approx(values["real"]["fd_digits"], rel=1e-6)


def test_the_record_describes_the_evaluation(judged: Judged) -> None:
    store, records = judged
    record, config = records["real"], small_study("study=real")
    study_run = config.run(VARIANT)
    assert record.metric == "fd_digits"
    assert record.num_samples == 560
    assert record.sampling["steps"] == 5
    assert re.fullmatch(r"torch-fidelity [\d.]+ digits-cnn fp32, weights [0-9a-f]{8}", record.evaluator)
    assert record.reference == "digits, 1797 images"
    assert (record.parameters, record.gflops) == (
        study_run.spec.parameters(config.dataset.inputs),
        study_run.spec.gflops(config.dataset.inputs),
    )
    assert record.config_hash == config.evaluation_hash(study_run)
    assert len(record.replicates) == 40
    assert np.mean(record.replicates) == pytest.approx(record.metrics["fd_digits"].value)
    trained = read_record(store, layout.trained_extractor(config), ExtractorRecord)
    assert trained is not None
    assert trained.test_accuracy > 0.95
    assert trained.file.sha256 == record.extractor_sha256


def test_extractor_and_reference_are_made_once_and_shared(judged: Judged) -> None:
    store, records = judged
    names = [key.rpartition("/")[2] for key in store.list(layout.reference(small_study()))]
    kinds = sorted(name.split("-")[0] + "." + name.rpartition(".")[2] for name in names)
    assert kinds == ["extractor.json", "extractor.safetensors", "noise.json", "statistics.json", "statistics.npz"]
    assert len({(record.extractor_sha256, record.reference_sha256) for record in records.values()}) == 1


def test_tracked_points_have_the_protocol_in_their_name(judged: Judged) -> None:
    """Values of another protocol must not be in the same curve."""
    store, records = judged
    config = small_study("study=real")
    points = {point.key: (point.step, point.value) for point in read_points(config, store, config.run(VARIANT))}
    value = records["real"].metrics["fd_digits"]
    protocol = f"{layout.protocol(config.sampling)}_resamples-40"
    assert points[f"{protocol}/fd_digits"] == (STEP, value.value)
    assert points[f"{protocol}/fd_digits_low"] == (STEP, value.low)
    assert all(re.fullmatch(r"[A-Za-z0-9_./ -]+", key) for key in points)


def test_another_protocol_gives_points_of_another_name(judged: Judged) -> None:
    store = judged[0]
    plain = small_study("study=again", "evaluation.resamples=200")
    assert layout.metric(plain, "fd_digits") == f"{layout.protocol(plain.sampling)}/fd_digits"
    write_samples(store, plain, digits_for_labels(plain))
    for config in (plain, small_study("study=again", "evaluation.confidence=0.9", "evaluation.resamples=200")):
        study_run = config.run(VARIANT)
        record = evaluate.run(config, store, VARIANT)[0]
        points = {point.key: point.value for point in read_points(config, store, study_run)}
        assert points[layout.metric(config, "fd_digits_high")] == record.metrics["fd_digits"].high
        store.delete(layout.metrics(config, study_run, STEP))


def test_evaluating_again_gives_the_same_record_but_for_the_time_that_it_took(judged: Judged) -> None:
    store, records = judged
    config = small_study("study=real")
    store.delete(layout.metrics(config, config.run(VARIANT), STEP))
    [again] = evaluate.run(config, store, VARIANT)
    assert again.seconds
    assert again == records["real"].model_copy(update={"seconds": again.seconds})


@pytest.mark.parametrize("lost", ["statistics", "extractor"])
def test_a_reference_file_that_is_gone_is_made_again(
    judged: Judged, lost: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(judged[0].url.removeprefix("file://"), tmp_path / "root")
    store, config = open_store(tmp_path / "root"), small_study("study=real")
    for key in store.list(layout.reference(config)):
        if f"/{lost}" in key and not key.endswith(".json"):
            store.delete(key)
    store.delete(layout.metrics(config, config.run(VARIANT), STEP))
    record = evaluate.run(config, store, VARIANT)[0]
    assert re.search(rf"{lost}\S*: its file {lost}\S* is gone; making it again", capsys.readouterr().out)
    # The extractor is trained again, whose weights depend on the machine.
    expected = judged[1]["real"].model_copy(update={"seconds": record.seconds})
    assert lost == "extractor" or record == expected


def test_metrics_of_another_protocol_are_refused(judged: Judged) -> None:
    other = small_study("study=real", "evaluation.resamples=50")
    with pytest.raises(MismatchError, match=r"made with evaluation\.resamples=40 instead of 50; restore"):
        evaluate.run(other, judged[0], VARIANT)


def test_metrics_of_another_decoder_are_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path / "root")
    fill(store, study())
    other = study(overrides=(f"dataset.codec.weights={pretend_autoencoder(tmp_path / 'vae', b'other')}",))
    with pytest.raises(MismatchError, match=r"metrics/.*: decoded with decoder-of-the-test, this study .*; restore"):
        evaluate.run(other, store, "DiT-B/2")
    with pytest.raises(MismatchError, match="decoded with decoder-of-the-test"):
        unfinished(Work(other, store))


def test_a_missing_dataset_is_named(tmp_path: Path) -> None:
    config, store = small_study(), open_store(tmp_path)
    write_samples(store, config, np.zeros((560, 8, 8, 1), dtype=np.uint8))
    with pytest.raises(MissingError, match=r"manifest\.json.*dit prepare"):
        evaluate.run(config, store, VARIANT)


def test_a_set_of_one_sample_is_refused(tmp_path: Path) -> None:
    config, store = small_study("sampling.num_samples=1"), open_store(tmp_path)
    write_samples(store, config, np.zeros((1, 8, 8, 1), dtype=np.uint8))
    with pytest.raises(ConfigError, match=r"num_samples=1"):
        evaluate.run(config, store, VARIANT)


def test_a_damaged_sample_part_stops_the_evaluation(judged: Judged) -> None:
    config, store = small_study("study=damaged"), judged[0]
    manifest = write_samples(store, config, digits_for_labels(config))
    key = f"{layout.samples(config, config.run(VARIANT), STEP)}/{manifest.files[1].name}"
    store.write(key, store.read(key)[:-9] + b"x" * 9)
    with pytest.raises(DataError, match=r"part-00001\.npz"):
        evaluate.run(config, store, VARIANT)
    assert not store.exists(layout.metrics(config, config.run(VARIANT), STEP))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """A few pictures, samples of them by a random model, and randomly initialised InceptionV3 weights."""
    folder = tmp_path_factory.mktemp("pictures")
    weights = folder / "inception.pth"
    sha256 = save_inception(weights)
    base = folder_study(image_folder(folder / "images", per_class=3))
    config = load_text(
        base.to_yaml(),
        [
            "evaluation.at_steps=[4]",
            "evaluation.resamples=40",
            f"evaluation.extractor_weights={weights}",
            f"evaluation.extractor_sha256={sha256}",
            "sampling.num_samples=8",
            "sampling.steps=3",
            "fit.feature_batch=4",
            "tracking.kind=none",
        ],
    )
    store = open_store(folder / "root")
    prepare.run(config, store)
    write_checkpoint(store, config)
    sample.run(config, store, VARIANT)
    return store, config


@pytest.mark.slow
def test_inception_measures_colour_images_end_to_end(pictures: Pictures) -> None:
    store, config = pictures
    record = evaluate.run(config, store, VARIANT)[0]
    assert record.metric == "fid"
    assert set(record.metrics) == {"fid", "kid", "isc", "precision", "recall"}
    assert all(each.low <= each.value <= each.high for each in record.metrics.values())
    assert record.metrics["fid"].value > 0
    assert record.metrics["isc"].value >= 1
    assert record.reference == "pictures, 9 images"
    assert "inception-v3-compat fp32" in record.evaluator


@pytest.mark.slow
def test_adms_reference_is_read_and_its_images_serve_precision_and_recall(pictures: Pictures, tmp_path: Path) -> None:
    store, config = pictures
    plain = evaluate.run(config, store, VARIANT)[0]
    key = next(k for k in store.list(layout.reference(config)) if "statistics" in k and k.endswith(".json"))
    own = read_record(store, key, ReferenceRecord)
    assert own is not None
    with np.load(store.local(f"{layout.reference(config)}/{own.file.name}")) as arrays:
        mu, sigma = arrays["mu"], arrays["sigma"]
    images = np.stack([image for _, image, _ in iter_source_images(config)])
    results = {}
    for name, extra in {"with": {"arr_0": images}, "without": {}}.items():
        np.savez(tmp_path / f"{name}.npz", mu=mu, sigma=sigma, mu_s=mu[:5], sigma_s=sigma[:5, :5], **extra)
        adm = load_text(config.to_yaml(), [f"evaluation.reference={{kind: adm, path: {tmp_path}/{name}.npz}}"])
        # Both evaluations have the same key.
        store.delete(layout.metrics(config, config.run(VARIANT), STEP))
        results[name] = evaluate.run(adm, store, VARIANT)[0]
    store.delete(layout.metrics(config, config.run(VARIANT), STEP))
    assert results["with"].metrics["fid"].value == pytest.approx(plain.metrics["fid"].value, rel=1e-6)
    assert results["with"].metrics["precision"] == plain.metrics["precision"]
    assert results["with"].reference == "with.npz"
    assert set(results["without"].metrics) == {"fid", "isc"}


def test_an_invalid_adm_reference_is_refused_in_one_line(pictures: Pictures, tmp_path: Path) -> None:
    store, config = pictures
    np.savez(tmp_path / "other.npz", mean=np.zeros(3), arr_0=np.zeros(2))
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "array.npy", np.zeros(2048))
    np.savez(tmp_path / "nan.npz", mu=np.full(2048, np.nan), sigma=np.eye(2048))
    np.savez(tmp_path / "infinite.npz", mu=np.zeros(2048), sigma=np.full((2048, 2048), np.inf))
    refused = {
        "other.npz": r"has keys mean, arr_0; needed are mu \[2048\]",
        "text.npz": "is not an npz",
        "empty.npz": "is not an npz",
        "array.npy": "is not an npz",
        "nan.npz": "a mu or sigma that is not finite",
        "infinite.npz": "a mu or sigma that is not finite",
    }
    for name, message in refused.items():
        adm = load_text(config.to_yaml(), [f"evaluation.reference={{kind: adm, path: {tmp_path}/{name}}}"])
        with pytest.raises(InputError, match=rf"{name} .*{message}") as error:
            evaluate.check_files(adm, store)
        assert "\n" not in str(error.value)


def test_images_that_changed_since_the_preparation_are_refused(pictures: Pictures, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", per_class=3)
    config = load_text(pictures[1].to_yaml(), [f"dataset.source.path={folder}"])
    store = open_store(tmp_path / "root")
    prepare.run(config, store)
    write_samples(store, config, np.zeros((6, 16, 16, 3), dtype=np.uint8))
    picture(seed=7, width=50, height=40).save(folder / "class-1" / "new.png")
    with pytest.raises(MismatchError, match=r"dataset\.source: 10 images.*prepared from 9, source") as error:
        evaluate.run(config, store, VARIANT)
    assert "\n" not in str(error.value)
    assert not store.list(layout.reference(config))


def test_missing_inception_weights_are_refused_in_one_line(
    pictures: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, config = pictures
    bare = load_text(
        config.to_yaml(),
        ["evaluation.extractor_weights=null", "evaluation.extractor_sha256=null", "sampling.seed=8"],
    )
    sample.run(bare, store, VARIANT)
    before = store.list()
    (tmp_path / "study.yaml").write_text(bare.to_yaml())
    capsys.readouterr()
    assert run(["evaluate", str(tmp_path / "study.yaml"), "--root", store.url]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert re.fullmatch(r"dit: [^\n]+\n", errors)
    assert all(part in errors for part in (layout.INCEPTION_FILE, INCEPTION_SHA256, store.url, "extractor_weights"))
    assert store.list() == before
