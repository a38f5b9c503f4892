"""Runs every benchmark row in fresh processes, its sides in turn, and keeps all that the launches say.

A ratio within one run says what a speed on one machine cannot: the sides share the machine, the hour and the noise.
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
    """Ratio of the fastest side to the first that the project sets itself."""
    parts: bool = False
    """Whether the first side is the whole and each other one lacks a part, so that ratios are below 1."""
    ceiling: str | None = None
    """A side that does only what no side can do without."""
    rounds: int = ROUNDS
    """Fresh launches of every side at most: fewer where one takes a minute."""


@dataclass
class Outcome:
    """What the launches of a row printed, by side, in order of rounds."""

    row: Row
    launches: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def rate(self, side: str) -> float:
        """Median over launches, in the row's unit; more is better."""
        return statistics.median(launch["rate"] for launch in self.launches[side])

    def ratios(self, side: str) -> list[float]:
        """This side's rate over the reference's, round by round; none where the reference could not run."""
        reference = self.launches[next(iter(self.row.sides))]
        if "skipped" in reference[0]:
            return []
        pairs = zip(self.launches[side], reference, strict=True)
        return [ours["rate"] / plain["rate"] for ours, plain in pairs]

    def to_json(self) -> dict[str, Any]:
        """Everything a reader needs to judge the row."""
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
    """Measure one side in a process of its own, so that no allocator, thread pool or cache is inherited."""
    command = [sys.executable, "-m", "bench.worker", module, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench: {module} {arguments} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run(row: Row, rounds: int, say: Callable[[str], object], launch: Launch = launch) -> Outcome:
    """One row, the sides interleaved. A side that says it cannot run here is asked once."""
    outcome = Outcome(row, {side: [] for side in row.sides})
    for number in range(min(rounds, row.rounds)):
        for side, arguments in row.sides.items():
            if outcome.launches[side] and "skipped" in outcome.launches[side][0]:
                continue
            say(f"{row.name}: {side}, round {number + 1} of {min(rounds, row.rounds)}")
            outcome.launches[side].append(launch(row.module, arguments))
    return outcome
