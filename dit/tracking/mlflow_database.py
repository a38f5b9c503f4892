"""MLflow's SQLite file, read and corrected without MLflow."""

from __future__ import annotations

import itertools
import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dit.errors import StoreError

_BUSY_SECONDS = 30.0
# Experiments last: their addresses show whether the update is complete.
_MOVES = (
    "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE substr(artifact_uri, 1, ?) = ?",
    "UPDATE experiments SET artifact_location = ? || substr(artifact_location, ?)"
    " WHERE substr(artifact_location, 1, ?) = ?",
)


def damage(path: Path) -> str | None:
    """What is wrong with the file, in the words of SQLite; None for a sound or a missing database."""
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(_read_only(path), uri=True, timeout=_BUSY_SECONDS)) as database:
            [(found,)] = database.execute("PRAGMA quick_check(1)").fetchall()
    except sqlite3.OperationalError:
        return None  # locked, or not ours to read: whoever writes to it meets the error
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if found == "ok" else str(found)


def set_aside(path: Path) -> Path:
    """Rename a damaged database and its journal of SQLite; where it is now."""
    number = next(count for count in itertools.count(1) if not path.with_name(f"{path.name}.damaged-{count}").exists())
    target = path.with_name(f"{path.name}.damaged-{number}")
    path.rename(target)
    for suffix in ("-journal", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(target.with_name(target.name + suffix))
    return target


def foreign_address(path: Path, experiment: str) -> str | None:
    """An address, of an experiment or one of its runs, to which artifacts would leave the database's folder."""
    rows = _query(
        path,
        "SELECT artifact_location FROM experiments WHERE name = ? UNION SELECT artifact_uri FROM runs"
        " JOIN experiments USING (experiment_id) WHERE experiments.name = ?",
        experiment,
        experiment,
    )
    return next((str(text) for (text,) in rows if not _is_inside(str(text), path.parent)), None)


def _is_inside(address: str, folder: Path) -> bool:
    parts = urlsplit(address)
    place = os.path.normpath("/" + unquote(parts.path).lstrip("/"))
    return parts.scheme in ("", "file") and not parts.netloc and Path(place).is_relative_to(folder)


def run_ids(path: Path) -> set[str]:
    """Ids of the runs that are not deleted; empty if there is no database."""
    return {row[0] for row in _query(path, "SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active'")}


def experiment_id(path: Path, name: str) -> str | None:
    """Id of the experiment of this name, if there is one."""
    rows = _query(path, "SELECT experiment_id FROM experiments WHERE name = ?", name)
    return str(rows[0][0]) if rows else None


def follow_move(path: Path, experiment: str, artifacts: str) -> None:
    """Correct the artifacts' addresses in a database that was moved or copied together with its artifacts.

    `artifacts` is where those of the experiment are now, below the database's folder. MLflow stores absolute addresses.
    """
    new = path.parent.as_uri()
    for (location,) in _query(path, "SELECT artifact_location FROM experiments WHERE name = ?", experiment):
        old = location.removesuffix(artifacts.removeprefix(new))
        if location not in (artifacts, old):
            # The address of MLflow's own experiment "Default" is a path.
            for before, after in ((unquote(urlsplit(old).path), str(path.parent)), (old, new)):
                size = len(before) + 1
                for statement in _MOVES:
                    _query(path, statement, after, size, size, f"{before}/")


def _read_only(path: Path) -> str:
    return f"{path.absolute().as_uri()}?mode=ro"


def _query(path: Path, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """The rows; none if there is no database, or if MLflow has not made its tables yet."""
    if not path.exists():
        return []
    try:
        with closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as database, database:
            return database.execute(statement, values).fetchall()
    except sqlite3.DatabaseError as error:
        if "no such table" in str(error):
            return []
        raise StoreError(f"{path}: {error}; retry, or remove the file: it is rebuilt from the journals") from error
