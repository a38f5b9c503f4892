"""Runs of Kubeflow Pipelines, as thin as can be: calls, and their two ways to fail.

kfp's own client signs in, and does nothing else here: it has no time limits, asks a server that is away five times
with tracebacks, prints, and lets go of a run at the first error while it waits for its end.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import kfp_server_api as server
import urllib3
import yaml
from kfp.client import Client

from dit.errors import DitError, InputError

ENDPOINT = "KFP_ENDPOINT"
EXPERIMENT = "dit"
SUCCEEDED, FAILED = "SUCCEEDED", "FAILED"
ENDED = frozenset({SUCCEEDED, FAILED, "CANCELED", "SKIPPED"})

_TIMEOUT = (5, 30)
_UI = "KF_PIPELINES_UI_ENDPOINT"
_SIGN_IN = (301, 302, 303, 307, 308, 401, 403)
_UNKNOWN = "unknown"
T = TypeVar("T")


class PipelinesUnavailable(DitError):
    """The server of Kubeflow Pipelines cannot be reached or cannot answer; the same call may succeed later."""


@dataclass(frozen=True)
class Task:
    """One step of a run, or one of the parts that it is made of."""

    name: str
    state: str
    """As the server spells it: RUNNING, SUCCEEDED ...; empty before it has one."""
    started: datetime | None = None
    ended: datetime | None = None


@dataclass(frozen=True)
class Run:
    """A run as it is now."""

    uid: str
    name: str
    state: str
    created: datetime | None = None
    ended: datetime | None = None
    message: str = ""
    tasks: tuple[Task, ...] = ()
    titles: Mapping[str, str] = field(default_factory=dict)
    """Name of a step in the compiled file -> the one that people know, in the order of the file."""
    study: str = ""
    """The study's text, as it was submitted."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Values of the pipeline's parameters."""

    @property
    def over(self) -> bool:
        """Whether its state stays so."""
        return self.state in ENDED


def endpoint_of(given: str | None) -> str:
    """The address given, or that of the environment; InputError where there is none, or it is none."""
    address = (given or os.environ.get(ENDPOINT) or "").rstrip("/")
    if not address:
        raise InputError(
            f"no server of Kubeflow Pipelines is named; set {ENDPOINT}, such as"
            f" {ENDPOINT}=http://localhost:8888 after kubectl port-forward -n kubeflow service/ml-pipeline 8888:8888"
        )
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(f"{ENDPOINT}={address}: no address; give http://HOST:PORT or https://HOST")
    return address


class Pipelines:
    """The server at one endpoint. Every call raises PipelinesUnavailable, or DitError where it says no."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        with warnings.catch_warnings(), self._errors():
            warnings.simplefilter("ignore")
            api = _Client(host=endpoint)._run_api.api_client
        # Whoever calls decides how often and how long; a redirection leads to a page to sign in at.
        api.rest_client.pool_manager.connection_pool_kw["retries"] = False
        self._api = api
        self._runs, self._experiments = server.RunServiceApi(api), server.ExperimentServiceApi(api)

    def version(self) -> str:
        """What the server says it is, "unknown" where it keeps that to itself.

        InputError for a server of something else.
        """
        try:
            healthy = self._call(server.HealthzServiceApi(self._api).healthz_service_get_healthz)
        except _NotFound:
            healthy = None
        if healthy is None or healthy.multi_user is None:
            raise InputError(
                f"{self.endpoint} answers, and not as Kubeflow Pipelines 2 does; correct {ENDPOINT};"
                f" curl {self.endpoint}/apis/v2beta1/healthz"
            )
        # Only the older interface tells the version, and not every gateway lets it through.
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
        """Id of the experiment of this name; where there is none, None or that of a new one."""
        chosen = {"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]}
        listed = self._call(
            self._experiments.experiment_service_list_experiments, filter=json.dumps(chosen), page_size=1
        ).experiments
        if listed:
            return str(listed[0].experiment_id)
        if not create:
            return None
        wanted = server.V2beta1Experiment(display_name=name)
        return str(self._call(self._experiments.experiment_service_create_experiment, wanted).experiment_id)

    def create(self, experiment: str, name: str, package: Path, account: str, caching: bool = True) -> str:
        """Start a run of a compiled file as a service account; its id."""
        body = server.V2beta1Run(
            experiment_id=experiment,
            display_name=name,
            pipeline_spec=load_package(package, caching),
            runtime_config=server.V2beta1RuntimeConfig(parameters={}),
            service_account=account,
        )
        return str(self._call(self._runs.run_service_create_run, body).run_id)

    def run(self, uid: str) -> Run:
        """The run of this id; InputError where there is none."""
        try:
            return _run(self._call(self._runs.run_service_get_run, uid))
        except _NotFound as error:
            raise InputError(f"run {uid}: {error}; see which there are: make status") from None

    def latest(self, experiment: str, pipeline: str) -> Run | None:
        """The newest run of a pipeline, by its name, in an experiment, by its id; None where there is none."""
        token = ""
        while True:
            answer = self._call(
                self._runs.run_service_list_runs,
                experiment_id=experiment,
                sort_by="created_at desc",
                page_size=50,
                page_token=token,
            )
            for one in answer.runs or []:
                if _spec(one.pipeline_spec).get("pipelineInfo", {}).get("name") == pipeline:
                    return self.run(str(one.run_id))
            token = answer.next_page_token or ""
            if not token:
                return None

    def terminate(self, uid: str) -> None:
        """End a run; its steps are killed. InputError where there is none that goes on."""
        found = self.run(uid)
        if found.over:
            raise InputError(f"run {uid} ({found.name}) has ended already, {found.state}; make clean-jobs")
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
                f" correct {ENDPOINT}"
            ) from error
        except (server.OpenApiException, ValueError, TypeError, AttributeError) as error:
            raise DitError(
                f"{self.endpoint}: its answer is not that of Kubeflow Pipelines 2 ({_line(error)}); correct {ENDPOINT}"
            ) from error

    def _answered(self, error: server.ApiException) -> DitError:
        where, said = f"Kubeflow Pipelines at {self.endpoint}", _message(error)
        if error.status in _SIGN_IN:
            return InputError(
                f"{where} wants you to sign in ({error.status}); reach it past its gateway:"
                " kubectl port-forward -n kubeflow service/ml-pipeline 8888:8888"
            )
        if error.status == 404:
            return _NotFound(f"{where}: {said}")
        if not error.status or error.status == 429 or error.status >= 500:
            return PipelinesUnavailable(
                f"{where}: {said}; see its log: kubectl logs -n kubeflow deployment/ml-pipeline"
            )
        return InputError(f"{where}: refused: {said}")


class _NotFound(InputError):
    """There is no such thing, or no such server."""


class _Client(Client):  # type: ignore[misc]
    """kfp's client without its question at the start, which a server that is away leaves it at for half a minute."""

    def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:  # noqa: ARG002
        """Says no to whether users have namespaces of their own, which is all that is asked for."""
        return server.V2beta1GetHealthzResponse(multi_user=False)


def load_package(package: Path, caching: bool = True) -> dict[str, Any]:
    """A compiled file as the server takes it; without `caching` no step is taken over from an earlier run."""
    try:
        documents = list(yaml.safe_load_all(package.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{package}: {error.strerror or error}; make compile") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError(f"{package}: is no compiled pipeline; make compile") from None
    spec, *platform = documents
    if not caching:
        for group in (spec["root"], *spec.get("components", {}).values()):
            for task in group.get("dag", {}).get("tasks", {}).values():
                task["cachingOptions"] = {}
    return {"pipeline_spec": spec, "platform_spec": platform[0]} if platform else dict(spec)


def _run(found: Any) -> Run:
    details, spec = found.run_details.task_details if found.run_details else None, _spec(found.pipeline_spec)
    return Run(
        uid=str(found.run_id),
        name=str(found.display_name),
        state=str(found.state or ""),
        created=_time(found.created_at),
        ended=_time(found.finished_at),
        message=_said(found.error),
        tasks=tuple(_task(one) for one in details or []),
        titles={name: task.get("taskInfo", {}).get("name", name) for name, task in _tasks(spec).items()},
        study=next((text for task in _tasks(spec).values() if (text := _constant(task, "study"))), ""),
        parameters=_parameters(spec, found.runtime_config),
    )


def _spec(package: Mapping[str, Any] | None) -> Mapping[str, Any]:
    found: Mapping[str, Any] = package or {}
    return found.get("pipeline_spec", found)  # type: ignore[no-any-return]


def _tasks(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = spec.get("root", {}).get("dag", {}).get("tasks", {})
    return found


def _constant(task: Mapping[str, Any], name: str) -> str:
    given = task.get("inputs", {}).get("parameters", {}).get(name, {})
    return str(given.get("runtimeValue", {}).get("constant", ""))


def _parameters(spec: Mapping[str, Any], runtime: Any) -> dict[str, Any]:
    known = spec.get("root", {}).get("inputDefinitions", {}).get("parameters", {})
    values = {name: one["defaultValue"] for name, one in known.items() if "defaultValue" in one}
    return values | ((runtime.parameters if runtime else None) or {})


def _task(found: Any) -> Task:
    return Task(
        name=str(found.display_name or ""),
        state=str(found.state or ""),
        started=_time(found.start_time),
        ended=_time(found.end_time),
    )


def _time(found: datetime | None) -> datetime | None:
    """None also for the server's way to say that there is none, the year 1970 or 1."""
    if found is None:
        return None
    aware = found if found.tzinfo else found.replace(tzinfo=UTC)
    return aware if aware.year > 1970 else None


def _said(error: Any) -> str:
    return _line(error.message) if error is not None and error.message else ""


def _message(error: server.ApiException) -> str:
    try:
        tree = yaml.safe_load(error.body)
        return _line(tree.get("message") or tree["error"])
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        return f"{error.status} {error.reason}"


def _cause(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return (error.strerror if isinstance(error, OSError) else None) or _line(error)


def _line(text: object) -> str:
    return " ".join(str(text).split())
