"""A thin client of the Kubernetes API: its calls, and two errors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import urllib3
from kubernetes import client as k8s
from kubernetes import config as k8s_config
from kubernetes.config.incluster_config import InClusterConfigLoader

from dit.errors import DitError, InputError, one_line
from pipelines.cluster.objects import Object, Resource

WORKFLOWS = Resource("argoproj.io", "v1alpha1", "workflows", "Workflow")
WORKLOADS = Resource("kueue.x-k8s.io", "v1beta1", "workloads", "Workload")
UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT = 401, 403, 404, 409

_TIMEOUT = (5, 30)
_LOG_TIMEOUT = (5, 300)
_CONNECTIONS = 64
_OWN_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LAUNCHER_ACCOUNT = Path("/var/run/secrets/dit-scaling/launcher")
"""Folder in which a step that starts jobs has the token of the launcher's account; its pod's own may not start jobs."""
T = TypeVar("T")


class ApiUnavailable(DitError):
    """The API server cannot be reached or is overloaded; a retry may succeed."""


class ApiRefused(DitError):
    """The API server refused the call."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Cluster:
    """One namespace of a cluster.

    Raises ApiUnavailable or ApiRefused from every call.
    """

    def __init__(self, api: k8s.ApiClient, namespace: str) -> None:
        self.namespace = namespace
        self._api = api
        self._custom, self._core = k8s.CustomObjectsApi(api), k8s.CoreV1Api(api)

    @classmethod
    def connect(cls) -> Cluster:
        """The cluster and namespace that this pod runs in; outside a pod, those of KUBECONFIG.

        A pod is the account whose token is in `LAUNCHER_ACCOUNT`, or else its own.

        Raises InputError when there is neither.
        """
        try:
            if "KUBERNETES_SERVICE_HOST" in os.environ and (_OWN_ACCOUNT / "namespace").is_file():
                account = LAUNCHER_ACCOUNT if (LAUNCHER_ACCOUNT / "token").is_file() else _OWN_ACCOUNT
                InClusterConfigLoader(str(account / "token"), str(account / "ca.crt")).load_and_set()
                own = (_OWN_ACCOUNT / "namespace").read_text().strip()
            else:
                # Read now: the client read the variable when it was imported.
                file = os.environ.get("KUBECONFIG") or None
                k8s_config.load_kube_config(file)
                own = k8s_config.list_kube_config_contexts(file)[1]["context"].get("namespace", "default")
        except (k8s_config.ConfigException, OSError) as error:
            raise InputError(
                f"no cluster: {one_line(error)}; set KUBECONFIG to a cluster's file; kubectl get namespaces"
            ) from None
        settings = k8s.Configuration.get_default_copy()
        settings.connection_pool_maxsize = _CONNECTIONS
        settings.retries = False
        return cls(k8s.ApiClient(settings), own)

    @property
    def server(self) -> str:
        """Address of the API server."""
        return str(self._api.configuration.host)

    def within(self, namespace: str) -> Cluster:
        """The same cluster, in another namespace."""
        return Cluster(self._api, namespace)

    def ask(self, path: str, body: Object | None = None) -> dict[str, Any]:
        """The JSON response to a GET of an API path such as `/version`, or to a POST of `body`."""
        return self._call(
            self._api.call_api,
            path,
            "GET" if body is None else "POST",
            body=None if body is None else dict(body),
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
            response_type="object",
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
        )

    def ask_for(self, path: str) -> dict[str, Any] | None:
        """The JSON response to a GET of an API path; None if nothing is there."""
        return _absent_as_none(lambda: self.ask(path))

    def create(self, resource: Resource, manifest: Object) -> dict[str, Any]:
        """Create an object and return it.

        Raises ApiRefused with CONFLICT when the name is taken.
        """
        return self._call(self._custom.create_namespaced_custom_object, *self._of(resource), dict(manifest))

    def get(self, resource: Resource, name: str) -> dict[str, Any] | None:
        """The object; None if it does not exist."""
        return _absent_as_none(lambda: self._call(self._custom.get_namespaced_custom_object, *self._of(resource), name))

    def find(self, resource: Resource, selector: str) -> list[dict[str, Any]]:
        """Objects with these labels; an empty list if the cluster does not serve the kind."""
        answer = _absent_as_none(
            lambda: self._call(self._custom.list_namespaced_custom_object, *self._of(resource), label_selector=selector)
        )
        return answer["items"] if answer else []

    def patch(self, resource: Resource, name: str, change: Object) -> dict[str, Any]:
        """Merge `change` into an object and return the result."""
        return self._call(self._custom.patch_namespaced_custom_object, *self._of(resource), name, dict(change))

    def delete(self, resource: Resource, name: str, uid: str, version: str | None = None) -> bool:
        """Delete the object with this uid, and all that it owns; with `version`, only if it has not changed since.

        Returns False if it is gone, was replaced by another of the same name, or has changed.
        """
        condition = k8s.V1Preconditions(uid=uid, resource_version=version)
        options = k8s.V1DeleteOptions(propagation_policy="Background", preconditions=condition)
        try:
            self._call(self._custom.delete_namespaced_custom_object, *self._of(resource), name, body=options)
        except ApiRefused as error:
            if error.status not in (NOT_FOUND, CONFLICT):
                raise
            return False
        return True

    def delete_pods(self, selector: str, grace_seconds: int) -> None:
        """Delete the pods with these labels, also terminating ones; they are killed after the grace period."""
        self._call(
            self._core.delete_collection_namespaced_pod,
            self.namespace,
            label_selector=selector,
            grace_period_seconds=grace_seconds,
            _preload_content=False,
        )

    def pods(self, selector: str) -> list[dict[str, Any]]:
        """Pods with these labels."""
        return self._items(self._core.list_namespaced_pod, label_selector=selector)

    def pod(self, name: str) -> dict[str, Any] | None:
        """One pod; None if it does not exist."""
        answer = self._items(self._core.list_namespaced_pod, field_selector=f"metadata.name={name}")
        return answer[0] if answer else None

    def events(self, kind: str, name: str) -> list[dict[str, Any]]:
        """Events about one object."""
        return self._items(
            self._core.list_namespaced_event,
            field_selector=f"involvedObject.kind={kind},involvedObject.name={name}",
        )

    def last_log(self, pod: str, container: str, lines: int) -> str:
        """The last lines of a container's log."""
        with _translated():
            answer = self._read_log(pod, container, _TIMEOUT, tail_lines=lines)
            return str(answer.data.decode(errors="replace"))

    @contextmanager
    def log(self, pod: str, container: str, since_seconds: int | None) -> Iterator[Iterator[bytes]]:
        """Follow a container's log until the container or the connection ends; each line begins with its time stamp."""
        with _translated():
            options = {"follow": True, "timestamps": True, "since_seconds": since_seconds}
            response = self._read_log(pod, container, _LOG_TIMEOUT, **options)
            try:
                yield response.stream()
            finally:
                response.close()

    def _read_log(self, pod: str, container: str, timeout: tuple[int, int], **options: Any) -> Any:
        options |= {"container": container, "_preload_content": False, "_request_timeout": timeout}
        return self._core.read_namespaced_pod_log(pod, self.namespace, **options)

    def _of(self, resource: Resource) -> Sequence[str]:
        return resource.group, resource.version, self.namespace, resource.plural

    def _items(self, method: Callable[..., Any], **selectors: str) -> list[dict[str, Any]]:
        # Plain JSON: the typed models reject a whole list if a newer server fills one field in another way.
        with _translated():
            answer = method(self.namespace, _preload_content=False, _request_timeout=_TIMEOUT, **selectors)
            items: list[dict[str, Any]] = json.loads(answer.data)["items"]
            return items

    def _call(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> dict[str, Any]:
        with _translated():
            answer: dict[str, Any] = method(*arguments, _request_timeout=_TIMEOUT, **options)
            return answer


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except k8s.ApiException as error:
        message = _message(error)
        if error.status == 429 or error.status >= 500 or error.status == 0:
            raise ApiUnavailable(f"the cluster's API: {message}") from error
        raise ApiRefused(message, error.status) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise ApiUnavailable(f"the cluster's API cannot be reached: {one_line(error)}") from error


def _message(error: k8s.ApiException) -> str:
    try:
        return one_line(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"


def _absent_as_none(call: Callable[[], T]) -> T | None:
    try:
        return call()
    except ApiRefused as error:
        if error.status != NOT_FOUND:
            raise
        return None
