"""What a model makes of a dataset's latents: its noise error over the dataset's bounds, under every interpretation.

Shapes: N samples, C channels, H and W sides of the latent, T diffusion steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dit.console import progress
from dit.diffusion.sampler import Denoiser
from dit.diffusion.schedule import linear_schedule
from dit.doctor.diagnosis import Fit
from dit.doctor.interpretations import (
    AS_IT_IS,
    INTERPRETATIONS,
    STEPS,
    Interpretation,
    labels,
    noise_of,
    noise_per_output,
    reorder,
    signal_and_noise,
    timesteps,
)
from dit.health.bounds import Bounds, Float64
from dit.health.gate import Reading
from dit.health.samples import measure_label_gains
from dit.model.embeddings import position_table
from dit.model.transformer import DiT

_BETTER = 1.5
"""How much smaller the error under another interpretation must be."""
_CLEARLY_BETTER = 3.0
"""The same where that interpretation does not beat bound b."""
_LABEL_Z = 4.0
"""Standard errors by which right labels must be better than wrong ones."""
_ADVICE = "use it in the way it was trained, or train it again"
_FIFTHS = 5
_BATCH = 32
_SEED = 2305
_POSITION_ERROR = 1e-2


@dataclass(frozen=True)
class Errors:
    """A model's squared errors under one interpretation, sample by sample, beside the dataset's bounds there.

    In units of what the model predicts under it: in units of noise, errors of an x0 at the least noisy steps would hide
    all others.
    """

    one: Interpretation
    t_N: Float64
    error_N: Float64
    bound_a_N: Float64
    bound_b_N: Float64

    @property
    def ratio_a(self) -> float:
        """Error over bound a; below 1 the model knows spatial structure."""
        return float(self.error_N.sum() / self.bound_a_N.sum())

    @property
    def ratio_b(self) -> float:
        """Error over bound b, which is that of the best linear denoiser."""
        return float(self.error_N.sum() / self.bound_b_N.sum())

    @property
    def fit(self) -> Fit:
        """The ratios to bound b for people."""
        part_N = (self.t_N * _FIFTHS // STEPS).astype(int)
        chosen = [part_N == number for number in range(_FIFTHS)]
        fifths = tuple(float(self.error_N[rows].sum() / self.bound_b_N[rows].sum()) for rows in chosen if rows.any())
        return Fit(self.one.name, fifths, self.ratio_b)


class LatentProbe:
    """Fixed latents of a dataset with fixed noise and timesteps that cover the chain."""

    def __init__(self, bounds: Bounds, device: torch.device, count: int) -> None:
        self._bounds, self._device = bounds, device
        self.x0_NCHW = torch.from_numpy(bounds.probe_NCHW[:count].astype(np.float32))
        self.y_N = torch.from_numpy(bounds.probe_labels_N[:count])
        n, random = len(self.x0_NCHW), np.random.Generator(np.random.SFC64(_SEED))
        self.t_N = torch.from_numpy(random.permutation(((np.arange(n) + 0.5) / n * STEPS).astype(np.int64)))
        self.noise_NCHW = torch.from_numpy(random.standard_normal(tuple(self.x0_NCHW.shape), dtype=np.float32))

    @torch.inference_mode()
    def errors(self, model: DiT, one: Interpretation = AS_IT_IS) -> Errors:
        """Measure a model under an interpretation."""
        signal_T, noise_T = signal_and_noise(one.chain)
        t = self.t_N.numpy()
        power_T = np.square(signal_T * one.scale)
        bar_T = power_T / (power_T + np.square(noise_T))
        unit_N = np.square(noise_per_output(one.target, signal_T, noise_T))[t]
        own = model.pos_embed.data
        model.pos_embed.data = _positions(model, one)
        try:
            parts = [self._batch(model, one, rows) for rows in torch.split(torch.arange(len(t)), _BATCH)]
        finally:
            model.pos_embed.data = own
        return Errors(
            one=one,
            t_N=t.astype(np.float64),
            error_N=torch.cat(parts).double().numpy() / unit_N,
            bound_a_N=self._bounds.errors_T("a", bar_T)[t] / unit_N,
            bound_b_N=self._bounds.errors_T("b", bar_T)[t] / unit_N,
        )

    def label_gains(self, model: Denoiser, one: Interpretation) -> Float64 | None:
        """Return each latent's loss with wrong labels minus that with its own, read as `one`; None without classes."""

        def denoise(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return model(x, t, labels(one, y, len(self._bounds.class_counts_K)))

        return measure_label_gains(denoise, self._bounds, linear_schedule(), len(self.x0_NCHW), self._device)

    def _batch(self, model: DiT, one: Interpretation, rows: Tensor) -> Tensor:
        t, patch = self.t_N[rows], model.spec.patch
        factors = (torch.from_numpy(each)[t].float()[:, None, None, None] for each in signal_and_noise(one.chain))
        signal, level = (each.to(self._device) for each in factors)
        noise = self.noise_NCHW[rows].to(self._device)
        x = signal * one.scale * self.x0_NCHW[rows].to(self._device) + level * noise
        y = labels(one, self.y_N[rows], model.inputs.classes).to(self._device)
        given = reorder(x, patch) if one.patches_in else x
        output = model(given, timesteps(one, t).to(self._device), y)
        output = reorder(output, patch) if one.patches_out else output
        predicted = noise_of(one.target, output.chunk(2, dim=1)[0], x, signal, level)
        return (noise - predicted).square().mean(dim=(1, 2, 3)).cpu()


def interpretations(model: DiT, channels: int) -> Sequence[Interpretation]:
    """The interpretations that can differ from the model as it is."""
    table = position_table(model.spec.hidden, model.inputs.size // model.spec.patch)
    own = float((model.pos_embed[0].float().cpu() - table).abs().max()) < _POSITION_ERROR
    return [
        one
        for one in INTERPRETATIONS
        if not (one.patches_in and channels == 1) and not (one.positions == "formula" and own)
    ]


def measure_all(probe: LatentProbe, model: DiT) -> list[Errors]:
    """Measure a model as it is, and under every other interpretation."""
    ways = (AS_IT_IS, *interpretations(model, model.inputs.channels))
    measured = []
    with progress("interpretations", len(ways), "readings") as bar:
        for one in ways:
            measured.append(probe.errors(model, one))
            bar.advance(1)
    return measured


def judge(measured: Sequence[Errors], *, early: bool, rounded: bool) -> Reading:
    """Return the cause that the best interpretation names, or that the model predicts noise as it is used.

    `early`: the model is too young, or its EMA too far behind, to beat bound a. `rounded`: all its values are exact in
    a low precision.
    """
    as_it_is, *others = measured
    value, bound = as_it_is.ratio_b, "less than 1.5 times that of any other interpretation, and below bound a"
    fitting = [one for one in others if _fits(one, value)]
    if fitting:
        best = min(fitting, key=lambda one: one.ratio_b)
        cause = f"{best.one.cause}: read so, its error is {best.ratio_b:.2f} of bound b instead of {value:.2f}"
        return Reading(value, bound, "stop", cause, "", _ADVICE)
    if as_it_is.ratio_a < 1:
        return Reading(value, bound)
    if rounded and not early:
        cause = "the weights were kept in low precision while training, which rounds small updates to nothing"
        return Reading(value, bound, "stop", cause, "another dataset", "average in float32; sample the raw weights")
    return Reading(
        value,
        bound,
        "warn" if early else "stop",
        f"the model knows no spatial structure of this dataset: its error is {as_it_is.ratio_a:.2f} of bound a",
        "another dataset, an interpretation that is not tried, an EMA in low precision, a training that is too short",
        "check that the model was trained on this dataset, and look at the training's loss",
    )


def _fits(one: Errors, value: float) -> bool:
    """Whether an interpretation explains an error of `value` over bound b.

    A model that is only bad predicts a little less badly under another noise schedule, so that is not enough.
    """
    return one.ratio_a < 1 and one.ratio_b * (_BETTER if one.ratio_b < 1 else _CLEARLY_BETTER) <= value


def compare(average: Errors, raw: Errors, *, early: bool) -> Reading:
    """Check that the EMA predicts noise as well as the weights that it averages."""
    ratio, bound = average.ratio_b / raw.ratio_b, f"at most {_BETTER:g} times the raw weights' error"
    if ratio <= _BETTER:
        return Reading(ratio, bound)
    return Reading(
        ratio,
        bound,
        "warn" if early else "stop",
        "the EMA predicts noise worse than the weights that it averages",
        "an EMA that is kept in low precision, updated too seldom, or reset",
        "sample the raw weights, and average in float32",
    )


def judge_labels(probe: LatentProbe, model: Denoiser) -> Reading | None:
    """Check that a latent's own label predicts it better than others, or name the labels that do; None without classes.

    Unlike `judge`, at timesteps where labels matter, because they change the error little.
    """
    bound = f"above {_LABEL_Z:g} standard errors, or of no other numbering"
    own = probe.label_gains(model, AS_IT_IS)
    if own is None or len(own) < 2:
        return None
    value = _score(own)
    for one in INTERPRETATIONS if value <= _LABEL_Z else ():
        gains = probe.label_gains(model, one) if one.label_shift else None
        if gains is not None and _score(gains) > _LABEL_Z and gains.mean() > 2 * own.mean():
            return Reading(value, bound, "stop", f"{one.cause}: read so, they score {_score(gains):.1f}", "", _ADVICE)
    return Reading(value, bound)


def _score(gains_N: Float64) -> float:
    """Mean in standard errors."""
    return float(gains_N.mean() / max(gains_N.std(ddof=1) / math.sqrt(len(gains_N)), 1e-12))


def _positions(model: DiT, one: Interpretation) -> Tensor:
    if one.positions == "own":
        return model.pos_embed.data
    side = model.inputs.size // model.spec.patch
    table = position_table(model.spec.hidden, side)
    if one.positions == "swapped":
        table = table.view(side, side, -1).transpose(0, 1).reshape(table.shape)
    return table[None].to(model.pos_embed)
