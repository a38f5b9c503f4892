"""The kernel distance against torch-fidelity's, its lack of bias, and its interval."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dit.metrics import (
    kernel_distance,
    torch_fidelity_api,  # noqa: F401  (patches torchvision before torch_fidelity is imported)
)
from dit.metrics.bootstrap import resampled_counts
from dit.metrics.kernel_distance import squared_mmd

from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric  # isort: skip


def normal(count: int, seed: int, shift: float = 0.0, dimensions: int = 16) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize("block", [2000, 7])
def test_the_distance_equals_torch_fidelitys_over_one_subset_of_all_images(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_distance, "BLOCK", block)
    one, other = normal(60, 0, shift=0.5).double(), normal(60, 1).double()
    theirs = kid_features_to_metric(one, other, kid_subsets=1, kid_subset_size=60, verbose=False)
    ours, _ = squared_mmd(one, other, torch.zeros(60, 0))
    assert ours == pytest.approx(theirs[KEY_METRIC_KID_MEAN], rel=1e-9)


def test_few_images_do_not_bias_the_distance() -> None:
    real = normal(2000, 0)
    large, _ = squared_mmd(normal(4000, 1, shift=0.3), real, torch.zeros(4000, 0))
    small = [squared_mmd(normal(20, seed, shift=0.3), real, torch.zeros(20, 0))[0] for seed in range(2, 202)]
    error = np.std(small) / np.sqrt(len(small))
    assert np.mean(small) == pytest.approx(large, abs=4 * error)


def test_draws_vary_as_other_samples_do() -> None:
    real = normal(500, 0)
    others = [squared_mmd(normal(200, seed, shift=0.4), real, torch.zeros(200, 0))[0] for seed in range(1, 101)]
    counts = torch.from_numpy(np.stack(list(resampled_counts(200, 200)), axis=1))
    spreads = [squared_mmd(normal(200, seed, shift=0.4), real, counts)[1].std() for seed in range(1, 11)]
    assert np.mean(spreads) == pytest.approx(np.std(others), rel=0.25)
