"""The journal's lines under kills, full disks and several writers."""

from __future__ import annotations

import json
import math
import multiprocessing
import resource
from pathlib import Path

import pytest

from dit.errors import StoreError
from dit.tracking.journal import Entry, Journal, Point, header_of, open_journal, points, read_entries, read_header

HEADER = {"study": "s", "variant": "DiT-S/2"}


def read_points(path: Path) -> list[Point]:
    return list(points(entry for entry, _ in read_entries(path)))


def log(journal: Journal, step: int, **values: float) -> None:
    journal.append(Entry("metrics", values, step, 1000 + step))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "metrics.jsonl"


def test_points_come_back_as_they_were_logged(path: Path) -> None:
    journal = open_journal(path, "hash", HEADER)
    log(journal, 10, loss=0.1 + 0.2, norm=math.inf)
    log(journal, 20, loss=math.nan)
    journal.close()
    first, second, third = read_points(path)
    assert first == Point("loss", 10, 0.1 + 0.2, 1010)
    assert second == Point("norm", 10, math.inf, 1010)
    assert math.isnan(third.value)


@pytest.mark.parametrize("torn", [b'{"kind":"metrics","time":1,"st', b"{", b"\0" * 200_000])
def test_an_incomplete_line_is_ignored_and_then_removed(path: Path, torn: bytes) -> None:
    journal = open_journal(path, "hash", HEADER)
    log(journal, 10, loss=1.0)
    journal.close()
    with open(path, "ab") as file:
        file.write(torn)
    assert [point.step for point in read_points(path)] == [10]
    journal = open_journal(path, "hash", HEADER)
    log(journal, 20, loss=2.0)
    journal.close()
    assert [point.step for point in read_points(path)] == [10, 20]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_damaged_line_is_skipped(path: Path) -> None:
    journal = open_journal(path, "hash", HEADER)
    log(journal, 10, loss=1.0)
    with open(path, "ab") as file:
        file.write(b'not json\n{"kind":"of the future","time":1,"values":{}}\n[]\n')
    log(journal, 20, loss=2.0)
    assert [point.step for point in read_points(path)] == [10, 20]


def test_reading_continues_from_an_offset(path: Path) -> None:
    journal = open_journal(path, "hash", HEADER)
    log(journal, 10, loss=1.0)
    offset = read_entries(path)[-1][1]
    assert read_entries(path, offset) == []
    log(journal, 20, loss=2.0)
    [(entry, end)] = read_entries(path, offset)
    assert (entry.step, end) == (20, path.stat().st_size)


def test_a_full_disk_is_an_error_and_leaves_whole_lines(path: Path) -> None:
    journal = open_journal(path, "hash", HEADER)
    log(journal, 10, loss=1.0)
    whole = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, hard))
    try:
        with pytest.raises(StoreError, match=r"metrics\.jsonl"):
            log(journal, 20, loss=2.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == whole
    log(journal, 20, loss=2.0)
    assert [point.step for point in read_points(path)] == [10, 20]


def _write_many(path: Path, name: str) -> None:
    journal = open_journal(path, "hash", HEADER)
    for step in range(200):
        log(journal, step, **{name: float(step)})
    journal.close()


def test_several_processes_append_to_one_journal(path: Path) -> None:
    spawn = multiprocessing.get_context("fork")
    writers = [spawn.Process(target=_write_many, args=(path, name)) for name in ("a", "b", "c")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    written = read_points(path)
    assert {name: [p.step for p in written if p.key == name] for name in "abc"} == {
        name: list(range(200)) for name in "abc"
    }
    assert path.read_bytes().count(b'"kind":"run"') == 1


def test_a_journal_of_another_configuration_is_moved_aside(path: Path) -> None:
    journal = open_journal(path, "old", HEADER)
    log(journal, 10, loss=1.0)
    journal.close()
    log(open_journal(path, "new", HEADER), 10, loss=2.0)
    assert [point.value for point in read_points(path)] == [2.0]
    [aside] = path.parent.glob("metrics-*.jsonl")
    assert [point.value for point in read_points(aside)] == [1.0]


def test_copies_on_two_machines_are_merged(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "metrics.jsonl", tmp_path / "b" / "metrics.jsonl"
    here = open_journal(first, "hash", HEADER, copy=b"")
    log(here, 10, loss=1.0)
    there = open_journal(second, "hash", HEADER, copy=first.read_bytes())
    log(there, 20, loss=2.0)
    log(here, 30, loss=3.0)
    here.absorb(second.read_bytes())
    here.absorb(second.read_bytes())
    assert sorted(point.step for point in read_points(first)) == [10, 20, 30]
    assert read_header(first) == read_header(second)


def test_a_journal_removed_from_the_store_is_not_continued(path: Path) -> None:
    journal = open_journal(path, "hash", HEADER, copy=b"")
    log(journal, 10, loss=1.0)
    journal.close()
    copy = path.read_bytes()
    assert [point.step for point in read_points_after_open(path, copy)] == [10]
    assert read_points_after_open(path, b"") == []
    assert header_of(path.read_bytes()) != header_of(copy)


def read_points_after_open(path: Path, copy: bytes) -> list[Point]:
    open_journal(path, "hash", HEADER, copy=copy).close()
    return read_points(path)
