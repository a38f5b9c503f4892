"""Decides from snapshots of a job what to report and whether to keep waiting. Uses neither API nor clock."""

from __future__ import annotations

from dataclasses import dataclass

from dit.console.formatting import format_duration
from dit.errors import one_line
from pipelines.cluster.objects import condition
from pipelines.cluster.pod_reason import Reason
from pipelines.jobs.failure_cause import Death, cause_of, deaths, final
from pipelines.jobs.kind import JobKind, Phase
from pipelines.jobs.pending_reason import explain
from pipelines.jobs.snapshot import Snapshot
from pipelines.jobs.spec import JobSpec

# When a job starts, objects are missing for a few seconds: reasons are reported only if they last.
_SETTLE_SECONDS = 10.0
_REPEAT_SECONDS = 600.0


@dataclass(frozen=True)
class Decision:
    """The result of one look at the job. `over` is None while the job should be waited for."""

    updates: tuple[str, ...] = ()
    over: Phase | None = None
    error: str = ""
    """Why the job failed."""
    cause: Death | None = None
    """The container exit that began the failure; None if none was observed."""
    abandoned: bool = False
    """True if the job still exists, cannot succeed, and must be deleted."""
    stalled: bool = False
    """True if the job's ranks do not get on; a new job resumes from the last checkpoint."""


class Supervisor:
    """Watches one job from its creation to its end."""

    def __init__(self, spec: JobSpec, kind: JobKind, uid: str) -> None:
        self._spec, self._kind, self._uid = spec, kind, uid
        self.place = f"{kind.resource.kind} {spec.namespace}/{spec.name}"
        self._deaths: set[Death] = set()
        self._complete = False
        self._has_run: bool | None = None
        self._incomplete_since: float | None = None
        self._unrecoverable_since: float | None = None
        self._since: dict[str, float] = {}
        self._reported: dict[str, float] = {}

    def look(self, snapshot: Snapshot, now: float) -> Decision:
        """Evaluate a snapshot; `now` is in seconds of a monotonic clock."""
        job = snapshot.job
        if job is None or job["metadata"]["uid"] != self._uid:
            why = "it was deleted" if job is None else "another job has its name now"
            return Decision(
                over=Phase.FAILED,
                error=f"{self.place} is gone: {why}; run the step again to resume from the last checkpoint",
            )
        if self._has_run is None:
            # An adopted job may have run for days; a new job does not have this condition.
            self._has_run = any(condition(job, kind) is not None for kind in ("Running", "Restarting"))
        fresh = set(deaths(snapshot.pods)) - self._deaths
        self._deaths |= fresh
        updates = [
            f"{death.pod} ended: {death}{f': {death.message}' if death.message else ''}"
            for death in sorted(fresh, key=lambda death: death.finished)
        ]
        if snapshot.phase is Phase.SUCCEEDED:
            return Decision(tuple(updates), over=Phase.SUCCEEDED)
        if snapshot.phase is Phase.FAILED:
            cause = cause_of(self._deaths)
            return Decision(tuple(updates), over=Phase.FAILED, error=self._failure(snapshot, cause), cause=cause)
        if self._kind.restarts and (cause := final(self._deaths)) is not None:
            error = f"{self.place} cannot go on: every further try would end alike"
            return Decision(tuple(updates), over=Phase.FAILED, error=error, cause=cause, abandoned=True)
        reason = explain(self._spec, self._kind, snapshot)
        updates += self._progress(snapshot, reason, now)
        return self._timeout(tuple(updates), reason, now)

    def _progress(self, snapshot: Snapshot, reason: Reason | None, now: float) -> list[str]:
        replicas = self._spec.cluster.replicas
        complete = snapshot.running >= replicas
        updates = []
        if complete and not self._complete:
            updates.append(f"{self.place}: all {replicas} pods run")
            self._reported.clear()
            self._since.clear()
        self._complete = complete
        if complete:
            self._has_run = True
            self._incomplete_since = self._unrecoverable_since = None
            return updates
        if self._incomplete_since is None:
            self._incomplete_since = now
        if reason is None or not reason.unrecoverable:
            self._unrecoverable_since = None
        elif self._unrecoverable_since is None:
            self._unrecoverable_since = now
        if reason is not None and self._is_due(reason, now):
            updates.append(f"{self.place}: {snapshot.running} of {replicas} pods run: {reason}")
        return updates

    def _is_due(self, reason: Reason, now: float) -> bool:
        """Whether to report a reason: when it has lasted, and again from time to time."""
        since = self._since.setdefault(reason.same, now)
        last = self._reported.get(reason.same)
        due = now - since >= _SETTLE_SECONDS if last is None else now - last >= _REPEAT_SECONDS
        if due:
            self._reported[reason.same] = now
        return due

    def _timeout(self, updates: tuple[str, ...], reason: Reason | None, now: float) -> Decision:
        limits = self._spec.cluster.patience
        why = (
            str(reason)
            if reason
            else f"kubectl get pods -n {self._spec.namespace} -l {self._kind.pod_label}={self._spec.name}"
        )
        # In a job that has run, a lost node or a held queue may come back.
        stuck_since = None if self._has_run else self._unrecoverable_since
        if stuck_since is not None and now - stuck_since >= limits.hopeless:
            return Decision(updates, Phase.FAILED, f"{self.place} cannot start: {why}", abandoned=True)
        if self._incomplete_since is not None and now - self._incomplete_since >= limits.start:
            waited = format_duration(limits.start)
            what = "did not get all of its pods back" if self._has_run else "did not start"
            error = f"{self.place} {what} within {waited} (cluster.patience.start): {why}"
            return Decision(updates, Phase.FAILED, error, abandoned=True)
        return Decision(updates)

    def _failure(self, snapshot: Snapshot, cause: Death | None) -> str:
        job = snapshot.job or {}
        failed = condition(job, "Failed") or {}
        message = one_line(failed.get("message") or failed.get("reason") or "no reason given")
        error = f"{self.place} failed: {message.rstrip('.')}"
        return error if cause else f"{error}; kubectl get events -n {self._spec.namespace}"
