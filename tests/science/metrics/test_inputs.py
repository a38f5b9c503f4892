"""Files that the user provides for an evaluation: InceptionV3's weights and ADM's reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sample_fixtures import small_study

from dit.errors import InputError, MismatchError, MissingError
from dit.metrics.inputs import find_inception, read_adm_images
from dit.storage import open_store
from dit.study import layout


def test_a_missing_extractor_weights_file_is_named(tmp_path: Path) -> None:
    config = small_study("evaluation.extractor=inception", f"evaluation.extractor_weights={tmp_path}/no.pth")
    with pytest.raises(MissingError, match=r"no\.pth.*evaluation\.extractor_weights"):
        find_inception(config, open_store(tmp_path))


def test_other_inception_weights_are_refused_unless_the_study_names_their_sha256(tmp_path: Path) -> None:
    path = tmp_path / "weights" / layout.INCEPTION_FILE
    path.parent.mkdir()
    path.write_bytes(b"other weights")
    store = open_store(tmp_path)
    with pytest.raises(MismatchError, match=r"set evaluation\.extractor_sha256=[0-9a-f]{64}$") as error:
        find_inception(small_study("evaluation.extractor=inception"), store)
    sha256 = str(error.value).rpartition("=")[2]
    meant = small_study("evaluation.extractor=inception", f"evaluation.extractor_sha256={sha256}")
    assert find_inception(meant, store) == (path, sha256)


def test_images_of_an_adm_reference_must_be_uint8_rgb(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=images)
    first = read_adm_images(tmp_path / "a.npz", 4)
    assert first is not None
    assert np.array_equal(first, images[:4])
    for wrong in (images[0], images.astype(float), images[..., :1]):
        np.savez(tmp_path / "a.npz", arr_0=wrong)
        with pytest.raises(InputError, match="arr_0 of"):
            read_adm_images(tmp_path / "a.npz", 4)
