"""Import: a checkpoint of another program into a study, where the later stages take it for one of the study's own.

dit import 0052000.pt --variant DiT-XL/2 --step 52000 my.yaml
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dit.checkpoints.read import list_checkpoints
from dit.console import say
from dit.errors import ConfigError, MismatchError
from dit.results.stages import Work, checkpoint, milestones
from dit.results.state import look
from dit.results.study_copy import keep_study
from dit.storage import Store, write_record
from dit.storage.base import sha256_file
from dit.storage.lease import leased
from dit.storage.open import fetch_file
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import CheckpointMeta, Origin, TrainRecord
from dit.study.runs import Run

if TYPE_CHECKING:
    from torch import Tensor

    from dit.checkpoints.foreign import Foreign


def run(config: StudyConfig, store: Store, source: str, variant: str, step: int | None = None) -> CheckpointMeta:
    """Write the checkpoint at path or address `source` as the variant's checkpoint at `step`; return its record.

    Weights become float32. With the study's last missing checkpoint, the variant's training is recorded as complete.

    Raises ConfigError without a step, given or in the file, or for a variant that the study does not have.
    Raises MismatchError when it is not a checkpoint of this variant with this dataset's latents and classes, has a
    value that is not finite, or when the study has another checkpoint of this step; also as `read_foreign`.
    """
    from dit.checkpoints.fit import fit_model
    from dit.checkpoints.foreign import read_foreign

    run, work, path = config.run(variant), Work(config, store), fetch_file(source)
    found = read_foreign(path)
    number = step if step is not None else found.step
    if number is None:
        raise ConfigError(f"{source}: does not have the step of its training; give --step")
    _, inputs = fit_model(source, found.weights, run.spec.name)
    if inputs != config.dataset.inputs:
        wanted = config.dataset.inputs
        raise MismatchError(
            f"{source}: is a model of {inputs.channels}x{inputs.size}x{inputs.size} in {inputs.classes} classes, the"
            f" study's dataset has {wanted.channels}x{wanted.size}x{wanted.size} in {wanted.classes}"
        )
    _require_finite(source, found)
    origin = Origin(
        address=source, sha256=sha256_file(path), bytes=path.stat().st_size, ema_decay=found.decay, notes=found.notes
    )
    store.check_writable()
    keep_study(config, store)
    with leased(store, layout.lease(config, run), f"the training of {run.name}"):
        meta = _existing(work, run, number, origin) or _write(work, run, number, found, origin)
        _record_training(work, run)
    return meta


def _existing(work: Work, run: Run, step: int, origin: Origin) -> CheckpointMeta | None:
    finding = look(work, checkpoint(work, run, step))
    if finding.record is None or not finding.complete:
        return None
    if finding.record.origin is None or finding.record.origin.sha256 != origin.sha256:
        where = work.store.place(finding.output.key)
        raise MismatchError(f"{where}: step {step} has another checkpoint; give another --step or study name")
    say(f"{run.name} step {step}: imported before, nothing to do")
    return finding.record


def _write(work: Work, run: Run, step: int, found: Foreign, origin: Origin) -> CheckpointMeta:
    from dit.checkpoints.write import upload_tensors

    config, store, folder = work.config, work.store, layout.checkpoint(work.config, run, step)
    parts = {layout.RAW_WEIGHTS: found.raw, layout.EMA_WEIGHTS: found.ema, layout.OPTIMIZER: found.optimizer}
    store.delete(folder)
    entries = tuple(
        upload_tensors(store, _float32(tensors), f"{folder}/{name}") for name, tensors in parts.items() if tensors
    )
    meta = CheckpointMeta(
        study=config.study,
        variant=run.spec.name,
        step=step,
        config_hash=config.training_hash(run),
        dataset_content="",
        precision="",
        world_size=0,
        code_version="",
        finite=True,
        files=entries,
        origin=origin,
    )
    write_record(store, f"{folder}/{layout.META}", meta)
    for note in origin.notes:
        say(f"{origin.address}: {note}")
    say(f"{run.name} step {step}: imported {', '.join(entry.name for entry in entries)} to {store.place(folder)}")
    if found.ema is None:
        say(f"{run.name} step {step}: it has no EMA; sample it with --set sampling.weights=raw")
    return meta


def _float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float().contiguous() for name, tensor in tensors.items()}


def _record_training(work: Work, run: Run) -> None:
    """Record the training as complete once all its checkpoints are imported, as the report expects."""
    config, store = work.config, work.store
    present = [step for step in milestones(config) if step in list_checkpoints(store, config, run)]
    metas = [look(work, checkpoint(work, run, step)).record for step in present]
    if len(present) < len(milestones(config)) or any(meta is None or meta.origin is None for meta in metas):
        return
    record = TrainRecord(
        study=config.study,
        variant=run.spec.name,
        steps=present[-1],
        config_hash=config.training_hash(run),
        science_hash=config.science_hash(),
        dataset_content="",
        parameters=run.spec.parameters(config.dataset.inputs),
        gflops=run.spec.gflops(config.dataset.inputs),
        checkpoints=tuple(present),
        final_loss=math.nan,
        images_per_second=0.0,
        train_seconds=0.0,
        peak_memory_bytes=0,
        device="imported",
        world_size=1,
        imported=True,
    )
    write_record(store, layout.train_record(config, run), record)


def _require_finite(source: str | Path, found: Foreign) -> None:
    for weights in (found.ema, found.raw):
        for name, tensor in (weights or {}).items():
            if bad := int((~tensor.isfinite()).sum()):
                raise MismatchError(
                    f"{source}: {name} has {bad} of {tensor.numel()} values that are not finite; the training diverged"
                    " or the file is damaged: give an earlier checkpoint"
                )
