"""Export of sample sets for the ADM evaluator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dit.errors import StoreError
from dit.sampling.adm import write_npz


def test_an_export_has_the_arrays_that_adms_evaluator_reads(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    parts = [(random.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8), np.arange(n)) for n in (5, 3)]
    write_npz(tmp_path / "out" / "samples.npz", iter(parts), 8, 8)
    with np.load(tmp_path / "out" / "samples.npz", allow_pickle=False) as arrays:
        assert arrays.files == ["arr_0", "arr_1"]
        assert arrays["arr_0"].dtype == np.uint8
        assert np.array_equal(arrays["arr_0"], np.concatenate([images for images, _ in parts]))
        assert arrays["arr_1"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


def test_an_export_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="file"):
        write_npz(tmp_path / "file" / "samples.npz", [], 0, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
