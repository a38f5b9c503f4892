"""Sample keys for WebDataset readers: unique, without dots, short enough for a plain tar header."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

# A ustar header splits a path at a slash into at most 155 + 100 bytes, which include the member's extension.
_CLASS_BYTES = 64
_STEM_BYTES = 72
_DIGEST_DIGITS = 12
# Readers split a name into key and extension at its first dot.
_UNSAFE = re.compile(r"[\x00-\x20./\\\x7f]")


def unique_keys(names: Iterable[tuple[str, str]]) -> list[str]:
    """Return keys `class/name` for pairs of class and file name without extension, in the same order.

    A key that occurred before gets a number: `class/name-2`.
    """
    used: set[str] = set()
    # Numbers below this one are used: each search goes on where the last one of its name ended, in linear time.
    next_number: dict[str, int] = {}
    keys = []
    for class_name, stem in names:
        base = f"{_component(class_name, _CLASS_BYTES)}/{_component(stem, _STEM_BYTES)}"
        key, number = base, next_number.get(base, 2)
        while key in used:
            key, number = f"{base}-{number}", number + 1
        if key != base:
            next_number[base] = number
        used.add(key)
        keys.append(key)
    return keys


def readable(name: str) -> str:
    """Return the file name as valid Unicode, for names with other bytes."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _component(name: str, limit: int) -> str:
    """Return a path component of at most `limit` bytes; a longer name is cut and ends in its digest."""
    safe = _UNSAFE.sub("_", readable(name)) or "_"
    if safe.startswith("__"):
        # Readers treat a folder called `__name__` as metadata and skip it.
        safe = f"-{safe}"
    data = safe.encode("utf-8")
    if len(data) <= limit:
        return safe
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGEST_DIGITS]
    return data[: limit - _DIGEST_DIGITS - 1].decode("utf-8", "ignore") + "-" + digest
