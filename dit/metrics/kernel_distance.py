"""Kernel distance (Bińkowski et al. 2018, section 4): squared maximum mean discrepancy, unbiased for any sample size.

KID with Inception's features. torch-fidelity averages over random subsets of 1,000 images; here every pair of images
counts, which has less noise, and bootstrap draws reuse the pairs. Shapes: N samples, M real images, D feature
dimensions, B bootstrap draws.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BLOCK = 2000
"""Images whose kernels are computed at once, which bounds the memory."""


def squared_mmd(generated_ND: Tensor, real_MD: Tensor, counts_NB: Tensor) -> tuple[float, npt.NDArray[np.float64]]:
    """The distance, and that of each draw [B], in which sample i occurs counts[i, b] times; the real images stay fixed.

    A pair of two copies of one sample is left out, as is a sample with itself: the estimate would be biased.
    """
    generated, real = generated_ND.double(), real_MD.double()
    counts = counts_NB.to(generated)
    # Column 0 is the set itself: every sample once.
    drawn = torch.cat([torch.ones(len(counts), 1).to(counts), counts], dim=1)
    pairs = torch.zeros(drawn.shape[1]).to(drawn)
    across = torch.zeros_like(pairs)
    for start in range(0, len(generated), BLOCK):
        block, own = generated[start : start + BLOCK], drawn[start : start + BLOCK]
        kernels = _without_self(_kernel(block, generated), start)
        pairs += (own * (kernels @ drawn)).sum(dim=0)
        across += _kernel(block, real).sum(dim=1) @ own
    among_real = sum(
        float(_without_self(_kernel(real[start : start + BLOCK], real), start).sum())
        for start in range(0, len(real), BLOCK)
    )
    n, m = len(generated), len(real)
    distances = pairs / (n**2 - drawn.square().sum(dim=0)) - 2 * across / (n * m) + among_real / (m * (m - 1))
    value, *replicates = distances.tolist()
    return value, np.array(replicates)


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    """(x y / D + 1)^3 for every pair of rows."""
    return (first @ second.T / first.shape[1] + 1) ** 3


def _without_self(kernels: Tensor, start: int) -> Tensor:
    """The kernels of rows `start` and on, with 0 for every image with itself."""
    kernels.diagonal(offset=start).zero_()
    return kernels
