"""How all charts look: a chart on the page, and the colours, markers and dashes of variants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from dit.report.svg import colour
from dit.report.tables import Table
from dit.study.variants import ModelSpec

HUES = 5
"""Number of colours `hue-0`, `hue-1`, ... of the page."""
_MARKERS = (("o", 6.0), ("s", 5.5), ("D", 5.5), ("^", 6.5), ("p", 6.5), ("*", 8.0))
"""(Marker, size in points) of each model size from the smallest on."""
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
"""Line style of each patch size from the finest on."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure with its heading, caption and values."""

    id: str
    title: str
    caption: str
    svg: Markup
    values: Table


def short_name(spec: ModelSpec) -> str:
    """The variant without its family."""
    return f"{spec.size}/{spec.patch}"


def hue(spec: ModelSpec) -> str:
    """The colour of a variant's patch size."""
    return colour(f"hue-{spec.patch_index % HUES}")


def size_hue(spec: ModelSpec) -> str:
    """The colour of a variant's model size."""
    return colour(f"hue-{spec.size_index % HUES}")


def marker(spec: ModelSpec) -> tuple[str, float]:
    """The marker of a variant's model size, and its size in points."""
    return _MARKERS[spec.size_index % len(_MARKERS)]


def dash(spec: ModelSpec) -> Any:
    """The line style of a variant's patch size, as matplotlib takes it."""
    return _DASHES[spec.patch_index % len(_DASHES)]
