"""Checkpoints, sample sets and extractor weights that the sampling and evaluation tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from dit.metrics.frechet import FeatureSums, Gaussian
from dit.model.transformer import DiT
from dit.results.stages import Work
from dit.results.state import require
from dit.sampling.noise import sample_labels
from dit.sampling.sets import PART_IMAGES, Drawn, SampleSet
from dit.storage import Store, sha256_file, write_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import CheckpointMeta, SampleSetManifest
from dit.study.study_file import load

ROOT = Path(__file__).parents[1]
VARIANT = "mini-S/2"
STEP = 4
WEIGHTS_SHA256 = "c" * 64


def small_study(*overrides: str) -> StudyConfig:
    """The digits study with three parts of samples of one early checkpoint."""
    base = (
        "train.steps=4",
        f"evaluation.at_steps=[{STEP}]",
        "evaluation.resamples=40",
        f"sampling.num_samples={2 * PART_IMAGES + 60}",
        "sampling.steps=5",
        "fit.sample_batch=100",
        "tracking.kind=none",
    )
    return load(ROOT / "configs" / "digits.yaml", [*base, *overrides])


def write_checkpoint(store: Store, config: StudyConfig, seed: int = 0, step: int = STEP, scale: float = 1.0) -> None:
    """A complete checkpoint of a model with random weights everywhere, so that its output depends on all inputs."""
    run = config.run(VARIANT)
    model = DiT(run.spec, config.dataset.inputs)
    model.initialise(seed)
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.05 * scale, generator=random)
    folder = layout.checkpoint(config, run, step)
    data = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    meta = CheckpointMeta(
        study=config.study,
        variant=run.name,
        step=step,
        config_hash=config.training_hash(run),
        dataset_content=Work(config, store).dataset_content or "0" * 12,
        precision="fp32",
        world_size=1,
        code_version="test",
        finite=True,
        files=(store.write(f"{folder}/{layout.EMA_WEIGHTS}", data),),
    )
    write_record(store, f"{folder}/{layout.META}", meta)


def write_samples(
    store: Store, config: StudyConfig, images: np.ndarray[Any, np.dtype[np.uint8]], step: int = STEP
) -> SampleSetManifest:
    """A complete sample set that holds these images."""
    sample_set = SampleSet(Work(config, store), config.run(VARIANT), step)
    labels = sample_labels(config.sampling, config.dataset.classes)
    for part in sample_set.parts:
        held = sample_set.indices(part)
        chosen = images[held.start : held.stop]
        latents = chosen.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        sample_set.write_part(part, Drawn(chosen, latents, 1.0), labels[held.start : held.stop], WEIGHTS_SHA256)
    sample_set.write_manifest(sample_set.all_parts(WEIGHTS_SHA256), [])
    return require(sample_set.work, sample_set.output)


def gaussian_of(features_ND: torch.Tensor) -> Gaussian:
    sums = FeatureSums(features_ND.shape[1])
    sums.add(features_ND)
    return sums.gaussian()


def save_inception(path: Path) -> str:
    """Save randomly initialised weights of torch-fidelity's InceptionV3; returns the file's SHA-256."""
    import pytest

    from dit.metrics import torch_fidelity_api  # noqa: F401  (patches torchvision)

    from torch_fidelity import feature_extractor_inceptionv3 as inception  # isort: skip

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_, **__: None)
        model = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 4:
            # Keeps the scale of activations through a hundred ReLU layers.
            nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=random)
    torch.save(model.state_dict(), path)
    return sha256_file(path)
