"""Names the ranks of a training's job that do not get on, and decides when the job has to be started again."""

from __future__ import annotations

import time
from dataclasses import replace

from dit.console import say
from dit.console.formatting import format_duration
from dit.errors import DitError
from dit.health.progress import Stalled
from dit.health.stall import LONG_SECONDS, StallObserver
from dit.health.stall_report import is_watched, report, stops
from dit.results.progress import rank_progress
from dit.results.stages import Work
from dit.study.config import StudyConfig
from pipelines.cluster.client import Cluster
from pipelines.cluster.objects import container_statuses
from pipelines.cluster.store_access import study_store, study_tracker
from pipelines.jobs.snapshot import Snapshot
from pipelines.jobs.spec import JobSpec

LOOK_SECONDS = 30.0


class StallWatch:
    """Reads the ranks' records of one job every 30 seconds while all of its pods run.

    Pods that are missing are the supervisor's, which waits for them. A restarted container is given time to load.
    """

    def __init__(self, config: StudyConfig, spec: JobSpec, cluster: Cluster) -> None:
        self._config, self._spec, self._cluster = config, spec, cluster
        self._observer = StallObserver()
        self._containers: frozenset[str] = frozenset()
        self._next = 0.0
        self._silent_since: float | None = None
        self.is_final = stops(config)
        """Whether the study ends a training that does not get on, instead of starting it again."""

    @property
    def has_found(self) -> bool:
        """Whether ranks do not get on at present."""
        return self._observer.stall is not None

    def look(self, snapshot: Snapshot, now: float) -> str:
        """Return why the job must be started again; empty while it need not. `now` is of a monotonic clock."""
        if self._spec.stage != "train" or not is_watched(self._config) or now < self._next:
            return ""
        self._next = now + LOOK_SECONDS
        complete = snapshot.running >= self._spec.cluster.replicas
        # Ranks that wait for a frozen one fail after a while, and their pods restart: this does not end the stall.
        if not self.has_found and not (complete and self._containers == _containers(snapshot)):
            self._observer, self._silent_since = StallObserver(), now if complete else None
            self._containers = _containers(snapshot)
        if not self.has_found and not complete:
            return ""
        try:
            return self._look(now)
        except DitError as error:
            # The launcher's own waiting does not depend on the store.
            say(f"{self._spec.name}: how far the ranks are is not known: {error}")
            return ""

    def _look(self, now: float) -> str:
        with study_store(self._cluster, self._config.cluster, self._spec.root) as store:
            records = rank_progress(Work(self._config, store, compare_decoder=False), self._spec.run)
            known = self.has_found
            is_new, stall = self._observer.look(records, now), self._observer.stall
            if known and (stall is None or is_new):
                say(f"{self._spec.name}: the training goes on")
            if self._observer.is_alive:
                self._silent_since = now
            if stall is None:
                return self._never_began(now)
            if is_new:
                with study_tracker(self._cluster, self._config):
                    report(self._config, store, self._spec.run, Stalled(stall, time.time(), self._consequence))
        waited = self._observer.waited(now)
        if waited < max(self._spec.cluster.patience.stall, stall.limit):
            return ""
        return f"{replace(stall, seconds=waited).cause(time.time())} (cluster.patience.stall)"

    def _never_began(self, now: float) -> str:
        """Return why a job whose pods run without a sign of its ranks must be started again."""
        if self._silent_since is None or now - self._silent_since < LONG_SECONDS:
            return ""
        waited = format_duration(now - self._silent_since)
        return f"no rank has shown a sign of life for {waited}, though all pods run"

    @property
    def _consequence(self) -> str:
        wait = format_duration(self._spec.cluster.patience.stall)
        what = "the job is ended" if self.is_final else "the job is started again from its last checkpoint"
        return f"{what} after {wait} (cluster.patience.stall)"


def _containers(snapshot: Snapshot) -> frozenset[str]:
    return frozenset(
        f"{pod['metadata']['uid']} {status.get('restartCount', 0)}"
        for pod in snapshot.pods
        for status in container_statuses(pod)
    )
