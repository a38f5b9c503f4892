"""A run's tasks, of which there are several for each step, as the steps that people know. Pure."""

from __future__ import annotations

from dataclasses import replace

from pipelines.runs import Run, Task

_FAILED = "FAILED"


def steps(run: Run) -> tuple[Task, ...]:
    """The steps in the order of the study, those that have not begun without a state."""
    own = {task.name: task for task in run.tasks}
    return tuple(
        replace(own.get(name, Task(name, "")), name=title, message=_message(run, own.get(name)))
        for name, title in run.titles.items()
    )


def failures(run: Run) -> tuple[Task, ...]:
    """The steps that failed, not those that never began because of that."""
    return tuple(step for step in steps(run) if step.state == _FAILED)


def _message(run: Run, task: Task | None) -> str:
    """What is said of a step, or of the pod within it that failed."""
    if task is None:
        return ""
    children = [one.message for one in run.tasks if one.parent == task.uid and one.message]
    return task.message or (children[-1] if children else "")
