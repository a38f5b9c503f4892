"""Images in uncompressed tar files: listed once with their offsets, then read in any order."""

from __future__ import annotations

import glob
import os
from pathlib import Path, PurePosixPath

from dit.data.items import Item, Source, file_loader, is_hidden, is_image, read_bytes, source_errors
from dit.data.keys import readable, unique_keys
from dit.data.left_out import HIDDEN, NOT_A_TAR, NOT_AN_IMAGE, LeftOutList
from dit.data.tar_members import Member, list_members
from dit.errors import InputError, MissingError
from dit.storage import fetch_file, open_store
from dit.study.config import DatasetConfig, TarSource

# Enough for a class and a line end.
_LABEL_BYTES = 64


def open_tars(dataset: DatasetConfig, config: TarSource) -> Source:
    """Return all images of the tar files, and of tars inside them, as in ImageNet's training set.

    An image's class is the number in the `.cls` member of its WebDataset sample, else its folder, else its tar's name.

    Raises MissingError without tar files or images.
    Raises InputError when only some images have a `.cls`, and InputError or DataError as `list_members`.
    """
    images: list[Member] = []
    labels: dict[tuple[str, str, str], str] = {}
    left_out = LeftOutList()
    for path in _tar_files(config.path, left_out):
        for member in list_members(path, left_out):
            if is_image(member.name):
                images.append(member)
            elif member.name.endswith(".cls"):
                labels[member.sample] = _label(member)
            else:
                left_out.add(NOT_AN_IMAGE, member.title)
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
    return Source("tar", tuple(map(readable, names)), items, file_loader(dataset), left_out.records())


def _tar_files(address: str, left_out: LeftOutList) -> list[str]:
    """Return sorted local paths of the tar files at a path, a glob, a folder or a store address."""
    if "://" in address:
        if address.endswith(".tar"):
            return [str(fetch_file(address))]
        store = open_store(address)
        keys = store.list()
        for key in keys:
            if not key.endswith(".tar"):
                left_out.add(NOT_A_TAR, key)
        paths = [str(store.local(key)) for key in keys if key.endswith(".tar")]
    else:
        paths = _local_tars(os.path.expanduser(address), left_out)
    if not paths:
        raise MissingError(f"dataset.source.path: no tar files at {address}; put them there or correct the path")
    return paths


def _local_tars(path: str, left_out: LeftOutList) -> list[str]:
    """Return the tar files at a path that exists, else of a pattern; special characters of existing folders are none.

    Raises InputError for something called `.tar` that is not a file.
    """
    with source_errors(path):
        if os.path.isdir(path):
            paths = [os.path.join(path, name) for name in _tar_names(path, left_out)]
        elif os.path.lexists(path):
            paths = [path]
        else:
            folder = next(parent for parent in Path(path).parents if parent.is_dir())
            pattern = os.path.relpath(path, folder)
            paths = sorted(glob.glob(os.path.join(glob.escape(str(folder)), pattern)))
    for tar in paths:
        if not os.path.isfile(tar):
            raise InputError(f"dataset.source.path: {tar}: not a file that can be read; remove it")
    return paths


def _tar_names(folder: str, left_out: LeftOutList) -> list[str]:
    names = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = f"{entry.name}{'/' * entry.is_dir()}"
        if is_hidden(name):
            left_out.add(HIDDEN, name)
        elif name.endswith(".tar"):
            names.append(name)
        else:
            left_out.add(NOT_A_TAR, name)
    return names


def _label(member: Member) -> str:
    """Return the text of a `.cls` member. Raises InputError when it is too long for a number."""
    if member.size > _LABEL_BYTES:
        raise InputError(f"{member.title}: has {member.size:,} bytes, too many for the number of a class; correct it")
    return read_bytes(member.path, member.offset, member.size).decode("utf-8", "replace").strip()


def _class_of(image: Member, labels: dict[tuple[str, str, str], str]) -> str:
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
