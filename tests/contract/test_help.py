"""What --help promises is there: every command has examples, and the examples use options that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from dit.cli.commands import run

ROOT = Path(__file__).parents[2]
COMMANDS = ("plan", "prepare", "train", "sample", "evaluate", "report", "study", "status", "show", "convert")


def help_text(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert run([*command, "--help"]) == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)


def test_the_commands_are_the_documented_ones(capsys: pytest.CaptureFixture[str]) -> None:
    listed = re.findall(r"^│ ([a-z]+) ", help_text(capsys).split("Commands")[1], re.MULTILINE)
    assert tuple(listed) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
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


def test_both_ways_to_start_are_the_same() -> None:
    commands = ([sys.executable, "-m", "dit"], [str(Path(sys.executable).parent / "dit")])
    outputs = {subprocess.run([*command, "--help"], capture_output=True, check=True).stdout for command in commands}
    assert len(outputs) == 1


def test_study_and_status_find_their_runners_without_importing_the_platform() -> None:
    for name in ("local", "status"):
        found = [entry.value for entry in entry_points(group="dit.cli.plugins", name=name)]
        assert found[:1] == [f"pipelines.{name}:run"]


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
