"""One step of the pipeline, in its own process: calls a stage by name and reports its error. Does not import kfp."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from dit.errors import DitError, FinalError, MissingError, StoreError, TransientStoreError, one_line
from dit.health.summary import stopped_by
from dit.results.stages import TRAIN
from dit.storage import Store, cache_dir
from dit.storage.base import exclusive
from dit.study import study_file
from dit.study.config import StudyConfig
from dit.study.records import Record
from dit.study.runs import full_name
from pipelines.jobs.names import KFP_POD, JobStage
from pipelines.step import events, parent_watch, submitted
from pipelines.step.child import run_in_child
from pipelines.step.result import StepResult
from pipelines.step.share import Share
from pipelines.step.submitted import StudyInputs

CLAIMS = "DIT_CLAIMS"
"""Variable with a folder in which a file has the name of each run that a process of this study has begun."""
_TERMINATION_LOG = Path("/dev/termination-log")
_TERMINATION_BYTES = 4096
_PART_SECTIONS = ("dataset", "fit")
T = TypeVar("T")


def run_step(stage: str, study: str) -> StepResult:
    """Run a stage of the whole study at this address, in this process.

    A DitError becomes one line and the process's exit code. Under a lifeline, all output becomes events.
    """

    def work() -> StepResult:
        config, store, _ = submitted.read(study)
        return _stage(stage, config, store)

    return _reported(stage, work)


def run_variant(
    stages: Sequence[JobStage], study: str, variant: str, share: Share, image: str | None = None
) -> StepResult:
    """Run these stages of a run for the share's checkpoints, each checkpoint before the training goes on.

    `variant` is the run's name or slug, or several that are separated by commas. Of these the process does one after
    the other, without those that another process has claimed, and one that a health check stops ends alone. Returns the
    result of the last.

    One process does all of it, so that imports are paid once. With an image, in a run of Kubeflow Pipelines, a job of
    many pods does each stage of each checkpoint. Errors and output are as in `run_step`.
    """
    title = stages[0] if len(stages) == 1 else "variant"
    names = variant.split(",")
    config, store, root = _reported(_named(title, names[0]), lambda: submitted.read(study), announced=False)
    place, result, stopped = _Place(config, store, root, image), StepResult(config, store, []), None
    for name in names:
        if len(names) > 1 and not _claims(name):
            continue
        try:
            result, stopped = _run(stages, place, name, share), None
        except SystemExit as end:
            sick = end.code == FinalError.exit_code and stopped_by(config, store, config.run(name)) is not None
            if not sick or len(names) == 1:
                raise
            stopped = end
    if stopped is not None:
        raise stopped
    return result


def _claims(name: str) -> bool:
    """Whether this process is the first of `dit study` to ask for a run."""
    try:
        os.close(os.open(Path(os.environ[CLAIMS]) / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@dataclass(frozen=True)
class _Place:
    """Where a step works."""

    config: StudyConfig
    store: Store
    root: str
    image: str | None


def _run(stages: Sequence[JobStage], place: _Place, name: str, share: Share) -> StepResult:
    config, store, image = place.config, place.store, place.image
    records: list[Record] = []
    for stage, step in share.steps(config, stages):
        if image is None or KFP_POD not in os.environ:
            work = partial(_stage, stage.name, config, store, name, step)
        else:
            work = partial(_job, stage.name, config, store, name, step, root=place.root, image=image)
        records += _reported(_named(stage.name, name, step), work).records
    return StepResult(config, store, records, config.run(name))


def _job(
    stage: str, config: StudyConfig, store: Store, variant: str, step: int, *, root: str, image: str
) -> StepResult:
    """A job with many pods does the work."""

    def launch() -> StepResult:
        from pipelines.cluster.client import Cluster  # the Kubernetes client, which no other step needs
        from pipelines.jobs.launch import launch as launch_job
        from pipelines.jobs.spec import job_spec

        cluster = Cluster.connect()
        spec = job_spec(config, variant, cast(JobStage, stage), root, image, step)
        return StepResult(config, store, launch_job(config, spec, cluster))

    name = _named(stage, variant, step)
    run_in_child(lambda: _reported(name, launch), config.cluster.steps.retries)
    return launch()  # reads the records: the stage is complete


def run_part(dataset_study: str, root: str, overrides: list[str], part: tuple[int, int]) -> StepResult:
    """Make part (k, n) of the shards. Only overrides of the dataset are applied."""
    counting = [text for text in overrides if text.partition("=")[0].strip().split(".")[0] in _PART_SECTIONS]

    def work() -> StepResult:
        config = study_file.load_text(dataset_study, counting)
        return _stage("prepare", config, submitted.open_root(root, config.cluster), part=part)

    return _reported(f"prepare {part[0]}/{part[1]}", work)


def run_merge(inputs: StudyInputs, root: str) -> tuple[str, StepResult]:
    """Write the run's study to the store for the later steps, and join the shards of all parts.

    Returns the study's address and the dataset.
    """

    def join() -> tuple[str, StepResult]:
        config = inputs.resolve()
        store = submitted.open_root(root, config.cluster)
        address = submitted.patiently(lambda: submitted.write(config, store), config.cluster, StoreError)
        try:
            return address, _stage("prepare", config, store, function="merge")
        except MissingError as error:
            # kfp's cache remembers that a part was made once, not whether its shards are still there.
            raise MissingError(f"{error}; or, if a part came from the cache, dit submit --cache off") from None

    return _reported("merge", join)


def _named(stage: str, variant: str, step: int | None = None) -> str:
    name = f"{stage} {full_name(variant)}"
    return name if step is None else f"{name} step {step}"


def _reported(name: str, work: Callable[[], T], *, announced: bool = True) -> T:
    """Do a step's work and report an error: as an event to the starter, or on standard error.

    Only work that is `announced` counts as a step of the study.
    """
    with events.spoken(name, announced) if parent_watch.end_with_parent() else nullcontext(None) as starter:
        try:
            return work()
        except DitError as error:
            message = f"{name}: {one_line(error)}"
            _leave_reason(message)
            if starter is not None:
                starter.tell(events.Event("error", message, code=error.exit_code))
            else:
                sys.stderr.write(f"dit: {message}\n")
            raise SystemExit(error.exit_code) from None
        except Exception as error:
            _leave_reason(f"{name}: {type(error).__name__}: {one_line(error)}; its log has the traceback")
            raise


def _leave_reason(message: str) -> None:
    """Write the pod's termination message, which the pipelines' UI shows as the step's error."""
    # kubelet's mount is writable for every user. If it is not, the log still has the reason.
    if KFP_POD in os.environ:
        with suppress(OSError):
            _TERMINATION_LOG.write_bytes(message.encode()[:_TERMINATION_BYTES])


def _stage(
    stage: str,
    config: StudyConfig,
    store: Store,
    variant: str | None = None,
    step: int | None = None,
    *,
    function: str = "run",
    **options: Any,
) -> StepResult:
    if stage == TRAIN.name and step is not None:
        function = "run_until"
    call = getattr(importlib.import_module(f"dit.stages.{stage}"), function)
    with _alone(f"{store.url} {config.study} {variant or ''}"):
        # A stage goes on where it was interrupted.
        work = partial(call, config, store, *(given for given in (variant, step) if given is not None), **options)
        result = submitted.patiently(work, config.cluster, TransientStoreError)
    records = result if isinstance(result, list) else [result]
    return StepResult(config, store, [record for record in records if record is not None])


def _alone(what: str) -> AbstractContextManager[None]:
    """Do one step of a variant's run at a time: the last step of a killed run may still be writing its checkpoint."""
    path = cache_dir() / "locks" / hashlib.sha256(what.encode()).hexdigest()[:16]
    return exclusive(path, "another run works on this; waiting for its step to end")
