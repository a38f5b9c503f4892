"""The interface of stores, tested on files and on S3 alike."""

from __future__ import annotations

import hashlib
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import partial_files

from dit.errors import DataError, DitError, InputError, MismatchError, MissingError
from dit.storage import Store, open_store, read_record, sha256_file, write_record
from dit.study.records import HealthEvent

EVENT = HealthEvent(check="loss", step=3, value=0.5, bound="< 1", action="ok", message="fine")


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    result: Store = open_store(tmp_path / "root") if request.param == "file" else request.getfixturevalue("s3_store")
    return result


def test_files_are_written_read_listed_and_deleted(store: Store) -> None:
    entry = store.write("a/b/part.bin", b"content")
    store.write("a/c.json", b"{}")
    store.write("ab/other", b"")
    assert (entry.name, entry.bytes, entry.sha256) == ("part.bin", 7, hashlib.sha256(b"content").hexdigest())
    assert store.read("a/b/part.bin") == b"content"
    assert store.size("a/b/part.bin") == 7
    assert store.exists("a/c.json")
    assert not store.exists("a")
    assert store.list() == ["a/b/part.bin", "a/c.json", "ab/other"]
    assert store.list("a") == store.list("a/") == ["a/b/part.bin", "a/c.json"]
    assert store.sizes("a") == {"a/b/part.bin": 7, "a/c.json": 2}
    assert store.list("none") == []
    store.delete("a")
    store.delete("a")
    assert store.list() == ["ab/other"]
    store.delete("ab/other")
    assert store.list() == []


@pytest.mark.parametrize("held", [None, b"held"])
def test_file_is_replaced_only_if_it_is_as_expected(store: Store, held: bytes | None) -> None:
    if held is not None:
        store.write("a/b", held)
    assert not store.replace("a/b", b"new", b"other")
    assert store.replace("a/b", b"new", held)
    assert not store.replace("a/b", b"newer", held)
    assert (store.read("a/b"), store.list()) == (b"new", ["a/b"])


def test_of_many_writers_one_replaces_a_file(store: Store) -> None:
    store.write("a", b"held")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: store.replace("a", b"%d" % number, b"held"), range(8)))
    assert sum(won) == 1
    assert store.read("a") == b"%d" % won.index(True)


def test_upload_download_and_local_give_the_same_bytes(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(5 << 20))
    entry = store.upload(source, "x/big.bin")
    assert entry.bytes == 5 << 20
    assert entry.sha256 == sha256_file(source) == sha256_file(store.local("x/big.bin"))
    store.download("x/big.bin", tmp_path / "back", entry.sha256)
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert sorted(path.name for path in store.local_folder("x").iterdir()) == ["big.bin"]


def test_a_download_with_another_checksum_is_refused_by_name_and_replaces_nothing(store: Store, tmp_path: Path) -> None:
    store.write("x/shard.tar", b"damaged")
    target = tmp_path / "target"
    target.write_bytes(b"old")
    with pytest.raises(DataError, match=r"x/shard\.tar: SHA-256 is"):
        store.download("x/shard.tar", target, "0" * 64)
    assert target.read_bytes() == b"old"
    assert partial_files(tmp_path) == []


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", "a/", "a\\b", "a\0b"])
def test_a_key_cannot_lead_out_of_the_store(store: Store, key: str) -> None:
    for use in (store.read, store.exists, store.local, lambda key: store.write(key, b"")):
        with pytest.raises(InputError, match="is not a valid key"):
            use(key)


def test_the_store_as_a_whole_is_not_deleted(store: Store) -> None:
    store.write("a", b"")
    with pytest.raises(InputError):
        store.delete("")
    assert store.list() == ["a"]


@pytest.mark.parametrize("use", ["read", "size", "local", "local_folder"])
def test_a_missing_file_is_named(store: Store, use: str) -> None:
    with pytest.raises(MissingError, match="a/none"):
        getattr(store, use)("a/none")


def test_check_writable_leaves_nothing(store: Store) -> None:
    store.check_writable()
    assert store.list() == []


def test_records_are_read_as_they_were_written(store: Store) -> None:
    assert read_record(store, "health.json", HealthEvent) is None
    write_record(store, "health.json", EVENT)
    assert read_record(store, "health.json", HealthEvent) == EVENT
    store.write("health.json", EVENT.to_json().replace(b'"schema_version": 1', b'"schema_version": 99'))
    with pytest.raises(MismatchError, match=r"root/health\.json: schema version 99"):
        read_record(store, "health.json", HealthEvent)


def test_stores_and_errors_can_be_pickled(store: Store) -> None:
    store.write("key", b"value")
    with pytest.raises(DitError) as caught:
        store.read("none")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is MissingError
    assert str(copy) == str(caught.value)
    assert pickle.loads(pickle.dumps(store)).read("key") == b"value"
