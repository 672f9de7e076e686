"""The result of a window, and the times that windows count with: whole microseconds since 1970, so that none is rounded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import floor, isfinite
from typing import Any, Final, Generic, TypeVar

from dspex.bus.errors import InvalidInput, LateEvent
from dspex.engine.graph.context import Rows
from dspex.engine.graph.nodes import Emitted
from dspex.operators.typing.names import OnError

T = TypeVar("T")
SECOND: Final = 1_000_000
_START: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST: Final = -62_135_596_800 * SECOND  # the years 1 to 9999
_LAST: Final = 253_402_300_799 * SECOND
_SHIFT: Final = 1 << 56  # makes names of times before 1970 sort, too


@dataclass(frozen=True)
class Windowed(Generic[T]):
    """What a window gives, once, when nothing can come into it any more.

    Attributes:
        key: whose events they were.
        start, end: of the window (UTC); the end is no part of it. That of a session lies its gap behind its last event, and an
            event exactly there would have been part of it.
        value: what was made of the events.

    In a sink it is a record of these fields.
    """

    key: str
    start: datetime
    end: datetime
    value: T


def micro(seconds: float) -> int:
    """Seconds as microseconds."""
    return round(seconds * SECOND)


def named(time: int) -> str:
    """A time as a name that sorts as the times do."""
    return f"{time + _SHIFT:018d}"


def time_of(name: str) -> int:
    """The time that `named` gave this name."""
    return int(name) - _SHIFT


def check_years(start: int, end: int) -> None:
    """Raise InvalidInput where a window lies partly in no year that a datetime has: nothing could say when it was."""
    if start < _FIRST or end > _LAST:
        why = "its window lies partly outside of the years 1 to 9999"
        raise InvalidInput(why, fix="correct the event time; or filter such events out before the window")


class Ends:
    """When windows end: `lateness` seconds after its end nothing comes into a window any more, and it gives its result.

    `within`: microseconds behind its end that are part of a window.
    """

    def __init__(self, lateness: float, late: OnError, *, within: int = 0) -> None:
        self.lateness, self._skips, self._within = lateness, late == "skip", within

    def ended(self, end: int, rows: Rows) -> bool:
        """Whether a window with this end has given its result, or is about to."""
        return self._due(end) <= rows.watermark

    def _due(self, end: int) -> float:
        return (end + self._within) / SECOND + self.lateness

    def first_open(self, end: int, every: int, rows: Rows) -> int:
        """The first of the ends `end`, `end + every`, … that has not ended."""
        if isfinite(rows.watermark):
            passed = floor((rows.watermark - self.lateness) * SECOND) - 1 - end
            end += max(passed // every, 0) * every
        while self.ended(end, rows):
            end += every
        return end

    def alarm(self, end: int, name: str, rows: Rows) -> None:
        """Wake the operator when the window has ended."""
        rows.alarm(self._due(end), name, mark=True, hold=_time_of_result(end))

    def goes_on(self, end: int, name: str, rows: Rows) -> bool:
        """Whether a window whose time has come waits for late events yet: `lateness` is longer now than when it was opened."""
        if self.ended(end, rows):
            return False
        self.alarm(end, name, rows)
        return True

    def late(self, end: int, rows: Rows) -> None:
        """An event came too late for its last window. Raises LateEvent, unless such events are skipped."""
        if not self._skips:
            more = f" and {self.lateness:g} s for late events" if self.lateness else ""
            at = moment(micro(rows.watermark)).isoformat()
            raise LateEvent(f"its window ended at {moment(end).isoformat()}{more}, and the watermark is {at}")


def moment(time: int) -> datetime:
    """Microseconds as a time."""
    return _START + timedelta(microseconds=time)


def _time_of_result(end: int) -> float:
    return (end - 1000) / SECOND


def result(rows: Rows, start: int, end: int, parts: Sequence[bytes]) -> Emitted:
    """What comes out of a window: an event of a run of its own, at the end of the window less a millisecond.

    `finished` puts it together. It is not done here, because it calls functions of the user's: the window is over also
    where one fails, and the letter has what it takes to make the result again.
    """
    unfinished = {"key": rows.key or "", "start": start, "end": end, "parts": list(parts)}
    return Emitted(rows.new_origin(_time_of_result(end)), unfinished, between=(start / SECOND, end / SECOND))


def finished(made: Callable[[Sequence[bytes]], Any]) -> Callable[[Any], Any]:
    """What makes a Windowed of what `result` gave, and of the record that a letter has. `made`: its value, of its parts."""

    def finish(data: Any) -> Any:
        names = data.keys() if isinstance(data, dict) else ()
        if names == {"key", "start", "end", "parts"}:
            return Windowed(data["key"], moment(data["start"]), moment(data["end"]), made(data["parts"]))
        if names == {"key", "start", "end", "value"}:
            start, end = datetime.fromisoformat(data["start"]), datetime.fromisoformat(data["end"])
            return Windowed(data["key"], start, end, data["value"])
        return data

    return finish
