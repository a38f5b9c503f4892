"""One launch of a training: joins the ranks, puts the parts together, and writes the record at the end."""

from __future__ import annotations

from contextlib import closing, nullcontext

import torch

from dit import __version__, layout
from dit.compute import Precision, computed_in, tune_process
from dit.console import progress, say
from dit.data.loader import TrainingStream
from dit.data.shard_set import ShardSet
from dit.distributed import Ranks, session
from dit.errors import MissingError
from dit.records import TrainRecord
from dit.storage import write_record
from dit.tracking import Tracker, open_tracker
from dit.training.checkpoint import FILES, load_file
from dit.training.loop import TrainingLoop
from dit.training.plan import TrainPlan
from dit.training.signals import StopRequest
from dit.training.telemetry import Telemetry
from dit.training.trainer import Trainer
from dit.training.writer import CheckpointWriter


def execute(plan: TrainPlan) -> TrainRecord:
    """Train a plan's steps on all ranks; the same record on each.

    Raises what the loop raises, and MissingError when the ranks do not see the same store.
    """
    tune_process(plan.fit.threads)
    with session() as ranks:
        _check_agreement(plan, ranks)
        if ranks.is_main:
            _tell_precision(plan.config.train.precision, ranks.device)
        trainer = Trainer(plan.spec, plan.config.dataset.inputs, plan.config.train, plan.fit, ranks)
        if plan.resume is not None:
            _restore(plan, trainer)
        with open_tracker(plan.config, plan.store, plan.spec, enabled=ranks.is_main) as tracker:
            record = _train(plan, ranks, trainer, tracker)
            if ranks.is_main:
                write_record(plan.store, layout.train_record(plan.config, plan.spec), record)
        return ranks.broadcast(record)


def _check_agreement(plan: TrainPlan, ranks: Ranks) -> None:
    """Ranks on different machines with a root of their own would each begin elsewhere."""
    span = (plan.start_step, plan.stop_step)
    if ranks.maximum(int(ranks.broadcast(span) != span)):
        raise MissingError(
            f"{plan.store.url}: ranks see different checkpoints there; give a root that all machines share"
        )


def _tell_precision(asked: Precision, device: torch.device) -> None:
    computed = computed_in(asked, device)
    if computed != asked:
        say(f"train.precision={asked}: this CPU has no kernels for it; computing in {computed}")


def _restore(plan: TrainPlan, trainer: Trainer) -> None:
    assert plan.resume is not None
    folder = layout.checkpoint(plan.config, plan.spec, plan.start_step)
    files = {name: load_file(plan.store, folder, plan.resume, name) for name in FILES}
    trainer.load(plan.start_step, f"{plan.store.url}/{folder}", files)


def _train(plan: TrainPlan, ranks: Ranks, trainer: Trainer, tracker: Tracker) -> TrainRecord:
    """Run the loop, if there are steps to do, and sum up."""
    config, spec, start, stop = plan.config, plan.spec, plan.start_step, plan.stop_step
    _log_parameters(plan, tracker)
    if start == stop:
        return _record(plan, ranks, Telemetry(plan, ranks, tracker), tracker)
    stream = TrainingStream(
        ShardSet.open(plan.store, config, show_progress=ranks.is_main),
        config.train,
        rank=ranks.rank,
        world_size=ranks.world_size,
        start_step=start,
        stop_step=stop,
        prefetch=plan.fit.prefetch,
    )
    with (
        closing(stream),
        # What was logged up to a checkpoint must survive as the checkpoint does: a resume does not log it again.
        CheckpointWriter(plan, tracker.sync) if ranks.is_main else nullcontext() as writer,
        progress(f"train {spec.name}", stop, "step", start, enabled=ranks.is_main) as bar,
        StopRequest() as stop_request,
    ):
        telemetry = Telemetry(plan, ranks, tracker)
        TrainingLoop(plan, ranks, trainer, telemetry, writer).run(stream, stop_request, bar)
        return _record(plan, ranks, telemetry, tracker)


def _log_parameters(plan: TrainPlan, tracker: Tracker) -> None:
    spec, config, inputs = plan.spec, plan.config, plan.config.dataset.inputs
    tracker.params(
        {
            "variant": spec.name,
            "depth": spec.depth,
            "hidden": spec.hidden,
            "heads": spec.heads,
            "patch": spec.patch,
            **{f"recipe.{key}": value for key, value in config.train.identity().items()},
            "dataset": plan.dataset_content,
            "code_version": __version__,
        }
    )
    tracker.metrics(0, {"parameters_m": spec.parameters(inputs) / 1e6, "gflops": spec.gflops(inputs)})


def _record(plan: TrainPlan, ranks: Ranks, telemetry: Telemetry, tracker: Tracker) -> TrainRecord:
    config, spec, before = plan.config, plan.spec, plan.record
    if before is not None and before.steps >= plan.stop_step:
        # Only checkpoints that an earlier, longer run had not kept were made again.
        return before.model_copy(update={"checkpoints": plan.milestones})
    inputs = config.dataset.inputs
    return TrainRecord(
        study=config.study,
        variant=spec.name,
        steps=plan.stop_step,
        config_hash=config.training_hash(spec),
        science_hash=config.science_hash(),
        dataset_content=plan.dataset_content,
        parameters=spec.parameters(inputs),
        gflops=spec.gflops(inputs),
        checkpoints=plan.milestones,
        final_loss=telemetry.loss,
        images_per_second=telemetry.images_per_second,
        train_seconds=telemetry.train_seconds,
        peak_memory_bytes=telemetry.peak_memory_bytes,
        device=_device_name(ranks.device),
        world_size=ranks.world_size,
        tracking_run_id=tracker.run_id,
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads per process"
