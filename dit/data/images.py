"""Decodes image files and crops them as ADM does (Dhariwal & Nichol 2021)."""

from __future__ import annotations

import io
import threading
import warnings
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from dit.errors import DataError, one_line

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
# Formats that are decoded, whatever the file's extension: photos are often served under the name of another format.
# Pillow knows more; some of them start other programs (EPS starts Ghostscript).
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

MAX_FILE_BYTES = 256 << 20
"""Largest image file that is read."""
MAX_PIXELS = 89_478_485
"""Largest image that is decoded: Pillow's own bound on what is not suspected to be a decompression bomb."""
MAX_ASPECT = 100
"""Largest ratio of the sides: when a strip's short side is enlarged, its long side is, too."""
# Larger images are decoded one at a time, so memory does not grow with the number of threads.
_LARGE = 16 << 20
_ONE_LARGE = threading.RLock()

# Tags of TIFF 6.0, section 8.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _TILE_WIDTH, _TILE_LENGTH = 258, 262, 322, 323
_WHITE_IS_ZERO = 0

UInt8Array = npt.NDArray[np.uint8]

# Pillow's warnings about damaged and large images do not name the image; the errors below do.
warnings.filterwarnings("ignore", module=r"PIL\.")


class CorruptImageError(DataError):
    """An image file that cannot be decoded, or is beyond a limit."""


def decode_image(data: bytes, image_size: int, channels: int, name: str) -> UInt8Array:
    """Return an image file, decoded and cropped, as [image_size, image_size, channels]: RGB (3) or grey (1).

    As in ADM's preprocessing, the EXIF orientation is not applied and transparency is dropped.

    Raises CorruptImageError, which names the image, when the bytes are not a complete image, when it is beyond a limit,
    or when its values have no defined white.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        with one_at_a_time(_checked_pixels(image, image_size)):
            cropped = _cropped(image, image_size, "RGB" if channels == 3 else "L")
    except CorruptImageError as error:
        raise CorruptImageError(f"{name}: {error}") from None
    # Pillow's decoders raise exceptions of many types for damaged files.
    except Exception as error:
        raise CorruptImageError(f"{name}: cannot be read as an image: {_reason(error, data)}") from None
    return np.asarray(cropped, dtype=np.uint8).reshape(image_size, image_size, channels)


def one_at_a_time(size: int) -> AbstractContextManager[object]:
    """Return a lock for work on `size` bytes or pixels; only large work waits for it."""
    return _ONE_LARGE if size > _LARGE else nullcontext()


def _cropped(image: Image.Image, size: int, mode: str) -> Image.Image:
    # Closing frees the pixels while the lock for large images is held.
    try:
        return centre_crop(_eight_bits(image).convert(mode), size)
    finally:
        image.close()


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


def _checked_pixels(image: Image.Image, image_size: int) -> int:
    """Return the pixels of the largest picture that decoding or cropping makes, before either.

    Raises CorruptImageError when the image is beyond a limit.
    """
    width, height = image.size
    short, long = sorted(image.size)
    if short == 0:
        raise CorruptImageError(f"is {width} x {height} pixels")
    if long > MAX_ASPECT * short:
        raise CorruptImageError(f"is {width} x {height} pixels, a strip of more than {MAX_ASPECT} to 1")
    # Tiles are decoded whole, and can be larger than the image.
    tags = getattr(image, "tag_v2", {})
    tile = int(tags.get(_TILE_WIDTH, 0)), int(tags.get(_TILE_LENGTH, 0))
    made = {
        f"is {width} x {height} pixels": width * height,
        f"has tiles of {tile[0]} x {tile[1]} pixels": tile[0] * tile[1],
        f"is {width} x {height} pixels, too narrow to enlarge to {image_size}": image_size * image_size * long // short,
    }
    for what, pixels in made.items():
        if pixels > MAX_PIXELS:
            raise CorruptImageError(f"{what}; the limit is {MAX_PIXELS:,} pixels in all")
    return max(made.values())


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return the image with 8 bits per channel; 16-bit grey keeps its upper bits, as 16-bit colour does in Pillow.

    Raises CorruptImageError for integers of 32 bits and floats: which of their values is white is not defined.
    """
    # Pillow scales grey PPM files of more than 8 bits to 16 bits in mode I.
    if not image.mode.startswith(("I", "F")):
        return image
    if not image.mode.startswith("I;16") and (image.mode, image.format) != ("I", "PPM"):
        kind = "floating-point numbers" if image.mode == "F" else "signed or 32-bit integers"
        raise CorruptImageError(f"has {kind} as pixels (mode {image.mode}); convert it to 8 or 16 bits")
    image.load()
    tags = getattr(image, "tag_v2", {})
    (bits,) = tags.get(_BITS_PER_SAMPLE, (16,))
    grey = (np.asarray(image) >> (bits - 8)).clip(0, 255).astype(np.uint8)
    # Pillow inverts such files of 8 bits, but not of 16.
    return Image.fromarray(255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey)


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "its header is damaged or of an unknown format"
    text = one_line(error)[:200]
    if isinstance(error, OSError | SyntaxError | ValueError | EOFError | MemoryError) and text:
        return text
    return f"its content is damaged ({type(error).__name__}{text and f': {text}'})"
