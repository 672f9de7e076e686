"""Applying: makes what topologies need on the server, and writes their manifests. Removes nothing.

    stream DSPEX_<app>            everything that commits write: logs, work, records, dead letters, and the sinks
    stream DSPEX_<app>_sources    sources that no other stream captures and that are nobody's sink (ADR-0008)
    stream DSPEX_<app>_requests   what calls journal while they run
    stream DSPEX_<app>_told       what publishers and callers say that they did, for the audit
    stream DSPEX_<app>_keys       the keys that seal payloads, where the settings name one (ADR-0010)
    buckets, object store         see bus/subjects.py
    streams of sink(stream=…)     public copies of sinks: see copies.py

Whoever publishes to a source can fill its stream. That must not stop the commits, so sources have a stream of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dspex.bus import subjects
from dspex.bus.errors import SubjectTaken, TopologyError
from dspex.bus.port import Bus, StreamConfig, StreamInfo
from dspex.bus.serving import clear_text
from dspex.engine.graph import manifest
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.manifest import Manifest
from dspex.engine.graph.nodes import Source
from dspex.engine.hosting import copies
from dspex.engine.log.positions import first_position

CONSUMERS = 4000  # of the application stream: the server's own default is 1000
DAY = 86400.0


@dataclass(frozen=True)
class Applied:
    """What was applied.

    Attributes:
        manifests: of each topology, as written.
        changes: of each topology: "created", "changed" or "unchanged". stream: the same of the application's stream.
    """

    manifests: Mapping[str, Manifest]
    changes: Mapping[str, str]
    stream: str


async def apply(
    bus: Bus, app: str, graphs: Sequence[Graph], *, replicas: int = 1, max_bytes: int | None = -1, again: bool = False
) -> Applied:
    """Make what the graphs need.

    Args:
        replicas: of all streams and buckets. max_bytes: of the application stream, see StreamConfig.
        again: whether a version that was applied before, and then replaced, may be applied again.

    Raises: SubjectTaken, TopologyError, BusError; ConfigError where payloads are sealed with another key, or with one.
    """
    await _seal(bus, app, replicas)
    bucket = await bus.bucket(subjects.applied(app), replicas=replicas, once=True)
    known = await manifest.read(bucket)
    layout = _Layout(bus, app, graphs, known)
    for graph in graphs:
        await layout.check_sinks(graph)
    await copies.check(bus, app, graphs)
    streams = {s.subject: await layout.stream_of(s) for g in graphs for s in _sources(g)}
    for name in sorted(set(streams.values())):
        await _check_retention(bus, name, streams)
    before = await bus.stream(subjects.stream(app))
    after = await _make_streams(bus, app, graphs, streams, replicas, max_bytes)
    await copies.make(bus, app, graphs, replicas)
    await _make_stores(bus, app, replicas)
    written: dict[str, Manifest] = {}
    for graph in graphs:
        sources = {s.subject: s for s in _sources(graph)}
        own = {subject: streams[subject] for subject in sources}
        first = known.get(graph.name)
        new = {n: s for n, s in sources.items() if first is None or n not in first.stages}
        starts = {name: await first_position(bus, own[name], source) for name, source in new.items()}
        written[graph.name] = await manifest.write(bucket, graph, own, starts, again=again)
    # Last, so that what can be published is read, and a client finds out by whom.
    await _make_streams_of_others(bus, app, streams, after)
    changes = {name: _change(known.get(name), new) for name, new in written.items()}
    return Applied(written, changes, _change(before and set(before.subjects), set(after.subjects)))


async def _seal(bus: Bus, app: str, replicas: int) -> None:
    """Make the stream of keys, where the bus seals. Raises ConfigError for a key that is not the one, or where there is none
    though the application's payloads are sealed: what was sealed could not be read, and the rest would be stored in clear text.
    """
    if bus.sealing is not None:
        await bus.sealing.establish(replicas)
    else:
        await clear_text.need_none(bus, app)


class _Layout:
    """Which stream has which subject: decided for all topologies of the application together."""

    def __init__(self, bus: Bus, app: str, graphs: Sequence[Graph], known: Mapping[str, Manifest]) -> None:
        self._bus = bus
        self._own, self._sources = subjects.stream(app), subjects.sources(app)
        names = {g.name for g in graphs}
        others = [m for name, m in known.items() if name not in names]
        self.sinks = {n.sink.pattern for g in graphs for n in g.sinks} | {s for m in others for s in m.sinks}
        self._before = {source: m.streams[source] for m in known.values() for source in m.streams}

    async def check_sinks(self, graph: Graph) -> None:
        """Refuse a sink on a subject that another stream captures. Raises SubjectTaken."""
        for pattern in [n.sink.pattern for n in graph.sinks]:
            holder = await self._bus.stream_of(pattern)
            if holder == self._sources:
                raise SubjectTaken(
                    f"{graph.name}: {pattern!r} is a source of the application, and {holder} holds its events; "
                    "a commit, with its sinks, is kept whole within one stream",
                    node=pattern,
                    fix="sink to another subject; or use another application name (app), where source and sink begin together",
                )
            if holder not in (None, self._own):
                raise SubjectTaken(
                    f"{graph.name}: sink {pattern!r} is captured by stream {holder}; a commit is kept whole within one stream",
                    node=pattern,
                    fix=f"sink to another subject, or take {pattern!r} out of {holder}",
                )

    async def stream_of(self, source: Source) -> str:
        """The stream that a source is read from. Raises SubjectTaken."""
        if source.stream:
            return source.stream
        sinks = [s for s in sorted(self.sinks) if subjects.overlap(source.subject, s)]
        if any(subjects.includes(s, source.subject) for s in sinks):
            return self._own
        if sinks:
            raise SubjectTaken(
                f"source {source.subject!r} takes in the sink {sinks[0]!r} and more, which no one stream of dspex holds",
                node=source.subject,
                fix=f"read sources that do not take in {sinks[0]!r}, or sink to another subject",
            )
        if (holder := await self._bus.stream_of(source.subject)) is not None:
            return holder
        # A stream of others that is gone is not replaced by one of ours: the stage stops, and says that it is gone.
        return self._before.get(source.subject) or self._sources


async def _make_streams(
    bus: Bus, app: str, graphs: Sequence[Graph], streams: Mapping[str, str], replicas: int, max_bytes: int | None
) -> StreamInfo:
    """Make the streams that engines and workers alone write to; that of the application as it is now."""
    own, wanted = subjects.stream(app), subjects.own_subjects(app)
    wanted += [n.sink.pattern for g in graphs for n in g.sinks]
    wanted += [subject for subject, name in streams.items() if name == own]
    config = StreamConfig(own, _without_overlap(wanted), replicas, max_bytes=max_bytes, max_consumers=CONSUMERS)
    longest = max((n.call.deadline for g in graphs for n in g.calls), default=0.0)
    requests = StreamConfig(subjects.requests(app), [subjects.request_pattern(app)], replicas, max_age=longest + DAY)
    await bus.ensure_stream(requests)
    return await bus.ensure_stream(config)


async def _make_streams_of_others(bus: Bus, app: str, streams: Mapping[str, str], own: StreamInfo) -> None:
    """Make the streams that publishers and callers write to. Of what the application's stream leaves they have their parts."""
    part = (lambda of: own.max_bytes // of) if own.max_bytes > 0 else lambda of: -1
    told = StreamConfig(subjects.told(app), [subjects.told_pattern(app)], own.replicas, max_bytes=part(100))
    await bus.ensure_stream(told)
    name = subjects.sources(app)
    if captured := [subject for subject, stream in streams.items() if stream == name]:
        await bus.ensure_stream(StreamConfig(name, _without_overlap(captured), own.replicas, max_bytes=part(5)))


async def _make_stores(bus: Bus, app: str, replicas: int) -> None:
    buckets = [bus.bucket(name, replicas=replicas) for name in subjects.buckets(app)]
    await asyncio.gather(*buckets, bus.objects(subjects.objects(app), replicas=replicas))


async def _check_retention(bus: Bus, stream: str, streams: Mapping[str, str]) -> None:
    """Refuse a source whose stream removes what its consumers have read: after a crash it could not be read again."""
    info = await bus.stream(stream)
    if info is not None and info.retention != "limits":
        subject = next(subject for subject, name in streams.items() if name == stream)
        raise TopologyError(
            f"source {subject!r} is read from stream {stream}, whose retention is {info.retention}: the server removes its "
            "messages once a consumer has acknowledged them, so an engine could not read them again after a crash",
            code="DX239",
            node=subject,
            fix=f"read a stream with limits retention, for example one that has {stream} as its source",
        )


def _sources(graph: Graph) -> list[Source]:
    return [n.source for n in graph.sources]


def _change(before: object, after: object) -> str:
    return "created" if before is None else "unchanged" if before == after else "changed"


def _without_overlap(patterns: Iterable[str]) -> list[str]:
    """`patterns` less those that another one covers: the subjects of a stream may not overlap."""
    kept: list[str] = []
    for pattern in sorted(set(patterns), key=lambda p: (-p.count(">"), -p.count("*"), p)):
        if not any(subjects.includes(k, pattern) for k in kept):
            kept.append(pattern)
    return kept
