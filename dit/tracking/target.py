"""The MLflow server or database, and the experiment there, that a study's runs are shipped to."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from dit.errors import InputError
from dit.storage import Store
from dit.study import layout
from dit.study.config import StudyConfig
from dit.tracking.journal import read_entries
from dit.tracking.paths import StudyFolder, local_root

URI_VARIABLE = "MLFLOW_TRACKING_URI"
DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Target:
    """The destination of a study's runs, and the study's data for MLflow's pages."""

    uri: str
    artifacts: str | None
    """Address for the artifacts of a new experiment; None leaves the choice to the server."""
    store: str
    """Address of the study's store, where run ids are recorded."""
    study: str
    experiment: str
    description: str = ""
    metric: str = ""
    """Name of the study's primary metric; empty if the journal has none, which means no view."""
    last_step: int = 0
    """The last evaluated step."""
    records_runs: bool = True
    """Whether `tracking.json` names the runs here; False for a local view of a study that is tracked to a server."""

    @property
    def digest(self) -> str:
        """Identifies server and experiment, whatever password is used."""
        return hashlib.sha256(f"{self.address} {self.experiment}".encode()).hexdigest()[:12]

    @property
    def address(self) -> str:
        """The URI without a password."""
        parts = urlsplit(self.uri)
        if not parts.password:
            return self.uri
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    @property
    def database(self) -> Path | None:
        """The SQLite file; None for a server."""
        return Path(self.uri.removeprefix(SQLITE)) if self.uri.startswith(SQLITE) else None


def resolve_target(config: StudyConfig, store: Store) -> Target:
    """The study's `tracking.uri`, else MLFLOW_TRACKING_URI, else a database in the root (or, for S3, in the cache).

    Raises InputError for a folder, which MLflow no longer supports.
    """
    root = local_root(store)
    uri = config.tracking.uri or os.environ.get(URI_VARIABLE) or SQLITE + str(root / DATABASE)
    if uri.startswith(SQLITE):
        database = Path(uri.removeprefix(SQLITE)).absolute()
        uri, root = SQLITE + str(database), database.parent
    elif not re.match(r"[a-z][a-z0-9+.-]+:", uri) or uri.startswith("file:"):
        raise InputError(
            f"tracking.uri={uri}: MLflow no longer supports folders; give sqlite:///{uri}/{DATABASE} or a server"
        )
    over_http = uri.startswith(("http://", "https://", "databricks"))
    return _target(uri, None if over_http else root, store, study_facts(config))


def study_facts(config: StudyConfig) -> dict[str, Any]:
    """The study's data for MLflow's pages. They are also in its journal, so that `dit ui` needs no study file."""
    return {
        "study": config.study,
        "experiment": config.tracking.experiment or config.study,
        "description": config.description,
        "metric": layout.metric(config, config.evaluation.metric),
        "last_step": config.evaluation.at_steps[-1],
    }


def logged_facts(study: StudyFolder) -> dict[str, Any]:
    """The `study_facts` in the study's journal; only study and experiment if it has none."""
    facts = [entry.values for entry, _ in read_entries(study.journal) if entry.kind == "study"]
    return dict(facts[-1]) if facts else {"study": study.path.name, "experiment": study.path.name}


def database_below(root: Path, store: Store, study: StudyFolder, *, records_runs: bool) -> Target:
    """The database below a root, as the target of a study there."""
    return _target(f"{SQLITE}{root / DATABASE}", root, store, logged_facts(study) | {"records_runs": records_runs})


def _target(uri: str, root: Path | None, store: Store, facts: dict[str, Any]) -> Target:
    artifacts = (root / ARTIFACTS / facts["experiment"]).as_uri() if root else None
    return Target(uri, artifacts, store.url, **facts)
