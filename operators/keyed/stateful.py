"""stateful: a function with a value for each key, which it may change, and which wakes it later if it wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack

from dspex.bus.codecs.copied import copied
from dspex.bus.errors import DataError
from dspex.engine.graph.context import Handler, Rows
from dspex.engine.graph.nodes import Emitted, State
from dspex.operators.keyed.values import StateValues, plain_value, values_of
from dspex.operators.operator import Operator
from dspex.operators.parameters import CallableParameter, DurationParameter
from dspex.operators.stateless.flat_map import items
from dspex.operators.typing.functions import function_name

TTL = "ttl"


class Stateful:
    """The function with its state. That of a key is one row: (event time of its last use, the value).

    The timer of the TTL is set anew only when it fires, because most events of a key come before.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        init: Callable[[], Any],
        on_wake: Callable[..., Any] | None,
        ttl: float | None,
        values: StateValues | None = None,
    ) -> None:
        self._fn, self._init, self._on_wake, self._ttl = fn, init, on_wake, ttl
        self._values = values or values_of(init)

    def step(self, out: Handler, inlet: int) -> Callable[[Any, Rows], None]:
        def run(data: Any, rows: Any) -> None:
            row, rows.waking = rows.row(), None
            before, packed = msgpack.unpackb(row) if row is not None else (rows.origin.time, None)
            if packed is not None and self._ttl is not None and rows.origin.time >= before + self._ttl:
                before, packed = rows.origin.time, None  # as if the watermark had said so already, which comes when it comes
                rows.no_alarm()
            state = self._values.unpack(packed) if packed is not None else self._init()
            found = self._saved(rows, self._fn(state, data, rows), self._fn, max(before, rows.origin.time))
            for item in found[:-1]:  # they may share what a function behind them changes
                out(copied(item), rows)
            for item in found[-1:]:
                out(item, rows)

        return run

    def state(self) -> State:
        """What the engine runs of it."""
        clocked = self._on_wake is not None
        return State(self.step, self.woken, event_time=self._ttl is not None, shown=self.shown, clocked=clocked)

    def _saved(self, rows: Any, found: object, of: Callable[..., Any], used: float) -> list[object]:
        """Keep what the function made of the state, and set the timer that it asked for; what it lets out."""
        if not isinstance(found, tuple) or len(found) != 2:
            raise DataError(f"{function_name(of)} returned no pair (state, outputs)", fix="return state, [output, …]")
        state, out = found
        outputs = items(out, function_name(of), "stateful")
        if rows.waking is not None and self._on_wake is None:
            why = f"{function_name(of)} asked to be woken, and there is no on_wake"
            raise DataError(why, fix="add on_wake=, or do not ask")
        if state is None:
            rows.put(None)
            rows.no_alarm()
            rows.no_alarm(TTL)
            return outputs
        rows.put(msgpack.packb([used, self._values.pack(state)]))
        if self._ttl is not None and rows.alarm_at(TTL) is None:
            rows.alarm(used + self._ttl, TTL, mark=True)
        if rows.waking is not None:
            rows.alarm(rows.clock + rows.waking)
        return outputs

    def shown(self, rows: Mapping[str, bytes]) -> Any:
        """The state of a key as the function has it."""
        return self._values.unpack(msgpack.unpackb(rows[""])[1])

    def woken(self, rows: Any, name: str) -> Sequence[Emitted]:
        row, rows.waking = rows.row(), None
        if row is None:
            return ()
        used, packed = msgpack.unpackb(row)
        if name == TTL:
            if self._ttl is None:
                return ()  # a version before this one had one
            if used + self._ttl > rows.watermark:
                rows.alarm(used + self._ttl, TTL, mark=True)
            else:
                rows.put(None)
                rows.no_alarm()
            return ()
        if self._on_wake is None:
            return ()
        # It was not used: being woken does not put off the end of its time. What comes out is later than all that was said to.
        found = self._saved(rows, self._on_wake(self._values.unpack(packed), rows), self._on_wake, used)
        time = max(used, rows.watermark)
        return [Emitted(rows.child()._replace(time=time), item) for item in found]


def shown(rows: Mapping[str, bytes], form: str = "") -> Any:
    """The state of a key; of a model or a dataclass its fields."""
    return plain_value(msgpack.unpackb(rows[""])[1])


def build(
    fn: Callable[..., Any],
    init: Callable[[], Any],
    on_wake: Callable[..., Any] | None = None,
    ttl: float | None = None,
) -> State:
    """A function with state."""
    return Stateful(fn, init, on_wake, ttl).state()


OPERATOR = Operator(
    "stateful",
    main=CallableParameter(
        takes=("state", "data", "ctx"),
        doc="gives `state, [output, …]`; a state of `None` forgets the key",
    ),
    options={
        "init": CallableParameter(takes=(), doc="makes the state of a key that has none; called once at build, too"),
        "on_wake": CallableParameter(
            None, takes=("state", "ctx"), doc="called when the time comes that `ctx.wake(after)` asked for; gives the same"
        ),
        "ttl": DurationParameter(None, zero=False, doc="forget a key after so much event time without an event of it"),
    },
    build=build,
    keyed=True,
    shown=shown,
)
