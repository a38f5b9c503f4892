"""The settings, store and services that a study's pods use, reached from this machine."""

from __future__ import annotations

import base64
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from urllib.parse import urlsplit

from dit.errors import InputError, MissingError
from dit.study.cluster import ClusterConfig
from pipelines.cluster.client import Cluster
from pipelines.cluster.port_forward import HOST, forwarded

S3_ENDPOINT = "AWS_ENDPOINT_URL_S3"
_S3_KEY = "AWS_ACCESS_KEY_ID"
_TRACKING_URI = "MLFLOW_TRACKING_URI"
# Variables of the caller that would override the study's.
_OURS = (S3_ENDPOINT, "AWS_ENDPOINT_URL", _S3_KEY, "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
_SERVICE = re.compile(r"^([a-z0-9-]+)(?:\.([a-z0-9-]+)(?:\.svc(?:\.[a-z0-9.-]+)?)?)?$")


def settings(cluster: Cluster, config: ClusterConfig, namespace: str) -> dict[str, str]:
    """The variables of pods in a namespace: from config maps, secrets and `cluster.env`.

    Raises MissingError when an object or a key does not exist, ApiRefused when we may not read it.
    """
    variables: dict[str, str] = {}
    for kind, sources in (("configmap", config.config_maps), ("secret", config.secrets)):
        for name, keys in sources.items():
            data = data_of(cluster, kind, namespace, name)
            for key in keys:
                if key not in data:
                    raise MissingError(f"{kind} {namespace}/{name} has no key {key}; {see(kind, namespace, name)}")
                variables[key] = data[key]
    return {**variables, **config.env}


def data_of(cluster: Cluster, kind: str, namespace: str, name: str) -> dict[str, str]:
    """The content of a `configmap` or a `secret`, decoded.

    Raises MissingError when it does not exist.
    """
    manifest = cluster.ask_for(f"/api/v1/namespaces/{namespace}/{kind}s/{name}")
    if manifest is None:
        raise MissingError(f"{kind} {namespace}/{name} does not exist; {see(kind, namespace)}")
    data: Mapping[str, str] = manifest.get("data") or {}
    if kind == "secret":
        return {key: base64.b64decode(value).decode(errors="replace") for key, value in data.items()}
    return dict(data)


def see(kind: str, namespace: str, name: str = "") -> str:
    """The kubectl command that shows an object, or without a name all of its kind."""
    return f"kubectl describe {kind} -n {namespace} {name}" if name else f"kubectl get {kind}s -n {namespace}"


@contextmanager
def store_as_pods_see_it(variables: Mapping[str, str], namespace: str) -> Iterator[str]:
    """While the body runs, `open_store` uses the S3 server and credentials of these variables.

    The caller's own stay in use if the variables have none. Yields a description of the connection.
    """
    endpoint = variables.get(S3_ENDPOINT)
    with reached(endpoint, namespace) if endpoint else nullcontext(None) as local:
        given = {key: value for key, value in variables.items() if key.startswith("AWS_")}
        if local:
            given[S3_ENDPOINT] = local
        with _environment(given, hidden=_OURS if _S3_KEY in given else ()):
            yield how(endpoint, local) if endpoint and local else "with this machine's settings"


@contextmanager
def tracking_as_pods_see_it(variables: Mapping[str, str], namespace: str) -> Iterator[None]:
    """While the body runs, studies are tracked to the server of these variables; without one, as this machine does."""
    given = {key: value for key, value in variables.items() if key.startswith("MLFLOW_")}
    address = given.get(_TRACKING_URI, "")
    server = reached(address, namespace) if address.startswith("http") else nullcontext(address)
    with server as local, _environment({**given, _TRACKING_URI: local} if local else {}):
        yield


@contextmanager
def _environment(given: Mapping[str, str], hidden: Sequence[str] = ()) -> Iterator[None]:
    """While the body runs, this process has these variables, and not the `hidden` ones."""
    before = {key: os.environ[key] for key in {*given, *hidden} if key in os.environ}
    for key in before:
        del os.environ[key]
    os.environ.update(given)
    try:
        yield
    finally:
        for key in given:
            os.environ.pop(key, None)
        os.environ.update(before)


def how(address: str, local: str) -> str:
    """A description of how an address is reached."""
    return f"at {address}" + ("" if local == address else ", through kubectl port-forward")


@contextmanager
def reached(address: str, namespace: str) -> Iterator[str]:
    """An address on this machine for what the pods of a namespace reach at `address`.

    Names that only the cluster resolves go through kubectl port-forward.

    Raises ServiceUnreachable when forwarding fails, InputError for such a name with https.
    """
    parts = urlsplit(address)
    service = _service(parts.hostname or "", namespace)
    if service is None:
        yield address
        return
    if parts.scheme != "http":
        raise InputError(f"{address}: its certificate is not valid for a forwarded port; use http inside the cluster")
    with forwarded(*service, parts.port or 80) as forwarding:
        yield f"http://{HOST}:{forwarding.port}"


def _service(host: str, namespace: str) -> tuple[str, str] | None:
    """Namespace and name of the service behind a host name; None if this machine resolves the name."""
    match = _SERVICE.match(host)
    try:
        socket.getaddrinfo(host, None)
        return None
    except OSError:
        return (match[2] or namespace, match[1]) if match else None
