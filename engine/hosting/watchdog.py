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
from itertools import count
from typing import NamedTuple

from dspex.bus import subjects
from dspex.bus.errors import BusError
from dspex.bus.port import Bus
from dspex.bus.seldom import Seldom, logger
from dspex.engine.runtime.committer import Committer
from dspex.engine.runtime.inputs.source import SourceInput
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.stage import StageRunner

_log = logger("dspex.engine")
LOOKS = 4  # within the time after which a stage counts as stalled
MOST = 1000  # subjects of one question
SLOWEST = 5.0  # seconds between looks, at most
RESTS = 4  # a stage that had nothing to do is looked at this seldom: with many stages it takes a while


class _Work(NamedTuple):
    """Something to do in a stage. `at`: how far it is; it moves when something of it is done. `what`: waits, in words."""

    at: object
    what: str


@dataclass
class Watchdog:
    """Attributes:
    app: name of the application.
    after: seconds in which nothing of what there is to do moves on, after which a stage is stalled.
    """

    bus: Bus
    app: str
    runners: Sequence[StageRunner]
    committer: Committer
    after: float
    stalled: dict[str, str] = field(default_factory=dict)  # "topology/stage" → what waits
    gone: str = ""  # that the stream is gone; "" while it is there
    _seen: dict[str, dict[str, tuple[_Work, float]]] = field(default_factory=dict)  # stage → what is to do, and since when
    _seldom: Seldom = field(default_factory=lambda: Seldom(_log))

    @property
    def health(self) -> str:
        """ "ok", or what is wrong: which stages are stalled and what waits there, or that the stream is gone."""
        return self.gone or "; ".join(f"stalled: {name}, {why}" for name, why in self.stalled.items()) or "ok"

    async def run(self) -> None:
        """Look at all stages until cancelled."""
        for number in count():
            await asyncio.sleep(min(SLOWEST, self.after / LOOKS))
            await self._look_for_stream()
            for turn, runner in enumerate(self.runners, number):
                if turn % RESTS == 0 or self._seen.get(_name(runner)):
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
        """Note what a stage has to do, and whether it moves on: each partition by itself, for one may stand still alone."""
        name, now = _name(runner), asyncio.get_running_loop().time()
        seen, found = self._seen.get(name, {}), {key: (work, now) for key, work in (await self._work(runner)).items()}
        found |= {key: seen[key] for key, (work, _) in found.items() if key in seen and seen[key][0] == work}
        self._seen[name] = found
        long = [(work.what, since) for work, since in found.values() if now - since >= self.after]
        if not long:
            if self.stalled.pop(name, None):
                _log.info("goes on after a stall", stage=name)
            return
        why, since = long[0]
        if name not in self.stalled:
            _log.error("stalled: alive, and makes no progress", stage=name, why=why, seconds=round(now - since, 1))
        self.stalled[name] = why

    async def _work(self, runner: StageRunner) -> dict[str, _Work]:
        """What the stage could do now; not what waits for something outside, or because somebody has paused it."""
        partitions = list(runner.partitions.values())
        if not partitions or runner.stopped or self.committer.full:
            return {}
        found = {
            f"commit {p.index}": _Work(p.committed, "events are processed and not committed") for p in partitions if p.unsure
        }
        try:
            found |= await self._records(runner, partitions)
            if not runner.paused:
                found |= await self._events(runner, partitions)
                source = runner.source
                if source is not None and not runner.stage.dropped and not source.waits_for and source.upto.end is None:
                    found |= await self._source(source, runner, partitions)
        except BusError:
            return {}  # the server is away: the engine can do nothing, and reconnects
        return found

    async def _records(self, runner: StageRunner, partitions: Sequence[Partition]) -> dict[str, _Work]:
        """Records of open calls that are stored, and not read."""
        where = (self.app, runner.topology, runner.stage.id)
        pools = {(pool, p.index): p for p in partitions for pool in {row.pool for row in p.tables.calls.rows.values()}}
        of = {subjects.record(where[0], pool, *where[1:], index): p for (pool, index), p in pools.items()}
        last = await self._last(list(of))
        return {
            f"record {p.index}": _Work(at, "records of calls are not read")
            for subject, p in of.items()
            if last.get(subject, 0) > (at := p.tables.position("records").sequence)
        }

    async def _events(self, runner: StageRunner, partitions: Sequence[Partition]) -> dict[str, _Work]:
        """Events that came over a hop, or are redriven, and are not read."""
        kinds = (subjects.edge, subjects.decision) if runner.stage.decided else (subjects.edge,)
        of = {kind(self.app, runner.topology, runner.stage.id, p.index): p for p in partitions if not p.full for kind in kinds}
        last, pump = await self._last(list(of)), runner.pumps["events"]
        what = "events that came over a hop are not read" if runner.source is None else "redriven events are not read"
        return {
            f"event {p.index}": _Work(at, what) for subject, p in of.items() if last.get(subject, 0) > (at := pump.reached(p))
        }

    async def _source(self, source: SourceInput, runner: StageRunner, partitions: Sequence[Partition]) -> dict[str, _Work]:
        if any(p.full for p in partitions) or not source.room.is_set():
            return {}  # it waits for workers, or for room in the stream
        event, at = await self.bus.last(runner.source_stream, source.settings.subject), runner.pumps["source"].at or 0
        return {"source": _Work(at, "events of the source are not read")} if event is not None and event.sequence > at else {}

    async def _last(self, wanted: Sequence[str]) -> dict[str, int]:
        """The sequence of the last message of each subject that has one. A replica may be behind: then it is seen later."""
        stream, found = subjects.stream(self.app), dict[str, int]()
        for start in range(0, len(wanted), MOST):
            messages = await self.bus.multi_last(stream, wanted[start : start + MOST])
            found |= {subject: message.sequence for subject, message in messages.items()}
        return found


def _name(runner: StageRunner) -> str:
    return f"{runner.topology}/{runner.stage.id}"
