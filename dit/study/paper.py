"""The paper's numbers (Peebles & Xie 2023) as data, to compare a study on ImageNet with."""

from __future__ import annotations

from functools import cache
from importlib import resources

from dit.study.config import StudyConfig
from dit.study.records import ChannelStats, FrozenModel


class PublishedModel(FrozenModel):
    """One of the paper's 12 models (Table 4)."""

    fid_400k: float
    """FID-50K after 400,000 steps under `Paper.fid_protocol`."""
    gflops: float
    parameters: int


class PublishedQuality(FrozenModel):
    """Metrics of DiT-XL/2 after 7 million steps at one guidance scale (Table 2)."""

    fid: float
    sfid: float
    inception_score: float
    precision: float
    recall: float


class PublishedLoss(FrozenModel):
    """Mean training loss (mse + vb) of DiT-XL/2 over the steps `first_step` to `last_step`."""

    first_step: int
    last_step: int
    loss: float


class Paper(FrozenModel):
    """The content of `paper.json`. Variants are keyed by name, such as `DiT-XL/2`."""

    citation: str
    url: str
    source: str
    gflops_convention: str
    fid_protocol: str
    curve_note: str
    noise_note: str
    models: dict[str, PublishedModel]
    curves: dict[str, dict[int, float]]
    """Variant -> step -> FID without guidance, measured as `curve_note` describes."""
    noise_floor: float
    """FID of noise."""
    xl2_7m: dict[float, PublishedQuality]
    """Guidance scale -> metrics of DiT-XL/2."""
    fid_by_images: dict[int, float]
    """Number of images -> FID of one model, as `fid_by_images_note` describes."""
    fid_by_images_note: str
    seed_variance_400k: dict[str, tuple[float, ...]]
    """Variant -> FIDs of trainings that differ in seed or framework only."""
    loss_gates: tuple[PublishedLoss, ...]
    no_spatial_structure_loss: float
    """A model above this loss has learned only the latents' mean and variance."""
    latents: ChannelStats
    """Statistics of ImageNet's latents times 0.18215."""
    steps_per_second_8xa100_xl2: dict[str, float]
    """Precision -> training speed of the official code, which encodes images during training."""


@cache
def paper() -> Paper:
    """The published numbers; the file is read once."""
    text = resources.files("dit.study").joinpath("paper.json").read_text(encoding="utf-8")
    return Paper.model_validate_json(text)


def on_imagenet(config: StudyConfig) -> bool:
    """Whether the study has the paper's dataset, metric and models, so that its values can be shown beside ours."""
    dataset = config.dataset
    named = dataset.name.startswith("imagenet") or dataset.classes == 1000
    return named and config.evaluation.metric == "fid" and any(spec.family == "DiT" for spec in config.specs)


def seed_note() -> str:
    """One sentence on how far FID differs between trainings of the same model in the paper's setting."""
    repeats = "; ".join(
        f"{variant} {', '.join(f'{value:g}' for value in values)}"
        for variant, values in paper().seed_variance_400k.items()
    )
    return f"On ImageNet, 400,000 steps with another seed or framework gave FID of {repeats}."
