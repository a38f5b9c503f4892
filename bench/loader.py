"""Reading shards on one core, by webdataset's documented decoding and by ours, and the time until a run resumes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset

from bench.harness import Row
from dit.data.loader import BatchMaker
from dit.data.shard_set import ShardSet
from dit.data.shards import MOMENTS, ShardWriter
from dit.storage import Store, open_store, write_record
from dit.study import layout
from dit.study.config import StudyConfig, TrainConfig
from dit.study.records import ChannelStats, DatasetManifest, FileEntry, ShardRecord
from dit.study.study_file import load_text

BATCH = 256
CLASSES = 1000
SHARD = 4096
IMAGENET = 1_281_167
STUDY = """
study: bench
dataset:
  name: bench
  source: {kind: folder, path: unused}
  codec: {kind: vae, weights: unused}
  image_size: IMAGE_SIZE
  classes: 1000
variants: [mini-S/2]
train: {steps: 1}
evaluation: {at_steps: [1]}
"""


def measure(side: str, what: str) -> dict[str, Any]:
    """Samples per second of one side, or 1 / seconds until a run that resumes mid-epoch has its first batch."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    return _resume() if what == "resume" else _read(side, with_noise=what == "batches")


def _read(side: str, *, with_noise: bool) -> dict[str, Any]:
    """Read all samples of one shard of ImageNet-256 latents, in random order if the side supports it."""
    with _dataset(shards=1, latent=32) as (store, config):
        shards = ShardSet.open(store, config, show_progress=False)
        tar = store.local(f"{layout.dataset(config)}/{layout.shard(0)}")
        calls = {
            ("webdataset", False): lambda: _webdataset(tar),
            ("webdataset", True): lambda: _webdataset_batches(tar),
            ("ours", False): lambda: _ours(shards),
            ("ours", True): lambda: _our_batches(shards),
        }
        call = calls[side, with_noise]
        call()
        start = time.perf_counter()
        count = call()
        return {"rate": count / (time.perf_counter() - start)}


def _webdataset(tar: Path) -> int:
    return sum(1 for _ in _decoded(tar))


def _webdataset_batches(tar: Path) -> int:
    """The work of a training script: choose a view, sample its posterior, stack, draw noise and timesteps."""

    def draw(moments: np.ndarray) -> torch.Tensor:
        mean, log_variance = torch.from_numpy(moments[int(torch.rand(()) < 0.5)]).float().chunk(2)
        return (mean + (0.5 * log_variance).exp() * torch.randn_like(mean)) * 0.18215

    count = 0
    for latents, _ in _decoded(tar).map_tuple(draw).batched(BATCH):
        torch.randn_like(latents)
        torch.randint(0, 1000, (len(latents),))
        count += len(latents)
    return count


def _decoded(tar: Path) -> webdataset.WebDataset:
    return webdataset.WebDataset(str(tar), shardshuffle=False).decode().to_tuple("moments.npy", "cls")


def _ours(shards: ShardSet) -> int:
    random = np.random.default_rng(0)
    for _ in range(len(shards) // BATCH):
        shards.gather(random.integers(0, len(shards), BATCH), random.random(BATCH) < 0.5)
    return len(shards) // BATCH * BATCH


def _our_batches(shards: ShardSet) -> int:
    maker = BatchMaker(shards, TrainConfig(steps=1, global_batch=BATCH), rank=0, world_size=1)
    for step in range(len(shards) // BATCH):
        maker.batch(step + 1)
    return len(shards) // BATCH * BATCH


def _resume() -> dict[str, Any]:
    """Open the shards as after a restart, then make the first batch in the middle of an epoch of ImageNet's length."""
    with _dataset(shards=-(-IMAGENET // SHARD), latent=2) as (store, config):
        ShardSet.open(store, config, show_progress=False)
        start = time.perf_counter()
        shards = ShardSet.open(store, config, show_progress=False)
        opened = time.perf_counter()
        BatchMaker(shards, TrainConfig(steps=1, global_batch=BATCH), rank=0, world_size=1).batch(57_000)
        end = time.perf_counter()
        beside = {"open, s": f"{opened - start:.3f}", "first batch, s": f"{end - opened:.3f}"}
        return {"rate": 1 / (end - start), "beside": beside}


@contextmanager
def _dataset(shards: int, latent: int) -> Iterator[tuple[Store, StudyConfig]]:
    """A dataset of `shards` links to one shard of random moments."""
    config = load_text(STUDY.replace("IMAGE_SIZE", str(8 * latent)))
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="dit-bench-") as scratch:
        os.environ["DIT_CACHE"] = f"{scratch}/cache"
        store, folder = open_store(Path(scratch) / "root"), layout.dataset(config)
        path = Path(scratch) / "shard.tar"
        with ShardWriter(path, MOMENTS) as writer:
            for i in range(SHARD):
                moments = random.standard_normal((2, 8, latent, latent), np.float32).astype(np.float16)
                writer.add(f"class/{i:06d}", i % CLASSES, moments)
        tar = store.upload(path, f"{folder}/{layout.shard(0)}")
        index = store.write(f"{folder}/{layout.shard_index(0)}", writer.index().to_bytes())
        for name, number in product((layout.shard, layout.shard_index), range(1, shards)):
            first = store.local(f"{folder}/{name(0)}")
            os.link(first, first.with_name(name(number)))
        records = tuple(_record(number, tar, index) for number in range(shards))
        write_record(store, f"{folder}/{layout.MANIFEST}", _manifest(config, latent, records))
        yield store, config


def _record(number: int, tar: FileEntry, index: FileEntry) -> ShardRecord:
    return ShardRecord(
        name=layout.shard(number),
        bytes=tar.bytes,
        sha256=tar.sha256,
        index_sha256=index.sha256,
        count=SHARD,
        first_item=number * SHARD,
        items=SHARD,
        corrupt=(),
        label_counts=(),
        channel_sum=(),
        channel_square_sum=(),
        values_per_channel=0,
        source_sha256="",
        codec_sha256="random",
        config_hash="",
    )


def _manifest(config: StudyConfig, latent: int, records: tuple[ShardRecord, ...]) -> DatasetManifest:
    return DatasetManifest(
        name="bench",
        config_hash=config.dataset_hash(),
        source="folder",
        source_sha256="",
        codec="vae",
        codec_sha256="random",
        image_size=8 * latent,
        latent_channels=4,
        latent_size=latent,
        scale_factor=0.18215,
        classes=CLASSES,
        class_names=(),
        mirror=True,
        count=SHARD * len(records),
        corrupt=0,
        label_counts=(),
        latents=ChannelStats(mean=(), std=()),
        shards=records,
    )


def rows() -> list[Row]:
    """Reading alone, complete batches, and resuming, which webdataset does not support."""
    both = ("webdataset", "ours")
    return [
        Row(
            "Loader, read and decode, one core",
            "samples/s",
            __name__,
            {side: {"side": side, "what": "samples"} for side in both},
            target=20,
        ),
        Row(
            "Loader, batches with posterior draw and noise, one core",
            "samples/s",
            __name__,
            {side: {"side": side, "what": "batches"} for side in both},
        ),
        Row(
            "Loader, resume in an epoch of 1.28 million", "1/s", __name__, {"ours": {"side": "ours", "what": "resume"}}
        ),
    ]
