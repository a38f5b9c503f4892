"""Writes the plan of configs/imagenet256-52k.yaml into docs/plan.md: `make reference` calls it."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

from dit.cli.commands import run

ROOT = Path(__file__).parents[1]
PAGE, STUDY = ROOT / "docs/plan.md", "configs/imagenet256-52k.yaml"
BEGIN = "<!-- Plan: written by `make reference` -->"


def planned() -> str:
    """What `dit plan` prints for the study, with a price and without results of an earlier study."""
    shown = io.StringIO()
    with tempfile.TemporaryDirectory() as empty, contextlib.redirect_stdout(shown):
        run(["plan", str(ROOT / STUDY), "--price", "2.50", "--root", empty])
    return shown.getvalue()


def page(text: str) -> str:
    """The page with the plan after the line `BEGIN`."""
    return f"{text.partition(BEGIN)[0]}{BEGIN}\n\n```\n{planned()}```\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
