"""One launch of a training: joins the ranks, runs the loop, and writes the record."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing, nullcontext

import torch

from dit.checkpoints.read import FILES, list_checkpoints, load_file
from dit.checkpoints.write import CheckpointWriter
from dit.console import progress, say
from dit.data.loader import TrainingStream
from dit.data.shard_set import ShardSet
from dit.errors import MissingError, RanksDifferError
from dit.health.ranks import agree, record_difference, study_facts
from dit.results.stages import TRAIN, Work, checkpoint
from dit.results.state import is_complete, require
from dit.runtime.device import computed_in, tune_process
from dit.runtime.distributed import Ranks, session
from dit.storage import write_record
from dit.storage.lease import Lease, leased
from dit.study import layout
from dit.study.fields import Precision
from dit.study.records import TrainRecord
from dit.study.runs import Run
from dit.study.version import code_version
from dit.tracking import Tracker, open_tracker
from dit.training.heartbeat import Heartbeat
from dit.training.loop import TrainingLoop
from dit.training.plan import TrainPlan, make_plan
from dit.training.signals import StopRequest
from dit.training.telemetry import Telemetry, peak_memory_bytes
from dit.training.trainer import Trainer
from dit.training.watch import TrainingWatch


def execute(work: Work, run: Run, until: int | None = None) -> None:
    """Train a variant's missing steps up to `until` on all ranks. The record is written after the last step.

    Raises RanksDifferError when the ranks do not do the same work, MissingError when they do not share a store.
    Raises LeaseError when another process trains the variant in this store.
    Raises the errors of `make_plan` and of `TrainingLoop.run`.
    """
    tune_process(work.config.fit_for(run.spec).threads)
    with session() as ranks:
        if ranks.world_size > 1:
            # Each rank reads the store by itself, so they must agree on the study before they ask what is complete.
            _agree(work, run, ranks)
            if is_complete(TRAIN, work, run, until):
                return
            make_plan(work, run, until)
        with _leased(work, run, ranks) as lease:
            # Not the plan from before: until the lease was free, another process may have trained on.
            ranks.barrier()
            plan = make_plan(work, run, until)
            _check_agreement(plan, ranks)
            _execute(plan, ranks, lease)


def _leased(work: Work, run: Run, ranks: Ranks) -> AbstractContextManager[Lease | None]:
    """The lease of the variant's training, which rank 0 holds."""
    if not ranks.is_main:
        return nullcontext()
    return leased(work.store, layout.lease(work.config, run), f"the training of {run.name}")


def _execute(plan: TrainPlan, ranks: Ranks, lease: Lease | None) -> None:
    if ranks.is_main:
        _report_precision(plan.config.train.precision, ranks.device)
    trainer = Trainer(plan.spec, plan.config.dataset.inputs, plan.recipe, plan.fit, ranks)
    if plan.resume is not None:
        _restore(plan, trainer)
    progress_records = layout.ranks_progress(plan.config, plan.run)
    if ranks.is_main:
        # Of an earlier launch, which may have had more ranks. No rank writes its own before the next collective.
        plan.store.delete(progress_records)
    ranks.barrier()
    with open_tracker(plan.config, plan.store, plan.run, enabled=ranks.is_main) as tracker:
        _train(plan, ranks, trainer, tracker, lease)
        ranks.barrier()
        if ranks.is_main:
            if plan.reaches_end:
                record = _record(plan, ranks, tracker)
                write_record(plan.store, layout.train_record(plan.config, plan.run), record)
            plan.store.delete(progress_records)
    # Every rank reads the record next.
    ranks.barrier()


def _agree(work: Work, run: Run, ranks: Ranks) -> None:
    computing = {
        "computed precision": computed_in(work.config.train.precision, ranks.device),
        "torch": torch.__version__,
    }
    try:
        agree(ranks, study_facts(work.config, run, work.dataset_content) | computing)
    except RanksDifferError as error:
        if ranks.is_main:
            reached = max(list_checkpoints(work.store, work.config, run), default=0)
            record_difference(work.store, work.config, run, reached, error)
        raise


def _check_agreement(plan: TrainPlan, ranks: Ranks) -> None:
    """Raise MissingError when ranks plan other steps than rank 0: each machine then has a root of its own."""
    mine = (plan.start_step, plan.stop_step, plan.ahead)
    if ranks.maximum(int(ranks.broadcast(mine) != mine)):
        raise MissingError(
            f"{plan.store.place()}: the ranks find different checkpoints; use a root that all machines share"
        )


def _report_precision(asked: Precision, device: torch.device) -> None:
    computed = computed_in(asked, device)
    if computed != asked:
        say(f"train.precision={asked}: this CPU has no kernels for it; computing in {computed}")


def _restore(plan: TrainPlan, trainer: Trainer) -> None:
    assert plan.resume is not None
    folder = layout.checkpoint(plan.config, plan.run, plan.start_step)
    files = {name: load_file(plan.store, folder, plan.resume, name) for name in FILES}
    trainer.load(plan.start_step, plan.store.place(folder), files)


def _train(plan: TrainPlan, ranks: Ranks, trainer: Trainer, tracker: Tracker, lease: Lease | None) -> None:
    config, run, start, stop = plan.config, plan.run, plan.start_step, plan.stop_step
    _log_parameters(plan, tracker)
    if start == stop:
        return
    with Heartbeat(plan, ranks) as heartbeat:
        watch = TrainingWatch(plan, ranks, trainer, tracker)
        watch.begin()
        stream = TrainingStream(
            ShardSet.open(plan.store, config, show_progress=ranks.is_main),
            plan.recipe,
            rank=ranks.rank,
            world_size=ranks.world_size,
            start_step=start,
            stop_step=stop,
            prefetch=plan.fit.prefetch,
        )
        # The journal is stored before each checkpoint is complete, because a resume does not log the steps before it
        # again.
        writer = CheckpointWriter(plan.store, config, run, plan.retention, tracker.sync) if ranks.is_main else None
        with (
            closing(stream),
            writer if writer is not None else nullcontext(),
            progress(f"train {run.name}", stop, "step", start, enabled=ranks.is_main) as bar,
            StopRequest() as stop_request,
        ):
            telemetry = Telemetry(plan, ranks, tracker)
            loop = TrainingLoop(plan, ranks, trainer, telemetry, writer, lease, watch)
            loop.run(stream, stop_request, bar, heartbeat)


def _log_parameters(plan: TrainPlan, tracker: Tracker) -> None:
    spec, inputs = plan.spec, plan.config.dataset.inputs
    tracker.tags({"variant": spec.name, "seed": plan.run.seed})
    tracker.params(
        {
            "variant": spec.name,
            "depth": spec.depth,
            "hidden": spec.hidden,
            "heads": spec.heads,
            "patch": spec.patch,
            **{f"recipe.{key}": value for key, value in plan.recipe.identity().items()},
            "dataset": plan.dataset_content,
            "code_version": code_version(),
        }
    )
    tracker.metrics(0, {"parameters_m": spec.parameters(inputs) / 1e6, "gflops": spec.gflops(inputs)})


def _record(plan: TrainPlan, ranks: Ranks, tracker: Tracker) -> TrainRecord:
    """Return the record of the checkpoints in the store, which may go further than this launch did."""
    config, run, before = plan.config, plan.run, plan.record
    present = list_checkpoints(plan.store, config, run)
    checkpoints = tuple(step for step in plan.milestones if step in present)
    if before is not None and before.steps >= config.train.steps:
        # The training had ended before; this launch only made removed checkpoints again.
        return before.model_copy(update={"checkpoints": checkpoints})
    inputs, last = config.dataset.inputs, require(plan.work, checkpoint(plan.work, run, config.train.steps))
    return TrainRecord(
        study=config.study,
        variant=run.spec.name,
        steps=last.step,
        config_hash=config.training_hash(run),
        science_hash=config.science_hash(),
        dataset_content=plan.dataset_content,
        parameters=run.spec.parameters(inputs),
        gflops=run.spec.gflops(inputs),
        checkpoints=checkpoints,
        final_loss=last.loss,
        images_per_second=last.images_per_second,
        train_seconds=last.train_seconds,
        peak_memory_bytes=peak_memory_bytes(ranks.device),
        device=_device_name(ranks.device),
        world_size=last.world_size,
        tracking_run_id=tracker.run_id,
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads per process"
