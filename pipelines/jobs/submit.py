"""Creates a job, or adopts the one that exists."""

from __future__ import annotations

import time
from typing import Any

from dit.console import say
from dit.errors import DitError, InputError
from pipelines.cluster.client import CONFLICT, FORBIDDEN, NOT_FOUND, ApiRefused, Cluster
from pipelines.cluster.objects import Resource
from pipelines.cluster.retry import pauses, retry
from pipelines.jobs.kind import JobKind, Rendered, ownership
from pipelines.jobs.registry import kind_of, render_job, spec_hash
from pipelines.jobs.spec import JobSpec, workflows_of

_REMOVAL_SECONDS = 600.0
_CACHE_SECONDS = 60.0


class _NotYetCached(ApiRefused):
    """A webhook does not see an object that was just created, because it reads from a cache."""


def submit(cluster: Cluster, spec: JobSpec) -> str:
    """Create the job, or adopt the one that an earlier attempt created; returns its uid.

    A job that has ended is replaced, because its result is missing.

    Raises InputError when a job of the same name with another spec still runs, or the cluster refuses the job.
    Raises ApiUnavailable when the API cannot be reached.
    """
    kind, rendered = kind_of(spec), render_job(spec)
    place = f"{kind.resource.kind} {spec.namespace}/{spec.name}"
    while True:
        existing = None
        try:
            existing = cluster.get(kind.resource, spec.name)
            if existing is None:
                uid = _create(cluster, kind, rendered)
                say(f"{place}: created, {spec.cluster.replicas} pods of {spec.image}")
                return uid
            if not _is_over(kind, existing):
                uid = _adopt(cluster, kind, spec, rendered, existing)
                say(f"{place}: adopted, created {existing['metadata']['creationTimestamp']}")
                return uid
            say(f"{place}: replacing an earlier job, {kind.phase(existing).value}")
            _remove(cluster, kind.resource, existing)
        except ApiRefused as error:
            # Another launcher was faster, or the job changed or was deleted meanwhile: look again.
            if error.status != CONFLICT and not (existing and error.status == NOT_FOUND):
                raise refusal(error, kind, spec) from error


def refusal(error: ApiRefused, kind: JobKind, spec: JobSpec) -> InputError:
    """The error for a job that the cluster refused, with the remedy."""
    resource, namespace = kind.resource, spec.namespace
    place = f"{resource.kind} {namespace}/{spec.name}"
    if error.status == NOT_FOUND and "namespaces" in str(error):
        return InputError(f"{place}: {error}; kubectl create namespace {namespace}")
    if error.status == NOT_FOUND:
        crd = f"{resource.plural}.{resource.group}"
        return InputError(
            f"{place}: the cluster does not serve {resource.kind} ({resource.api_version}), part of {kind.controller};"
            f" install it, or choose another cluster.job; kubectl get crd {crd}"
        )
    if error.status == FORBIDDEN:
        asked = f"kubectl auth can-i --list -n {namespace}"
        return InputError(f"{place}: {error}; grant it to the service account, see {asked}")
    return InputError(f"{place}: refused: {error}; correct the cluster section of the study")


def _create(cluster: Cluster, kind: JobKind, rendered: Rendered) -> str:
    """Create the companions, then the job as their owner, so that they are deleted together; returns the job's uid."""
    for resource, manifest in rendered.companions:
        left = cluster.get(resource, manifest["metadata"]["name"])
        if left is not None:
            _remove(cluster, resource, left)
        cluster.create(resource, manifest)
    job = retry(lambda: _create_job(cluster, kind, rendered), _NotYetCached, _CACHE_SECONDS)
    uid = str(job["metadata"]["uid"])
    owner = {
        "apiVersion": kind.resource.api_version,
        "kind": kind.resource.kind,
        "name": job["metadata"]["name"],
        "uid": uid,
    }
    for resource, manifest in rendered.companions:
        cluster.patch(resource, manifest["metadata"]["name"], {"metadata": {"ownerReferences": [owner]}})
    return uid


def _create_job(cluster: Cluster, kind: JobKind, rendered: Rendered) -> dict[str, Any]:
    try:
        return cluster.create(kind.resource, rendered.job)
    except ApiRefused as error:
        needed = (manifest["metadata"]["name"] for _, manifest in rendered.companions)
        if any(f'"{name}" not found' in str(error) for name in needed):
            raise _NotYetCached(str(error), error.status) from error
        raise


def _adopt(cluster: Cluster, kind: JobKind, spec: JobSpec, rendered: Rendered, existing: dict[str, Any]) -> str:
    """Add this workflow to those that wait for the job; a job that was started by hand stays without one."""
    metadata = existing["metadata"]
    wanted, existing_hash = spec_hash(rendered.job), spec_hash(existing)
    if existing_hash != wanted:
        raise InputError(
            f"{kind.resource.kind} {spec.namespace}/{spec.name} runs another spec: its hash is"
            f" {existing_hash or 'missing'}, this study's is {wanted}; wait until it ends, or"
            f" kubectl delete {kind.resource.plural} -n {spec.namespace} {spec.name}"
        )
    waiting = workflows_of(existing)
    if spec.workflow is not None and waiting and spec.workflow not in waiting:
        # With the version, a concurrent change makes this patch a conflict.
        change = {"resourceVersion": metadata["resourceVersion"]}
        change |= ownership([*waiting, spec.workflow], spec.namespace)
        cluster.patch(kind.resource, spec.name, {"metadata": change})
    return str(metadata["uid"])


def _is_over(kind: JobKind, job: dict[str, Any]) -> bool:
    return kind.phase(job).ended or "deletionTimestamp" in job["metadata"]


def _remove(cluster: Cluster, resource: Resource, existing: dict[str, Any]) -> None:
    """Delete an object and wait until it is gone.

    Raises DitError when it is not gone in time.
    """
    name, uid = existing["metadata"]["name"], existing["metadata"]["uid"]
    cluster.delete(resource, name, uid)
    until = time.monotonic() + _REMOVAL_SECONDS
    for pause in pauses():
        left = cluster.get(resource, name)
        if left is None or left["metadata"]["uid"] != uid:
            return
        if time.monotonic() > until:
            break
        time.sleep(pause)
    raise DitError(
        f"{resource.kind} {cluster.namespace}/{name} was deleted and still exists; see its finalizers:"
        f" kubectl get {resource.plural} -n {cluster.namespace} {name} -o yaml"
    )
