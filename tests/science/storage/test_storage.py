"""The store on files: what is written is read, and one clear line says what is wrong."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dit.errors import DataError, DitError, InputError, MismatchError, MissingError
from dit.storage import (
    Store,
    cache_dir,
    fetch_file,
    fetch_folder,
    open_store,
    read_record,
    sha256_file,
    write_record,
)
from dit.study.records import HealthEvent

EVENT = HealthEvent(check="loss", step=3, value=0.5, bound="< 1", action="ok", message="fine")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "root")


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python process on this code."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def partial_files(root: Path) -> list[Path]:
    return list(root.rglob(".*.partial"))


def test_what_is_written_is_read_listed_and_deleted(store: Store) -> None:
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
    assert store.list("none") == []
    store.delete("a")
    store.delete("a")
    assert store.list() == ["ab/other"]
    store.delete("ab/other")
    assert store.list() == []


def test_upload_download_and_local(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(5 << 20))
    entry = store.upload(source, "x/big.bin")
    assert entry.bytes == 5 << 20
    assert entry.sha256 == sha256_file(source) == sha256_file(store.local("x/big.bin"))
    store.download("x/big.bin", tmp_path / "back", entry.sha256)
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert sorted(path.name for path in store.local_folder("x").iterdir()) == ["big.bin"]


def test_a_file_that_is_not_what_was_expected_is_named_and_not_put_in_place(store: Store, tmp_path: Path) -> None:
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
        with pytest.raises(InputError, match="is no key"):
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


def test_an_unwritable_root_is_one_line_before_work_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="is a file"):
        open_store(tmp_path / "file")
    with pytest.raises(InputError, match=r"file/below: not writable: .*Not a directory") as caught:
        open_store(tmp_path / "file" / "below").check_writable()
    assert "\n" not in str(caught.value)


def test_check_writable_leaves_nothing(store: Store) -> None:
    store.check_writable()
    assert store.list() == []


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_space = tmp_path / "with space"
    open_store(with_space).write("k", b"v")
    for address in (str(with_space), with_space.as_uri(), open_store(with_space).url):
        assert open_store(address).read("k") == b"v"
    monkeypatch.chdir(tmp_path)
    relative = open_store("with space")
    monkeypatch.chdir("/")
    assert relative.read("k") == b"v"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/with space").read("k") == b"v"


@pytest.mark.parametrize("address", ["gs://bucket/x", "file://host/x", "s3://", "https://x/y"])
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="not a store address; give a path, file:///path or s3://"):
        open_store(address)


def test_records_pass_through(store: Store) -> None:
    assert read_record(store, "health.json", HealthEvent) is None
    write_record(store, "health.json", EVENT)
    assert read_record(store, "health.json", HealthEvent) == EVENT
    store.write("health.json", EVENT.to_json().replace(b'"schema_version": 1', b'"schema_version": 99'))
    with pytest.raises(MismatchError, match=r"root/health\.json: schema version 99"):
        read_record(store, "health.json", HealthEvent)


def test_fetching_local_files(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / "inception.pth"
    with pytest.raises(MissingError, match=r"inception\.pth: no such file; put it there"):
        fetch_file(file)
    file.write_bytes(b"w")
    assert fetch_file(str(file)) == fetch_file(file.as_uri()) == file
    assert fetch_folder(str(file.parent)) == file.parent
    with pytest.raises(MissingError, match="no such file"):
        fetch_file(file.parent)
    with pytest.raises(MissingError, match=r"none: no such folder; put it there"):
        fetch_folder(tmp_path / "none")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIT_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("DIT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "dit-scaling"


def test_errors_pass_between_processes(store: Store) -> None:
    with pytest.raises(DitError) as caught:
        store.read("none")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is MissingError
    assert str(copy) == str(caught.value)
    assert pickle.loads(pickle.dumps(store)).list() == []


def test_a_run_on_files_loads_neither_boto3_nor_torch(tmp_path: Path) -> None:
    process = python(
        """
        import sys
        import dit.console
        from dit.storage import open_store
        open_store(sys.argv[1]).check_writable()
        print(*{"boto3", "torch"} & set(sys.modules))
        """,
        tmp_path,
    )
    assert process.communicate() == ("\n", "")
