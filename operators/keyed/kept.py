"""What operators keep of events that go on later: the event under an id of its own, and its data as a hop would carry it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf, nextafter
from typing import Any, Final

import msgpack

from dspex.bus.codecs import decode, encode, msgpack_bytes
from dspex.bus.records import Origin
from dspex.engine.graph.nodes import Emitted
from dspex.operators.native.problems import problem
from dspex.operators.typing.shape import reader

HOLD: Final = 3600.0
"""Seconds for which an event that waits on the clock of the engine holds the watermark, at most."""


def keep(origin: Origin, data: object) -> bytes:
    """An event as bytes. Raises InvalidInput for data that cannot be written."""
    body, content_type = encode(data, "auto")
    return msgpack_bytes([list(origin), content_type, body])


class KeptData:
    """Reads data that was kept. It is as behind a hop: plain, or of the type that the stream has. `typed`: that type."""

    def __init__(self, typed: object) -> None:
        self._typed = reader(typed)

    def read(self, data: Any) -> Any:
        """The data, from plain data."""
        return self._typed(data) if self._typed is not None else data

    def data(self, body: bytes, content_type: str) -> Any:
        """The data that was encoded."""
        return self.read(decode(body, content_type))

    def event(self, row: bytes) -> Emitted:
        """The event that `keep` wrote."""
        origin, content_type, body = msgpack.unpackb(row)
        return Emitted(Origin(*origin), self.data(body, content_type))


def shown_event(row: bytes) -> Any:
    """What people are shown of an event that `keep` wrote: its data."""
    _, content_type, body = msgpack.unpackb(row)
    return decode(body, content_type)


def in_order(rows: Mapping[str, bytes]) -> list[bytes]:
    """The rows with sub-keys, in their order."""
    return [row for sub, row in sorted(rows.items()) if sub]


def two(operator: str, given: Sequence[object]) -> Sequence[object]:
    """What is given of each of two streams. Raises TopologyError (DX204) for another number of them."""
    if len(given) > 2:
        raise problem(
            "DX204", f"{operator} takes two streams, and was given {len(given)}", f"one after another: a.{operator}(b, …)"
        )
    return [*given, *[None] * (2 - len(given))]


def pairs(left: KeptData, right: KeptData) -> Callable[[Any], Any]:
    """What reads a pair, of which the second may be missing."""
    return lambda data: (left.read(data[0]), None if data[1] is None else right.read(data[1]))


def number(n: int) -> str:
    """A sub-key that sorts as the number does."""
    return f"{n:016d}"


def after(time: float) -> float:
    """The first moment at which a watermark says that nothing of this time follows any more."""
    return nextafter(time, inf)


def unpacked(row: bytes | None, default: Any) -> Any:
    """What a row of plain values holds."""
    return msgpack.unpackb(row) if row is not None else default


def packed(value: object) -> bytes:
    """Plain values as a row."""
    return bytes(msgpack.packb(value) or b"")
