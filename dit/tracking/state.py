"""How far journals have been shipped, remembered beside them, and what that leaves to do. Knows no MLflow.

State may be lost or be behind: what is shipped twice arrives once, because the server drops identical points.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dit.study.records import Record
from dit.tracking.journal import read_entries, read_header
from dit.tracking.lock_file import is_held
from dit.tracking.paths import RunFolder, StudyFolder
from dit.tracking.target import Target
from dit.tracking.writer_session import Status


class TrackingRun(Record):
    """The MLflow run that continues at the next start: `tracking.json`."""

    journal: str
    """Id of the journal that the run was made for."""
    run_id: str
    experiment_id: str
    uri: str


@dataclass
class Shipped:
    """How much of one journal one target has."""

    run_id: str | None = None
    offset: int = 0
    """Bytes of the journal whose points, parameters and tags have arrived."""
    owed: list[dict[str, Any]] = field(default_factory=list)
    """Artifacts and images among them that have not."""
    status: Status | None = None
    """Last set on the server."""
    ended: Status | None = None
    """Status with which the latest writer ended."""
    ended_at: int = 0
    """Milliseconds since 1970."""
    error: str | None = None
    """Why it failed."""


@dataclass(frozen=True)
class ShipperState:
    """What a shipper tells about itself in `tracking/shipper-<target>.json`."""

    pid: int
    reached: bool = False
    """Whether the server has answered it."""
    error: str | None = None
    """Why it cannot ship now."""


def read_shipped(run: RunFolder, journal_id: str, target: Target) -> Shipped:
    """How much of a journal this target has."""
    ledgers = _read_json(run.shipped(journal_id))
    # An earlier version told ledgers apart by their passwords, too.
    tree = ledgers.get(target.ledger) or ledgers.get(target.digest)
    return Shipped(**tree) if tree else Shipped()


def write_shipped(run: RunFolder, journal_id: str, target: Target, shipped: Shipped) -> None:
    """Remember it."""
    path = run.shipped(journal_id)
    write_json(path, {**_read_json(path), target.ledger: asdict(shipped)})


def shipper_lock(study: StudyFolder, target: Target) -> Path:
    """Held by the one process that ships this study to this target."""
    return study.state / f"shipper-{target.digest}.lock"


def drain_mark(study: StudyFolder, target: Target) -> Path:
    """Exists while somebody wants the shipper to finish and go."""
    return study.state / f"drain-{target.digest}"


def read_shipper(study: StudyFolder, target: Target) -> ShipperState | None:
    """What the living shipper says; None when there is none, or it has said nothing yet."""
    if not is_held(shipper_lock(study, target)):
        return None
    tree = _read_json(study.state / f"shipper-{target.digest}.json")
    return ShipperState(**tree) if tree else None


def write_shipper(study: StudyFolder, target: Target, state: ShipperState) -> None:
    """Tell the others."""
    write_json(study.state / f"shipper-{target.digest}.json", asdict(state))


def waiting(study: StudyFolder, target: Target) -> int:
    """How many lines, artifacts and statuses of a study the target has not got yet."""
    runs = study.runs()
    live = any(run.is_live() for run in runs)
    return sum(waiting_in(run, target, live=live) for run in runs)


def waiting_in(run: RunFolder, target: Target, *, live: bool) -> int:
    """As `waiting`, of one run; while it is live, its status may be any."""
    count = 0
    for path in run.journals:
        header = read_header(path)
        if header is not None:
            shipped = read_shipped(run, header.values["id"], target)
            lines = len(read_entries(path, shipped.offset))
            unsettled = shipped.status in (None, "RUNNING") and not live
            count += lines + len(shipped.owed) + unsettled
    return count


def write_target(study: StudyFolder, target: Target) -> None:
    """Remember where the study is shipped to, for those who have no study file; a password is left out."""
    tree = asdict(target) | {"uri": target.address, "lacks_password": target.address != target.uri}
    if _read_json(study.target) != tree:
        write_json(study.target, tree)


def read_target(study: StudyFolder) -> Target:
    """Where the study was shipped to the last time."""
    return Target(**_read_json(study.target))


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Replace a small file of state atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_text(json.dumps(tree))
    os.replace(temporary, path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}
