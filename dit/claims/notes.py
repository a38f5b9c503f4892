"""Warnings beside a verdict. Torch-free."""

from __future__ import annotations

from dit.console.formatting import format_count
from dit.metrics.table import FEATURES, FEWEST_IMAGES
from dit.study.config import StudyConfig
from dit.study.paper import on_imagenet, seed_note
from dit.study.records import HealthEvent


def notes(config: StudyConfig) -> tuple[str, ...]:
    """What a reader has to know about the numbers of this study; may be empty."""
    seeds = (seed_note(),) if on_imagenet(config) else ()
    few = few_images(config)
    return (few, *seeds) if few else seeds


def left_out(config: StudyConfig, event: HealthEvent) -> str:
    """A warning that a run which a health check stopped is not judged."""
    what = "variant" if len(config.train_seeds) == 1 else "run"
    return f"Warning: the claims are judged without a {what} that a health check stopped. {event.message}"


def few_images(config: StudyConfig) -> str:
    """A warning if the sample sets are too small for a Fréchet distance; empty otherwise."""
    images, extractor = config.sampling.num_samples, config.evaluation.extractor
    fewest, dimensions = FEWEST_IMAGES[extractor], FEATURES[extractor]
    if images >= fewest:
        return ""
    return (
        f"Warning: every distance is from {format_count(images)} images, but its features have"
        f" {format_count(dimensions)} dimensions. So few images make it too large, by an unknown amount. Use"
        f" {format_count(fewest)} or more (sampling.num_samples)."
    )
