"""An S3 server over HTTP, for the tests that ask for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_proxy import BUCKET, Address, Proxy, control, proxy_before, raw

from dit.storage.s3 import S3Store

PART = 5 << 20


@pytest.fixture(scope="module")
def s3_server() -> Iterator[Address]:
    from moto.server import ThreadedMotoServer  # takes a second, which most tests need not pay

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture(scope="module")
def s3_proxy(s3_server: Address) -> Iterator[Proxy]:
    with proxy_before(s3_server) as proxy:
        yield proxy


@pytest.fixture
def s3_environment(
    s3_server: Address, s3_proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Our own credentials, cache and bucket, and nobody else's."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "DIT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    # The same for all tests, which so share their clients.
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_proxy.url)
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "cache"))
    control(s3_server, "reset")
    raw().create_bucket(Bucket=BUCKET)
    s3_proxy.seen.clear()
    yield
    s3_proxy.faults.clear()
    s3_proxy.broken = s3_proxy.lost = None


@pytest.fixture
def s3_store(s3_environment: None) -> S3Store:  # noqa: ARG001
    """A store in the server's bucket, reached through the proxy, that sends large files in small parts."""
    return S3Store(BUCKET, "root", part_bytes=PART)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(2 * PART + 1000))
    return path
