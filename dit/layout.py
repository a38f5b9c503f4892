"""The only place that spells an address below a store's root. Keys are relative, with forward slashes. Torch-free."""

from __future__ import annotations

from dit.config import SamplingConfig, StudyConfig
from dit.variants import ModelSpec

META = "meta.json"
MANIFEST = "manifest.json"
EMA_WEIGHTS = "ema.safetensors"
RAW_WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"


def dataset(config: StudyConfig) -> str:
    """Folder of the study's shards."""
    return f"datasets/{config.dataset.name}-{config.dataset_hash()}"


def shard(index: int) -> str:
    """Name of a shard inside the dataset's folder."""
    return f"shard-{index:05d}.tar"


def shard_index(index: int) -> str:
    """Member offsets of a shard, as little-endian arrays in an npz."""
    return f"shard-{index:05d}.index.npz"


def shard_record(index: int) -> str:
    """Completion mark of a shard."""
    return f"shard-{index:05d}.json"


def step(number: int) -> str:
    """Folder name of a training step; sorts as numbers do."""
    return f"step-{number:08d}"


def study(config: StudyConfig) -> str:
    """Folder of everything but the dataset."""
    return f"studies/{config.study}"


def variant(config: StudyConfig, spec: ModelSpec) -> str:
    """Folder of one variant."""
    return f"{study(config)}/{spec.slug}"


def checkpoints(config: StudyConfig, spec: ModelSpec) -> str:
    """Folder of a variant's checkpoints."""
    return f"{variant(config, spec)}/checkpoints"


def checkpoint(config: StudyConfig, spec: ModelSpec, number: int) -> str:
    """Folder of one checkpoint."""
    return f"{checkpoints(config, spec)}/{step(number)}"


def train_record(config: StudyConfig, spec: ModelSpec) -> str:
    """Completion mark of a variant's training."""
    return f"{variant(config, spec)}/train.json"


def health(config: StudyConfig, spec: ModelSpec) -> str:
    """Health checks of a variant, one JSON line each."""
    return f"{variant(config, spec)}/health.jsonl"


def tracking_run(config: StudyConfig, spec: ModelSpec | None) -> str:
    """The MLflow run that a variant, or with None the study, logs to."""
    return f"{variant(config, spec) if spec else study(config)}/tracking.json"


def journal(config: StudyConfig, spec: ModelSpec) -> str:
    """Every metric point of a variant, whatever became of the tracking server."""
    return f"{variant(config, spec)}/metrics.jsonl"


def protocol(sampling: SamplingConfig) -> str:
    """Folder name of a sample set: what was asked of the sampler, non-default choices last."""
    name = f"cfg-{sampling.cfg_scale:g}" if sampling.cfg_scale % 1 else f"cfg-{sampling.cfg_scale:.1f}"
    name += f"_n-{sampling.num_samples}_steps-{sampling.steps}_seed-{sampling.seed}"
    if sampling.sampler == "ddim":
        name += f"_ddim-{sampling.eta:g}"
    if sampling.guided_channels != "first3" and sampling.cfg_scale != 1.0:
        name += "_guided-all"
    if sampling.labels != "random":
        name += f"_{sampling.labels}"
    if sampling.weights != "ema":
        name += f"_{sampling.weights}"
    return name


def samples(config: StudyConfig, spec: ModelSpec, number: int) -> str:
    """Folder of a checkpoint's sample set."""
    return f"{variant(config, spec)}/samples/{step(number)}/{protocol(config.sampling)}"


def sample_part(index: int) -> str:
    """Name of a part inside a sample set: arrays `images` (uint8 NHWC) and `labels` in an npz."""
    return f"part-{index:05d}.npz"


def sample_grid(config: StudyConfig, spec: ModelSpec, number: int) -> str:
    """Preview of a sample set."""
    return f"{samples(config, spec, number)}/grid.png"


def metrics(config: StudyConfig, spec: ModelSpec, number: int) -> str:
    """Completion mark of a checkpoint's evaluation; its name carries the protocol's."""
    return f"{variant(config, spec)}/metrics/{step(number)}_{protocol(config.sampling)}.json"


def reference(config: StudyConfig) -> str:
    """Folder, beside the shards, of reference statistics and a trained extractor."""
    return f"{dataset(config)}/reference"


def report(config: StudyConfig) -> str:
    """Folder of the study's report."""
    return f"{study(config)}/report"
