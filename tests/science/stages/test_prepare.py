"""Preparation in one process: refusals, corrupt images, restarts, merging."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_fixtures import folder_study, image_folder, picture, tar_of

from dit.data.images import decode_image
from dit.data.shard_set import ShardSet
from dit.data.sources import open_source
from dit.errors import DataError, DitError, InputError, MismatchError, MissingError
from dit.stages import prepare
from dit.storage import Store, open_store
from dit.study import layout
from dit.study.config import StudyConfig


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "root")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "pictures", per_class=5)


def files(store: Store) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.list()}


def edit(store: Store, config: StudyConfig, name: str, **changes: Any) -> None:
    key = f"{layout.dataset(config)}/{name}"
    store.write(key, json.dumps(json.loads(store.read(key)) | changes).encode())


def one_line(error: pytest.ExceptionInfo[DitError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_image_is_prepared_with_its_label(store: Store, pictures: Path) -> None:
    config = folder_study(pictures)
    manifest = prepare.run(config, store)
    assert manifest is not None
    assert (manifest.count, manifest.corrupt, manifest.label_counts) == (15, 0, (5, 5, 5))
    assert [shard.count for shard in manifest.shards] == [4, 4, 4, 3]
    assert manifest.class_names == ("class-0", "class-1", "class-2")
    images = np.concatenate([images for images, _ in ShardSet.open(store, config).images(6)])
    labels = ShardSet.open(store, config).labels
    expected = {
        decode_image(path.read_bytes(), 16, 3, "").tobytes(): int(path.parent.name[-1]) for path in pictures.glob("*/*")
    }
    assert {image.tobytes(): label for image, label in zip(images, labels.tolist(), strict=True)} == expected
    scaled = images / 127.5 - 1
    assert np.allclose(manifest.latents.mean, scaled.mean(axis=(0, 1, 2)))
    assert np.allclose(manifest.latents.std, scaled.std(axis=(0, 1, 2)))


def test_parts_in_any_order_give_the_files_of_a_single_run(tmp_path: Path, store: Store, pictures: Path) -> None:
    config = folder_study(pictures)
    whole = prepare.run(config, store)
    parted = open_store(tmp_path / "parted")
    for part in (3, 1, 2):
        assert prepare.run(config, parted, (part, 3)) is None
    assert prepare.run(config, parted, (9, 9)) is None
    assert prepare.merge(config, parted) == whole
    assert files(parted) == files(store)


def test_complete_dataset_is_not_written_again_and_needs_no_source(store: Store, pictures: Path) -> None:
    config = folder_study(pictures)
    manifest = prepare.run(config, store)
    times = {key: store.local(key).stat().st_mtime_ns for key in store.list()}
    pictures.rename(pictures.with_name("gone"))
    assert prepare.run(config, store) == prepare.run(config, store, (1, 2)) == prepare.merge(config, store) == manifest
    assert {key: store.local(key).stat().st_mtime_ns for key in store.list()} == times


def test_lost_or_truncated_shard_is_made_again(store: Store, pictures: Path) -> None:
    config = folder_study(pictures)
    manifest, before = prepare.run(config, store), files(store)
    store.delete(f"{layout.dataset(config)}/{layout.shard(1)}")
    path = store.local(f"{layout.dataset(config)}/{layout.shard(2)}")
    path.write_bytes(path.read_bytes()[:-1000])
    assert prepare.run(config, store) == manifest
    log = f"{layout.dataset(config)}/health.jsonl"
    assert files(store) | {log: before[log]} == before


def test_restart_makes_only_the_missing_shards(store: Store, pictures: Path) -> None:
    config = folder_study(pictures)
    prepare.run(config, store, (1, 2))
    finished = [key for key in store.list() if "shard-" in key]
    times = {key: store.local(key).stat().st_mtime_ns for key in finished}
    time.sleep(0.01)
    prepare.run(config, store)
    assert {key: store.local(key).stat().st_mtime_ns for key in finished} == times


def test_wrong_input_is_refused_before_anything_is_written(store: Store, pictures: Path, tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    for config in (
        folder_study(absent),
        folder_study(pictures, classes=2),
        folder_study(pictures, codec={"kind": "vae", "weights": absent}),
    ):
        with pytest.raises(InputError) as error:
            prepare.run(config, store)
        assert one_line(error)
        assert error.value.exit_code == 2
    assert store.list() == []


def test_corrupt_images_are_named_counted_and_left_out(
    store: Store, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "class-1" / "picture_1.JPEG").write_bytes(b"")
    (pictures / "class-2" / "picture_2.png").write_bytes((pictures / "class-2" / "picture_2.png").read_bytes()[:60])
    config = folder_study(pictures, max_corrupt_fraction=0.14)
    manifest = prepare.run(config, store)
    assert manifest is not None
    assert (manifest.count, manifest.corrupt, manifest.label_counts) == (13, 2, (5, 4, 4))
    names = sorted(name for shard in manifest.shards for name in shard.corrupt)
    assert names == ["class-1/picture_1.JPEG", "class-2/picture_2.png"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert len(ShardSet.open(store, config)) == 13


def test_what_is_left_out_stands_in_the_manifest_and_in_a_line(
    store: Store, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = prepare.run(folder_study(pictures), store, merge=False)
    assert plain is None
    (pictures / "class-1" / "@eaDir").mkdir()
    (pictures / "class-1" / "@eaDir" / "index.db").touch()
    (pictures / ".trash").touch()
    # A second look, as at a part on another machine, replaces the list; the images are the same.
    manifest = prepare.run(folder_study(pictures), store)
    assert manifest is not None
    assert manifest.count == 15
    assert {record.reason: (record.count, record.names) for record in manifest.left_out} == {
        "hidden": (1, (".trash",)),
        "without the extension of an image": (1, ("class-1/@eaDir/index.db",)),
    }
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not part of the dataset" in line]
    assert ".trash" in line
    assert "class-1/@eaDir/index.db" in line


def test_manifest_of_an_earlier_version_is_read(store: Store, pictures: Path) -> None:
    config = folder_study(pictures)
    prepare.run(config, store)
    for name in (layout.SOURCE, layout.MANIFEST):
        key = f"{layout.dataset(config)}/{name}"
        tree = json.loads(store.read(key))
        del tree["left_out"]
        store.write(key, json.dumps(tree).encode())
    assert len(ShardSet.open(store, config)) == 15
    store.delete(f"{layout.dataset(config)}/{layout.MANIFEST}")
    assert prepare.run(config, store) is not None


def test_file_names_cannot_control_the_terminal(
    store: Store, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "class-0" / "\x1b[2J\n\rforged.png").write_bytes(b"")
    (pictures / "class-0" / ".\x1b]0;title\x07").write_bytes(b"")
    manifest = prepare.run(folder_study(pictures, max_corrupt_fraction=0.1), store)
    assert manifest is not None
    assert manifest.corrupt == 1
    printed = capsys.readouterr().out
    assert "\nforged" not in printed
    assert "\\x1b[2J forged.png" in printed
    assert not any(ord(character) < 32 and character != "\n" for character in printed)


def test_too_many_corrupt_images_fail_before_the_manifest_until_they_are_repaired(store: Store, pictures: Path) -> None:
    bad = [pictures / "class-1" / "picture_1.JPEG", pictures / "class-2" / "picture_2.png"]
    for path in bad:
        path.write_bytes(b"not an image")
    config = folder_study(pictures, max_corrupt_fraction=0.1)
    for _ in range(2):
        with pytest.raises(DataError, match=r"2 of 15.*class-1/picture_1\.JPEG") as error:
            prepare.run(config, store)
        assert one_line(error)
        assert error.value.exit_code == 3
        assert not store.exists(f"{layout.dataset(config)}/{layout.MANIFEST}")
    tolerant = prepare.run(folder_study(pictures, max_corrupt_fraction=0.2), store)
    assert tolerant is not None
    assert tolerant.corrupt == 2
    store.delete(f"{layout.dataset(config)}/{layout.MANIFEST}")
    for path in bad:
        picture(5, 30, 30).save(path)
    repaired = prepare.run(config, store)
    assert repaired is not None
    assert (repaired.count, repaired.corrupt) == (15, 0)


def test_corrupt_images_of_equal_names_in_two_tars_are_both_named(store: Store, tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        good = (image_folder(tmp_path / name, classes=1) / "class-0" / f"picture_{2 * number}.png").read_bytes()
        tar_of(tmp_path / f"{name}.tar", {"1.png": good, "2.png": good[:90]})
    inner = {name: (tmp_path / name).read_bytes() for name in ("cat.tar", "dog.tar")}
    source = {"kind": "tar", "path": str(tar_of(tmp_path / "all.tar", inner))}
    manifest = prepare.run(folder_study("", classes=2, source=source, max_corrupt_fraction=0.5), store)
    assert manifest is not None
    names = sorted(name for shard in manifest.shards for name in shard.corrupt)
    assert names == ["all.tar:cat.tar/2.png", "all.tar:dog.tar/2.png"]


@pytest.mark.parametrize(("allowed", "made"), [(0.0, 0), (0.3, 1), (0.9, 3)])
def test_preparation_stops_early_at_too_many_corrupt_images(
    store: Store, pictures: Path, allowed: float, made: int
) -> None:
    for path in pictures.glob("*/*"):
        path.write_bytes(b"not an image")
    config = folder_study(pictures, max_corrupt_fraction=allowed)
    with pytest.raises(DataError, match=r"none of [34] images in a row can be read; the first: class-\d/picture"):
        prepare.run(config, store)
    assert sum(key.endswith(".tar") for key in store.list()) == made


@pytest.mark.parametrize("number", [0, 2])
def test_shard_of_corrupt_images_is_empty_within_the_allowed_fraction(
    store: Store, tmp_path: Path, number: int
) -> None:
    pictures = image_folder(tmp_path / "nine")
    for path in pictures.glob("*/picture_3.*"):
        path.unlink()
    config = folder_study(pictures, max_corrupt_fraction=0.5)
    items = open_source(config.dataset).items
    bad = items[4 * number : 4 * (number + 1)]
    for item in bad:
        Path(item.path).write_bytes(b"not an image")
    manifest = prepare.run(config, store)
    assert manifest is not None
    assert [shard.count for shard in manifest.shards] == ([0, 4, 1] if number == 0 else [4, 4, 0])
    shards = ShardSet.open(store, config)
    good = [item for item in items if item not in bad]
    ((images, labels),) = shards.images(9)
    assert labels.tolist() == [item.label for item in good]
    for image, item in zip(images, good, strict=True):
        assert np.array_equal(image, decode_image(Path(item.path).read_bytes(), 16, 3, ""))
    assert np.allclose(manifest.latents.mean, (images / 127.5 - 1).mean(axis=(0, 1, 2)))
    assert prepare.run(config, store) == manifest


def test_merge_names_missing_shards(store: Store, pictures: Path) -> None:
    config = folder_study(pictures)
    with pytest.raises(MissingError, match="no part has been prepared"):
        prepare.merge(config, store)
    prepare.run(config, store, (2, 2))
    with pytest.raises(MissingError, match=r"2 of 4 shards are missing: shard-00000\.tar, shard-00002\.tar") as error:
        prepare.merge(config, store)
    assert one_line(error)
    assert not store.exists(f"{layout.dataset(config)}/{layout.MANIFEST}")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"source_sha256": "f" * 64}, "sources"),
        ({"codec_sha256": "e" * 64}, "codec"),
        ({"config_hash": "d" * 12}, "conf"),
    ],
)
def test_parts_of_different_origin_are_refused(
    store: Store, pictures: Path, changes: dict[str, str], what: str
) -> None:
    config = folder_study(pictures)
    prepare.run(config, store, merge=False)
    edit(store, config, layout.shard_record(2), **changes)
    with pytest.raises(MismatchError, match=f"{what}.*{next(iter(changes.values()))[:12]} made shard-00002") as error:
        prepare.merge(config, store)
    assert one_line(error)
    with pytest.raises(MismatchError, match=f"shard-00002.*{next(iter(changes.values()))[:12]}"):
        prepare.run(config, store)


def test_part_with_another_source_is_refused_before_work(store: Store, pictures: Path) -> None:
    config = folder_study(pictures)
    prepare.run(config, store, (1, 2))
    before = files(store)
    picture(1, 20, 20).save(pictures / "class-0" / "new.png")
    with pytest.raises(MismatchError, match=r"of 15 images, here it is .* of 16") as error:
        prepare.run(config, store, (2, 2))
    assert one_line(error)
    assert files(store) == before


def test_duplicated_shards_and_keys_are_refused(store: Store, pictures: Path) -> None:
    config = folder_study(pictures)
    folder = layout.dataset(config)
    prepare.run(config, store, merge=False)
    good = files(store)
    for name in (layout.shard, layout.shard_index, layout.shard_record):
        store.write(f"{folder}/{name(4)}", good[f"{folder}/{name(1)}"])
    with pytest.raises(DataError, match=r"shard-00004\.json is one too many"):
        prepare.merge(config, store)
    store.delete(f"{folder}/{layout.shard_record(4)}")
    store.write(f"{folder}/{layout.shard_record(2)}", good[f"{folder}/{layout.shard_record(1)}"])
    with pytest.raises(DataError, match="duplicated or out of place"):
        prepare.merge(config, store)
    record = json.loads(good[f"{folder}/{layout.shard_record(2)}"])
    original = json.loads(good[f"{folder}/{layout.shard_record(1)}"])
    same = {key: original[key] for key in ("bytes", "sha256", "index_sha256", "label_counts")}
    store.write(f"{folder}/{layout.shard_record(2)}", json.dumps(record | same).encode())
    for name in (layout.shard, layout.shard_index):
        store.write(f"{folder}/{name(2)}", good[f"{folder}/{name(1)}"])
    with pytest.raises(DataError, match=r"shard-00002\.tar: key class-.* occurs in shard-00001\.tar too"):
        prepare.merge(config, store)


def test_truncated_shard_is_not_merged(store: Store, pictures: Path) -> None:
    config = folder_study(pictures)
    prepare.run(config, store, merge=False)
    path = store.local(f"{layout.dataset(config)}/{layout.shard(1)}")
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"shard-00001\.tar: truncated"):
        prepare.merge(config, store)
