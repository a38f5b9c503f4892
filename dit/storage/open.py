"""Opens a store by its address, reads and writes records, fetches files for reading. Torch-free."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from dit.errors import InputError, MissingError
from dit.storage.base import Store
from dit.storage.file import FileStore
from dit.study.fields import hide_credentials
from dit.study.records import Record

RecordT = TypeVar("RecordT", bound=Record)


def open_store(address: str | Path) -> Store:
    """The store at a path, `file:///path` or `s3://bucket/prefix`, after one test request to S3.

    The S3 endpoint and the credentials come from the usual AWS variables and files, such as AWS_ENDPOINT_URL_S3.

    Raises InputError for an address of another kind or refused credentials.
    Raises MissingError for a bucket that does not exist.
    Raises StoreError for an endpoint that cannot be reached or does not answer.
    """
    place = parse_address(address)
    return FileStore(place) if isinstance(place, Path) else _connect(*place)


def read_record(store: Store, key: str, cls: type[RecordT]) -> RecordT | None:
    """The record at this key; None if there is none.

    Raises MismatchError or DataError as `Record.from_json`.
    """
    try:
        data = store.read(key)
    except MissingError:
        return None
    return cls.from_json(data, store.place(key))


def write_record(store: Store, key: str, record: Record) -> None:
    """Write a record as JSON, atomically. Write it after the files whose completion it marks."""
    store.write(key, record.to_json())


def fetch_file(address: str | Path) -> Path:
    """A local path of the file at a path or store address.

    Raises MissingError, which names the file to provide.
    """
    place = parse_address(address)
    if isinstance(place, Path):
        path = place if place.is_file() else None
    else:
        store, key = _containing(address, *place)
        path = store.local(key) if store.exists(key) else None
    if path is None:
        raise MissingError(f"{address}: no such file; put it there, or give its path or store address instead")
    return path


def fetch_folder(address: str | Path) -> Path:
    """Like `fetch_file`, for a folder with all its files."""
    place = parse_address(address)
    if not isinstance(place, Path):
        store, key = _containing(address, *place)
        return store.local_folder(key)
    if not place.is_dir():
        raise MissingError(f"{address}: no such folder; put it there, or give its path or store address instead")
    return place


def parse_address(address: str | Path) -> Path | tuple[str, str]:
    """A local path, or an S3 bucket and the key or prefix after it.

    Raises InputError for an address of another kind.
    """
    text = str(address)
    if not text.strip():
        raise InputError("the address of a store or file is empty; give a path, file:///path or s3://bucket/prefix")
    if isinstance(address, Path) or "://" not in text:
        return Path(os.path.expanduser(text)).absolute()  # Path's own raises without such a user
    scheme, _, rest = text.partition("://")
    place, slash, path = rest.partition("/")
    # `?` and `#` begin a query and a fragment there; silently another folder would be opened.
    if scheme == "file" and place in ("", "localhost") and slash and not set("?#") & set(path):
        return Path(unquote(f"/{path}"))
    if scheme == "s3" and place and "@" not in place:
        return place, path.strip("/")
    raise InputError(
        f"{hide_credentials(text)}: is not a store address; give a path, file:///path or s3://bucket/prefix"
    )


def _connect(bucket: str, prefix: str) -> Store:
    from dit.storage.s3 import S3Store  # boto3 takes half a second to import

    return S3Store.connect(bucket, prefix)


def _containing(address: str | Path, bucket: str, key: str) -> tuple[Store, str]:
    """The store of the folder that holds an object, and the object's key there."""
    prefix, _, name = key.rpartition("/")
    if not name:
        raise InputError(f"{address}: names a bucket only; give s3://bucket/path")
    return _connect(bucket, prefix), name
