"""session_window: a window lasts as long as there is an event of the key within each `gap`.

An event exactly `gap` behind the last one still belongs to it, as in Kafka Streams, Flink and Bytewax: else events that come
every ten seconds would make no session of ten. So a session is over only when the watermark has passed its end.
All open sessions of a key are one row, because an event may make several of them one. A session is known by the number that it
got when it was opened; of sessions that grow together the lowest stays. Its timer is set anew only when it fires.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgpack

from dspex.engine.graph.context import Handler, Rows
from dspex.engine.graph.nodes import Emitted, State
from dspex.operators.keyed.windows.gives import Gives, number_of, shown_sum
from dspex.operators.keyed.windows.options import GIVES, OPTIONS, gives_of, milliseconds, shape
from dspex.operators.keyed.windows.windowed import Ends, check_years, finished, micro, moment, result
from dspex.operators.operator import Operator
from dspex.operators.parameters import DurationParameter
from dspex.operators.typing.names import OnError


class Session(NamedTuple):
    """An open session.

    Attributes:
        number: by which it is known. first, last: times of its first and of its last event. sum: of all of them.
        timed: the end that its timer is set for, which may have been put off since.
    """

    number: int
    first: int
    last: int
    sum: bytes | None
    timed: int


class _Sessions:
    """Sessions that end `gap` microseconds behind their last event."""

    def __init__(self, gap: int, ends: Ends, gives: Gives) -> None:
        self._gap, self._ends, self._gives = gap, ends, gives

    def step(self, out: Handler, inlet: int) -> Callable[[Any, Rows], None]:
        def run(data: Any, rows: Rows) -> None:
            time, sessions = micro(rows.origin.time), _read(rows)
            mine = [s for s in sessions if s.first - self._gap <= time <= s.last + self._gap]
            others = [s for s in sessions if s not in mine]
            one = self._joined(mine, time, 1 + max((s.number for s in sessions), default=-1))
            if self._ends.ended(one.last + self._gap, rows):
                self._ends.late(one.last + self._gap, rows)
                return
            check_years(one.first, one.last + self._gap)
            if self._gives.items:
                self._gives.check(number_of(one.sum))
            one = one._replace(sum=self._gives.add(rows, one.sum, data, time))
            _write([*others, one], rows)
            for gone in mine:
                if gone.number != one.number:
                    rows.no_alarm(str(gone.number))
            if not mine:
                self._ends.alarm(one.timed, str(one.number), rows)

        return run

    def _joined(self, sessions: Sequence[Session], time: int, number: int) -> Session:
        """The session that an event belongs to, without the event: those that it lies in or between, as one."""
        sum: bytes | None = None
        for s in sessions:
            sum = s.sum if sum is None or s.sum is None else self._gives.join(sum, s.sum)
        first, last = min([time, *(s.first for s in sessions)]), max([time, *(s.last for s in sessions)])
        oldest = min(sessions, default=Session(number, first, last, None, last + self._gap))
        return Session(oldest.number, first, last, sum, oldest.timed)

    def woken(self, rows: Rows, name: str) -> Sequence[Emitted]:
        sessions = _read(rows)
        one = next((s for s in sessions if str(s.number) == name), None)
        if one is None:
            return ()
        end = one.last + self._gap
        others = [s for s in sessions if s is not one]
        if end != one.timed:  # also where it has ended meanwhile: others end before it
            _write([*others, one._replace(timed=end)], rows)
            self._ends.alarm(end, name, rows)
            return ()
        if self._ends.goes_on(end, name, rows):
            return ()
        made = result(rows, one.first, end, self._gives.parts(rows, [one.sum or b""], one.first, one.last + 1))
        _write(others, rows)
        self._gives.forget(rows, one.first, one.last + 1)
        return [made]


def _read(rows: Rows) -> list[Session]:
    row = rows.row()
    return [Session(*raw) for raw in msgpack.unpackb(row)] if row is not None else []


def _write(sessions: Sequence[Session], rows: Rows) -> None:
    rows.put(msgpack.packb(sorted(sessions, key=lambda s: s.first)) if sessions else None)


def shown(rows: Mapping[str, bytes], form: str) -> list[dict[str, Any]]:
    """The open sessions with what they have so far: the times of their first and last events, and the value."""
    found, items = list[dict[str, Any]](), form.split()[1] in ("collect", "aggregate")
    for s in (Session(*raw) for raw in msgpack.unpackb(rows[""])):
        value = shown_sum(rows, s.sum or b"", s.first, s.last + 1, items=items)
        found.append({"first": moment(s.first), "last": moment(s.last), "value": value})
    return found


def build(gap: float, *, lateness: float = 0, late: OnError = "dead_letter", typed: object = None, **o: Any) -> State:
    """Sessions. Raises TopologyError for what does not go together."""
    gives = gives_of(o, typed, merging=True)
    sessions = _Sessions(micro(milliseconds("session_window", gap)), Ends(lateness, late, within=1), gives)
    form = f"session {next(name for name in GIVES if o[name] is not None)}"
    delay = lateness + 0.001  # a session may open whose end the watermark has just reached, and its result is before that
    return State(sessions.step, sessions.woken, delay=delay, event_time=True, form=form, finish=finished(gives.made))


OPERATOR = Operator(
    "session_window",
    main=DurationParameter(zero=False, doc="a session ends so long after its last event"),
    options=OPTIONS,
    build=build,
    shape=shape,
    keyed=True,
    one_of=GIVES,
    typed=True,
    shown=shown,
)
