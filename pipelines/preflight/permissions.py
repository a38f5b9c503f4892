"""Checks the permissions of the launcher."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.cluster.client import FORBIDDEN, ApiRefused
from pipelines.jobs import permissions
from pipelines.preflight.finding import Finding, Site, failed, ok, unknown


def launcher(site: Site) -> Iterator[Finding]:
    """Whether its account has the permissions for jobs, and for steps of a pipeline."""
    yield _review(site, site.namespace, permissions.of_launcher(site.config.cluster))
    if site.endpoint:
        yield _review(site, site.runs, permissions.of_steps(site.runs))


def _review(site: Site, namespace: str, needed: tuple[permissions.Right, ...]) -> Finding:
    # Inside the cluster this process runs as the account, so it asks about itself.
    account = None if site.inside else site.account
    subject = f"rights in {namespace}"
    who = str(account) if account else "our own account"
    try:
        lacking = [str(right) for right in needed if not permissions.allowed(site.cluster, right, account)]
    except ApiRefused as error:
        if error.status != FORBIDDEN:
            raise
        return unknown(subject, f"we may not ask about {who}: {error}")
    if lacking:
        overlay = "pipelines" if site.account.namespace != site.namespace else "kind, or a100"
        command = f"dit deploy {overlay}; kubectl auth can-i --list -n {namespace} --as={site.account}"
        return failed(subject, f"{who} may not: {', '.join(lacking)}; {command}")
    return ok(subject, f"{who} has all {len(needed)} permissions")
