"""The files of a sample set: parts, which any process may write, and a manifest. Torch-free.

A part has a fixed number of images, whatever the number of processes. Its record is written after it and marks it
complete; the manifest is written last and marks the set complete.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dit.codec.weights import decoder_differs
from dit.errors import DataError, MismatchError
from dit.results.output import Output
from dit.results.stages import Work, samples
from dit.results.state import check_hash
from dit.storage import Store, read_record, sha256_file, write_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import FileEntry, SamplePartRecord, SampleSetManifest
from dit.study.runs import Run

PART_IMAGES = 250

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Output of sampler and decoder: images uint8 [N, H, W, C], and the latents [N, c, h, w] they were decoded from."""

    images: Images
    latents: npt.NDArray[np.float32]
    seconds: float
    """Time that drawing took."""


@dataclass(frozen=True, slots=True)
class SampleSet:
    """The samples of one checkpoint: their keys in the store, and the origin that they must have."""

    work: Work
    run: Run
    step: int

    @property
    def config(self) -> StudyConfig:
        """The study."""
        return self.work.config

    @property
    def store(self) -> Store:
        """The store of its results."""
        return self.work.store

    @property
    def output(self) -> Output[SampleSetManifest]:
        """The manifest that marks the set complete."""
        return samples(self.work, self.run, self.step)

    @property
    def folder(self) -> str:
        """Key of the set's folder."""
        return layout.samples(self.config, self.run, self.step)

    @property
    def config_hash(self) -> str:
        """The configuration hash that every part and the manifest must have."""
        return self.config.sampling_hash(self.run)

    @property
    def parts(self) -> range:
        """Numbers of all parts."""
        return range(-(-self.config.sampling.num_samples // PART_IMAGES))

    def indices(self, part: int) -> range:
        """Numbers of the samples in a part."""
        return range(part * PART_IMAGES, min((part + 1) * PART_IMAGES, self.config.sampling.num_samples))

    def finished_parts(self, checkpoint_sha256: str) -> dict[int, SamplePartRecord]:
        """Records of the parts that were drawn from these weights and whose files exist, by part.

        Raises MismatchError when a part was made with another configuration or decoder.
        """
        # One listing instead of a request per part, which would take minutes on S3.
        sizes = self.store.sizes(self.folder)
        finished = {}
        for part in self.parts:
            key = f"{self.folder}/{layout.sample_part_record(part)}"
            record = read_record(self.store, key, SamplePartRecord) if key in sizes else None
            if record is None:
                continue
            self._check_origin(key, record)
            whole = sizes.get(f"{self.folder}/{record.file.name}") == record.file.bytes
            if whole and record.checkpoint_sha256 == checkpoint_sha256:
                finished[part] = record
        return finished

    def write_part(self, part: int, drawn: Drawn, labels: Labels, checkpoint_sha256: str) -> None:
        """Write one part's images and labels, then its record with sums of the latents."""
        buffer = io.BytesIO()
        np.savez(buffer, images=drawn.images, labels=labels)
        entry = self.store.write(f"{self.folder}/{layout.sample_part(part)}", buffer.getvalue())
        latents = drawn.latents.astype(np.float64)
        record = SamplePartRecord(
            config_hash=self.config_hash,
            checkpoint_sha256=checkpoint_sha256,
            decoder=self.work.decoder,
            file=entry,
            count=len(drawn.images),
            values_per_channel=latents[:, 0].size,
            latent_sum=tuple(latents.sum(axis=(0, 2, 3))),
            latent_square_sum=tuple((latents**2).sum(axis=(0, 2, 3))),
            seconds=drawn.seconds,
        )
        write_record(self.store, f"{self.folder}/{layout.sample_part_record(part)}", record)

    def all_parts(self, checkpoint_sha256: str) -> list[SamplePartRecord]:
        """Records of all parts, in order.

        Raises DataError when parts are missing.
        """
        finished = self.finished_parts(checkpoint_sha256)
        missing = [part for part in self.parts if part not in finished]
        if missing:
            raise DataError(
                f"{self.store.place(self.folder)}: {len(missing)} of {len(self.parts)} parts are missing, the first is"
                f" {layout.sample_part(missing[0])}; run the same command again"
            )
        return [finished[part] for part in self.parts]

    def write_manifest(self, records: Sequence[SamplePartRecord], others: Sequence[FileEntry]) -> None:
        """Write the manifest, which marks the set complete; `others` are its files besides the parts."""
        # Mean and deviation of all latents per channel, from the parts' sums: E[x^2] - E[x]^2 in float64.
        values = sum(record.values_per_channel for record in records)
        mean = np.sum([record.latent_sum for record in records], axis=0) / values
        square = np.sum([record.latent_square_sum for record in records], axis=0) / values
        manifest = SampleSetManifest(
            study=self.config.study,
            variant=self.run.spec.name,
            step=self.step,
            config_hash=self.config_hash,
            checkpoint_sha256=records[0].checkpoint_sha256,
            num_samples=sum(record.count for record in records),
            image_size=self.config.dataset.image_size,
            channels=self.read_part(records[0].file)[0].shape[-1],
            decoder=self.work.decoder,
            seconds=sum(record.seconds for record in records),
            latent_mean=tuple(mean),
            latent_std=tuple(np.sqrt(np.maximum(square - mean**2, 0))),
            files=(*(record.file for record in records), *others),
        )
        write_record(self.store, f"{self.folder}/{layout.MANIFEST}", manifest)

    def read(self, manifest: SampleSetManifest) -> Iterator[tuple[Images, Labels]]:
        """Images [n, H, W, C] and labels [n] of each part, in order; raises as `read_part`."""
        for part in self.parts:
            yield self.read_part(manifest.files[part])

    def read_part(self, entry: FileEntry) -> tuple[Images, Labels]:
        """Images [n, H, W, C] and labels [n] of the part in this file.

        Raises DataError when its SHA-256 is not the recorded one, or it is not an npz of a part.
        """
        key = f"{self.folder}/{entry.name}"
        path = self.store.local(key, entry.sha256)
        damaged = f"{self.store.place(key)}: damaged; remove {self.store.place(self.folder)} and run `dit sample` again"
        # A file store returns its own file without checking it.
        if sha256_file(path) != entry.sha256:
            raise DataError(damaged)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return arrays["images"], arrays["labels"]
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{damaged} ({error})") from error

    def _check_origin(self, key: str, record: SamplePartRecord) -> None:
        where, output = self.store.place(key), self.output
        check_hash(self.work, where, record, output)
        remedy = f"remove {self.store.place(self.folder)} to draw these samples again"
        if problem := decoder_differs(record.decoder, self.work.decoder, remedy):
            raise MismatchError(f"{where}: {problem}")
