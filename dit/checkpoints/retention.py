"""Which checkpoints of a training stay. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """The milestones stay for good, of all other checkpoints the newest `keep`.

    A longer run may have left some ahead. They count as newer once `stop_step` is written, not before, so that a kill
    never costs more than the steps since the last checkpoint.
    """

    keep: int
    milestones: tuple[int, ...]
    stop_step: int

    def retired(self, present: Iterable[int], written: int) -> list[int]:
        """Steps to delete, oldest first, now that the checkpoint of step `written` is complete."""
        passing = [
            step
            for step in sorted(present)
            if step not in self.milestones and (step <= written or written == self.stop_step)
        ]
        return passing[: -self.keep]
