"""Checks 1 and 2, of a preparation: `codec` and `data`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dit.health.bounds import Bounds, Float64
from dit.health.gate import Reading
from dit.study.records import DatasetManifest

IMAGES = 16
LEAST_PSNR = 20.0
"""Decibels. Stable Diffusion's autoencoders reach 24 to 30 on photographs; wrong weights stay below 15."""
SD_MEAN = (5.81, 3.25, 0.12, -2.15)
SD_STD = (4.17, 4.62, 3.71, 3.28)
"""Unscaled latents of ImageNet at 256 pixels under Stable Diffusion's autoencoders (Karras et al. 2024, EDM2)."""
SD_SCALE = 0.18215
"""Scale factor of Stable Diffusion's autoencoders (Rombach et al. 2022)."""
_PUBLISHED_ERROR, _STANDARD_ERRORS = 0.05, 5.0
_MOST_DUPLICATES = 0.05


@dataclass(frozen=True)
class CodecView:
    """Some images through the codec and back."""

    is_autoencoder: bool
    psnr: float
    """Decibels; infinite for pixels."""
    mean_C: Float64
    std_C: Float64
    """Of the scaled latents."""
    mean_error_C: Float64 | None = None
    """Standard error of `mean_C` from the spread between images; None where no table of the autoencoder exists."""
    std_error_C: Float64 | None = None
    """Standard error of `std_C`."""


def psnr(images_NHWC: npt.NDArray[np.uint8], decoded_NHWC: npt.NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio in decibels; infinite for equal images."""
    error = float(np.square(images_NHWC.astype(np.float64) - decoded_NHWC).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def codec(view: CodecView | None) -> Reading | None:
    """Check that images survive the codec, and that latents have about unit variance; None without an image."""
    if view is None:
        return None
    if view.psnr < LEAST_PSNR:
        return Reading(
            view.psnr,
            f"at least {LEAST_PSNR:g} dB",
            "stop",
            "decoded images are not those that were encoded",
            "an autoencoder that is not trained, or a decoder of another encoder",
            "check dataset.codec.weights and dataset.codec.decoder",
        )
    size = float(np.sqrt(np.square(view.std_C).mean()))
    if view.is_autoencoder and not 0.4 < size < 2.5:
        return Reading(
            size,
            "0.4 to 2.5",
            "stop",
            "the scaled latents do not have about unit variance: the scale factor is forgotten or applied twice",
            "another autoencoder",
            "set dataset.codec.scale_factor to the autoencoder's own",
        )
    return _unlike_published(view) or Reading(min(view.psnr, 999.0), f"at least {LEAST_PSNR:g} dB")


def _unlike_published(view: CodecView) -> Reading | None:
    """Compare with the published mean and standard deviation of Stable Diffusion's latents, where they apply."""
    if view.mean_error_C is None or view.std_error_C is None:
        return None
    mean_C, std_C = SD_SCALE * np.array(SD_MEAN), SD_SCALE * np.array(SD_STD)
    # So few images have a mean and a size of their own, which their spread gives.
    allowed = [_PUBLISHED_ERROR * std_C + _STANDARD_ERRORS * error for error in (view.mean_error_C, view.std_error_C)]
    excess = np.abs([view.mean_C - mean_C, view.std_C - std_C]) / allowed
    if excess.max() <= 1:
        return None
    kind, channel = np.unravel_index(int(excess.argmax()), excess.shape)
    found, published = ((view.mean_C, mean_C), (view.std_C, std_C))[kind]
    name = ("mean", "standard deviation")[kind]
    return Reading(
        float(found[channel]),
        f"{published[channel]:.3g} within 5 % and {_STANDARD_ERRORS:g} standard errors of {IMAGES} images",
        "warn",
        f"the {name} of channel {channel} is not the published one of Stable Diffusion's autoencoder",
        "images that are unlike photographs",
        "check dataset.codec.weights, unless the images differ from ImageNet's",
    )


@dataclass(frozen=True)
class DataView:
    """A prepared dataset and its measurement."""

    manifest: DatasetManifest
    bounds: Bounds


def data(view: DataView) -> Reading:
    """Check counts per class, duplicates, corrupt images, and that labels carry information."""
    manifest, bounds = view.manifest, view.bounds
    if not np.isfinite(bounds.power_C).all():
        return Reading(
            None,
            "finite latents",
            "stop",
            "latents of the prepared dataset are not finite",
            "a damaged shard, or an autoencoder that overflows in half precision",
            "prepare the dataset again, with dataset.codec.dtype=float32",
        )
    filled = sum(count > 0 for count in manifest.label_counts)
    if filled < min(2, manifest.classes):
        return Reading(
            float(filled),
            "2 classes or more",
            "stop",
            f"all images are of one class, although dataset.classes={manifest.classes}",
            "labels that were lost on the way",
            "check the folders or labels of dataset.source",
        )
    duplicates = bounds.duplicates / bounds.count
    bound = f"at most {_MOST_DUPLICATES:.0%} duplicates, no empty class"
    if duplicates > _MOST_DUPLICATES:
        return Reading(
            duplicates,
            bound,
            "stop",
            f"{bounds.duplicates} of {bounds.count} samples are copies of others",
            "features that were written over each other, or a source that lists images twice",
            "prepare the dataset again from the images",
        )
    if filled < manifest.classes:
        return Reading(
            float(manifest.classes - filled),
            bound,
            "warn",
            f"{manifest.classes - filled} of {manifest.classes} classes have no image",
            advice="check dataset.source and dataset.classes",
        )
    # Four times the largest z of a check: chance gives 0 +- 1.
    if filled > 1 and bounds.count > 4 * filled and bounds.class_information < 5:
        return Reading(
            bounds.class_information,
            "class information z > 5",
            "warn",
            "the images of a class have nothing in common: labels are shuffled or random",
            "classes that differ only in fine detail",
            "compare some images with their labels",
        )
    return Reading(duplicates, bound)
