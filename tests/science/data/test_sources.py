"""Listing of folders and digits, and loading of their images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_fixtures import digits_study, folder_study, image_folder, picture

from dit.data.images import CorruptImageError
from dit.data.items import load_ahead
from dit.data.sources import iter_source_images, open_source
from dit.errors import InputError, MissingError, StoreError


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


def test_source_hash_changes_with_a_file_name(tmp_path: Path) -> None:
    image_folder(tmp_path)
    before = open_source(folder_study(tmp_path).dataset).sha256()
    (tmp_path / "class-0" / "picture_0.png").rename(tmp_path / "class-0" / "picture_9.png")
    assert open_source(folder_study(tmp_path).dataset).sha256() != before


def test_files_of_equal_name_and_different_type_are_both_kept(tmp_path: Path) -> None:
    image_folder(tmp_path, classes=1, per_class=1)
    picture(7, 30, 30).save(tmp_path / "class-0" / "picture_0.bmp")
    keys = sorted(item.key for item in open_source(folder_study(tmp_path, classes=1).dataset).items)
    assert keys == ["class-0/picture_0", "class-0/picture_0-2"]


def test_missing_folder_and_wrong_number_of_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is not a folder"):
        open_source(folder_study(tmp_path / "absent").dataset)
    image_folder(tmp_path)
    with pytest.raises(InputError, match=r"classes=4.*has 3 classes"):
        open_source(folder_study(tmp_path, classes=4).dataset)
    (tmp_path / "class-3").mkdir()
    with pytest.raises(InputError, match=r"class-3.*without images"):
        open_source(folder_study(tmp_path, classes=4).dataset)


def test_digits_are_scaled_to_all_grey_levels() -> None:
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


def test_images_are_loaded_in_order_and_corrupt_images_as_errors(tmp_path: Path) -> None:
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


def test_file_that_vanishes_is_a_store_error(tmp_path: Path) -> None:
    image_folder(tmp_path)
    source = open_source(folder_study(tmp_path).dataset)
    (tmp_path / "class-0" / "picture_0.png").unlink()
    with pytest.raises(StoreError, match="picture_0"):
        list(load_ahead(source, source.items))
