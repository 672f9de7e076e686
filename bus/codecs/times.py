"""Times in headers: of an event, and until when one waits."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from dspex.bus import subjects
from dspex.bus.errors import DecodeError

MOST_AHEAD: Final = 366 * 86400.0
"""Seconds that an event may wait after it was stored: a time beyond that is a mistake, and nobody would see the event."""


def is_time(seconds: float) -> bool:
    """Whether it can be a time of an event, in seconds since the epoch: in one of the years that a datetime has."""
    return -62_135_596_800 <= seconds < 253_402_300_800


def moment(text: str) -> datetime:
    """A time in UTC, which is meant where none else is said. Raises ValueError, or OverflowError where UTC has none such."""
    at = datetime.fromisoformat(text)
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


def due(headers: Mapping[str, str], stored: float) -> float | None:
    """Until when an event waits, in seconds since the epoch; None where it does not. `stored`: when it was.

    Seconds after it was stored, as `+90`, are on the server's clock; a time is the publisher's. Raises DecodeError.
    """
    text = headers.get(subjects.AT)
    if text is None:
        return None
    try:
        at = stored + float(text) if text.startswith("+") else moment(text).timestamp()
    except (ValueError, OverflowError):
        at = float("nan")
    if not (is_time(at) and at - stored <= MOST_AHEAD):
        why = f"{subjects.AT} is {text[:80]!r}: no time, or one more than {MOST_AHEAD / 86400:g} days after it was stored"
        raise DecodeError(why, fix="an RFC 3339 time, or seconds as +90; dspex publish --at and --after write it")
    return at
