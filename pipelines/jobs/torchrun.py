"""Runs torchrun in a pod: starts it when the rendezvous answers, and exits with the code of the worst process.

torchrun gives up connecting after a minute. Each time the pod restarts, and a job allows only a few restarts. A longer
`read_timeout` would also wait longer for a pod that dies during the rendezvous.

torchrun always exits with 1. The launcher needs the exit codes of the processes (`dit.errors`) to decide on a retry.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable

from dit.console import say
from dit.errors import FINAL_EXIT_CODES, PeerError

TORCHRUN = "torch.distributed.run"
_ENDPOINT = "PET_RDZV_ENDPOINT"
"""Variable of the Training Operator with the address of the rendezvous; a TrainJob does not have it."""
FOLLOWING = frozenset({PeerError.exit_code, 128 + signal.SIGTERM})
"""Exit codes of processes and pods that ended because another one failed."""
_CONNECT_SECONDS = 5.0
_PAUSE_SECONDS = 1.0


def main(arguments: list[str]) -> int:
    """Run torchrun with these arguments; returns the exit code."""
    host, _, port = os.environ.get(_ENDPOINT, "").rpartition(":")
    # The pod whose host name is in the address hosts the rendezvous itself, inside torchrun.
    if host and host != socket.gethostname():
        _wait_for(host, int(port))
    try:
        importlib.import_module(TORCHRUN).main(arguments)
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return code
    return 0


def worst(codes: Iterable[int]) -> int:
    """The exit code of the process that caused the others to end, in the shell's convention (128 + signal).

    `codes` are in Popen's convention, negative for a signal. A final code, after which a retry is useless, has
    priority; codes of processes that lost a peer or were ended by torchrun come last.
    """
    shells = [128 - code if code < 0 else code for code in codes]
    return max(shells, key=lambda code: (code in FINAL_EXIT_CODES, code not in FOLLOWING))


def _exit_code(error: Exception) -> int | None:
    """The exit code for an exception of torchrun; None if torchrun itself is at fault."""
    elastic = "torch.distributed.elastic"
    if isinstance(error, importlib.import_module(f"{elastic}.multiprocessing.errors").ChildFailedError):
        return worst(failure.exitcode for failure in error.failures.values())
    if isinstance(error, importlib.import_module(f"{elastic}.multiprocessing.api").SignalException):
        return 128 + int(error.sigval)
    # The pod that hosts the rendezvous is gone.
    if isinstance(error, importlib.import_module(f"{elastic}.rendezvous.api").RendezvousConnectionError):
        return PeerError.exit_code
    return None


def _wait_for(host: str, port: int) -> None:
    reported = False
    while True:
        try:
            socket.create_connection((host, port), _CONNECT_SECONDS).close()
            return
        except OSError as error:
            if not reported:
                say(f"waiting for the rendezvous at {host}:{port}: {error}")
                reported = True
        time.sleep(_PAUSE_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
