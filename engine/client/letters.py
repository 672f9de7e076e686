"""Dead letters as a client sees them: list, redrive, drop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from dspex.bus import codecs, subjects
from dspex.bus.errors import DataError, DecodeError, RunError, TopologyError
from dspex.bus.message import Event, Message
from dspex.bus.port import Bus, NewMessage
from dspex.bus.records import Letter, pack_frame
from dspex.bus.serving import payloads
from dspex.engine.graph import manifest
from dspex.engine.log.positions import pages
from dspex.engine.log.redriven import Redrives

_log = structlog.get_logger("dspex.client")


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
    )


async def listing(
    bus: Bus, app: str, topology: str = "*", *, node: str | None = None, reason: str | None = None
) -> AsyncIterator[DeadLetter]:
    """The dead letters that are stored now, oldest first. `reason`: name of an error class, or its code.

    They are read in pages, so a caller who keeps none of them needs little memory however many there are.
    """
    async for page in pages(bus, subjects.stream(app), [subjects.dead_pattern(app, topology)]):
        for message in page:
            found = await _readable(bus, app, message)
            if found is not None and node in (None, found.node) and reason in (None, found.reason, found.code):
                yield found


async def find(bus: Bus, app: str, sequence: int) -> DeadLetter | None:
    """The dead letter with this sequence; None where there is none any more."""
    info = await bus.stream(subjects.stream(app))
    message = await bus.get(info.name, sequence) if info is not None and 0 < sequence <= info.last else None
    if message is None or not subjects.matches(subjects.dead_pattern(app), message.subject):
        return None
    return await _readable(bus, app, message)


async def _readable(bus: Bus, app: str, message: Message) -> DeadLetter | None:
    """The dead letter that a message holds, or names; None for what no engine wrote, and for what is gone."""
    try:
        return read(await payloads.required(bus, app, message))
    except DataError as e:
        _log.warning("what is no dead letter is left out", subject=message.subject, sequence=message.sequence, why=e.message)
        return None


async def redrive(bus: Bus, app: str, letters: Iterable[DeadLetter], *, data: Any = None) -> int:
    """Run events again from where they failed: same event id, same run, the next attempt. How many.

    `data`: instead of what each holds. Each runs once, also where this is cut off and asked for again at any later time.
    What somebody else has redriven or dropped meanwhile is passed over.
    """
    redrives, done = Redrives(bus, app), 0
    for dead in letters:
        if not dead.sequence:
            raise RunError("only dead letters that came from dead_letters() can be redriven", fix="list them anew")
        done += await again(redrives, dead.sequence, lambda _: data)
    return done


async def again(redrives: Redrives, sequence: int, changed: Callable[[DeadLetter], Any] = lambda _: None) -> bool:
    """Run the event of one letter again; see `redrive`. `changed`: gives data instead of what it holds, or None.

    False: it was redriven or dropped meanwhile. Raises TopologyError (DX232) where no engine runs its stage any more.
    """

    async def frame(message: Message) -> NewMessage:
        letter = await payloads.required(redrives.bus, redrives.app, message)
        dead = Letter.unpack(letter.data)
        await _check_stage(redrives.bus, redrives.app, dead)
        whole = await _frame(redrives.bus, dead, changed(read(letter)))
        return await payloads.checked_in(redrives.bus, redrives.app, whole)

    return await redrives.once(sequence, frame)


async def _check_stage(bus: Bus, app: str, letter: Letter) -> None:
    """Refuse to redrive an event for a stage that no engine runs any more: nobody would read it. Raises TopologyError."""
    applied = (await manifest.of_application(bus, app)).get(letter.topology)
    stage = letter.redrive.split(".")[-2]
    if applied is not None and stage not in {applied.stages[source][0] for source in applied.streams}:
        raise TopologyError(
            f"{letter.topology} has no stage {stage} any more, where the event of this letter of {letter.node} goes on",
            code="DX232",
            node=letter.node,
            fix="bring its source back, or drop the letter: dspex dlq drop",
        )


async def _frame(bus: Bus, letter: Letter, data: Any) -> NewMessage:
    event = letter.event
    headers = {subjects.RUN: event.origin.run} if event.origin.run.isprintable() else {}  # who published may have chosen it
    if data is not None:
        body, content_type = codecs.encode(data)
        event = event._replace(data=body, content_type=content_type, outputs=None)
    elif letter.stored:
        if await bus.get(letter.stored.stream, letter.stored.sequence) is None:
            raise RunError(f"the event of this letter is not in {letter.stored.stream} any more", run=event.origin.run)
        headers[subjects.STORED] = f"{letter.stored.stream}:{letter.stored.sequence}"
    return NewMessage(letter.redrive, pack_frame([event]), headers)


async def drop(bus: Bus, app: str, sequences: Sequence[int]) -> int:
    """Remove the dead letters with these sequences. How many."""
    for sequence in sequences:
        await bus.delete(subjects.stream(app), sequence)
    return len(sequences)
