"""The table of healthy runs: none of them may fail a check."""

from __future__ import annotations

from dataclasses import dataclass

from bench.gates.table import Data


@dataclass(frozen=True)
class Healthy:
    """A training to `steps` and its sampled checkpoint."""

    name: str
    data: Data = "digits"
    variant: str = "mini-S/2"
    settings: tuple[str, ...] = ()
    steps: int = 200
    ranks: int = 1
    resumed: int = 0
    """Step at which the training ends and is resumed; 0 if it is not."""
    resumed_ranks: int = 1
    unseen: bool = False
    """Whether nobody had looked at these settings when the constants of the checks were fixed."""

    def overrides(self) -> tuple[str, ...]:
        """Return the study's settings: an average that is long enough to be one, and few samples."""
        return (
            f"variants=[{self.variant}]",
            "train.ema_decay=0.97",
            f"train.steps={self.steps}",
            f"evaluation.at_steps=[{self.steps}]",
            "sampling.num_samples=20",
            *self.settings,
        )


def _seed(number: int) -> tuple[str, ...]:
    return (f"train.seed={number}", f"sampling.seed={number}")


_GUIDED = ("sampling.cfg_scale=4",)

HEALTHY: tuple[Healthy, ...] = (
    Healthy("seed 0"),
    Healthy("seed 1", settings=_seed(1)),
    Healthy("seed 2", settings=_seed(2)),
    Healthy("mini-B/2", variant="mini-B/2"),
    Healthy("mini-L/2", variant="mini-L/2"),
    Healthy("mini-XL/2", variant="mini-XL/2", steps=150),
    Healthy("mini-XL/4", variant="mini-XL/4", steps=150),
    Healthy("bf16", settings=("train.precision=bf16",)),
    Healthy("batch 8", settings=("train.global_batch=8",)),
    Healthy("batch 16", settings=("train.global_batch=16",)),
    Healthy("batch 256", settings=("train.global_batch=256",), steps=150),
    Healthy("learning rate 2.5e-4", variant="mini-XL/2", settings=("train.learning_rate=2.5e-4",), steps=320),
    Healthy("learning rate 1e-2", settings=("train.learning_rate=1e-2",)),
    Healthy("two ranks", ranks=2),
    Healthy("four ranks", ranks=4, steps=150),
    Healthy("accumulation", settings=("fit.micro_batch=16",)),
    Healthy("accumulation on two ranks", settings=("fit.micro_batch=8",), ranks=2, steps=150),
    Healthy("resumed", resumed=135),
    Healthy("two ranks, resumed on one", ranks=2, resumed=135, steps=150),
    Healthy("guidance 4", settings=_GUIDED),
    Healthy("latents", data="latents", steps=160),
    Healthy("latents, seed 1", data="latents", settings=_seed(1), steps=160),
    Healthy("latents, mini-B/2", data="latents", variant="mini-B/2", steps=130),
    Healthy("latents, guidance 4", data="latents", settings=_GUIDED, steps=160),
    Healthy("latents, two ranks", data="latents", ranks=2, steps=130),
    Healthy(
        "batch 48, betas 0.8 and 0.95",
        variant="mini-B/4",
        settings=(*_seed(31), "train.global_batch=48", "train.betas=[0.8,0.95]", "train.label_drop=0.3"),
        unseen=True,
    ),
    Healthy(
        "weight decay, patches of 4",
        variant="mini-L/4",
        settings=(*_seed(77), "train.weight_decay=0.05", "train.learning_rate=4e-3"),
        unseen=True,
    ),
    Healthy("no label dropped", settings=(*_seed(5), "train.label_drop=0"), unseen=True),
    Healthy(
        "DDIM, 10 steps, all channels guided",
        settings=(
            *_seed(9),
            "sampling.sampler=ddim",
            "sampling.eta=0.5",
            "sampling.steps=10",
            "sampling.cfg_scale=2",
            "sampling.guided_channels=all",
        ),
        unseen=True,
    ),
    Healthy("batch 4", settings=("train.global_batch=4",)),
    Healthy("batch larger than the dataset", settings=("train.global_batch=2000",), steps=130, unseen=True),
    Healthy("raw weights, few sampling steps", settings=("sampling.weights=raw", "sampling.steps=8"), unseen=True),
    Healthy("three ranks, batch 33", settings=(*_seed(3), "train.global_batch=33"), ranks=3, unseen=True),
    Healthy("a short average", settings=("train.ema_decay=0.5", "sampling.labels=random"), unseen=True),
    Healthy(
        "latents, mini-L/2, batch 12",
        data="latents",
        variant="mini-L/2",
        settings=(*_seed(8), "train.global_batch=12", "train.learning_rate=1e-3"),
        steps=180,
        unseen=True,
    ),
    Healthy(
        "latents, resumed on two ranks",
        data="latents",
        settings=(*_seed(4), "train.learning_rate=5e-3"),
        resumed=135,
        resumed_ranks=2,
        steps=150,
        unseen=True,
    ),
)
