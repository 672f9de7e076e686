"""The records of calls, whichever pool they are of."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b, sha256
from math import inf
from typing import ClassVar, Final

from msgpack.exceptions import UnpackException

from dspex.bus import subjects
from dspex.bus.codecs.checking import checker, made
from dspex.bus.codecs.msgpack import unpacked
from dspex.bus.errors import DecodeError, Unreachable
from dspex.bus.message import Message
from dspex.bus.port import Bus, Reader, Sealing
from dspex.bus.records import CallRecord, CallRequest, NodeEvent, Origin, unpack_event
from dspex.bus.seldom import logger
from dspex.bus.serving import payloads
from dspex.bus.serving.keys.hashes import HEX
from dspex.engine.log.reading import request_of
from dspex.engine.log.rows import OpenCall, Place, Position
from dspex.engine.runtime.arrival import Answered, Arrival
from dspex.engine.runtime.inputs.input import Input
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.walk.compile import Stage
from dspex.engine.runtime.walk.request import DIGEST, SALT

_log = logger("dspex.engine")
LATER: Final = 0.05  # seconds that a record may wait for others which nothing follows


class RecordsInput(Input):
    """The records of a partition's calls, whichever pool they are of."""

    name: ClassVar[str] = "records"
    gated: ClassVar[bool] = False

    def __init__(self, bus: Bus, app: str, stage: Stage) -> None:
        self._bus, self._stream = bus, subjects.stream(app)
        self._stage, self._app = stage, app
        self._asked: dict[int, tuple[int, int, float]] = {}  # partition → its claim, the last record that there was, and when

    async def open(self, partitions: Sequence[Partition], after: int, name: str) -> Reader:
        reader = await self._bus.reader(self._stream, [self._subject(p) for p in partitions], after=after, name=name)
        if self._stage.ends_in_calls:
            reader = _Later(reader)
        return _WithKeys(reader, self._bus.sealing) if self._bus.sealing is not None else reader

    def _subject(self, p: Partition) -> str:
        return subjects.record(self._app, "*", self._stage.graph.name, self._stage.id, p.index)

    async def verify(self, partitions: Sequence[Partition], clock: float) -> None:
        """Only what was taken is ever removed from our own stream."""

    def owner(self, message: Message) -> int:
        return int(message.subject.rpartition(".")[2])

    async def all_taken(self, p: Partition) -> bool:
        """Whether all records that are stored for a partition were taken: a stored record beats the deadline of its call.

        The leader is asked: a reader knows what has come, and not what was stored since it was cut off.
        """
        return await self._last(p) <= p.tables.position("records").sequence

    async def taken_until(self, p: Partition, now: float) -> float:
        """Up to when it is known that all records are taken that were stored for a partition. `now`: on the engine's clock.

        Where records come all the time, some are always on their way: so it is enough that those are taken that were there when
        the leader was asked before.
        """
        last = await self._last(p)
        taken, (claim, there, at) = p.tables.position("records").sequence, self._asked.get(p.index, (0, 0, -inf))
        if last > taken and p.log.claimed == claim and taken < there:
            return -inf
        self._asked[p.index] = (p.log.claimed, last, now)
        return now if last <= taken else at if p.log.claimed == claim else -inf

    async def _last(self, p: Partition) -> int:
        last = await self._bus.last(self._stream, self._subject(p))
        return last.sequence if last is not None else 0

    def at_once(self, p: Partition, message: Message, clock: float) -> Arrival | None:
        what: Answered | None = None
        h = message.headers
        if subjects.CLAIM_CHECK in h or subjects.SEALED in h:
            return None
        if (
            subjects.HASH in h and h[subjects.HASH] != sha256(message.data).hexdigest()[:HEX]
        ):  # is_damaged, without the way there
            return None
        if (found := _of_an_open_call(p, message)) is not None:
            event = _its_event(*found, message)
            if event is None and _is_awaited(*found):
                return None
            what = Answered(found[0], event)
        return arrival_of(message, clock, what)

    async def arrivals(self, p: Partition, message: Message, clock: float) -> Sequence[Arrival]:
        return [arrival_of(message, clock, await answered(self._bus, self._app, p, message))]


class _Later:
    """Reads records that nobody waits for, some together: who submitted the call has been told by its worker, and an engine
    that closes each at once takes the processor from whoever is still to be told. Not those of a session: its next call is
    asked for when the one before is closed.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader, self.close = reader, reader.close

    async def read(self, limit: int) -> list[Message]:
        messages = await self._reader.read(limit)
        if not any(subjects.SESSION in message.headers for message in messages):
            await asyncio.sleep(LATER)
        return messages


class _WithKeys:
    """Reads records, and asks together for the keys of all that it has read: their calls may have taken long."""

    def __init__(self, reader: Reader, sealing: Sealing) -> None:
        self._reader, self._sealing, self.close = reader, sealing, reader.close

    async def read(self, limit: int) -> list[Message]:
        messages = await self._reader.read(limit)
        await self._sealing.at_hand(messages)
        return messages


def arrival_of(message: Message, clock: float, what: Answered | None) -> Arrival:
    """What a message with a record is to a partition. `what`: None where it says nothing."""
    place, position = Place("records", message.sequence), Position(message.sequence, -1, 0.0, message.time)
    return Arrival(place, position, clock, what)


async def answered(bus: Bus, app: str, p: Partition, message: Message) -> Answered | None:
    """What a message with a record says; None where it says nothing about an open call.

    Whoever may write records can say what they like: the pool is that of the subject, its id is the one that only the worker
    with the request knows, and the event is the one that the call was made for. What does not fit is compared with the request.
    Raises Unreachable while it is not known where that lies.
    """
    whole = await payloads.checked_out(bus, app, message)
    if whole is None:
        return await _without_payload(bus, app, p, message)
    found = _of_an_open_call(p, whole)
    if found is None:
        return None
    record, row = found
    if (event := _its_event(record, row, whole)) is not None or not _is_awaited(record, row):
        return Answered(record, event)
    return await _compared(bus, app, record, row, whole)


def _of_an_open_call(p: Partition, message: Message) -> tuple[CallRecord, OpenCall] | None:
    """The record in a message, with its open call; None where it says nothing about one."""
    try:
        record = _record(message.data)
    except DecodeError as e:
        _log.error("what is no record is passed over", subject=message.subject, sequence=message.sequence, why=e.message)
        return None
    row = p.tables.calls.rows.get(record.number) if record.number is not None else None
    return (record, row) if row is not None and row.pool == message.subject.split(".")[3] else None


def _is_awaited(record: CallRecord, row: OpenCall) -> bool:
    """Whether it is the record of this execution, and not of an earlier one."""
    return (row.id, row.try_number) == (record.call, record.try_number)


def _its_event(record: CallRecord, row: OpenCall, message: Message) -> NodeEvent | None:
    """The event that came back with a record; None where it, or the nonce in the id, is not the one of the call."""
    words = message.headers.get(subjects.MESSAGE_ID, "").split(".", payloads.RECORD_WORDS)
    nonce = words[payloads.RECORD_WORDS - 1].encode(errors="replace")[:SALT] if len(words) >= payloads.RECORD_WORDS else b""
    if blake2b(record.event, digest_size=DIGEST, salt=nonce).digest() != row.digest:
        return None
    raw = unpacked(record.event)  # its digest says that it is what was packed for the call, so its types are known
    return NodeEvent(**raw | {"origin": Origin(**raw["origin"])})


async def _without_payload(bus: Bus, app: str, p: Partition, message: Message) -> Answered | None:
    """The end of a call whose record has lost its payload. The message's id names the call; see `request`."""
    words = message.headers.get(subjects.MESSAGE_ID, "").split(".")[3:5]
    numbers = [int(word) for word in words if word.isdecimal() and len(word) < payloads.MOST_DIGITS]
    row = p.tables.calls.rows.get(numbers[0]) if len(numbers) == 2 else None
    if row is None or row.pool != message.subject.split(".")[3] or row.try_number != numbers[1]:
        return None
    a = p.process.address
    record = CallRecord(row.id, row.try_number, row.attempts, a.topology, row.node, numbers[0])
    found = await _compared(bus, app, record, row, message)
    return without_payload(found) if found is not None else None


def without_payload(answered: Answered) -> Answered:
    """The same, as if the payload of the record were stored nowhere any more."""
    record = replace(answered.record, outputs=None, error=payloads.gone(answered.record.node).as_dict())
    return Answered(record, answered.event, gone=True)


def _record(data: bytes) -> CallRecord:
    """`CallRecord.unpack`, written out for the usual case, in which nothing is wrong. Raises DecodeError."""
    try:
        return made(CallRecord, checker(CallRecord).validate_python(unpacked(data), strict=True))
    except (ValueError, TypeError, OverflowError, UnpackException):
        return CallRecord.unpack(data)  # says what is wrong


async def _compared(bus: Bus, app: str, record: CallRecord, row: OpenCall, message: Message) -> Answered | None:
    """A record with the event that its call was made for, as the request says; None where it has not the id that stands there.

    Raises Unreachable while it is not known where the request lies.
    """
    if row.work <= 0:
        raise Unreachable("a record does not fit its call, and where the request of that lies is not known yet")
    asked = await request_of(bus, subjects.stream(app), row.work, record.number or 0)
    id = message.headers.get(subjects.MESSAGE_ID, "")
    wanted = asked.headers.get(subjects.RECORD, "") if asked is not None else ""
    if asked is None or not wanted or not f"{id}.".startswith(f"{wanted}."):  # under a fresh id, more is behind it
        _log.error("a record without the id of its call is passed over", subject=message.subject, sequence=message.sequence)
        return None
    return Answered(record, await _event_of(bus, app, asked))


async def _event_of(bus: Bus, app: str, request: Message) -> NodeEvent | None:
    """The event that a request is for; None where its payload is stored nowhere any more."""
    whole = await payloads.checked_out(bus, app, request)
    to = CallRequest.unpack(whole.data).record if whole is not None else None
    return unpack_event(to.event) if to is not None else None


async def requested(bus: Bus, app: str, sequence: int, number: int) -> NodeEvent | None:
    """The event that a stored request is for; None where it is not stored any more. `number`: of its call."""
    message = await request_of(bus, subjects.stream(app), sequence, number)
    return await _event_of(bus, app, message) if message is not None else None
