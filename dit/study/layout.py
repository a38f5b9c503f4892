"""All addresses below a store's root. Keys are relative, with forward slashes. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from dit.study.config import SamplingConfig, StudyConfig
from dit.study.hashing import digest
from dit.study.runs import Run

META = "meta.json"
MANIFEST = "manifest.json"
SOURCE = "source.json"
EMA_WEIGHTS = "ema.safetensors"
RAW_WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STUDIES = "studies"
JOURNAL = "metrics.jsonl"
TRACKING_STATE = "tracking"
TRACKING_RUN = "tracking.json"
BOUNDS_FILE = "bounds.npz"
REPORT_PAGE = "report.html"
REPORT_RUNS = "runs.csv"
REPORT_VERDICT = "verdict.json"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
"""InceptionV3's weights, under the file name of torch-fidelity's release v0.2.0."""
_LONGEST_NAME = 60


def dataset(config: StudyConfig) -> str:
    """Folder of the study's shards."""
    return f"datasets/{config.dataset.name}-{config.dataset_hash()}"


def real_grid(config: StudyConfig) -> str:
    """Preview of the dataset's images, beside which sample sets are shown."""
    return f"{dataset(config)}/images.png"


def shard(index: int) -> str:
    """File name of a shard in the dataset's folder."""
    return f"shard-{index:05d}.tar"


def shard_index(index: int) -> str:
    """File name of a shard's member offsets: little-endian arrays in an npz."""
    return f"shard-{index:05d}.index.npz"


def shard_record(index: int) -> str:
    """File name of a shard's completion mark."""
    return f"shard-{index:05d}.json"


def step(number: int) -> str:
    """Folder name of a training step; names sort like the numbers."""
    return f"step-{number:08d}"


def step_number(name: str) -> int | None:
    """The training step of a folder name; None if it is no step's folder."""
    digits = name.removeprefix("step-")
    return int(digits) if digits.isdecimal() and step(int(digits)) == name else None


def study(config: StudyConfig) -> str:
    """Folder of the study's results: everything but the dataset."""
    return f"{STUDIES}/{config.study}"


def submitted(config: StudyConfig, text_hash: str) -> str:
    """The study of a run, overrides applied, which the run's steps read."""
    return f"{study(config)}/submitted/{text_hash}.yaml"


def variant(config: StudyConfig, run: Run | None) -> str:
    """Folder of one run's results; of the study's if `run` is None."""
    return f"{study(config)}/{run.slug}" if run else study(config)


def checkpoints(config: StudyConfig, run: Run) -> str:
    """Folder of a variant's checkpoints."""
    return f"{variant(config, run)}/checkpoints"


def checkpoint(config: StudyConfig, run: Run, number: int) -> str:
    """Folder of one checkpoint."""
    return f"{checkpoints(config, run)}/{step(number)}"


def train_record(config: StudyConfig, run: Run) -> str:
    """Completion mark of a variant's training."""
    return f"{variant(config, run)}/train.json"


def health(config: StudyConfig, run: Run | None) -> str:
    """Health checks of a variant, or with None of the dataset, one JSON line each."""
    return f"{variant(config, run) if run else dataset(config)}/health.jsonl"


def previews(config: StudyConfig, run: Run) -> str:
    """Folder of the pictures that a variant's training draws."""
    return f"{variant(config, run)}/previews"


def preview(config: StudyConfig, run: Run, number: int) -> str:
    """A picture of samples after one training step."""
    return f"{previews(config, run)}/{step(number)}.png"


def ranks_progress(config: StudyConfig, run: Run) -> str:
    """Folder of the records of how far each rank of a training is; gone when the training has ended."""
    return f"{variant(config, run)}/progress"


def rank_progress(config: StudyConfig, run: Run, rank: int) -> str:
    """How far one rank is."""
    return f"{ranks_progress(config, run)}/rank-{rank:05d}.json"


def lease(config: StudyConfig, run: Run) -> str:
    """Who trains a variant now; gone when the training has ended."""
    return f"{variant(config, run)}/lease.json"


def tracking_run(config: StudyConfig, run: Run | None) -> str:
    """The MLflow run of a variant, or with None of the study."""
    return f"{variant(config, run)}/{TRACKING_RUN}"


def journal(config: StudyConfig, run: Run | None) -> str:
    """Every metric point of a variant, or with None of the study, sent to a tracking server or not."""
    return f"{variant(config, run)}/{JOURNAL}"


def tracking_state(config: StudyConfig, run: Run | None) -> str:
    """Folder of the tracker's state, beside the journal."""
    return f"{variant(config, run)}/{TRACKING_STATE}"


def protocol(sampling: SamplingConfig) -> str:
    """Folder name of a sample set: the sampler's settings; those that are not the default come last."""
    scale = f"{sampling.cfg_scale:g}" if sampling.cfg_scale % 1 else f"{sampling.cfg_scale:.1f}"
    name = f"cfg-{scale}_n-{sampling.num_samples}_steps-{sampling.steps}_seed-{sampling.seed}"
    settings = (
        (sampling.sampler == "ddim", f"_ddim-{sampling.eta:g}"),
        (sampling.guided_channels != "first3" and sampling.cfg_scale != 1.0, "_guided-all"),
        (sampling.labels != "random", f"_{sampling.labels}"),
        (sampling.weights != "ema", f"_{sampling.weights}"),
        (sampling.precision != "tf32", f"_{sampling.precision}"),
    )
    return name + "".join(text for is_shown, text in settings if is_shown)


def metric(config: StudyConfig, name: str) -> str:
    """Name of a measured value in MLflow: values of different protocols get different names.

    Settings of the evaluation that are not the default follow those of the sampler.
    """
    evaluation, weights = config.evaluation, config.evaluation.extractor_sha256 or ""
    usual_extractor = "digits" if config.dataset.source.kind == "digits" else "inception"
    settings = (
        (evaluation.extractor != usual_extractor, f"_{evaluation.extractor}"),
        (weights, f"_weights-{weights[:8]}"),
        (evaluation.extractor_precision != "fp32", f"_features-{evaluation.extractor_precision}"),
        (evaluation.reference.kind != "dataset", f"_{evaluation.reference.kind}"),
        (evaluation.resamples != 200, f"_resamples-{evaluation.resamples}"),
        (evaluation.confidence != 0.95, f"_confidence-{evaluation.confidence:g}"),
    )
    return f"{protocol(config.sampling)}{''.join(text for is_shown, text in settings if is_shown)}/{name}"


def samples(config: StudyConfig, run: Run, number: int) -> str:
    """Folder of a checkpoint's sample set."""
    return f"{variant(config, run)}/samples/{step(number)}/{protocol(config.sampling)}"


def sample_part(index: int) -> str:
    """File name of a part of a sample set: arrays `images` (uint8, [n, h, w, c]) and `labels` ([n]) in an npz."""
    return f"part-{index:05d}.npz"


def sample_part_record(index: int) -> str:
    """File name of a part's completion mark."""
    return f"part-{index:05d}.json"


def sample_grid(config: StudyConfig, run: Run, number: int) -> str:
    """Preview image of a sample set."""
    return f"{samples(config, run, number)}/grid.png"


def labels_grid(config: StudyConfig, run: Run, number: int, labels: Sequence[int]) -> str:
    """Picture of samples of chosen classes, which is no part of the sample set."""
    name = "-".join(map(str, labels))
    return f"{samples(config, run, number)}/labels-{name if len(name) <= _LONGEST_NAME else digest(list(labels))}.png"


def metrics(config: StudyConfig, run: Run, number: int) -> str:
    """Completion mark of a checkpoint's evaluation; the protocol is part of its name."""
    return f"{metrics_folder(config, run)}/{step(number)}_{protocol(config.sampling)}.json"


def metrics_folder(config: StudyConfig, run: Run) -> str:
    """Folder of a variant's evaluations, of all checkpoints and protocols."""
    return f"{variant(config, run)}/metrics"


def bounds(config: StudyConfig) -> str:
    """Completion mark of the dataset's measurement, which the health checks compare a model with."""
    return f"{dataset(config)}/bounds.json"


def reference(config: StudyConfig) -> str:
    """Folder of reference statistics and of a trained extractor, beside the shards."""
    return f"{dataset(config)}/reference"


def trained_extractor(config: StudyConfig) -> str:
    """Completion mark of the extractor that was trained on the dataset."""
    return f"{reference(config)}/extractor-{config.evaluation.extractor}.json"


def reference_statistics(config: StudyConfig, reference_hash: str) -> str:
    """Completion mark of the statistics with which samples are compared."""
    return f"{reference(config)}/statistics-{config.evaluation.extractor}-{reference_hash}.json"


def noise_floor(config: StudyConfig, floor_hash: str) -> str:
    """The metric of an untrained model's samples, under one sampling protocol."""
    return f"{reference(config)}/noise-floor-{config.evaluation.extractor}-{floor_hash}.json"


def weights(name: str) -> str:
    """A file of weights that a user put into the store, such as InceptionV3's."""
    return f"weights/{name}"


def report(config: StudyConfig) -> str:
    """Folder of the study's report."""
    return f"{study(config)}/report"


def report_record(config: StudyConfig) -> str:
    """Completion mark of the report."""
    return f"{report(config)}/record.json"


def pipeline_log(config: StudyConfig) -> str:
    """Local file with the output of all steps of `dit study`; never in a remote store."""
    return f"logs/{config.study}.log"
