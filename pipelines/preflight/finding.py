"""What a check found, and what a check is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from dit.study.config import StudyConfig
from pipelines.cluster.client import Cluster
from pipelines.jobs.names import LAUNCHER
from pipelines.jobs.permissions import Account


class Mark(Enum):
    """How a check came out, as the table shows it."""

    OK = "✓"
    UNKNOWN = "?"
    """It could not be made from here; nothing says that it would fail."""
    FAILED = "✗"


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    mark: Mark
    subject: str
    text: str
    """What was found, and how; after a `;` the next thing to do, or command to type."""


@dataclass(frozen=True)
class Site:
    """A study, and where it is to run."""

    config: StudyConfig
    root: str
    cluster: Cluster
    endpoint: str | None
    """Of Kubeflow Pipelines; None for jobs that are started by hand."""
    runs: str
    """Namespace of the pods of pipeline steps."""
    inside: bool
    """Whether we are a pod of the cluster ourselves."""

    @property
    def namespace(self) -> str:
        """Of the jobs."""
        return self.config.cluster.namespace

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Where pods run that read the study's settings."""
        return tuple(dict.fromkeys([self.namespace, *([self.runs] if self.endpoint else [])]))

    @property
    def account(self) -> Account:
        """Whom the launcher runs as."""
        return Account(self.runs if self.endpoint else self.namespace, LAUNCHER)


Check = Callable[[Site], Iterator[Finding]]
"""A few questions about one thing. What it raises is its finding."""


def ok(subject: str, text: str) -> Finding:
    """As it should be."""
    return Finding(Mark.OK, subject, text)


def unknown(subject: str, text: str) -> Finding:
    """Not to be told from here."""
    return Finding(Mark.UNKNOWN, subject, text)


def failed(subject: str, text: str) -> Finding:
    """Not as it should be."""
    return Finding(Mark.FAILED, subject, text)
