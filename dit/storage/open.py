"""The store's public face: open one by its address, pass records through it, fetch files for reading. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from dit.errors import InputError, MissingError
from dit.storage.base import Store
from dit.storage.file import FileStore
from dit.study.records import Record

RecordT = TypeVar("RecordT", bound=Record)


def open_store(address: str | Path) -> Store:
    """Open the store at a path, `file:///path` or `s3://bucket/prefix`; S3 is asked once whether it answers.

    The S3 endpoint and the credentials come from the usual AWS variables and files, such as AWS_ENDPOINT_URL_S3.
    Raises InputError for an address of another kind or refused credentials, MissingError for a bucket that does not
    exist, StoreError for an endpoint that cannot be reached or does not answer.
    """
    place = _parse(address)
    return FileStore(place) if isinstance(place, Path) else _connect(*place)


def read_record(store: Store, key: str, cls: type[RecordT]) -> RecordT | None:
    """The record at this key, None when there is none; MismatchError or DataError when it is not of this type."""
    try:
        data = store.read(key)
    except MissingError:
        return None
    return cls.from_json(data, f"{store.url}/{key}")


def write_record(store: Store, key: str, record: Record) -> None:
    """Write a record as JSON, atomically: where it marks completion, write it last."""
    store.write(key, record.to_json())


def fetch_file(address: str | Path) -> Path:
    """A local path for a path or store address of one file; MissingError says what to put where."""
    place = _parse(address)
    if isinstance(place, Path):
        found = place if place.is_file() else None
    else:
        store, key = _containing(address, *place)
        found = store.local(key) if store.exists(key) else None
    if found is None:
        raise MissingError(f"{address}: no such file; put it there, or give its path or store address instead")
    return found


def fetch_folder(address: str | Path) -> Path:
    """As `fetch_file`, for a folder with all that is in it."""
    place = _parse(address)
    if not isinstance(place, Path):
        store, key = _containing(address, *place)
        return store.local_folder(key)
    if not place.is_dir():
        raise MissingError(f"{address}: no such folder; put it there, or give its path or store address instead")
    return place


def _parse(address: str | Path) -> Path | tuple[str, str]:
    """A local path, or an S3 bucket and what follows it."""
    text = str(address)
    if isinstance(address, Path) or "://" not in text:
        return Path(text).expanduser().absolute()
    parts = urlsplit(text)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        return Path(unquote(parts.path))
    if parts.scheme == "s3" and parts.netloc:
        bucket, _, key = text.removeprefix("s3://").partition("/")
        return bucket, key.strip("/")
    raise InputError(f"{text}: not a store address; give a path, file:///path or s3://bucket/prefix")


def _connect(bucket: str, prefix: str) -> Store:
    from dit.storage.s3 import S3Store  # boto3 costs half a second, which a run on files need not pay

    return S3Store.connect(bucket, prefix)


def _containing(address: str | Path, bucket: str, key: str) -> tuple[Store, str]:
    """The store of the folder that holds an object, and the object's key there."""
    prefix, _, name = key.rpartition("/")
    if not name:
        raise InputError(f"{address}: names a bucket only; give s3://bucket/path")
    return _connect(bucket, prefix), name
