"""What a study took: hours, device-hours and FLOPs of its stages, from their records."""

from __future__ import annotations

from dataclasses import dataclass

from dit.claims.results import Results
from dit.console import Cell
from dit.console.formatting import format_flops, format_hours
from dit.planning import stages
from dit.planning.cost import FLOPS_PER_MAC, sampling_macs, training_macs
from dit.report.evidence import Evidence
from dit.report.tables import Table


@dataclass(frozen=True, slots=True)
class Cost:
    """One stage over all runs. None is unknown: the store has no record of it."""

    stage: str
    hours: float | None
    """Sum of wall hours, one run after another."""
    device_hours: float | None
    """The same, times the processes that shared the work."""
    flops: float
    """A multiply-accumulate counts as two."""


def costs(results: Results, evidence: Evidence) -> list[Cost]:
    """Training, sampling, evaluation and their sum, without the runs under other sampling protocols."""
    rows = [_training(results), _sampling(results, evidence), _evaluation(results)]
    wall, devices = (
        None if None in column else sum(value for value in column if value is not None)
        for column in zip(*((row.hours, row.device_hours) for row in rows), strict=True)
    )
    return [*rows, Cost("All", wall, devices, sum(row.flops for row in rows))]


def cost_table(results: Results, evidence: Evidence) -> Table:
    """Columns and rows, one row per stage."""
    unit = "CPU process-hours" if _on_cpu(results) else "GPU-hours"
    rows: list[list[Cell]] = [
        [cost.stage, _hours(cost.hours), _hours(cost.device_hours), format_flops(cost.flops)]
        for cost in costs(results, evidence)
    ]
    return ["Stage", "Hours", unit, "FLOPs"], rows


def _training(results: Results) -> Cost:
    config, records = results.config, [variant.train for variant in results.variants]
    macs = sum(training_macs(record.gflops, config.train.global_batch, record.steps) for record in records)
    seconds = sum(record.train_seconds for record in records)
    devices = sum(record.train_seconds * record.world_size for record in records)
    return Cost("Training", seconds / 3600, devices / 3600, FLOPS_PER_MAC * macs)


def _sampling(results: Results, evidence: Evidence) -> Cost:
    sampling, rows = results.config.sampling, list(results.rows())
    macs = sum(
        sampling_macs(record.gflops, record.num_samples, sampling.steps, sampling.cfg_scale)
        + stages.decoding_macs(results.config)
        for _, record in rows
    )
    sets = [evidence.samples.get((variant.run.name, record.step)) for variant, record in rows]
    devices = None if None in sets else sum(each.seconds for each in sets if each is not None) / 3600
    # A set's record has the sum over its processes; their number is known only where everything ran in one.
    alone = all(variant.train.world_size == 1 for variant in results.variants)
    return Cost("Sampling", devices if alone else None, devices, FLOPS_PER_MAC * macs)


def _evaluation(results: Results) -> Cost:
    records = [record for _, record in results.rows()]
    macs = sum(stages.feature_macs(results.config, record.num_samples) for record in records)
    spent = [(record.seconds, record.processes) for record in records]
    known = [(seconds, processes) for seconds, processes in spent if seconds is not None]
    if len(known) < len(spent):
        return Cost("Evaluation", None, None, FLOPS_PER_MAC * macs)
    wall, devices = sum(seconds for seconds, _ in known), sum(seconds * processes for seconds, processes in known)
    return Cost("Evaluation", wall / 3600, devices / 3600, FLOPS_PER_MAC * macs)


def _on_cpu(results: Results) -> bool:
    return all(variant.train.device.lower().startswith("cpu") for variant in results.variants)


def _hours(value: float | None) -> Cell:
    return None if value is None else format_hours(value)
