"""The steps of a run as people know them, out of the tasks and pods that each of them is made of. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from dit.errors import one_line
from pipelines.cluster.objects import Object, container_statuses, pod_name, pod_phase
from pipelines.cluster.pod_reason import why_pending
from pipelines.runs.model import FAILED, SUCCEEDED, Run, Task

CONTAINER = "main"
"""Where a step's own program runs."""
NODE = "workflows.argoproj.io/node-name"
"""On a pod, with the path of what it works on."""

_DRIVER = "-driver"
_OWN = "dit: "
# The programs around a step's own have the last words in its log.
_OF_LAUNCHER = re.compile(r"[IWEF]\d{4} |time=|Error: exit status|[\[\]{}\"]")
_ATTEMPT = re.compile(r"\(\d+\)")


def steps(run: Run) -> tuple[Task, ...]:
    """The steps in the order of the study, those that have not begun without a state."""
    tasks = {task.name: task for task in run.tasks}
    return tuple(
        replace(_step(tasks.get(name), tasks.get(name + _DRIVER)), name=title) for name, title in run.titles.items()
    )


def _step(task: Task | None, driver: Task | None) -> Task:
    """A driver decides what a step is given before the step itself begins, and can fail."""
    if driver is not None and (task is None or not task.state) and driver.state != SUCCEEDED:
        return driver
    return task or Task("", "")


def failures(run: Run) -> tuple[Task, ...]:
    """The steps that failed, not those that never began because of that."""
    return tuple(step for step in steps(run) if step.state == FAILED)


def title_of(run: Run, pod: Object) -> str | None:
    """The step that a pod works on; None for pods that serve the run as a whole."""
    node = str((pod["metadata"].get("annotations") or {}).get(NODE, ""))
    parts = _ATTEMPT.sub("", node).split(".")
    # workflow.root.TASK.executor, and workflow.root.TASK-driver
    return run.titles.get(parts[2].removesuffix(_DRIVER)) if len(parts) > 2 else None


def waiting(run: Run, pods: Iterable[Object]) -> dict[str, str]:
    """Step -> why its pod does not run, and what to do about it."""
    reasons = {}
    for pod in pods:
        title, reason = title_of(run, pod), why_pending(pod) if pod_phase(pod) == "Pending" else None
        if title and reason is not None:
            reasons[title] = str(reason)
    return reasons


def last_death(run: Run, title: str, pods: Iterable[Object]) -> tuple[str, str] | None:
    """(pod, what it said) of the newest pod of a step that failed; it may have said nothing."""
    dead = [pod for pod in pods if pod_phase(pod) == "Failed" and title_of(run, pod) == title]
    if not dead:
        return None
    newest = max(dead, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
    return pod_name(newest), _last_words(newest)


def _last_words(pod: Object) -> str:
    for status in container_statuses(pod):
        ended = status.get("state", {}).get("terminated") or {}
        if status["name"] == CONTAINER and ended:
            message = one_line(ended.get("message") or "")
            return message or ("" if ended.get("reason") == "Error" else f"{ended.get('reason')}")
    return one_line(pod["status"].get("message") or "")


def reason_in(log: str) -> str:
    """Why a step fails, among what its pod printed: its own line on that, else its last; empty where it has none."""
    lines = [line.strip() for line in log.splitlines()]
    own = [line.removeprefix(_OWN) for line in lines if line.startswith(_OWN)]
    others = [line for line in lines if line and not _OF_LAUNCHER.match(line)]
    return (own or others or [""])[-1]
