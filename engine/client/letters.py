"""Dead letters as a client sees them: list, redrive, drop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from dspex.bus import codecs, subjects
from dspex.bus.codecs.times import is_time
from dspex.bus.errors import DataError, DecodeError, DspexError, LateEvent, RunError, TopologyError
from dspex.bus.message import Event, Message, in_session, opened_if_it_can_be
from dspex.bus.port import Bus, NewMessage
from dspex.bus.records import CallRecord, Letter, NodeEvent, pack_frame
from dspex.bus.serving import audit, payloads
from dspex.bus.serving.keys.clear_text import may_store
from dspex.bus.serving.server_clock import ServerClock
from dspex.engine.client.publish import in_a_zone
from dspex.engine.client.status.names import names
from dspex.engine.graph import manifest
from dspex.engine.log.positions import pages
from dspex.engine.log.redriven import Redrives, check_places, cut

REFUSED: Final = (DataError, RunError, TopologyError)
"""What a letter that cannot be redriven raises."""


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
        unreadable: no engine wrote it, or it cannot be read any more: `message` says why, and it can only be dropped.
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
    unreadable: bool = False

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


def _data(event: NodeEvent) -> Any:
    try:
        return codecs.decode(event.data, event.content_type)
    except DecodeError:
        return event.data


def _time(seconds: float) -> datetime:
    """A time; the epoch for what is none: whoever may write frames or letters can say what they like."""
    return datetime.fromtimestamp(seconds if is_time(seconds) else 0.0, tz=UTC)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def read(message: Message) -> DeadLetter:
    """The dead letter that a message holds. Raises DecodeError."""
    letter = _letter(message)
    found = opened_if_it_can_be(letter.event)
    o, at = found.origin, _time(found.origin.time)
    event = Event(o.id, o.subject, _data(found), at, o.run, o.cause, o.key, o.session, dict(letter.headers), o.sequence or None)
    return DeadLetter(
        event=event,
        node=letter.node,
        reason=_text(letter.error.get("type")),
        message=_text(letter.error.get("message")),
        traceback=letter.traceback,
        attempts=letter.event.attempts,
        run=o.run,
        time=_time(letter.time),
        topology=letter.topology,
        sequence=message.sequence,
        code=_text(letter.error.get("code")),
        fix=_text(letter.error.get("fix")),
    )


def _letter(message: Message) -> Letter:
    """The letter in a message. Raises DecodeError for what is none, and for one of another topology than its subject says."""
    letter = Letter.unpack(message.data)
    if letter.topology != _words(message)[0]:
        raise DecodeError("a dead letter of another topology than that of its subject")
    return letter


def _words(message: Message) -> tuple[str, str]:
    """Topology and operator, as the subject of a letter names them."""
    _, _, _, topology, *rest = message.subject.split(".")
    return topology, ".".join(rest)


def _unreadable(message: Message, why: DataError) -> DeadLetter:
    topology, node = _words(message)
    at = _time(message.time)
    event: Event[Any] = Event("", message.subject, message.data, at, "", None, None, None, {}, message.sequence)
    return DeadLetter(
        event=event,
        node=node,
        reason=type(why).__name__,
        message=f"this letter cannot be read: {why.message}",
        traceback="",
        attempts=0,
        run="",
        time=at,
        topology=topology,
        sequence=message.sequence,
        code=why.code,
        fix=f"drop it: dspex dlq drop {message.sequence}",
        unreadable=True,
    )


async def listing(
    bus: Bus, app: str, topology: str = "*", *, node: str | None = None, reason: str | None = None, after: int = 0
) -> AsyncIterator[DeadLetter]:
    """The dead letters that are stored now, oldest first.

    Args:
        node: "draft" or "topology/draft", by its name of today or an older one. reason: name of an error class, or its code.
        after: those behind this sequence.

    They are read in pages, so a caller who keeps none of them needs little memory however many there are.
    """
    manifests = await manifest.of_application(bus, app) if node is not None else {}
    async for page in pages(bus, subjects.stream(app), [subjects.dead_pattern(app, topology)], start=after + 1):
        if bus.sealing is not None:
            await bus.sealing.at_hand(page)
        for message in page:
            found = await _shown(bus, app, message)
            is_of = node is None or node in names(manifests, found.topology, found.node)
            if is_of and reason in (None, found.reason, found.code):
                yield found


async def find(bus: Bus, app: str, sequence: int) -> DeadLetter | None:
    """The dead letter with this sequence; None where there is none any more."""
    info = await bus.stream(subjects.stream(app))
    message = await bus.get(info.name, sequence) if info is not None and 0 < sequence <= info.last else None
    if message is None or not subjects.matches(subjects.dead_pattern(app), message.subject):
        return None
    return await _shown(bus, app, message)


async def _shown(bus: Bus, app: str, message: Message) -> DeadLetter:
    """The dead letter that a message holds, or names; an unreadable one for what no engine wrote, and for what is gone."""
    try:
        return read(await payloads.required(bus, app, message))
    except DataError as e:
        return _unreadable(message, e)


Changed = Callable[[DeadLetter], Any]
"""Gives data instead of what a letter holds, or None."""


async def redrive(
    bus: Bus, app: str, letters: Iterable[DeadLetter], *, data: Any = None, time: datetime | Literal["now"] | None = None
) -> int:
    """Run events again from where they failed: same event id, same run, the next attempt. How many.

    `data`: instead of what each holds. `time`: their event time from now on, which late events need. Each runs once,
    also where this is cut off and asked for again at any later time.
    What somebody else has redriven or dropped meanwhile is passed over. One that cannot be redriven holds up no other: why is
    raised at the end, see `again`.
    """
    sequences = [dead.sequence for dead in letters]
    if not all(sequences):
        raise RunError("only dead letters that came from dead_letters() can be redriven", fix="list them anew")
    done, refused = await each_again(bus, app, sequences, lambda _: data, await seconds_of(bus, app, time))
    if refused:
        raise next(iter(refused.values()))
    return done


async def each_again(
    bus: Bus, app: str, sequences: Iterable[int], changed: Changed = lambda _: None, time: float | None = None
) -> tuple[int, dict[int, DspexError]]:
    """Run the events of letters again, see `again`: how many, and why others were not, by their sequences."""
    redrives, done, refused = Redrives(bus, app), 0, dict[int, DspexError]()
    for sequence in sequences:
        try:
            done += await again(redrives, sequence, changed, time)
        except REFUSED as e:
            refused[sequence] = e
    return done, refused


async def seconds_of(bus: Bus, app: str, time: datetime | Literal["now"] | None) -> float | None:
    """An event time in seconds since 1970; that of the server for "now"."""
    if time == "now":
        clock = ServerClock(bus, subjects.stream(app))
        await clock.ask()
        return clock()
    return None if time is None else in_a_zone("time", time).timestamp()


async def again(redrives: Redrives, sequence: int, changed: Changed = lambda _: None, time: float | None = None) -> bool:
    """Run the event of one letter again; see `redrive`. `changed`: gives data instead of what it holds, or None.

    `time`: its event time from now on. False: it was redriven or dropped meanwhile. Raises TopologyError (DX232) where no
    engine runs its stage any more; DataError for a letter that cannot be read; RunError for one that no engine wrote (DX624),
    for one that would be late again (DX625), and for one whose event is gone.
    """

    async def frame(message: Message) -> NewMessage:
        letter = await payloads.required(redrives.bus, redrives.app, message)
        dead = _letter(letter)
        await check_places(redrives.bus, redrives.app, dead, message.sequence)
        if time is None and dead.error.get("code") == LateEvent.code:
            why = f"the event of dead letter {message.sequence} came late, and would be late again"
            raise RunError(why, code="DX625", fix=f"give it another time: dspex dlq redrive {message.sequence} --time now")
        whole = await _frame(redrives.bus, dead, changed(read(letter)), time)
        await may_store(redrives.bus, redrives.app)
        return await payloads.checked_in(redrives.bus, redrives.app, whole)

    return await redrives.once(sequence, frame)


async def _frame(bus: Bus, letter: Letter, data: Any, time: float | None) -> NewMessage:
    event = letter.event
    if time is not None:
        event = event._replace(origin=event.origin._replace(time=time))
    headers = {subjects.RUN: event.origin.run} if event.origin.run.isprintable() else {}  # who published may have chosen it
    headers |= in_session(event.origin.session)
    if data is not None:
        body, content_type = codecs.encode(data)
        event = opened_if_it_can_be(event)._replace(data=body, content_type=content_type, outputs=None)
    elif letter.stored:
        if await bus.get(letter.stored.stream, letter.stored.sequence) is None:
            raise RunError(f"the event of this letter is not in {cut(letter.stored.stream)} any more", run=event.origin.run)
        headers[subjects.STORED] = f"{letter.stored.stream}:{letter.stored.sequence}"
    return NewMessage(letter.redrive, pack_frame([event]), headers)


async def audited(bus: Bus, app: str, verb: str, sequences: Sequence[int], **what: Any) -> None:
    """Leave an entry of what is done with letters, if there are any."""
    if sequences:
        await audit.leave(bus, app, verb, letters=list(sequences)[: audit.MOST_NAMED], count=len(sequences), **what)


async def drop(bus: Bus, app: str, sequences: Sequence[int]) -> int:
    """Remove the dead letters with these sequences. How many. Who submitted a call still gets its error."""
    stream = subjects.stream(app)
    for sequence in sequences:
        message = await bus.get(stream, sequence)
        if message is not None and subjects.matches(subjects.dead_submitted(app, "*", "*"), message.subject):
            await _keep_error(bus, app, message)
        await bus.delete(stream, sequence)
    return len(sequences)


async def _keep_error(bus: Bus, app: str, message: Message) -> None:
    """Store the error of a submitted call where who submitted it looks for its answer: it would be waited for, for ever."""
    try:
        letter = _letter(await payloads.required(bus, app, message))
    except DataError:
        return  # no engine wrote it
    o = letter.event.origin
    if (to := subjects.answered_at(app, o.subject)) is None:
        return
    record = CallRecord(letter.event.call or "", 1, letter.event.attempts, letter.topology, letter.node, error=letter.error)
    draft = NewMessage(to, record.pack(), {subjects.RUN: o.run, **in_session(o.session)})
    await bus.publish(await payloads.checked_in(bus, app, draft, bus.max_payload))
