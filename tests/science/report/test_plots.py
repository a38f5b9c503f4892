"""Charts of the report: labels and curves that stay readable."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes

from dit.report.axes import padded
from dit.report.evidence import CURVE_POINTS, smooth, thin
from dit.report.labels import LINE, Box, Label, place, place_right
from dit.report.svg import chart_axes, log_axis


def axes_for(points: list[tuple[float, float]]) -> Axes:
    _, axes = chart_axes("x", "y")
    log_axis(axes, "x", padded([x for x, _ in points], 0.08, 0.14))
    log_axis(axes, "y", padded([y for _, y in points], 0.08, 0.1))
    return axes


@given(st.lists(st.floats(1, 300), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_labels_at_the_ends_of_lines_do_not_overlap(values: list[float]) -> None:
    points = [(400.0, value) for value in values]
    boxes = place_right(axes_for(points), [Label("XL/2", point, "#000000") for point in points])
    assert len(boxes) == len(values)
    assert all(above.bottom - below.bottom >= LINE - 1e-6 for below, above in pairwise(boxes))


def test_labels_cover_neither_error_bars_nor_each_other() -> None:
    """The points of the digits, whose patches lie close to each other."""
    points = {
        "S/2": (0.0004557, 18.40, 16.99, 19.75),
        "B/2": (0.001035, 10.70, 9.508, 11.92),
        "L/2": (0.002633, 4.654, 3.845, 5.524),
        "XL/2": (0.01131, 2.604, 2.003, 3.353),
        "XL/4": (0.003075, 6.379, 5.486, 7.358),
    }
    axes = axes_for([(x, edge) for x, _, low, high in points.values() for edge in (low, high)])
    bars = [[(x, low), (x, high)] for x, _, low, high in points.values()]
    boxes = place(axes, [Label(name, (x, y), "#000000") for name, (x, y, _, _) in points.items()], bars)
    for bar in bars:
        ends = [axes.transData.transform(end) * 72 / axes.figure.dpi for end in bar]
        drawn = Box(ends[0][0] - 0.5, ends[0][1], ends[1][0] + 0.5, ends[1][1])
        assert all(box.overlap(drawn) == 0 for box in boxes)
    assert all(one.overlap(other) == 0 for one, other in combinations(boxes, 2))


@pytest.mark.parametrize("count", [0, 1, 299, 300, 301, 4000])
def test_a_thinned_curve_keeps_its_ends_and_its_mean(count: int) -> None:
    curve = [(step, 1 / (step + 1)) for step in range(count)]
    thinned = thin(curve)
    assert len(thinned) <= CURVE_POINTS
    if count:
        assert thinned[0][0] < count / 100 + 1
        assert thinned[-1][0] >= count - 1 - count / CURVE_POINTS
    if count <= CURVE_POINTS:
        assert thinned == curve


def test_smoothing_takes_the_noise_and_leaves_a_line_straight() -> None:
    noise = random.Random(0)
    line = [(float(step), 1 - step / 400) for step in range(300)]
    noisy = [(step, value + noise.gauss(0, 0.05)) for step, value in line]
    assert smooth(line) == [(step, pytest.approx(value)) for step, value in line]
    rough, even = (
        sum(abs(value - exact) for (_, value), (_, exact) in zip(curve, line, strict=True))
        for curve in (noisy, smooth(noisy))
    )
    assert even < rough / 2
    assert len(smooth([])) == 0
