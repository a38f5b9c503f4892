"""What the paper's numbers say about a study in its setting. Torch-free.

prior = published(config)  # or a sentence: why the paper's numbers do not hold for this study
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from dit.planning.prior import Curve, Prior, Range, Spread, pooled
from dit.study.config import SamplingConfig, StudyConfig, TrainConfig
from dit.study.paper import Paper, on_imagenet, paper

IMAGES = 50_000
"""Images behind each published FID."""
FINAL = 400_000
"""Step of the paper's Table 4, the end of the curves' range: a power law through them fails at 7 million steps."""
_BETTER, _WORSE = "DiT-XL/2", "DiT-L/2"
"""The models with a published curve."""
_RECIPE = (
    "global_batch",
    "learning_rate",
    "warmup_steps",
    "rate",
    "clip_norm",
    "betas",
    "weight_decay",
    "ema_decay",
    "schedule",
)
_PROTOCOL = ("sampler", "steps", "cfg_scale", "weights")


def published(config: StudyConfig) -> Prior | str:
    """What the paper's numbers say about a study; a sentence with the reason if they do not hold for it."""
    reason = _differs(config)
    if reason:
        return reason
    source, images = paper(), config.sampling.num_samples
    curves = {name: _curve(source, name) for name in config.variants if name in source.models}
    log_sd, degrees = pooled(list(source.seed_variance_400k.values()))
    repeats = next(iter(sorted(source.seed_variance_400k.items(), key=lambda item: -len(item[1]))))
    sampling_sd, sampling_degrees = pooled([repeats[1]])
    few, many = (source.fid_by_images[count] for count in (10_000, IMAGES))
    return Prior(
        curves=curves,
        seeds=Spread(log_sd, degrees, IMAGES, "published trainings with another seed or framework at 400,000 steps"),
        sampling=Spread(
            sampling_sd, sampling_degrees, IMAGES, f"at most the spread of {len(repeats[1])} published {repeats[0]}"
        ),
        bias=(few - many) / (1 / 10_000 - 1 / IMAGES),
        noise_floor=source.noise_floor,
        source=(
            "Expected FID, ADM's evaluator: Peebles & Xie 2023, Table 4, and curves of their DiT-L/2 and DiT-XL/2 from"
            " 50,000 to 400,000 steps."
        ),
        notes=_notes(config, curves, images),
        limits=_limits(source),
    )


def _differs(config: StudyConfig) -> str:
    """Why the paper's numbers do not hold for a study; empty if they do."""
    if not on_imagenet(config) or not any(name in paper().models for name in config.variants):
        return "The paper's numbers are those of DiT models on ImageNet"
    own = {"dataset.image_size": (config.dataset.image_size, 256)}
    own |= {f"train.{key}": (getattr(config.train, key), TrainConfig.model_fields[key].default) for key in _RECIPE}
    sampling, usual = config.sampling, SamplingConfig()
    own |= {f"sampling.{key}": (getattr(sampling, key), getattr(usual, key)) for key in _PROTOCOL}
    other = [f"{key}={value} instead of {expected}" for key, (value, expected) in own.items() if value != expected]
    return f"The paper's numbers are of another recipe: this study has {', '.join(other)}" if other else ""


def _notes(config: StudyConfig, curves: dict[str, Curve], images: int) -> tuple[str, ...]:
    notes = []
    guessed = [name for name in curves if name not in paper().curves]
    if guessed:
        notes.append(
            f"No curve of {', '.join(guessed)} is published, only the FID at 400,000 steps: a range is given, from that"
            " FID and both curves (docs/plan.md)."
        )
    unknown = [name for name in config.variants if name not in curves]
    if unknown:
        notes.append(f"Nothing is published about {', '.join(unknown)}.")
    if images < IMAGES:
        notes.append(f"FID of {images:,} images is larger than that of {IMAGES:,}: the difference is included.")
    return tuple(notes)


def _limits(source: Paper) -> str:
    """By how much a power law missed the published curves beyond the points that it was drawn through."""
    missed = [law_error(curve, (50_000, 100_000), FINAL) for curve in source.curves.values()]
    longest = max(source.curves[_BETTER])
    further = law_error(source.curves[_BETTER], (50_000, FINAL), longest)
    return (
        f"A power law through 50,000 and 100,000 steps misses the published 400,000 by {min(missed):.0%} to"
        f" {max(missed):.0%}; one through 50,000 and 400,000 is {-further:.0%} too low at {longest:,}."
    )


def law_error(curve: Mapping[int, float], through: tuple[int, int], at: int) -> float:
    """Relative error at a step of the power law through two points of a curve."""
    (first, last) = through
    slope = math.log(curve[last] / curve[first]) / math.log(last / first)
    return curve[last] * math.pow(at / last, slope) / curve[at] - 1


def _curve(source: Paper, name: str) -> Curve:
    """A published curve on the scale of Table 4; for other models a range that the two curves give."""
    final = source.models[name].fid_400k
    if name in source.curves:
        own = source.curves[name]
        scaled = [(step, own[step] * final / own[FINAL]) for step in sorted(own) if step <= FINAL]
        return Curve([(step, Range(value, value)) for step, value in scaled])
    better, worse = source.curves[_BETTER], source.curves[_WORSE]
    scale = source.models[_WORSE].fid_400k / worse[FINAL]
    apart = math.log(final / source.models[_WORSE].fid_400k)
    points = []
    for step in sorted(set(better) & set(worse)):
        # Lower end: at each step, log FID is linear in log FID at 400K, through both curves. Upper end: the model's
        # FID falls as steeply as that of DiT-L/2, which is steeper than what a smaller model's does.
        slope = math.log(worse[step] / better[step]) / math.log(worse[FINAL] / better[FINAL])
        low = max(worse[step] * scale * math.exp(slope * apart), final)
        high = min(final * worse[step] / worse[FINAL], source.noise_floor)
        points.append((step, Range(min(low, high), max(low, high))))
    return Curve(points)
