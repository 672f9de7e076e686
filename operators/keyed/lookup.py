"""lookup: each event with the latest value of its key in another stream, the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dspex.bus.codecs import decode, encode
from dspex.engine.graph.context import Handler, Rows
from dspex.engine.graph.nodes import Emitted, State
from dspex.operators.keyed.kept import KeptData, after, packed, pairs, two, unpacked
from dspex.operators.operator import Operator
from dspex.operators.parameters import DurationParameter, NothingParameter
from dspex.operators.typing.shape import UNKNOWN


class _Lookup:
    """One row a key: (event time, content type, data) of the latest value."""

    def __init__(self, ttl: float | None, data: KeptData, table: KeptData) -> None:
        self._ttl, self._data, self._table = ttl, data, table

    def step(self, out: Handler, inlet: int) -> Callable[[Any, Rows], None]:
        def look(data: Any, rows: Rows) -> None:
            row = rows.row()
            value = None
            if row is not None:
                _, content_type, body = unpacked(row, None)
                value = self._table.data(body, content_type)
            out((self._data.data(*encode(data, "auto")), value), rows)

        return self._set if inlet else look

    def _set(self, data: Any, rows: Rows) -> None:
        time, row = rows.origin.time, rows.row()
        if row is not None and unpacked(row, None)[0] > time:
            return
        if data is None:  # the key has no value any more
            rows.put(None)
            rows.no_alarm()
            return
        body, content_type = encode(data, "auto")
        rows.put(packed([time, content_type, body]))
        if self._ttl is not None and rows.alarm_at() is None:
            rows.alarm(after(time + self._ttl), mark=True)

    def woken(self, rows: Rows, name: str) -> Sequence[Emitted]:
        row = rows.row()
        if row is not None and self._ttl is not None:
            ends = after(unpacked(row, None)[0] + self._ttl)
            if ends > rows.watermark:
                rows.alarm(ends, mark=True)
                return ()
        rows.put(None)
        return ()


def shown(rows: Mapping[str, bytes], form: str) -> Any:
    """The value that events find now."""
    _, content_type, body = unpacked(rows[""], None)
    return decode(body, content_type)


def build(main: object, ttl: float | None = None, *, typed: Sequence[object] = (None, None)) -> State:
    """The latest value of each key. Where both come from stored sources, the table is read to its end first."""
    data, table = (KeptData(of) for of in two("lookup", typed))
    lookup = _Lookup(ttl, data, table)
    event_time = ttl is not None
    return State(lookup.step, lookup.woken, event_time=event_time, form="lookup", first=(1,), read=pairs(data, table))


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
