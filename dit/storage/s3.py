"""A store in a bucket of S3 or of another server with its protocol. Torch-free.

An object appears under its key only when its upload is complete, even if it is sent in parts. Parts of a killed upload
stay invisible, until a life-cycle rule of the bucket (AbortIncompleteMultipartUpload) removes them.
"""

from __future__ import annotations

import hashlib
import math
import mimetypes
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from io import BufferedRandom
from pathlib import Path
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError
from urllib3.exceptions import HTTPError as TransportError

from dit.errors import DataError, InputError, MissingError, StoreError
from dit.storage.base import Store, cache_dir, check_key, exclusive, local_errors, place_file, sha256_file, verify
from dit.storage.s3_conditional import replace_object
from dit.storage.s3_errors import endpoint, http_status, s3_errors
from dit.study.records import FileEntry

PART_BYTES = 64 << 20
_PARTS_AT_ONCE = 4
_BODY_WAITS = (0.3, 1.0, 3.0)
_SHA256 = "sha256"
_ADDRESSING = ("auto", "path", "virtual")


@dataclass(frozen=True)
class _Object:
    """An object without its content."""

    key: str
    bytes: int
    etag: str
    sha256: str | None = None
    """As recorded by the upload; None in a listing, and for objects of other programs."""


class S3Store(Store):
    """Objects below a prefix of a bucket."""

    def __init__(self, bucket: str, prefix: str = "", *, part_bytes: int = PART_BYTES) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        if prefix:
            check_key(f"s3://{bucket}", prefix)
        self._transfer = {"multipart_threshold": part_bytes, "multipart_chunksize": part_bytes}

    @classmethod
    def connect(cls, bucket: str, prefix: str = "") -> S3Store:
        """The store, after one request that checks endpoint, credentials and bucket. Raises as `open_store`."""
        store = cls(bucket, prefix)
        with s3_errors(store.url, opening=True):
            _client(patient=False).list_objects_v2(Bucket=bucket, Prefix=store.prefix, MaxKeys=1)
        return store

    def exists(self, key: str) -> bool:
        try:
            self._head(key)
        except MissingError:
            return False
        return True

    def size(self, key: str) -> int:
        return self._head(key).bytes

    def sizes(self, prefix: str = "") -> dict[str, int]:
        return {entry.key: entry.bytes for entry in self._listing(prefix)}

    def read(self, key: str) -> bytes:
        with s3_errors(f"{self.url}/{key}"):
            for seconds in _BODY_WAITS:
                body = self._body(key)
                # boto3 retries a request that fails, but not one whose answer breaks off.
                with suppress(HTTPClientError, IncompleteReadError, TransportError):
                    return bytes(body.read())
                time.sleep(seconds)
            return bytes(self._body(key).read())

    def write(self, key: str, data: bytes) -> FileEntry:
        digest = hashlib.sha256(data).hexdigest()
        name = self._name(key)
        with s3_errors(f"{self.url}/{key}"):
            self._client.put_object(Bucket=self.bucket, Key=name, Body=data, **_headers(key, digest))
        return FileEntry(name=key.rsplit("/", 1)[-1], bytes=len(data), sha256=digest)

    def replace(self, key: str, data: bytes, expected: bytes | None) -> bool:
        headers = _headers(key, hashlib.sha256(data).hexdigest())
        request = {"Bucket": self.bucket, "Key": self._name(key), "Body": data, **headers}
        with s3_errors(f"{self.url}/{key}"):
            return replace_object(self._client, request, expected)

    def upload(self, path: Path, key: str) -> FileEntry:
        name = self._name(key)
        with local_errors(path):
            # The file is read twice: its SHA-256 is metadata, which S3 takes with the first part.
            before = path.stat()
            digest = sha256_file(path)
        with s3_errors(f"{self.url}/{key}"), local_errors(path), open(path, "rb") as file:
            self._client.upload_fileobj(
                file, self.bucket, name, ExtraArgs=_headers(key, digest), Config=self._transfer_config()
            )
            after = path.stat()
        arrived = self._head(key)
        changed = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
        if changed or arrived.bytes != before.st_size or arrived.sha256 not in (digest, None):
            raise StoreError(f"{self.url}/{key}: differs from {path}, which changed during the upload; run again")
        return FileEntry(name=key.rsplit("/", 1)[-1], bytes=before.st_size, sha256=digest)

    def download(self, key: str, path: Path, sha256: str | None = None) -> None:
        name = self._name(key)
        expected = sha256 or self._head(key).sha256

        def fill(file: BufferedRandom) -> None:
            try:
                self._client.download_fileobj(self.bucket, name, file, Config=self._transfer_config())
            except ClientError:
                self._head(key)  # boto3 asks by HEAD first; this finds the reason of a refusal
                raise
            file.seek(0)
            verify(f"{self.url}/{key}", hashlib.file_digest(file, "sha256").hexdigest(), expected)

        with s3_errors(f"{self.url}/{key}"), local_errors(path):
            try:
                place_file(path, fill)
            except DataError:
                # Bytes damaged on their way are right the next time; those damaged in the store are not.
                place_file(path, fill)

    def local(self, key: str, sha256: str | None = None) -> Path:
        if sha256 is None:
            head = self._head(key)
            sha256, identity = head.sha256, head.sha256 or head.etag
        else:
            identity = sha256
        target = self._cache_place(check_key(self.url, key), identity)
        if not target.is_file():
            with local_errors(target), exclusive(target.parent.with_suffix(".lock")):
                if not target.is_file():
                    self.download(key, target, sha256)
        return target

    def local_folder(self, prefix: str) -> Path:
        prefix = prefix.strip("/")
        objects = self._listing(prefix)
        if not objects:
            raise MissingError(f"{self.url}/{prefix}: no objects there; put the folder there or correct the address")
        target = self._cache_place(prefix, *(f"{entry.key} {entry.etag}" for entry in objects))
        if not target.is_dir():
            with local_errors(target), exclusive(target.parent.with_suffix(".lock")):
                self._fetch_folder(prefix, objects, target)
        return target

    def sweep(self, prefix: str) -> None:
        """Nothing: the bucket's life-cycle rule removes parts of killed uploads."""

    def _fetch_folder(self, prefix: str, objects: Sequence[_Object], target: Path) -> None:
        if target.is_dir():
            return
        growing = target.with_name(f"{target.name}.partial")
        for entry in objects:
            place = growing / entry.key.removeprefix(prefix).lstrip("/")
            if not place.is_file():
                self.download(entry.key, place)
        growing.rename(target)

    def _remove(self, keys: Sequence[str], prefix: str) -> None:  # noqa: ARG002
        with s3_errors(self.url):
            for key in keys:
                # One by one: a bulk request needs a checksum that not every server accepts.
                self._client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def _body(self, key: str) -> Any:
        return self._client.get_object(Bucket=self.bucket, Key=self._name(key))["Body"]

    def _head(self, key: str) -> _Object:
        name = self._name(key)
        with s3_errors(f"{self.url}/{key}"):
            try:
                answer = self._client.head_object(Bucket=self.bucket, Key=name)
            except ClientError as error:
                if http_status(error) == HTTPStatus.NOT_FOUND:
                    raise
                # An answer to HEAD has no body, and so no reason.
                answer = _client(patient=False).get_object(Bucket=self.bucket, Key=name)
                answer["Body"].close()
        return _Object(key, answer["ContentLength"], answer["ETag"], answer["Metadata"].get(_SHA256))

    def _listing(self, prefix: str) -> Sequence[_Object]:
        folder = self.prefix + (f"{check_key(self.url, prefix.rstrip('/'))}/" if prefix else "")
        objects = []
        with s3_errors(self.url):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=folder):
                for entry in page.get("Contents", []):
                    # Some tools write an object whose name ends in a slash for an empty folder.
                    if not entry["Key"].endswith("/"):
                        key = entry["Key"].removeprefix(self.prefix)
                        objects.append(_Object(key, entry["Size"], entry["ETag"]))
        return sorted(objects, key=lambda item: item.key)

    def _cache_place(self, name: str, *identity: str) -> Path:
        digest = hashlib.sha256("\n".join((endpoint() or "", self.url, name, *identity)).encode()).hexdigest()
        return cache_dir() / "s3" / digest[:32] / name.rsplit("/", 1)[-1]

    def _name(self, key: str) -> str:
        return self.prefix + check_key(self.url, key)

    def _transfer_config(self) -> TransferConfig:
        return TransferConfig(**self._transfer, max_concurrency=_PARTS_AT_ONCE, preferred_transfer_client="classic")

    @property
    def _client(self) -> Any:
        return _client(patient=True)


def _headers(key: str, sha256: str) -> dict[str, Any]:
    content_type, _ = mimetypes.guess_type(key)
    return {"Metadata": {_SHA256: sha256}, "ContentType": content_type or "application/octet-stream"}


def _client(patient: bool) -> Any:
    """A client that retries through a server's restart, or (not `patient`) one that fails soon.

    All stores of a process share them. A forked process gets its own: it must not use its parent's connections.
    """
    environment = frozenset(item for item in os.environ.items() if item[0].startswith(("AWS_", "DIT_S3_")))
    return _new_client(os.getpid(), environment, _credentials_stamp(), patient)


@lru_cache(maxsize=8)
def _new_client(process: int, environment: frozenset[tuple[str, str]], stamp: int, patient: bool) -> Any:  # noqa: ARG001
    seconds = _positive("DIT_S3_TIMEOUT", 30.0)
    settings: dict[str, Any] = {}
    if endpoint():
        # Many servers do not support the newer checksums; the signature covers the body's SHA-256 anyway.
        settings["request_checksum_calculation"] = os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        settings["response_checksum_validation"] = os.environ.get("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    if style := os.environ.get("DIT_S3_ADDRESSING"):
        if style not in _ADDRESSING:
            raise InputError(f"DIT_S3_ADDRESSING={style}: must be one of {', '.join(_ADDRESSING)}")
        settings["s3"] = {"addressing_style": style}
    attempts = math.ceil(_positive("AWS_MAX_ATTEMPTS", 9)) if patient else 3
    config = Config(
        connect_timeout=min(5.0, seconds),
        read_timeout=seconds if patient else min(8.0, seconds),
        retries={"mode": "standard", "total_max_attempts": attempts},
        tcp_keepalive=True,
        **settings,
    )
    try:
        client = boto3.session.Session().client("s3", config=config)
    except ValueError as error:
        raise InputError(f"AWS_ENDPOINT_URL_S3: {error}; give http://host:port or https://host") from error
    client.meta.events.register("before-call.s3.HeadBucket", _redirect_once)
    return client


def _credentials_stamp() -> int:
    """Time of the last change of the credentials file, because a rotated secret replaces a mounted file."""
    path = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
    with suppress(OSError):
        return os.stat(os.path.expanduser(path)).st_mtime_ns
    return 0


def _redirect_once(context: dict[str, Any], **_: Any) -> None:
    # After a redirect, botocore asks for the bucket's region by HeadBucket; redirected again, it would recurse.
    context["s3_redirect"]["redirected"] = True


def _positive(variable: str, default: float) -> float:
    text = os.environ.get(variable) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise InputError(f"{variable}={text}: must be a number above 0; unset it for {default:g}")
    return value
