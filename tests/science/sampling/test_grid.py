"""Previews of sample sets: which samples they show, and how."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from dit.sampling import grid


def test_a_preview_of_few_classes_has_a_row_for_each() -> None:
    rows = grid.choose(np.arange(40) % 4, 4)
    assert [len(row) for row in rows] == [8] * 4
    assert rows[2] == [2, 6, 10, 14, 18, 22, 26, 30]


def test_a_preview_of_many_classes_shows_the_first_samples() -> None:
    rows = grid.choose(np.arange(1000), 1000)
    assert [index for row in rows for index in row] == list(range(64))
    assert grid.choose(np.arange(3), 1000) == [[0, 1, 2]]


def test_small_images_are_enlarged_without_smoothing() -> None:
    """Every pixel becomes a square of its own value."""
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8, 1) * 4
    with Image.open(io.BytesIO(grid.render([[(pixels, "7")]]))) as image:
        drawn = np.asarray(image.convert("L"))
    tile = drawn[grid.MARGIN : grid.MARGIN + 64, grid.MARGIN : grid.MARGIN + 64]
    assert np.array_equal(tile, pixels[..., 0].repeat(8, 0).repeat(8, 1))
