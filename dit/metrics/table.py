"""The table of metrics. A new metric is one row and the function that it names. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One number that describes a sample set."""

    name: str
    """Key in records, in runs.csv and on the tracking server."""
    label: str
    """Name in tables and charts."""
    lower_is_better: bool
    function: str
    """`module:function`, imported when a sample set is measured: (SampleFeatures) -> Measurement, or None if the metric
    is not defined for these samples."""
    extractor: str | None = None
    """The only extractor that the metric is defined for; None for any."""


FEATURES = {"inception": 2048, "digits": 64}
"""Extractor -> dimensions of its features."""
FEWEST_IMAGES = {"inception": 10_000, "digits": 320}
"""Extractor -> fewest images for a Fréchet distance that can be trusted: about five per dimension. The authors of FID
advise 10,000 at least (Heusel et al. 2017)."""

_FUNCTIONS = "dit.metrics.sample_metrics"
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("fid", "FID", True, f"{_FUNCTIONS}:frechet", "inception"),
        Metric("fd_digits", "Fréchet distance (digits)", True, f"{_FUNCTIONS}:frechet", "digits"),
        Metric("fid_infinity", "FID at infinite N", True, f"{_FUNCTIONS}:frechet_infinity", "inception"),
        Metric(
            "fd_digits_infinity",
            "Fréchet distance (digits) at infinite N",
            True,
            f"{_FUNCTIONS}:frechet_infinity",
            "digits",
        ),
        Metric("kid", "KID", True, f"{_FUNCTIONS}:kernel_distance", "inception"),
        Metric("kd_digits", "Kernel distance (digits)", True, f"{_FUNCTIONS}:kernel_distance", "digits"),
        Metric("isc", "Inception Score", False, f"{_FUNCTIONS}:inception_score", "inception"),
        Metric("label_accuracy", "Label accuracy", False, f"{_FUNCTIONS}:label_accuracy", "digits"),
        Metric("precision", "Precision", False, f"{_FUNCTIONS}:precision"),
        Metric("recall", "Recall", False, f"{_FUNCTIONS}:recall"),
    )
}
