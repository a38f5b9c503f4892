"""Loss, rate and memory of a training: logged per window of steps, and summed up for the record."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

import torch

from dit.health.steps import StepLosses
from dit.runtime.device import peak_flops, peak_process_bytes
from dit.runtime.distributed import Ranks
from dit.tracking import Tracker
from dit.training.plan import TrainPlan

# A multiply-accumulate is two FLOPs. The backward pass computes two products per layer (gradients of the input and of
# the weights), so it costs twice the forward pass.
TRAINING_FLOPS_PER_MAC = 2 * 3
_RANKS_SHOWN = 8


class Telemetry:
    """Logs windows of steps and keeps the values that the records need. Its clock starts at construction."""

    def __init__(self, plan: TrainPlan, ranks: Ranks, tracker: Tracker) -> None:
        self._ranks, self.tracker = ranks, tracker
        self._global_batch = plan.config.train.global_batch
        self._image_flops = TRAINING_FLOPS_PER_MAC * plan.spec.macs(plan.config.dataset.inputs)
        self._peak = peak_flops(ranks.device, plan.config.train.precision) if ranks.is_main else None
        self._resume = plan.resume
        self._rates: list[float] = []
        self.loss = plan.resume.loss if plan.resume else math.nan
        """Mean over the latest window."""
        self._began = self._window_began = time.perf_counter()

    def log(self, step: int, rows: Sequence[StepLosses], rank_seconds: Sequence[float]) -> float:
        """Log the means over the window that ends at `step`, and images per second since the previous window.

        `rank_seconds` is each rank's own computing per step. Returns the seconds of a whole step.
        """
        now = time.perf_counter()
        rate = len(rows) * self._global_batch / (now - self._window_began)
        self._rates.append(rate)
        self.loss = statistics.fmean(row.total for row in rows)
        values = {
            "loss": self.loss,
            "loss_mse": statistics.fmean(row.mse for row in rows),
            "loss_vb": statistics.fmean(row.vb for row in rows),
            "grad_norm": statistics.fmean(row.grad_norm for row in rows),
            "images_per_second": rate,
            "memory_bytes": float(peak_memory_bytes(self._ranks.device)),
        }
        if self._peak is not None:
            # Model FLOPs utilisation: only products that the model needs count, not what checkpointing recomputes.
            values["mfu"] = rate * self._image_flops / (self._peak * self._ranks.world_size)
        self.tracker.metrics(step, values | _pace(rank_seconds))
        self._window_began = now
        return self._global_batch / rate

    @property
    def images_per_second(self) -> float:
        """Median over this launch's windows. The first is left out, because it includes compilation and cold caches."""
        if not self._rates:
            return self._resume.images_per_second if self._resume else 0.0
        return statistics.median(self._rates[1:] or self._rates)

    @property
    def train_seconds(self) -> float:
        """Seconds in the loop, summed over this launch and those before the checkpoint it resumed from."""
        before = self._resume.train_seconds if self._resume else 0.0
        return before + time.perf_counter() - self._began


def _pace(rank_seconds: Sequence[float]) -> dict[str, float]:
    """Metrics that show for whom the ranks wait: each rank's seconds, or the extremes of many ranks."""
    if len(rank_seconds) < 2:
        return {}
    if len(rank_seconds) <= _RANKS_SHOWN:
        return {f"rank_seconds/{rank}": seconds for rank, seconds in enumerate(rank_seconds)}
    slowest = max(rank_seconds)
    return {
        "rank_seconds/median": statistics.median(rank_seconds),
        "rank_seconds/slowest": slowest,
        "rank_seconds/slowest_rank": float(rank_seconds.index(slowest)),
    }


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak bytes of tensors on the GPU, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_process_bytes()
