"""Decodes image files and crops them as ADM does (Dhariwal & Nichol 2021)."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image

from dit.errors import DataError, one_line

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})

UInt8Array = npt.NDArray[np.uint8]

# Exceptions of Pillow for bytes that are not an image, or only part of one.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class CorruptImageError(DataError):
    """An image file that cannot be decoded."""


def decode_image(data: bytes, image_size: int, channels: int, name: str) -> UInt8Array:
    """Return an image file, decoded and cropped, as [image_size, image_size, channels]: RGB (3) or grey (1).

    Raises CorruptImageError, which names the image, when the bytes are not a complete image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            converted = image.convert("RGB" if channels == 3 else "L")
        cropped = centre_crop(converted, image_size)
    except _UNREADABLE as error:
        reason = one_line(error) or type(error).__name__
        raise CorruptImageError(f"{name}: cannot be read as an image: {reason}") from None
    return np.asarray(cropped, dtype=np.uint8).reshape(image_size, image_size, channels)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Return the central square of the image, its short side scaled to `size` (Dhariwal & Nichol 2021)."""
    # Halve by averaging boxes while the image is at least twice too large: bicubic scaling alone would alias. Reference
    # statistics of published FIDs were made with this crop; another one changes the FID.
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
