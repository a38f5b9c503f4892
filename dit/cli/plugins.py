"""What runs and watches whole studies, looked up by entry point: the science does not know it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from dit.errors import ConfigError

GROUP = "dit.cli.plugins"


def orchestrator(name: str) -> Callable[..., None]:
    """The one of this name; ConfigError where none is installed."""
    for entry in entry_points(group=GROUP, name=name):
        found: Callable[..., None] = entry.load()
        return found
    raise ConfigError(f"no orchestrator {name} is installed (entry point group {GROUP}); install dit-scaling anew")
