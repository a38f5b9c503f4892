"""The report's inputs besides metrics: previews, loss curves, manifests and checkpoints."""

from __future__ import annotations

import base64
import io
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dit.claims.results import Results
from dit.health.summary import RATIOS, readings
from dit.results.stages import Work, checkpoint, dataset, samples
from dit.results.state import read_output
from dit.storage import Store
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import CheckpointMeta, DatasetManifest, HealthEvent, SampleSetManifest
from dit.study.runs import Run
from dit.tracking import Point, read_points

LARGEST_GRID_BYTES = 400_000
LARGEST_GRID_SIDE = 1024
# Both ends, and the size between them.
_SHORTEST_PNG = 32
LARGEST_PREVIEW_BYTES, LARGEST_PREVIEW_SIDE = 40_000, 560
"""A study has tens of them."""
_PNG_BEGIN, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
CURVE_POINTS = 300
"""Most points in a loss curve."""
SMOOTHED_SHARE = 0.08
"""Share of a loss curve over which its values are averaged."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A preview of a sample set, ready for an <img>."""

    source: str
    """A data URI."""
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """The report's inputs besides metrics. Parts that the store no longer has are left out."""

    grids: dict[tuple[str, int, str], Grid]
    """(run, step, sampling protocol) -> preview."""
    real: Grid | None
    """Preview of the dataset's images."""
    losses: dict[str, list[tuple[float, float]]]
    """Run -> points (step, training loss), thinned and smoothed."""
    samples: dict[tuple[str, int], SampleSetManifest]
    dataset: DatasetManifest | None
    checkpoints: dict[tuple[str, int], CheckpointMeta]
    health: list[tuple[str, HealthEvent]] = field(default_factory=list)
    """(dataset or run, last reading) of every check."""
    ratios: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)
    """One of `RATIOS` -> run -> points (step, ratio); a ratio without points is left out."""
    previews: dict[str, list[tuple[int, Grid]]] = field(default_factory=dict)
    """Run -> (step, picture that the training drew), in order."""

    @property
    def code_versions(self) -> list[str]:
        """Versions of the program that trained the evaluated checkpoints."""
        return sorted({meta.code_version for meta in self.checkpoints.values()} - {""})


def load_evidence(results: Results, store: Store) -> Evidence:
    """Read what the store has."""
    config, work = results.config, Work(results.config, store)
    grids: dict[tuple[str, int, str], Grid] = {}
    sets, metas = {}, {}
    first = {run.spec: run for run in reversed(config.runs)}
    for variant, record in results.rows():
        point = variant.run.name, record.step
        # Of further seeds and other protocols only the judged step is shown: each preview adds to the page's size.
        if variant.run == first[variant.spec] or record.step == results.verdict.step:
            _add_grid(grids, store, config, variant.run, record.step)
        if manifest := read_output(work, samples(work, variant.run, record.step)):
            sets[point] = manifest
        if meta := read_output(work, checkpoint(work, variant.run, record.step)):
            metas[point] = meta
    for other in results.others:
        if other.record.step == results.verdict.step:
            _add_grid(grids, store, other.config, other.run, other.record.step)
    points = {run.name: read_points(config, store, run) for run in config.runs}
    ratios = {key: _curves(points, key) for key in RATIOS}
    real = layout.real_grid(config)
    return Evidence(
        grids=grids,
        real=embed(store.read(real)) if store.exists(real) else None,
        losses={name: smooth(curve) for name, curve in _curves(points, "loss").items()},
        samples=sets,
        dataset=read_output(work, dataset(work)),
        checkpoints=metas,
        health=readings(config, store),
        ratios={key: curves for key, curves in ratios.items() if curves},
        previews={run.name: strip for run in config.runs if (strip := _strip(config, store, run))},
    )


def embed(png: bytes, most_bytes: int = LARGEST_GRID_BYTES, most_side: int = LARGEST_GRID_SIDE) -> Grid:
    """A PNG as a data URI; a large one becomes a smaller JPEG, a damaged one a picture that says so."""
    if len(png) < _SHORTEST_PNG or not (png.startswith(_PNG_BEGIN) and png.endswith(_PNG_END)):
        return _DAMAGED
    # Width and height are the first two words of the PNG's first chunk, which is read without Pillow.
    width, height = struct.unpack(">II", png[16:24])
    if len(png) <= most_bytes:
        return Grid(_data_uri("png", png), width, height)
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            image.thumbnail((most_side, most_side), Image.Resampling.LANCZOS)
            smaller = io.BytesIO()
            image.convert("RGB").save(smaller, "JPEG", quality=88)
            return Grid(_data_uri("jpeg", smaller.getvalue()), image.width, image.height)
    # What Pillow raises for damaged files, and for one that is too large to decode.
    except (OSError, ValueError, SyntaxError, zlib.error, Image.DecompressionBombError):
        return _DAMAGED


def thin(points: list[tuple[int, float]], most: int = CURVE_POINTS) -> list[tuple[float, float]]:
    """The curve with at most `most` points, each the mean of as many neighbouring points."""
    size = -(-len(points) // most)
    runs = [points[i : i + size] for i in range(0, len(points), size)] if points else []
    return [(sum(step for step, _ in run) / len(run), sum(value for _, value in run) / len(run)) for run in runs]


def smooth(points: list[tuple[float, float]], share: float = SMOOTHED_SHARE) -> list[tuple[float, float]]:
    """The curve with each value replaced by the mean of its neighbours within this share of the curve.

    At an end as many neighbours count on either side as the end leaves, so that a slope is not bent.
    """
    values = [value for _, value in points]
    widest = round(share * len(points) / 2)
    smoothed = []
    for i, (step, _) in enumerate(points):
        reach = min(widest, i, len(points) - 1 - i)
        window = values[i - reach : i + reach + 1]
        smoothed.append((step, sum(window) / len(window)))
    return smoothed


def _add_grid(grids: dict[tuple[str, int, str], Grid], store: Store, config: StudyConfig, run: Run, step: int) -> None:
    key = layout.sample_grid(config, run, step)
    if store.exists(key):
        grids[run.name, step, layout.protocol(config.sampling)] = embed(store.read(key))


def _curves(points: Mapping[str, Sequence[Point]], key: str) -> dict[str, list[tuple[float, float]]]:
    """A metric's finite values by run, thinned; a run without any is left out."""
    curves = {
        name: sorted((point.step, point.value) for point in row if point.key == key and math.isfinite(point.value))
        for name, row in points.items()
    }
    return {name: thin(curve) for name, curve in curves.items() if curve}


def _strip(config: StudyConfig, store: Store, run: Run) -> list[tuple[int, Grid]]:
    strip = []
    for key in store.list(layout.previews(config, run)):
        step = layout.step_number(key.rpartition("/")[2].removesuffix(".png"))
        # A training that was extended has drawn at shares of its earlier length, too.
        if step is not None and step <= config.train.steps:
            strip.append((step, embed(store.read(key), LARGEST_PREVIEW_BYTES, LARGEST_PREVIEW_SIDE)))
    return strip


def _damaged() -> Grid:
    width, height = 320, 40
    text = '<text x="8" y="26" font-family="sans-serif">This preview, grid.png, is damaged.</text>'
    picture = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">{text}</svg>'
    return Grid(_data_uri("svg+xml", picture.encode()), width, height)


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


_DAMAGED = _damaged()
