"""The records of work that is delivered again: looked for in what lies behind it, and each of those is read once."""

from __future__ import annotations

import asyncio

import pytest

from dspex.bus import subjects
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.message import Message
from dspex.bus.port import BusEvents, NewMessage, StreamConfig
from dspex.bus.records import CallRecord, CallRequest, RecordTo
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.record_store import REMEMBERED, RecordStore

APP, POOL = "lab", "light"
RECORDS = subjects.record(APP, POOL, "t", "s1", 0)


class Counting(MemoryBus):
    """A connection that counts what is read one by one."""

    read = 0

    async def next(self, stream: str, subject: str, sequence: int) -> Message | None:
        self.read += 1
        return await super().next(stream, subject, sequence)


def request(number: int) -> CallRequest:
    spec = CallSpec("predict", "text -> reply", "text -> reply")
    return CallRequest(f"c{number}", 1, 1, "t", "n", spec, {}, "run", record=RecordTo(RECORDS, f"id{number}", number, b""))


@pytest.mark.long
def test_however_many_records_lie_behind_work_each_is_read_once() -> None:
    loop, server = VirtualLoop(), MemoryServer()
    bus, records = Counting(server, BusEvents()), 51_000

    async def prepare() -> None:
        await bus.ensure_stream(StreamConfig(subjects.stream(APP), subjects.own_subjects(APP)))
        for number in range(records):
            body = CallRecord(f"c{number}", 1, 1, "t", "n", outputs={}).pack() if number % 1000 == 7 else b""
            server.publish(NewMessage(RECORDS, body, {subjects.MESSAGE_ID: f"id{number}"}))

    async def looked(*numbers: int) -> list[bool]:
        """Whether records are found, for work of which each piece lies before the one that was looked for last."""
        found = await asyncio.gather(*(store.found(request(n), 500 - 100 * at) for at, n in enumerate(numbers)))
        return [record is not None for record in found]

    store = RecordStore(bus, APP, POOL)
    try:
        loop.run(prepare())
        assert loop.run(looked(1007, records, 2007, records)) == [True, False, True, False]
        assert bus.read < 1.1 * records
        loop.advance(REMEMBERED + 1)
        before = bus.read
        assert loop.run(looked(3007)) == [True]
        assert bus.read > before + records / 2, "what nobody asks for is not remembered for ever"
    finally:
        loop.close()
