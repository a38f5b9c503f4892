"""Images and classes of tar files, and refusal of damaged ones."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from dataset_fixtures import folder_study, picture, tar_of

from dit.data.images import decode_image
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
