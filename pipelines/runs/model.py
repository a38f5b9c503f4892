"""Runs and compiled files of Kubeflow Pipelines, in the formats of its API. Does not import kfp."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from dit.errors import InputError, one_line

RUNNING, SUCCEEDED, FAILED = "RUNNING", "SUCCEEDED", "FAILED"
ENDED = frozenset({SUCCEEDED, FAILED, "CANCELED", "SKIPPED"})


@dataclass(frozen=True)
class Task:
    """One step of a run, or an internal part of a step."""

    name: str
    state: str
    """The server's word: RUNNING, SUCCEEDED ...; empty for a step that has not started."""
    started: datetime | None = None
    ended: datetime | None = None


@dataclass(frozen=True)
class Run:
    """A run at one moment."""

    uid: str
    name: str
    state: str
    created: datetime | None = None
    ended: datetime | None = None
    message: str = ""
    tasks: tuple[Task, ...] = ()
    titles: Mapping[str, str] = field(default_factory=dict)
    """Name of a step in the compiled file -> its display name, in the order of the file."""
    study: str = ""
    """The study's text, as it was submitted."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Values of the pipeline's parameters."""

    @property
    def over(self) -> bool:
        """True if the run has ended."""
        return self.state in ENDED


def load_package(package: Path, caching: bool = True) -> dict[str, Any]:
    """A compiled file in the format of the API; without `caching`, no step reuses an earlier run's result.

    Raises InputError when the file cannot be read or is not a compiled pipeline.
    """
    try:
        documents = list(yaml.safe_load_all(package.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{package}: {error.strerror or error}; run dit compile") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError(f"{package}: is not a compiled pipeline; run dit compile") from None
    spec, *platform = documents
    if not caching:
        for group in (spec["root"], *spec.get("components", {}).values()):
            for task in group.get("dag", {}).get("tasks", {}).values():
                task["cachingOptions"] = {}
    return {"pipeline_spec": spec, "platform_spec": platform[0]} if platform else dict(spec)


def run_of(answer: Any) -> Run:
    """Convert the API's object for a run."""
    details, spec = answer.run_details.task_details if answer.run_details else None, spec_of(answer.pipeline_spec)
    return Run(
        uid=str(answer.run_id),
        name=str(answer.display_name),
        state=str(answer.state or ""),
        created=_time(answer.created_at),
        ended=_time(answer.finished_at),
        message=one_line(answer.error.message) if answer.error and answer.error.message else "",
        tasks=tuple(_task(item) for item in details or []),
        titles={name: task.get("taskInfo", {}).get("name", name) for name, task in _tasks(spec).items()},
        study=next((text for task in _tasks(spec).values() if (text := _constant(task, "study"))), ""),
        parameters=_parameters(spec, answer.runtime_config),
    )


def spec_of(package: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The pipeline in a compiled file, without the settings for Kubernetes that may be beside it."""
    whole: Mapping[str, Any] = package or {}
    spec: Mapping[str, Any] = whole.get("pipeline_spec", whole)
    return spec


def _tasks(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    tasks: Mapping[str, Any] = spec.get("root", {}).get("dag", {}).get("tasks", {})
    return tasks


def _constant(task: Mapping[str, Any], name: str) -> str:
    given = task.get("inputs", {}).get("parameters", {}).get(name, {})
    return str(given.get("runtimeValue", {}).get("constant", ""))


def _parameters(spec: Mapping[str, Any], runtime: Any) -> dict[str, Any]:
    known = spec.get("root", {}).get("inputDefinitions", {}).get("parameters", {})
    values = {name: item["defaultValue"] for name, item in known.items() if "defaultValue" in item}
    return values | ((runtime.parameters if runtime else None) or {})


def _task(answer: Any) -> Task:
    return Task(
        name=str(answer.display_name or ""),
        state=str(answer.state or ""),
        started=_time(answer.start_time),
        ended=_time(answer.end_time),
    )


def _time(moment: datetime | None) -> datetime | None:
    # The server uses the years 1 and 1970 for "none".
    if moment is None:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware if aware.year > 1970 else None
