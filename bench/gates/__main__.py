"""`python -m bench.gates [NAME ...]`: inject faults and run healthy trainings; writes bench/results/gates.md."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from bench.gates.healthy import HEALTHY
from bench.gates.page import render
from bench.gates.runner import ROOT, Outcome, Runner, code_hash, slug
from bench.gates.table import CASES

PAGE = ROOT / "bench" / "results" / "gates.md"


def main() -> int:
    """Run what has no outcome yet, write the page; return 1 when a fault is missed or a healthy run fails a check."""
    parser = argparse.ArgumentParser(prog="python -m bench.gates", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults and healthy runs; default: all")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--folder", type=Path, help="where runs are kept; default: runs/gates/<hash of the code>")
    parser.add_argument("--list", action="store_true", help="list the names")
    chosen = parser.parse_args()
    known = {slug(name): name for name in [*(case.name for case in CASES), *(run.name for run in HEALTHY)]}
    if chosen.list:
        sys.stdout.write("\n".join(known) + "\n")
        return 0
    if unknown := set(map(slug, chosen.names)) - set(known):
        parser.error(f"unknown run {min(unknown)!r}; --list shows them")
    progress, names = Console(stderr=True), {known[slug(name)] for name in chosen.names or known}
    folder = (chosen.folder or ROOT / "runs" / "gates" / code_hash()).absolute()
    runner = Runner(folder, partial(progress.print, markup=False, highlight=False, soft_wrap=True))
    jobs = _jobs(runner, names)
    runner.prepare(dict.fromkeys(data for case in CASES if case.name in names for data in case.data))
    runner.run(jobs, chosen.processes)
    outcomes = runner.outcomes()
    text, failures = render({key: outcomes[key] for key, _ in jobs})
    if not chosen.names:
        PAGE.write_text(text, encoding="utf-8")
    Console().print(Markdown(text))
    for failure in failures:
        progress.print(f"gates: {failure}", markup=False, soft_wrap=True)
    return 1 if failures else 0


def _jobs(runner: Runner, names: set[str]) -> list[tuple[str, Callable[[], Outcome]]]:
    broken = [
        (f"{data}: {case.name}", partial(runner.broken, case, data))
        for case in CASES
        if case.name in names
        for data in case.data
    ]
    healthy = [(f"healthy: {run.name}", partial(runner.healthy, run)) for run in HEALTHY if run.name in names]
    # The digits' faults first: they take seconds.
    return [*sorted(broken, key=lambda job: not job[0].startswith("digits")), *healthy]


if __name__ == "__main__":
    sys.exit(main())
