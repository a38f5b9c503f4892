"""The records of stages: frozen types, written as JSON after all other files, as marks of completion. Torch-free."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from dit.errors import DataError, MismatchError
from dit.study import json_values
from dit.study.hashing import digest

ClaimVerdict = Literal["supported", "contradicted", "undetermined"]


class FrozenModel(BaseModel):
    """A frozen part of a JSON document. NaN and infinities are written as such."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Record(FrozenModel):
    """A frozen JSON document with a schema version; a reader of another version refuses it."""

    schema_version: int = 1
    SCHEMA: ClassVar[int] = 1

    def to_json(self) -> bytes:
        """Indented UTF-8 JSON; equal records give equal bytes."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Self:
        """The record in this JSON; `where` names it in errors.

        Raises MismatchError for another schema version, DataError for anything else that is not this record.
        """
        try:
            tree = json_values.parse(data)
        except ValueError:
            raise DataError(f"{where}: is not JSON; remove the file and run the step again") from None
        version = tree.get("schema_version") if isinstance(tree, dict) else None
        if version != cls.SCHEMA:
            raise MismatchError(
                f"{where}: schema version {version}, but this version of dit reads {cls.SCHEMA};"
                " use the version that wrote it, or remove it and run the step again"
            )
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            raise DataError(f"{where}: {key}: {first['msg']}; remove the file and run the step again") from None


class FileEntry(FrozenModel):
    """A file of a complete folder."""

    name: str
    bytes: int
    sha256: str


class ChannelStats(FrozenModel):
    """Mean and standard deviation per channel of the model's training data."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class LeftOut(FrozenModel):
    """Files and folders of a source that are not part of the dataset, for one reason."""

    reason: str
    count: int
    names: tuple[str, ...]
    """The first 1,000 of them; the name of a folder ends in a slash."""


class SourceRecord(Record):
    """The source that all parts of a preparation must share: `datasets/<name>-<hash>/source.json`."""

    kind: str
    sha256: str
    """SHA-256 of the ordered list of keys and labels."""
    items: int
    class_names: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()


class ShardRecord(Record):
    """One finished shard; the merge step joins these into the manifest."""

    name: str
    bytes: int
    sha256: str
    index_sha256: str
    count: int
    first_item: int
    """Position of the shard's first image in the source's order. Shards cover the source without gap or overlap."""
    items: int
    """Images of the source in this shard: `count` plus the corrupt ones."""
    corrupt: tuple[str, ...]
    label_counts: tuple[int, ...]
    channel_sum: tuple[float, ...]
    channel_square_sum: tuple[float, ...]
    values_per_channel: int
    source_sha256: str
    """SHA-256 of the source's ordered list of keys and labels: merge refuses parts of different sources."""
    codec_sha256: str
    config_hash: str


class DatasetManifest(Record):
    """A complete dataset: `datasets/<name>-<hash>/manifest.json`."""

    name: str
    config_hash: str
    source: str
    source_sha256: str
    codec: str
    codec_sha256: str
    """SHA-256 of the encoder's weights; empty for pixels."""
    image_size: int
    latent_channels: int
    latent_size: int
    scale_factor: float
    classes: int
    class_names: tuple[str, ...]
    mirror: bool
    count: int
    corrupt: int
    label_counts: tuple[int, ...]
    latents: ChannelStats
    """Statistics of the scaled latents, posterior noise included."""
    shards: tuple[ShardRecord, ...]
    left_out: tuple[LeftOut, ...] = ()
    """What the source holds beside the images; corrupt images are named by their shards."""

    def content_hash(self) -> str:
        """A hash of all shards' bytes."""
        return digest([shard.sha256 for shard in self.shards])


class BoundsRecord(Record):
    """The measurement of a dataset's latents: `datasets/<name>-<hash>/bounds.json`."""

    config_hash: str
    """Content hash of the shards that were measured."""
    count: int
    duplicates: int
    """Samples whose stored bytes occur more than once, without the first of each."""
    errors: dict[str, float]
    """Rung -> squared noise error of the best linear denoiser, mean over the linear schedule's steps."""
    class_information: float
    """How far the classes' mean latents differ, in standard deviations of random labels."""
    file: FileEntry


class Probe(FrozenModel):
    """Numbers that a checkpoint's weights must give again wherever they are loaded."""

    precision: str
    """Of the matrix products: fp32 or tf32."""
    raw_loss: float
    """Squared noise error on the dataset's probe samples with fixed noise and timesteps."""
    ema_loss: float
    raw_norms: tuple[float, ...]
    """Norms of embedders, blocks, modulations and head."""
    ema_norms: tuple[float, ...]
    optimizer_steps: int
    """Of the optimizer's state; that of the tensor with the fewest."""
    ratio_b: float | None = None
    """Last window's squared noise error over the dataset's bound b; None if it is not known."""


class Origin(FrozenModel):
    """The file of another program from which a checkpoint was imported."""

    address: str
    sha256: str
    bytes: int
    ema_decay: float | None = None
    """None if the file does not have it."""
    notes: tuple[str, ...] = ()
    """What was done to read it."""


class CheckpointMeta(Record):
    """A complete checkpoint: `checkpoints/step-*/meta.json`."""

    study: str
    variant: str
    step: int
    config_hash: str
    """Training hash: dataset, variant and recipe."""
    dataset_content: str
    precision: str
    world_size: int
    code_version: str
    finite: bool
    files: tuple[FileEntry, ...]
    loss: float = float("nan")
    """Mean over the logging window that ended at or before this step, all ranks."""
    images_per_second: float = 0.0
    train_seconds: float = 0.0
    """Sum over all launches that led to this step."""
    probe: Probe | None = None
    """None in checkpoints of earlier versions, and where the dataset is not measured."""
    origin: Origin | None = None
    """None unless the checkpoint was imported; `dataset_content`, precision and code version are then empty."""


class TrainRecord(Record):
    """A complete training: `<variant>/train.json`."""

    study: str
    variant: str
    steps: int
    config_hash: str
    science_hash: str
    dataset_content: str
    parameters: int
    gflops: float
    checkpoints: tuple[int, ...]
    final_loss: float
    """Mean over the last logging window, all ranks."""
    images_per_second: float
    """Median over logging windows, start-up left out."""
    train_seconds: float
    """Sum over all launches that led to the last step."""
    peak_memory_bytes: int
    device: str
    world_size: int
    tracking_run_id: str | None = None
    """Id of the MLflow run, if it was known at the end of training; `tracking.json` has it once the run is created."""
    imported: bool = False
    """Whether all checkpoints were imported; what is not known about their training is then empty, 0 or NaN."""


class SamplePartRecord(Record):
    """A complete part of a sample set: `samples/step-*/<protocol>/part-*.json`; the manifest joins them."""

    config_hash: str
    checkpoint_sha256: str
    decoder: str
    file: FileEntry
    count: int
    values_per_channel: int
    latent_sum: tuple[float, ...]
    latent_square_sum: tuple[float, ...]
    seconds: float


class SampleSetManifest(Record):
    """A complete sample set: `samples/step-*/<protocol>/manifest.json`."""

    study: str
    variant: str
    step: int
    config_hash: str
    checkpoint_sha256: str
    """SHA-256 of the weights file that was sampled."""
    num_samples: int
    image_size: int
    channels: int
    decoder: str
    """`pixels`, or the autoencoder and its weights' SHA-256."""
    seconds: float
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    files: tuple[FileEntry, ...]


class ExtractorRecord(Record):
    """A feature extractor that was trained on the dataset: `reference/extractor-*.json`."""

    config_hash: str
    file: FileEntry
    test_accuracy: float
    """Share of correctly classified images among those left out of its training."""
    test_images: int


class ReferenceRecord(Record):
    """Reference statistics of one extractor: `reference/statistics-*.json`."""

    config_hash: str
    source: str
    source_sha256: str
    """SHA-256 of the statistics' file, or of the dataset's source as in its manifest."""
    extractor: str
    extractor_sha256: str
    count: int
    """Images behind mean and covariance; 0 if the file does not have their number."""
    features: int
    """Images whose features are kept for precision and recall; 0 for none."""
    file: FileEntry


class NoiseFloorRecord(Record):
    """The metric of an untrained model's samples: `reference/noise-floor-*.json`."""

    config_hash: str
    metric: str
    value: float
    num_samples: int
    decoder: str


class Estimate(FrozenModel):
    """A number with its interval."""

    value: float
    low: float
    high: float


class MetricsRecord(Record):
    """A complete evaluation: `metrics/step-*.json`."""

    study: str
    variant: str
    step: int
    config_hash: str
    science_hash: str
    dataset_content: str
    train_seed: int = 0
    """Seed of the training."""
    metric: str
    """Name of the primary metric, a key of `metrics`; lower is better."""
    metrics: dict[str, Estimate]
    replicates: tuple[float, ...]
    """Bootstrap replicates of the primary metric, centred on its value. Replicate b is from the same draw of image
    numbers in every record with as many images."""
    confidence: float
    num_samples: int
    sampling: dict[str, Any]
    decoder: str
    evaluator: str
    reference: str
    reference_sha256: str
    extractor_sha256: str
    noise_floor: float
    """The primary metric of an untrained model's samples; a useful model is clearly below it."""
    parameters: int
    gflops: float
    seconds: float | None = None
    """Time for features and metrics, on each of `processes`; None in records of earlier versions."""
    processes: int = 1


RankActivity = Literal["start", "data", "step", "ranks", "checkpoint"]
"""Loads or computes its first step; waits for its next batch; computes; has finished its step and waits for the other
ranks; writes a checkpoint or waits for it."""


class RankProgress(Record):
    """How far one rank of a training is: `progress/rank-*.json`. Times are in seconds since 1970."""

    rank: int
    world_size: int
    host: str
    """Name of its machine, on a cluster of its pod."""
    process: int
    step: int
    """The last complete step."""
    step_time: float
    """When that step ended; at first the start of the training."""
    written: float
    """When this record was written: an old one is that of a frozen or lost process."""
    activity: RankActivity
    own_seconds: float | None = None
    """Seconds per step that the rank computes before it waits for others, median over the last logged window."""
    step_seconds: float | None = None
    """Seconds of a whole step, mean over that window; equal on all ranks, because they wait for each other."""


class HealthEvent(Record):
    """One line of `health.jsonl`; `cause` and `advice`, what to do next, are parts of the message."""

    check: str
    step: int
    value: float | None
    bound: str
    action: Literal["ok", "warn", "stop"]
    message: str
    cause: str = ""
    advice: str = ""


class Claim(FrozenModel):
    """The verdict on one of the paper's claims."""

    number: int
    statement: str
    verdict: ClaimVerdict
    reason: str
    numbers: dict[str, Any]
    qualifier: str = ""
    """`for this seed` if a decided verdict does not cover the noise of training; else empty."""

    @property
    def reading(self) -> str:
        """The verdict as people read it, such as `supported for this seed`."""
        return f"{self.verdict} {self.qualifier}".strip()


class VariantEstimate(Estimate):
    """A variant's primary metric over its seeds at the judged step."""

    variant: str
    seeds: tuple[int, ...]
    """Training seeds of the runs behind it."""


class Verdict(Record):
    """The study's result in machine-readable form: `report/verdict.json`."""

    study: str
    step: int
    metric: str
    claims: tuple[Claim, ...]
    science_hash: str
    variants: tuple[VariantEstimate, ...] = ()
    """Empty in verdicts of earlier versions."""
    notes: tuple[str, ...] = ()
    """Warnings, and which noise the intervals cover."""
    headline: str = ""
    """What a reader must know before the claims, such as that no model is better than noise; usually empty."""


class ReportRecord(Record):
    """A complete report: `report/record.json`."""

    study: str
    config_hash: str
    """Hash of the report's inputs: the study and the hashes of all metrics records."""
    files: tuple[FileEntry, ...]
