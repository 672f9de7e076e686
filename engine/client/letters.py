"""Dead letters as a client sees them: list, redrive, drop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dspex.bus import codecs, subjects
from dspex.bus.errors import DecodeError, RunError
from dspex.bus.message import Event, Message
from dspex.bus.port import Bus, NewMessage
from dspex.bus.records import Letter, pack_frame


@dataclass(frozen=True)
class DeadLetter:
    """An event that could not be processed.

    Attributes:
        event: as it was read; `data` is the raw bytes where they could not be decoded.
        node: the operator that failed.
        reason: name of the error's class.
        message: what was wrong.
        traceback: at most 8 KiB; "" where there is none.
        attempts: how often it was tried.
        run: id of its run.
        time: when it was given up (UTC).
    """

    event: Event[Any]
    node: str
    reason: str
    message: str
    traceback: str
    attempts: int
    run: str
    time: datetime
    topology: str = ""
    sequence: int = 0
    code: str = ""
    fix: str = ""
    _letter: Letter | None = field(default=None, repr=False, compare=False)

    def as_dict(self, *, traceback: bool = False) -> dict[str, Any]:
        """As the CLI prints it."""
        shown = {
            "sequence": self.sequence,
            "topology": self.topology,
            "node": self.node,
            "reason": self.reason,
            "code": self.code,
            "message": self.message,
            "fix": self.fix,
            "attempts": self.attempts,
            "run": self.run,
            "time": self.time,
            "event": self.event.as_dict(),
        }
        return shown | ({"traceback": self.traceback} if traceback else {})


def _data(letter: Letter) -> Any:
    try:
        return codecs.decode(letter.event.data, letter.event.content_type)
    except DecodeError:
        return letter.event.data


def read(message: Message) -> DeadLetter:
    """The dead letter that a message holds."""
    letter = Letter.unpack(message.data)
    o = letter.event.origin
    at = datetime.fromtimestamp(o.time, tz=UTC)
    event = Event(
        o.id, o.subject, _data(letter), at, o.run, o.cause, o.key, o.session, dict(letter.headers), o.sequence or None
    )
    return DeadLetter(
        event=event,
        node=letter.node,
        reason=str(letter.error.get("type", "")),
        message=str(letter.error.get("message", "")),
        traceback=letter.traceback,
        attempts=letter.event.attempts,
        run=o.run,
        time=datetime.fromtimestamp(letter.time, tz=UTC),
        topology=letter.topology,
        sequence=message.sequence,
        code=str(letter.error.get("code", "")),
        fix=str(letter.error.get("fix", "")),
        _letter=letter,
    )


async def listing(
    bus: Bus, app: str, topology: str = "*", *, node: str | None = None, reason: str | None = None
) -> AsyncIterator[DeadLetter]:
    """The dead letters that are stored now, oldest first. `reason`: name of an error class, or its code."""
    info = await bus.stream(subjects.stream(app))
    if info is None:
        return
    for message in await bus.scan(info.name, [subjects.dead_pattern(app, topology)], start=info.first, stop=info.last):
        found = read(message)
        if node in (None, found.node) and reason in (None, found.reason, found.code):
            yield found


async def redrive(bus: Bus, app: str, letters: Iterable[DeadLetter], *, data: Any = None) -> int:
    """Run events again from where they failed: same event id, same run, the next attempt. How many.

    `data`: instead of what each holds. The letter is removed once its event is back in the stream; redriven twice in between,
    the event still runs once, because the message carries the letter's own sequence as its id.
    """
    count = 0
    for dead in letters:
        letter = dead._letter  # pyright: ignore[reportPrivateUsage]
        if letter is None:
            raise RunError("only dead letters that came from dead_letters() can be redriven", fix="list them anew")
        await bus.publish(await _again(bus, letter, dead.sequence, data))
        await bus.delete(subjects.stream(app), dead.sequence)
        count += 1
    return count


async def _again(bus: Bus, letter: Letter, sequence: int, data: Any) -> NewMessage:
    event = letter.event
    headers = {subjects.MESSAGE_ID: subjects.redrive_id(sequence), subjects.RUN: event.origin.run}
    if data is not None:
        body, content_type = codecs.encode(data)
        event = event._replace(data=body, content_type=content_type, outputs=None)
    elif letter.stored:
        if await bus.get(letter.stored.stream, letter.stored.sequence) is None:
            raise RunError(f"the event of this letter is not in {letter.stored.stream} any more", run=event.origin.run)
        headers[subjects.STORED] = f"{letter.stored.stream}:{letter.stored.sequence}"
    return NewMessage(letter.redrive, pack_frame([event]), headers)


async def drop(bus: Bus, app: str, letters: Iterable[DeadLetter]) -> int:
    """Remove dead letters. How many."""
    count = 0
    for dead in letters:
        await bus.delete(subjects.stream(app), dead.sequence)
        count += 1
    return count
