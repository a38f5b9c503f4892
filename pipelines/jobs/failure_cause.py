"""Which pod caused the failure of a job, from the containers that exited while it ran. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dit.errors import FINAL_EXIT_CODES, one_line
from pipelines.cluster.objects import Object, container_statuses, pod_name, pod_phase
from pipelines.cluster.pod_reason import exit_cause
from pipelines.jobs.torchrun import FOLLOWING

# Longer than ranks wait for a lost one (DIT_COLLECTIVE_TIMEOUT): exits further apart are separate failures.
_ROUND = timedelta(minutes=15)
_RANKS = (re.compile(r"\bglobal_ranks=\[([\d, ]+)\]"), re.compile(r"\(rank (\d+)\)$"))
_OWN_MESSAGE = re.compile(r"\bdit: (.+)$")
OUT_OF_MEMORY = "OOMKilled"
_OUT_OF_MEMORY_LIMIT = 2


@dataclass(frozen=True)
class Death:
    """A container that ended without success."""

    pod: str
    uid: str
    finished: datetime
    exit_code: int | None
    """None for a pod that was evicted before its container exited."""
    reason: str
    message: str = ""
    """The program's own error; empty if it did not write one."""

    def __str__(self) -> str:
        return self.reason if self.exit_code is None else exit_cause(self.exit_code, self.reason)

    @property
    def full(self) -> str:
        """The exit with the program's own error."""
        return f"{self}: {self.message}" if self.message else str(self)

    @property
    def is_final(self) -> bool:
        """Whether the program said that a retry would end the same way."""
        return self.exit_code in FINAL_EXIT_CODES


def deaths(pods: Iterable[Object]) -> Iterator[Death]:
    """The failed exits in the status of the pods; Kubernetes keeps the last one of each container."""
    for pod in pods:
        name, uid = pod_name(pod), str(pod["metadata"]["uid"])
        # Eviction is a reason of the pod; its containers only have the exit code of a signal.
        evicted = str(pod.get("status", {}).get("reason") or "")
        states = [status.get(key, {}) for status in container_statuses(pod) for key in ("state", "lastState")]
        ends = [end for state in states if (end := state.get("terminated")) and end.get("exitCode")]
        for end in ends:
            finished = datetime.fromisoformat(end.get("finishedAt") or _last_change(pod))
            reason = evicted or str(end.get("reason") or "")
            message = own_message(str(end.get("message") or "").splitlines()) or ""
            yield Death(name, uid, finished, int(end["exitCode"]), reason, message)
        if pod_phase(pod) == "Failed" and not ends:
            reason = one_line(f"{evicted or 'failed'} {pod['status'].get('message') or ''}")
            yield Death(name, uid, datetime.fromisoformat(_last_change(pod)), None, reason)


def cause_of(ends: Iterable[Death]) -> Death | None:
    """The exit that began the last failure; None if there is none.

    One lost pod takes the others down, and all may have been restarted before. So the last failure is the longest run
    of exits, from the last one backwards, in which no pod occurs twice and no pause exceeds 15 minutes. A pod whose
    processes only lost a peer is not the cause, even if it exited first.
    """
    last: list[Death] = []
    for death in sorted(ends, key=lambda end: end.finished, reverse=True):
        if death.pod in {later.pod for later in last} or (last and last[-1].finished - death.finished > _ROUND):
            break
        last.append(death)
    own = [death for death in last if death.reason == OUT_OF_MEMORY or death.exit_code not in FOLLOWING]
    return min(own or last, key=lambda death: death.finished, default=None)


def final(ends: Iterable[Death]) -> Death | None:
    """The first exit that a retry would repeat: a final exit code, or the second time that a pod ran out of memory."""
    in_order = sorted(ends, key=lambda end: end.finished)
    out_of_memory = Counter(end.pod for end in in_order if end.reason == OUT_OF_MEMORY)
    too_small = {pod for pod, count in out_of_memory.items() if count >= _OUT_OF_MEMORY_LIMIT}
    return next((end for end in in_order if end.pod in too_small or end.is_final), None)


def rank_of(lines: Sequence[str]) -> str | None:
    """The rank or ranks of a pod, from the last lines of its log; None if they have none."""
    for pattern in _RANKS:
        for line in reversed(lines):
            if match := pattern.search(line.strip()):
                return match[1]
    return None


def own_message(lines: Sequence[str]) -> str | None:
    """The program's own error message, the last line that begins with `dit: `; None if there is none."""
    return next((match[1] for line in reversed(lines) if (match := _OWN_MESSAGE.search(line))), None)


def _last_change(pod: Object) -> str:
    changes = [str(change["lastTransitionTime"]) for change in pod.get("status", {}).get("conditions") or []]
    return max(changes, default=str(pod["metadata"]["creationTimestamp"]))
