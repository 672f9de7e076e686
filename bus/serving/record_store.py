"""Where a record goes: under the id that its request names, so that a second answer to the same execution is not stored."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus import subjects
from dspex.bus.errors import BusError, DataError, DecodeError, DspexError, NotStored, OutputTooLarge, PayloadTooLarge
from dspex.bus.message import INHERITED, in_session
from dspex.bus.port import Ack, Bus, NewMessage
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.seldom import Seldom
from dspex.bus.serving import payloads
from dspex.bus.serving.signatures import Keys, is_signed, signed

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")


class RecordStore:
    """Stores the records of calls in the stream.

    Args:
        above: bytes of a record that is not stored in its message.
        keys: of the pool; without them its records are not signed.

    Attributes:
        pending: records that the bus has not taken yet.
        collisions: records whose id had been taken by something else. None in a system without a fault.
        lost: records that the bus refused for good. None in a system without a fault.
    """

    def __init__(self, bus: Bus, app: str, pool: str, above: int = payloads.ABOVE, keys: Keys = ()) -> None:
        self.bus, self.app, self.pool, self.above, self._keys = bus, app, pool, above, keys
        self.pending = self.collisions = self.lost = 0
        self._seldom = Seldom(log)

    def check(self, request: CallRequest) -> None:
        """Raise DecodeError where no record can be stored as the request says, or would be stored where this pool's records
        do not belong: it would be run again and again, and over a long subject the server closes the connection.
        """
        to, where = request.record, subjects.record(self.app, self.pool, "*", "*", "*")
        if to is not None:
            good = subjects.is_subject(to.subject) and len(to.subject) <= subjects.MOST_NAME
            if not good or not subjects.matches(where, to.subject):
                raise DecodeError(f"its record would go to {to.subject[:200]!r}, and not to {where}")
        for text in (request.call, request.run, request.session or "", to.id if to is not None else ""):
            if len(text) > INHERITED or not {"\r", "\n"}.isdisjoint(text):
                raise DecodeError("an id of its call, run, session or record has a line break, or is too long for a header")

    async def store(self, record: CallRecord, request: CallRequest) -> bool:
        """Store the record where its request says; False if it never can be: its call is not to be run, and paid, again.

        Tries again for as long as the bus may still take it: also after a missing permission, which somebody can give, and
        after what a server says that nobody here knows. An answer was paid for, and its call is not run again.
        """
        self.pending += 1
        try:
            await self._store(self._message(record, request), request)
            return True
        except NotStored as error:
            if request.record is not None:
                return self._lost(request, error)
            # Nothing has been applied, and nobody asked for a record. Said now and then, not at each call.
            why = "the application has no stream, because nothing was applied"
            self._seldom.warning("interactive calls are answered, and not recorded", pool=self.pool, why=why, fix="dspex apply")
            return False
        except (BusError, DataError) as error:
            return self._lost(request, error)
        finally:
            self.pending -= 1

    def _lost(self, request: CallRequest, error: DspexError) -> bool:
        self.lost += 1
        log.error("a record cannot be stored", pool=self.pool, call=request.call, why=error.message)
        return False

    def _message(self, record: CallRecord, request: CallRequest) -> NewMessage:
        to = request.record
        if to is None:
            subject, id = subjects.interactive_record(self.app, self.pool), f"{request.call}.{request.try_number}"
        else:
            subject, id = to.subject, to.id
            record = replace(record, number=to.number, event=to.event)
        headers = {subjects.MESSAGE_ID: id, subjects.RUN: request.run, **in_session(request.session)}
        return NewMessage(subject, self.sized(record), headers)

    async def _store(self, message: NewMessage, request: CallRequest) -> None:
        """Store the message. Tries again after an error that may pass, and under another id where something else has it."""
        pause = 0.1
        while True:
            try:
                ready = await payloads.checked_in(self.bus, self.app, message, self.above)
                ack = await self.bus.publish(signed(ready, self._keys) if self._keys else ready)
                if not ack.duplicate or await self._is_record(ack, message.subject, request):
                    return
                message = self._under_fresh_id(message, ack, request)
                continue
            except BusError as error:
                if isinstance(error, (NotStored, PayloadTooLarge)):
                    raise
                log.warning("record not stored", pool=self.pool, call=request.call, error=error.message)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    async def _is_record(self, ack: Ack, subject: str, request: CallRequest) -> bool:
        """Whether what the bus stored first under the id is a record of this execution. Asks the leader of the stream."""
        stored = await self.bus.get(ack.stream, ack.sequence)
        if stored is None or stored.subject != subject or (self._keys and not is_signed(stored, self._keys)):
            return False
        stored = await payloads.checked_out(self.bus, self.app, stored)
        if stored is None:
            return False
        try:
            found = CallRecord.unpack(stored.data)
        except DecodeError:
            return False
        return (found.call, found.try_number) == (request.call, request.try_number)

    def _under_fresh_id(self, message: NewMessage, ack: Ack, request: CallRequest) -> NewMessage:
        """The same message under an id that nobody can have used: without it, a paid answer would be dropped."""
        self.collisions += 1
        id = (message.headers or {})[subjects.MESSAGE_ID]
        fields = {"pool": self.pool, "call": request.call, "id": id, "sequence": ack.sequence}
        log.error("something else was stored under the id of a record", **fields)
        return message._replace(headers={**(message.headers or {}), subjects.MESSAGE_ID: f"{id}.{os.urandom(8).hex()}"})

    def sized(self, record: CallRecord) -> bytes:
        """The packed record. One whose outputs are larger than a payload may be becomes a short error that says so."""
        data, most = record.pack(), payloads.most(self.bus)
        size = len(data) - len(record.event)
        if size <= most:
            return data
        too_large = f"the answer has {size:,} bytes, and one payload may have {most:,}"
        error = record.error or OutputTooLarge(too_large, node=record.node).as_dict()
        short = {**error, "message": str(error["message"])[:200], "traceback": ""}
        return replace(record, outputs=None, error=short).pack()
