"""What a stage returned, as a step's artifacts of kfp. Knows no kfp."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dit.storage import Store
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.records import CheckpointMeta, DatasetManifest, MetricsRecord, Record, SampleSetManifest
from dit.study.runs import Run
from pipelines.step import artifacts


class Artifact(Protocol):
    """What kfp gives a component for an output."""

    path: str
    metadata: dict[str, Any]


class MetricsArtifact(Artifact, Protocol):
    """kfp's Metrics."""

    def log_metric(self, metric: str, value: float) -> None:
        """Show a number in the pipelines' UI."""


@dataclass(frozen=True)
class StepResult:
    """What a stage returned, and where it wrote it."""

    config: StudyConfig
    store: Store
    records: list[Record]
    run: Run | None = None
    """The run that the records belong to; None for a stage of the whole study."""

    def dataset(self, artifact: Artifact) -> None:
        """The dataset's manifest."""
        for record in self.records:
            if isinstance(record, DatasetManifest):
                self._save(artifact, layout.dataset(self.config), record)
                artifact.metadata |= {"images": record.count, "shards": len(record.shards)}

    def part(self, artifact: Artifact, part: tuple[int, int]) -> None:
        """Which part of the dataset is in the store."""
        self._place(artifact, layout.dataset(self.config))
        Path(artifact.path).write_text(json.dumps(artifact.metadata | {"part": part[0], "parts": part[1]}) + "\n")

    def model(self, artifact: Artifact) -> None:
        """The last checkpoint's record."""
        for record in self.records:
            if isinstance(record, CheckpointMeta):
                self._save(artifact, layout.checkpoint(self.config, self._own_run, record.step), record)
                artifact.metadata |= {"variant": self._own_run.name, "steps": record.step, "loss": record.loss}

    def samples(self, sets: Artifact, grids: Artifact) -> None:
        """The last sample set's manifest, and previews of all."""
        self.grids(grids)
        for record in self.records:
            if isinstance(record, SampleSetManifest):
                self._save(sets, self._samples, record)

    def grids(self, grids: Artifact) -> None:
        """Previews of all sample sets."""
        # Without a record the samples were removed once they had been evaluated.
        grids.metadata["store"], shown = self.store.url, []
        for record in self.records:
            if isinstance(record, SampleSetManifest):
                self._place(grids, self._samples)
                key = layout.sample_grid(self.config, self._own_run, record.step)
                if self.store.exists(key):
                    shown.append((f"{self._own_run.name}, step {record.step:,}", self.store.read(key)))
        Path(grids.path).write_text(artifacts.page(shown), encoding="utf-8")

    def metrics(self, metrics: MetricsArtifact, summary: Artifact) -> None:
        """Every checkpoint's primary metric as numbers, and all metrics as a table."""
        if self.run is None:
            return  # other processes did all runs
        found = [record for record in self.records if isinstance(record, MetricsRecord)]
        for record in found:
            metrics.log_metric(f"{record.metric}_step_{record.step}", record.metrics[record.metric].value)
        Path(summary.path).write_text(artifacts.metrics_table(self.run.name, found), encoding="utf-8")
        folder = layout.metrics_folder(self.config, self.run)
        for artifact in (metrics, summary):
            self._place(artifact, folder)

    def report(self, page: Artifact, verdict: Artifact) -> None:
        """The report, and its verdict and table as text."""
        folder = layout.report(self.config)
        Path(page.path).write_bytes(self.store.read(f"{folder}/{layout.REPORT_PAGE}"))
        Path(verdict.path).write_text(artifacts.verdict_text(self.config, self.store), encoding="utf-8")
        for artifact in (page, verdict):
            self._place(artifact, folder)

    @property
    def _own_run(self) -> Run:
        assert self.run is not None
        return self.run

    @property
    def _samples(self) -> str:
        return f"{layout.variant(self.config, self._own_run)}/samples"

    def _save(self, artifact: Artifact, key: str, record: Record) -> None:
        """Keep a record in the artifact."""
        Path(artifact.path).write_bytes(record.to_json())
        self._place(artifact, key)

    def _place(self, artifact: Artifact, key: str) -> None:
        artifact.metadata["store"] = f"{self.store.url}/{key}"
