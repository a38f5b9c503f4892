"""A run: a variant that is trained with one seed. Torch-free.

run = config.run("mini-S/2", seed=1)
run.name  # "mini-S/2 seed 1"; the run of train.seed has its variant's name
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dit.study.variants import VARIANTS, ModelSpec, resolve

_SEED = re.compile(r"[ -]seed[ -](\d+)$")


@dataclass(frozen=True, slots=True)
class Run:
    """A variant and the seed of its training: what checkpoints, samples and metrics belong to."""

    spec: ModelSpec
    seed: int
    is_base: bool = True
    """Whether the seed is the study's own, `train.seed`. This run has the addresses of a study without `seeds`."""

    @property
    def name(self) -> str:
        """The name people use: `mini-S/2`, and with another seed than the study's own `mini-S/2 seed 1`."""
        return self.spec.name if self.is_base else f"{self.spec.name} seed {self.seed}"

    @property
    def slug(self) -> str:
        """The name in addresses and Kubernetes objects, such as `mini-s-2-seed-1` (a DNS-1035 label)."""
        return self.spec.slug if self.is_base else f"{self.spec.slug}-seed-{self.seed}"


def split_name(name: str) -> tuple[str, int | None]:
    """Variant and seed of a run's name or slug; without a seed in it, None."""
    found = _SEED.search(name)
    return (name[: found.start()], int(found[1])) if found else (name, None)


def full_name(text: str) -> str:
    """A run's name, from its name or slug.

    Raises ConfigError for an unknown variant.
    """
    variant, seed = split_name(text)
    return resolve(variant).name + ("" if seed is None else f" seed {seed}")


def spec_of(name: str) -> ModelSpec | None:
    """The variant of a run's name; None for any other name."""
    return VARIANTS.get(split_name(name)[0])
