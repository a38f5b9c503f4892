"""Other sampling protocols under which a study's models were evaluated: guidance scales, steps, samplers. Torch-free.

    dit study my.yaml && dit study my.yaml --set sampling.cfg_scale=1.5

The second run leaves the results of the first one where they are, and its report shows both.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from dit.storage import Store, read_record
from dit.study import layout
from dit.study.config import SamplingConfig, StudyConfig
from dit.study.records import MetricsRecord
from dit.study.runs import Run


@dataclass(frozen=True, slots=True)
class OtherResult:
    """A checkpoint's metrics under another sampling protocol; `config` is the study with that protocol."""

    config: StudyConfig
    run: Run
    record: MetricsRecord


def other_results(config: StudyConfig, store: Store) -> list[OtherResult]:
    """Metrics of the study's own models under other protocols, by variant, step and protocol.

    Records of another recipe or another evaluation are not among them.

    Raises DataError or MismatchError for a record that cannot be read.
    """
    own = f"_{layout.protocol(config.sampling)}.json"
    return [
        result
        for run in config.runs
        for key in sorted(store.list(layout.metrics_folder(config, run)))
        if not key.endswith(own) and (result := _read(config, store, run, key)) is not None
    ]


def _read(config: StudyConfig, store: Store, run: Run, key: str) -> OtherResult | None:
    record = read_record(store, key, MetricsRecord)
    try:
        sampling = SamplingConfig.model_validate(record.sampling if record else None)
    except ValidationError:
        return None  # keys of another version of dit, whose hash would differ as well
    other = config.model_copy(update={"sampling": sampling})
    if record is None or record.config_hash != other.evaluation_hash(run):
        return None
    return OtherResult(other, run, record)
