"""Formats of numbers."""

from __future__ import annotations

import pytest

from dit.console.formatting import (
    format_bytes,
    format_count,
    format_disk,
    format_duration,
    format_flops,
    format_hours,
    format_number,
    format_parameters,
    format_rate,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_count(675129632), "675,129,632"),
        (format_number(0.0), "0"),
        (format_number(0.123456), "0.1235"),
        (format_number(118.6432), "118.6"),
        (format_number(-12345.6), "-12,346"),
        (format_number(1.234e-7), "1.23e-07"),
        (format_number(float("nan")), "nan"),
        (format_duration(0.0123), "12 ms"),
        (format_duration(float("nan")), "nan s"),
        (format_duration(float("inf")), "inf s"),
        (format_bytes(float("nan")), "nan B"),
        (format_duration(5.21), "5.2 s"),
        (format_duration(59.99), "1m 00s"),
        (format_duration(62), "1m 02s"),
        (format_duration(3599.9), "1h 00m"),
        (format_duration(3725), "1h 02m"),
        (format_duration(86399), "1d 00h"),
        (format_duration(3 * 86400 + 4 * 3600), "3d 04h"),
        (format_bytes(512), "512 B"),
        (format_bytes(1023), "1023 B"),
        (format_bytes(1536), "1.5 KiB"),
        (format_bytes(2**20), "1.0 MiB"),
        (format_bytes(2.7 * 2**30), "2.7 GiB"),
        (format_bytes(5e15), "4547.5 TiB"),
        (format_hours(0.004), "14 s"),
        (format_hours(0.2), "12 min"),
        (format_hours(3.21), "3.2 h"),
        (format_hours(1286.0), "1,300 h"),
        (format_disk(512), "512 B"),
        (format_disk(3.84e6), "3.8 MB"),
        (format_disk(41.2e9), "41 GB"),
        (format_parameters(675129632), "675 M"),
        (format_flops(9.4712e18), "9.47e18"),
        (format_rate(1234.4, "images"), "1,234 images/s"),
        (format_rate(0.08131, "steps"), "0.0813 steps/s"),
    ],
)
def test_a_number_has_its_format(text: str, expected: str) -> None:
    assert text == expected
