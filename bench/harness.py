"""Runs every benchmark row in fresh processes, its sides in turn, and keeps the output of every launch.

Ratios are taken within one run, because its sides share the machine and its load at that time.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ROUNDS = 3


@dataclass(frozen=True)
class Row:
    """One comparison. `sides` maps a name to the arguments of `module.measure`; the first is the plain reference."""

    name: str
    unit: str
    module: str
    sides: dict[str, dict[str, Any]]
    target: float | None = None
    """The project's target for the ratio of the fastest side to the first."""
    parts: bool = False
    """Whether the first side is complete and every other side lacks a part, so that ratios are below 1."""
    ceiling: str | None = None
    """A side with only the work that every side must do."""
    rounds: int = ROUNDS
    """Maximum of launches of every side; fewer if a launch takes a minute."""


@dataclass
class Outcome:
    """Output of a row's launches, by side, in the order of rounds."""

    row: Row
    launches: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def rate(self, side: str) -> float:
        """Median over launches, in the row's unit; higher is better."""
        return statistics.median(launch["rate"] for launch in self.launches[side])

    def ratios(self, side: str) -> list[float]:
        """This side's rate divided by the reference's, per round; empty if the reference was skipped."""
        reference = self.launches[next(iter(self.row.sides))]
        if "skipped" in reference[0]:
            return []
        pairs = zip(self.launches[side], reference, strict=True)
        return [ours["rate"] / plain["rate"] for ours, plain in pairs]

    def to_json(self) -> dict[str, Any]:
        """The row with all launches and their statistics."""
        return {
            "name": self.row.name,
            "unit": self.row.unit,
            "target_ratio": self.row.target,
            "parts": self.row.parts,
            "ceiling": self.row.ceiling,
            "sides": {side: self._side(side) for side in self.row.sides},
        }

    def _side(self, side: str) -> dict[str, Any]:
        launches = self.launches[side]
        result: dict[str, Any] = {"arguments": self.row.sides[side], "launches": launches}
        if "skipped" in launches[0]:
            return {**result, "skipped": launches[0]["skipped"]}
        shares = [launch["share_of_peak"] for launch in launches if "share_of_peak" in launch]
        ratios = self.ratios(side)
        return {
            **result,
            "median": self.rate(side),
            "ratio_median": statistics.median(ratios) if ratios else None,
            "ratio_range": [min(ratios), max(ratios)] if ratios else None,
            "share_of_peak": statistics.median(shares) if shares else None,
            "beside": launches[-1].get("beside", {}),
        }


Launch = Callable[[str, dict[str, Any]], dict[str, Any]]


def launch(module: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Measure one side in a fresh process, so that it inherits no allocator, thread pool or cache."""
    command = [sys.executable, "-m", "bench.worker", module, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench: {module} {arguments} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run(row: Row, rounds: int, say: Callable[[str], object], launch: Launch = launch) -> Outcome:
    """Run one row with its sides in turn. A side that cannot run on this machine is launched once."""
    outcome = Outcome(row, {side: [] for side in row.sides})
    for number in range(min(rounds, row.rounds)):
        for side, arguments in row.sides.items():
            if outcome.launches[side] and "skipped" in outcome.launches[side][0]:
                continue
            say(f"{row.name}: {side}, round {number + 1} of {min(rounds, row.rounds)}")
            outcome.launches[side].append(launch(row.module, arguments))
    return outcome
