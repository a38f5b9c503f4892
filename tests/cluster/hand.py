"""Kills processes of pods from the node: inside a container, PID 1 cannot be killed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kube import OURS, SESSION, Object, apply, get, kubectl, until

_NAMESPACE = f"dit-scaling-test-{SESSION}"
_NAME = "hand"
# Signal 0 only lists processes. A zombie has no command line.
_SIGNAL = """
import os, sys
container, text, number = sys.argv[1:]
for entry in os.listdir('/proc'):
    try:
        if entry.isdecimal() and container in open(f'/proc/{entry}/cgroup').read():
            command = open(f'/proc/{entry}/cmdline').read().replace('\\0', ' ')
            if command and text in command:
                os.kill(int(entry), int(number))
                print(entry)
    except (FileNotFoundError, ProcessLookupError):
        pass
"""


@dataclass(frozen=True)
class Hand:
    """A pod with access to the node's processes, in a namespace without a Pod Security standard."""

    pod: str = _NAME

    @classmethod
    @contextmanager
    def on_node(cls, image: str) -> Iterator[Hand]:
        """Create the pod; delete it with its namespace at the end."""
        metadata = {"name": _NAMESPACE, "labels": OURS}
        apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}, _manifest(image))
        try:
            until("the hand runs", lambda: (get("pod", _NAME, _NAMESPACE) or {})["status"]["phase"] == "Running", 180)
            yield cls()
        finally:
            kubectl("delete", "namespace", _NAMESPACE, "--wait=false")

    def kill(self, pod: Object, text: str = "", number: int = signal.SIGKILL) -> None:
        """Send a signal to all processes of a pod's container whose command line has this text.

        Retries until one has got it: the API server learns of a restarted container a moment later.
        """
        name = pod["metadata"]["name"]

        def killed() -> list[str]:
            return self._signal(container(get("pod", name) or pod), text, number)

        until(f"a process of {name} gets signal {number}", killed, 15, pause=0.2)

    def processes(self, container: str) -> list[str]:
        return self._signal(container, "", 0)

    def _signal(self, container: str, text: str, number: int) -> list[str]:
        command = ["exec", "-n", _NAMESPACE, self.pod, "--", "python", "-c", _SIGNAL, container, text, f"{number:d}"]
        return kubectl(*command).split()


def container(pod: Object) -> str:
    """Id of a pod's container; a restart changes it."""
    return str(pod["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2])


def _manifest(image: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": _NAME, "namespace": _NAMESPACE, "labels": OURS},
        "spec": {
            "hostPID": True,
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "command": ["sleep", "infinity"],
                    "securityContext": {"runAsUser": 0, "runAsGroup": 0},
                }
            ],
        },
    }
