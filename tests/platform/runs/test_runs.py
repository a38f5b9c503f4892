"""Runs of Kubeflow Pipelines: requests, waiting, and errors of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from http_fakes import Kubernetes, PipelinesServer, compressed_workflow, kubeconfig, run, serve
from ports import reserved_port

from dit.cli.commands import run as main
from dit.errors import DitError, InputError
from pipelines import submit as submission
from pipelines.cluster import retry
from pipelines.runs.api import Pipelines, PipelinesUnavailable, endpoint_of
from pipelines.runs.model import load_package

PODS = "/api/v1/namespaces/kubeflow/pods"
WORKFLOWS = "/apis/argoproj.io/v1alpha1/namespaces/kubeflow/workflows"


@pytest.fixture
def server() -> PipelinesServer:
    return PipelinesServer()


@pytest.fixture
def pipelines(server: PipelinesServer) -> Iterator[Pipelines]:
    with serve(server.answer) as address:
        yield Pipelines(address)


Ended = Callable[..., list[str]]


@pytest.fixture
def ended(
    pipelines: Pipelines,
    at_once: None,  # noqa: ARG001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Ended:
    """Waits for a run that fails with this error, beside this cluster or none; the lines that were printed."""

    def wait(error: str, api: Kubernetes | None = None) -> list[str]:
        with serve((api or Kubernetes()).answer) as address:
            file = kubeconfig(tmp_path / "config", address) if api else "/nowhere"
            monkeypatch.setenv("KUBECONFIG", str(file))
            with pytest.raises(DitError, match=error) as caught:
                submission.wait(pipelines, "r", patience=60)
        assert caught.value.exit_code != 0
        return capsys.readouterr().out.splitlines()

    return wait


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(retry, "_FIRST", 0.001)
    monkeypatch.setattr(retry, "_LONGEST", 0.001)


def package(path: Path, platform: bool = False) -> Path:
    task = {"cachingOptions": {"enableCache": True}, "componentRef": {"name": "comp-a"}}
    documents: list[dict[str, Any]] = [
        {"pipelineInfo": {"name": "p"}, "root": {"dag": {"tasks": {"a": task}}}, "components": {"comp-a": {}}}
    ]
    if platform:
        documents.append({"platforms": {"kubernetes": {}}})
    path.write_text(yaml.safe_dump_all(documents))
    return path


def test_a_run_is_created_once_with_its_experiment_and_account(
    server: PipelinesServer, pipelines: Pipelines, tmp_path: Path
) -> None:
    file = package(tmp_path / "p.yaml", platform=True)
    experiments = [pipelines.experiment("dit", create=True) for _ in range(2)]
    uid = pipelines.create(str(experiments[0]), "first", file, "some-account")
    assert experiments == ["e-dit", "e-dit"]
    assert server.experiments == ["dit"]
    (sent,) = server.created
    assert (uid, sent["display_name"], sent["experiment_id"]) == ("run-1", "first", "e-dit")
    assert sent["service_account"] == "some-account"
    assert sent["pipeline_spec"]["platform_spec"] == {"platforms": {"kubernetes": {}}}


def test_an_experiment_that_another_submission_creates_first_is_used(
    server: PipelinesServer, pipelines: Pipelines
) -> None:
    server.raced = True
    assert pipelines.experiment("dit", create=True) == "e-dit"
    assert server.experiments == ["dit"]


def test_reading_an_experiment_does_not_create_it(server: PipelinesServer, pipelines: Pipelines) -> None:
    assert pipelines.experiment("dit") is None
    assert server.experiments == []


@pytest.mark.parametrize("caching", [True, False])
def test_caching_can_be_switched_off_for_a_run(tmp_path: Path, caching: bool) -> None:
    spec = load_package(package(tmp_path / "p.yaml"), caching)
    options = spec["root"]["dag"]["tasks"]["a"]["cachingOptions"]
    assert options.get("enableCache", False) is caching


def test_the_newest_run_of_a_pipeline_is_found_among_others(server: PipelinesServer, pipelines: Pipelines) -> None:
    def at(root: str, uid: str, **changed: Any) -> dict[str, Any]:
        return run(uid, "RUNNING", runtime_config={"parameters": {"root": root}}, **changed)

    server.runs = {
        "b": [at("s3://ours/dit", "b", pipeline_spec={"pipelineInfo": {"name": "dit-imagenet256"}})],
        "other": [at("s3://theirs/dit", "other")],
        "a": [at("s3://ours/dit/", "a")],
        "old": [at("s3://ours/dit", "old")],
    }
    result = pipelines.latest("e", "dit-digits", "s3://ours/dit")
    assert result is not None
    assert result.uid == "a"
    assert pipelines.latest("e", "dit-nothing", "s3://ours/dit") is None
    assert pipelines.latest("e", "dit-digits", "s3://nobodys/dit") is None


@pytest.mark.usefixtures("at_once")
def test_waiting_retries_an_unavailable_server(
    server: PipelinesServer, pipelines: Pipelines, capsys: pytest.CaptureFixture[str]
) -> None:
    states = [{"a": "RUNNING"}, {"a": "SUCCEEDED", "b": "RUNNING"}, {"a": "SUCCEEDED", "b": "SUCCEEDED"}]
    answers = [run("r", "RUNNING", item) for item in states[:2]]
    server.runs["r"] = [answers[0], 503, 500, answers[1], run("r", "SUCCEEDED", states[2])]
    submission.wait(pipelines, "r", patience=60)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert printed == ["step a: running", "step a: succeeded", "step b: running", "step b: succeeded"]


@pytest.mark.usefixtures("at_once")
def test_waiting_ends_after_the_timeout_of_an_unavailable_server(server: PipelinesServer, pipelines: Pipelines) -> None:
    server.runs["r"] = [503]
    with pytest.raises(PipelinesUnavailable, match="away"):
        submission.wait(pipelines, "r", patience=0.05)


def failed_pod(message: str | None, created: str = "2026-01-01T10:00:00Z", step: str = "a") -> dict[str, Any]:
    ended = {"exitCode": 1, "reason": "Error", **({"message": message} if message else {})}
    return {
        "metadata": {
            "name": f"w-{created[-3:-1]}",
            "namespace": "kubeflow",
            "creationTimestamp": created,
            "annotations": {"workflows.argoproj.io/node-name": f"w(0).root(0).{step}(1).executor(0)"},
        },
        "status": {"phase": "Failed", "containerStatuses": [{"name": "main", "state": {"terminated": ended}}]},
    }


@pytest.mark.parametrize("logged", [False, True])
def test_the_error_of_a_failed_run_names_the_step_and_the_reason(
    server: PipelinesServer, ended: Ended, logged: bool
) -> None:
    server.runs["r"] = [run("r", "FAILED", {"a": "FAILED", "b": "", "c": "SUCCEEDED"})]
    why = "loss is nan at step 12"
    pods = [failed_pod("an earlier try"), failed_pod(None if logged else why, "2026-01-01T10:00:09Z")]
    log = f"dit: earlier\nnoise\ndit: step a: {why}\nmore noise\n" if logged else "dit: of no interest"
    api = Kubernetes({PODS: {"items": pods}, f"{PODS}/w-09/log": log})
    printed = ended("run r ended FAILED at step a; http", api)
    assert f"step a: {why}; kubectl logs -n kubeflow w-09 -c main" in "\n".join(printed)


def test_a_failed_run_is_reported_without_a_cluster(server: PipelinesServer, ended: Ended) -> None:
    server.runs["r"] = [run("r", "FAILED", {"a-driver": "FAILED", "a": ""})]
    out = "\n".join(ended("at step a"))
    assert "kubectl get pods -n kubeflow -l pipeline/runid=r" in out
    assert "old states of a large run's steps, and the workflow cannot be read: " in out


def test_states_that_the_server_lacks_are_read_from_the_workflow(server: PipelinesServer, ended: Ended) -> None:
    seen_once = {"a": "SUCCEEDED", "b": "RUNNING", "c": "PENDING"}
    server.runs["r"] = [run("r", state, seen_once) for state in ("RUNNING", "FAILED")]
    grown = compressed_workflow("r", {"a": "Succeeded", "b": "Failed", "c": "Omitted"})
    api = Kubernetes({WORKFLOWS: {"items": [grown]}, PODS: {"items": [failed_pod("out of memory", step="b")]}})
    first, second, third = (line for line in ended("FAILED at step b; http", api) if line.startswith("step"))
    assert (first, second) == ("step a: succeeded", "step b: failed")
    assert third.startswith("step b: out of memory; kubectl logs")


@pytest.mark.parametrize(
    ("forbidden", "message"), [({WORKFLOWS}, "workflows"), (set(), "compressed status cannot be read")]
)
def test_the_servers_states_are_used_if_the_workflow_cannot_be_read(
    server: PipelinesServer, ended: Ended, forbidden: set[str], message: str
) -> None:
    server.runs["r"] = [run("r", state, {"a": "FAILED"}) for state in ("RUNNING", "RUNNING", "FAILED")]
    garbled = compressed_workflow("r", {}, status={"compressedNodes": "bm90IGd6aXBwZWQ="})
    printed = ended("FAILED at step a; http", Kubernetes({WORKFLOWS: {"items": [garbled]}}, forbidden))
    (warning,) = (line for line in printed if "old states" in line)
    assert message in warning


def test_a_run_is_terminated_by_its_id(
    server: PipelinesServer, pipelines: Pipelines, capsys: pytest.CaptureFixture[str]
) -> None:
    server.runs |= {"r": [run("r", "RUNNING")], "old": [run("old", "FAILED")]}
    assert main(["terminate", "r", "--endpoint", pipelines.endpoint]) == 0
    assert main(["terminate", "old", "--endpoint", pipelines.endpoint]) == 2
    assert "has ended already, FAILED" in capsys.readouterr().err
    assert main(["terminate", "none", "--endpoint", pipelines.endpoint]) == 2
    assert "Run none not found" in capsys.readouterr().err
    assert server.terminated == ["r"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((200, "<html>sign in</html>"), "is not Kubeflow Pipelines 2"),
        ((404, "no"), "is not Kubeflow Pipelines 2"),
        ((302, ""), "requires you to sign in"),
        ((401, {"message": "who"}), "requires you to sign in"),
        ((500, {"message": "broken"}), "broken; see its log"),
        ((400, {"message": "never"}), "refused: never"),
    ],
)
def test_other_servers_and_errors_are_one_line(answer: tuple[int, Any], expected: str) -> None:
    with serve(lambda _: answer) as address, pytest.raises(DitError, match=expected) as caught:
        Pipelines(address).version()
    assert address in str(caught.value)


def test_an_unreachable_server_is_reported_without_a_retry(capsys: pytest.CaptureFixture[str]) -> None:
    with reserved_port() as port, pytest.raises(PipelinesUnavailable, match="Connection refused"):
        Pipelines(f"http://127.0.0.1:{port}").version()
    assert capsys.readouterr() == ("", "")


def test_the_endpoint_is_given_or_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFP_ENDPOINT", raising=False)
    with pytest.raises(InputError, match="set KFP_ENDPOINT"):
        endpoint_of(None)
    with pytest.raises(InputError, match="not a URL"):
        endpoint_of("localhost:8888")
    monkeypatch.setenv("KFP_ENDPOINT", "http://there:8888/")
    assert endpoint_of(None) == "http://there:8888"
