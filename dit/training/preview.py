"""Pictures of a few samples during a training, so that a person sees the model learn.

Shape letters: N samples, C latent channels, H and W latent height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dit.codec.base import Codec, to_uint8
from dit.codec.open import open_codec
from dit.console import say
from dit.diffusion.sampler import sample
from dit.diffusion.schedule import SCHEDULES
from dit.errors import DataError, DitError, one_line
from dit.model.transformer import DiT
from dit.results.stages import dataset
from dit.results.state import read_output
from dit.runtime.device import autocast
from dit.runtime.distributed import Ranks
from dit.sampling import grid
from dit.sampling.noise import NoiseStream, sample_labels
from dit.study import layout
from dit.study.config import PixelCodec, StudyConfig
from dit.tracking import Tracker
from dit.training.plan import TrainPlan
from dit.training.trainer import Trainer

SHARES = (0.01, 0.02, 0.05, 0.10)
"""Shares of a run after which a picture is drawn, besides the evaluated steps."""
SAMPLES = 16
"""Samples in a picture; no more than the study draws."""
# Without noise between its steps, DDIM needs few of them (Song et al. 2021, table 1).
_STEPS = 20
_DECODED_AT_ONCE = 4
# Scaled latents have about unit variance: this many deviations are shown of those that are not decoded.
_DEVIATIONS = 3.0


def moments(config: StudyConfig) -> frozenset[int]:
    """The steps after which a picture is drawn."""
    early = (max(1, round(share * config.train.steps)) for share in SHARES)
    return frozenset({*early, *config.evaluation.at_steps})


class Previews:
    """Draws and keeps the pictures of a variant's training, on rank 0.

    Each shows the same noise and labels, denoised with the raw weights (above) and with the EMA (below). Nothing of the
    training is touched: noise has its own generators, and the models share the training's weights.
    """

    def __init__(self, plan: TrainPlan, ranks: Ranks, trainer: Trainer, tracker: Tracker) -> None:
        self._plan, self._device, self._trainer, self._tracker = plan, ranks.device, trainer, tracker
        self._moments = moments(plan.config) if ranks.is_main else frozenset()
        self._sampling = plan.config.sampling.model_copy(
            update={
                "sampler": "ddim",
                "eta": 0.0,
                "steps": min(_STEPS, plan.config.sampling.steps),
                "num_samples": min(SAMPLES, plan.config.sampling.num_samples),
            }
        )

    def draw(self, step: int) -> None:
        """Draw and keep a picture, if one is due after this step. A failure is reported and ends nothing."""
        if step not in self._moments:
            return
        try:
            png = self._picture()
            self._plan.store.write(layout.preview(self._plan.config, self._plan.run, step), png)
            self._tracker.image("previews", step, png)
        except (DitError, torch.OutOfMemoryError) as error:
            say(f"{self._plan.run.name}: step {step}: no preview: {one_line(error)}")

    def _picture(self) -> bytes:
        inputs, files = self._plan.config.dataset.inputs, self._trainer.files()
        labels = sample_labels(self._sampling, inputs.classes)
        codec = self._codec()
        rows: list[list[tuple[npt.NDArray[np.uint8], str]]] = []
        names = self._class_names()
        for kind, file in (("raw", layout.RAW_WEIGHTS), ("EMA", layout.EMA_WEIGHTS)):
            latents_NCHW = self._latents(files[file], torch.from_numpy(labels))
            images = _decode(codec, latents_NCHW)
            tiles = [(image, f"{kind} {names[label]}") for image, label in zip(images, labels, strict=True)]
            rows += [tiles[start : start + grid.COLUMNS] for start in range(0, len(tiles), grid.COLUMNS)]
        return grid.render(rows)

    def _latents(self, weights: Mapping[str, Tensor], labels_N: Tensor) -> Tensor:
        plan, inputs, device = self._plan, self._plan.config.dataset.inputs, self._device
        with torch.device("meta"):
            model = DiT(plan.spec, inputs, attention=plan.fit.attention)
        # The training's own tensors, without a copy.
        model.load_state_dict(dict(weights), strict=True, assign=True)
        model.eval()

        def denoise(x_NCHW: Tensor, t_N: Tensor, y_N: Tensor) -> Tensor:
            with autocast(plan.config.train.precision, device):
                output: Tensor = model(x_NCHW, t_N, y_N)
            return output.float()

        schedule = SCHEDULES[plan.config.train.schedule]()
        with NoiseStream(self._sampling, range(len(labels_N)), inputs, device) as noise:
            latents_NCHW = sample(denoise, schedule, noise, labels_N, self._sampling, inputs.classes)
        if not bool(torch.isfinite(latents_NCHW).all()):
            raise DataError("its latents are not finite")
        return latents_NCHW

    def _codec(self) -> Codec | None:
        """The decoder, if its weights are on this machine: a picture is not worth a download."""
        config = self._plan.config.dataset
        if not isinstance(config.codec, PixelCodec) and "://" in (config.codec.decoder or config.codec.weights):
            return None
        try:
            return open_codec(config, self._device, decoding=True, batch=_DECODED_AT_ONCE)
        except DitError:
            # The sample stage reports what is wrong with them.
            return None

    def _class_names(self) -> Sequence[str]:
        manifest = read_output(self._plan.work, dataset(self._plan.work))
        return manifest.class_names if manifest else list(map(str, range(self._plan.config.dataset.classes)))


def _decode(codec: Codec | None, latents_NCHW: Tensor) -> npt.NDArray[Any]:
    """Images uint8 [N, H, W, 1 or 3]; without a codec, the first three latent channels as colours."""
    if codec is not None:
        return codec.decode(latents_NCHW)
    return to_uint8(latents_NCHW[:, :3] / _DEVIATIONS)
