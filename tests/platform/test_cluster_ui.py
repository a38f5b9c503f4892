"""`dit ui-cluster` with a fake kubectl, which forwards to an MLflow server with one study."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from manifests import needs_kubectl
from ports import reserved_port

ROOT = Path(__file__).parents[2]
STUDY = "configs/digits.yaml"
pytestmark = needs_kubectl

KUBECTL = """#!{python}
import base64, json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
arguments = sys.argv[1:]
if arguments[0] == "kustomize":
    os.execv({real!r}, ["kubectl", *arguments])
if {lacks!r} in arguments:
    sys.exit("Error from server (NotFound): " + {lacks!r} + " not found")
if arguments[:2] == ["get", "secret"]:
    login = {{"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "swordfish"}}
    print(json.dumps({{"data": {{key: base64.b64encode(value.encode()).decode() for key, value in login.items()}}}}))

class Mlflow(BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.headers["Authorization"] == "Basic " + base64.b64encode(b"admin:swordfish").decode()
        self.send_response((200 if self.path.endswith("=" + {known!r}) else 404) if known else 401)
        self.end_headers()
        self.wfile.write(json.dumps({{"experiment": {{"experiment_id": "7"}}}}).encode())
    def log_message(self, *_):
        pass

if arguments[0] == "port-forward":
    server = HTTPServer(("127.0.0.1", int(arguments[-1].split(":")[0])), Mlflow)
    print(f"Forwarding from 127.0.0.1:{{server.server_port}} -> 5000", flush=True)
    server.serve_forever()
"""


class Cluster:
    """A folder with the fake kubectl."""

    def __init__(self, folder: Path) -> None:
        self._program = folder / "kubectl"
        self._real = shutil.which("kubectl")
        self.arrange()

    def arrange(self, *, lacks: str = "", known: str = "digits") -> None:
        text = KUBECTL.format(python=sys.executable, real=self._real, lacks=lacks, known=known)
        self._program.write_text(text)
        self._program.chmod(0o755)

    def start(self, overlay: str) -> subprocess.Popen[str]:
        """The command, with a free port; its standard error is a pipe."""
        with reserved_port() as self.port:
            command = [sys.executable, "-m", "dit", "ui-cluster", overlay, STUDY, "--port", str(self.port)]
        # What listens at a forwarded port is not behind the proxy; here nothing is.
        environment = os.environ | {"PATH": f"{self._program.parent}:{os.environ['PATH']}"}
        environment |= {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_the_address_of_the_view_is_printed_but_not_the_password(cluster: Cluster) -> None:
    process = cluster.start("kind")
    assert process.stderr is not None
    lines = [process.stderr.readline(), process.stderr.readline()]
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0
    address = re.search(r"http://127\.0\.0\.1:(\d+)/#/experiments/7/runs\?viewStateShareKey=digits", lines[0])
    assert address
    assert int(address[1]) >= cluster.port
    assert re.search(
        r"user admin, password: kubectl get secret dit-mlflow -n dit-scaling-services .*base64 -d", lines[1]
    )
    assert "swordfish" not in "".join(lines)


def test_a_missing_experiment_is_reported(cluster: Cluster) -> None:
    cluster.arrange(known="another")
    process = cluster.start("kind")
    assert process.stderr is not None
    assert "no experiment digits yet" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0


@pytest.mark.parametrize(
    ("overlay", "lacks", "message"),
    [
        ("kind", "--raw", "no cluster answers .* set KUBECONFIG"),
        ("kind", "service/mlflow", "service/mlflow not found; deploy it first: dit deploy kind"),
        ("kind", "dit-mlflow", "dit-mlflow not found"),
        ("pipelines", "", "overlay pipelines has no MLflow server; choose another, such as: dit ui-cluster kind STUDY"),
        ("kind-of", "", "overlay kind-of does not exist; choose from a100, kind"),
    ],
)
def test_each_missing_prerequisite_is_a_one_line_error(
    cluster: Cluster, overlay: str, lacks: str, message: str
) -> None:
    cluster.arrange(lacks=lacks)
    process = cluster.start(overlay)
    _, error = process.communicate()
    assert process.returncode != 0
    assert re.fullmatch(rf"dit: .*{message}.*\n", error), error
