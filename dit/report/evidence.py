"""What the report shows beside the numbers: sample grids, loss curves, and what the results were made from."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import struct
from dataclasses import dataclass

from dit import __version__
from dit.claims.results import Results
from dit.storage import Store, read_record
from dit.study import layout
from dit.study.config import StudyConfig, as_yaml
from dit.study.hashing import digest
from dit.study.records import CheckpointMeta, DatasetManifest, SampleSetManifest
from dit.study.variants import ModelSpec
from dit.tracking import read_points

LARGEST_GRID_BYTES = 400_000
LARGEST_GRID_SIDE = 1024
CURVE_POINTS = 300
"""A loss curve is drawn through this many means at most."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A preview of a sample set, ready for an <img>."""

    source: str
    """A data URI."""
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything but the metrics; a part that the store no longer has is left out of the report."""

    grids: dict[tuple[str, int], Grid]
    """(variant, step) -> preview."""
    losses: dict[str, list[tuple[float, float]]]
    """Variant -> (step, training loss), thinned."""
    samples: dict[tuple[str, int], SampleSetManifest]
    dataset: DatasetManifest | None
    checkpoints: dict[tuple[str, int], CheckpointMeta]

    @property
    def code_versions(self) -> list[str]:
        """Of the programs that trained the evaluated checkpoints."""
        return sorted({meta.code_version for meta in self.checkpoints.values()})


def inputs_hash(results: Results, store: Store) -> str:
    """Changes when anything does that the report is made from; reads no image."""
    config = results.config
    manifests = [_sample_set(config, store, variant.spec, record.step) for variant, record in results.rows()]
    checkpoints = [_checkpoint(config, store, variant.spec, record.step) for variant, record in results.rows()]
    return digest(
        {
            "program": __version__,
            "study": as_yaml(config.hashed()),
            "trained": [_hash(variant.train.to_json()) for variant in results.variants],
            "metrics": [_hash(record.to_json()) for _, record in results.rows()],
            "samples": [_hash(manifest.to_json()) if manifest else None for manifest in manifests],
            "checkpoints": [_hash(meta.to_json()) if meta else None for meta in checkpoints],
        }
    )


def load_evidence(results: Results, store: Store) -> Evidence:
    """Read what is there."""
    config = results.config
    grids, samples, checkpoints = {}, {}, {}
    for variant, record in results.rows():
        place = variant.spec.name, record.step
        key = layout.sample_grid(config, variant.spec, record.step)
        if store.exists(key):
            grids[place] = embed(store.read(key))
        if manifest := _sample_set(config, store, variant.spec, record.step):
            samples[place] = manifest
        if meta := _checkpoint(config, store, variant.spec, record.step):
            checkpoints[place] = meta
    return Evidence(
        grids=grids,
        losses={spec.name: curve for spec in config.specs if (curve := _loss_curve(config, store, spec))},
        samples=samples,
        dataset=read_record(store, f"{layout.dataset(config)}/{layout.MANIFEST}", DatasetManifest),
        checkpoints=checkpoints,
    )


def embed(png: bytes) -> Grid:
    """A PNG as a data URI; one too large for a page becomes a smaller JPEG."""
    width, height = struct.unpack(">II", png[16:24])
    if len(png) <= LARGEST_GRID_BYTES:
        return Grid(_data_uri("png", png), width, height)
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        image.thumbnail((LARGEST_GRID_SIDE, LARGEST_GRID_SIDE), Image.Resampling.LANCZOS)
        smaller = io.BytesIO()
        image.convert("RGB").save(smaller, "JPEG", quality=88)
        return Grid(_data_uri("jpeg", smaller.getvalue()), image.width, image.height)


def thin(points: list[tuple[int, float]], most: int = CURVE_POINTS) -> list[tuple[float, float]]:
    """Means of neighbouring points, so many in one that at most `most` are left."""
    size = -(-len(points) // most)
    runs = [points[i : i + size] for i in range(0, len(points), size)] if points else []
    return [(sum(step for step, _ in run) / len(run), sum(value for _, value in run) / len(run)) for run in runs]


def _sample_set(config: StudyConfig, store: Store, spec: ModelSpec, step: int) -> SampleSetManifest | None:
    return read_record(store, f"{layout.samples(config, spec, step)}/{layout.MANIFEST}", SampleSetManifest)


def _checkpoint(config: StudyConfig, store: Store, spec: ModelSpec, step: int) -> CheckpointMeta | None:
    return read_record(store, f"{layout.checkpoint(config, spec, step)}/{layout.META}", CheckpointMeta)


def _loss_curve(config: StudyConfig, store: Store, spec: ModelSpec) -> list[tuple[float, float]]:
    points = read_points(config, store, spec)
    return thin([(point.step, point.value) for point in points if point.key == "loss" and math.isfinite(point.value)])


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
