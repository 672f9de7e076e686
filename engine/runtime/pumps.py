"""The pumps of a stage: they feed the partitions that this process owns, from the source, the inbox and the clock.

They take turns on one thread, and a walk is never interrupted, so a partition needs no lock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import structlog

from dspex.bus import subjects
from dspex.bus.errors import DspexError
from dspex.bus.message import Message, message_id, partition_of
from dspex.bus.port import Reader
from dspex.bus.records import Work
from dspex.bus.tasks import Tasks
from dspex.engine.runtime.committer import Owner
from dspex.engine.runtime.compile import Stage
from dspex.engine.runtime.inbox import Inbox
from dspex.engine.runtime.intake import Intake
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.position import Watched, check_source
from dspex.engine.runtime.services import Services

_log = structlog.get_logger("dspex.engine")
CHUNK = 256  # messages walked before the loop gets a turn: about 4 ms
TICK = 0.1  # seconds between looks at the clock
WATCH = 5.0  # seconds between looks at the source stream
LAG = 1000  # messages that a partition's position may lie behind what its process has read


class Pumps:
    """The pumps of one stage: source, inbox, clock, and the watch over the source stream.

    Args:
        partitions: those that this process owns now, by index. The owner changes it.
        owner: handles the failure of a commit.
        restart: called with the reason when all pumps must begin again.
        failed: called with the name of a pump and an error that is a bug: a pump does not go on after it.

    Attributes:
        stopped: why the stage does not run, such as a gap in its source; None while it does.
    """

    def __init__(
        self,
        services: Services,
        stage: Stage,
        source_stream: str,
        count: int,
        partitions: Mapping[int, Partition],
        inbox: Inbox,
        intake: Intake,
        *,
        owner: Owner,
        restart: Callable[[str], None],
        failed: Callable[[str, BaseException], None],
    ) -> None:
        self._services, self._stage, self._source_stream, self._count = services, stage, source_stream, count
        self._partitions, self._inbox, self._intake = partitions, inbox, intake
        self._owner, self._restart = owner, restart
        self.stopped: str | None = None
        self._tasks = Tasks(f"{stage.graph.name}.{stage.id}", failed)
        self._source_read = (0, "")  # up to here the source pump has handled everything: sequence, event id
        self._inbox_read = 0  # up to here the inbox pump has
        self._listening: Reader | None = None  # the inbox pump's reader, while the pump waits for more

    @property
    def read_to(self) -> int:
        """The sequence of the source stream up to which everything is handled."""
        return self._source_read[0]

    def start(self) -> None:
        """Start all of them, if there is a partition to feed."""
        self.stopped = None
        for kind in ("source", "inbox", "clock", "watch") if self._partitions else ():
            self._tasks.start(self._pump(kind), kind)

    async def stop(self) -> None:
        """Stop all of them; what a pump has begun to handle is handled whole."""
        await self._tasks.stop()
        self._listening = None

    async def _pump(self, kind: str) -> None:
        pumps = {"source": self._from_source, "inbox": self._from_inbox, "clock": self._from_clock, "watch": self._watch_source}
        try:
            await pumps[kind]()
        except DspexError as e:
            if e.retryable:
                _log.warning("reading again soon", pump=kind, why=e.message)
                await asyncio.sleep(0.5)
                self._restart(e.message)
                return
            self.stopped = e.message
            _log.error("stopped", topology=self._stage.graph.name, stage=self._stage.id, code=e.code, why=e.message, fix=e.fix)

    async def _from_source(self) -> None:
        bus, settings = self._services.bus, self._stage.settings
        mine = list(self._partitions.values())
        self._intake.created = await check_source(bus, self._source_stream, settings, mine)
        # of the partitions as they were: one may have been fenced while the stream was looked at
        after = min((p.state.source_sequence for p in mine), default=0)
        self._source_read = (after, "")
        reader = await bus.reader(self._source_stream, [settings.subject], after=after, name=self._name("source"))
        try:
            while True:
                await self._walk_all(await reader.read(CHUNK))
        finally:
            await reader.close()

    async def _walk_all(self, messages: Sequence[Message]) -> None:
        clock, most = self._services.clock(), self._services.most_open_calls
        for message in messages:
            p = self._partition(message)
            if p is None or message.sequence <= p.state.source_sequence:
                continue
            if p.crowded or len(p.state.calls) >= most:
                await self._room(p)
                clock = self._services.clock()
            now = p.clock("source", message.sequence, clock) if p.state.parts else clock
            p.add(self._intake.walk(p, message, now), "source", message.sequence, self._intake.id, now)
        self._source_read = (messages[-1].sequence, message_id(messages[-1], self._intake.created))
        self._request_commits()

    def _request_commits(self) -> None:
        for p in self._partitions.values():
            if not p.settled.is_set():
                self._services.committer.request_commit(p, self._owner)

    async def _room(self, p: Partition) -> None:
        """Backpressure: a commit must make room, or calls must finish, before this partition takes more from its source."""
        while p.crowded or len(p.state.calls) >= self._services.most_open_calls:
            p.room.clear()
            self._services.committer.request_commit(p, self._owner)
            await p.room.wait()

    def _partition(self, message: Message) -> Partition | None:
        if self._count == 1:
            return self._partitions.get(0)
        h = message.headers
        spread = h.get(subjects.KEY) or h.get(subjects.SESSION) or message.subject
        return self._partitions.get(partition_of(spread, self._count))

    async def _from_inbox(self) -> None:
        bus = self._services.bus
        mine = {p.reply: p for p in self._partitions.values()}
        if not mine:
            return  # the last one was fenced before this pump began
        after = self._inbox_read = min(p.state.inbox for p in mine.values())
        reader = await bus.reader(self._services.stream, list(mine), after=after, name=self._name("inbox"))
        try:
            for p in mine.values():
                await self._release_held(p, p.state.releasable())
            while True:
                self._request_commits()
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
        await self._release_held(p, self._inbox.freed())

    async def _take(self, p: Partition, message: Message, *, due: bool = False) -> None:
        """Handle one message. Nothing is awaited after `Inbox.take`, so that `freed` is about this message."""
        stored: Message | None = None
        if place := message.headers.get(subjects.STORED):
            stream, _, sequence = place.rpartition(":")
            stored = await self._services.bus.get(stream, int(sequence))
        while p.crowded:
            p.room.clear()
            self._services.committer.request_commit(p, self._owner)
            await p.room.wait()
        clock = p.clock("inbox", message.sequence, self._services.clock())
        if due:
            p.undelay(message.sequence)
        p.add(self._inbox.take(p, message, clock, due=due, stored=stored), "inbox", message.sequence, clock=clock)
        p.room.set()  # a call may have finished, and the source pump may wait for that

    async def _release_held(self, p: Partition, held: Sequence[int]) -> None:
        """Results that waited for an earlier call of their key, and those that wait for them, one after another.

        A loop, and not each releasing the next: thousands may wait for one slow call, more than Python's stack holds.
        """
        waiting = deque(held)
        while waiting:
            await self._again(p, waiting.popleft())
            waiting += self._inbox.freed()

    async def _again(self, p: Partition, sequence: int) -> None:
        """Handle a message of the inbox that was put off."""
        message = await self._services.bus.get(self._services.stream, sequence)
        if message is not None:
            await self._take(p, message, due=True)
            return
        _log.error(
            "a message that was put off is gone: it was purged from the stream", stream=self._services.stream, sequence=sequence
        )
        p.undelay(sequence)
        for ordinal in [o for o, row in p.state.calls.items() if row.held == sequence]:
            p.put(ordinal, p.state.calls[ordinal]._replace(held=0))  # its deadline settles it
        p.add([], "clock", 0)

    async def _from_clock(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            for p in list(self._partitions.values()):
                alarm = p.state.next_alarm()
                if alarm is not None and alarm <= self._services.clock():
                    await self._ring(p)

    async def _ring(self, p: Partition) -> None:
        for sequence in p.state.due(self._services.clock()):
            if sequence in p.state.delayed:
                await self._release_held(p, [sequence])
        # A result that is stored already beats the deadline: after a long stop, all of them are read first.
        if self._listening is not None and self._listening.caught_up:
            for ordinal in list(p.state.expired(self._services.clock())):
                await self._expire(p, ordinal)
        if not p.settled.is_set():
            self._services.committer.request_commit(p, self._owner)

    async def _expire(self, p: Partition, ordinal: int) -> None:
        row = p.state.calls.get(ordinal)
        if row is None or row.held or not row.work:
            return
        message = await self._services.bus.get(self._services.stream, row.work)
        row = p.state.calls.get(ordinal)
        if row is None or row.held:
            return
        work = Work.unpack(message.data) if message else None
        event = ("clock", -1 - ordinal)
        clock = p.clock(*event, self._services.clock())
        p.add(self._inbox.expire(p, ordinal, row, work, clock), *event, clock=clock)
        p.room.set()
        await self._release_held(p, self._inbox.freed())

    async def _watch_source(self) -> None:
        """Look at the source stream now and then: was it made anew or trimmed, and may idle partitions move on?"""
        watched = Watched(self._services.bus, self._source_stream, self._stage.settings)
        while True:
            await asyncio.sleep(WATCH)
            if self._intake.created and (why := await watched.look(self._intake.created, self._source_read[0])):
                self._restart(why)  # the source pump checks for a gap when it starts
                return
            if watched.quiet_up_to > self._source_read[0]:
                self._source_read = (watched.quiet_up_to, "")
            self._move_on(0 if watched.foreign else LAG)

    def _move_on(self, lag: int) -> None:
        """Bring positions to what the pumps have handled: a restart does not read it again, and finds no gap in it."""
        sequence, id = self._source_read
        for p in self._partitions.values():
            if self._intake.created and p.state.source_sequence + lag < sequence:
                p.add([], "source", sequence, id)
            if p.state.inbox + LAG < self._inbox_read:
                p.add([], "inbox", self._inbox_read)
        self._request_commits()

    def _name(self, kind: str) -> str:
        return subjects.reader_name(self._services.app, self._stage.graph.name, self._stage.id, kind, self._services.engine)
