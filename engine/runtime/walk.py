"""The walk: one event through a stage's fused operators, and what came out of it.

A walk is synchronous and depth-first. It changes nothing outside itself: what it emits is a list of outputs, which a commit
makes durable with the position of the event, or which is dropped and made again, equal, by the next owner.
"""

from __future__ import annotations

from datetime import UTC, datetime
from random import Random
from types import MappingProxyType
from typing import Any, TypeAlias
from uuid import UUID

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus import subjects
from dspex.bus.codecs import JSON, Codec, decode, encode
from dspex.bus.errors import InvalidInput, OutputTooLarge
from dspex.bus.message import Event, derived_id
from dspex.bus.port import NewMessage
from dspex.bus.records import NodeEvent, Origin
from dspex.bus.subjects import CAUSE, CONTENT_TYPE, EVENT_ID, FALLBACK, KEY, RUN, SESSION, TRACEPARENT
from dspex.engine.graph.context import Handler
from dspex.engine.graph.nodes import CallNode, NativeNode, Sink, SinkNode, Source
from dspex.engine.log.rows import OpenCall
from dspex.engine.runtime.request import Address, Ask, request

_log: FilteringBoundLogger = structlog.get_logger("dspex.engine")
MOST_SUBJECT = 512  # characters of a subject; a server takes lines of 4096 bytes, and the line has more than the subject


Output: TypeAlias = NewMessage | Ask


class Walk:
    """The context of one event in one stage, and what its walk emits. Users see `Context` (graph/context.py) of it.

    One object serves one event after another, because making one for each would cost as much as a short walk.
    """

    __slots__ = ("_counts", "_event", "_ids", "_random", "address", "clock", "node", "number", "origin", "outputs")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.origin: Origin = _NOWHERE
        self.node = ""  # the operator that runs now: whom an exception is blamed on
        self.clock = 0.0
        self.number = 0  # of the next call
        self.outputs: list[Output] = []
        self._counts: dict[str, int] = {}
        self._ids = 0
        self._event: Event[Any] | None = None
        self._random: Random | None = None

    def enter(self, entry: Handler, event: NodeEvent, clock: float, number: int) -> list[Output]:
        """Walk an event from a node. Raises what decoding and the operators raise.

        Args:
            entry: the step of the node.
            clock: the engine's clock for the event, seconds since the epoch.
            number: the first that a call may get.
        """
        self.origin, self.clock, self.number, self.node = event.origin, clock, number, event.node
        outputs: list[Output] = []
        self.outputs = outputs
        self._ids = 0
        if self._counts:
            self._counts = {}
        self._event = self._random = None
        entry(event, self)
        return outputs

    # -- what users see -------------------------------------------------------------------------------------------
    @property
    def event(self) -> Event[Any]:
        if self._event is not None:
            return self._event
        o = self.origin
        at = datetime.fromtimestamp(o.time, tz=UTC)
        headers = MappingProxyType(o.headers or {})  # shared by all nodes: none may change them for the others
        self._event = Event(o.id, o.subject, None, at, o.run, o.cause, o.key, o.session, headers, o.sequence or None)
        return self._event

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock, tz=UTC)

    @property
    def key(self) -> str | None:
        return self.origin.key

    @property
    def session(self) -> str | None:
        return self.origin.session

    @property
    def log(self) -> FilteringBoundLogger:
        return _log.bind(topology=self.address.topology, node=self.node, event=self.origin.id, run=self.origin.run)

    @property
    def random(self) -> Random:
        if self._random is None:
            self._random = Random(self.origin.id)
        return self._random

    def uuid(self) -> UUID:
        self._ids += 1
        return UUID(derived_id(self.origin.id, f"{self.node}/uuid", self._ids))

    # -- what steps do --------------------------------------------------------------------------------------------
    def emit(self, node: str, node_id: str, sink: Sink, codec: Codec, data: object) -> None:
        """Send `data` to a sink."""
        body, content_type = encode(data, codec)
        if len(body) > self.address.limit:
            raise _too_large(node, len(body), self.address.limit)
        o, counts = self.origin, self._counts
        counts[node] = ordinal = counts.get(node, -1) + 1
        headers = {EVENT_ID: derived_id(o.id, node_id, ordinal), RUN: o.run}
        if o.id != o.run:  # else the run's first event is the cause, and the header would say it twice
            headers[CAUSE] = o.id
        if o.key is not None:
            headers[KEY] = o.key
        if o.session is not None:
            headers[SESSION] = o.session
        if o.trace is not None:
            headers[TRACEPARENT] = o.trace
        if o.fallback is not None:
            headers[FALLBACK] = o.fallback
        if content_type != JSON:
            headers[CONTENT_TYPE] = content_type
        self.outputs.append(NewMessage(_subject(sink, data), body, headers))

    def ask(self, node: CallNode, data: object, body: bytes, content_type: str, call: str | None, attempts: int) -> None:
        """Open a call. `call`: its id, where it was open before."""
        inputs = node.call.inputs(data)
        if call is None:
            ordinal = self._counts[node.name] = self._counts.get(node.name, -1) + 1
            call = derived_id(self.origin.id, self.address.node_id(node.name), ordinal)
        if len(body) > self.address.limit:
            raise _too_large(node.name, len(body), self.address.limit)
        event = NodeEvent(node.name, self.origin, content_type, body, call, attempts=attempts)
        row = OpenCall(
            node=node.name,
            id=call,
            run=self.origin.run,
            pool=node.call.pool,
            deadline=self.clock + node.call.deadline,
            digest=b"",
            key=self.origin.key if node.call.order == "key" else None,
        )
        asked = request(self.address, self.number, row, node.call, inputs, event, self.clock)
        if (size := len(asked.message.data) - len(body)) > self.address.limit:  # expressions may make more of the data
            raise _too_large(f"the inputs of {node.name}", size, self.address.limit)
        self.outputs.append(asked)
        self.number += 1


_NOWHERE = Origin(id="", subject="", run="")


def _too_large(node: str, size: int, most: int) -> OutputTooLarge:
    return OutputTooLarge(f"{node}: {size:,} bytes, and one payload may have {most:,}", node=node)


def _subject(sink: Sink, data: object) -> str:
    if sink.address is None:
        return sink.subject
    subject = sink.address(data)
    # The server closes the connection over a longer one: the commit would never get an answer.
    if not subjects.is_subject(subject) or len(subject) > MOST_SUBJECT or not subjects.matches(sink.pattern, subject):
        raise InvalidInput(
            f"{sink.subject} gives {subject[:200]!r}, which is no subject of {sink.pattern}",
            node=sink.subject,
            fix="fields in a sink's subject must be single short words without '.', '*', '>' or spaces",
        )
    return subject


# -- steps ------------------------------------------------------------------------------------------------------------
def source_step(source: Source, after: Handler) -> Handler:
    """The step at which a source event enters the graph: from its bytes."""
    accept, time = source.accept, source.time

    def step(event: NodeEvent, walk: Any) -> None:
        data = decode(event.data, event.content_type)
        if accept:
            data = accept(data)
        if time:
            walk.origin = walk.origin._replace(time=time(data).timestamp())
        after(data, walk)

    return step


def landing_step(node: CallNode, after: Handler) -> Handler:
    """The step at which an event enters the graph at a call: behind it where it has its outputs, else the call is made."""
    call = node.call

    def step(event: NodeEvent, walk: Any) -> None:
        data = decode(event.data, event.content_type)
        if event.outputs is None:
            walk.ask(node, data, event.data, event.content_type, event.call, event.attempts)
            return
        data = call.accept(data, event.outputs)
        before = walk.origin  # the call is the cause of all that comes after it
        walk.origin = before._replace(id=event.call, cause=before.id)
        after(data, walk)

    return step


def sink_step(node: SinkNode, node_id: str, codec: str) -> Handler:
    """The step that ends a walk in a sink."""
    sink, name = node.sink, node.name
    how = sink.codec or codec

    def step(data: object, walk: Any) -> None:
        walk.node = name
        walk.emit(name, node_id, sink, how, data)

    return step


def call_step(node: CallNode, codec: Any) -> Handler:
    """The step that ends a walk in a call; its record begins another."""
    name = node.name

    def step(data: object, walk: Any) -> None:
        walk.node = name
        body, content_type = encode(data, codec)
        walk.ask(node, data, body, content_type, None, 0)

    return step


def native_step(node: NativeNode, inner: Handler) -> Handler:
    """`inner`, with the operator's name noted first, so that an exception is blamed on the right one."""
    name = node.name

    def step(data: object, walk: Any) -> None:
        walk.node = name
        inner(data, walk)

    return step
