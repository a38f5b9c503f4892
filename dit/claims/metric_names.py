"""Labels of metrics and intervals in the terminal, the verdicts and the report."""

from __future__ import annotations

from dit.console.formatting import format_number
from dit.metrics.table import METRICS
from dit.study.records import Estimate


def metric_name(metric: str) -> str:
    """A metric's label, or its key if it is not in the table of metrics."""
    return METRICS[metric].label if metric in METRICS else metric


def interval(estimate: Estimate) -> str:
    """An estimate as `19.47 [18.93, 20.02]`."""
    return f"{format_number(estimate.value)} [{format_number(estimate.low)}, {format_number(estimate.high)}]"
