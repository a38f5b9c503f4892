"""Services inside the cluster, reached from this machine by kubectl port-forward."""

from __future__ import annotations

import re
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dit.errors import DitError, InputError, one_line

HOST = "127.0.0.1"
_FORWARDING = re.compile(rf"^Forwarding from {re.escape(HOST)}:(\d+) ")
_SECONDS = 20.0


@dataclass(frozen=True)
class Forwarding:
    """A port of this machine that leads to a service."""

    port: int
    process: subprocess.Popen[str]

    def wait(self) -> str:
        """Return when it ends, which it does when the pod goes; why."""
        return _reason(self.process)


@contextmanager
def forwarded(namespace: str, service: str, port: int, local: int | None = None) -> Iterator[Forwarding]:
    """A port of a service, at a local port, any free one unless given, for as long as the body runs.

    Raises DitError where the service cannot be reached, InputError without kubectl.
    """
    command = ["kubectl", "port-forward", f"--address={HOST}", "--pod-running-timeout=10s", "-n", namespace]
    command += [f"service/{service}", f"{local or ''}:{port}"]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        raise InputError("kubectl is not on PATH; it leads to services inside the cluster") from None
    with process:
        try:
            yield Forwarding(_port(process, f"service {namespace}/{service}", namespace), process)
        finally:
            process.terminate()


def _port(process: subprocess.Popen[str], place: str, namespace: str) -> int:
    # It prints a line when it listens, or ends.
    answered, _, _ = select.select([process.stdout], [], [], _SECONDS)
    match = _FORWARDING.match(process.stdout.readline()) if answered and process.stdout else None
    if match:
        return int(match[1])
    process.terminate()
    reason = _reason(process) or "kubectl port-forward does not answer"
    raise DitError(f"{place} cannot be reached: {reason}; kubectl get endpointslices,pods -n {namespace}")


def _reason(process: subprocess.Popen[str]) -> str:
    """What it complains of, once it has ended."""
    _, errors = process.communicate()
    return one_line(errors).removeprefix("error: ")
