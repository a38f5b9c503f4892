"""What an S3 server answers becomes one line: its reason, its own text, one remedy, and whether waiting can help."""

from __future__ import annotations

import os
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest
from s3_proxy import BUCKET, Address, Proxy, control

from dit.errors import CredentialsError, InputError, StoreError, TransientStoreError
from dit.storage import open_store
from dit.storage.s3 import S3Store

pytestmark = pytest.mark.usefixtures("s3_environment")

ANSWERS = [
    (400, "ExpiredToken", "The provided token has expired.", "AWS_SESSION_TOKEN", CredentialsError),
    (403, "InvalidAccessKeyId", "The key does not exist in our records.", "AWS_ACCESS_KEY_ID", CredentialsError),
    (403, "RequestTimeTooSkewed", "The difference is too large.", "set the clock", TransientStoreError),
    (403, "SecondLevelDomainForbidden", "Please use virtual style.", "DIT_S3_ADDRESSING=virtual", StoreError),
    (400, "AuthorizationHeaderMalformed", "expecting eu-central-1", "AWS_DEFAULT_REGION", StoreError),
    (403, "QuotaExceeded", "quota of 5 GiB", "raise the quota", TransientStoreError),
    (507, "XMinioStorageFull", "minimum free drive threshold", "free space on the server", TransientStoreError),
    (503, "SlowDown", "Please reduce your request rate.", "wait, then run again", TransientStoreError),
    (500, "InternalError", "We encountered an internal error.", "server's log", TransientStoreError),
    (502, "", "", "server's log", TransientStoreError),
    (403, "AccessDenied", "Access Denied.", "must allow list, read, write and delete", StoreError),
    (405, "MethodNotAllowed", "not against this resource", "server's log", StoreError),
]


def answer_all(proxy: Proxy, status: int, code: str, message: str, **headers: str) -> None:
    """Let every request fail; as of a real server, an answer to HEAD has no body."""

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode() if code else b""
        body = b"" if handler.command == "HEAD" else body
        handler.send_response(status)
        for name, value in {"Content-Type": "application/xml", "Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
        return True

    proxy.faults.append(fault)


@pytest.mark.parametrize(("status", "code", "text", "remedy", "kind"), ANSWERS)
@pytest.mark.parametrize("use", ["head", "read", "write", "list", "download"])
def test_every_request_names_the_reason_the_servers_text_and_one_remedy(
    use: str, status: int, code: str, text: str, remedy: str, kind: type[StoreError],
    s3_store: S3Store, s3_proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    answer_all(s3_proxy, status, code, text)
    with pytest.raises(StoreError) as caught:
        {
            "head": lambda: s3_store.exists("x"),
            "read": lambda: s3_store.read("x"),
            "write": lambda: s3_store.write("x", b"1"),
            "list": lambda: s3_store.list(),
            "download": lambda: s3_store.download("x", tmp_path / "x", "0" * 64),
        }[use]()
    line = str(caught.value)
    assert type(caught.value) is kind
    assert caught.value.transient == issubclass(kind, TransientStoreError)
    assert caught.value.exit_code == 1
    assert code in line
    assert text.rstrip(".") in line
    assert remedy in line
    assert "\n" not in line


@pytest.mark.parametrize(("code", "kind"), [("ExpiredToken", CredentialsError), ("AccessDenied", InputError)])
def test_while_a_store_is_opened_only_what_cannot_heal_is_final(
    code: str, kind: type[Exception], s3_proxy: Proxy
) -> None:
    answer_all(s3_proxy, 403, code, "no")
    with pytest.raises(kind, match=code) as caught:
        open_store(f"s3://{BUCKET}/x")
    assert type(caught.value) is kind


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("opening", [True, False])
def test_a_redirect_is_one_line_with_the_address_to_use(status: int, opening: bool, s3_proxy: Proxy) -> None:
    answer_all(s3_proxy, status, "", "", Location="https://s3.example.org/elsewhere?secret=1")
    with pytest.raises((InputError, StoreError), match=r"redirects to https://s3\.example\.org \(") as caught:
        open_store(f"s3://{BUCKET}/x") if opening else S3Store(BUCKET).exists("x")
    assert str(caught.value).endswith("set AWS_ENDPOINT_URL_S3=https://s3.example.org")


def test_terminal_escapes_of_a_server_are_not_printed(s3_store: S3Store, s3_proxy: Proxy) -> None:
    answer_all(s3_proxy, 403, "AccessDenied", "red\u009b31m alert")
    with pytest.raises(StoreError, match=r"red\\x9b31m alert"):
        s3_store.read("x")


def test_replaced_keys_are_read_from_their_file(
    s3_server: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, file = S3Store(BUCKET), tmp_path / "credentials"
    store.write("x", b"1")
    endpoint = "http://{}:{}".format(*s3_server)
    iam = boto3.client("iam", endpoint_url=endpoint)
    iam.create_user(UserName="reader")
    iam.put_user_policy(
        UserName="reader",
        PolicyName="all",
        PolicyDocument='{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}',
    )
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    # Read by the server directly: the proxy would be another host than the one the signature covers.
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    file.write_text("[default]\naws_access_key_id = revoked\naws_secret_access_key = s\n")
    control(s3_server, "reset-auth", b"0")
    try:
        with pytest.raises(CredentialsError, match="InvalidAccessKeyId"):
            store.read("x")
        keys = key["AccessKeyId"], key["SecretAccessKey"]
        file.write_text("[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n".format(*keys))
        os.utime(file, ns=(1, 1))
        assert store.read("x") == b"1"
    finally:
        control(s3_server, "reset-auth", b"inf")


@pytest.mark.parametrize(("style", "host"), [("virtual", f"{BUCKET}.s3.invalid"), ("path", "s3.invalid")])
def test_the_addressing_style_can_be_set(
    style: str, host: str, s3_store: S3Store, s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3.invalid")
    monkeypatch.setenv("http_proxy", s3_proxy.url)
    monkeypatch.setenv("DIT_S3_ADDRESSING", style)
    answer_all(s3_proxy, 403, "AccessDenied", "no")
    with pytest.raises(StoreError):
        s3_store.read("x")
    assert urlsplit(s3_proxy.seen[-1].path).netloc == host
