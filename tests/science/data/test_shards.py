"""The shard format, reading by position, and refusal of damaged shards."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset
from dataset_fixtures import digits_study, flip_bit, latent_study, write_latents

from dit.data.shard_set import ShardSet
from dit.data.shards import MOMENTS, ShardIndex, ShardWriter
from dit.errors import DataError, DitError, MismatchError, MissingError
from dit.stages import prepare
from dit.storage import Store, open_store, sha256_file
from dit.study import layout
from dit.study.config import StudyConfig


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "root")


def path_of(store: Store, config: StudyConfig, name: str) -> Path:
    return store.local(f"{layout.dataset(config)}/{name}")


def test_webdataset_library_reads_the_same_samples(store: Store) -> None:
    config = latent_study()
    moments = write_latents(store, config, 20)
    ours = ShardSet.open(store, config)
    urls = [str(path_of(store, config, layout.shard(i))) for i in range(3)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"{'abc'[i % 3]}/{i}" for i in range(20)]
    for view in (False, True):
        values, labels = ours.gather(np.arange(20), np.full(20, view))
        assert np.array_equal(values, np.stack([sample["moments.npy"][int(view)] for sample in samples]))
        assert np.array_equal(values, moments[:, int(view)])
        assert labels.tolist() == [sample["cls"] for sample in samples]


@pytest.mark.parametrize("samples_per_shard", [7, 100])
def test_any_order_with_repeats_gives_the_right_samples(store: Store, samples_per_shard: int) -> None:
    config = latent_study(samples_per_shard)
    moments = write_latents(store, config, 50)
    random = np.random.default_rng(1)
    shards = ShardSet.open(store, config)
    for size in (1, 33, 200):
        indices, mirrored = random.integers(0, 50, size), random.random(size) < 0.5
        values, labels = shards.gather(indices, mirrored)
        assert np.array_equal(values, moments[indices, mirrored.astype(int)])
        assert np.array_equal(labels, indices % 3)
    assert len(shards.gather(np.arange(0), np.zeros(0, dtype=bool))[1]) == 0


def test_pixels_are_mirrored_on_reading(store: Store) -> None:
    config = digits_study()
    prepare.run(config, store)
    shards = ShardSet.open(store, config)
    indices = np.array([5, 1000, 1796])
    plain, _ = shards.gather(indices, np.zeros(3, dtype=bool))
    some, _ = shards.gather(indices, np.array([False, True, False]))
    assert plain.shape == (3, 1, 8, 8)
    assert np.array_equal(some[1], plain[1, :, :, ::-1])
    assert np.array_equal(some[[0, 2]], plain[[0, 2]])
    batches = list(shards.images(500))
    images = np.concatenate([images for images, _ in batches])
    assert images.shape == (1797, 8, 8, 1)
    assert np.array_equal(images[indices, :, :, 0], plain[:, 0])
    assert np.array_equal(np.concatenate([labels for _, labels in batches]), shards.labels)


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    values = np.arange(16, dtype=np.float16).reshape(1, 16)
    written = []
    for name in ("a", "b"):
        with ShardWriter(tmp_path / name, MOMENTS) as writer:
            writer.add("x/1", 3, values)
            writer.add("ü/2", 4, values + 1)
        written.append(((tmp_path / name).read_bytes(), writer.index().to_bytes()))
    assert written[0] == written[1]


def test_offsets_are_right_when_members_are_not_evenly_spaced(tmp_path: Path) -> None:
    # A name beyond plain tar's hundred bytes is written as an extra member before its own.
    keys = ["a/1", f"b/{'long' * 40}", "c/ü", "d/2"]
    with ShardWriter(tmp_path / "uneven.tar", MOMENTS) as writer:
        for number, key in enumerate(keys):
            writer.add(key, number, np.full((2, 8, 2, 2), number, dtype=np.float16))
    index = writer.index()
    assert len(set(np.diff(index.offsets).tolist())) > 1
    data = (tmp_path / "uneven.tar").read_bytes()
    for number, offset in enumerate(index.offsets):
        assert np.frombuffer(data, np.float16, 64, int(offset)).tolist() == [number] * 64


@pytest.mark.parametrize(
    ("damage", "error"), [("cut", MissingError), ("grown", MissingError), ("one byte", DataError), ("index", DataError)]
)
def test_damaged_shard_is_refused_by_name(store: Store, damage: str, error: type[DitError]) -> None:
    config = latent_study()
    write_latents(store, config, 20)
    name = layout.shard_index(1) if damage == "index" else layout.shard(1)
    path = path_of(store, config, name)
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-10240])
    elif damage == "grown":
        path.write_bytes(data + b"\0" * 512)
    else:
        flip_bit(path, len(data) // 2)
    with pytest.raises(error, match=name) as caught:
        ShardSet.open(store, config)
    assert "\n" not in str(caught.value)


def test_shard_that_changed_after_its_check_is_hashed_again(store: Store) -> None:
    config = latent_study()
    write_latents(store, config, 20)
    ShardSet.open(store, config)
    path = path_of(store, config, layout.shard(2))
    before = path.stat()
    flip_bit(path, 2000)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match=layout.shard(2)):
        ShardSet.open(store, config)


def test_unchanged_shard_is_hashed_once(store: Store) -> None:
    config = latent_study()
    write_latents(store, config, 20)
    path = str(path_of(store, config, layout.shard(0)))
    opened: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open" and str(arguments[0]) == path:
            opened.append(event)

    sys.addaudithook(watch)
    ShardSet.open(store, config)
    first = len(opened)
    ShardSet.open(store, config)
    watching = False
    assert (first, len(opened) - first) == (2, 1)


def test_shards_open_without_a_writable_cache(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = latent_study()
    write_latents(store, config, 20)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "file"))
    assert len(ShardSet.open(store, config)) == len(ShardSet.open(store, config)) == 20


def test_soft_limit_on_open_files_is_raised(store: Store) -> None:
    config = latent_study(samples_per_shard=1)
    write_latents(store, config, 150)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 60, before[1]))
    try:
        shards = ShardSet.open(store, config)
        assert shards.gather(np.arange(150), np.zeros(150, dtype=bool))[1].tolist() == [i % 3 for i in range(150)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_hard_limit_on_open_files_is_an_error_with_the_number_needed(store: Store, tmp_path: Path) -> None:
    config = latent_study()
    write_latents(store, config, 20)
    (tmp_path / "study.yaml").write_text(config.to_yaml())
    code = (
        "import sys; from dit.data.shard_set import ShardSet; from dit.storage import open_store;"
        "from dit.study.study_file import load; ShardSet.open(open_store(sys.argv[2]), load(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "study.yaml", store.url],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.splitlines()[-1].startswith(
        "dit.errors.InputError: the dataset's 3 shards need 259 open files, and the limit of this process is 200; "
    )


def test_index_of_another_shard_is_refused(tmp_path: Path, store: Store) -> None:
    config = latent_study()
    write_latents(store, config, 20)
    shards = ShardSet.open(store, config)
    paths = [path_of(store, config, layout.shard(i)) for i in range(3)]
    indices = [ShardIndex.read(path_of(store, config, layout.shard_index(i)), "index") for i in range(3)]
    with ShardWriter(tmp_path / "other.tar", MOMENTS) as writer:
        for number in range(8):
            writer.add(f"a/{'x' * 120}{number}", 0, np.zeros((2, 8, 2, 2), np.float16))
    with pytest.raises(DataError, match=r"shard-00000\.tar.*index"):
        ShardSet(shards.manifest, paths, [writer.index(), *indices[1:]])


def test_missing_dataset_and_another_configuration_are_refused(store: Store) -> None:
    config = latent_study()
    with pytest.raises(MissingError, match="dit prepare"):
        ShardSet.open(store, config)
    write_latents(store, config, 20)
    other = latent_study(samples_per_shard=9)
    manifest = store.read(f"{layout.dataset(config)}/{layout.MANIFEST}")
    store.write(f"{layout.dataset(other)}/{layout.MANIFEST}", manifest)
    with pytest.raises(MismatchError, match=f"{config.dataset_hash()}.*{other.dataset_hash()}"):
        ShardSet.open(store, other)
    store.write(f"{layout.dataset(config)}/{layout.MANIFEST}", manifest.replace(b'version": 1', b'version": 7'))
    with pytest.raises(MismatchError, match="schema version 7"):
        ShardSet.open(store, config)


@pytest.mark.parametrize("damage", ["compressed", "no archive", "offset before", "offset behind"])
def test_index_that_is_no_index_of_its_shard_is_refused(store: Store, damage: str) -> None:
    config = latent_study()
    write_latents(store, config, 8)
    path = path_of(store, config, layout.shard_index(0))
    with np.load(path) as arrays:
        values = dict(arrays)
    if damage == "compressed":
        # A file of some kilobytes that unpacks to gigabytes has this form.
        np.savez_compressed(path, **values)
    elif damage == "no archive":
        path.write_bytes(path.read_bytes()[:200])
    else:
        values["offsets"] = values["offsets"] + (-(1 << 20) if "before" in damage else 1 << 20)
        np.savez(path, **values)
    key = f"{layout.dataset(config)}/{layout.MANIFEST}"
    manifest = json.loads(store.read(key))
    manifest["shards"][0]["index_sha256"] = sha256_file(path)
    store.write(key, json.dumps(manifest).encode())
    with pytest.raises(DataError, match="run `dit prepare` again"):
        ShardSet.open(store, config)
