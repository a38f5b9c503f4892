"""Files that an evaluation needs and no stage makes: their paths and checksums. Torch-free."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.lib.npyio import NpzFile

from dit.errors import InputError, MismatchError, MissingError
from dit.metrics.table import FEATURES
from dit.storage import Store, fetch_file, sha256_file
from dit.study import layout
from dit.study.config import AdmReference, StudyConfig

# SHA-256 of `layout.INCEPTION_FILE`: the TensorFlow graph of 2015 that defines FID (Heusel et al. 2017).
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
# Errors of numpy and zipfile for a file that is not an npz, or is truncated.
_UNREADABLE = (ValueError, OSError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class EvaluationFiles:
    """Local path and SHA-256 of each file."""

    inception: tuple[Path, str] | None
    """InceptionV3's weights; None if another extractor is used."""
    adm: tuple[Path, str] | None
    """ADM's reference file; None if the dataset is the reference."""


def find_evaluation_files(config: StudyConfig, store: Store) -> EvaluationFiles:
    """Find the files that the study's evaluation needs.

    Raises MissingError or MismatchError for a missing or wrong file, InputError when the reference is not valid.
    """
    evaluation = config.evaluation
    inception = find_inception(config, store) if evaluation.extractor == "inception" else None
    adm = fetch_file(evaluation.reference.path) if isinstance(evaluation.reference, AdmReference) else None
    if adm:
        read_adm_moments(adm, FEATURES[evaluation.extractor])
    return EvaluationFiles(inception, (adm, sha256_file(adm)) if adm else None)


def find_inception(config: StudyConfig, store: Store) -> tuple[Path, str]:
    """Local path and SHA-256 of Inception's weights, from `evaluation.extractor_weights` or else from the store.

    Raises MissingError when the file is missing, MismatchError when its SHA-256 is not the expected one.
    """
    evaluation = config.evaluation
    expected = evaluation.extractor_sha256 or INCEPTION_SHA256
    key = layout.weights(layout.INCEPTION_FILE)
    address = evaluation.extractor_weights or f"{store.url}/{key}"
    try:
        path = fetch_file(evaluation.extractor_weights) if evaluation.extractor_weights else store.local(key)
    except MissingError:
        raise MissingError(
            f"{address}: the InceptionV3 weights are missing; put {layout.INCEPTION_FILE} of torch-fidelity's release"
            f" v0.2.0 (SHA-256 {INCEPTION_SHA256}) there, or set evaluation.extractor_weights to its path or store"
            " address"
        ) from None
    actual = sha256_file(path)
    if actual != expected:
        raise MismatchError(
            f"{address}: SHA-256 is {actual}, expected {expected}; fetch {layout.INCEPTION_FILE} again, or, to measure"
            f" with other weights, set evaluation.extractor_sha256={actual}"
        )
    return path, actual


def read_adm_moments(path: Path, dimensions: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """mu [D] and sigma [D, D] of an ADM reference file (Dhariwal & Nichol 2021).

    Raises InputError when the file lacks them, or when they are not finite.
    """
    with _npz(path) as arrays:
        moments = [arrays[name] for name in ("mu", "sigma") if name in arrays]
        if [moment.shape for moment in moments] != [(dimensions,), (dimensions, dimensions)]:
            raise InputError(
                f"evaluation.reference.path: {path} has keys {', '.join(arrays)}; needed are mu [{dimensions}] and"
                f" sigma [{dimensions}, {dimensions}], as in ADM's VIRTUAL_imagenet256_labeled.npz"
            )
        mean, covariance = (moment.astype(np.float64) for moment in moments)
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise InputError(f"evaluation.reference.path: {path} has a mu or sigma that is not finite; fetch it again")
        return mean, covariance


def read_adm_images(path: Path, most: int) -> npt.NDArray[np.uint8] | None:
    """At most `most` images [N, H, W, 3] of ADM's file, from the first on; None for a file without images.

    Raises InputError when arr_0 does not hold uint8 RGB images.
    """
    with _npz(path) as arrays:
        if "arr_0" not in arrays:
            return None
        images = arrays["arr_0"][:most]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise InputError(
                f"evaluation.reference.path: {path} has an arr_0 of {images.dtype} {list(images.shape)}; give images as"
                " uint8 [N, H, W, 3], or a file without arr_0"
            )
        return images


@contextmanager
def _npz(path: Path) -> Iterator[NpzFile]:
    try:
        arrays = np.load(path, allow_pickle=False)
        if not isinstance(arrays, NpzFile):
            raise ValueError("it is a single array")
        with arrays:
            yield arrays
    except _UNREADABLE as error:
        raise InputError(f"evaluation.reference.path: {path} is not an npz ({error}); fetch it again") from None
