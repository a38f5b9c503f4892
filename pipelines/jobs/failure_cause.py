"""Which pod brought a job down, and how: from the ends of containers observed while it ran. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dit.errors import FINAL_EXIT_CODES, one_line
from pipelines.cluster.objects import Object, container_statuses, pod_name, pod_phase
from pipelines.jobs.torchrun import FOLLOWING

_SIGNALS = {129: "SIGHUP", 130: "SIGINT", 134: "SIGABRT", 135: "SIGBUS", 137: "SIGKILL", 139: "SIGSEGV", 143: "SIGTERM"}
# Longer than the ranks wait for one that is lost (DIT_COLLECTIVE_TIMEOUT): later ends belong to another failure.
_ROUND = timedelta(minutes=15)
_RANKS = (re.compile(r"\bglobal_ranks=\[([\d, ]+)\]"), re.compile(r"\(rank (\d+)\)$"))
_OWN_MESSAGE = re.compile(r"\bdit: (.+)$")
OUT_OF_MEMORY = "OOMKilled"
_ENOUGH = 2


@dataclass(frozen=True)
class Death:
    """The end of a pod's container with something else than success."""

    pod: str
    uid: str
    finished: datetime
    exit_code: int | None
    """None for a pod that was evicted before its container had a chance to end."""
    reason: str

    def __str__(self) -> str:
        if self.exit_code is None:
            return self.reason
        signal = f", {_SIGNALS[self.exit_code]}" if self.exit_code in _SIGNALS else ""
        reason = f"{self.reason}, " if self.reason not in ("", "Error") else ""
        return f"{reason}exit code {self.exit_code}{signal}"


def deaths(pods: Iterable[Object]) -> Iterator[Death]:
    """The ends that the pods' status shows: Kubernetes remembers the last one of each container."""
    for pod in pods:
        name, uid = pod_name(pod), str(pod["metadata"]["uid"])
        # A pod that its node threw out says so itself; its containers know of a signal only.
        evicted = str(pod.get("status", {}).get("reason") or "")
        states = [status.get(key, {}) for status in container_statuses(pod) for key in ("state", "lastState")]
        ends = [end for state in states if (end := state.get("terminated")) and end.get("exitCode")]
        for end in ends:
            finished = _time(end.get("finishedAt") or _last_change(pod))
            yield Death(name, uid, finished, int(end["exitCode"]), evicted or str(end.get("reason") or ""))
        if pod_phase(pod) == "Failed" and not ends:
            reason = one_line(f"{evicted or 'failed'} {pod['status'].get('message') or ''}")
            yield Death(name, uid, _time(_last_change(pod)), None, reason)


def cause_of(ends: Iterable[Death]) -> Death | None:
    """The end that began the last failure: one lost pod takes the others down, and all may have been restarted before.

    Looking back from the last end, a failure goes as far as no pod occurs twice and no long pause lies between. A pod
    whose processes lost another one may have been faster to end, and is not the cause.
    """
    last: list[Death] = []
    for death in sorted(ends, key=lambda end: end.finished, reverse=True):
        if death.pod in {later.pod for later in last} or (last and last[-1].finished - death.finished > _ROUND):
            break
        last.append(death)
    own = [death for death in last if death.reason == OUT_OF_MEMORY or death.exit_code not in FOLLOWING]
    return min(own or last, key=lambda death: death.finished, default=None)


def final(ends: Iterable[Death]) -> Death | None:
    """An end after which every further try would end alike: by its exit code, or a pod's second lack of memory."""
    in_order = sorted(ends, key=lambda end: end.finished)
    short = Counter(end.pod for end in in_order if end.reason == OUT_OF_MEMORY)
    return next((end for end in in_order if short[end.pod] >= _ENOUGH or end.exit_code in FINAL_EXIT_CODES), None)


def rank_of(lines: Sequence[str]) -> str | None:
    """The pod's rank, or ranks, in its last lines; None where they name none."""
    for pattern in _RANKS:
        for line in reversed(lines):
            if match := pattern.search(line.strip()):
                return match[1]
    return None


def own_message(lines: Sequence[str]) -> str | None:
    """The line in which the program itself gives the reason for its end."""
    return next((match[1] for line in reversed(lines) if (match := _OWN_MESSAGE.search(line))), None)


def _last_change(pod: Object) -> str:
    changes = [str(change["lastTransitionTime"]) for change in pod.get("status", {}).get("conditions") or []]
    return max(changes, default=str(pod["metadata"]["creationTimestamp"]))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
