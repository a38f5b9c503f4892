"""A proxy before an S3 server that records what passes and can break it, and the server's own controls."""

from __future__ import annotations

import http.client
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.request import Request, urlopen

import boto3

BUCKET = "dit-test"
Fault = Callable[[BaseHTTPRequestHandler], bool]
Address = tuple[str, int]


@dataclass
class Seen:
    """One request that passed the proxy."""

    method: str
    path: str
    headers: dict[str, str]
    connection: int


@dataclass
class Proxy:
    """Passes requests on to the server, except where a fault of the test takes them."""

    url: str
    upstream: tuple[str, int]
    seen: list[Seen] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    broken: tuple[str, str] | None = None
    lost: tuple[int, str, str] | None = None

    def count(self, method: str, part: str) -> int:
        return sum(request.method == method and part in request.path for request in self.seen)

    def answer_once(self, status: int, method: str, part: str) -> None:
        """Let the next request of this kind fail."""

        def fault(handler: BaseHTTPRequestHandler) -> bool:
            if handler.command != method or part not in handler.path:
                return False
            self.faults.remove(fault)
            handler.send_response(status)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return True

        self.faults.append(fault)

    def break_off_once(self, method: str, part: str) -> None:
        """Close the connection in the middle of the next answer of this kind."""
        self.broken = (method, part)

    def fail_after_storing(self, status: int, method: str, part: str) -> None:
        """Until `lost` is cleared, pass requests of this kind on and answer them with an error."""
        self.lost = (status, method, part)

    def is_broken_off(self, method: str, path: str) -> bool:
        if self.broken is None or method != self.broken[0] or self.broken[1] not in path:
            return False
        self.broken = None
        return True


@contextmanager
def proxy_before(server: Address) -> Iterator[Proxy]:
    """Serve a proxy before the server at this address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            proxy.seen.append(Seen(self.command, self.path, headers, self.client_address[1]))
            if any(fault(self) for fault in list(proxy.faults)):
                return
            upstream = http.client.HTTPConnection(*proxy.upstream)
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            content = answer.read()
            upstream.close()
            if proxy.lost and self.command == proxy.lost[1] and proxy.lost[2] in self.path:
                self.send_response(proxy.lost[0])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            self.end_headers()
            if proxy.is_broken_off(self.command, self.path):
                content, self.close_connection = content[: len(content) // 2], True
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

        def log_message(self, *_: Any) -> None:
            pass

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy = Proxy(f"http://127.0.0.1:{http_server.server_port}", server)
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield proxy
    http_server.shutdown()
    thread.join()
    http_server.server_close()


def control(server: tuple[str, int], action: str, body: bytes = b"") -> None:
    """Ask moto itself to reset its content, or to start checking credentials."""
    headers = {"Content-Type": "application/octet-stream"}
    with urlopen(Request(f"http://{server[0]}:{server[1]}/moto-api/{action}", data=body, headers=headers)):
        pass


def raw() -> Any:
    """A client that knows nothing of our store."""
    return _raw(os.environ["AWS_ENDPOINT_URL_S3"])


@cache
def _raw(endpoint: str) -> Any:
    return boto3.client("s3", endpoint_url=endpoint)
