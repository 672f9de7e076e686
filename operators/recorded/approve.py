"""approve: an event waits until a person has decided about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal

from dspex.bus.codecs import encode
from dspex.bus.errors import Cancelled, DataError, DspexError, InvalidInput, Reject
from dspex.engine.graph.approvals import Decision, Waiting
from dspex.engine.graph.context import Handler, Rows
from dspex.engine.graph.nodes import Emitted, State
from dspex.operators.keyed.kept import HOLD, KeptData
from dspex.operators.native.problems import problem
from dspex.operators.operator import Operator
from dspex.operators.parameters import ChoiceParameter, DurationParameter, FieldNamesParameter, NothingParameter
from dspex.operators.typing.shape import record_of

OnTimeout = Literal["dead_letter", "pass", "drop"]


_AGAIN: Final = "redriven, it waits for another decision: dspex dlq redrive"
_LONGEST: Final = 1000  # characters of an edit that an error tells
_FOR_GOOD: Final = 100 * 365 * 86400.0  # seconds


class _Approve:
    """One row an event, under the id that the event has when it goes on, which is that of the approval; and a timer, which
    holds the watermark, and ends the time that there is for a decision.

    A decision is written into the row, and the timer is due at once: so a letter of what fails behind the operator carries the
    event, and the decision is final.
    """

    def __init__(self, show: tuple[str, ...] | None, timeout: float | None, on_timeout: OnTimeout, read: KeptData) -> None:
        self._show, self._timeout, self._on_timeout, self._read = show, timeout, on_timeout, read

    def step(self, out: Handler, inlet: int) -> Callable[[Any, Rows], None]:
        return self.park

    def park(self, data: Any, rows: Rows) -> None:
        """Keep the event; one that was a letter, too: it has to be decided anew."""
        body, content_type = encode(data, "auto")
        due = rows.clock + self._timeout if self._timeout is not None else None
        one, held = Waiting(rows.child(), content_type, body, rows.clock, due, self._show), rows.origin.time
        rows.put(one.pack(), one.origin.id)
        rows.alarm(due or rows.clock + _FOR_GOOD, one.origin.id, hold=held, most=HOLD)

    def told(self, data: Any, rows: Rows) -> None:
        """Take a decision. Another one about what is decided already changes nothing."""
        decision = Decision.read(data)
        row = rows.row(decision.approval)
        one = Waiting.unpack(row) if row is not None else None
        if one is None or one.decided is not None:
            return
        if decision.digest != one.digest:
            why = f"it is about something else than what waits as {decision.approval}: its digest is another one"
            raise InvalidInput(why, fix="drop this letter, look at what waits (dspex approvals show), and decide again")
        rows.put(one._replace(decided=decision).pack(), decision.approval)
        rows.alarm(rows.clock, decision.approval, hold=one.origin.time, most=HOLD)

    def woken(self, rows: Rows, name: str) -> Sequence[Emitted]:
        row = rows.row(name)
        one = Waiting.unpack(row) if row is not None else None
        if one is None:
            return ()
        rows.put(None, name)
        if one.decided is None and self._on_timeout == "drop":
            return ()
        try:
            return [Emitted(one.origin, self._decided(one))]
        except DspexError as e:
            return [Emitted(one.origin, one.data, e)]  # as it was shown, so that it can be decided about again

    def _decided(self, one: Waiting) -> Any:
        """The data of what goes on. Raises why it does not."""
        decision = one.decided
        if decision is None and self._on_timeout != "pass":
            why = f"nobody decided about it within {self._timeout:g} s"
            raise DataError(why, code="DX516", fix="redriven, it waits again: dspex dlq redrive")
        by = f" by {decision.who}" if decision is not None and decision.who else ""
        if decision is not None and decision.decision == "cancel":
            raise Cancelled(f"its run was cancelled{by} while it waited for a decision", fix=_AGAIN)
        if decision is not None and decision.decision == "reject":
            why = f"rejected{by}: {decision.note}" if decision.note else f"rejected{by}"
            raise Reject(why, fix=_AGAIN)
        if decision is None or not decision.edit:
            return self._read.read(one.data)
        try:
            return self._read.read({**record_of(one.data), **decision.edit})
        except InvalidInput as e:
            edit = encode(decision.edit, "json")[0].decode()
            raise InvalidInput(f"edited{by}, {edit[:_LONGEST]}: {e.message}", fix=_AGAIN) from e


def shown(rows: Mapping[str, bytes], form: str) -> list[dict[str, Any]]:
    """What waits, the oldest first."""
    found = sorted((Waiting.unpack(row) for row in rows.values()), key=lambda one: (one.since, one.origin.time, one.origin.id))
    return [{"id": o.origin.id, "since": datetime.fromtimestamp(o.since, tz=UTC), "shown": o.shown} for o in found]


def build(
    main: object,
    show: tuple[str, ...] | None = None,
    timeout: float | None = None,
    on_timeout: OnTimeout = "dead_letter",
    *,
    typed: object = None,
    keyed: bool,
) -> State:
    """Events that wait, of each partition. Raises TopologyError for an end of a time that is not said."""
    if timeout is None and on_timeout != "dead_letter":
        why = f"on_timeout={on_timeout!r} says what happens after timeout=, and there is none: it waits for good"
        raise problem("DX205", why, 'add timeout="2d", or leave on_timeout= out')
    read = KeptData(typed)
    made = _Approve(show, timeout, on_timeout, read)
    how: dict[str, Any] = {"read": read.read, "back": made.park, "told": made.told}
    return State(made.step, made.woken, form="approve", keyed=False, clocked=True, **how)


OPERATOR = Operator(
    "approve",
    main=NothingParameter(),
    options={
        "show": FieldNamesParameter(None, doc="the fields that people are shown; default: all of the data"),
        "timeout": DurationParameter(None, zero=False, doc="how long it waits, on the clock of the engine; default: for good"),
        "on_timeout": ChoiceParameter(
            "dead_letter", of=OnTimeout, doc="what becomes of it then: a dead letter (`DX516`), on as if accepted, or nowhere"
        ),
    },
    build=build,
    typed=True,
    state=True,
    shown=shown,
)
