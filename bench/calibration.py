"""`python -m bench.calibration [--studies N] [--save]`: how often a verdict is wrong, on studies with known truth.

Studies of five variants are simulated: true log distances, noise of training, noise of sampling with its bootstrap
replicates, and part of either noise shared by all runs of a seed or of a variant. The product's own code judges them.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dit.claims.judged import Judged, JudgedVariant
from dit.claims.two_level import GivenSpread, Runs
from dit.claims.verdicts import judge_claims
from dit.console import Cell, say, table
from dit.study.records import Estimate, MetricsRecord
from dit.study.variants import InputSpec, resolve

Array = NDArray[np.float64]

PAGE = Path(__file__).parent / "results" / "calibration.md"
VARIANTS = ("mini-S/2", "mini-B/2", "mini-L/2", "mini-XL/2", "mini-XL/4")
"""Those of configs/digits.yaml, by patch and size."""
SEEDS = (1, 2, 3, 5)
GIVEN = "1 seed, spread given"
STUDIES, REPLICATES, CONFIDENCE = 600, 100, 0.95
_INPUTS = InputSpec(channels=1, size=8, classes=10)


@dataclass(frozen=True)
class Noise:
    """Noise of the log distance; the standard deviations are about those of the digits."""

    name: str
    seeds: float = 0.10
    """Standard deviation between trainings of one variant with other seeds."""
    sampling: float = 0.05
    """Standard deviation over sample sets of one model."""
    common_seed: float = 0.0
    """Share of the seed's variance that is the same for all variants."""
    common_sampling: float = 0.5
    """Share of the sampling variance that is the same for all runs of a variant."""
    unequal: float = 1.0
    """The last variant's standard deviations over those of the first."""


NOISES = (
    Noise("as on the digits"),
    Noise("half of the seed's variance common to all variants", common_seed=0.5),
    Noise("the last variant twice as noisy as the first", unequal=2.0),
    Noise("sampling twice as noisy as seeds", seeds=0.05, sampling=0.10),
    Noise("no noise of seeds", seeds=0.0),
)


@cache
def axes() -> tuple[Array, Array]:
    """log Gflops and log parameters of the variants, each centred and of length 1."""
    specs = [resolve(name) for name in VARIANTS]
    columns = [np.log([spec.gflops(_INPUTS) for spec in specs]), np.log([spec.parameters(_INPUTS) for spec in specs])]
    centred = [column - column.mean() for column in columns]
    gflops, parameters = (column / np.linalg.norm(column) for column in centred)
    return gflops, parameters


def truths() -> dict[str, Array]:
    """True log distances, in the order of `VARIANTS`, less a constant."""
    gflops, parameters = axes()
    digits = np.log([19.6, 11.8, 4.7, 2.5, 5.6])
    # At equal distance from both axes log Gflops and log parameters explain the same share of the variance.
    both = -(gflops + parameters)
    return {
        "as on the digits": digits,
        "a tenth of that": digits / 10,
        "S/2 equals B/2, XL/2 equals XL/4": np.log([11.8, 11.8, 4.7, 2.5, 2.5]),
        "all equal": np.zeros(len(VARIANTS)),
        "Gflops and parameters predict equally": both,
        "parameters predict better": -parameters,
    }


@dataclass(frozen=True)
class Outcome:
    """A claim's verdicts over simulated studies."""

    claim: int
    truth: bool
    """Whether the claim is true."""
    untrue: bool
    """Whether it is contradicted by the truth: a pair reversed, or the other predictor better."""
    verdicts: tuple[str, ...]

    def share(self, verdict: str) -> float:
        """Share of the studies with this verdict."""
        return self.verdicts.count(verdict) / len(self.verdicts)

    @property
    def wrong(self) -> tuple[float | None, float | None]:
        """Shares of wrong `supported` and of wrong `contradicted`; None where the verdict would be right."""
        return (
            None if self.truth else self.share("supported"),
            None if self.untrue else self.share("contradicted"),
        )

    @property
    def right(self) -> float | None:
        """Share of right decisions; None where the truth is on the border, so that none is right."""
        return self.share("supported") if self.truth else self.share("contradicted") if self.untrue else None


def simulate(truth: Array, noise: Noise, seeds: int, studies: int, given: bool = False) -> tuple[Outcome, ...]:
    """Judge so many studies of this truth; outcomes of claims 1, 2 and 3."""
    random = np.random.default_rng(hash_of(noise.name, seeds))
    spread = GivenSpread(noise.seeds) if given and noise.seeds else None
    judged = [judge_claims(_study(truth, noise, seeds, spread, random)) for _ in range(studies)]
    return tuple(
        Outcome(number, *_true(number, truth), tuple(claims[number - 1].verdict for claims in judged))
        for number in (1, 2, 3)
    )


def hash_of(*parts: object) -> int:
    """A seed from words and numbers, the same in every process."""
    return int.from_bytes(repr(parts).encode(), "big") % 2**63


def _study(truth: Array, noise: Noise, seeds: int, given: GivenSpread | None, random: np.random.Generator) -> Judged:
    count = len(VARIANTS)
    scale = np.geomspace(1 / math.sqrt(noise.unequal), math.sqrt(noise.unequal), count)[:, None]
    common = math.sqrt(noise.common_seed) * random.standard_normal((1, seeds))
    own = math.sqrt(1 - noise.common_seed) * random.standard_normal((count, seeds))
    logs = truth[:, None] + noise.seeds * scale * (common + own)
    # Sampling error of the study, and in the same way that of each replicate.
    shape = (count, seeds, REPLICATES + 1)
    shared = math.sqrt(noise.common_sampling) * random.standard_normal((count, 1, REPLICATES + 1))
    errors = shared + math.sqrt(1 - noise.common_sampling) * random.standard_normal(shape)
    errors *= noise.sampling * scale[:, :, None]
    replicates = errors[:, :, 1:].reshape(count * seeds, REPLICATES)
    values = logs + errors[:, :, 0]
    runs = Runs(
        variants=tuple(name for name in VARIANTS for _ in range(seeds)),
        seeds=tuple(range(seeds)) * count,
        logs=values.ravel(),
        deviations=replicates - replicates.mean(axis=1, keepdims=True),
        confidence=CONFIDENCE,
        given=given,
        records=(),
    )
    means = [math.exp(value) for value in values.mean(axis=1)]
    variants = [
        JudgedVariant(resolve(name), (record(name),), Estimate(value=mean, low=mean, high=mean), None)
        for name, mean in zip(VARIANTS, means, strict=True)
    ]
    return Judged(tuple(variants), runs)


@cache
def record(name: str) -> MetricsRecord:
    """A record with what claim 3 needs of a variant: its size and compute."""
    spec = resolve(name)
    return MetricsRecord.model_construct(
        variant=name,
        metric="fd_digits",
        train_seed=0,
        confidence=CONFIDENCE,
        parameters=spec.parameters(_INPUTS),
        gflops=spec.gflops(_INPUTS),
    )


def _true(claim: int, truth: Array) -> tuple[bool, bool]:
    """Whether a claim is true, and whether the truth contradicts it; neither on the border."""
    place = {name: truth[number] for number, name in enumerate(VARIANTS)}
    if claim == 3:
        gflops, parameters = axes()
        slope, other = float(gflops @ truth), float(parameters @ truth)
        difference = slope**2 - other**2
        if abs(slope) < 1e-9 or abs(difference) < 1e-9:
            return False, slope > 1e-9
        return slope < 0 and difference > 0, slope > 0 or difference < 0
    pairs = {1: ("mini-S/2", "mini-B/2", "mini-L/2", "mini-XL/2"), 2: ("mini-XL/4", "mini-XL/2")}[claim]
    steps = np.diff([place[name] for name in pairs])
    return bool((steps < 0).all()), bool((steps > 0).any())


def rows(studies: int) -> Iterator[tuple[str, str, str, tuple[Outcome, ...]]]:
    """(noise, truth, seeds, outcomes): every truth under the first noise, then the borders under the others."""
    every = truths()
    borders = ("S/2 equals B/2, XL/2 equals XL/4", "all equal", "Gflops and parameters predict equally")
    for number, noise in enumerate(NOISES):
        for name in every if number == 0 else borders:
            for seeds in SEEDS:
                yield noise.name, name, _label(seeds), simulate(every[name], noise, seeds, studies)
                if seeds == 1:
                    yield noise.name, name, GIVEN, simulate(every[name], noise, 1, studies, given=True)


def worst(results: Sequence[tuple[str, str, str, tuple[Outcome, ...]]]) -> tuple[list[str], list[list[Cell]]]:
    """Columns and rows: the largest share of wrong verdicts over all truths, by noise and claim."""
    columns = ["Noise", "Claim", *_labels()]
    lines: list[list[Cell]] = []
    for noise in NOISES:
        for claim in (1, 2, 3):
            cells: list[Cell] = []
            for label in _labels():
                found = [outs[claim - 1].wrong for n, _, seeds, outs in results if (n, seeds) == (noise.name, label)]
                cells.append(" / ".join(_percent(max(w[side] or 0.0 for w in found)) for side in (0, 1)))
            lines.append([noise.name, claim, *cells])
    return columns, lines


def power(results: Sequence[tuple[str, str, str, tuple[Outcome, ...]]]) -> tuple[list[str], list[list[Cell]]]:
    """Columns and rows: the share of right decisions under the first noise, where the truth decides."""
    lines: list[list[Cell]] = []
    for name in truths():
        for claim in (1, 2, 3):
            found = {s: o[claim - 1].right for n, t, s, o in results if (n, t) == (NOISES[0].name, name)}
            if any(value is not None for value in found.values()):
                lines.append([name, claim, *(_percent(found[label]) for label in _labels())])
    return ["True distances", "Claim", *_labels()], lines


def _labels() -> tuple[str, ...]:
    return (_label(SEEDS[0]), GIVEN, *map(_label, SEEDS[1:]))


def _label(seeds: int) -> str:
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _markdown(columns: Sequence[str], lines: Sequence[Sequence[Cell]]) -> str:
    body = [columns, ["---"] * len(columns), *lines]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in body)


def main() -> None:
    """Simulate, print both tables, and with --save write them."""
    parser = argparse.ArgumentParser(prog="python -m bench.calibration", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--studies", type=int, default=STUDIES, help="simulated studies for each cell")
    parser.add_argument("--save", action="store_true", help=f"write the tables to {PAGE.name} in bench/results")
    chosen = parser.parse_args()
    began, results = time.perf_counter(), []
    for row in rows(chosen.studies):
        results.append(row)
        print(f"{row[0]}: {row[1]}, {row[2]}", file=sys.stderr)
    wrong, right = worst(results), power(results)
    titles = (
        "Wrong verdicts: wrong `supported` / wrong `contradicted`, the larger over all true distances",
        "Right decisions, noise as on the digits",
    )
    for title, (columns, lines) in zip(titles, (wrong, right), strict=True):
        table(columns, lines, title=title)
    if chosen.save:
        command = shlex.join(["python", "-m", "bench.calibration", *sys.argv[1:]])
        texts = [f"## {title}\n\n{_markdown(*content)}" for title, content in zip(titles, (wrong, right), strict=True)]
        error = 100 * math.sqrt((1 - CONFIDENCE) / 2 * (1 + CONFIDENCE) / 2 / chosen.studies)
        intro = (
            f"`{command}`: {chosen.studies:,} studies for each cell, {time.perf_counter() - began:.0f} s. A share of"
            f" 2.5 % has a standard error of {error:.1f} % by chance, and the tables have the largest of several"
            " shares.\n"
        )
        PAGE.write_text("\n".join(["# Calibration of the verdicts\n", intro, *texts]), encoding="utf-8")
        say(f"written: {PAGE}")


if __name__ == "__main__":
    main()
