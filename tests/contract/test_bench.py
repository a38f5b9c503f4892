"""The benchmarks' arithmetic; nothing is timed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.harness import Outcome, Row, run
from bench.report import Results

ROW = Row("step", "steps/s", "module", {"plain": {"side": 0}, "ours": {"side": 1}, "absent": {"side": 2}}, target=2)
MACHINE = {
    "processor": "CPU", "device": "cpu", "threads": 2, "torch": "2", "python": "3", "date": "2026-01-01",
    "matmul_fp32_tflops": 0.1, "matmul_bf16_tflops": 0.2,
}  # fmt: skip
RATES = {0: [1.0, 4.0, 2.0], 1: [3.0, 4.0, 5.0], 3: [6.0, 24.0, 12.0]}


def measured(row: Row = ROW, rounds: int = 3) -> tuple[Outcome, list[int]]:
    launched: list[int] = []

    def launch(_: str, arguments: dict[str, Any]) -> dict[str, Any]:
        side = arguments["side"]
        launched.append(side)
        if side == 2:
            return {"skipped": "no such device"}
        return {"rate": RATES[side][launched.count(side) - 1], "share_of_peak": 0.5, "beside": {"batch": 8}}

    return run(row, rounds, lambda _: None, launch), launched


def test_sides_take_turns_and_a_skipped_side_is_launched_once() -> None:
    assert measured()[1] == [0, 1, 2, 0, 1, 0, 1]


def test_ratios_are_taken_within_rounds_and_their_median_is_kept() -> None:
    sides = measured()[0].to_json()["sides"]
    assert sides["plain"]["median"] == 2
    assert sides["ours"]["median"] == 4
    assert sides["ours"]["ratio_median"] == 2.5
    assert sides["ours"]["ratio_range"] == [1.0, 3.0]
    assert sides["plain"]["ratio_range"] == [1.0, 1.0]
    assert sides["absent"]["skipped"] == "no such device"


def test_a_row_limits_its_rounds() -> None:
    assert measured(Row("slow", "1/s", "module", {"plain": {"side": 0}}, rounds=1))[1] == [0]


def test_rows_of_several_runs_are_kept_side_by_side(tmp_path: Path) -> None:
    Results("cpu", MACHINE, "first", tmp_path).add(measured()[0])
    other = Row("other", "images/s", "module", {"plain": {"side": 0}})
    again = Results("cpu", {**MACHINE, "date": "2026-02-02"}, "second", tmp_path)
    again.add(measured(other, 1)[0])
    again.add(measured(rounds=1)[0])
    rows = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert [(row["name"], row["command"], row["date"], len(row["sides"]["plain"]["launches"])) for row in rows] == [
        ("step", "second", "2026-02-02", 1),
        ("other", "second", "2026-02-02", 1),
    ]


def test_another_machines_rows_are_not_mixed_in(tmp_path: Path) -> None:
    Results("cpu", MACHINE, "first", tmp_path).add(measured()[0])
    with pytest.raises(SystemExit, match="holds rows of torch 2, this is 3"):
        Results("cpu", {**MACHINE, "torch": "3"}, "second", tmp_path)


def test_the_table_has_the_aim_the_ceiling_and_skipped_sides(tmp_path: Path) -> None:
    results = Results("cpu", MACHINE, "make bench", tmp_path)
    results.add(measured()[0])
    page = results.markdown.read_text()
    assert "`make bench`, 2026-01-01." in page
    assert "Aim 2, reached 2.50; 2.00 if all but the products took no time." in page
    assert "| ours | 4 | steps/s | 2.50 | 1.00 to 3.00 | 50% | batch 8 |" in page
    assert "no such device" in page


def test_the_ceiling_does_not_count_as_reached(tmp_path: Path) -> None:
    row = Row("step", "steps/s", "module", {"plain": {"side": 0}, "ours": {"side": 1}, "bare": {"side": 3}}, target=2)
    results = Results("cpu", MACHINE, "make bench", tmp_path)
    results.add(measured(replace(row, ceiling="bare"))[0])
    page = results.markdown.read_text()
    assert "Aim 2, reached 2.50; 2.00 if all but the products took no time, 6.00 if they took what they take" in page


def test_the_gain_of_a_part_is_what_is_lost_without_it(tmp_path: Path) -> None:
    row = Row("parts", "steps/s", "module", {"all": {"side": 1}, "without average": {"side": 0}}, parts=True)
    results = Results("cpu", MACHINE, "make bench", tmp_path)
    results.add(measured(row)[0])
    assert "average +150%" in results.markdown.read_text()
