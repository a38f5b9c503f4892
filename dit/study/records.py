"""What passes between stages: one frozen type each, written as JSON, last, as the mark of completion. Torch-free."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from dit.errors import DataError, MismatchError
from dit.study.hashing import digest

ClaimVerdict = Literal["supported", "contradicted", "undetermined"]


class Record(BaseModel):
    """A frozen JSON document with a schema version that a reader of another version refuses."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    schema_version: int = 1
    SCHEMA: ClassVar[int] = 1

    def to_json(self) -> bytes:
        """Indented UTF-8 JSON, stable for equal records."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Self:
        """Parse; MismatchError for another schema version, DataError for anything that is not this record."""
        try:
            tree = json.loads(data)
        except ValueError:
            raise DataError(f"{where}: not JSON; the file is damaged, remove it and run the step again") from None
        version = tree.get("schema_version") if isinstance(tree, dict) else None
        if version != cls.SCHEMA:
            raise MismatchError(
                f"{where}: schema version {version}, this program reads {cls.SCHEMA};"
                " use the version that wrote it or make it again"
            )
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            raise DataError(f"{where}: {key}: {first['msg']}; remove it and run the step again") from None


class FileEntry(BaseModel):
    """A file of a complete folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    bytes: int
    sha256: str


class ChannelStats(BaseModel):
    """Mean and standard deviation per channel of what the model is trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: tuple[float, ...]
    std: tuple[float, ...]


class SourceRecord(Record):
    """What all parts of a preparation must agree on: `datasets/<name>-<hash>/source.json`."""

    kind: str
    sha256: str
    """Of the ordered list of keys and labels."""
    items: int
    class_names: tuple[str, ...]


class ShardRecord(Record):
    """One finished shard; the merge step joins these into the manifest."""

    name: str
    bytes: int
    sha256: str
    index_sha256: str
    count: int
    first_item: int
    """Position in the source's order of the shard's first image; shards cover the source without gap or overlap."""
    items: int
    """Images the shard was to hold; `count` plus the corrupt ones."""
    corrupt: tuple[str, ...]
    label_counts: tuple[int, ...]
    channel_sum: tuple[float, ...]
    channel_square_sum: tuple[float, ...]
    values_per_channel: int
    source_sha256: str
    """Of the source's ordered list of keys and labels: parts that saw different sources are told apart."""
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
    """Of the encoder's weights; empty for pixels."""
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
    """Of the scaled latents, posterior noise included."""
    shards: tuple[ShardRecord, ...]

    def content_hash(self) -> str:
        """Changes when any shard's bytes do."""
        return digest([shard.sha256 for shard in self.shards])


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
    """Summed over all launches that led to this step."""


class TrainRecord(Record):
    """A training that reached its last step: `<variant>/train.json`."""

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
    """Summed over all launches that led to the last step."""
    peak_memory_bytes: int
    device: str
    world_size: int
    tracking_run_id: str | None = None
    """MLflow's, where it was known by the end; `tracking.json` has it once the server has the run."""


class SamplePartRecord(Record):
    """A finished part of a sample set: `samples/step-*/<protocol>/part-*.json`; the manifest joins them."""

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
    """Of the weights file that was sampled."""
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
    """A feature extractor that was trained on the dataset itself: `reference/extractor-*.json`."""

    config_hash: str
    file: FileEntry
    test_accuracy: float
    """Share of the images left out of its training that it classifies right."""
    test_images: int


class ReferenceRecord(Record):
    """Reference statistics of one extractor: `reference/statistics-*.json`."""

    config_hash: str
    source: str
    source_sha256: str
    """Of the file the statistics came from, or of the dataset's source as its manifest has it."""
    extractor: str
    extractor_sha256: str
    count: int
    """Images behind mean and covariance; 0 where the file does not say."""
    features: int
    """Images whose own features are kept, for precision and recall; 0 for none."""
    file: FileEntry


class NoiseFloorRecord(Record):
    """What an untrained model's samples score: `reference/noise-floor-*.json`."""

    config_hash: str
    metric: str
    value: float
    num_samples: int
    decoder: str


class Estimate(BaseModel):
    """A number with its interval."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

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
    metric: str
    """Name of the primary metric, a key of `metrics`; lower is better."""
    metrics: dict[str, Estimate]
    replicates: tuple[float, ...]
    """The primary metric's bootstrap replicates, centred on its value; claim 3 draws from them."""
    confidence: float
    num_samples: int
    sampling: dict[str, Any]
    decoder: str
    evaluator: str
    reference: str
    reference_sha256: str
    extractor_sha256: str
    noise_floor: float
    """The primary metric of what an untrained model samples: no model is worth more than a lower value."""
    parameters: int
    gflops: float


class HealthEvent(Record):
    """One line of `health.jsonl`."""

    check: str
    step: int
    value: float | None
    bound: str
    action: Literal["ok", "warn", "stop"]
    message: str


class Claim(BaseModel):
    """The verdict on one of the paper's claims."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    number: int
    statement: str
    verdict: ClaimVerdict
    reason: str
    numbers: dict[str, Any]


class Verdict(Record):
    """The study's result for programs: `report/verdict.json`."""

    study: str
    step: int
    metric: str
    claims: tuple[Claim, ...]
    science_hash: str
    notes: tuple[str, ...] = ()
    """What the intervals do not cover."""


class ReportRecord(Record):
    """A complete report: `report/record.json`."""

    study: str
    config_hash: str
    """Of everything the report was made from: the study and the hashes of all metrics records."""
    files: tuple[FileEntry, ...]
