"""AdamW (Loshchilov & Hutter 2019), and its state as named tensors, which are stored without pickling."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dit.study.config import TrainConfig
from dit.study.learning_rate import rate_share

STATE = ("exp_avg", "exp_avg_sq", "step")


def build_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW over all trained parameters.

    The learning rate is constant by default, as in Peebles & Xie 2023, section 4: the weights after step k do not
    depend on how long the training goes on, and a longer one can extend a shorter one. `set_rate` sets each step's.
    """
    return torch.optim.AdamW(
        [parameter for _, parameter in _trained(model)],
        lr=train.learning_rate,
        betas=train.betas,
        weight_decay=train.weight_decay,
        fused=True,  # one pass over each tensor instead of one per operation
    )


def set_rate(optimizer: torch.optim.Optimizer, train: TrainConfig, step: int) -> None:
    """Give the optimizer the learning rate of update `step`, counted from 1: a share of the rate it was built with."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * rate_share(train, step)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the live state as `exp_avg.<parameter>`, `exp_avg_sq.<parameter>` and `step.<parameter>`.

    It is empty before the first step. Parameters go by name, because torch numbers them by position, which a change of
    the model shifts.
    """
    return {
        f"{key}.{name}": optimizer.state[parameter][key]
        for name, parameter in _trained(model)
        if parameter in optimizer.state
        for key in STATE
    }


def expected_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return tensors with the names and shapes that `optimizer_tensors` has after the first step."""
    scalar = torch.zeros(())
    return {
        f"{key}.{name}": scalar if key == "step" else parameter for name, parameter in _trained(model) for key in STATE
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load a saved state; the caller has checked names and shapes."""
    state = {index: {key: tensors[f"{key}.{name}"] for key in STATE} for index, (name, _) in enumerate(_trained(model))}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
