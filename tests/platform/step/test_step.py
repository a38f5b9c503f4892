"""A step of the pipeline: which study it works on, and where it says why it failed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dit.errors import ConfigError
from dit.storage import Store, open_store
from dit.study.study_file import load, load_text
from pipelines.definition.pipeline import dataset_only
from pipelines.step import step, submitted
from pipelines.step.share import Share
from pipelines.step.step import run_merge, run_part, run_step, run_variant
from pipelines.step.submitted import StudyInputs

STUDIES = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
STUDY = (Path(__file__).parents[3] / "configs/digits.yaml").read_text()


def artifact(path: Path) -> SimpleNamespace:
    return SimpleNamespace(path=str(path), metadata={})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "runs")


@pytest.fixture
def address(store: Store) -> str:
    """Of the digits, as submitted."""
    return submitted.write(load_text(STUDY), store)


@pytest.fixture
def reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file that kubelet reads, in a pod of Kubeflow Pipelines."""
    path = tmp_path / "termination-log"
    path.touch()
    monkeypatch.setattr(step, "_TERMINATION_LOG", path)
    monkeypatch.setenv("KFP_POD_NAME", "a-step")
    return path


@pytest.mark.parametrize("asked", [{}, {"steps": 1500, "cfg": 1.0, "samples": 1000, "seed": 0}])
def test_parameters_as_the_study_has_them_change_nothing(asked: dict[str, Any]) -> None:
    assert StudyInputs(STUDY, **asked).resolve() == load_text(STUDY)


def test_changed_parameters_become_overrides_and_overrides_win() -> None:
    overrides = ["train.seed=4", "sampling.steps=5"]
    config = StudyInputs(STUDY, steps=700, cfg=1.5, samples=100, seed=3, overrides=overrides).resolve()
    assert (config.train.steps, config.evaluation.at_steps) == (700, (500, 700))
    assert (config.sampling.cfg_scale, config.sampling.num_samples, config.sampling.steps) == (1.5, 100, 5)
    assert config.train.seed == 4


@pytest.mark.parametrize("changed", [{"seed": 1}, {"overrides": ["seeds=3"]}])
def test_a_run_cannot_change_the_seeds_that_its_pipeline_has_steps_for(changed: dict[str, Any]) -> None:
    two = load_text(STUDY, ["seeds=2"]).to_yaml()
    assert StudyInputs(two, seed=0).resolve().train_seeds == (0, 1)
    with pytest.raises(ConfigError, match=r"the pipeline has steps for the seeds 0, 1, not for .*; compile the study"):
        StudyInputs(two, **changed).resolve()


def test_the_last_checkpoint_that_a_person_names_is_kept() -> None:
    config = StudyInputs(STUDY, steps=700, overrides=["evaluation.at_steps=[600]"]).resolve()
    assert config.evaluation.at_steps == (600,)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_step_reads_the_study_that_was_submitted(store: Store, path: Path) -> None:
    config = load(path, ["description=öther words"])
    address = submitted.write(config, store)
    assert address == submitted.address(config, f"{store.url}/")
    assert address.startswith(f"{store.url}/studies/{config.study}/submitted/")
    read, of_step, root = submitted.read(address)
    assert (read, of_step.url, root) == (config, store.url, store.url)


def test_studies_that_differ_in_anything_have_files_of_their_own(store: Store, address: str) -> None:
    others = [submitted.write(load_text(STUDY, [one]), store) for one in ("train.steps=7", "description=other words")]
    assert len({address, *others}) == 3
    assert submitted.write(load_text(STUDY), store) == address


def test_a_study_that_is_gone_or_was_changed_is_refused(
    store: Store, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key = address.removeprefix(f"{store.url}/")
    for change, problem in (
        (lambda: store.write(key, store.read(key) + b"\n"), "no longer the one that was submitted"),
        (lambda: store.delete(key), "no such study"),
    ):
        change()
        with pytest.raises(SystemExit) as caught:
            run_step("report", address)
        assert caught.value.code == 2
        errors = capsys.readouterr().err
        assert errors.startswith(f"dit: report: {address}: ")
        assert problem in errors


def test_parts_make_what_the_whole_study_trains_on(tmp_path: Path) -> None:
    """Overrides of anything but the dataset, which the study of a part may not even allow, are left out."""
    overrides = ["dataset.samples_per_shard=600", "fit_by_variant={mini-B/2: {micro_batch: 8}}", "train.steps=20"]
    text = dataset_only(load_text(STUDY)).to_yaml()
    root = str(tmp_path / "runs")
    run_part(text, root, overrides, (1, 2)).part(artifact(tmp_path / "part"), (1, 2))
    with pytest.raises(SystemExit):
        run_merge(StudyInputs(STUDY, overrides=overrides), root)
    run_part(text, root, overrides, (2, 2))
    dataset = artifact(tmp_path / "dataset")
    address, merged = run_merge(StudyInputs(STUDY, overrides=overrides), root)
    merged.dataset(dataset)
    assert dataset.metadata["images"] == 1797
    assert dataset.metadata["shards"] == 3
    config = load_text(STUDY, overrides)
    assert submitted.read(address)[0] == config
    assert dataset.metadata["store"] == f"{open_store(root).url}/datasets/digits-{config.dataset_hash()}"


def test_a_part_that_came_from_the_cache_and_is_gone_names_the_command(tmp_path: Path, reason: Path) -> None:
    text = dataset_only(load_text(STUDY)).to_yaml()
    run_part(text, str(tmp_path / "runs"), [], (1, 2))
    with pytest.raises(SystemExit) as caught:
        run_merge(StudyInputs(STUDY), str(tmp_path / "runs"))
    assert caught.value.code == 2
    said = reason.read_text()
    assert said.startswith("merge: ")
    assert "2 of 4 shards are missing: shard-00001.tar, shard-00003.tar" in said
    assert said.endswith("dit submit --cache off")


def test_in_a_pod_the_reason_is_left_for_kubernetes(tmp_path: Path, reason: Path) -> None:
    with pytest.raises(SystemExit):
        run_merge(StudyInputs(STUDY, overrides=["train.stepz=1"]), str(tmp_path / "runs"))
    assert reason.read_text().startswith("merge: study: train.stepz: unknown key")
    with pytest.raises(AttributeError):
        run_merge(StudyInputs(STUDY, overrides=[None]), str(tmp_path / "runs"))  # type: ignore[list-item]
    assert "AttributeError" in reason.read_text()


def test_a_reason_that_cannot_be_left_hides_no_error(
    address: str, reason: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reason.unlink()
    reason.mkdir()
    with pytest.raises(SystemExit) as caught:
        run_variant(["train"], address, "mini-S/2", Share())
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("dit: train mini-S/2 step 500: ")


def test_on_kubeflow_a_job_does_the_work(
    tmp_path: Path, address: str, reason: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SystemExit):
        run_variant(["train"], address, "mini-S/2", Share(), "image")
    assert reason.read_text().startswith("train mini-S/2 step 500: ")
    assert "KUBECONFIG" in reason.read_text()


@pytest.mark.parametrize(
    ("overrides", "part", "parts", "done"),
    [
        ([], 1, 1, "t500 s500 e500 t1000 s1000 e1000 t1500 s1500 e1500"),
        ([], 2, 3, "t1000 s1000 e1000"),
        (["train.steps=2000"], 3, 3, "t1500 s1500 e1500 t2000 s2000 e2000"),
        (["train.steps=1000"], 3, 3, "e1000"),
        (["evaluation.at_steps=[700]"], 1, 1, "t700 s700 e700 t1500"),
    ],
)
def test_a_share_is_of_the_runs_own_checkpoints(overrides: list[str], part: int, parts: int, done: str) -> None:
    """Their number may differ from that for which the pipeline was compiled. No checkpoint is left out."""
    steps = Share(part, parts).steps(load_text(STUDY, overrides), ("train", "sample", "evaluate"))
    assert " ".join(f"{stage.name[0]}{step}" for stage, step in steps) == done


def test_the_study_of_a_dataset_is_one_that_loads() -> None:
    for path in STUDIES:
        config = load(path)
        reduced = dataset_only(config)
        assert load_text(reduced.to_yaml()) == reduced
        assert reduced.dataset_hash() == config.dataset_hash()
