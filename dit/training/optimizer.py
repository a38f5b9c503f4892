"""AdamW as the recipe has it, and its state as named tensors, so that it can be stored without pickling."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dit.study.config import TrainConfig

STATE = ("exp_avg", "exp_avg_sq", "step")


def build_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW over what is trained: constant rate, no warm-up (paper, section 4); fused, one pass over each tensor."""
    return torch.optim.AdamW(
        [parameter for _, parameter in _trained(model)],
        lr=train.learning_rate,
        betas=train.betas,
        weight_decay=train.weight_decay,
        fused=True,
    )


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The live state as `exp_avg.<parameter>`, `exp_avg_sq.<parameter>` and `step.<parameter>`; empty before a step."""
    return {
        f"{key}.{name}": optimizer.state[parameter][key]
        for name, parameter in _trained(model)
        if parameter in optimizer.state
        for key in STATE
    }


def expected_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Names and shapes that `optimizer_tensors` has after the first step."""
    scalar = torch.zeros(())
    return {
        f"{key}.{name}": scalar if key == "step" else parameter for name, parameter in _trained(model) for key in STATE
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take over a saved state; names and shapes have been checked by the caller."""
    state = {index: {key: tensors[f"{key}.{name}"] for key in STATE} for index, (name, _) in enumerate(_trained(model))}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
