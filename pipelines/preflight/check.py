"""Runs all checks, and prints their table.

preflight(config, "s3://bucket/dit", endpoint="http://localhost:8888")
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from dit.console import table
from dit.errors import DitError, InputError
from dit.planning.cost import check_job_size
from dit.study.config import StudyConfig
from pipelines.cluster.client import FORBIDDEN, ApiRefused, Cluster
from pipelines.jobs.names import KFP_ENDPOINT, RUNS_NAMESPACE
from pipelines.preflight import capacity, endpoints, objects, permissions
from pipelines.preflight.finding import Check, Finding, Mark, Site, failed, ok, unknown
from pipelines.runs.api import Pipelines

_OF_CLUSTER: tuple[tuple[str, Check], ...] = (
    ("job", objects.job_kind),
    ("namespaces", objects.namespace),
    ("service accounts", objects.accounts),
    ("rights", permissions.launcher),
    ("settings", objects.settings),
    ("names that jobs may use", objects.allowed),
    ("priority class", objects.priority),
    ("image pull secrets", objects.pull_secrets),
    ("reaper", objects.reaper),
    ("nodes", capacity.nodes),
    ("queue", capacity.queue),
    ("bucket", endpoints.store),
    ("MLflow", endpoints.tracking),
)


def preflight(config: StudyConfig, root: str, endpoint: str | None, runs: str = RUNS_NAMESPACE) -> None:
    """Run all checks and print their table.

    With `endpoint`, checks a run of Kubeflow Pipelines with steps in namespace `runs`; without, only the jobs.

    Raises InputError when a check failed, or before any check when the batch does not fit the job.
    """
    if not root.startswith("s3://"):
        raise InputError(f"root {root}: pods cannot reach a folder of this machine; give s3://bucket/prefix")
    check_job_size(config)
    findings = list(examine(config, root, endpoint, runs))
    rows = [(finding.mark.value, finding.subject, finding.text) for finding in findings]
    table(("", "check", "found"), rows, title=f"preflight of {config.study}, {root}")
    wrong = [finding.subject for finding in findings if finding.mark is Mark.FAILED]
    if wrong:
        raise InputError(f"preflight: {len(wrong)} of {len(findings)} checks failed: {', '.join(wrong)}")


def examine(config: StudyConfig, root: str, endpoint: str | None, runs: str) -> Iterator[Finding]:
    """The findings of all checks; an error in a check is a finding, too."""
    yield from _server(endpoint)
    try:
        cluster = Cluster.connect()
    except InputError as error:
        yield failed("Kubernetes", str(error))
        return
    inside = "KUBERNETES_SERVICE_HOST" in os.environ
    site = Site(config, root, cluster.within(config.cluster.namespace), endpoint, runs, inside)
    reachable = list(_made("Kubernetes", objects.api_server, site))
    yield from reachable
    if reachable[-1].mark is not Mark.FAILED:
        for subject, check in _OF_CLUSTER:
            yield from _made(subject, check, site)


def _made(subject: str, check: Check, site: Site) -> Iterator[Finding]:
    try:
        yield from check(site)
    except ApiRefused as error:
        yield (unknown if error.status == FORBIDDEN else failed)(subject, f"could not be checked: {error}")
    except DitError as error:
        yield failed(subject, str(error))


def _server(endpoint: str | None) -> Iterator[Finding]:
    subject = "Kubeflow Pipelines"
    if endpoint is None:
        yield unknown(subject, f"not checked: {KFP_ENDPOINT} is not set; the other checks are for jobs started by hand")
        return
    try:
        yield ok(subject, f"{endpoint} answers, version {Pipelines(endpoint).version()}")
    except DitError as error:
        yield failed(subject, str(error))
