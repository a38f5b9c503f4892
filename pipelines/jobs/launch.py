"""Runs a stage of one variant as a job, from the submission to the records in the store.

launch(config, job_spec(config, "DiT-S/2", "train", root, image), Cluster.connect())
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

from dit.console import say
from dit.errors import DitError, MissingError
from dit.results.stages import STAGES, Work
from dit.results.state import require_stage
from dit.study.config import StudyConfig
from dit.study.records import Record
from dit.tracking import end_failed
from pipelines.cluster.client import WORKFLOWS, ApiUnavailable, Cluster
from pipelines.cluster.objects import pod_phase
from pipelines.cluster.retry import retry
from pipelines.cluster.store_access import study_store, study_tracker, waited_for
from pipelines.jobs import names
from pipelines.jobs.registry import kind_of
from pipelines.jobs.spec import JobSpec, Workflow
from pipelines.jobs.stalls import StallWatch
from pipelines.jobs.submit import submit
from pipelines.jobs.watch import POLL_SECONDS, JobFailed, JobStalled, wait

_PODS_END_SECONDS = 60.0


def launch(config: StudyConfig, spec: JobSpec, cluster: Cluster) -> list[Record]:
    """The records of the spec's stage; a job makes them if the stage is not complete.

    Adopts the job of an earlier launcher. A failure also sets the MLflow run to FAILED. A store and an API that are
    away are waited for, up to `cluster.patience.api`.

    Raises InputError when the cluster or the study does not allow the job.
    Raises DitError when the job fails, cannot start or leaves no result.
    """
    spec = retry(lambda: in_run(spec, cluster), ApiUnavailable, config.cluster.patience.api)
    cluster = cluster.within(spec.namespace)
    try:
        return _records(config, spec, cluster)
    except MissingError as missing:
        say(f"{spec.name}: {missing}; starting a job")
    try:
        _run_job(config, spec, cluster)
    except JobFailed as error:
        _track(config, spec, cluster, error)
        raise
    try:
        return _records(config, spec, cluster)
    except MissingError as missing:
        kind = kind_of(spec).resource.kind
        raise DitError(
            f"{kind} {spec.namespace}/{spec.name} succeeded but left no result: {missing};"
            f" kubectl logs -n {spec.namespace} -l {names.JOB}={spec.name}"
        ) from None


def _run_job(config: StudyConfig, spec: JobSpec, cluster: Cluster) -> None:
    """Run the job to its success; one whose training does not get on is created again.

    Raises JobFailed when the job fails, or does not get on for the last time that `cluster.backoff_limit` allows.
    """
    grace = spec.cluster.pod.grace_seconds + _PODS_END_SECONDS
    for left in range(spec.cluster.backoff_limit, -1, -1):
        uid = retry(lambda: submit(cluster, spec), ApiUnavailable, config.cluster.patience.api)
        try:
            wait(cluster, spec, uid, StallWatch(config, spec, cluster))
            return
        except JobStalled as stall:
            if not left:
                raise
            say(f"{stall}; it is created again to resume from the last checkpoint, {left} times at most")
            # A frozen process is killed only when its pod's grace period has ended.
            retry(lambda: _until_pods_end(spec, cluster, grace), ApiUnavailable, config.cluster.patience.api)


def _records(config: StudyConfig, spec: JobSpec, cluster: Cluster) -> list[Record]:
    stage = next(stage for stage in STAGES if stage.name == spec.stage)

    def read() -> list[Record]:
        # A forwarded port does not last as long as a job: the store is opened for each look.
        with study_store(cluster, config.cluster, spec.root) as store:
            # The job itself compares the decoder: hashing its weights would cost more than all else a launcher reads.
            return require_stage(stage, Work(config, store, compare_decoder=False), spec.run, spec.step)

    return waited_for(read, config.cluster)


def _track(config: StudyConfig, spec: JobSpec, cluster: Cluster, error: JobFailed) -> None:
    """Set the MLflow run to FAILED: a pod that was killed could not do so itself."""
    try:
        # A pod that still runs may be writing the status itself.
        _until_pods_end(spec, cluster, _PODS_END_SECONDS)
        with study_store(cluster, config.cluster, spec.root) as store, study_tracker(cluster, config):
            end_failed(config, store, spec.run, error)
    except DitError as problem:
        say(f"tracking: {problem}")


def _until_pods_end(spec: JobSpec, cluster: Cluster, seconds: float) -> None:
    """Wait until no pod of the job runs, up to a timeout."""
    selector, deadline = f"{kind_of(spec).pod_label}={spec.name}", time.monotonic() + seconds
    while time.monotonic() < deadline and any(pod_phase(pod) == "Running" for pod in cluster.pods(selector)):
        time.sleep(POLL_SECONDS)


def in_run(spec: JobSpec, cluster: Cluster) -> JobSpec:
    """The spec with the pipeline run of this pod added; unchanged if this process is not a pipeline step.

    `cluster` is the namespace of this pod.
    """
    name = os.environ.get(names.KFP_POD)
    pod = cluster.pod(name) if name else None
    if pod is None:
        return spec
    metadata = pod["metadata"]
    owners = [owner for owner in metadata.get("ownerReferences") or [] if owner["kind"] == WORKFLOWS.kind]
    workflow = Workflow(cluster.namespace, owners[0]["name"], owners[0]["uid"]) if owners else None
    return replace(spec, run_id=metadata.get("labels", {}).get(names.KFP_RUN), workflow=workflow)
