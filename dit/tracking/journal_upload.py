"""One journal on its way to one MLflow run."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dit.storage import Store, write_record
from dit.study import layout
from dit.tracking.journal import Entry, Journal, points, read_entries
from dit.tracking.mlflow_client import JOURNAL_TAG, PARENT_TAG, MlflowRuns, RunGoneError, metric_name
from dit.tracking.mlflow_view import COLOUR_TAG, STUDY_TAG, VARIANT_TAG, colour
from dit.tracking.paths import RunFolder, local_root
from dit.tracking.state import Shipped, TrackingRun, read_shipped, write_shipped
from dit.tracking.store_copy import Mirror
from dit.tracking.target import Target
from dit.tracking.writer_session import Status

_ENTRIES_PER_ROUND = 1000
_ROOT_TAG = "dit.root"
_HASH_TAG = "dit.training_hash"
_NOTE_TAG = "mlflow.note.content"


class JournalUpload:
    """Ships one journal. Its methods raise whatever the server's or the store's way to fail is; call them again."""

    def __init__(self, run: RunFolder, path: Path, header: Entry, target: Target, store: Store) -> None:
        self.run, self._path, self._header = run, path, header.values
        self._target, self._store = target, store
        self._shipped = read_shipped(run, self._header["id"], target)
        self._there: set[tuple[str, int]] = set()
        self._compared_until = 0

    @property
    def run_id(self) -> str | None:
        """The MLflow run, once there is one."""
        return self._shipped.run_id

    @property
    def is_current(self) -> bool:
        """Whether the run's writers write to this journal; whoever wrote to one that was moved aside is done."""
        return self._path == self.run.journal

    @property
    def ended(self) -> tuple[int, Status | None]:
        """When (in ms) and how the latest writer ended; (0, None) while none has."""
        return self._shipped.ended_at, self._shipped.ended

    def ship(self, sink: MlflowRuns, parent: str | None) -> None:
        """Send what the journal has gained, artifacts left out; `parent` is the MLflow run above this one."""
        with self._renewed():
            if self._shipped.run_id is None:
                self._adopt(sink, parent)
            entries = read_entries(self._path, self._shipped.offset)
            for start in range(0, len(entries), _ENTRIES_PER_ROUND):
                self._send(sink, entries[start : start + _ENTRIES_PER_ROUND])

    def settle(self, sink: MlflowRuns, *, live: bool, ended: tuple[int, Status | None]) -> None:
        """Set the run's status: RUNNING while it is live, else how and when it ended."""
        shipped = self._shipped
        wanted: Status = "RUNNING" if live else ended[1] or "KILLED"
        if shipped.run_id is None or wanted == shipped.status:
            return
        with self._renewed():
            sink.set_status(shipped.run_id, wanted, ended[0] or _now(), shipped.error if wanted == "FAILED" else None)
            shipped.status = wanted
            self._save()

    def ship_files(self, sink: MlflowRuns) -> None:
        """Send the artifacts and images that are owed."""
        while self._shipped.owed and self._shipped.run_id:
            with self._renewed():
                self._send_file(sink, self._shipped.run_id, self._shipped.owed[0])
                del self._shipped.owed[0]
                self._save()

    def beat(self, sink: MlflowRuns) -> None:
        """Tell the server that the run lives."""
        if self._shipped.run_id:
            with self._renewed():
                sink.beat(self._shipped.run_id)

    @contextmanager
    def _renewed(self) -> Iterator[None]:
        """Begin from the start with a new run, at the next call of `ship`, when the run is no longer there.

        Somebody deleted it, or replaced the server's database.
        """
        try:
            yield
        except RunGoneError:
            self._shipped = Shipped()
            self._save()

    def _send(self, sink: MlflowRuns, entries: Sequence[tuple[Entry, int]]) -> None:
        shipped, run_id = self._shipped, self._shipped.run_id or ""
        fresh = [
            point
            for entry, end in entries
            for point in points([entry])
            if end > self._compared_until or (metric_name(point.key), point.step) not in self._there
        ]
        sink.log_points(run_id, fresh)
        for entry, _ in entries:
            if entry.kind == "params":
                sink.log_params(run_id, entry.values)
            elif entry.kind == "tags":
                sink.set_tags(run_id, entry.values)
            else:
                _note(shipped, entry)
        shipped.offset = entries[-1][1]
        self._save()

    def _send_file(self, sink: MlflowRuns, run_id: str, item: Mapping[str, Any]) -> None:
        data = Mirror(self._store, self.run).fetch_file(self.run.files / item["sha256"])
        if not data:
            sys.stderr.write(f"lost: {item['name']}: its bytes {item['sha256']} are nowhere\n")
        elif item["step"] is None:
            sink.log_artifact(run_id, item["name"], data)
        else:
            sink.log_image(run_id, item["name"], (item["step"], item["time"]), data)

    def _adopt(self, sink: MlflowRuns, parent: str | None) -> None:
        """Find the run that this journal belongs to, or make it."""
        # Of a run that is no longer there nothing counts as sent.
        self._there, self._compared_until = set(), 0
        header, study = self._header, {STUDY_TAG: self._target.study}
        if header["variant"]:
            identity = {JOURNAL_TAG: header["id"]}
            tags = {VARIANT_TAG: header["variant"], _HASH_TAG: header["hash"], **study}
            tags |= {COLOUR_TAG: colour(header["variant"])}
            tags |= {PARENT_TAG: parent} if parent else {}
        else:
            # Machines that begin a study at the same moment have a journal each, but must share the parent run.
            root = hashlib.sha256(self._target.store.encode()).hexdigest()[:12]
            identity = {**study, _ROOT_TAG: root}
            tags = {_NOTE_TAG: self._target.description}
        found = sink.find_run(identity)
        if found is None:
            found = sink.create_run(header["variant"] or self._target.study, identity, tags)
        else:
            self._compare(sink, found)
        self._shipped = Shipped(run_id=found)
        self._save()
        if self.is_current:
            self._record(sink, found)

    def _compare(self, sink: MlflowRuns, run_id: str) -> None:
        """Take over, from a run that exists already, the points that were lost with another machine's disk.

        What is on the server is not sent again, whatever its time; what this journal lacks is added to it, so that a
        resumed training does not log it a second time.
        """
        own = {(metric_name(point.key), point.step) for point in points(e for e, _ in read_entries(self._path))}
        lost: dict[tuple[str, int], Entry] = {}
        for point in sink.history(run_id):
            self._there.add((point.key, point.step))
            if (point.key, point.step) not in own:
                entry = Entry("metrics", {point.key: point.value}, point.step, point.time)
                lost.setdefault((point.key, point.step), entry)
        journal = Journal(self._path)
        journal.append(*lost.values())
        journal.close()
        self._compared_until = self._path.stat().st_size

    def _record(self, sink: MlflowRuns, run_id: str) -> None:
        record = TrackingRun(
            journal=self._header["id"], run_id=run_id, experiment_id=sink.experiment_id, uri=self._target.address
        )
        folder = self.run.path.relative_to(local_root(self._store)).as_posix()
        write_record(self._store, f"{folder}/{layout.TRACKING_RUN}", record)

    def _save(self) -> None:
        write_shipped(self.run, self._header["id"], self._target, self._shipped)


def _note(shipped: Shipped, entry: Entry) -> None:
    """Remember what an entry leaves to be done apart from the batches: files and the final status."""
    values = entry.values
    if entry.kind in ("artifact", "image"):
        item = {"name": values["name"], "step": entry.step, "time": entry.time, "sha256": values["sha256"]}
        same = [old for old in shipped.owed if (old["name"], old["step"]) == (item["name"], item["step"])]
        shipped.owed = [old for old in shipped.owed if old not in same] + [item]
    elif entry.kind == "status" and values["status"] != "RUNNING" and entry.time >= shipped.ended_at:
        shipped.ended, shipped.ended_at, shipped.error = values["status"], entry.time, values.get("error")


def _now() -> int:
    return time.time_ns() // 1_000_000
