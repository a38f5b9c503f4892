"""Examines a checkpoint with all that is at hand: the file, noise, and a dataset's latents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from dit.doctor.diagnosis import Diagnosis, Finding, Fit
from dit.doctor.latents import LatentProbe, compare, judge, judge_labels, measure_all
from dit.doctor.noise import draw, judge_samples, predicts_noise
from dit.doctor.subject import Subject, Weights
from dit.doctor.training_state import ema, labels, optimizer_steps, untrained_head
from dit.doctor.weights import HEAD, finite, low_precision, positions, zero_layers
from dit.health.bounds import Bounds
from dit.health.gate import Reading
from dit.health.recipe import EMA_SHARE
from dit.model.transformer import DiT
from dit.runtime.device import matmul_precision

LATENTS = 256


def examine(
    subject: Subject, bounds: Bounds | None = None, *, run_model: bool = True, latents: int = LATENTS
) -> Diagnosis:
    """Return all findings. Without `run_model`, only the file is read; `latents` limits the work on the dataset."""
    findings = list(_file(subject))
    broken = any(found.check == "finite" and found.reading.verdict == "stop" for found in findings)
    added, fits = _models(subject, bounds, findings, latents) if run_model and not broken else ([], [])
    missing = [*_not_run(run_model, broken, bounds), *_not_in_file(subject)]
    return Diagnosis(subject.name, (*findings, *added), tuple(fits), subject.notes, tuple(missing))


def _not_run(run_model: bool, broken: bool, bounds: Bounds | None) -> Iterator[str]:
    if not run_model:
        yield "what the model makes of noise and latents (run without --file-only)"
    elif broken:
        yield "what the model makes of noise and latents (its weights are not finite)"
    elif bounds is None:
        yield "what the model makes of latents (give --dataset)"


def _not_in_file(subject: Subject) -> Iterator[str]:
    if subject.raw is None or subject.ema is None:
        yield "the EMA against the weights (give the training's checkpoint, which has both)"
    elif subject.step is None:
        yield "the EMA against the weights (give --step)"
    elif subject.decay is None:
        yield "the EMA against the weights (give --ema-decay)"
    if not subject.optimizer:
        yield "which steps and labels were trained (give the training's checkpoint, which has its optimizer)"


def _file(subject: Subject) -> Iterator[Finding]:
    """The checks of the file alone, the most specific first."""
    models = subject.models
    for name, weights in models.items():
        yield Finding("finite", name, finite(weights))
    for name, weights in models.items():
        yield Finding("positions", name, positions(weights, subject.spec, subject.inputs))
    trained = subject.raw is not None and bool(subject.raw[HEAD].any())
    yield from _made("head", "optimizer", untrained_head(subject))
    for name, weights in models.items():
        reading = zero_layers(weights, ema_of_trained=name == "EMA" and trained)
        yield Finding("layers", name, reading)
    for name, weights in models.items():
        others = subject.raw if name == "EMA" else subject.ema
        yield Finding("precision", name, low_precision(weights, others=others))
    yield from _made("ema", "EMA", ema(subject))
    yield from _made("steps", "optimizer", optimizer_steps(subject))
    yield from _made("labels", "optimizer" if subject.optimizer else "EMA", labels(subject))


def _made(check: str, weights: str, reading: Reading | None) -> Iterator[Finding]:
    if reading is not None:
        yield Finding(check, weights, reading)


def _models(
    subject: Subject, bounds: Bounds | None, found: Sequence[Finding], latents: int
) -> tuple[list[Finding], list[Fit]]:
    """The checks that run the model, for each set of weights: on latents, on noise, and of samples."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    matmul_precision("fp32", device)
    models = {name: _load(subject, weights, device) for name, weights in subject.models.items()}
    on_latents: list[Finding] = []
    fits: list[Fit] = []
    ratios: dict[str, float] = {}
    if bounds is not None:
        on_latents, fits, ratios = _on_latents(subject, models, LatentProbe(bounds, device, latents), found)
    on_noise: list[Finding] = []
    for name, model in models.items():
        share = subject.initial_share if name == "EMA" else 0.0
        on_noise.append(Finding("pure-noise", name, predicts_noise(subject, model, lagging=share > EMA_SHARE)))
        drawn = draw(subject, model, name)
        on_noise.append(Finding("samples", name, judge_samples(drawn, bounds, ratios.get(name), share)))
    return on_latents + on_noise, fits


def _on_latents(
    subject: Subject, models: Mapping[str, DiT], probe: LatentProbe, found: Sequence[Finding]
) -> tuple[list[Finding], list[Fit], dict[str, float]]:
    """Findings, the errors under every interpretation, and each set of weights' error as it is, over bound b."""
    sick = {one.weights for one in found if one.reading.verdict == "stop"}
    # All interpretations of one set of weights are enough: the EMA, unless the file shows that it is broken.
    chosen = next((name for name in models if name not in sick), next(iter(models)))
    measured = measure_all(probe, models[chosen])
    errors = {name: measured[0] if name == chosen else probe.errors(model) for name, model in models.items()}
    lagging = subject.initial_share > EMA_SHARE
    young = subject.step is not None and subject.step < 50 + subject.steps_until(
        6 / (subject.learning_rate * subject.spec.hidden)
    )
    rounded = any(one.check == "precision" and one.weights == chosen and one.reading.cause for one in found)
    reading = judge(measured, early=young or (chosen == "EMA" and lagging), rounded=rounded)
    findings = [Finding("interpretation", chosen, reading)]
    if reading.verdict == "ok":
        findings += _made("numbering", chosen, judge_labels(probe, models[chosen]))
    if len(errors) > 1:
        findings.append(Finding("average", "EMA", compare(errors["EMA"], errors["raw"], early=lagging)))
    return findings, [one.fit for one in measured], {name: one.ratio_b for name, one in errors.items()}


def _load(subject: Subject, weights: Weights, device: torch.device) -> DiT:
    with torch.device("meta"):
        model = DiT(subject.spec, subject.inputs)
    tensors = {name: tensor.to(device, torch.float32) for name, tensor in weights.items()}
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)
