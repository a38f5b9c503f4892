"""The steps of a run, joined from their tasks and pods. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from dit.errors import one_line
from pipelines.cluster.objects import Object, container_statuses, pod_name, pod_phase
from pipelines.cluster.pod_reason import exit_cause, killed_by, why_pending
from pipelines.runs.model import FAILED, SUCCEEDED, Run, Task

CONTAINER = "main"
"""Container of a step's own program."""
NODE = "workflows.argoproj.io/node-name"
"""Annotation of a pod with the path of its task in the workflow."""

_DRIVER = "-driver"
_OWN = "dit: "
# The last line of a traceback of Python.
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit): ")
# Argo and the kfp launcher, which are written in Go, write the last lines of a step's log.
_GO_SIGNALS = {"killed": 9, "terminated": 15, "segmentation fault": 11, "aborted": 6, "bus error": 7}
_SIGNALLED = re.compile(rf"\bsignal: ({'|'.join(_GO_SIGNALS)})")
_ATTEMPT = re.compile(r"\(\d+\)")


def steps(run: Run) -> tuple[Task, ...]:
    """The steps in the order of the study; those that have not started have an empty state."""
    tasks = {task.name: task for task in run.tasks}
    return tuple(
        replace(_step(tasks.get(name), tasks.get(name + _DRIVER)), name=title) for name, title in run.titles.items()
    )


def _step(task: Task | None, driver: Task | None) -> Task:
    # A driver resolves the inputs of a step before the step starts, and can fail itself.
    if driver is not None and (task is None or not task.state) and driver.state != SUCCEEDED:
        return driver
    return task or Task("", "")


def failures(run: Run) -> tuple[Task, ...]:
    """The steps that failed, without those that did not start because of them."""
    return tuple(step for step in steps(run) if step.state == FAILED)


def title_of(run: Run, pod: Object) -> str | None:
    """The step that a pod belongs to; None for pods of the whole run."""
    node = str((pod["metadata"].get("annotations") or {}).get(NODE, ""))
    parts = _ATTEMPT.sub("", node).split(".")
    # workflow.root.TASK.executor, and workflow.root.TASK-driver
    return run.titles.get(parts[2].removesuffix(_DRIVER)) if len(parts) > 2 else None


def waiting(run: Run, pods: Iterable[Object]) -> dict[str, str]:
    """Step -> why its pod does not run, and the remedy."""
    reasons = {}
    for pod in pods:
        title, reason = title_of(run, pod), why_pending(pod) if pod_phase(pod) == "Pending" else None
        if title and reason is not None:
            reasons[title] = str(reason)
    return reasons


def last_death(run: Run, title: str, pods: Iterable[Object]) -> tuple[str, str] | None:
    """Name and last message of the newest failed pod of a step; the message may be empty. None if no pod failed."""
    dead = [pod for pod in pods if pod_phase(pod) == "Failed" and title_of(run, pod) == title]
    if not dead:
        return None
    newest = max(dead, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
    return pod_name(newest), _last_message(newest)


def _last_message(pod: Object) -> str:
    for status in container_statuses(pod):
        ended = status.get("state", {}).get("terminated") or {}
        if status["name"] == CONTAINER and ended:
            code, reason = int(ended["exitCode"]), str(ended.get("reason") or "")
            # kfp's launcher always exits with 1; the reason is in its log.
            return one_line(ended.get("message") or "") or ("" if code == 1 else exit_cause(code, reason))
    return one_line(pod["status"].get("message") or "")


def reason_in(log: str) -> str:
    """Why a step failed, from its log: its last error line, or else the signal that ended it; may be empty."""
    lines = [line.strip() for line in log.splitlines()]
    own = [line.removeprefix(_OWN) for line in lines if line.startswith(_OWN)]
    others = [line for line in lines if _EXCEPTION.match(line)]
    signals = [killed_by(_GO_SIGNALS[match[1]]) for line in lines if (match := _SIGNALLED.search(line))]
    return (own or signals or others or [""])[-1]
