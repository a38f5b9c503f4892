"""Makes PyPI's torchvision, which is linked to CUDA, importable with a CPU build of torch."""

from __future__ import annotations

import importlib
import sys
from typing import Any

_kept_alive: list[Any] = []


def ensure_torchvision() -> None:
    """Import torchvision; call before the first import of diffusers or torch_fidelity, which use it.

    If its compiled part cannot be loaded, its operators are declared without an implementation: transforms and models
    work, detection operators fail when they are called.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _declare_operators()
        importlib.import_module("torchvision")


def _declare_operators() -> None:
    import torch

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    new_library: Any = torch.library.Library  # untyped in torch
    library = new_library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept_alive.append(library)
