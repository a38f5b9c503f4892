"""The store of a study's pods: from a pod whose credentials were replaced, and from a workstation."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from http_fakes import Kubernetes, kubeconfig, serve
from s3_proxy import BUCKET, Proxy
from store_settings import settings_objects
from test_pod_environment import kubectl

from dit.cli.commands import run as main
from dit.errors import CredentialsError, StoreError
from dit.storage import open_store
from dit.study.cluster import ClusterConfig, PatienceConfig
from pipelines.cluster import store_access
from pipelines.cluster.client import Cluster
from pipelines.cluster.store_access import study_store, waited_for

ROOT = f"s3://{BUCKET}/dit"
CONFIG = ClusterConfig(patience=PatienceConfig(api=2))
REFUSED = b"<Error><Code>InvalidAccessKeyId</Code><Message>no such key</Message></Error>"


def revoke(proxy: Proxy, key: str) -> None:
    """Refuse all requests that are signed with this key."""

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        if f"Credential={key}/" not in handler.headers.get("Authorization", ""):
            return False
        handler.send_response(403)
        handler.send_header("Content-Length", str(len(REFUSED)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(REFUSED)
        return True

    proxy.faults.append(fault)


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of mounted secrets, with none in it, of a process in a pod."""
    folder = tmp_path / "secrets"
    monkeypatch.setattr(store_access, "SECRETS", folder)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    return folder


@pytest.mark.usefixtures("s3_environment")
def test_a_launcher_reads_replaced_credentials_from_the_mounted_secret(
    s3_proxy: Proxy, secrets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(ROOT)
    store.write("record", b"1")
    revoke(s3_proxy, "key")
    (secrets / "dit-s3").mkdir(parents=True)
    for name, value in (("AWS_ACCESS_KEY_ID", "newer"), ("AWS_SECRET_ACCESS_KEY", "secret")):
        (secrets / "dit-s3" / name).write_text(value)
    assert waited_for(lambda: store.read("record"), CONFIG) == b"1"
    assert "the store refused this pod's credentials" in capsys.readouterr().out


@pytest.mark.usefixtures("s3_environment", "secrets")
def test_a_launcher_reads_replaced_credentials_from_the_api_where_it_may(
    s3_proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revoke(s3_proxy, "key")
    kubernetes = Kubernetes(settings_objects(s3_proxy.url, key="newer"))
    with serve(kubernetes.answer) as api:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", api)))
        assert waited_for(lambda: open_store(ROOT), CONFIG).url == ROOT


@pytest.mark.usefixtures("s3_environment", "secrets")
def test_credentials_that_stay_refused_name_their_secret_at_once_and_at_the_end(
    s3_proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    revoke(s3_proxy, "key")
    kubernetes = Kubernetes(settings_objects(s3_proxy.url))
    kubernetes.forbidden.add("/api/v1/namespaces/dit-scaling/secrets/dit-s3")
    named = "the credentials were refused (InvalidAccessKeyId: no such key)"
    command = "kubectl describe secret -n dit-scaling dit-s3"
    with serve(kubernetes.answer) as api:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", api)))
        with pytest.raises(CredentialsError) as caught:
            waited_for(lambda: open_store(ROOT), CONFIG)
    first = capsys.readouterr().out.splitlines()[0]
    for message in (first, str(caught.value)):
        assert named in message
        assert command in message
        assert "you may not read" in message


@pytest.mark.usefixtures("s3_environment")
def test_what_heals_is_waited_for_from_its_first_failure(capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([StoreError("s3: the server's disk is full"), StoreError("s3: 503"), None])

    def call() -> str:
        if (error := next(answers)) is not None:
            raise error
        return "read"

    assert waited_for(call, ClusterConfig(patience=PatienceConfig(api=10))) == "read"
    assert "s3: the server's disk is full; retry in 1.0 s" in capsys.readouterr().out


@pytest.fixture
def workstation(
    s3_environment: None,  # noqa: ARG001
    s3_proxy: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    """KUBECONFIG and kubectl, and no settings of S3; yields the log of kubectl."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    kubectl(tmp_path, tmp_path / "log", monkeypatch, port=s3_proxy.url.rpartition(":")[2])
    with serve(Kubernetes(settings_objects("http://s3.store.svc:7070", tracking="sqlite:////m.db")).answer) as api:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", api)))
        yield tmp_path / "log"


def test_a_workstation_reaches_the_store_through_a_forwarded_port_with_the_clusters_secret(workstation: Path) -> None:
    with study_store(Cluster.connect(), CONFIG, ROOT) as store:
        store.write("record", b"1")
    assert "-n store service/s3 :7070" in workstation.read_text()
    assert "AWS_ACCESS_KEY_ID" not in os.environ


@pytest.mark.usefixtures("workstation")
def test_a_command_of_a_workstation_has_store_and_tracker_of_the_cluster(tmp_path: Path) -> None:
    with study_store(Cluster.connect(), CONFIG, ROOT) as store:
        store.write("record", b"1")
    code = f"""
        import os, pathlib
        from dit.storage import open_store
        content = open_store({ROOT!r}).read("record").decode()
        pathlib.Path({str(tmp_path / "seen")!r}).write_text(content + os.environ["MLFLOW_TRACKING_URI"])
    """
    study = str(Path(__file__).parents[3] / "configs" / "digits.yaml")
    assert main(["with-cluster", study, sys.executable, "-c", textwrap.dedent(code)]) == 0
    assert (tmp_path / "seen").read_text() == "1sqlite:////m.db"
    assert main(["with-cluster", study, sys.executable, "-c", "raise SystemExit(3)"]) == 3
    assert main(["with-cluster", study, "no-such-command"]) == 2
