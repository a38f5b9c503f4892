"""Which pod brought a job down, and how: from the ends of containers that were seen while it ran. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipelines.cluster.objects import Object, container_statuses, pod_name, pod_phase

_SIGNALS = {129: "SIGHUP", 130: "SIGINT", 134: "SIGABRT", 135: "SIGBUS", 137: "SIGKILL", 139: "SIGSEGV", 143: "SIGTERM"}
# Longer than the ranks wait for one that is lost (DIT_COLLECTIVE_TIMEOUT): later ends belong to another failure.
_ROUND = timedelta(minutes=15)
_RANKS = (re.compile(r"\bglobal_ranks=\[([\d, ]+)\]"), re.compile(r"\(rank (\d+)\)$"))
_OWN_WORDS = re.compile(r"\bdit: (.+)$")
# What the processes of the other pods say when one is lost, and their agents when the pod of the rendezvous is.
_FOLLOWS = re.compile(r"lost contact with the other ranks|stopped by a signal|RendezvousConnectionError")
_FOLLOWS_LINES = 20
# The same steps from the same checkpoint lead to the same end.
_DIVERGED = re.compile(r"\bstep \d+: .+ is not finite\b")
# torchrun's word on a process that ended with the exit code of what is given and cannot work (dit.errors.InputError).
_REFUSED = re.compile(r"\(exitcode: 2\)")
OUT_OF_MEMORY = "OOMKilled"
_ENOUGH = 2
Lines = Callable[[str], Sequence[str]]
"""The last lines of the log of the pod with a uid."""


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
            words = " ".join(f"{evicted or 'failed'} {pod['status'].get('message') or ''}".split())
            yield Death(name, uid, _time(_last_change(pod)), None, words)


def cause_of(seen: Iterable[Death], lines: Lines) -> Death | None:
    """The end that began the last failure: one lost pod takes the others down, and all may have been restarted before.

    Looking back from the last end, a failure goes as far as no pod occurs twice and no long pause lies between. A pod
    that says that it lost another one may have been faster to end, and is not the cause.
    """
    last: list[Death] = []
    for death in sorted(seen, key=lambda death: death.finished, reverse=True):
        if death.pod in {one.pod for one in last} or (last and last[-1].finished - death.finished > _ROUND):
            break
        last.append(death)
    own = [death for death in last if not _follows(death, lines(death.uid))]
    return min(own or last, key=lambda death: death.finished, default=None)


def final(seen: Iterable[Death], lines: Lines) -> Death | None:
    """An end after which every further try would end alike.

    A training diverged, a pod was twice out of memory, or what the pods were given cannot work.
    """
    ends = sorted(seen, key=lambda death: death.finished)
    short = Counter(death.pod for death in ends if death.reason == OUT_OF_MEMORY)
    for death in ends:
        said = lines(death.uid)
        if short[death.pod] >= _ENOUGH or _DIVERGED.search(own_words(said) or "") or any(map(_REFUSED.search, said)):
            return death
    return None


def rank_of(lines: Sequence[str]) -> str | None:
    """The pod's rank, or ranks, that its last lines tell; None when they do not."""
    for pattern in _RANKS:
        for line in reversed(lines):
            if match := pattern.search(line.strip()):
                return match[1]
    return None


def own_words(lines: Sequence[str]) -> str | None:
    """The line in which the program itself says why it ended."""
    return next((match[1] for line in reversed(lines) if (match := _OWN_WORDS.search(line))), None)


def _follows(death: Death, lines: Sequence[str]) -> bool:
    if death.reason == OUT_OF_MEMORY or death.exit_code in _SIGNALS.keys() - {143}:
        return False
    words = own_words(lines) or ""
    return any(_FOLLOWS.search(line) for line in (words, *lines[-_FOLLOWS_LINES:]))


def _last_change(pod: Object) -> str:
    changes = [str(one["lastTransitionTime"]) for one in pod.get("status", {}).get("conditions") or []]
    return max(changes, default=str(pod["metadata"]["creationTimestamp"]))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
