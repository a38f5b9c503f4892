"""Sample keys that every WebDataset reader takes whole: no dots, unique, short enough for a plain tar header."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

# A ustar header splits a path at a slash into at most 155 + 100 bytes; the member's extension needs room as well.
_CLASS_BYTES = 64
_STEM_BYTES = 72
_DIGEST_DIGITS = 12
# Readers split a name at its first dot.
_UNSAFE = re.compile(r"[\x00-\x20./\\\x7f]")


def unique_keys(names: Iterable[tuple[str, str]]) -> list[str]:
    """Keys `class/name` for pairs of class and file name without extension, in the same order.

    Names that become equal are told apart by a number in the order in which they come.
    """
    seen: set[str] = set()
    keys = []
    for class_name, stem in names:
        base = f"{_component(class_name, _CLASS_BYTES)}/{_component(stem, _STEM_BYTES)}"
        key, number = base, 2
        while key in seen:
            key, number = f"{base}-{number}", number + 1
        seen.add(key)
        keys.append(key)
    return keys


def readable(name: str) -> str:
    """A file name that is valid Unicode, whatever bytes the file system holds."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _component(name: str, limit: int) -> str:
    """One path component; a name that is too long ends in a digest of the whole."""
    safe = _UNSAFE.sub("_", readable(name)) or "_"
    if safe.startswith("__"):
        # Readers take a folder called __this__ for metadata and skip it.
        safe = f"-{safe}"
    data = safe.encode("utf-8")
    if len(data) <= limit:
        return safe
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGEST_DIGITS]
    return data[: limit - _DIGEST_DIGITS - 1].decode("utf-8", "ignore") + "-" + digest
