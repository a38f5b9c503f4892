"""`dit ui-cluster`: opens the MLflow server of an overlay through a forwarded port."""

from __future__ import annotations

import base64
import json
import signal
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from contextlib import suppress

import yaml

from dit.errors import DitError, InputError
from dit.study.config import StudyConfig
from dit.tracking.mlflow_ui import DIRECTLY, free_port
from dit.tracking.mlflow_view import view_page
from pipelines.cluster.kubectl import check_cluster, kubectl
from pipelines.cluster.port_forward import HOST, forwarded
from pipelines.deploy import ROOT, overlays

SERVICE, SECRET = "mlflow", "dit-mlflow"
USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"


def namespace_of(overlay: str) -> str:
    """Namespace of an overlay's MLflow server.

    Raises InputError when the overlay does not exist or has no server.
    """
    if overlay not in overlays():
        raise InputError(f"overlay {overlay} does not exist; choose from {', '.join(overlays())}")
    for manifest in yaml.safe_load_all(kubectl("kustomize", str(ROOT / "k8s" / "overlays" / overlay))):
        if manifest and (manifest["kind"], manifest["metadata"]["name"]) == ("Service", SERVICE):
            return str(manifest["metadata"]["namespace"])
    raise InputError(f"overlay {overlay} has no MLflow server; choose another, such as: dit ui-cluster kind STUDY")


def credentials(namespace: str) -> Mapping[str, str]:
    """User and password of MLflow's administrator.

    Raises DitError when the secret cannot be read.
    """
    secret = json.loads(kubectl("get", "secret", SECRET, "-n", namespace, "-o", "json"))
    return {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


def find_experiment(base: str, name: str, login: Mapping[str, str]) -> str | None:
    """Id of an experiment on the server; None if it does not exist.

    Raises DitError when the server does not answer or refuses.
    """
    query = urllib.parse.urlencode({"experiment_name": name})
    request = urllib.request.Request(f"{base}/api/2.0/mlflow/experiments/get-by-name?{query}")
    token = base64.b64encode(f"{login[USER]}:{login[PASSWORD]}".encode()).decode()
    request.add_header("Authorization", f"Basic {token}")
    try:
        with DIRECTLY.open(request, timeout=60) as answer:
            return str(json.load(answer)["experiment"]["experiment_id"])
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise DitError(f"MLflow answers {error.code} {error.reason}; check the password in secret {SECRET}") from None
    except OSError as error:
        raise DitError(f"MLflow does not answer: {error}; see kubectl logs deployment/{SERVICE}") from None


def show(overlay: str, config: StudyConfig, port: int) -> None:
    """Forward the port, print the address of the study's view and the login, and wait for Ctrl-C."""
    # Also SIGINT: shells ignore it in background processes.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        _show(overlay, config, port)


def _show(overlay: str, config: StudyConfig, port: int) -> None:
    namespace = namespace_of(overlay)
    check_cluster()
    port = free_port(HOST, port)
    base = f"http://{HOST}:{port}"
    remedy = f"deploy it first: dit deploy {overlay}"
    with forwarded(namespace, SERVICE, 5000, port, remedy) as forwarding:
        login = credentials(namespace)
        name = config.tracking.experiment or config.study
        experiment = find_experiment(base, name, login)
        if experiment is None:
            _say(f"MLflow is at {base} and has no experiment {name} yet (Ctrl-C ends it)")
        else:
            _say(f"MLflow shows study {config.study} at {base}{view_page(experiment, config.study)} (Ctrl-C ends it)")
        reveal = f"kubectl get secret {SECRET} -n {namespace} -o jsonpath='{{.data.{PASSWORD}}}' | base64 -d"
        _say(f"user {login[USER]}, password: {reveal}")
        raise DitError(f"kubectl port-forward ended: {forwarding.wait()}; run dit ui-cluster again")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
