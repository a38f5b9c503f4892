"""`python -m bench [NAME ...] [--rounds N] [--save NAME]`: measure, print a table, write JSON."""

from __future__ import annotations

import argparse
import importlib

from rich.console import Console

from bench import harness

MODULES = ("train", "sampler", "loader", "preparation", "features", "frechet")
ON_GPU = "gpu"


def main() -> None:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", choices=[*MODULES, ON_GPU, []], help="which to run (default: all of the CPU's)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="fresh launches of every side")
    parser.add_argument("--save", default="cpu", help="name of the JSON file in bench/results")
    chosen = parser.parse_args()
    rows = [row for name in chosen.names or MODULES for row in importlib.import_module(f"bench.{name}").rows()]
    described = harness.machine()
    outcomes = harness.run(rows, chosen.rounds)
    console = Console(width=160)
    console.print(harness.table(outcomes))
    console.print(described)
    console.print(f"written: {harness.save(outcomes, described, chosen.save)}")


if __name__ == "__main__":
    main()
