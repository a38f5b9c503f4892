"""An API server with one job, which can fail, or change the job between two requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from http_fakes import Answer, Request

from dit.study.study_file import load
from pipelines.jobs import names
from pipelines.jobs.spec import JobSpec, job_spec

CONFIG = Path(__file__).parents[2] / "configs" / "digits.yaml"
BORN = "2026-01-01T10:00:00Z"
RUNNING, SUCCEEDED = ({"type": kind, "status": "True"} for kind in ("Running", "Succeeded"))
DENIED: Answer = (403, {"message": "RBAC: roles are not known yet"})


def spec(*overrides: str, **changes: Any) -> JobSpec:
    config = load(CONFIG, ["cluster.replicas=2", *overrides])
    made = job_spec(config, "mini-S/2", "train", "s3://bucket/dit", "registry.example/dit:1")
    return replace(made, **changes)


JOB = spec().name


def job(*conditions: dict[str, str], version: int = 1, **metadata: Any) -> dict[str, Any]:
    own = {"name": JOB, "uid": "job-1", "creationTimestamp": BORN, "resourceVersion": str(version)}
    return {"metadata": own | metadata, "status": {"conditions": list(conditions)}}


def pod(index: int, uid: str) -> dict[str, Any]:
    metadata = {"name": f"{JOB}-worker-{index}", "namespace": "dit-scaling", "uid": uid, "creationTimestamp": BORN}
    container = {"name": "pytorch", "state": {"running": {}}}
    return {"metadata": metadata, "status": {"phase": "Running", "containerStatuses": [container]}}


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
        if kind == JOB or kind == "pytorchjobs":
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
