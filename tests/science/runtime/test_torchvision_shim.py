"""PyPI's torchvision beside a CPU build of torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# PyPI's wheel registers functions for operators that it could not load.
SIMULATED_CUDA_WHEEL = """
import torch
torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: dets)
"""
IMPORTS = """
import sys
sys.path.insert(0, sys.argv[1])
try:
    import torchvision
except RuntimeError as error:
    print(error)
from dit.runtime.torchvision_shim import ensure_torchvision
ensure_torchvision()
import torchvision
print("imported")
"""


def test_torchvision_without_its_operators_becomes_importable(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(SIMULATED_CUDA_WHEEL)
    done = subprocess.run([sys.executable, "-c", IMPORTS, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["operator torchvision::nms does not exist", "imported"]
