"""What a window makes of its events: a number, a list, or what functions of the user's make of them.

What a window has so far is its sum, as bytes. Lists are kept as one row an event, so that a change costs what changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any, ClassVar, Final, cast

import msgpack

from dspex.bus.codecs.copied import copied
from dspex.bus.errors import DataError
from dspex.engine.graph.context import Rows
from dspex.operators.keyed.values import StateValues, begun, plain_value, values_of
from dspex.operators.keyed.windows.windowed import named
from dspex.operators.typing.functions import function_name

ITEM: Final = "i"
"""The names of rows that hold an event of a list begin with it, and then with its time."""


class Gives(ABC):
    """One of the four. `joins`: whether the sums of two parts of a window make that of the whole."""

    joins: ClassVar[bool] = True
    items: ClassVar[bool] = False  # whether it keeps the events themselves

    @abstractmethod
    def add(self, rows: Rows, sum: bytes | None, data: Any, time: int) -> bytes:
        """The sum with one more event; None: there was none yet."""

    @abstractmethod
    def join(self, first: bytes, second: bytes) -> bytes:
        """The sum of two parts, the earlier one first."""

    def parts(self, rows: Rows, sums: Sequence[bytes], start: int, end: int) -> Sequence[bytes]:
        """What the window gives, before functions of the user's put it together: `made` does. `end` is no part of it.

        `sums`: those of its parts, in the order of time.
        """
        return sums

    @abstractmethod
    def made(self, parts: Sequence[bytes]) -> Any:
        """What the window gives."""

    def forget(self, rows: Rows, start: int, end: int) -> None:  # noqa: B027  most keep none
        """Remove the events that were kept of this time."""

    def check(self, number: int) -> None:  # noqa: B027  most have no limit
        """Raise DataError where a window that has so many events may not have one more."""


class Count(Gives):
    """How many there were."""

    def add(self, rows: Rows, sum: bytes | None, data: Any, time: int) -> bytes:
        return cast("bytes", msgpack.packb(number_of(sum) + 1))

    def join(self, first: bytes, second: bytes) -> bytes:
        return cast("bytes", msgpack.packb(number_of(first) + number_of(second)))

    def made(self, parts: Sequence[bytes]) -> Any:
        return sum(map(number_of, parts))


class Collect(Gives):
    """A list of them, by their times. `limit`: how many at most."""

    items: ClassVar[bool] = True

    def __init__(self, limit: int | None, values: StateValues) -> None:
        self._limit, self._values = limit, values

    def add(self, rows: Rows, sum: bytes | None, data: Any, time: int) -> bytes:
        number = number_of(sum)
        rows.put(self._values.pack(data), f"{ITEM}{named(time)}.{number:08d}")
        return cast("bytes", msgpack.packb(number + 1))

    def join(self, first: bytes, second: bytes) -> bytes:
        return cast("bytes", msgpack.packb(number_of(first) + number_of(second)))

    def parts(self, rows: Rows, sums: Sequence[bytes], start: int, end: int) -> Sequence[bytes]:
        return [row for name in _names(rows, start, end) if (row := rows.row(name)) is not None]

    def made(self, parts: Sequence[bytes]) -> Any:
        return [self._values.unpack(part) for part in parts]

    def forget(self, rows: Rows, start: int, end: int) -> None:
        for name in _names(rows, start, end):
            rows.put(None, name)

    def check(self, number: int) -> None:
        if self._limit is not None and number >= self._limit:
            raise DataError(
                f"its window has {number:,} events already, and limit={self._limit} is how many it may have",
                code="DX514",
                fix="raise limit=, or use reduce or aggregate, which keep no events; then: dspex dlq redrive",
            )


class Reduce(Gives):
    """What `fn` makes of two of them, and of that and the next."""

    def __init__(self, fn: Callable[[Any, Any], Any], values: StateValues) -> None:
        self._fn, self._values = fn, values

    def add(self, rows: Rows, sum: bytes | None, data: Any, time: int) -> bytes:
        return self._values.pack(data if sum is None else self._fn(self._values.unpack(sum), data))

    def join(self, first: bytes, second: bytes) -> bytes:
        return self._values.pack(self._fn(self._values.unpack(first), self._values.unpack(second)))

    def made(self, parts: Sequence[bytes]) -> Any:
        return reduce(self._fn, map(self._values.unpack, parts))


class Aggregate(Gives):
    """A state that begins as `init()`, and becomes what `fold` makes of it and of each event."""

    joins: ClassVar[bool] = False

    def __init__(self, init: Callable[[], Any], fold: Callable[[Any, Any], Any]) -> None:
        self._init, self._fold = init, fold
        self._values = values_of(init)

    def add(self, rows: Rows, sum: bytes | None, data: Any, time: int) -> bytes:
        state = self._init() if sum is None else self._values.unpack(sum)
        return self._values.pack(folded(self._fold, state, copied(data)))  # it may change the data, which other windows have

    def join(self, first: bytes, second: bytes) -> bytes:
        raise AssertionError("two states have no sum")

    def made(self, parts: Sequence[bytes]) -> Any:
        return self._values.unpack(parts[0])


class AggregateAtTheEnd(Collect):
    """The same where windows grow together: the events are kept, and become one state when the window ends."""

    def __init__(self, init: Callable[[], Any], fold: Callable[[Any, Any], Any], values: StateValues) -> None:
        super().__init__(None, values)
        self._init, self._fold = init, fold
        begun(init)

    def made(self, parts: Sequence[bytes]) -> Any:
        return reduce(partial(folded, self._fold), map(self._values.unpack, parts), self._init())


def folded(fold: Callable[[Any, Any], Any], state: Any, data: Any) -> Any:
    """The next state. Raises DataError where it is None: what changes a state in place has to return it, too."""
    found = fold(state, data)
    if found is None:
        raise DataError(f"{function_name(fold)} returned no state", fix="return the new state")
    return found


def number_of(sum: bytes | None) -> int:
    """The sum of a count, and of a list."""
    return int(msgpack.unpackb(sum)) if sum is not None else 0


def shown_sum(rows: Mapping[str, bytes], sum: bytes, start: int, end: int, *, items: bool) -> Any:
    """What people are shown of what a window has so far. `items`: whether it keeps the events themselves."""
    if not items:
        return plain_value(sum)
    first, last = ITEM + named(start), ITEM + named(end)
    return [plain_value(row) for name, row in sorted(rows.items()) if first <= name < last]


def _names(rows: Rows, start: int, end: int) -> Sequence[str]:
    first, last = ITEM + named(start), ITEM + named(end)
    return [name for name in rows.subs() if first <= name < last]
