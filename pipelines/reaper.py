"""Delete the jobs of pipeline runs that have ended: a step that is terminated has no time to do so itself.

    dit reap           in the cluster, for ever
    dit reap --once    by hand

It looks at our jobs again and again, and at the workflows that wait for them, wherever these are. A job goes when it
still works, and each workflow that waited for it has ended, is told to end or is gone. A job that never had one is
somebody's own, and one that has ended takes no room and is kept for its logs: both are left alone.
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
from pipelines.jobs.registry import all_kinds
from pipelines.jobs.spec import Workflow, workflows_of

INTERVAL_SECONDS = 2.0
# For a last checkpoint. Left to themselves pods may take half a minute, with GPUs that somebody else waits for.
GRACE_SECONDS = 5
_ENDED = ("Succeeded", "Failed", "Error")


def has_ended(workflow: Object | None, uid: str) -> bool:
    """Whether a run is over: its workflow ended, is told to end, or was deleted, maybe for another of its name."""
    if workflow is None or workflow["metadata"]["uid"] != uid or "deletionTimestamp" in workflow["metadata"]:
        return True
    spec = workflow.get("spec", {})
    # The pipelines' server terminates a run by taking away all of its time; Argo's own way is `shutdown`.
    stopped = spec.get("activeDeadlineSeconds") == 0 or bool(spec.get("shutdown"))
    return stopped or workflow.get("status", {}).get("phase") in _ENDED


def is_orphan(kind: JobKind, job: Object, find: Callable[[Workflow], Object | None]) -> bool:
    """Whether nobody waits any more for a job that still works; `find` looks a workflow up by its name."""
    if kind.phase(job).ended or "deletionTimestamp" in job["metadata"]:
        return False
    waiting = workflows_of(job)
    return bool(waiting) and all(has_ended(find(workflow), workflow.uid) for workflow in waiting)


def sweep(cluster: Cluster) -> Iterator[str]:
    """Delete the orphans there are now in a namespace, and yield each that was deleted.

    Raises ApiUnavailable; ApiRefused once all is done, so that one job in trouble keeps no other.
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
    """Whether this was an orphan, and is deleted; one that changes in between may have been adopted: look again."""
    name = job["metadata"]["name"]
    current: Object | None = job
    while current is not None and is_orphan(kind, current, find):
        # The pods first: once a node has begun to end one in its own time, it can no longer be hurried.
        cluster.delete_pods(f"{kind.pod_label}={name}", GRACE_SECONDS)
        if cluster.delete(kind.resource, name, current["metadata"]["uid"], current["metadata"]["resourceVersion"]):
            return True
        current = cluster.get(kind.resource, name)
    return False


def _jobs(cluster: Cluster) -> Iterator[tuple[JobKind, dict[str, Any]]]:
    for kind in all_kinds():
        for job in cluster.find(kind.resource, names.SELECTOR):
            yield kind, job


def watch(cluster: Cluster) -> Never:
    """Sweep for ever; an API that is away, or refuses, is asked again after growing pauses."""
    say(f"reaper: watches the jobs of namespace {cluster.namespace}")
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
