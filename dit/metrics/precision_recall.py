"""Precision and recall (Kynkäänniemi et al. 2019) image by image, over torch-fidelity's distances.

torch-fidelity reports only the means; intervals need to know which images they are means of, and what the manifold of
other images would be. Shapes: N points, M images of the manifold, D feature dimensions, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dit.metrics.torch_fidelity_api import calc_cdist_part

NEIGHBOURHOOD = 3
BLOCK, SMALL_BLOCK = 10_000, 250
_NEAREST = 32
"""Neighbours of each image that are kept: a random half of the images all but never leaves fewer than three of them."""


class Manifold:
    """What some images [M, D] cover: each reaches as far as its third nearest neighbour among them."""

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
        # The nearest is the image itself.
        self._distances_MK = torch.cat([block.values for block in nearest])
        self._neighbours_MK = torch.cat([block.indices for block in nearest])

    def covers(self, points_ND: Tensor) -> Tensor:
        """Whether each point lies within reach of some image, bool [N] on the CPU.

        Precision is the mean over generated images on the real ones' manifold, recall the other way round.
        """
        reach = self._distances_MK[:, NEIGHBOURHOOD]
        return torch.cat(
            [
                (calc_cdist_part(block, self._images, BLOCK) <= reach).any(dim=1)
                for block in torch.split(points_ND, BLOCK)
            ]
        )

    def shares(self, points_ND: Tensor, draws: Iterable[npt.NDArray[np.bool_]]) -> npt.NDArray[np.float64]:
        """Which share of the points the images of each draw, bool [M], would cover by themselves; [draws]."""
        reaches = [self._reach(torch.from_numpy(drawn)) for drawn in draws]
        covered = np.zeros(len(reaches))
        for block in torch.split(points_ND, SMALL_BLOCK):
            distances = calc_cdist_part(block, self._images, BLOCK)
            covered += [int((distances <= reach).any(dim=1).sum()) for reach in reaches]
        return covered / len(points_ND)

    def _reach(self, drawn_M: Tensor) -> Tensor:
        """How far each image reaches among those drawn, [M]; nowhere where it is not drawn itself."""
        ranks_MK = drawn_M[self._neighbours_MK].cumsum(dim=1)
        place = (ranks_MK <= NEIGHBOURHOOD).sum(dim=1).clamp_max(ranks_MK.shape[1] - 1)
        reach = self._distances_MK.gather(1, place[:, None])[:, 0]
        return torch.where(drawn_M, reach, -1.0)
