"""Rules that import-linter cannot check: libraries that an import loads, lengths of files, names of modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "kfp", "mlflow", "boto3", "diffusers", "webdataset", "torch_fidelity", "sklearn", "pandas"}
LIGHT = (
    "dit.cli.commands",
    "dit.study.config",
    "dit.console",
    "dit.errors",
    "dit.study.layout",
    "dit.study.records",
    "dit.storage",
    "dit.study.study_file",
    "dit.tracking",
    "dit.tracking.mlflow_ui",
    "dit.study.variants",
    "dit.report.page",
    "dit.report.tables",
    "dit.stages.train",
    "dit.stages.sample",
    "dit.stages.evaluate",
    "dit.stages.report",
    "dit.results",
    "pipelines.cli.commands",
    "pipelines.local.docker",
    "pipelines.jobs.launch",
    "pipelines.jobs.torchrun",
    "pipelines.local.runner",
    "pipelines.reaper",
    "pipelines.status",
    "pipelines.step.step",
)


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_loads_no_heavy_library(module: str) -> None:
    code = f"import sys, {module}; print(*({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_folder_called_mlflow_holds_no_module() -> None:
    """A package of that name would shadow the library."""
    assert list((ROOT / "mlflow").glob("*.py")) == []


def test_files_stay_readable() -> None:
    """300 lines; those that list keys, records or faults, one after another, may be longer."""
    lists = {"dit/study/config.py": 420, "dit/study/records.py": 440, "bench/gates/faults.py": 400}
    files = [path for folder in ("dit", "pipelines", "bench") for path in (ROOT / folder).rglob("*.py")]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > lists.get(name, 300)} == {}


def test_test_modules_have_names_of_their_own() -> None:
    """Without packages, pytest takes two files of one name for the same module."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
