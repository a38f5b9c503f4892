"""Sends one journal to one MLflow run."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dit.storage import Store, write_record
from dit.study import layout
from dit.study.addresses import SQLITE
from dit.tracking.journal import Entry, Journal, is_file_name, points, read_entries
from dit.tracking.mlflow_client import JOURNAL_TAG, PARENT_TAG, MlflowRuns, metric_name
from dit.tracking.mlflow_view import COLOUR_TAG, STUDY_TAG, VARIANT_TAG, colour
from dit.tracking.paths import RunFolder, local_root
from dit.tracking.state import Shipped, ShipState, TrackingRun
from dit.tracking.store_copy import StoreCopy
from dit.tracking.target import Target, sqlite_uri
from dit.tracking.writer_session import Status

_ENTRIES_PER_ROUND = 1000
_ROOT_TAG = "dit.root"
_HASH_TAG = "dit.training_hash"
_NOTE_TAG = "mlflow.note.content"


class JournalUpload:
    """Sends one journal. Every method can be called again after an error.

    Its methods raise the errors of the server's client and of the store, and RunGoneError if the run was deleted.
    """

    def __init__(
        self, run: RunFolder, path: Path, header: Entry, target: Target, store: Store, state: ShipState
    ) -> None:
        self.run, self._path, self._header = run, path, header.values
        self._target, self._store, self._state = target, store, state
        self._on_server: set[tuple[str, int]] = set()
        self._compared_until = 0

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run; None before it exists."""
        return self._shipped.run_id

    @property
    def is_current(self) -> bool:
        """Whether the run's writers write to this journal; a journal that was moved aside has no writers."""
        return self._path == self.run.journal

    @property
    def ended(self) -> tuple[int, Status | None]:
        """When (in ms) and how the latest writer ended; (0, None) if none has."""
        return self._shipped.ended_at, self._shipped.ended

    def ship(self, client: MlflowRuns, parent: str | None) -> None:
        """Send new lines of the journal, except artifacts; `parent` is the MLflow run above this one."""
        run_id = self._shipped.run_id or self._adopt(client, parent)
        entries = read_entries(self._path, self._shipped.offset)
        for start in range(0, len(entries), _ENTRIES_PER_ROUND):
            self._send(client, run_id, entries[start : start + _ENTRIES_PER_ROUND])

    def ship_files(self, client: MlflowRuns) -> None:
        """Send pending artifacts and images."""
        shipped = self._shipped
        while shipped.pending and shipped.run_id:
            self._send_file(client, shipped.run_id, shipped.pending[0])
            del shipped.pending[0]
            self._state.save()

    def set_status(self, client: MlflowRuns, *, live: bool, ended: tuple[int, Status | None]) -> None:
        """Set the run's status: RUNNING while it is live, else how and when it ended."""
        shipped = self._shipped
        wanted: Status = "RUNNING" if live else ended[1] or "KILLED"
        if shipped.run_id is not None and wanted != shipped.status:
            error = shipped.error if wanted == "FAILED" else None
            client.set_status(shipped.run_id, wanted, ended[0] or time.time_ns() // 1_000_000, error)
            shipped.status = wanted
            self._state.save()

    @property
    def _shipped(self) -> Shipped:
        return self._state.journals.setdefault(self._header["id"], Shipped())

    def _send(self, client: MlflowRuns, run_id: str, entries: Sequence[tuple[Entry, int]]) -> None:
        new = [
            point
            for entry, end in entries
            for point in points([entry])
            if end > self._compared_until or (metric_name(point.key), point.step) not in self._on_server
        ]
        client.log_points(run_id, new)
        for entry, _ in entries:
            if entry.kind == "params":
                client.log_params(run_id, entry.values)
            elif entry.kind == "tags":
                client.set_tags(run_id, entry.values)
            else:
                _note(self._shipped, entry)
        self._shipped.offset = entries[-1][1]
        self._state.save()

    def _send_file(self, client: MlflowRuns, run_id: str, item: Mapping[str, Any]) -> None:
        # The state, like the journal, may come from somebody else.
        data = StoreCopy(self._store, self.run).fetch_file(item["sha256"]) if is_file_name(item["name"]) else b""
        if not data:
            sys.stderr.write(f"lost: {item['name']!r}: no file has its content {item['sha256']!r}\n")
        elif item["step"] is None:
            client.log_artifact(run_id, item["name"], data)
        else:
            client.log_image(run_id, item["name"], (item["step"], item["time"]), data)

    def _adopt(self, client: MlflowRuns, parent: str | None) -> str:
        """Find the run of this journal by its tags, or create it; its id."""
        client.check_experiment()
        self._on_server, self._compared_until = set(), 0
        header, study = self._header, {STUDY_TAG: self._target.study}
        identity = {JOURNAL_TAG: header["id"]}
        if header["variant"]:
            tags = {VARIANT_TAG: header["variant"], _HASH_TAG: header["hash"], **study}
            tags |= {COLOUR_TAG: found} if (found := colour(header["variant"])) else {}
            tags |= {PARENT_TAG: parent} if parent else {}
        else:
            tags = {_NOTE_TAG: self._target.description, **study}
            if not self._target.store.startswith("file:"):
                # Machines that start a study at the same moment each have a journal, but they share the parent run.
                root = hashlib.sha256(self._target.store.encode()).hexdigest()[:12]
                identity = {**study, _ROOT_TAG: root}
        run_id = client.find_run(identity)
        if run_id is None:
            seed = f" seed {header['seed']}" if "seed" in header else ""
            run_id = client.create_run(
                f"{header['variant']}{seed}" if header["variant"] else self._target.study, identity, tags
            )
        else:
            self._compare(client, run_id)
        self._state.journals[header["id"]] = Shipped(run_id=run_id)
        self._state.save()
        if self.is_current and self._target.records_runs:
            self._record(client, run_id)
        return run_id

    def _compare(self, client: MlflowRuns, run_id: str) -> None:
        """Compare the journal with a run that exists already, so that no point is lost or sent twice."""
        # Points on the server are not sent again, even if their time differs. Points that the journal lacks, because
        # another machine lost its disk, are added to it, so that a resumed training does not log them again.
        own = {(metric_name(point.key), point.step) for point in points(e for e, _ in read_entries(self._path))}
        lost: dict[tuple[str, int], Entry] = {}
        for point in client.history(run_id):
            self._on_server.add((point.key, point.step))
            if (point.key, point.step) not in own:
                entry = Entry("metrics", {point.key: point.value}, point.step, point.time)
                lost.setdefault((point.key, point.step), entry)
        journal = Journal(self._path)
        journal.append(*lost.values())
        journal.close()
        self._compared_until = self._path.stat().st_size

    def _record(self, client: MlflowRuns, run_id: str) -> None:
        root = local_root(self._store)
        # The address of a database below the root is stored relative to it, so that the results can be moved.
        uri = self._target.address.replace(f"{sqlite_uri(root)}/", SQLITE)
        record = TrackingRun(journal=self._header["id"], run_id=run_id, experiment_id=client.experiment_id, uri=uri)
        folder = self.run.path.relative_to(root).as_posix()
        write_record(self._store, f"{folder}/{layout.TRACKING_RUN}", record)


def _note(shipped: Shipped, entry: Entry) -> None:
    """Record files and the final status, which are sent apart from the batches."""
    values = entry.values
    if entry.kind in ("artifact", "image"):
        item = {"name": values["name"], "step": entry.step, "time": entry.time, "sha256": values["sha256"]}
        same = [old for old in shipped.pending if (old["name"], old["step"]) == (item["name"], item["step"])]
        shipped.pending = [old for old in shipped.pending if old not in same] + [item]
    elif entry.kind == "status" and values["status"] != "RUNNING" and entry.time >= shipped.ended_at:
        shipped.ended, shipped.ended_at, shipped.error = values["status"], entry.time, values.get("error")
