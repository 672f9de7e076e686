"""The host: one process's part of an application. Applies topologies, sends heartbeats, runs stages, drains."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from dspex.bus import subjects, telemetry
from dspex.bus.errors import BusError, StreamFull
from dspex.bus.local.processes import process
from dspex.bus.port import Bucket, Bus, StreamInfo
from dspex.bus.seldom import logger
from dspex.bus.serving import payloads
from dspex.bus.serving.keys.signatures import Keys
from dspex.bus.serving.server_clock import ServerClock
from dspex.bus.serving.work_consumers import WorkConsumers
from dspex.bus.tasks import Tasks, first, patiently
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.manifest import Manifest
from dspex.engine.graph.ways import read_first
from dspex.engine.hosting.apply import apply
from dspex.engine.hosting.membership import Membership
from dspex.engine.hosting.operators import Operators
from dspex.engine.hosting.pausing import Pausing
from dspex.engine.hosting.planning.there import used_by
from dspex.engine.hosting.report import Reports, described
from dspex.engine.hosting.watchdog import Watchdog
from dspex.engine.log import housekeeping
from dspex.engine.log.dropped import Dropped, dropped, has_ended
from dspex.engine.log.torn_commits import TornCommits
from dspex.engine.runtime.committer import Committer
from dspex.engine.runtime.inputs.backlog import Backlog
from dspex.engine.runtime.inputs.tables_first import TablesFirst, TableSource
from dspex.engine.runtime.inputs.upto import meet
from dspex.engine.runtime.services import Services
from dspex.engine.runtime.stage import StageRunner
from dspex.engine.runtime.walk.compile import Stage, compile_dropped, compile_graph
from dspex.engine.runtime.walk.timing import NodeTimes
from dspex.engine.runtime.watermarks.alignment import Alignment

LOOK = 5.0  # seconds between two looks whether a stage whose source was dropped has ended
READERS = 8  # partitions that catch up with a reader of their own at a time
SOURCES_WAIT = 0.8  # of `max_bytes`: from here on the application's stream is kept for calls that are open
_log = logger("dspex.engine")


class Host:
    """Runs graphs on a bus.

    Args:
        bus: connected; the host does not close it.
        app: name of the application.
        graphs: frozen topologies.
        engine: id of this engine, unique among those that live.
        replicas, max_bytes: see `apply`.
        heartbeat: seconds between two signs of life; after five without one another engine takes over.
        records: seconds that records of calls are kept.
        stall_after: seconds without progress, although there is work, after which a stage counts as stalled.
        align: seconds that a source may be ahead of another one of its topology, in event time.
        most_arrivals, most_open_calls: see Services. state_limit: bytes of the state of one partition.
        claim_check_above: bytes of a body that is not stored in its message.
        keys: pool → the keys that sign its records; see bus/serving/keys/signatures.py.
        only_additive: do not start where applying would lose something that the application holds.
        again: apply also a version that another one has replaced. times: where what operators take is measured, if at all.
    """

    def __init__(
        self,
        bus: Bus,
        app: str,
        graphs: Sequence[Graph],
        *,
        engine: str,
        replicas: int = 1,
        max_bytes: int | None = -1,
        heartbeat: float = 1.0,
        records: float = 30 * 86400.0,
        stall_after: float = 30.0,
        align: float = 3600.0,
        most_arrivals: int = 500,
        most_open_calls: int = 10_000,
        state_limit: int = 256 << 20,
        claim_check_above: int = payloads.ABOVE,
        keys: Mapping[str, Keys] | None = None,
        only_additive: bool = False,
        again: bool = False,
        times: NodeTimes | None = None,
    ) -> None:
        self.bus = bus
        self.app = app
        self.graphs = tuple(graphs)
        self.engine = engine
        self._apply = partial(apply, replicas=replicas, max_bytes=max_bytes, only_additive=only_additive, again=again)
        self.heartbeat, self._align, self._state_limit = heartbeat, align, state_limit
        self.records = records
        self.clock = ServerClock(bus, subjects.stream(app), self._heard)
        self.room = asyncio.Event()  # set while sources need not wait for room in the application's stream
        self.room.set()
        self.committer = Committer(bus, app, self.clock, claim_check_above)
        self.runners: list[StageRunner] = []
        self.watchdog = Watchdog(bus, app, self.runners, self.committer, stall_after)
        self.membership: Membership | None = None
        self.consumers = WorkConsumers(bus, app, used_by(self.graphs), self._waiting)
        self.operators = Operators(self.graphs, self.clock, lambda: bus.sealing is not None, times)
        self._reports = Reports(self.operators)
        self.failure: BaseException | None = None
        self.applied: Mapping[str, str] = {}  # each topology: "created", "changed" or "unchanged"
        self.stream_applied = ""  # the same of the application's stream
        self._most, self._keys = (most_arrivals, most_open_calls), keys or {}
        self._parts = Tasks("dspex", self._part_failed)  # all but the committer
        self._committing = Tasks("dspex", self._part_failed)  # on its own: a drain still needs it when the rest has stopped
        self._failed = asyncio.Event()

    # -- running --------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Apply, and begin to run what falls to this engine."""
        make = partial(self._apply, self.bus, self.app, self.graphs)
        applied = await patiently(make, lambda why: _log.warning("waiting for the server", why=why))
        self.applied, self.stream_applied, self.graphs = applied.changes, applied.stream, tuple(applied.graphs)
        await self.clock.ask()
        alive, manifests = await self.bus.bucket(subjects.bucket(self.app)), await self.bus.bucket(subjects.applied(self.app))
        self.membership = Membership(
            alive, manifests, self.engine, self.heartbeat, self.clock, partial(self.describe, encoded=True)
        )
        await self.consumers.look()
        services = Services(
            bus=self.bus,
            app=self.app,
            stream=subjects.stream(self.app),
            engine=self.engine,
            committer=self.committer,
            clock=self.clock,
            revoked=self.membership.revoked,
            repair=TornCommits(self.bus, self.app, self.graphs),
            readers=asyncio.Semaphore(READERS),
            room=self.room,
            tally=self.operators,
            most_arrivals=self._most[0],
            most_open_calls=self._most[1],
            limit=payloads.most(self.bus),
            state_limit=self._state_limit,
            keys=self._keys,
            behind=self.consumers.behind,
        )
        ending: dict[StageRunner, Dropped] = {}
        for graph in self.graphs:
            ending |= await self._add_runners(services, self.membership, graph, applied.manifests[graph.name])
        pausing = Pausing(manifests, self.runners, self.heartbeat, self.clock)
        await pausing.look()
        await self.membership.once()
        self._committing.start(self.committer.run(), "committer")
        self._parts.start(self.membership.run(), "membership")
        self._start_parts(alive, pausing)
        for runner in self.runners:
            running = self._end(runner, ending[runner], self.membership) if runner in ending else runner.run()
            self._parts.start(running, f"{runner.topology}.{runner.stage.id}")

    def _start_parts(self, alive: Bucket, pausing: Pausing) -> None:
        """Start what looks at all stages. `alive`: the bucket of heartbeats."""
        self._parts.start(pausing.run(), "pauses")
        self._parts.start(self.watchdog.run(), "watchdog")
        self._parts.start(Alignment(self.bus, alive, self.runners, self.heartbeat, self._align).run(), "alignment")
        self._parts.start(Backlog(self.bus, self.app, alive, self.runners, self.heartbeat).run(), "backlog")
        self._parts.start(self.consumers.run(), "work consumers")
        self._parts.start(self.committer.journals.run(), "journals")
        house = housekeeping.keep(self.bus, self.app, self._first_of, records=self.records, clock=self.clock)
        self._parts.start(house, "housekeeping")
        if any(graph.lanes for graph in self.graphs):
            self._parts.start(meet(self.bus, alive, self.runners, self.heartbeat), "boundaries")

    async def _add_runners(
        self, services: Services, membership: Membership, graph: Graph, applied: Manifest
    ) -> dict[StageRunner, Dropped]:
        """Add the stages of a topology; those whose source was dropped, and of which something is left to do."""

        def add(stage: Stage, stream: str, count: int, start: int = 0) -> StageRunner:
            runner = StageRunner(services, stage, stream, count, applied.version, start)
            runner.resets = applied.resets
            self.runners.append(runner)
            membership.add(graph.name, applied.version, stage.id, count, runner)
            return runner

        names, hops, tables = applied.renamed, applied.hops, read_first(graph)
        for stage, count in compile_graph(graph, applied.stages, hops, names, self.operators.times):
            stream = applied.streams[stage.name] if stage.source is not None else ""
            runner = add(stage, stream, count, applied.starts.get(stage.name, 0))
            if runner.source is not None and (first := tables.get(stage.name)):
                of = [TableSource(applied.subject(name), applied.streams[name], *applied.stages[name]) for name in first]
                runner.source.tables = TablesFirst(self.bus, self.app, graph.name, stage.name, of)
        return {
            add(compile_dropped(graph, gone, names, hops), gone.stream, gone.partitions): gone
            for gone in await dropped(self.bus, self.app, graph.name, applied)
            if not await has_ended(self.bus, self.app, gone)
        }

    async def _end(self, runner: StageRunner, gone: Dropped, membership: Membership) -> None:
        """Run a stage whose source was dropped until nothing of it is left to do, in no engine."""
        await first(runner.run(), self._ended(runner, gone))
        self.runners.remove(runner)
        self.watchdog.stalled.pop(f"{gone.topology}/{gone.stage}", None)
        membership.remove(gone.topology, gone.stage)
        await runner.drain()
        _log.info("nothing is left to do for a source that was dropped", topology=gone.topology, source=gone.source)

    async def _ended(self, runner: StageRunner, gone: Dropped) -> None:
        while True:
            await asyncio.sleep(LOOK)
            try:
                busy = any(p.tables.calls.rows for p in runner.partitions.values())
                if not busy and await has_ended(self.bus, self.app, gone):
                    return
            except BusError as e:
                _log.debug("cannot look now whether a stage has ended, trying again", why=e.message)

    def _waiting(self) -> set[tuple[str, int]]:
        """Pools and bands of open calls, which another version of their topology may have asked."""
        rows = (row for r in self.runners for p in r.partitions.values() for row in p.tables.calls.rows.values())
        return {(row.pool, row.band) for row in rows}

    def _first_of(self) -> list[str]:
        """The topologies whose first partition runs here: its engine does the housekeeping for all."""
        firsts = {(graph.name, graph.sources[0].name) for graph in self.graphs}
        return [r.topology for r in self.runners if (r.topology, r.stage.name) in firsts and 0 in r.partitions]

    def _heard(self, stream: StreamInfo) -> None:
        """Let sources wait while the stream is nearly full: what is left is for calls that are open, so that they can end."""
        self.committer.lightly = stream.replicas == 1
        full = 0 < stream.max_bytes * SOURCES_WAIT <= stream.bytes
        if full and self.room.is_set():
            self.room.clear()
            telemetry.emit("full", why=self.full)
            _log.error("sources wait for room in the application's stream, nothing is lost", why=self.full, fix=StreamFull.fix)
        elif not full and not self.room.is_set():
            self.room.set()
            telemetry.emit("room")
            _log.info("sources go on: the application's stream has room again")

    @property
    def full(self) -> str:
        """Why the stream takes nothing, or sources wait; "" while there is room."""
        waits = f"sources wait: {SOURCES_WAIT:.0%} of the stream's max_bytes are used"
        if self.committer.full:
            return f"cannot commit: {self.committer.full}"
        return "" if self.room.is_set() else waits

    def _part_failed(self, name: str, error: BaseException) -> None:
        self.failure = self.failure or error
        _log.error("a part of the engine failed", part=name, why=str(error))
        self._failed.set()

    async def wait(self) -> None:
        """Wait until a part of the engine fails; raises its error."""
        while self.failure is None:
            await self._failed.wait()
        raise self.failure

    # -- stopping -------------------------------------------------------------------------------------------------
    async def drain(self, timeout: float = 30.0) -> None:
        """Stop reading, commit what was walked, say that it has left. Nothing is lost if the time does not suffice."""
        await self._parts.stop()
        if not self._committing:
            return  # the committer has failed: what the drain waits for would never be committed
        try:
            async with asyncio.timeout(timeout):
                for runner in self.runners:
                    await runner.drain()
                if self.membership:
                    await self.membership.leave()
        except (TimeoutError, BusError) as e:
            _log.warning("drained in part: the next engine goes on from the last commit", why=str(e) or "time is up")
        await self._committing.stop()

    async def kill(self) -> None:
        """Stop at once, as a crash would: nothing is committed, nobody is told."""
        await self._committing.stop()  # first: nothing is committed while the rest stops
        await self._parts.stop()

    # -- looking --------------------------------------------------------------------------------------------------
    def describe(self, *, encoded: bool = False) -> dict[str, Any]:
        """What this engine is and does, as plain data. `encoded`: for a heartbeat, parts of it are JSON already."""
        stages = self._reports.of(self.runners) if encoded else [described(r, self.operators) for r in self.runners]
        return {
            "stages": stages,
            "engine": self.engine,
            "topologies": [g.name for g in self.graphs],
            "time": self.clock(),
            "commits": self.committer.commits,
            "full": self.full,
            "health": self._of_membership or self.watchdog.health,
            "clock": round(time.time() - self.clock(), 3),
            "operators": self.operators.report(),
            **process(),
        }

    @property
    def _of_membership(self) -> str:
        return self.membership.replaced or self.membership.idle if self.membership else ""
