"""The host: one process's part of an application. Applies topologies, sends heartbeats, runs stages, drains."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog

from dspex.bus import subjects
from dspex.bus.errors import BusError, SubjectTaken
from dspex.bus.local.processes import process
from dspex.bus.port import Bucket, Bus, StreamConfig
from dspex.bus.serving.server_clock import ServerClock
from dspex.bus.tasks import Tasks
from dspex.engine.graph import manifest
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.manifest import Manifest
from dspex.engine.graph.nodes import Source
from dspex.engine.hosting.membership import Membership
from dspex.engine.hosting.watchdog import Watchdog
from dspex.engine.log import housekeeping
from dspex.engine.log.positions import first_position
from dspex.engine.log.torn_commits import TornCommits
from dspex.engine.runtime.committer import Committer
from dspex.engine.runtime.compile import compile_stage
from dspex.engine.runtime.services import Services
from dspex.engine.runtime.stage import StageRunner

READERS = 8  # partitions that catch up with a reader of their own at a time
_log = structlog.get_logger("dspex.engine")


class Host:
    """Runs graphs on a bus.

    Args:
        bus: connected; the host does not close it.
        app: name of the application.
        graphs: frozen topologies.
        engine: id of this engine, unique among those that live.
        replicas: of the application stream and its buckets.
        heartbeat: seconds between two signs of life; after five without one another engine takes over.
        records: seconds that records of calls are kept.
        stall_after: seconds without progress, although there is work, after which a stage counts as stalled.
        most_inputs, most_open_calls: see Services.
    """

    def __init__(
        self,
        bus: Bus,
        app: str,
        graphs: Sequence[Graph],
        *,
        engine: str,
        replicas: int = 1,
        heartbeat: float = 1.0,
        records: float = 30 * 86400.0,
        stall_after: float = 30.0,
        most_inputs: int = 500,
        most_open_calls: int = 10_000,
    ) -> None:
        self.bus = bus
        self.app = app
        self.graphs = tuple(graphs)
        self.engine = engine
        self.replicas = replicas
        self.heartbeat = heartbeat
        self.records = records
        self.clock = ServerClock(bus, subjects.stream(app))
        self.committer = Committer(bus, self.clock)
        self.runners: list[StageRunner] = []
        self.watchdog = Watchdog(bus, subjects.stream(app), self.runners, self.committer, stall_after)
        self.membership: Membership | None = None
        self.failure: BaseException | None = None
        self.applied: dict[str, str] = {}  # each topology: "created", "changed" or "unchanged"
        self.stream_applied = ""  # the same of the application's stream
        self._most = (most_inputs, most_open_calls)
        self._parts = Tasks("dspex", self._part_failed)  # all but the committer
        self._committing = Tasks("dspex", self._part_failed)  # on its own: a drain still needs it when the rest has stopped
        self._failed = asyncio.Event()

    # -- applying -------------------------------------------------------------------------------------------------
    async def apply(self) -> dict[str, Manifest]:
        """Make what the graphs need: the stream with its subjects, the bucket, the manifests. Removes nothing."""
        bucket = await self.bus.bucket(subjects.bucket(self.app))
        wanted = list(subjects.own_subjects(self.app))
        for graph in self.graphs:
            for pattern in [n.sink.pattern for n in graph.sinks]:
                await self._sink_is_ours(graph, pattern)
                wanted.append(pattern)
        streams = {s.subject: s.stream or await self._captured(s.subject, wanted) for s in self._sources()}
        stream = subjects.stream(self.app)
        wanted += [subject for subject, name in streams.items() if name == stream]
        before = await self.bus.stream(stream)
        after = await self.bus.ensure_stream(StreamConfig(stream, _without_overlap(wanted), self.replicas))
        known = await manifest.read(bucket)
        written = {g.name: await self._manifest(bucket, g, streams, known.get(g.name)) for g in self.graphs}
        self.stream_applied = _change(before and set(before.subjects), set(after.subjects))
        self.applied = {name: _change(known.get(name), new) for name, new in written.items()}
        return written

    async def _manifest(self, bucket: Bucket, graph: Graph, streams: dict[str, str], before: Manifest | None) -> Manifest:
        sources = {n.name: n.source for n in graph.sources}
        own = {name: streams[source.subject] for name, source in sources.items()}
        new = {name: source for name, source in sources.items() if before is None or name not in before.stages}
        starts = {name: await first_position(self.bus, own[name], source) for name, source in new.items()}
        return await manifest.write(bucket, graph, own, starts)

    def _sources(self) -> list[Source]:
        return [n.source for g in self.graphs for n in g.sources]

    async def _captured(self, subject: str, sinks: Sequence[str]) -> str:
        """The stream that a source is read from: the one that captures it, else the application's."""
        if any(subjects.overlap(subject, sink) for sink in sinks):
            return subjects.stream(self.app)
        return await self.bus.stream_of(subject) or subjects.stream(self.app)

    async def _sink_is_ours(self, graph: Graph, pattern: str) -> None:
        holder = await self.bus.stream_of(pattern)
        if holder not in (None, subjects.stream(self.app)):
            raise SubjectTaken(
                f"{graph.name}: sink {pattern!r} is captured by stream {holder}; a commit is kept whole within one stream",
                node=pattern,
                fix=f"sink to another subject, or take {pattern!r} out of {holder}",
            )

    # -- running --------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Apply, and begin to run what falls to this engine."""
        manifests = await self.apply()
        await self.clock.ask()
        bucket = await self.bus.bucket(subjects.bucket(self.app))
        self.membership = Membership(bucket, self.engine, self.heartbeat, self.clock, self.describe)
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
            most_inputs=self._most[0],
            most_open_calls=self._most[1],
            limit=self.bus.max_payload,
        )
        for graph in self.graphs:
            self._add_runners(services, self.membership, graph, manifests[graph.name])
        await self.membership.once()
        self._committing.start(self.committer.run(), "committer")
        self._parts.start(self.membership.run(), "membership")
        self._parts.start(self.watchdog.run(), "watchdog")
        house = housekeeping.keep(self.bus, self.app, self._first_of, records=self.records, clock=self.clock)
        self._parts.start(house, "housekeeping")
        for runner in self.runners:
            self._parts.start(runner.run(), f"{runner.topology}.{runner.stage.id}")

    def _add_runners(self, services: Services, membership: Membership, graph: Graph, applied: Manifest) -> None:
        for source in graph.sources:
            id, count = applied.stages[source.name]
            stage = compile_stage(graph, source, id)
            start = applied.starts.get(source.name, 0)
            runner = StageRunner(services, stage, applied.streams[source.name], count, applied.version, start)
            self.runners.append(runner)
            membership.add(graph.name, id, count, runner)

    def _first_of(self) -> list[str]:
        """The topologies whose first partition runs here: its engine does the housekeeping for all."""
        firsts = {(graph.name, graph.sources[0].name) for graph in self.graphs}
        return [r.topology for r in self.runners if (r.topology, r.stage.source.name) in firsts and 0 in r.partitions]

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
    def describe(self) -> dict[str, Any]:
        """What this engine is and does, as plain data, for `status`."""
        return {
            "engine": self.engine,
            "topologies": [g.name for g in self.graphs],
            "time": self.clock(),
            "commits": self.committer.commits,
            "full": self.committer.full,
            "health": self.watchdog.health,
            "stages": [self._describe(r) for r in self.runners],
            **process(),
        }

    @staticmethod
    def _describe(r: StageRunner) -> dict[str, object]:
        return {
            "topology": r.topology,
            "stage": r.stage.id,
            "source": r.stage.source.name,
            "stopped": r.stopped or r.waits,
            "events": r.counters["event"],
            "records": r.counters["record"],
            "dropped": r.counters["dropped"],
            "retries": r.counters["retry"],
            "dead_letters": r.counters["dead_letter"],
            "unreadable": r.counters["unreadable"],
            "partitions": [
                {
                    "index": p.index,
                    "epoch": p.log.epoch,
                    "source": p.tables.position("source").sequence,
                    "records": p.tables.position("records").sequence,
                    "open_calls": len(p.tables.calls.rows),
                }
                for p in r.partitions.values()
            ],
        }


def _change(before: object, after: object) -> str:
    return "created" if before is None else "unchanged" if before == after else "changed"


def _without_overlap(patterns: Sequence[str]) -> list[str]:
    """`patterns` less those that another one covers: the subjects of a stream may not overlap."""
    kept: list[str] = []
    for pattern in sorted(set(patterns), key=lambda p: (-p.count(">"), -p.count("*"), p)):
        if not any(subjects.includes(k, pattern) for k in kept):
            kept.append(pattern)
    return kept
