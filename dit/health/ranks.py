"""The check `ranks`: all ranks have the same study, dataset, code version and precision, and the same weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from dit.errors import RanksDifferError
from dit.health.gate import Reading
from dit.health.log import add_event
from dit.study import layout
from dit.study.records import HealthEvent
from dit.study.version import code_version

if TYPE_CHECKING:
    from torch import Tensor

    from dit.runtime.distributed import Ranks
    from dit.storage import Store
    from dit.study.config import StudyConfig
    from dit.study.runs import Run

Facts = Mapping[str, Any]
"""What all ranks must share: name -> JSON value."""

_BOUND = "equal on all ranks"
# All other keys count: those of `fit` decide how many collectives a step has and when, so that ranks with different
# ones wait for each other for ever, or add up different things. A key that is added later counts, too.
_OF_THIS_MACHINE = frozenset(
    {
        "dataset.source.path",
        "dataset.codec.weights",
        "dataset.codec.decoder",
        "evaluation.extractor_weights",
        "evaluation.reference.path",
        "fit.threads",
        "fit.prefetch",
        "fit.parallel_variants",
        "fit.sample_batch",
        "fit.decode_batch",
        "fit.feature_batch",
    }
)
"""Keys that may differ between ranks: paths, whose content is compared, and how a rank does its own share."""
_NO_PART_OF_THE_WORK = {"description", "tracking", "plan", "cluster", "fit", "fit_by_variant"}
_NAMED = 3
"""Differences that a message names."""


def study_facts(config: StudyConfig, run: Run, dataset_content: str | None) -> dict[str, Any]:
    """Return every key of the study that all ranks must share, the dataset's content and the code version."""
    tree = config.model_dump(mode="json", exclude=_NO_PART_OF_THE_WORK)
    tree["fit"] = config.fit_for(run.spec).model_dump(mode="json")
    keys = {key: value for key, value in _flat(tree) if key not in _OF_THIS_MACHINE}
    return {
        "variant": run.name,
        **keys,
        "training hash": config.training_hash(run),
        "dataset content": dataset_content,
        "code version": code_version(),
    }


def agree(ranks: Ranks, facts: Facts) -> None:
    """Compare each rank's facts with those of rank 0. A collective.

    Raises RanksDifferError on every rank when one differs; it names the ranks, the fact and both values.
    """
    first = ranks.broadcast(facts)
    names = [*first, *(name for name in facts if name not in first)]
    absent = "nothing"
    mine = [
        (name, str(facts.get(name, absent)), str(first.get(name, absent)))
        for name in names
        if facts.get(name, absent) != first.get(name, absent)
    ]
    differing: dict[tuple[str, str, str], list[int]] = {}
    for rank, rows in enumerate(ranks.gather(mine)):
        for row in rows:
            differing.setdefault(row, []).append(rank)
    if not differing:
        return
    lines = [
        f"{_ranks(who)} {_has(who)} {name}={theirs}, rank 0 has {ours}"
        for (name, theirs, ours), who in list(differing.items())[:_NAMED]
    ]
    more = f"; and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
    raise RanksDifferError(f"{'; '.join(lines)}{more}; start all ranks with the same study, dataset and code")


class Replica(NamedTuple):
    """What identifies the weights of a rank."""

    hardware: str
    """Processor and threads; the same weights are certain only where it is equal."""
    checksums: Mapping[str, int]
    """File of a checkpoint -> checksum of its tensors."""


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """Return a sum over the bits of float32 tensors, modulo 2^64.

    The sum of integers is exact: it depends on neither the device nor the order of addition. Waits for the device.
    """
    import torch

    sums = [tensor.detach().view(torch.int32).sum(dtype=torch.int64) for tensor in tensors.values()]
    total = 0
    for bits in torch.stack(sums).tolist():
        # The factor makes the checksum depend on which tensor holds which bits.
        total = (total * 31 + bits) % 2**64
    return total


class RanksView(NamedTuple):
    """The ranks' weights after `step` steps, in the order of ranks."""

    step: int
    replicas: list[Replica]


def ranks(view: RanksView) -> Reading:
    """Check that all ranks have the same weights.

    Where ranks compute on different hardware a difference is a warning, because the same update then may differ in its
    last bit.
    """
    problems = []
    for file in view.replicas[0].checksums:
        counts = Counter(replica.checksums[file] for replica in view.replicas)
        usual = counts.most_common(1)[0][0]
        if who := [rank for rank, replica in enumerate(view.replicas) if replica.checksums[file] != usual]:
            problems.append((file, who))
    if not problems:
        return Reading(0, _BOUND)
    file, who = problems[0]
    same_hardware = len({replica.hardware for replica in view.replicas}) == 1
    return Reading(
        len(who),
        _BOUND,
        "stop" if same_hardware else "warn",
        f"step {view.step}: {_ranks(who)} {_has(who)} other values in {file} than the other ranks",
        "" if same_hardware else "rounding on different hardware",
        "check the memory of their machines, then run the same command to resume from the last checkpoint",
    )


def record_difference(store: Store, config: StudyConfig, run: Run, step: int, error: RanksDifferError) -> None:
    """Write the event of ranks that do not agree at the start, after `step` steps. Only rank 0 calls this."""
    event = HealthEvent(check="ranks", step=step, value=None, bound=_BOUND, action="stop", message=str(error))
    add_event(store, layout.health(config, run), event)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of a tree with its key, such as `train.seed`."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _ranks(numbers: list[int]) -> str:
    return f"rank {numbers[0]}" if len(numbers) == 1 else f"ranks {', '.join(map(str, numbers))}"


def _has(numbers: list[int]) -> str:
    return "has" if len(numbers) == 1 else "have"
