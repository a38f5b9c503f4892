"""The events in the output of a step."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout

from hypothesis import given
from hypothesis import strategies as st
from processes import python

from dit.console import progress
from pipelines.step.events import Event, from_line, spoken


@given(st.text(), st.integers(0, 255), st.dictionaries(st.text(), st.floats(allow_nan=False) | st.text()))
def test_an_event_is_read_back_from_its_line(text: str, number: int, info: dict[str, float | str]) -> None:
    event = Event("error", text, code=number, count=number, info=info)
    line = event.to_line()
    assert line.count("\n") == 1
    assert from_line(f"    {line.rstrip()}") == event


def test_output_of_a_step_becomes_events() -> None:
    output = io.StringIO()
    with redirect_stdout(output), spoken("train mini-S/2") as speaker:
        sys.stdout.write("one\n\ntwo, ")
        sys.stdout.write("still two")
        speaker.tell(Event("error", "why", 2))
    assert [from_line(line) for line in output.getvalue().rstrip("\n").split("\n")] == [
        Event("begin", "train mini-S/2"),
        Event("line", "one"),
        Event("error", "why", 2),
        Event("line", "two, still two"),
        Event("end", "train mini-S/2"),
    ]


def test_progress_of_a_step_becomes_events_that_add_up() -> None:
    output = io.StringIO()
    with redirect_stdout(output), spoken("train mini-S/2"), progress("train", 50, "steps", completed=10) as bar:
        for _ in range(39):
            bar.advance(loss=1.0)
        bar.advance(loss=0.5)
    lines = output.getvalue().rstrip("\n").split("\n")
    begin, opened, *advanced, closed, end = [from_line(line) for line in lines]
    assert opened == Event("open", "train", count=50, completed=10, unit="steps")
    assert sum(event.count for event in advanced if event) == 40
    assert advanced[-1] is not None
    assert advanced[-1].info == {"loss": 0.5}
    assert (begin, closed, end) == (Event("begin", "train mini-S/2"), Event("close"), Event("end", "train mini-S/2"))


def test_a_step_continues_when_its_parent_is_gone() -> None:
    """A broken pipe must not keep a step from writing its checkpoint."""
    code = """
        import sys
        from dit.console import progress, say
        from pipelines.step.events import spoken
        with spoken("train"), progress("train", 2, "steps") as bar:
            sys.stdin.readline()
            for _ in range(2):
                say("a word")
                bar.advance()
            sys.__stderr__.write("worked on")
    """
    process = python(code)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.write("\n")
    process.stdin.close()
    assert process.stderr.read() == "worked on"
    assert process.wait() == 0
