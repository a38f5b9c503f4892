"""Small HTTP servers for services that no test machine has: what they answer is what the real ones were seen to."""

from __future__ import annotations

import base64
import gzip
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: Any


Answer = tuple[int, Any]


@contextmanager
def serve(answer: Callable[[Request], Answer]) -> Iterator[str]:
    """A server whose answers, as JSON, a function gives; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            text = self.rfile.read(length)
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            body = json.loads(text) if text else None
            status, content = answer(Request(self.command, parts.path, query, self.headers, body))
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(content, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = _any

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Kubernetes:
    """The API of a cluster: objects by path, access reviews by what is allowed."""

    objects: dict[str, Any] = field(default_factory=dict)
    forbidden: set[str] = field(default_factory=set)
    denied: set[str] = field(default_factory=set)
    """`verb resource` that no account may."""
    reviewed: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, request: Request) -> Answer:
        if request.path in self.forbidden:
            return _status(403, f"you may not read {request.path}")
        if request.method == "POST" and request.path.endswith("accessreviews"):
            spec = request.body["spec"]
            self.reviewed.append(spec)
            asked = spec["resourceAttributes"]
            return 201, {"status": {"allowed": f"{asked['verb']} {asked['resource']}" not in self.denied}}
        found = self.objects.get(request.path)
        return (200, found) if found is not None else _status(404, f"{request.path} not found")


def _status(code: int, message: str) -> Answer:
    return code, {"kind": "Status", "code": code, "message": message}


def kubeconfig(path: Path, server: str) -> Path:
    """The file that leads to a cluster at this address."""
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": server}}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    return path


@dataclass
class PipelinesServer:
    """Kubeflow Pipelines: experiments, and runs that go through the states they are given."""

    experiments: list[str] = field(default_factory=list)
    raced: bool = False
    """Whether somebody else makes an experiment just before we do."""
    created: list[dict[str, Any]] = field(default_factory=list)
    terminated: list[str] = field(default_factory=list)
    runs: dict[str, list[Any]] = field(default_factory=dict)
    """Id -> its answers, one after the other, the last for ever; a number is a status code."""
    version: str = "2.17.0"

    def answer(self, request: Request) -> Answer:
        path = request.path.removeprefix("/apis/v2beta1/")
        if request.path == "/apis/v1beta1/healthz":
            return 200, {"tag_name": self.version, "multi_user": False}
        if path == "healthz":
            return 200, {"multi_user": False, "pipeline_store": "database"}
        if path == "experiments":
            return self._experiments(request)
        if path == "runs":
            return self._runs(request)
        return self._run(*path.removeprefix("runs/").partition(":")[::2])

    def _run(self, uid: str, action: str) -> Answer:
        if uid not in self.runs:
            return 404, {"error": f"Run {uid} not found", "code": 5, "message": f"Run {uid} not found"}
        if action == "terminate":
            self.terminated.append(uid)
            return 200, {}
        answers = self.runs[uid]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return (found, {"message": "away"}) if isinstance(found, int) else (200, found)

    def _experiments(self, request: Request) -> Answer:
        if request.method == "POST":
            self.experiments.append(request.body["display_name"])
            if self.raced:
                return 409, {"code": 6, "message": "Already exist error: Failed to create a new experiment."}
            return 200, {"experiment_id": f"e-{request.body['display_name']}", **request.body}
        wanted = json.loads(request.query["filter"])["predicates"][0]["stringValue"]
        found = [{"experiment_id": f"e-{name}", "display_name": name} for name in self.experiments if name == wanted]
        return 200, {"experiments": found} if found else {}

    def _runs(self, request: Request) -> Answer:
        if request.method == "POST":
            self.created.append(request.body)
            uid = f"run-{len(self.created)}"
            self.runs.setdefault(uid, [run(uid, "SUCCEEDED")])
            return 200, {"run_id": uid, **request.body}
        return 200, {"runs": [answers[0] for answers in self.runs.values() if not isinstance(answers[0], int)]}


def run(uid: str, state: str, tasks: Mapping[str, str] | None = None, **other: Any) -> dict[str, Any]:
    """A run of study digits with these states of its tasks; the names people know are the tasks' with `step`."""
    spec = {
        "pipelineInfo": {"name": "dit-digits"},
        "root": {"dag": {"tasks": {name: {"taskInfo": {"name": f"step {name}"}} for name in tasks or {}}}},
    }
    details = [
        {"task_id": name, "display_name": name, "state": one, "start_time": "2026-01-01T10:00:10Z"}
        for name, one in (tasks or {}).items()
        if one
    ]
    return {
        "run_id": uid,
        "display_name": uid,
        "state": state,
        "created_at": "2026-01-01T10:00:00Z",
        "finished_at": "2026-01-01T10:01:00Z" if state in ("SUCCEEDED", "FAILED") else "1970-01-01T00:00:00Z",
        "pipeline_spec": spec,
        "run_details": {"task_details": details},
        **other,
    }


def compressed_workflow(uid: str, phases: Mapping[str, str], **other: Any) -> dict[str, Any]:
    """The workflow of a run, grown so large that Argo compresses what it notes of the steps, or `other` instead."""
    nodes = {
        name: {"displayName": name, "phase": phase, "startedAt": "2026-01-01T10:00:10Z", "finishedAt": None}
        for name, phase in phases.items()
    }
    status = {"compressedNodes": base64.b64encode(gzip.compress(json.dumps(nodes).encode())).decode()}
    return {"metadata": {"name": f"w-{uid}", "namespace": "kubeflow"}, "status": status, **other}
