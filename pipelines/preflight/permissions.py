"""Checks the permissions of the launcher, and of the steps of a pipeline."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.cluster.client import FORBIDDEN, ApiRefused
from pipelines.jobs import permissions
from pipelines.preflight.finding import Finding, Site, failed, ok, unknown


def launcher(site: Site) -> Iterator[Finding]:
    """Whether the accounts have the permissions for jobs, and for steps of a pipeline."""
    yield _review(site, site.account, site.namespace, permissions.of_launcher(site.config.cluster))
    if site.endpoint:
        yield _review(site, site.account, site.runs, permissions.of_launching_steps(site.runs))
        yield _review(site, site.step_account, site.runs, permissions.of_steps(site.runs))


def _review(site: Site, of: permissions.Account, namespace: str, needed: tuple[permissions.Right, ...]) -> Finding:
    # Inside the cluster this process runs as the account, so it asks about itself.
    account = None if site.inside else of
    subject = f"rights of {of.name} in {namespace}"
    who = str(account) if account else "our own account"
    try:
        lacking = [str(right) for right in needed if not permissions.allowed(site.cluster, right, account)]
    except ApiRefused as error:
        if error.status != FORBIDDEN:
            raise
        return unknown(subject, f"we may not ask about {who}: {error}")
    if lacking:
        overlay = "pipelines" if of.namespace != site.namespace else "kind, or a100"
        command = f"dit deploy {overlay}; kubectl auth can-i --list -n {namespace} --as={of}"
        return failed(subject, f"{who} may not: {', '.join(lacking)}; {command}")
    return ok(subject, f"{who} has all {len(needed)} permissions")
