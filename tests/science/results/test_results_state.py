"""The table of stages and a store: every reader gives the same answer, for complete, damaged and other results."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from study_records import fill, fill_dataset

from dit.claims.results import load_results
from dit.cli.commands import run
from dit.errors import MismatchError, MissingError
from dit.results.output import Output
from dit.results.progress import progress
from dit.results.stages import (
    EVALUATE,
    PREPARE,
    REPORT,
    SAMPLE,
    STAGES,
    TRAIN,
    VARIANT_STAGES,
    Stage,
    Work,
    step_names,
)
from dit.results.state import is_complete, look, require_stage, stage_state, study_is_complete, unfinished
from dit.results.study_copy import keep_study
from dit.stages import report as report_stage
from dit.storage import Store, open_store, write_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.runs import Run
from dit.study.study_file import load

CONFIG = Path(__file__).parents[3] / "configs" / "digits.yaml"
OVERRIDES = ["variants=[mini-S/2, mini-B/2]", "tracking.kind=none"]
WITH_FILES = (PREPARE, TRAIN, SAMPLE, REPORT)


@pytest.fixture(scope="module")
def config() -> StudyConfig:
    return load(CONFIG, OVERRIDES)


@pytest.fixture(scope="module")
def complete(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("complete")
    fill(open_store(root), config)
    report_stage.run(config, open_store(root))
    return root


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "root")


@pytest.fixture
def work(config: StudyConfig, complete: Path, store: Store, tmp_path: Path) -> Work:
    shutil.copytree(complete, tmp_path / "root")
    return Work(config, store)


def run_of(stage: Stage, work: Work) -> Run | None:
    return work.config.runs[0] if stage.per_variant else None


def fresh(work: Work) -> Work:
    """The same study without cached values, as in a new process."""
    return Work(work.config, work.store)


def without_later_stages(work: Work, stage: Stage) -> None:
    """Remove later outputs, because a stage is complete if everything made from it is."""
    for study_run in work.config.runs:
        if stage in (PREPARE, TRAIN):
            work.store.delete(layout.train_record(work.config, study_run))
        for step in work.config.evaluation.at_steps:
            if stage is not EVALUATE:
                work.store.delete(layout.metrics(work.config, study_run, step))


def last_output(stage: Stage, work: Work) -> Output[Any]:
    """The stage's last output, which has files if any of its outputs has."""
    return stage.outputs(work, run_of(stage, work))[-1]


def replace_record(work: Work, output: Output[Any], **changes: object) -> None:
    record = look(work, output).record
    assert record is not None
    write_record(work.store, output.key, record.model_copy(update=changes))


def test_a_complete_study_is_complete_for_every_reader(work: Work) -> None:
    assert all(is_complete(stage, work, run_of(stage, work)) for stage in STAGES)
    assert study_is_complete(work)
    assert unfinished(work) == []
    assert all(stage.complete for stage in progress(work))
    assert len(load_results(work.config, work.store).variants) == 2


@pytest.mark.parametrize("stage", [TRAIN, SAMPLE, EVALUATE, REPORT], ids=lambda stage: stage.name)
def test_a_complete_stage_loads_no_framework(stage: Stage, work: Work) -> None:
    common = [str(CONFIG), "--root", work.store.url, *(word for override in OVERRIDES for word in ("--set", override))]
    code = f"import sys; from dit.cli.commands import run; assert run({[stage.name, *common]}) == 0;"
    code += "sys.exit(', '.join({'torch', 'mlflow', 'torch_fidelity', 'diffusers'} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_stage_is_complete_in_an_empty_store(config: StudyConfig, store: Store) -> None:
    empty = Work(config, store)
    assert not any(stage_state(stage, empty, run_of(stage, empty)).done for stage in STAGES)
    assert unfinished(empty) == [config.run("mini-B/2"), config.run("mini-S/2")]
    assert [stage.name for stage in progress(empty)] == step_names(config)
    assert [stage.name for stage in progress(empty) if stage.complete] == []


def gone(work: Work, output: Output[Any]) -> None:
    work.store.delete(output.key)


def one_file_gone(work: Work, output: Output[Any]) -> None:
    work.store.delete(next(iter(output.files(look(work, output).record)))[0])


def another_size(work: Work, output: Output[Any]) -> None:
    work.store.write(next(iter(output.files(look(work, output).record)))[0], b"cut off, or longer than it was")


DAMAGES: dict[str, Callable[[Work, Output[Any]], None]] = {
    "record gone": gone,
    "one file gone": one_file_gone,
    "file of another size": another_size,
}


@pytest.mark.parametrize(
    ("stage", "damage"),
    [(stage, damage) for stage in STAGES for damage in DAMAGES if stage in WITH_FILES or damage == "record gone"],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_missing_or_damaged_file_makes_the_stage_incomplete(stage: Stage, damage: str, work: Work) -> None:
    DAMAGES[damage](work, last_output(stage, work))
    without_later_stages(work, stage)
    now = fresh(work)
    assert not is_complete(stage, now, run_of(stage, now))
    with pytest.raises(MissingError, match=r"run `dit [a-z]+ STUDY"):
        require_stage(stage, now, run_of(stage, now))
    shown = next(row for row in progress(now) if row.name == stage.step_name(run_of(stage, now)))
    assert not shown.complete
    if stage in VARIANT_STAGES:
        assert now.config.runs[0] in unfinished(now)
    if stage is not REPORT:
        assert not study_is_complete(now)


@pytest.mark.parametrize("stage", [PREPARE, TRAIN, SAMPLE, EVALUATE], ids=lambda stage: stage.name)
def test_every_reader_refuses_a_record_of_another_configuration_with_the_same_message(stage: Stage, work: Work) -> None:
    output = last_output(stage, work)
    replace_record(work, output, config_hash="another")
    now = fresh(work)
    readers: list[Callable[[], object]] = [
        lambda: is_complete(stage, now, run_of(stage, now)),
        lambda: require_stage(stage, now, run_of(stage, now)),
        lambda: study_is_complete(now),
        lambda: progress(now),
    ]
    messages = set()
    for reader in readers:
        with pytest.raises(MismatchError) as caught:
            reader()
        messages.add(str(caught.value))
    (message,) = messages
    assert f"{output.key}: made with configuration another, this study's configuration is {output.hash}" in message


@pytest.mark.parametrize(
    ("stage", "overrides", "named"),
    [
        (TRAIN, ["train.learning_rate=0.01"], "made with train.learning_rate=0.01 instead of 0.0025; restore"),
        (
            TRAIN,
            ["dataset.mirror=true", "train.seed=1"],
            "dataset.mirror=true instead of false, train.seed=1 instead of 0",
        ),
        (
            SAMPLE,
            ["sampling.weights=raw", "evaluation.resamples=100"],
            "made with sampling.weights=raw instead of ema;",
        ),
        (EVALUATE, ["evaluation.resamples=100"], "made with evaluation.resamples=100 instead of 200; restore"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_mismatch_names_the_keys_that_differ(stage: Stage, overrides: list[str], named: str, work: Work) -> None:
    other, study_run = load(CONFIG, [*OVERRIDES, *overrides]), work.config.runs[0]
    keep_study(load(CONFIG, [*OVERRIDES, "train.seed=9"]), work.store)
    keep_study(other, work.store)
    output = last_output(stage, work)
    replace_record(work, output, config_hash=last_output(stage, Work(other, work.store)).hash)
    with pytest.raises(MismatchError) as caught:
        is_complete(stage, fresh(work), study_run)
    assert named in str(caught.value)


def test_a_copy_that_this_version_cannot_read_is_passed_over(work: Work) -> None:
    work.store.write(f"{layout.study(work.config)}/submitted/0.yaml", b"train: {warmup: 3}")
    replace_record(work, last_output(TRAIN, work), config_hash="another")
    with pytest.raises(MismatchError, match="made with configuration another"):
        is_complete(TRAIN, fresh(work), work.config.runs[0])


def test_a_report_of_other_results_is_made_again(work: Work) -> None:
    before = work.store.read(layout.report_record(work.config))
    replace_record(work, EVALUATE.outputs(work, work.config.runs[0])[0], noise_floor=310.0)
    assert not is_complete(REPORT, fresh(work))
    report_stage.run(work.config, work.store)
    assert is_complete(REPORT, fresh(work))
    assert work.store.read(layout.report_record(work.config)) != before
    page = f"{layout.report(work.config)}/{layout.REPORT_PAGE}"
    intact = work.store.read(page)
    work.store.write(page, intact[:1000])
    report_stage.run(work.config, work.store)
    assert work.store.read(page) == intact


@pytest.mark.parametrize("left", ["nothing", "manifest"])
def test_samples_may_be_removed_once_they_are_evaluated(left: str, work: Work) -> None:
    for study_run in work.config.runs:
        for step in work.config.evaluation.at_steps:
            folder = layout.samples(work.config, study_run, step)
            for key in work.store.list(folder):
                if left == "nothing" or not key.endswith(layout.MANIFEST):
                    work.store.delete(key)
    now = fresh(work)
    assert study_is_complete(now)
    assert all(stage.complete for stage in progress(now) if stage.name.startswith("sample"))
    work.store.delete(layout.metrics(now.config, now.config.runs[0], 500))
    with pytest.raises(MissingError, match=r"mini-S/2 at step 500 is not sampled.*run `dit sample STUDY"):
        require_stage(EVALUATE, now, now.config.runs[0])


def test_shards_may_be_removed_once_every_variant_is_trained(work: Work) -> None:
    work.store.delete(f"{layout.dataset(work.config)}/{layout.shard(0)}")
    assert study_is_complete(fresh(work))
    work.store.delete(layout.train_record(work.config, work.config.runs[1]))
    assert not is_complete(PREPARE, fresh(work))


@pytest.mark.parametrize("stage", [TRAIN, EVALUATE], ids=lambda stage: stage.name)
def test_shards_that_changed_are_refused(stage: Stage, work: Work) -> None:
    fill_dataset(work.store, work.config, b"other images")
    now = fresh(work)
    with pytest.raises(MismatchError, match=r"shards [0-9a-f]{12}, the dataset is now [0-9a-f]{12}; restore"):
        is_complete(stage, now, run_of(stage, now))


def test_a_longer_study_needs_more_training_and_no_new_samples(work: Work) -> None:
    longer = Work(load(CONFIG, [*OVERRIDES, "train.steps=3000", "evaluation.at_steps=[500, 1500]"]), work.store)
    assert not is_complete(TRAIN, longer, longer.config.runs[0])
    assert is_complete(SAMPLE, longer, longer.config.runs[0])


def test_every_reader_finds_a_manifest_without_its_parts_incomplete(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every reader names `dit sample`, which makes the missing files (test_sample.py)."""
    config, store, study_run = work.config, work.store, work.config.runs[0]
    store.delete(layout.metrics(config, study_run, 500))
    store.delete(f"{layout.samples(config, study_run, 500)}/{layout.sample_part(0)}")
    now, command = fresh(work), "run `dit sample STUDY --variant mini-S/2 --step 500`"
    # dit sample
    assert not is_complete(SAMPLE, now, study_run)
    # dit study
    assert unfinished(now) == [study_run]
    # dit status
    assert next(row.done for row in progress(now) if row.name == "sample mini-S/2") == 2
    # The launcher on a cluster
    with pytest.raises(MissingError, match=command):
        require_stage(SAMPLE, now, study_run)
    # dit evaluate, and dit report
    common = [str(CONFIG), "--root", store.url, *(word for override in OVERRIDES for word in ("--set", override))]
    for arguments in (["evaluate", *common, "--variant", "mini-S/2"], ["report", *common]):
        assert run(arguments) == 2
        assert command in capsys.readouterr().err
