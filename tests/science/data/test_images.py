"""Decoding and cropping of images."""

from __future__ import annotations

import io

import numpy as np
import pytest
from dataset_fixtures import picture
from PIL import Image

from dit.data.images import CorruptImageError, centre_crop, decode_image


def test_crop_halves_by_averaging_boxes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    cropped = np.asarray(centre_crop(Image.fromarray(pixels), 16)).astype(float)
    boxes = pixels.reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    assert np.abs(cropped - boxes).max() <= 1  # rounded along each side


@pytest.mark.parametrize(("width", "height"), [(16, 16), (500, 37), (31, 200), (9, 12), (33, 17)])
def test_crop_is_square_and_centred_for_any_shape(width: int, height: int) -> None:
    image = Image.new("RGB", (width, height))
    # A white cross through the centre must stay in the centre.
    image.paste((255, 255, 255), (width // 2 - 1, 0, width // 2 + 1, height))
    cropped = np.asarray(centre_crop(image, 16))[..., 0].astype(float)
    assert cropped.shape == (16, 16)
    columns = cropped.mean(axis=0)
    assert abs(np.average(np.arange(16), weights=columns + 1e-9) - 7.5) < 1


def test_images_of_any_mode_become_rgb_or_grey() -> None:
    for mode in ("L", "P", "RGBA", "CMYK", "1", "I;16"):
        image = Image.new("I;16", (20, 20)) if mode == "I;16" else picture(3, 20, 20).convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, "TIFF")
        assert decode_image(buffer.getvalue(), 16, 3, mode).shape == (16, 16, 3)
        assert decode_image(buffer.getvalue(), 16, 1, mode).shape == (16, 16, 1)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_truncated_image_is_corrupt_by_name(kind: str, fraction: float) -> None:
    buffer = io.BytesIO()
    picture(1, 64, 64).save(buffer, kind)
    data = buffer.getvalue()
    with pytest.raises(CorruptImageError, match="cat/1"):
        decode_image(data[: int(len(data) * fraction)], 16, 3, "cat/1")
