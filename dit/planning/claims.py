"""The paper's claims as a plan sees them: which variants each needs. Torch-free."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from dit.study.variants import ModelSpec

FEWEST_VARIANTS = 4
"""Fewest points for claim 3, as in docs/verdicts.md."""
SIZE, PATCH, COMPUTE = "1 a larger model is better", "2 a smaller patch is better", "3 compute predicts quality"


@dataclass(frozen=True, slots=True)
class PlannedClaim:
    """A claim with the variants by which it is judged."""

    label: str
    pairs: tuple[tuple[ModelSpec, ModelSpec], ...]
    """(better, worse), as the claim predicts; empty for claim 3."""
    variants: tuple[ModelSpec, ...]
    """Empty if the study cannot judge the claim."""
    missing: str = ""
    """What the study lacks to judge it."""


def planned_claims(specs: Sequence[ModelSpec]) -> tuple[PlannedClaim, ...]:
    """The three claims with the variants that a study of `specs` has for them."""
    order = sorted(specs, key=lambda spec: (spec.family, spec.patch, spec.size_index))
    sizes = [
        (larger, smaller)
        for group in _grouped(order, lambda spec: (spec.family, spec.patch))
        for smaller, larger in pairwise(group)
    ]
    patches = [
        pair for group in _grouped(order, lambda spec: (spec.family, spec.size)) for pair in combinations(group, 2)
    ]
    two_patches = len({(spec.family, spec.size) for spec in specs}) < len(specs)
    enough = len(specs) >= FEWEST_VARIANTS and two_patches
    return (
        _ordered(SIZE, sizes, specs, "two sizes at the same patch"),
        _ordered(PATCH, patches, specs, "one size at two patches"),
        PlannedClaim(
            COMPUTE,
            (),
            tuple(specs) if enough else (),
            "" if enough else f"{FEWEST_VARIANTS} variants, one size at two patches among them",
        ),
    )


def _ordered(
    label: str, pairs: Iterable[tuple[ModelSpec, ModelSpec]], specs: Sequence[ModelSpec], missing: str
) -> PlannedClaim:
    pairs = tuple(pairs)
    needed = tuple(spec for spec in specs if any(spec in pair for pair in pairs))
    return PlannedClaim(label, pairs, needed, "" if pairs else missing)


def _grouped(specs: Iterable[ModelSpec], key: Callable[[ModelSpec], tuple[object, ...]]) -> Iterable[list[ModelSpec]]:
    groups: dict[tuple[object, ...], list[ModelSpec]] = defaultdict(list)
    for spec in specs:
        groups[key(spec)].append(spec)
    return groups.values()
