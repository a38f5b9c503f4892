"""The schedule against the official schedule, to float64 error."""

from __future__ import annotations

import numpy as np
import pytest
from official import vectors

from dit.diffusion.schedule import linear_schedule

EXACT = {"rel": 1e-10}
PROBED = [0, 1, 499, 999]


@pytest.mark.parametrize("name", ["betas", "alphas_cumprod", "posterior_log_variance_clipped"])
def test_training_chain(name: str) -> None:
    ours = getattr(linear_schedule(), name)[PROBED]
    assert ours == pytest.approx(vectors()["schedule"][f"{name}[0,1,499,999]"], **EXACT)


@pytest.mark.parametrize("steps", [250, 1000])
def test_respaced_chain(steps: int) -> None:
    expected, chain = vectors()[f"respace_{steps}"], linear_schedule().respaced(steps)
    assert len(chain) == expected["len"]
    assert chain.timestep_map[:5].tolist() == expected["first5"]
    assert chain.timestep_map[-3:].tolist() == expected["last3"]
    assert chain.timestep_map.sum() == expected["sum"]
    assert chain.betas[0] == pytest.approx(expected["beta0"], **EXACT)
    assert chain.betas[-1] == pytest.approx(expected["beta_last"], **EXACT)


def test_fifty_steps() -> None:
    chain = linear_schedule().respaced(50)
    assert chain.timestep_map[:5].tolist() == [0, 20, 41, 61, 82]
    assert chain.betas[-1] == pytest.approx(0.32980907, abs=5e-9)
    assert linear_schedule().respaced(50, ddim=True).timestep_map.tolist() == list(range(0, 1000, 20))


def test_ties_round_as_in_the_published_chain() -> None:
    """Twenty-one steps: ten strides of 49.95 sum to just under 499.5, which multiplied out would be 499.5 exactly."""
    chain = linear_schedule().respaced(21)
    assert chain.timestep_map[10] == 499
    assert np.all(np.diff(chain.timestep_map) > 0)
