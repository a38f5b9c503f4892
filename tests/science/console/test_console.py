"""Output: bars on a terminal, plain lines elsewhere, and work that continues after the terminal has closed."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import python
from terminals import Terminal, terminal

from dit.console import output
from dit.errors import DitError, one_line

__all__ = ["terminal"]

WORK = """
    import sys, time
    from dit.console import progress, say
    say("before")
    with progress("train S/2", 100, "steps", completed=40) as bar:
        for step in range(60):
            bar.advance(loss=0.125)
            time.sleep(0.01)
        say("within")
    say("after")
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PYTHONIOENCODING", "PYTHONUNBUFFERED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def command(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def piped(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(code), capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**os.environ, **environment}
    )


def test_without_a_terminal_a_short_task_is_one_line_on_stderr() -> None:
    result = piped(WORK)
    assert result.stdout == "before\nwithin\nafter\n"
    assert re.fullmatch(
        r"train S/2: 100/100 steps \(100 %\), [\d.]+ steps/s, took [\d.]+ (s|ms), loss 0\.1250\n", result.stderr
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\rb\x08\x7f", r"a\rb\x08\x7f"),
        ("\x9b2J", r"\x9b2J"),
        ("gpj.\u202ecat", r"gpj.\u202ecat"),
        ("Zoë 犬\tä", "Zoë 犬\tä"),
    ],
)
def test_control_characters_are_shown_as_escapes(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.say(text)
    output.table(["name"], [[text]])
    assert capsys.readouterr().out == f"{shown}\nname\n{shown}\n"
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202e]", one_line(DitError(f"{text}:\n {text}")))


def test_without_a_terminal_a_long_task_is_a_line_for_every_tenth(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "_LINE_SECONDS", 0.0)
    with output.progress("sample", 1000, "images") as bar:
        for _ in range(1000):
            bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert [re.findall(r"\((\d+) %\)", line)[0] for line in lines] == [*map(str, range(10, 101, 10)), "100"]
    assert all("left" in line for line in lines[:9])


def test_without_a_terminal_a_slow_task_still_prints_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "_SILENCE_SECONDS", 0.0)
    with output.progress("train", 400_000, "steps") as bar:
        bar.advance(loss=1.5)
        assert re.search(r"1/400,000 steps \(0 %\), .* left, loss 1\.500", capsys.readouterr().err)


@pytest.mark.parametrize(("completed", "enabled"), [(5, True), (0, False)])
def test_complete_or_disabled_progress_prints_nothing(
    completed: int, enabled: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with output.progress("train", 5, "steps", completed, enabled=enabled) as bar:
        if not enabled:
            bar.advance(5, loss=0.5)
    assert capsys.readouterr() == ("", "")


def test_a_task_that_fails_has_no_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with output.progress("train", 5, "steps") as bar:
            bar.advance()
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert capsys.readouterr().err == ""


def test_threads_share_a_count(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress("encode", 4000, "images") as bar:
        threads = [threading.Thread(target=lambda: [bar.advance(codec="vae") for _ in range(1000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert "4,000/4,000 images (100 %)" in capsys.readouterr().err


def test_a_table_without_a_terminal_is_aligned_text(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[list[output.Cell]] = [["DiT-XL/2", 675129632, 19.5], ["S/2", 7, None]]
    output.table(["variant", "parameters", "fid"], rows, title="Results")
    assert capsys.readouterr().out.splitlines() == [
        "Results",
        "variant    parameters    fid",
        "DiT-XL/2  675,129,632  19.50",
        "S/2                 7      –",
    ]


def test_a_bar_shows_rate_time_left_and_loss(terminal: Terminal, tmp_path: Path) -> None:
    with open(tmp_path / "out", "w") as out:
        subprocess.run(command(WORK), stdin=terminal.slave, stdout=out, stderr=terminal.slave, check=True)
    drawn = terminal.text()
    assert (tmp_path / "out").read_text() == "before\nwithin\nafter\n", "redirected results are complete"
    assert re.search(r"train S/2 .* \d+/100 [\d.]+ steps/s .* left .*loss 0\.1250", drawn)
    assert re.search(r"100/100 .*took", drawn)
    assert "?25l" not in drawn, "a hidden cursor would stay hidden after a kill"


def test_lines_go_above_the_bar_on_the_same_terminal(terminal: Terminal) -> None:
    code = """
        from dit.console import progress, say, table
        with progress("outer", 2, "stages") as outer:
            outer.advance()
            with progress("inner", 3, "steps") as inner:
                inner.advance(3)
                say("a line [in] between")
            outer.advance()
        table(["name", "count"], [["x", 1234567]])
    """
    subprocess.run(command(code), stdin=terminal.slave, stdout=terminal.slave, stderr=terminal.slave, check=True)
    drawn = [line.rstrip() for line in terminal.text().splitlines()]
    assert "a line [in] between" in drawn
    assert any(re.search(r"outer .*2/2", line) for line in drawn)
    assert any(re.search(r"inner .*3/3", line) for line in drawn)
    assert any(re.search(r"x +1,234,567", line) for line in drawn)


def test_progress_can_be_shown_by_an_orchestrator(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[object, ...]] = []

    class Bar:
        def advance(self, n: int = 1, **info: float | str) -> None:
            calls.append((n, info))

    @contextmanager
    def open_bar(*bar: object) -> Iterator[Bar]:
        calls.append(bar)
        yield Bar()
        calls.append(("closed",))

    with output.progress_shown_by(open_bar):
        with output.progress("train", 5, "steps", completed=2) as bar:
            bar.advance(3, loss=0.5)
        with output.progress("train", 5, "steps", enabled=False) as bar:
            bar.advance()
    assert calls == [("train", 5, "steps", 2), (3, {"loss": 0.5}), ("closed",)]
    assert capsys.readouterr() == ("", "")
    with output.progress("train", 5, "steps") as bar:
        bar.advance(5)
    assert "5/5 steps" in capsys.readouterr().err


def test_a_dumb_terminal_gives_plain_lines(terminal: Terminal) -> None:
    subprocess.run(
        command(WORK),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=terminal.slave,
        env={**os.environ, "TERM": "dumb"},
        check=True,
    )
    assert re.fullmatch(r"train S/2: 100/100 steps .*\n+", terminal.text())


def test_work_continues_after_the_terminal_has_closed(tmp_path: Path) -> None:
    code = f"""
        import sys
        from pathlib import Path
        from dit.console import progress, say
        with progress("train", 2, "steps") as bar:
            bar.advance()
            print("drawn", flush=True)
            sys.stdin.readline()
            bar.advance()
        with progress("sample", 2, "images") as bar:
            bar.advance(2)
        Path({str(tmp_path / "result")!r}).write_text("done")
    """
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command(code), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=slave, text=True, start_new_session=True
    )
    os.close(slave)
    assert process.stdout is not None
    assert process.stdout.readline() == "drawn\n"
    os.close(master)
    process.communicate("\n")
    assert process.returncode == 0
    assert (tmp_path / "result").read_text() == "done"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_work_continues_after_the_pipe_has_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbuffered: str
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    code = f"""
        import sys
        from pathlib import Path
        from dit.console import say, table
        sys.stdin.readline()
        say("unread")
        table(["a"], [[1]])
        Path({str(tmp_path / "result")!r}).write_text("done")
    """
    process = python(code)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.write("\n")
    process.stdin.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0, errors
    assert errors == ""
    assert (tmp_path / "result").read_text() == "done"


def test_work_continues_with_closed_streams_and_poor_encodings(tmp_path: Path) -> None:
    code = f"""
        from dit.console import progress, say, table
        with progress("Fréchet", 1, "images") as bar:
            bar.advance()
        say("Fréchet")
        table(["Fréchet"], [[None]])
        open({str(tmp_path / "result")!r}, "w").close()
    """
    result = piped(code, PYTHONIOENCODING="ascii")
    assert result.stdout.split() == ["Fr?chet", "Fr?chet", "?"], result.stderr
    (tmp_path / "result").unlink()
    subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command(code)], check=True)
    assert (tmp_path / "result").exists()
