"""The report as one HTML file, which contains everything it needs and loads nothing.

html = render(results, load_evidence(results, store))
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dit.claims.metric_names import interval, metric_name
from dit.claims.results import Results
from dit.console import Cell, cell_text
from dit.console.formatting import format_number
from dit.health.summary import COLUMNS, headline, matrix, rows
from dit.report.cost import cost_table
from dit.report.evidence import Evidence, Grid
from dit.report.forecast import forecasts
from dit.report.loss_chart import loss_ratios, training_losses
from dit.report.plots import GFLOPS, PARAMETERS, against, over_steps
from dit.report.provenance import provenance, terms
from dit.report.tables import (
    Table,
    differing_keys,
    protocol_label,
    protocol_table,
    result_table,
    training_table,
    variant_table,
)
from dit.sampling.grid import MAX_CLASS_ROWS
from dit.study import layout
from dit.study.paper import paper
from dit.study.records import Claim, Estimate
from dit.study.version import code_version

TEMPLATE = "report.html.j2"
_MARKS = {"supported": "✓", "contradicted": "✗", "undetermined": "?"}


@dataclass(frozen=True, slots=True)
class GridView:
    """A preview of the dataset or of a sample set; `grid` is None if the store has none."""

    name: str
    caption: str
    alternative: str
    """What the image shows, for readers who do not see it."""
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
    charts = [against(results, GFLOPS), against(results, PARAMETERS), over_steps(results)]
    if evidence.losses:
        charts.append(training_losses(evidence.losses))
    page = environment.get_template(TEMPLATE).render(
        config=results.config,
        verdict=results.verdict,
        paper=paper(),
        facts=_facts(results),
        terms=terms(results.config),
        marks=_MARKS,
        metric=metric_name(results.verdict.metric),
        claims=[(claim, claim_table(claim)) for claim in results.verdict.claims],
        charts=charts,
        grids=_grids(results, evidence),
        previews=evidence.previews,
        variant_table=variant_table(results) if results.over_seeds else None,
        results_table=result_table(results, others=True),
        protocol_table=protocol_table(results) if results.others else None,
        training_table=training_table(results),
        cost_table=cost_table(results, evidence),
        forecasts=forecasts(results, evidence),
        provenance=provenance(results, evidence),
        health=headline(evidence.health),
        sick=any(event.action == "stop" for _, event in evidence.health),
        health_matrix=matrix(evidence.health),
        health_table=(list(COLUMNS), rows(evidence.health)),
        health_charts=[loss_ratios(key, curves) for key, curves in evidence.ratios.items()],
        study_yaml=results.config.to_yaml(),
    )
    return page.encode()


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
        labels = {"as claimed": "as claimed", "undecided": "not clear", "reversed": "reversed"}
        return ["Should be better", "Should be worse", "Ratio, worse to better", "Order"], [
            [*(_with_interval(pair[side]) for side in ("better", "worse")), _ratio(pair), labels[pair["outcome"]]]
            for pair in pairs
        ]
    return None


def _ratio(pair: dict[str, Any]) -> str | None:
    return interval(Estimate.model_validate(pair["ratio"])) if pair["ratio"] else None


def _with_interval(numbers: dict[str, Any]) -> str:
    own = Estimate(value=numbers["value"], low=numbers["low"], high=numbers["high"])
    return f"{numbers['variant']} {interval(own)}"


def _grids(results: Results, evidence: Evidence) -> list[tuple[int, list[GridView]]]:
    """(step, previews of the dataset, and of every run and protocol) for every step with a preview.

    Of further seeds and other protocols only the judged step is shown: each preview adds to the page's size.
    """
    keys = differing_keys(results)
    measured = [(results.config, variant.run, record) for variant, record in results.rows()]
    measured += [(other.config, other.run, other.record) for other in results.others]
    first = {run.spec: run for run in reversed(results.config.runs)}
    views: dict[int, list[GridView]] = {}
    for config, run, record in measured:
        own = config is results.config
        if not (own and run == first[run.spec]) and record.step != results.verdict.step:
            continue
        estimate = record.metrics[record.metric]
        protocol = f", {protocol_label(config.sampling, keys)}" if keys else ""
        caption = f"{metric_name(record.metric)} {format_number(estimate.value)}{protocol}"
        grid = evidence.grids.get((run.name, record.step, layout.protocol(config.sampling)))
        alternative = f"Samples of {run.name} at step {record.step:,}{protocol}: {_rows(results)}"
        views.setdefault(record.step, []).append(GridView(run.name, caption, alternative, grid))
    real = GridView(
        "Real images", results.config.dataset.name, f"Images of the dataset: {_rows(results)}", evidence.real
    )
    shown = [(step, row) for step, row in sorted(views.items(), reverse=True) if any(view.grid for view in row)]
    if shown and evidence.real:
        shown[0][1].insert(0, real)  # once, because a preview can be large
    return shown


def _rows(results: Results) -> str:
    classes = results.config.dataset.classes
    return f"up to 8 of each of {classes} classes" if classes <= MAX_CLASS_ROWS else "64 images of random classes"


def _variants(results: Results) -> str:
    count, all_of_them = len(results.variants), len(results.config.runs)
    kind = "variants" if len(results.config.train_seeds) == 1 else "runs"
    shown = f"{all_of_them} {kind}" if count == all_of_them else f"{count} of {all_of_them} {kind}"
    return f"{shown} on {results.config.dataset.name}"


def _facts(results: Results) -> list[str]:
    """When, with which code and from which seeds the report was made."""
    config = results.config
    seeds = ", ".join(map(str, config.train_seeds))
    return [
        _variants(results),
        f"judged at step {results.verdict.step:,} by {metric_name(results.verdict.metric)}, lower is better",
        f"written {datetime.now(UTC):%Y-%m-%d} by dit-scaling {code_version()}",
        f"training seed{'s' if len(config.train_seeds) > 1 else ''} {seeds}, sampling seed {config.sampling.seed}",
    ]
