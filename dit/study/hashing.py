"""The hashes that bind records to the configuration they were made with. Torch-free."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def digest(value: Any) -> str:
    """The first 12 hexadecimal digits of a JSON value's SHA-256; the same on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
