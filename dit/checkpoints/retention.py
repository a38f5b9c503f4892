"""The rule for removing checkpoints of a training. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """All milestones are kept, and the newest `keep` of the other checkpoints.

    A longer run may have left checkpoints beyond the current step. They count only once `stop_step` is written: before
    that they would displace the checkpoints from which an interrupted training resumes.
    """

    keep: int
    milestones: tuple[int, ...]
    stop_step: int

    def retired(self, present: Iterable[int], written: int) -> list[int]:
        """Return the steps to delete, oldest first, after the checkpoint of step `written` is complete."""
        passing = [
            step
            for step in sorted(present)
            if step not in self.milestones and (step <= written or written == self.stop_step)
        ]
        return passing[: -self.keep]
