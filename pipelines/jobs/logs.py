"""Follows the logs of all pods of a job: prints each line with its pod, and keeps the last lines.

torchrun's messages about itself, forty lines per pod, are kept but not printed.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections import deque
from collections.abc import Iterable

from dit.console import say
from dit.console.streams import whole_lines
from pipelines.cluster.client import ApiRefused, ApiUnavailable, Cluster
from pipelines.cluster.objects import Object, container_statuses, pod_name, pod_phase
from pipelines.cluster.retry import pauses

KEPT_LINES = 200
# A reconnection requests a little more than was missed; time stamps identify the lines that are already known.
_OVERLAP_SECONDS = 10
Stamp = tuple[str, str]
# At INFO, the level needed to learn a pod's ranks, torchrun also logs its settings and each state of its agent. The
# socket warning is harmless: the address of a pod has no DNS name.
_TORCHRUN_NOISE = re.compile(
    r"I\d{4} [\d:.]+ +\d+ torch/distributed/|\[W[\d]+ [\d:.]+ socket\.cpp:\d+\] \[c10d\] The hostname of the client"
)


class PodLogs:
    """Follows the log of each pod in its own thread, across lost connections and container restarts."""

    def __init__(self, cluster: Cluster, job: str) -> None:
        self._cluster, self._job = cluster, job
        self._tails: dict[str, _Tail] = {}

    def follow(self, pods: Iterable[Object]) -> None:
        """Start to follow new pods; stop following pods that ended or are gone, once their logs have been read."""
        alive = set()
        for pod in pods:
            uid = str(pod["metadata"]["uid"])
            if pod_phase(pod) not in ("Succeeded", "Failed"):
                alive.add(uid)
            if uid not in self._tails and _has_started(pod):
                self._tails[uid] = _Tail(self._cluster, pod, self._job)
        for uid, tail in self._tails.items():
            if uid not in alive:
                tail.ending.set()

    def close(self, seconds: float = 5.0) -> None:
        """Read the rest of the logs, for at most `seconds`."""
        until = time.monotonic() + seconds
        for tail in self._tails.values():
            tail.ending.set()
        for tail in self._tails.values():
            tail.join(max(0.0, until - time.monotonic()))
        for tail in self._tails.values():
            tail.silent.set()

    def last_lines(self, uid: str) -> list[str]:
        """The last lines of the pod with this uid, the newest last."""
        return list(self._tails[uid].lines) if uid in self._tails else []


class _Tail(threading.Thread):
    """One pod's log."""

    def __init__(self, cluster: Cluster, pod: Object, job: str) -> None:
        self._cluster, self._pod, self._uid = cluster, pod_name(pod), str(pod["metadata"]["uid"])
        self._container = str(container_statuses(pod)[0]["name"])
        super().__init__(name=f"log of {self._pod}", daemon=True)
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.ending = threading.Event()
        """Set when the pod has ended: stop at the end of the log."""
        self.silent = threading.Event()
        """Set on close: print nothing more."""
        self._title = self._pod.removeprefix(f"{job}-")
        self._last: Stamp = ("", "")
        self._latest = 0.0
        self.start()

    def run(self) -> None:
        """See Thread."""
        waits = pauses()
        while not self.silent.is_set():
            ending = self.ending.is_set()
            before = self._last
            try:
                if not self._exists():
                    return
                self._read()
                complete = True
            except ApiUnavailable:
                complete = False
            except ApiRefused as error:
                # The container is restarting, or the pod was deleted (404).
                complete = ending or error.status == 404
                ending |= error.status == 404
            if ending and complete:
                return
            if self._last != before:
                waits = pauses()
            self.ending.wait(next(waits))

    def _exists(self) -> bool:
        # A restarted pod has the same name and another uid; it gets its own tail.
        pod = self._cluster.pod(self._pod)
        return pod is not None and pod["metadata"]["uid"] == self._uid

    def _read(self) -> None:
        since = math.ceil(time.monotonic() - self._latest) + _OVERLAP_SECONDS if self._latest else None
        with self._cluster.log(self._pod, self._container, since) as chunks:
            for line in whole_lines(chunks):
                stamp, text = split_stamp(line.rstrip("\r"))
                self._latest = time.monotonic()
                if stamp <= self._last:
                    continue
                self._last = stamp
                self.lines.append(text)
                if self.silent.is_set():
                    return
                if not of_torchrun(text):
                    say(f"{self._title}: {text}")


def of_torchrun(line: str) -> bool:
    """True for a routine message of torchrun about itself."""
    return _TORCHRUN_NOISE.match(line) is not None


def split_stamp(line: str) -> tuple[Stamp, str]:
    """The time stamp of a log line, as a key that sorts by time, and the rest of the line."""
    stamp, _, text = line.partition(" ")
    seconds, _, rest = stamp.partition(".")
    # Kubernetes drops trailing zeros of the fraction; without padding, "5Z" sorts after "51Z".
    fraction = rest.rstrip("Z").partition("+")[0]
    return (seconds.rstrip("Z"), fraction.ljust(9, "0")), text


def _has_started(pod: Object) -> bool:
    return any(
        key in status.get(state, {})
        for status in container_statuses(pod)
        for state in ("state", "lastState")
        for key in ("running", "terminated")
    )
