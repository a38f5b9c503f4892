"""The table of `dit status`: a row per step, joined from the run, the jobs and the store. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from dit.console.formatting import format_duration, format_number, format_share
from dit.results.progress import StageProgress
from pipelines.jobs.snapshot import Snapshot
from pipelines.runs.model import Run, Task
from pipelines.runs.steps import steps

COLUMNS = ("step", "state", "job", "pods", "done", "newest", "time")
_MERGED = "merge"
"""The step that merges the parts of the preparation."""
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
    names = [name for task in tasks for name in (task.name, *_stages_of(task.name, order))] or order
    return [
        _row(
            name,
            next((task for task in tasks if task.name == name), None),
            next((job for job in jobs if job.step == name), None),
            next((stage for stage in stages if stage.name == _completes(name)), None),
            now,
        )
        for name in names
    ]


def _place(step: str, order: Sequence[str]) -> tuple[int, list[int]]:
    # Parts of the preparation are ordered by number, and the merge comes after them.
    stage = "prepare" if step == _MERGED or step.startswith("prepare ") else next(_stages_of(step, order), step)
    position = order.index(stage) if stage in order else len(order)
    return position, [int(step == _MERGED), *(int(digits) for digits in re.findall(r"\d+", step))]


def _stages_of(step: str, order: Sequence[str]) -> Iterator[str]:
    """The stages of the variant that a step runs as a whole; none for any other step."""
    variant = step.removeprefix(_WHOLE)
    return (stage for stage in order if variant != step and stage.endswith(f" {variant}"))


def _completes(step: str) -> str:
    """The stage that a step completes: a part of the preparation completes none."""
    return "prepare" if step == _MERGED else step


def _row(name: str, task: Task | None, job: JobView | None, stage: StageProgress | None, now: datetime) -> Row:
    state = task.state.lower() if task else ("complete" if stage.complete else stage.stopped) if stage else ""
    shown = job is not None and job.snapshot.job is not None
    return (
        name,
        state or None,
        f"{job.kind} {job.snapshot.phase.value}" if job and shown else None,
        f"{job.snapshot.running}/{job.wanted}" if job and shown and not job.snapshot.phase.ended else None,
        _done(stage),
        f"{stage.last.name} {format_number(stage.last.value)} at {stage.last.step}" if stage and stage.last else None,
        _time(task, stage, now),
    )


def _done(stage: StageProgress | None) -> str | None:
    if stage is None:
        return None
    if stage.name == "prepare" and not stage.complete:
        return f"{stage.done} {stage.unit}"
    return format_share(stage.done, stage.total, stage.unit)


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
