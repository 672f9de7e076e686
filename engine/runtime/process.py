"""`handle`: the one pure function of a stage. Everything that a partition does to an event is decided here.

An arrival carries its clock and everything else that may decide. Nothing is awaited, and nothing is changed: what comes of it
is its Effects, all of them or none. So recovery applies the changes that the log holds, and replay calls `handle` again.
"""

from __future__ import annotations

import traceback
from asyncio import CancelledError
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dspex.bus import codecs
from dspex.bus.errors import CallTimeout, DataError, DspexError, InvalidOutput, RetryLater, from_dict
from dspex.bus.records import NodeEvent, Origin
from dspex.bus.serving import payloads
from dspex.engine.graph.nodes import Call, CallNode
from dspex.engine.log.rows import OpenCall, Split, Timer
from dspex.engine.log.tables import Change, Tables
from dspex.engine.runtime.arrival import Answered, Arrival, Due, Effects, Note, digest
from dspex.engine.runtime.compile import Stage
from dspex.engine.runtime.failure import TRACEBACK_LIMIT, Failure, decide, letter, operator_gone, refusal
from dspex.engine.runtime.request import Address, request
from dspex.engine.runtime.walk import Output, Walk

_NOTHING = Effects()
_DROPPED = Effects(notes=("dropped",))


class Process:
    """What one partition of a stage does with arrivals."""

    def __init__(self, stage: Stage, address: Address, names: Mapping[str, str]) -> None:
        self.stage, self.address = stage, address
        self._names = names  # old name → new name of renamed operators
        self._walk = Walk(address)

    def handle(self, arrival: Arrival, tables: Tables) -> Effects:
        """What an arrival causes."""
        if tables.splits.rows and (split := tables.splits.rows.get(arrival.place)) is not None:
            return self._rest(arrival, split, tables)
        return self._handled(arrival, tables)

    def _handled(self, arrival: Arrival, tables: Tables) -> Effects:
        what = arrival.what
        if isinstance(what, NodeEvent):
            return self._event(arrival, what)
        if isinstance(what, Answered):
            return self._answered(arrival, what, tables, held=False)
        if isinstance(what, Due):
            return self._due(arrival, what, tables)
        return _DROPPED if arrival.place.input == "records" else _NOTHING

    def _rest(self, arrival: Arrival, split: Split, tables: Tables) -> Effects:
        """What is left of the outputs of an event of which some are committed already.

        The arrival has the clock and the numbers of the first walk. A walk that gives others, because a function
        iterates over a set or has changed, must not go on from there: outputs would be lost, and others doubled.
        """
        effects, done = self._handled(arrival, tables), split.done
        if effects.failure is not None:
            return effects  # it ends in another way now, and says why
        if digest(effects.outputs[:done]) != split.digest:
            why = f"its first {done} outputs are committed, and processed again it gives others"
            effects, done = self._handled(arrival._replace(refused=why), tables), 0
        return effects._replace(done=done)

    # -- events that enter at a node ----------------------------------------------------------------------------------
    def _event(self, arrival: Arrival, event: NodeEvent, released: tuple[int, Timer] | None = None) -> Effects:
        """Walk an event. `released`: the timer that it was put off with."""
        outputs, failure = self._walked(arrival, event)
        changes: tuple[Change, ...] = (("timers", released[0], None),) if released else ()
        if failure is None:
            return Effects(outputs, changes, notes=("event",))
        if isinstance(failure.error, RetryLater):
            place, time = (released[1].place, released[1].time) if released else (arrival.place, arrival.time)
            due = arrival.clock + (failure.error.retry_after or 1.0)
            later = Timer(due, "event", place, time, event.attempts + 1, event.origin.run)
            return Effects((), (*changes, ("timers", arrival.number, later)), notes=("event", "put_off"))
        dead = letter(failure, event, self.address, arrival.clock, arrival.stored, arrival.headers, gone=arrival.gone)
        return Effects((dead,), changes, notes=("event", "dead_letter"), failure=failure)

    def _walked(self, arrival: Arrival, event: NodeEvent) -> tuple[Sequence[Output], Failure | None]:
        """What a walk from the event's node emits, or why it failed. Whatever a user's function raises becomes a Failure."""
        entry = self.stage.entries.get(event.node) or self.stage.entries.get(self._names.get(event.node, ""))
        if arrival.refused:
            return (), Failure(refusal(arrival.refused, event.node), event.node)
        if arrival.gone:
            return (), Failure(payloads.gone(event.node), event.node)
        if entry is None:
            return (), Failure(operator_gone(event.node), event.node)
        walk = self._walk
        try:
            return walk.enter(entry, event, arrival.clock, arrival.number), None
        except DspexError as e:
            return (), Failure(e, e.node or walk.node, _excerpt(e))
        except (Exception, SystemExit, CancelledError) as e:  # noqa: BLE001  nothing is awaited here: the function raised it
            return (), _raised(e, walk.node)

    # -- calls --------------------------------------------------------------------------------------------------------
    def _answered(self, arrival: Arrival, answered: Answered, tables: Tables, *, held: bool) -> Effects:
        """Settle an execution of a call. `held`: its record waited, and its time has come."""
        record, number = answered.record, answered.record.number
        row = tables.calls.rows.get(number) if number is not None else None
        if number is None or row is None or (row.id, row.try_number) != (record.call, record.try_number):
            return _DROPPED  # a repeat, or late: the call is closed, or asked again
        if row.held and not held:
            return _DROPPED
        asked = self._asked(arrival, number, row, answered.event, tables, record.outputs)
        if isinstance(asked, Effects):
            return asked
        if record.error is None and record.outputs is not None:
            return self._landed(asked, record.outputs)
        error = from_dict(record.error or {"type": "ProgramError", "message": "the worker sent neither outputs nor an error"})
        return self._failed(asked, Failure(error, row.node, str((record.error or {}).get("traceback", ""))))

    def _due(self, arrival: Arrival, due: Due, tables: Tables) -> Effects:
        """A timer's time has come."""
        number, timer, what, _ = due
        if timer.kind == "event":
            if isinstance(what, NodeEvent):
                return self._event(arrival, what._replace(attempts=timer.attempts), (number, timer))
            return Effects((), (("timers", number, None),), notes=("gone",))
        row = tables.calls.rows[number]
        if timer.kind == "held":
            if isinstance(what, Answered):
                return self._answered(arrival, what, tables, held=True)
            return Effects((), (("calls", number, row._replace(held=0)), _deadline(number, row)), notes=("gone",))
        asked = self._asked(arrival, number, row, what if isinstance(what, NodeEvent) else None, tables)
        if isinstance(asked, Effects):
            return asked
        if timer.kind in ("attempt", "again"):
            return self._ask_again(asked, row)
        why = f"{row.node} had no answer within its deadline, after {row.attempts} attempt(s)"
        return self._failed(asked, Failure(CallTimeout(why, node=row.node), row.node), expired=True)

    def _asked(
        self,
        arrival: Arrival,
        number: int,
        row: OpenCall,
        event: NodeEvent | None,
        tables: Tables,
        outputs: Mapping[str, object] | None = None,
    ) -> _Asked | Effects:
        """The call to be settled; its end, where there is nothing to settle it with."""
        node, left = self.stage.calls.get(row.node), event or _nowhere(row)
        why: DspexError | None = None
        if event is None:
            why = DataError(f"the event of a call of {row.node} is stored nowhere any more", code="DX509", node=row.node)
        elif node is None:
            why = operator_gone(row.node)
        elif arrival.refused:
            why = refusal(arrival.refused, row.node)
        asked = _Asked(arrival, tables, number, row, node, left)
        if why is not None:
            return self._dead(asked, Failure(why, row.node), outputs)
        return asked

    def _landed(self, asked: _Asked, outputs: Mapping[str, object], *, fallback: str | None = None) -> Effects:
        """Go on behind a call with its outputs. `fallback`: the class of the error, where they are its fallback's."""
        if asked.must_wait():
            return self._hold(asked)
        origin = asked.event.origin if fallback is None else asked.event.origin._replace(fallback=fallback)
        behind = asked.event._replace(origin=origin, outputs=outputs)
        emitted, failure = self._walked(asked.arrival, behind)
        if failure is None:
            return self._close(asked, emitted, *(("fallback",) if fallback else ()))
        if isinstance(failure.error, RetryLater):
            return self._put_off(asked, failure.error.retry_after or 1.0)
        if not isinstance(failure.error, InvalidOutput):
            return self._dead(asked._replace(event=behind), failure, outputs)
        return self._dead(asked, failure) if fallback else self._failed(asked, failure)

    def _failed(self, asked: _Asked, failure: Failure, *, expired: bool = False) -> Effects:
        """Say what becomes of a call whose execution failed, or whose deadline has passed."""
        row, call = asked.row, asked.call
        verdict = decide(failure.error, row, call, 0.0 if expired else row.deadline - asked.arrival.clock)
        if verdict.what == "retry" and verdict.row is not None:
            return self._retry(asked, verdict.row, verdict.after)
        if verdict.what == "fallback":
            if asked.must_wait():
                return self._hold(asked)
            return self._fall_back(asked, type(failure.error).__name__)
        if verdict.what == "skip":
            return self._close(asked, ())
        return self._dead(asked, failure)

    def _retry(self, asked: _Asked, row: OpenCall, after: float) -> Effects:
        if not after:
            return self._ask_again(asked, row)
        timer = Timer(asked.arrival.clock + after, "attempt")
        return Effects((), (("calls", asked.number, row._replace(held=0)), ("timers", asked.number, timer)), notes=("retry",))

    def _ask_again(self, asked: _Asked, row: OpenCall) -> Effects:
        """Ask for the execution that `row` says."""
        event = asked.event
        try:
            inputs = asked.call.inputs(codecs.decode(event.data, event.content_type))
        except DspexError as e:  # they could be made before: another version of the topology runs now
            return self._dead(asked, Failure(e, row.node, _excerpt(e)))
        again = request(self.address, asked.number, row, asked.call, inputs, event, asked.arrival.clock)
        return Effects((again,), notes=("retry",))

    def _fall_back(self, asked: _Asked, error: str) -> Effects:
        event, fallback = asked.event, asked.call.fallback
        if fallback is None:
            raise AssertionError("only a call with a fallback falls back")
        try:
            outputs = fallback(codecs.decode(event.data, event.content_type))
        except DspexError as e:
            return self._dead(asked, Failure(e, event.node, _excerpt(e)))
        except (Exception, SystemExit, CancelledError) as e:  # noqa: BLE001  nothing is awaited here: the function raised it
            return self._dead(asked, _raised(e, event.node))
        return self._landed(asked, outputs, fallback=error)

    def _hold(self, asked: _Asked) -> Effects:
        """Wait for the earlier calls of the key. A record stays where it is stored; a deadline that passed comes again."""
        row = asked.row._replace(held=asked.record)
        return Effects((), (("calls", asked.number, row), ("timers", asked.number, None)))

    def _put_off(self, asked: _Asked, after: float) -> Effects:
        """What comes behind the call asked to be processed again later. The call stays open until then."""
        row = asked.row._replace(held=asked.record)
        timer = Timer(asked.arrival.clock + after, "held" if asked.record else "deadline")
        return Effects((), (("calls", asked.number, row), ("timers", asked.number, timer)), notes=("put_off",))

    def _dead(self, asked: _Asked, failure: Failure, outputs: Mapping[str, object] | None = None) -> Effects:
        arrival, event = asked.arrival, asked.event._replace(outputs=outputs, attempts=asked.attempts)
        closed = self._close(asked, (letter(failure, event, self.address, arrival.clock),), "dead_letter")
        return closed._replace(failure=failure)

    def _close(self, asked: _Asked, outputs: Sequence[Output], *notes: Note) -> Effects:
        """Close a call that ends with `outputs`, and wake the one of its key that waits for it."""
        number, tables = asked.number, asked.tables
        changes: list[Change] = [("calls", number, None), ("timers", number, None)]
        following = tables.calls.turn(asked.row.node, asked.row.key, without=number)
        if following is not None:
            held = tables.calls.rows[following].held
            if held or following not in tables.timers.rows:
                changes.append(("timers", following, Timer(asked.arrival.clock, "held" if held else "deadline")))
        return Effects(outputs, changes, notes=("record", *notes))


class _Asked(NamedTuple):
    """An open call that is to be settled by an arrival."""

    arrival: Arrival
    tables: Tables
    number: int
    row: OpenCall
    node: CallNode | None
    event: NodeEvent

    @property
    def call(self) -> Call:
        if self.node is None:
            raise AssertionError("a call whose operator is gone is only closed")
        return self.node.call

    @property
    def record(self) -> int:
        """The sequence of its record; 0 where its deadline has passed without one."""
        place = self.arrival.place
        return place.sequence if place.input == "records" else self.row.held

    @property
    def attempts(self) -> int:
        """How often it was tried, with those before it was redriven; the letter adds one."""
        return self.event.attempts + self.row.attempts - 1

    def must_wait(self) -> bool:
        """Whether an earlier call of its key is open, where results are released in the order of their key."""
        if self.call.order != "key":
            return False
        return self.tables.calls.turn(self.row.node, self.row.key) != self.number


def _nowhere(row: OpenCall) -> NodeEvent:
    """In place of an event that is lost: what the row still knows of it."""
    return NodeEvent(row.node, Origin(id=row.id, subject="", run=row.run), codecs.JSON, b"null", row.id)


def _deadline(number: int, row: OpenCall) -> Change:
    return "timers", number, Timer(row.deadline, "deadline")


def _raised(e: BaseException, node: str) -> Failure:
    """What a user's function raised. `traceback` also describes an exception whose own text cannot be made."""
    text = "".join(traceback.format_exception_only(e)).strip()
    fix = "correct the function or the data, then: dspex dlq redrive"
    reason = DataError(f"{node} raised {text}", code="DX507", node=node, fix=fix)
    return Failure(reason, node, _excerpt(e))


def _excerpt(e: BaseException) -> str:
    return "".join(traceback.format_exception(e))[-TRACEBACK_LIMIT:]
