"""`handle`: the one pure function of a stage. Everything that a partition does to an event is decided here.

An arrival carries its clock and everything else that may decide. Nothing is awaited, and nothing is changed: what comes of it
is its Effects, all of them or none. So recovery applies the changes that the log holds, and replay calls `handle` again.

An event is walked through the stage's fused operators, depth-first. Its outputs are made durable with its position, or dropped
and made again, equal, by the next owner. What becomes of a call that does not simply end with outputs is in calls.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orjson import dumps, loads

from dspex.bus.codecs import JSON, PLAIN, Codec, decode, encode, tracing
from dspex.bus.codecs.json import EVERY, LONG_RUN, ZEROS, simpler_json
from dspex.bus.codecs.plain import OPTIONS, finite
from dspex.bus.errors import DspexError, RetryLater, from_dict
from dspex.bus.message import INHERITED, id_seed, opened
from dspex.bus.port import NewMessage
from dspex.bus.records import NodeEvent, Origin, StoredAt
from dspex.bus.serving import payloads
from dspex.bus.subjects import AT, CAUSE, CONTENT_TYPE, EVENT_ID, FALLBACK, KEY, RUN, SESSION
from dspex.engine.graph.context import Handler
from dspex.engine.graph.nodes import CallNode, NativeNode, Sink, SinkNode, Source, StateNode
from dspex.engine.log.positions import held_by
from dspex.engine.log.rows import Split, Timer
from dspex.engine.log.tables import Change, Tables
from dspex.engine.runtime.arrival import Answered, Arrival, Due, Effects, Note, Reset, digest
from dspex.engine.runtime.calls import Asked, Settlement
from dspex.engine.runtime.failure import Failure, headers_too_long, letter, operator_gone, raised, refusal, refused
from dspex.engine.runtime.walk.later import not_yet, put_off
from dspex.engine.runtime.walk.request import Address, Output, checked_subject, cloud_event, open_call, too_large
from dspex.engine.runtime.walk.state import StateWalk
from dspex.engine.runtime.walk.woken import woken

if TYPE_CHECKING:
    from dspex.engine.runtime.walk.compile import Stage

_new = tuple.__new__  # the class itself as constructor takes twice as long
_NOTHING, _DROPPED = Effects(), Effects((), (), 0, ("dropped",))
_EVENT, _RECORD = tuple[Note](("event",)), tuple[Note](("record",))


class Process:
    """What one partition of a stage does with arrivals.

    Args:
        names: old name → new name of renamed operators. source_stream: where the stage's source is read.
    """

    def __init__(self, stage: Stage, address: Address, names: Mapping[str, str], source_stream: str) -> None:
        self.stage, self.address, self._names, self._source_stream = stage, address, names, source_stream
        self._walk, self._settlement = Walk(address, stage.clocks, stage.shared, stage.names), Settlement(self)

    def handle(self, arrival: Arrival, tables: Tables) -> Effects:
        """What an arrival causes."""
        if (splits := tables.splits.rows) and (split := splits.get(arrival.place)) is not None:
            return self._rest(arrival, split, tables)
        return self._handled(arrival, tables, tables.number)

    def _handled(self, arrival: Arrival, tables: Tables, number: int) -> Effects:
        """`number`: the first that a call or a timer may get."""
        what = arrival.what
        if isinstance(what, NodeEvent):
            return self.event(arrival, what, number, tables)
        if isinstance(what, Answered):
            return self.answered(arrival, what, tables, number)
        if isinstance(what, Due):
            return self._settlement.due(arrival, what, tables, number)
        if isinstance(what, Reset):
            return Effects((), held_by(tables, what.nodes, f"@{self.stage.id}"))
        return _DROPPED if arrival.place.input == "records" else _NOTHING

    def _rest(self, arrival: Arrival, split: Split, tables: Tables) -> Effects:
        """What is left of the outputs of an event of which some are committed already.

        It has clock, watermarks and numbers of the first walk. One that gives others must not go on: outputs would be lost.
        """
        self._walk.pinned, done = dict(split.marks), split.done
        effects = self._handled(arrival, tables, split.number)
        self._walk.pinned = {}
        if effects.failure is not None:
            return effects  # it ends in another way now, and says why
        if digest(effects.outputs[:done]) == split.digest:
            return effects._replace(done=done)
        why = f"its first {done} outputs are committed, and processed again it gives others"
        return self._handled(arrival._replace(refused=why), tables, split.number)

    def event(
        self, arrival: Arrival, event: NodeEvent, number: int, tables: Tables, released: tuple[int, Timer] | None = None
    ) -> Effects:
        """Walk an event that enters at a node. `released`: the timer that it was put off with."""
        early = not_yet(self.stage, arrival, event, number) if arrival.headers and AT in arrival.headers else None
        if isinstance(early, Effects):
            return early
        outputs, failure = self.walked(arrival, event, number, tables) if early is None else ((), early)
        changes: tuple[Change, ...] = (("timers", released[0], None),) if released else ()
        if failure is None:
            if self._walk.dirty:
                changes += self._walk.changes()
            return _new(Effects, (outputs, changes, 0, _EVENT, None, self._walk.let_out))
        if isinstance(failure.error, RetryLater):
            at = arrival.clock + (failure.error.retry_after or 1.0)
            return put_off(self.stage, arrival, event, number, at, event.attempts + 1, released)
        stored = arrival.stored
        if stored is None and arrival.place.input == "source":
            stored = StoredAt(self._source_stream, arrival.place.sequence)
        dead = letter(failure, event, self.address, arrival.clock, stored, arrival.headers, gone=arrival.gone)
        return Effects((dead,), changes, notes=("event", "dead_letter"), failure=failure)

    def walked(
        self, arrival: Arrival, event: NodeEvent, number: int, tables: Tables
    ) -> tuple[Sequence[Output], Failure | None]:
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
            return walk.enter(entry, event, arrival.clock, number, tables), None
        except DspexError as e:
            return (), refused(e, walk.node)
        except BaseException as e:  # noqa: BLE001  nothing is awaited here: the function raised it
            return (), raised(e, walk.node)

    def woken(self, arrival: Arrival, due: Due, tables: Tables, number: int) -> Effects:
        """A timer of an operator with state is due."""
        return woken(self, arrival, due, tables, number, self._walk)

    def answered(self, arrival: Arrival, answered: Answered, tables: Tables, number: int, *, held: bool = False) -> Effects:
        """Settle an execution of a call. `held`: its record waited, and its time has come."""
        record, event, _ = answered
        row = tables.calls.rows.get(record.number) if record.number is not None else None
        if record.number is None or row is None or (row.id, row.try_number) != (record.call, record.try_number):
            return _DROPPED  # a repeat, or late: the call is closed, or asked again
        if row.held and not held:
            return _DROPPED
        node, outputs = self.stage.calls.get(row.node), record.outputs
        asked = Asked(arrival, tables, record.number, row, node, event, number, record.state)
        if event is None or node is None or arrival.refused:
            return self._settlement.hopeless(asked, outputs)
        if record.error is None and outputs is not None:
            return self.landed(asked, node, event._replace(outputs=outputs))
        said = record.error or {"type": "ProgramError", "message": "the worker sent neither outputs nor an error"}
        return self._settlement.failed(asked, Failure(from_dict(said), row.node, str(said.get("traceback", ""))))

    def landed(self, asked: Asked, node: CallNode, event: NodeEvent, *, fallback: bool = False) -> Effects:
        """Go on behind a call: `event` has its outputs, or its fallback's."""
        if node.call.order != "any" and asked.must_wait():
            return self._settlement.hold(asked)
        emitted, failure = self.walked(asked.arrival, event, asked.next, asked.tables)
        if failure is not None:
            return self._settlement.not_landed(asked, failure, event, fallback=fallback)
        changes: tuple[Change, ...] = (("calls", asked.number, None), ("timers", asked.number, None))
        if node.call.order != "any":
            changes = self._settlement.closing(asked)
        if self._walk.dirty:
            changes += self._walk.changes()
        return Effects(emitted, changes, 0, ("record", "fallback") if fallback else _RECORD)


class Walk(StateWalk):
    """The walk of one event after another."""

    __slots__ = ()

    def enter(self, entry: Handler, event: NodeEvent, clock: float, number: int, tables: Tables) -> list[Output]:
        """Walk an event from `entry`, the step of its node. Raises what decoding and the operators raise."""
        self.tables, self.number, self.clock, self.node = tables, number, clock, event.node
        if self.dirty:
            self.clean()
        self.inherit(event.origin)
        self.counts.clear()
        self.outputs, self._ids, self._event, self._random = [], 0, None, None
        entry(event, self)
        return self.outputs

    def inherit(self, origin: Origin) -> None:
        """What stands in its run as `origin` says is derived from now on. Raises InvalidInput where it is too long."""
        self.origin = origin
        id, _, run, _, key, session, _, _, trace, _, _, _ = origin
        if len(id) + len(run) + len(key or "") + len(session or "") + len(trace or "") > INHERITED:
            raise headers_too_long(origin)

    def emit(self, node: str, node_id: str, sink: Sink, codec: Codec, data: object) -> None:
        """Send `data` to a sink."""
        to = checked_subject(sink, data) if sink.address else sink.subject
        body, content_type = written(data, codec)
        id, _, run, _, key, session, _, _, trace, _, fallback, _ = self.origin
        self.counts[node] = ordinal = self.counts.get(node, -1) + 1
        h = id_seed(node_id, ordinal).copy()  # derived_id, written out: it is made for every event
        h.update(id.encode())
        tail = h.hexdigest()
        headers = {EVENT_ID: f"{id[:13]}-7{tail[:3]}-8{tail[3:6]}-{tail[6:18]}", RUN: run}
        if id != run:  # else the run's first event is the cause, and the header would say it twice
            headers[CAUSE] = id
        if key is not None:
            headers[KEY] = key
        if session is not None:
            headers[SESSION] = session
        if trace is not None:
            tracing.put(headers, trace)
        if fallback is not None:
            headers[FALLBACK] = fallback
        if sink.cloudevents is not None:
            body = cloud_event(self.address, sink, self.origin, to, headers, body, content_type)
        elif content_type != JSON:
            headers[CONTENT_TYPE] = content_type
        if len(body) > self.address.limit:
            raise too_large(node, len(body), self.address.limit)
        self.outputs.append(_new(NewMessage, (to, body, headers, None, None)))


def written(data: object, codec: Codec) -> tuple[bytes, str]:
    """The bytes of data, and their content type. Raises InvalidInput."""
    if codec == "json" and type(data) in PLAIN:
        try:
            body = dumps(data, simpler_json, OPTIONS)
        except TypeError:
            return encode(data, codec)  # says what it is that cannot be written, or finds a way
        if body.find(b"null") < 0 or finite(data):
            return body, JSON
    return encode(data, codec)


def read(event: NodeEvent) -> Any:
    """The data of an event. Raises DecodeError."""
    if event.content_type == JSON:
        try:
            found = loads(event.data)
            if event.data[EVERY].translate(ZEROS).find(LONG_RUN) < 0:  # as load_json: no integer of it may be rounded
                return found
        except ValueError:
            ...  # decode says where it is wrong, and why
    return decode(event.data, event.content_type)


# -- the steps of a walk: functions that compile.py links -------------------------------------------------------------------
def source_step(source: Source, after: Handler) -> Handler:
    """The step at which a source event enters the graph: from its bytes."""
    accept, time, plain = source.accept, source.time, source.plain

    def step(event: NodeEvent, walk: Any) -> None:
        if event.content_type != JSON or event.origin.headers is not None:  # only then it may be a CloudEvent
            event = opened(event)
            walk.inherit(event.origin)
        if event.content_type != JSON or not plain:
            source.media(event.content_type)
        data = accept(read(event)) if accept else read(event)
        if time:
            walk.origin = walk.origin._replace(time=time(data).timestamp())
        after(data, walk)

    return step


def landing_step(node: CallNode, after: Handler) -> Handler:
    """The step at which an event enters the graph at a call: behind it where it has its outputs, else the call is made."""
    call = node.call

    def step(event: NodeEvent, walk: Any) -> None:
        data = read(event)
        if event.outputs is None:
            open_call(walk, node, data, event.data, event.content_type, event.call, event.attempts)
            return
        data = call.accept(data, event.outputs)
        before = walk.origin  # the call is the cause of all that comes after it
        walk.origin = before._replace(id=event.call, cause=before.id)
        after(data, walk)

    return step


def sink_step(node: SinkNode, node_id: str, codec: str) -> Handler:
    """The step that ends a walk in a sink."""
    sink, name, how = node.sink, node.name, node.sink.codec or codec

    def step(data: object, walk: Any) -> None:
        walk.node = name
        walk.emit(name, node_id, sink, how, data)

    return step


def native_step(node: NativeNode | StateNode, inner: Handler) -> Handler:
    """`inner`, with the operator's name noted first, so that an exception is blamed on the right one."""
    name = node.name

    def step(data: object, walk: Any) -> None:
        walk.node = name
        inner(data, walk)

    return step
