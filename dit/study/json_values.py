"""JSON that somebody else may have written. Torch-free."""

from __future__ import annotations

import json
from typing import Any


def parse(data: str | bytes) -> Any:
    """The value of a JSON text.

    Raises ValueError for anything else, also for one that is nested too deep, and for text that no file can hold.
    """
    try:
        value = json.loads(data)
        # Halves of surrogate pairs, which JSON can write but UTF-8 cannot.
        if ("\\ud" if isinstance(data, str) else b"\\ud") in data.lower():  # type: ignore[operator]
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deep") from None
    return value
