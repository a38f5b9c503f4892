"""Artifacts of a step for the UI of Kubeflow Pipelines: self-contained HTML and Markdown. Torch-free."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

from dit.claims.metric_names import interval, metric_name
from dit.claims.results import load_results
from dit.console import cell_text
from dit.console.formatting import format_count
from dit.storage import Store
from dit.study.config import StudyConfig
from dit.study.records import MetricsRecord


def page(grids: Sequence[tuple[str, bytes]]) -> str:
    """An HTML page of PNG images, given as (caption, content)."""
    figures = [
        f"<h2>{html.escape(caption)}</h2>\n"
        f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for caption, png in grids
    ]
    body = "\n".join(figures or ["<p>The store has no preview of these samples.</p>"])
    style = "body{font-family:sans-serif}img{max-width:100%}"
    return f'<!doctype html>\n<meta charset="utf-8">\n<style>{style}</style>\n{body}\n'


def metrics_table(run: str, records: Sequence[MetricsRecord]) -> str:
    """A run's metrics as a Markdown table, a row for each checkpoint."""
    first = records[0]
    names = [first.metric, *sorted({name for record in records for name in record.metrics} - {first.metric})]
    rows = [
        [
            format_count(record.step),
            *(interval(record.metrics[name]) if name in record.metrics else "" for name in names),
        ]
        for record in records
    ]
    note = f"{format_count(first.num_samples)} images a checkpoint; intervals of {first.confidence:.0%}."
    return f"## {run}\n\n{_table(['Step', *map(metric_name, names)], rows)}\n{note}\n"


def verdict_text(config: StudyConfig, store: Store) -> str:
    """The study's verdict and result table in Markdown."""
    # Loaded here: only the report's step needs it.
    from dit.report.tables import result_table

    results = load_results(config, store)
    claims = [
        f"{claim.number}. **{claim.reading}** {claim.statement}  \n   {claim.reason}\n"
        for claim in results.verdict.claims
    ]
    columns, rows = result_table(results, others=True)
    table = _table(columns, [[cell_text(cell) for cell in row] for row in rows])
    notes = "".join(f"\n{note}\n" for note in results.verdict.notes)
    return f"## Verdict at step {format_count(results.verdict.step)}\n\n{''.join(claims)}{notes}\n{table}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
