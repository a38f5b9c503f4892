"""What the doctor found: findings, their order, and one line for people. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field

from dit.console import Cell, say, table
from dit.console.formatting import format_number
from dit.health.gate import Reading

COLUMNS = ("Check", "Weights", "Value", "Must be", "Result")
_RESULTS = {"ok": "ok", "warn": "warning", "stop": "SICK"}


@dataclass(frozen=True)
class Finding:
    """A reading of one set of weights."""

    check: str
    weights: str
    """EMA, raw, or what else was read."""
    reading: Reading


@dataclass(frozen=True)
class Fit:
    """How well one interpretation of the weights predicts noise: its error over bound b of the dataset."""

    name: str
    fifths: tuple[float, ...]
    """By fifth of the chain, the least noisy first."""
    total: float


@dataclass(frozen=True)
class Diagnosis:
    """All findings about a checkpoint, the most specific first."""

    subject: str
    findings: tuple[Finding, ...]
    fits: tuple[Fit, ...] = ()
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = field(default=())
    """Checks that were not made, each with what they need."""

    @property
    def sick(self) -> bool:
        """Whether a check failed; a warning is no failure."""
        return any(finding.reading.verdict == "stop" for finding in self.findings)

    @property
    def headline(self) -> str:
        """One line: the first failure with its cause and advice, or that there is none."""
        for verdict, word in (("stop", "sick"), ("warn", "healthy, with a warning")):
            worst = next((finding for finding in self.findings if finding.reading.verdict == verdict), None)
            if worst is not None:
                return f"{self.subject}: {word}: {worst.weights}: {worst.reading.message(worst.check)}"
        return f"{self.subject}: healthy: {len(self.findings)} of {len(self.findings)} readings"

    def show(self) -> None:
        """Print the line, the table of readings and that of interpretations."""
        say(self.headline)
        for note in self.notes:
            say(f"note: {note}")
        for need in self.missing:
            say(f"not checked: {need}")
        say()
        rows: list[list[Cell]] = [
            [found.check, found.weights, found.reading.value, found.reading.bound, _RESULTS[found.reading.verdict]]
            for found in self.findings
        ]
        table(COLUMNS, rows)
        if self.fits:
            say()
            columns = ("Weights read as", *(f"t in fifth {number}" for number in range(1, 6)), "All t")
            shown = [[fit.name, *map(format_number, fit.fifths), format_number(fit.total)] for fit in self.fits]
            table(columns, shown, title="Noise error over the dataset's bound b")
