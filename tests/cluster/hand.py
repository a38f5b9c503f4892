"""Ends processes of pods from outside, which no process inside a container can do to its first one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kube import OURS, SESSION, Object, apply, get, kubectl, until

_NAMESPACE = f"dit-scaling-test-{SESSION}"
_NAME = "hand"
_KILL = """
import os, signal, sys
for entry in os.listdir('/proc'):
    try:
        if entry.isdecimal() and sys.argv[1] in open(f'/proc/{entry}/cgroup').read():
            os.kill(int(entry), signal.SIGKILL)
            print(entry)
    except (FileNotFoundError, ProcessLookupError):
        pass
"""


@dataclass(frozen=True)
class Hand:
    """A pod that sees the node's processes, in a namespace without a Pod Security standard."""

    pod: str = _NAME

    @classmethod
    @contextmanager
    def on_node(cls, image: str) -> Iterator[Hand]:
        """Made, and removed with its namespace."""
        metadata = {"name": _NAMESPACE, "labels": OURS}
        apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}, _manifest(image))
        try:
            until("the hand runs", lambda: (get("pod", _NAME, _NAMESPACE) or {})["status"]["phase"] == "Running", 180)
            yield cls()
        finally:
            kubectl("delete", "namespace", _NAMESPACE, "--wait=false")

    def kill(self, pod: Object) -> None:
        """SIGKILL to all processes of a pod's container."""
        container = pod["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
        killed = kubectl("exec", "-n", _NAMESPACE, self.pod, "--", "python", "-c", _KILL, container)
        assert killed.split(), f"no process of {pod['metadata']['name']} was found"


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
