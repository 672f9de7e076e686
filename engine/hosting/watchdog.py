"""Notices an engine that is alive and makes no progress although there is work (`engine.stall_after`).

Such an engine sends its heartbeats, so no other engine takes over, and nothing else shows the stall. Waiting is no
stall: for workers, for room in a full stream, for a server that is away, or behind a gap in a source, which the stage itself
reports. The watchdog repairs nothing: it logs a stall once, `status` shows it, and whoever runs the engine restarts it.

It also notices that the application's stream is gone from the server. All that was in it is lost, so whoever runs the
application has to say what is to be done: to make the stream anew by itself would hide that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from dspex.bus import subjects
from dspex.bus.errors import BusError
from dspex.bus.port import Bus
from dspex.bus.seldom import Seldom
from dspex.engine.runtime.committer import Committer
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.stage import StageRunner

_log = structlog.get_logger("dspex.engine")
LOOKS = 4  # within the time after which a stage counts as stalled
SLOWEST = 5.0  # seconds between looks, at most


@dataclass
class _Progress:
    """What a stage had committed when it was looked at, and since when that has not changed."""

    committed: tuple[tuple[int, int], ...]
    since: float


@dataclass
class Watchdog:
    """Attributes:
    app: name of the application.
    after: seconds without a commit, although there is work, after which a stage is stalled.
    """

    bus: Bus
    app: str
    runners: Sequence[StageRunner]
    committer: Committer
    after: float
    stalled: dict[str, str] = field(default_factory=dict)  # "topology/stage" → what waits
    gone: str = ""  # that the stream is gone; "" while it is there
    _seen: dict[str, _Progress] = field(default_factory=dict)
    _seldom: Seldom = field(default_factory=lambda: Seldom(_log))

    @property
    def health(self) -> str:
        """ "ok", or what is wrong: which stages are stalled and what waits there, or that the stream is gone."""
        return self.gone or "; ".join(f"stalled: {name}, {why}" for name, why in self.stalled.items()) or "ok"

    async def run(self) -> None:
        """Look at all stages until cancelled."""
        while True:
            await asyncio.sleep(min(SLOWEST, self.after / LOOKS))
            await self._look_for_stream()
            for runner in self.runners:
                await self.look(runner)

    async def _look_for_stream(self) -> None:
        try:
            there = await self.bus.has("stream", subjects.stream(self.app))
            if not there:  # status and doctor find engines by the bucket, which is gone too where the server was wiped
                await self.bus.bucket(subjects.bucket(self.app))
        except BusError:
            return
        if there and self.gone:
            _log.info("the application's stream is there again", stream=subjects.stream(self.app))
        self.gone = "" if there else f"the stream {subjects.stream(self.app)} is gone from the server, with all that it held"
        if self.gone:
            fix = "restore the server's data; or, to begin anew, start the engines again"
            self._seldom.error("nothing is processed", why=self.gone, fix=fix)

    async def look(self, runner: StageRunner) -> None:
        """Note whether a stage has made progress, and whether it had anything to do."""
        name, now = f"{runner.topology}/{runner.stage.id}", asyncio.get_running_loop().time()
        committed = tuple((p.index, p.committed) for p in runner.partitions.values())
        seen = self._seen.get(name)
        work = await self._work(runner) if seen is not None and seen.committed == committed else ""
        if seen is None or not work:
            self._seen[name] = _Progress(committed, now)
            if self.stalled.pop(name, None):
                _log.info("goes on after a stall", stage=name)
        elif now - seen.since >= self.after:
            if name not in self.stalled:
                _log.error("stalled: alive, and makes no progress", stage=name, why=work, seconds=round(now - seen.since, 1))
            self.stalled[name] = work

    async def _work(self, runner: StageRunner) -> str:
        """What the stage could do now and does not; "" where it has nothing to do, or waits for something outside."""
        partitions = list(runner.partitions.values())
        if not partitions or runner.stopped or self.committer.full:
            return ""
        try:
            unread = await self._unread(runner, partitions)
        except BusError:
            return ""  # the server is away: the engine can do nothing, and reconnects
        return "events are processed and not committed" if any(p.unsure for p in partitions) else unread

    async def _unread(self, runner: StageRunner, partitions: Sequence[Partition]) -> str:
        for p in partitions:
            record = await self.bus.last(
                subjects.stream(self.app), subjects.record(runner.s.app, "*", runner.topology, runner.stage.id, p.index)
            )
            if record is not None and record.sequence > p.tables.position("records").sequence:
                return "records of calls are not read"
        if runner.source is None:
            return await self._unread_events(runner, partitions)
        if runner.stage.dropped:
            return ""
        event = await self.bus.last(runner.source_stream, runner.source.settings.subject)
        if any(p.full for p in partitions) or not runner.source.room.is_set():
            return ""  # the source waits for workers, or for room in the stream
        return (
            "events of the source are not read"
            if event is not None and event.sequence > (runner.pumps["source"].at or 0)
            else ""
        )

    async def _unread_events(self, runner: StageRunner, partitions: Sequence[Partition]) -> str:
        """The same behind hops: each partition has events of its own."""
        for p in partitions:
            event = await self.bus.last(
                subjects.stream(self.app), subjects.edge(self.app, runner.topology, runner.stage.id, p.index)
            )
            if event is not None and event.sequence > runner.pumps["events"].reached(p) and not p.full:
                return "events that came over a hop are not read"
        return ""
