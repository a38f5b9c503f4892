"""The table of checks: one row each. docs/health.md has a section for every row."""

from __future__ import annotations

from dit.health.feed import feed, labels
from dit.health.gate import Gate, Moment
from dit.health.identity import identity
from dit.health.learning import ema, learning, pure_noise, start
from dit.health.preparation import codec, data
from dit.health.progress import PROGRESS
from dit.health.ranks import ranks
from dit.health.recipe import recipe
from dit.health.sampler import sampler
from dit.health.samples import label_gain, samples
from dit.health.steps import finite
from dit.health.yardstick import yardstick

GATES: tuple[Gate, ...] = (
    Gate(0, "recipe", "plan", recipe),
    Gate(1, "codec", "codec", codec),
    Gate(2, "data", "prepared", data),
    Gate(3, "feed", "feed", feed),
    Gate(4, "labels", "feed", labels),
    Gate(5, "start", "start", start),
    Gate(6, "finite", "losses", finite),
    Gate(7, "learning", "window", learning),
    Gate(8, "pure-noise", "noise", pure_noise),
    Gate(9, "ema", "ema", ema),
    Gate(10, "identity", "checkpoint", identity),
    Gate(11, "ranks", "replicas", ranks),
    Gate(12, "sampler", "sampler", sampler),
    Gate(13, "samples", "samples", samples),
    Gate(14, "label-gain", "samples", label_gain),
    Gate(15, "yardstick", "evaluation", yardstick),
    PROGRESS,
)


def gates_at(moment: Moment) -> tuple[Gate, ...]:
    """Return the checks of a moment, in order."""
    return tuple(gate for gate in GATES if gate.moment == moment)
