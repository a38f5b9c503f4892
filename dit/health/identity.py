"""Check 10, `identity`: whether loaded weights are those of the checkpoint, by numbers that only they give.

Shapes: N samples, C channels, H and W sides of the latent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dit.diffusion.losses import diffuse
from dit.diffusion.sampler import Denoiser
from dit.diffusion.schedule import Schedule
from dit.health.bounds import Bounds
from dit.health.gate import Reading
from dit.study.records import Probe

SAMPLES = 16
GROUPS = ("embedders", "blocks", "modulations", "head")
_SEED = 2305
_NORM_ERROR = 1e-4
"""Largest relative difference of a norm: far above float32's rounding."""


@dataclass(frozen=True)
class ProbeBatch:
    """Fixed samples with fixed noise and timesteps that cover the chain."""

    x_NCHW: Tensor
    t_N: Tensor
    y_N: Tensor
    noise_NCHW: Tensor

    @classmethod
    def make(cls, bounds: Bounds, schedule: Schedule, device: torch.device) -> ProbeBatch:
        """Noise the dataset's first samples, at the middles of equal parts of the chain."""
        x0 = torch.from_numpy(bounds.probe_NCHW[:SAMPLES].astype(np.float32))
        n = len(x0)
        t = torch.from_numpy(((np.arange(n) + 0.5) / n * len(schedule)).astype(np.int64))
        random = np.random.Generator(np.random.SFC64(_SEED))
        noise = torch.from_numpy(random.standard_normal(tuple(x0.shape), dtype=np.float32))
        x = diffuse(schedule, x0, t, noise)
        y = torch.from_numpy(bounds.probe_labels_N[:n])
        return cls(x.to(device), t.to(device), y.to(device), noise.to(device))

    @torch.no_grad()
    def loss(self, denoise: Denoiser) -> float:
        """Return the squared noise error of a model."""
        epsilon = denoise(self.x_NCHW, self.t_N, self.y_N).float().chunk(2, dim=1)[0]
        return float((self.noise_NCHW - epsilon).square().mean())


@torch.no_grad()
def group_norms(tensors: Mapping[str, Tensor]) -> tuple[float, ...]:
    """Return the norms of embedders, blocks, modulations and head."""
    squares = dict.fromkeys(GROUPS, 0.0)
    totals: dict[str, list[Tensor]] = {group: [] for group in GROUPS}
    for name, tensor in tensors.items():
        totals[_group(name)].append(torch.linalg.vector_norm(tensor, dtype=torch.float64))
    for group, norms in totals.items():
        if norms:
            squares[group] = float(torch.linalg.vector_norm(torch.stack(norms)))
    return tuple(squares[group] for group in GROUPS)


def _group(name: str) -> str:
    if "adaLN_modulation" in name:
        return "modulations"
    if name.startswith("final_layer"):
        return "head"
    return "blocks" if name.startswith("blocks") else "embedders"


@dataclass(frozen=True)
class LoadedView:
    """A checkpoint's probe, and what the loaded weights give."""

    recorded: Probe
    raw_loss: float | None = None
    ema_loss: float | None = None
    raw_norms: tuple[float, ...] | None = None
    ema_norms: tuple[float, ...] | None = None
    optimizer_steps: int | None = None
    """Fewest steps in the optimizer's state; None where no optimizer is loaded."""
    tolerance: float = 1e-4
    """Largest relative difference of a loss: the rounding error of the coarser of both precisions."""

    @classmethod
    def of(cls, recorded: Probe, found: Probe | None, tolerance: float) -> LoadedView:
        """Compare all numbers of two probes; without a second one, none."""
        if found is None:
            return cls(recorded)
        return cls(
            recorded,
            found.raw_loss,
            found.ema_loss,
            found.raw_norms,
            found.ema_norms,
            found.optimizer_steps,
            tolerance,
        )


def loss_tolerance(*precisions: str) -> float:
    """Return the largest relative difference of a probe's loss between these precisions of matrix products."""
    # A product's relative rounding error is 2^-9 in bf16 and 2^-11 in tf32, and adds up over the layers.
    return max({"bf16": 2e-2, "tf32": 5e-3}.get(precision, 1e-4) for precision in precisions)


def identity(view: LoadedView) -> Reading | None:
    """Compare what the loaded weights give with the checkpoint's record; None if it has nothing to compare."""
    bound = f"within {view.tolerance:g} of the checkpoint's"
    if view.optimizer_steps is not None and view.optimizer_steps != view.recorded.optimizer_steps:
        return Reading(
            float(view.optimizer_steps),
            f"{view.recorded.optimizer_steps} steps in the optimizer",
            "stop",
            "the optimizer's state is not that of the checkpoint: Adam starts again",
            advice="restore the optimizer's state, or continue from an intact checkpoint",
        )
    found = {
        "the raw weights' norms": _differs(view.raw_norms, view.recorded.raw_norms),
        "the EMA's norms": _differs(view.ema_norms, view.recorded.ema_norms),
        "the raw weights' loss on the probe": _differs(view.raw_loss, view.recorded.raw_loss),
        "the EMA's loss on the probe": _differs(view.ema_loss, view.recorded.ema_loss),
    }
    # Norms do not depend on the precision of products.
    allowed = {name: _NORM_ERROR if "norms" in name else view.tolerance for name in found}
    known = {name: difference for name, difference in found.items() if difference is not None}
    if not known:
        return None
    name = max(known, key=lambda key: known[key] / allowed[key])
    if known[name] <= allowed[name]:
        return Reading(known[name], bound)
    values = {"the raw weights' loss on the probe": view.raw_loss, "the EMA's loss on the probe": view.ema_loss}
    loss = values.get(name)
    unloaded = loss is not None and abs(loss - 1) < 0.1
    cause = f"{name} differ from the checkpoint's: the loaded model is not the one that was saved"
    if unloaded:
        cause = f"{name} is that of an untrained model: the weights were not loaded"
    return Reading(
        known[name],
        bound,
        "stop",
        cause,
        "weights of another step, an EMA that was reset, other inputs (timestep, label, patch order) or a lower"
        " precision",
        "compare how the model is built, loaded and called with how it was trained",
    )


def _differs(value: float | tuple[float, ...] | None, recorded: float | tuple[float, ...]) -> float | None:
    """Return the largest relative difference; None if there is no value."""
    if value is None:
        return None
    ours = value if isinstance(value, tuple) else (value,)
    theirs = recorded if isinstance(recorded, tuple) else (recorded,)
    return max(map(_relative, ours, theirs))


def _relative(mine: float, other: float) -> float:
    # Numbers that are not finite are the finding of another check.
    if mine == other or (math.isnan(mine) and math.isnan(other)):
        return 0.0
    return abs(mine - other) / max(abs(other), 1e-6) if math.isfinite(mine) and math.isfinite(other) else math.inf
