"""Precision and recall (Kynkäänniemi et al. 2019) image by image, over torch-fidelity's distances.

torch-fidelity reports only the means; intervals need to know which images they are means of.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit.metrics.fidelity import calc_cdist_part

NEIGHBOURHOOD = 3
BLOCK = 10_000


def inside(points_ND: Tensor, manifold_MD: Tensor) -> Tensor:
    """Whether each point lies within reach of the manifold's images, bool [N] on the CPU.

    An image reaches as far as its third nearest neighbour in the manifold. Precision is the mean over generated images
    inside the real ones' manifold, recall the other way round. ValueError for a manifold of fewer than four images.
    """
    if len(manifold_MD) <= NEIGHBOURHOOD:
        raise ValueError(f"a manifold needs more than {NEIGHBOURHOOD} images, not {len(manifold_MD)}")
    reach = torch.cat(
        [
            # The nearest is the image itself.
            calc_cdist_part(block, manifold_MD, BLOCK).kthvalue(NEIGHBOURHOOD + 1).values
            for block in torch.split(manifold_MD, BLOCK)
        ]
    )
    return torch.cat(
        [(calc_cdist_part(block, manifold_MD, BLOCK) <= reach).any(dim=1) for block in torch.split(points_ND, BLOCK)]
    )
