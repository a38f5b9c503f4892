"""The store on S3, over real HTTP: a server, and between it and us a proxy that can break what passes."""

from __future__ import annotations

import hashlib
import http.client
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from dit.errors import DataError, DitError, InputError, MissingError, StoreError
from dit.storage import fetch_file, fetch_folder, open_store, sha256_file
from dit.storage_s3 import S3Store

BUCKET = "dit-test"
PART = 5 << 20
Fault = Callable[[BaseHTTPRequestHandler], bool]


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

    def is_broken_off(self, method: str, path: str) -> bool:
        if self.broken is None or method != self.broken[0] or self.broken[1] not in path:
            return False
        self.broken = None
        return True


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def proxy(server: tuple[str, int]) -> Iterator[Proxy]:
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
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            self.end_headers()
            if proxy.is_broken_off(self.command, self.path):
                content, self.close_connection = content[: len(content) // 2], True
            self.wfile.write(content)
            upstream.close()

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


@pytest.fixture(autouse=True)
def environment(
    server: tuple[str, int], proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Our own credentials, cache and bucket, and nobody else's."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "DIT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "cache"))
    control(server, "reset")
    raw().create_bucket(Bucket=BUCKET)
    proxy.seen.clear()
    yield
    proxy.faults.clear()


def control(server: tuple[str, int], action: str, body: bytes = b"") -> None:
    """Ask moto itself to reset its content, or to start checking credentials."""
    headers = {"Content-Type": "application/octet-stream"}
    with urlopen(Request(f"http://{server[0]}:{server[1]}/moto-api/{action}", data=body, headers=headers)):
        pass


def raw() -> Any:
    """A client that knows nothing of our store."""
    return boto3.client("s3")


@pytest.fixture
def store() -> S3Store:
    return S3Store(BUCKET, "root", part_bytes=PART)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of three parts."""
    path = tmp_path / "large"
    path.write_bytes(os.urandom(2 * PART + 1000))
    return path


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def one_line(error: pytest.ExceptionInfo[DitError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_written_is_read_listed_and_deleted() -> None:
    store = open_store(f"s3://{BUCKET}/root")
    entry = store.write("a/b/part.bin", b"content")
    store.write("a/c.json", b"{}")
    store.write("ab/other", b"")
    assert (entry.name, entry.bytes, entry.sha256) == ("part.bin", 7, hashlib.sha256(b"content").hexdigest())
    assert store.read("a/b/part.bin") == b"content"
    assert store.size("a/b/part.bin") == 7
    assert store.exists("a/c.json")
    assert not store.exists("a")
    raw().put_object(Bucket=BUCKET, Key="root/a/")
    raw().put_object(Bucket=BUCKET, Key="outside")
    assert store.list() == ["a/b/part.bin", "a/c.json", "ab/other"]
    assert store.list("a") == store.list("a/") == ["a/b/part.bin", "a/c.json"]
    assert store.list("none") == []
    store.delete("a")
    store.delete("a")
    assert store.list() == ["ab/other"]
    store.delete("ab/other")
    assert store.list() == []
    assert open_store(f"s3://{BUCKET}").list() == ["outside"]
    for use in (store.read, store.size, store.local, store.local_folder):
        with pytest.raises(MissingError, match="a/none"):
            use("a/none")


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../../x", "a//b"])
def test_a_key_cannot_lead_out_of_the_store(store: S3Store, key: str) -> None:
    for use in (store.read, store.exists, store.local, lambda key: store.write(key, b"")):
        with pytest.raises(InputError, match="is no key"):
            use(key)
    with pytest.raises(InputError, match="is no key"):
        open_store(f"s3://{BUCKET}/x/../y")


def test_a_large_file_goes_in_parts_and_carries_its_checksum(store: S3Store, large: Path, tmp_path: Path) -> None:
    entry = store.upload(large, "big.bin")
    assert (entry.bytes, entry.sha256) == (large.stat().st_size, sha256_file(large))
    head = raw().head_object(Bucket=BUCKET, Key="root/big.bin")
    assert head["ETag"].endswith('-3"')
    assert head["Metadata"]["sha256"] == entry.sha256
    store.download("big.bin", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == large.read_bytes()


def test_more_keys_than_one_answer_holds(store: S3Store, proxy: Proxy) -> None:
    names = [f"part-{i:05d}" for i in range(2100)]
    for name in names:
        # Into the server's memory: over HTTP they would take longer than all other tests together.
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(BUCKET, f"root/many/{name}", b"")
    assert store.list("many") == [f"many/{name}" for name in names]
    assert proxy.count("GET", "list-type") == 3


def test_an_upload_killed_on_the_way_is_not_seen_and_the_next_one_succeeds(
    store: S3Store, proxy: Proxy, large: Path
) -> None:
    store.write("model.bin", b"the one before")
    reached, release = threading.Event(), threading.Event()

    def stall(handler: BaseHTTPRequestHandler) -> bool:
        if "partNumber=3" not in handler.path:
            return False
        reached.set()
        return release.wait(60)

    proxy.faults.append(stall)
    upload = """
        import sys
        from pathlib import Path
        from dit.storage_s3 import S3Store
        S3Store(sys.argv[1], "root", part_bytes=5 << 20).upload(Path(sys.argv[2]), sys.argv[3])
    """
    processes = [python(upload, BUCKET, large, key) for key in ("model.bin", "new.bin")]
    assert reached.wait(60)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    release.set()
    proxy.faults.clear()
    assert store.list() == ["model.bin"]
    assert store.read("model.bin") == b"the one before"
    for key in ("model.bin", "new.bin"):
        store.upload(large, key)
        assert sha256_file(store.local(key)) == sha256_file(large)


def test_a_damaged_object_is_named_and_kept_out_of_the_cache(store: S3Store, tmp_path: Path) -> None:
    entry = store.write("shard-00003.tar", b"right")
    raw().put_object(Bucket=BUCKET, Key="root/shard-00003.tar", Body=b"wrong", Metadata={"sha256": entry.sha256})
    for use in (
        lambda: store.local("shard-00003.tar"),
        lambda: store.local("shard-00003.tar", entry.sha256),
        lambda: store.download("shard-00003.tar", tmp_path / "target"),
    ):
        with pytest.raises(DataError, match=r"root/shard-00003\.tar: SHA-256 is") as caught:
            use()
        one_line(caught)
    assert not (tmp_path / "target").exists()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_a_local_copy_is_made_once_and_follows_its_object(store: S3Store, proxy: Proxy) -> None:
    entry = store.write("weights.bin", b"first")
    paths = {store.local("weights.bin"), store.local("weights.bin", entry.sha256), store.local("weights.bin")}
    assert [path.read_bytes() for path in paths] == [b"first"]
    assert proxy.count("GET", "weights.bin") == 1
    store.write("weights.bin", b"second")
    assert store.local("weights.bin").read_bytes() == b"second"
    other = open_store(f"s3://{BUCKET}/elsewhere")
    other.write("weights.bin", b"third")
    assert other.local("weights.bin").read_bytes() == b"third"


def test_many_processes_that_need_one_file_download_it_once(store: S3Store, proxy: Proxy) -> None:
    content = os.urandom(3 << 20)
    store.write("shard.tar", content)
    # Slow enough for all to ask before the first has its copy.
    proxy.faults.append(lambda handler: handler.command == "GET" and bool(time.sleep(1)))
    code = """
        import sys
        from dit.storage_s3 import S3Store
        store = S3Store(sys.argv[1], "root")
        print("ready", flush=True)
        sys.stdin.readline()
        print(store.local("shard.tar"))
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), BUCKET],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    paths = {process.communicate()[0].strip() for process in processes}
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == content
    assert proxy.count("GET", "shard.tar") == 1


def test_files_and_folders_are_fetched_by_address(store: S3Store, proxy: Proxy) -> None:
    store.write("vae/config.json", b"{}")
    store.write("vae/sub/model.bin", b"model")
    store.write("vae2", b"")
    address = f"s3://{BUCKET}/root/vae"
    assert fetch_file(f"{address}/config.json").read_bytes() == b"{}"
    folder = fetch_folder(f"{address}/")
    assert folder.name == "vae"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "config.json",
        "sub/model.bin",
    ]
    proxy.seen.clear()
    assert fetch_folder(address) == folder
    assert proxy.count("GET", "model.bin") == 0
    store.write("vae/config.json", b'{"new": 1}')
    assert (fetch_folder(address) / "config.json").read_bytes() == b'{"new": 1}'
    for missing in (lambda: fetch_file(f"{address}/none.pth"), lambda: fetch_folder(f"{address}/none")):
        with pytest.raises(MissingError, match=r"none.*put"):
            missing()
    with pytest.raises(InputError, match="names a bucket only"):
        fetch_file(f"s3://{BUCKET}")


@pytest.mark.parametrize("status", [500, 503])
def test_a_passing_failure_of_the_server_is_not_noticed(
    store: S3Store, proxy: Proxy, large: Path, tmp_path: Path, status: int
) -> None:
    for method, part in (("PUT", "partNumber=2"), ("POST", "uploads"), ("HEAD", "big.bin"), ("GET", "big.bin")):
        proxy.answer_once(status, method, part)
    entry = store.upload(large, "big.bin")
    store.download("big.bin", tmp_path / "back", entry.sha256)
    for method, part in (("PUT", "small"), ("GET", "small"), ("GET", "list-type"), ("DELETE", "small")):
        proxy.answer_once(status, method, part)
    store.write("small", b"s")
    assert store.read("small") == b"s"
    assert store.list() == ["big.bin", "small"]
    store.delete("small")
    assert proxy.faults == []


def test_an_answer_that_breaks_off_is_asked_for_again(store: S3Store, proxy: Proxy, tmp_path: Path) -> None:
    content = os.urandom(100_000)
    store.write("part.bin", content)
    proxy.break_off_once("GET", "part.bin")
    assert store.read("part.bin") == content
    proxy.break_off_once("GET", "part.bin")
    store.download("part.bin", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    assert proxy.broken is None


def test_a_server_that_goes_on_failing_is_one_line(
    store: S3Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    for _ in range(2):
        proxy.answer_once(503, "PUT", "record.json")
    with pytest.raises(StoreError, match=rf"s3://{BUCKET}/root/record\.json at {proxy.url}: .*503") as caught:
        store.write("record.json", b"{}")
    one_line(caught)
    assert caught.value.exit_code == 1


def test_a_missing_bucket() -> None:
    with pytest.raises(MissingError, match=r"s3://no-such-bucket/x at http://.*: the bucket does not exist") as caught:
        open_store("s3://no-such-bucket/x")
    assert caught.value.exit_code == 2
    one_line(caught)


def test_a_bucket_that_vanishes_is_not_taken_for_a_missing_object(store: S3Store) -> None:
    store.write("x", b"")
    store.delete("x")
    raw().delete_bucket(Bucket=BUCKET)
    with pytest.raises(StoreError, match="the bucket does not exist"):
        store.read("x")


def test_wrong_credentials(server: tuple[str, int]) -> None:
    control(server, "reset-auth", b"0")
    try:
        with pytest.raises(InputError, match=r"refused \(InvalidAccessKeyId\); set AWS_ACCESS_KEY_ID") as caught:
            open_store(f"s3://{BUCKET}/x")
        assert f"s3://{BUCKET}/x at http://127.0.0.1" in one_line(caught)
        with pytest.raises(StoreError, match="InvalidAccessKeyId"):
            S3Store(BUCKET).read("under-way")
    finally:
        control(server, "reset-auth", b"inf")


def test_credentials_without_permission(server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    iam = boto3.client("iam", endpoint_url="http://{}:{}".format(*server))
    iam.create_user(UserName="nobody")
    key = iam.create_access_key(UserName="nobody")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    # Read by the server directly: the proxy would be another host than the one the signature covers.
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://{}:{}".format(*server))
    control(server, "reset-auth", b"0")
    try:
        with pytest.raises(InputError, match=r"access denied \(AccessDenied\); the credentials must allow") as caught:
            open_store(f"s3://{BUCKET}")
        one_line(caught)
        with pytest.raises(InputError, match=r"not writable: .*access denied"):
            S3Store(BUCKET).check_writable()
    finally:
        control(server, "reset-auth", b"inf")


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match=r"no usable credentials .*; set AWS_ACCESS_KEY_ID") as caught:
        open_store(f"s3://{BUCKET}")
    one_line(caught)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(InputError, match=r"no usable credentials .*nobody"):
        open_store(f"s3://{BUCKET}")


@pytest.mark.parametrize("bucket", ["Not_A_Bucket!", "x"])
def test_an_impossible_bucket_name(bucket: str) -> None:
    with pytest.raises(InputError, match=bucket) as caught:
        open_store(f"s3://{bucket}")
    one_line(caught)


def test_a_silent_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        monkeypatch.setenv("DIT_S3_TIMEOUT", "0.2")
        with pytest.raises(StoreError, match=rf"s3://{BUCKET} at {address}: no answer.*AWS_ENDPOINT_URL_S3") as caught:
            open_store(f"s3://{BUCKET}")
    one_line(caught)
    assert caught.value.exit_code == 1


def test_an_endpoint_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    with pytest.raises(StoreError, match=rf"at http://127.0.0.1:{port}: cannot be reached \(Connection refused\)"):
        open_store(f"s3://{BUCKET}")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://no-such-host.invalid")
    with pytest.raises(StoreError, match=r"at http://no-such-host.invalid: cannot be reached \(") as caught:
        open_store(f"s3://{BUCKET}")
    one_line(caught)


@pytest.mark.parametrize(
    ("name", "value"),
    [("AWS_ENDPOINT_URL_S3", "nonsense"), ("DIT_S3_TIMEOUT", "soon"), ("AWS_MAX_ATTEMPTS", "many")],
)
def test_a_setting_that_makes_no_sense(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name}.*{value}") as caught:
        open_store(f"s3://{BUCKET}").list()
    one_line(caught)


def test_a_forked_process_uses_its_own_connections(store: S3Store, proxy: Proxy) -> None:
    store.write("key", b"value")
    of_parent = {request.connection for request in proxy.seen}
    proxy.seen.clear()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(store.read, ["key"] * 4) == [b"value"] * 4
    assert len(proxy.seen) == 4
    assert of_parent.isdisjoint(request.connection for request in proxy.seen)
    assert store.read("key") == b"value"


def test_stores_and_errors_pass_between_processes(store: S3Store) -> None:
    store.write("key", b"value")
    assert pickle.loads(pickle.dumps(store)).read("key") == b"value"
    with pytest.raises(DitError) as caught:
        store.read("none")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is MissingError
    assert str(copy) == str(caught.value)


def test_completion_marks_are_deleted_first(store: S3Store, proxy: Proxy) -> None:
    for name in ("a.bin", "meta.json", "z.bin", "below/manifest.json"):
        store.write(f"step/{name}", b"")
    proxy.seen.clear()
    store.delete("step")
    deleted = [request.path.rsplit("/", 1)[-1] for request in proxy.seen if request.method == "DELETE"]
    assert sorted(deleted[:2]) == ["manifest.json", "meta.json"]
    assert sorted(deleted[2:]) == ["a.bin", "z.bin"]


def test_a_file_that_changes_while_it_is_uploaded_is_noticed(store: S3Store, proxy: Proxy, large: Path) -> None:
    def change(handler: BaseHTTPRequestHandler) -> bool:
        if "partNumber=1" in handler.path:
            large.write_bytes(os.urandom(large.stat().st_size))
        return False

    proxy.faults.append(change)
    with pytest.raises(StoreError, match=r"big\.bin: is not what .*large held"):
        store.upload(large, "big.bin")


def test_a_full_disk_during_a_download_is_one_line_and_leaves_nothing(
    store: S3Store, large: Path, tmp_path: Path
) -> None:
    store.upload(large, "big.bin")
    process = python(
        """
        import resource, sys
        from dit.errors import StoreError
        from dit.storage_s3 import S3Store
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000_000, 6_000_000))
        try:
            S3Store(sys.argv[1], "root", part_bytes=5 << 20).local("big.bin")
        except StoreError as error:
            print(error)
        """,
        BUCKET,
    )
    output, errors = process.communicate()
    assert "big.bin: File too large; free space there" in output, errors
    assert str(tmp_path / "cache") in output
    assert output.count("\n") == 1
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_servers_without_the_newer_checksums_are_spared_them(
    store: S3Store, proxy: Proxy, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.upload(large, "big.bin")
    store.write("small", b"s")
    store.delete("big.bin")
    assert not [name for request in proxy.seen for name in request.headers if "checksum" in name or "trailer" in name]
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    S3Store(BUCKET).write("small", b"s")
    assert any("checksum" in name for name in proxy.seen[-1].headers)
