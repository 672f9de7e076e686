"""What `handle` does when a timer of an operator with state is due: the operator says what comes out, which goes on behind it.

Each thing that comes out is an event of its own: where one fails behind the operator, its letter carries it, the others go
on, and the state is as if it had not failed. Where the operator itself fails, its rows stay, and the letter wakes it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from dspex.bus import codecs
from dspex.bus.errors import InvalidInput, RetryLater
from dspex.bus.message import derived_id
from dspex.bus.records import NodeEvent, Origin
from dspex.engine.graph.nodes import BACK, WAKE, Emitted, StateNode
from dspex.engine.log.rows import Position, Timer
from dspex.engine.log.tables import Change, Tables
from dspex.engine.runtime.arrival import Arrival, Due, Effects, LetOut, Note
from dspex.engine.runtime.failure import Failure, attempt, letter, operator_gone, refusal
from dspex.engine.runtime.walk.serial import left_behind
from dspex.engine.runtime.walk.state import woken_by

if TYPE_CHECKING:
    from dspex.engine.runtime.process import Process, Walk


class _Waking:
    """One timer that is due. `walk`: what runs it."""

    def __init__(self, process: Process, arrival: Arrival, due: Due, node: StateNode, walk: Walk) -> None:
        self._process, self._arrival, self._node, self._walk = process, arrival, node, walk
        self._number, self._timer = due.number, due.timer
        self._failures: list[Failure] = []

    def effects(self, tables: Tables, next: int) -> Effects:
        a, timer, walk = self._process.address, self._timer, self._walk
        id = derived_id(timer.run, f"{a.node_id(timer.node)}/{a.partition}", self._number)
        self._origin = Origin(id, self._process.stage.name, timer.run, key=timer.key or None, time=timer.due)
        walk.begin(tables, next)
        walk.fired = self._number
        walk.resume(self._origin, timer.node, self._arrival.clock)
        walk.outputs = []
        found = attempt(lambda: self._node.state.woken(walk, timer.name) if self._node.state.woken else (), lambda: walk.node)
        if isinstance(found, Failure):
            return self._later(found) if isinstance(found.error, RetryLater) else self._failed(found)
        for event in found:
            failure = self._went_on(event)
            if failure is not None and isinstance(failure.error, RetryLater):
                return self._later(failure)
        notes: tuple[Note, ...] = ("woken", "dead_letter") if self._failures else ("woken",)
        failure = self._failures[0] if self._failures else None
        return Effects(walk.outputs, (*walk.changes(), *self._mark()), 0, notes, failure, walk.let_out)

    def _mark(self) -> tuple[Change, ...]:
        """What the watermark has woken is over: an event that would be a part of it is late, also where a call holds it now."""
        at = self._walk.watermark_of(self._timer.node)
        return (("positions", woken_by(self._timer.node), Position(mark=at)),) if self._timer.kind == "mark" else ()

    def _went_on(self, event: Emitted) -> Failure | None:
        """Walk what came out behind the operator; why it failed."""
        walk, arrival, node, finish = self._walk, self._arrival, self._node.name, self._node.state.finish
        codec = cast("codecs.Codec", self._process.stage.graph.codec)
        saved, body = walk.saved(), _written(event.data, codec if finish is None else "msgpack")

        def go_on() -> None:
            nonlocal body
            walk.resume(event.origin, node, arrival.clock)
            data = event.data
            if finish is not None:
                data = finish(data)
                body = _written(data, codec)
            self._process.stage.behind[node](data, walk)

        failure = Failure(event.error, node) if event.error is not None else None
        entry = node + BACK if failure is not None else node
        if failure is None:
            failure = Failure(refusal(arrival.refused, node), node) if arrival.refused else attempt(go_on, lambda: walk.node)
        if failure is not None and not isinstance(failure.error, RetryLater):
            walk.restore(saved)
            dead = NodeEvent(entry, event.origin, body[1], body[0])
            walk.outputs.append(letter(failure, dead, self._process.address, arrival.clock))
            self._failures.append(failure)
        cause = event.origin.cause if event.origin.cause != self._origin.id else None  # nothing is told of the waking itself
        error = type(failure.error).__name__ if failure is not None else ""
        walk.lets_out(LetOut(node, event.origin, cause, event.between, error))
        return failure

    def _later(self, failure: Failure) -> Effects:
        """Something asked to be tried again later: nothing of it has happened."""
        after = failure.error.retry_after or 1.0
        timer = self._timer._replace(due=self._arrival.clock + after, kind="wake", attempts=self._timer.attempts + 1)
        return Effects((), (("timers", self._number, timer),), notes=("put_off",))

    def _failed(self, failure: Failure) -> Effects:
        body, content_type = codecs.encode(self._timer.name, "json")
        again = NodeEvent(self._node.name + WAKE, self._origin, content_type, body)
        dead = letter(failure, again, self._process.address, self._arrival.clock)
        changes: tuple[Change, ...] = (("timers", self._number, None), *self._mark())
        return Effects((dead,), changes, notes=("woken", "dead_letter"), failure=failure)


def woken(process: Process, arrival: Arrival, due: Due, tables: Tables, next: int, walk: Walk) -> Effects:
    """The effects of a timer of an operator with state. `next`: the first number that a call or a timer may get."""
    node = process.stage.states.get(due.timer.node)
    if node is None:  # the topology has the operator no more
        return _gone(process, arrival, due, tables)
    return _Waking(process, arrival, due, node, walk).effects(tables, next)


def _gone(process: Process, arrival: Arrival, due: Due, tables: Tables) -> Effects:
    """The end of what an operator kept that the topology has no more: what waited for a call ends as an open call does."""
    changes, events = _forgotten(due.timer, due.number, tables), left_behind(tables, due.timer)
    if not events:
        return Effects((), changes, notes=("gone",))
    failure = Failure(operator_gone(due.timer.node), due.timer.node)
    dead = [letter(failure, event, process.address, arrival.clock) for event in events]
    return Effects(dead, changes, notes=("woken", "dead_letter"), failure=failure)


def _forgotten(timer: Timer, number: int, tables: Tables) -> tuple[Change, ...]:
    at = [(timer.node, timer.key, sub) for sub in ("", *sorted(tables.keyed.subs(timer.node, timer.key)))]
    timers = {number, *(found for one in at if (found := tables.timers.of(*one)) is not None)}
    return (*(("timers", one, None) for one in sorted(timers)), *(("keyed", one, None) for one in at))


def _written(data: object, codec: codecs.Codec) -> tuple[bytes, str]:
    """What came out, for a letter of it: before it goes on, since what is behind may change it.

    What no codec can write may still go on; a letter of it says of which type it was.
    """
    for one in (codec, "msgpack"):
        try:
            return codecs.encode(data, one)
        except InvalidInput:
            continue
    return codecs.encode(f"a {type(data).__name__}, which cannot be written", "json")
