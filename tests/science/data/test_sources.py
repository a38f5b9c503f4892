"""Listing, keys, cropping and decoding of images."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from dataset_fixtures import digits_study, folder_study, image_folder, picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from webdataset.tariterators import base_plus_ext

from dit.data.images import CorruptImageError, centre_crop, decode_image
from dit.data.items import load_ahead
from dit.data.keys import unique_keys
from dit.data.sources import iter_source_images, open_source
from dit.errors import DataError, InputError, MissingError, StoreError
from dit.study.config import StudyConfig


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed, 20, 18).save(buffer, "PNG")
    return buffer.getvalue()


def tar_study(path: Path | str, classes: int) -> StudyConfig:
    return folder_study("unused", classes=classes, source={"kind": "tar", "path": str(path)})


@given(st.lists(st.tuples(st.text(max_size=90), st.text(max_size=90)), max_size=20))
def test_any_file_name_becomes_a_key_that_readers_take_whole(names: list[tuple[str, str]]) -> None:
    keys = unique_keys(names)
    assert len(set(keys)) == len(names)
    for key in keys:
        assert base_plus_ext(f"{key}.moments.npy") == (key, "moments.npy")
        assert not key.startswith("__")
        assert len(f"{key}.moments.npy".encode()) < 250


def test_folder_numbers_classes_by_name_and_shuffles_by_seed(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / "class-1" / "notes.txt").write_text("not an image")
    (tmp_path / "class-1" / "._picture_0.png").write_bytes(b"a Mac's shadow file")
    source = open_source(folder_study(tmp_path).dataset)
    assert source.class_names == ("class-0", "class-1", "class-2")
    assert sorted((item.key, item.label) for item in source.items) == [
        (f"class-{label}/picture_{number}", label) for label in range(3) for number in range(4)
    ]
    again = open_source(folder_study(tmp_path).dataset)
    other = open_source(folder_study(tmp_path, shuffle_seed=1).dataset)
    assert source.items == again.items
    assert source.sha256() == again.sha256()
    assert [item.key for item in source.items] != [item.key for item in other.items]
    assert [item.label for item in source.items] != sorted(item.label for item in source.items)


def test_the_source_hash_tells_sources_apart(tmp_path: Path) -> None:
    image_folder(tmp_path)
    before = open_source(folder_study(tmp_path).dataset).sha256()
    (tmp_path / "class-0" / "picture_0.png").rename(tmp_path / "class-0" / "picture_9.png")
    assert open_source(folder_study(tmp_path).dataset).sha256() != before


def test_files_of_one_name_and_two_types_both_stay(tmp_path: Path) -> None:
    image_folder(tmp_path, classes=1, per_class=1)
    picture(7, 30, 30).save(tmp_path / "class-0" / "picture_0.bmp")
    keys = sorted(item.key for item in open_source(folder_study(tmp_path, classes=1).dataset).items)
    assert keys == ["class-0/picture_0", "class-0/picture_0-2"]


def test_missing_folder_and_wrong_number_of_classes(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is not a folder"):
        open_source(folder_study(tmp_path / "absent").dataset)
    image_folder(tmp_path)
    with pytest.raises(InputError, match=r"classes=4.*has 3 classes"):
        open_source(folder_study(tmp_path, classes=4).dataset)
    (tmp_path / "class-3").mkdir()
    with pytest.raises(InputError, match=r"class-3.*without images"):
        open_source(folder_study(tmp_path, classes=4).dataset)


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


def test_bad_tars_are_named(tmp_path: Path) -> None:
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
def test_a_tar_that_ends_without_its_end_is_damaged(tmp_path: Path, damage: str, within: bool) -> None:
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


def test_digits_are_the_librarys_spread_over_all_grey_levels() -> None:
    from sklearn.datasets import load_digits

    source = open_source(digits_study().dataset)
    assert len(source.items) == 1797
    images = {item.key: source.load(item) for item in source.items}
    labels = {item.key: item.label for item in source.items}
    original = load_digits()
    for i in (0, 1000, 1796):
        image = images[f"digit-{i:04d}"]
        assert image.shape == (8, 8, 1)
        assert labels[f"digit-{i:04d}"] == original.target[i]
        assert np.abs(image[..., 0] / 255 * 16 - original.images[i]).max() < 0.04
    assert max(image.max() for image in images.values()) == 255


def test_crop_halves_by_boxes_before_anything_else() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    cropped = np.asarray(centre_crop(Image.fromarray(pixels), 16)).astype(float)
    boxes = pixels.reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    assert np.abs(cropped - boxes).max() <= 1  # rounded along each side


@pytest.mark.parametrize(("width", "height"), [(16, 16), (500, 37), (31, 200), (9, 12), (33, 17)])
def test_crop_is_square_and_centred_whatever_the_shape(width: int, height: int) -> None:
    image = Image.new("RGB", (width, height))
    # A white cross through the centre must stay in the centre.
    image.paste((255, 255, 255), (width // 2 - 1, 0, width // 2 + 1, height))
    cropped = np.asarray(centre_crop(image, 16))[..., 0].astype(float)
    assert cropped.shape == (16, 16)
    columns = cropped.mean(axis=0)
    assert abs(np.average(np.arange(16), weights=columns + 1e-9) - 7.5) < 1


def test_grey_palette_and_transparent_images_become_rgb() -> None:
    for mode in ("L", "P", "RGBA", "CMYK", "1", "I;16"):
        image = Image.new("I;16", (20, 20)) if mode == "I;16" else picture(3, 20, 20).convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, "TIFF")
        assert decode_image(buffer.getvalue(), 16, 3, mode).shape == (16, 16, 3)
        assert decode_image(buffer.getvalue(), 16, 1, mode).shape == (16, 16, 1)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_any_cut_file_is_corrupt_by_name(kind: str, fraction: float) -> None:
    buffer = io.BytesIO()
    picture(1, 64, 64).save(buffer, kind)
    data = buffer.getvalue()
    with pytest.raises(CorruptImageError, match="cat/1"):
        decode_image(data[: int(len(data) * fraction)], 16, 3, "cat/1")


def test_images_come_in_order_and_corrupt_ones_as_errors(tmp_path: Path) -> None:
    image_folder(tmp_path, per_class=30)
    (tmp_path / "class-1" / "picture_3.JPEG").write_bytes(b"not an image")
    source = open_source(folder_study(tmp_path).dataset)
    loaded = list(load_ahead(source, source.items))
    assert [item for item, _ in loaded] == list(source.items)
    corrupt = [item.name for item, image in loaded if isinstance(image, CorruptImageError)]
    assert corrupt == ["class-1/picture_3.JPEG"]
    readable = list(iter_source_images(folder_study(tmp_path)))
    assert len(readable) == 89
    assert readable[0][1].shape == (16, 16, 3)


def test_a_file_that_vanishes_is_not_taken_for_a_corrupt_image(tmp_path: Path) -> None:
    image_folder(tmp_path)
    source = open_source(folder_study(tmp_path).dataset)
    (tmp_path / "class-0" / "picture_0.png").unlink()
    with pytest.raises(StoreError, match="picture_0"):
        list(load_ahead(source, source.items))
