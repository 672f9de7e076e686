"""Removes payloads that no kept message names, and no saved version of a program.

Which message names which payload is read from the headers alone, once, and from then on only of what is new. A payload is
removed when it was put more than an hour ago and all messages that were seen to name it are gone. Whoever is about to name
it has put it again just before, which touches it, and the store removes nothing that was touched since it was looked at. So
a payload must not be named for the first time an hour after it was put: nobody here waits that long between the two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from dspex.bus import subjects, telemetry
from dspex.bus.errors import NotStored
from dspex.bus.message import Message, new_id
from dspex.bus.port import Bus
from dspex.bus.seldom import logger
from dspex.bus.serving import payloads
from dspex.bus.serving.programs.states import payloads_of
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.reading import stored_in

_log = logger("dspex.engine")
AGE = 3600.0  # seconds since it was put, before which no payload is removed
QUIET = 5.0  # seconds without a message, after which those that are left are counted again


class UnusedPayloads:
    """The payloads of an application, and what this process has seen to name them."""

    def __init__(self, bus: Bus, app: str) -> None:
        self._bus, self._app = bus, app
        self._read: dict[str, tuple[float, int]] = {}  # stream → when it was made, and up to where it was read
        self._naming: dict[str, dict[tuple[str, int], None]] = {}  # payload → stream and sequence of what names it

    async def remove(self, applied: Mapping[str, Manifest], now: float) -> int:
        """Remove what is unused; how many payloads. Raises BusError, and then nothing more is removed.

        Nor is anything while a stream that may name some is not there: it may be restored.
        """
        objects = await self._bus.objects(subjects.objects(self._app))
        listed = await objects.listing()  # before messages are read: what is put from now on is young
        old = {name: put for name, put in listed.items() if put < now - AGE and payloads.NAME.fullmatch(name)}
        if not old:
            return 0
        for stream, filters in _streams(self._app, applied).items():
            if not await self._look(stream, filters) and any(
                stream in manifest.streams.values() for manifest in applied.values()
            ):
                raise NotStored(f"stream {stream} is not there: payloads that its events name are kept", fix="restore it")
        saved = await payloads_of(await self._bus.bucket(subjects.applied(self._app)))  # versions of programs name some, too
        removed = 0
        for name, put in old.items():
            if name not in saved and not await self._is_named(name) and await objects.remove(name, put):
                removed += 1
        self._naming = {name: places for name, places in self._naming.items() if name in listed}
        if removed:
            telemetry.emit("payloads_removed", count=removed)
            _log.info("removed payloads that nothing names", count=removed)
        return removed

    async def _look(self, stream: str, filters: Sequence[str]) -> bool:
        """Note what the messages of a stream name that were not seen before; whether the stream is there."""
        info = await self._bus.stream(stream)
        if info is None:
            return False
        created, after = self._read.get(stream, (0.0, 0))
        if created != info.created or info.last < after:  # made anew, or rolled back: what was noted of it may lie elsewhere
            after = 0
        if await self._bus.count(stream, filters, after=after):
            name = f"dspex-{self._app}-payloads-{new_id()}"
            created = info.created
            reader = await self._bus.reader(stream, filters, after=after, name=name, created=created, bodies=False)
            try:
                while await self._bus.count(stream, filters, after=after):
                    try:
                        async with asyncio.timeout(QUIET):
                            messages = await reader.read(5000)
                    except TimeoutError:
                        continue
                    self._note(stream, messages)
                    after = messages[-1].sequence
            finally:
                await reader.close()
        self._read[stream] = info.created, max(after, info.last)
        return True

    def _note(self, stream: str, messages: Sequence[Message]) -> None:
        for message in messages:
            if (name := message.headers.get(subjects.CLAIM_CHECK)) is not None:
                self._naming.setdefault(name, {})[stream, message.sequence] = None

    async def _is_named(self, name: str) -> bool:
        """Whether a message that names a payload is still there. Of those that are gone, nothing is remembered."""
        places = self._naming.get(name, {})
        for stream, sequence in reversed(list(places)):
            message = await stored_in(self._bus, stream, sequence)
            if message is not None and message.headers.get(subjects.CLAIM_CHECK) == name:
                return True
            del places[stream, sequence]
        return False


def _streams(app: str, applied: Mapping[str, Manifest]) -> dict[str, list[str]]:
    """Where payloads may be named, with the subjects there: all of our own streams, and the sources in those of others."""
    found: dict[str, list[str]] = {}
    for manifest in applied.values():
        for source, stream in manifest.streams.items():
            if (subject := manifest.subject(source)) not in found.setdefault(stream, []):
                found[stream].append(subject)
    own = (subjects.stream(app), subjects.sources(app), subjects.requests(app), subjects.answers(app))
    return {**found, **{stream: [">"] for stream in own}}
