"""An experiment in MLflow. The only module that imports mlflow and, through it, talks to a server."""

from __future__ import annotations

import io
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import PIL.Image
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from dit.errors import StoreError
from dit.storage.base import exclusive
from dit.tracking.journal import Point
from dit.tracking.mlflow_database import follow_move, foreign_address
from dit.tracking.mlflow_view import STUDY_TAG, is_ours, view_tag, view_value
from dit.tracking.target import Target
from dit.tracking.writer_session import Status

JOURNAL_TAG = "dit.journal"
HEARTBEAT_TAG = "dit.heartbeat"
PARENT_TAG = "mlflow.parentRunId"
_ERROR_TAG = "error"
_METRICS_PER_BATCH = 1000
_TAGS_PER_BATCH = 100
_MAX_PIXELS = 50_000_000
# Errors that a retry does not change.
_REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}
# An account that may log to an experiment may still not be allowed to change its view.
_REFUSED_VIEW = _REFUSED | {"PERMISSION_DENIED"}
# A server with permissions answers for a run that does not exist as for one that belongs to somebody else.
_ABSENT = {"RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"}
ItemT = TypeVar("ItemT")


class RunGoneError(Exception):
    """The run was deleted on the server, or the server's database was replaced."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"run {run_id} was deleted on the server; it is restored from its journal")


class ExperimentGoneError(Exception):
    """The experiment's number is free or another experiment's: the server's database was replaced."""

    def __init__(self, name: str) -> None:
        super().__init__(f"experiment {name} is gone from the server; it is restored from the journals")


class MlflowRuns:
    """The target's experiment, found by its name; created or restored if needed.

    Every method raises the errors of MLflow's client, and RunGoneError if the run was deleted.
    """

    def __init__(self, target: Target) -> None:
        self._name = target.experiment
        # MLflow's migrations are not safe if two processes create the same database at the same moment.
        with exclusive(Path(f"{target.database}.lock")) if target.database else nullcontext():
            if target.database and target.artifacts:
                follow_move(target.database, target.experiment, target.artifacts)
                refuse_foreign(target)
            self._client: Any = MlflowClient(tracking_uri=target.uri)
            self.experiment_id = self._open_experiment(target)
            self._save_view(target)

    def check_experiment(self) -> None:
        """Raises ExperimentGoneError unless the experiment still has the number with which it was found."""
        try:
            name = self._client.get_experiment(self.experiment_id).name
        except MlflowException as error:
            if error.error_code not in _ABSENT:
                raise
            name = None
        if name != self._name:
            raise ExperimentGoneError(self._name)

    def is_active(self, run_id: str) -> bool:
        """Whether the run exists in this experiment and is not deleted."""
        try:
            info = self._client.get_run(run_id).info
        except MlflowException as error:
            if error.error_code in _ABSENT:
                return False
            raise
        return bool(info.lifecycle_stage == "active" and info.experiment_id == self.experiment_id)

    def find_run(self, tags: Mapping[str, str]) -> str | None:
        """The oldest active run with these tags."""
        condition = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        runs = self._client.search_runs([self.experiment_id], condition, order_by=["attributes.start_time ASC"])
        return min(((run.info.start_time, run.info.run_id) for run in runs), default=(0, None))[1]

    def create_run(self, name: str, identity: Mapping[str, str], tags: Mapping[str, str]) -> str:
        """A new run, or the run that another machine created with the same identity at the same moment."""
        created: str = self._client.create_run(
            self.experiment_id, run_name=name, tags={**identity, **tags, HEARTBEAT_TAG: _now()}
        ).info.run_id
        oldest = self.find_run(identity) or created
        if oldest != created:
            self._client.delete_run(created)
        return oldest

    def history(self, run_id: str) -> list[Point]:
        """Every point of the run."""
        keys = self._client.get_run(run_id).data.metrics
        return [
            Point(key, point.step, point.value, point.timestamp)
            for key in keys
            for point in self._client.get_metric_history(run_id, key)
        ]

    def log_points(self, run_id: str, points: Iterable[Point]) -> None:
        """Add points; MLflow keeps identical ones once."""
        metrics = [Metric(metric_name(point.key), point.value, point.time, point.step) for point in points]
        for batch in _batches(metrics, _METRICS_PER_BATCH):
            self._log(run_id, batch, lambda items: self._client.log_batch(run_id, metrics=items))

    def log_params(self, run_id: str, values: Mapping[str, str]) -> None:
        """Set parameters. A parameter keeps its first value; a different one is kept as a tag."""
        params = [Param(metric_name(key), value) for key, value in values.items()]

        def keep_as_tag(param: Any) -> None:
            self.set_tags(run_id, {f"param_changed/{param.key}": param.value})

        for batch in _batches(params, _TAGS_PER_BATCH):
            self._log(run_id, batch, lambda items: self._client.log_batch(run_id, params=items), keep_as_tag)

    def set_tags(self, run_id: str, values: Mapping[str, str]) -> None:
        """Set tags."""
        tags = [RunTag(metric_name(key), value) for key, value in values.items()]
        for batch in _batches(tags, _TAGS_PER_BATCH):
            self._log(run_id, batch, lambda items: self._client.log_batch(run_id, tags=items))

    def log_artifact(self, run_id: str, name: str, data: bytes) -> None:
        """Store a file under this relative path."""
        folder, _, base = name.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch, self._refusals(run_id, f"artifact {name}"):
            path = Path(scratch) / base
            path.write_bytes(data)
            self._client.log_artifact(run_id, str(path), folder or None)

    def log_image(self, run_id: str, name: str, point: tuple[int, int], png: bytes) -> None:
        """Store a PNG of (step, time) for the image grid of MLflow's pages, once."""
        key = re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII)
        step, time_ms = point
        mark = f"{key.replace('/', '~')}+step+{step}+timestamp+{time_ms}+"
        with self._refusals(run_id, f"image {name}"):
            there = [Path(file.path).name for file in self._client.list_artifacts(run_id, "images")]
            if not any(file.startswith(mark) and file.endswith(".webp") for file in there):
                image = _decode(png)
                if image is None:
                    sys.stderr.write(f"refused: image {name} of step {step}: not a PNG, or too large\n")
                    return
                self._client.log_image(run_id, image, key=key, step=step, timestamp=time_ms, synchronous=True)

    def set_status(self, run_id: str, status: Status, time_ms: int, error: str | None) -> None:
        """Set a run's status, and the error that it failed with."""
        with self._refusals(run_id, f"status {status}"):
            if status == "RUNNING":
                self._client.update_run(run_id, status=status)
            else:
                self._client.set_terminated(run_id, status, end_time=time_ms)
        had_error = _ERROR_TAG in self._client.get_run(run_id).data.tags
        if error:
            self.set_tags(run_id, {_ERROR_TAG: error})
        elif had_error:
            self._client.delete_tag(run_id, _ERROR_TAG)

    def send_heartbeat(self, run_id: str) -> None:
        """Record that the run is alive."""
        self.set_tags(run_id, {HEARTBEAT_TAG: _now()})
        with self._refusals(run_id, "heartbeat"):
            self._client.update_run(run_id, status="RUNNING")

    def silent_runs(self, study: str, seconds: float) -> list[str]:
        """Runs of a study that are RUNNING but have had no heartbeat for so long."""
        condition = f"tags.`{STUDY_TAG}` = '{study}' and attributes.status = 'RUNNING'"
        limit = (time.time() - seconds) * 1000
        return [
            run.info.run_id
            for run in self._client.search_runs([self.experiment_id], condition)
            if max(run.info.start_time, int(run.data.tags.get(HEARTBEAT_TAG, 0))) < limit
        ]

    def _open_experiment(self, target: Target) -> str:
        experiment = self._client.get_experiment_by_name(target.experiment)
        if experiment is None:
            try:
                return str(self._client.create_experiment(target.experiment, target.artifacts))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self._client.get_experiment_by_name(target.experiment)
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def _save_view(self, target: Target) -> None:
        """Store the study's view with the experiment, unless a person has changed it."""
        if not target.metric:
            return
        experiment = self._client.get_experiment(self.experiment_id)
        name = view_tag(target.study)
        value = view_value(target.study, metric_name(target.metric), target.last_step, experiment.creation_time)
        there = experiment.tags.get(name)
        if there == value or (there is not None and not is_ours(there)):
            return
        try:
            self._client.set_experiment_tag(self.experiment_id, name, value)
        except MlflowException as error:
            if error.error_code not in _REFUSED_VIEW:
                raise
            sys.stderr.write(f"refused: view {name}: {error}\n")

    def _log(
        self,
        run_id: str,
        items: Sequence[ItemT],
        send: Callable[[Sequence[ItemT]], None],
        instead: Callable[[ItemT], None] | None = None,
    ) -> None:
        """Send all items at once, or one by one if the server refuses them, so that one bad item blocks no other."""
        try:
            send(items)
            return
        except MlflowException as error:
            if error.error_code not in _REFUSED:
                raise
        for item in items:
            with self._refusals(run_id, str(item), partial(instead, item) if instead else None):
                send([item])

    @contextmanager
    def _refusals(self, run_id: str, what: str, instead: Callable[[], None] | None = None) -> Iterator[None]:
        """Log what the server refuses and continue, because a retry would fail again and block everything after it."""
        try:
            yield
        except MlflowException as error:
            if error.error_code not in _REFUSED:
                raise
            if not self.is_active(run_id):
                raise RunGoneError(run_id) from error
            if instead is None:
                sys.stderr.write(f"refused: {what}: {error}\n")
            else:
                instead()


def refuse_foreign(target: Target) -> None:
    """Raises StoreError when a database that came with its results would send artifacts out of their folder."""
    if target.database and target.is_below_root and (text := foreign_address(target.database, target.experiment)):
        raise StoreError(
            f"{target.database}: names {text} for artifacts, which is not below its folder;"
            " remove the database: it is filled again from the journals"
        )


def metric_name(name: str) -> str:
    """The name with every character that MLflow does not allow replaced by an underscore."""
    return re.sub(r"[^\w\-./ :]", "_", name, flags=re.ASCII)


def _batches(items: Sequence[ItemT], size: int) -> Iterator[Sequence[ItemT]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _decode(png: bytes) -> PIL.Image.Image | None:
    try:
        # Pillow starts Ghostscript for other formats.
        image = PIL.Image.open(io.BytesIO(png), formats=["PNG"])
        if image.width * image.height > _MAX_PIXELS:
            return None
        image.load()
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError):
        return None
    return image


def _now() -> str:
    return str(time.time_ns() // 1_000_000)
