"""Checks the API server, and the objects that jobs and steps refer to."""

from __future__ import annotations

from collections.abc import Iterator

from dit.errors import MissingError
from pipelines.cluster.client import FORBIDDEN, ApiRefused
from pipelines.cluster.pod_environment import data_of, see
from pipelines.jobs import names
from pipelines.jobs.names import LAUNCHER_TOKEN, REAPER, RUNS_NAMESPACE
from pipelines.jobs.registry import KINDS
from pipelines.preflight.finding import Finding, Site, failed, ok, unknown

_DEPLOY = "dit deploy kind, or a100"
_DEPLOY_RUNS = "dit deploy pipelines"


def api_server(site: Site) -> Iterator[Finding]:
    """Whether the API server answers."""
    version = site.cluster.ask("/version")["gitVersion"]
    yield ok("Kubernetes", f"{site.cluster.server} answers, {version}")


def job_kind(site: Site) -> Iterator[Finding]:
    """Whether the cluster serves the study's job kind in the version used here."""
    kind = KINDS[site.config.cluster.job]
    resource = kind.resource
    crd = f"{resource.plural}.{resource.group}"
    served = site.cluster.ask_for(f"/apis/{resource.group}/{resource.version}")
    if served is not None and any(item["name"] == resource.plural for item in served["resources"]):
        yield ok(resource.kind, f"{resource.api_version} is served")
        return
    group = site.cluster.ask_for(f"/apis/{resource.group}")
    others = ", ".join(item["version"] for item in group["versions"]) if group else ""
    result = f"{resource.group} is served only as {others}" if others else f"{crd} does not exist"
    yield failed(
        resource.kind, f"{result}; install {kind.controller}, or choose another cluster.job; kubectl get crd {crd}"
    )


def namespace(site: Site) -> Iterator[Finding]:
    """Whether the namespaces of jobs and steps exist."""
    for name in site.namespaces:
        remedy = _DEPLOY if name == site.namespace else "install Kubeflow Pipelines, or give --runs-namespace"
        yield _there(site, f"namespace {name}", f"/api/v1/namespaces/{name}", remedy)


def accounts(site: Site) -> Iterator[Finding]:
    """Whether the service accounts of the pods exist."""
    worker = site.config.cluster.service_account
    own = f"/api/v1/namespaces/{site.namespace}/serviceaccounts/{worker}"
    yield _there(site, f"service account {site.namespace}/{worker}", own, _DEPLOY)
    remedy = _DEPLOY_RUNS if site.account.namespace != site.namespace else _DEPLOY
    for account in [site.account, *([site.step_account] if site.endpoint else [])]:
        path = f"/api/v1/namespaces/{account.namespace}/serviceaccounts/{account.name}"
        yield _there(site, f"service account {account.namespace}/{account.name}", path, remedy)
    if site.endpoint:
        yield _keys(site, "secret", site.runs, LAUNCHER_TOKEN, ("token", "ca.crt"), _DEPLOY_RUNS)


def settings(site: Site) -> Iterator[Finding]:
    """Whether config maps and secrets have the keys that pods read, in each namespace of such pods."""
    cluster = site.config.cluster
    for where in site.namespaces:
        remedy = _DEPLOY_RUNS if where == RUNS_NAMESPACE else "docs/cluster.md, Secrets"
        for kind, sources in (("configmap", cluster.config_maps), ("secret", cluster.secrets)):
            for name, keys in sources.items():
                yield _keys(site, kind, where, name, keys, remedy)


def _keys(site: Site, kind: str, where: str, name: str, keys: tuple[str, ...], remedy: str) -> Finding:
    subject = f"{kind} {where}/{name}"
    try:
        data = data_of(site.cluster, kind, where, name)
    except MissingError:
        return failed(subject, f"does not exist; {remedy}")
    except ApiRefused as error:
        if error.status != FORBIDDEN:
            raise
        return unknown(subject, f"we may not read it: {error}")
    missing = [key for key in keys if not data.get(key)]
    if missing:
        return failed(subject, f"has no {', '.join(missing)}; {see(kind, where, name)}")
    return ok(subject, f"has {', '.join(keys)}")


def allowed(site: Site) -> Iterator[Finding]:
    """Whether jobs may use the account, secrets and config maps of the study: the namespace's annotations list them."""
    cluster, subject = site.config.cluster, "names that jobs may use"
    see_it = f"kubectl describe namespace {site.namespace}"
    namespace = site.cluster.ask_for(f"/api/v1/namespaces/{site.namespace}") or {"metadata": {}}
    lists = namespace["metadata"].get("annotations") or {}
    asked = {
        names.JOB_ACCOUNTS: ("cluster.service_account", [cluster.service_account]),
        names.JOB_SECRETS: ("cluster.secrets", list(cluster.secrets)),
        names.JOB_CONFIG_MAPS: ("cluster.config_maps", list(cluster.config_maps)),
        names.JOB_PULL_SECRETS: ("cluster.image_pull_secrets", list(cluster.image_pull_secrets)),
    }
    if not asked.keys() & lists.keys():
        yield unknown(subject, f"namespace {site.namespace} has no lists of them; {_DEPLOY}; {see_it}")
        return
    wrong = [
        f"{key}: {name} is not in annotation {annotation} ({lists.get(annotation, '')})"
        for annotation, (key, wanted) in asked.items()
        for name in wanted
        if name not in lists.get(annotation, "").split(" ")
    ]
    if wrong:
        yield failed(subject, f"{', '.join(wrong)}; correct the study, or the deployment's overlay; {see_it}")
    else:
        yield ok(subject, f"those of the study are in the annotations of namespace {site.namespace}")


def priority(site: Site) -> Iterator[Finding]:
    """Whether the priority class exists."""
    name = site.config.cluster.priority_class
    if name:
        path = f"/apis/scheduling.k8s.io/v1/priorityclasses/{name}"
        yield _there(site, f"priority class {name}", path, "dit deploy a100, or clear cluster.priority_class")


def pull_secrets(site: Site) -> Iterator[Finding]:
    """Whether the secrets for the image registry exist."""
    for name in site.config.cluster.image_pull_secrets:
        path = f"/api/v1/namespaces/{site.namespace}/secrets/{name}"
        remedy = f"kubectl create secret docker-registry {name} -n {site.namespace} --docker-server=..."
        yield _there(site, f"image pull secret {site.namespace}/{name}", path, remedy)


def reaper(site: Site) -> Iterator[Finding]:
    """Whether the reaper, which deletes the jobs of ended runs, is running."""
    subject, where = "reaper", f"deployment {site.namespace}/{REAPER}"
    result = site.cluster.ask_for(f"/apis/apps/v1/namespaces/{site.namespace}/deployments/{REAPER}")
    if result is None:
        yield failed(subject, f"{where} does not exist: a terminated run would leave its jobs behind; {_DEPLOY}")
    elif not result.get("status", {}).get("availableReplicas"):
        yield failed(subject, f"{where} is not available; kubectl describe deployment -n {site.namespace} {REAPER}")
    else:
        yield ok(subject, f"{where} runs")


def _there(site: Site, subject: str, path: str, remedy: str) -> Finding:
    try:
        result = site.cluster.ask_for(path)
    except ApiRefused as error:
        if error.status != FORBIDDEN:
            raise
        return unknown(subject, f"we may not read it: {error}")
    return ok(subject, "exists") if result is not None else failed(subject, f"does not exist; {remedy}")
