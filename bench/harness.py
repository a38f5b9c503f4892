"""Runs every benchmark row in fresh processes, the two sides in turn, and keeps medians.

A ratio within one run says what a speed on one machine cannot: the sides share the machine, the hour and the noise.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One comparison. `sides` maps a name to the arguments of `module.measure`; the first is the plain reference."""

    name: str
    unit: str
    module: str
    sides: dict[str, dict[str, Any]]
    target: float | None = None
    """Ratio of the last side to the first that the project sets itself."""


@dataclass
class Outcome:
    """What the launches of a row printed, by side."""

    row: Row
    launches: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def rate(self, side: str) -> float:
        """Median over launches, in the row's unit; more is better."""
        return statistics.median(launch["rate"] for launch in self.launches[side])

    def ratios(self, side: str) -> list[float]:
        """This side's rate over the reference's, round by round."""
        reference = next(iter(self.row.sides))
        pairs = zip(self.launches[side], self.launches[reference], strict=True)
        return [ours["rate"] / plain["rate"] for ours, plain in pairs]

    def to_json(self) -> dict[str, Any]:
        """Everything a reader needs to judge the row."""
        return {
            "name": self.row.name,
            "unit": self.row.unit,
            "target_ratio": self.row.target,
            "sides": {
                side: {
                    "arguments": arguments,
                    "median": self.rate(side),
                    "ratio_median": statistics.median(self.ratios(side)),
                    "ratio_range": [min(self.ratios(side)), max(self.ratios(side))],
                    "launches": self.launches[side],
                }
                for side, arguments in self.row.sides.items()
            },
        }


def launch(module: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Measure one side in a process of its own, so that no allocator, thread pool or cache is inherited."""
    command = [sys.executable, "-m", "bench.worker", module, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench: {module} {arguments} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run(rows: list[Row], rounds: int) -> list[Outcome]:
    """All rows, `rounds` times each, the sides interleaved."""
    console = Console(stderr=True)
    outcomes = []
    for row in rows:
        outcome = Outcome(row, {side: [] for side in row.sides})
        for number in range(rounds):
            for side, arguments in row.sides.items():
                console.print(f"{row.name}: {side}, round {number + 1} of {rounds}")
                outcome.launches[side].append(launch(row.module, arguments))
        outcomes.append(outcome)
    return outcomes


def machine() -> dict[str, Any]:
    """What the figures were read on, with the matrix product rates measured in this run."""
    return {
        "processor": _processor(),
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        **launch("bench.peak", {}),
    }


def save(outcomes: list[Outcome], described: dict[str, Any], name: str) -> Path:
    """Write `results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": described, "rows": [o.to_json() for o in outcomes]}, indent=1) + "\n")
    return path


def table(outcomes: list[Outcome]) -> Table:
    """One line per side, with its ratio to the row's first."""
    columns = Table(title="Benchmarks: medians of fresh launches, sides interleaved")
    for heading in ("row", "side", "rate", "unit", "ratio", "range", "aim", "beside"):
        columns.add_column(heading)
    for outcome in outcomes:
        last = list(outcome.row.sides)[-1]
        for side in outcome.row.sides:
            ratios = outcome.ratios(side)
            extra = outcome.launches[side][-1].get("beside", {})
            columns.add_row(
                outcome.row.name,
                side,
                f"{outcome.rate(side):.4g}",
                outcome.row.unit,
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}",
                f"{outcome.row.target:g}" if outcome.row.target and side == last else "",
                ", ".join(f"{key} {value}" for key, value in extra.items()),
            )
    return columns


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()}, {len(models)} cores"
