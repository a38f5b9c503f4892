"""Precision and recall (Kynkäänniemi et al. 2019) image by image, from torch-fidelity's distances.

torch-fidelity reports only the means. Intervals need the value of each image, and the manifolds of resampled images.
Shapes: N points, M images of the manifold, D feature dimensions, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dit.metrics.torch_fidelity_api import calc_cdist_part

NEIGHBOURHOOD = 3
"""k of the paper: an image reaches to its third nearest neighbour."""
BLOCK, SMALL_BLOCK = 10_000, 250
"""Points for which distances are computed at once, which bounds the memory."""
_NEAREST = 32
"""Neighbours kept for each image. A random half of the images includes three of these with near certainty."""


class Manifold:
    """The region that images [M, D] cover: a ball around each, up to its third nearest neighbour (section 2)."""

    def __init__(self, images_MD: Tensor) -> None:
        """Raises ValueError for fewer than four images."""
        if len(images_MD) <= NEIGHBOURHOOD:
            raise ValueError(f"a manifold needs more than {NEIGHBOURHOOD} images, not {len(images_MD)}")
        kept = min(_NEAREST, len(images_MD))
        nearest = [
            calc_cdist_part(block, images_MD, BLOCK).topk(kept, largest=False)
            for block in torch.split(images_MD, BLOCK)
        ]
        self._images = images_MD
        # Column 0 is the image itself, at distance 0, so column k is the k-th neighbour.
        self._distances_MK = torch.cat([block.values for block in nearest])
        self._neighbours_MK = torch.cat([block.indices for block in nearest])

    def covers(self, points_ND: Tensor) -> Tensor:
        """True for each point that lies in some image's ball (equation 1), bool [N] on the CPU.

        Precision is the mean over generated images on the real images' manifold; recall swaps the two (equation 2).
        """
        reach = self._distances_MK[:, NEIGHBOURHOOD]
        return torch.cat(
            [
                (calc_cdist_part(block, self._images, BLOCK) <= reach).any(dim=1)
                for block in torch.split(points_ND, BLOCK)
            ]
        )

    def shares(self, points_ND: Tensor, draws: Iterable[npt.NDArray[np.bool_]]) -> npt.NDArray[np.float64]:
        """Share of the points that the images of each draw, bool [M], cover without the other images; [draws]."""
        reaches = [self._reach(torch.from_numpy(drawn)) for drawn in draws]
        covered = np.zeros(len(reaches))
        for block in torch.split(points_ND, SMALL_BLOCK):
            distances = calc_cdist_part(block, self._images, BLOCK)
            covered += [int((distances <= reach).any(dim=1).sum()) for reach in reaches]
        return covered / len(points_ND)

    def _reach(self, drawn_M: Tensor) -> Tensor:
        """Distance of each image's third neighbour among the images drawn, [M]; -1 for an image not drawn."""
        # Position of each neighbour among the drawn ones, the image itself included: the third neighbour is number 4.
        ranks_MK = drawn_M[self._neighbours_MK].cumsum(dim=1)
        column = (ranks_MK <= NEIGHBOURHOOD).sum(dim=1).clamp_max(ranks_MK.shape[1] - 1)
        reach = self._distances_MK.gather(1, column[:, None])[:, 0]
        return torch.where(drawn_M, reach, -1.0)
