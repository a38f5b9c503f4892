"""Faults of one process on the digits, from the table of `make gates`: the check that names each, and when.

A fault is run by the product's own commands on the digits. The healthy run, without a patch, passes all checks.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.gates import faults
from bench.gates.table import CASES, Case
from dit.cli.commands import run
from dit.health.log import last_events, read_events
from dit.storage import open_store
from dit.study import layout
from dit.study.records import HealthEvent
from dit.study.study_file import load

ROOT = Path(__file__).parents[3]
VARIANT = "mini-S/2"
SETTINGS = (
    "study=faulty",
    "train.steps=300",
    "train.ema_decay=0.98",
    "evaluation.at_steps=[300]",
    "sampling.num_samples=20",
    "fit.threads=1",
    "tracking.kind=none",
)
GUIDED = "sampling.cfg_scale=1.5"

Patch = pytest.MonkeyPatch


def command(stage: str, root: Path, *settings: str) -> int:
    """Run a stage's command of the study; its exit code."""
    overrides = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    variant = [] if stage == "prepare" else ["--variant", VARIANT]
    return run([stage, str(ROOT / "configs" / "digits.yaml"), *variant, "--root", str(root), *overrides])


def readings(root: Path) -> list[HealthEvent]:
    config = load(ROOT / "configs" / "digits.yaml", list(SETTINGS))
    return read_events(open_store(str(root)), layout.health(config, config.run(VARIANT)))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    assert command("prepare", root) == 0
    return root


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained") / "root"
    shutil.copytree(prepared, root)
    assert command("train", root) == 0
    return root


@pytest.fixture
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the fixture whose name is given."""
    copy = tmp_path / "root"
    shutil.copytree(request.getfixturevalue(request.param), copy)
    return copy


def test_a_healthy_training_and_its_samples_pass_every_check(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(trained, root)
    assert command("sample", root) == 0
    assert command("sample", root, GUIDED) == 0
    last = last_events(readings(root))
    assert {event.action for event in readings(root)} == {"ok"}
    assert set(last) == {
        *("recipe", "feed", "labels", "start", "finite", "learning", "progress"),
        *("pure-noise", "ema", "identity", "sampler", "samples", "label-gain"),
    }


def of(stage: str) -> list[Any]:
    """The table's faults of this stage that one process on the digits can have."""
    rows = [case for case in CASES if case.stage == stage and "digits" in case.data and case.ranks == 1 and case.fault]
    return [pytest.param(case, id=case.name) for case in rows]


@pytest.mark.parametrize("root", ["prepared"], indirect=True)
@pytest.mark.parametrize("case", of("train"))
def test_a_faulty_training_is_stopped_by_the_check_that_names_it(
    root: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str], case: Case
) -> None:
    assert case.fault
    case.fault(monkeypatch)
    assert command("train", root, *case.settings) == 3
    (stopped,) = [event for event in readings(root) if event.action == "stop"]
    assert (stopped.check, stopped.step <= case.last) == (case.check, True), stopped
    assert stopped.message in capsys.readouterr().err
    assert re.search(case.cause, stopped.message)


@pytest.mark.parametrize("root", ["trained"], indirect=True)
@pytest.mark.parametrize("case", of("resume"))
def test_a_resume_that_loses_state_is_stopped_before_its_first_step(root: Path, monkeypatch: Patch, case: Case) -> None:
    assert case.fault
    case.fault(monkeypatch)
    assert command("train", root, "train.steps=310") == 3
    stopped = readings(root)[-1]
    assert (stopped.check, stopped.action, stopped.step) == (case.check, "stop", 300)
    assert re.search(case.cause, stopped.message)


@pytest.mark.parametrize("root", ["trained"], indirect=True)
@pytest.mark.parametrize("case", of("sample"))
def test_a_faulty_sampling_is_stopped_before_a_sample_is_written(root: Path, monkeypatch: Patch, case: Case) -> None:
    assert case.fault
    case.fault(monkeypatch)
    assert command("sample", root, "sampling.cfg_scale=4") == 3
    stopped = readings(root)[-1]
    assert (stopped.check, stopped.action) == (case.check, "stop"), stopped
    assert re.search(case.cause, stopped.message)
    assert not list(root.rglob("part-*.npz"))


@pytest.mark.parametrize("root", ["prepared"], indirect=True)
def test_a_study_can_turn_a_check_into_a_warning_or_off(root: Path, monkeypatch: Patch) -> None:
    faults.frozen_ema(monkeypatch)
    short = ("train.steps=8", "evaluation.at_steps=[8]")
    assert command("train", root, *short, "health.ema=warn") == 0
    assert {event.action for event in readings(root) if event.check == "ema"} == {"warn"}
    shutil.rmtree(root / "studies")
    assert command("train", root, *short, "health.ema=off") == 0
    assert "ema" not in last_events(readings(root))
