"""Images in uncompressed tar files: listed once with their offsets, then read in any order."""

from __future__ import annotations

import glob
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from dit.data.items import Item, Source, file_loader, is_image, read_bytes
from dit.data.keys import readable, unique_keys
from dit.errors import DataError, InputError, MissingError
from dit.storage import fetch_file, open_store
from dit.storage.base import local_errors
from dit.study.config import DatasetConfig, TarSource


@dataclass(frozen=True, slots=True)
class _Member:
    """A file in a tar, or in a tar inside it."""

    name: str
    container: str
    """Name of the innermost tar, without extension."""
    path: str
    offset: int
    size: int

    @property
    def title(self) -> str:
        """Its name in messages: the tar file and the path in it."""
        outer = Path(self.path)
        inner = "" if self.container == outer.stem else f"{self.container}.tar/"
        return f"{outer.name}:{inner}{self.name}"

    @property
    def sample(self) -> tuple[str, str, str]:
        """Identity of its WebDataset sample: tar and path, up to the first dot of the file name."""
        folder, slash, name = self.name.rpartition("/")
        return self.path, self.container, folder + slash + name.split(".", 1)[0]


def open_tars(dataset: DatasetConfig, config: TarSource) -> Source:
    """Return all images of the tar files, and of tars inside them, as in ImageNet's training set.

    An image's class is the number in the `.cls` member of its WebDataset sample, else its folder, else its tar's name.

    Raises MissingError without tar files or images.
    Raises InputError when a tar is compressed, or when only some images have a `.cls`.
    Raises DataError when a tar is truncated or damaged.
    """
    images: list[_Member] = []
    labels: dict[tuple[str, str, str], str] = {}
    for path in _tar_files(config.path):
        for member in _members(path):
            if is_image(member.name):
                images.append(member)
            elif member.name.endswith(".cls"):
                data = read_bytes(member.path, member.offset, member.size)
                labels[member.sample] = data.decode("utf-8", "replace").strip()
    if not images:
        raise MissingError(f"dataset.source.path: no images in the tar files of {config.path}; correct the path")
    classes = [_class_of(image, labels) for image in images]
    names = _class_names(set(classes), dataset.classes, numbered=bool(labels))
    numbers = {name: label for label, name in enumerate(names)}
    keys = unique_keys((name, PurePosixPath(image.name).stem) for name, image in zip(classes, images, strict=True))
    items = [
        Item(key, numbers[name], readable(image.title), image.path, image.offset, image.size)
        for key, name, image in zip(keys, classes, images, strict=True)
    ]
    return Source("tar", tuple(map(readable, names)), items, file_loader(dataset))


def _tar_files(address: str) -> list[str]:
    """Return sorted local paths of the tar files at a path, a glob, a folder or a store address."""
    if "://" in address:
        if address.endswith(".tar"):
            return [str(fetch_file(address))]
        store = open_store(address)
        paths = [str(store.local(key)) for key in store.list() if key.endswith(".tar")]
    else:
        path = os.path.expanduser(address)
        paths = sorted(glob.glob(os.path.join(path, "*.tar") if os.path.isdir(path) else path))
    if not paths:
        raise MissingError(f"dataset.source.path: no tar files at {address}; put them there or correct the path")
    return paths


def _members(path: str) -> Iterator[_Member]:
    with local_errors(path), open(path, "rb") as file:
        try:
            yield from _walk(file, path, Path(path).stem, 0)
        except tarfile.ReadError as error:
            raise DataError(f"{path}: the tar file is truncated or damaged ({error}); copy it again") from None


def _walk(file: IO[bytes], path: str, container: str, start: int) -> Iterator[_Member]:
    """Yield the files of the tar at byte `start` of `path`, and of tars inside it."""
    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (the caller closes the file)
    except tarfile.ReadError as error:
        where = path if start == 0 else f"{path}: {container}.tar"
        raise InputError(f"{where}: not an uncompressed tar file ({error}); unpack or replace it") from None
    for info in archive:
        place = start + info.offset_data
        inner = archive.extractfile(info) if info.isreg() and info.name.endswith(".tar") else None
        if inner is not None:
            yield from _walk(inner, path, PurePosixPath(info.name).stem, place)
        elif info.isreg():
            yield _Member(info.name.removeprefix("./"), container, path, place, info.size)
    # tarfile ends the listing without an error at a damaged header, as it does at the block of zeros after the last
    # file.
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no header and no end of archive at byte {start + archive.offset}")


def _class_of(image: _Member, labels: dict[tuple[str, str, str], str]) -> str:
    if labels:
        number = labels.get(image.sample)
        if number is None or not number.isdecimal():
            label = "no .cls member" if number is None else f"the label {number!r}, which is not a number"
            raise InputError(
                f"{image.path}: {image.name} has {label}, but others have a numbered class; add its number"
            )
        return str(int(number))
    return PurePosixPath(image.name).parent.name or image.container


def _class_names(classes_in_use: set[str], classes: int, numbered: bool) -> tuple[str, ...]:
    """Return names in order of labels: by number if the source numbers its classes, else by name."""
    if not numbered:
        return tuple(sorted(classes_in_use))
    names = tuple(sorted(classes_in_use, key=int))
    if int(names[-1]) >= len(names) and len(names) == classes:
        raise InputError(
            f"dataset.source: labels go up to {names[-1]}, but dataset.classes={classes}; number the classes from 0"
        )
    return names
