"""Launcher, reaper and steps against servers that are away, restart, or change between two questions."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from http_fakes import Answer, Request, kubeconfig, serve
from kubernetes import client as k8s
from s3_proxy import BUCKET, Proxy
from study_records import fill, study

from dit.errors import InputError
from dit.storage import open_store
from dit.study.records import SampleSetManifest
from dit.study.study_file import load
from pipelines import reaper
from pipelines.cluster.client import ApiRefused, Cluster
from pipelines.jobs import launch, names, watch
from pipelines.jobs.logs import PodLogs
from pipelines.jobs.registry import render_job
from pipelines.jobs.spec import JobSpec, Workflow, job_spec
from pipelines.jobs.submit import submit
from pipelines.step import step

CONFIG = Path(__file__).parents[3] / "configs" / "digits.yaml"
BORN = "2026-01-01T10:00:00Z"
RUNNING, SUCCEEDED = ({"type": kind, "status": "True"} for kind in ("Running", "Succeeded"))
DENIED: Answer = (403, {"message": "RBAC: roles are not known yet"})
UNKNOWN: Answer = (401, {"message": "Unauthorized"})


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
    """A namespace with one job at most."""

    def __init__(self) -> None:
        self.job: dict[str, Any] | None = None
        self.pods: list[dict[str, Any]] = []
        self.logs: dict[str, str] = {}
        """Uid of a pod -> its log."""
        self.alive: set[str] = set()
        """Names of workflows that go on."""
        self.before: dict[tuple[str, str], list[Callable[[], Answer | None]]] = {}
        """(method, end of the path) -> what happens before the next such requests; an answer is given instead."""
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


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def server(api: Api) -> Iterator[str]:
    with serve(api.answer) as address:
        yield address


@pytest.fixture
def cluster(server: str, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.01)
    settings = k8s.Configuration(host=server)
    settings.retries = False
    return Cluster(k8s.ApiClient(settings), "dit-scaling")


def test_a_launcher_survives_refusals_of_a_restarting_api_server(api: Api, cluster: Cluster) -> None:
    api.job, api.pods = job(RUNNING), [pod(0, "a"), pod(1, "b")]
    api.logs = {"a": "", "b": ""}

    def done() -> None:
        api.job = job(SUCCEEDED)

    api.before["GET", JOB] = [lambda: None, lambda: DENIED, lambda: UNKNOWN, done]
    watch.wait(cluster, spec(), "job-1")
    assert api.before["GET", JOB] == []


@pytest.mark.parametrize("what", [JOB, "pods", "events", "workloads"])
def test_a_missing_permission_fails_at_once(what: str, api: Api, cluster: Cluster) -> None:
    api.job = job()
    api.before["GET", what] = [lambda: DENIED]
    with pytest.raises(ApiRefused, match="RBAC"):
        watch.wait(cluster, spec("cluster.queue=gpus"), "job-1")


def test_a_restarted_pod_of_the_same_name_has_its_own_log(
    api: Api, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = pod(0, "old"), pod(0, "new")
    api.logs = {"old": f"{BORN} first\n", "new": "2026-01-01T10:05:00Z second\n2026-01-01T10:05:01Z third\n"}
    api.pods = [old]
    logs = PodLogs(cluster, JOB)
    logs.follow([old])
    _until(lambda: logs.last_lines("old") == ["first"])
    api.pods = [new]
    logs.follow([new])
    _until(lambda: logs.last_lines("new") == ["second", "third"])
    logs.close()
    assert logs.last_lines("old") == ["first"]
    message = [line for line in capsys.readouterr().out.splitlines() if line.startswith("worker-0: ")]
    assert message == ["worker-0: first", "worker-0: second", "worker-0: third"]


def _until(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("never so")


def test_the_mlflow_run_is_set_to_failed_after_running_pods_have_ended(
    api: Api, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, last = load(CONFIG, ["cluster.replicas=2"]), pod(0, "a")
    api.pods = [last]
    phases: list[str] = []

    def ends() -> None:
        last["status"] = {"phase": "Failed"}

    def fails(*_: object) -> None:
        api.before["GET", "pods"] = [lambda: None, lambda: None, ends]
        raise watch.JobFailed("worker-0 diverged")

    monkeypatch.setattr(launch, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(launch, "wait", fails)
    monkeypatch.setattr(launch, "end_failed", lambda *_: phases.append(last["status"]["phase"]))
    with pytest.raises(watch.JobFailed, match="worker-0 diverged"):
        launch.launch(config, open_store(str(tmp_path)), spec(), cluster)
    assert phases == ["Failed"]


def test_a_webhook_that_does_not_see_the_new_runtime_is_retried(
    api: Api, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer's looks it up in its cache, and denies what it does not find there."""
    monkeypatch.setattr("pipelines.cluster.retry._FIRST", 0.01)
    unseen: Answer = (403, {"message": f'TrainingRuntime.trainer.kubeflow.org "{JOB}" not found: create it before'})
    created: Answer = (201, {"metadata": {"name": JOB, "uid": "job-3"}})
    api.before["POST", "trainjobs"] = [lambda: unseen, lambda: unseen, lambda: created]
    api.before["PATCH", JOB] = [lambda: (200, {})]
    assert submit(cluster, spec("cluster.job=trainjob")) == "job-3"
    assert api.asked.count(("POST", "trainingruntimes")) == 1
    # One that is refused for good, or for another reason, is said as it was.
    api.before["POST", "trainjobs"] = [lambda: DENIED]
    with pytest.raises(InputError, match="RBAC: roles are not known yet; grant it"):
        submit(cluster, spec("cluster.job=trainjob"))


def orphan(*workflows: str, version: int = 1) -> dict[str, Any]:
    return job(
        RUNNING, version=version, annotations={names.WORKFLOWS: " ".join(f"kubeflow/{w}/{w}" for w in workflows)}
    )


def test_the_reaper_keeps_a_job_that_is_adopted_during_the_sweep(api: Api, cluster: Cluster) -> None:
    api.job, api.alive = orphan("ended"), {"other"}

    def adopted() -> None:
        api.job = orphan("ended", "other", version=2)

    api.before["DELETE", JOB] = [adopted]
    assert list(reaper.sweep(cluster)) == []
    assert api.job is not None
    assert ("DELETE", JOB) in api.asked


def test_the_reaper_deletes_a_job_whose_status_changes_during_the_sweep(api: Api, cluster: Cluster) -> None:
    api.job = orphan("ended")

    def changed() -> None:
        api.job = orphan("ended", version=2)

    api.before["DELETE", "pods"] = [changed]
    assert list(reaper.sweep(cluster)) == [f"PyTorchJob dit-scaling/{JOB}"]
    assert api.job is None


def test_a_job_that_is_deleted_during_its_adoption_is_created_again(api: Api, cluster: Cluster) -> None:
    wanted = spec(workflow=Workflow("kubeflow", "mine", "mine"))
    api.job = orphan("ended")
    api.job["metadata"]["annotations"] |= {
        names.SPEC_HASH: render_job(wanted).job["metadata"]["annotations"][names.SPEC_HASH]
    }

    def gone() -> None:
        api.job = None

    api.before["PATCH", JOB] = [gone]
    assert submit(cluster, wanted) == "job-2"


@pytest.fixture
def in_a_pod(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_POD_NAME", "a-step")
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", server)))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(step, "_TERMINATION_LOG", tmp_path / "termination-log")


def away(proxy: Proxy, attempts: set[int]) -> None:
    """Let these of the requests fail with which a store is opened; that client makes three before it gives up."""
    numbers = itertools.count()

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        if "max-keys=1" not in handler.path or next(numbers) not in attempts:
            return False
        handler.send_response(503)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    proxy.faults.append(fault)


@pytest.mark.usefixtures("s3_environment", "in_a_pod")
def test_a_step_retries_an_unavailable_store_before_and_after_its_job(s3_proxy: Proxy) -> None:
    config, root = study(), f"s3://{BUCKET}/dit"
    fill(open_store(root), config)
    away(s3_proxy, {0, 1, 2, 4, 5, 6})
    result = step.run_job("sample", step.Run(config.to_yaml(), root), "DiT-XL/2", "image")
    assert [type(record) for record in result.records] == [SampleSetManifest, SampleSetManifest]


@pytest.mark.usefixtures("s3_environment", "in_a_pod")
def test_a_missing_bucket_is_not_retried() -> None:
    with pytest.raises(SystemExit) as caught:
        step.run_job("sample", step.Run(study().to_yaml(), "s3://no-such-bucket/dit"), "DiT-XL/2", "image")
    assert caught.value.code == 2


@pytest.mark.usefixtures("s3_environment")
def test_a_step_on_this_machine_does_not_retry_the_store(s3_proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    away(s3_proxy, {0, 1, 2})
    with pytest.raises(SystemExit) as caught:
        step.run_step("sample", step.Run(study().to_yaml(), f"s3://{BUCKET}/dit"), "DiT-XL/2")
    assert caught.value.code == 1
    assert "503" in capsys.readouterr().err
