"""What the records of an earlier study say about a new one. Torch-free.

prior = earlier(load("configs/digits.yaml"), open_store("runs"))  # None without records
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from dit.planning.prior import Curve, Prior, Range, Spread, pooled
from dit.storage import Store, read_record
from dit.study import layout
from dit.study.config import DigitsSource, StudyConfig
from dit.study.records import MetricsRecord

DIGITS_SEEDS = {"mini-S/2": (18.3, 21.3, 19.1), "mini-B/2": (10.6, 12.1, 12.8), "mini-XL/4": (6.4, 5.0, 5.3)}
"""Fréchet distances of configs/digits.yaml at step 1,500 with the training seeds 0, 1 and 2."""
DIGITS_IMAGES = 1000
Values = Mapping[str, Mapping[int, Sequence[float]]]
"""Variant -> step -> metric of each of its runs."""


def earlier(config: StudyConfig, store: Store) -> Prior | None:
    """What a study's own records below a root say: curves of its variants, and their spreads; None without records.

    Records of another configuration are left out, with a note.

    Raises DataError or MismatchError for a record that cannot be read.
    """
    found = _records(config, store)
    records = [record for record in found if record.science_hash == config.science_hash()]
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        value = record.metrics[record.metric].value
        if math.isfinite(value) and value > 0:
            values[record.variant][record.step].append(value)
    if not values:
        return None
    others = len(found) - len(records)
    notes = [f"{others} records of another configuration are left out."] if others else []
    return Prior(
        curves={name: _curve(steps) for name, steps in values.items()},
        seeds=_between_seeds(config, values),
        sampling=_between_samples(records, config),
        bias=0.0,
        noise_floor=records[0].noise_floor,
        source=f"Expected values: the records of study {config.study} below {store.place()}.",
        notes=tuple(notes),
    )


def _records(config: StudyConfig, store: Store) -> list[MetricsRecord]:
    """All metrics of the study under its sampling protocol."""
    ending = f"_{layout.protocol(config.sampling)}.json"
    keys = [key for key in store.list(layout.study(config)) if "/metrics/" in key and key.endswith(ending)]
    records = (read_record(store, key, MetricsRecord) for key in keys)
    return [record for record in records if record is not None]


def _curve(steps: Mapping[int, Sequence[float]]) -> Curve:
    means = {step: statistics.geometric_mean(values) for step, values in steps.items()}
    return Curve([(step, Range(means[step], means[step])) for step in sorted(means)])


def _between_seeds(config: StudyConfig, values: Values) -> Spread | None:
    """From the study's own seeds at the last step of each variant; for the digits, from known trainings otherwise."""
    log_sd, degrees = pooled([steps[max(steps)] for steps in values.values()])
    if degrees:
        return Spread(log_sd, degrees, config.sampling.num_samples, "the seeds of this study at its last step")
    if not isinstance(config.dataset.source, DigitsSource):
        return None
    log_sd, degrees = pooled(list(DIGITS_SEEDS.values()))
    return Spread(log_sd, degrees, DIGITS_IMAGES, "three seeds of three models on the digits at step 1,500")


def _between_samples(records: Sequence[MetricsRecord], config: StudyConfig) -> Spread:
    """From the bootstrap of every record, root mean square over them."""
    squares = [statistics.pvariance([math.log(value) for value in row]) for row in map(_positive, records) if row]
    log_sd = math.sqrt(statistics.fmean(squares)) if squares else 0.0
    degrees = max(1, min((len(record.replicates) for record in records), default=2) - 1)
    return Spread(log_sd, degrees, config.sampling.num_samples, "the bootstrap of its sample sets")


def _positive(record: MetricsRecord) -> list[float]:
    return [value for value in record.replicates if value > 0]
