"""Ports that stay free until a server of the test takes them, however many tests run at the same time."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port that nobody is given by chance while the body runs; whoever is told of it can listen there.

    It is bound and not listened to: the kernel hands it out to no one else, and connections are refused.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
