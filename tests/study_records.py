"""A study's records, with the files that they vouch for, as its stages write them; the results are the paper's."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from dit.results.stages import milestones
from dit.storage import Store, write_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.hashing import digest
from dit.study.paper import paper
from dit.study.records import (
    ChannelStats,
    CheckpointMeta,
    DatasetManifest,
    Estimate,
    FileEntry,
    MetricsRecord,
    RankProgress,
    SampleSetManifest,
    ShardRecord,
    TrainRecord,
)
from dit.study.runs import Run
from dit.study.study_file import load_text
from dit.study.variants import ModelSpec
from dit.tracking import open_tracker

STUDY = """
study: small
description: "Quotes \\" & <b>tags</b> </script><script>alert(1)</script>"
dataset:
  name: {dataset}
  source: {{kind: folder, path: images}}
  codec: {{kind: vae, weights: vae}}
  image_size: 256
  classes: {classes}
variants: [DiT-B/2, DiT-L/2, DiT-XL/2, DiT-XL/4]
train: {{steps: 400000}}
evaluation: {{at_steps: [100000, 400000]}}
tracking: {{kind: none}}
"""


SHARD = b"a shard"
CONTENT = digest([hashlib.sha256(SHARD).hexdigest()])
"""Of the dataset that `fill_dataset` writes."""


def study(dataset: str = "pictures", classes: int = 10, overrides: tuple[str, ...] = ()) -> StudyConfig:
    return load_text(STUDY.format(dataset=dataset, classes=classes), overrides)


def write_rank_progress(store: Store, config: StudyConfig, run: Run, seconds: Sequence[float]) -> None:
    """Of a training under way whose ranks need these seconds per step."""
    for rank, own in enumerate(seconds):
        record = RankProgress(
            rank=rank,
            world_size=len(seconds),
            host=f"w-{rank}",
            process=1,
            step=100,
            step_time=0.0,
            written=0.0,
            activity="ranks",
            own_seconds=own,
            step_seconds=max(seconds),
        )
        write_record(store, layout.rank_progress(config, run, rank), record)


def dataset_manifest(config: StudyConfig, files: Sequence[FileEntry] = ()) -> DatasetManifest:
    """Of a dataset whose shards are these files."""
    inputs, classes = config.dataset.inputs, config.dataset.classes
    shards = tuple(
        ShardRecord(
            name=file.name,
            bytes=file.bytes,
            sha256=file.sha256,
            index_sha256="",
            count=1,
            first_item=number,
            items=1,
            corrupt=(),
            label_counts=(1,) * classes,
            channel_sum=(),
            channel_square_sum=(),
            values_per_channel=1,
            source_sha256="",
            codec_sha256="",
            config_hash=config.dataset_hash(),
        )
        for number, file in enumerate(files)
    )
    return DatasetManifest(
        name=config.dataset.name,
        config_hash=config.dataset_hash(),
        source=config.dataset.source.kind,
        source_sha256="7" * 64,
        codec=config.dataset.codec.kind,
        codec_sha256="8" * 64,
        image_size=config.dataset.image_size,
        latent_channels=inputs.channels,
        latent_size=inputs.size,
        scale_factor=1.0,
        classes=classes,
        class_names=tuple(map(str, range(classes))),
        mirror=config.dataset.mirror,
        count=len(files),
        corrupt=0,
        label_counts=(1,) * classes,
        latents=ChannelStats(mean=(), std=()),
        shards=shards,
    )


def train_record(config: StudyConfig, run: Run, **changes: Any) -> TrainRecord:
    fields: dict[str, Any] = {
        "study": config.study,
        "variant": run.spec.name,
        "steps": config.train.steps,
        "config_hash": config.training_hash(run),
        "science_hash": config.science_hash(),
        "dataset_content": CONTENT,
        "parameters": run.spec.parameters(config.dataset.inputs),
        "gflops": run.spec.gflops(config.dataset.inputs),
        "checkpoints": milestones(config),
        "final_loss": 0.15,
        "images_per_second": 1234.5,
        "train_seconds": 7000.0,
        "peak_memory_bytes": 3 << 30,
        "device": "a device",
        "world_size": 8,
    }
    return TrainRecord.model_validate(fields | changes)


def checkpoint_meta(config: StudyConfig, run: Run, step: int, files: Sequence[FileEntry] = ()) -> CheckpointMeta:
    return CheckpointMeta(
        study=config.study,
        variant=run.spec.name,
        step=step,
        config_hash=config.training_hash(run),
        dataset_content=CONTENT,
        precision="tf32",
        world_size=8,
        code_version="version-of-the-test",
        finite=True,
        files=tuple(files),
        loss=0.15,
        images_per_second=1000.0 + step / 10_000,
        train_seconds=7000.0 * step / config.train.steps,
    )


def metrics_record(config: StudyConfig, run: Run | ModelSpec, step: int, **changes: Any) -> MetricsRecord:
    run = run if isinstance(run, Run) else Run(run, config.train.seed)
    model = paper().models.get(run.spec.name)
    value = (model.fid_400k if model else 10.0) * (400_000 / step) ** 0.5
    primary = config.evaluation.metric
    noise = np.random.default_rng(0).standard_normal(100)
    fields: dict[str, Any] = {
        "study": config.study,
        "variant": run.spec.name,
        "step": step,
        "config_hash": config.evaluation_hash(run),
        "science_hash": config.science_hash(),
        "dataset_content": CONTENT,
        "metric": primary,
        "metrics": {
            primary: Estimate(value=value, low=0.98 * value, high=1.02 * value),
            "isc": Estimate(value=50.0, low=49.0, high=51.0),
        },
        "replicates": tuple(value * (1 + 0.01 * noise)),
        "confidence": 0.95,
        "num_samples": 50_000,
        "sampling": config.sampling.model_dump(),
        "decoder": decoder(config),
        "evaluator": "evaluator-of-the-test",
        "reference": "reference-of-the-test",
        "reference_sha256": "4" * 64,
        "extractor_sha256": "5" * 64,
        "noise_floor": 309.0,
        "parameters": run.spec.parameters(config.dataset.inputs),
        "gflops": run.spec.gflops(config.dataset.inputs),
    }
    return MetricsRecord.model_validate(fields | changes)


def preview(shade: int, side: int = 16) -> bytes:
    image = io.BytesIO()
    Image.fromarray(np.full((side, side), shade, dtype=np.uint8)).save(image, "PNG")
    return image.getvalue()


def decoder(config: StudyConfig) -> str:
    return "pixels" if config.dataset.codec.kind == "pixels" else "decoder-of-the-test"


def sample_set(config: StudyConfig, run: Run, step: int, files: Sequence[FileEntry] = ()) -> SampleSetManifest:
    return SampleSetManifest(
        study=config.study,
        variant=run.spec.name,
        step=step,
        config_hash=config.sampling_hash(run),
        checkpoint_sha256="6" * 64,
        num_samples=50_000,
        image_size=256,
        channels=3,
        decoder=decoder(config),
        seconds=100.0,
        latent_mean=(0.0,),
        latent_std=(1.0,),
        files=tuple(files),
    )


def fill(store: Store, config: StudyConfig) -> None:
    """All records of the stages before the report, each with a file that it vouches for, and some losses."""
    fill_dataset(store, config)
    for run in config.runs:
        write_record(store, layout.train_record(config, run), train_record(config, run))
        with open_tracker(config, store, run) as tracker:
            for step in range(100, 1000, 100):
                tracker.metrics(step, {"loss": 1 / step, "grad_norm": 1.0})
        for step in milestones(config):
            folder = layout.checkpoint(config, run, step)
            weights = store.write(f"{folder}/{layout.EMA_WEIGHTS}", b"weights")
            write_record(store, f"{folder}/{layout.META}", checkpoint_meta(config, run, step, [weights]))
        for step in config.evaluation.at_steps:
            write_record(store, layout.metrics(config, run, step), metrics_record(config, run, step))
            folder = layout.samples(config, run, step)
            part = store.write(f"{folder}/{layout.sample_part(0)}", b"samples")
            grid = store.write(layout.sample_grid(config, run, step), preview(100))
            write_record(store, f"{folder}/{layout.MANIFEST}", sample_set(config, run, step, [part, grid]))


def fill_dataset(store: Store, config: StudyConfig, shard: bytes = SHARD) -> None:
    """A dataset of one shard with these bytes."""
    folder = layout.dataset(config)
    file = store.write(f"{folder}/{layout.shard(0)}", shard)
    store.write(f"{folder}/{layout.shard_index(0)}", b"index")
    write_record(store, f"{folder}/{layout.MANIFEST}", dataset_manifest(config, [file]))


def read(store: Store, config: StudyConfig, name: str) -> str:
    return store.read(f"{layout.report(config)}/{name}").decode()
