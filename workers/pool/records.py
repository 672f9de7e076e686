"""Records of calls, on their way into the stream."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import structlog

from dspex.bus import errors, subjects
from dspex.bus.errors import BusError
from dspex.bus.port import Bus, NewMessage
from dspex.bus.records import CallRecord, Work

log: Any = structlog.get_logger("dspex.workers")

MESSAGE_ROOM = 4096  # bytes of a message kept for headers


class Records:
    """Stores outcomes. `pending`: those that the bus has not taken yet."""

    def __init__(self, bus: Bus, pool: str) -> None:
        self.bus, self.pool = bus, pool
        self.pending = 0

    async def store(self, subject: str, outcome: CallRecord, work: Work, packed: bytes) -> bool:
        """Store the record under the attempt's id; waits out what may pass. False: the bus refuses it for good."""
        headers = {subjects.MESSAGE_ID: subjects.attempt_id(work.call, work.attempt)}
        if run := work.origin.get("run"):
            headers[subjects.RUN] = str(run)
        draft = NewMessage(subject, self._sized(replace(outcome, work=packed), work), headers)
        self.pending += 1
        try:
            return await self._publish(draft, work.call)
        finally:
            self.pending -= 1

    async def _publish(self, draft: NewMessage, call: str) -> bool:
        pause = 0.1
        while True:
            try:
                await self.bus.publish(draft)
                return True
            except BusError as error:
                log.warning("record not stored", pool=self.pool, call=call, error=error.message)
                if not error.retryable:
                    return False
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    def _sized(self, outcome: CallRecord, work: Work) -> bytes:
        """The packed record; what no message can hold becomes an error that says so, in few words."""
        data = outcome.pack()
        room = self.bus.max_payload - MESSAGE_ROOM
        if len(data) <= room:
            return data
        error = (
            outcome.error
            or errors.OutputTooLarge(
                f"{work.node}: the answer has {len(data)} bytes, and a message holds {room}", node=work.node
            ).as_dict()
        )
        short = {**error, "message": str(error["message"])[:200], "traceback": ""}
        return replace(outcome, outputs=None, error=short).pack()
