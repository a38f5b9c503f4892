"""Preparation in processes of its own (killed, with a full disk), and with an autoencoder."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_fixtures import folder_study, image_folder, save_autoencoder
from safetensors.torch import load_file, save_file
from training_processes import killed_after

from dit.data.loader import BatchMaker
from dit.data.measure import iter_latents
from dit.data.shard_set import ShardSet
from dit.errors import DataError, MismatchError
from dit.stages import prepare
from dit.storage import Store, open_store
from dit.study import layout
from dit.study.config import StudyConfig, TrainConfig


def start(
    tmp_path: Path,
    config: StudyConfig,
    root: Path,
    *options: str,
    environment: Mapping[str, str] | None = None,
    **more: Any,
) -> subprocess.Popen[str]:
    """`dit prepare` in a process of its own."""
    study = tmp_path / "study.yaml"
    study.write_text(config.to_yaml())
    command = [sys.executable, "-m", "dit", "prepare", str(study), "--root", str(root), *options]
    own = {"TMPDIR": tempfile.mkdtemp(dir=tmp_path), "OMP_NUM_THREADS": "1", **(environment or {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=os.environ | own, text=True, **pipes, **more)


def files(store: Store) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.list()}


def test_parallel_parts_and_a_killed_part_give_the_bytes_of_a_single_run(tmp_path: Path) -> None:
    config = folder_study(image_folder(tmp_path / "pictures", per_class=8), samples_per_shard=2)
    single, parted = open_store(tmp_path / "single"), open_store(tmp_path / "parted")
    killing = killed_after(tmp_path / "patch", layout.shard_record(0))
    killed, whole = (
        start(tmp_path, config, tmp_path / "parted", "--part", part, environment=environment)
        for part, environment in (("1/2", killing), ("2/2", None))
    )
    _, errors = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, errors
    _, errors = whole.communicate()
    assert whole.returncode == 0, errors
    records = [key for key in parted.list(layout.dataset(config)) if "shard-" in key and key.endswith(".json")]
    assert len(records) == 1 + 6
    assert prepare.run(config, parted) == prepare.run(config, single)
    assert files(parted) == files(single)


def test_full_disk_leaves_complete_shards_intact(tmp_path: Path) -> None:
    store = open_store(tmp_path / "root")
    config = folder_study(image_folder(tmp_path / "pictures"), samples_per_shard=6)
    prepare.run(config, store, (1, 2))
    before = files(store)
    # A limit on file sizes acts like a full disk; 8 KiB allow the check that the store is writable.
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (8192, 8192))
    process = start(tmp_path, config, tmp_path / "root", preexec_fn=limit)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert re.fullmatch(r"dit: [^\n]*free space there[^\n]*run again\n", errors)
    assert files(store) == before
    assert prepare.run(config, store) is not None


def vae_study(tmp_path: Path, weights: Path, **dataset: Any) -> StudyConfig:
    pictures = tmp_path / "pictures"
    if not pictures.exists():
        image_folder(pictures, per_class=2)
    codec = {"kind": "vae", "weights": str(weights), **dataset.pop("codec", {})}
    config = folder_study(pictures, image_size=32, codec=codec, **dataset)
    # Random weights do not give an image back.
    return config.model_copy(update={"health": {"codec": "warn"}})


def test_latents_of_a_full_size_autoencoder_reach_training(tmp_path: Path) -> None:
    model = save_autoencoder(tmp_path / "vae", channels=(128, 256, 512, 512))
    assert sum(parameter.numel() for parameter in model.parameters()) == 83_653_863
    store, config = open_store(tmp_path / "root"), vae_study(tmp_path, tmp_path / "vae")
    manifest = prepare.run(config, store)
    assert manifest is not None
    assert (manifest.count, manifest.latent_channels, manifest.latent_size) == (6, 4, 4)
    shards = ShardSet.open(store, config)
    moments, _ = shards.gather(np.repeat(np.arange(6), 2), np.tile([False, True], 6))
    assert (moments.shape, moments.dtype) == ((12, 8, 4, 4), np.float16)
    draws = []
    for step in range(1, 60):
        maker = BatchMaker(shards, TrainConfig(steps=60, global_batch=48), rank=0, world_size=1)
        draws.append(maker.batch(step).x0_NCHW)
    latents = torch.cat(draws).transpose(0, 1).flatten(1).double()
    assert np.allclose(manifest.latents.mean, latents.mean(dim=1), atol=0.01)
    assert np.allclose(manifest.latents.std, latents.std(dim=1), rtol=0.05)
    measured = np.concatenate([x for x, _, _ in iter_latents(config, store, manifest)])
    # One draw of one view of each image.
    assert np.allclose(manifest.latents.mean, measured.mean(axis=(0, 2, 3)), atol=0.08)
    assert np.allclose(manifest.latents.std, measured.std(axis=(0, 2, 3)), rtol=0.2)


def test_moments_that_are_not_finite_are_refused_with_the_images_names(tmp_path: Path) -> None:
    save_autoencoder(tmp_path / "vae")
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["quant_conv.weight"] *= 1e30
    save_file(weights, path)
    store, config = open_store(tmp_path / "root"), vae_study(tmp_path, tmp_path / "vae")
    with pytest.raises(DataError, match=r"class-\d/picture_\d.*not finite"):
        prepare.run(config, store)
    assert not [key for key in store.list() if "shard" in key]


def test_shards_of_two_autoencoders_do_not_mix(tmp_path: Path) -> None:
    for seed in (0, 1):
        save_autoencoder(tmp_path / f"vae-{seed}", seed=seed)
    store = open_store(tmp_path / "root")
    prepare.run(vae_study(tmp_path, tmp_path / "vae-0"), store, (1, 2))
    other = vae_study(tmp_path, tmp_path / "vae-1")
    prepare.run(other, store, (2, 2))
    with pytest.raises(MismatchError, match=r"different codec weights: .* made shard-0000"):
        prepare.merge(other, store)
