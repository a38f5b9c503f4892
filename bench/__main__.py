"""`python -m bench [NAME ...] [--match TEXT] [--rounds N] [--save NAME]`: run benchmarks, write JSON and Markdown."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from itertools import chain

from rich.console import Console
from rich.markdown import Markdown

from bench import harness
from bench.report import Results, machine

MODULES = ("train", "sampler", "loader", "preparation", "features", "frechet", "health")
ON_GPU = ("gpu", "gpu_stages")


def main() -> None:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(MODULES)} (default: these); {', '.join(ON_GPU)}"
    )
    parser.add_argument("--rounds", type=int, default=harness.ROUNDS, help="maximum of launches of every side")
    parser.add_argument("--match", default="", help="only rows whose name contains this text, such as 'S/2, fp32'")
    parser.add_argument("--save", help="name of the files in bench/results; other rows in them are kept")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - {*MODULES, *ON_GPU}:
        parser.error(f"unknown benchmark {min(unknown)!r}; known are {', '.join((*MODULES, *ON_GPU))}")
    if chosen.rounds < 1:
        parser.error(f"--rounds={chosen.rounds}: must be at least 1")
    names = chosen.names or MODULES
    every = chain.from_iterable(importlib.import_module(f"bench.{name}").rows() for name in names)
    rows = [row for row in every if chosen.match in row.name]
    if not rows:
        parser.error(f"--match={chosen.match!r}: no row of {', '.join(names)} has this text in its name")
    command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
    results = Results(chosen.save or ("gpu" if {*ON_GPU} & {*names} else "cpu"), machine(), command)
    progress = Console(stderr=True)
    for row in rows:
        results.add(harness.run(row, chosen.rounds, progress.print))
    console = Console()
    console.print(Markdown(results.markdown.read_text(encoding="utf-8")))
    console.print(f"written: {results.markdown} and .json")


if __name__ == "__main__":
    main()
