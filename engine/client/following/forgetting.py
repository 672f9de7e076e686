"""What an application has of a session, where that lies, and what of it is removed when the session is forgotten.

The key is deleted first: nobody can read anything of it then. What nothing goes by is removed as well. What a run's history is
read from stays, unreadable, until its retention: the events of sources, requests, records and events over hops; and so does
what somebody else waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from typing_extensions import TypedDict

from dspex.bus import codecs, subjects
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import DecodeError, NotAllowed
from dspex.bus.message import Message
from dspex.bus.port import Bus
from dspex.bus.serving import audit
from dspex.bus.serving.keys import keyring
from dspex.bus.serving.sessions.store import SessionStore
from dspex.engine.client.runs import kept, places
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.positions import pages

AT_ONCE: Final = 32  # messages that are removed together
_RETENTION: Final = "what runs did is read from it: until it is past the topology's retention"
_SENDER: Final = "who submitted the call waits for it: until somebody drops it, or 30 days"


class _Cached(TypedDict):
    data: bytes
    headers: dict[str, str]


@dataclass(frozen=True)
class Belonging:
    """What there is of a session.

    Attributes:
        what: "dead letters". where: the stream, the bucket or the object store. count: how many there are.
        removed: they are when the session is forgotten. until: else why they stay, and until when; "" where they do not.
    """

    what: str
    where: str
    count: int
    removed: bool
    until: str


@dataclass
class _Found:
    """What was found of one kind, in one place. `names`: sequences; or keys, ids and names of objects."""

    until: str
    names: list[int | str] = field(default_factory=list[int | str])


class Belongings:
    """What an application has of a session."""

    def __init__(self, bus: Bus, app: str, session: str, manifests: Mapping[str, Manifest]) -> None:
        self._bus, self._app, self._session, self._manifests = bus, app, session, manifests
        self._sources = [subject for _, subject, _ in places.sources(manifests)]
        self._found: dict[tuple[str, str], _Found] = {}
        self._named = set[str]()  # objects that its messages name
        self._objects: Mapping[str, float] = {}  # those that there are, and when each was put

    @property
    def rows(self) -> list[Belonging]:
        """What was found, by what and where."""
        return [Belonging(*at, len(one.names), not one.until, one.until) for at, one in self._found.items()]

    async def look(self) -> None:
        """Find it. Reads all that the application's streams hold; needs no key. Raises BusError."""
        app, streams = self._app, {stream for stream, _, _ in places.sources(self._manifests)}
        own = [subjects.stream(app), subjects.sources(app), subjects.requests(app), subjects.answers(app)]
        copies = {copy for one in self._manifests.values() for copy in one.copies.values()}
        for stream in dict.fromkeys([*own, *sorted(streams), *sorted(copies)]):
            try:
                await self._in_stream(stream, copies)
            except NotAllowed:
                self._found["not known", stream] = _Found("this connection may not look: it is another's")
        await self._in_buckets()
        await self._in_objects()

    async def remove(self) -> int:
        """Remove what nothing goes by; how much that was. Raises BusError."""
        count = 0
        for (_, where), one in self._found.items():
            names = one.names if not one.until else []
            for start in range(0, len(names), AT_ONCE):
                await asyncio.gather(*(self._remove(where, name) for name in names[start : start + AT_ONCE]))
            count += len(names)
        return count

    async def _in_stream(self, stream: str, copies: set[str]) -> None:
        async for page in pages(self._bus, stream, [">"]):
            for message in page:
                if message.headers.get(subjects.SESSION) == self._session:
                    self._take(stream, message, copies)

    def _add(self, what: str, where: str, name: int | str, until: str = "") -> None:
        self._found.setdefault((what, where), _Found(until)).names.append(name)

    def _take(self, stream: str, message: Message, copies: set[str]) -> None:
        what, until = ("public copies", "the stream is another's: until somebody removes them")
        if stream not in copies:
            what, until = self._kind(stream, message.subject)
        self._add(what, stream, message.sequence, until)
        if name := message.headers.get(subjects.CLAIM_CHECK):
            self._named.add(name)

    def _kind(self, stream: str, subject: str) -> tuple[str, str]:
        """What a message is; and why it stays, "" where it does not."""
        app = self._app
        if stream == subjects.answers(app):
            return "answers to submitted calls", "who submitted the call may ask for it: 30 days"
        if stream == subjects.requests(app):
            return "journals of calls", "the call goes by it: until that has ended"
        if stream != subjects.stream(app) or any(subjects.matches(source, subject) for source in self._sources):
            return "events of sources", _RETENTION
        if subjects.matches(subjects.dead_submitted(app, "*", "*"), subject):
            return "dead letters of submitted calls", _SENDER
        if subjects.matches(subjects.interactive_record(app, "*"), subject):
            return "records of interactive calls", ""
        kinds = {
            "work": ("requests of calls", _RETENTION),
            "record": ("records of calls", _RETENTION),
            "edge": ("events over hops", _RETENTION),
            "dead": ("dead letters", ""),
        }
        words = subject.removeprefix(f"{subjects.prefix(app)}.").split(".")
        return kinds.get(words[0], ("events of sinks", "")) if subject.startswith("dspex.") else ("events of sinks", "")

    async def _in_buckets(self) -> None:
        """What lies under keys: the session itself, answers that may be given again, runs that were imported or forked."""
        if await self._bus.has("bucket", name := subjects.sessions(self._app)):
            there = await (await self._bus.bucket(name)).get(subjects.session_key(self._session))
            if there is not None:
                self._add("its data and turns", name, self._session)
        if await self._bus.has("bucket", name := subjects.cache(self._app)):
            bucket = await self._bus.bucket(name)
            for key in await bucket.keys():
                if (stored := await bucket.get(key)) is not None and _session_of(stored[0]) == self._session:
                    self._add("answers that may be given again", name, key)
        for run in await kept.of_session(self._bus, self._app, self._session):
            self._add("imported runs and forks", subjects.kept(self._app), run)

    async def _in_objects(self) -> None:
        if self._named:
            self._objects = await (await self._bus.objects(name := subjects.objects(self._app))).listing()
            for one in sorted(self._named & self._objects.keys()):
                self._add("large payloads", name, one)

    async def _remove(self, where: str, name: int | str) -> None:
        if isinstance(name, int):
            await self._bus.delete(where, name)
        elif where == subjects.objects(self._app):
            await (await self._bus.objects(where)).remove(name, self._objects[name])
        elif where == subjects.sessions(self._app):
            await SessionStore(self._bus, self._app).remove(name)
        elif where == subjects.cache(self._app):
            await (await self._bus.bucket(where)).delete(name)
        else:
            await kept.remove(self._bus, self._app, name)


def _session_of(stored: bytes) -> str | None:
    """Whose a cached answer is; None where nobody says."""
    try:
        found: _Cached = checked(_Cached, "a cached answer", codecs.decode(stored, codecs.MSGPACK))
    except DecodeError:
        return None
    return found["headers"].get(subjects.SESSION)


def lines(rows: list[Belonging]) -> Iterator[str]:
    """What there is, for people."""
    for row in rows:
        yield f"{row.count} {row.what} in {row.where}" + (f" ({row.until})" if row.until else "")


async def forget(bus: Bus, app: str, session: str, manifests: Mapping[str, Manifest]) -> int:
    """See `Client.forget`."""
    there = Belongings(bus, app, session, manifests)
    if session:
        await there.look()
    count = await keyring.forget(bus, app, session, [*lines(there.rows)])
    removed = await there.remove()
    await SessionStore(bus, app).remove(session)  # it may have come since
    await audit.leave(bus, app, "forget", session=session, keys=count, removed=removed)
    return count
