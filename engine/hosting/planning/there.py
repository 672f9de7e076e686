"""What there is on the server, as far as it decides what applying would change; and a look at it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, NamedTuple

from dspex.bus import subjects
from dspex.bus.errors import RunError
from dspex.bus.port import Bus, Kept, StreamInfo
from dspex.bus.serving.programs.names import StateName
from dspex.bus.serving.programs.states import SavedStates
from dspex.engine.graph.graph import Graph, Lane
from dspex.engine.graph.hops import regrouped
from dspex.engine.graph.lanes import Backfill, follows_on, with_copies, with_lanes
from dspex.engine.graph.manifest import Manifest, Versions, everything
from dspex.engine.graph.nodes import HopNode, Source
from dspex.engine.graph.versions import changed_forms, described, gone
from dspex.engine.hosting.planning.history import ToRead, lanes_of, new_in, to_read
from dspex.engine.log.latest import look_at_many
from dspex.engine.log.tables import Tables

NONE: Final = Versions([], {}, {})


class Held(NamedTuple):
    """What a stage holds. `calls`: open ones, by node; `rows`: of keyed state, by node; `parked`: events that were put off.

    `unread`: events of its source, or frames over a hop whose key changes or that is reset, that nobody has read; 0 where that
    was not asked.
    """

    calls: Mapping[str, int] = MappingProxyType({})
    rows: Mapping[str, int] = MappingProxyType({})
    parked: int = 0
    unread: int = 0


@dataclass(frozen=True)
class There:
    """What there is.

    Attributes:
        manifests: of each topology of the application, all versions.
        streams: those of the application, and those that sources are read from or copies lie in.
        holders: subject or pattern of a source or a sink → the stream that captures it.
        stores: buckets and object stores of the application. consumers: durable ones, of work.
        held: (topology, stage) → what it holds, where that decides something.
        strangers: subjects (patterns) of sinks whose last event nobody wrote who commits.
        history: subject of a new source → events that are stored for it already.
        unsaved: (topology, node) → why the saved state that it names cannot be found now.
        graphs: as they run, with their lanes. lanes: new ones by topology and name, with what their sources will read.
    """

    manifests: Mapping[str, Versions] = field(default_factory=dict)
    streams: Mapping[str, StreamInfo] = field(default_factory=dict)
    holders: Mapping[str, str] = field(default_factory=dict)
    stores: frozenset[str] = frozenset()
    consumers: frozenset[str] = frozenset()
    held: Mapping[tuple[str, str], Held] = field(default_factory=dict)
    history: Mapping[str, int] = field(default_factory=dict)
    strangers: frozenset[str] = frozenset()
    unsaved: Mapping[tuple[str, str], str] = field(default_factory=dict)
    graphs: Sequence[Graph] = ()
    lanes: Mapping[tuple[str, str], tuple[Lane, Mapping[str, ToRead]]] = field(default_factory=dict)

    def last(self, topology: str) -> Manifest | None:
        """The version of a topology that is applied."""
        known = self.manifests.get(topology, NONE).known
        return known[-1] if known else None

    @property
    def following(self) -> list[tuple[str, Lane]]:
        """New lanes whose results go on where others end, each with its topology, which comes to rest before that."""
        graphs, found = {g.name: g for g in self.graphs}, list[tuple[str, Lane]]()
        for (topology, _), (lane, _) in self.lanes.items():
            before = self.last(topology)
            if before is not None and follows_on(graphs[topology], before, lane):
                found.append((topology, lane))
        return found


def sources(graph: Graph) -> list[Source]:
    """What the graph reads."""
    return [n.source for n in graph.sources]


async def look(
    bus: Bus,
    app: str,
    graphs: Sequence[Graph],
    reset: Collection[str] = (),
    *,
    remarks: bool = False,
    backfill: Backfill | None = None,
) -> There:
    """Look at the server. Makes nothing. Raises BusError; TopologyError where an operator cannot be built from history.

    `remarks`: also at what is needed for warnings alone. `backfill`: the history from which what is new is to be built.
    """
    applied = subjects.applied(app)
    manifests = await everything(await bus.bucket(applied)) if await bus.has("bucket", applied) else {}
    lasts = {name: versions.known[-1] for name, versions in manifests.items() if versions.known}
    lanes = await lanes_of(bus, app, graphs, lasts, reset, backfill) if backfill is not None else {}
    graphs = [with_lanes(g, lanes[g.name] if lanes else lasts[g.name].lanes if g.name in lasts else {}) for g in graphs]
    patterns = {n.sink.pattern for g in graphs for n in g.sinks} | {s.subject for g in graphs for s in sources(g)}
    holders, stores = await asyncio.gather(_holders(bus, sorted(patterns)), _stores(bus, app))
    there = There(manifests, {}, holders, stores, graphs=graphs)
    known = [m for g in graphs if (m := there.last(g.name)) is not None]
    own = (subjects.stream(app), subjects.sources(app), subjects.requests(app), subjects.answers(app), subjects.told(app))
    read = {s.stream for g in graphs for s in sources(g) if s.stream} | {name for m in known for name in m.streams.values()}
    names = sorted({*own, *read, *holders.values()})
    infos = await asyncio.gather(*(bus.stream(name) for name in names))
    there = replace(there, streams={name: info for name, info in zip(names, infos) if info is not None})
    there = replace(there, consumers=await _consumers(bus, app, graphs, there))
    if backfill is not None:
        new = {(g.name, name): g for g in graphs for name in new_in(g.lanes, there.last(g.name))}
        there = replace(there, lanes={k: (g.lanes[k[1]], await to_read(bus, g, g.lanes[k[1]])) for k, g in new.items()})
    if remarks:
        history, strangers = await asyncio.gather(_history(bus, graphs, there), _strangers(bus, app, graphs, there))
        there = replace(there, history=history, strangers=strangers, unsaved=await _unsaved(bus, app, graphs))
    lasts = {g.name: m for g in graphs if (m := there.last(g.name)) is not None}
    found = [await _held(bus, app, g, m, with_copies(g, m, reset)) for g in graphs if (m := lasts.get(g.name)) is not None]
    whole = {key: value for one in found for key, value in one.items()}
    return replace(there, held=whole)


async def _holders(bus: Bus, patterns: Sequence[str]) -> dict[str, str]:
    names = await asyncio.gather(*(bus.stream_of(pattern) for pattern in patterns))
    return {pattern: name for pattern, name in zip(patterns, names) if name is not None}


async def _stores(bus: Bus, app: str) -> frozenset[str]:
    kinds: list[tuple[Kept, str]] = [("bucket", name) for name in subjects.buckets(app)]
    kinds.append(("objects", subjects.objects(app)))
    found = await asyncio.gather(*(bus.has(kind, name) for kind, name in kinds))
    return frozenset(name for (_, name), there in zip(kinds, found) if there)


_PLAIN_BANDS = sorted({subjects.band(priority) for priority in range(10)})


def used_by(graphs: Sequence[Graph]) -> list[tuple[str, int]]:
    """The pools, with the bands of priority, that the calls of the graphs go to."""
    calls = [n.call for g in graphs for n in g.calls if n.call.of is None]
    found = {(call.pool, subjects.band(call.priority)) for call in calls}
    found |= {(c.pool, band) for c in calls if c.tenant is not None for band in subjects.side_queues(subjects.band(c.priority))}
    return sorted(found | {(pool, band) for g in graphs for pool in g.pools for band in _PLAIN_BANDS})


def consumers_of(graphs: Sequence[Graph]) -> list[str]:
    """The durable consumers from which workers take the calls of the graphs."""
    return [subjects.work_consumer(pool, band) for pool, band in used_by(graphs)]


async def _consumers(bus: Bus, app: str, graphs: Sequence[Graph], there: There) -> frozenset[str]:
    stream = subjects.stream(app)
    if stream not in there.streams:
        return frozenset()
    names = consumers_of(graphs)
    begins = await asyncio.gather(*(bus.begin_of_consumer(stream, name) for name in names))
    return frozenset(name for name, begin in zip(names, begins) if begin is not None)


async def _strangers(bus: Bus, app: str, graphs: Sequence[Graph], there: There) -> frozenset[str]:
    """What commits write has an id of ours. Only the last event of a sink is looked at."""
    own = subjects.stream(app)
    patterns = sorted({n.sink.pattern for g in graphs for n in g.sinks if there.holders.get(n.sink.pattern) == own})
    last = await asyncio.gather(*(bus.last(own, pattern) for pattern in patterns))
    return frozenset(
        p for p, message in zip(patterns, last) if message is not None and subjects.EVENT_ID not in message.headers
    )


async def _unsaved(bus: Bus, app: str, graphs: Sequence[Graph]) -> dict[tuple[str, str], str]:
    """Of calls that name a saved state: why there is none of that name now."""
    named = {(g.name, n.name): n.call.spec.state for g in graphs for n in g.calls if n.call.spec.state is not None}
    found, states = dict[tuple[str, str], str](), SavedStates(bus, app)
    for node, state in named.items():
        try:
            await states.find(StateName.read(state))
        except RunError as e:
            found[node] = e.message
    return found


async def _history(bus: Bus, graphs: Sequence[Graph], there: There) -> dict[str, int]:
    """Of sources that are new in a topology that is applied: what they will read that is stored already."""
    found: dict[str, int] = {}
    for graph in graphs:
        before = there.last(graph.name)
        for s in [n.source for n in graph.sources if n.name == n.source.subject]:  # not those of lanes
            name = s.stream or there.holders.get(s.subject)
            if before is not None and s.subject not in before.stages and s.start != "new" and name in there.streams:
                found[s.subject] = await bus.count(str(name), [s.subject])
    return found


def touched(graph: Graph, before: Manifest, reset: Collection[str]) -> set[str]:
    """The stages of which it matters what they hold: something of theirs is gone, changes its key, is divided or
    joined, or is reset."""
    known = {**before.stages, **before.hops}
    names = {*gone(graph, before), *changed_keys(graph, before), *changed_forms(graph, before)}
    names |= {name for name in reset if name in graph.nodes}
    names = {name if name in known else graph.renamed_from.get(name, name) for name in names}
    calls = any(name not in known for name in names)  # calls of a node may be open in any stage
    moved = regrouped(graph, before.hops, before.dropped)
    return set(before.live) if calls else ({known[name][0] for name in names} | moved) & before.live


def changed_keys(graph: Graph, before: Manifest) -> list[str]:
    """The hops that had another key in the version before."""
    old = {n.name: before.nodes.get(n.name) or before.nodes.get(graph.renamed_from.get(n.name, "")) for n in graph.hops}
    return [
        n.name
        for n in graph.nodes.values()
        if isinstance(n, HopNode) and (was := old[n.name]) is not None and was.get("options") != described(n)["options"]
    ]


async def _held(bus: Bus, app: str, graph: Graph, before: Manifest, reset: Collection[str]) -> dict[tuple[str, str], Held]:
    """What stages of a topology hold, of those where that matters."""
    counts = before.partitions
    sources_of = {before.stages[subject][0]: subject for subject in before.streams}
    lost = set(gone(graph, before))
    hops = [
        name if name in before.hops else graph.renamed_from.get(name, name) for name in (*changed_keys(graph, before), *reset)
    ]
    rekeyed = {before.hops[name][0] for name in hops if name in before.hops}
    found: dict[tuple[str, str], Held] = {}
    for stage in sorted(touched(graph, before, reset)):
        tables = await look_at_many(bus, app, graph.name, stage, range(counts[stage]))
        calls = Counter(before.renamed.get(row.node, row.node) for t in tables for row in t.calls.rows.values())
        rows = Counter(key[0] for t in tables for key in t.keyed.rows)
        unread, subject = 0, sources_of.get(stage)
        if subject is not None and subject in lost:
            read = max(min(t.position("source").sequence for t in tables), before.starts.get(subject, 0))
            there, reads = await bus.stream(before.streams[subject]) is not None, before.subject(subject)
            unread = await bus.count(before.streams[subject], [reads], after=read) if there else 0
        elif stage in rekeyed:
            unread = await _frames(bus, app, graph.name, stage, tables)
        found[graph.name, stage] = Held(calls, rows, sum(t.timers.put_off for t in tables), unread)
    return found


async def _frames(bus: Bus, app: str, topology: str, stage: str, tables: Sequence[Tables]) -> int:
    """Frames that the partitions of a stage have not taken."""
    read: dict[int, list[str]] = {}
    for index, t in enumerate(tables):
        read.setdefault(t.position("events").sequence, []).append(subjects.edge(app, topology, stage, index))
    return sum([await bus.count(subjects.stream(app), edges, after=after) for after, edges in read.items()])
