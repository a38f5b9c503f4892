"""Random numbers of training as functions of (seed, epoch) or (seed, step), at any number of processes.

Each purpose has its own stream, so a change in the use of one does not change the numbers of another.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

# Normal numbers are drawn in blocks of this many samples of the global batch, each with its own generator. A process
# draws only the blocks of its slice. The size is part of the contract: another one changes all noise.
BLOCK = 16


class Purpose(IntEnum):
    """Purpose of random numbers. Values must not change: they are part of the seed."""

    ORDER = 0
    TIMESTEP = 1
    LABEL_DROP = 2
    MIRROR = 3
    POSTERIOR = 4
    NOISE = 5


def generator(seed: int, purpose: Purpose, *place: int) -> np.random.Generator:
    """Return the generator for a purpose at a place, such as a step; equal on every machine.

    `spawn_key` makes the streams independent; `seed + step` would repeat streams between seeds.
    """
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(purpose, *place))))


def epoch_order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """Return the order in which an epoch visits `count` samples: int64 [count], a permutation."""
    return generator(seed, Purpose.ORDER, epoch).permutation(count)


def normals(seed: int, purpose: Purpose, step: int, samples: range, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return standard normal numbers [len(samples), *shape] for these consecutive samples of a step's global batch."""
    first, last = samples.start // BLOCK, -(-samples.stop // BLOCK)
    values = np.empty(((last - first) * BLOCK, *shape), dtype=np.float32)
    for block in range(first, last):
        start = (block - first) * BLOCK
        generator(seed, purpose, step, block).standard_normal(out=values[start : start + BLOCK], dtype=np.float32)
    return values[samples.start - first * BLOCK : samples.stop - first * BLOCK]
