"""The journal: every point, parameter, artifact and status of a run, one JSON line each, appended to a local file.

The operating system has a line when `append` returns, so a killed process loses none. Several processes may append to
one journal.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

from dit.errors import StoreError
from dit.storage.base import exclusive, local_errors
from dit.study import json_values
from dit.study.layout import TRACKING_STATE

Kind = Literal["run", "study", "metrics", "params", "tags", "artifact", "image", "status"]
_KINDS = frozenset(get_args(Kind))
_STATUSES = ("RUNNING", "FINISHED", "FAILED", "KILLED")
_DIGEST = re.compile(r"[0-9a-f]{64}")
# Of ids, hashes, and variants such as DiT-XL/2; empty for the study's own run.
_NAME = re.compile(r"[A-Za-z0-9_./-]{0,100}")
_NAME_LENGTH = 200
_LIMIT = 2**63
# Longer lines are not of this project; they are not read as a whole.
_LONGEST_LINE = 1 << 20


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    step: int
    value: float
    time: int
    """Milliseconds since 1970."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. The keys of `values` depend on the kind.

    run: id, hash, study, variant, a seed other than train.seed (the first line); study: see `target.study_facts`;
    metrics, params, tags: the names of the values; artifact, image: name, sha256; status: status, writer, error if any.
    """

    kind: Kind
    values: Mapping[str, Any]
    step: int | None = None
    time: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    """Milliseconds since 1970."""

    def to_line(self) -> bytes:
        """The line, with its end."""
        tree: dict[str, Any] = {"kind": self.kind, "time": self.time}
        if self.step is not None:
            tree["step"] = self.step
        return json.dumps({**tree, "values": dict(self.values)}, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Entry | None:
        """None for a damaged line or an unknown kind."""
        try:
            tree = json_values.parse(line)
            kind, values, stamp = tree["kind"], tree["values"], tree["time"]
        except (ValueError, KeyError, TypeError):
            return None
        step = tree.get("step")
        if not isinstance(kind, str) or kind not in _KINDS or not isinstance(values, dict):
            return None
        if not _is_count(stamp) or not (step is None or _is_count(step)):
            return None
        return cls(cast(Kind, kind), values, step, stamp) if _is_sound(cast(Kind, kind), values, step) else None


def is_digest(value: object) -> bool:
    """Whether this is a SHA-256 in hexadecimal, and so a safe file name."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def is_file_name(value: object) -> bool:
    """Whether this is a relative path that stays below its folder, for an artifact or an image."""
    parts = value.split("/") if isinstance(value, str) else [""]
    return len(str(value)) <= _NAME_LENGTH and all(
        part not in ("", ".", "..") and part.isprintable() and "\\" not in part for part in parts
    )


def _is_sound(kind: Kind, values: Mapping[str, Any], step: int | None) -> bool:
    """Whether a line has the values of its kind. Results may come from somebody else, who may have written anything."""
    if kind == "run":
        named = [values.get("id"), values.get("hash"), values.get("variant") or "", str(values.get("seed", ""))]
        return all(isinstance(name, str) and _NAME.fullmatch(name) for name in named)
    if kind == "metrics":
        return step is not None and all(_is_number(value) for value in values.values())
    if kind in ("params", "tags"):
        return all(isinstance(value, str) for value in values.values())
    if kind in ("artifact", "image"):
        return is_digest(values.get("sha256")) and is_file_name(values.get("name"))
    if kind == "status":
        return values.get("status") in _STATUSES and isinstance(values.get("error", ""), str)
    return True


def _is_count(value: object) -> bool:
    """Whether this is a whole number that a database can hold."""
    return type(value) is int and 0 <= value < _LIMIT


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < _LIMIT)


class Journal:
    """A journal's file.

    Every method raises StoreError when the disk fails.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        with local_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "ab+", buffering=0)  # noqa: SIM115 - closed by close()

    def append(self, *entries: Entry) -> None:
        """Add lines: all of them, or none if the disk is full."""
        self._append(b"".join(entry.to_line() for entry in entries))

    def absorb(self, data: bytes) -> None:
        """Add what another copy of this journal holds and this one lacks."""
        self._append(missing(self.path.read_bytes(), data))

    def header(self) -> Entry:
        """The first line."""
        header = read_header(self.path)
        if header is None:
            raise StoreError(
                f"{self.path}: the journal was removed or damaged while it was written; run the step again"
            )
        return header

    def sync(self) -> None:
        """Flush to the disk, so that a power cut loses nothing."""
        with local_errors(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush to the disk and close."""
        with self._lock:
            if not self._file.closed:
                self.sync()
                self._file.close()

    def _append(self, data: bytes) -> None:
        if not data:
            return
        with self._lock, local_errors(self.path), _locked(self._file.fileno()):
            size = _mend(self._file.fileno())
            try:
                # A disk that is almost full takes a part of the data without an error.
                if self._file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.ftruncate(self._file.fileno(), size)
                raise


def open_journal(path: Path, identity: str, header: Mapping[str, Any], copy: bytes | None = None) -> Journal:
    """The journal at this path; a new one starts with `header`.

    `copy` is the store's copy: empty if it has none, None if the path itself is in the store. A journal is moved aside
    if its identity differs (the run's configuration was changed) or if the store no longer has it: its points and the
    new ones do not form one curve.
    """
    with exclusive(path.parent / TRACKING_STATE / "journal.lock"), local_errors(path):
        stored = path.read_bytes() if path.is_file() else b""
        ours, theirs = header_of(stored), header_of(stored if copy is None else copy)
        usable = theirs if theirs is not None and theirs.values["hash"] == identity else None
        if ours is not None and (usable is None or usable.values["id"] != ours.values["id"]):
            path.rename(aside(path, ours))
        journal = Journal(path)
        if usable is None:
            journal.append(Entry("run", {"id": secrets.token_hex(8), "hash": identity, **header}))
        elif copy:
            journal.absorb(copy)
    return journal


def read_header(path: Path) -> Entry | None:
    """The first line of the journal at this path; None if there is no journal."""
    try:
        with open(path, "rb") as file:
            return header_of(file.readline(_LONGEST_LINE))
    except FileNotFoundError:
        return None


def header_of(data: bytes) -> Entry | None:
    """The first line of a journal; None if it is incomplete or damaged."""
    line = data.partition(b"\n")[0] if b"\n" in data else b""
    entry = Entry.from_line(line)
    return entry if entry is not None and entry.kind == "run" else None


def aside(path: Path, header: Entry) -> Path:
    """Where a journal is moved to make room for another; it is shipped from there, too."""
    return path.with_name(f"{path.stem}-{header.values['id'].replace('/', '_')}{path.suffix}")


def missing(own: bytes, other: bytes) -> bytes:
    """What another copy of a journal holds and this one lacks, as whole lines.

    Points are compared by name and step, and the first value is kept: a training that resumes on another machine,
    before the lines of the first machine are in the store, logs their steps again at another time.
    """
    held = set(_whole_lines(own))
    logged = {(point.key, point.step) for point in points(parse(own))}
    return b"".join(_without(line, logged) for line in _whole_lines(other) if line not in held)


def _without(line: bytes, logged: set[tuple[str, int]]) -> bytes:
    """The line without the points in `logged`, to which its own are added; empty if nothing is left."""
    entry = Entry.from_line(line)
    if entry is None or entry.kind != "metrics" or entry.step is None:
        return line
    new = {key: value for key, value in entry.values.items() if (key, entry.step) not in logged}
    logged.update((key, entry.step) for key in new)
    if len(new) == len(entry.values):
        return line
    return replace(entry, values=new).to_line() if new else b""


def parse(data: bytes) -> list[Entry]:
    """The entries of a journal's whole lines; damaged lines are skipped."""
    return [entry for line in _whole_lines(data) if (entry := Entry.from_line(line))]


def read_entries(path: Path, offset: int = 0) -> list[tuple[Entry, int]]:
    """The entries from this offset on, each with the offset of its end; none if there is no file.

    An incomplete last line is left for the next call; damaged lines are skipped.
    """
    entries = []
    with local_errors(path), suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(offset)
        is_rest = False
        while piece := file.readline(_LONGEST_LINE):
            offset += len(piece)
            is_whole = piece.endswith(b"\n")
            entry = Entry.from_line(piece) if is_whole and not is_rest else None
            if entry is not None:
                entries.append((entry, offset))
            is_rest = not is_whole
    return entries


def points(entries: Iterable[Entry]) -> Iterator[Point]:
    """The metric points in these entries, in their order."""
    for entry in entries:
        if entry.kind == "metrics" and entry.step is not None:
            for key, value in entry.values.items():
                yield Point(key, entry.step, float(value), entry.time)


def _whole_lines(data: bytes) -> list[bytes]:
    return data[: data.rfind(b"\n") + 1].splitlines(keepends=True)


@contextmanager
def _locked(handle: int) -> Iterator[None]:
    # On a file system without locks, lines stay whole as long as one process writes.
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)


def _mend(handle: int) -> int:
    """Cut off an incomplete last line, which a killed process left; the size after that."""
    size = os.fstat(handle).st_size
    if size and os.pread(handle, 1, size - 1) != b"\n":
        size = os.pread(handle, size, 0).rfind(b"\n") + 1
        os.ftruncate(handle, size)
    return size
