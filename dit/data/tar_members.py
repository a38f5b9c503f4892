"""Lists the files in an uncompressed tar file and in the tars inside it, each with the place of its content.

Python's tarfile reads the headers (GNU long names, pax). This module adds what it leaves to the caller: links lead to
the content that they name, archives that were joined are all read, and whatever has no content here is refused by name.
"""

from __future__ import annotations

import os
import tarfile
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dit.data.items import is_hidden, source_errors
from dit.data.left_out import HIDDEN, LeftOutList
from dit.data.tar_headers import HeaderInfo, HeaderReader
from dit.errors import DataError, InputError

# Limits on what a small file can ask for.
_MAX_DEPTH = 8
_MAX_HOPS = 40
_MAX_SHARED_RECORDS = 1000
_MAX_NAME = 4096
_CHUNK = 1 << 20

# Members without content: folders, GNU's lists of folders, and names of volumes.
_NO_FILES = (tarfile.DIRTYPE, b"D", b"V")
_SPECIAL = {
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    b"M": "a part of a file that continues in another tar file",
}


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar, or in a tar inside it."""

    name: str
    container: str
    """Name of the innermost tar, without extension."""
    path: str
    """The tar file that holds its content."""
    offset: int
    """First byte of its content in `path`."""
    size: int

    @property
    def title(self) -> str:
        """Its name in messages: the tar file and the path in it."""
        return _title(self.path, self.container, self.name)

    @property
    def sample(self) -> tuple[str, str, str]:
        """Identity of its WebDataset sample: tar and path, up to the first dot of the file name."""
        folder, slash, name = self.name.rpartition("/")
        return self.path, self.container, folder + slash + name.split(".", 1)[0]


def list_members(path: str, left_out: LeftOutList) -> Iterator[Member]:
    """Yield the files of a tar file and of the tars inside it, in order; hidden ones are noted in `left_out`.

    Raises InputError when the file or a tar in it is not an uncompressed tar, when tars are nested too deep, and when a
    member is no plain file or its link leads nowhere.
    Raises DataError when the file is truncated or damaged.
    """
    with source_errors(path), open(path, "rb") as file:
        yield from _TarFile(file, path, left_out).members(Path(path).stem, 0, os.fstat(file.fileno()).st_size, 1)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A member as its header describes it."""

    name: str
    offset: int
    size: int
    link: str | None
    hard: bool
    """Whether `link` is a member's name, as in a hard link, and not a path from the entry's folder."""


class _TarFile:
    """A file on disk, with one or more archives in it."""

    def __init__(self, file: BinaryIO, path: str, left_out: LeftOutList) -> None:
        self._file, self._path, self._left_out = file, path, left_out
        self._headers, self._most_headers = 0, os.fstat(file.fileno()).st_size // tarfile.BLOCKSIZE

    def members(self, container: str, start: int, end: int, depth: int) -> Iterator[Member]:
        """Yield the files of the archives between two bytes of the file."""
        if depth > _MAX_DEPTH:
            raise InputError(f"{self._path}: {container}.tar: tars inside tars, deeper than {_MAX_DEPTH}; unpack them")
        entries = list(self._entries(container, start, end))
        links = _Links(entries)
        hidden: set[str] = set()
        for position, entry in enumerate(entries):
            if (first := _hidden_part(entry.name)) is not None:
                if first not in hidden:
                    self._left_out.add(HIDDEN, _title(self._path, container, first))
                    hidden.add(first)
                continue
            content = links.content(position)
            if isinstance(content, str):
                raise self._refused(container, entry.name, f"links to {entry.link}, {content}")
            if entry.name.endswith(".tar"):
                inner = entry.name.rpartition("/")[2].removesuffix(".tar")
                yield from self.members(inner, content.offset, content.offset + content.size, depth + 1)
            else:
                yield Member(entry.name, container, self._path, content.offset, content.size)

    def _entries(self, container: str, start: int, end: int) -> Iterator[_Entry]:
        """Yield what is not a folder, of all archives between two bytes: `cat a.tar b.tar` has two."""
        begin: int | None = start
        while begin is not None:
            archive = self._open(container, begin, end, begin == start)
            before = -1
            while (info := self._next(archive, begin)) is not None:
                # Python up to 3.11.13 goes back at a negative size, and so on for ever.
                if info.size < 0 or info.offset <= before or begin + info.offset_data + _stored(info) > end:
                    raise self._damaged(f"{info.name} has a size of {info.size}, beyond the end")
                before = info.offset
                # Links to tars read their headers again, and tars in tars could multiply without end.
                self._headers += 1
                if self._headers > self._most_headers:
                    raise InputError(f"{self._path}: links to tars inside it multiply its members; unpack them")
                if len(archive.pax_headers) > _MAX_SHARED_RECORDS:
                    raise InputError(
                        f"{self._path}: more than {_MAX_SHARED_RECORDS:,} pax records for all members; pack it anew"
                    )
                archive.members.clear()  # type: ignore[attr-defined]  # or they all stay in memory
                if info.type not in _NO_FILES:
                    yield self._entry(info, container, begin)
            begin = self._after_end(begin + archive.offset, end)

    def _open(self, container: str, begin: int, end: int, first: bool) -> tarfile.TarFile:
        try:
            headers = HeaderReader(self._file, begin, end)
            return tarfile.TarFile(fileobj=headers, tarinfo=HeaderInfo)  # type: ignore[arg-type]
        except (OSError, MemoryError):
            raise
        # tarfile raises exceptions of many types at damaged headers.
        except Exception as error:
            if not first:
                raise self._damaged(f"no tar at byte {begin}, after the end of an archive: {error}") from None
            where = self._path if begin == 0 else f"{self._path}: {container}.tar"
            raise InputError(f"{where}: not an uncompressed tar file ({error}); unpack or replace it") from None

    def _next(self, archive: tarfile.TarFile, begin: int) -> tarfile.TarInfo | None:
        try:
            return archive.next()
        except (OSError, MemoryError):
            raise
        except Exception as error:
            raise self._damaged(f"at byte {begin + archive.offset}: {error}") from None

    def _after_end(self, position: int, end: int) -> int | None:
        """Return where the next archive begins after the end of one at `position`; None if only zeros follow."""
        self._file.seek(position)
        # tarfile ends the listing without an error at a damaged header, as it does at the block of zeros after the last
        # file.
        if self._file.read(max(0, min(tarfile.BLOCKSIZE, end - position))) != bytes(tarfile.BLOCKSIZE):
            raise self._damaged(f"no header and no end of archive at byte {position}")
        while chunk := self._file.read(min(_CHUNK, end - self._file.tell())):
            zeros = len(chunk) - len(chunk.lstrip(b"\0"))
            if zeros < len(chunk):
                found = self._file.tell() - len(chunk) + zeros
                return found - (found - position) % tarfile.BLOCKSIZE
        return None

    def _entry(self, info: tarfile.TarInfo, container: str, begin: int) -> _Entry:
        name = _plain(info.name)
        if len(name) > _MAX_NAME:
            raise self._refused(container, f"{name[:40]}...", f"has a name of {len(name):,} characters")
        special = _SPECIAL[tarfile.GNUTYPE_SPARSE] if info.sparse is not None else _SPECIAL.get(info.type)
        if special is None and not (info.isfile() or info.islnk() or info.issym()):
            special = f"of the unknown type {info.type!r}"
        if special is not None and _hidden_part(name) is None:
            raise self._refused(container, name, f"is {special}")
        link = info.linkname if info.islnk() or info.issym() else None
        return _Entry(name, begin + info.offset_data, info.size, link, info.islnk())

    def _refused(self, container: str, name: str, problem: str) -> InputError:
        return InputError(
            f"{_title(self._path, container, name)}: {problem};"
            " pack plain files (tar --dereference, without --sparse), or remove it"
        )

    def _damaged(self, problem: str) -> DataError:
        return DataError(f"{self._path}: the tar file is truncated or damaged ({problem}); copy it again")


class _Links:
    """Finds the content of the entries of an archive, through hard and symbolic links."""

    def __init__(self, entries: list[_Entry]) -> None:
        self._entries = entries
        self._positions: dict[str, list[int]] = defaultdict(list)
        self._symbolic: dict[str, str] = {}
        for position, entry in enumerate(entries):
            self._positions[entry.name].append(position)
            # Of several entries of one name the last one is what unpacking leaves.
            if entry.link is not None and not entry.hard:
                self._symbolic[entry.name] = entry.link
            else:
                self._symbolic.pop(entry.name, None)

    def content(self, position: int) -> _Entry | str:
        """Return the entry that holds the content of the one at `position`, or why there is none."""
        for _ in range(_MAX_HOPS):
            entry = self._entries[position]
            if entry.link is None:
                return entry
            name = entry.link if entry.hard else self._resolved(entry)
            if name is None:
                return "which leads in circles or out of the archive"
            # A hard link names a file before it: at that time, unpacking had made no later one of this name.
            known = self._positions.get(_plain(name) if entry.hard else name, [])
            place = bisect_left(known, position) if entry.hard else len(known)
            if place == 0:
                return "which is not a file of the archive"
            position = known[place - 1]
        return "which leads through too many links"

    def _resolved(self, entry: _Entry) -> str | None:
        """Return the name where a symbolic link ends, through links to folders; None in a circle or outside."""
        done: list[str] = []
        todo = [*reversed((entry.link or "").split("/")), *reversed(entry.name.split("/")[:-1])]
        hops = int((entry.link or "").startswith("/")) * _MAX_HOPS
        while todo and hops < _MAX_HOPS:
            part = todo.pop()
            if part == "..":
                if not done:
                    return None
                done.pop()
            elif part not in ("", "."):
                done.append(part)
                link = self._symbolic.get("/".join(done))
                if link is not None:
                    hops += _MAX_HOPS if link.startswith("/") else 1
                    done.pop()
                    todo.extend(reversed(link.split("/")))
        return "/".join(done) if hops < _MAX_HOPS else None


def _stored(info: tarfile.TarInfo) -> int:
    """Return the bytes that surely follow a member's header; a sparse file has fewer than its size."""
    return info.size if info.isreg() and info.sparse is None else 0


def _plain(name: str) -> str:
    """Return a member's name without `./` and doubled slashes."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _hidden_part(name: str) -> str | None:
    """Return the path up to its first hidden folder (with a slash) or file; None if there is none."""
    parts = name.split("/")
    for number, part in enumerate(parts):
        if is_hidden(part):
            return "/".join(parts[: number + 1]) + "/" * (number + 1 < len(parts))
    return None


def _title(path: str, container: str, name: str) -> str:
    outer = Path(path)
    inner = "" if container == outer.stem else f"{container}.tar/"
    return f"{outer.name}:{inner}{name}"
