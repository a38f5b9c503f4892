"""The hashes that bind records to the configuration that made them. Torch-free."""

from __future__ import annotations

import hashlib
import json
from typing import Any

HASH_DIGITS = 12


def digest(value: Any) -> str:
    """Short SHA-256 of a JSON value, the same on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]
