"""Addresses of stores, files and folders on this machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from processes import python

from dit.errors import InputError, MissingError
from dit.storage import cache_dir, fetch_file, fetch_folder, open_store


def test_a_path_an_address_and_a_url_open_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert open_store("~no-such-user/a").url == "file:///~no-such-user/a"


@pytest.mark.parametrize(
    "address",
    [
        *("gs://bucket/x", "file://host/x", "s3://", "https://x/y", "s3:///x", "s3://me:planted@bucket/x", "s3://@[x"),
        *("S3://bucket/x", "file://[x", "file:///a#b", "file:///a?planted", "http://me:planted@host"),
    ],
)
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="not a store address; give a path, file:///path or s3://") as caught:
        open_store(address)
    assert "me:planted" not in str(caught.value)


@pytest.mark.parametrize("address", ["", "  "])
def test_an_empty_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=r"is empty; give a path, file:///path or s3://bucket/prefix"):
        open_store(address)


@pytest.mark.parametrize("name", ["plain", "with space", "ümlaut's", "-dash", "$HOME"])
def test_a_place_can_be_pasted_into_a_shell(tmp_path: Path, name: str) -> None:
    store = open_store(tmp_path / name)
    store.write("folder/a file", b"content")
    subprocess.run(f"rm -r {store.place('folder')}", shell=True, check=True)
    assert store.list() == []


def test_an_unwritable_root_is_one_line_before_work_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="is a file"):
        open_store(tmp_path / "file")
    with pytest.raises(InputError, match=r"file/below: not writable: .*Not a directory") as caught:
        open_store(tmp_path / "file" / "below").check_writable()
    assert "\n" not in str(caught.value)


def test_local_files_and_folders_are_fetched_by_path_or_url(tmp_path: Path) -> None:
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


def test_a_run_on_files_loads_neither_boto3_nor_torch(tmp_path: Path) -> None:
    code = """
        import sys
        import dit.console
        from dit.storage import open_store
        open_store(sys.argv[1]).check_writable()
        print(*{"boto3", "torch"} & set(sys.modules))
    """
    assert python(code, tmp_path).communicate() == ("\n", "")
