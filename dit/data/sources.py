"""Sources of images: digits, a folder or tar files, listed in a fixed shuffled order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dit.data.images import CorruptImageError, UInt8Array
from dit.data.items import Item, Source, file_loader, is_image, load_ahead
from dit.data.keys import readable, unique_keys
from dit.data.tar_source import open_tars
from dit.errors import InputError, MissingError
from dit.storage.base import local_errors
from dit.study.config import DatasetConfig, FolderSource, StudyConfig, TarSource


def open_source(dataset: DatasetConfig) -> Source:
    """Return the source's images, shuffled by `dataset.shuffle_seed`.

    Raises MissingError without images, InputError when there are not `dataset.classes` classes, DataError when a tar
    file is damaged.
    """
    source = _unordered(dataset)
    if len(source.class_names) != dataset.classes:
        raise InputError(
            f"dataset.classes={dataset.classes}, but the source has {len(source.class_names)} classes;"
            " correct the study file or the source's path"
        )
    order = np.random.Generator(np.random.PCG64(dataset.shuffle_seed)).permutation(len(source.items))
    items = [source.items[i] for i in order]
    return Source(source.kind, source.class_names, items, source.load)


def iter_source_images(config: StudyConfig) -> Iterator[tuple[str, UInt8Array, int]]:
    """Yield key, cropped image [image_size, image_size, channels] and label of every readable image.

    The images are in the shards' order, without a codec, as reference statistics need them. Raises as `open_source`.
    """
    source = open_source(config.dataset)
    for item, image in load_ahead(source, source.items):
        if not isinstance(image, CorruptImageError):
            yield item.key, image, item.label


def _unordered(dataset: DatasetConfig) -> Source:
    match dataset.source:
        case FolderSource():
            return _folder(dataset, dataset.source)
        case TarSource():
            return open_tars(dataset, dataset.source)
        case _:
            return _digits()


def _digits() -> Source:
    """scikit-learn's digits: grey levels 0..16 on 8x8 pixels, spread over 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    items = [Item(f"digit-{i:04d}", int(label), f"digit-{i:04d}", "", i) for i, label in enumerate(digits.target)]
    return Source("digits", tuple(str(name) for name in digits.target_names), items, lambda item: images[item.offset])


def _folder(dataset: DatasetConfig, config: FolderSource) -> Source:
    """Class folders, numbered in sorted order as torchvision's ImageFolder does, with images at any depth."""
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise MissingError(f"dataset.source.path: {root} is not a folder; put the images there, one folder per class")
    with local_errors(root):
        class_names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != ".")
        images = [(label, path) for label, name in enumerate(class_names) for path in _images_below(root / name)]
    stems = [(class_names[label], os.path.splitext(path)[0].split("/", 1)[1]) for label, path in images]
    items = [
        Item(key, label, readable(path), str(root / path))
        for key, (label, path) in zip(unique_keys(stems), images, strict=True)
    ]
    return Source("folder", tuple(map(readable, class_names)), items, file_loader(dataset))


def _images_below(folder: Path) -> list[str]:
    """Return paths relative to the folder's parent, sorted. Raises InputError when there are none."""
    paths = [
        os.path.relpath(os.path.join(place, name), folder.parent)
        for place, _, names in os.walk(folder, followlinks=True)
        for name in names
        if is_image(name)
    ]
    if not paths:
        raise InputError(f"{folder}: a class folder without images; add images or remove it")
    return sorted(paths)
