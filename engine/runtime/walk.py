"""The walk: one event through a stage's fused operators, and what came out of it.

A walk is synchronous and depth-first. It changes nothing outside itself: what it emits is a list of outputs, which a commit
makes durable with the position of the event, or which is dropped and made again, equal, by the next owner.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from random import Random
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus import subjects
from dspex.bus.codecs import JSON, Codec, encode
from dspex.bus.errors import InvalidInput, OutputTooLarge
from dspex.bus.message import Event, derived_id
from dspex.bus.port import NewMessage
from dspex.bus.records import Origin, Work
from dspex.bus.subjects import CAUSE, CONTENT_TYPE, EVENT_ID, KEY, RUN, SESSION, TRACEPARENT
from dspex.engine.graph.context import Handler
from dspex.engine.graph.nodes import Call, CallNode, NativeNode, Sink, SinkNode

_log: FilteringBoundLogger = structlog.get_logger("dspex.engine")
MOST_SUBJECT = 512  # characters of a subject; a server takes lines of 4096 bytes, and the line has more than the subject


class Asked(NamedTuple):
    """A call that a walk makes. It gets its ordinal, and becomes work, when a commit takes it."""

    node: str
    call: Call
    id: str
    origin: Origin
    inputs: Mapping[str, object]
    data: bytes
    content_type: str
    clock: float
    attempt: int = 1


class Reattempt(NamedTuple):
    """The next attempt at an open call."""

    ordinal: int
    work: Work
    pool: str


Output = NewMessage | Asked | Reattempt


class Walk:
    """The context of one event in one stage, and what its walk emits. Users see `Context` (graph/context.py) of it.

    One object serves one event after another (`begin`), because making one for each would cost as much as a short walk.
    """

    __slots__ = ("__dict__", "_counts", "_ids", "_most", "_most_asked", "clock", "node", "origin", "outputs", "topology")

    def __init__(self, topology: str, limit: int) -> None:
        self.topology = topology
        self._most = limit - 1024  # bytes of data that one message may have, with room for headers
        self._most_asked = limit - limit // 8  # bytes of data and inputs of a call, with room for the answer beside them
        self.origin: Origin = _NOWHERE
        self.node = ""  # the operator that runs now: whom an exception is blamed on
        self.clock = 0.0
        self.outputs: list[Output] = []
        self._counts: dict[str, int] = {}
        self._ids = 0

    def begin(self, origin: Origin, clock: float) -> None:
        """Start the walk of an event. `clock`: the engine's clock for it, seconds since the epoch."""
        self.origin = origin
        self.clock = clock
        self.outputs = []
        self._ids = 0
        if self._counts:
            self._counts = {}
        if self.__dict__:
            self.__dict__.clear()

    # -- what users see -------------------------------------------------------------------------------------------
    @cached_property
    def event(self) -> Event[Any]:
        o = self.origin
        at = datetime.fromtimestamp(o.time, tz=UTC)
        return Event(o.id, o.subject, None, at, o.run, o.cause, o.key, o.session, o.headers or {}, o.sequence or None)

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
        return _log.bind(topology=self.topology, node=self.node, event=self.origin.id, run=self.origin.run)

    @cached_property
    def random(self) -> Random:
        return Random(self.origin.id)

    def uuid(self) -> UUID:
        self._ids += 1
        return UUID(derived_id(self.origin.id, f"{self.node}/uuid", self._ids))

    # -- what steps do --------------------------------------------------------------------------------------------
    def _ordinal(self, node: str) -> int:
        n = self._counts.get(node, 0)
        self._counts[node] = n + 1
        return n

    def emit(self, node: str, sink: Sink, codec: Codec, data: object) -> None:
        """Send `data` to a sink."""
        body, content_type = encode(data, codec)
        if len(body) > self._most:
            self._too_large(len(body), self._most)
        o = self.origin
        headers = {EVENT_ID: derived_id(o.id, node, self._ordinal(node)), RUN: o.run}
        if o.id != o.run:  # else the run's first event is the cause, and the header would say it twice
            headers[CAUSE] = o.id
        if o.key is not None:
            headers[KEY] = o.key
        if o.session is not None:
            headers[SESSION] = o.session
        if o.trace is not None:
            headers[TRACEPARENT] = o.trace
        if content_type != JSON:
            headers[CONTENT_TYPE] = content_type
        self.outputs.append(NewMessage(_subject(sink, data), body, headers))

    def ask(self, node: str, call: Call, codec: Codec, data: object) -> None:
        """Open a call with `data`."""
        inputs = call.inputs(data)
        body, content_type = encode(data, codec)
        if 2 * len(body) > self._most_asked:  # the inputs travel beside the data
            self._too_large(2 * len(body), self._most_asked)
        o = self.origin
        id = derived_id(o.id, node, self._ordinal(node))
        self.outputs.append(Asked(node, call, id, o, inputs, body, content_type, self.clock))

    def _too_large(self, size: int, most: int) -> None:
        raise OutputTooLarge(f"{self.node} emitted {size:,} bytes; one message may have {most:,}", node=self.node)


_NOWHERE = Origin(id="", subject="", run="")


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


def origin_after(call: str, before: Origin) -> Origin:
    """The origin of what follows a call: the call is the cause of all that comes after it."""
    return before._replace(id=call, cause=before.id)


def sink_step(node: SinkNode, codec: str) -> Handler:
    """The step that ends a walk in a sink."""
    sink, name = node.sink, node.name
    how = sink.codec or codec

    def step(data: object, ctx: Any) -> None:
        ctx.node = name
        ctx.emit(name, sink, how, data)

    return step


def call_step(node: CallNode, codec: str) -> Handler:
    """The step that ends a walk in a call; its result begins another."""
    call, name = node.call, node.name

    def step(data: object, ctx: Any) -> None:
        ctx.node = name
        ctx.ask(name, call, codec, data)

    return step


def named_step(node: NativeNode, inner: Handler) -> Handler:
    """`inner`, with the operator's name noted first, so that an exception is blamed on the right one."""
    name = node.name

    def step(data: object, ctx: Any) -> None:
        ctx.node = name
        inner(data, ctx)

    return step
