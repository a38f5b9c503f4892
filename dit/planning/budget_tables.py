"""What a budget can decide, as tables for the terminal: the second part of `dit plan`. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dit.console import Cell, say, table
from dit.console.formatting import format_count, format_disk, format_hours
from dit.planning.accelerators import CPU, machine
from dit.planning.budget import SURE, Cheapest, Cost, Decision, cheapest, cost_of, decisions, one_seed
from dit.planning.budget_notes import budget_notes, metric_label, shown_range
from dit.planning.claims import PlannedClaim, planned_claims
from dit.planning.cost import plan
from dit.planning.lines import say_wrapped
from dit.planning.prior import Prior
from dit.study.config import StudyConfig

Table = tuple[list[str], list[list[Cell]]]
SEEDS = (1, 2, 3, 5)
"""Numbers of seeds that a plan compares."""
_FAINT = 0.005
"""A probability that is shown as 0 %."""


def show_budget(config: StudyConfig, prior: Prior | str) -> None:
    """Print what the study's budget can decide, and the cheapest budget for each claim.

    A reason in place of `prior` is printed, with what to run to know it.
    """
    if isinstance(prior, str):
        say_wrapped(
            f"What this budget can decide is not known: {prior}. To know it, run this study or a shorter one of the"
            " same models, then plan again with its --root, and with --like STUDY for another study file."
        )
        return
    step = config.train.steps
    if prior.known_at(step, config.variants):
        seeds = sorted({*SEEDS, len(config.train_seeds)}) if prior.seeds else SEEDS[:1]
        table(*expected_table(config, prior), f"Expected {metric_label(config)}")
        say()
        title = f"Probability that {format_count(step)} steps support a claim, and the cost"
        table(*decision_table(config, decisions(config, prior, step, seeds), seeds), title)
        say()
    table(*cheapest_table(config, prior), f"Cheapest study that supports a claim with a probability of {SURE:.0%}")
    say()
    for line in budget_notes(config, prior):
        say_wrapped(line)


def expected_table(config: StudyConfig, prior: Prior) -> Table:
    """Columns and rows: the expected metric of every variant at the evaluated steps."""
    steps = sorted({*config.evaluation.at_steps, config.train.steps})
    images = config.sampling.num_samples
    rows: list[list[Cell]] = [
        [name, *(shown_range(prior.expected(name, step, images)) for step in steps)] for name in config.variants
    ]
    return ["Variant", *(f"Step {format_count(step)}" for step in steps)], rows


def decision_table(config: StudyConfig, rows: Sequence[Decision], seeds: Sequence[int]) -> Table:
    """Columns and rows: the probability of each claim for each number of seeds, and what these cost."""
    planned = plan(one_seed(config))
    costs = [cost_of(planned, count) for count in seeds]
    columns = ["Claim", *(f"{count} seed{'s' * (count > 1)}" for count in seeds)]
    return columns, [*(_decision_row(row, len(seeds)) for row in rows), *_cost_rows(config, costs)]


def cheapest_table(config: StudyConfig, prior: Prior) -> Table:
    """Columns and rows: the cheapest budget for each claim, with only the variants that it needs."""
    rows = [_cheapest_row(config, claim, cheapest(claim, config, prior)) for claim in planned_claims(config.specs)]
    unit = "Time" if machine(config).accelerator == CPU else "GPU-hours"
    price = [] if config.plan.price is None else ["Price"]
    return ["Claim", "Variants", "Steps", "Seeds", "Supported", unit, *price], rows


def _cheapest_row(config: StudyConfig, claim: PlannedClaim, found: Cheapest | None) -> list[Cell]:
    count = len(claim.variants)
    one_family = len({spec.family for spec in config.specs}) == 1
    names = [spec.name.removeprefix(f"{spec.family}-" if one_family else "") for spec in claim.variants]
    variants = f"all {count}" if count == len(config.specs) else ", ".join(names)
    price: list[Cell] = [] if config.plan.price is None else [None]
    if found is None:
        steps = "none is known" if claim.variants else None
        return [claim.label, variants or f"needs {claim.missing}", steps, None, None, None, *price]
    price = [_price(config, found.cost) for _ in price]
    row: list[Cell] = [claim.label, variants, format_count(found.steps), str(found.seeds)]
    return [*row, f"{found.outcome.supported:.0%}", _time(found.cost), *price]


def _decision_row(row: Decision, count: int) -> list[Cell]:
    if not row.outcomes:
        return [
            row.claim.label,
            f"needs {row.claim.missing}" if row.claim.missing else "not known",
            *[None] * (count - 1),
        ]
    cells = [
        f"{outcome.supported:.0%}" + (f" ({outcome.contradicted:.0%} against)" if outcome.contradicted > _FAINT else "")
        for outcome in row.outcomes
    ]
    return [row.claim.label, *cells]


def _cost_rows(config: StudyConfig, costs: Sequence[Cost]) -> Iterator[list[Cell]]:
    yield ["Time" if costs[0].device_hours is None else "GPU-hours", *map(_time, costs)]
    if config.plan.price is not None:
        yield ["Price", *(_price(config, cost) for cost in costs)]
    yield ["Disk", *(format_disk(cost.disk) for cost in costs)]


def _time(cost: Cost) -> str:
    return format_hours(cost.hours if cost.device_hours is None else cost.device_hours)


def _price(config: StudyConfig, cost: Cost) -> Cell:
    if config.plan.price is None or cost.device_hours is None:
        return None
    price = config.plan.price * cost.device_hours
    return f"{price:,.2f}" if price < 100 else format_count(round(price))
