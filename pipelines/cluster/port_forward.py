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
        """Why it ended, once it has: it does when the pod goes."""
        return _reason(self.process)


@contextmanager
def forwarded(
    namespace: str, service: str, port: int, local: int | None = None, remedy: str = ""
) -> Iterator[Forwarding]:
    """A port of a service, at a local port, any free one unless given, for as long as the body runs.

    Raises DitError with the remedy where the service cannot be reached, InputError without kubectl.
    """
    command = ["kubectl", "port-forward", f"--address={HOST}", "--pod-running-timeout=10s", "-n", namespace]
    command += [f"service/{service}", f"{local or ''}:{port}"]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        raise InputError("kubectl is not on PATH; it leads to services inside the cluster") from None
    with process:
        try:
            local = _port(process)
            if local is None:
                process.terminate()
                reason = _reason(process) or "kubectl port-forward does not answer"
                remedy = remedy or f"kubectl get endpointslices,pods -n {namespace}"
                raise DitError(f"service {namespace}/{service} cannot be reached: {reason}; {remedy}")
            yield Forwarding(local, process)
        finally:
            process.terminate()


def _port(process: subprocess.Popen[str]) -> int | None:
    """The local port, once kubectl listens there; None where it ends before, or does not answer."""
    if process.stdout is None:
        raise AssertionError("it is a pipe")
    answered, _, _ = select.select([process.stdout], [], [], _SECONDS)
    match = _FORWARDING.match(process.stdout.readline()) if answered else None
    return int(match[1]) if match else None


def _reason(process: subprocess.Popen[str]) -> str:
    """What it complains of, once it has ended."""
    _, errors = process.communicate()
    return one_line(errors).removeprefix("error: ")
