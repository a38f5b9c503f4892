"""The table of stages. A stage is one row, and every check of "is it complete?" reads this table.

A stage has outputs (see `outputs.py`), which `state.py` compares with a store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dit.results.output import Output
from dit.results.outputs import Work as Work
from dit.results.outputs import bounds as bounds
from dit.results.outputs import checkpoint as checkpoint
from dit.results.outputs import dataset as dataset
from dit.results.outputs import metrics as metrics
from dit.results.outputs import milestones as milestones
from dit.results.outputs import report as report
from dit.results.outputs import report_hash as report_hash
from dit.results.outputs import samples as samples
from dit.results.outputs import trained_to, training_outputs
from dit.results.outputs import training as training
from dit.study.config import StudyConfig
from dit.study.runs import Run

PodKind = Literal["prepare", "launch", "evaluate", "report"]
"""Sections of `cluster.steps`."""
_STEP = re.compile(r" step \d+$")


@dataclass(frozen=True)
class Stage:
    """One row of the table."""

    name: str
    per_variant: bool
    unit: str
    """The unit that `dit status` counts."""
    as_job: bool
    """Whether it runs as a job of many pods on a cluster, or in the pod of its pipeline step."""
    pod: PodKind
    outputs: Callable[[Work, Run | None], Sequence[Output[Any]]]
    at: Callable[[Work, Run, int], Sequence[Output[Any]]] | None = None
    """Those of its outputs that one training step needs; None if the stage does not run per variant."""

    def step_name(self, run: Run | None, step: int | None = None) -> str:
        """Name of the step in messages, such as `train mini-S/2` or, for one checkpoint, `train mini-S/2 step 500`."""
        name = f"{self.name} {run.name}" if run else self.name
        return name if step is None else f"{name} step {step}"

    def required(self, work: Work, run: Run | None, step: int | None = None) -> Sequence[Output[Any]]:
        """All outputs, or only those that training step `step` needs."""
        if step is None or run is None or self.at is None:
            return self.outputs(work, run)
        return self.at(work, run, step)


def run_of_step(name: str) -> str:
    """The run in a step's name, such as `mini-S/2 seed 1`; empty for a step of the whole study."""
    return _STEP.sub("", name).partition(" ")[2]


def variant_steps(config: StudyConfig) -> Iterator[tuple[Stage, int]]:
    """What is done for a run, in order, as (stage, training step).

    Each evaluated checkpoint is trained, sampled and evaluated before the training goes on.
    """
    for step in milestones(config):
        yield TRAIN, step
        if step in config.evaluation.at_steps:
            yield SAMPLE, step
            yield EVALUATE, step


def _at_steps(
    output: Callable[[Work, Run, int], Output[Any]],
) -> Callable[[Work, Run | None], Sequence[Output[Any]]]:
    def outputs(work: Work, run: Run | None) -> Sequence[Output[Any]]:
        assert run is not None
        return tuple(output(work, run, step) for step in work.config.evaluation.at_steps)

    return outputs


def _only(
    output: Callable[[Work, Run, int], Output[Any]],
) -> Callable[[Work, Run, int], Sequence[Output[Any]]]:
    return lambda work, run, step: (output(work, run, step),)


PREPARE = Stage("prepare", False, "shards", False, "prepare", lambda work, _: (bounds(work), dataset(work)))
TRAIN = Stage("train", True, "steps", True, "launch", training_outputs, trained_to)
SAMPLE = Stage("sample", True, "sets", True, "launch", _at_steps(samples), _only(samples))
EVALUATE = Stage("evaluate", True, "checkpoints", False, "evaluate", _at_steps(metrics), _only(metrics))
REPORT = Stage("report", False, "reports", False, "report", lambda work, _: (report(work),))

STAGES: tuple[Stage, ...] = (PREPARE, TRAIN, SAMPLE, EVALUATE, REPORT)
"""All stages, in the order of a study."""
VARIANT_STAGES: tuple[Stage, ...] = tuple(stage for stage in STAGES if stage.per_variant)


def step_names(config: StudyConfig) -> list[str]:
    """Names of a study's steps, in order; stages that run per variant are listed run by run."""
    first, last = STAGES.index(VARIANT_STAGES[0]), STAGES.index(VARIANT_STAGES[-1]) + 1
    each = [stage.step_name(run) for run in config.runs for stage in VARIANT_STAGES]
    return [*(stage.name for stage in STAGES[:first]), *each, *(stage.name for stage in STAGES[last:])]
