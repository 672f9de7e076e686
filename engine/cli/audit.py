"""`dspex audit ls`: who changed what, as they say of themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from dspex.bus import subjects
from dspex.engine.cli.terminal.client import client
from dspex.engine.cli.terminal.options import duration
from dspex.engine.cli.terminal.terminal import Terminal, terminal, to_json

if TYPE_CHECKING:
    from dspex.bus.message import Message
    from dspex.bus.port import Bus
    from dspex.bus.serving.audit import AuditEntry


def ls(
    context: typer.Context,
    since: Annotated[str | None, duration("--since", help="Only of the last 1h, 7d, …")] = None,
    who: Annotated[str | None, typer.Option("--who", help="Only of this user, or user@host.")] = None,
) -> None:
    """List who changed what, oldest first: publish and call by this command line, redrive, drop, apply, pause, delete, …"""
    t = terminal(context)
    t.run(_listed(t, since, who))


async def _listed(t: Terminal, since: str | None, who: str | None) -> None:
    from dspex.bus.serving.audit import read
    from dspex.bus.settings.duration import seconds

    after = (datetime.now(UTC) - timedelta(seconds=seconds(since))).timestamp() if since else 0.0
    rows: list[dict[str, object]] = []
    async with client(t, "audit") as c:
        own = _stored(c.bus, subjects.stream(c.app), subjects.audit(c.app, "*"), after)
        told = _stored(c.bus, subjects.told(c.app), subjects.told_pattern(c.app), after)
        async for message in _by_time(own, told):
            if message.subject == subjects.redriven(c.app):
                continue
            entry = read(message)
            if who is None or who in (entry.who, entry.who.partition("@")[0]):
                if t.json:
                    t.emit(entry.as_dict())
                else:
                    rows.append(_row(entry))
    if rows:
        t.table(rows, {"time": "time", "who": "who", "verb": "verb", "what": "what"}, wrap="what")
    elif not t.json:
        t.note("nothing was changed")


async def _stored(bus: Bus, stream: str, pattern: str, after: float) -> AsyncIterator[Message]:
    """What is stored there since a time, oldest first."""
    from dspex.engine.log.positions import pages, sequence_before

    info = await bus.stream(stream)
    start = await sequence_before(bus, info, after) + 1 if info is not None and after else 1
    async for page in pages(bus, stream, [pattern], start=start):
        for message in page:
            yield message


async def _by_time(*found: AsyncIterator[Message]) -> AsyncIterator[Message]:
    """The messages of all of them, the oldest first."""
    first = [(message, one) for one in found if (message := await anext(one, None)) is not None]
    while first:
        message, one = first.pop(min(range(len(first)), key=lambda n: first[n][0].time))
        yield message
        if (following := await anext(one, None)) is not None:
            first.append((following, one))


def _row(entry: AuditEntry) -> dict[str, object]:
    what = ", ".join(f"{name} {value if isinstance(value, str) else to_json(value)}" for name, value in entry.what.items())
    return {"time": entry.time.astimezone().strftime("%d %b %H:%M:%S"), "who": entry.who, "verb": entry.verb, "what": what}
