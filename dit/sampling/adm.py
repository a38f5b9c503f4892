"""Export for the evaluator of ADM (Dhariwal & Nichol 2021): an npz whose arr_0 holds all images. Torch-free."""

from __future__ import annotations

import errno
import os
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from dit.errors import InputError
from dit.storage.base import local_errors, place_file


def check_target(path: Path) -> None:
    """Check that a file can be written at this path, and create its folder.

    Raises InputError when it cannot.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"--export-adm {path}: {error.strerror}; give a file that can be written") from None


def write_npz(
    path: Path, parts: Iterable[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]], count: int, size: int
) -> None:
    """Write arr_0, uint8 [count, size, size, 3], and arr_1, the labels [count], atomically; grey images become RGB.

    Raises StoreError when the disk fails or is full.
    """

    def fill(file: BinaryIO) -> None:
        # Part by part, because 50,000 images of 256 pixels are 10 GB. A member of a zip can be streamed, np.savez
        # needs the whole array.
        labels = []
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
                np.lib.format.write_array_header_1_0(member, header)
                for images, part_labels in parts:
                    member.write(np.broadcast_to(images, (*images.shape[:3], 3)).tobytes())
                    labels.append(part_labels)
            with archive.open("arr_1.npy", "w") as member:
                np.lib.format.write_array(member, np.concatenate(labels), allow_pickle=False)

    with local_errors(path):
        place_file(path, fill)
