"""Reading and removing what a stream holds, without a consumer that stays."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from weakref import WeakSet

from dspex.bus import subjects
from dspex.bus.errors import NotAllowed, Unreachable
from dspex.bus.message import Message
from dspex.bus.nats import protocol
from dspex.bus.nats.connection import Connection
from dspex.bus.nats.consumer import (
    STATUS,
    Deliveries,
    create,
    create_listed,
    delivery_of,
    drop,
    ordered,
    pass_over,
    pull,
    pulls,
)
from dspex.bus.nats.failures import NO_MESSAGE, ServerRefusal, what_a_server_says
from dspex.bus.port import PAGE_BYTES

_PAGE: Final = 5_000  # messages of one pull
_SCAN_IDLE: Final = 30.0  # seconds until the server forgets the consumer of a scan whose process died
_PAGE_TIMEOUT: Final = 10.0
_SUBJECTS: Final = 1024  # of one direct get; with more the server refuses
_NOT_FOUND: Final = 10043
_DELETE_FAILED: Final = 10057
_LISTED: Final = WeakSet[Connection]()  # those whose consumers may only have names that permissions list
_ABOUT: Final = b"\r\nNats-Stream: "  # where what the server says of a message begins, in a direct get


def timestamp(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 time, as the server writes it."""
    return datetime.fromisoformat(text).timestamp()


async def message(connection: Connection, stream: str, which: Mapping[str, object]) -> Message | None:
    """The message that `which` describes (`seq`, `last_by_subj`, `next_by_subj`), asked of the leader; None: no such."""
    try:
        answer = await connection.api(f"STREAM.MSG.GET.{stream}", which)
    except ServerRefusal as e:
        if e.number != NO_MESSAGE:
            raise
        return None
    return _read(answer)


@what_a_server_says()
def _read(answer: Mapping[str, Any]) -> Message:
    found = answer["message"]
    head = base64.b64decode(found.get("hdrs", ""))
    data = base64.b64decode(found.get("data", ""))
    return Message(found["subject"], data, protocol.headers(head), int(found["seq"]), timestamp(found["time"]))


async def scan(
    connection: Connection, stream: str, filters: Sequence[str], start: int, stop: int, most: int = 0
) -> list[Message]:
    """`Bus.scan`, or `Bus.page` where `most` is not 0; with a consumer that lives as long as the scan.

    A consumer, and not direct-get batches: those take one filter each, so many filters would be as many passes.
    """
    found, behind, end = list[Message](), max(start, 1), stop
    for reads in (1, 2):
        if end < behind:
            return found
        page, more = await _once(connection, stream, filters, behind, end, most and most - len(found))
        found += page
        # The consumer read one replica, which may lag. It has all there was if it has the message at `end`; else the leader
        # is asked whether there is one more.
        if more or len(found) == most > 0:
            return found
        behind = found[-1].sequence + 1 if found else behind
        if behind > end:
            return found
        lacking = await _each(connection, stream, [{"seq": behind, "next_by_subj": f} for f in filters])
        if not any(m.sequence <= end for m in lacking):
            return found
        if reads == 2:
            break
        # The replica lags, or this was stored behind the scan: read on, as far as the leader is now. To go on until nothing
        # lacks would never end in a stream that grows faster than it is asked.
        newest = await _each(connection, stream, [{"last_by_subj": f} for f in filters])
        end = min(end, max((m.sequence for m in newest), default=0))
    raise Unreachable(f"a replica of {stream} is behind its leader: scan again")


async def _each(connection: Connection, stream: str, which: Sequence[Mapping[str, object]]) -> list[Message]:
    """The messages of those there are, as the leader has them."""
    return [m for m in await asyncio.gather(*[message(connection, stream, one) for one in which]) if m is not None]


async def _once(
    connection: Connection, stream: str, filters: Sequence[str], start: int, stop: int, most: int
) -> tuple[list[Message], bool]:
    """What one replica has, and whether there is more behind it because one page was asked for."""
    consumer = _Scan(connection, stream, most)
    try:
        return await consumer.run(filters, start, stop), consumer.more
    except NotAllowed:
        if connection in _LISTED or connection.options.inbox_prefix == subjects.INBOX:
            raise
        _LISTED.add(connection)
        return await _once(connection, stream, filters, start, stop, most)


class _Scan:
    """The pulls of one scan. `run` gives the messages that the replica has, or raises: nothing is left out in between."""

    def __init__(self, connection: Connection, stream: str, most: int) -> None:
        self._connection, self._stream, self._name = connection, stream, ""
        self._once, self._batch = most > 0, min(most or _PAGE, _PAGE)
        self._found: list[Message] = []
        self._page = 0  # messages that came for this pull
        self._round = 0  # number of this pull
        self._pending = 0  # messages behind the last one
        self._gap = False
        self._over = asyncio.Event()  # the pull has ended

    @property
    def more(self) -> bool:
        """Whether it ended because one pull was asked for, and not because the replica has no more."""
        return self._once and bool(self._found and self._pending)

    async def run(self, filters: Sequence[str], start: int, stop: int) -> list[Message]:
        """The messages with start <= sequence <= stop. Raises BusError."""
        self._batch = min(self._batch, stop - start + 1)  # there are no more of them
        connection, inbox = self._connection, self._connection.inbox()
        config = ordered(f"scan-{connection.id}-{connection.fresh()}", filters, start - 1, _SCAN_IDLE)
        interest = connection.listen(f"{inbox}.*", self._take)
        connection.on_end.add(self._over.set)
        try:
            if connection in _LISTED:
                self._name, self._pending = await create_listed(connection, self._stream, config)
            else:
                self._name = str(config["name"])
                self._pending = await create(connection, self._stream, config)
            self._deliveries = Deliveries(self._stream, self._name)
            while self._pending and (not self._found or self._found[-1].sequence < stop):
                await self._pull(inbox)
                if self.more:
                    break
        finally:
            connection.on_end.discard(self._over.set)
            connection.forget(interest)
            drop(connection, self._stream, self._name)
        return [m for m in self._found if m.sequence <= stop]

    async def _pull(self, inbox: str) -> None:
        self._page = 0
        self._round += 1
        self._over.clear()
        size = max(PAGE_BYTES, 2 * self._connection.max_payload)
        subject = pulls(self._stream, self._name)
        self._connection.put(pull(subject, f"{inbox}.{self._round}", batch=self._batch, max_bytes=size, no_wait=True))
        try:
            async with asyncio.timeout(_PAGE_TIMEOUT):
                await self._over.wait()
        except TimeoutError as e:
            raise Unreachable(f"a scan of {self._stream} got no answer in {_PAGE_TIMEOUT:g} s") from e
        self._connection.client()
        if self._gap:
            raise Unreachable(f"a scan of {self._stream} was cut off: scan again")
        if not self._page:
            self._pending = 0  # purged meanwhile, or nothing more on this replica

    def _take(self, subject: bytes, reply: bytes, data: bytes, head: bytes) -> None:
        headers = protocol.headers(head)
        if not reply and head.startswith(STATUS):
            # The end of a pull that was filled comes behind its last message, and must not end the next pull.
            if subject.rpartition(b".")[2] == b"%d" % self._round:
                # 404 or 408: nothing more now; 409: the bytes are used up, or the consumer is gone
                self._gap |= "Consumer Deleted" in headers.get("Description", "") or headers.get("Status") == "503"
                self._over.set()
            return
        if not self._deliveries.has(reply):
            pass_over(self._connection, self._name)
            return
        _, sequence, number, time, self._pending = delivery_of(reply)
        in_batch = protocol.in_batch(head)
        self._found.append(Message(protocol.text(subject), data, headers, sequence, time, in_batch=in_batch))
        self._gap |= number != len(self._found)
        self._page += 1
        if self._page == self._batch:
            self._over.set()


async def count(connection: Connection, stream: str, filters: Sequence[str], after: int) -> int:
    """`Bus.count`: what would wait for a consumer that begins there."""
    name = f"count-{connection.id}-{connection.fresh()}"
    waiting = await create(connection, stream, ordered(name, filters, max(after, 0), _SCAN_IDLE))
    drop(connection, stream, name)
    return waiting


async def purge(connection: Connection, stream: str, subject: str, below: int) -> None:
    """`Bus.purge`."""
    if below < 1:  # to the server, 0 is no sequence at all: it would remove every message of the subject
        return
    await connection.api(f"STREAM.PURGE.{stream}", {"filter": subject, "seq": below})


async def delete(connection: Connection, stream: str, sequence: int, erase: bool) -> None:
    """`Bus.delete`."""
    try:
        await connection.api(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": not erase})
    except ServerRefusal as e:
        if e.number not in (NO_MESSAGE, _NOT_FOUND, _DELETE_FAILED):
            raise


async def direct(connection: Connection, stream: str, request: Mapping[str, object]) -> list[Message] | None:
    """Messages by direct get (ADR-31), from any replica; None where there are too many to give at once."""
    try:
        return (await _page(connection, stream, request))[0]
    except ServerRefusal:
        return None


async def _page(connection: Connection, stream: str, request: Mapping[str, object]) -> tuple[list[Message], int]:
    """What a replica gives at once, and how many more it has. Raises ServerRefusal where it would be too many."""
    try:
        body = json.dumps(request).encode()
        answers = await connection.ask(f"$JS.API.DIRECT.GET.{stream}", body, final=_is_status, timeout=10.0)
    except TimeoutError as e:
        raise Unreachable(f"no answer to a direct get from {stream}") from e
    status = protocol.headers(answers[-1][1])
    if status.get("Status") == "413":
        raise ServerRefusal(f"direct get from {stream}: too many subjects", 0)
    if status.get("Status") not in ("204", "404"):
        raise Unreachable(f"direct get from {stream}: {status.get('Status')} {status.get('Description', '')}")
    with what_a_server_says():
        pending = int(status.get("Nats-Num-Pending") or 0)
        return [_unwrapped(data, head) for data, head in answers[:-1]], pending


async def multi_last(connection: Connection, stream: str, subjects: Sequence[str]) -> dict[str, Message]:
    """`Bus.multi_last`."""
    found: dict[str, Message] = {}
    if len(subjects) == 1:
        only = await _last(connection, stream, subjects[0])
        return {only.subject: only} if only is not None else {}
    for start in range(0, len(subjects), _SUBJECTS):
        wanted = list(subjects[start : start + _SUBJECTS])
        pending = 1
        while pending and wanted:
            page, pending = await _page(connection, stream, {"multi_last": wanted})
            if not page:
                break
            found.update({m.subject: m for m in page})
            wanted = [subject for subject in wanted if subject not in found]
    return found


async def _last(connection: Connection, stream: str, subject: str) -> Message | None:
    """The last message of a subject, from any replica. Asked so that a user can be allowed this subject, and no other."""
    try:
        ((data, head),) = await connection.ask(f"$JS.API.DIRECT.GET.{stream}.{subject}", b"", timeout=10.0)
    except TimeoutError as e:
        raise Unreachable(f"no answer to a direct get from {stream}") from e
    if _ABOUT not in head:
        status = protocol.headers(head)
        if status.get("Status") == "404":
            return None
        raise Unreachable(f"direct get from {stream}: {status.get('Status')} {status.get('Description', '')}")
    with what_a_server_says():
        return _unwrapped(data, head)


def _is_status(data: bytes, head: bytes) -> bool:
    return head.startswith(b"NATS/1.0 ")


def _unwrapped(data: bytes, head: bytes) -> Message:
    """A message of a direct get. What the server says stands behind the headers that were stored, which may say the same."""
    own, _, about = head.rpartition(_ABOUT)
    said = protocol.headers(b"NATS/1.0" + _ABOUT + about)
    headers = protocol.headers(own + b"\r\n\r\n")
    return Message(said["Nats-Subject"], data, headers, int(said["Nats-Sequence"]), timestamp(said["Nats-Time-Stamp"]))
