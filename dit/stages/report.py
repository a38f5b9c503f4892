"""Report: judge the claims and write the report, for people (HTML) and for programs (CSV and JSON).

dit report configs/digits.yaml
"""

from __future__ import annotations

from dit.claims.results import Results, load_results
from dit.health.summary import headline, readings
from dit.report.evidence import load_evidence
from dit.report.tables import runs_csv
from dit.results.stages import REPORT, Work, report
from dit.results.state import look, say_complete
from dit.storage import Store, write_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import ReportRecord
from dit.tracking import collect, flush, open_tracker, reconcile

__all__ = ["load_results", "run"]


def run(config: StudyConfig, store: Store) -> ReportRecord:
    """Write `report/{report.html, runs.csv, verdict.json}`, unless complete, and log them to the study's run.

    Waits for the tracking server to receive everything that the study logged, up to a timeout. A variant that a health
    check stopped is left out, and the report names it.

    Raises UnhealthyError when health checks stopped all variants.
    Raises MissingError when a result is missing, naming the first variant and step.
    Raises MismatchError when results have another configuration or cannot be compared.
    """
    results = load_results(config, store)
    work = Work(config, store)
    output = report(work)
    done = look(work, output)
    if done.record is not None and done.complete:
        say_complete(REPORT)
        reconcile(config, store)
        return done.record
    pages = _pages(results, store)
    folder = layout.report(config)
    files = tuple(store.write(f"{folder}/{name}", data) for name, data in pages.items())
    collect(config, store, [variant.run for variant in results.variants])
    _track(config, store, results, pages)
    record = ReportRecord(study=config.study, config_hash=output.hash, files=files)
    write_record(store, layout.report_record(config), record)
    flush(config, store)
    return record


def _pages(results: Results, store: Store) -> dict[str, bytes]:
    from dit.report.page import render

    evidence = load_evidence(results, store)
    return {
        layout.REPORT_PAGE: render(results, evidence),
        layout.REPORT_RUNS: runs_csv(results, evidence),
        layout.REPORT_VERDICT: results.verdict.to_json(),
    }


def _track(config: StudyConfig, store: Store, results: Results, pages: dict[str, bytes]) -> None:
    with open_tracker(config, store, None) as tracker:
        tracker.tags({f"claim_{claim.number}": claim.reading for claim in results.verdict.claims})
        tracker.tags({"health": headline(readings(config, store))})
        for name, data in pages.items():
            tracker.artifact(name, data)
