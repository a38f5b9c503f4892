"""Every random choice of training as a function of (seed, epoch) or (seed, step), whatever the number of processes.

Choices are numbered by purpose, so that one kind never shifts another's numbers.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

# Normal numbers are drawn in blocks of this many samples of the global batch, each from its own generator: a process
# draws the blocks that its slice touches, not those of all others.
BLOCK = 16


class Purpose(IntEnum):
    """What random numbers are for; a value, once used, keeps its meaning."""

    ORDER = 0
    TIMESTEP = 1
    LABEL_DROP = 2
    MIRROR = 3
    POSTERIOR = 4
    NOISE = 5


def generator(seed: int, purpose: Purpose, *place: int) -> np.random.Generator:
    """The generator for a purpose at a place, such as a step: independent of all others, equal on every machine."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(purpose, *place))))


def epoch_order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """The order in which an epoch visits `count` samples."""
    return generator(seed, Purpose.ORDER, epoch).permutation(count)


def normals(seed: int, purpose: Purpose, step: int, samples: range, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Standard normal numbers [len(samples), *shape] for these consecutive samples of the step's global batch."""
    first, last = samples.start // BLOCK, -(-samples.stop // BLOCK)
    values = np.empty(((last - first) * BLOCK, *shape), dtype=np.float32)
    for block in range(first, last):
        start = (block - first) * BLOCK
        generator(seed, purpose, step, block).standard_normal(out=values[start : start + BLOCK], dtype=np.float32)
    return values[samples.start - first * BLOCK : samples.stop - first * BLOCK]
