"""The report's forecasts: how each training would go on, beside what the same rule forecast of it earlier."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dit.claims.metric_names import metric_name
from dit.claims.results import Results
from dit.console import Cell
from dit.console.formatting import format_count, format_number
from dit.health.summary import RATIOS
from dit.planning.forecast import (
    FEWEST_CHECKPOINTS,
    SHARES,
    Forecast,
    Miss,
    Points,
    forecast,
    forecast_checkpoints,
    track_record,
)
from dit.report.evidence import Evidence
from dit.report.tables import Table

AHEAD = 2
"""The step that is forecast, as a multiple of the last."""


@dataclass(frozen=True, slots=True)
class ForecastView:
    """The report's section: tables with a sentence each."""

    tables: tuple[tuple[str, Table], ...]


def forecasts(results: Results, evidence: Evidence) -> ForecastView | None:
    """Forecasts of R_b and of the study's metric; None if there is nothing to forecast from."""
    metric = metric_name(results.verdict.metric)
    ahead = AHEAD * results.config.train.steps
    tables = [
        _ratio_table(evidence.ratios.get(RATIOS[1], {}), ahead),
        _metric_table(_measured(results), metric, results.config.evaluation.at_steps),
    ]
    shown = tuple(one for one in tables if one is not None)
    return ForecastView(shown) if shown else None


def _ratio_table(curves: Mapping[str, Points], ahead: int) -> tuple[str, Table] | None:
    records = {name: track_record(points) for name, points in curves.items()}
    if not any(records.values()):
        return None
    columns = ["Variant", "R_b", f"Forecast for step {format_count(ahead)}", *(f"From {share:.0%}" for share in SHARES)]
    rows: list[list[Cell]] = []
    for name, points in curves.items():
        misses = {miss.share: f"{miss.error:+.1%}" for miss in records[name]}
        end = records[name][0].measured if records[name] else points[-1][1]
        rows.append([name, format_number(end), _shown(forecast(points, ahead)), *map(misses.get, SHARES)])
    return (
        "R_b is the training's squared error over that of the best linear denoiser. Its forecast is a power law of the"
        " steps. The last columns are its track record: by how much forecasts of the end missed that had seen only this"
        f" share of the training. {_summary(records.values())}",
        (columns, rows),
    )


def _metric_table(points: Mapping[str, Points], metric: str, steps: Sequence[int]) -> tuple[str, Table] | None:
    if len(steps) < FEWEST_CHECKPOINTS:
        return None
    # As far as the last checkpoint is from the one before: a forecast that reached further was not tested.
    ahead = round(steps[-1] ** 2 / steps[-2])
    rows: list[list[Cell]] = [
        [name, format_number(row[-1][1]), _shown(forecast_checkpoints(row, ahead))] for name, row in points.items()
    ]
    return (
        f"{metric}, from the evaluated checkpoints: there is a forecast only where those before the last forecast the"
        " last.",
        (["Variant", metric, f"Forecast for step {format_count(ahead)}"], rows),
    )


def _measured(results: Results) -> dict[str, list[tuple[float, float]]]:
    """Variant -> (step, metric), a mean over the runs of the variant."""
    values: dict[str, dict[int, list[float]]] = {}
    for _, record in results.rows():
        value = record.metrics[record.metric].value
        if math.isfinite(value) and value > 0:
            values.setdefault(record.variant, {}).setdefault(record.step, []).append(value)
    return {
        name: [(step, statistics.geometric_mean(steps[step])) for step in sorted(steps)]
        for name, steps in values.items()
    }


def _shown(made: Forecast) -> str:
    return f"not forecast: {made.reason}" if made.value is None else format_number(made.value)


def _summary(records: Iterable[Sequence[Miss]]) -> str:
    """Median and largest miss of each share, over the variants."""
    rows = list(records)
    parts = []
    for share in SHARES:
        errors = [abs(miss.error) for misses in rows for miss in misses if miss.share == share]
        if errors:
            parts.append(f"{statistics.median(errors):.1%} from {share:.0%} (at most {max(errors):.1%})")
    return f"Median miss: {', '.join(parts)}."
