"""Warnings beside a verdict. Torch-free."""

from __future__ import annotations

import math

from dit.claims.two_level import Runs, Spread
from dit.console.formatting import format_count
from dit.metrics.table import FEATURES, FEWEST_IMAGES
from dit.study.config import StudyConfig
from dit.study.paper import on_imagenet, seed_note
from dit.study.records import HealthEvent

SAMPLING_ONLY = (
    "The intervals cover the noise of sampling, a finite set of images. They do not cover the noise of training:"
    " another seed gives another model, so a verdict holds for this seed."
)
COVERS_BOTH = "The intervals cover the noise of sampling, a finite set of images, and of training, another seed."


def notes(config: StudyConfig) -> tuple[str, ...]:
    """What a reader has to know about the numbers of this study; may be empty."""
    seeds = (seed_note(),) if on_imagenet(config) else ()
    few = few_images(config)
    return (few, *seeds) if few else seeds


def scope(runs: Runs | None) -> tuple[str, ...]:
    """Which noise the intervals cover: sentences for a reader of the verdict."""
    if runs is None or not runs.covers_seeds:
        return (SAMPLING_ONLY,)
    spread = runs.within
    if not runs.several:
        return (f"{COVERS_BOTH} The study has one seed: {_spread(spread)} was given (evaluation.seed_spread).",)
    counts = sorted({runs.variants.count(name) for name in runs.names})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    measured = f"{COVERS_BOTH} From {seeds} seeds per variant, pooled over variants: {_spread(spread)}."
    ignored = "evaluation.seed_spread is not used, because this study measured the spread between its own seeds."
    return (measured, ignored) if runs.given else (measured,)


def _spread(spread: Spread) -> str:
    freedom = "" if math.isinf(spread.freedom) else f", {spread.freedom:.1f} degrees of freedom"
    return f"a standard deviation between seeds of {math.sqrt(spread.seed_variance):.3f} in the log metric{freedom}"


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
