"""Names and actions of the health checks. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from dit.study.fields import on_or_off

CheckName = Literal[
    "recipe",
    "codec",
    "data",
    "feed",
    "labels",
    "start",
    "finite",
    "learning",
    "pure-noise",
    "ema",
    "identity",
    "ranks",
    "sampler",
    "samples",
    "label-gain",
    "yardstick",
    "progress",
]
"""Names of the health checks: the rows of `GATES` in dit/health/gates.py."""
CheckAction = Annotated[Literal["off", "warn", "stop"], BeforeValidator(on_or_off)]
"""What a failed health check does; `off` does not make the check."""
Checks = dict[CheckName, CheckAction]
