"""What a model makes of noise: its prediction at the last step of the chain, and a few samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dit.console import progress
from dit.diffusion.sampler import sample
from dit.diffusion.schedule import linear_schedule
from dit.doctor.interpretations import INTERPRETATIONS, STEPS, Interpretation, reorder, timesteps
from dit.doctor.subject import Subject
from dit.health.bounds import Bounds
from dit.health.gate import Reading
from dit.health.learning import pure_noise
from dit.health.noise_probe import look_at_noise
from dit.health.recipe import EMA_SHARE
from dit.health.samples import SamplesView, samples
from dit.model.transformer import DiT
from dit.study.config import SamplingConfig

SAMPLES, SAMPLING_STEPS = 16, 25
# Latents of Stable Diffusion's autoencoders have 0.7 to 1.1 per channel, pixels in [-1, 1] at most 1; latents scaled
# twice have 0.2, samples of a model that predicts no noise 200.
_LEAST_STD, _MOST_STD = 0.3, 2.0
_SEED = 16


def predicts_noise(subject: Subject, model: DiT, *, lagging: bool) -> Reading:
    """Check 8, and where it fails, the interpretation under which it would not. `lagging`: an EMA of little weight."""
    tau = subject.steps_until(3 / (subject.learning_rate * subject.spec.hidden)) / 3
    step = 0 if lagging else subject.step if subject.step is not None else 10**9
    device = model.pos_embed.device

    def read(one: Interpretation | None) -> Reading:
        def denoise(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            if one is None:
                plain: Tensor = model(x, t, y)
                return plain
            given = reorder(x, subject.spec.patch) if one.patches_in else x
            output: Tensor = model(given, timesteps(one, t), y)
            return reorder(output, subject.spec.patch) if one.patches_out else output

        return pure_noise(look_at_noise(denoise, subject.spec, subject.inputs, device, step=step, tau=tau))

    found = read(None)
    if found.verdict == "ok":
        return found
    plain = [one for one in INTERPRETATIONS if one.target == "noise" and one.positions == "own" and not one.label_shift]
    fitting = [one for one in plain if one.scale == 1 and one.chain == "linear" and read(one).verdict == "ok"]
    if len(fitting) == 1 and found.value is not None:
        cause = f"{fitting[0].cause}: read so, it predicts the noise that it is given"
        return replace(found, cause=cause, alike="", advice="use it in the way it was trained, or train it again")
    return found


@torch.inference_mode()
def draw(subject: Subject, model: DiT, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return 16 latents that the model samples, float32 [N, C, H, W]; values may be not finite."""
    device, inputs = model.pos_embed.device, subject.inputs
    random = np.random.Generator(np.random.SFC64(_SEED))
    shape = (SAMPLES, inputs.channels, inputs.size, inputs.size)

    def noise(_: int) -> Tensor:
        return torch.from_numpy(random.standard_normal(shape, dtype=np.float32)).to(device)

    labels = torch.arange(SAMPLES) * max(1, inputs.classes // SAMPLES) % inputs.classes
    config = SamplingConfig(steps=SAMPLING_STEPS)
    with progress(f"{SAMPLES} samples, {name}", SAMPLING_STEPS, "steps") as bar:
        latents = sample(model, linear_schedule(STEPS), noise, labels, config, inputs.classes, lambda: bar.advance(1))
    return np.asarray(latents.cpu().numpy())


def judge_samples(
    latents_NCHW: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    bounds: Bounds | None,
    ratio_b: float | None,
    initial_share: float,
) -> Reading:
    """Compare samples with the dataset (check 13), or without one, their size with that of any latents."""
    if not bool(np.isfinite(latents_NCHW).all()):
        return Reading(None, "finite", "stop", "the samples are not finite", "", "look at the weights' largest values")
    if bounds is not None:
        return samples(SamplesView(bounds, latents_NCHW, ratio_b, initial_share))
    std = float(latents_NCHW.std(axis=(0, 2, 3)).mean())
    bound = f"{_LEAST_STD:g} to {_MOST_STD:g}"
    if _LEAST_STD <= std <= _MOST_STD:
        return Reading(std, bound)
    large = std > _MOST_STD
    return Reading(
        std,
        bound,
        "warn" if initial_share > EMA_SHARE else "stop",
        "the samples are noise: their standard deviation is far above that of any latents"
        if large
        else "the samples are nearly constant: their standard deviation is far below that of any latents",
        "an EMA that was never updated, another timestep scale or target, unscaled latents"
        if large
        else "latents to which the scale factor was applied twice, lost positions",
        "give --dataset, which names the cause",
    )
