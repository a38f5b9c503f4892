"""A preview of a sample set. Its layout depends on the labels alone, so it shows the same samples for every variant."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

COLUMNS = 8
MAX_CLASS_ROWS = 20
SMALLEST_TILE, LARGEST_TILE = 64, 128
MARGIN, CAPTION = 4, 16
CAPTION_LETTERS = 16


def choose(labels: npt.NDArray[np.int64], classes: int) -> list[list[int]]:
    """Rows of sample numbers: the first 8 of each class, or the first 64 samples if there are more than 20 classes."""
    if classes <= MAX_CLASS_ROWS:
        rows = [np.flatnonzero(labels == label)[:COLUMNS].tolist() for label in range(classes)]
        return [row for row in rows if row]
    return [list(range(first, min(first + COLUMNS, len(labels)))) for first in range(0, min(len(labels), 64), COLUMNS)]


def render(rows: Sequence[Sequence[tuple[npt.NDArray[np.uint8], str]]]) -> bytes:
    """A PNG of rows of (image [H, W, 1 or 3], caption below it).

    Small images are enlarged by an integer factor without smoothing, so that every pixel is visible; large ones shrink.
    """
    side = _tile_side(rows[0][0][0].shape[0])
    width = MARGIN + (side + MARGIN) * max(len(row) for row in rows)
    height = MARGIN + (side + CAPTION + MARGIN) * len(rows)
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(CAPTION - 4)
    for y, row in enumerate(rows):
        top = MARGIN + y * (side + CAPTION + MARGIN)
        for x, (pixels, caption) in enumerate(row):
            left = MARGIN + x * (side + MARGIN)
            canvas.paste(_tile(pixels, side), (left, top))
            centre = (left + side // 2, top + side + CAPTION // 2)
            draw.text(centre, caption[:CAPTION_LETTERS], fill="black", font=font, anchor="mm")
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _tile_side(size: int) -> int:
    if size < SMALLEST_TILE:
        return size * -(-SMALLEST_TILE // size)
    return min(size, LARGEST_TILE)


def _tile(pixels: npt.NDArray[np.uint8], side: int) -> Image.Image:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    larger = side > image.width
    return image.resize((side, side), Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS)
