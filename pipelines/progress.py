"""How far a study is, told from its store alone: no torch, no kfp."""

from __future__ import annotations

from dataclasses import dataclass

from dit.storage import Store, read_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import DatasetManifest, MetricsRecord, SampleSetManifest, TrainRecord
from dit.study.variants import ModelSpec
from dit.tracking import read_points

LOSS = "loss"


@dataclass(frozen=True)
class Measured:
    """A metric's newest value."""

    name: str
    step: int
    value: float


@dataclass(frozen=True)
class Stage:
    """One stage, of one variant where it has several."""

    name: str
    """As the pipeline calls the step."""
    done: int
    total: int
    unit: str
    last: Measured | None = None
    seconds: float | None = None
    """What it took, where the store tells."""

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.done >= self.total


def stage_names(config: StudyConfig) -> list[str]:
    """Every stage, in the study's order, as `Stage` names it."""
    own = [f"{stage} {spec.name}" for spec in config.specs for stage in ("train", "sample", "evaluate")]
    return ["prepare", *own, "report"]


def progress(config: StudyConfig, store: Store) -> list[Stage]:
    """Every stage of a study in its order; raises MismatchError and DataError as reading a record does."""
    keys = frozenset(store.list(layout.study(config)))
    found = [_prepared(config, store)]
    for spec in config.specs:
        found += [_trained(config, store, spec, keys), _sampled(config, store, spec), _evaluated(config, store, spec)]
    return [*found, Stage("report", int(layout.report_record(config) in keys), 1, "reports")]


def _prepared(config: StudyConfig, store: Store) -> Stage:
    folder = layout.dataset(config)
    record = read_record(store, f"{folder}/{layout.MANIFEST}", DatasetManifest)
    if record is not None:
        return Stage("prepare", len(record.shards), len(record.shards), "shards")
    # How many there will be is known to the parts alone.
    shards = sum(key.endswith(".tar") for key in store.list(folder))
    return Stage("prepare", shards, shards + 1, "shards")


def _trained(config: StudyConfig, store: Store, spec: ModelSpec, keys: frozenset[str]) -> Stage:
    name, total = f"train {spec.name}", config.train.steps
    record = read_record(store, layout.train_record(config, spec), TrainRecord)
    if record is not None and record.config_hash == config.training_hash(spec) and record.steps >= total:
        last = Measured(LOSS, record.steps, record.final_loss)
        return Stage(name, total, total, "steps", last, record.train_seconds)
    losses = [point for point in read_points(config, store, spec) if point.key == LOSS]
    newest = max(losses, key=lambda point: (point.step, point.time), default=None)
    saved = [step for key in keys if (step := _checkpoint_step(key, layout.checkpoints(config, spec))) is not None]
    done = max([*saved, newest.step if newest else 0])
    # A step that is complete writes its record; until then something is left to do.
    done = min(done, total - 1) if record is None else min(done, total)
    return Stage(name, done, total, "steps", Measured(LOSS, newest.step, newest.value) if newest else None)


def _checkpoint_step(key: str, folder: str) -> int | None:
    step, _, name = key.removeprefix(f"{folder}/").partition("/")
    return layout.step_number(step) if key.startswith(f"{folder}/") and name == layout.META else None


def _sampled(config: StudyConfig, store: Store, spec: ModelSpec) -> Stage:
    made, seconds, at_steps = 0, 0.0, config.evaluation.at_steps
    for step in at_steps:
        folder = layout.samples(config, spec, step)
        record = read_record(store, f"{folder}/{layout.MANIFEST}", SampleSetManifest)
        if record is not None and record.config_hash == config.sampling_hash(spec):
            made, seconds = made + 1, seconds + record.seconds
    return Stage(f"sample {spec.name}", made, len(at_steps), "sets", seconds=seconds if made == len(at_steps) else None)


def _evaluated(config: StudyConfig, store: Store, spec: ModelSpec) -> Stage:
    last, made, at_steps = None, 0, config.evaluation.at_steps
    for step in at_steps:
        record = read_record(store, layout.metrics(config, spec, step), MetricsRecord)
        if record is not None and record.config_hash == config.evaluation_hash(spec):
            made, last = made + 1, Measured(record.metric, step, record.metrics[record.metric].value)
    return Stage(f"evaluate {spec.name}", made, len(at_steps), "checkpoints", last)
