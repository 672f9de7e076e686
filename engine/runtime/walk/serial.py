"""order="serial": of the events of a key one at a time is with the call, and the next one is asked for when that has landed.

The others wait before the call, each a row of the call's node, in the order in which they came. The row "" says that the key is
taken, and which rows wait, from number to number. What closes the call of a key lets the next one go on: it makes the timer of
the key due, which is an arrival of its own, behind the commit with all that came of the call before it.

The timer is also due once a minute: it then looks whether the call is still open. That is for what was cut off by a crash in
the middle of an event so large that it is committed in parts, whose first call may have ended meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import msgpack

from dspex.bus import codecs
from dspex.bus.records import NodeEvent, Origin
from dspex.engine.graph.context import Handler, Rows
from dspex.engine.graph.nodes import CallNode, Emitted, State, StateNode
from dspex.engine.log.rows import Timer
from dspex.engine.log.tables import Change, Tables

LOOK: Final = 60.0  # seconds between two looks whether the call of a key is still open
HOLD: Final = 3600.0  # seconds for which an event that waits holds the watermark, at most
_SERIAL: Final = "serial"


def before(call: CallNode) -> StateNode:
    """What stands before a call: it has rows and timers under the call's name. Behind it is `opening`."""

    def step(out: Handler, inlet: int) -> Callable[[Any, Rows], None]:
        def run(data: Any, rows: Rows) -> None:
            if (taken := rows.row()) is None:
                rows.put(_packed(0, 0))
                out(data, rows)
                return
            _, first, last = msgpack.unpackb(taken)
            body, content_type = codecs.encode(data, "auto")
            rows.put(msgpack.packb([list(rows.child()), content_type, body]), _number(last))
            rows.alarm(rows.clock + HOLD, _number(last), hold=rows.origin.time)
            rows.put(_packed(first, last + 1))

        return run

    def woken(rows: Rows, name: str) -> Sequence[Emitted]:
        taken = rows.row()
        if name or taken is None:
            return ()  # it has held the watermark for long enough
        _, first, last = msgpack.unpackb(taken)
        tables: Tables = cast("Any", rows).tables
        if tables.calls.turn(call.name, rows.key) is not None:
            rows.alarm(rows.clock + LOOK)
            return ()
        if first == last:
            rows.put(None)
            return ()
        row = rows.row(_number(first))
        rows.put(None, _number(first))
        rows.no_alarm(_number(first))
        rows.put(_packed(first + 1, last))
        rows.alarm(rows.clock)  # where it fails at the call, the next one has its turn at once
        return [_event(row)] if row is not None else ()

    return StateNode(name=call.name, op=call.op, state=State(step, woken, form=_SERIAL))


def opening(ask: Handler) -> Handler:
    """The step that makes the call whose turn it is. `ask`: the call's own."""

    def step(data: Any, walk: Any) -> None:
        ask(data, walk)
        walk.alarm(walk.clock + LOOK)

    return step


def where_keyed(gate: Handler, ask: Handler) -> Handler:
    """The step at a call whose events are in order where they have a key, and are asked for at once where not."""

    def step(data: object, walk: Any) -> None:
        (gate if walk.origin.key else ask)(data, walk)

    return step


def freed(tables: Tables, node: str, key: str | None, clock: float) -> tuple[Change, ...]:
    """What the end of the last open call of a key changes: the next one that waits has its turn."""
    at = (node, key or "", "")
    number = tables.timers.of(*at)
    if (taken := tables.keyed.rows.get(at)) is None or number is None:
        return ()
    _, first, last = msgpack.unpackb(taken)
    if first == last:
        return ("keyed", at, None), ("timers", number, None)
    return (("timers", number, tables.timers.rows[number]._replace(due=clock)),)


def left_behind(tables: Tables, timer: Timer) -> list[NodeEvent]:
    """The events that wait before a call which the topology has no more, of the key of a timer."""
    if not is_serial(tables.keyed.rows.get((timer.node, timer.key, ""))):
        return []
    rows = [tables.keyed.rows[timer.node, timer.key, sub] for sub in sorted(tables.keyed.subs(timer.node, timer.key))]
    return [NodeEvent(timer.node, Origin(*origin), kind, body) for origin, kind, body in map(msgpack.unpackb, rows)]


def is_serial(row: bytes | None) -> bool:
    """Whether the row "" of a key is one of those before a call."""
    return row is not None and row[:8].endswith(_SERIAL.encode())


def _packed(first: int, last: int) -> bytes:
    return bytes(msgpack.packb([_SERIAL, first, last]) or b"")


def _number(n: int) -> str:
    """A sub-key that sorts as the number does."""
    return f"{n:016d}"


def _event(row: bytes) -> Emitted:
    origin, content_type, body = msgpack.unpackb(row)
    return Emitted(Origin(*origin), codecs.decode(body, content_type))
