"""Durations and sizes as users write them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspex.bus.errors import ConfigError
from dspex.bus.settings.duration import human, seconds, size


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("10s", 10),
        ("250ms", 0.25),
        ("1m30s", 90),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("7d", 7 * 86400),
        ("1d2h3m4s5ms", 93784.005),
        ("0s", 0),
        (0, 0),
        (2.5, 2.5),
        (timedelta(minutes=2), 120),
    ],
)
def test_a_duration_is_read_as_seconds(value: Any, expected: float) -> None:
    assert seconds(value) == pytest.approx(expected)


@pytest.mark.parametrize(
    "value",
    ["", "10", "s", "10 s", "10s ", "ten", "1m 30s", "-5s", "1.5.5s", "10S", "1y", -1, -0.001, True, None, b"1s", [],
     timedelta(seconds=-1), float("nan"), float("inf"), "9" * 400 + "d", "36501d", 1e18, timedelta(days=10**6)],
)  # fmt: skip
def test_an_invalid_duration_is_refused_with_an_example(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        seconds(value)
    assert caught.value.code == "DX102"


@given(st.integers(0, 36_500), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_the_unit_of_a_duration_multiplies_its_number(count: int, unit: str) -> None:
    factor = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    assert seconds(f"{count}{unit}") == pytest.approx(count * factor)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0", 0), ("512", 512), ("512B", 512), ("1KB", 1000), ("1KiB", 1024), ("1.5MiB", 3 << 19), ("2 GiB", 2 << 30),
     ("1gb", 10**9), (" 1kib ", 1024), (77, 77), (0, 0)],
)  # fmt: skip
def test_a_size_is_read_as_bytes(value: Any, expected: int) -> None:
    assert size(value) == expected


@pytest.mark.parametrize(
    "value", ["", "KiB", "1TB", "1 K", "-1", -1, "1.2.3", True, None, 1.5, "1KiB2", 1 << 63, "9" * 12 + "GiB"]
)
def test_an_invalid_size_is_refused_with_an_example(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        size(value)
    assert caught.value.code == "DX103"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.0 s"), (0.44, "0.4 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.96, "1 m 0 s"), (60, "1 m 0 s"),
     (200, "3 m 20 s"), (3599.9, "1 h 0 m"), (7500, "2 h 5 m"), (90000, "25 h 0 m")],
)  # fmt: skip
def test_seconds_are_shown_as_people_read_them(value: float, text: str) -> None:
    assert human(value) == text
