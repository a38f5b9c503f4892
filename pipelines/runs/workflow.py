"""States of a run's steps out of its workflow, where the pipelines' server cannot read them.

Argo compresses the states of a workflow's steps once the whole is larger than 1 MiB, as it is with some 20 steps: each
adds about 40 kB. Kubeflow Pipelines (2.17) reads nothing of that, and goes on showing what it saw before; a run's own
state it gets right.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import zlib
from dataclasses import replace
from datetime import datetime
from typing import Any

from dit.errors import DitError
from pipelines.cluster.client import WORKFLOWS, Cluster
from pipelines.cluster.objects import Object
from pipelines.jobs.names import KFP_RUN
from pipelines.runs.model import FAILED, Run, Task

# As the server translates them: what never began has no state.
_STATES = {"Error": FAILED, "Omitted": ""}


def seen_in(run: Run, cluster: Cluster) -> Run:
    """The run with its steps as they are now; as it was where the server reads them itself, or the workflow is gone.

    `cluster` is the namespace of the steps' pods. Raises ApiUnavailable and ApiRefused, DitError where the workflow
    holds something else than steps.
    """
    for workflow in cluster.find(WORKFLOWS, f"{KFP_RUN}={run.uid}"):
        compressed = workflow.get("status", {}).get("compressedNodes")
        if compressed:
            return replace(run, tasks=_tasks(workflow, compressed))
    return run


def _tasks(workflow: Object, compressed: str) -> tuple[Task, ...]:
    try:
        nodes = json.loads(gzip.decompress(base64.b64decode(compressed)))
        return tuple(_task(node) for node in nodes.values())
    except (binascii.Error, OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        metadata = workflow["metadata"]
        raise DitError(
            f"workflow {metadata['namespace']}/{metadata['name']}: its compressed status cannot be read ({error});"
            f" kubectl get pods -n {metadata['namespace']} -l workflows.argoproj.io/workflow={metadata['name']}"
        ) from error


def _task(node: Any) -> Task:
    phase = node.get("phase") or ""
    return Task(
        name=node["displayName"],
        state=_STATES.get(phase, phase.upper()),
        started=_time(node.get("startedAt")),
        ended=_time(node.get("finishedAt")),
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
