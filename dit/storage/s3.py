"""A store in a bucket of S3 or of a server that speaks its protocol. Torch-free.

An object appears under its key when its upload is complete and not before, also a large one sent in parts. Parts of an
upload that was killed stay invisible; a life-cycle rule of the bucket (AbortIncompleteMultipartUpload) clears them.
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
from io import BufferedRandom
from pathlib import Path
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import HTTPClientError, IncompleteReadError
from urllib3.exceptions import HTTPError as TransportError

from dit.errors import InputError, MissingError, StoreError
from dit.storage.base import Store, cache_dir, check_key, exclusive, local_errors, place_file, sha256_file, verify
from dit.storage.s3_errors import endpoint, s3_errors
from dit.study.records import FileEntry

PART_BYTES = 64 << 20
_PARTS_AT_ONCE = 4
_BODY_WAITS = (0.3, 1.0, 3.0)
_SHA256 = "sha256"


@dataclass(frozen=True)
class _Object:
    """What is known of an object without its content."""

    key: str
    bytes: int
    etag: str
    sha256: str | None = None
    """As the upload recorded it; a listing does not tell, and other programs do not record it."""


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
        """Open, after one request that shows whether endpoint, credentials and bucket are right; see open_store."""
        store = cls(bucket, prefix)
        with s3_errors(store.url, opening=True):
            _client(patient=False).list_objects_v2(Bucket=bucket, Prefix=store.prefix, MaxKeys=1)
        return store

    def exists(self, key: str) -> bool:
        """See Store."""
        try:
            self._head(key)
        except MissingError:
            return False
        return True

    def size(self, key: str) -> int:
        """See Store."""
        return self._head(key).bytes

    def list(self, prefix: str = "") -> list[str]:
        """See Store."""
        return [found.key for found in self._listing(prefix)]

    def sizes(self, prefix: str) -> dict[str, int]:
        """See Store."""
        return {found.key: found.bytes for found in self._listing(prefix)}

    def read(self, key: str) -> bytes:
        """See Store."""
        with s3_errors(f"{self.url}/{key}"):
            for seconds in _BODY_WAITS:
                body = self._body(key)
                # boto3 repeats a request that fails, but not one whose answer breaks off.
                with suppress(HTTPClientError, IncompleteReadError, TransportError):
                    return bytes(body.read())
                time.sleep(seconds)
            return bytes(self._body(key).read())

    def write(self, key: str, data: bytes) -> FileEntry:
        """See Store."""
        digest = hashlib.sha256(data).hexdigest()
        name = self._name(key)
        with s3_errors(f"{self.url}/{key}"):
            self._client.put_object(Bucket=self.bucket, Key=name, Body=data, **_headers(key, digest))
        return FileEntry(name=key.rsplit("/", 1)[-1], bytes=len(data), sha256=digest)

    def upload(self, path: Path, key: str) -> FileEntry:
        """See Store. The file is read twice: its SHA-256 must be known before the first part is sent."""
        name = self._name(key)
        with local_errors(path):
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
            raise StoreError(f"{self.url}/{key}: is not what {path} held; something changed it, run the step again")
        return FileEntry(name=key.rsplit("/", 1)[-1], bytes=before.st_size, sha256=digest)

    def download(self, key: str, path: Path, sha256: str | None = None) -> None:
        """See Store."""
        name = self._name(key)
        expected = sha256 or self._head(key).sha256

        def fill(file: BufferedRandom) -> None:
            self._client.download_fileobj(self.bucket, name, file, Config=self._transfer_config())
            file.seek(0)
            verify(f"{self.url}/{key}", hashlib.file_digest(file, "sha256").hexdigest(), expected)

        with s3_errors(f"{self.url}/{key}"), local_errors(path):
            place_file(path, fill)

    def local(self, key: str, sha256: str | None = None) -> Path:
        """A verified copy in the cache; see Store."""
        if sha256 is None:
            found = self._head(key)
            sha256, identity = found.sha256, found.sha256 or found.etag
        else:
            identity = sha256
        target = self._cache_place(check_key(self.url, key), identity)
        if not target.is_file():
            with local_errors(target), exclusive(target.parent.with_suffix(".lock")):
                if not target.is_file():
                    self.download(key, target, sha256)
        return target

    def local_folder(self, prefix: str) -> Path:
        """A verified copy in the cache; see Store."""
        prefix = prefix.strip("/")
        objects = self._listing(prefix)
        if not objects:
            raise MissingError(f"{self.url}/{prefix}: no objects there; put the folder there or correct the address")
        target = self._cache_place(prefix, *(f"{found.key} {found.etag}" for found in objects))
        if not target.is_dir():
            with local_errors(target), exclusive(target.parent.with_suffix(".lock")):
                self._fetch_folder(prefix, objects, target)
        return target

    def sweep(self, prefix: str) -> None:
        """Nothing: the bucket's life-cycle rule does it; see Store."""

    def _fetch_folder(self, prefix: str, objects: Sequence[_Object], target: Path) -> None:
        if target.is_dir():
            return
        growing = target.with_name(f"{target.name}.partial")
        for found in objects:
            place = growing / found.key.removeprefix(prefix).lstrip("/")
            if not place.is_file():
                self.download(found.key, place)
        growing.rename(target)

    def _remove(self, keys: Sequence[str], prefix: str) -> None:  # noqa: ARG002
        with s3_errors(self.url):
            for key in keys:
                # One by one: not every server of the protocol takes the checksum that a bulk request needs.
                self._client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def _body(self, key: str) -> Any:
        return self._client.get_object(Bucket=self.bucket, Key=self._name(key))["Body"]

    def _head(self, key: str) -> _Object:
        name = self._name(key)
        with s3_errors(f"{self.url}/{key}"):
            answer = self._client.head_object(Bucket=self.bucket, Key=name)
        return _Object(key, answer["ContentLength"], answer["ETag"], answer["Metadata"].get(_SHA256))

    def _listing(self, prefix: str) -> Sequence[_Object]:
        folder = self.prefix + (f"{check_key(self.url, prefix.rstrip('/'))}/" if prefix else "")
        found = []
        with s3_errors(self.url):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=folder):
                for entry in page.get("Contents", []):
                    # A name that ends in a slash is some tool's picture of an empty folder.
                    if not entry["Key"].endswith("/"):
                        key = entry["Key"].removeprefix(self.prefix)
                        found.append(_Object(key, entry["Size"], entry["ETag"]))
        return sorted(found, key=lambda entry: entry.key)

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
    """A client that outlasts a server's restart, or one that soon says what is wrong.

    All stores of a process share them; a forked process gets its own, for it must not share its parent's connections.
    """
    environment = frozenset(item for item in os.environ.items() if item[0].startswith(("AWS_", "DIT_S3_")))
    return _new_client(os.getpid(), environment, patient)


@lru_cache(maxsize=8)
def _new_client(process: int, environment: frozenset[tuple[str, str]], patient: bool) -> Any:  # noqa: ARG001
    seconds = _positive("DIT_S3_TIMEOUT", 30.0)
    settings: dict[str, Any] = {}
    if endpoint():
        # Many servers of the protocol know nothing of the newer checksums; bodies are signed by their SHA-256 anyway.
        settings["request_checksum_calculation"] = os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        settings["response_checksum_validation"] = os.environ.get("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    attempts = math.ceil(_positive("AWS_MAX_ATTEMPTS", 9)) if patient else 3
    config = Config(
        connect_timeout=min(5.0, seconds),
        read_timeout=seconds if patient else min(8.0, seconds),
        retries={"mode": "standard", "total_max_attempts": attempts},
        tcp_keepalive=True,
        **settings,
    )
    try:
        return boto3.session.Session().client("s3", config=config)
    except ValueError as error:
        raise InputError(f"AWS_ENDPOINT_URL_S3: {error}; give http://host:port or https://host") from error


def _positive(variable: str, default: float) -> float:
    text = os.environ.get(variable) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise InputError(f"{variable}={text}: must be a number above 0; unset, it is {default:g}")
    return value
