"""Access to the cluster under test: read, apply, wait, forward a port."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import yaml
from kubernetes import config
from kubernetes.client import ApiClient, ApiException
from ports import reserved_port
from urllib3.exceptions import HTTPError

from dit.errors import StoreError

NAMESPACE = "dit-scaling"
SERVICES = "dit-scaling-services"
SESSION = f"t{uuid.uuid4().hex[:5]}"
"""Part of the names of all objects of this session: others may use the cluster. Must not be a YAML number."""
OURS = {"dit-scaling/test": SESSION}
"""Label of this session's objects, except jobs."""
SELECTOR = f"dit-scaling/test={SESSION}"
Object = dict[str, Any]
_PATHS = {
    "pod": "api/v1/pods",
    "pods": "api/v1/pods",
    "secret": "api/v1/secrets",
    "configmap": "api/v1/configmaps",
    "deployment": "apis/apps/v1/deployments",
    "pytorchjobs.kubeflow.org": "apis/kubeflow.org/v1/pytorchjobs",
    "trainjobs.trainer.kubeflow.org": "apis/trainer.kubeflow.org/v1alpha1/trainjobs",
    "workflows.argoproj.io": "apis/argoproj.io/v1alpha1/workflows",
}
T = TypeVar("T")


class Refused(Exception):
    """kubectl failed; the text is its error."""


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """The output of kubectl.

    Raises Refused when it fails.
    """
    done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(done.stderr.strip())
    return done.stdout


def apply(*manifests: Object) -> None:
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=yaml.safe_dump_all(manifests))


def get(kind: str, name: str, namespace: str = NAMESPACE) -> Object | None:
    """An object; None if it does not exist."""
    if kind in _PATHS:
        return _ask(kind, namespace, name)
    text = kubectl("get", kind, name, "-n", namespace, "--ignore-not-found", "-o", "json")
    return json.loads(text) if text else None


def find(kind: str, selector: str = "", namespace: str = NAMESPACE) -> list[Object]:
    """Objects with these labels; an empty list if the cluster does not serve the kind."""
    return (_ask(kind, namespace, labelSelector=selector) or {"items": []})["items"]


def _ask(kind: str, namespace: str, name: str = "", **query: str) -> Object | None:
    """The response of the API server; None if the object does not exist.

    Does not use kubectl: tests poll every second for minutes, and a process each time takes a fifth of a core.

    Raises Refused when the server does not answer.
    """
    group, _, plural = _PATHS[kind].rpartition("/")
    path = f"/{group}/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "")
    try:
        answer = _client().call_api(
            path,
            "GET",
            query_params=list(query.items()),
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=(5, 30),
        )
    except ApiException as error:
        if error.status == 404:
            return None
        raise Refused(f"{path}: {error.status} {error.reason}") from error
    except (HTTPError, OSError) as error:
        raise Refused(f"{path}: {error}") from error
    return json.loads(answer.data)


@cache
def _client() -> ApiClient:
    try:
        return config.new_client_from_config(os.environ.get("KUBECONFIG"))
    except config.ConfigException as error:
        raise Refused(f"no cluster: {error}") from error


def delete(kind: str, name: str, namespace: str = NAMESPACE, *, wait: bool = True) -> None:
    """Delete an object at once and wait until it is gone; does nothing if it does not exist."""
    kubectl("delete", kind, name, "-n", namespace, "--ignore-not-found", "--grace-period=1", f"--wait={wait}".lower())


def has_crd(name: str) -> bool:
    return bool(kubectl("get", "crd", name, "--ignore-not-found", "-o", "name"))


def until(what: str, look: Callable[[], T], seconds: float, pause: float = 1.0) -> T:
    """Wait for the first true result of `look`, and return it; unavailable servers are retried."""
    end = time.monotonic() + seconds
    trouble = ""
    while True:
        try:
            if result := look():
                return result
        except (Refused, StoreError) as error:
            trouble = f" ({error})"
        if time.monotonic() > end:
            break
        time.sleep(pause)
    raise AssertionError(f"not within {seconds:g} s: {what}{trouble}")


@contextmanager
def forwarded(service: str, port: int) -> Iterator[str]:
    """`host:port` of this machine, forwarded to a service even after its pod was replaced."""
    closing = threading.Event()
    running: list[subprocess.Popen[bytes]] = []

    def keep(command: list[str]) -> None:
        while not closing.is_set():
            running[:] = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)]
            running[0].wait()
            closing.wait(1.0)

    with reserved_port() as local:
        command = ["kubectl", "port-forward", "-n", SERVICES, f"service/{service}", f"{local}:{port}"]
        keeper = threading.Thread(target=keep, args=(command,), daemon=True)
        keeper.start()
        try:
            yield f"127.0.0.1:{local}"
        finally:
            closing.set()
            for process in running:
                process.terminate()
            keeper.join(10.0)
