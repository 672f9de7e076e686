"""What becomes of a call that does not simply end with outputs: its execution failed, or nobody answered, or it must wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dspex.bus import codecs
from dspex.bus.errors import CallTimeout, DataError, DspexError, InvalidOutput, RetryLater
from dspex.bus.records import NodeEvent, Origin
from dspex.bus.serving.programs.names import is_version
from dspex.engine.graph.nodes import Call, CallNode
from dspex.engine.log.rows import OpenCall, Timer
from dspex.engine.log.tables import Change, Tables
from dspex.engine.runtime.arrival import Answered, Arrival, Due, Effects, Note, Woken
from dspex.engine.runtime.failure import Failure, attempt, decide, excerpt, letter, operator_gone, refusal, told_to_wait
from dspex.engine.runtime.walk.request import Output, request
from dspex.engine.runtime.walk.serial import freed

if TYPE_CHECKING:
    from dspex.engine.runtime.process import Process


class Asked(NamedTuple):
    """An open call that is to be settled by an arrival.

    `node`: None where the topology has it no more. `event`: what the call was made for; None where that is stored nowhere any
    more. `next`: the first number that another call or a timer may get. `state`: the saved state that its record names.
    """

    arrival: Arrival
    tables: Tables
    number: int
    row: OpenCall
    node: CallNode | None
    event: NodeEvent | None
    next: int
    state: str = ""

    @property
    def known(self) -> tuple[CallNode, NodeEvent]:
        """Node and event of a call that may be more than closed."""
        if self.node is None or self.event is None:
            raise AssertionError("a call whose operator or event is gone is only closed")
        return self.node, self.event

    @property
    def call(self) -> tuple[Call, Any]:
        """What is asked for the event, and its data where that had to be read for it. Raises DspexError."""
        node, event = self.known
        if node.call.of is None:
            return node.call, None
        data = codecs.decode(event.data, event.content_type)
        return node.call.for_event(data, event.origin.subject), data

    @property
    def record(self) -> int:
        """The sequence of its record; 0 where its deadline has passed without one."""
        place = self.arrival.place
        return place.sequence if place.input == "records" else self.row.held

    def with_state(self) -> Asked:
        """With the saved state in its row: the first one counts, whatever its name means by the next attempt."""
        if not self.state or self.row.state or not is_version(self.state):
            return self
        return self._replace(row=self.row._replace(state=self.state))

    def must_wait(self) -> bool:
        """Whether an earlier call of its key is open. Those without one are one key together; of submitted ones they are in no
        order, and none may wait for a stranger's, which can take days.
        """
        call = self.known[0].call
        if call.order == "any" or (call.of is not None and self.row.key is None):
            return False
        return self.tables.calls.turn(self.row.node, self.row.key) != self.number


class Settlement:
    """What `handle` does with calls besides going on with their outputs."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def due(self, arrival: Arrival, due: Due, tables: Tables, next: int) -> Effects:
        """A timer's time has come."""
        number, timer, what, _ = due
        if isinstance(what, Woken):
            return self._process.woken(arrival, due, tables, next)
        if timer.kind == "event":
            if isinstance(what, NodeEvent):
                return self._process.event(arrival, what._replace(attempts=timer.attempts), next, tables, (number, timer))
            return Effects((), (("timers", number, None),), notes=("gone",))
        row = tables.calls.rows[number]
        if timer.kind == "held":
            if isinstance(what, Answered):
                return self._process.answered(arrival, what, tables, next, held=True)
            return Effects((), (("calls", number, row._replace(held=0)), _deadline(number, row)), notes=("gone",))
        event = what if isinstance(what, NodeEvent) else None
        asked = Asked(arrival, tables, number, row, self._process.stage.calls.get(row.node), event, next)
        if event is None or asked.node is None or arrival.refused:
            return self.hopeless(asked)
        if timer.kind in ("attempt", "again"):  # that of an attempt was noted when it failed
            return self._ask_again(asked, row)._replace(notes=("retry",) if timer.kind == "again" else ())
        why = f"{row.node} had no answer within its deadline, after {row.attempts} attempt(s)"
        return self.failed(asked, Failure(CallTimeout(why, node=row.node), row.node), expired=True)

    def hopeless(self, asked: Asked, outputs: Mapping[str, object] | None = None) -> Effects:
        """The end of a call that there is nothing to settle with."""
        why: DspexError = refusal(asked.arrival.refused, asked.row.node)
        if asked.event is None:
            lost = f"the event of a call of {asked.row.node} is stored nowhere any more"
            why = DataError(lost, code="DX509", node=asked.row.node)
        elif asked.node is None:
            why = operator_gone(asked.row.node)
        return self._dead(asked, Failure(why, asked.row.node), outputs)

    def not_landed(self, asked: Asked, failure: Failure, behind: NodeEvent, *, fallback: bool) -> Effects:
        """What comes behind the call failed. `behind`: the event with the outputs that the call, or its fallback, gave."""
        if isinstance(failure.error, RetryLater):
            return self._put_off(asked, failure.error.retry_after or 1.0)
        if not isinstance(failure.error, InvalidOutput):
            return self._dead(asked._replace(event=behind), failure, behind.outputs)
        return self._dead(asked, failure) if fallback else self.failed(asked, failure)

    def failed(self, asked: Asked, failure: Failure, *, expired: bool = False) -> Effects:
        """Say what becomes of a call whose execution failed, or whose deadline has passed."""
        asked = asked.with_state()
        row = asked.row
        try:
            call, _ = asked.call
        except DspexError as e:
            return self._dead(asked, Failure(e, row.node, excerpt(e)))
        left = 0.0 if expired else row.deadline - asked.arrival.clock
        verdict = decide(failure.error, row, call, left)
        if verdict.what == "retry" and verdict.row is not None:
            return self._retry(asked, verdict.row, verdict.after)
        if verdict.what == "fallback":
            return self.hold(asked) if asked.must_wait() else self._fall_back(asked, failure)
        if verdict.what == "skip":
            return self._close(asked, ())
        return self._dead(asked, told_to_wait(failure, left))

    def _retry(self, asked: Asked, row: OpenCall, after: float) -> Effects:
        if not after:
            return self._ask_again(asked, row)
        timer = Timer(asked.arrival.clock + after, "attempt")
        return Effects((), (("calls", asked.number, row._replace(held=0)), ("timers", asked.number, timer)), notes=("retry",))

    def _ask_again(self, asked: Asked, row: OpenCall) -> Effects:
        """Ask for the execution that `row` says."""
        event = asked.known[1]
        try:
            call, data = asked.call
            inputs = call.inputs(codecs.decode(event.data, event.content_type) if data is None else data)
        except DspexError as e:  # they could be made before: another version of the topology runs now
            return self._dead(asked, Failure(e, row.node, excerpt(e)))
        again = request(self._process.address, asked.number, row, call, inputs, event, asked.arrival.clock)
        return Effects((again,), notes=("retry",))

    def _fall_back(self, asked: Asked, failure: Failure) -> Effects:
        node, event = asked.known
        fallback = node.call.fallback
        outputs = attempt(
            lambda: fallback(codecs.decode(event.data, event.content_type)) if fallback else {}, lambda: event.node
        )
        if isinstance(outputs, Failure):
            return self._dead(asked, outputs)
        origin = event.origin._replace(fallback=type(failure.error).__name__)
        return self._process.landed(asked, node, event._replace(origin=origin, outputs=outputs), fallback=True)

    def hold(self, asked: Asked) -> Effects:
        """Wait for the earlier calls of the key. A record stays where it is stored; a deadline that passed comes again."""
        row = asked.row._replace(held=asked.record)
        return Effects((), (("calls", asked.number, row), ("timers", asked.number, None)))

    def _put_off(self, asked: Asked, after: float) -> Effects:
        """What comes behind the call asked to be processed again later. The call stays open until then."""
        row = asked.row._replace(held=asked.record)
        timer = Timer(asked.arrival.clock + after, "held" if asked.record else "deadline")
        return Effects((), (("calls", asked.number, row), ("timers", asked.number, timer)), notes=("put_off",))

    def _dead(self, asked: Asked, failure: Failure, outputs: Mapping[str, object] | None = None) -> Effects:
        event = asked.event or _nowhere(asked.row)
        attempts = event.attempts + asked.row.attempts - 1  # with those before it was redriven; the letter adds one
        event = event._replace(outputs=outputs, attempts=attempts)
        closed = self._close(asked, (letter(failure, event, self._process.address, asked.arrival.clock),), "dead_letter")
        return closed._replace(failure=failure)

    def _close(self, asked: Asked, outputs: Sequence[Output], *notes: Note) -> Effects:
        """Close a call that ends with `outputs`."""
        return Effects(outputs, self.closing(asked), notes=("record", *notes))

    def closing(self, asked: Asked) -> tuple[Change, ...]:
        """What closes a call, and wakes the one of its key that waits for it."""
        number, tables = asked.number, asked.tables
        closed: tuple[Change, ...] = (("calls", number, None), ("timers", number, None))
        following = tables.calls.turn(asked.row.node, asked.row.key, without=number)
        if following is None:
            return (*closed, *freed(tables, asked.row.node, asked.row.key, asked.arrival.clock))
        held = tables.calls.rows[following].held
        if not held and following in tables.timers.rows:
            return closed
        return (*closed, ("timers", following, Timer(asked.arrival.clock, "held" if held else "deadline")))


def _nowhere(row: OpenCall) -> NodeEvent:
    """In place of an event that is lost: what the row still knows of it."""
    return NodeEvent(row.node, Origin(id=row.id, subject="", run=row.run), codecs.JSON, b"null", row.id)


def _deadline(number: int, row: OpenCall) -> Change:
    return "timers", number, Timer(row.deadline, "deadline")
