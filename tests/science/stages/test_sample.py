"""The sample stage: the same images for every batch, process count and interruption, and its refusals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_fixtures import folder_study, pretend_autoencoder, save_autoencoder
from PIL import Image
from sample_fixtures import ROOT, STEP, VARIANT, small_study, write_checkpoint, write_samples
from study_records import fill_dataset
from torch import Tensor

from dit.cli.commands import run
from dit.codec.pixels import Pixels
from dit.codec.weights import decoder_at_hand
from dit.errors import DataError, DivergedError, InputError, MismatchError, MissingError
from dit.results.stages import Work
from dit.results.state import look, require
from dit.sampling.generate import Generator, untrained
from dit.sampling.sets import PART_IMAGES, SampleSet
from dit.stages import evaluate, prepare, sample
from dit.storage import Store, open_store
from dit.storage.file import FileStore
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import SampleSetManifest
from dit.study.study_file import load_text

Array = np.ndarray[Any, np.dtype[Any]]
CPU = torch.device("cpu")
Whole = tuple[Store, StudyConfig, SampleSetManifest]


def is_sampled(store: Store, config: StudyConfig) -> bool:
    samples = sample_set(store, config)
    return look(samples.work, samples.output).complete


def sample_set(store: Store, config: StudyConfig) -> SampleSet:
    return SampleSet(Work(config, store), config.run(VARIANT), STEP)


def images_of(store: Store, config: StudyConfig) -> tuple[Array, Array]:
    samples = sample_set(store, config)
    images, labels = zip(*samples.read(require(samples.work, samples.output)), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def fresh(folder: Path, config: StudyConfig, **checkpoint: Any) -> FileStore:
    store = FileStore(folder)
    write_checkpoint(store, config, **checkpoint)
    return store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A set drawn by one process without interruption."""
    config = small_study()
    store = fresh(tmp_path_factory.mktemp("whole"), config)
    return store, config, sample.run(config, store, VARIANT)[0]


def same(one: tuple[Array, Array], other: tuple[Array, Array]) -> bool:
    """Equal labels, and images that differ only by rounding of float errors."""
    difference = np.abs(one[0].astype(int) - other[0].astype(int))
    return np.array_equal(one[1], other[1]) and difference.max() <= 1 and (difference > 0).mean() < 0.001


def test_the_manifest_describes_the_set(whole: Whole) -> None:
    store, config, manifest = whole
    images, labels = images_of(store, config)
    assert images.shape == (560, 8, 8, 1)
    assert images.dtype == np.uint8
    assert labels.tolist() == [i % 10 for i in range(560)]
    assert (manifest.variant, manifest.step, manifest.num_samples) == (VARIANT, STEP, 560)
    assert len({image.tobytes() for image in images}) == 560
    assert len(manifest.latent_mean) == 1
    assert manifest.latent_std[0] > 0
    folder = layout.samples(config, config.run(VARIANT), STEP)
    assert sorted(entry.name for entry in manifest.files) == ["grid.png", *(f"part-0000{i}.npz" for i in range(3))]
    assert all(store.size(f"{folder}/{entry.name}") == entry.bytes for entry in manifest.files)
    with Image.open(store.local(layout.sample_grid(config, config.run(VARIANT), STEP))) as grid:
        assert grid.size[1] > grid.size[0] > 500


def all_is_noise(x_NCHW: Tensor, t_N: Tensor, y_N: Tensor) -> Tensor:  # noqa: ARG001
    """A denoiser that predicts its input as the noise, which gives samples of small values."""
    return torch.cat([x_NCHW, torch.zeros_like(x_NCHW)], dim=1)


def test_pixels_are_rounded_as_in_the_papers_code() -> None:
    """127.5 x + 128, clipped to [0, 255], truncated."""
    config = small_study()
    drawn = Generator(config, all_is_noise, Pixels(), CPU, 8).draw(range(20))
    expected = np.clip(127.5 * drawn.latents + 128, 0, 255).astype(np.uint8)
    assert np.array_equal(drawn.images, expected.transpose(0, 2, 3, 1))
    assert ((drawn.images > 0) & (drawn.images < 255)).mean() > 0.3


def test_samples_of_an_untrained_model_have_the_deviation_of_the_papers_code() -> None:
    """Latents of deviation about 218, the signature of weights that were never loaded (250 steps, 4 channels)."""
    config = small_study("sampling.steps=250")
    drawn = Generator(config, untrained, Pixels(), CPU, 100).draw(range(100))
    assert drawn.latents.std() == pytest.approx(218, rel=0.03)


@pytest.mark.parametrize("batch", [90, 560])
def test_any_batch_draws_the_same_images(tmp_path: Path, whole: Whole, batch: int) -> None:
    config = small_study(f"fit.sample_batch={batch}")
    store = fresh(tmp_path, config)
    manifest = sample.run(config, store, VARIANT)[0]
    assert same(images_of(store, config), images_of(*whole[:2]))
    assert manifest.latent_mean == pytest.approx(whole[2].latent_mean, rel=1e-4, abs=1e-4)
    assert manifest.latent_std == pytest.approx(whole[2].latent_std, rel=1e-4)


def test_a_smaller_set_has_the_first_images_of_a_larger_one(tmp_path: Path, whole: Whole) -> None:
    config = small_study("sampling.num_samples=30")
    store = fresh(tmp_path, config)
    sample.run(config, store, VARIANT)
    images, labels = images_of(*whole[:2])
    assert same(images_of(store, config), (images[:30], labels[:30]))


def launch(store: Store, config: StudyConfig, folder: Path, *more: str, ranks: int = 1) -> subprocess.Popen[str]:
    study = folder / "study.yaml"
    study.write_text(config.to_yaml())
    command = [sys.executable, "-m", "dit", "sample", str(study), "--variant", VARIANT, "--root", store.url, *more]
    if ranks > 1:
        command[1:3] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", "dit"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return output


@pytest.mark.slow
def test_two_processes_draw_the_same_images(tmp_path: Path, whole: Whole) -> None:
    config = small_study()
    store = fresh(tmp_path / "root", config)
    export = tmp_path / "adm.npz"
    output = finish(launch(store, config, tmp_path, "--step", str(STEP), "--export-adm", str(export), ranks=2))
    assert same(images_of(store, config), images_of(*whole[:2]))
    assert output.count(f"{export}: 560 images") == 1
    with np.load(export, allow_pickle=False) as arrays:
        assert arrays["arr_0"].shape == (560, 8, 8, 3)


def test_a_killed_launch_keeps_its_parts_and_the_next_draws_the_rest(tmp_path: Path) -> None:
    # Slow enough to be killed between two parts.
    config = small_study("sampling.steps=100")
    store = fresh(tmp_path / "root", config)
    folder = layout.samples(config, config.run(VARIANT), STEP)
    first = f"{folder}/{layout.sample_part_record(0)}"
    process = launch(store, config, tmp_path)
    while not store.exists(first) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not is_sampled(store, config)
    before = {key: store.read(key) for key in store.list(folder) if key.endswith(".json")}
    assert first in before

    sample.run(config, store, VARIANT)
    assert {key: store.read(key) for key in before} == before
    assert images_of(store, config)[0].shape == (560, 8, 8, 1)


@pytest.mark.parametrize("lost", ["part", "preview"])
def test_only_the_missing_files_of_a_complete_set_are_made_again(whole: Whole, lost: str, tmp_path: Path) -> None:
    _, config, manifest = whole
    shutil.copytree(whole[0].local_folder(""), tmp_path / "root")
    store = FileStore(tmp_path / "root")
    folder = layout.samples(config, config.run(VARIANT), STEP)
    other, gone = (f"{folder}/{layout.sample_part(number)}" for number in (0, 1))
    before = (tmp_path / "root" / other).stat().st_mtime_ns
    store.delete(gone if lost == "part" else layout.sample_grid(config, config.run(VARIANT), STEP))
    made = sample.run(config, store, VARIANT)[0]
    assert [file.sha256 for file in made.files] == [file.sha256 for file in manifest.files]
    assert (tmp_path / "root" / other).stat().st_mtime_ns == before


def test_parts_of_other_weights_are_drawn_again(tmp_path: Path) -> None:
    config = small_study()
    store = fresh(tmp_path, config, seed=1)
    sample.run(config, store, VARIANT)
    other = images_of(store, config)
    store.delete(f"{layout.samples(config, config.run(VARIANT), STEP)}/{layout.MANIFEST}")
    write_checkpoint(store, config, seed=0)
    manifest = sample.run(config, store, VARIANT)[0]
    assert not same(images_of(store, config), other)
    assert len(sample_set(store, config).finished_parts(manifest.checkpoint_sha256)) == 3


def test_a_missing_checkpoint_is_named_with_its_command(tmp_path: Path) -> None:
    config = small_study()
    store = fresh(tmp_path, config, step=2)
    fill_dataset(store, config)
    with pytest.raises(MissingError, match=rf"{VARIANT} has no complete checkpoint at step {STEP}.*: 2\).*dit train"):
        sample.run(config, store, VARIANT)


@pytest.mark.parametrize(("study", "variant"), [("digits", "mini-B/2"), ("other", VARIANT)])
def test_a_checkpoint_of_another_variant_or_study_is_refused_in_one_line(
    study: str, variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint in the folder of another variant or study, whose dataset is prepared."""
    mine, theirs = small_study(), small_study(f"study={study}", "train.steps=8")
    store = fresh(tmp_path / "root", mine)
    prepare.run(mine, store)
    capsys.readouterr()
    target = store.root / layout.checkpoint(theirs, theirs.run(variant), STEP)
    target.parent.mkdir(parents=True)
    (store.root / layout.checkpoint(mine, mine.run(VARIANT), STEP)).rename(target)
    before = store.list()
    (tmp_path / "study.yaml").write_text(theirs.to_yaml())
    for command in ("sample", "train"):
        assert run([command, str(tmp_path / "study.yaml"), "--variant", variant, "--root", store.url]) == 2
        output, errors = capsys.readouterr()
        named = rf"is a checkpoint of {VARIANT} in study digits, not of {variant} in {study}"
        assert output == ""
        assert re.fullmatch(rf"dit: [^\n]*{named}[^\n]*\n", errors)
        assert store.list() == before


def test_samples_of_another_recipe_are_refused(whole: Whole) -> None:
    other = small_study("train.learning_rate=0.5")
    with pytest.raises(MismatchError, match=r"made with train\.learning_rate=\S+ instead of 0\.5; restore"):
        sample.run(other, whole[0], VARIANT)


def decoded_study(weights: Path, *overrides: str) -> StudyConfig:
    """A study of 2x2 latents, with two parts of samples of one early checkpoint."""
    base = folder_study("unused", image_size=16, codec={"kind": "vae", "weights": str(weights)})
    own = (f"evaluation.at_steps=[{STEP}]", f"sampling.num_samples={PART_IMAGES + 2}", "sampling.steps=3")
    return load_text(base.to_yaml(), [*own, "tracking.kind=none", *overrides])


def test_samples_of_another_decoder_are_refused_whatever_its_path(tmp_path: Path) -> None:
    mse, ema = (pretend_autoencoder(tmp_path / name, name.encode()) for name in ("mse", "ema"))
    config, store = decoded_study(mse), FileStore(tmp_path / "root")
    manifest = write_samples(store, config, np.zeros((PART_IMAGES + 2, 16, 16, 3), dtype=np.uint8))
    other = decoded_study(mse, f"dataset.codec.decoder={ema}")
    theirs, ours = decoder_at_hand(config.dataset), decoder_at_hand(other.dataset)
    refused = rf"manifest\.json: decoded with {theirs}, this study decodes with {ours}; restore dataset\.codec"
    with pytest.raises(MismatchError, match=refused):
        sample.run(other, store, VARIANT)
    with pytest.raises(MismatchError, match=refused):
        evaluate.run(other, store, VARIANT)
    with pytest.raises(MismatchError, match=refused):
        sample.export_adm(other, store, VARIANT, STEP, tmp_path / "adm.npz")
    shutil.copytree(mse, tmp_path / "moved")
    assert sample.run(decoded_study(mse, f"dataset.codec.decoder={tmp_path / 'moved'}"), store, VARIANT) == [manifest]
    shutil.rmtree(mse)
    assert sample.run(config, store, VARIANT) == [manifest]


@pytest.mark.slow
def test_one_set_does_not_mix_two_decoders(tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        save_autoencoder(tmp_path / name, seed)
    config = decoded_study(tmp_path / "one")
    store = fresh(tmp_path / "root", config)
    samples = sample_set(store, config)
    complete = sample.run(config, store, VARIANT)[0]
    # As after an interrupt between the two parts.
    store.delete(f"{samples.folder}/{layout.MANIFEST}")
    store.delete(f"{samples.folder}/{layout.sample_part_record(1)}")
    with pytest.raises(MismatchError, match=r"part-00000\.json: decoded with AutoencoderKL"):
        sample.run(decoded_study(tmp_path / "one", f"dataset.codec.decoder={tmp_path / 'two'}"), store, VARIANT)
    assert not is_sampled(store, config)
    assert sample.run(config, store, VARIANT)[0].decoder == complete.decoder == samples.work.decoder


def test_samples_that_are_not_finite_raise_diverged_error(tmp_path: Path) -> None:
    config = small_study()
    store = fresh(tmp_path, config, scale=1e30)
    with pytest.raises(DivergedError, match="not finite"):
        sample.run(config, store, VARIANT)
    assert not is_sampled(store, config)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    config = small_study("sampling.num_samples=10")
    store = fresh(tmp_path, config)
    sample.run(config, store, VARIANT)
    key = f"{sample_set(store, config).folder}/{layout.sample_part(0)}"
    store.write(key, store.read(key)[:-1] + b"x")
    with pytest.raises(DataError, match=r"part-00000\.npz.*dit sample"):
        images_of(store, config)


def test_an_unwritable_store_is_refused_before_sampling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_study()
    store = fresh(tmp_path, config)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # The tests may run as root, who ignores permissions.
    monkeypatch.setattr("dit.storage.file.place_file", refuse)
    with pytest.raises(InputError, match="not writable"):
        sample.run(config, store, VARIANT)


def test_guidance_changes_the_samples_and_their_folder(tmp_path: Path) -> None:
    drawn = []
    for overrides in ((), ("sampling.cfg_scale=4.0",), ("sampling.sampler=ddim",)):
        config = small_study("sampling.num_samples=10", *overrides)
        store = fresh(tmp_path, config)
        sample.run(config, store, VARIANT)
        drawn.append(images_of(store, config)[0].tobytes())
    assert len(set(drawn)) == 3
    folders = {key.split("/")[5] for key in store.list("studies") if "/samples/" in key}
    assert len(folders) == 3


def test_the_adm_export_has_the_samples_in_order(tmp_path: Path, whole: Whole) -> None:
    store, config, _ = whole
    sample.export_adm(config, store, VARIANT, STEP, tmp_path / "adm.npz")
    images, labels = images_of(store, config)
    with np.load(tmp_path / "adm.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["arr_0"], images.repeat(3, axis=3))
        assert np.array_equal(arrays["arr_1"], labels)


def test_an_export_needs_a_complete_set(tmp_path: Path) -> None:
    config = small_study()
    fill_dataset(open_store(tmp_path), config)
    fresh(tmp_path, config)
    with pytest.raises(MissingError, match=f"dit sample.*--variant {VARIANT} --step {STEP}"):
        sample.export_adm(config, open_store(tmp_path), VARIANT, STEP, tmp_path / "adm.npz")


def test_part_records_add_up_to_the_manifest(whole: Whole) -> None:
    store, config, manifest = whole
    folder = layout.samples(config, config.run(VARIANT), STEP)
    records = [json.loads(store.read(f"{folder}/{layout.sample_part_record(part)}")) for part in range(3)]
    assert [record["count"] for record in records] == [PART_IMAGES, PART_IMAGES, 60]
    assert manifest.seconds == pytest.approx(sum(record["seconds"] for record in records))
