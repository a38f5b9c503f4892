"""The MLflow server or database, and the experiment there, that a study's runs are shipped to."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from dit.errors import InputError
from dit.storage import Store, cache_dir
from dit.study import layout
from dit.study.addresses import SQLITE, tracking_address
from dit.study.config import StudyConfig
from dit.study.fields import SecretError, hide_credentials
from dit.tracking.journal import read_entries
from dit.tracking.paths import StudyFolder, local_root

URI_VARIABLE = "MLFLOW_TRACKING_URI"
DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
_FACTS = {"experiment": str, "description": str, "metric": str, "last_step": int}
"""What a journal may name of its study, and the types."""
_DRIVERS = {"postgresql": "psycopg2", "mysql": "MySQLdb", "mssql": "pyodbc"}
"""SQLAlchemy's default drivers."""


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
        return without_user(self.uri)

    @property
    def database(self) -> Path | None:
        """The SQLite file; None for a server."""
        return sqlite_path(self.uri) if self.uri.startswith(SQLITE) else None

    @property
    def is_below_root(self) -> bool:
        """Whether the database lies in the store's own folder, so that it may have come with somebody's results."""
        return self.database is not None and self.database.parent.as_uri() == self.store

    @property
    def is_own(self) -> bool:
        """Whether the database holds journals of this root or of the cache alone, so that it can be filled again."""
        return self.is_below_root or (self.database is not None and self.database.is_relative_to(cache_dir()))


def resolve_target(config: StudyConfig, store: Store) -> Target:
    """The study's `tracking.uri`, else MLFLOW_TRACKING_URI, else a database in the root (or, for S3, in the cache).

    Raises InputError for an address with which MLflow cannot work.
    """
    root = local_root(store)
    uri = config.tracking.uri or os.environ.get(URI_VARIABLE) or sqlite_uri(root / DATABASE)
    try:
        uri = tracking_address(uri)
    except ValueError as error:
        shown = "" if isinstance(error, SecretError) else f"={hide_credentials(uri)}"
        raise InputError(f"{URI_VARIABLE}{shown}: {error}") from error
    _check_driver(uri)
    if uri.startswith(SQLITE):
        database, query = sqlite_path(uri).absolute(), uri.partition("?")[1:]
        uri, root = sqlite_uri(database) + "".join(query), database.parent
    over_http = uri.startswith(("http://", "https://", "databricks"))
    return _target(uri, None if over_http else root, store, study_facts(config))


def sqlite_uri(path: Path) -> str:
    """The address of a database file. SQLAlchemy reads `?` and `%` in it as parts of an address."""
    return SQLITE + str(path).replace("%", "%25").replace("?", "%3F")


def sqlite_path(uri: str) -> Path:
    """The file of an address that `sqlite_uri` or a person wrote."""
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0]))


def without_user(uri: str) -> str:
    """The address without user and password, also without those in its query."""
    parts = urlsplit(uri)
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.username is not None else uri
    return hide_credentials(bare)


def _check_driver(uri: str) -> None:
    """Raises InputError when the driver of a database server is not installed."""
    engine, _, driver = uri.partition(":")[0].partition("+")
    module = driver or _DRIVERS.get(engine)
    if engine in _DRIVERS and module and importlib.util.find_spec(module) is None:
        raise InputError(
            f"{without_user(uri)}: the database driver {module} is not installed; install it, or name an MLflow server"
        )


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
    facts: dict[str, Any] = {"study": study.path.name, "experiment": study.path.name}
    for entry, _ in read_entries(study.journal):
        if entry.kind == "study":
            facts |= {key: entry.values[key] for key, kind in _FACTS.items() if type(entry.values.get(key)) is kind}
    return facts


def database_below(root: Path, store: Store, study: StudyFolder, *, records_runs: bool) -> Target:
    """The database below a root, as the target of a study there."""
    return _target(sqlite_uri(root / DATABASE), root, store, logged_facts(study) | {"records_runs": records_runs})


def _target(uri: str, root: Path | None, store: Store, facts: dict[str, Any]) -> Target:
    # An experiment's name is any text, and must not lead out of the root.
    parts = [part if part.strip(".") else "_" for part in facts["experiment"].replace("\0", "_").split("/")]
    artifacts = root.joinpath(ARTIFACTS, *parts).as_uri() if root else None
    return Target(uri, artifacts, store.url, **facts)
