"""Images in class folders: each folder is read once, whatever links lead to it."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from dit.data.items import Item, Source, file_loader, is_hidden, is_image, source_errors
from dit.data.keys import readable, unique_keys
from dit.data.left_out import HIDDEN, NO_CLASS, NOT_AN_IMAGE, SAME_FOLDER, LeftOutList
from dit.errors import InputError, MissingError
from dit.study.config import DatasetConfig, FolderSource


def open_folder(dataset: DatasetConfig, config: FolderSource) -> Source:
    """Class folders, numbered in sorted order as torchvision's ImageFolder does, with images at any depth.

    Raises MissingError when there is no such folder.
    Raises InputError, which names it, for a folder that cannot be read, a class without images, a link that leads
    nowhere, and an image that is not a file.
    """
    root = Path(os.path.expanduser(config.path))
    with source_errors(root):
        if not root.is_dir():
            raise MissingError(f"dataset.source.path: {root} is not a folder; put the images there, a folder per class")
    left_out = LeftOutList()
    class_names = _class_names(root, left_out)
    images = [
        (label, path) for label, name in enumerate(class_names) for path in _ClassFolder(root, name, left_out).images()
    ]
    stems = [(class_names[label], os.path.splitext(path)[0].split("/", 1)[1]) for label, path in images]
    items = [
        Item(key, label, readable(path), f"{root}/{path}")
        for key, (label, path) in zip(unique_keys(stems), images, strict=True)
    ]
    return Source("folder", tuple(map(readable, class_names)), items, file_loader(dataset), left_out.records())


def _class_names(root: Path, left_out: LeftOutList) -> list[str]:
    names = []
    for entry in _entries(root):
        if is_hidden(entry.name):
            left_out.add(HIDDEN, _hidden(entry, entry.name))
        elif _is_folder(entry):
            names.append(entry.name)
        else:
            _require_target(entry)
            left_out.add(NO_CLASS, entry.name)
    return names


class _ClassFolder:
    """The images of one class."""

    def __init__(self, root: Path, name: str, left_out: LeftOutList) -> None:
        self._root, self._name, self._left_out = root, name, left_out
        self._images: list[str] = []
        # Links are followed after all other folders, so that a folder is read under its own name if it has one here.
        self._folders, self._linked = [name], deque[str]()

    def images(self) -> list[str]:
        """Return paths relative to the root, sorted. Raises InputError when there are none."""
        with source_errors(self._root):
            seen = {_identity(folder) for folder in (self._root, *self._root.resolve().parents)}
        while self._folders or self._linked:
            folder = self._folders.pop() if self._folders else self._linked.popleft()
            with source_errors(self._root / folder):
                identity = _identity(self._root / folder)
            if identity in seen:
                self._left_out.add(SAME_FOLDER, f"{folder}/")
                continue
            seen.add(identity)
            for entry in _entries(self._root / folder):
                self._add(entry, f"{folder}/{entry.name}")
        if not self._images:
            raise InputError(f"{self._root / self._name}: a class folder without images; add images or remove it")
        return sorted(self._images)

    def _add(self, entry: os.DirEntry[str], path: str) -> None:
        if is_hidden(entry.name):
            self._left_out.add(HIDDEN, _hidden(entry, path))
        elif _is_folder(entry):
            (self._linked if entry.is_symlink() else self._folders).append(path)
        elif is_image(entry.name) and entry.is_file():
            self._images.append(path)
        else:
            _require_target(entry)
            if is_image(entry.name):
                raise InputError(f"{entry.path}: an image's name, but not a file (a pipe or a device); remove it")
            self._left_out.add(NOT_AN_IMAGE, path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    with source_errors(Path(entry.path)):
        return entry.is_dir()


def _hidden(entry: os.DirEntry[str], path: str) -> str:
    """Return the name of something hidden, where no link is followed."""
    return f"{path}{'/' * entry.is_dir(follow_symlinks=False)}"


def _require_target(entry: os.DirEntry[str]) -> None:
    """Raise InputError for a link to nothing: images may have been there."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        raise InputError(f"{entry.path}: links to {os.readlink(entry.path)}, which is not there; restore or remove it")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with source_errors(folder), os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _identity(folder: Path) -> tuple[int, int]:
    """Return device and inode, which are equal for all names of a folder."""
    state = os.stat(folder)
    return state.st_dev, state.st_ino
