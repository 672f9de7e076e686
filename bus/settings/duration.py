"""Durations and sizes as users write them: `"1m30s"`, `"256KiB"`."""

from __future__ import annotations

import re
from datetime import timedelta
from functools import lru_cache
from typing import TypeAlias

from dspex.bus.errors import ConfigError

Duration: TypeAlias = str | float | int | timedelta

LONGEST = 36_500 * 86400.0  # a hundred years; a server counts nanoseconds in 64 bits
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KB|KiB|MB|MiB|GB|GiB)?", re.IGNORECASE)
MOST = 1 << 63  # bytes
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kMG]?)(\s*USD)?")
_THOUSANDS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_WINDOWS = {
    **dict.fromkeys(("s", "second"), 1.0),
    **dict.fromkeys(("min", "minute"), 60.0),
    **dict.fromkeys(("h", "hour"), 3600.0),
    **dict.fromkeys(("d", "day"), 86400.0),
}
_SIZES = {"b": 1, "kb": 10**3, "kib": 2**10, "mb": 10**6, "mib": 2**20, "gb": 10**9, "gib": 2**30}


def seconds(value: Duration) -> float:
    """A duration in seconds: `"10s"`, `"1h30m"`, `"7d"`, a number of seconds, or a timedelta.

    Raises ConfigError (DX102) for anything else, a negative value among them.
    """
    if isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        result = float(value)
    elif isinstance(value, str) and (of_text := _of_text(value)) is not None:
        result = of_text
    else:
        raise ConfigError(f"{value!r} is not a duration", code="DX102", fix='write "10s", "1m", "1h30m", "7d" or seconds')
    if not 0 <= result <= LONGEST:  # NaN fails both comparisons
        fix = "a duration is zero seconds or more, and at most 36500d"
        raise ConfigError(f"{value!r} is negative, or no time that anybody waits", code="DX102", fix=fix)
    return result


@lru_cache(1024)
def _of_text(value: str) -> float | None:
    """None: it is no duration. Kept, because each call of a client has one, and most have the same."""
    if not value or _PART.sub("", value):
        return None
    return sum(float(n) * _UNITS[u] for n, u in _PART.findall(value))


def size(value: str | int) -> int:
    """A size in bytes: `"256KiB"`, `"1GB"` or a number. Raises ConfigError (DX103)."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST:
        return value
    if isinstance(value, str) and (m := _SIZE.fullmatch(value.strip())):
        found = float(m[1]) * _SIZES[(m[2] or "B").lower()]
        if found < MOST:
            return int(found)
    raise ConfigError(f"{value!r} is not a size", code="DX103", fix='write "512MiB", "1GB" or a number of bytes')


def amount(value: str | float, *, money: bool = False) -> float:
    """How much, over 0: a number, `"200k"`, `"1.5M"`; of money `"50 USD"`. Raises ConfigError (DX105)."""
    found = _AMOUNT.fullmatch(value.strip()) if isinstance(value, str) else None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        result = float(value)
    elif found is not None and (money or not found[3]):
        result = float(found[1]) * _THOUSANDS[found[2]]
    else:
        result = 0.0
    if not 0 < result < 1e15:
        example = '"50 USD"' if money else '1000, "200k" or "1.5M"'
        raise ConfigError(f"{value!r} is no amount over 0", code="DX105", fix=f"write {example}")
    return result


def rate(value: object, *, money: bool = False) -> tuple[float, float]:
    """How much in how many seconds: `"600/min"`, `"200k/min"`, `"50 USD/day"`. Raises ConfigError (DX105)."""
    much, _, window = value.partition("/") if isinstance(value, str) else ("", "", "")
    if window.strip() not in _WINDOWS:
        example = '"50 USD/day"' if money else '"600/min" or "200k/min"'
        raise ConfigError(f"{value!r} is no amount in a time", code="DX105", fix=f"write {example}: per s, min, h or day")
    return amount(much, money=money), _WINDOWS[window.strip()]


def human(value: float) -> str:
    """Seconds as people read them: `0.4 s`, `3 m 20 s`, `2 h 5 m`."""
    if round(value) < 60:
        return f"{value:.1f} s" if round(value, 1) < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} m {rest} s"
    return f"{minutes // 60} h {minutes % 60} m"
