"""Sources of images: digits, a folder or tar files, listed in a fixed shuffled order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from dit.data.folder_source import open_folder
from dit.data.images import CorruptImageError, UInt8Array
from dit.data.items import Item, Source, load_ahead
from dit.data.tar_source import open_tars
from dit.errors import InputError
from dit.study.config import DatasetConfig, FolderSource, StudyConfig, TarSource


def open_source(dataset: DatasetConfig) -> Source:
    """Return the source's images, shuffled by `dataset.shuffle_seed`.

    Raises MissingError without images, InputError when there are not `dataset.classes` classes or something of the
    source cannot be used, DataError when a tar file is damaged.
    """
    source = _unordered(dataset)
    if len(source.class_names) != dataset.classes:
        raise InputError(
            f"dataset.classes={dataset.classes}, but the source has {len(source.class_names)} classes;"
            " correct the study file or the source's path"
        )
    order = np.random.Generator(np.random.PCG64(dataset.shuffle_seed)).permutation(len(source.items))
    return replace(source, items=[source.items[i] for i in order])


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
            return open_folder(dataset, dataset.source)
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
