"""Synthetic latents of 4 x 32 x 32 with the channel statistics of Stable Diffusion's autoencoder, as a dataset.

A latent is a Gaussian field with a 1/f spectrum, in an object and a background with different means, and a blob whose
place and channel depend on the class. Neighbours have a correlation of about 0.87.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dit.data.merge import merge_shards
from dit.data.shards import MOMENTS, ShardWriter
from dit.health.preparation import SD_MEAN, SD_STD
from dit.storage import Store, write_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import ShardRecord, SourceRecord

COUNT, CLASSES, SIDE, CHANNELS = 768, 10, 32, 4
PER_SHARD = 256
_LOG_VARIANCE = -8.0
"""Of the posterior: Stable Diffusion's encoder is nearly deterministic."""

STUDY = """\
study: latents
description: Synthetic latents with the statistics of Stable Diffusion's autoencoder.
dataset:
  name: latents
  source: {{kind: folder, path: {root}/images}}
  codec: {{kind: vae, weights: {root}/autoencoder}}
  image_size: 256
  classes: 10
  mirror: false
  samples_per_shard: 256
variants: [mini-S/2, mini-B/2, mini-L/2]
train: {{steps: 160, global_batch: 32, learning_rate: 2.5e-3, ema_decay: 0.97, precision: fp32}}
sampling: {{steps: 25, num_samples: 16, labels: balanced}}
evaluation: {{at_steps: [160]}}
fit: {{checkpoint_every: 1000, log_every: 20, sample_batch: 16}}
"""


def make(count: int = COUNT, seed: int = 0) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return unscaled latents [count, 4, 32, 32] and their labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None])
    frequency[0, 0] = 1 / SIDE
    white = np.fft.fft2(random.standard_normal((count, CHANNELS, SIDE, SIDE)))
    fields = np.fft.ifft2(white / frequency**1.3).real
    fields /= fields.std()
    rows, columns = np.mgrid[:SIDE, :SIDE]
    middle = random.uniform(10, 22, (count, 2, 1, 1))
    distance = np.hypot(rows - middle[:, 0], columns - middle[:, 1])
    inside = distance < random.uniform(6, 11, (count, 1, 1))
    means = random.normal(0, 0.7, (count, CHANNELS, 2, 1, 1))
    fields += np.where(inside[:, None], means[:, :, 0], means[:, :, 1])
    for label in range(CLASSES):
        place = 8 + 16 * (label // 4 % 2), 8 + 16 * (label // 8 % 2)
        blob = 4 * np.exp(-np.square(np.hypot(rows - place[0], columns - place[1]) / 6))
        fields[labels == label, label % CHANNELS] += blob
    mean, std = (fields_C.reshape(1, -1, 1, 1) for fields_C in (fields.mean((0, 2, 3)), fields.std((0, 2, 3))))
    target_mean, target_std = (np.array(values).reshape(1, -1, 1, 1) for values in (SD_MEAN, SD_STD))
    return ((fields - mean) / std * target_std + target_mean).astype(np.float32), labels


def write(store: Store, config: StudyConfig, *, damaged: bool = False) -> None:
    """Write the dataset as a preparation does; with `damaged`, some latents of its second shard are not numbers."""
    latents, labels = make()
    if damaged:
        latents[PER_SHARD : PER_SHARD + 4] = np.nan
    moments = np.concatenate([latents, np.full_like(latents, _LOG_VARIANCE)], axis=1)[:, None].astype(np.float16)
    folder, names = layout.dataset(config), tuple(str(label) for label in range(CLASSES))
    source = SourceRecord(kind="folder", sha256="0" * 64, items=COUNT, class_names=names)
    write_record(store, f"{folder}/{layout.SOURCE}", source)
    for number, first in enumerate(range(0, COUNT, PER_SHARD)):
        write_record(
            store,
            f"{folder}/{layout.shard_record(number)}",
            _write_shard(store, config, number, range(first, first + PER_SHARD), (moments, labels)),
        )
    merge_shards(config, store)


def _write_shard(
    store: Store, config: StudyConfig, number: int, held: range, data: tuple[npt.NDArray[Any], npt.NDArray[Any]]
) -> ShardRecord:
    moments, labels = data
    folder, name = layout.dataset(config), layout.shard(number)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / name
        with ShardWriter(path, MOMENTS) as writer:
            for i in held:
                writer.add(f"{i:05d}", int(labels[i]), moments[i])
        tar, index = store.upload(path, f"{folder}/{name}"), writer.index().to_bytes()
    entry = store.write(f"{folder}/{layout.shard_index(number)}", index)
    assert config.dataset.codec.kind == "vae"
    scaled = np.nan_to_num(moments[held.start : held.stop, 0, :CHANNELS].astype(np.float64))
    scaled *= config.dataset.codec.scale_factor
    over = (0, 2, 3)
    return ShardRecord(
        name=name,
        bytes=tar.bytes,
        sha256=tar.sha256,
        index_sha256=entry.sha256,
        count=len(held),
        first_item=held.start,
        items=len(held),
        corrupt=(),
        label_counts=tuple(np.bincount(labels[held.start : held.stop], minlength=CLASSES).tolist()),
        channel_sum=tuple(scaled.sum(axis=over).tolist()),
        channel_square_sum=tuple(np.square(scaled).sum(axis=over).tolist()),
        values_per_channel=len(held) * SIDE * SIDE,
        source_sha256="0" * 64,
        codec_sha256="1" * 64,
        config_hash=config.dataset_hash(),
    )


def save_autoencoder(folder: Path) -> None:
    """Save an untrained autoencoder of the right layout: sampling needs a decoder, whose images nobody looks at."""
    from dit.runtime.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=CHANNELS,
        norm_num_groups=4,
    )
    model.save_pretrained(folder)
    # diffusers writes more settings than those of the architecture; the study's scale factor is among them.
    assert json.loads((folder / "config.json").read_text())["scaling_factor"] == 0.18215
