"""Where a record goes: under the id that its request names, so that a second answer to the same execution is not stored."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus import subjects
from dspex.bus.errors import BusError, DataError, DecodeError, DspexError, NotStored, OutputTooLarge, PayloadTooLarge
from dspex.bus.message import INHERITED, in_session
from dspex.bus.port import WINDOW, WINDOW_BYTES, Ack, Bus, NewMessage
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.seldom import Seldom
from dspex.bus.serving import payloads
from dspex.bus.serving.keys.hashes import hashed
from dspex.bus.serving.keys.secret_fields import kept
from dspex.bus.serving.keys.signatures import Keys, is_signed, signed
from dspex.bus.tasks import Tasks, patiently

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

LATER: Final = 0.01  # seconds that a record may wait for others which nobody waits for
AT_ONCE: Final = 16  # parts of the stream that are looked through side by side
REMEMBERED: Final = 60.0  # seconds for which the records behind work are that was delivered again, once none is looked for


@dataclass
class _Waiting:
    """A record to be stored. `stored`: who waits for that; None: nobody does."""

    message: NewMessage
    record: CallRecord
    request: CallRequest
    stored: asyncio.Future[CallRecord | None] | None
    alone: bool = False  # not stored with its batch


class RecordStore:
    """Stores the records of calls in the stream.

    Args:
        above: bytes of a record that is not stored in its message. keys: of the pool; without them its records are not signed.

    Attributes:
        collisions: records whose id had been taken by something else. None in a system without a fault.
        lost: records that the bus refused for good. None in a system without a fault.
    """

    def __init__(self, bus: Bus, app: str, pool: str, above: int = payloads.ABOVE, keys: Keys = ()) -> None:
        self.bus, self.app, self.pool, self.above, self._keys = bus, app, pool, above, keys
        self.collisions = self.lost = 0
        self._counted = 0  # records that somebody waits for, or that were not stored at the first try
        self._waiting: list[_Waiting] = []
        self._hurry, self._storing = asyncio.Event(), False  # whether somebody waits for one of them; whether they are stored
        self._seen: dict[str, tuple[int, int, dict[int, int]]] = {}  # subject → from where to where, and what lies there by id
        self._forgetting: asyncio.TimerHandle | None = None
        self._tasks = Tasks(f"records of {pool}", lambda name, error: log.error("a record was not stored", exc_info=error))
        self._seldom, self._looking = Seldom(log), asyncio.Lock()

    @property
    def pending(self) -> int:
        """Records that the bus has not taken yet, without those of one batch that nobody waits for."""
        return self._counted + max(0, len(self._waiting) - WINDOW)

    def check(self, request: CallRequest) -> None:
        """Raise DecodeError where no record can be stored as the request says, or would be stored where this pool's records
        do not belong: it would be run again and again, and over a long subject the server closes the connection.
        """
        if (to := request.record) is not None:
            where = subjects.record(self.app, self.pool, "*", "*", "*")
            good = subjects.is_subject(to.subject) and len(to.subject) <= subjects.MOST_NAME
            if not good or not subjects.matches(where, to.subject):
                raise DecodeError(f"its record would go to {to.subject[:200]!r}, and not to {where}")
        for text in (request.call, request.run, request.session or "", to.id if to is not None else ""):
            if len(text) > INHERITED or not {"\r", "\n"}.isdisjoint(text):
                raise DecodeError("an id of its call, run, session or record has a line break, or is too long for a header")

    async def store(self, record: CallRecord, request: CallRequest) -> CallRecord | None:
        """Store the record where its request says; the one that is stored for it then, which is that of an earlier answer where
        there was one. None if it never can be: its call is not to be run, and paid, again.

        Tries again for as long as the bus may still take it: also after a missing permission, which somebody can give, and
        after what a server says that nobody here knows. An answer was paid for, and its call is not run again.
        """
        stored: asyncio.Future[CallRecord | None] = asyncio.get_running_loop().create_future()
        self._add(record, request, stored)
        return await stored

    def put(self, record: CallRecord, request: CallRequest, packed: bytes | None = None) -> None:
        """The same where nobody waits for it: within `LATER` seconds, together with others. `packed`: what `sized` gave."""
        self._add(record, request, None, packed)

    async def found(self, request: CallRequest, after: int) -> CallRecord | None:
        """The record that a request has which was stored at `after` and is delivered again; None: it has none. Raises BusError.

        The records behind it are read one by one, which is all that a worker may do, and each once however many ask.
        """
        stream = await self.bus.stream(subjects.stream(self.app))
        if (to := request.record) is None or stream is None:
            return None
        async with self._looking:
            begin, next, at = self._seen.get(to.subject) or (after, after + 1, {})
            end = max(next, stream.last + 1)
            ranges = (after + 1, begin + 1), (next, end)  # the first one has something where older work comes
            span = max(100, -(-max(b - a for a, b in ranges) // AT_ONCE))
            parts = [(n, min(n + span, b)) for a, b in ranges for n in range(a, b, span)]
            for part in await asyncio.gather(*(self._ids(to.subject, *part) for part in parts)):
                at |= part
            self._seen[to.subject] = min(begin, after), end, at
            if self._forgetting is not None:
                self._forgetting.cancel()
            self._forgetting = asyncio.get_running_loop().call_later(REMEMBERED, self._seen.clear)
        return await self._first(Ack(stream.name, at[hash(to.id)]), to.subject, request) if hash(to.id) in at else None

    async def _ids(self, subject: str, begin: int, end: int) -> dict[int, int]:
        """The records of a part of the stream, by hashes of their ids. Of thousands of questions one may find no server."""
        found, ask = dict[int, int](), partial(self.bus.next, subjects.stream(self.app), subject)
        while begin < end and (record := await patiently(partial(ask, begin), log.debug)) is not None:
            begin = record.sequence + 1
            found |= {hash(record.headers.get(subjects.MESSAGE_ID, "")): record.sequence} if begin <= end else {}
        return found

    async def drain(self, seconds: float) -> None:
        """Wait until all are stored, for so long; then store nothing more."""
        end = asyncio.get_running_loop().time() + seconds
        while self._tasks and (left := end - asyncio.get_running_loop().time()) > 0:
            await self._tasks.finish(left)
        await self._tasks.stop()

    def _add(
        self,
        record: CallRecord,
        request: CallRequest,
        stored: asyncio.Future[CallRecord | None] | None,
        packed: bytes | None = None,
    ) -> None:
        self._counted += stored is not None
        one = _Waiting(NewMessage("", b""), record, request, stored)
        try:
            one.message = self._message(record, request, packed)
        except DataError as error:
            self._lost(one, error)
            return
        self._waiting.append(one)
        if stored is not None:
            self._hurry.set()
        if not self._storing:
            self._storing = True
            self._tasks.start(self._store_waiting(), "records")

    async def _store_waiting(self) -> None:
        """Store what waits, and what has come meanwhile, until nothing is left. One at a time: the longer the bus takes for a
        batch, the larger is the next one.
        """
        try:
            while self._waiting:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LATER):
                        await self._hurry.wait()
                self._hurry.clear()
                size = count = 0
                for one in self._waiting[:WINDOW]:
                    size, count = size + len(one.message.data), count + 1
                    if size > WINDOW_BYTES:
                        break
                batch, self._waiting = self._waiting[:count], self._waiting[count:]
                if self._waiting:
                    self._hurry.set()
                await self._store_batch(batch)
        finally:
            self._storing = False

    async def _store_batch(self, batch: Sequence[_Waiting]) -> None:
        """Store the records of a batch. One that is not stored so goes on by itself."""
        most = payloads.inline(self.bus, self.above)
        for one in [one for one in batch if len(one.message.data) > most]:
            self._go_alone(one, None)
        batch = [one for one in batch if len(one.message.data) <= most]
        for one, outcome in zip(batch, await self._written([one.message for one in batch])):
            if isinstance(outcome, Ack) and not outcome.duplicate:
                self._settle(one, one.record)
            else:
                self._go_alone(one, outcome)

    async def _written(self, messages: Sequence[NewMessage]) -> Sequence[Ack | DspexError | None]:
        """What came of each; None: nothing was tried.

        Not in one commit: a server takes 3 ms of CPU for each, 20 µs for one message; and it lets fifty be open, for engines.
        """
        try:
            plain = self.bus.sealing is None and not self._keys  # and none here is too large for its message
            return await self.bus.publish_all([hashed(one) if plain else await self._ready(one) for one in messages])
        except (BusError, DataError) as error:
            return [error] if len(messages) == 1 else [None] * len(messages)  # it may be the fault of one of them

    async def _ready(self, message: NewMessage) -> NewMessage:
        ready = hashed(await payloads.checked_in(self.bus, self.app, message, self.above))
        return signed(ready, self._keys) if self._keys else ready

    def _go_alone(self, one: _Waiting, outcome: Ack | DspexError | None) -> None:
        self._counted += one.stored is None
        one.alone = True
        self._tasks.start(self._store_alone(one, outcome), "record")

    async def _store_alone(self, one: _Waiting, outcome: Ack | DspexError | None) -> None:
        """See `store`. `outcome`: what came of the first try; None: there was none."""
        try:
            self._settle(one, await self._store(one, outcome))
        except NotStored as error:
            if one.request.record is not None:
                self._lost(one, error)
                return
            # Nothing has been applied, and nobody asked for a record. Said now and then, not at each call.
            why = "the application has no stream, because nothing was applied"
            self._seldom.warning("interactive calls are answered, and not recorded", pool=self.pool, why=why, fix="dspex apply")
            self._settle(one, None)
        except (BusError, DataError) as error:
            self._lost(one, error)

    def _lost(self, one: _Waiting, error: DspexError) -> None:
        self.lost += 1
        log.error("a record cannot be stored", pool=self.pool, call=one.request.call, why=error.message)
        self._settle(one, None)

    def _settle(self, one: _Waiting, stored: CallRecord | None) -> None:
        self._counted -= one.stored is not None or one.alone
        if one.stored is not None and not one.stored.done():
            one.stored.set_result(stored)

    def _message(self, record: CallRecord, request: CallRequest, packed: bytes | None) -> NewMessage:
        if (to := request.record) is None:
            subject, id = subjects.interactive_record(self.app, self.pool), f"{request.call}.{request.try_number}"
            record, packed = kept(self.bus, record, request, packed)
        else:
            subject, id, record = to.subject, to.id, replace(record, number=to.number, event=to.event)
        headers = {subjects.MESSAGE_ID: id, subjects.RUN: request.run, **in_session(request.session)}
        return NewMessage(subject, self.sized(record) if packed is None else packed, headers)

    async def _store(self, one: _Waiting, outcome: Ack | DspexError | None) -> CallRecord:
        """Store the record; which one is stored. Tries again after an error that may pass, and under another id where something
        else has it.
        """
        pause, message, request = 0.1, one.message, one.request
        while True:
            if isinstance(outcome, (NotStored, PayloadTooLarge, DataError)):
                raise outcome
            try:
                if isinstance(outcome, Ack):
                    if not outcome.duplicate:
                        return one.record
                    if (first := await self._first(outcome, message.subject, request)) is not None:
                        return first
                    message = self._under_fresh_id(message, outcome, request)
                elif outcome is not None:
                    log.warning("record not stored", pool=self.pool, call=request.call, error=outcome.message)
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, 5.0)
                outcome = await self.bus.publish(await self._ready(message))
            except (BusError, DataError) as error:
                outcome = error

    async def _first(self, ack: Ack, subject: str, request: CallRequest) -> CallRecord | None:
        """What the bus stored first under the id, if it is a record of this execution. Asks the leader of the stream."""
        stored = await self.bus.get(ack.stream, ack.sequence)
        if stored is None or stored.subject != subject or (self._keys and not is_signed(stored, self._keys)):
            return None
        try:
            stored = await payloads.checked_out(self.bus, self.app, stored)
            found = CallRecord.unpack(stored.data) if stored is not None else None
        except DataError:
            return None
        return found if found and (found.call, found.try_number) == (request.call, request.try_number) else None

    def _under_fresh_id(self, message: NewMessage, ack: Ack, request: CallRequest) -> NewMessage:
        """The same message under an id that nobody can have used: without it, a paid answer would be dropped."""
        self.collisions, id = self.collisions + 1, (message.headers or {})[subjects.MESSAGE_ID]
        about = {"pool": self.pool, "call": request.call, "id": id, "sequence": ack.sequence}
        log.error("something else was stored under the id of a record", **about)
        return message._replace(headers={**(message.headers or {}), subjects.MESSAGE_ID: f"{id}.{os.urandom(8).hex()}"})

    def sized(self, record: CallRecord) -> bytes:
        """The packed record. One whose outputs are larger than a payload may be becomes a short error that says so."""
        data, most = record.pack(), payloads.most(self.bus)
        size = len(data) - len(record.event)
        if size > most and record.exchanges:
            return self.sized(replace(record, exchanges=b""))
        if size <= most:
            return data
        too_large = f"the answer has {size:,} bytes, and one payload may have {most:,}"
        error = record.error or OutputTooLarge(too_large, node=record.node).as_dict()
        short = {**error, "message": str(error["message"])[:200], "traceback": ""}
        return replace(record, outputs=None, error=short).pack()
