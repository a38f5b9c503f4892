"""The report's forecasts, each with its track record; what cannot be forecast has the reason."""

from __future__ import annotations

import re
from pathlib import Path

from study_records import fill, metrics_record, read, study

from dit.stages import report
from dit.storage import Store, open_store, write_record
from dit.study import layout
from dit.study.config import StudyConfig
from dit.tracking import open_tracker


def forecast_rows(store: Store, config: StudyConfig) -> dict[str, list[list[str]]]:
    """Variant -> its cells in each table of the section."""
    report.run(config, store)
    section = re.search(r'aria-labelledby="forecast-title".*?</section>', read(store, config, "report.html"), re.DOTALL)
    assert section is not None
    rows: dict[str, list[list[str]]] = {}
    for row in re.findall(r"<tr>(.*?)</tr>", section[0], re.DOTALL):
        name, *cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        rows.setdefault(name, []).append(cells)
    return rows


def test_a_power_law_is_forecast_and_a_kink_or_a_plateau_is_refused_by_name(tmp_path: Path) -> None:
    config = study(overrides=("evaluation.at_steps=[100000, 200000, 400000]",))
    store = open_store(tmp_path)
    fill(store, config)
    kinked, lawful = config.runs[:2]
    for run in (kinked, lawful):
        with open_tracker(config, store, run) as tracker:
            for step in range(1000, 401_000, 1000):
                fallen = (step / 250_000) ** -1.5 if run is kinked and step > 250_000 else 1.0
                tracker.metrics(step, {"health/ratio_b": 3 * step**-0.15 * fallen})
    late = metrics_record(config, kinked, 400_000)
    estimate = late.metrics["fid"].model_copy(update={"value": 10.0, "low": 9.9, "high": 10.1})
    write_record(
        store,
        layout.metrics(config, kinked, 400_000),
        late.model_copy(update={"metrics": {**late.metrics, "fid": estimate}}),
    )
    rows = forecast_rows(store, config)
    assert rows["Variant"][0][1:] == ["Forecast for step 800,000", "From 25%", "From 50%", "From 75%"]
    ratio, metric = rows[lawful.name]
    assert float(ratio[1]) == round(3 * 800_000**-0.15, 4)
    assert max(abs(float(cell.rstrip("%"))) for cell in ratio[2:]) < 0.2
    # The records' FID falls with the square root of the steps.
    assert float(metric[1]) == round(23.33 * 0.5**0.5, 2)
    ratio, metric = rows[kinked.name]
    assert ratio[1].startswith("not forecast: back-test missed by ")
    assert metric[1].startswith("not forecast: back-test missed by ")


def test_a_study_of_one_checkpoint_without_bounds_has_no_forecast(tmp_path: Path) -> None:
    config, store = study(overrides=("evaluation.at_steps=[400000]",)), open_store(tmp_path)
    fill(store, config)
    report.run(config, store)
    assert "forecast-title" not in read(store, config, "report.html")
