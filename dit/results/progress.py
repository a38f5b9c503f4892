"""How far each stage of a study is. Torch-free."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dit.checkpoints.read import list_checkpoints
from dit.console.formatting import format_number
from dit.health.stragglers import slow_ranks
from dit.health.summary import RATIOS, stopped_by
from dit.planning.forecast import Points, forecast
from dit.results.stages import EVALUATE, PREPARE, REPORT, SAMPLE, TRAIN, Stage, Work
from dit.results.state import StageState, stage_state
from dit.storage import read_record
from dit.study import layout
from dit.study.records import DatasetManifest, MetricsRecord, RankProgress, SampleSetManifest, TrainRecord
from dit.study.runs import Run
from dit.tracking import read_points

LOSS = "loss"
_RANKS_SHOWN = 8


@dataclass(frozen=True)
class Measured:
    """A metric's newest value."""

    name: str
    step: int
    value: float


@dataclass(frozen=True)
class StageProgress:
    """How far one stage is, for one variant if it runs per variant."""

    name: str
    """Name of the step in the pipeline."""
    done: int
    total: int
    unit: str
    last: Measured | None = None
    seconds: float | None = None
    """Time that it took; None if the store does not have it."""
    stopped: str = ""
    """Which health check stopped it, and when; empty if none did."""
    ranks: tuple[RankProgress, ...] = ()
    """How far each rank of a training is; empty if there is none, or if it has ended."""
    outlook: str = ""
    """How good the training is now and at its end; empty if it cannot be forecast, or if it has ended."""

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.done >= self.total


def rank_progress(work: Work, run: Run) -> tuple[RankProgress, ...]:
    """The records of a training's ranks, in order; empty if there is none, or if it has ended.

    Raises MismatchError or DataError as `Record.from_json`.
    """
    keys = work.store.list(layout.ranks_progress(work.config, run))
    records = (read_record(work.store, key, RankProgress) for key in keys)
    return tuple(record for record in records if record is not None)


def pace_line(ranks: Sequence[RankProgress]) -> str:
    """One line: the seconds that each rank computes per step, and who holds up the others; empty for a single rank."""
    measured = [(record, record.own_seconds) for record in ranks if record.own_seconds is not None]
    if len(measured) < 2:
        return ""
    seconds = [own for _, own in measured]
    shown = [f"rank {record.rank} {format_number(own)}" for record, own in measured]
    if len(shown) > _RANKS_SHOWN:
        fastest, slowest = (shown[seconds.index(extreme)] for extreme in (min(seconds), max(seconds)))
        shown = [fastest, f"median {format_number(statistics.median(seconds))}", slowest]
    slow = ", ".join(f"rank {measured[index][0].rank} on {measured[index][0].host}" for index in slow_ranks(seconds))
    held = f"; the others wait for {slow}" if slow else ""
    return f"seconds of own computing per step: {', '.join(shown)}{held}"


def progress(work: Work) -> list[StageProgress]:
    """Every stage of a study, in order.

    Raises MismatchError when a record has another configuration, DataError when a record is damaged.
    """
    rows = [_prepared(work)]
    for run in work.config.runs:
        rows += _with_stop(work, run, [_trained(work, run), _sampled(work, run), _evaluated(work, run)])
    state = stage_state(REPORT, work)
    return [*rows, StageProgress(REPORT.name, state.done, 1, REPORT.unit)]


def _with_stop(work: Work, run: Run, rows: list[StageProgress]) -> list[StageProgress]:
    """The rows of a variant's stages; the first that is not complete has the check that stopped it."""
    left = next((place for place, row in enumerate(rows) if not row.complete), None)
    event = None if left is None else stopped_by(work.config, work.store, run)
    if left is not None and event is not None:
        rows[left] = replace(rows[left], stopped=f"stopped by {event.check} at step {event.step}")
    return rows


def _prepared(work: Work) -> StageProgress:
    state = stage_state(PREPARE, work)
    shards = sum(key.endswith(".tar") for key in work.store.list(layout.dataset(work.config)))
    if state.complete:
        shards = sum(len(record.shards) for record in state.records if isinstance(record, DatasetManifest))
    # The total is not known before the manifest is written, so at least one shard counts as left.
    return StageProgress(PREPARE.name, shards, shards if state.complete else shards + 1, PREPARE.unit)


def _trained(work: Work, run: Run) -> StageProgress:
    """Steps done: the last one that is checkpointed or has a logged loss."""
    name, total, state = TRAIN.step_name(run), work.config.train.steps, stage_state(TRAIN, work, run)
    for record in state.records:
        if isinstance(record, TrainRecord) and state.complete:
            return StageProgress(
                name, total, total, TRAIN.unit, Measured(LOSS, record.steps, record.final_loss), record.train_seconds
            )
    points = read_points(work.config, work.store, run)
    losses = [point for point in points if point.key == LOSS]
    newest = max(losses, key=lambda point: (point.step, point.time), default=None)
    saved = list_checkpoints(work.store, work.config, run)
    # A training without a record is not complete, even if its last step is logged.
    done = min(max([0, *saved, newest.step if newest else 0]), total - 1)
    shown = Measured(LOSS, newest.step, newest.value) if newest else None
    outlook = outlook_line([(point.step, point.value) for point in points if point.key == RATIOS[1]], total)
    return StageProgress(name, done, total, TRAIN.unit, shown, ranks=rank_progress(work, run), outlook=outlook)


def outlook_line(ratios: Points, last: int) -> str:
    """R_b now and at the end of the training, such as `R_b 0.62, 0.55 at 1500`; empty if it cannot be forecast."""
    points = sorted(ratios)
    made = forecast(points, last)
    return f"R_b {points[-1][1]:.2f}, {made.value:.2f} forecast at {last}" if made.value is not None else ""


def _sampled(work: Work, run: Run) -> StageProgress:
    state = stage_state(SAMPLE, work, run)
    seconds = sum(record.seconds for record in state.records if isinstance(record, SampleSetManifest))
    return _counted(SAMPLE, run, state, seconds=seconds if state.complete and seconds else None)


def _evaluated(work: Work, run: Run) -> StageProgress:
    state = stage_state(EVALUATE, work, run)
    measured = [record for record in state.records if isinstance(record, MetricsRecord)]
    last = measured[-1] if measured else None
    shown = Measured(last.metric, last.step, last.metrics[last.metric].value) if last else None
    return _counted(EVALUATE, run, state, last=shown)


def _counted(
    stage: Stage, run: Run, state: StageState, *, last: Measured | None = None, seconds: float | None = None
) -> StageProgress:
    return StageProgress(stage.step_name(run), state.done, len(state.findings), stage.unit, last, seconds)
