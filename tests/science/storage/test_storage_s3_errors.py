"""The store on S3 under failures: no incomplete object is visible, and every error is one line."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import boto3
import pytest
from ports import reserved_port
from processes import python
from s3_proxy import BUCKET, Address, Proxy, control, raw

from dit.cli.commands import run
from dit.errors import (
    CredentialsError,
    DataError,
    DitError,
    InputError,
    StoreError,
    TransientStoreError,
)
from dit.storage import open_store, sha256_file
from dit.storage.s3 import S3Store

pytestmark = pytest.mark.usefixtures("s3_environment")


def one_line(error: pytest.ExceptionInfo[DitError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_killed_upload_is_invisible_and_the_next_one_succeeds(
    s3_store: S3Store, s3_proxy: Proxy, large: Path
) -> None:
    s3_store.write("model.bin", b"the one before")
    reached, release = threading.Event(), threading.Event()

    def stall(handler: BaseHTTPRequestHandler) -> bool:
        if "partNumber=3" not in handler.path:
            return False
        reached.set()
        return release.wait(240)

    s3_proxy.faults.append(stall)
    upload = """
        import sys
        from pathlib import Path
        from dit.storage.s3 import S3Store
        S3Store(sys.argv[1], "root", part_bytes=5 << 20).upload(Path(sys.argv[2]), sys.argv[3])
    """
    processes = [python(upload, BUCKET, large, key) for key in ("model.bin", "new.bin")]
    assert reached.wait(240)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    release.set()
    s3_proxy.faults.clear()
    assert s3_store.list() == ["model.bin"]
    assert s3_store.read("model.bin") == b"the one before"
    for key in ("model.bin", "new.bin"):
        s3_store.upload(large, key)
        assert sha256_file(s3_store.local(key)) == sha256_file(large)


def test_a_damaged_object_is_named_and_kept_out_of_the_cache(s3_store: S3Store, tmp_path: Path) -> None:
    entry = s3_store.write("shard-00003.tar", b"right")
    raw().put_object(Bucket=BUCKET, Key="root/shard-00003.tar", Body=b"wrong", Metadata={"sha256": entry.sha256})
    for use in (
        lambda: s3_store.local("shard-00003.tar"),
        lambda: s3_store.local("shard-00003.tar", entry.sha256),
        lambda: s3_store.download("shard-00003.tar", tmp_path / "target"),
    ):
        with pytest.raises(DataError, match=r"root/shard-00003\.tar: SHA-256 is") as caught:
            use()
        one_line(caught)
    assert not (tmp_path / "target").exists()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def answer_put(status: int, handler: BaseHTTPRequestHandler) -> bool:
    if handler.command != "PUT":
        return False
    handler.send_response(status)
    handler.send_header("Content-Length", "0")
    handler.end_headers()
    return True


def test_bytes_that_were_damaged_on_their_way_are_read_again(s3_store: S3Store, s3_proxy: Proxy) -> None:
    entry = s3_store.write("shard-00004.tar", b"right")

    def damage(handler: BaseHTTPRequestHandler) -> bool:
        if handler.command != "GET" or "shard-00004.tar" not in handler.path:
            return False
        s3_proxy.faults.remove(damage)
        handler.send_response(200)
        handler.send_header("Content-Length", "5")
        handler.end_headers()
        handler.wfile.write(b"wrong")
        return True

    s3_proxy.faults.append(damage)
    assert s3_store.local("shard-00004.tar", entry.sha256).read_bytes() == b"right"


def test_a_full_store_is_worth_waiting_for_also_before_work_begins(s3_store: S3Store, s3_proxy: Proxy) -> None:
    s3_proxy.faults.append(partial(answer_put, 507))
    with pytest.raises(TransientStoreError, match="disk is full"):
        s3_store.check_writable()
    s3_proxy.faults[:] = [partial(answer_put, 403)]
    with pytest.raises(InputError, match="not writable"):
        s3_store.check_writable()


@pytest.mark.parametrize("status", [500, 503])
def test_a_request_that_fails_once_is_retried(
    s3_store: S3Store, s3_proxy: Proxy, large: Path, tmp_path: Path, status: int
) -> None:
    for method, part in (("PUT", "partNumber=2"), ("POST", "uploads"), ("HEAD", "big.bin"), ("GET", "big.bin")):
        s3_proxy.answer_once(status, method, part)
    entry = s3_store.upload(large, "big.bin")
    s3_store.download("big.bin", tmp_path / "back", entry.sha256)
    for method, part in (("PUT", "small"), ("GET", "small"), ("GET", "list-type"), ("DELETE", "small")):
        s3_proxy.answer_once(status, method, part)
    s3_store.write("small", b"s")
    assert s3_store.read("small") == b"s"
    assert s3_store.list() == ["big.bin", "small"]
    s3_store.delete("small")
    assert s3_proxy.faults == []


def test_a_request_whose_answer_breaks_off_is_retried(s3_store: S3Store, s3_proxy: Proxy, tmp_path: Path) -> None:
    content = os.urandom(100_000)
    s3_store.write("part.bin", content)
    s3_proxy.break_off_once("GET", "part.bin")
    assert s3_store.read("part.bin") == content
    s3_proxy.break_off_once("GET", "part.bin")
    s3_store.download("part.bin", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    assert s3_proxy.broken is None


def test_retries_end_with_one_line(s3_store: S3Store, s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    for _ in range(2):
        s3_proxy.answer_once(503, "PUT", "record.json")
    with pytest.raises(StoreError, match=rf"s3://{BUCKET}/root/record\.json at {s3_proxy.url}: .*503") as caught:
        s3_store.write("record.json", b"{}")
    one_line(caught)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("what", "code", "named"),
    [
        ("bucket", 2, "the bucket does not exist"),
        ("credentials", 2, "no usable credentials"),
        ("endpoint", 1, "cannot be reached"),
    ],
)
def test_a_command_fails_with_one_line(
    what: str, code: int, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    with reserved_port() as port:
        if what == "credentials":
            monkeypatch.delenv("AWS_ACCESS_KEY_ID")
            monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        if what == "endpoint":
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        assert run(["train", "configs/digits.yaml", "--root", "s3://no-such-bucket/x"]) == code
    output, errors = capsys.readouterr()
    assert output == ""
    assert re.fullmatch(rf"dit: [^\n]*{named}[^\n]*\n", errors)


def test_a_bucket_that_is_deleted_later_is_not_reported_as_a_missing_object(s3_store: S3Store) -> None:
    s3_store.write("x", b"")
    s3_store.delete("x")
    raw().delete_bucket(Bucket=BUCKET)
    with pytest.raises(StoreError, match="the bucket does not exist"):
        s3_store.read("x")


def test_wrong_credentials_are_refused(s3_server: Address) -> None:
    control(s3_server, "reset-auth", b"0")
    try:
        with pytest.raises(
            CredentialsError, match=r"refused \(InvalidAccessKeyId: .*; set AWS_ACCESS_KEY_ID"
        ) as caught:
            open_store(f"s3://{BUCKET}/x")
        assert f"s3://{BUCKET}/x at http://127.0.0.1" in one_line(caught)
        with pytest.raises(StoreError, match="InvalidAccessKeyId"):
            S3Store(BUCKET).read("under-way")
    finally:
        control(s3_server, "reset-auth", b"inf")


def test_credentials_without_permission_are_refused(s3_server: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    iam = boto3.client("iam", endpoint_url="http://{}:{}".format(*s3_server))
    iam.create_user(UserName="nobody")
    key = iam.create_access_key(UserName="nobody")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    # Read by the server directly: the proxy would be another host than the one the signature covers.
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://{}:{}".format(*s3_server))
    control(s3_server, "reset-auth", b"0")
    try:
        with pytest.raises(InputError, match=r"access denied \(AccessDenied: .*; the credentials must allow") as caught:
            open_store(f"s3://{BUCKET}")
        one_line(caught)
        with pytest.raises(InputError, match=r"not writable: .*access denied"):
            S3Store(BUCKET).check_writable()
    finally:
        control(s3_server, "reset-auth", b"inf")


def test_missing_credentials_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match=r"no usable credentials .*; set AWS_ACCESS_KEY_ID") as caught:
        open_store(f"s3://{BUCKET}")
    one_line(caught)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(InputError, match=r"no usable credentials .*nobody"):
        open_store(f"s3://{BUCKET}")


@pytest.mark.parametrize("bucket", ["Not_A_Bucket!", "x"])
def test_an_impossible_bucket_name_is_one_line(bucket: str) -> None:
    with pytest.raises(InputError, match=bucket) as caught:
        open_store(f"s3://{bucket}")
    one_line(caught)


def test_an_endpoint_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        monkeypatch.setenv("DIT_S3_TIMEOUT", "0.2")
        with pytest.raises(StoreError, match=rf"s3://{BUCKET} at {address}: no answer.*AWS_ENDPOINT_URL_S3") as caught:
            open_store(f"s3://{BUCKET}")
    one_line(caught)
    assert caught.value.exit_code == 1


def test_an_endpoint_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with reserved_port() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        with pytest.raises(StoreError, match=rf"at http://127.0.0.1:{port}: cannot be reached \(Connection refused\)"):
            open_store(f"s3://{BUCKET}")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://no-such-host.invalid")
    with pytest.raises(StoreError, match=r"at http://no-such-host.invalid: cannot be reached \(") as caught:
        open_store(f"s3://{BUCKET}")
    one_line(caught)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ENDPOINT_URL_S3", "nonsense"),
        ("DIT_S3_TIMEOUT", "soon"),
        ("AWS_MAX_ATTEMPTS", "many"),
        ("DIT_S3_ADDRESSING", "host"),
    ],
)
def test_a_setting_that_is_not_valid_is_one_line(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name}.*{value}") as caught:
        open_store(f"s3://{BUCKET}").list()
    one_line(caught)


def test_a_file_that_changes_while_it_is_uploaded_is_noticed(s3_store: S3Store, s3_proxy: Proxy, large: Path) -> None:
    def change(handler: BaseHTTPRequestHandler) -> bool:
        if "partNumber=1" in handler.path:
            large.write_bytes(os.urandom(large.stat().st_size))
        return False

    s3_proxy.faults.append(change)
    with pytest.raises(StoreError, match=r"big\.bin: differs from .*large"):
        s3_store.upload(large, "big.bin")


def test_a_full_disk_during_a_download_is_one_line_and_leaves_nothing(
    s3_store: S3Store, large: Path, tmp_path: Path
) -> None:
    s3_store.upload(large, "big.bin")
    process = python(
        """
        import resource, sys
        from dit.errors import StoreError
        from dit.storage.s3 import S3Store
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
