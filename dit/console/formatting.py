"""Formats of numbers in all output. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping

ABSENT = "–"


def format_count(count: int) -> str:
    """With commas: `675,129,632`."""
    return f"{count:,}"


def format_number(value: float) -> str:
    """With four significant digits: `0.1234`, `12.34`, `12,340`; very small or large numbers as `1.2e-05`."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if 1e-4 <= abs(value) < 1e9:
        digits = max(0, 3 - math.floor(math.log10(abs(value))))
        return f"{value:,.{digits}f}"
    return f"{value:.3g}"


def format_duration(seconds: float) -> str:
    """With at most two units: `12 ms`, `5.2 s`, `1m 02s`, `1h 02m`, `3d 04h`."""
    if not math.isfinite(seconds):
        return f"{seconds:g} s"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 1440:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d {hours % 24:02d}h"


def format_bytes(count: float) -> str:
    """In powers of 1024: `512 B`, `1.5 KiB`, `2.7 GiB`."""
    if not math.isfinite(count):
        return f"{count:g} B"
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log(max(count, 1), 1024) + 1e-4), len(units) - 1)
    return f"{count / 1024**power:.{1 if power else 0}f} {units[power]}"


def format_hours(hours: float) -> str:
    """For plans, with two digits: `20 s`, `12 min`, `3.2 h`, `1,300 h`."""
    if hours < 0.99 / 60:
        return f"{3600 * hours:.0f} s"
    if hours < 0.99:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 9.95 else f"{float(f'{hours:.2g}'):,.0f} h"


def format_disk(count: float) -> str:
    """In powers of 1000, as disks are sold: `3.8 MB`, `41 GB`, `1.2 TB`."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}" if count < 9.95 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def format_parameters(count: int) -> str:
    """With three digits: `50.5 k`, `675 M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count}"


def format_flops(count: float) -> str:
    """With three digits: `9.47e18`."""
    return f"{count:.2e}".replace("e+", "e")


def format_rate(per_second: float, unit: str) -> str:
    """With its unit: `1,234 images/s`, `0.0813 steps/s`."""
    return f"{per_second:,.0f} {unit}/s" if per_second >= 100 else f"{per_second:.3g} {unit}/s"


def format_share(done: int, total: int, unit: str) -> str:
    """With its percentage: `80/800 steps (10 %)`."""
    percent = f" ({100 * done // total} %)" if total > 0 else ""
    return f"{format_count(done)}/{format_count(total)} {unit}{percent}"


def format_info(info: Mapping[str, float | str]) -> list[str]:
    """One text such as `loss 0.1234` per entry."""
    return [f"{name} {value if isinstance(value, str) else format_number(value)}" for name, value in info.items()]
