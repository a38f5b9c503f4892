"""A job, its pods and events at one moment. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.cluster.objects import Object, pod_phase
from pipelines.jobs.kind import Phase


@dataclass(frozen=True)
class Snapshot:
    """A job with its pods, their events, and Kueue's workload. `job` is None if it does not exist."""

    job: Object | None
    phase: Phase
    pods: tuple[Object, ...] = ()
    events: tuple[Object, ...] = ()
    """Events of the job and of its pending pods."""
    workload: Object | None = None

    @property
    def running(self) -> int:
        """Number of pods that run or have succeeded."""
        return sum(pod_phase(pod) in ("Running", "Succeeded") for pod in self.pods)


def of_this_job(job: Object, objects: list[dict[str, Any]], time_key: str) -> tuple[Object, ...]:
    """The objects that are not older than the job, so not of an earlier job of the same name."""
    # Kubernetes' time stamps sort as text.
    born = job["metadata"]["creationTimestamp"]
    return tuple(obj for obj in objects if (_time(obj, time_key) or born) >= born)


def _time(obj: Object, key: str) -> str:
    return str(obj.get(key) or obj.get("metadata", {}).get(key) or "")
