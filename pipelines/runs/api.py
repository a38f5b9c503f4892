"""A thin client of Kubeflow Pipelines: its calls, and two errors.

kfp's own client is used only to sign in: it has no timeouts, retries five times with tracebacks, prints, and stops
waiting for a run at the first error.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import kfp_server_api as server
import urllib3
import yaml
from kfp.client import Client

from dit.errors import DitError, InputError, one_line, root_cause
from pipelines.jobs.names import KFP_ENDPOINT
from pipelines.runs.model import Run, load_package, run_of, spec_of

_TIMEOUT = (5, 30)
_UI = "KF_PIPELINES_UI_ENDPOINT"
_SIGN_IN = (301, 302, 303, 307, 308, 401, 403)
_UNKNOWN = "unknown"
T = TypeVar("T")


class PipelinesUnavailable(DitError):
    """Kubeflow Pipelines cannot be reached or is overloaded; a retry may succeed."""


def endpoint_of(given: str | None) -> str:
    """The address `given`, or that of KFP_ENDPOINT.

    Raises InputError when there is none, or it is not a URL.
    """
    address = (given or os.environ.get(KFP_ENDPOINT) or "").rstrip("/")
    if not address:
        raise InputError(
            f"no address of Kubeflow Pipelines; set {KFP_ENDPOINT}, such as {KFP_ENDPOINT}="
            "http://localhost:8888 after kubectl port-forward -n kubeflow service/ml-pipeline 8888:8888"
        )
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(f"{KFP_ENDPOINT}={address}: not a URL; give http://HOST:PORT or https://HOST")
    return address


class Pipelines:
    """The server at one endpoint.

    Raises PipelinesUnavailable from every call, and DitError when the server refuses it.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        with warnings.catch_warnings(), self._errors():
            warnings.simplefilter("ignore")
            api = _Client(host=endpoint)._run_api.api_client
        # No retries here: the caller decides. No redirects either: they lead to a page for signing in.
        api.rest_client.pool_manager.connection_pool_kw["retries"] = False
        self._api = api
        self._runs, self._experiments = server.RunServiceApi(api), server.ExperimentServiceApi(api)

    def version(self) -> str:
        """The server's version; "unknown" if it does not give one.

        Raises InputError when the server is not Kubeflow Pipelines 2.
        """
        try:
            healthy = self._call(server.HealthzServiceApi(self._api).healthz_service_get_healthz)
        except _NotFound:
            healthy = None
        if healthy is None or healthy.multi_user is None:
            raise InputError(
                f"{self.endpoint} is not Kubeflow Pipelines 2; correct {KFP_ENDPOINT};"
                f" curl {self.endpoint}/apis/v2beta1/healthz"
            )
        # Only the v1beta1 API has the version, and some gateways block it.
        try:
            older = self._call(
                self._api.call_api,
                "/apis/v1beta1/healthz",
                "GET",
                response_type="object",
                auth_settings=["Bearer"],
                _return_http_data_only=True,
            )
            return str(older["tag_name"] or _UNKNOWN)
        except (DitError, KeyError, TypeError):
            return _UNKNOWN

    def experiment(self, name: str, create: bool = False) -> str | None:
        """Id of the experiment of this name, created if `create` is set; None if it does not exist."""
        chosen = {"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]}
        listed = self._call(
            self._experiments.experiment_service_list_experiments, filter=json.dumps(chosen), page_size=1
        ).experiments
        if listed:
            return str(listed[0].experiment_id)
        if not create:
            return None
        wanted = server.V2beta1Experiment(display_name=name)
        try:
            return str(self._call(self._experiments.experiment_service_create_experiment, wanted).experiment_id)
        except _Exists:
            # Another submission was faster.
            return self.experiment(name)

    def create(self, experiment: str, name: str, package: Path, account: str, caching: bool = True) -> str:
        """Start a run of a compiled file under a service account; returns the run's id."""
        body = server.V2beta1Run(
            experiment_id=experiment,
            display_name=name,
            pipeline_spec=load_package(package, caching),
            runtime_config=server.V2beta1RuntimeConfig(parameters={}),
            service_account=account,
        )
        return str(self._call(self._runs.run_service_create_run, body).run_id)

    def run(self, uid: str) -> Run:
        """The run of this id.

        Raises InputError when it does not exist.
        """
        try:
            return run_of(self._call(self._runs.run_service_get_run, uid))
        except _NotFound as error:
            raise InputError(f"run {uid}: {error}; to find the id: dit status STUDY") from None

    def latest(self, experiment: str, pipeline: str, root: str) -> Run | None:
        """The newest run of the pipeline of this name at this root, in the experiment of this id; None without one."""
        token = ""
        while True:
            answer = self._call(
                self._runs.run_service_list_runs,
                experiment_id=experiment,
                sort_by="created_at desc",
                page_size=50,
                page_token=token,
            )
            for item in answer.runs or []:
                if spec_of(item.pipeline_spec).get("pipelineInfo", {}).get("name") != pipeline:
                    continue
                run = self.run(str(item.run_id))
                if str(run.parameters.get("root", root)).rstrip("/") == root.rstrip("/"):
                    return run
            token = answer.next_page_token or ""
            if not token:
                return None

    def terminate(self, uid: str) -> None:
        """End a run and kill its steps.

        Raises InputError when the run does not exist or has ended.
        """
        run = self.run(uid)
        if run.over:
            raise InputError(f"run {uid} ({run.name}) has ended already, {run.state}; dit reap --once")
        self._call(self._runs.run_service_terminate_run, uid)

    def url(self, uid: str) -> str:
        """Where a browser shows the run."""
        return f"{(os.environ.get(_UI) or self.endpoint).rstrip('/')}/#/runs/details/{uid}"

    def _call(self, method: Callable[..., T], *arguments: Any, **options: Any) -> T:
        with self._errors():
            return method(*arguments, _request_timeout=_TIMEOUT, **options)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except server.ApiException as error:
            raise self._answered(error) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise PipelinesUnavailable(
                f"Kubeflow Pipelines at {self.endpoint} cannot be reached ({_cause(error)}); start its server, or"
                f" correct {KFP_ENDPOINT}"
            ) from error
        except (server.OpenApiException, ValueError, TypeError, AttributeError) as error:
            raise DitError(
                f"{self.endpoint}: not a response of Kubeflow Pipelines 2 ({one_line(error)}); correct {KFP_ENDPOINT}"
            ) from error

    def _answered(self, error: server.ApiException) -> DitError:
        where, message = f"Kubeflow Pipelines at {self.endpoint}", _message(error)
        if error.status in _SIGN_IN:
            return InputError(
                f"{where} requires you to sign in ({error.status}); bypass its gateway:"
                " kubectl port-forward -n kubeflow service/ml-pipeline 8888:8888"
            )
        if error.status in (404, 409):
            return (_NotFound if error.status == 404 else _Exists)(f"{where}: {message}")
        if not error.status or error.status == 429 or error.status >= 500:
            return PipelinesUnavailable(
                f"{where}: {message}; see its log: kubectl logs -n kubeflow deployment/ml-pipeline"
            )
        return InputError(f"{where}: refused: {message}")


class _NotFound(InputError):
    """The object or the API does not exist."""


class _Exists(InputError):
    """The object exists already."""


class _Client(Client):  # type: ignore[misc]
    """kfp's client without its first request, which takes half a minute if the server is down."""

    def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:  # noqa: ARG002
        """Skip the request. The client only needs `multi_user`."""
        return server.V2beta1GetHealthzResponse(multi_user=False)


def _message(error: server.ApiException) -> str:
    try:
        tree = yaml.safe_load(error.body)
        return one_line(tree.get("message") or tree["error"])
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        return f"{error.status} {error.reason}"


def _cause(error: BaseException) -> str:
    inner = root_cause(error)
    return (inner.strerror if isinstance(inner, OSError) else None) or one_line(inner)
