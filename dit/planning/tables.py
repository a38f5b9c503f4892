"""The plan of a study as tables for the terminal: `dit plan`. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from dit.console import Cell, say, table
from dit.console.formatting import (
    format_bytes,
    format_disk,
    format_flops,
    format_hours,
    format_number,
    format_parameters,
)
from dit.planning.accelerators import CPU
from dit.planning.cost import Plan, VariantPlan, plan
from dit.planning.lines import say_wrapped
from dit.study.config import StudyConfig

Table = tuple[list[str], list[list[Cell]]]


def model_table(planned: Plan) -> Table:
    """Columns and rows: size and compute of every variant, and their sum."""
    columns = [
        "Variant",
        "Parameters",
        "Gflops",
        "GFLOPs",
        "Tokens",
        "Training FLOPs",
        "Memory",
        "Micro-batch",
        "Largest",
    ]
    rows: list[list[Cell]] = [_model_row(variant) for variant in planned.variants]
    total: list[Cell] = ["all", None, None, None, None, format_flops(2 * planned.training_macs)]
    return columns, [*rows, [*total, None, None, None]]


def hours_table(planned: Plan) -> Table:
    """Columns and rows: time of every stage, per variant and for all. GPU-hours are left out on a CPU."""
    columns = ["Variant", "Preparation", "Training", "Sampling", "Decoding", "Evaluation", "All"]
    rows = [
        _hours_row(planned, v.variant, (None, v.train_hours, v.sample_hours, v.decode_hours, v.evaluate_hours, v.hours))
        for v in planned.variants
    ]
    stages = (planned.train_hours, planned.sample_hours, planned.decode_hours, planned.evaluate_hours)
    rows.append(_hours_row(planned, "all", (planned.prepare_hours, *stages, planned.hours)))
    return [*columns, *([] if _on_cpu(planned) else ["GPU-hours"])], rows


def disk_table(planned: Plan) -> Table:
    """Columns and one row: disk of the store at the end of the study."""
    disk = planned.disk
    shards = None if disk.shards is None else format_disk(disk.shards)
    row: list[Cell] = [shards, format_disk(disk.checkpoints), format_disk(disk.samples), format_disk(disk.total)]
    return ["Shards", "Checkpoints", "Samples", "All"], [row]


def show_plan(config: StudyConfig) -> None:
    """Print what the study will cost."""
    planned = plan(config)
    where = f"{planned.count} CPU cores" if _on_cpu(planned) else f"{planned.count} x {planned.accelerator.name}"
    for made, title in (
        (model_table(planned), "Models and compute"),
        (hours_table(planned), f"Time on {where}"),
        (disk_table(planned), "Disk"),
    ):
        table(*made, title)
        say()
    for note in planned.notes:
        say_wrapped(note)


def _on_cpu(planned: Plan) -> bool:
    return planned.accelerator.name == CPU


def _model_row(variant: VariantPlan) -> list[Cell]:
    return [
        variant.variant,
        format_parameters(variant.parameters),
        format_number(variant.gflops),
        format_number(variant.true_gflops),
        variant.tokens,
        format_flops(variant.training_flops),
        format_bytes(variant.memory.total),
        variant.micro_batch if variant.fits else f"{variant.micro_batch} does not fit",
        variant.largest_micro_batch or "none",
    ]


def _hours_row(planned: Plan, name: str, hours: Sequence[float | None]) -> list[Cell]:
    cells: list[Cell] = [name, *(None if value is None else format_hours(value) for value in hours)]
    total = hours[-1]
    if not _on_cpu(planned) and total is not None:
        cells.append(format_hours(planned.count * total))
    return cells
