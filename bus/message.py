"""The event: what a stream holds, as a user sees it, and the ids that tie events to a run.

A child's id is derived from its parent's id, the operator and an ordinal, never drawn at random: an owner that takes over
and walks the same event again emits the same ids, so a repeat is recognisable everywhere. A random id
would make every recovery look like new events.
"""

from __future__ import annotations

import os
import re
import time as _time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2s
from typing import Any, Generic, NamedTuple, TypeVar

from dspex.bus import subjects
from dspex.bus.codecs import cloud_events, times, tracing
from dspex.bus.codecs.cloud_events import CloudEvent
from dspex.bus.errors import DecodeError
from dspex.bus.records import NodeEvent

T = TypeVar("T")


class Message(NamedTuple):
    """What a bus delivers: bytes with headers, as stored. `sequence` and `time` are 0 for one that no stream holds.

    `in_batch`: whether a commit stored it together with others. Only `Bus.scan` and `Bus.page` look.
    """

    subject: str
    data: bytes
    headers: Mapping[str, str]
    sequence: int = 0
    time: float = 0.0  # stored at, in seconds since the epoch
    reply: str = ""
    in_batch: bool = False


@dataclass(frozen=True)
class Event(Generic[T]):
    """One immutable event.

    Attributes:
        id: UUIDv7; `Nats-Msg-Id` of a published event.
        subject: where it was published.
        data: the decoded payload.
        time: event time (UTC): the publisher's, else the stored time.
        run: id of the run, which is the id of the source event that caused everything.
        cause: id of the event it was derived from; None for a source event.
        key: what spreads it over partitions and keeps order; None where it has none.
        session: id of the session; None where it has none.
        headers: all headers as stored.
        sequence: position in its stream; None where it is not stored.
    """

    id: str
    subject: str
    data: T
    time: datetime
    run: str
    cause: str | None = None
    key: str | None = None
    session: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    sequence: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The event as the CLI prints it (`watch --json`)."""
        return {
            "id": self.id,
            "subject": self.subject,
            "data": self.data,
            "time": self.time,
            "run": self.run,
            "cause": self.cause,
            "key": self.key,
            "session": self.session,
            "headers": dict(self.headers),
            "sequence": self.sequence,
        }


_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)


def _uuid(head: str, tail: str) -> str:
    """A UUIDv7 (RFC 9562) of 12 hex digits `head`, the time in milliseconds, and 74 bits of `tail`."""
    variant = "89ab"[int(tail[3], 16) & 3]
    return f"{head[:8]}-{head[8:12]}-7{tail[:3]}-{variant}{tail[4:7]}-{tail[7:19]}"


def oldest_of(ids: Iterable[str]) -> float:
    """When the first of these ids was made, in seconds since the epoch: UUIDv7 begin with that. 0.0 for none."""
    first = min(ids, default="")
    try:
        return int(f"{first[:8]}{first[9:13]}", 16) / 1000
    except ValueError:
        return 0.0


def new_id(now: float | None = None) -> str:
    """A new random UUIDv7. `now`: seconds since the epoch, the wall clock by default."""
    return _uuid(f"{int((_time.time() if now is None else now) * 1000):012x}", os.urandom(10).hex())


@lru_cache(8192)
def id_seed(operator: str, ordinal: int) -> Any:
    """What `derived_id` hashes before the parent: kept, because it is the same for all events of an operator."""
    return blake2s(f"{operator}/{ordinal}/".encode(), digest_size=16)


def derived_id(parent: str, operator: str, ordinal: int) -> str:
    """The id of what `operator` derived from event `parent`: the same at every walk, a UUIDv7 of the parent's time.

    It is made for every event that is emitted, so the hash of operator and ordinal is only copied: half the cost.
    """
    h = id_seed(operator, ordinal).copy()
    h.update(parent.encode())
    tail = h.hexdigest()
    return f"{parent[:13]}-7{tail[:3]}-8{tail[3:6]}-{tail[6:18]}"


INHERITED = 4096
"""Characters that id, run, key, session and trace of an event may have together: children have them in headers, and a server
takes 64 KB of those.
"""

SEQUENCE = (1 << 44) - 1
"""The part of a sequence that `place_id` has room for: a stream that has more was numbered by hand."""


PLACED = 11
"""The digits at the end of a `place_id` that hold the sequence."""


@lru_cache(64)
def place_form(stream: str, created: float) -> str:
    """What `place_id` formats, for events of one stream: 30 bits tell streams apart, 44 hold the sequence."""
    tail = blake2s(f"{stream}/{created!r}".encode(), digest_size=16).hexdigest()
    variant = "89ab"[int(tail[3], 16) & 3]
    return f"%08x-%04x-7{tail[:3]}-{variant}{tail[4:7]}-{tail[7]}%0{PLACED}x"


def place_id(stream: str, created: float, message: Message) -> str:
    """The id of an event that lies in a stream: a UUIDv7 of its stored time, the same whenever it is read again.

    It comes from the place alone, never from an id that the publisher chose: two streams may hold the same business id, and
    so may one stream after the duplicate window, and the calls of two events must never have one id. Events of one stream
    differ in the sequence, those of two streams in what their streams' names and ages give, or in time or sequence.
    """
    ms = int(message.time * 1000)
    return place_form(stream, created) % (ms >> 16, ms & 0xFFFF, message.sequence & SEQUENCE)


def id_time(id: str) -> datetime | None:
    """When a UUIDv7 was made; None for another kind of id."""
    if not _UUID7.fullmatch(id):
        return None
    try:
        return datetime.fromtimestamp(int(id[:8] + id[9:13], 16) / 1000, tz=UTC)
    except (ValueError, OverflowError):  # after the year 9999
        return None


def event_id(stream: str, created: float, message: Message) -> str:
    """The id of a stored event as its readers see it: the one that dspex gave an output, else that of its place."""
    return message.headers.get(subjects.EVENT_ID) or place_id(stream, created, message)


def run_of(stream: str, created: float, message: Message) -> str:
    """The id of the run that a stored event belongs to."""
    return message.headers.get(subjects.RUN) or place_id(stream, created, message)


def content_type(headers: Mapping[str, str]) -> str | None:
    """The content type that a message names. Other clients write the header in lower case, as HTTP/2 does."""
    found = headers.get(subjects.CONTENT_TYPE)
    if found is None and headers:
        found = next((value for name, value in headers.items() if name.lower() == "content-type"), None)
    return found


def plain(message: Message) -> Message:
    """A message with its body as dspex would have sent it: of a CloudEvent the data, with its key, time and trace in headers
    as the engine takes them (`opened`). Any other as it is. Raises DecodeError.
    """
    found = cloud_events.read(content_type(message.headers), message.headers, message.data)
    if found is None:
        return message
    headers = dict[str, str]()
    if (key := found.attributes.get("subject")) is not None:
        headers[subjects.KEY] = key
    if subjects.TRACEPARENT not in message.headers and (trace := _traced(found)) is not None:
        tracing.put(headers, trace)
    headers |= {n: v for n, v in cloud_events.without(message.headers).items() if n.lower() != "content-type"}
    if found.time is not None:
        headers[subjects.TIME] = cloud_events.rfc3339(found.time)
    headers |= {**found.headers, subjects.CONTENT_TYPE: found.content_type}
    return message._replace(headers=headers, data=found.data)


def spread_of(message: Message) -> str:
    """What decides which partition of a source an event belongs to: its key, else its session, else its subject.

    The key of a CloudEvent is an attribute. One that cannot be read becomes a dead letter, in any partition.
    """
    h = message.headers
    if h and subjects.KEY not in h:
        with suppress(DecodeError):
            h = plain(message).headers
    return h.get(subjects.KEY) or h.get(subjects.SESSION) or message.subject


def opened(event: NodeEvent) -> NodeEvent:
    """An event of a source as it is meant: of a CloudEvent the data, with what its attributes say of key, time and trace.

    Its other attributes become headers `ce-<name>`, in both content modes; but not `specversion`, so that what is opened is no
    CloudEvent any more. Raises DecodeError.
    """
    o = event.origin
    found = cloud_events.read(event.content_type, o.headers or {}, event.data)
    if found is None:
        return event
    said = found.attributes
    origin = o._replace(
        key=said.get("subject") if o.key is None else o.key,
        time=o.time if found.time is None else found.time,
        trace=_traced(found) if o.trace is None else o.trace,
        headers={**cloud_events.without(o.headers or {}), **found.headers},
    )
    return event._replace(origin=origin, content_type=found.content_type, data=found.data)


def _traced(found: CloudEvent) -> str | None:
    return tracing.joined(found.attributes.get("traceparent"), found.attributes.get("tracestate"))


def opened_if_it_can_be(event: NodeEvent) -> NodeEvent:
    """The same for people: where its attributes cannot be read, the event without them."""
    try:
        return opened(event)
    except DecodeError:
        headers = cloud_events.without(event.origin.headers or {})
        return event._replace(origin=event.origin._replace(headers=headers))


def in_session(session: str | None) -> dict[str, str]:
    """The header of what belongs to a session; none where no header can hold its id, which a publisher chose."""
    fits = session is not None and len(session) <= INHERITED and {"\r", "\n"}.isdisjoint(session)
    return {subjects.SESSION: session} if session is not None and fits else {}


def cause_of(headers: Mapping[str, str]) -> str | None:
    """The id of the event that this one was derived from; None for a source event."""
    return headers.get(subjects.CAUSE) or (headers.get(subjects.RUN) if subjects.EVENT_ID in headers else None)


def event_time(message: Message) -> datetime:
    """Event time of a stored message: that which it waits for, else its own, if it can be read, else when it was stored."""
    if subjects.AT in message.headers:
        with suppress(DecodeError):
            return datetime.fromtimestamp(times.due(message.headers, message.time) or 0.0, tz=UTC)
    if text := message.headers.get(subjects.TIME):
        with suppress(ValueError, OverflowError):  # not a time, or none that UTC has
            return times.moment(text)
    return datetime.fromtimestamp(message.time, tz=UTC)


def to_event(message: Message, data: Any, stream: str = "", created: float = 0.0) -> Event[Any]:
    """The user's view of a stored message whose payload was decoded to `data`. `created`: when its stream was made."""
    h, id = message.headers, event_id(stream, created, message)
    return Event(
        id=id,
        subject=message.subject,
        data=data,
        time=event_time(message),
        run=h.get(subjects.RUN) or id,
        cause=cause_of(h),
        key=h.get(subjects.KEY),
        session=h.get(subjects.SESSION),
        headers=h,
        sequence=message.sequence or None,
    )


def partition_of(key: str, count: int) -> int:
    """FNV-1a 32 modulo `count`: what the server's `{{partition(n,…)}}` gives, so a transform could take over."""
    h = 0x811C9DC5
    for c in key.encode():
        h = ((h ^ c) * 0x01000193) & 0xFFFFFFFF
    return h % count
