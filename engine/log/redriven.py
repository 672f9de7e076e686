"""Redriving: the event of a dead letter goes back into the stream exactly once, however often that is cut off and asked again.

One atomic batch holds a *marker* that names the letter, and behind it the frame with the event. All markers of an application
lie on one subject, and each is written only if the last one there is still the one that was looked at: so nobody else can have
redriven the letter in between. Then the letter is removed, and the marker of the one before. The newest marker always stays,
because without it an older one would be the last again, and who looked then would be let in.

    marker, frame, letter       cut off: whoever comes next removes the letter, and the event does not run again
    marker, letter              half a batch, which a server at its limit or without power may leave: the event has not run
    marker                      done
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import orjson

from dspex.bus import subjects
from dspex.bus.errors import DataError, Fenced, RunError, TopologyError, Unsettled
from dspex.bus.message import Message
from dspex.bus.port import Bus, NewMessage
from dspex.bus.records import Letter, StoredAt
from dspex.bus.seldom import logger
from dspex.bus.serving import payloads
from dspex.engine.graph import manifest
from dspex.engine.graph.nodes import operator_of
from dspex.engine.log.positions import pages
from dspex.engine.log.reading import stored

_log = logger("dspex.engine")
_LONGEST: Final = 200  # characters that a message shows of a name in a letter
AGAIN = 0.1  # seconds until the markers are looked at again, after somebody else wrote one, or nobody knows
MOST_UNSURE = 20  # batches in a row of which nobody knows what became of them


class Redrives:
    """Redrives of one process, one after another."""

    def __init__(self, bus: Bus, app: str) -> None:
        self.bus, self.app, self.stream = bus, app, subjects.stream(app)
        self._markers: dict[int, int] | None = None  # sequence of a marker → its letter; None: they are to be read
        self._done: list[int] = []  # markers whose letter is gone

    async def once(self, letter: int, frame: Callable[[Message], Awaitable[NewMessage]]) -> bool:
        """Store the event of the dead letter at sequence `letter` as a frame, unless that was done, and remove the letter.

        `frame`: makes it of the message that holds the letter. False: there is no such letter any more, as somebody else has
        redriven or dropped it. Raises BusError, and what `frame` raises.
        """
        unsure = 0
        while True:
            markers = await self._known()
            found = await _found(self.bus, self.app, letter)  # only asked once the markers are known
            if found is None:
                return False
            mine = [sequence for sequence, marked in markers.items() if marked == letter]
            if any([await _is_whole(self.bus, self.app, sequence, found) for sequence in mine]):
                break
            try:
                last = await self.bus.commit(self._batch(letter, await frame(found), max(markers, default=0)))
            except (Fenced, Unsettled) as e:
                self._markers = None
                unsure = unsure + 1 if isinstance(e, Unsettled) else 0
                if unsure == MOST_UNSURE:
                    raise
                await asyncio.sleep(AGAIN)
                continue
            markers[last - 1] = letter
            break
        await self.bus.delete(self.stream, letter)
        await self._tidy(markers, letter)
        return True

    def _batch(self, letter: int, frame: NewMessage, newest: int) -> list[NewMessage]:
        marker = NewMessage(subjects.redriven(self.app), orjson.dumps({"letter": letter}), expect=newest)
        return [marker, frame._replace(headers={**(frame.headers or {}), subjects.LETTER: str(letter)})]

    async def _known(self) -> dict[int, int]:
        """The markers. Nobody else adds one without ours being refused."""
        if self._markers is None:
            self._markers = await _markers(self.bus, self.app)
        return self._markers

    async def _tidy(self, markers: dict[int, int], letter: int) -> None:
        for sequence in [s for s, marked in markers.items() if (marked == letter or s in self._done) and s != max(markers)]:
            await self.bus.delete(self.stream, sequence)
            del markers[sequence]
        self._done = [s for s, marked in markers.items() if marked == letter]


async def finish(bus: Bus, app: str) -> None:
    """Do what redrives that were cut off have left to do. Raises BusError.

    Before events that are read are removed: until then, a marker without its frame is half a batch.
    """
    markers = await _markers(bus, app)
    for sequence, letter in markers.items():
        found = await _found(bus, app, letter)
        if found is not None and await _is_whole(bus, app, sequence, found):
            await bus.delete(subjects.stream(app), letter)
        if sequence != max(markers):
            await bus.delete(subjects.stream(app), sequence)


def points_at(frame: Message) -> StoredAt | None:
    """Where the data of a frame's only event is stored, if not in the frame."""
    stream, _, sequence = frame.headers.get(subjects.STORED, "").rpartition(":")
    known = stream and sequence.isascii() and sequence.isdecimal() and len(sequence) < 19
    return StoredAt(stream, int(sequence)) if known else None


async def _markers(bus: Bus, app: str) -> dict[int, int]:
    found = [m async for page in pages(bus, subjects.stream(app), [subjects.redriven(app)]) for m in page]
    return {m.sequence: _letter_of(m) for m in found}


def _letter_of(marker: Message) -> int:
    """The letter that a marker names; 0 where it names none."""
    try:
        letter = orjson.loads(marker.data)["letter"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return 0
    return letter if isinstance(letter, int) else 0


async def _is_whole(bus: Bus, app: str, marker: int, letter: Message) -> bool:
    """Whether the frame of a letter lies behind its marker: in one batch with it, and where the letter's event goes on.

    A marker and the header alone anybody could have published, and the letter would be removed though its event never ran.
    """
    stream = subjects.stream(app)
    frame = await stored(bus, stream, marker + 1)
    if frame is None or frame.headers.get(subjects.LETTER) != str(letter.sequence):
        return False
    page = await bus.page(stream, [frame.subject], start=frame.sequence, stop=frame.sequence)
    whole = bool(page) and page[0].in_batch and frame.subject == await _goes_on(bus, app, letter)
    if not whole:
        _log.error("what follows a marker is not its frame, and is passed over", marker=marker, letter=letter.sequence)
    return whole


async def _goes_on(bus: Bus, app: str, letter: Message) -> str:
    """The subject where the event of a letter goes on; "" where the letter cannot be read."""
    try:
        return Letter.unpack((await payloads.required(bus, app, letter)).data).redrive
    except DataError:
        return ""


async def _found(bus: Bus, app: str, letter: int) -> Message | None:
    """The dead letter at a sequence; None where there is none."""
    found = await stored(bus, subjects.stream(app), letter) if letter > 0 else None
    return found if found is not None and subjects.matches(subjects.dead_pattern(app), found.subject) else None


async def check_places(bus: Bus, app: str, letter: Letter, sequence: int) -> None:
    """Refuse to redrive an event for a stage that no engine runs any more: nobody would read it (TopologyError).

    And one whose letter says that it goes on elsewhere than in its topology, or lies in a stream that its topology does not
    read (RunError): whoever may write letters could have anything written, with the rights of who redrives.
    """
    applied = (await manifest.of_application(bus, app)).get(letter.topology)
    words = letter.redrive.split(".")
    stage, index = words[-2:] if len(words) > 1 else ("", "")
    counts = applied.partitions if applied is not None else {}
    known = stage not in counts or index in map(str, range(counts[stage]))
    if not known or letter.redrive != subjects.edge(app, letter.topology, stage, index):
        raise _forged(sequence, f"its event goes on at {cut(letter.redrive)!r}, where no partition of its topology reads")
    streams = {subjects.stream(app), *(applied.streams.values() if applied is not None else ())}
    if letter.stored is not None and letter.stored.stream not in streams:
        raise _forged(sequence, f"its event lies in {cut(letter.stored.stream)!r}, which its topology does not read")
    if applied is None or stage not in applied.live:
        raise TopologyError(
            f"{cut(letter.topology)} has no stage {cut(stage)} any more, where the event of this letter of "
            f"{cut(letter.node)} goes on",
            code="DX232",
            node=letter.node,
            fix=f"bring its source back, or drop the letter: dspex dlq drop {sequence}",
        )
    name = operator_of(letter.event.node)
    node = applied.renamed.get(name, name)
    if node not in {*applied.streams, *applied.calls, *applied.hops, *applied.states} - {*applied.dropped}:
        raise TopologyError(
            f"{cut(letter.topology)} has no operator {cut(node)} any more, where the event of this letter goes on",
            code="DX232",
            node=letter.node,
            fix=f"bring it back, or drop the letter: dspex dlq drop {sequence}",
        )


def cut(name: str) -> str:
    """What a letter says, which may be of any length, as a message shows it."""
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…"


def _forged(sequence: int, why: str) -> RunError:
    message = f"dead letter {sequence} is none that an engine wrote: {why}"
    return RunError(message, code="DX624", fix=f"drop it: dspex dlq drop {sequence}")
