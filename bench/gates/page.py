"""The page of outcomes, as Markdown."""

from __future__ import annotations

from bench.gates.healthy import HEALTHY
from bench.gates.runner import Outcome
from bench.gates.table import CASES, NOT_SEPARABLE


def render(outcomes: dict[str, Outcome]) -> tuple[str, list[str]]:
    """Return the page, and one line for each fault that was missed and each false alarm."""
    lines = [
        "# Broken and healthy runs",
        "",
        "Written by `make gates`. Each fault is a patch of the product, in the product's own commands.",
        "",
    ]
    failures = [f"{key}: {outcome['problem']}" for key, outcome in outcomes.items() if outcome["problem"]]
    lines += _broken(outcomes) + _healthy(outcomes) + _margins(outcomes)
    return "\n".join(lines) + "\n", failures


def _broken(outcomes: dict[str, Outcome]) -> list[str]:
    lines = [
        "## Faults",
        "",
        "| fault | data | check | step | share of budget | value | bound | message |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in CASES:
        for data in case.data:
            if (outcome := outcomes.get(f"{data}: {case.name}")) is None:
                continue
            share = f"{outcome['share']:.2%}" if case.stage == "train" else f"0, at `{case.stage}`"
            cells = [case.name, data, outcome.get("check", "none"), outcome.get("step", ""), share]
            cells += [_number(outcome.get("value")), outcome.get("bound", ""), outcome.get("message", "")]
            if outcome["problem"]:
                cells[0] = f"**missed:** {case.name}"
            lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    lines += ["", "Not separable:", ""]
    return [*lines, *(f"- {name}: {reason}." for name, reason in NOT_SEPARABLE), ""]


def _healthy(outcomes: dict[str, Outcome]) -> list[str]:
    rows = [(run, outcomes[f"healthy: {run.name}"]) for run in HEALTHY if f"healthy: {run.name}" in outcomes]
    passed = sum(not outcome["problem"] for _, outcome in rows)
    unseen = sum(run.unseen for run, _ in rows)
    lines = [
        "## Healthy runs",
        "",
        f"{passed} of {len(rows)} pass every check; {unseen} have settings that were chosen after the constants were"
        " fixed.",
        "",
        "| run | data | variant | steps | ranks | unseen | alarms |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run, outcome in rows:
        cells = [run.name, run.data, run.variant, run.steps, run.ranks, "yes" if run.unseen else ""]
        lines.append("| " + " | ".join(map(str, [*cells, outcome["problem"] or "none"])) + " |")
    return [*lines, ""]


LARGE_IS_BAD = {"feed", "start", "learning", "ema", "identity", "data"}
"""Checks whose value must stay small; that of the others must be large, or near 1."""
NEAR_ONE = {"sampler", "samples"}


def _badness(check: str, value: float) -> float:
    if check in NEAR_ONE:
        return max(value, 1 / max(value, 1e-9)) if value > 0 else float("inf")
    return abs(value) if check in LARGE_IS_BAD else -value


def _margins(outcomes: dict[str, Outcome]) -> list[str]:
    """The worst healthy reading of each check, and the weakest sick one."""
    healthy = _worst_healthy(outcomes)
    sick = _weakest_sick(outcomes, {check: bound for check, (_, _, bound) in healthy.items()})
    lines = [
        "## Margins",
        "",
        "| check | bound | worst healthy | in | weakest sick | in |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for check, (value, name, bound) in healthy.items():
        weakest = sick.get(check)
        cells = [check, bound, _number(value), name, *((_number(weakest[0]), weakest[1]) if weakest else ("", ""))]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def _worst_healthy(outcomes: dict[str, Outcome]) -> dict[str, tuple[float, str, str]]:
    """Check -> (value, run, bound)."""
    worst: dict[str, tuple[float, str, str]] = {}
    for run in HEALTHY:
        for reading in outcomes.get(f"healthy: {run.name}", {}).get("readings", ()):
            value, check, bound = reading["value"], reading["check"], reading["bound"]
            # Before its deadline, or of a model that has not learned enough, a value has no bound.
            early = (check == "learning" and reading["step"] < _deadline(bound)) or "once the loss" in bound
            if value is None or early:
                continue
            if check not in worst or _badness(check, value) > _badness(check, worst[check][0]):
                worst[check] = (value, run.name, bound)
    return worst


def _weakest_sick(outcomes: dict[str, Outcome], bounds: dict[str, str]) -> dict[str, tuple[float, str]]:
    """Check -> (value, fault), of the quantity that has the same bound."""
    weakest: dict[str, tuple[float, str]] = {}
    for case in CASES:
        for data in case.data:
            outcome = outcomes.get(f"{data}: {case.name}", {})
            value, check = outcome.get("value"), outcome.get("check", "")
            if value is None or outcome["problem"] or outcome["bound"][:12] != bounds.get(check, "")[:12]:
                continue
            if check not in weakest or _badness(check, value) < _badness(check, weakest[check][0]):
                weakest[check] = (value, f"{case.name}, {data}")
    return weakest


def _deadline(bound: str) -> int:
    last = bound.rpartition(" ")[2]
    return int(last) if last.isdecimal() else 0


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
