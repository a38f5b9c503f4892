"""What stands below a plan's tables. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dit.console.formatting import format_bytes, format_count, format_hours
from dit.planning import stages
from dit.planning.accelerators import CPU, GIB, TERA, USABLE, Accelerator, wall_hours
from dit.study.config import StudyConfig

if TYPE_CHECKING:
    from dit.planning.cost import VariantPlan


def plan_notes(
    config: StudyConfig, device: Accelerator, sampling_peak: float, variants: Sequence[VariantPlan]
) -> tuple[str, ...]:
    """What a reader of a plan has to know: the machine, what is counted, what is not, and what does not fit."""
    if device.name == CPU:
        rate = config.plan.utilisation * device.peak / 1e9
        notes = [
            f"{config.plan.count} CPU cores at {rate:.3g} GFLOP/s each, a variant on each core at a time. No GPU is"
            " needed, so there are no GPU-hours."
        ]
    else:
        notes = [
            f"{config.plan.count} x {device.name} of {device.memory / GIB:g} GiB at {config.plan.utilisation:.0%} of"
            f" their peak: {device.peak / TERA:g} TFLOP/s in {config.train.precision} for training,"
            f" {sampling_peak / TERA:g} in {config.sampling.precision} for sampling."
        ]
    checkpoints, seeds = len(config.evaluation.at_steps), len(config.train_seeds)
    each = "variant" if seeds == 1 else "training"
    notes += [
        "Gflops count a multiply-accumulate as one, as the paper does; FLOPs count it as two.",
        f"Sampling, decoding and evaluation are for {checkpoints} checkpoint{'s' * (checkpoints > 1)} per {each}, of"
        f" {format_count(config.sampling.num_samples)} images each. Reading images, starting processes and waiting for"
        " the store are not included.",
    ]
    if seeds > 1:
        notes.append(f"Compute, time and disk of a variant are those of its {seeds} trainings, one per seed.")
    if stages.image_count(config) is None:
        million = stages.encoding_macs(config, 1_000_000)
        took = format_hours(wall_hours(config, million, stages.codec_precision(config)))
        notes.append(
            "The number of images is not known before preparation, so its time and the shards' disk are not included."
            + (f" A million images take the autoencoder {took}." if million else "")
        )
    for variant in (variant for variant in variants if not variant.fits):
        largest = variant.largest_micro_batch
        advice = "set fit.activation_checkpointing=true or choose a larger accelerator"
        notes.append(
            f"{variant.variant} does not fit: micro_batch={variant.micro_batch} needs"
            f" {format_bytes(variant.memory.total)}, but {format_bytes(USABLE * device.memory)} are usable;"
            f" {f'set fit.micro_batch={largest}' if largest else advice}."
        )
    return tuple(notes)
