"""The platform's commands of `dit`, found by entry point, because `dit` does not import `pipelines`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points

import typer

GROUP = "dit.commands"


def installed_commands() -> Iterator[typer.Typer]:
    """The commands of each entry point of the group; none if the platform is not installed."""
    for entry in entry_points(group=GROUP):
        commands: typer.Typer = entry.load()
        yield commands
