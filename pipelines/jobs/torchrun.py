"""torchrun in a pod of a job: begin once the pod that holds the rendezvous answers, however late that one starts.

torchrun itself tries for a minute to connect, and then ends. Each such end is a restart of the pod, and a job has only
so many; to try for longer (`read_timeout`) would also be to wait for longer for a pod that died while all of them met.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import NoReturn

from dit.console import say

TORCHRUN = "torch.distributed.run"
_ENDPOINT = "PET_RDZV_ENDPOINT"
"""Variable in which the Training Operator says where the rendezvous is; a TrainJob has none."""
_CONNECT_SECONDS = 5.0
_PAUSE_SECONDS = 1.0


def main(arguments: list[str]) -> NoReturn:
    """Become torchrun with these arguments."""
    host, _, port = os.environ.get(_ENDPOINT, "").rpartition(":")
    # A pod has its own name as the host's; the one that holds the rendezvous does so as torchrun.
    if host and host != socket.gethostname():
        _wait_for(host, int(port))
    os.execv(sys.executable, [sys.executable, "-m", TORCHRUN, *arguments])


def _wait_for(host: str, port: int) -> None:
    told = False
    while True:
        try:
            socket.create_connection((host, port), _CONNECT_SECONDS).close()
            return
        except OSError as error:
            if not told:
                say(f"waits for {host}:{port}, where the pods meet: {error}")
                told = True
        time.sleep(_PAUSE_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1:])
