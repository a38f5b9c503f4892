"""Headers of tar files, as Python's tarfile reads them: within limits, and GNU's old ones without a false folder."""

from __future__ import annotations

import re
import tarfile
from typing import BinaryIO

_MAX_HEADER_BYTES = 1 << 20
# Python up to 3.11.9 searches pax records in quadratic time of the digits in a row.
_MAX_DIGITS = 255
_DIGITS = re.compile(rb"\d+")

# GNU tar --listed-incremental keeps times where POSIX has the folder of a long name.
_MAGIC, _GNU_MAGIC, _PREFIX = slice(257, 265), b"ustar  \0", slice(345, 500)


class HeaderInfo(tarfile.TarInfo):
    """A member's header, with its own name."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> HeaderInfo:
        """Return the member of a header block. Raises tarfile.HeaderError as tarfile does."""
        info = super().frombuf(buf, encoding, errors)
        if buf[_MAGIC] == _GNU_MAGIC:
            prefix = bytes(buf[_PREFIX]).split(b"\0", 1)[0].decode(encoding, errors)
            info.name = info.name.removeprefix(f"{prefix}/") if prefix else info.name
        return info


class HeaderReader:
    """The part of a file between two bytes, as tarfile reads it: headers, long names and pax records only."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file, self._start, self._end = file, start, end
        self._position = start

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes. Raises ReadError for more than a header can have."""
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self._file.seek(self._position)
        data = self._file.read(max(0, min(size, self._end - self._position)))
        if any(len(digits) > _MAX_DIGITS for digits in _DIGITS.findall(data)):
            raise tarfile.ReadError(f"a header with more than {_MAX_DIGITS} digits in a row")
        self._position += len(data)
        return data

    def seek(self, offset: int) -> None:
        """Go to a byte, counted from the part's first."""
        self._position = self._start + offset

    def tell(self) -> int:
        """Return the position, counted from the part's first byte."""
        return self._position - self._start
