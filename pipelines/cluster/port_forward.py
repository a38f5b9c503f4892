"""Services of the cluster on ports of this machine, by kubectl port-forward."""

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


class ServiceUnreachable(DitError):
    """kubectl cannot forward a port of the service; a retry may succeed."""


@dataclass(frozen=True)
class Forwarding:
    """A port of this machine, forwarded to a service."""

    port: int
    process: subprocess.Popen[str]

    def wait(self) -> str:
        """Wait until forwarding ends, for example because the pod was deleted; returns the reason."""
        return _reason(self.process)


@contextmanager
def forwarded(
    namespace: str, service: str, port: int, local: int | None = None, remedy: str = ""
) -> Iterator[Forwarding]:
    """Forward a port of a service while the body runs, to the port `local` or to any free one.

    Raises ServiceUnreachable with `remedy` when the service cannot be reached.
    Raises InputError when kubectl is not installed.
    """
    command = ["kubectl", "port-forward", f"--address={HOST}", "--pod-running-timeout=10s", "-n", namespace]
    command += [f"service/{service}", f"{local or ''}:{port}"]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        raise InputError("kubectl is not on PATH; install it") from None
    with process:
        try:
            local = _port(process)
            if local is None:
                process.terminate()
                reason = _reason(process) or "kubectl port-forward does not answer"
                remedy = remedy or f"kubectl get endpointslices,pods -n {namespace}"
                raise ServiceUnreachable(f"service {namespace}/{service} cannot be reached: {reason}; {remedy}")
            yield Forwarding(local, process)
        finally:
            process.terminate()


def _port(process: subprocess.Popen[str]) -> int | None:
    """The local port, once kubectl listens there; None if kubectl exits or times out first."""
    if process.stdout is None:
        raise AssertionError("stdout is a pipe")
    answered, _, _ = select.select([process.stdout], [], [], _SECONDS)
    match = _FORWARDING.match(process.stdout.readline()) if answered else None
    return int(match[1]) if match else None


def _reason(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate()
    return one_line(errors).removeprefix("error: ")
