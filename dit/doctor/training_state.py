"""What a training checkpoint shows about its training: the optimizer's steps, the labels it saw, the EMA.

Every check returns None where it has nothing to look at.
"""

from __future__ import annotations

import math

import torch

from dit.doctor.subject import Subject, Weights
from dit.doctor.weights import HEAD, starts_at_zero
from dit.health.gate import Reading
from dit.health.learning import FLOAT_ERROR
from dit.health.recipe import EMA_SHARE

_LABELS = "y_embedder.embedding_table.weight"
_FEWEST_STEPS = 20
"""Steps from which the ratio of EMA and weights is bounded."""
_LONG_TRAINING = 0.95
"""Largest lower bound of that ratio: in a long training the weights' own noise keeps them away from their average."""
_MOST_CLASSES_UNSEEN = 0.1


def optimizer_steps(subject: Subject) -> Reading | None:
    """Compare the optimizer's count of steps with the step that the checkpoint claims."""
    counts = [int(tensor) for name, tensor in subject.optimizer.items() if name.startswith("step.")]
    if not counts or subject.step is None:
        return None
    fewest, bound = min(counts), f"{subject.step} steps, as claimed"
    if fewest == max(counts) == subject.step:
        return Reading(float(fewest), bound)
    cause = f"the optimizer counts {fewest} steps: its state was not restored after a restart"
    if fewest > subject.step:
        cause = f"the optimizer counts {fewest} steps, more than the checkpoint claims: steps were counted from 0 again"
    elif max(counts) > fewest:
        cause = f"the optimizer counts {fewest} to {max(counts)} steps: some parameters were not always trained"
    return Reading(
        float(fewest), bound, "stop", cause, "a claimed step that is wrong", "check what a restart loads, and --step"
    )


def untrained_head(subject: Subject) -> Reading | None:
    """Check that the optimizer has moved the head."""
    moment = subject.optimizer.get(f"exp_avg_sq.{HEAD}")
    if not subject.optimizer:
        return None
    bound = "a second moment of the head above 0"
    if moment is not None and bool(moment.any()):
        return Reading(float(moment.max()), bound)
    return Reading(
        0.0,
        bound,
        "stop",
        "the head (final_layer.linear) is not trained: the optimizer has no gradient of it",
        "",
        "check requires_grad and the parameters given to the optimizer",
    )


def labels(subject: Subject) -> Reading | None:
    """Check which rows of the label table were ever trained: by second moments, or by weights that left their EMA."""
    rows = _trained_rows(subject)
    if rows is None:
        return None
    classes, null = rows[:-1], bool(rows[-1])
    seen, bound = int(classes.sum()), f"all of {len(classes)} classes, and the row for no label"
    value = float(seen)
    if len(classes) > 1 and seen == 0:
        cause = "no class was ever trained: labels are always dropped"
        return Reading(value, bound, "stop", cause, "labels that are all null", "check how labels reach the model")
    if len(classes) > 1 and seen == 1:
        cause = f"only class {int(classes.nonzero()[0])} was trained"
        return Reading(value, bound, "stop", cause, "data of one class", "check the labels of the training data")
    if not null:
        cause = "the row for no label was never trained: labels are never dropped, so guidance does not work"
        return Reading(value, bound, "warn", cause, "", "train with a label_drop of 0.1, or sample at cfg_scale 1")
    if seen < (1 - _MOST_CLASSES_UNSEEN) * len(classes):
        cause = f"{len(classes) - seen} classes were never trained"
        return Reading(value, bound, "warn", cause, "a training of a few steps", "check the data's labels")
    return Reading(value, bound)


def _trained_rows(subject: Subject) -> torch.Tensor | None:
    """Whether each row of the label table has a gradient behind it, bool [classes + 1]."""
    moments = subject.optimizer.get(f"exp_avg_sq.{_LABELS}")
    if moments is not None:
        return moments.flatten(1).any(dim=1)
    if subject.raw is None or subject.ema is None or _same(subject.raw, subject.ema):
        return None
    raw, ema = subject.raw[_LABELS].float(), subject.ema[_LABELS].float()
    # A row that was never trained equals its average, up to the rounding of as many float32 updates.
    count = 1 / (1 - subject.decay) if subject.decay and subject.decay < 1 else 1e4
    limit = 4 * FLOAT_ERROR * count * raw.abs().amax(dim=1)
    return (raw - ema).abs().amax(dim=1) > limit


def ema(subject: Subject) -> Reading | None:
    """Compare the EMA with the weights: r = <EMA, weights> / <weights, weights> over tensors that start at 0.

    If the weights jump to their value at once, the EMA of decay d has the share 1 - d^n of them after n steps; if they
    grow linearly, 1 - d (1 - d^n) / (n (1 - d)).
    """
    raw, average, n, d = subject.raw, subject.ema, subject.step, subject.decay
    if raw is None or average is None or n is None or d is None or n < _FEWEST_STEPS:
        return None
    low, high = min(_least_share(d, n), _LONG_TRAINING), 1 - d**n
    ratio, bound = ratio_of(average, raw), f"{low:.3f} to {high:.3f} after {n} updates of decay {d:g}"
    if _same(raw, average):
        cause = "the EMA equals the weights: it is a copy, not an average"
        return Reading(ratio, bound, "stop", cause, "a decay of 0", "check the decay and what the EMA is loaded from")
    if ratio < low:
        return Reading(ratio, bound, "stop", *_lagging(ratio, d, n))
    if subject.initial_share > EMA_SHARE:
        cause = f"the EMA still holds {subject.initial_share:.0%} of the initial weights"
        advice = "sample the raw weights, train longer, or choose a lower decay"
        return Reading(ratio, bound, "warn", cause, "", advice)
    return Reading(ratio, bound)


def ratio_of(average: Weights, raw: Weights) -> float:
    """Return <average, raw> / <raw, raw> over tensors that start at 0; 0 if these are 0."""
    both = squares = 0.0
    for name in filter(starts_at_zero, raw):
        one, other = raw[name].double().flatten(), average[name].double().flatten()
        both += float(one @ other)
        squares += float(one @ one)
    return both / squares if squares else 0.0


def _least_share(decay: float, updates: float) -> float:
    return 1 - decay * (1 - decay**updates) / (updates * (1 - decay)) if decay < 1 else 0.0


def _lagging(ratio: float, decay: float, n: int) -> tuple[str, str, str]:
    """Cause, what looks the same, and advice, for an EMA that is too far behind."""
    if ratio <= 1e-3:
        return (
            "the EMA was never updated: it has nothing of the trained weights",
            "",
            "sample the raw weights, and update the EMA after every optimizer step",
        )
    fewest = math.log(max(1 - ratio, 1e-12)) / math.log(decay)
    low, high = fewest, float(n)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _least_share(decay, middle) < ratio else (low, middle)
    return (
        f"the EMA does not follow the weights: {fewest:.0f} to {high:.0f} updates explain it instead of {n}, one in"
        f" {n / high:.1f} to {n / fewest:.1f} steps",
        "a decay that is too high, or an EMA that is kept in low precision or began late",
        "update it once per optimizer step, in float32, with the recipe's decay",
    )


def _same(one: Weights, other: Weights) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)
