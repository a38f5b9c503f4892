"""Deletes the jobs of pipeline runs that have ended: a step that is terminated has no time to do so itself.

    dit reap           in the cluster, until it is stopped
    dit reap --once    by hand

It polls the jobs and the workflows that wait for them, in any namespace. A running job is deleted when each workflow
that waited for it has ended, is shutting down or is gone. Jobs that were started by hand have no workflow, and ended
jobs are kept for their logs: neither is deleted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Never

from dit.console import say
from pipelines.cluster.client import WORKFLOWS, ApiRefused, ApiUnavailable, Cluster
from pipelines.cluster.objects import Object
from pipelines.cluster.retry import pauses
from pipelines.jobs import names
from pipelines.jobs.kind import JobKind
from pipelines.jobs.registry import KINDS
from pipelines.jobs.spec import Workflow, workflows_of

INTERVAL_SECONDS = 2.0
# Time for a last checkpoint. The default of 30 seconds would hold GPUs that other jobs wait for.
GRACE_SECONDS = 5
_ENDED = ("Succeeded", "Failed", "Error")


def has_ended(workflow: Object | None, uid: str) -> bool:
    """True if the workflow with this uid has ended, is shutting down, or was deleted or replaced."""
    if workflow is None or workflow["metadata"]["uid"] != uid or "deletionTimestamp" in workflow["metadata"]:
        return True
    spec = workflow.get("spec", {})
    # Kubeflow Pipelines terminates a run with a deadline of 0 seconds, Argo with `shutdown`.
    stopped = spec.get("activeDeadlineSeconds") == 0 or bool(spec.get("shutdown"))
    return stopped or workflow.get("status", {}).get("phase") in _ENDED


def is_orphan(kind: JobKind, job: Object, find: Callable[[Workflow], Object | None]) -> bool:
    """True if a job is running but all its workflows have ended; `find` reads a workflow."""
    if kind.phase(job).ended or "deletionTimestamp" in job["metadata"]:
        return False
    waiting = workflows_of(job)
    return bool(waiting) and all(has_ended(find(workflow), workflow.uid) for workflow in waiting)


def sweep(cluster: Cluster) -> Iterator[str]:
    """Delete the orphans in a namespace, and yield a description of each.

    Raises ApiUnavailable when the API cannot be reached.
    Raises ApiRefused for a job that cannot be deleted, after all the others.
    """

    @cache
    def find(workflow: Workflow) -> Object | None:
        return cluster.within(workflow.namespace).get(WORKFLOWS, workflow.name)

    refused: ApiRefused | None = None
    for kind, job in _jobs(cluster):
        try:
            if _deleted(cluster, kind, job, find):
                yield f"{kind.resource.kind} {cluster.namespace}/{job['metadata']['name']}"
        except ApiRefused as error:
            refused = error
    if refused is not None:
        raise refused


def _deleted(cluster: Cluster, kind: JobKind, job: Object, find: Callable[[Workflow], Object | None]) -> bool:
    """Delete the job if it is an orphan. A job that changes meanwhile may have been adopted, so it is read again."""
    name = job["metadata"]["name"]
    current: Object | None = job
    while current is not None and is_orphan(kind, current, find):
        # Pods first: the grace period of a pod that is terminating cannot be shortened.
        cluster.delete_pods(f"{kind.pod_label}={name}", GRACE_SECONDS)
        if cluster.delete(kind.resource, name, current["metadata"]["uid"], current["metadata"]["resourceVersion"]):
            return True
        current = cluster.get(kind.resource, name)
    return False


def _jobs(cluster: Cluster) -> Iterator[tuple[JobKind, dict[str, Any]]]:
    for kind in KINDS.values():
        for job in cluster.find(kind.resource, names.SELECTOR):
            yield kind, job


def watch(cluster: Cluster) -> Never:
    """Sweep until the process is stopped; errors of the API are retried with exponential backoff."""
    say(f"reaper: watching the jobs of namespace {cluster.namespace}")
    waits = pauses()
    while True:
        try:
            for what in sweep(cluster):
                say(f"reaper: deleted {what}, whose run has ended")
            waits = pauses()
            time.sleep(INTERVAL_SECONDS)
        except (ApiUnavailable, ApiRefused) as error:
            say(f"reaper: {error}")
            time.sleep(next(waits))


def reap(namespace: str | None, once: bool) -> None:
    """Watch the jobs of a namespace, or sweep it once; None is this pod's namespace, or the context's."""
    cluster = Cluster.connect()
    if namespace:
        cluster = cluster.within(namespace)
    if not once:
        watch(cluster)
    count = 0
    for what in sweep(cluster):
        count += 1
        say(f"deleted {what}, whose run has ended")
    say(f"namespace {cluster.namespace}: {count} jobs deleted")
