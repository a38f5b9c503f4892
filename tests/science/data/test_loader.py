"""Order and randomness of training batches: equal at any number of processes and from any step."""

from __future__ import annotations

import copy
import pickle
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_fixtures import digits_study, latent_study, write_latents
from hypothesis import given, settings
from hypothesis import strategies as st

from dit.data.draws import Purpose, normals
from dit.data.loader import BatchMaker, StepBatch, TrainingStream
from dit.data.shard_set import ShardSet
from dit.errors import DataError
from dit.stages import prepare
from dit.storage import open_store
from dit.study.config import TrainConfig

FIELDS = ("x0_NCHW", "t_N", "noise_NCHW", "y_N")


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    config, store = latent_study(), open_store(tmp_path_factory.mktemp("root"))
    write_latents(store, config, 50)
    return ShardSet.open(store, config)


def stream(
    shards: ShardSet,
    train: TrainConfig,
    ranks: tuple[int, int] = (0, 1),
    start: int = 0,
    stop: int = 5,
    prefetch: int = 2,
) -> TrainingStream:
    rank, world = ranks
    return TrainingStream(
        shards, train, rank=rank, world_size=world, start_step=start, stop_step=stop, prefetch=prefetch
    )


def batches_of(shards: ShardSet, train: TrainConfig, **more: Any) -> list[StepBatch]:
    with closing(stream(shards, train, **more)) as batches:
        return list(batches)


def equal(a: StepBatch, b: StepBatch) -> bool:
    return a.step == b.step and all(torch.equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


@settings(max_examples=60, deadline=None)
@given(
    world=st.sampled_from([1, 2, 3, 4, 8]),
    share=st.integers(1, 40),
    start=st.integers(0, 200),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**40),
)
def test_every_sample_occurs_once_per_epoch_across_ranks_and_restarts(
    latents: ShardSet, world: int, share: int, start: int, epochs: int, seed: int
) -> None:
    batch, count = world * share, len(latents)
    train = TrainConfig(steps=1, global_batch=batch, seed=seed)
    # From the first epoch that begins at or after the start; a restart at another world size lies in between.
    first = -(-start * batch // count) * count
    steps = range(start + 1, (first + epochs * count) // batch + 2)
    restart = steps.start + len(steps) // 2
    drawn = []
    for step in steps:
        ranks = world if step < restart else 1
        drawn += [BatchMaker(latents, train, rank=r, world_size=ranks).samples(step) for r in range(ranks)]
    run = np.concatenate(drawn)[first - start * batch :]
    for epoch in range(epochs):
        assert sorted(run[epoch * count : (epoch + 1) * count]) == list(range(count))


@pytest.mark.parametrize("world", [2, 4])
def test_slices_of_all_ranks_make_the_batch_of_one_process(latents: ShardSet, world: int) -> None:
    train = TrainConfig(steps=5, global_batch=24, seed=3)
    whole = batches_of(latents, train)
    parts = [batches_of(latents, train, ranks=(rank, world)) for rank in range(world)]
    for step, batch in enumerate(whole):
        for name in FIELDS:
            joined = torch.cat([getattr(part[step], name) for part in parts])
            assert torch.equal(joined, getattr(batch, name)), name


def test_resume_gives_the_batches_of_an_uninterrupted_run(latents: ShardSet) -> None:
    train = TrainConfig(steps=30, global_batch=16)
    whole = batches_of(latents, train, stop=30)
    assert [batch.step for batch in whole] == list(range(1, 31))
    for start in (1, 13, 29):
        assert all(
            equal(a, b) for a, b in zip(whole[start:], batches_of(latents, train, start=start, stop=30), strict=True)
        )
    assert batches_of(latents, train, start=30, stop=30) == []


def test_prefetching_changes_nothing(latents: ShardSet) -> None:
    train = TrainConfig(steps=5, global_batch=16)
    in_line, ahead = (batches_of(latents, train, prefetch=prefetch) for prefetch in (0, 3))
    assert all(equal(a, b) for a, b in zip(in_line, ahead, strict=True))


def test_seeds_steps_and_epochs_differ(latents: ShardSet) -> None:
    batches = batches_of(latents, TrainConfig(steps=40, global_batch=25), stop=4)
    other = batches_of(latents, TrainConfig(steps=40, global_batch=25, seed=1), stop=4)
    for a, b in [(batches[0], batches[1]), (batches[0], other[0]), (batches[0], batches[2])]:
        assert not any(torch.equal(getattr(a, name), getattr(b, name)) for name in FIELDS)
    maker = BatchMaker(latents, TrainConfig(steps=40, global_batch=50), rank=0, world_size=1)
    assert maker.samples(1).tolist() != maker.samples(2).tolist()


def test_distributions_of_timesteps_labels_and_noise(latents: ShardSet) -> None:
    train = TrainConfig(steps=400, global_batch=48, label_drop=0.25)
    batches = batches_of(latents, train, stop=200)
    t, y = torch.cat([b.t_N for b in batches]), torch.cat([b.y_N for b in batches])
    noise = torch.cat([b.noise_NCHW for b in batches])
    assert batches[0].x0_NCHW.shape == batches[0].noise_NCHW.shape == (48, 4, 2, 2)
    assert {b.x0_NCHW.dtype for b in batches} == {b.noise_NCHW.dtype for b in batches} == {torch.float32}
    assert t.dtype == y.dtype == torch.int64
    assert (int(t.min()), int(t.max())) == (0, 999)
    assert abs(t.double().mean() - 499.5) < 12
    assert abs((y == 3).double().mean() - 0.25) < 0.02
    assert set(y.tolist()) == {0, 1, 2, 3}
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert not batches_of(latents, TrainConfig(steps=9, global_batch=48, label_drop=0.0), stop=9)[5].y_N.eq(3).any()


def test_latents_are_scaled_draws_from_the_posterior_of_image_or_mirror_image(latents: ShardSet) -> None:
    train = TrainConfig(steps=9999, global_batch=50, label_drop=0.0)
    maker = BatchMaker(latents, train, rank=0, world_size=1)
    stored = [latents.gather(np.arange(50), np.full(50, view))[0].astype(np.float64) for view in (False, True)]
    mean, std = (np.stack(part) for part in zip(*((m[:, :4], np.exp(m[:, 4:] / 2)) for m in stored), strict=True))
    chose_mirror, normalised = [], []
    for step in range(1, 121):
        where, batch = maker.samples(step), maker.batch(step)
        assert torch.equal(batch.y_N, torch.from_numpy(latents.labels[where]))
        z = (batch.x0_NCHW.numpy() / 0.18215 - mean[:, where]) / std[:, where]
        view = np.square(z).sum(axis=(2, 3, 4)).argmin(axis=0)
        chose_mirror.append(view.mean())
        normalised.append(z[view, np.arange(50)])
    assert abs(np.mean(chose_mirror) - 0.5) < 0.03
    # Picking the nearer of two posteriors trims the tails a little.
    assert abs(np.std(normalised) - 1) < 0.05
    assert not torch.equal(maker.batch(1).noise_NCHW, torch.from_numpy(normalised[0]).float())


def test_dataset_without_mirror_is_not_mirrored(tmp_path: Path) -> None:
    config, store = digits_study(), open_store(tmp_path / "root")
    prepare.run(config, store)
    shards = ShardSet.open(store, config)
    train = TrainConfig(steps=20, global_batch=128)
    maker = BatchMaker(shards, train, rank=0, world_size=1)
    for step in (1, 15):
        pixels, _ = shards.gather(maker.samples(step), np.zeros(128, dtype=bool))
        assert np.array_equal(maker.batch(step).x0_NCHW.numpy(), (pixels / np.float32(127.5) - 1).astype(np.float32))


@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 2**63))
@settings(deadline=None)
def test_normals_of_a_sample_do_not_depend_on_the_slice(start: int, length: int, seed: int) -> None:
    whole = normals(seed, Purpose.NOISE, 7, range(120), (3,))
    assert np.array_equal(
        normals(seed, Purpose.NOISE, 7, range(start, start + length), (3,)), whole[start : start + length]
    )


def test_error_in_the_thread_reaches_the_consumer(latents: ShardSet) -> None:
    def gather(*_: object) -> None:
        raise DataError("shard-00001.tar: damaged")

    damaged = copy.copy(latents)
    damaged.gather = gather  # type: ignore[method-assign,assignment]
    with pytest.raises(DataError, match="shard-00001") as caught:
        next(iter(stream(damaged, TrainConfig(steps=3))))
    assert str(pickle.loads(pickle.dumps(caught.value))) == "shard-00001.tar: damaged"


def test_closing_a_stream_ends_its_thread(latents: ShardSet) -> None:
    before = threading.active_count()
    train = TrainConfig(steps=10_000, global_batch=16)
    batches = stream(latents, train, stop=10_000)
    for batch in batches:
        if batch.step == 3:
            break
    batches.close()
    batches.close()
    stream(latents, train).close()
    assert threading.active_count() == before


def test_thread_stays_at_most_prefetch_batches_ahead(latents: ShardSet) -> None:
    made: list[int] = []

    def gather(*arguments: Any) -> Any:
        made.append(1)
        return latents.gather(*arguments)

    counting = copy.copy(latents)
    counting.gather = gather  # type: ignore[method-assign]
    with closing(stream(counting, TrainConfig(steps=99, global_batch=8), stop=99, prefetch=3)) as batches:
        for batch in batches:
            # One is handed out, three wait, and one is ready for the next place.
            assert len(made) <= batch.step + 3 + 1
