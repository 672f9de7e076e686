"""lookup: each event with the latest value of its key in another stream, the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any, Final

from dspex.bus.codecs import decode, encode
from dspex.engine.graph.context import Handler, Rows
from dspex.engine.graph.nodes import Emitted, State
from dspex.operators.keyed.kept import KeptData, after, packed, pairs, two, unpacked
from dspex.operators.operator import Operator
from dspex.operators.parameters import DurationParameter, NothingParameter
from dspex.operators.typing.shape import UNKNOWN

NOTHING: Final = (-inf, "", b"")
REMEMBERED: Final = 86400.0
"""Seconds of event time for which it is known that a key has no value any more, where values are kept for ever."""


class _Lookup:
    """One row a key: (event time, content type, data) of the latest value.

    A key that lost its value has a row, too, without a content type: what is older and comes later does not bring it back. That
    row goes once what is older would be forgotten as well, or after a day.
    """

    def __init__(self, ttl: float | None, data: KeptData, table: KeptData) -> None:
        self._ttl, self._data, self._table = ttl, data, table

    def step(self, out: Handler, inlet: int) -> Callable[[Any, Rows], None]:
        def look(data: Any, rows: Rows) -> None:
            time, content_type, body = unpacked(rows.row(), NOTHING)
            over = self._ttl is not None and rows.origin.time > time + self._ttl  # also before the watermark says so
            value = self._table.data(body, content_type) if content_type and not over else None
            out((self._data.data(*encode(data, "auto")), value), rows)

        return self._set if inlet else look

    def _set(self, data: Any, rows: Rows) -> None:
        time, row = rows.origin.time, rows.row()
        if row is not None and unpacked(row, None)[0] > time:
            return
        body, content_type = encode(data, "auto") if data is not None else (b"", "")
        rows.put(packed([time, content_type, body]))
        kept = self._kept(content_type)
        if kept is not None and rows.alarm_at() is None:
            rows.alarm(after(time + kept), mark=True)

    def _kept(self, content_type: str) -> float | None:
        """Seconds for which a row is kept; None for ever."""
        return REMEMBERED if self._ttl is None and not content_type else self._ttl

    def woken(self, rows: Rows, name: str) -> Sequence[Emitted]:
        time, content_type, _ = unpacked(rows.row(), NOTHING)
        kept = self._kept(content_type)
        if kept is None:
            return ()
        if (ends := after(time + kept)) > rows.watermark:
            rows.alarm(ends, mark=True)
        else:
            rows.put(None)
        return ()


def shown(rows: Mapping[str, bytes], form: str) -> Any:
    """The value that events find now."""
    _, content_type, body = unpacked(rows[""], None)
    return decode(body, content_type) if content_type else None


def build(main: object, ttl: float | None = None, *, typed: Sequence[object] = (None, None)) -> State:
    """The latest value of each key. Where both come from stored sources, the table is read to its end first."""
    data, table = (KeptData(of) for of in two("lookup", typed))
    lookup = _Lookup(ttl, data, table)
    return State(lookup.step, lookup.woken, event_time=True, form="lookup", first=(1,), read=pairs(data, table))


OPERATOR = Operator(
    "lookup",
    main=NothingParameter(),
    options={"ttl": DurationParameter(None, zero=False, doc="forget a value after so much event time")},
    build=build,
    shape=lambda shape, o: UNKNOWN,
    many_inputs=True,
    keyed=True,
    typed=True,
    shown=shown,
)
