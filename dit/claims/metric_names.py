"""How metrics are named and written: the same in the terminal, in the verdict's reasons and in the report."""

from __future__ import annotations

from dit.console.formatting import format_number
from dit.study.records import Estimate

_METRICS = {
    "fid": "FID",
    "fd_digits": "Fréchet distance (digits)",
    "isc": "Inception Score",
    "kid": "KID",
    "precision": "Precision",
    "recall": "Recall",
}


def metric_name(metric: str) -> str:
    """A metric's key as people call it."""
    return _METRICS.get(metric, metric)


def interval(estimate: Estimate) -> str:
    """`19.47 [18.93, 20.02]`."""
    return f"{format_number(estimate.value)} [{format_number(estimate.low)}, {format_number(estimate.high)}]"
