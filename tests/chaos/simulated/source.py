"""The source of a simulated run: who publishes to it, and what becomes of its stream while engines read it.

    made anew     deleted and made again: the numbers begin at 1
    rolled back   an older copy, of when it was empty, and filled again: only the times of its messages differ
    missing       gone for a while, and there again as it was

Behind the first two lies a gap. Under `on_gap="stop"` the stage must stop and say so, and process nothing behind the gap until
the operator has looked at it, and runs the topology with `on_gap="skip"`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal

import workload
from oracle import Violation
from workload import SOURCE

from dspex.bus import codecs, subjects
from dspex.bus.errors import NotStored
from dspex.bus.memory.connection import LATE
from dspex.bus.memory.store import MemoryStream
from dspex.bus.port import NewMessage, StreamConfig
from dspex.bus.serving import payloads
from simulated.bus import insist

if TYPE_CHECKING:
    from simulation import Simulation

APP: Final = "sim"
STREAM: Final = "EVENTS"  # of somebody else
STOPS: Final = 120.0  # virtual seconds within which a gap must have stopped a stage
Fate = Literal["", "made anew", "rolled back", "missing"]
GAPS: Final = ("made anew", "rolled back")
SAID: Final = {"made anew": ("made anew",), "rolled back": ("rolled back", "truncated")}


class Source:
    """Publishes the events of a run, and lets its stream have its fate in the middle."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.half = len(sim.events) // 2
        self._operator: asyncio.Task[None] | None = None

    async def publish(self) -> None:
        sim = self.sim
        gap = sim.random.choice([0.0, 0.02, 0.2])
        for number, event in enumerate(sim.events):
            if number == self.half and sim.fate:
                await self._change()
            await self._publish(event)
            await asyncio.sleep(sim.random.uniform(0, 2 * gap))
        if self._operator is not None:
            await self._operator

    async def _publish(self, event: workload.Given) -> None:
        body = codecs.encode(event.data)[0] if event.raw is None else event.raw
        headers = {subjects.MESSAGE_ID: event.id, subjects.RUN: event.id, subjects.KEY: event.key}
        if self.sim.sealed and event.key < "k15":  # every key has one partition, with a session or without
            headers[subjects.SESSION] = f"session of {event.key}"
        if event.waits:
            headers[subjects.AT] = "+0.7"  # then its operator asks for it later as well
        draft = NewMessage(SOURCE, body, headers)
        while True:
            try:
                await insist(lambda: self._stored(draft))
                return
            except NotStored:  # no engine has applied the topology yet, or the stream is missing
                await asyncio.sleep(0.1)

    async def _stored(self, draft: NewMessage) -> None:
        bus = self.sim.bus
        await bus.publish(await payloads.checked_in(bus, APP, draft, self.sim.above or 0))

    async def _change(self) -> None:
        sim = self.sim
        sim.done[f"sources {sim.fate}"] += 1
        if sim.fate == "missing":  # not before the topology is applied: it would take the subject as nobody's
            await sim.until(lambda: any(host.applied for host in sim.hosts.values()))
            self._operator = asyncio.create_task(self._bring_back(sim.server.streams.pop(STREAM)))
            return
        await sim.until(lambda: sim.ledger.open <= len(sim.events) - self.half)
        await asyncio.sleep(LATE)  # until nothing that was published before can land in the new one, which knows no ids
        old = sim.server.streams.pop(STREAM)  # and nobody gets a turn before it is there again
        if sim.fate == "rolled back":
            sim.server.streams[STREAM] = MemoryStream(old.config, old.created)
        else:
            sim.server.ensure_stream(StreamConfig(STREAM, [SOURCE]))
        old.wake()
        if sim.on_gap == "stop":
            self._operator = asyncio.create_task(self._operate())

    async def _bring_back(self, stream: MemoryStream) -> None:
        await asyncio.sleep(self.sim.random.uniform(1.0, 40.0))
        self.sim.server.streams[STREAM] = stream
        stream.wake()

    async def _operate(self) -> None:
        """See that the stage has stopped, then go on behind the gap."""
        sim = self.sim
        before = {e.key for e in sim.events[: self.half]}  # their partitions have read something
        held = [e.id for e in sim.events[self.half :] if e.key in before]
        await sim.until(lambda: any(words in why for words in SAID[sim.fate] for why in sim.stopped), STOPS)
        if not sim.stopped:
            sim.failures.append(Violation("a gap stops the stage", f"nothing has stopped {STOPS:g} s after it was {sim.fate}"))
        await asyncio.sleep(sim.random.uniform(0.0, 20.0))
        for id in held:
            if sim.ledger.begun(id):
                sim.failures.append(Violation("a gap stops the stage", f"event {id} behind it was processed"))
        sim.apply("skip")
