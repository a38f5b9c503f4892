"""Preparation of an image folder into shards: the complete stage, JPEG decoding alone, and the codec alone.

The autoencoder has Stable Diffusion's size and random weights. Pictures are generated JPEG files of 500 x 375 pixels,
the usual size in ImageNet.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.harness import Row
from dit.codec.open import open_codec
from dit.data.images import decode_image
from dit.runtime.device import tune_process
from dit.runtime.torchvision_shim import ensure_torchvision
from dit.stages import prepare
from dit.storage import open_store
from dit.study.config import DatasetConfig, StudyConfig

SIZE = 256
PICTURES = {"vae": 2, "pixels": 300}


def measure(codec: str, side: str) -> dict[str, Any]:
    """Images per second of the complete stage or of one part of it."""
    tune_process()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = _pictures(root / "images", PICTURES[codec])
        config = _config(root, codec)
        seconds = {
            "JPEG decode alone": _decode,
            "codec alone": _encode,
            "one by one": _one_by_one,
            "prepare": _prepare,
        }[side](files, config, root)
    return {"rate": len(files) / seconds}


def _config(root: Path, codec: str) -> StudyConfig:
    if codec == "vae":
        save_autoencoder(root / "vae")
    return StudyConfig.model_validate(
        {
            "study": "bench",
            "dataset": {
                "name": "bench",
                "source": {"kind": "folder", "path": str(root / "images")},
                "codec": {"kind": "vae", "weights": str(root / "vae")} if codec == "vae" else {"kind": "pixels"},
                "image_size": SIZE,
                "classes": 2,
            },
            "variants": ["DiT-S/2"],
            "train": {"steps": 1},
            "evaluation": {"at_steps": [1]},
        }
    )


def _decode(files: list[Path], _config: StudyConfig, _root: Path) -> float:
    start = time.perf_counter()
    for file in files:
        decode_image(file.read_bytes(), SIZE, 3, file.name)
    return time.perf_counter() - start


def _encode(files: list[Path], config: StudyConfig, _root: Path) -> float:
    codec = open_codec(config.dataset, "cpu", decoding=False, batch=config.fit.decode_batch)
    images = np.stack([decode_image(file.read_bytes(), SIZE, 3, file.name) for file in files])
    start = time.perf_counter()
    codec.encode(images, mirror=True)
    return time.perf_counter() - start


def _one_by_one(files: list[Path], config: StudyConfig, root: Path) -> float:
    """The plain loop: open, crop, encode the image and its mirror image, save."""
    dataset: DatasetConfig = config.dataset
    codec = open_codec(dataset, "cpu", decoding=False, batch=1)
    start = time.perf_counter()
    for file in files:
        image = decode_image(file.read_bytes(), SIZE, 3, file.name)[None]
        np.save(root / f"{file.stem}.npy", codec.encode(image, mirror=True))
    return time.perf_counter() - start


def _prepare(_files: list[Path], config: StudyConfig, root: Path) -> float:
    store = open_store(root / "store")
    start = time.perf_counter()
    prepare.run(config, store)
    return time.perf_counter() - start


def _pictures(folder: Path, count: int) -> list[Path]:
    random = np.random.default_rng(0)
    files = []
    for number in range(count):
        file = folder / f"class{number % 2}" / f"{number:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (15, 20, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(file, quality=90)
        files.append(file)
    return files


def save_autoencoder(folder: Path) -> None:
    """Save an autoencoder of Stable Diffusion's size with random weights, in diffusers' format."""
    ensure_torchvision()
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
    ).save_pretrained(folder)


def rows() -> list[Row]:
    """With the autoencoder, and with pixels, for which JPEG decoding is most of the work."""
    sides = ("one by one", "JPEG decode alone", "codec alone", "prepare")
    return [
        Row(
            f"preparation, 256 x 256, {codec}",
            "images/s",
            __name__,
            {side: {"codec": codec, "side": side} for side in sides},
        )
        for codec in PICTURES
    ]
