"""The deployed MLflow server, and the component of overlay a100: Postgres, artifacts on S3.

The latter needs an S3 server that pods can reach (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), and
either a Postgres (POSTGRES_HOST, POSTGRES_USER and POSTGRES_PASSWORD of a user who may create databases), or Debian's
package postgresql and an address of this machine that pods can reach (POSTGRES_LISTEN).
"""

from __future__ import annotations

import base64
import http.client
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from kube import SERVICES, apply, get, kubectl, until
from mlflow import MlflowClient
from ports import reserved_port

from pipelines.cluster.port_forward import forwarded
from pipelines.cluster_ui import PASSWORD, SERVICE, USER, credentials
from pipelines.deploy import ROOT

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
]

PATIENCE_SECONDS = 300
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
# Read at import: the tests run without these variables.
S3 = {key: os.environ[key] for key in ("AWS_ENDPOINT_URL", *KEYS) if key in os.environ}
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"
# A client in a pod of the stages' image, which logs a run with an artifact and reads it back.
CLIENT = """
import os
from mlflow import MlflowClient
assert not [name for name in os.environ if name.startswith("AWS_")]
client = MlflowClient()
experiment = client.create_experiment(os.environ["EXPERIMENT"])
run = client.create_run(experiment, run_name="from a pod").info.run_id
client.log_metric(run, "fid", 12.5, step=10)
client.log_text(run, "kept", "note.txt")
client.set_terminated(run)
with open(client.download_artifacts(run, "note.txt")) as note:
    print(run, note.read())
"""


@dataclass(frozen=True)
class Server:
    """An MLflow server in a namespace, through a forwarded port."""

    namespace: str
    port: int
    login: dict[str, str]

    def status(self, *, host: str | None = None, password: str | None = None) -> int:
        """Status code of a request for experiments, with this host name and password."""
        headers = {"Host": host or f"127.0.0.1:{self.port}"}
        if password:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{self.login[USER]}:{password}".encode()).decode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", SEARCH, headers=headers)
        return connection.getresponse().status

    def client(self, patch: pytest.MonkeyPatch) -> Any:
        for key, value in self.login.items():
            patch.setenv(key, value)
        return MlflowClient(tracking_uri=f"http://127.0.0.1:{self.port}")


@contextmanager
def reached(namespace: str) -> Iterator[Server]:
    with reserved_port() as port:
        pass
    with forwarded(namespace, SERVICE, 5000, port):
        yield Server(namespace, port, dict(credentials(namespace)))


@pytest.fixture(scope="module")
def deployed() -> Iterator[Server]:
    """The server of overlay kind."""
    with reached(SERVICES) as server:
        yield server


def test_mlflow_requires_a_password(deployed: Server) -> None:
    assert deployed.status() == 401
    assert deployed.status(password="not the password") == 401
    assert deployed.status(password=deployed.login[PASSWORD]) == 200


def test_mlflow_accepts_only_its_service_names(deployed: Server) -> None:
    password = deployed.login[PASSWORD]
    assert deployed.status(host="mlflow.example.com", password=password) == 403
    for name in ("mlflow", f"mlflow.{SERVICES}", f"mlflow.{SERVICES}.svc", f"mlflow.{SERVICES}.svc.cluster.local"):
        assert deployed.status(host=name, password=password) == 200
        assert deployed.status(host=f"{name}:5000", password=password) == 200


def test_artifacts_pass_through_the_server(deployed: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client = deployed.client(monkeypatch)
    experiment = client.create_experiment(f"test-{secrets.token_hex(4)}")
    try:
        run = client.create_run(experiment)
        assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
        client.log_text(run.info.run_id, "kept", "note.txt")
        assert Path(client.download_artifacts(run.info.run_id, "note.txt", str(tmp_path))).read_text() == "kept"
    finally:
        client.delete_experiment(experiment)


@pytest.fixture(scope="module")
def postgres() -> Iterator[dict[str, str]]:
    """libpq's variables of a new, empty database that pods can reach."""
    if "POSTGRES_HOST" in os.environ:
        admin = {key: os.environ.get(f"POSTGRES_{key}", "postgres") for key in ("HOST", "USER", "PASSWORD")}
        admin["PORT"] = os.environ.get("POSTGRES_PORT", "5432")
        with new_database(admin) as database:
            yield database
        return
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs or "POSTGRES_LISTEN" not in os.environ:
        pytest.skip("no Postgres: set POSTGRES_HOST, or install postgresql and set POSTGRES_LISTEN")
    listen = os.environ["POSTGRES_LISTEN"]
    with own_postgres(programs[-1].parent, listen) as admin, new_database(admin) as own:
        yield own


@contextmanager
def own_postgres(programs: Path, address: str) -> Iterator[dict[str, str]]:
    """Start a server. It refuses to run as root, so its folder must belong to another user."""
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.getuid() == 0 else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        secret = folder / "password"
        secret.write_text(password := secrets.token_hex(20))
        if user:
            for path in (folder, secret):
                shutil.chown(path, "postgres")
        with started(user, programs, folder, secret, address) as port:
            yield {"HOST": address, "PORT": str(port), "USER": "postgres", "PASSWORD": password}


@contextmanager
def started(user: list[str], programs: Path, folder: Path, secret: Path, address: str) -> Iterator[int]:
    data = folder / "data"

    def run(program: str, *arguments: str) -> None:
        subprocess.run([*user, str(programs / program), "-D", str(data), *arguments], check=True, cwd=folder)

    run("initdb", "--username=postgres", f"--pwfile={secret}", "--auth=scram-sha-256")
    with open(data / "pg_hba.conf", "a") as rules:
        rules.write("host all all all scram-sha-256\n")
    with reserved_port() as port:
        pass
    options = f"-c listen_addresses={address} -p {port} -k {folder}"
    run("pg_ctl", "-l", str(data / "log"), "-o", options, "-w", "start")
    try:
        yield port
    finally:
        run("pg_ctl", "-m", "immediate", "stop")


@contextmanager
def new_database(admin: dict[str, str]) -> Iterator[dict[str, str]]:
    name = f"mlflow_{secrets.token_hex(4)}"
    password = secrets.token_hex(20)
    query(admin, f"create role {name} login password '{password}'", f"create database {name} owner {name}")
    yield {**admin, "USER": name, "PASSWORD": password, "DATABASE": name}
    query(admin, f"drop database {name} with (force)", f"drop role {name}")


def query(server: dict[str, str], *statements: str) -> str:
    settings = {f"PG{key}": value for key, value in {"DATABASE": "postgres", **server}.items()}
    command = ["psql", "--no-psqlrc", "-At", *(word for item in statements for word in ("-c", item))]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[Any, str]]:
    """A client and a bucket of its own."""
    if len(S3) < 3:
        pytest.skip(f"no S3 that pods reach: set AWS_ENDPOINT_URL, {', '.join(KEYS)}")
    names = {"aws_access_key_id": S3[KEYS[0]], "aws_secret_access_key": S3[KEYS[1]]}
    client = boto3.client("s3", endpoint_url=S3["AWS_ENDPOINT_URL"], region_name="us-east-1", **names)
    name = f"test-mlflow-{secrets.token_hex(4)}"
    client.create_bucket(Bucket=name)
    yield client, name
    for item in client.list_objects_v2(Bucket=name).get("Contents", []):
        client.delete_object(Bucket=name, Key=item["Key"])
    client.delete_bucket(Bucket=name)


@pytest.fixture(scope="module")
def on_postgres(
    postgres: dict[str, str], bucket: tuple[Any, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The namespace of a server of component mlflow-postgres, under Pod Security `restricted`."""
    namespace = f"test-mlflow-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}})
    try:
        create_secret(namespace, "dit-s3", {key: S3[key] for key in KEYS})
        create_secret(namespace, "dit-mlflow", {USER: "dit", PASSWORD: secrets.token_hex(20)})
        server = {"MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(20), "PGPASSWORD": postgres["PASSWORD"]}
        server |= {"MLFLOW_AUTH_ADMIN_USERNAME": "admin", "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.token_hex(20)}
        create_secret(namespace, "dit-mlflow-server", server)
        folder = tmp_path_factory.mktemp("overlay")
        write_overlay(folder, namespace, settings(postgres, bucket[1]))
        apply(*yaml.safe_load_all(kubectl("kustomize", str(folder))))
        wait_for_server(namespace)
        yield namespace
    finally:
        kubectl("delete", "namespace", namespace, "--wait=false")


def settings(postgres: dict[str, str], bucket: str) -> dict[str, str]:
    s3 = {"AWS_ENDPOINT_URL_S3": S3["AWS_ENDPOINT_URL"], "AWS_REGION": "us-east-1"}
    place = {f"PG{key}": value for key, value in postgres.items() if key != "PASSWORD"}
    own = {"MLFLOW_BACKEND_STORE_URI": "postgresql://", "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{bucket}/mlflow"}
    return {**own, **s3, **place, "PGSSLMODE": "prefer", "MLFLOW_WORKERS": "2"}


def write_overlay(folder: Path, namespace: str, values: dict[str, str]) -> None:
    up = "/".join([".."] * len(folder.resolve().parts[1:]))
    name, _, digest = (ROOT / "build" / "mlflow.digest").read_text().strip().partition("@")
    kustomization = {
        "namespace": namespace,
        "resources": [f"{up}{ROOT}/mlflow"],
        "components": [f"{up}{ROOT}/k8s/components/mlflow-postgres"],
        "configMapGenerator": [{"name": "mlflow", "literals": [f"{key}={value}" for key, value in values.items()]}],
        "images": [{"name": "dit-scaling-mlflow", "newName": name, "digest": digest}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))


def create_secret(namespace: str, name: str, values: dict[str, str]) -> None:
    metadata = {"name": name, "namespace": namespace}
    apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values})


def wait_for_server(namespace: str) -> None:
    kubectl("rollout", "status", "deployment/mlflow", "-n", namespace, f"--timeout={PATIENCE_SECONDS}s")


def run_client(namespace: str, experiment: str) -> str:
    """Output of a client in a pod that has only MLflow's secret."""
    confined = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    values = {"MLFLOW_TRACKING_URI": "http://mlflow:5000", "EXPERIMENT": experiment, "HOME": "/tmp"}
    values["GIT_PYTHON_REFRESH"] = "quiet"
    container = {
        "name": "client",
        "image": (ROOT / "build" / "image.digest").read_text().strip(),
        "command": ["python", "-c", CLIENT],
        "env": [{"name": name, "value": value} for name, value in values.items()],
        "envFrom": [{"secretRef": {"name": "dit-mlflow"}}],
        "securityContext": confined,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client", "namespace": namespace}, "spec": spec})

    def ended() -> bool:
        pod = get("pod", "client", namespace)
        return pod is not None and pod["status"].get("phase") in ("Succeeded", "Failed")

    until("the client has ended", ended, PATIENCE_SECONDS)
    return kubectl("logs", "client", "-n", namespace)


def test_runs_of_pods_outlive_the_server_in_postgres_and_s3(
    on_postgres: str, postgres: dict[str, str], bucket: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, content = run_client(on_postgres, "kept").split()[-2:]
    assert content == "kept"
    assert query(postgres, f"select name, status from runs where run_uuid = '{run}'") == "from a pod|FINISHED"
    client, name = bucket
    keys = [item["Key"] for item in client.list_objects_v2(Bucket=name)["Contents"]]
    assert [key for key in keys if run in key and key.startswith("mlflow/") and key.endswith("/note.txt")]
    kubectl("delete", "pod", "-n", on_postgres, "-l", "app.kubernetes.io/name=mlflow", "--wait")
    wait_for_server(on_postgres)
    with reached(on_postgres) as server:
        assert server.status() == 401
        assert server.client(monkeypatch).get_run(run).data.metrics == {"fid": 12.5}
