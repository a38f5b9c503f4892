"""The table of model sizes: the paper's 12 models, and a family small enough for a CPU. A new size is one row.

Torch-free: planning, submission and the report name models without loading a framework.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from dit.errors import ConfigError

FREQUENCY_EMBEDDING_SIZE = 256
MLP_RATIO = 4


@dataclass(frozen=True, slots=True)
class InputSpec:
    """A model's input: latents of shape [channels, size, size], with labels below `classes`."""

    channels: int
    size: int
    classes: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One DiT (Peebles & Xie 2023, Table 1): a transformer of `depth` blocks on patches of `patch` x `patch`."""

    family: str
    size: str
    patch: int
    depth: int
    hidden: int
    heads: int

    @property
    def name(self) -> str:
        """The name people use, such as `DiT-XL/2`."""
        return f"{self.family}-{self.size}/{self.patch}"

    @property
    def size_index(self) -> int:
        """Position among the sizes of its family; 0 is the smallest."""
        return [size.name for size in FAMILIES[self.family]].index(self.size)

    @property
    def size_share(self) -> float:
        """`size_index` scaled to [0, 1]: 0 is the family's smallest size, 1 its largest."""
        return self.size_index / max(1, len(FAMILIES[self.family]) - 1)

    @property
    def patch_index(self) -> int:
        """Position among the patch sizes; 0 is the finest."""
        return PATCHES.index(self.patch)

    @property
    def slug(self) -> str:
        """The name in addresses and Kubernetes objects, such as `dit-xl-2` (a DNS-1035 label)."""
        return f"{self.family}-{self.size}-{self.patch}".lower()

    def tokens(self, inputs: InputSpec) -> int:
        """Sequence length T for one latent: (size / patch)^2 (Peebles & Xie 2023, section 3.2).

        Raises ConfigError when the patch does not divide the latent's side.
        """
        if inputs.size % self.patch:
            raise ConfigError(
                f"variants: {self.name} has patches of {self.patch} and a latent of side {inputs.size},"
                f" which {self.patch} does not divide; choose another variant or dataset.image_size"
            )
        return (inputs.size // self.patch) ** 2

    def parameters(self, inputs: InputSpec) -> int:
        """Number of parameters, with the frozen position embedding, as in the paper's Table 4."""
        d = self.hidden
        patch_values = self.patch**2 * inputs.channels
        # Patches, timestep MLP, labels with the null class, positions.
        embedders = (
            (patch_values * d + d)
            + (FREQUENCY_EMBEDDING_SIZE * d + d + d * d + d)
            + (inputs.classes + 1) * d
            + self.tokens(inputs) * d
        )
        attention = 3 * d * d + 3 * d + d * d + d
        mlp = 2 * MLP_RATIO * d * d + (MLP_RATIO + 1) * d
        # adaLN-Zero (section 3.2): shift, scale and gate for attention and for the MLP.
        block = attention + mlp + 6 * (d * d + d)
        # adaLN's shift and scale; then noise and variance for each value, hence twice the channels.
        final = 2 * (d * d + d) + 2 * patch_values * (d + 1)
        return embedders + self.depth * block + final

    def macs(self, inputs: InputSpec) -> int:
        """Multiply-accumulates of one forward pass on one latent, without guidance.

        This is the paper's "Gflops" (Table 4) times 1e9: linear and convolution layers and both attention products.
        Norms, activations and biases are left out: 0.02 % of the whole.
        """
        d, t = self.hidden, self.tokens(inputs)
        patch_values = self.patch**2 * inputs.channels
        # Per token q, k, v, the output projection and the MLP; the two T x T products; adaLN once per image.
        block = t * (4 + 2 * MLP_RATIO) * d * d + 2 * t * t * d + 6 * d * d
        conditioning = FREQUENCY_EMBEDDING_SIZE * d + d * d
        final = 2 * d * d + 2 * t * d * patch_values
        return t * patch_values * d + conditioning + self.depth * block + final

    def gflops(self, inputs: InputSpec) -> float:
        """Cost of one forward pass in the paper's unit: a multiply-accumulate counts as one flop."""
        return self.macs(inputs) / 1e9


@dataclass(frozen=True, slots=True)
class Size:
    """A model size of a family: one row of the table."""

    name: str
    depth: int
    hidden: int
    heads: int


# From the smallest to the largest: claims and charts use this order. DiT: the paper's Table 1. mini: the same
# progression, small enough for two CPU cores to train in minutes; docs/digits.md explains the choice.
FAMILIES: dict[str, tuple[Size, ...]] = {
    "DiT": (
        Size("S", 12, 384, 6),
        Size("B", 12, 768, 12),
        Size("L", 24, 1024, 16),
        Size("XL", 28, 1152, 16),
    ),
    "mini": (
        Size("S", 2, 32, 2),
        Size("B", 3, 40, 4),
        Size("L", 4, 56, 4),
        Size("XL", 6, 96, 6),
    ),
}
PATCHES = (2, 4, 8)


def variants_of(family: str) -> dict[str, ModelSpec]:
    """Name -> variant, for every size of a family at every patch size."""
    specs = [
        ModelSpec(family, size.name, patch, size.depth, size.hidden, size.heads)
        for size in FAMILIES[family]
        for patch in PATCHES
    ]
    return {spec.name: spec for spec in specs}


VARIANTS: dict[str, ModelSpec] = {name: spec for family in FAMILIES for name, spec in variants_of(family).items()}


def similar(name: str, known: Sequence[str]) -> list[str]:
    """Names among `known` that `name` may stand for: without the family, in other letters, or with a typing error."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.casefold()).strip("-")
    slugs = {re.sub(r"[^a-z0-9]+", "-", other.casefold()): other for other in known}
    ending = [other for key, other in slugs.items() if f"-{key}".endswith(f"-{slug}")]
    return ending or [slugs[key] for key in difflib.get_close_matches(slug, slugs, n=2, cutoff=0.75)]


def resolve(name: str, likely: Sequence[str] = ()) -> ModelSpec:
    """The variant with this name or slug.

    Raises ConfigError if there is none, with similar names and the known ones; with `likely`, with those first.
    """
    for spec in VARIANTS.values():
        if name in (spec.name, spec.slug):
            return spec
    family = re.split(r"[-/]", name)[0]
    known = [known for known in VARIANTS if known.startswith(f"{family}-")] or list(VARIANTS)
    meant = similar(name, likely) or similar(name, list(VARIANTS))
    hint = f" (did you mean {' or '.join(meant)}?)" if meant else ""
    listed = f"the study has {', '.join(likely)}" if likely else f"known are {', '.join(known)}"
    raise ConfigError(f"variants: {name!r} is not a known variant{hint}; {listed}")
