"""What a study's samples are measured with: an extractor, a reference and the score of noise.

Made by the first evaluation that needs them, kept beside the dataset, and the same for all variants and checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import save

from dit import layout
from dit.codec import check_codec, open_codec
from dit.config import AdmReference, StudyConfig, digest
from dit.console import progress, say
from dit.data.sources import iter_source_images, open_source
from dit.errors import MissingError
from dit.metrics import digits
from dit.metrics.extractors import Extractor, Images, extract, open_digits, open_inception
from dit.metrics.folder import ReferenceFolder
from dit.metrics.measure import Judge
from dit.metrics.reference import Reference, from_adm, from_source
from dit.metrics.weights import find_inception
from dit.records import DatasetManifest, ExtractorRecord, NoiseFloorRecord, ReferenceRecord
from dit.sampling.generate import Generator, untrained
from dit.sampling.sets import PART_IMAGES
from dit.storage import Store, fetch_file, read_record, sha256_file

NOISE_IMAGES = 1000
"""Enough for a floor: noise is many times farther from any image than the error of so few."""


@dataclass(frozen=True)
class Inputs:
    """Files from outside that a yardstick is made with; None where the study needs none."""

    manifest: DatasetManifest
    inception: tuple[Path, str] | None
    """InceptionV3's weights and their SHA-256."""
    adm: tuple[Path, str] | None
    """ADM's reference file and its SHA-256."""


@dataclass(frozen=True)
class Yardstick:
    """See the module."""

    extractor: Extractor
    judge: Judge
    reference: ReferenceRecord
    noise_floor: float
    dataset_content: str


def find_inputs(config: StudyConfig, store: Store) -> Inputs:
    """Find those files before any work; MissingError and MismatchError say what to put where."""
    key = f"{layout.dataset(config)}/{layout.MANIFEST}"
    manifest = read_record(store, key, DatasetManifest)
    if manifest is None:
        raise MissingError(f"{store.url}/{key}: the dataset is not prepared; run `dit prepare`")
    inception = find_inception(config, store) if config.evaluation.extractor == "inception" else None
    reference = config.evaluation.reference
    adm = fetch_file(reference.path) if isinstance(reference, AdmReference) else None
    return Inputs(manifest, inception, (adm, sha256_file(adm)) if adm else None)


def open_yardstick(folder: ReferenceFolder, inputs: Inputs, decoder: str) -> Yardstick:
    """The study's yardstick for samples from this decoder; made where it is not there yet, by all ranks together.

    Raises MissingError when the dataset's images or the decoder are needed to make it and are not there.
    """
    evaluation, device = folder.config.evaluation, folder.ranks.device
    if inputs.inception:
        extractor = open_inception(*inputs.inception, device, evaluation.extractor_precision)
    else:
        file = _digits_classifier(folder).file
        extractor = open_digits(folder.path(file), file.sha256, device, evaluation.extractor_precision)
    record = _reference(folder, inputs, extractor)
    judge = Judge(Reference.from_file(folder.path(record.file), record.count), evaluation, device)
    floor = _noise_floor(folder, extractor, judge, {"reference": record.config_hash, "decoder": decoder})
    return Yardstick(extractor, judge, record, floor.value, inputs.manifest.content_hash())


def _digits_classifier(folder: ReferenceFolder) -> ExtractorRecord:
    def make() -> ExtractorRecord | None:
        if not folder.ranks.is_main:
            return None
        _, images, labels = zip(*iter_source_images(folder.config), strict=True)
        weights, accuracy, tests = digits.train(np.stack(images), np.array(labels))
        file = folder.add("extractor-digits", ".safetensors", save(weights))
        say(f"digits extractor: reads {accuracy:.1%} of the {tests} digits right that it was not trained on")
        return ExtractorRecord(
            config_hash=folder.config.dataset_hash(), file=file, test_accuracy=accuracy, test_images=tests
        )

    return folder.kept(layout.trained_extractor(folder.config), ExtractorRecord, make)


def _reference(folder: ReferenceFolder, inputs: Inputs, extractor: Extractor) -> ReferenceRecord:
    config, ranks, batch = folder.config, folder.ranks, folder.config.fit.feature_batch
    source_sha256 = inputs.adm[1] if inputs.adm else inputs.manifest.source_sha256
    config_hash = digest([config.dataset_hash(), source_sha256, extractor.sha256, extractor.precision])

    def make() -> ReferenceRecord | None:
        if inputs.adm:
            source = inputs.adm[0].name
            reference = from_adm(inputs.adm[0], extractor, ranks, batch)
        else:
            reference = from_source(open_source(config.dataset), extractor, ranks, batch)
            source = f"{config.dataset.name}, {reference.count} images"
        if not ranks.is_main:
            return None
        return ReferenceRecord(
            config_hash=config_hash,
            source=source,
            source_sha256=source_sha256,
            extractor=extractor.evaluator,
            extractor_sha256=extractor.sha256,
            count=reference.count,
            features=0 if reference.features is None else len(reference.features),
            file=folder.add("statistics", ".npz", reference.to_bytes()),
        )

    return folder.kept(layout.reference_statistics(config, config_hash), ReferenceRecord, make)


def _noise_floor(
    folder: ReferenceFolder, extractor: Extractor, judge: Judge, measured: dict[str, str]
) -> NoiseFloorRecord:
    """The distance of what a model would sample that had learned nothing, under the study's sampler and decoder."""
    config, ranks = folder.config, folder.ranks
    config_hash = digest({**measured, "sampling": config.sampling.model_dump(mode="json")})
    total = min(config.sampling.num_samples, NOISE_IMAGES)

    def make() -> NoiseFloorRecord:
        check_codec(config.dataset)
        codec = open_codec(config.dataset, ranks.device, decoding=True, batch=config.fit.decode_batch)
        generator = Generator(config, untrained, codec, ranks.device, config.fit.sample_batch)
        starts = range(ranks.rank * PART_IMAGES, total, ranks.world_size * PART_IMAGES)

        def shares() -> Iterator[tuple[int, Images]]:
            mine = [range(start, min(start + PART_IMAGES, total)) for start in starts]
            with progress("noise floor", sum(map(len, mine)), "images", enabled=ranks.is_main) as bar:
                for indices in mine:
                    yield indices.start, generator.draw(indices, bar).images

        seen = extract(extractor, shares(), total, ranks, config.fit.feature_batch)
        return NoiseFloorRecord(
            config_hash=config_hash,
            metric=config.evaluation.metric,
            value=judge.distance(seen.features),
            num_samples=total,
            decoder=measured["decoder"],
        )

    return folder.kept(layout.noise_floor(config, config_hash), NoiseFloorRecord, make)
