"""What runs sent to sinks, and stored events as a user sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

from dspex.bus import codecs, subjects
from dspex.bus.message import Event, Message, content_type, plain, to_event
from dspex.bus.port import Bus
from dspex.bus.serving import payloads
from dspex.engine.client.following.follower import Follower
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.positions import pages

FEW = 4  # messages of a sink, and sinks, that are asked for one by one where they are known to be near


async def outputs(
    bus: Bus, app: str, manifests: Mapping[str, Manifest], ids: Iterable[str], *, after: int | None = None
) -> dict[str, list[Event[Any]]]:
    """What each run sent to sinks so far, in order. `after`: all of it lies behind this sequence, where that is known."""
    follower = Follower(bus, app, manifests, ids)
    found: dict[str, list[Event[Any]]] = {id: [] for id in follower.runs}
    if not (sinks := sorted({s for m in manifests.values() for s in m.sinks})):
        return found
    start, stored = 1 + (await follower.begin() if after is None else after), dict[int, Message]()
    near = after is not None and len(sinks) <= FEW

    async def read(patterns: Sequence[str]) -> None:
        async for page in _pages(bus, subjects.stream(app), patterns, start, FEW if near else 0):
            stored.update({m.sequence: m for m in page if m.headers.get(subjects.RUN, "") in found})  # most are of other runs

    await asyncio.gather(*map(read, [[sink] for sink in sinks] if near else _apart(sinks)))
    for _, m in sorted(stored.items()):
        found[m.headers[subjects.RUN]].append(read_event(await payloads.required(bus, app, m)))
    return found


async def _pages(bus: Bus, stream: str, patterns: Sequence[str], start: int, few: int) -> AsyncIterator[list[Message]]:
    """The messages that are stored now; the first few of them, of one pattern, one by one, which costs no consumer."""
    for _ in range(few):
        if (message := await bus.next(stream, patterns[0], start)) is None:
            return
        yield [message]
        start = message.sequence + 1
    async for page in pages(bus, stream, patterns, start=start):
        yield page


def _apart(patterns: Iterable[str]) -> list[list[str]]:
    """Patterns that can be asked for together, as those can that no subject has in common."""
    groups: list[list[str]] = []
    for pattern in patterns:
        group = next((g for g in groups if not any(subjects.overlap(pattern, other) for other in g)), None)
        if group is None:
            groups.append([pattern])
        else:
            group.append(pattern)
    return groups


def read_event(m: Message) -> Event[Any]:
    """A stored message with its body as a user sees it."""
    m = plain(m)
    return to_event(m, codecs.decode(m.data, content_type(m.headers)))
