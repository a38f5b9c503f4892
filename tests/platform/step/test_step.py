"""A step of the pipeline: which study it works on, and where it says why it failed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from dit.storage import open_store
from dit.study.study_file import load, load_text
from pipelines.definition.pipeline import dataset_only
from pipelines.step import step
from pipelines.step.step import Run, run_job, run_merge, run_part, run_step

STUDY = (Path(__file__).parents[3] / "configs/digits.yaml").read_text()


def artifact(path: Path) -> SimpleNamespace:
    return SimpleNamespace(path=str(path), metadata={})


@pytest.fixture
def reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file that kubelet reads, in a pod of Kubeflow Pipelines."""
    path = tmp_path / "termination-log"
    path.touch()
    monkeypatch.setattr(step, "_TERMINATION_LOG", path)
    monkeypatch.setenv("KFP_POD_NAME", "a-step")
    return path


def test_parameters_as_the_study_has_them_change_nothing() -> None:
    assert Run(STUDY, "runs").all_overrides() == []
    assert Run(STUDY, "runs", steps=1500, cfg=1.0, samples=1000, seed=0).all_overrides() == []


def test_changed_parameters_become_overrides_and_overrides_win() -> None:
    run = Run(STUDY, "runs", steps=700, cfg=1.5, samples=100, seed=3, overrides=["train.seed=4", "sampling.steps=5"])
    config = load_text(STUDY, run.all_overrides())
    assert (config.train.steps, config.evaluation.at_steps) == (700, (500, 700))
    assert (config.sampling.cfg_scale, config.sampling.num_samples, config.sampling.steps) == (1.5, 100, 5)
    assert config.train.seed == 4


def test_the_last_checkpoint_that_a_person_names_is_kept() -> None:
    config = load_text(STUDY, Run(STUDY, "runs", steps=700, overrides=["evaluation.at_steps=[600]"]).all_overrides())
    assert config.evaluation.at_steps == (600,)


def test_parts_make_what_the_whole_study_trains_on(tmp_path: Path) -> None:
    """Overrides of anything but the dataset, which the study of a part may not even allow, are left out."""
    overrides = ["dataset.samples_per_shard=600", "fit_by_variant={mini-B/2: {micro_batch: 8}}", "train.steps=20"]
    text = dataset_only(load_text(STUDY)).to_yaml()
    root = str(tmp_path / "runs")
    run_part(text, root, overrides, (1, 2)).part(artifact(tmp_path / "part"), (1, 2))
    with pytest.raises(SystemExit):
        run_merge(Run(STUDY, root, overrides=overrides))
    run_part(text, root, overrides, (2, 2))
    dataset = artifact(tmp_path / "dataset")
    run_merge(Run(STUDY, root, overrides=overrides)).dataset(dataset)
    assert dataset.metadata["images"] == 1797
    assert dataset.metadata["shards"] == 3
    config = load_text(STUDY, overrides)
    assert dataset.metadata["store"] == f"{open_store(root).url}/datasets/digits-{config.dataset_hash()}"


def test_a_part_that_came_from_the_cache_and_is_gone_names_the_command(tmp_path: Path, reason: Path) -> None:
    text = dataset_only(load_text(STUDY)).to_yaml()
    run_part(text, str(tmp_path / "runs"), [], (1, 2))
    with pytest.raises(SystemExit) as caught:
        run_merge(Run(STUDY, str(tmp_path / "runs")))
    assert caught.value.code == 2
    said = reason.read_text()
    assert said.startswith("merge: ")
    assert "2 of 4 shards are missing: shard-00001.tar, shard-00003.tar" in said
    assert said.endswith("dit submit --cache off")


def test_in_a_pod_the_reason_is_left_for_kubernetes(tmp_path: Path, reason: Path) -> None:
    with pytest.raises(SystemExit):
        run_step("evaluate", Run(STUDY, str(tmp_path / "runs"), overrides=["train.stepz=1"]), "mini-S/2")
    assert reason.read_text().startswith("evaluate mini-S/2: study: train.stepz: unknown key")
    with pytest.raises(AttributeError):
        run_step("evaluate", Run(STUDY, str(tmp_path / "runs"), overrides=[None]), "mini-S/2")  # type: ignore[list-item]
    assert "AttributeError" in reason.read_text()


def test_a_reason_that_cannot_be_left_hides_no_error(
    tmp_path: Path, reason: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reason.unlink()
    reason.mkdir()
    with pytest.raises(SystemExit) as caught:
        run_step("train", Run(STUDY, str(tmp_path / "runs")), "mini-S/2")
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("dit: train mini-S/2: ")


def test_on_kubeflow_a_job_does_the_work(tmp_path: Path, reason: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SystemExit):
        run_job("train", Run(STUDY, "s3://bucket/dit"), "mini-S/2", "image")
    assert reason.read_text().startswith("train mini-S/2: ")
    assert "KUBECONFIG" in reason.read_text()


def test_elsewhere_a_step_does_it_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_job("train", Run(STUDY, str(tmp_path / "runs")), "mini-S/2", "image")
    assert "dit prepare" in capsys.readouterr().err


def test_the_study_of_a_dataset_is_one_that_loads() -> None:
    for path in sorted((Path(__file__).parents[3] / "configs").glob("*.yaml")):
        config = load(path)
        reduced = dataset_only(config)
        assert load_text(reduced.to_yaml()) == reduced
        assert reduced.dataset_hash() == config.dataset_hash()
