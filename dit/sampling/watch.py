"""What the health checks see of a sampling: the loaded weights, and the first latents before any set is drawn."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from dit.data.measure import load_bounds
from dit.diffusion.sampler import Denoiser
from dit.diffusion.schedule import SCHEDULES
from dit.health.identity import LoadedView, ProbeBatch, group_norms, loss_tolerance
from dit.health.recipe import initial_share
from dit.health.samples import SAMPLES, SamplesView, label_samples, measure_label_gains
from dit.health.watch import Watch
from dit.results.stages import Work
from dit.runtime.device import computed_in
from dit.runtime.distributed import Ranks
from dit.sampling.generate import Generator
from dit.sampling.wiener import draw_wiener
from dit.study.records import CheckpointMeta
from dit.study.runs import Run
from dit.tracking import Tracker


class SamplingWatch:
    """The checks of a variant's sampling; without the dataset's bounds there are none. All ranks call every method."""

    def __init__(self, work: Work, run: Run, ranks: Ranks, tracker: Tracker) -> None:
        self._config, self._ranks = work.config, ranks
        self._watch = Watch(work.config, run, work.store, ranks, tracker if ranks.is_main else None)
        self._bounds = load_bounds(work)
        self._schedule = SCHEDULES[work.config.train.schedule]()

    def begin(self, step: int) -> None:
        """Check the sampler itself, before a model is loaded."""
        if self._bounds is not None:
            bounds = self._bounds
            self._watch.look("sampler", step, lambda: draw_wiener(self._config, bounds, self._ranks.device))

    def look(self, meta: CheckpointMeta, weights: Mapping[str, Tensor], denoise: Denoiser) -> None:
        """Check a checkpoint's model before its set is drawn. Raises UnhealthyError on all ranks."""
        if self._bounds is None:
            return
        if meta.probe is not None:
            self._watch.look("checkpoint", meta.step, lambda: self._loaded(meta, weights, denoise))
        view = self._samples(meta, denoise) if self._ranks.is_main and self._watch.is_on("samples") else None
        # The first latents of a large model on a CPU can take longer than the timeout of a collective.
        self._ranks.barrier()
        self._watch.look("samples", meta.step, lambda: view)
        self._watch.flush()

    def _loaded(self, meta: CheckpointMeta, weights: Mapping[str, Tensor], denoise: Denoiser) -> LoadedView:
        assert meta.probe is not None
        assert self._bounds is not None
        loss = ProbeBatch.make(self._bounds, self._schedule, self._ranks.device).loss(denoise)
        ours = computed_in(self._config.sampling.precision, self._ranks.device)
        if ours == "tf32" and self._ranks.device.type == "cpu":
            ours = "fp32"
        tolerance = loss_tolerance(meta.probe.precision, ours)
        if self._config.sampling.weights == "raw":
            return LoadedView(meta.probe, raw_loss=loss, raw_norms=group_norms(weights), tolerance=tolerance)
        return LoadedView(meta.probe, ema_loss=loss, ema_norms=group_norms(weights), tolerance=tolerance)

    def _samples(self, meta: CheckpointMeta, denoise: Denoiser) -> SamplesView:
        config, device = self._config, self._ranks.device
        assert self._bounds is not None
        generator = Generator(config, denoise, None, device, SAMPLES)
        drawn = generator.latents(np.arange(min(SAMPLES, len(generator.labels))))
        count, abar = label_samples(config), self._schedule.alphas_cumprod
        with_classes, without = (self._bounds.errors_T(rung, abar).mean() for rung in ("cls", "b"))
        return SamplesView(
            bounds=self._bounds,
            latents_NCHW=drawn.cpu().numpy(),
            ratio_b=meta.probe.ratio_b if meta.probe else None,
            initial_share=initial_share(config, meta.step) if config.sampling.weights == "ema" else 0.0,
            class_ratio=float(with_classes / without),
            label_gains_N=measure_label_gains(denoise, self._bounds, self._schedule, count, device),
        )
