"""What is known of a job at one moment, and how to read it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.cluster.objects import Object, pod_phase
from pipelines.jobs.kind import Phase


@dataclass(frozen=True)
class Snapshot:
    """A job with its pods, the events about both, and Kueue's view of it. `job` is None when it is gone."""

    job: Object | None
    phase: Phase
    pods: tuple[Object, ...] = ()
    events: tuple[Object, ...] = ()
    """Warnings about the job and about those of its pods that do not run."""
    workload: Object | None = None

    @property
    def running(self) -> int:
        """Pods that run or have ended well."""
        return sum(pod_phase(pod) in ("Running", "Succeeded") for pod in self.pods)


def of_this_job(job: Object, objects: list[dict[str, Any]], time_key: str) -> tuple[Object, ...]:
    """Those that are not left from an earlier job of the same name: Kubernetes' times sort as text."""
    born = job["metadata"]["creationTimestamp"]
    return tuple(obj for obj in objects if (_time(obj, time_key) or born) >= born)


def _time(obj: Object, key: str) -> str:
    return str(obj.get(key) or obj.get("metadata", {}).get(key) or "")
