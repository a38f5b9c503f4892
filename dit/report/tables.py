"""Results as tables, for the terminal, the page and programs."""

from __future__ import annotations

import csv
import io
import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dit.claims.judged import primary
from dit.claims.metric_names import interval, metric_name
from dit.claims.results import Results, load_results
from dit.console import Cell, console, say, table
from dit.console.formatting import format_bytes, format_duration, format_number, format_rate
from dit.health.summary import Readings, headline, matrix, messages, readings
from dit.report.evidence import Evidence
from dit.storage import Store
from dit.study import layout
from dit.study.config import SamplingConfig, StudyConfig
from dit.study.records import CheckpointMeta, TrainRecord, Verdict
from dit.study.runs import Run
from dit.tracking.mlflow_ui import view_on_server

Table = tuple[list[str], list[list[Cell]]]

_STYLES = {"supported": "bold green", "contradicted": "bold red", "undetermined": "bold yellow"}


def result_table(results: Results, others: bool = False) -> Table:
    """Columns and rows, one row per run and checkpoint; with `others`, also the secondary metrics."""
    confidence = next(record.confidence for _, record in results.rows())
    metric = metric_name(results.verdict.metric)
    names = _secondary(results) if others else []
    columns = [*_run_columns(results), "Parameters", "Gflops", "Steps", "Images/s", metric]
    columns.append(f"{confidence:.0%} interval")
    rows: list[list[Cell]] = []
    for variant, record in results.rows():
        estimate = primary(record)
        span = f"{format_number(estimate.low)} to {format_number(estimate.high)}"
        rate = variant.train.images_per_second or None
        row = [*_run_cells(results, variant.run), record.parameters, record.gflops, record.step, rate]
        row += [estimate.value, span]
        secondary = [record.metrics.get(name) for name in names]
        rows.append([*row, *(other.value if other else None for other in secondary)])
    return columns + [metric_name(name) for name in names], rows


def variant_table(results: Results) -> Table:
    """Columns and rows, one row per variant: its metric over its seeds, with the interval, and each run's value."""
    confidence = next(record.confidence for _, record in results.rows())
    values: dict[str, list[str]] = defaultdict(list)
    for _, record in results.last():
        values[record.variant].append(format_number(primary(record).value))
    metric = metric_name(results.verdict.metric)
    rows: list[list[Cell]] = [
        [
            own.variant,
            len(own.seeds),
            own.value,
            f"{format_number(own.low)} to {format_number(own.high)}",
            ", ".join(values[own.variant]),
        ]
        for own in results.verdict.variants
    ]
    return ["Variant", "Seeds", metric, f"{confidence:.0%} interval", "Values of the runs"], rows


def training_table(results: Results) -> Table:
    """Columns and rows, one row per run: length, loss, speed and cost of its training."""
    columns = [*_run_columns(results), "Steps", "Final loss", "Images/s", "Time", "Peak memory", "Device", "Processes"]
    rows: list[list[Cell]] = []
    for variant in results.variants:
        train = variant.train
        row: list[Cell]
        if train.imported:
            row = [train.steps, None, None, None, None, "imported", None]
            rows.append([*_run_cells(results, variant.run), *row])
            continue
        spent, peak = format_duration(train.train_seconds), format_bytes(train.peak_memory_bytes)
        row = [train.steps, train.final_loss, train.images_per_second, spent, peak, train.device, train.world_size]
        rows.append([*_run_cells(results, variant.run), *row])
    return columns, rows


def protocol_table(results: Results) -> Table:
    """Columns and rows: metrics under every sampling protocol, at the steps that have several.

    A column for each key of `sampling` in which they differ.
    """
    steps, keys = {other.record.step for other in results.others}, differing_keys(results)
    own = [(variant.run, results.config.sampling, record) for variant, record in results.rows() if record.step in steps]
    measured = own + [(other.run, other.config.sampling, other.record) for other in results.others]
    order = {run: place for place, run in enumerate(results.config.runs)}
    measured.sort(key=lambda row: (order[row[0]], row[2].step, [str(getattr(row[1], key)) for key in keys]))
    names = sorted({name for *_, record in measured for name in record.metrics})
    rows: list[list[Cell]] = []
    for run, sampling, record in measured:
        values = [interval(each) if (each := record.metrics.get(name)) else None for name in names]
        protocol = [str(getattr(sampling, key)) for key in keys]
        rows.append([*_run_cells(results, run), record.step, *protocol, *values])
    return [*_run_columns(results), "Step", *keys, *(metric_name(name) for name in names)], rows


def differing_keys(results: Results) -> list[str]:
    """Keys of `sampling` in which the protocols of a study's results differ."""
    own = results.config.sampling.model_dump(mode="json")
    others = [other.config.sampling.model_dump(mode="json") for other in results.others]
    return [key for key in own if any(other[key] != own[key] for other in others)]


def protocol_label(sampling: SamplingConfig, keys: Sequence[str]) -> str:
    """A protocol in words that a study file uses: `cfg_scale 1.5`."""
    return ", ".join(f"{key} {getattr(sampling, key)}" for key in keys)


def runs_csv(results: Results, evidence: Evidence) -> bytes:
    """`runs.csv`: every number of every checkpoint, and the keys of its files.

    `images_per_second` and `train_seconds` cover the training up to the checkpoint. Both are empty if the store no
    longer has the checkpoint, the rate also if no logging window had ended. A study of several seeds has a column
    `seed`.
    """
    names = _secondary(results)
    seed = ["seed"] if _has_seeds(results) else []
    columns = [
        "study",
        "variant",
        *seed,
        "parameters",
        "gflops",
        "tokens",
        "step",
        "images_per_second",
        "train_seconds",
    ]
    columns += ["metric", "value", "low", "high", "confidence", "num_samples"]
    columns += [f"{name}{suffix}" for name in names for suffix in ("", "_low", "_high")]
    columns += ["checkpoint", "samples", "metrics_record"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    config = results.config
    for variant, record in results.rows():
        estimate = primary(record)
        run = variant.run
        trained = evidence.checkpoints.get((run.name, record.step))
        row: dict[str, object] = {
            "study": config.study,
            "variant": run.spec.name,
            "seed": run.seed,
            "parameters": record.parameters,
            "gflops": record.gflops,
            "tokens": run.spec.tokens(config.dataset.inputs),
            "step": record.step,
            "images_per_second": (trained and trained.images_per_second) or None,
            "train_seconds": trained and trained.train_seconds,
            "metric": record.metric,
            "value": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "confidence": record.confidence,
            "num_samples": record.num_samples,
            "checkpoint": layout.checkpoint(config, run, record.step),
            "samples": layout.samples(config, run, record.step),
            "metrics_record": layout.metrics(config, run, record.step),
        }
        for name in names:
            if other := record.metrics.get(name):
                row |= {name: other.value, f"{name}_low": other.low, f"{name}_high": other.high}
        writer.writerow(row)
    return text.getvalue().encode()


def say_trained(run: Run, record: TrainRecord | CheckpointMeta) -> None:
    """Print in one line the result of a training, or of its part up to a checkpoint."""
    if isinstance(record, TrainRecord):
        kept = ", ".join(map(str, record.checkpoints))
        if record.imported:
            say(f"{run.name}: imported, checkpoints at {kept}")
            return
        step, loss, at = record.steps, record.final_loss, f", checkpoints at {kept}"
    else:
        step, loss, at = record.step, record.loss, ""
    rate = format_rate(record.images_per_second, "images")
    say(f"{run.name}: trained to step {step}, loss {format_number(loss)}, {rate}{at}")


def show_results(config: StudyConfig, store: Store) -> None:
    """Print the study's results, its verdict, and the paths of the report."""
    results = load_results(config, store)
    table(*result_table(results), title=f"Study {config.study}")
    say()
    if results.over_seeds:
        table(*variant_table(results), title=f"Over seeds and samples, at step {results.verdict.step:,}")
        say()
    if line := headline(readings(config, store)):
        say(line)
        say()
    _show_verdict(results.verdict)
    say()
    folder = layout.report(config)
    for name in (layout.REPORT_PAGE, layout.REPORT_RUNS, layout.REPORT_VERDICT):
        say(f"{name:<13} {address(store, f'{folder}/{name}')}")
    if config.tracking.kind == "mlflow":
        root = shlex.quote(address(store, ""))
        say(f"MLflow        {view_on_server(config, store) or f'make ui ROOT={root}, or dit ui --root {root}'}")


def show_health(found: Readings) -> None:
    """Print the study's health: one line, the last reading of every check, and the whole message of each failure."""
    table(*matrix(found), title=headline(found))
    for message in messages(found):
        say(message)


def address(store: Store, key: str) -> str:
    """A key's path, relative to the current folder if it is below it, or its address in a remote store."""
    parts = urlsplit(store.url)
    if parts.scheme != "file":
        return f"{store.url}/{key}"
    path = Path(unquote(parts.path)) / key
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _show_verdict(verdict: Verdict) -> None:
    from rich.text import Text

    out = console()
    out.print(f"Verdict at step {verdict.step:,}")
    if verdict.headline:
        out.print(Text(verdict.headline, style="bold red"))
    for claim in verdict.claims:
        out.print(
            Text.assemble(f"{claim.number}. ", (claim.reading.upper(), _STYLES[claim.verdict]), f"  {claim.statement}")
        )
        if not verdict.headline:
            out.print(Text(f"   {claim.reason}"))
    for note in verdict.notes:
        out.print(Text(note, style="bold yellow" if note.startswith("Warning") else "dim"))


def _has_seeds(results: Results) -> bool:
    return len(results.config.train_seeds) > 1


def _run_columns(results: Results) -> list[str]:
    """The columns that name a run."""
    return ["Variant", "Seed"] if _has_seeds(results) else ["Variant"]


def _run_cells(results: Results, run: Run) -> list[Cell]:
    """A run's cells in `_run_columns`."""
    # A seed is a name, not a number to compare: as text it is not printed with the style of numbers.
    return [run.spec.name, str(run.seed)] if _has_seeds(results) else [run.spec.name]


def _secondary(results: Results) -> list[str]:
    return sorted({name for _, record in results.rows() for name in record.metrics} - {results.verdict.metric})
