"""One command of the product in a process of its own, with a fault, and with every reading of a check kept."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

# Loaded once: the processes of the runs are forked from one that has them.
import dit.stages.evaluate
import dit.stages.prepare
import dit.stages.sample
import dit.stages.train
import dit.training.run  # noqa: F401
from bench.gates.table import CASES
from dit.cli.commands import run
from dit.health.watch import Watch
from dit.study.records import HealthEvent


@dataclass(frozen=True)
class Command:
    """What a process runs."""

    arguments: list[str]
    environment: dict[str, str]
    folder: Path
    """For its output and the readings of its checks."""
    case: str = ""
    """Name of the fault; empty for a healthy run."""
    name: str = "command"


def execute(command: Command) -> None:
    """Run the command and exit with its code."""
    command.folder.mkdir(parents=True, exist_ok=True)
    output = os.open(command.folder / f"{command.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(command.environment)
    _keep_readings(command.folder / "readings.jsonl")
    fault = next((case.fault for case in CASES if case.name == command.case), None)
    if fault is not None:
        fault(pytest.MonkeyPatch())
    sys.exit(run(command.arguments))


def _keep_readings(path: Path) -> None:
    """Append every reading to a file: the health log of the product keeps the last one of each check."""
    keep = Watch._keep

    def kept(self: Watch, found: HealthEvent) -> None:
        with path.open("a") as file:
            file.write(json.dumps(found.model_dump()) + "\n")
        keep(self, found)

    Watch._keep = kept  # type: ignore[method-assign]
