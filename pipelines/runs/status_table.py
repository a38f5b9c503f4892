"""The table of `dit status`: a row per step, joined from the run, the jobs and the store. Pure."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dit.console.formatting import format_duration, format_number, format_share
from dit.results.progress import StageProgress
from pipelines.jobs.snapshot import Snapshot
from pipelines.runs.model import RUNNING, Run, Task
from pipelines.runs.steps import steps

COLUMNS = ("step", "state", "job", "pods", "done", "newest", "time")
_MERGED = "merge"
"""The step that merges the parts of the preparation."""
_SHARE = re.compile(r" (\d+)/\d+$")
_WHOLE = "variant "
"""Begins the name of a step that runs all stages of one variant."""


@dataclass(frozen=True)
class JobView:
    """The job of one step."""

    step: str
    """Name of the step."""
    kind: str
    snapshot: Snapshot
    wanted: int
    """Number of pods that the job should have."""


Row = tuple[str | None, ...]


def rows(
    order: Sequence[str], stages: Sequence[StageProgress], jobs: Sequence[JobView], run: Run | None, now: datetime
) -> list[Row]:
    """A row for each step of the run, or without a run for each stage, in the order of the study's stages.

    Below a step that runs all stages of a variant there is a row for each of these.
    """
    tasks: tuple[Task, ...] = ()
    if run is not None:
        tasks = tuple(sorted(steps(run), key=lambda task: _place(task.name, order)))
    names = [task.name for task in tasks] or list(order)
    # Stages that no step of the run has by itself stand below the last step of their variant.
    for variant in dict.fromkeys(_variant(name) for name in names if name.startswith(_WHOLE)):
        last = max(place for place, name in enumerate(names) if _variant(name) == variant)
        names[last + 1 : last + 1] = [stage for stage in order if _variant(stage) == variant]
    shown = []
    for name in names:
        task = next((task for task in tasks if task.name == name), None)
        # The checkpoints of a variant take turns with one job for each stage: it is that of the step that runs.
        of = _completes(name) if task is not None and task.state == RUNNING else name
        job = next((job for job in jobs if job.step == of), None)
        stage = next((stage for stage in stages if stage.name == _completes(name)), None)
        shown.append(_row(name, task, job, stage, now))
    return shown


def _place(step: str, order: Sequence[str]) -> tuple[int, int, int]:
    """(where its variant begins, checkpoint, stage). The merge comes after the parts of the preparation."""
    if step == _MERGED or step.startswith("prepare "):
        return 0, sys.maxsize if step == _MERGED else _part(step), 0
    own = [place for place, stage in enumerate(order) if _variant(stage) == _variant(step)]
    stage = _completes(step)
    position = order.index(stage) if stage in order else len(order)
    return min(own, default=position) if _variant(step) else position, _part(step), position


def _part(step: str) -> int:
    """K of a step `... K/N`; 0 without."""
    found = _SHARE.search(step)
    return int(found[1]) if found else 0


def _variant(step: str) -> str:
    """The variant of a step `STAGE VARIANT` or `STAGE VARIANT K/N`; empty for a step of the whole study."""
    return _SHARE.sub("", step).partition(" ")[2]


def _completes(step: str) -> str:
    """The stage that a step works on: a part of the preparation completes none."""
    if step.startswith("prepare "):
        return step
    return "prepare" if step == _MERGED else _SHARE.sub("", step)


def _row(name: str, task: Task | None, job: JobView | None, stage: StageProgress | None, now: datetime) -> Row:
    state = task.state.lower() if task else ("complete" if stage.complete else stage.stopped) if stage else ""
    shown = job is not None and job.snapshot.job is not None
    return (
        name,
        state or None,
        f"{job.kind} {job.snapshot.phase.value}" if job and shown else None,
        f"{job.snapshot.running}/{job.wanted}" if job and shown and not job.snapshot.phase.ended else None,
        _done(stage),
        _newest(stage),
        _time(task, stage, now),
    )


def _done(stage: StageProgress | None) -> str | None:
    if stage is None:
        return None
    if stage.name == "prepare" and not stage.complete:
        return f"{stage.done} {stage.unit}"
    return format_share(stage.done, stage.total, stage.unit)


def _newest(stage: StageProgress | None) -> str | None:
    if stage is None or stage.last is None:
        return None
    newest = f"{stage.last.name} {format_number(stage.last.value)} at {stage.last.step}"
    return f"{newest}; {stage.outlook}" if stage.outlook else newest


def _time(task: Task | None, stage: StageProgress | None, now: datetime) -> str | None:
    if task is not None and task.started is not None:
        return format_duration(((task.ended or now) - task.started).total_seconds())
    return format_duration(stage.seconds) if stage and stage.seconds else None


def under_way(stages: Sequence[StageProgress], jobs: Sequence[JobView], run: Run | None) -> bool:
    """True if the run, a job or a stage has not ended."""
    if run is not None:
        return not run.over
    working = any(job.snapshot.job is not None and not job.snapshot.phase.ended for job in jobs)
    return working or (not jobs and any(not stage.complete for stage in stages))
