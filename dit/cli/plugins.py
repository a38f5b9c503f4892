"""Commands that the platform adds to `dit`, looked up by entry point: the science does not import it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points

import typer

GROUP = "dit.commands"


def installed_commands() -> Iterator[typer.Typer]:
    """The commands of each entry point of the group; none where no platform is installed."""
    for entry in entry_points(group=GROUP):
        commands: typer.Typer = entry.load()
        yield commands
