"""Images inside uncompressed tar files, found once by their offsets and then read in any order."""

from __future__ import annotations

import glob
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from dit.data.items import Item, Source, file_loader, is_image
from dit.data.keys import readable, unique_keys
from dit.errors import DataError, InputError, MissingError
from dit.storage import fetch_file, open_store
from dit.storage.base import local_errors
from dit.study.config import DatasetConfig, TarSource


@dataclass(frozen=True, slots=True)
class _Member:
    """A file inside a tar, or inside a tar within it."""

    name: str
    container: str
    """Name of the innermost tar, without extension."""
    path: str
    offset: int
    size: int

    @property
    def title(self) -> str:
        """What a person would call it: the tar file and what one finds in it."""
        outer = Path(self.path)
        inner = "" if self.container == outer.stem else f"{self.container}.tar/"
        return f"{outer.name}:{inner}{self.name}"

    @property
    def sample(self) -> tuple[str, str, str]:
        """What members of one WebDataset sample have in common: all up to the first dot of the name."""
        folder, slash, name = self.name.rpartition("/")
        return self.path, self.container, folder + slash + name.split(".", 1)[0]


def open_tars(dataset: DatasetConfig, config: TarSource) -> Source:
    """All images of the tar files, also of tars within them, as ImageNet's training set comes.

    An image's class is the number in the `.cls` member of its name, as WebDataset writes it, else the folder it lies
    in, else the name of its tar. Raises MissingError when there are no tar files, InputError for one that is
    compressed or for a mixture of images with and without `.cls`, DataError for one that is damaged or truncated.
    """
    images: list[_Member] = []
    labels: dict[tuple[str, str, str], str] = {}
    for path in _tar_files(config.path):
        for member in _members(path):
            if is_image(member.name):
                images.append(member)
            elif member.name.endswith(".cls"):
                labels[member.sample] = _text(member)
    if not images:
        raise MissingError(f"dataset.source.path: no images in the tar files of {config.path}")
    classes = [_class_of(image, labels) for image in images]
    names = _class_names(set(classes), dataset.classes, numbered=bool(labels))
    numbers = {name: label for label, name in enumerate(names)}
    keys = unique_keys((name, PurePosixPath(image.name).stem) for name, image in zip(classes, images, strict=True))
    items = [
        Item(key, numbers[name], readable(image.title), image.path, image.offset, image.size)
        for key, name, image in zip(keys, classes, images, strict=True)
    ]
    return Source("tar", tuple(map(readable, names)), items, file_loader(dataset))


def _text(member: _Member) -> str:
    with local_errors(member.path), open(member.path, "rb") as file:
        file.seek(member.offset)
        return file.read(member.size).decode("utf-8", "replace").strip()


def _tar_files(address: str) -> list[str]:
    """Local paths of the tar files that a path, a glob, a folder or a store address names, in sorted order."""
    if "://" in address:
        if address.endswith(".tar"):
            return [str(fetch_file(address))]
        store = open_store(address)
        found = [str(store.local(key)) for key in store.list() if key.endswith(".tar")]
    else:
        path = os.path.expanduser(address)
        found = sorted(glob.glob(os.path.join(path, "*.tar") if os.path.isdir(path) else path))
    if not found:
        raise MissingError(f"dataset.source.path: no tar files at {address}; put them there or correct the path")
    return found


def _members(path: str) -> Iterator[_Member]:
    with local_errors(path), open(path, "rb") as file:
        try:
            yield from _walk(file, path, Path(path).stem, 0)
        except tarfile.ReadError as error:
            raise DataError(f"{path}: the tar file is truncated or damaged ({error}); copy it again") from None


def _walk(file: IO[bytes], path: str, container: str, start: int) -> Iterator[_Member]:
    """Files of the tar that begins at `start` of `path`, those of tars within it included."""
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
    # A header that is damaged, cut or missing ends the listing like the block of zeros that ends every tar.
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"neither a file nor the end at byte {start + archive.offset}")


def _class_of(image: _Member, labels: dict[tuple[str, str, str], str]) -> str:
    if labels:
        number = labels.get(image.sample)
        if number is None or not number.isdecimal():
            found = "no .cls member" if number is None else f"the label {number!r}, which is no number"
            raise InputError(f"{image.path}: {image.name} has {found}, while others have a numbered class; add it")
        return str(int(number))
    return PurePosixPath(image.name).parent.name or image.container


def _class_names(found: set[str], classes: int, numbered: bool) -> tuple[str, ...]:
    """In the order of their labels: by number where the source numbers its classes, else by name."""
    if not numbered:
        return tuple(sorted(found))
    names = tuple(sorted(found, key=int))
    if int(names[-1]) >= len(names) and len(names) == classes:
        raise InputError(f"dataset.source: labels run to {names[-1]}, but dataset.classes={classes}; number from 0")
    return names
