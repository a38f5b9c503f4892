"""Jobs, pods, containers and events as the API of a real cluster returns them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dit.study.study_file import load
from pipelines.jobs.registry import kind_of
from pipelines.jobs.snapshot import Snapshot
from pipelines.jobs.spec import JobSpec, job_spec

BORN = "2026-01-01T10:00:00Z"
CONFIG = Path(__file__).parents[3] / "configs" / "digits.yaml"
NAME = "dit-digits-mini-s-2"
IMAGE = "registry.example/dit:1"


def spec(*overrides: str) -> JobSpec:
    config = load(CONFIG, ["cluster.replicas=2", "cluster.queue=gpus", *overrides])
    return job_spec(config, "mini-S/2", "train", "s3://bucket/dit", IMAGE)


def condition(kind: str, message: str = "", reason: str = "", status: str = "True") -> dict[str, Any]:
    return {"type": kind, "status": status, "message": message, "reason": reason, "lastTransitionTime": BORN}


def job(*conditions: dict[str, Any], uid: str = "job-1") -> dict[str, Any]:
    metadata = {"name": NAME, "uid": uid, "creationTimestamp": BORN}
    return {"metadata": metadata, "status": {"conditions": list(conditions)}}


def pod(index: int, phase: str = "Running", **status: Any) -> dict[str, Any]:
    metadata = {
        "name": f"{NAME}-worker-{index}",
        "namespace": "dit-scaling",
        "uid": f"pod-{index}",
        "creationTimestamp": BORN,
    }
    return {"metadata": metadata, "status": {"phase": phase, **status}}


def container(**states: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "pytorch", "image": IMAGE, "state": {}, "lastState": {}, **states}]}


def terminated(code: int, second: int, reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "finishedAt": f"2026-01-01T10:05:{second:02}Z"}}


def event(reason: str, message: str, kind: str = "PyTorchJob", name: str = NAME) -> dict[str, Any]:
    subject = {"kind": kind, "name": name}
    return {"type": "Warning", "reason": reason, "message": message, "involvedObject": subject, "lastTimestamp": BORN}


def snapshot(
    manifest: dict[str, Any], pods: Sequence[Any] = (), events: Sequence[Any] = (), workload: Any = None
) -> Snapshot:
    return Snapshot(manifest, kind_of(spec()).phase(manifest), tuple(pods), tuple(events), workload)


CREATED = job(condition("Created"))


def workload(message: str, reason: str = "Pending") -> dict[str, Any]:
    waiting = condition("QuotaReserved", message, reason, status="False")
    return {"metadata": {"name": "pytorchjob-x"}, "status": {"conditions": [waiting]}}


SUSPENDED = job(condition("Suspended", f"PyTorchJob {NAME} is suspended."))


def trainjob(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": NAME, "uid": "job-1", "creationTimestamp": BORN}, "status": status}
