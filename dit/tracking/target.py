"""Which MLflow server, or database, a study's runs are shipped to."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from dit.errors import InputError
from dit.storage import Store
from dit.study import layout
from dit.study.config import StudyConfig
from dit.tracking.paths import local_root

URI_VARIABLE = "MLFLOW_TRACKING_URI"
DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Target:
    """An MLflow server or database, and the experiment there."""

    uri: str
    experiment: str
    study: str
    description: str
    artifacts: str | None
    """Where a new experiment keeps artifacts; None leaves that to the server."""
    store: str
    """Address of the study's store, where run ids are recorded."""
    metric: str = ""
    """Name of the distance that the study is judged by; empty in what an earlier version wrote."""
    last_step: int = 0
    """The last step at which it is measured."""
    lacks_password: bool = False
    """Whether a password was left out of `uri`, as it is on disk."""

    @property
    def digest(self) -> str:
        """Tells shippers apart in file names. One with another password is another: either may be wrong."""
        return self._digest(self.uri)

    @property
    def ledger(self) -> str:
        """Tells apart where lines were shipped to, whatever password they were shipped with."""
        return self._digest(self.address)

    @property
    def address(self) -> str:
        """The URI as people may see it, without a password."""
        parts = urlsplit(self.uri)
        if not parts.password:
            return self.uri
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    @property
    def stays_here(self) -> bool:
        """Whether runs stay on this machine although the study's results do not."""
        return self.uri.startswith(SQLITE) and not self.store.startswith("file:")

    def _digest(self, uri: str) -> str:
        return hashlib.sha256(f"{uri} {self.experiment}".encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """For the shipper's environment."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Target:
        """What `to_json` wrote."""
        return cls(**json.loads(text))


def resolve_target(config: StudyConfig, store: Store) -> Target:
    """The study's `tracking.uri`, else MLFLOW_TRACKING_URI, else a database in the root (or, for S3, in the cache).

    Raises InputError for a folder, which MLflow no longer tracks into.
    """
    root = local_root(store)
    uri = config.tracking.uri or os.environ.get(URI_VARIABLE) or SQLITE + str(root / DATABASE)
    if uri.startswith(SQLITE):
        database = Path(uri.removeprefix(SQLITE)).absolute()
        uri, root = SQLITE + str(database), database.parent
    elif not re.match(r"[a-z][a-z0-9+.-]+:", uri) or uri.startswith("file:"):
        raise InputError(
            f"tracking.uri={uri}: MLflow keeps no runs in folders any more; give sqlite:///{uri}/{DATABASE} or a server"
        )
    experiment = config.tracking.experiment or config.study
    over_http = uri.startswith(("http://", "https://", "databricks"))
    return Target(
        uri=uri,
        experiment=experiment,
        study=config.study,
        description=config.description,
        artifacts=None if over_http else (root / ARTIFACTS / experiment).as_uri(),
        store=store.url,
        metric=layout.metric(config, config.evaluation.metric),
        last_step=config.evaluation.at_steps[-1],
    )
