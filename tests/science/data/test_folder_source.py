"""What the walk of a folder reads, leaves out by name, and refuses."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dataset_fixtures import folder_study, image_folder, picture

from dit.data.images import MAX_FILE_BYTES, CorruptImageError
from dit.data.items import Source
from dit.data.left_out import describe
from dit.data.sources import open_source
from dit.errors import DitError, InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One class with one image."""
    return image_folder(tmp_path / "images", classes=1, per_class=1)


def opened(root: Path, classes: int = 1) -> Source:
    return open_source(folder_study(root, classes=classes).dataset)


def keys(source: Source) -> list[str]:
    return sorted(item.key for item in source.items)


def left_out(source: Source) -> set[str]:
    return {name for record in source.left_out for name in record.names}


def test_hidden_and_other_files_are_counted_and_named(root: Path) -> None:
    for name in (".cache/1.png", "class-0/.thumbs/deep/2.png", "class-0/sub/3.png"):
        (root / name).parent.mkdir(parents=True)
        picture(1, 20, 20).save(root / name)
    (root / "class-0" / ".self").symlink_to(".self")
    for name in ("loose.png", "class-0/.DS_Store", "class-0/sub/photo.heic", "class-0/sub/notes.txt"):
        (root / name).write_bytes(b"x")
    source = opened(root)
    assert keys(source) == ["class-0/picture_0", "class-0/sub_3"]
    assert {record.reason: (record.count, sorted(record.names)) for record in source.left_out} == {
        "hidden": (4, [".cache/", "class-0/.DS_Store", "class-0/.self", "class-0/.thumbs/"]),
        "outside the class folders": (1, ["loose.png"]),
        "without the extension of an image": (2, ["class-0/sub/notes.txt", "class-0/sub/photo.heic"]),
    }
    line = describe(source.left_out)
    assert "4 hidden (" in line
    assert "photo.heic" in line


def test_all_that_is_left_out_is_counted_and_the_first_thousand_named(root: Path) -> None:
    for number in range(1003):
        (root / "class-0" / f"{number}.json").touch()
    ((record),) = opened(root).left_out
    assert (record.count, len(record.names)) == (1003, 1000)


@pytest.mark.parametrize("target", [".", "..", "sub", "/", "../../.."])
def test_links_in_circles_end_and_are_named(root: Path, target: str) -> None:
    (root / "class-0" / "sub").mkdir()
    (root / "class-0" / "sub" / "again").symlink_to(target if target != "sub" else "../sub")
    source = opened(root)
    assert keys(source) == ["class-0/picture_0"]
    assert left_out(source) == {"class-0/sub/again/"}


def test_links_to_folders_that_multiply_are_read_once(root: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "store" / str(number) for number in range(30)]
    for folder, inner in zip(folders, [*folders[1:], None], strict=True):
        folder.mkdir(parents=True)
        picture(1, 20, 20).save(folder / "1.png")
        if inner is not None:
            (folder / "left").symlink_to(inner)
            (folder / "right").symlink_to(inner)
    (root / "class-0" / "more").symlink_to(folders[0])
    source = opened(root)
    assert len(source.items) == 31
    assert sum(record.count for record in source.left_out) == 29


def test_links_to_files_and_folders_elsewhere_are_followed(root: Path, tmp_path: Path) -> None:
    other = image_folder(tmp_path / "other", classes=2, per_class=2)
    (root / "class-0" / "more").symlink_to(other / "class-1")
    (root / "class-0" / "name.png").symlink_to(root / "class-0" / "picture_0.png")
    (root / "class-9").symlink_to(other / "class-0")
    source = opened(root, classes=2)
    assert keys(source) == [
        "class-0/more_picture_0", "class-0/more_picture_1", "class-0/name", "class-0/picture_0",
        "class-9/picture_0", "class-9/picture_1",
    ]  # fmt: skip
    assert source.left_out == ()


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder with two images below it, in a place that every user of this machine can reach."""
    place = Path(tempfile.mkdtemp(prefix="dit-folder-source-"))
    place.chmod(0o755)
    yield image_folder(place / "images", classes=2, per_class=1)
    shutil.rmtree(place)


def without_rights(call: Callable[[], object]) -> str:
    """The code and message of the error that a call raises for a user without rights (root has them all)."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        try:
            call()
        except DitError as error:
            os.write(writable, f"{error.exit_code} {error}".encode())
        finally:
            os._exit(0)
    os.close(writable)
    with open(readable) as pipe:
        message = pipe.read()
    os.waitpid(child, 0)
    return message


@pytest.mark.parametrize("closed", [".", "class-1", "class-0/deep", "class-1/picture_0.png"])
def test_what_this_user_may_not_read_is_refused_by_name(public: Path, closed: str) -> None:
    (public / "class-0" / "deep").mkdir()
    mode = (public / closed).stat().st_mode
    (public / closed).chmod(0)

    def read_all() -> None:
        source = opened(public, classes=2)
        for item in source.items:
            source.load(item)

    message = without_rights(read_all)
    (public / closed).chmod(mode)
    assert message.startswith("2 dataset.source.path: ")
    assert f"{(public / closed)}: Permission denied" in message


@pytest.mark.parametrize("place", ["gone", "class-0/gone", "class-0/gone.png"])
def test_link_to_nothing_is_refused_by_name(root: Path, place: str) -> None:
    (root / place).symlink_to("/mnt/moved")
    with pytest.raises(InputError, match=rf"{place}: links to /mnt/moved, which is not there"):
        opened(root)


def test_link_to_itself_is_refused_by_name(root: Path) -> None:
    (root / "class-0" / "self").symlink_to("self")
    with pytest.raises(InputError, match="class-0/self: Too many levels"):
        opened(root)


def test_pipe_with_the_name_of_an_image_is_refused(root: Path) -> None:
    os.mkfifo(root / "class-0" / "stream.png")
    with pytest.raises(InputError, match=r"stream\.png: .*not a file"):
        opened(root)


def test_huge_file_is_corrupt_before_it_is_read(root: Path) -> None:
    with open(root / "class-0" / "picture_0.png", "r+b") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    source = opened(root)
    with pytest.raises(CorruptImageError, match=r"class-0/picture_0\.png: has 268,435,457 bytes"):
        source.load(source.items[0])
