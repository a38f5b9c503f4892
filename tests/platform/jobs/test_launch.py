"""Launching a stage: retries of the store, and the MLflow run of a failed job."""

from __future__ import annotations

import itertools
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from http_fakes import kubeconfig
from job_objects import CONFIG, Api, running_pod, spec
from s3_proxy import BUCKET, Proxy
from study_records import fill, study

from dit.cli.commands import run as main
from dit.storage import open_store
from dit.study.records import DatasetManifest, SampleSetManifest
from dit.study.study_file import load
from pipelines.cluster.client import Cluster
from pipelines.jobs import launch, watch
from pipelines.step import step, submitted
from pipelines.step.share import Share


@pytest.mark.usefixtures("s3_environment")
def test_the_mlflow_run_is_set_to_failed_after_running_pods_have_ended(
    api: Api, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, last = load(CONFIG, ["cluster.replicas=2"]), running_pod(0, "a")
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
        launch.launch(config, spec(root=f"s3://{BUCKET}/dit"), cluster)
    assert phases == ["Failed"]


@pytest.fixture
def in_a_pod(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_POD_NAME", "a-step")
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", server)))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(step, "_TERMINATION_LOG", tmp_path / "termination-log")


def away(proxy: Proxy, attempts: set[int]) -> None:
    """Fail these of the requests that open a store; the client gives up after three attempts."""
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
    address = submitted.write(config, open_store(root))
    away(s3_proxy, {0, 1, 2, 4, 5, 6})
    result = step.run_variant(["sample"], address, "DiT-XL/2", Share(), "image")
    assert [type(record) for record in result.records] == [SampleSetManifest, SampleSetManifest]


@pytest.mark.usefixtures("s3_environment", "in_a_pod")
def test_a_step_that_finds_the_store_full_waits_and_goes_on(
    s3_proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    address = submitted.write(load(CONFIG), open_store(f"s3://{BUCKET}/dit"))
    for _ in range(2):
        s3_proxy.answer_once(507, "PUT", "")
    result = step.run_step("prepare", address)
    assert [type(record) for record in result.records] == [DatasetManifest]
    assert capsys.readouterr().out.count("disk is full") == 2


@pytest.mark.usefixtures("s3_environment", "in_a_pod")
def test_a_launcher_by_hand_has_the_same_patience(
    s3_proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KFP_POD_NAME")
    config, root, file = study(), f"s3://{BUCKET}/dit", tmp_path / "study.yaml"
    fill(open_store(root), config)
    file.write_text(config.to_yaml())
    away(s3_proxy, {0, 1, 2})
    assert (
        main(["launch", str(file), "--variant", "DiT-XL/2", "--stage", "sample", "--root", root, "--image", "i"]) == 0
    )
    assert "retry in 1.0 s" in capsys.readouterr().out


@pytest.mark.usefixtures("s3_environment", "in_a_pod")
def test_a_missing_bucket_is_not_retried() -> None:
    with pytest.raises(SystemExit) as caught:
        step.run_variant(
            ["sample"], submitted.address(study(), "s3://no-such-bucket/dit"), "DiT-XL/2", Share(), "image"
        )
    assert caught.value.code == 2


@pytest.mark.usefixtures("s3_environment")
def test_a_step_on_this_machine_does_not_retry_the_store(s3_proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    away(s3_proxy, {0, 1, 2})
    with pytest.raises(SystemExit) as caught:
        step.run_variant(["sample"], submitted.address(study(), f"s3://{BUCKET}/dit"), "DiT-XL/2", Share())
    assert caught.value.code == 1
    assert "503" in capsys.readouterr().err
