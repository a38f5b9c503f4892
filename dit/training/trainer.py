"""One training step: global batch in, updated weights and EMA out, at any micro-batch and world size.

Shape letters: N samples, C channels, H and W latent height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from dit.diffusion.losses import diffuse, training_losses
from dit.diffusion.schedule import SCHEDULES
from dit.errors import MismatchError
from dit.model.transformer import DiT, mismatch
from dit.runtime.device import autocast, compiles, matmul_precision
from dit.runtime.distributed import Ranks
from dit.study import layout
from dit.study.config import FitConfig, TrainConfig
from dit.study.variants import InputSpec, ModelSpec
from dit.training.ema import Ema
from dit.training.optimizer import build_optimizer, expected_tensors, load_optimizer, optimizer_tensors, set_rate
from dit.training.pace import Pace
from dit.training.window import LossWindow

if TYPE_CHECKING:
    from dit.data.loader import StepBatch


class Trainer:
    """A model with its EMA and optimizer, on this rank's device.

    The gradient is that of the mean loss over the global batch: each micro-batch adds its sum of losses, divided by the
    global batch. So micro-batch (the last may be smaller) and world size change results only by float error.
    Losses and norms stay on the device in `window` until it is read; a step does not wait for the device.

        trainer = Trainer(spec, inputs, config.train, config.fit_for(spec), ranks)
        trainer.step(batch)
        trainer.window.read()  # [StepLosses(step=1, mse=..., vb=..., grad_norm=...)]
    """

    def __init__(self, spec: ModelSpec, inputs: InputSpec, train: TrainConfig, fit: FitConfig, ranks: Ranks) -> None:
        # A setting of the process, so it is made before anything is computed or compiled.
        matmul_precision(train.precision, ranks.device)
        self.train, self.ranks = train, ranks
        self.steps_done = 0
        self.window = LossWindow(ranks)
        self.pace = Pace(ranks.device)
        share = train.global_batch // ranks.world_size
        self._micro_batch = min(fit.micro_batch or share, share)
        self._schedule = SCHEDULES[train.schedule]()
        # Built on the meta device: the weights are drawn once, by `initialise`, with the study's seed.
        with torch.device("meta"):
            self.model = DiT(
                spec, inputs, attention=fit.attention, activation_checkpointing=fit.activation_checkpointing
            )
        self.model.to_empty(device=ranks.device).train()
        self.model.initialise(train.seed)
        # The average holds the model's own parameters. Compilation and DDP below wrap them and add no copies.
        self.ema = Ema(self.model, train.ema_decay)
        self.optimizer = build_optimizer(self.model, train)
        if compiles(fit, ranks):
            self.model.compile_layers()
        self._ddp = self._replicate(accumulates=self._micro_batch < share)
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def step(self, batch: StepBatch) -> None:
        """Make one update from this rank's slice of the global batch (CPU or device tensors)."""
        losses_2 = torch.zeros(2, device=self.ranks.device)
        for micro, synchronise in self._micro_batches(batch):
            with synchronise:
                losses_2 += self._accumulate(*micro)
        # Logged as it is before clipping (Pascanu et al. 2013, algorithm 1); the paper's recipe does not clip.
        grad_norm = get_total_norm([parameter.grad for parameter in self._trained if parameter.grad is not None])
        if self.train.clip_norm is not None:
            clip_grads_with_norm_(self._trained, self.train.clip_norm, grad_norm)
        set_rate(self.optimizer, self.train, self.steps_done + 1)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        self.steps_done += 1
        self.window.add(self.steps_done, losses_2, grad_norm)
        self.pace.end_step()

    def files(self) -> dict[str, dict[str, Tensor]]:
        """Return the live tensors of a checkpoint: file -> name -> tensor."""
        return {
            layout.RAW_WEIGHTS: {name: parameter.detach() for name, parameter in self.model.named_parameters()},
            layout.EMA_WEIGHTS: self.ema.tensors,
            layout.OPTIMIZER: optimizer_tensors(self.model, self.optimizer),
        }

    def load(self, step: int, where: str, files: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load a checkpoint's tensors (file -> name -> tensor), written after `step` steps.

        Raises MismatchError, which names `where`, when a tensor is missing, unknown or of another shape.
        """
        expected: dict[str, Mapping[str, Tensor]] = {**self.files(), layout.OPTIMIZER: expected_tensors(self.model)}
        for name, tensors in expected.items():
            if problem := mismatch(tensors, files.get(name, {})):
                raise MismatchError(f"{where}/{name}: does not fit {self.model.spec.name}: {problem}")
        self.model.load_state_dict(dict(files[layout.RAW_WEIGHTS]), strict=True)
        self.ema.load(files[layout.EMA_WEIGHTS])
        load_optimizer(self.model, self.optimizer, files[layout.OPTIMIZER])
        self.steps_done = step

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Return whether weights, EMA and optimizer state are finite; waits for the device."""
        # A maximum norm is infinite or NaN if any element is.
        tensors = [tensor for named in self.files().values() for tensor in named.values()]
        return bool(torch.isfinite(get_total_norm(tensors, float("inf"))))

    def _accumulate(self, x0_NCHW: Tensor, t_N: Tensor, noise_NCHW: Tensor, y_N: Tensor) -> Tensor:
        """Add a micro-batch's gradient; return its (mse, vb) [2], summed over samples, divided by the global batch."""
        # Sample x_t from q(x_t | x_0) (DDPM eq. 4) and predict its noise: DDPM, algorithm 1.
        x_NCHW = diffuse(self._schedule, x0_NCHW, t_N, noise_NCHW)
        with self.pace.forward():
            with autocast(self.train.precision, self.ranks.device):
                output = (self._ddp or self.model)(x_NCHW, t_N, y_N)
            # Outside autocast: the losses are float32 also in a bf16 training.
            mse_N, vb_N = training_losses(self._schedule, output, x0_NCHW, x_NCHW, t_N, noise_NCHW)
        losses_2 = torch.stack([mse_N.sum(), vb_N.sum()]) / self.train.global_batch
        # The ranks' gradients must be summed, and DDP averages them; the factor makes up for it.
        torch.autograd.backward(losses_2.sum() * self.ranks.world_size)
        return losses_2.detach()

    def _micro_batches(self, batch: StepBatch) -> Iterator[tuple[tuple[Tensor, ...], AbstractContextManager[None]]]:
        """Yield device slices of the batch, each with the context for its backward pass."""
        tensors = [self._to_device(tensor) for tensor in (batch.x0_NCHW, batch.t_N, batch.noise_NCHW, batch.y_N)]
        slices = list(zip(*(torch.split(tensor, self._micro_batch) for tensor in tensors), strict=True))
        for index, micro in enumerate(slices):
            # Ranks exchange gradients once per step, during the last backward pass.
            is_last = index == len(slices) - 1
            yield micro, nullcontext() if is_last or self._ddp is None else self._ddp.no_sync()

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self.ranks.device.type == "cpu" or tensor.device == self.ranks.device:
            return tensor
        # A copy from page-locked memory is queued on the device; from pageable memory it would block the host.
        return tensor.pin_memory().to(self.ranks.device, non_blocking=True)

    def _replicate(self, *, accumulates: bool) -> DistributedDataParallel | None:
        """Return the model in DDP, which sends gradients during the backward pass; None for a single rank."""
        if self.ranks.world_size == 1:
            return None
        return DistributedDataParallel(
            self.model,
            device_ids=[self.ranks.device] if self.ranks.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            static_graph=not accumulates,  # cannot be combined with no_sync
        )
