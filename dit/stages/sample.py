"""Sample: checkpoints into sets of images, with the same noise and labels for every variant and checkpoint.

Any number of processes share the work by parts. Parts that an earlier launch finished are kept.

    dit sample configs/digits.yaml --variant mini-S/2 --step 500
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dit.console import progress, say
from dit.console.formatting import format_rate
from dit.errors import ConfigError
from dit.results.stages import SAMPLE, Work, checkpoint
from dit.results.stages import dataset as dataset_output
from dit.results.state import look, read_output, require, say_complete
from dit.results.study_copy import keep_study
from dit.runtime.distributed import environment_rank
from dit.sampling.adm import check_target, write_npz
from dit.sampling.sets import PART_IMAGES, Drawn, SampleSet
from dit.storage import Store
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import CheckpointMeta, SamplePartRecord, SampleSetManifest
from dit.study.runs import Run

if TYPE_CHECKING:
    from dit.runtime.distributed import Ranks
    from dit.sampling.generate import Generator
    from dit.tracking import Tracker


def run(
    config: StudyConfig, store: Store, variant: str, step: int | None = None, export: Path | None = None
) -> list[SampleSetManifest]:
    """Draw the sample set of one checkpoint, or of every evaluated one without `step`; their manifests.

    With `export`, the first rank then writes the (first) set to this file for the ADM evaluator.

    Raises InputError when that file cannot be written, MissingError when a checkpoint or the decoder's weights are
    missing, MismatchError when existing samples have another configuration or decoder, DivergedError when samples are
    not finite, UnhealthyError when a health check says stop.
    """
    export = export if environment_rank() == 0 else None
    if export:
        # Before hours of sampling, not after them.
        check_target(export)
    run, work = config.run(variant), Work(config, store)
    sets = [SampleSet(work, run, number) for number in (config.evaluation.at_steps if step is None else (step,))]
    findings = [look(work, sample_set.output) for sample_set in sets]
    # A set without files is complete once it is evaluated, but an export needs the files.
    pending = [
        sample_set
        for sample_set, finding in zip(sets, findings, strict=True)
        if not finding.complete or (export and not finding.files)
    ]
    if pending:
        metas = [require(work, checkpoint(work, run, sample_set.step)) for sample_set in pending]
        store.check_writable()
        keep_study(config, store)
        _draw_sets(work, run, list(zip(pending, metas, strict=True)))
    else:
        say_complete(SAMPLE, run)
    if export:
        export_adm(config, store, variant, sets[0].step, export)
    return [finding.record for finding in (look(work, sample_set.output) for sample_set in sets) if finding.record]


def export_adm(config: StudyConfig, store: Store, variant: str, step: int, path: Path) -> None:
    """Write a complete sample set as an npz for the ADM evaluator.

    Raises MissingError when the set is not complete, MismatchError when it has another configuration or decoder.
    """
    work, run = Work(config, store), config.run(variant)
    sample_set = SampleSet(work, run, step)
    manifest = require(work, sample_set.output, files=True)
    write_npz(path, sample_set.read(manifest), manifest.num_samples, manifest.image_size)
    say(f"{path}: {manifest.num_samples} images of {run.name} at step {step}")


def draw_labels(config: StudyConfig, store: Store, variant: str, step: int, labels: Sequence[int]) -> str:
    """Draw one sample of each of these classes, with the study's protocol, into a picture; return its key.

    Sample i has the noise of sample i of the study's set. The set itself is not touched.

    Raises ConfigError for a class that the dataset does not have, MissingError when the checkpoint or the decoder's
    weights are missing, DivergedError when samples are not finite.
    """
    classes = config.dataset.classes
    if wrong := [label for label in labels if not 0 <= label < classes]:
        raise ConfigError(f"--labels: {wrong[0]} is not a class; the dataset has classes 0 to {classes - 1}")
    import torch

    from dit.checkpoints.read import load_weights
    from dit.codec.open import open_codec
    from dit.runtime.device import tune_process
    from dit.sampling import grid
    from dit.sampling.generate import Generator, trained

    run, work = config.run(variant), Work(config, store)
    meta, fit = require(work, checkpoint(work, run, step)), config.fit_for(run.spec)
    tune_process(fit.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    codec = open_codec(config.dataset, device, decoding=True, batch=fit.decode_batch)
    weights, _ = load_weights(store, layout.checkpoint(config, run, step), meta, config.sampling.weights)
    generator = Generator(config, trained(config, run.spec, weights, device), codec, device, fit.sample_batch)
    generator.labels = np.asarray(labels, dtype=np.int64)
    with progress(f"sample {run.name} step {step}", len(labels), "images") as bar:
        images = generator.draw(range(len(labels)), bar).images
    names = _class_names(work)
    tiles = [(image, names[label]) for image, label in zip(images, labels, strict=True)]
    rows = [tiles[first : first + grid.COLUMNS] for first in range(0, len(tiles), grid.COLUMNS)]
    key = layout.labels_grid(config, run, step, labels)
    store.write(key, grid.render(rows))
    say(f"{run.name} step {step}: {len(labels)} samples, {store.place(key)}")
    return key


def _class_names(work: Work) -> Sequence[str]:
    manifest = read_output(work, dataset_output(work))
    return manifest.class_names if manifest else [str(label) for label in range(work.config.dataset.classes)]


def _draw_sets(work: Work, run: Run, sets: Sequence[tuple[SampleSet, CheckpointMeta]]) -> None:
    from dit.checkpoints.read import load_weights
    from dit.codec.open import open_codec
    from dit.health.ranks import agree, study_facts
    from dit.runtime.device import compiles, tune_process
    from dit.runtime.distributed import session
    from dit.sampling.generate import Generator, trained
    from dit.sampling.watch import SamplingWatch
    from dit.tracking import open_tracker

    config, store, fit = work.config, work.store, work.config.fit_for(run.spec)
    tune_process(fit.threads)
    with session() as ranks, open_tracker(config, store, run, enabled=ranks.is_main) as tracker:
        agree(ranks, {**study_facts(config, run, work.dataset_content), "sets": [one.step for one, _ in sets]})
        compiled = compiles(fit, ranks)
        # Before the model, because the decoder's weights may be missing.
        codec = open_codec(config.dataset, ranks.device, decoding=True, batch=fit.decode_batch)
        watch = SamplingWatch(work, run, ranks, tracker)
        watch.begin(sets[0][0].step)
        for sample_set, meta in sets:
            folder = layout.checkpoint(config, run, sample_set.step)
            weights, sha256 = load_weights(store, folder, meta, config.sampling.weights)
            denoise = trained(config, run.spec, weights, ranks.device, compiled=compiled)
            # A compiled model is made for whole batches; the few samples of a check do not need it.
            watch.look(meta, weights, trained(config, run.spec, weights, ranks.device) if compiled else denoise)
            generator = Generator(config, denoise, codec, ranks.device, fit.sample_batch)
            _draw_parts(sample_set, generator, sha256, ranks)
            ranks.barrier()
            if ranks.is_main:
                _finish(sample_set, sha256, tracker)
            ranks.barrier()


def _draw_parts(sample_set: SampleSet, generator: Generator, sha256: str, ranks: Ranks) -> None:
    """Draw this rank's share of the missing parts."""
    # The first rank's listing for all: listings at different moments would give different shares.
    finished = ranks.broadcast(list(sample_set.finished_parts(sha256)))
    mine = [part for part in sample_set.parts if part not in finished][ranks.rank :: ranks.world_size]
    todo = sum(len(sample_set.indices(part)) for part in mine)
    done = sum(len(sample_set.indices(part)) for part in finished) // ranks.world_size
    title = f"sample {sample_set.run.name} step {sample_set.step}"
    if ranks.world_size > 1:
        title += f" (process 1 of {ranks.world_size})"
    # A batch larger than a part spans several parts. Noise and labels depend on the sample alone, so images stay equal.
    size = max(1, sample_set.config.fit_for(sample_set.run.spec).sample_batch // PART_IMAGES)
    with progress(title, done + todo, "images", done, enabled=ranks.is_main) as bar:
        for group in (mine[start : start + size] for start in range(0, len(mine), size)):
            indices = [index for part in group for index in sample_set.indices(part)]
            drawn = generator.draw(indices, bar)
            first = 0
            for part in group:
                own = sample_set.indices(part)
                rows = slice(first, first + len(own))
                seconds = drawn.seconds * len(own) / len(indices)
                piece = Drawn(drawn.images[rows], drawn.latents[rows], seconds)
                sample_set.write_part(part, piece, generator.labels[own.start : own.stop], sha256)
                first += len(own)


def _finish(sample_set: SampleSet, sha256: str, tracker: Tracker) -> None:
    """Write preview and manifest of a set whose parts are all complete."""
    config, store, run, step = sample_set.config, sample_set.store, sample_set.run, sample_set.step
    records = sample_set.all_parts(sha256)
    png = _preview(sample_set, records)
    entry = store.write(layout.sample_grid(config, run, step), png)
    sample_set.write_manifest(records, [entry])
    tracker.image("samples", step, png)
    images, seconds = config.sampling.num_samples, sum(record.seconds for record in records)
    rate = format_rate(images / seconds, "images")
    say(f"{run.name} step {step}: {images} samples, {rate}, {store.place(layout.sample_grid(config, run, step))}")


def _preview(sample_set: SampleSet, records: Sequence[SamplePartRecord]) -> bytes:
    from dit.sampling import grid
    from dit.sampling.noise import sample_labels

    dataset, names = sample_set.config.dataset, _class_names(sample_set.work)
    labels = sample_labels(sample_set.config.sampling, dataset.classes)
    rows = grid.choose(labels, dataset.classes)
    needed = sorted({index // PART_IMAGES for row in rows for index in row})
    parts = {part: sample_set.read_part(records[part].file)[0] for part in needed}
    return grid.render([[(parts[i // PART_IMAGES][i % PART_IMAGES], names[labels[i]]) for i in row] for row in rows])
