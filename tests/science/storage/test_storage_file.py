"""Files of a local store are complete or absent, even if their writer is killed or the disk is full."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import partial_files, python

from dit.errors import StoreError, TransientStoreError
from dit.storage import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "root")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 500
    while not condition():
        assert time.monotonic() < end, "timeout"
        time.sleep(0.01)


def test_a_reader_never_sees_a_file_half_written(store: Store) -> None:
    contents = [bytes([letter]) * (1 << 20) for letter in b"ab"]
    store.write("key", contents[0])
    stop = threading.Event()

    def write() -> None:
        for i in range(60):
            store.write("key", contents[i % 2])
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not stop.is_set():
        assert store.read("key") in contents
        assert store.list() == ["key"]
        reads += 1
    writer.join()
    assert reads > 0


HALF = 5 << 20
UPLOAD = """
    import sys
    from pathlib import Path
    from dit.storage import open_store
    open_store(sys.argv[1]).upload(Path(sys.argv[2]), "checkpoints/model.bin")
"""


@pytest.fixture
def half_uploaded(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process in the middle of an upload, and the pipe it waits on for the rest."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = python(UPLOAD, tmp_path / "root", fifo)
    pipe = os.open(fifo, os.O_WRONLY)
    os.write(pipe, b"x" * HALF)
    wait_until(lambda: len(partial_files(tmp_path / "root")) == 1)
    yield process, pipe
    process.kill()
    process.communicate()


def test_a_killed_upload_is_invisible_and_the_next_one_succeeds(
    store: Store, tmp_path: Path, half_uploaded: tuple[subprocess.Popen[str], int]
) -> None:
    process, pipe = half_uploaded
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.close(pipe)
    assert store.list() == []
    assert not store.exists("checkpoints/model.bin")
    store.write("checkpoints/model.bin", b"whole")
    assert store.read("checkpoints/model.bin") == b"whole"
    assert partial_files(tmp_path) == [], "the next writer removes what the killed one left"


def test_two_writers_of_one_key_do_not_disturb_each_other(
    store: Store, tmp_path: Path, half_uploaded: tuple[subprocess.Popen[str], int]
) -> None:
    process, pipe = half_uploaded
    store.write("checkpoints/model.bin", b"other")
    assert store.read("checkpoints/model.bin") == b"other"
    os.write(pipe, b"y")
    os.close(pipe)
    assert process.wait() == 0
    assert store.read("checkpoints/model.bin") == b"x" * HALF + b"y"
    assert partial_files(tmp_path) == []


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    process = python(
        """
        import signal, sys
        from pathlib import Path
        from dit.storage import open_store
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        open_store(sys.argv[1]).upload(Path(sys.argv[2]), "key")
        """,
        tmp_path / "root",
        tmp_path / "fifo",
    )
    pipe = os.open(tmp_path / "fifo", os.O_WRONLY)
    wait_until(lambda: len(partial_files(tmp_path)) == 1)
    process.terminate()
    assert process.wait() == 7
    os.close(pipe)
    assert [path.name for path in (tmp_path / "root").iterdir()] == []


def test_a_full_disk_fails_in_one_line_and_harms_nothing(small_disk: Path, tmp_path: Path) -> None:
    store = open_store(small_disk / "root")
    store.write("whole", b"w" * 1000)
    source = tmp_path / "source"
    source.write_bytes(bytes(2 << 20))
    for attempt in (
        lambda: store.write("big", bytes(2 << 20)),
        lambda: store.upload(source, "big"),
        lambda: store.upload(source, "whole"),
    ):
        with pytest.raises(StoreError, match="No space left on device; free space") as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 1
    assert store.list() == ["whole"]
    assert store.read("whole") == b"w" * 1000
    assert partial_files(small_disk) == []
    store.check_writable()


def test_a_full_disk_is_found_before_work_starts(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(1 << 20))
    with pytest.raises(TransientStoreError, match="No space left"):
        open_store(small_disk).check_writable()


def test_a_file_beyond_the_limit_fails_in_one_line_and_harms_nothing(tmp_path: Path) -> None:
    process = python(
        """
        import resource, sys
        from dit.errors import StoreError
        from dit.storage import open_store
        store = open_store(sys.argv[1])
        store.write("whole", b"w" * 1000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            store.write("whole", bytes(200_000))
        except StoreError as error:
            print(error)
        """,
        tmp_path,
    )
    output, errors = process.communicate()
    assert "whole: File too large; free space" in output, errors
    assert output.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    assert (tmp_path / "whole").read_bytes() == b"w" * 1000
