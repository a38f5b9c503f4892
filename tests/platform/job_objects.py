"""Jobs, pods, containers and events in the format of a real cluster, and an API server with one job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from http_fakes import Answer, Request

from dit.study.study_file import load
from pipelines.jobs import names
from pipelines.jobs.registry import kind_of
from pipelines.jobs.snapshot import Snapshot
from pipelines.jobs.spec import JobSpec, job_spec

BORN = "2026-01-01T10:00:00Z"
CONFIG = Path(__file__).parents[2] / "configs" / "digits.yaml"
NAME = "dit-digits-mini-s-2"
IMAGE = "registry.example/dit:1"


def spec(*overrides: str, **changes: Any) -> JobSpec:
    config = load(CONFIG, ["cluster.replicas=2", "cluster.queue=gpus", *overrides])
    return replace(job_spec(config, "mini-S/2", "train", "s3://bucket/dit", IMAGE), **changes)


def condition(kind: str, message: str = "", reason: str = "", status: str = "True") -> dict[str, Any]:
    return {"type": kind, "status": status, "message": message, "reason": reason, "lastTransitionTime": BORN}


def job(*conditions: dict[str, Any], version: int = 1, **metadata: Any) -> dict[str, Any]:
    own = {"name": NAME, "uid": "job-1", "creationTimestamp": BORN, "resourceVersion": str(version), **metadata}
    return {"metadata": own, "status": {"conditions": list(conditions)}}


def pod(index: int, phase: str = "Running", uid: str = "", **status: Any) -> dict[str, Any]:
    own = {"name": f"{NAME}-worker-{index}", "namespace": "dit-scaling", "uid": uid or f"pod-{index}"}
    return {"metadata": {**own, "creationTimestamp": BORN}, "status": {"phase": phase, **status}}


def running_pod(index: int, uid: str) -> dict[str, Any]:
    return pod(index, uid=uid, **container(state={"running": {}}))


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
RUNNING, SUCCEEDED = condition("Running"), condition("Succeeded")
DENIED: Answer = (403, {"message": "RBAC: roles are not known yet"})


def workload(message: str, reason: str = "Pending") -> dict[str, Any]:
    waiting = condition("QuotaReserved", message, reason, status="False")
    return {"metadata": {"name": "pytorchjob-x"}, "status": {"conditions": [waiting]}}


SUSPENDED = job(condition("Suspended", f"PyTorchJob {NAME} is suspended."))


def trainjob(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": NAME, "uid": "job-1", "creationTimestamp": BORN}, "status": status}


class Api:
    """A namespace with at most one job."""

    def __init__(self) -> None:
        self.job: dict[str, Any] | None = None
        self.pods: list[dict[str, Any]] = []
        self.logs: dict[str, str] = {}
        """Uid of a pod -> its log."""
        self.alive: set[str] = set()
        """Names of running workflows."""
        self.before: dict[tuple[str, str], list[Callable[[], Answer | None]]] = {}
        """(method, end of the path) -> calls before the next such requests; their answers replace the response."""
        self.asked: list[tuple[str, str]] = []

    def answer(self, request: Request) -> Answer:
        method, kind = request.method, request.path.rsplit("/", 1)[-1]
        self.asked.append((method, kind))
        events = self.before.get((method, kind), [])
        instead = events.pop(0)() if events else None
        if instead is not None:
            return instead
        if "/workflows/" in request.path:
            workflow = {"metadata": {"uid": kind}, "status": {"phase": "Running"}} if kind in self.alive else None
            return (200, workflow) if workflow else _missing(request)
        if kind == "log":
            uids = [item["metadata"]["uid"] for item in self.pods if item["metadata"]["name"] in request.path]
            return (200, self.logs[uids[0]]) if uids else _missing(request)
        if kind == "pods" and method == "GET":
            name = request.query.get("fieldSelector", "").removeprefix("metadata.name=")
            return 200, {"items": [item for item in self.pods if name in ("", item["metadata"]["name"])]}
        if kind == NAME or kind == "pytorchjobs":
            return self._jobs(request, kind)
        return 200, {"items": []}

    def _jobs(self, request: Request, kind: str) -> Answer:
        if request.method == "POST":
            self.job = request.body
            self.job["metadata"] |= {"uid": "job-2", "resourceVersion": "1"}
            return 201, self.job
        if kind == "pytorchjobs":
            return 200, {"items": [self.job] if self.job else []}
        if self.job is None:
            return _missing(request)
        if request.method == "DELETE":
            wanted = request.body["preconditions"]
            if any(self.job["metadata"][key] != value for key, value in wanted.items()):
                return 409, {"message": f"{wanted} is not so"}
            self.job = None
        return 200, self.job or {}


def _missing(request: Request) -> Answer:
    return 404, {"message": f"{request.path} not found"}


def orphan(*workflows: str, version: int = 1) -> dict[str, Any]:
    return job(
        RUNNING, version=version, annotations={names.WORKFLOWS: " ".join(f"kubeflow/{w}/{w}" for w in workflows)}
    )
