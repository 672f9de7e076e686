"""Payloads as they are stored: sealed where the settings say so, and in the object store where a message cannot hold them.

    header `Dspex-Sealed`         who can read the body: see keyring.py
    header `Dspex-Claim-Check`    the SHA-256 of the body as stored, as 64 hex digits; the body of the message is empty

The rule is the same for all that is stored: events, sink events, requests, records, dead letters, redriven events. The object
is put before the message that names it, and putting it again touches it, so that housekeeping leaves it alone for an hour.
Log entries and snapshots are never checked in: whoever takes over needs nothing but the stream.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import structlog

from dspex.bus import subjects
from dspex.bus.errors import DataError, DecodeError, NotAllowed
from dspex.bus.message import Message
from dspex.bus.port import COMMIT_LIMIT, Bus, NewMessage
from dspex.bus.records import CallRequest, RecordTo
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.keys.clear_text import SETTING
from dspex.bus.serving.keys.hashes import is_damaged
from dspex.bus.serving.keys.new_leader import shown

ABOVE: Final = 256 << 10  # bytes of a body; a larger one is checked in, unless the settings say otherwise
MOST: Final = 64 << 20  # bytes of one payload: the data of an event, what a call is given, what it gives
ROOM: Final = 4096  # bytes of a message kept for headers
RECORD_WORDS: Final = 6  # of a record's message id: topology, stage, partition, number, try, nonce
MOST_DIGITS: Final = 19  # of a number in it: anybody may have written one
NAME: Final = re.compile(r"[0-9a-f]{64}")
_log = structlog.get_logger("dspex.bus")


def most(bus: Bus) -> int:
    """Bytes that one payload may have on this bus. Three of them fit an object: a record has an event and outputs."""
    return min(MOST, bus.max_payload // 2 * COMMIT_LIMIT // 4)


def inline(bus: Bus, above: int = ABOVE) -> int:
    """Bytes up to which a body stays in its message."""
    return min(above, bus.max_payload - min(ROOM, bus.max_payload // 2))


def is_whole(headers: Mapping[str, str]) -> bool:
    """Whether a message has its own body, so that `checked_out` would give it as it is."""
    return subjects.SEALED not in headers and subjects.CLAIM_CHECK not in headers


async def checked_in(bus: Bus, app: str, message: NewMessage, above: int = ABOVE) -> NewMessage:
    """The message as it can be stored: sealed with the key of its session, where the bus seals; and one whose body is too large
    names it, and the body is put first. Raises BusError.
    """
    if bus.sealing is not None:
        message = await bus.sealing.sealed(message)
    if len(message.data) <= inline(bus, above):
        return message
    objects = await bus.objects(subjects.objects(app))
    name = await objects.put(message.data)
    return message._replace(data=b"", headers={**(message.headers or {}), subjects.CLAIM_CHECK: name})


async def sent(bus: Bus, app: str, message: NewMessage) -> NewMessage:
    """The message as it can be sent to somebody who waits for it: nothing is stored but a body that no message holds."""
    return await checked_in(bus, app, message, bus.max_payload) if must_be_stored(bus, message) else message


def must_be_stored(bus: Bus, message: NewMessage) -> bool:
    """Whether no message holds the body."""
    return len(message.data) > inline(bus, bus.max_payload)


async def checked_out(bus: Bus, app: str, message: Message) -> Message | None:
    """The message with its body; None where nobody can have that any more: it is stored nowhere, its key was deleted, or what
    names it names nothing; or it is a record whose bytes are damaged. Raises BusError; NotAllowed where the payloads are
    sealed, and this process has no key.
    """
    return (await looked_at(bus, app, message))[0]


async def looked_at(bus: Bus, app: str, message: Message) -> tuple[Message | None, bool]:
    """What `checked_out` gives, and whether the body is damaged: it is there, and not as it was. Raises what that does."""
    if is_damaged(message):
        _log.error("a record is damaged", subject=message.subject, sequence=message.sequence)
        return None, True
    if subjects.CLAIM_CHECK not in message.headers or message.data:  # it has its body, also where it was fetched before
        return await _opened(bus, app, message), False
    found, damaged = await _fetched(bus, app, message)
    return (await _opened(bus, app, found) if found is not None else None), damaged


async def _opened(bus: Bus, app: str, message: Message) -> Message | None:
    """The message with a body that is not sealed; None where nobody can open it."""
    if subjects.SEALED not in message.headers:
        return message
    if bus.sealing is not None:
        return await bus.sealing.opened(message)
    if await bus.has("stream", subjects.keys(app)):
        raise NotAllowed(f"the payloads of {app} are sealed, and this process has no key", fix=f'set {SETTING} = "NAME"')
    _log.error("a sealed payload in an application that seals none", subject=message.subject, sequence=message.sequence)
    return None


async def _fetched(bus: Bus, app: str, message: Message) -> tuple[Message | None, bool]:
    """The message with the body that its claim check names; and whether that is damaged."""
    name = message.headers[subjects.CLAIM_CHECK]
    where = {"subject": message.subject, "sequence": message.sequence, "payload": name[:64]}
    if not NAME.fullmatch(name):  # whoever may publish can write what they like
        _log.error("a claim check names no payload", **where)
        return None, False
    objects = await bus.objects(subjects.objects(app))
    try:
        data = await shown(bus, "objects", subjects.objects(app), lambda: objects.get(name))
    except DataError as e:
        _log.error("a payload cannot be read", **where, why=e.message)
        return None, True
    if data is None:
        _log.error("a payload is stored nowhere any more", **where)
        return None, False
    return message._replace(data=data), False


def named_in_headers(app: str, message: Message) -> CallRequest:
    """What the subject and the headers of a request tell, where its payload is stored nowhere any more: whom to answer.

    The event of the call is lost with the payload, and the counted attempts: the try stands in for them. Raises DecodeError.
    """
    call, id = message.headers.get(subjects.CAUSE, ""), message.headers.get(subjects.RECORD, "")
    words, where = id.split("."), message.subject.split(".")
    if not call or len(words) != RECORD_WORDS or not all(n.isdecimal() and len(n) < MOST_DIGITS for n in words[2:5]):
        raise DecodeError("its payload is stored nowhere any more, and its headers do not tell whose call it is")
    topology, stage, partition, number, try_number, _ = words
    record = subjects.record(app, where[3], topology, stage, int(partition))
    to, run = RecordTo(record, id, int(number), b""), message.headers.get(subjects.RUN, call)
    return CallRequest(call, int(try_number), int(try_number), topology, where[-1], CallSpec("", "", ""), {}, run, record=to)


async def required(bus: Bus, app: str, message: Message) -> Message:
    """The message with its body. Raises DataError (DX511) where that is stored nowhere any more."""
    whole = await checked_out(bus, app, message)
    if whole is None:
        raise gone(message.subject)
    return whole


def gone(node: str) -> DataError:
    """The error of an event whose payload is stored nowhere any more."""
    return DataError(
        f"the payload of an event at {node} is stored nowhere any more, or is damaged, or its session was forgotten",
        code="DX511",
        node=node,
        fix="do not remove objects from the application's store; publish the event again, and drop the letter",
    )
