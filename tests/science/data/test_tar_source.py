"""Images and classes of tar files, and refusal of damaged ones."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_fixtures import folder_study, lines_run, picture, tar_of

from dit.data.images import decode_image
from dit.data.items import Source
from dit.data.sources import open_source
from dit.errors import DataError, InputError, MissingError
from dit.study.config import StudyConfig


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed, 20, 18).save(buffer, "PNG")
    return buffer.getvalue()


def tar_study(path: Path | str, classes: int) -> StudyConfig:
    return folder_study("unused", classes=classes, source={"kind": "tar", "path": str(path)})


def test_tar_classes_from_folders_at_any_depth(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", {"./train/cat/1.png": png(1), "./train/dog/1.png": png(2), "readme.txt": b"x"})
    tar_of(tmp_path / "b.tar", {"train/cat/2.png": png(3)})
    source = open_source(tar_study(tmp_path, 2).dataset)
    assert {item.key: item.label for item in source.items} == {"cat/1": 0, "dog/1": 1, "cat/2": 0}
    images = {item.key: source.load(item) for item in source.items}
    assert np.array_equal(images["dog/1"], decode_image(png(2), 16, 3, "dog"))


def test_tar_classes_from_names_of_tars_within_a_tar(tmp_path: Path) -> None:
    inner = [tar_of(tmp_path / f"n0{i}.tar", {f"n0{i}_{j}.png": png(10 * i + j) for j in range(2)}) for i in range(2)]
    outer = tar_of(tmp_path / "train.tar", {path.name: path.read_bytes() for path in inner})
    source = open_source(tar_study(outer, 2).dataset)
    assert sorted((item.key, item.label) for item in source.items) == [
        ("n00/n00_0", 0), ("n00/n00_1", 0), ("n01/n01_0", 1), ("n01/n01_1", 1)
    ]  # fmt: skip
    images = {item.key: source.load(item) for item in source.items}
    assert np.array_equal(images["n01/n01_1"], decode_image(png(11), 16, 3, "n01"))


def test_tar_classes_from_webdataset_labels(tmp_path: Path) -> None:
    for shard in range(2):
        members = {f"{i:03d}.png": png(i) for i in range(3)} | {
            f"{i:03d}.cls": f"{(i + shard) % 3}\n".encode() for i in range(3)
        }
        tar_of(tmp_path / f"part-{shard}.tar", members)
    source = open_source(tar_study(tmp_path / "part-*.tar", 3).dataset)
    assert sorted(item.label for item in source.items) == [0, 0, 1, 1, 2, 2]
    assert len({item.key for item in source.items}) == 6
    tar_of(tmp_path / "part-2.tar", {"x.png": png(1)})
    with pytest.raises(InputError, match=r"part-2\.tar.*no \.cls"):
        open_source(tar_study(tmp_path / "part-*.tar", 3).dataset)


def test_missing_damaged_and_compressed_tars_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no tar files"):
        open_source(tar_study(tmp_path / "*.tar", 1).dataset)
    whole = tar_of(tmp_path / "whole.tar", {f"cat/{i}.png": png(i) for i in range(4)}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.tar.*truncated"):
        open_source(tar_study(tmp_path / "cut.tar", 1).dataset)
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("cat/1.png"))
    with pytest.raises(InputError, match=r"packed\.tar.*uncompressed"):
        open_source(tar_study(tmp_path / "packed.tar", 1).dataset)


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("damage", ["altered header", "cut before a header", "cut in a header"])
def test_tar_without_an_end_of_archive_is_damaged(tmp_path: Path, damage: str, within: bool) -> None:
    path = tar_of(tmp_path / "cat.tar", {f"{i}.png": png(i) for i in range(4)})
    with tarfile.open(path) as archive:
        header = archive.getmembers()[2].offset
    data = bytearray(path.read_bytes())
    if damage == "altered header":
        data[header + 3] ^= 1
    else:
        del data[header + (100 if "in a" in damage else 0) :]
    path.write_bytes(data)
    if within:
        path = tar_of(tmp_path / "outer.tar", {"cat.tar": bytes(data)})
        header += tarfile.BLOCKSIZE
    with pytest.raises(DataError, match=rf"{path.name}.*at byte {header}\b.*copy it again") as caught:
        open_source(tar_study(path, 1).dataset)
    assert "\n" not in str(caught.value)


Entry = tuple[str, bytes | str, bytes]
"""Name, content or target of a link, and type of a member."""
FILE, HARD, SYMBOLIC = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE


def tar_with(path: Path, *entries: Entry, kind: int = tarfile.PAX_FORMAT) -> Path:
    """Write a tar file with members of any type, in this order."""
    with tarfile.open(path, "w", format=kind) as archive:
        for name, content, type_ in entries:
            info = tarfile.TarInfo(name)
            info.type = type_
            if isinstance(content, str):
                info.linkname = content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def opened(path: Path | str, classes: int = 1) -> Source:
    return open_source(tar_study(path, classes).dataset)


def loaded(source: Source) -> dict[str, bytes]:
    return {item.key: source.load(item).tobytes() for item in source.items}


def pixels(seed: int) -> bytes:
    return decode_image(png(seed), 16, 3, "").tobytes()


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_links_in_a_tar_have_the_content_that_they_name(tmp_path: Path, kind: int) -> None:
    long = "/".join(["objects"] * 12) + "/1"
    path = tar_with(
        tmp_path / "all.tar",
        ("./cat/early.png", "../dog/1.png", SYMBOLIC),
        (long, png(1), FILE),
        ("./dog/1.png", png(2), FILE),
        ("./cat/hard.png", "dog/1.png", HARD),
        ("cat/twice.png", "cat/early.png", HARD),
        ("cat/long.png", long, HARD),
        (".way", long.rpartition("/")[0], SYMBOLIC),
        ("cat/through.png", "../x/../.way/./1", SYMBOLIC),
        ("fox.tar", tar_of(tmp_path / "fox", {"1.png": png(3)}).read_bytes(), FILE),
        ("wolf.tar", "fox.tar", SYMBOLIC),
        ("cat/3.cls.txt", "early.png", SYMBOLIC),
        kind=kind,
    )
    source = opened(path, classes=4)
    assert loaded(source) == {
        "cat/early": pixels(2), "cat/hard": pixels(2), "cat/twice": pixels(2), "dog/1": pixels(2),
        "cat/long": pixels(1), "cat/through": pixels(1), "fox/1": pixels(3), "wolf/1": pixels(3),
    }  # fmt: skip
    assert {record.reason: record.names for record in source.left_out} == {
        "hidden": ("all.tar:.way",),
        "without the extension of an image": (f"all.tar:{long}", "all.tar:cat/3.cls.txt"),
    }


def test_link_to_a_name_that_occurs_twice_has_the_content_of_its_time(tmp_path: Path) -> None:
    entries = [("cat/1.png", png(1), FILE), ("cat/2.png", "cat/1.png", HARD), ("cat/1.png", png(3), FILE)]
    source = opened(tar_with(tmp_path / "a.tar", *entries, ("cat/4.png", "1.png", SYMBOLIC)))
    assert loaded(source) == {
        "cat/1": pixels(1), "cat/1-2": pixels(3), "cat/2": pixels(1), "cat/4": pixels(3)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "type_", "reason"),
    [
        ("cat/2.png", "gone.png", SYMBOLIC, "links to gone.png, which is not a file"),
        ("cat/2.png", "../cat", SYMBOLIC, "links to ../cat, which is not a file"),
        ("latest", "cat", SYMBOLIC, "links to cat, which is not a file"),
        ("cat/2.png", "2.png", SYMBOLIC, "in circles"),
        ("cat/2.png", "cat/2.png", HARD, "not a file"),
        ("cat/2.png", "../../1.png", SYMBOLIC, "out of the archive"),
        ("cat/2.png", "/etc/hostname", SYMBOLIC, "out of the archive"),
        ("cat/2.png", "cat/9.png", HARD, "not a file"),
        ("cat/2.png", b"", tarfile.FIFOTYPE, "is a pipe"),
        ("cat/2.png", b"", tarfile.BLKTYPE, "is a device"),
        ("cat/2.png", b"x" * 700, b"M", "is a part of a file"),
        ("cat/2.png", b"x" * 700, b"?", "unknown type"),
        ("cat/" + "n" * 5000 + ".png", b"x", FILE, "name of 5,008 characters"),
    ],
)
def test_member_that_is_no_file_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes | str, type_: bytes, reason: str
) -> None:
    path = tar_with(
        tmp_path / "a.tar", ("cat/1.png", png(1), FILE), (name, content, type_), ("cat/9.png", png(9), FILE)
    )
    with pytest.raises(InputError, match=rf"a\.tar:{name[:30]}.*{reason}"):
        opened(path)
    for hidden in (".cat", "cat/.x"):
        tar_with(
            path, ("cat/1.png", png(1), FILE), (f"{hidden}/{name}"[:90], content, type_), ("cat/9.png", png(9), FILE)
        )
        source = opened(path)
        assert len(source.items) == 2
        assert [record.names for record in source.left_out] == [(f"a.tar:{hidden}/",)]


def test_sparse_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with open(tmp_path / "cat" / "1.bmp", "wb") as file:
        file.write(b"BM")
        file.truncate(1 << 20)
    for kind in ("gnu", "pax"):
        command = ["tar", f"--format={kind}", "-C", tmp_path, "-Scf", tmp_path / "a.tar", "cat"]
        subprocess.run(command, check=True)
        with pytest.raises(InputError, match=r"a\.tar:cat/1\.bmp: is a sparse file"):
            opened(tmp_path / "a.tar")


@pytest.mark.parametrize("zeros", [0, 512, 3 << 20])
@pytest.mark.parametrize("within", [False, True])
def test_all_of_joined_tars_is_read(tmp_path: Path, within: bool, zeros: int) -> None:
    first = tar_with(tmp_path / "1.tar", ("cat/1.png", png(1), FILE)).read_bytes()
    second = tar_with(tmp_path / "2.tar", ("cat/2.png", png(2), FILE), ("cat/3.png", "cat/1.png", HARD)).read_bytes()
    joined = first + bytes(zeros) + second + first
    path = tar_of(tmp_path / "all.tar", {"inner.tar": joined}) if within else tmp_path / "all.tar"
    if not within:
        path.write_bytes(joined)
    assert loaded(opened(path)) == {
        "cat/1": pixels(1), "cat/2": pixels(2), "cat/3": pixels(1), "cat/1-2": pixels(1)
    }  # fmt: skip


@pytest.mark.parametrize("tail", [b"x", b"\x1f\x8b" + bytes(600), bytes(511) + b"x" + bytes(512)])
def test_what_follows_a_tar_and_is_no_tar_is_refused(tmp_path: Path, tail: bytes) -> None:
    path = tar_of(tmp_path / "a.tar", {"cat/1.png": png(1)})
    path.write_bytes(path.read_bytes() + tail)
    with pytest.raises(DataError, match=rf"a\.tar.*no tar at byte {path.stat().st_size - len(tail)}, after the end"):
        opened(path)


def test_incremental_tar_of_a_volume_with_a_label_is_read(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "1.png").write_bytes(png(1))
    command = ["tar", "-V", "photos", "-g", tmp_path / "state", "-C", files, "-cf", tmp_path / "cat.tar", "."]
    subprocess.run(command, check=True)
    assert loaded(opened(tmp_path / "cat.tar")) == {"cat/1": pixels(1)}


def test_tars_inside_tars_have_a_limit(tmp_path: Path) -> None:
    data = tar_of(tmp_path / "0.tar", {"cat/1.png": png(1)}).read_bytes()
    for depth in range(1, 400):
        data = tar_of(tmp_path / "next.tar", {f"{depth}.tar": data}).read_bytes()
        if depth == 7:
            assert len(opened(tmp_path / "next.tar").items) == 1
    with pytest.raises(InputError, match=r"next\.tar.*deeper than 8"):
        opened(tmp_path / "next.tar")


def test_links_to_tars_do_not_multiply_members(tmp_path: Path) -> None:
    data = tar_of(tmp_path / "0.tar", {"cat/1.png": png(1)}).read_bytes()
    for _ in range(6):
        links: list[Entry] = [(f"{number}.tar", "0.tar", HARD) for number in range(1, 30)]
        data = tar_with(tmp_path / "a.tar", ("0.tar", data, FILE), *links).read_bytes()
    with pytest.raises(InputError, match="multiply its members"):
        opened(tmp_path / "a.tar")


def header(name: str, size: bytes, type_: bytes = b"0") -> bytes:
    """A ustar header with these 12 bytes as its size."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157], block[148:156] = size, type_, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


NEGATIVE = b"\xff" * 10 + b"\xfc\x00"


@pytest.mark.parametrize(
    "tail",
    [
        header("cat/2.png", NEGATIVE),
        header("cat/2.png", b"%011o\0" % (1 << 32)) + bytes(1024),
        header("cat/2.png", b"%011o\0" % (1 << 32), b"L") + bytes(1024),
        header("cat/2.png", NEGATIVE, b"L") + bytes(1024),
        header("cat/2.png", b"%011o\0" % 512, b"x") + b"9 path=a\n".ljust(512, b"z") + bytes(1024),
        b"".join(header("x", b"%011o\0" % 512, b"L") + b"y".ljust(512, b"\0") for _ in range(2000)) + bytes(1024),
        header("cat/2.png", b"%011o\0" % 512, b"S") + b"z" * 512 + bytes(1024),
        header("x", b"%011o\0" % (1 << 16), b"x") + b"1" * (1 << 16) + header("cat/2.png", b"0" * 12) + bytes(1024),
        header("x", b"%011o\0" % 20480, b"g")
        + b"".join(b"10 k%04d=\n" % n for n in range(2048))
        + header("cat/2.png", b"0" * 12)
        + bytes(1024),
    ],
    ids=[
        "negative",
        "beyond",
        "long name beyond",
        "negative long name",
        "pax",
        "names of names",
        "sparse",
        "digits",
        "shared",
    ],
)
def test_headers_that_lead_nowhere_are_damage(tmp_path: Path, tail: bytes) -> None:
    path = tar_of(tmp_path / "a.tar", {"cat/1.png": png(1)})
    with tarfile.open(path) as archive:
        list(archive)
        end = archive.offset
    path.write_bytes(path.read_bytes()[:end] + tail)
    with pytest.raises((DataError, InputError), match=r"a\.tar") as caught:
        opened(path)
    assert "\n" not in str(caught.value)


def test_hidden_members_are_left_out_and_named_once(tmp_path: Path) -> None:
    names = ["cat/1.png", "cat/._1.png", "cat/.thumbs/1.png", "cat/.thumbs/2.png", "./.trash/1.png", "cat/1.json"]
    source = opened(tar_of(tmp_path / "a.tar", {name: png(1) for name in names} | {".fox.tar": b"no tar"}))
    assert [item.key for item in source.items] == ["cat/1"]
    assert [(record.reason, record.count, record.names) for record in source.left_out] == [
        ("hidden", 4, ("a.tar:cat/._1.png", "a.tar:cat/.thumbs/", "a.tar:.trash/", "a.tar:.fox.tar")),
        ("without the extension of an image", 1, ("a.tar:cat/1.json",)),
    ]


def test_an_existing_path_is_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "a[bc]*?" / "tars"
    folder.mkdir(parents=True)
    (folder / ".old.tar").touch()
    (folder / "sums.txt").touch()
    tar_of(folder / "[1].tar", {"cat/1.png": png(1)})
    for path in (folder, folder / "[1].tar", folder / "*.tar", folder / "[[]1].tar", tmp_path / "*" / "tars" / "*.tar"):
        assert [item.key for item in opened(path).items] == ["cat/1"]
    assert [(record.reason, record.names) for record in opened(folder).left_out] == [
        ("hidden", (".old.tar",)),
        ("beside the tar files", ("sums.txt",)),
    ]
    (folder / "2.tar").mkdir()
    with pytest.raises(InputError, match=r"2\.tar: not a file"):
        opened(folder / "*.tar")


def test_label_that_is_too_long_for_a_number_is_refused_by_name(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", {"1.png": png(1), "1.cls": b"0" * 5000})
    with pytest.raises(InputError, match=r"a\.tar:1\.cls: has 5,000 bytes"):
        opened(path)


@pytest.mark.parametrize("type_", [FILE, HARD, SYMBOLIC])
def test_many_members_of_one_name_cost_linear_time(tmp_path: Path, type_: bytes) -> None:
    def cost(count: int) -> int:
        target: Any = {FILE: b"", HARD: "cat/1.png", SYMBOLIC: "1.png"}[type_]
        path = tar_with(tmp_path / "a.tar", ("cat/1.png", png(1), FILE), *[("cat/2.png", target, type_)] * count)
        return lines_run(lambda: opened(path))

    assert cost(1500) < 11 * cost(150)
