"""Decoding and cropping of images."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from dataset_fixtures import picture
from PIL import Image

from dit.data.images import CorruptImageError, centre_crop, decode_image

# A ramp from black to white of 16 bits, on 24 x 24 pixels.
RAMP = np.tile(np.linspace(0, 65535, 24).astype(np.uint16), (24, 1))


def saved(pixels: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray[Any, Any], order: str, bits: int, photometric: int, **more: int) -> bytes:
    """An uncompressed grey TIFF of one strip, which Pillow does not write in this form."""
    height, width = values.shape
    data = values.astype(f"{order}u2").tobytes() if bits == 16 else _packed(values)
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    tags |= {int(tag[1:]): value for tag, value in more.items()}
    fields = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (
        struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(data))
        + data
        + struct.pack(f"{order}H", len(tags))
        + fields
        + bytes(4)
    )


def _packed(values: np.ndarray[Any, Any]) -> bytes:
    """Numbers of 12 bits, two in three bytes."""
    one, two = values[:, ::2].astype(int), values[:, 1::2].astype(int)
    return np.stack([one >> 4, (one & 15) << 4 | two >> 8, two & 255], axis=-1).astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    "data",
    [
        saved(RAMP, "PNG"),
        saved(RAMP, "TIFF", compression="tiff_deflate"),
        saved(RAMP, "PPM"),
        saved(RAMP, "JPEG2000"),
        tiff(RAMP, "<", 16, photometric=1),
        tiff(RAMP, ">", 16, photometric=1),
        tiff(65535 - RAMP, "<", 16, photometric=0),
        tiff(RAMP >> 4, "<", 12, photometric=1),
        b"P5 24 24 1023 " + (RAMP >> 6).astype(">u2").tobytes(),
        b"P6 24 24 65535 " + np.repeat(RAMP[..., None], 3, axis=2).astype(">u2").tobytes(),
    ],
    ids=["png", "tiff", "pgm", "jp2", "tiff-ii", "tiff-mm", "tiff-white-is-zero", "tiff-12", "pgm-10", "ppm"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_more_than_8_bits_keep_their_grey_levels(data: bytes, channels: int) -> None:
    ramp = decode_image(data, 24, channels, "ramp").astype(int)
    assert np.abs(ramp - (RAMP >> 8)[..., None]).max() <= 1


@pytest.mark.parametrize(
    ("values", "kind"), [(np.float32, "floating-point"), (np.int32, "signed or 32-bit"), (np.int16, "signed or 32-bit")]
)
def test_values_without_a_defined_white_are_refused_by_name(values: Any, kind: str) -> None:
    data = saved((RAMP >> 2).astype(np.int32 if values is np.int16 else values), "TIFF")
    with pytest.raises(CorruptImageError, match=f"x/ramp.tif: has {kind}.* convert it to 8 or 16 bits"):
        decode_image(data, 16, 3, "x/ramp.tif")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (saved(Image.new("1", (1, 3000)), "PNG"), "1 x 3000 pixels, a strip"),
        (saved(Image.new("L", (4000, 30)), "JPEG"), "4000 x 30 pixels, a strip"),
        (saved(Image.new("1", (10_000, 9_000)), "PNG"), "10000 x 9000 pixels; the limit is 89,478,485"),
        (saved(Image.new("1", (15_000, 15_000)), "PNG"), "225000000 pixels"),
        (
            tiff(RAMP, "<", 16, photometric=1, t322=16_000, t323=16_000, t324=8, t325=9),
            "tiles of 16000 x 16000",
        ),
        (b"P5 0 4 255 ", "damaged"),
        (b"", "the file is empty"),
        (b"<html>404</html>", "unknown format"),
        # PostScript is a program, which Pillow would give to Ghostscript.
        (saved(picture(1, 40, 40), "EPS"), "unknown format"),
    ],
)
def test_what_is_beyond_a_limit_is_corrupt_by_name_and_reason(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptImageError, match=rf"cat/1: .*{reason}") as caught:
        decode_image(data, 16, 3, "cat/1")
    assert " object at 0x" not in str(caught.value)


def test_strip_is_corrupt_when_the_enlarged_strip_has_too_many_pixels() -> None:
    data = saved(picture(1, 90, 1), "PNG")
    assert decode_image(data, 256, 3, "strip").shape == (256, 256, 3)
    with pytest.raises(CorruptImageError, match="strip: is 90 x 1 pixels, too narrow to enlarge to 1024"):
        decode_image(data, 1024, 3, "strip")


def test_large_images_are_decoded_one_at_a_time() -> None:
    code = """
import io, re, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from PIL import Image
from dit.data.images import decode_image
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
buffer = io.BytesIO()
Image.new("1", (4200, 4200)).save(buffer, "PNG")
before = peak()
with ThreadPoolExecutor(int(sys.argv[1])) as pool:
    assert len(list(pool.map(lambda _: decode_image(buffer.getvalue(), 64, 3, "large"), range(4)))) == 4
print(peak() - before)
"""
    # One arena, so that threads do not keep freed memory for themselves.
    one, four = (
        int(subprocess.check_output([sys.executable, "-c", code, threads], env=os.environ | {"MALLOC_ARENA_MAX": "1"}))
        for threads in "14"
    )
    assert four < 1.5 * one


def test_orientation_is_not_applied_and_transparency_dropped_as_in_adm() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    image = picture(2, 30, 30)
    plain = decode_image(saved(image, "PNG"), 16, 3, "plain")
    assert np.array_equal(decode_image(saved(image, "PNG", exif=turned), 16, 3, "turned"), plain)
    image.putalpha(picture(3, 30, 30).convert("L"))
    assert np.array_equal(decode_image(saved(image, "PNG"), 16, 3, "transparent"), plain)


@pytest.mark.parametrize("kind", ["AVIF", "WEBP", "TIFF", "JPEG2000", "GIF"])
def test_damaged_image_is_pixels_or_corrupt_whatever_the_library_raises(kind: str) -> None:
    data, random = saved(picture(4, 40, 30), kind), np.random.default_rng(0)
    messages = []
    for _ in range(300):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 3):
            damaged[place] ^= int(random.integers(1, 256))
        try:
            decode_image(bytes(damaged), 16, 3, "cat/1")
        except CorruptImageError as error:
            messages.append(str(error))
    assert messages
    assert all(message.startswith("cat/1: ") and "\n" not in message for message in messages)


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
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        data = saved(picture(3, 20, 20).convert(mode), "TIFF")
        assert decode_image(data, 16, 3, mode).shape == (16, 16, 3)
        assert decode_image(data, 16, 1, mode).shape == (16, 16, 1)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_truncated_image_is_corrupt_by_name(kind: str, fraction: float) -> None:
    data = saved(picture(1, 64, 64), kind)
    with pytest.raises(CorruptImageError, match="cat/1"):
        decode_image(data[: int(len(data) * fraction)], 16, 3, "cat/1")
