"""Makes torchvision importable beside a CPU build of torch, for which PyPI's torchvision lacks its compiled part."""

from __future__ import annotations

import importlib
import sys
from typing import Any

_kept_alive: list[Any] = []


def ensure_torchvision() -> None:
    """Import torchvision; call before the first import of diffusers or torch_fidelity, both of which use it.

    PyPI's wheel is linked to CUDA. Where that cannot be loaded, the operators that it would have defined are declared
    without an implementation: transforms and models work, detection operators fail when they are called.
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
