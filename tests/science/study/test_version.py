"""The version of the code, as `dit --version` prints it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from dit import __version__
from dit.cli.commands import run
from dit.study.version import code_version


@pytest.fixture(autouse=True)
def _read_again() -> Iterator[None]:
    code_version.cache_clear()
    yield
    code_version.cache_clear()


@pytest.mark.parametrize(
    ("revision", "shown"),
    [
        ("69f7c94", r"\+69f7c94"),
        ("69f7c94-dirty", r"\+69f7c94\.dirty"),
        ("unknown", ""),
        ("", r"(\+[0-9a-f]+(\.dirty)?)?"),
    ],
)
def test_the_version_names_the_commit_that_an_image_was_built_from(
    revision: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIT_REVISION", revision)
    assert run(["--version"]) == 0
    assert re.fullmatch(rf"dit {re.escape(__version__)}{shown}\n", capsys.readouterr().out)


def test_the_version_is_known_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert code_version() == __version__
