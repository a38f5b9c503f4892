"""Places the labels of a chart's points, so that they cover neither lines, error bars nor each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes

from dit.report.svg import FONT

Point = tuple[float, float]
LETTER, LINE = 0.64 * FONT, 1.25 * FONT
"""Width of a letter and height of a line in points, with some room."""
_MOST_SAMPLES = 1000
_SAMPLE = 3.0
"""Distance in points at which a line is sampled."""
_RINGS = ((6.0, 0.0), (12.0, 25.0), (20.0, 90.0))
"""(Distance of a label from its point, area that it must save to be so far away)."""
_SIDES = ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))


@dataclass(frozen=True, slots=True)
class Label:
    """A text beside a point (data coordinates)."""

    text: str
    at: Point
    colour: str


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in points from the figure's corner."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)


def place(axes: Axes, labels: Sequence[Label], lines: Iterable[Sequence[Point]]) -> list[Box]:
    """Write each label where it covers least of the lines, the points and the labels before it; their boxes.

    `lines` are polylines in data coordinates; an error bar is one.
    """
    taken = [_dot(point, 1.5) for line in lines for point in _sampled(axes, line)]
    taken += [_dot(_place(axes, label.at), 5.0) for label in labels]
    boxes: list[Box] = []
    for label in labels:
        candidates = _candidates(_place(axes, label.at), label.text)
        box = min(candidates, key=lambda box: _cost(axes, box, taken, boxes) + candidates[box])
        _write(axes, label, box.left, (box.bottom + box.top) / 2)
        boxes.append(box)
    return boxes


def place_right(axes: Axes, labels: Sequence[Label]) -> list[Box]:
    """Write each label right of its point, moved up if it would cover the label below; their boxes."""
    placed: list[Box] = []
    floor = -math.inf
    finite = [label for label in labels if math.isfinite(label.at[1]) and label.at[1] > 0]
    for label in sorted(finite, key=lambda label: label.at[1]):
        x, y = _place(axes, label.at)
        middle = max(y, floor)
        floor = middle + LINE
        _write(axes, label, x + 8, middle)
        placed.append(Box(x + 8, middle - LINE / 2, x + 8 + LETTER * len(label.text), middle + LINE / 2))
    return placed


def _candidates(at: Point, text: str) -> dict[Box, float]:
    """Boxes around a point, the usual place first, each with the area that it may cover less than the nearest ones."""
    width = LETTER * len(text)
    boxes = {}
    for gap, penalty in _RINGS:
        for side, up in _SIDES:
            left = at[0] + side * gap - (width if side < 0 else 0 if side > 0 else width / 2)
            bottom = at[1] + up * gap * 0.8 - (LINE if up < 0 else 0 if up > 0 else LINE / 2)
            boxes[Box(left, bottom, left + width, bottom + LINE)] = penalty
    return boxes


def _cost(axes: Axes, box: Box, taken: Sequence[Box], labels: Sequence[Box]) -> float:
    """Area covered; another label, and what is outside the axes, counts ten times."""
    frame = axes.get_window_extent()
    scale = 72 / axes.figure.dpi
    inside = box.overlap(Box(frame.x0 * scale, frame.y0 * scale, frame.x1 * scale, frame.y1 * scale))
    outside = (box.right - box.left) * (box.top - box.bottom) - inside
    return sum(map(box.overlap, taken)) + 10 * (sum(map(box.overlap, labels)) + outside)


def _sampled(axes: Axes, line: Sequence[Point]) -> Iterable[Point]:
    for start, end in pairwise([_place(axes, point) for point in line]):
        # A value that is not a number has no place; one that is not above 0 lies very far below a logarithmic axis.
        if not math.isfinite(length := math.dist(start, end)):
            continue
        count = max(1, min(int(length / _SAMPLE), _MOST_SAMPLES))
        for i in range(count + 1):
            share = i / count
            yield start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _place(axes: Axes, point: Point) -> Point:
    x, y = axes.transData.transform(point) * 72 / axes.figure.dpi
    return float(x), float(y)


def _dot(at: Point, radius: float) -> Box:
    return Box(at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius)


def _write(axes: Axes, label: Label, left: float, middle: float) -> None:
    x, y = _place(axes, label.at)
    axes.annotate(
        label.text,
        label.at,
        (left - x, middle - y),
        textcoords="offset points",
        color=label.colour,
        verticalalignment="center",
        annotation_clip=False,
    )
