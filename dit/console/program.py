"""The programs beside `dit`, such as `python -m pipelines.submit`: common arguments, and one line at the end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from dit.errors import DitError, one_line

INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell has it."""


def exit_code(run: Callable[[], object], interrupted: str = "interrupted") -> int:
    """Exit code of a program that does this; what its user can mend is one line on standard error."""
    try:
        run()
    except DitError as error:
        complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        complain(interrupted)
        return INTERRUPTED
    return 0


def complain(what: object) -> None:
    """Say on one line of standard error what went wrong."""
    sys.stderr.write(f"dit: {one_line(what)}\n")


def parser(module: str, purpose: str | None) -> argparse.ArgumentParser:
    """For the arguments of `python -m MODULE`; its purpose is the first line of the module's docstring."""
    return argparse.ArgumentParser(prog=f"python -m {module}", description=(purpose or "").partition("\n")[0])


def add_study(arguments: argparse.ArgumentParser) -> None:
    """A study file and overrides of its values, as `study` and `overrides`."""
    arguments.add_argument("study", type=Path, help="study file, such as configs/digits.yaml")
    arguments.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[])


def add_root(arguments: argparse.ArgumentParser) -> None:
    """A store that pods reach, as `root`."""
    arguments.add_argument("--root", required=True, help="store of all results: s3://bucket/prefix")
