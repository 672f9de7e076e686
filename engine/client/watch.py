"""Watching: events of a subject, or results of a recorded node, as they are stored. It only reads them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeAlias

from dspex.bus import codecs, subjects
from dspex.bus.errors import DecodeError, TopologyError
from dspex.bus.message import Event, Message, content_type, event_time, plain, to_event
from dspex.bus.port import Bus
from dspex.bus.records import CallRecord, unpack_event
from dspex.bus.serving import payloads
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.client.status.names import names
from dspex.engine.graph import manifest
from dspex.engine.log.positions import sequence_before

WatchStart: TypeAlias = Literal["new", "all"] | int | datetime


class _Node(NamedTuple):
    """A recorded operator of an applied topology. `names`: those that it has and had."""

    topology: str
    name: str
    names: set[str]


async def events(bus: Bus, app: str, what: str, start: WatchStart) -> AsyncIterator[Event[Any]]:
    """See `Client.watch`. A subject that no stream stores is watched live; `start` means nothing then."""
    node = await _node(bus, app, what) if "/" in what else None
    if node is not None:
        stream, filters = subjects.stream(app), [subjects.record(app, "*", node.topology, "*", "*")]
    else:
        found = await bus.stream_of(what)
        if found is None:
            async for message in _live(bus, what):
                yield _unstored(await _whole(bus, app, message))
            return
        stream, filters = found, [what]
    after = await _after(bus, stream, start)
    info = await bus.stream(stream)
    created = info.created if info is not None else 0.0
    reader = await bus.reader(stream, filters, after=after, name=f"dspex-{app}-watch", listed=True)
    try:
        while True:
            for stored in await reader.read(100):
                message = await _whole(bus, app, stored)
                if node is None:
                    yield to_event(*_read(message), stream, created)
                elif (event := _result(message, node)) is not None:
                    yield event
    finally:
        await reader.close()


async def _node(bus: Bus, app: str, what: str) -> _Node:
    topology, _, node = what.partition("/")
    manifests = await manifest.of_application(bus, app)
    applied = manifests.get(topology)
    now = applied.renamed.get(node, node) if applied is not None else node
    if applied is None or now not in applied.calls:
        raise TopologyError(
            f"{what!r} cannot be watched: only sinks, sources and recorded nodes pass over the bus",
            code="DX235",
            fix=did_you_mean(what, [f"{t}/{n}" for t, m in manifests.items() for n in m.calls], "no recorded node is applied"),
        )
    return _Node(topology, now, names(manifests, topology, now))


async def _after(bus: Bus, stream: str, start: WatchStart) -> int:
    info = await bus.stream(stream)
    if info is None or start == "all":
        return 0
    if start == "new":
        return info.last
    if isinstance(start, int):
        return max(0, start - 1)
    assert isinstance(start, datetime)
    return await sequence_before(bus, info, start.timestamp())


async def _live(bus: Bus, subject: str) -> AsyncIterator[Message]:
    queue: asyncio.Queue[Message] = asyncio.Queue()
    subscription = await bus.subscribe(subject, queue.put)
    try:
        while True:
            yield await queue.get()
    finally:
        await subscription.close()


async def _whole(bus: Bus, app: str, message: Message) -> Message:
    """The message with its body; without one where nobody can have that any more."""
    return await payloads.checked_out(bus, app, message) or message._replace(data=b"")


def _read(message: Message) -> tuple[Message, Any]:
    """A message and its data; its bytes where that cannot be read. Of a CloudEvent the message that it stands for."""
    try:
        message = plain(message)
        return message, codecs.decode(message.data, content_type(message.headers))
    except DecodeError:
        return message, message.data


def _unstored(message: Message) -> Event[Any]:
    """An event that nothing stores: it comes now, and has no place that an id could be made of."""
    event = to_event(*_read(message._replace(time=time.time())))
    own = message.headers.get(subjects.EVENT_ID, "")
    return replace(event, id=own, run=message.headers.get(subjects.RUN, own))


def _result(message: Message, node: _Node) -> Event[Any] | None:
    """What an execution of the node gave, or that it failed; None for one of another node. How it is stored concerns nobody."""
    try:
        record = CallRecord.unpack(message.data)
        if record.node not in node.names:
            return None
        origin = unpack_event(record.event).origin
    except DecodeError:
        return None  # the engine passes it over, and logs it
    error = record.error or {}
    said = {name: error.get(name) for name in ("type", "code", "message")}
    data = dict(record.outputs) if record.outputs is not None else {"error": said}
    return Event(
        id=record.call,
        subject=f"{node.topology}/{node.name}",
        data=data,
        time=event_time(message),
        run=origin.run,
        cause=origin.id,
        key=origin.key,
        session=origin.session,
        headers={},
        sequence=message.sequence,
    )
