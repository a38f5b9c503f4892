"""A run of a small study, as Kubeflow Pipelines reports it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pipelines.runs.model import Run, Task

TRAIN = "train mini-S/2"


NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
TITLES = {
    "merge": "merge",
    "prepare-part": "prepare 1/2",
    "prepare-part-10": "prepare 10/2",
    "prepare-part-2": "prepare 2/2",
    "report": "report",
    "train": TRAIN,
    "train-2": "train mini-B/2",
}


def run(state: str = "RUNNING", **states: str) -> Run:
    began = NOW - timedelta(minutes=3)
    tasks = tuple(Task(name.replace("_", "-"), value, began) for name, value in states.items())
    return Run("r", "r", state, tasks=tasks, titles=TITLES)
