"""Publishing: one event, stored before it is reported as such."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from dspex.bus import codecs, subjects
from dspex.bus.codecs import cloud_events, times, tracing
from dspex.bus.errors import BusError, ConfigError, DecodeError, InvalidInput, NotStored, PayloadTooLarge
from dspex.bus.message import INHERITED, new_id
from dspex.bus.port import Ack, Bus, NewMessage
from dspex.bus.serving import payloads
from dspex.bus.serving.keys.clear_text import may_store
from dspex.bus.settings.duration import Duration, seconds
from dspex.engine.client.following.naming import AT
from dspex.engine.client.following.waits import RunWaits
from dspex.engine.client.run import Run
from dspex.engine.graph import manifest


async def publish(bus: Bus, app: str, message: NewMessage, above: int = payloads.ABOVE, waits: RunWaits | None = None) -> Run:
    """Store an event of a source; the run that it begins.

    `above`: bytes of data that is not stored in its message. `waits`: of the client.

    Raises ConfigError for what is no subject, and (DX124) where the application's payloads are sealed, and there is no key
    here; NotStored, PayloadTooLarge.
    """
    try:
        ack = await store(bus, app, message, above)
    except NotStored as e:
        raise await _suggested(bus, app, message.subject, e) from None
    return run_at(bus, app, message.subject, ack, waits)


async def store(bus: Bus, app: str, message: NewMessage, above: int = payloads.ABOVE) -> Ack:
    """Store an event of a source; where it is. Raises as `publish`, and Fenced where it expects another sequence."""
    (draft,) = await ready(bus, app, [message], above)
    return await bus.publish(draft)


async def ready(bus: Bus, app: str, messages: Sequence[NewMessage], above: int = payloads.ABOVE) -> list[NewMessage]:
    """Events as they are stored: sealed where that is wanted, and what is large put beside them. Raises as `publish`."""
    for subject in {message.subject for message in messages}:
        if not subjects.is_subject(subject):
            raise ConfigError(f"{subject!r} is not a subject", code="DX105", fix="tokens joined by dots, without wildcards")
    most, small = payloads.most(bus), payloads.inline(bus, above)
    largest = max(messages, key=lambda message: len(message.data))
    if (size := len(largest.data)) > most:
        text = f"{size:,} bytes for {largest.subject}, and one payload may have {most:,}"
        raise PayloadTooLarge(text, node="publish", fix="store it elsewhere, and publish where it is")
    await may_store(bus, app)
    if bus.sealing is None and size <= small:
        return list(messages)
    if bus.sealing is not None and len(messages) > 1:
        await bus.sealing.prepare(messages)
    return [await payloads.checked_in(bus, app, message, above) for message in messages]


def run_at(bus: Bus, app: str, subject: str, ack: Ack, waits: RunWaits | None = None) -> Run:
    """The run of an event that was stored."""
    return Run(bus, app, f"{ack.stream}{AT}{ack.sequence}", subject, ack.stream, ack.sequence, ack.duplicate, waits)


async def is_stored_at(bus: Bus, app: str, message: NewMessage, ack: Ack) -> bool | None:
    """Whether the event stored at a place has this subject and this data; None where that cannot be seen."""
    try:
        stored = await bus.get(ack.stream, ack.sequence)
        whole = await payloads.checked_out(bus, app, stored) if stored is not None else None
    except BusError:
        return None
    if whole is None:
        return None
    if whole.subject != message.subject:
        return False
    kinds = [(m.headers or {}).get(subjects.CONTENT_TYPE) for m in (whole, message)]
    try:
        return whole.data == message.data or codecs.decode(whole.data, kinds[0]) == codecs.decode(message.data, kinds[1])
    except DecodeError:
        return False


async def _suggested(bus: Bus, app: str, subject: str, e: NotStored) -> NotStored:
    applied = await manifest.of_application(bus, app)
    known = {source: topology for topology, m in applied.items() for source in m.subjects}
    readers = sorted({topology for source, topology in known.items() if subjects.matches(source, subject)})
    close = difflib.get_close_matches(subject, known, n=1)
    fix = "apply a topology that reads it: dspex run"
    if readers:
        fix = f"{', '.join(readers)} reads it, and the stream is gone that stored it: apply it again, dspex apply"
    elif close:
        fix = f"did you mean {close[0]} (source of {known[close[0]]})?  or {fix}"
    return NotStored(f"nothing stores {subject!r}, so the event would be lost", code=e.code, fix=fix, node="publish")


def named(id: str | None) -> str:
    """The id that names what is sent, so that the same twice is one; a new one where none is given.

    Raises ConfigError (DX105) for an empty one: what it was to be made of was not there, and would name everything or nothing.
    """
    if id is None:
        return new_id()
    if not id:
        fix = "leave it out, or see where its value comes from"
        raise ConfigError("the id is empty, so the same sent twice would not be known again", code="DX105", fix=fix)
    return id


def headers_of(
    id: str | None,
    key: str | None,
    session: str | None,
    time: datetime | None,
    more: Mapping[str, str] | None,
    content_type: str,
    waits: str | None = None,
) -> dict[str, str]:
    """The headers of an event. `waits`: see `waiting`. Raises ConfigError (DX105) where `more` has one that dspex sets itself;
    InvalidInput where what is handed on to all that follows from the event is too long.
    """
    if len(key or "") + len(session or "") > INHERITED // 2:  # ids of the engine, and the trace, need the rest
        raise InvalidInput(f"key and session have more than {INHERITED // 2:,} characters together", fix="use shorter ones")
    ours = [h for h in more or {} if h in subjects.OWN_HEADERS or h.lower().startswith(subjects.FROM_SERVER.lower())]
    if ours:
        raise ConfigError(f"header {ours[0]!r} is set by dspex", code="DX105", fix="use publish's own options, or another name")
    headers = dict(more or {})
    says = (subjects.TRACEPARENT, "ce-traceparent")  # a CloudEvent in one piece may say it, too, and that comes first
    if not headers.keys() & set(says) and content_type != cloud_events.STRUCTURED and (trace := tracing.current()):
        tracing.put(headers, trace)
    if id is not None:
        headers[subjects.MESSAGE_ID] = id
    if key is not None:
        headers[subjects.KEY] = key
    if session is not None:
        headers[subjects.SESSION] = session
    if time is not None:
        headers[subjects.TIME] = in_a_zone("time", time).isoformat()
    if waits is not None:
        headers[subjects.AT] = waits
    if content_type != codecs.JSON:
        headers[subjects.CONTENT_TYPE] = content_type
    return headers


def in_a_zone(name: str, time: object) -> datetime:
    """A time, which is in UTC where it says no zone. Raises ConfigError (DX105) for anything but a datetime."""
    if not isinstance(time, datetime):
        fix = 'a datetime, or datetime.fromisoformat("2026-01-31T09:00:00+01:00")'
        raise ConfigError(f"{name}={time!r} is no datetime", code="DX105", fix=fix)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def waiting(time: datetime | None, at: datetime | None, after: Duration | None) -> str | None:
    """The header of an event that waits until a time, or for a while after it is stored; None where it does not.

    Raises ConfigError (DX105) where two times are said, and DX102 for what is no duration.
    """
    if sum(one is not None for one in (time, at, after)) > 1 and (at is not None or after is not None):
        why = "an event has one time: at and after say until when it waits, and that is its event time"
        raise ConfigError(why, code="DX105", fix="give one of at, after and time")
    if at is not None:
        return in_a_zone("at", at).isoformat()
    if after is None:
        return None
    if (wait := seconds(after)) > times.MOST_AHEAD:
        most = f"{times.MOST_AHEAD / 86400:g} days"
        raise ConfigError(
            f"an event waits at most {most} after it is stored", code="DX102", fix=f"publish it later: {after} is too long"
        )
    return f"+{wait:g}"
