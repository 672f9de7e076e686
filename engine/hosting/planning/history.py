"""What there is of the history from which operators are built: where its boundary lies, and how much has to be read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from dspex.bus import subjects
from dspex.bus.codecs import JSON
from dspex.bus.errors import TopologyError
from dspex.bus.message import Message, content_type, event_time
from dspex.bus.port import Bus
from dspex.bus.records import NodeEvent, Origin
from dspex.bus.serving import payloads
from dspex.engine.graph.boundary import is_before
from dspex.engine.graph.graph import Graph, Lane
from dspex.engine.graph.lanes import CODE, Backfill, new_lanes, with_lanes
from dspex.engine.graph.manifest import Manifest
from dspex.engine.graph.nodes import Source
from dspex.engine.log.positions import first_position
from dspex.engine.runtime.inputs.source import time_of

WIDTH: Final = 256  # sequences that are looked at for the last message before a boundary, at first


class ToRead(NamedTuple):
    """What a source of a new lane will read before the boundary.

    `since`: when the first event was stored; 0 for none. `last`: the sequence in `stream` that is the last one before it.
    """

    subject: str
    stream: str
    events: int
    since: float
    last: int


async def lanes_of(
    bus: Bus, app: str, graphs: Sequence[Graph], before: Mapping[str, Manifest], reset: Collection[str], backfill: Backfill
) -> dict[str, Mapping[str, Lane]]:
    """The lanes that each topology will have. Raises BusError; TopologyError (DX245) where there is nothing new to build, or
    something that cannot be.
    """
    asked = backfill if backfill.at else backfill._replace(at=await _now(bus, app, graphs))
    found: dict[str, Mapping[str, Lane]] = {}
    for graph in graphs:
        lanes = new_lanes(graph, before.get(graph.name), reset, asked)
        laid = with_lanes(graph, lanes).lanes
        marks = {name: await _mark(bus, app, graph, laid[name]) for name in new_in(lanes, before.get(graph.name))}
        found[graph.name] = {name: replace(lane, mark=marks.get(name, lane.mark)) for name, lane in lanes.items()}
    if not any(new_in(lanes, before.get(name)) for name, lanes in found.items()):
        why = "no operator that keeps state by its events is new here, so there is nothing to build from history"
        raise TopologyError(why, code=CODE, fix="leave out --backfill: what is there already goes on as it is")
    return found


def new_in(lanes: Mapping[str, Lane], before: Manifest | None) -> list[str]:
    """The lanes that the version before had not."""
    return [name for name in lanes if before is None or name not in before.lanes]


async def to_read(bus: Bus, graph: Graph, lane: Lane) -> dict[str, ToRead]:
    """What the sources of a lane have to read until they are at the boundary. Raises BusError."""
    found: dict[str, ToRead] = {}
    for node in [n for n in graph.sources if n.name in lane.sources]:
        name, subject = node.name, node.source.subject
        stream = node.source.stream or await bus.stream_of(subject)
        if stream is None:
            continue
        begin = await first_position(bus, stream, node.source)
        end = await first_position(bus, stream, Source(subject, start=lane.boundary))
        events = await bus.count(stream, [subject], after=begin) - await bus.count(stream, [subject], after=end)
        first = await bus.next(stream, subject, begin + 1) if events else None
        found[name] = ToRead(subject, stream, events, first.time if first is not None else 0.0, end)
    return found


async def _now(bus: Bus, app: str, graphs: Sequence[Graph]) -> float:
    """What the clock of the server says; 0 where no stream is there that could tell, and so no history either."""
    holders = [n.source.stream or await bus.stream_of(n.source.subject) for g in graphs for n in g.sources]
    infos = [await bus.stream(name) for name in sorted({subjects.stream(app), *filter(None, holders)})]
    return max((info.now for info in infos if info is not None), default=0.0)


async def _mark(bus: Bus, app: str, graph: Graph, lane: Lane) -> float:
    """The watermark at the boundary: that of the source furthest behind, as its last event and its silence since say."""
    read = {n.source.subject: n.source for n in graph.sources}
    marks = [lane.boundary]
    for subject in lane.sources.values():
        stream = read[subject].stream or await bus.stream_of(subject)
        last = await _last(bus, stream, subject, lane.boundary) if stream is not None else None
        if last is not None:
            silent = max(lane.boundary - last.time - read[subject].idle, 0.0)
            marks.append(await _time(bus, app, read[subject], last, lane.boundary) + silent)
    return min(marks)


async def _last(bus: Bus, stream: str, subject: str, boundary: float) -> Message | None:
    """The last message of a subject before the boundary."""
    last = await bus.last(stream, subject)
    if last is None or is_before(last.time, boundary):
        return last
    end, width = await first_position(bus, stream, Source(subject, start=boundary)), WIDTH
    while end > 0:
        found = await bus.scan(stream, [subject], start=max(1, end - width + 1), stop=end)
        if found:
            return found[-1]
        end, width = end - width, width * 4
    return None


async def _time(bus: Bus, app: str, source: Source, message: Message, otherwise: float) -> float:
    """The event time of a message of a source."""
    if source.time is None:
        return event_time(message).timestamp() if subjects.TIME in message.headers else message.time
    whole = await payloads.checked_out(bus, app, message)
    if whole is None:
        return otherwise
    origin = Origin("", message.subject, "", time=event_time(message).timestamp())
    found = time_of(source, NodeEvent("", origin, content_type(whole.headers) or JSON, whole.data))
    return otherwise if found is None else found
