"""The mounts of a step's container, and the error without a Docker engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from dit.console.streams import whole_lines
from dit.errors import InputError
from dit.study.study_file import load
from pipelines.local.docker import container_mounts, find_image

STUDY = Path(__file__).parents[3] / "configs/imagenet256.yaml"


def test_an_unreachable_docker_engine_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(InputError, match=r"no Docker engine answers: .*set DOCKER_HOST") as caught:
        find_image("dit-scaling:any")
    assert "\n" not in str(caught.value)


def test_whole_lines_are_joined_from_chunks() -> None:
    assert list(whole_lines([b"on", b"e\ntwo\n", b"\xc3", b"\xa9\n\nlast"])) == ["one", "two", "é", "", "last"]


def test_a_container_mounts_the_store_and_the_inputs_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "cache"))
    for folder in ("data/imagenet/train", "weights/sd-vae-ft-mse", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    reference = tmp_path / "weights/VIRTUAL_imagenet256_labeled.npz"
    reference.touch()
    config = load(STUDY, ["evaluation.extractor_weights=s3://bucket/weights/inception.pth"])
    mounts = container_mounts(config, (tmp_path / "the runs").as_uri())
    # Paths in the study and in messages are valid inside and outside of the container.
    assert all(mount["Source"] == mount["Target"] for mount in mounts)
    assert {mount["Source"] for mount in mounts if not mount["ReadOnly"]} == {
        str(tmp_path / "the runs"),
        str(tmp_path / "cache"),
    }
    assert {mount["Source"] for mount in mounts if mount["ReadOnly"]} == {
        str(tmp_path / "data/imagenet/train"),
        str(tmp_path / "weights/sd-vae-ft-mse"),
        str(reference),
    }


def test_a_pattern_of_tar_files_mounts_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/a-1.tar").touch()
    config = load(STUDY, ["dataset.source={kind: tar, path: 'tars/a-[0-9].tar'}"])
    mounts = container_mounts(config, "s3://bucket/dit")
    assert [mount["Source"] for mount in mounts if mount["ReadOnly"]] == [str(tmp_path / "tars")]
