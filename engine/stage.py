"""The stage runner: reads, walks, and hands to the committer; owns some partitions of a stage, or none.

Two pumps feed a partition: its source and its inbox. They take turns on one thread, and a walk is never interrupted, so a
partition needs no lock. What changes ownership (own, recover, release) goes through one queue and stops both pumps first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from dspex.bus import codecs, subjects
from dspex.bus.errors import BusError, DspexError, Fenced, RetryLater
from dspex.bus.event import Message, event_time, message_id, partition_of
from dspex.bus.wire import Origin, Work
from dspex.engine.compile import Stage
from dspex.engine.failure import Failure, guard, letter, run_again, source_work
from dspex.engine.inbox import Counters, Inbox
from dspex.engine.log import CommitLog
from dspex.engine.partition import Partition
from dspex.engine.position import check_source, first_position
from dspex.engine.services import Services
from dspex.engine.walk import Output, Walk

_log = structlog.get_logger("dspex.engine")
CHUNK = 256  # messages walked before the loop gets a turn: about 4 ms
TICK = 0.1  # seconds between looks at the clock


@dataclass(frozen=True)
class _Order:
    """A change of ownership, carried out by the runner's own task."""

    what: Literal["own", "recover", "release", "restart"]
    index: int = -1
    why: str = ""
    poison: tuple[str, int] | None = None


class StageRunner:
    """Runs one stage for the partitions that this process owns."""

    def __init__(self, services: Services, stage: Stage, source_stream: str, count: int, manifest: int) -> None:
        self.s = services
        self.stage = stage
        self.topology = stage.graph.name
        self.source_stream = source_stream
        self.count = count
        self.manifest = manifest
        self.counters = Counters()
        self.partitions: dict[int, Partition] = {}
        self.stopped: str | None = None  # why this stage does not run: a gap in its source
        self.ordered = frozenset(n for n, c in stage.calls.items() if c.call and c.call.order == "key")
        self.walk = Walk(self.topology, services.limit)
        self.inbox = Inbox(services.app, stage, services.limit, self.counters)
        self._created = 0.0
        self._orders: asyncio.Queue[_Order] = asyncio.Queue()
        self._pumps: list[asyncio.Task[None]] = []
        self._careful: dict[int, tuple[int, int]] = {}  # index → (source, inbox): one event a commit up to there
        self._poison: dict[int, tuple[str, int]] = {}  # index → the event whose commit the server refuses

    # -- ownership ------------------------------------------------------------------------------------------------
    def own(self, index: int) -> None:
        """Claim a partition and run it, as soon as the runner gets to it."""
        self._orders.put_nowait(_Order("own", index))

    def failed(self, p: Partition, error: BusError) -> None:
        """A commit of `p` failed: the committer says how."""
        p.lost = True
        p.room.set()
        p.settled.set()  # nobody need wait for it: it will never be
        if isinstance(error, Fenced):
            self.partitions.pop(p.index, None)
            _log.warning(
                "fenced: another engine committed first, so this one commits nothing more here",
                topology=self.topology,
                stage=self.stage.id,
                partition=p.index,
                epoch=p.log.epoch,
            )
            self.s.lost(self.topology, self.stage.id, p.index)
            self._orders.put_nowait(_Order("restart", why="fenced"))
            return
        poison = None if error.retryable else self._suspect(p, error)
        self._orders.put_nowait(_Order("recover", p.index, error.message, poison))

    def _suspect(self, p: Partition, error: BusError) -> tuple[str, int] | None:
        """A commit was refused for what is in it. Go one event at a time until the culprit stands alone."""
        assert p.flying is not None
        batch = p.flying[0]
        _log.error("the server refused a commit", why=error.message, partition=p.index, events=batch.inputs)
        source = batch.delta.source[0] if batch.delta.source else 0
        inbox = batch.delta.inbox or 0
        if batch.inputs == 1:
            return ("source", source) if source else ("inbox", inbox)
        self._careful[p.index] = (max(source, p.state.source_sequence), max(inbox, p.state.inbox))
        return None

    async def run(self) -> None:
        """Carry out changes of ownership until cancelled."""
        try:
            while True:
                order = await self._orders.get()
                await self._stop_pumps()
                await self._obey(order)
                while not self._orders.empty():
                    await self._obey(self._orders.get_nowait())
                if self.partitions:
                    self._pumps = [
                        asyncio.create_task(self._pump(kind), name=f"{self.topology}.{self.stage.id}.{kind}")
                        for kind in ("source", "inbox", "clock")
                    ]
        finally:
            await self._stop_pumps()

    async def _obey(self, order: _Order) -> None:
        if order.what in ("own", "recover"):
            if order.poison:
                self._poison[order.index] = order.poison
            await self._claim(order.index)
        elif order.what == "release":
            await self._give_up(order.index)

    async def _claim(self, index: int) -> None:
        """Claim a partition, as often as it takes: without its log there is nothing to go on from."""
        pause = 0.05
        while True:
            if (old := self.partitions.pop(index, None)) is not None:
                old.lost = True
            try:
                self.partitions[index] = await self._claimed(index)
                return
            except BusError as e:
                if not e.retryable:
                    raise
                _log.warning("cannot claim yet", partition=index, why=e.message)
            await asyncio.sleep(pause)
            pause = min(2.0, pause * 2)

    async def _claimed(self, index: int) -> Partition:
        s = self.s
        log = CommitLog(s.bus, s.app, self.topology, self.stage.id, index, s.engine, self.manifest)
        state = await log.claim(self.ordered, at=s.clock())
        p = Partition(
            index,
            log,
            state,
            ordered=self.ordered,
            app=s.app,
            topology=self.topology,
            reply=subjects.result(s.app, self.topology, self.stage.id, index),
            most=s.most_inputs,
        )
        p.careful = index in self._careful
        if log.base == 0 and not state.source_sequence:
            start = await first_position(s.bus, self.source_stream, self.stage.settings)
            if start:
                p.add([], "source", start)
                s.committer.kick(p, self)
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
            self.s.committer.kick(p, self)
            await p.settled.wait()
        p.lost = True
        self.s.lost(self.topology, self.stage.id, index, given_up=True)

    async def _stop_pumps(self) -> None:
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        self._pumps = []

    # -- pumps ----------------------------------------------------------------------------------------------------
    async def _pump(self, kind: str) -> None:
        try:
            await {"source": self._from_source, "inbox": self._from_inbox, "clock": self._from_clock}[kind]()
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
        self._created = await check_source(bus, self.source_stream, settings, list(self.partitions.values()))
        after = min(p.state.source_sequence for p in self.partitions.values())
        reader = await bus.reader(self.source_stream, [settings.subject], after=after, name=self._name("source"))
        try:
            while True:
                messages = await reader.read(CHUNK)
                await self._walk_all(messages)
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
            outputs = self._walk_source(p, message, clock)
            p.add(outputs, "source", message.sequence, self.walk.origin.id, clock)
            self._relax(p)
        for p in self.partitions.values():
            if not p.settled.is_set():
                self.s.committer.kick(p, self)

    async def _room(self, p: Partition) -> None:
        """Backpressure: a commit must make room, or calls must finish, before this partition takes more from its source."""
        while p.crowded or len(p.state.calls) >= self.s.most_open_calls:
            p.room.clear()
            self.s.committer.kick(p, self)
            await p.room.wait()

    def _relax(self, p: Partition) -> None:
        """End the one-event-a-commit mode once the refused commit lies behind."""
        if p.careful:
            source, inbox = self._careful[p.index]
            if p.state.source_sequence >= source and p.state.inbox >= inbox:
                p.careful = False
                del self._careful[p.index]
                self._poison.pop(p.index, None)

    def _partition(self, message: Message) -> Partition | None:
        if self.count == 1:
            return self.partitions.get(0)
        h = message.headers
        spread = h.get(subjects.KEY) or h.get(subjects.SESSION) or message.subject
        return self.partitions.get(partition_of(spread, self.count))

    async def _from_inbox(self) -> None:
        bus = self.s.bus
        mine = {p.reply: p for p in self.partitions.values()}
        after = min(p.state.inbox for p in mine.values())
        reader = await bus.reader(self.s.stream, list(mine), after=after, name=self._name("inbox"))
        try:
            for p in mine.values():
                await self._release_held(p, p.state.releasable())
            while True:
                for message in await reader.read(CHUNK):
                    p = mine[message.subject]
                    if message.sequence > p.state.inbox:
                        await self._handle(p, message, self.s.clock())
                for p in mine.values():
                    if not p.settled.is_set():
                        self.s.committer.kick(p, self)
        finally:
            await reader.close()

    async def _handle(self, p: Partition, message: Message, clock: float, *, due: bool = False) -> None:
        while p.crowded:
            p.room.clear()
            self.s.committer.kick(p, self)
            await p.room.wait()
        clock = self._pinned(p, "inbox", message.sequence, clock)
        if due:
            p.undelay(message.sequence)
        if self._poison.get(p.index) == ("inbox", message.sequence):
            _log.error("dropped a result whose commit the server refuses", sequence=message.sequence)
            outputs: list[Output] = []
        else:
            outputs = self.inbox.take(p, message, clock, due=due)
        p.add(outputs, "inbox", message.sequence, clock=clock)
        p.room.set()  # a call may have finished, and the source may have waited for that
        self._relax(p)
        await self._release_held(p, self.inbox.freed())

    async def _release_held(self, p: Partition, held: Sequence[int]) -> None:
        """Results that waited for an earlier call of their key, one after another."""
        for sequence in held:
            message = await self.s.bus.get(self.s.stream, sequence)
            if message is not None:
                await self._handle(p, message, self.s.clock(), due=True)

    async def _from_clock(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            now = self.s.clock()
            for p in list(self.partitions.values()):
                alarm = p.state.next_alarm()
                if alarm is not None and alarm <= now:
                    await self._ring(p, now)

    async def _ring(self, p: Partition, now: float) -> None:
        for sequence in p.state.due(now):
            message = await self.s.bus.get(self.s.stream, sequence)
            if message is not None and sequence in p.state.delayed:
                await self._handle(p, message, now, due=True)
        for ordinal in list(p.state.expired(now)):
            row = p.state.calls[ordinal]
            if row.held or not row.work:
                continue
            message = await self.s.bus.get(self.s.stream, row.work)
            if ordinal in p.state.calls:
                work = Work.unpack(message.data) if message else None
                p.add(self.inbox.expire(p, ordinal, row, work, now), "clock", -1 - ordinal, clock=now)
                p.room.set()
                await self._release_held(p, self.inbox.freed())
        if not p.settled.is_set():
            self.s.committer.kick(p, self)

    def _name(self, kind: str) -> str:
        return subjects.reader_name(self.s.app, self.topology, self.stage.id, kind, self.s.engine)

    # -- one source event -----------------------------------------------------------------------------------------
    def _walk_source(self, p: Partition, m: Message, clock: float) -> list[Output]:
        walk = self.walk
        walk.begin(self._origin(m), self._pinned(p, "source", m.sequence, clock) if p.state.part else clock)
        walk.node = self.stage.source.name
        self.counters.events += 1
        if self._poison.get(p.index) == ("source", m.sequence):
            refused = BusError("the server refuses what this event causes", node=walk.node)
            failure: Failure | None = Failure(refused, walk.node)
        else:
            failure = guard(self._enter, m, walk)
        return walk.outputs if failure is None else [self._failed_source(p, m, failure, clock)]

    def _origin(self, m: Message) -> Origin:
        h = m.headers
        id = message_id(m, self._created)
        if len(h) == 1 and subjects.MESSAGE_ID in h:  # a source event as most are: nothing to look for
            return Origin(id, m.subject, id, None, None, None, m.time, m.sequence)
        at = event_time(m).timestamp() if subjects.TIME in h else m.time
        run, cause = h.get(subjects.RUN) or id, h.get(subjects.CAUSE)
        key, session, trace = h.get(subjects.KEY), h.get(subjects.SESSION), h.get(subjects.TRACEPARENT)
        return Origin(id, m.subject, run, cause, key, session, at, m.sequence, trace)

    def _enter(self, m: Message, walk: Any) -> None:
        data = codecs.decode(m.data, m.headers.get(subjects.CONTENT_TYPE))
        accept = self.stage.settings.accept
        self.stage.enter(accept(data) if accept else data, walk)

    def _failed_source(self, p: Partition, m: Message, failure: Failure, clock: float) -> Output:
        node = self.stage.source.name
        content_type = m.headers.get(subjects.CONTENT_TYPE) or codecs.JSON
        work = source_work(self.walk.origin, self.topology, node, m.data, content_type)
        if isinstance(failure.error, RetryLater):
            return run_again(work, node, failure.error.retry_after or 1.0, p.reply, clock)
        self.counters.dead_letters += 1
        _log.warning("dead letter", node=failure.node, why=failure.error.message[:500], run=self.walk.origin.run)
        return letter(
            failure,
            app=self.s.app,
            topology=self.topology,
            work=work,
            entry=node,
            reply=p.reply,
            clock=clock,
            limit=self.s.limit,
            stored=(self.source_stream, m.sequence),
            headers=m.headers,
        )

    def _pinned(self, p: Partition, which: str, sequence: int, clock: float) -> float:
        """The clock of an event: the recorded one, where a part of its outputs is committed already."""
        part = p.state.part
        return part[3] if part and part[:2] == (which, sequence) else clock
