"""A study's records as the stages before the report write them, with the paper's numbers as results."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from dit.storage import Store, write_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.paper import paper
from dit.study.records import CheckpointMeta, Estimate, MetricsRecord, SampleSetManifest, TrainRecord
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


def study(dataset: str = "pictures", classes: int = 10, overrides: tuple[str, ...] = ()) -> StudyConfig:
    return load_text(STUDY.format(dataset=dataset, classes=classes), overrides)


def train_record(config: StudyConfig, spec: ModelSpec) -> TrainRecord:
    return TrainRecord(
        study=config.study,
        variant=spec.name,
        steps=config.train.steps,
        config_hash=config.training_hash(spec),
        science_hash=config.science_hash(),
        dataset_content="content",
        parameters=spec.parameters(config.dataset.inputs),
        gflops=spec.gflops(config.dataset.inputs),
        checkpoints=config.evaluation.at_steps,
        final_loss=0.15,
        images_per_second=1234.5,
        train_seconds=7000.0,
        peak_memory_bytes=3 << 30,
        device="a device",
        world_size=8,
    )


def checkpoint_meta(config: StudyConfig, spec: ModelSpec, step: int) -> CheckpointMeta:
    return CheckpointMeta(
        study=config.study,
        variant=spec.name,
        step=step,
        config_hash=config.training_hash(spec),
        dataset_content="content",
        precision="tf32",
        world_size=8,
        code_version="version-of-the-test",
        finite=True,
        files=(),
        images_per_second=1000.0 + step / 10_000,
        train_seconds=7000.0 * step / config.train.steps,
    )


def metrics_record(config: StudyConfig, spec: ModelSpec, step: int, **changes: Any) -> MetricsRecord:
    value = paper().models[spec.name].fid_400k * (400_000 / step) ** 0.5
    noise = np.random.default_rng(0).standard_normal(100)
    fields: dict[str, Any] = {
        "study": config.study,
        "variant": spec.name,
        "step": step,
        "config_hash": config.evaluation_hash(spec),
        "science_hash": config.science_hash(),
        "dataset_content": "content",
        "metric": "fid",
        "metrics": {
            "fid": Estimate(value=value, low=0.98 * value, high=1.02 * value),
            "isc": Estimate(value=50.0, low=49.0, high=51.0),
        },
        "replicates": tuple(value * (1 + 0.01 * noise)),
        "confidence": 0.95,
        "num_samples": 50_000,
        "sampling": config.sampling.model_dump(),
        "decoder": "decoder-of-the-test",
        "evaluator": "evaluator-of-the-test",
        "reference": "reference-of-the-test",
        "reference_sha256": "4" * 64,
        "extractor_sha256": "5" * 64,
        "noise_floor": 309.0,
        "parameters": spec.parameters(config.dataset.inputs),
        "gflops": spec.gflops(config.dataset.inputs),
    }
    return MetricsRecord.model_validate(fields | changes)


def preview(shade: int, side: int = 16) -> bytes:
    image = io.BytesIO()
    Image.fromarray(np.full((side, side), shade, dtype=np.uint8)).save(image, "PNG")
    return image.getvalue()


def sample_set(config: StudyConfig, spec: ModelSpec, step: int) -> SampleSetManifest:
    return SampleSetManifest(
        study=config.study,
        variant=spec.name,
        step=step,
        config_hash=config.sampling_hash(spec),
        checkpoint_sha256="6" * 64,
        num_samples=50_000,
        image_size=256,
        channels=3,
        decoder="decoder-of-the-test",
        seconds=100.0,
        latent_mean=(0.0,),
        latent_std=(1.0,),
        files=(),
    )


def fill(store: Store, config: StudyConfig) -> None:
    """Everything that the stages before the report write, as far as it reads it."""
    for spec in config.specs:
        write_record(store, layout.train_record(config, spec), train_record(config, spec))
        with open_tracker(config, store, spec) as tracker:
            for step in range(100, 1000, 100):
                tracker.metrics(step, {"loss": 1 / step, "grad_norm": 1.0})
        for step in config.evaluation.at_steps:
            meta = f"{layout.checkpoint(config, spec, step)}/{layout.META}"
            write_record(store, meta, checkpoint_meta(config, spec, step))
            write_record(store, layout.metrics(config, spec, step), metrics_record(config, spec, step))
            folder = layout.samples(config, spec, step)
            write_record(store, f"{folder}/{layout.MANIFEST}", sample_set(config, spec, step))
            store.write(layout.sample_grid(config, spec, step), preview(100))


def read(store: Store, config: StudyConfig, name: str) -> str:
    return store.read(f"{layout.report(config)}/{name}").decode()
