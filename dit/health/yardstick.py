"""Check 15, `yardstick`: whether the evaluation can tell images of the dataset from noise."""

from __future__ import annotations

from dataclasses import dataclass

from dit.health.gate import Reading

IMAGES = 256
"""Real images that are measured like samples."""
_LARGEST_SHARE = 0.25


@dataclass(frozen=True)
class YardstickView:
    """Distances under a study's extractor and reference."""

    metric: str
    real: float
    """Of real images, as many as were measured."""
    expected: float
    """That as many images of the reference itself would have on average: the bias of few images."""
    noise_floor: float
    """Of an untrained model's samples."""


def yardstick(view: YardstickView | None) -> Reading | None:
    """Check that real images are far below the noise floor once the bias of few images is taken off.

    None without real images.
    """
    if view is None:
        return None
    share = max(0.0, view.real - view.expected) / max(view.noise_floor, 1e-12)
    bound = f"below {_LARGEST_SHARE:g} of the noise floor, {view.noise_floor:.4g}"
    if share < _LARGEST_SHARE:
        return Reading(share, bound)
    return Reading(
        share,
        bound,
        "stop",
        f"real images score {view.metric} {view.real:.4g} where {view.expected:.4g} is expected: reference or extractor"
        " is not the dataset's",
        "other images, another crop or size, or weights of another extractor",
        "check evaluation.reference and evaluation.extractor_weights",
    )
