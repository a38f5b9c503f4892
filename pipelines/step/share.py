"""Which checkpoints of a variant one step of the pipeline does."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from dit.results.stages import Stage, milestones, variant_steps
from dit.study.config import StudyConfig


@dataclass(frozen=True)
class Share:
    """Checkpoint `part` of `parts`, counted from 1; the last part has all that are left.

    It has a number, not a training step: steps may be changed when a run of a compiled pipeline is submitted.
    """

    part: int = 1
    parts: int = 1

    def steps(self, config: StudyConfig, stages: Collection[str]) -> list[tuple[Stage, int]]:
        """The share's work of these stages, in order, as (stage, training step).

        A run with fewer checkpoints than the pipeline was compiled for leaves nothing to the last parts. They look at
        the last checkpoint again.
        """
        numbers = milestones(config)[self.part - 1 :]
        own = numbers if self.part == self.parts else numbers[:1]
        wanted = [(stage, step) for stage, step in variant_steps(config) if stage.name in stages]
        return [(stage, step) for stage, step in wanted if step in own] or wanted[-1:]
