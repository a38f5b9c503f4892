"""Help: every command has examples, and examples and documentation use commands and options that exist."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dit.cli.commands import run
from dit.study.study_file import load

ROOT = Path(__file__).parents[3]
SCIENCE = ("prepare", "train", "sample", "evaluate", "report", "plan", "show", "keys", "ui", "doctor", "import")
PLATFORM = ("study", "status", "preflight", "submit", "terminate", "compile", "launch", "render")
PLATFORM += ("deploy", "undeploy", "secrets", "reap", "ui-cluster", "with-cluster")


def help_text(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert run([*command, "--help"]) == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)


def asking_for_help(arguments: list[str]) -> list[str]:
    # What follows the study of `dit with-cluster` is another command.
    return [*arguments[: 1 if arguments[0] == "with-cluster" else None], "--help"]


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
        assert run(asking_for_help(arguments)) == 0, line
        assert capsys.readouterr().err == ""
        for name in re.findall(r"configs/\S+\.yaml", line):
            assert (ROOT / name).is_file()


def test_dit_and_python_m_dit_are_the_same() -> None:
    commands = ([sys.executable, "-m", "dit"], [str(Path(sys.executable).parent / "dit")])
    outputs = {subprocess.run([*command, "--help"], capture_output=True, check=True).stdout for command in commands}
    assert len(outputs) == 1


def examples() -> dict[str, list[str]]:
    """Place -> commands on shipped studies: in the documentation, the help, and the docstrings of stages."""
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "dit").rglob("*.py")]
    files += [*(ROOT / "pipelines").rglob("*.py"), *(ROOT / "configs").glob("*.yaml")]
    pattern = r"(?:dit|dit [a-z]+) (configs/[a-z0-9-]+\.yaml\b[^#\n`;]*)"
    found = {str(file.relative_to(ROOT)): re.findall(pattern, file.read_text()) for file in files}
    return {place: lines for place, lines in found.items() if lines}


def test_examples_name_keys_variants_and_steps_of_shipped_studies() -> None:
    counted = 0
    for place, lines in examples().items():
        for line in lines:
            name, *words = shlex.split(line)
            given = {option: [v for o, v in itertools.pairwise(words) if o == option] for option in words}
            config = load(ROOT / name, given.get("--set", []))
            assert {config.run(variant).name for variant in given.get("--variant", [])} <= {*config.variants}, place
            steps = {int(step) for step in given.get("--step", [])}
            assert steps <= {*config.evaluation.at_steps}, f"{place}: {line}"
            counted += len(given)
    assert counted > 20


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["study", "ROOT=/a b's"], ["study", "configs/digits.yaml", "--root", "/a b's", "--runner", "local"]),
        (["study", "STUDY=my study.yaml", "SET=train.steps=3"], ["study", "my study.yaml", "--set", "train.steps=3"]),
        (["ui", "ROOT=/a b"], ["ui", "--root", "/a b"]),
        (["submit", "S3_ROOT=s3://a b", "RUN=a run"], ["submit", "--root", "s3://a b", "--run", "a run"]),
        (["status"], ["status", "--root", "runs"]),
        (["status", "ROOT=/a b"], ["status", "--root", "/a b"]),
        (["status", "S3_ROOT=s3://b/c"], ["status", "--root", "s3://b/c"]),
        (["status", "RUN=x"], ["status", "--root", "s3://dit-scaling", "--run", "x"]),
        (["status", "KUBECONFIG=k"], ["status", "--root", "s3://dit-scaling"]),
        (["status", "KUBECONFIG=k", "ROOT=r"], ["status", "--root", "r"]),
    ],
)
def test_make_passes_its_variables_to_dit(arguments: list[str], expected: list[str]) -> None:
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["make", "-n", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    words = shlex.split(done.stdout.replace("\\\n", " ").splitlines()[-1])
    words = words[words.index("dit") + 1 :]
    places = [words.index(word) for word in expected]
    assert places == sorted(places)


def test_recipes_of_make_do_not_depend_on_the_place_of_the_repository() -> None:
    """Of an environment only programs are called that find their interpreter after the repository was renamed."""
    assert {*re.findall(r"\$\(BIN\)/(\w+)", (ROOT / "Makefile").read_text())} <= {"python", "ruff", "uv"}


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
            arguments = words[words.index("dit") + 1 :]
            assert run(asking_for_help(arguments)) == 0, line
            assert capsys.readouterr().err == ""
        for name in re.findall(r"configs/\S+\.yaml", line):
            assert (ROOT / name).is_file(), line
