"""JSON of files that somebody else may have written."""

from __future__ import annotations

import pytest

from dit.errors import DataError
from dit.study.json_values import parse
from dit.study.records import Verdict


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, '"\\ud83d"', '{"\\uDC00": 1}', "", "{"])
def test_what_is_no_sound_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text)
    with pytest.raises(DataError, match="record: is not JSON; remove the file and run the step again"):
        Verdict.from_json(text.encode(), "record")


def test_a_character_of_two_halves_is_read() -> None:
    assert parse(b'"\\ud83d\\ude00"') == "\U0001f600"
