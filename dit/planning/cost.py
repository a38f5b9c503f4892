"""The cost of a study: compute, memory and hours of every variant, from its shape alone. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dit.errors import ConfigError
from dit.planning import stages
from dit.planning.accelerators import CPU, GIB, USABLE, Accelerator, accelerator, machine, wall_hours
from dit.planning.notes import plan_notes
from dit.planning.stages import Disk
from dit.study.config import FitConfig, StudyConfig
from dit.study.fields import Precision
from dit.study.variants import MLP_RATIO, InputSpec, ModelSpec

BACKWARD = 3
"""Cost of a training step in forward passes: the backward pass costs two (Peebles & Xie 2023, figure 9)."""
FLOPS_PER_MAC = 2
WORKSPACE_BYTES = GIB
"""Memory of the device's context and of the libraries' scratch space."""
_JOB_SIZE = {"replicas", "gpus_per_pod"}
"""Keys of `cluster`. A study that gives neither may be for one machine."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device at the peak of a training step; see `memory`."""

    weights: float
    gradients: float
    optimizer: float
    ema: float
    casts: float
    activations: float
    workspace: float

    @property
    def total(self) -> float:
        """The sum of all parts, in bytes."""
        states = self.weights + self.gradients + self.optimizer + self.ema
        return states + self.casts + self.activations + self.workspace


@dataclass(frozen=True, slots=True)
class VariantPlan:
    """The cost of a variant with all its seeds. Gflops and MACs count a multiply-accumulate as one, as in the paper."""

    variant: str
    parameters: int
    gflops: float
    tokens: int
    training_macs: float
    memory: Memory
    micro_batch: int
    """Samples per forward pass and device in this study."""
    largest_micro_batch: int
    """The largest power of two that divides the device's share of the batch and fits; 0 if one sample does not fit."""
    fits: bool
    train_hours: float
    """Wall hours with all devices of the plan, like `sample_hours`."""
    sample_hours: float
    """Wall hours of the model for the sample sets of all evaluated checkpoints."""
    decode_hours: float
    """Wall hours of the autoencoder for these sets."""
    evaluate_hours: float
    """Wall hours for features and intervals of these sets."""

    @property
    def hours(self) -> float:
        """Wall hours of all stages."""
        return self.train_hours + self.sample_hours + self.decode_hours + self.evaluate_hours

    @property
    def true_gflops(self) -> float:
        """Cost of a forward pass in GFLOPs: a multiply-accumulate counts as two."""
        return FLOPS_PER_MAC * self.gflops

    @property
    def training_flops(self) -> float:
        """Cost of the training in FLOPs: a multiply-accumulate counts as two."""
        return FLOPS_PER_MAC * self.training_macs


@dataclass(frozen=True, slots=True)
class Plan:
    """The cost of a study on `count` devices at `utilisation` of their peak, one variant after another."""

    accelerator: Accelerator
    """The device, at the precision of training."""
    sampling_peak: float
    """True FLOP/s of one device at the precision of sampling."""
    count: int
    utilisation: float
    variants: tuple[VariantPlan, ...]
    prepare_hours: float | None
    """Wall hours of the autoencoder and of the reference's features; None if the number of images is not known."""
    disk: Disk
    notes: tuple[str, ...]

    @property
    def training_macs(self) -> float:
        """Multiply-accumulates of all variants' training."""
        return sum(variant.training_macs for variant in self.variants)

    @property
    def train_hours(self) -> float:
        """Wall hours of all variants' training."""
        return sum(variant.train_hours for variant in self.variants)

    @property
    def sample_hours(self) -> float:
        """Wall hours of all variants' sample sets."""
        return sum(variant.sample_hours for variant in self.variants)

    @property
    def decode_hours(self) -> float:
        """Wall hours of the autoencoder for all sample sets."""
        return sum(variant.decode_hours for variant in self.variants)

    @property
    def evaluate_hours(self) -> float:
        """Wall hours of all evaluations."""
        return sum(variant.evaluate_hours for variant in self.variants)

    @property
    def hours(self) -> float:
        """Wall hours of the study, without a preparation of unknown length."""
        return (self.prepare_hours or 0.0) + sum(variant.hours for variant in self.variants)


def plan(config: StudyConfig) -> Plan:
    """The cost of a study on the machine of its `plan` section, or, for the digits, on this machine's CPU.

    Raises ConfigError for an unknown accelerator and for a batch that the devices cannot share evenly: those of the
    plan, or the processes of the job if the study gives the job's size.
    """
    if config.cluster.model_fields_set & _JOB_SIZE:
        check_job_size(config)
    config = config.model_copy(update={"plan": machine(config)})
    device = accelerator(config.plan, config.train.precision)
    sampling_peak = accelerator(config.plan, config.sampling.precision).peak
    # The cores of a CPU work on variants side by side, not on shares of one batch.
    global_batch, count = config.train.global_batch, 1 if device.name == CPU else config.plan.count
    if global_batch % count:
        raise ConfigError(
            f"train.global_batch={global_batch} is not divisible by plan.count={count}; choose a count that divides it"
        )
    share = global_batch // count
    variants = tuple(_variant(config, spec, device, share) for spec in config.specs)
    return Plan(
        accelerator=device,
        sampling_peak=sampling_peak,
        count=config.plan.count,
        utilisation=config.plan.utilisation,
        variants=variants,
        prepare_hours=_prepare_hours(config),
        disk=stages.disk(config),
        notes=plan_notes(config, device, sampling_peak, variants),
    )


def check_job_size(config: StudyConfig) -> None:
    """Raises ConfigError when the processes of a training job cannot share the global batch evenly."""
    cluster, batch = config.cluster, config.train.global_batch
    if batch % cluster.world_size:
        raise ConfigError(
            f"train.global_batch={batch} is not divisible by the {cluster.world_size} processes of cluster.replicas x"
            " cluster.gpus_per_pod; change one of them, such as --set cluster.replicas=1"
        )


def training_macs(gflops: float, batch: int, steps: int) -> float:
    """Multiply-accumulates of a training (Peebles & Xie 2023, figure 9): Gflops x batch x steps x 3."""
    return gflops * 1e9 * batch * steps * BACKWARD


def sampling_macs(gflops: float, num_samples: int, steps: int, cfg_scale: float) -> float:
    """Multiply-accumulates of a sample set. Guidance runs the model twice per step: with and without the label."""
    return gflops * 1e9 * num_samples * steps * (1 if cfg_scale == 1.0 else 2)


def memory(
    spec: ModelSpec,
    inputs: InputSpec,
    precision: Precision,
    fit: FitConfig,
    micro_batch: int,
    *,
    compiled: bool = False,
) -> Memory:
    """Bytes on one device while training on micro-batches of `micro_batch` samples; derived in docs/plan.md.

    Symbols: P parameters, T tokens, width d, and c bytes per matrix operand (4, or 2 in bf16).
    """
    operand = 2 if precision == "bf16" else 4
    tokens, width = spec.tokens(inputs), spec.hidden
    # Per token and block, 16 d in float32: inputs and outputs of two layer norms. And 17 c d: two modulated inputs, q,
    # k, v, the attention's output, two outputs for the gates, the MLP's 4 d before and after its GELU, and one d more,
    # as measured. A compiled model computes the outputs of norms and GELU again in the backward pass.
    exact, operands = (8, 9 + MLP_RATIO) if compiled else (16, 9 + 2 * MLP_RATIO)
    per_token = (exact + operands * operand) * width
    if fit.attention == "plain":
        # The probabilities: T per head and token in float32, and again in bf16. Fused attention keeps no T x T matrix.
        per_token += spec.heads * tokens * (4 + (operand if operand != 4 else 0))
    modulation = 7 * operand * width
    block = tokens * per_token + modulation
    # With checkpointing a block keeps its input only, and one block at a time is computed again as a whole.
    kept = 4 * tokens * width + modulation if fit.activation_checkpointing else block
    # One block more for the gradients that flow through it.
    live_blocks = 2 if fit.activation_checkpointing else 1
    head = tokens * (8 + operand) * width
    parameters = spec.parameters(inputs)
    # float32 weights, gradients, AdamW's two moments and the EMA: 20 P. bf16 adds autocast's copy of the weights, 2 P.
    return Memory(
        weights=4 * parameters,
        gradients=4 * parameters,
        optimizer=8 * parameters,
        ema=4 * parameters,
        casts=2 * parameters if precision == "bf16" else 0,
        activations=micro_batch * (spec.depth * kept + live_blocks * block + head),
        workspace=WORKSPACE_BYTES,
    )


def _variant(config: StudyConfig, spec: ModelSpec, device: Accelerator, share: int) -> VariantPlan:
    inputs, train, sampling = config.dataset.inputs, config.train, config.sampling
    fit = config.fit_for(spec)
    if fit.attention == "auto" and device.name == CPU:
        fit = fit.model_copy(update={"attention": "plain"})
    micro_batch = min(fit.micro_batch or share, share)
    compiled = fit.compile == "on" or (fit.compile == "auto" and device.name != CPU)
    needed = memory(spec, inputs, train.precision, fit, micro_batch, compiled=compiled)
    gflops = spec.gflops(inputs)
    seeds = len(config.train_seeds)
    training = seeds * training_macs(gflops, train.global_batch, train.steps)
    sample_set = sampling_macs(gflops, sampling.num_samples, sampling.steps, sampling.cfg_scale)
    sets = seeds * len(config.evaluation.at_steps)
    decoding = sets * stages.decoding_macs(config)
    features = sets * stages.feature_macs(config, sampling.num_samples)
    # On a CPU every core evaluates a variant of its own; on GPUs the first process computes the intervals.
    intervals = sets * stages.interval_seconds(config) / 3600 / (config.plan.count if device.name == CPU else 1)
    return VariantPlan(
        variant=spec.name,
        parameters=spec.parameters(inputs),
        gflops=gflops,
        tokens=spec.tokens(inputs),
        training_macs=training,
        memory=needed,
        micro_batch=micro_batch,
        largest_micro_batch=_largest(
            share,
            lambda size: (
                memory(spec, inputs, train.precision, fit, size, compiled=compiled).total <= USABLE * device.memory
            ),
        ),
        fits=needed.total <= USABLE * device.memory,
        train_hours=wall_hours(config, training, train.precision),
        sample_hours=wall_hours(config, sets * sample_set, sampling.precision),
        decode_hours=wall_hours(config, decoding, stages.codec_precision(config)),
        evaluate_hours=wall_hours(config, features, config.evaluation.extractor_precision) + intervals,
    )


def _prepare_hours(config: StudyConfig) -> float | None:
    images = stages.image_count(config)
    if images is None:
        return None
    features = stages.feature_macs(config, stages.reference_images(config))
    encoding = wall_hours(config, stages.encoding_macs(config, images), stages.codec_precision(config))
    return encoding + wall_hours(config, features, config.evaluation.extractor_precision)


def _largest(share: int, fits: Callable[[int], bool]) -> int:
    """The largest power of two that divides `share` and for which `fits` holds, or 0."""
    size = share & -share
    while size and not fits(size):
        size //= 2
    return size
