"""The stage runner: reads, walks, and hands to the committer; owns some partitions of a stage, or none.

Pumps feed the partitions: the source, the inbox and the clock. They take turns on one thread, and a walk is never interrupted,
so a partition needs no lock. What changes ownership (own, recover, release) goes through one queue and stops all pumps first.
A pump that dies of anything but a `DspexError` ends the runner with it, and so the engine: nothing stops in silence.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import structlog

from dspex.bus import subjects
from dspex.bus.errors import BusError, DspexError, Fenced, StreamFull
from dspex.bus.message import Message, message_id, partition_of
from dspex.bus.port import Reader
from dspex.bus.records import Work
from dspex.bus.tasks import Tasks
from dspex.engine.log.commit_log import CommitLog
from dspex.engine.log.state import State
from dspex.engine.runtime.compile import Stage
from dspex.engine.runtime.inbox import Counters, Inbox, Poison
from dspex.engine.runtime.intake import Intake
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.position import Watched, check_source
from dspex.engine.runtime.services import Services

_log = structlog.get_logger("dspex.engine")
CHUNK = 256  # messages walked before the loop gets a turn: about 4 ms
TICK = 0.1  # seconds between looks at the clock
WATCH = 5.0  # seconds between looks at the source stream
LAG = 1000  # messages that a partition's position may lie behind what its process has read
SLOWEST = 2.0  # seconds between two claims, at most


@dataclass(frozen=True)
class _Order:
    """A change of ownership, carried out by the runner's own task."""

    what: Literal["own", "recover", "release", "restart", "fail"]
    index: int = -1
    why: str = ""
    error: BaseException | None = None


class StageRunner:
    """Runs one stage for the partitions that this process owns. `start`: the position it begins with, ever."""

    def __init__(self, services: Services, stage: Stage, source_stream: str, count: int, manifest: int, start: int = 0) -> None:
        self.s = services
        self.stage = stage
        self.topology = stage.graph.name
        self.source_stream = source_stream
        self.count = count
        self.manifest = manifest
        self.start = start
        self.counters = Counters()
        self.partitions: dict[int, Partition] = {}
        self.stopped: str | None = None  # why this stage does not run: a gap in its source
        self.ordered = frozenset(n for n, c in stage.calls.items() if c.call.order == "key")
        self._poison: Poison = {}
        self.inbox = Inbox(services.app, stage, source_stream, services.limit, self.counters, self._poison)
        self.intake = Intake(services.app, stage, source_stream, services.limit, self.counters, self._poison)
        self._orders: asyncio.Queue[_Order] = asyncio.Queue()
        self._pumps = Tasks(f"{self.topology}.{stage.id}", self._pump_failed)
        self._one_by_one: dict[int, int] = {}  # index → events that get a commit each after the next claim
        self._setbacks: dict[int, int] = {}  # index → claims since anything was committed
        self._source_read = (0, "")  # up to here the source pump has handled everything: sequence, event id
        self._inbox_read = 0  # up to here the inbox pump has
        self._listening: Reader | None = None  # the inbox pump's reader, while the pump waits for more

    @property
    def read_to(self) -> int:
        """The sequence of the source stream up to which everything is handled."""
        return self._source_read[0]

    # -- ownership ------------------------------------------------------------------------------------------------
    def own(self, index: int) -> None:
        """Claim a partition and run it, as soon as the runner gets to it."""
        self._orders.put_nowait(_Order("own", index))

    def failed(self, p: Partition, error: DspexError) -> None:
        """A commit of `p` failed: the committer says how."""
        p.revoked = True
        p.room.set()
        p.settled.set()  # nobody need wait for it: it will never be
        if self.partitions.get(p.index) is not p:
            return  # given up, or claimed anew, while the commit flew
        if isinstance(error, Fenced):
            del self.partitions[p.index]
            _log.warning(
                "fenced: another engine committed first, so this one commits nothing more here",
                topology=self.topology,
                stage=self.stage.id,
                partition=p.index,
                epoch=p.log.epoch,
            )
            self.s.revoked(self.topology, self.stage.id, p.index)
            self._orders.put_nowait(_Order("restart", why="fenced"))
            return
        self._setbacks[p.index] = 0 if p.committed else self._setbacks.get(p.index, 0) + 1
        if p.one_by_one or not error.retryable:
            self._one_by_one[p.index] = p.unsure
        if not error.retryable:
            self._suspect(p, error)
        self._orders.put_nowait(_Order("recover", p.index, error.message))

    def _suspect(self, p: Partition, error: DspexError) -> None:
        """A commit was refused for what is in it. Go one event at a time until the culprit stands alone."""
        assert p.flying is not None
        batch = p.flying[0]
        _log.error("the server refused a commit", why=error.message, partition=p.index, events=batch.inputs)
        if batch.inputs == 1:
            self._poison[p.index, *batch.event] = error.message

    async def run(self) -> None:
        """Carry out changes of ownership until cancelled. Raises what a pump died of."""
        try:
            while True:
                order = await self._orders.get()
                await self._stop_pumps()
                await self._obey(order)
                while not self._orders.empty():
                    await self._obey(self._orders.get_nowait())
                self._start_pumps()
        finally:
            await self._stop_pumps()

    def _start_pumps(self) -> None:
        self.stopped = None
        for kind in ("source", "inbox", "clock", "watch") if self.partitions else ():
            self._pumps.start(self._pump(kind), kind)

    def _pump_failed(self, kind: str, error: BaseException) -> None:
        self._orders.put_nowait(_Order("fail", why=str(error), error=error))

    async def _obey(self, order: _Order) -> None:
        if order.what in ("own", "recover"):
            setbacks = self._setbacks.get(order.index, 0)
            if setbacks > 2:  # not even a dead letter can be stored: nothing is lost, and nobody is flooded with claims
                await asyncio.sleep(min(SLOWEST, 0.05 * 2**setbacks))
            await self._claim(order.index)
        elif order.what == "release":
            await self._give_up(order.index)
        elif order.error is not None:
            raise order.error

    async def _claim(self, index: int) -> None:
        """Claim a partition, as often as it takes: without its log there is nothing to go on from."""
        pause = 0.05
        while True:
            if (old := self.partitions.pop(index, None)) is not None:
                old.revoked = True
            try:
                self.partitions[index] = await self._claimed(index)
                return
            except BusError as e:
                if not e.retryable:
                    raise
                if isinstance(e, StreamFull):
                    self.s.committer.full = e.message
                _log.warning("cannot claim yet", partition=index, why=e.message)
            await asyncio.sleep(pause)
            pause = min(SLOWEST, pause * 2)

    async def _claimed(self, index: int) -> Partition:
        s = self.s
        log = CommitLog(s.bus, s.app, self.topology, self.stage.id, index, s.engine, self.manifest)
        state = await log.claim(State(self.ordered, self.inbox.new_names), at=s.clock(), repair=s.repair.before)
        state.source_sequence = state.source_sequence or self.start
        reply = subjects.result(s.app, self.topology, self.stage.id, index)
        p = Partition(index, log, state, app=s.app, topology=self.topology, reply=reply, most=s.most_inputs)
        p.one_by_one = self._one_by_one.pop(index, 0)
        _log.info("owns", topology=self.topology, stage=self.stage.id, partition=index, epoch=log.epoch)
        return p

    def release(self, index: int) -> None:
        """Give a partition up: commit what was walked, walk no more."""
        self._orders.put_nowait(_Order("release", index))

    async def drain(self) -> None:
        """Stop reading and commit what was walked. Open calls stay open: their results wait in the stream."""
        await self._stop_pumps()
        for index in list(self.partitions):
            await self._give_up(index)

    async def _give_up(self, index: int) -> None:
        p = self.partitions.pop(index, None)
        if p is None:
            return
        if not p.settled.is_set():
            self.s.committer.request_commit(p, self)
            await p.settled.wait()
        p.revoked = True
        self.s.revoked(self.topology, self.stage.id, index, given_up=True)

    async def _stop_pumps(self) -> None:
        await self._pumps.stop()
        self._listening = None

    # -- pumps ----------------------------------------------------------------------------------------------------
    async def _pump(self, kind: str) -> None:
        pumps = {"source": self._from_source, "inbox": self._from_inbox, "clock": self._from_clock, "watch": self._watch_source}
        try:
            await pumps[kind]()
        except DspexError as e:
            if e.retryable:
                _log.warning("reading again soon", pump=kind, why=e.message)
                await asyncio.sleep(0.5)
                self._orders.put_nowait(_Order("restart", why=e.message))
                return
            self.stopped = e.message
            _log.error("stopped", topology=self.topology, stage=self.stage.id, code=e.code, why=e.message, fix=e.fix)

    async def _from_source(self) -> None:
        bus, settings = self.s.bus, self.stage.settings
        mine = list(self.partitions.values())
        self.intake.created = await check_source(bus, self.source_stream, settings, mine)
        # of those that were there: one may be fenced while we ask, and with the last one goes all that there is to read
        after = min((p.state.source_sequence for p in mine), default=0)
        self._source_read = (after, "")
        reader = await bus.reader(self.source_stream, [settings.subject], after=after, name=self._name("source"))
        try:
            while True:
                await self._walk_all(await reader.read(CHUNK))
        finally:
            await reader.close()

    async def _walk_all(self, messages: Sequence[Message]) -> None:
        clock, most = self.s.clock(), self.s.most_open_calls
        for message in messages:
            p = self._partition(message)
            if p is None or message.sequence <= p.state.source_sequence:
                continue
            if p.crowded or len(p.state.calls) >= most:
                await self._room(p)
                clock = self.s.clock()
            now = p.clock("source", message.sequence, clock) if p.state.parts else clock
            p.add(self.intake.walk(p, message, now), "source", message.sequence, self.intake.id, now)
        self._source_read = (messages[-1].sequence, message_id(messages[-1], self.intake.created))
        self._kick()

    def _kick(self) -> None:
        for p in self.partitions.values():
            if not p.settled.is_set():
                self.s.committer.request_commit(p, self)

    async def _room(self, p: Partition) -> None:
        """Backpressure: a commit must make room, or calls must finish, before this partition takes more from its source."""
        while p.crowded or len(p.state.calls) >= self.s.most_open_calls:
            p.room.clear()
            self.s.committer.request_commit(p, self)
            await p.room.wait()

    def _partition(self, message: Message) -> Partition | None:
        if self.count == 1:
            return self.partitions.get(0)
        h = message.headers
        spread = h.get(subjects.KEY) or h.get(subjects.SESSION) or message.subject
        return self.partitions.get(partition_of(spread, self.count))

    async def _from_inbox(self) -> None:
        bus = self.s.bus
        mine = {p.reply: p for p in self.partitions.values()}
        if not mine:
            return  # the last one was fenced before this pump began
        after = self._inbox_read = min(p.state.inbox for p in mine.values())
        reader = await bus.reader(self.s.stream, list(mine), after=after, name=self._name("inbox"))
        try:
            for p in mine.values():
                await self._release_held(p, p.state.releasable())
            while True:
                self._kick()
                self._listening = reader
                messages = await reader.read(CHUNK)
                self._listening = None
                for message in messages:
                    p = mine[message.subject]
                    if message.sequence > p.state.inbox:
                        await self._handle(p, message)
                self._inbox_read = messages[-1].sequence
        finally:
            self._listening = None
            await reader.close()

    async def _handle(self, p: Partition, message: Message) -> None:
        await self._take(p, message)
        await self._release_held(p, self.inbox.freed())

    async def _take(self, p: Partition, message: Message, *, due: bool = False) -> None:
        """Handle one message. Nothing is awaited at its end: what it freed is still the last that was freed."""
        stored: Message | None = None
        if place := message.headers.get(subjects.STORED):
            stream, _, sequence = place.rpartition(":")
            stored = await self.s.bus.get(stream, int(sequence))
        while p.crowded:
            p.room.clear()
            self.s.committer.request_commit(p, self)
            await p.room.wait()
        clock = p.clock("inbox", message.sequence, self.s.clock())
        if due:
            p.undelay(message.sequence)
        p.add(self.inbox.take(p, message, clock, due=due, stored=stored), "inbox", message.sequence, clock=clock)
        p.room.set()  # a call may have finished, and the source may have waited for that

    async def _release_held(self, p: Partition, held: Sequence[int]) -> None:
        """Results that waited for an earlier call of their key, and those that wait for them, one after another.

        A loop, and not each releasing the next: thousands may wait for one slow call, more than Python's stack holds.
        """
        waiting = deque(held)
        while waiting:
            await self._again(p, waiting.popleft())
            waiting += self.inbox.freed()

    async def _again(self, p: Partition, sequence: int) -> None:
        """Handle a message of the inbox that was put off."""
        message = await self.s.bus.get(self.s.stream, sequence)
        if message is not None:
            await self._take(p, message, due=True)
            return
        _log.error("a message that was put off is gone: somebody purged it", stream=self.s.stream, sequence=sequence)
        p.undelay(sequence)
        for ordinal in [o for o, row in p.state.calls.items() if row.held == sequence]:
            p.put(ordinal, p.state.calls[ordinal]._replace(held=0))  # its deadline settles it
        p.add([], "clock", 0)

    async def _from_clock(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            for p in list(self.partitions.values()):
                alarm = p.state.next_alarm()
                if alarm is not None and alarm <= self.s.clock():
                    await self._ring(p)

    async def _ring(self, p: Partition) -> None:
        for sequence in p.state.due(self.s.clock()):
            if sequence in p.state.delayed:
                await self._release_held(p, [sequence])
        # A result that is stored already beats the deadline: after a long stop, all of them are read first.
        if self._listening is not None and self._listening.caught_up:
            for ordinal in list(p.state.expired(self.s.clock())):
                await self._expire(p, ordinal)
        if not p.settled.is_set():
            self.s.committer.request_commit(p, self)

    async def _expire(self, p: Partition, ordinal: int) -> None:
        row = p.state.calls.get(ordinal)
        if row is None or row.held or not row.work:
            return
        message = await self.s.bus.get(self.s.stream, row.work)
        row = p.state.calls.get(ordinal)
        if row is None or row.held:
            return
        work = Work.unpack(message.data) if message else None
        event = ("clock", -1 - ordinal)
        clock = p.clock(*event, self.s.clock())
        p.add(self.inbox.expire(p, ordinal, row, work, clock), *event, clock=clock)
        p.room.set()
        await self._release_held(p, self.inbox.freed())

    async def _watch_source(self) -> None:
        """Now and then: is the source still what it was, and may the positions of idle partitions move on?"""
        watched = Watched(self.s.bus, self.source_stream, self.stage.settings)
        while True:
            await asyncio.sleep(WATCH)
            if self.intake.created and (why := await watched.look(self.intake.created, self._source_read[0])):
                self._orders.put_nowait(_Order("restart", why=why))  # the source pump looks closer when it begins
                return
            if watched.quiet_up_to > self._source_read[0]:
                self._source_read = (watched.quiet_up_to, "")
            self._move_on(0 if watched.foreign else LAG)

    def _move_on(self, lag: int) -> None:
        """Bring positions to what the pumps have handled: a restart does not read it again, and finds no gap in it."""
        sequence, id = self._source_read
        for p in self.partitions.values():
            if self.intake.created and p.state.source_sequence + lag < sequence:
                p.add([], "source", sequence, id)
            if p.state.inbox + LAG < self._inbox_read:
                p.add([], "inbox", self._inbox_read)
        self._kick()

    def _name(self, kind: str) -> str:
        return subjects.reader_name(self.s.app, self.topology, self.stage.id, kind, self.s.engine)
