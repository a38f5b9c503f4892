"""The store on S3, over real HTTP: large files, many keys, local copies, several processes."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from processes import python
from s3_proxy import BUCKET, Proxy, raw

from dit.errors import InputError, MissingError
from dit.storage import fetch_file, fetch_folder, open_store, sha256_file
from dit.storage.s3 import S3Store

pytestmark = pytest.mark.usefixtures("s3_environment")


def test_objects_of_other_programs_and_prefixes_are_left_alone(s3_store: S3Store) -> None:
    s3_store.write("a/part.bin", b"content")
    raw().put_object(Bucket=BUCKET, Key="root/a/")  # an empty folder, as some tools write it
    raw().put_object(Bucket=BUCKET, Key="outside")
    assert s3_store.list() == ["a/part.bin"]
    s3_store.delete("a")
    assert open_store(f"s3://{BUCKET}").list() == ["outside"]
    with pytest.raises(InputError, match="is not a valid key"):
        open_store(f"s3://{BUCKET}/x/../y")


def test_a_large_file_goes_in_parts_and_carries_its_checksum(s3_store: S3Store, large: Path, tmp_path: Path) -> None:
    entry = s3_store.upload(large, "big.bin")
    assert (entry.bytes, entry.sha256) == (large.stat().st_size, sha256_file(large))
    head = raw().head_object(Bucket=BUCKET, Key="root/big.bin")
    assert head["ETag"].endswith('-3"')
    assert head["Metadata"]["sha256"] == entry.sha256
    s3_store.download("big.bin", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == large.read_bytes()


def test_a_listing_of_several_pages_is_whole(s3_store: S3Store, s3_proxy: Proxy) -> None:
    names = [f"part-{i:05d}" for i in range(2100)]
    for name in names:
        # Into the server's memory: over HTTP they would take longer than all other tests together.
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(BUCKET, f"root/many/{name}", b"")
    assert s3_store.list("many") == [f"many/{name}" for name in names]
    assert s3_proxy.count("GET", "list-type") == 3


def test_a_local_copy_is_made_once_and_follows_its_object(s3_store: S3Store, s3_proxy: Proxy) -> None:
    entry = s3_store.write("weights.bin", b"first")
    paths = {s3_store.local("weights.bin"), s3_store.local("weights.bin", entry.sha256), s3_store.local("weights.bin")}
    assert [path.read_bytes() for path in paths] == [b"first"]
    assert s3_proxy.count("GET", "weights.bin") == 1
    s3_store.write("weights.bin", b"second")
    assert s3_store.local("weights.bin").read_bytes() == b"second"
    other = open_store(f"s3://{BUCKET}/elsewhere")
    other.write("weights.bin", b"third")
    assert other.local("weights.bin").read_bytes() == b"third"


def test_many_processes_that_need_one_file_download_it_once(s3_store: S3Store, s3_proxy: Proxy) -> None:
    content = os.urandom(3 << 20)
    s3_store.write("shard.tar", content)
    # Slow enough for all to ask before the first has its copy.
    s3_proxy.faults.append(lambda handler: handler.command == "GET" and bool(time.sleep(1)))
    code = """
        import sys
        from dit.storage.s3 import S3Store
        store = S3Store(sys.argv[1], "root")
        print("ready", flush=True)
        sys.stdin.readline()
        print(store.local("shard.tar"))
    """
    processes = [python(code, BUCKET) for _ in range(4)]
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
    assert s3_proxy.count("GET", "shard.tar") == 1


def test_files_and_folders_are_fetched_by_address(s3_store: S3Store, s3_proxy: Proxy) -> None:
    s3_store.write("vae/config.json", b"{}")
    s3_store.write("vae/sub/model.bin", b"model")
    s3_store.write("vae2", b"")
    address = f"s3://{BUCKET}/root/vae"
    assert fetch_file(f"{address}/config.json").read_bytes() == b"{}"
    folder = fetch_folder(f"{address}/")
    assert folder.name == "vae"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "config.json",
        "sub/model.bin",
    ]
    s3_proxy.seen.clear()
    assert fetch_folder(address) == folder
    assert s3_proxy.count("GET", "model.bin") == 0
    s3_store.write("vae/config.json", b'{"new": 1}')
    assert (fetch_folder(address) / "config.json").read_bytes() == b'{"new": 1}'
    for missing in (lambda: fetch_file(f"{address}/none.pth"), lambda: fetch_folder(f"{address}/none")):
        with pytest.raises(MissingError, match=r"none.*put"):
            missing()
    with pytest.raises(InputError, match="names a bucket only"):
        fetch_file(f"s3://{BUCKET}")


def test_a_forked_process_uses_its_own_connections(s3_store: S3Store, s3_proxy: Proxy) -> None:
    s3_store.write("key", b"value")
    of_parent = {request.connection for request in s3_proxy.seen}
    s3_proxy.seen.clear()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(s3_store.read, ["key"] * 4) == [b"value"] * 4
    assert len(s3_proxy.seen) == 4
    assert of_parent.isdisjoint(request.connection for request in s3_proxy.seen)
    assert s3_store.read("key") == b"value"


def test_completion_marks_are_deleted_first(s3_store: S3Store, s3_proxy: Proxy) -> None:
    for name in ("a.bin", "meta.json", "z.bin", "below/manifest.json"):
        s3_store.write(f"step/{name}", b"")
    s3_proxy.seen.clear()
    s3_store.delete("step")
    deleted = [request.path.rsplit("/", 1)[-1] for request in s3_proxy.seen if request.method == "DELETE"]
    assert sorted(deleted[:2]) == ["manifest.json", "meta.json"]
    assert sorted(deleted[2:]) == ["a.bin", "z.bin"]


def test_newer_checksums_are_sent_only_on_request(
    s3_store: S3Store, s3_proxy: Proxy, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_store.upload(large, "big.bin")
    s3_store.write("small", b"s")
    s3_store.delete("big.bin")
    assert not [
        name for request in s3_proxy.seen for name in request.headers if "checksum" in name or "trailer" in name
    ]
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    S3Store(BUCKET).write("small", b"s")
    assert any("checksum" in name for name in s3_proxy.seen[-1].headers)
