"""The report as one HTML file, which contains everything it needs and loads nothing.

html = render(results, load_evidence(results, store))
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from dit.claims.metric_names import metric_name
from dit.claims.results import Results
from dit.console import Cell, cell_text
from dit.console.formatting import format_count, format_number
from dit.health.summary import COLUMNS, headline, rows
from dit.report import plots
from dit.report.axes import Figure
from dit.report.evidence import Evidence, Grid
from dit.report.provenance import provenance
from dit.report.tables import Table, result_table, training_table
from dit.study.records import Claim

TEMPLATE = "report.html.j2"
_MARKS = {"supported": "✓", "contradicted": "✗", "undetermined": "?"}


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure with its heading and caption."""

    id: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True, slots=True)
class GridView:
    """A variant's preview at one step; `grid` is None if the store has none."""

    variant: str
    caption: str
    grid: Grid | None


def render(results: Results, evidence: Evidence) -> bytes:
    """The whole page, UTF-8."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = cell_text
    charts = _charts(results, evidence)
    page = environment.get_template(TEMPLATE).render(
        config=results.config,
        verdict=results.verdict,
        marks=_MARKS,
        metric=metric_name(results.verdict.metric),
        claims=[(claim, claim_table(claim)) for claim in results.verdict.claims],
        charts=charts,
        figures=script_json({chart.id: chart.figure for chart in charts}),
        grids=_grids(results, evidence),
        results_table=result_table(results, others=True),
        training_table=training_table(results),
        provenance=provenance(results, evidence),
        health=headline(evidence.health),
        health_table=(list(COLUMNS), rows(evidence.health)),
        study_yaml=results.config.to_yaml(),
        plotly=Markup(get_plotlyjs()),
    )
    return page.encode()


def script_json(value: Any) -> Markup:
    """JSON for a <script> element: without `<`, and with null for numbers that are not finite."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def claim_table(claim: Claim) -> Table | None:
    """A claim's numbers as columns and rows; None if it has none."""
    numbers = claim.numbers
    if "gflops" in numbers:
        fits = [numbers["gflops"], numbers["parameters"]]
        slopes = [f"{fit['slope']:.3f} [{fit['slope_low']:.3f}, {fit['slope_high']:.3f}]" for fit in fits]
        rows: list[list[Cell]] = [
            ["R²", *(fit["r2"] for fit in fits)],
            ["Leave-one-out error (log)", *(fit["loo_rmse"] for fit in fits)],
            ["Spearman's correlation", *(fit["spearman"] for fit in fits)],
            ["Exponent", *slopes],
        ]
        return ["Fit of the distance on", "log Gflops", "log parameters"], rows
    if pairs := numbers.get("pairs"):
        labels = {"as claimed": "apart, as claimed", "overlap": "overlap", "reversed": "apart, reversed"}
        return ["Should be better", "Should be worse", "Intervals"], [
            [_with_interval(pair["better"]), _with_interval(pair["worse"]), labels[pair["outcome"]]] for pair in pairs
        ]
    return None


def _with_interval(numbers: dict[str, Any]) -> str:
    value, low, high = (format_number(numbers[key]) for key in ("value", "low", "high"))
    return f"{numbers['variant']} {value} [{low}, {high}]"


def _charts(results: Results, evidence: Evidence) -> list[Chart]:
    step = format_count(results.verdict.step)
    bars = "Bars are the intervals in the table below."
    fit = " The dashed line is the fit of claim 3." if "gflops" in results.verdict.claims[2].numbers else ""
    beside = " Open markers are the paper's values at 400,000 steps." if plots.is_imagenet(results) else ""
    curves = " Open markers are the paper's curves; their evaluator gives values about 6 % lower." if beside else ""
    charts = [
        Chart(
            "gflops", "Against compute", f"At step {step}. {bars}{fit}{beside}", plots.against(results, plots.GFLOPS)
        ),
        Chart(
            "parameters",
            "Against parameters",
            f"The same points. One size at several patches has nearly equal parameters, but different values.{fit}",
            plots.against(results, plots.PARAMETERS),
        ),
        Chart("steps", "Over training", f"Every evaluated checkpoint.{curves}", plots.over_steps(results)),
    ]
    if evidence.losses:
        caption = "Loss during training; neighbouring points are averaged."
        charts.append(Chart("losses", "Training loss", caption, plots.losses(evidence.losses)))
    return charts


def _grids(results: Results, evidence: Evidence) -> list[tuple[int, list[GridView]]]:
    """(step, a view per variant) for every step with a preview."""
    views: dict[int, list[GridView]] = {}
    for variant, record in results.rows():
        estimate = record.metrics[record.metric]
        caption = f"{metric_name(record.metric)} {format_number(estimate.value)}"
        grid = evidence.grids.get((variant.spec.name, record.step))
        views.setdefault(record.step, []).append(GridView(variant.spec.name, caption, grid))
    return [(step, row) for step, row in sorted(views.items()) if any(view.grid for view in row)]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
