"""The measuring instrument of a study: extractor, reference and noise floor.

The first evaluation makes them and keeps them beside the dataset. All variants and checkpoints share them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from safetensors.torch import save

from dit.codec.open import open_codec
from dit.console import progress, say
from dit.data.items import Source
from dit.data.sources import iter_source_images, open_source
from dit.errors import MismatchError
from dit.metrics import digits_extractor
from dit.metrics.extractors import Extractor, Features, extract, open_digits, open_inception
from dit.metrics.inputs import EvaluationFiles, find_evaluation_files
from dit.metrics.reference import Reference, from_adm, from_source
from dit.metrics.reference_cache import ReferenceFolder
from dit.metrics.sample_metrics import SampleMetrics
from dit.results.stages import Work, dataset
from dit.results.state import require
from dit.runtime.distributed import Ranks
from dit.sampling.generate import Generator, untrained
from dit.sampling.sets import PART_IMAGES
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.hashing import digest
from dit.study.records import DatasetManifest, ExtractorRecord, NoiseFloorRecord, ReferenceRecord

NOISE_IMAGES = 1000
"""Enough for a floor: the distance of noise is many times the error that so few images cause."""


@dataclass(frozen=True)
class Inputs:
    """Inputs of a setup that exist before any evaluation."""

    dataset: DatasetManifest
    files: EvaluationFiles

    @property
    def source_sha256(self) -> str:
        """Hash of the reference's source: ADM's file or the dataset."""
        return self.files.adm[1] if self.files.adm else self.dataset.source_sha256


@dataclass(frozen=True)
class EvaluationSetup:
    """Extractor, reference and noise floor, ready to measure sample sets."""

    extractor: Extractor
    sample_metrics: SampleMetrics
    reference: ReferenceRecord
    noise_floor: float
    """The distance of an untrained model's samples."""
    dataset_content: str


def find_inputs(work: Work) -> Inputs:
    """Find the inputs, before any work starts.

    Raises MissingError or MismatchError, which name the file to provide.
    """
    # Images are read from their source, so the shards may have been removed.
    manifest = require(work, dataset(work), files=False)
    return Inputs(manifest, find_evaluation_files(work.config, work.store))


def open_setup(folder: ReferenceFolder, inputs: Inputs, decoder: str) -> EvaluationSetup:
    """The study's setup for samples from this decoder. All ranks together make the parts that do not exist yet.

    Raises MissingError when it needs the dataset's images or the decoder and they are missing, MismatchError when the
    dataset was prepared from other images.
    """
    config, ranks = folder.config, folder.ranks
    extractor = _open_extractor(folder, inputs)
    reference_hash = digest([config.dataset_hash(), inputs.source_sha256, extractor.sha256, extractor.precision])
    # The floor depends on the noise schedule, which is in the hash only if it is not the default.
    chain = {key: value for key, value in config.train.hashed().items() if key == "schedule"}
    floor_hash = digest([reference_hash, decoder, config.sampling.hashed(), *([chain] if chain else [])])
    floor_key = layout.noise_floor(config, floor_hash)
    # A missing decoder must raise before hours of work on the reference, not after them.
    noise = None if folder.has(floor_key) else _noise_generator(config, ranks)

    reference_key = layout.reference_statistics(config, reference_hash)
    record = folder.kept(
        reference_key, ReferenceRecord, lambda: _make_reference(folder, inputs, extractor, reference_hash)
    )
    sample_metrics = SampleMetrics(
        Reference.from_file(folder.path(record.file), record.count), config.evaluation, ranks.device
    )

    def make_floor() -> NoiseFloorRecord:
        """The distance of an untrained model's samples, which all ranks draw together."""
        images = min(config.sampling.num_samples, NOISE_IMAGES)
        output = _noise_features(folder, noise or _noise_generator(config, ranks), extractor, images)
        return NoiseFloorRecord(
            config_hash=floor_hash,
            metric=config.evaluation.metric,
            value=sample_metrics.distance(output.features),
            num_samples=images,
            decoder=decoder,
        )

    floor = folder.kept(floor_key, NoiseFloorRecord, make_floor)
    return EvaluationSetup(extractor, sample_metrics, record, floor.value, inputs.dataset.content_hash())


def _open_extractor(folder: ReferenceFolder, inputs: Inputs) -> Extractor:
    device, precision = folder.ranks.device, folder.config.evaluation.extractor_precision
    if inputs.files.inception:
        return open_inception(*inputs.files.inception, device, precision)
    key = layout.trained_extractor(folder.config)
    file = folder.kept(key, ExtractorRecord, lambda: _train_digits(folder) if folder.ranks.is_main else None).file
    return open_digits(folder.path(file), file.sha256, device, precision)


def _train_digits(folder: ReferenceFolder) -> ExtractorRecord:
    _, images, labels = zip(*iter_source_images(folder.config), strict=True)
    weights, accuracy, tests = digits_extractor.train(np.stack(images), np.array(labels))
    say(f"digits extractor: accuracy {accuracy:.1%} on {tests} digits left out of training")
    return ExtractorRecord(
        config_hash=folder.config.dataset_hash(),
        file=folder.add("extractor-digits", ".safetensors", save(weights)),
        test_accuracy=accuracy,
        test_images=tests,
    )


def _make_reference(
    folder: ReferenceFolder, inputs: Inputs, extractor: Extractor, config_hash: str
) -> ReferenceRecord | None:
    config, ranks, batch = folder.config, folder.ranks, folder.config.fit.feature_batch
    if inputs.files.adm:
        path, _ = inputs.files.adm
        reference, source = from_adm(path, extractor, ranks, batch), path.name
    else:
        reference = from_source(_prepared_source(config, inputs.dataset), extractor, ranks, batch)
        source = f"{config.dataset.name}, {reference.count} images"
    if not ranks.is_main:
        return None
    return ReferenceRecord(
        config_hash=config_hash,
        source=source,
        source_sha256=inputs.source_sha256,
        extractor=extractor.evaluator,
        extractor_sha256=extractor.sha256,
        count=reference.count,
        features=0 if reference.features is None else len(reference.features),
        file=folder.add("statistics", ".npz", reference.to_bytes()),
    )


def _prepared_source(config: StudyConfig, prepared: DatasetManifest) -> Source:
    """The dataset's source, if the names and labels of its images are those that the dataset was prepared from."""
    source = open_source(config.dataset)
    actual = source.sha256()
    if actual != prepared.source_sha256:
        raise MismatchError(
            f"dataset.source: {len(source.items)} images, source {actual[:12]}; the dataset was prepared from"
            f" {prepared.count + prepared.corrupt}, source {prepared.source_sha256[:12]}; give the images it was"
            " prepared from, or prepare these under another dataset.name"
        )
    return source


def _noise_generator(config: StudyConfig, ranks: Ranks) -> Generator:
    codec = open_codec(config.dataset, ranks.device, decoding=True, batch=config.fit.decode_batch)
    return Generator(config, untrained, codec, ranks.device, config.fit.sample_batch)


def _noise_features(folder: ReferenceFolder, noise: Generator, extractor: Extractor, images: int) -> Features:
    """Features of an untrained model's samples, drawn with the study's sampler and decoder."""
    ranks = folder.ranks
    starts = range(ranks.rank * PART_IMAGES, images, ranks.world_size * PART_IMAGES)
    mine = [range(start, min(start + PART_IMAGES, images)) for start in starts]
    with progress("noise floor", sum(map(len, mine)), "images", enabled=ranks.is_main) as bar:
        shares = ((indices.start, noise.draw(indices, bar).images) for indices in mine)
        return extract(extractor, shares, images, ranks, folder.config.fit.feature_batch)
