"""Charts of the report: labels and curves that stay readable."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit.report.axes import PLOT_HEIGHT, padded
from dit.report.evidence import CURVE_POINTS, thin
from dit.report.plots import LABEL_HEIGHT, ChartPoint, end_labels
from dit.study.records import Estimate
from dit.study.variants import VARIANTS


@given(st.lists(st.floats(1, 300), min_size=1, max_size=12))
def test_labels_at_the_ends_of_lines_do_not_overlap(values: list[float]) -> None:
    specs = list(VARIANTS.values())
    ends = [
        ChartPoint(specs[i], 400.0, "step 400", Estimate(value=value, low=value, high=value))
        for i, value in enumerate(values)
    ]
    y_range = padded(values, 0.08, 0.1)
    scale = PLOT_HEIGHT / (y_range[1] - y_range[0])
    heights = sorted(label["y"] * scale + label["yshift"] for label in end_labels(ends, y_range))
    assert all(above - below >= LABEL_HEIGHT - 1e-6 for below, above in pairwise(heights))
    assert all(label["yshift"] >= 0 for label in end_labels(ends, y_range))


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
