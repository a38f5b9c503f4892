"""The plan of a study as tables for the terminal: `dit plan`. Torch-free."""

from __future__ import annotations

from dit.console import Cell, say, table
from dit.planning.accelerators import GIB
from dit.planning.cost import Plan, VariantPlan, plan
from dit.study.config import StudyConfig

_PLAN_COLUMNS = {
    "Variant": 0,
    "Parameters": 0,
    "Gflops": 0,
    "GFLOPs": 0,
    "Tokens": 0,
    "Training MACs": 0,
    "Training FLOPs": 0,
    "GiB each": 1,
    "Micro-batch": 1,
    "Largest": 1,
    "Training h": 1,
    "Training GPU-h": 1,
    "Sampling h": 1,
    "Sampling GPU-h": 1,
}
"""Column -> number of the printed table that has it."""


def plan_table(planned: Plan) -> tuple[list[str], list[list[Cell]]]:
    """Columns and rows, one row per variant and one for their sum; memory is that of one device, in GiB."""
    rows = [_plan_row(variant, planned.count) for variant in planned.variants]
    macs, train, sample = planned.training_macs, planned.train_hours, planned.sample_hours
    total: list[Cell] = ["all", None, None, None, None, f"{macs:.2e}", f"{2 * macs:.2e}", None, None, None]
    rows.append([*total, train, planned.count * train, sample, planned.count * sample])
    return list(_PLAN_COLUMNS), rows


def show_plan(config: StudyConfig) -> None:
    """Print what the study will cost."""
    planned = plan(config)
    columns, rows = plan_table(planned)
    titles = ("Models and compute", f"On {planned.count} x {planned.accelerator.name}")
    for part, title in enumerate(titles):
        chosen = [i for i, column in enumerate(columns) if i == 0 or _PLAN_COLUMNS[column] == part]
        table([columns[i] for i in chosen], [[row[i] for i in chosen] for row in rows], title)
        say()
    for note in planned.notes:
        say(note)


def _plan_row(variant: VariantPlan, count: int) -> list[Cell]:
    return [
        variant.variant,
        variant.parameters,
        variant.gflops,
        variant.true_gflops,
        variant.tokens,
        f"{variant.training_macs:.2e}",
        f"{variant.training_flops:.2e}",
        variant.memory.total / GIB,
        variant.micro_batch if variant.fits else f"{variant.micro_batch} does not fit",
        variant.largest_micro_batch or "none",
        variant.train_hours,
        count * variant.train_hours,
        variant.sample_hours,
        count * variant.sample_hours,
    ]
