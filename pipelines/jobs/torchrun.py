"""torchrun in a pod of a job: it starts once the rendezvous answers, and ends with the exit code of its worst process.

torchrun itself tries for a minute to connect, and then ends. Each such end is a restart of the pod, and a job has only
so many; to try for longer (`read_timeout`) would also be to wait for longer for a pod that died while all of them met.

torchrun itself exits with 1 whatever happens. The launcher of a job decides by the exit codes of pods whether to go on:
see `dit.errors` for those of the processes.
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
"""Variable in which the Training Operator says where the rendezvous is; a TrainJob has none."""
FOLLOWING = frozenset({PeerError.exit_code, 128 + signal.SIGTERM})
"""Exit codes of processes, and pods, that ended because of another."""
_CONNECT_SECONDS = 5.0
_PAUSE_SECONDS = 1.0


def main(arguments: list[str]) -> int:
    """Run torchrun with these arguments; its exit code."""
    host, _, port = os.environ.get(_ENDPOINT, "").rpartition(":")
    # A pod has its own name as the host's; the one that holds the rendezvous does so as torchrun.
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
    """The exit code, as a shell has it, of the process that is the reason why the others of a pod ended.

    `codes` are Popen's, negative for a process that a signal ended. A code that forbids a further try counts most; one
    of a process that lost its peers, or that torchrun ended for another's failure, counts least.
    """
    shells = [128 - code if code < 0 else code for code in codes]
    return max(shells, key=lambda code: (code in FINAL_EXIT_CODES, code not in FOLLOWING))


def _exit_code(error: Exception) -> int | None:
    """What an exception of torchrun stands for; None for a fault of its own."""
    elastic = "torch.distributed.elastic"
    if isinstance(error, importlib.import_module(f"{elastic}.multiprocessing.errors").ChildFailedError):
        return worst(failure.exitcode for failure in error.failures.values())
    if isinstance(error, importlib.import_module(f"{elastic}.multiprocessing.api").SignalException):
        return 128 + int(error.sigval)
    # The pod that holds the rendezvous is gone.
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
                say(f"waits for {host}:{port}, where the pods meet: {error}")
                reported = True
        time.sleep(_PAUSE_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
