"""Small sources, autoencoders and studies that the data tests share."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from dit.data.merge import merge_shards
from dit.data.shards import MOMENTS, ShardWriter
from dit.storage import Store, write_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import ShardRecord, SourceRecord
from dit.study.study_file import load_text


def picture(seed: int, width: int, height: int) -> Image.Image:
    """A smooth colourful picture, different for every seed."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def image_folder(root: Path, classes: int = 3, per_class: int = 4, width: int = 50, height: int = 40) -> Path:
    """Class folders `class-0`.. of pictures, JPEG and PNG by turns."""
    for label in range(classes):
        folder = root / f"class-{label}"
        folder.mkdir(parents=True)
        for number in range(per_class):
            suffix = "JPEG" if number % 2 else "png"
            picture(100 * label + number, width, height).save(folder / f"picture_{number}.{suffix}")
    return root


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def lines_run(call: Callable[[], object]) -> int:
    """The lines of Python that a call runs: its cost, without a clock."""
    count = 0

    def trace(_frame: object, event: str, _argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def flip_bit(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def folder_study(path: Path | str, classes: int = 3, **dataset: Any) -> StudyConfig:
    """A study of pixels from an image folder; keyword arguments replace keys of its dataset section."""
    section = {
        "name": "pictures",
        "source": {"kind": "folder", "path": str(path)},
        "codec": {"kind": "pixels"},
        "image_size": 16,
        "classes": classes,
        "samples_per_shard": 4,
        **dataset,
    }
    return study(section)


def study(dataset: dict[str, Any], **train: Any) -> StudyConfig:
    tree = {
        "study": "small",
        "dataset": dataset,
        "variants": ["mini-S/2"],
        "train": {"steps": 10, "global_batch": 8, **train},
        "evaluation": {"at_steps": [10]},
        "fit": {"decode_batch": 3},
    }
    return load_text(yaml.safe_dump(tree))


def digits_study(samples_per_shard: int = 512, **train: Any) -> StudyConfig:
    """The digits, with another shard size or recipe."""
    dataset = {
        "name": "digits",
        "source": {"kind": "digits"},
        "codec": {"kind": "pixels", "channels": 1},
        "image_size": 8,
        "classes": 10,
        "mirror": False,
        "samples_per_shard": samples_per_shard,
    }
    return study(dataset, **train)


def save_autoencoder(path: Path, seed: int = 0, channels: tuple[int, ...] = (8, 8, 8, 8)) -> Any:
    """Save a randomly initialised AutoencoderKL with Stable Diffusion's four levels; returns it."""
    import torch

    from dit.runtime.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    levels = len(channels)
    model = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2 if channels[0] == 128 else 1,
        latent_channels=4,
        norm_num_groups=32 if channels[0] == 128 else 4,
    ).eval()
    model.save_pretrained(path)
    return model


def pretend_autoencoder(path: Path, weights: bytes) -> Path:
    """The files of an autoencoder that is told by its bytes and never loaded."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"block_out_channels": [8, 8, 8, 8]}))
    (path / "diffusion_pytorch_model.safetensors").write_bytes(weights)
    return path


def latent_study(samples_per_shard: int = 8, mirror: bool = True, **train: Any) -> StudyConfig:
    """A study of 2x2 latents in 3 classes, whose weights and images are never looked at."""
    dataset = {
        "name": "latents",
        "source": {"kind": "folder", "path": "unused"},
        "codec": {"kind": "vae", "weights": "unused"},
        "image_size": 16,
        "classes": 3,
        "mirror": mirror,
        "samples_per_shard": samples_per_shard,
    }
    return study(dataset, **train)


def write_latents(store: Store, config: StudyConfig, count: int) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Write a complete dataset of random posterior moments without an autoencoder; returns all moments in order."""
    dataset, folder = config.dataset, layout.dataset(config)
    shape = (count, 1 + dataset.mirror, 8, 2, 2)
    moments = np.random.default_rng(0).normal(0, 2, shape).astype(np.float16)
    source = SourceRecord(kind="folder", sha256="0" * 64, items=count, class_names=("a", "b", "c"))
    write_record(store, f"{folder}/{layout.SOURCE}", source)
    for number, first in enumerate(range(0, count, dataset.samples_per_shard)):
        held = range(first, min(first + dataset.samples_per_shard, count))
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / layout.shard(number)
            with ShardWriter(path, MOMENTS) as writer:
                for i in held:
                    writer.add(f"{'abc'[i % 3]}/{i}", i % 3, moments[i])
            data = writer.index().to_bytes()
            tar = store.upload(path, f"{folder}/{layout.shard(number)}")
        index = store.write(f"{folder}/{layout.shard_index(number)}", data)
        record = ShardRecord(
            name=layout.shard(number),
            bytes=tar.bytes,
            sha256=tar.sha256,
            index_sha256=index.sha256,
            count=len(held),
            first_item=first,
            items=len(held),
            corrupt=(),
            label_counts=tuple(sum(i % 3 == label for i in held) for label in range(3)),
            channel_sum=(0.0,) * 4,
            channel_square_sum=(1.0,) * 4,
            values_per_channel=4 * len(held),
            source_sha256=source.sha256,
            codec_sha256="1" * 64,
            config_hash=config.dataset_hash(),
        )
        write_record(store, f"{folder}/{layout.shard_record(number)}", record)
    merge_shards(config, store)
    return moments
