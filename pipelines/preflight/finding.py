"""Input and result of a check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from dit.study.config import StudyConfig
from pipelines.cluster.client import Cluster
from pipelines.jobs.names import LAUNCHER, STEP
from pipelines.jobs.permissions import Account


class Mark(Enum):
    """Result of a check, as the table shows it."""

    OK = "✓"
    UNKNOWN = "?"
    """Could not be checked from here; it may be fine."""
    FAILED = "✗"


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    mark: Mark
    subject: str
    text: str
    """The result; after a `;`, what to do or the command to type."""


@dataclass(frozen=True)
class Site:
    """A study, and the cluster it should run on."""

    config: StudyConfig
    root: str
    cluster: Cluster
    endpoint: str | None
    """Address of Kubeflow Pipelines; None for jobs that are started by hand."""
    runs: str
    """Namespace of the pods of pipeline steps."""
    inside: bool
    """Whether this process runs in a pod of the cluster."""

    @property
    def namespace(self) -> str:
        """Namespace of the jobs."""
        return self.config.cluster.namespace

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Namespaces whose pods read the study's settings."""
        return tuple(dict.fromkeys([self.namespace, *([self.runs] if self.endpoint else [])]))

    @property
    def account(self) -> Account:
        """Service account of the launcher."""
        return Account(self.runs if self.endpoint else self.namespace, LAUNCHER)

    @property
    def step_account(self) -> Account:
        """Service account of the pods of pipeline steps."""
        return Account(self.runs, STEP)


Check = Callable[[Site], Iterator[Finding]]
"""Yields findings about one subject; a DitError that it raises becomes a finding."""


def ok(subject: str, text: str) -> Finding:
    """A check that passed."""
    return Finding(Mark.OK, subject, text)


def unknown(subject: str, text: str) -> Finding:
    """A check that could not be made from here."""
    return Finding(Mark.UNKNOWN, subject, text)


def failed(subject: str, text: str) -> Finding:
    """A check that failed."""
    return Finding(Mark.FAILED, subject, text)
