"""The shard format: a WebDataset tar and an index with the offset of each sample's array."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
import numpy.typing as npt
from webdataset.writer import TarWriter

from dit.errors import DataError

MOMENTS = "moments.npy"
PIXELS = "pixels.npy"
LABEL = "cls"
# Tar members begin at multiples of 512 bytes, and numpy pads its header to a multiple of 64.
ALIGNMENT = 64


@dataclass(frozen=True)
class ShardIndex:
    """Keys, labels and offsets of a shard's samples, which all have one shape and type."""

    keys: npt.NDArray[np.bytes_]
    """[N], UTF-8."""
    labels: npt.NDArray[np.int32]
    """[N]"""
    offsets: npt.NDArray[np.int64]
    """[N]: first byte of a sample's values in the tar, after numpy's header; a multiple of ALIGNMENT."""
    shape: tuple[int, ...]
    """Of one sample; () in a shard without samples."""
    dtype: np.dtype[Any]

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample's values."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def to_bytes(self) -> bytes:
        """Return an npz of little-endian arrays; equal indices give equal bytes."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            keys=self.keys,
            labels=self.labels.astype("<i4"),
            offsets=self.offsets.astype("<i8"),
            shape=np.array(self.shape, dtype="<i8"),
            dtype=np.array(self.dtype.str.encode()),
        )
        return buffer.getvalue()

    @classmethod
    def read(cls, file: Path | BinaryIO, where: str) -> Self:
        """Return the index that `to_bytes` wrote.

        Raises DataError, which names `where`, when the file is not an index.
        """
        try:
            _require_stored(file)
            with np.load(file, allow_pickle=False) as arrays:
                index = cls(
                    keys=arrays["keys"],
                    labels=arrays["labels"],
                    offsets=arrays["offsets"],
                    shape=tuple(int(side) for side in arrays["shape"]),
                    dtype=np.dtype(arrays["dtype"].item().decode()),
                )
            if not len(index.keys) == len(index.labels) == len(index.offsets):
                raise ValueError("its arrays differ in length")
            return index
        except (ValueError, KeyError, EOFError, OSError, TypeError, MemoryError, BadZipFile) as error:
            raise DataError(f"{where}: not a shard index ({error}); delete it and run `dit prepare` again") from None


def _require_stored(file: Path | BinaryIO) -> None:
    """Raise ValueError for a compressed file: a small one could unpack to more than there is memory for."""
    with ZipFile(file) as archive:
        if any(info.compress_type != ZIP_STORED for info in archive.infolist()):
            raise ValueError("it is compressed")
    if not isinstance(file, Path):
        file.seek(0)


class ShardWriter:
    """Writes a shard; equal samples give equal bytes on every machine."""

    def __init__(self, path: Path, member: str) -> None:
        self._path, self._member = path, member
        self._file = open(path, "wb")  # noqa: SIM115 (closed by __exit__)
        # mtime=0: the time of writing must not change the bytes, whose hash identifies the shard.
        self._tar = TarWriter(self._file, mtime=0)
        self._keys: list[str] = []
        self._labels: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._tar.close()
        finally:
            self._file.close()

    def add(self, key: str, label: int, values: npt.NDArray[Any]) -> None:
        """Append one sample."""
        self._tar.write({"__key__": key, self._member: np.ascontiguousarray(values), LABEL: str(label)})
        self._keys.append(key)
        self._labels.append(label)

    def index(self) -> ShardIndex:
        """Return the index, with offsets read back from the tar; call it after the context has ended."""
        offsets, shape, dtype = scan(self._path, self._member)
        keys = np.array([key.encode() for key in self._keys], dtype=np.bytes_)
        return ShardIndex(keys, np.array(self._labels, dtype=np.int32), offsets, shape, dtype)


def scan(path: Path, member: str) -> tuple[npt.NDArray[np.int64], tuple[int, ...], np.dtype[Any]]:
    """Return the offsets of the values in all members `*.<member>` of a tar, and their common shape and type."""
    offsets: list[int] = []
    headers: set[tuple[int, tuple[int, ...], np.dtype[Any]]] = set()
    with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
        starts = [info.offset_data for info in archive if info.name.endswith(f".{member}")]
        for start in starts:
            file.seek(start)
            headers.add(read_header(file))
            offsets.append(file.tell())
    if len(headers) > 1:
        raise DataError(f"{path}: samples have {len(headers)} shapes or types; a shard can have only one")
    _, shape, dtype = headers.pop() if headers else (0, (), np.dtype(np.uint8))
    return np.array(offsets, dtype=np.int64), shape, dtype


def read_header(file: BinaryIO) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
    """Return the length of a numpy header, and the array's shape and type; leaves `file` at the first value.

    Raises ValueError when there is no such header.
    """
    start = file.tell()
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"numpy file format {version}")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order:
        raise ValueError("Fortran order")
    return file.tell() - start, shape, dtype
