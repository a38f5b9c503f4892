"""Paragraphs of a plan, in lines that a terminal of 100 columns shows whole. Torch-free."""

from __future__ import annotations

import textwrap

from dit.console import say

COLUMNS = 100


def say_wrapped(paragraph: str) -> None:
    """Print a paragraph in lines of at most `COLUMNS` characters; words are not broken."""
    for line in textwrap.wrap(paragraph, COLUMNS, break_long_words=False, break_on_hyphens=False):
        say(line)
