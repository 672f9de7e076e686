"""Watching: events of a subject, or results of a recorded node, as they are stored. It only reads them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Literal, TypeAlias

from dspex.bus import codecs, subjects
from dspex.bus.errors import DecodeError, TopologyError
from dspex.bus.message import Event, Message, content_type, to_event
from dspex.bus.port import Bus
from dspex.bus.records import CallRecord
from dspex.bus.serving import payloads
from dspex.engine.graph import manifest
from dspex.engine.log.positions import sequence_before

WatchStart: TypeAlias = Literal["new", "all"] | int | datetime


async def events(bus: Bus, app: str, what: str, start: WatchStart) -> AsyncIterator[Event[Any]]:
    """See `Client.watch`. A subject that no stream stores is watched live; `start` means nothing then."""
    if "/" in what:
        found: tuple[str | None, list[str], str | None] = await _node(bus, app, what)
    else:
        found = await bus.stream_of(what), [what], None
    stream, filters, node = found
    if stream is None:
        async for message in _live(bus, what):
            yield _read(await _whole(bus, app, message), None)
        return
    after = await _after(bus, stream, start)
    reader = await bus.reader(stream, filters, after=after, name=f"dspex-{app}-watch", listed=True)
    try:
        while True:
            for stored in await reader.read(100):
                message = await _whole(bus, app, stored)
                if node is None or _of(message, node):
                    yield _read(message, node)
    finally:
        await reader.close()


async def _node(bus: Bus, app: str, what: str) -> tuple[str, list[str], str]:
    topology, _, node = what.partition("/")
    applied = (await manifest.of_application(bus, app)).get(topology)
    if applied is None or node not in applied.calls:
        raise TopologyError(
            f"{what!r} cannot be watched: only sinks, sources and recorded nodes pass over the bus",
            code="DX235",
            fix=f"recorded nodes: {', '.join(applied.calls) if applied else 'none, the topology is not applied'}",
        )
    return subjects.stream(app), [subjects.record(app, "*", topology, "*", "*")], node


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


def _of(message: Message, node: str) -> bool:
    try:
        return CallRecord.unpack(message.data).node == node
    except DecodeError:
        return False  # the engine passes it over, and logs it


def _read(message: Message, node: str | None) -> Event[Any]:
    if node is not None:
        record = CallRecord.unpack(message.data)
        return to_event(message, dict(record.outputs) if record.outputs is not None else {"error": record.error})
    try:
        return to_event(message, codecs.decode(message.data, content_type(message.headers)))
    except DecodeError:
        return to_event(message, message.data)
