"""`dit status`, with an S3 server and fake servers for the cluster and pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from http_fakes import Kubernetes, PipelinesServer, compressed_workflow, kubeconfig, serve
from s3_proxy import BUCKET, Proxy
from store_settings import settings_objects
from study_records import write_rank_progress

from dit.errors import DitError
from dit.health.log import add_event
from dit.storage import open_store
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import HealthEvent
from dit.study.study_file import load
from dit.tracking.journal import Entry
from pipelines import status
from pipelines.compile import compile_study
from pipelines.jobs.names import ROOT as ROOT_LABEL
from pipelines.jobs.names import SELECTOR, STUDY, root_label
from pipelines.runs.model import load_package

STUDY_FILE = Path(__file__).parents[3] / "configs" / "digits.yaml"
ROOT = f"s3://{BUCKET}/dit"
JOBS = "/apis/kubeflow.org/v1/namespaces/dit-scaling/pytorchjobs"
PODS = "/api/v1/namespaces/dit-scaling/pods"
NAME = "dit-digits-mini-s-2"
BORN = "2026-01-01T10:00:00Z"


@pytest.fixture(scope="module")
def config() -> StudyConfig:
    return load(STUDY_FILE, ["variants=[mini-S/2, mini-B/2]", "evaluation.at_steps=[1500]"])


@pytest.fixture(scope="module")
def package(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The compiled study."""
    output = tmp_path_factory.mktemp("build") / "study.yaml"
    return load_package(compile_study(config, ROOT, f"registry.example/dit@sha256:{'0' * 64}", output))


def pod_metadata(number: int) -> dict[str, Any]:
    name = f"{NAME}-worker-{number}"
    return {"name": name, "uid": name, "namespace": "dit-scaling", "creationTimestamp": BORN}


@pytest.fixture
def kubernetes() -> Kubernetes:
    """A job with one pod that cannot be scheduled."""
    labels = {"dit-scaling/study": "digits", "dit-scaling/variant": "mini-s-2", "dit-scaling/stage": "train"}
    metadata = {"name": NAME, "uid": "j", "creationTimestamp": BORN, "labels": labels}
    job = {"metadata": metadata, "status": {"conditions": [{"type": "Running", "status": "True"}]}}
    pods: list[dict[str, Any]] = [{"metadata": pod_metadata(at), "status": {"phase": "Running"}} for at in range(7)]
    lacking = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: 1 Insufficient gpu"}
    pods.append({"metadata": pod_metadata(7), "status": {"phase": "Pending", "conditions": [lacking]}})
    events = "/api/v1/namespaces/dit-scaling/events"
    return Kubernetes(
        {
            JOBS: {"items": [job]},
            f"{JOBS}/{NAME}": job,
            PODS: {"items": pods},
            events: {"items": []},
            "/api/v1/namespaces/kubeflow/pods": {"items": []},
        }
    )


@pytest.fixture
def pipelines(package: dict[str, Any]) -> PipelinesServer:
    """A run of the compiled study, with half its steps, during training."""
    states = {"prepare-part": "SUCCEEDED", "prepare-part-2": "SUCCEEDED", "merge": "SUCCEEDED", "train": "RUNNING"}
    run = {
        "run_id": "r-1",
        "display_name": "first",
        "state": "RUNNING",
        "created_at": BORN,
        "pipeline_spec": package,
        "runtime_config": {"parameters": {"steps": 750}},
        "run_details": {
            "task_details": [
                {"display_name": name, "state": state, "start_time": BORN, "end_time": BORN}
                for name, state in states.items()
            ]
        },
    }
    return PipelinesServer(experiments=["dit"], runs={"r-1": [run]})


@pytest.fixture
def place(
    s3_environment: None,  # noqa: ARG001
    s3_proxy: Proxy,
    kubernetes: Kubernetes,
    pipelines: PipelinesServer,
    config: StudyConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[str]:
    """All three servers; yields the endpoint of the pipelines."""
    losses = [Entry("run", {"id": "r", "name": "n", "hash": "h", "tags": {}}), Entry("metrics", {"loss": 0.5}, 120)]
    key = layout.journal(config, config.runs[0])
    open_store(ROOT).write(key, b"".join(line.to_line() for line in losses))
    write_rank_progress(open_store(ROOT), config, config.runs[0], [0.1, 0.3])
    kubernetes.objects |= settings_objects(s3_proxy.url)
    # The caller has no S3 settings.
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with serve(kubernetes.answer) as api, serve(pipelines.answer) as endpoint:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", api)))
        monkeypatch.setenv("KFP_ENDPOINT", endpoint)
        yield endpoint


def show(*overrides: str, root: str = ROOT, run_id: str | None = None) -> None:
    status.run(STUDY_FILE, root, list(overrides), run_id, "dit")


def row(text: str, step: str) -> str:
    return next(" ".join(line.split()) for line in text.splitlines() if line.startswith(step))


def test_the_table_joins_pipeline_jobs_and_store(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    show()
    text = capsys.readouterr().out
    assert "run r-1 (first) running" in text
    assert (
        "train mini-S/2: seconds of own computing per step: rank 0 0.1000, rank 1 0.3000; the others wait for" in text
    )
    # Steps and variants are those of the run, not of the file.
    assert row(text, "train mini-S/2").startswith(
        "train mini-S/2 running PyTorchJob running 7/8 120/750 steps (16 %) loss 0.5000 at 120"
    )
    assert row(text, "prepare 2/2").startswith("prepare 2/2 succeeded")
    assert row(text, "report").startswith("report – – –")
    assert "mini-L/2" not in text
    assert f"pod dit-scaling/{NAME}-worker-7 finds no node: 0/1 nodes are available" in text
    assert f"{place}/#/runs/details/r-1" in text


@pytest.mark.usefixtures("place")
def test_steps_of_a_run_too_large_for_the_pipelines_server_are_shown_by_its_workflow(
    kubernetes: Kubernetes, capsys: pytest.CaptureFixture[str]
) -> None:
    phases = {"prepare-part": "Succeeded", "merge": "Succeeded", "train": "Succeeded", "sample": "Running"}
    workflows = "/apis/argoproj.io/v1alpha1/namespaces/kubeflow/workflows"
    kubernetes.objects[workflows] = {"items": [compressed_workflow("r-1", phases)]}
    show()
    text = capsys.readouterr().out
    assert row(text, "train mini-S/2").startswith("train mini-S/2 succeeded")
    assert row(text, "sample mini-S/2").startswith("sample mini-S/2 running")
    kubernetes.objects[workflows]["items"][0]["status"]["compressedNodes"] = "cut"
    show()
    text = capsys.readouterr().out
    assert "workflow kubeflow/w-r-1: its compressed status cannot be read" in text
    assert row(text, "train mini-S/2").startswith("train mini-S/2 running")


@pytest.mark.usefixtures("place")
def test_a_run_can_be_selected_by_its_id(pipelines: PipelinesServer, capsys: pytest.CaptureFixture[str]) -> None:
    old = {**pipelines.runs["r-1"][0], "run_id": "r-0", "display_name": "old", "state": "FAILED"}
    pipelines.runs["r-0"] = [old]
    show(run_id="r-0")
    assert "run r-0 (old) failed" in capsys.readouterr().out
    show(run_id="none")
    assert "Run none not found" in capsys.readouterr().out


@pytest.mark.usefixtures("place")
def test_without_pipelines_jobs_and_store_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KFP_ENDPOINT")
    show("variants=[mini-S/2]")
    text = capsys.readouterr().out
    assert "KFP_ENDPOINT is not set" in text
    assert row(text, "train mini-S/2").startswith("train mini-S/2 – PyTorchJob running 7/8 120/1,500 steps")


@pytest.mark.usefixtures("place")
def test_unreachable_servers_are_named_and_the_rest_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], s3_proxy: Proxy, tmp_path: Path
) -> None:
    monkeypatch.setenv("KFP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "away", "http://127.0.0.1:9")))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_proxy.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    show()
    text = capsys.readouterr().out
    assert "120/1,500 steps" in row(text, "train mini-S/2")
    assert "Kubeflow Pipelines at http://127.0.0.1:9 cannot be reached (Connection refused)" in text
    assert "the cluster's API cannot be reached" in text


@pytest.mark.usefixtures("place")
def test_it_is_an_error_if_nothing_can_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KFP_ENDPOINT")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(
        DitError, match=r"nothing could be reached: .*KFP_ENDPOINT.*set KUBECONFIG.*no usable credentials"
    ):
        show()


def test_a_study_of_this_machine_is_shown_from_its_folder(
    tmp_path: Path, config: StudyConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KFP_ENDPOINT", "http://127.0.0.1:9")
    folder = tmp_path / "runs"
    open_store(folder).write(f"{layout.checkpoint(config, config.runs[1], 400)}/{layout.META}", b"{}")
    show(root=str(folder))
    text = capsys.readouterr().out
    assert "400/1,500 steps" in row(text, "train mini-B/2")
    assert "reached" not in text
    assert yaml.safe_load(STUDY_FILE.read_text())["variants"][-1] in text


def test_a_variant_that_a_check_stopped_has_its_step_its_cause_and_all_readings(
    tmp_path: Path, config: StudyConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    message = "mini-S/2: the EMA never changes (ema: 9, must be at most 1 rounding error); update it"
    reason = {"cause": "the EMA never changes", "advice": "update it"}
    event = HealthEvent(check="ema", step=5, value=9.0, bound="1", action="stop", message=message, **reason)
    add_event(open_store(str(tmp_path)), layout.health(config, config.runs[0]), event)
    show("variants=[mini-S/2, mini-B/2]", root=str(tmp_path))
    text = capsys.readouterr().out
    assert row(text, "train mini-S/2").startswith("train mini-S/2 stopped by ema at step 5")
    assert row(text, "mini-S/2 broke") == "mini-S/2 broke at step 5: the EMA never changes; update it"
    assert row(text, "ema ") == "ema ✗ 9.000"
    assert message in text.splitlines()


def test_jobs_have_the_labels_by_which_status_finds_them(config: StudyConfig) -> None:
    from pipelines.jobs.spec import job_spec

    labels = job_spec(config, "mini-S/2", "train", ROOT, "image").job_labels
    wanted = dict(part.split("=") for part in f"{SELECTOR},{STUDY}={config.study}".split(","))
    assert wanted.items() <= labels.items()


@pytest.mark.usefixtures("place")
def test_jobs_and_runs_of_another_root_are_not_shown(
    kubernetes: Kubernetes, pipelines: PipelinesServer, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = kubernetes.objects[f"{JOBS}/{NAME}"]["metadata"]["labels"]
    labels[ROOT_LABEL] = root_label("s3://theirs/dit")
    pipelines.runs["r-1"][0]["runtime_config"]["parameters"]["root"] = "s3://theirs/dit"
    show()
    text = capsys.readouterr().out
    assert "PyTorchJob" not in text
    assert f"experiment dit has no run of digits at {ROOT}" in text
    labels[ROOT_LABEL] = root_label(ROOT)
    show()
    assert "PyTorchJob running 7/8" in row(capsys.readouterr().out, "train mini-S/2")


@pytest.mark.usefixtures("place")
def test_a_pod_that_ended_is_shown_with_the_programs_error(
    kubernetes: Kubernetes, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = {"exitCode": 1, "reason": "Error", "finishedAt": BORN, "message": "x\ndit: s3: the disk is full (rank 3)\n"}
    statuses = [{"name": "pytorch", "state": {"running": {}}, "lastState": {"terminated": ended}}]
    kubernetes.objects[PODS]["items"][3]["status"]["containerStatuses"] = statuses
    show()
    message = f"pod {NAME}-worker-3 ended at 2026-01-01 10:00:00 UTC: exit code 1: s3: the disk is full (rank 3)"
    assert message in capsys.readouterr().out


RUN_PODS = "/api/v1/namespaces/kubeflow/pods"


def step_pod(phase: str, **status: Any) -> dict[str, Any]:
    node = {"workflows.argoproj.io/node-name": "w(0).root(0).train(0).executor(0)"}
    metadata = {"name": "train-pod", "namespace": "kubeflow", "creationTimestamp": BORN, "annotations": node}
    return {"metadata": metadata, "status": {"phase": phase, **status}}


@pytest.mark.usefixtures("place")
def test_what_a_running_step_waits_for_is_shown(kubernetes: Kubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    kubernetes.objects[RUN_PODS] = {"items": [step_pod("Running")]}
    log = "worker-0: step 5\ns3://b/d: the credentials were refused; see secret dit-s3; retry in 30 s\n"
    kubernetes.objects[f"{RUN_PODS}/train-pod/log"] = log
    show()
    assert "train mini-S/2: s3://b/d: the credentials were refused; see secret dit-s3; retry in 30 s" in (
        capsys.readouterr().out
    )


@pytest.mark.usefixtures("place")
def test_after_a_runs_end_its_failed_steps_have_their_reasons(
    kubernetes: Kubernetes, pipelines: PipelinesServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pipelines.runs["r-1"][0]
    run["state"] = "FAILED"
    for task in run["run_details"]["task_details"]:
        task["state"] = "FAILED" if task["display_name"] == "train" else task["state"]
    ended = {"exitCode": 1, "reason": "Error", "message": "train mini-S/2: loss is not finite"}
    statuses = [{"name": "main", "state": {"terminated": ended}}]
    kubernetes.objects[RUN_PODS] = {"items": [step_pod("Failed", containerStatuses=statuses)]}
    show()
    assert "train mini-S/2: loss is not finite; kubectl logs -n kubeflow train-pod -c main" in capsys.readouterr().out
