"""The study file: what is measured (science), apart from how it is computed (fit). Torch-free.

Science decides the numbers, and it alone enters the hashes that bind records together. `fit`, `tracking`, `plan` and
`cluster` change speed, memory and bookkeeping, never a result.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from dit.errors import ConfigError
from dit.study.addresses import tracking_address
from dit.study.checks import Checks
from dit.study.cluster import ClusterConfig
from dit.study.dataset import DatasetConfig as DatasetConfig
from dit.study.dataset import DigitsSource as DigitsSource
from dit.study.dataset import FolderSource as FolderSource
from dit.study.dataset import PixelCodec as PixelCodec
from dit.study.dataset import TarSource as TarSource
from dit.study.dataset import VaeCodec as VaeCodec
from dit.study.fields import (
    Address,
    FeaturePrecision,
    Fraction,
    Positive,
    Precision,
    Section,
    Seed,
    Seeds,
    Sha256,
    Slug,
    TypeName,
    without_credentials,
)
from dit.study.fit import FitConfig as FitConfig
from dit.study.hashing import digest
from dit.study.mistakes import as_value_error, first_line
from dit.study.runs import Run, split_name
from dit.study.variants import ModelSpec, resolve
from dit.study.yaml_values import as_yaml

DIFFUSION_STEPS = 1000
"""T, the length of the training chain (Peebles & Xie 2023, section 4), with every noise schedule."""


class TrainConfig(Section):
    """The training recipe, one for all variants; by default the paper's (Peebles & Xie 2023, section 4)."""

    steps: Positive
    """Length of training. In no hash at a constant rate, where a longer run passes through a shorter one."""
    global_batch: Positive = 256
    """Images per training step, all processes together."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Of AdamW; the highest, where `warmup_steps` or `rate` changes it."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises linearly to `learning_rate`."""
    rate: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant, or a cosine to zero at `steps`; then another length is another training."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient, which is scaled down to it; unset, no clipping."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Of AdamW."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of AdamW."""
    ema_decay: Fraction = 0.9999
    """Decay per step of the moving average of the weights."""
    label_drop: Fraction = 0.1
    """Share of labels replaced by the null class: it trains the unconditional model that guidance needs."""
    precision: Precision = "tf32"
    """Precision of matrix products; weights, EMA and optimizer state are always float32."""
    seed: Seed = 0
    """Seed of initial weights, order of images, noise, timesteps and label drop."""
    schedule: Literal["linear"] = "linear"
    """Noise schedule of the training chain, a row of `SCHEDULES` in dit/diffusion/schedule.py."""

    LATER_KEYS: ClassVar[frozenset[str]] = frozenset({"schedule", "warmup_steps", "rate", "clip_norm"})

    @model_validator(mode="after")
    def _warmup_ends(self) -> TrainConfig:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} is not below steps={self.steps}; shorten the warm-up")
        return self

    def identity(self) -> dict[str, Any]:
        """The values that decide the weights at any step; a cosine depends on the length, a constant rate does not."""
        return self.hashed(exclude={"steps"} if self.rate == "constant" else set())


class SamplingConfig(Section):
    """How images are drawn (Peebles & Xie 2023, section 4), with the same noise and labels for all variants."""

    sampler: Literal["ddpm", "ddim"] = "ddpm"
    """Ancestral sampling (Ho et al. 2020), or DDIM (Song et al. 2021)."""
    steps: Annotated[Positive, Field(le=DIFFUSION_STEPS)] = 250
    """Steps of the reverse process per image. DDIM keeps every n-th of 1000."""
    eta: float = Field(default=0.0, ge=0, le=1)
    """Noise of DDIM (Song et al. 2021, equation 16): 0 is deterministic. Ignored by DDPM."""
    cfg_scale: float = Field(default=1.0, ge=0)
    """Classifier-free guidance; 1.0 is none."""
    guided_channels: Literal["first3", "all"] = "first3"
    """The published numbers guide the first three channels only (Peebles & Xie 2023, appendix A)."""
    num_samples: Positive = 50_000
    """Images per evaluated checkpoint; distances of different numbers cannot be compared."""
    labels: Literal["random", "balanced"] = "random"
    """Labels drawn at random, or each class equally often."""
    weights: Literal["ema", "raw"] = "ema"
    """The moving average of the weights, or the weights themselves."""
    precision: Precision = "tf32"
    """Precision of the model's matrix products; the paper used tf32. A CPU computes tf32 as fp32."""
    seed: Seed = 0
    """Seed of noise and labels."""

    @model_validator(mode="after")
    def _ddim_keeps_every_nth(self) -> SamplingConfig:
        stride = -(-DIFFUSION_STEPS // self.steps)
        fewer = len(range(0, DIFFUSION_STEPS, stride))
        if self.sampler == "ddim" and fewer != self.steps:
            more = len(range(0, DIFFUSION_STEPS, stride - 1))
            raise ValueError(
                f"steps={self.steps}: DDIM keeps every n-th of {DIFFUSION_STEPS} steps; nearest are {fewer} and {more}"
            )
        return self


class DatasetReference(Section):
    """Reference statistics from the dataset's own images."""

    kind: Literal["dataset"]


class AdmReference(Section):
    """Reference statistics from a file of ADM (Dhariwal & Nichol 2021), such as VIRTUAL_imagenet256_labeled.npz."""

    kind: Literal["adm"]
    path: Address
    """Local path or store address of the npz, with keys `mu` and `sigma`."""


class EvaluationConfig(Section):
    """Which checkpoints are evaluated, with which features, against which reference."""

    at_steps: tuple[Positive, ...] = Field(min_length=1)
    """Checkpoints that are sampled and evaluated; training keeps them."""
    extractor: Literal["inception", "digits"] = "inception"
    """Network whose features are compared: InceptionV3, or a classifier that is trained on the digits."""
    extractor_weights: Address | None = None
    """Local path or store address of the InceptionV3 weights; unset, below `weights/` in the root. The digits extractor
    is trained and stored with the dataset."""
    extractor_sha256: Sha256 | None = None
    """SHA-256 that the InceptionV3 weights must have; unset, that of the published file. With other weights the result
    is not comparable with published FIDs."""
    extractor_precision: FeaturePrecision = "fp32"
    """Precision of the extractor's matrix products."""
    reference: Annotated[DatasetReference | AdmReference, Field(discriminator="kind")] = DatasetReference(
        kind="dataset"
    )
    resamples: Positive = 200
    """Bootstrap resamples per interval; at least 2 / (1 - confidence), so that one lies beyond each end."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Share of bootstrap values inside an interval."""
    seed_spread: float | None = Field(default=None, gt=0)
    """Standard deviation between training seeds of the natural log of the Fréchet distance, from a publication or an
    earlier study: it widens the intervals of a study with one seed. In no hash of metrics."""
    seed_spread_degrees_of_freedom: Positive | None = None
    """Of `seed_spread`: runs behind it minus variants behind it. Unset, the spread counts as known exactly."""

    LATER_KEYS: ClassVar[frozenset[str]] = frozenset({"seed_spread", "seed_spread_degrees_of_freedom"})

    @property
    def metric(self) -> str:
        """Name of the Fréchet distance: `fid` only with Inception's features (Heusel et al. 2017)."""
        return "fid" if self.extractor == "inception" else f"fd_{self.extractor}"

    @field_validator("at_steps")
    @classmethod
    def _ascending(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if list(steps) != sorted(set(steps)):
            raise ValueError("steps must ascend and occur once")
        return steps

    @model_validator(mode="after")
    def _resamples_reach_the_tails(self) -> EvaluationConfig:
        fewest = math.ceil(round(2 / (1 - self.confidence), 6))
        if self.resamples < fewest:
            raise ValueError(
                f"resamples={self.resamples} is too low for confidence={self.confidence:g}; give at least {fewest}"
            )
        return self

    @model_validator(mode="after")
    def _freedom_of_a_spread(self) -> EvaluationConfig:
        if self.seed_spread_degrees_of_freedom is not None and self.seed_spread is None:
            raise ValueError("seed_spread_degrees_of_freedom is given without seed_spread; give both")
        return self

    def identity(self) -> dict[str, Any]:
        """The values that decide a metric, given the samples."""
        own = self.hashed(exclude={"at_steps", "extractor_weights", "reference", *self.LATER_KEYS})
        return {**own, "reference": {"kind": self.reference.kind}}


class TrackingConfig(Section):
    """MLflow, which shows parameters, metrics and artifacts."""

    kind: Literal["mlflow", "none"] = "mlflow"
    """With none, results are in the store only."""
    uri: Address | None = None
    """An MLflow server or sqlite address; unset, MLFLOW_TRACKING_URI or else `mlflow.db` in a local root."""
    experiment: str | None = None
    """Name of MLflow's experiment; unset, the study's."""

    @field_validator("uri")
    @classmethod
    def _known_scheme(cls, uri: str | None) -> str | None:
        return tracking_address(uri) if uri else None


class PlanConfig(Section):
    """The machine for which `dit plan` estimates the cost of the study."""

    accelerator: str = "A100-80G"
    """Name of the accelerator, or cpu; `dit plan` names those it knows. A study of the digits without this section is
    planned for this machine's CPU."""
    count: Positive = 8
    """Number of accelerators."""
    utilisation: float = Field(default=0.4, gt=0, le=1)
    """Assumed share of the accelerator's peak matrix rate (MFU) in training and sampling."""
    peak_tflops: float | None = Field(default=None, gt=0)
    """Peak of one accelerator in 10^12 FLOP/s at the study's precision; unset, the data sheet's. Required for cpu."""
    memory_gib: float | None = Field(default=None, gt=0)
    """Memory of one accelerator; unset, the data sheet's. Required for cpu."""
    price: float | None = Field(default=None, ge=0)
    """Price of one accelerator for one hour, in any currency; `dit plan` multiplies GPU-hours with it."""


class StudyConfig(Section):
    """A study: one dataset, its variants, one training recipe, one sampling and evaluation protocol."""

    study: Slug
    """Name of the study: of its folder in the store, its experiment, and its objects on a cluster."""
    description: Annotated[str, AfterValidator(without_credentials)] = ""
    """A sentence for people; stands in the report."""
    dataset: DatasetConfig
    variants: tuple[str, ...] = Field(min_length=1)
    """Models to compare, such as `[mini-S/2, DiT-XL/2]`: a family, a size and a patch size (dit/study/variants.py)."""
    seeds: Seeds = 1
    """Training seeds of every variant: 3 means `train.seed` and the two after it. A variant with one seed is a run."""
    train: TrainConfig
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig
    fit: FitConfig = FitConfig()
    fit_by_variant: Annotated[dict[str, dict[str, Any]], TypeName("mapping: variant -> keys of fit")] = Field(
        default_factory=dict
    )
    """Variant -> fit keys that replace the common ones, such as `DiT-XL/2: {micro_batch: 16}`."""
    tracking: TrackingConfig = TrackingConfig()
    plan: PlanConfig = PlanConfig()
    cluster: ClusterConfig = ClusterConfig()
    health: Checks = Field(default_factory=dict)
    """Health check -> off, warn or stop in place of what the check itself says. `finite` always stops. Changes no
    result; in no hash."""

    LATER_KEYS: ClassVar[frozenset[str]] = frozenset({"seeds"})

    @field_validator("variants")
    @classmethod
    def _known_variants(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        resolved = tuple(as_value_error(resolve, name).name for name in names)
        if len(set(resolved)) != len(resolved):
            raise ValueError(f"a variant is named twice in {', '.join(names)}")
        return resolved

    @model_validator(mode="after")
    def _fits_together(self) -> StudyConfig:
        for spec in self.specs:
            as_value_error(spec.tokens, self.dataset.inputs)
        if max(self.train_seeds) >= 2**63:
            raise ValueError(f"seeds={self.seeds} reaches beyond the largest seed; lower train.seed={self.train.seed}")
        late = [step for step in self.evaluation.at_steps if step > self.train.steps]
        if late:
            raise ValueError(f"evaluation.at_steps has {late[0]}, which train.steps={self.train.steps} never reaches")
        if self.evaluation.extractor == "digits" and not isinstance(self.dataset.source, DigitsSource):
            raise ValueError("evaluation.extractor=digits needs dataset.source.kind=digits; set it to inception")
        for name, fit in self.fit_by_variant.items():
            if name not in self.variants:
                raise ValueError(f"fit_by_variant names {name!r}, which is not among variants")
            if "parallel_variants" in fit or "lanes" in fit:
                raise ValueError("fit_by_variant has parallel_variants, which holds for all variants; set it in fit")
            try:
                FitConfig.model_validate({**self.fit.model_dump(), **fit})
            except ValidationError as error:
                raise ValueError(first_line(error, FitConfig, f"fit_by_variant.{name}.")) from None
        return self

    @property
    def specs(self) -> tuple[ModelSpec, ...]:
        """The variants in the study's order."""
        return tuple(resolve(name) for name in self.variants)

    def spec(self, variant: str) -> ModelSpec:
        """The study's variant of this name or slug.

        Raises ConfigError when the study does not have it.
        """
        spec = resolve(variant, self.variants)
        if spec not in self.specs:
            raise ConfigError(
                f"variant: {spec.name} is not in study {self.study}, which has {', '.join(self.variants)}"
            )
        return spec

    @property
    def train_seeds(self) -> tuple[int, ...]:
        """The training seeds of every variant, in order."""
        if isinstance(self.seeds, tuple):
            return self.seeds
        return tuple(range(self.train.seed, self.train.seed + self.seeds))

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every variant with every seed: variant by variant, in the study's order."""
        own = self.train.seed
        return tuple(Run(spec, seed, is_base=seed == own) for spec in self.specs for seed in self.train_seeds)

    def runs_of(self, variant: str, seed: int | None = None) -> tuple[Run, ...]:
        """The runs of a variant of this name or slug, or the one with this seed; also of a run's own name or slug.

        Raises ConfigError when the study does not have the variant or the seed.
        """
        variant, named = split_name(variant)
        seed = named if seed is None else seed
        spec = self.spec(variant)
        found = tuple(run for run in self.runs if run.spec == spec and seed in (None, run.seed))
        if not found:
            raise ConfigError(f"seed {seed}: is not in study {self.study}, which has {_listed(self.train_seeds)}")
        return found

    def run(self, variant: str, seed: int | None = None) -> Run:
        """The one run of a name, slug, or variant and seed; without a seed that of `train.seed`, or the only one.

        Raises ConfigError when the study does not have it, or has several seeds without `train.seed`.
        """
        found = self.runs_of(variant, seed)
        base = [run for run in found if run.is_base]
        if len(found) > 1 and not base:
            raise ConfigError(f"{variant}: the study has the seeds {_listed(self.train_seeds)}; choose one with --seed")
        return found[0] if len(found) == 1 else base[0]

    def options(self, run: Run) -> list[str]:
        """The options of a command that choose a run."""
        seed = ["--seed", str(run.seed)] if len(self.train_seeds) > 1 else []
        return ["--variant", run.spec.name, *seed]

    def same_run(self, run: Run) -> Run:
        """The run that has the same addresses in this study."""
        return replace(run, seed=self.train.seed) if run.is_base else run

    def recipe(self, run: Run) -> TrainConfig:
        """The training recipe with the run's seed."""
        return self.train.model_copy(update={"seed": run.seed})

    def fit_for(self, spec: ModelSpec) -> FitConfig:
        """`fit`, with what `fit_by_variant` replaces for this variant."""
        return FitConfig.model_validate({**self.fit.model_dump(), **self.fit_by_variant.get(spec.name, {})})

    def dataset_hash(self) -> str:
        """The hash in the name of the dataset's folder."""
        return digest(self.dataset.identity())

    def training_hash(self, run: Run) -> str:
        """The hash that binds checkpoints to dataset, variant and recipe: that of a study with the run's seed alone."""
        recipe = self.recipe(run).identity()
        return digest({"dataset": self.dataset_hash(), "variant": run.spec.name, "train": recipe})

    def sampling_hash(self, run: Run) -> str:
        """The hash that binds a sample set to its checkpoint's training and the sampling protocol."""
        return digest({"training": self.training_hash(run), "sampling": self.sampling.hashed()})

    def evaluation_hash(self, run: Run) -> str:
        """The hash that binds a metric to its samples and the evaluation protocol."""
        return digest({"sampling": self.sampling_hash(run), "evaluation": self.evaluation.identity()})

    def identities(self) -> dict[str, dict[str, Any]]:
        """Section -> the values of it that enter hashes."""
        return {
            "dataset": self.dataset.identity(),
            "train": self.train.identity(),
            "sampling": self.sampling.hashed(),
            "evaluation": self.evaluation.identity(),
        }

    def science_hash(self) -> str:
        """The hash of dataset, recipe, sampling and evaluation: equal for all runs that may be compared."""
        return digest(self.identities() | {"dataset": self.dataset_hash()})

    def to_yaml(self) -> str:
        """The whole study with all defaults; `study_file.load_text` reads it back to an equal study."""
        return as_yaml(self.model_dump(mode="json"))


def _listed(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds))
