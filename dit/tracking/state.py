"""How far each journal of a study has been shipped: one file per study, written by the shipper alone.

If the file is lost or out of date, a shipper finds its runs by their tags and sends only the points that they lack.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dit.errors import StoreError
from dit.study import json_values
from dit.study.records import Record
from dit.tracking.journal import read_entries, read_header
from dit.tracking.lock_file import is_held
from dit.tracking.mlflow_database import run_ids
from dit.tracking.paths import RunFolder, StudyFolder
from dit.tracking.target import Target
from dit.tracking.writer_session import Status


class TrackingRun(Record):
    """`tracking.json`: the MLflow run that the next start continues."""

    journal: str
    """Id of the journal that the run was made for."""
    run_id: str
    experiment_id: str
    uri: str


@dataclass
class Shipped:
    """How much of one journal has been shipped."""

    run_id: str | None = None
    offset: int = 0
    """Bytes of the journal whose points, parameters and tags have been sent."""
    pending: list[dict[str, Any]] = field(default_factory=list)
    """Artifacts and images in those bytes that have not been sent."""
    status: Status | None = None
    """Status that was last set on the server."""
    ended: Status | None = None
    """Status with which the latest writer ended."""
    ended_at: int = 0
    """Milliseconds since 1970."""
    error: str | None = None
    """Error with which it failed."""


_JOURNALS = TypeAdapter(dict[str, Shipped])
"""Checks the types of a file that somebody else may have written."""


@dataclass
class ShipState:
    """Progress of a study's shipper."""

    path: Path
    target: str
    """Digest of the target."""
    reached: bool = False
    """Whether this shipper has reached the server."""
    error: str | None = None
    """Error that keeps it from shipping now."""
    is_final: bool = False
    """Whether that error will stay, so that nobody needs to wait."""
    journals: dict[str, Shipped] = field(default_factory=dict)
    """By the journals' ids."""

    def save(self) -> None:
        """Replace the file atomically; nothing happens if the study was removed."""
        if self.path.parent.is_dir():
            temporary = self.path.with_name(f".{self.path.name}")
            temporary.write_text(json.dumps({k: v for k, v in asdict(self).items() if k != "path"}))
            os.replace(temporary, self.path)


def read_state(study: StudyFolder, target: Target) -> ShipState:
    """What has been shipped to this target; empty if the file is about another target."""
    state = _load(study, target.records_runs)
    return state if state.target == target.digest else ShipState(state.path, target.digest)


def shipper_status(study: StudyFolder, target: Target) -> ShipState | None:
    """The state of a running shipper; None if none runs."""
    return read_state(study, target) if is_held(study.lock) else None


def ships_elsewhere(study: StudyFolder, target: Target) -> bool:
    """Whether a running shipper sends the study to another target."""
    return is_held(study.lock) and _load(study).target not in ("", target.digest)


def forget_lost_runs(study: StudyFolder, target: Target) -> None:
    """Forget what was shipped to a database that no longer has it, because it was removed or replaced."""
    state = read_state(study, target)
    if target.database is None or is_held(study.lock) or not state.journals:
        return
    try:
        there = run_ids(target.database)
    except StoreError:
        return  # damaged: whoever ships there says so
    state.journals = {name: shipped for name, shipped in state.journals.items() if shipped.run_id in there}
    state.save()


def waiting(study: StudyFolder, target: Target, run: RunFolder | None = None) -> int:
    """Number of lines, files and statuses of a study, or of one run, that have not been shipped to the target.

    The status of a live run is not counted.
    """
    count, state, runs = 0, read_state(study, target), [run] if run else study.runs()
    live = any(each.is_live() for each in runs)
    for path in (path for each in runs for path in each.journals):
        header = read_header(path)
        if header is not None:
            shipped = state.journals.get(header.values["id"], Shipped())
            status_waits = shipped.status in (None, "RUNNING") and not live
            count += len(read_entries(path, shipped.offset)) + len(shipped.pending) + status_waits
    return count


def _load(study: StudyFolder, records_runs: bool = True) -> ShipState:
    path = study.state / ("shipper.json" if records_runs else "view.json")
    try:
        tree = json_values.parse(path.read_text())
        journals = _JOURNALS.validate_python(tree.pop("journals"))
        return ShipState(path, journals=journals, **tree)
    except (FileNotFoundError, IsADirectoryError, ValueError, TypeError, KeyError, AttributeError):
        return ShipState(path, "")
