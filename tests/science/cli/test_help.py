"""Help: every command has examples, and examples and documentation use commands and options that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dit.cli.commands import run

ROOT = Path(__file__).parents[3]
SCIENCE = ("prepare", "train", "sample", "evaluate", "report", "plan", "show", "keys", "ui", "convert")
PLATFORM = ("study", "status", "preflight", "submit", "terminate", "compile", "launch", "render")
PLATFORM += ("deploy", "undeploy", "secrets", "reap", "ui-cluster")


def help_text(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert run([*command, "--help"]) == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)


def panels(text: str) -> dict[str, list[str]]:
    """Title of a panel of `dit --help` -> the commands in it."""
    boxes = re.findall(r"^╭─ (.+?) ─+╮$(.*?)^╰", text, re.MULTILINE | re.DOTALL)
    return {title: re.findall(r"^│ ([a-z-]+) ", body, re.MULTILINE) for title, body in boxes if title != "Options"}


def test_the_commands_are_the_documented_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert panels(help_text(capsys)) == {
        "Stages": [*SCIENCE[:5]],
        "Whole studies": [*PLATFORM[:2]],
        "Cluster": [*PLATFORM[2:]],
        "Tools": [*SCIENCE[5:]],
    }


def test_without_the_platform_the_commands_of_the_science_work() -> None:
    code = "import sys, dit.cli.commands as cli; cli.PLATFORM_COMMANDS = 'none';"
    code += "cli.main() if 'pipelines' not in sys.modules else sys.exit('imported')"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert [name for names in panels(done.stdout).values() for name in names] == [*SCIENCE]


@pytest.mark.parametrize("command", SCIENCE + PLATFORM)
def test_help_has_examples_that_parse(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, examples = help_text(capsys, command).partition("Examples")
    lines = [line.strip() for line in examples.split("╭")[0].splitlines() if line.strip()]
    assert lines
    for line in lines:
        words = shlex.split(line)
        assert "dit" in words
        arguments = words[words.index("dit") + 1 :]
        assert arguments[0] == command
        assert run([*arguments, "--help"]) == 0, line
        assert capsys.readouterr().err == ""
        for name in re.findall(r"configs/\S+\.yaml", line):
            assert (ROOT / name).is_file()


def test_dit_and_python_m_dit_are_the_same() -> None:
    commands = ([sys.executable, "-m", "dit"], [str(Path(sys.executable).parent / "dit")])
    outputs = {subprocess.run([*command, "--help"], capture_output=True, check=True).stdout for command in commands}
    assert len(outputs) == 1


def test_the_makefile_lists_its_targets_and_shows_them_by_default() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("study", "test", "lint", "bench", "ui", "env", "constraints", "clean"):
        assert re.search(rf"^  make {target} +\S", done.stdout, re.MULTILINE)


def test_the_commands_of_the_documentation_exist(capsys: pytest.CaptureFixture[str]) -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(page.read_text() for page in pages)
    lines = re.findall(r"^(?: {4})?((?:make|dit|torchrun) [^#\n]+)", text, re.MULTILINE)
    assert len(lines) > 10
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in lines:
        words = shlex.split(line)
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, line
        else:
            assert run([*words[words.index("dit") + 1 :], "--help"]) == 0, line
            assert capsys.readouterr().err == ""
        for name in re.findall(r"configs/\S+\.yaml", line):
            assert (ROOT / name).is_file(), line
