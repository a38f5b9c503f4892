"""Compares the table of stages with a store: which outputs are complete. Torch-free.

Only the sizes of files are compared here, from one listing per folder. The stage that reads a file checks its SHA-256.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic

from dit.checkpoints.read import list_checkpoints
from dit.console import say
from dit.errors import MismatchError, MissingError
from dit.results.output import FileSize, Output, RecordT
from dit.results.stages import VARIANT_STAGES, Stage, Work, checkpoint, dataset
from dit.results.study_copy import differences
from dit.runtime.distributed import environment_rank
from dit.storage import Store, read_record
from dit.study.records import CheckpointMeta, Record
from dit.study.runs import Run


@dataclass(frozen=True)
class Finding(Generic[RecordT]):
    """State of one output in a store."""

    output: Output[RecordT]
    record: RecordT | None
    complete: bool
    files: bool = False
    """Whether the record and all its files exist. An output that is no longer needed is complete without them."""
    problem: str = ""
    """Why it is not complete; empty if simply the record is missing."""


@dataclass(frozen=True)
class StageState:
    """How far a stage is."""

    findings: tuple[Finding[Any], ...]

    @property
    def complete(self) -> bool:
        """Whether every output is complete."""
        return self.done == len(self.findings)

    @property
    def done(self) -> int:
        """Number of complete outputs."""
        return sum(finding.complete for finding in self.findings)

    @property
    def records(self) -> list[Record]:
        """The records of complete outputs; an output that is no longer needed may have none."""
        return [finding.record for finding in self.findings if finding.complete and finding.record is not None]


def look(work: Work, output: Output[RecordT]) -> Finding[RecordT]:
    """Compare one output with the store.

    Raises MismatchError when its record has another configuration or origin, DataError when it is damaged.
    """
    record = read_output(work, output)
    if record is not None and output.replaceable and getattr(record, "config_hash", None) != output.hash:
        record = None
    problem = None
    if record is not None:
        problem = output.falls_short(record) or _missing_file(work.store, output.files(record))
        if problem is None:
            return Finding(output, record, complete=True, files=True)
    if (record is not None or not output.record_stays) and _no_longer_needed(work, output):
        return Finding(output, record, complete=True)
    return Finding(output, record, complete=False, problem=problem or output.detail())


def read_output(work: Work, output: Output[RecordT]) -> RecordT | None:
    """An output's record, whether or not its files exist; None without a record.

    Raises MismatchError when the record has another configuration or origin, DataError when it is damaged.
    """
    record = read_record(work.store, output.key, output.type)
    if record is None or output.replaceable:
        return record
    where = work.store.place(output.key)
    if problem := output.differs(record):
        raise MismatchError(f"{where}: {problem}")
    check_hash(work, where, record, output)
    return record


def check_hash(work: Work, where: str, record: Record, output: Output[Any]) -> None:
    """Raises MismatchError when the record has another hash than the output.

    It names the keys that differ and both values, or both hashes where the store has no copy of the other study.
    """
    made_with = getattr(record, "config_hash", None)
    if made_with == output.hash:
        return
    known = output.hash_of and differences(work.config, work.store, output.hash_of, str(made_with), output.sections)
    made = (
        f"made with {known}; restore"
        if known
        else f"made with configuration {made_with}, this study's configuration is {output.hash}: {output.sections} keys"
        " differ; restore"
    )
    raise MismatchError(f"{where}: {made} them or use another study name or root")


def require(work: Work, output: Output[RecordT], *, files: bool = True) -> RecordT:
    """The record of an output. With `files=False` its files may be missing.

    Raises MissingError, which names the command that makes it, and the errors of `look`.
    """
    finding = look(work, output)
    if finding.record is None or (files and not finding.files):
        raise MissingError(missing_line(work, finding))
    return finding.record


def require_stage(stage: Stage, work: Work, run: Run | None = None, step: int | None = None) -> list[Record]:
    """The records of a complete stage, or of as much of it as training step `step` needs.

    Raises MissingError, which names the first incomplete output and the command that makes it, and the errors of
    `look`.
    """
    state = stage_state(stage, work, run, step)
    for finding in state.findings:
        if not finding.complete:
            raise MissingError(missing_line(work, finding))
    return state.records


def missing_line(work: Work, finding: Finding[Any]) -> str:
    """One line: what is missing, where, why, and the command that makes it; about the first missing input, if any."""
    output = finding.output
    for needed in output.made_from():
        if not (source := look(work, needed)).files:
            return missing_line(work, source)
    reason = f" ({finding.problem})" if finding.problem else ""
    return f"{work.store.place(output.key)}: {output.lacking}{reason}; run `{output.command}`"


def stage_state(stage: Stage, work: Work, run: Run | None = None, step: int | None = None) -> StageState:
    """How far a stage is, for one variant if it runs per variant; raises as `look`."""
    return StageState(tuple(look(work, output) for output in stage.required(work, run, step)))


def is_complete(stage: Stage, work: Work, run: Run | None = None, step: int | None = None) -> bool:
    """Whether all outputs of a stage are complete, or those that training step `step` needs; raises as `look`."""
    return all(look(work, output).complete for output in stage.required(work, run, step))


def say_complete(stage: Stage, run: Run | None = None, step: int | None = None) -> None:
    """Print that a stage has nothing to do; of several ranks, the first does."""
    if environment_rank() == 0:
        say(f"{stage.step_name(run, step)}: complete, nothing to do")


def unfinished(work: Work) -> list[Run]:
    """Runs with an incomplete stage, the most expensive first; raises as `look`."""
    left = [run for run in work.config.runs if not all(is_complete(stage, work, run) for stage in VARIANT_STAGES)]
    return sorted(left, key=lambda run: run.spec.macs(work.config.dataset.inputs), reverse=True)


def study_is_complete(work: Work) -> bool:
    """Whether everything before the report is complete; raises as `look`."""
    return look(work, dataset(work)).complete and not unfinished(work)


def whole_checkpoints(work: Work, run: Run) -> dict[int, CheckpointMeta]:
    """A variant's complete checkpoints by step, in order; raises as `look`."""
    steps = list_checkpoints(work.store, work.config, run)
    findings = {step: look(work, checkpoint(work, run, step)) for step in steps}
    return {
        step: finding.record for step, finding in findings.items() if finding.complete and finding.record is not None
    }


def _no_longer_needed(work: Work, output: Output[Any]) -> bool:
    if output.needed_by is None:
        return False
    return all(look(work, made_from_it).complete for made_from_it in output.needed_by())


def _missing_file(store: Store, files: Iterable[FileSize]) -> str | None:
    wanted = list(files)
    # One listing per folder: a sample set on S3 has hundreds of files, and one request per file would take minutes.
    folders = {key.rpartition("/")[0] for key, _ in wanted}
    present = {key: size for folder in folders for key, size in store.sizes(folder).items()}
    for key, size in wanted:
        name = key.rpartition("/")[2]
        if key not in present:
            return f"{name} is missing"
        if size not in (None, present[key]):
            return f"{name} has {present[key]} bytes instead of {size}"
    return None
