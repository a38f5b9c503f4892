"""The paper's numbers, as data: what a study on ImageNet is held beside and what its gates start from."""

from __future__ import annotations

from functools import cache
from importlib import resources

from pydantic import BaseModel, ConfigDict

from dit.study.records import ChannelStats


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PublishedModel(_Facts):
    """One of the paper's 12 models (Table 4)."""

    fid_400k: float
    """FID-50K after 400,000 steps under `Paper.fid_protocol`."""
    gflops: float
    parameters: int


class PublishedQuality(_Facts):
    """What XL/2 reached after 7 million steps at one guidance scale (Table 2)."""

    fid: float
    sfid: float
    inception_score: float
    precision: float
    recall: float


class PublishedLoss(_Facts):
    """Mean training loss (mse + vb) of XL/2 over the steps `first_step` to `last_step`."""

    first_step: int
    last_step: int
    loss: float


class Paper(_Facts):
    """Everything that `paper.json` holds; variants go by their names, such as `DiT-XL/2`."""

    source: str
    gflops_convention: str
    fid_protocol: str
    curve_note: str
    noise_note: str
    models: dict[str, PublishedModel]
    curves: dict[str, dict[int, float]]
    """Variant -> step -> FID without guidance, under `curve_note`."""
    noise_floor: float
    """FID of noise."""
    xl2_7m: dict[float, PublishedQuality]
    """Guidance scale -> what XL/2 reached."""
    seed_variance_400k: dict[str, tuple[float, ...]]
    """FID of repeated trainings: how far apart two seeds, or two frameworks, fall."""
    loss_gates: tuple[PublishedLoss, ...]
    no_spatial_structure_loss: float
    """A model above this loss has learned no more than the latents' mean and variance."""
    latents: ChannelStats
    """Of ImageNet's latents times 0.18215."""
    steps_per_second_8xa100_xl2: dict[str, float]
    """Precision -> training speed of the official code with its autoencoder on line."""


@cache
def paper() -> Paper:
    """The published numbers, read once."""
    text = resources.files("dit.study").joinpath("paper.json").read_text(encoding="utf-8")
    return Paper.model_validate_json(text)


def seed_note() -> str:
    """How far apart trainings of one model fall in the paper's setting, as one sentence."""
    repeats = "; ".join(
        f"{variant} {', '.join(f'{value:g}' for value in values)}"
        for variant, values in paper().seed_variance_400k.items()
    )
    return f"On ImageNet, 400,000 steps with another seed or framework gave FID of {repeats}."
