"""The replay of the failed study, with one of its faults and few steps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.replay import main


def test_the_replay_shows_a_normal_loss_noise_the_check_that_speaks_and_the_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--folder", str(tmp_path), "--steps", "20", "--samples", "20", "--only", "ema"])
    out = capsys.readouterr().out
    healthy, broken = (
        re.search(rf"^{name} +([\d.]+) +([\d.]+) .*$", out, re.M) for name in ("none", "EMA never updated")
    )
    assert healthy is not None
    assert broken is not None
    assert broken[1] == healthy[1], "the loss is as good as that of the healthy run"
    assert re.search(r" ema +step 5 +\d+ s +0\.00\d+ %$", broken[0])
    assert "EMA never updated: dit: mini-S/2: the EMA has not changed in 5 steps: samples from it stay noise" in out
