"""The reference of all keys of a study file: for the terminal (`dit keys`) and for docs/study-file.md. Torch-free."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

from dit.errors import ConfigError, MissingError, one_line
from dit.study.config import StudyConfig
from dit.study.keys import REQUIRED, UNSET, Key, all_keys, paths, sections
from dit.study.mistakes import similar

BEGIN = "<!-- Keys: written by `make reference` -->"
_WIDTH = 100


def lines(path: str | None = None) -> Iterator[str]:
    """The key at `path`, or the keys of the section at `path`, or all keys, for a terminal.

    Raises ConfigError, with similar keys, when there is no such key or section.
    """
    keys = [key for key in all_keys(StudyConfig) if path is None or _is_below(key.path, path)]
    if not keys:
        found = similar(path or "", paths(StudyConfig))
        hint = f" (did you mean {' or '.join(found[:3])}?)" if found else ""
        raise ConfigError(f"{path}: unknown key{hint}; `dit keys` lists all")
    for key in keys:
        yield f"{key.path}: {key.type}{_condition(key)}; {_default(key)}"
        yield from textwrap.wrap(key.meaning, _WIDTH, initial_indent="    ", subsequent_indent="    ")


def markdown() -> str:
    """Tables of all keys, one per section."""
    return "\n".join(_tables()) + "\n"


def rewrite(page: Path) -> None:
    """Replace the tables of a page: all that follows the line `BEGIN`.

    Raises MissingError when the page does not exist or has no such line.
    """
    try:
        text, begin, _ = page.read_text(encoding="utf-8").partition(BEGIN)
    except OSError as error:
        raise MissingError(f"{page}: {one_line(error)}; give docs/study-file.md") from None
    if not begin:
        raise MissingError(f"{page}: has no line {BEGIN}; give docs/study-file.md")
    page.write_text(f"{text}{BEGIN}\n\n{markdown()}", encoding="utf-8")


def _tables() -> Iterator[str]:
    for number, section in enumerate(sections(StudyConfig)):
        yield from [""] * (number > 0)
        yield f"### {f'`{section.path}`' if section.path else 'The file itself'}"
        yield ""
        if section.meaning and section.path:
            yield from (section.meaning, "")
        yield from ("| key | type | default | meaning |", "|---|---|---|---|")
        for key in section.keys:
            name = key.path.removeprefix(f"{section.path}.")
            default = key.default if key.default in (REQUIRED, UNSET) else f"`{key.default}`"
            yield f"| `{name}`{_condition(key)} | {key.type} | {default} | {key.meaning} |"


def _is_below(key: str, path: str) -> bool:
    return key == path or key.startswith((f"{path}.", f"{path}["))


def _condition(key: Key) -> str:
    return f" (kind {key.kind})" if key.kind else ""


def _default(key: Key) -> str:
    return REQUIRED if key.default == REQUIRED else f"default {key.default}"
