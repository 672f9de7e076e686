"""Whether a run comes out as it did, by `handle` alone: without a bus, a loop or an engine.

A run without hops, state and failures is a source event, the calls that it leads to, and what those lead to. All its arrivals
follow from its file and from one another, so the one pure function of the engine says what comes of them. Where each call is
recorded, and each output has the id and the bytes that it had, nothing differs, and there is nothing else to find out. Of any
other run it says nothing, and the engine does that again (`repeat`): so differences are told in one way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from heapq import heappop, heappush

from dspex.bus import subjects
from dspex.bus.codecs.json import json_bytes
from dspex.bus.memory.server import MemoryServer
from dspex.bus.message import Message
from dspex.bus.port import NewMessage
from dspex.bus.records import CallRecord
from dspex.bus.serving import payloads
from dspex.engine.again.event import event_of
from dspex.engine.client.runs.export import RunFile, SourcePlace
from dspex.engine.client.runs.then.recorded import RecordedCalls
from dspex.engine.client.runs.tree import Happening
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import SourceNode
from dspex.engine.log.rows import Place
from dspex.engine.log.tables import Tables
from dspex.engine.runtime.arrival import Answered, Arrival
from dspex.engine.runtime.inputs.source import SourceInput
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.process import Process
from dspex.engine.runtime.walk.compile import compile_stage
from dspex.engine.runtime.walk.request import Address, Ask, Output

_APP = "again"
_PLAIN = {"source", "native", "call", "sink"}  # roles of nodes that keep nothing, and are all of one stage
_USUAL = {("event",), ("record",)}  # what `handle` notes where nothing failed, and nothing waits


class Unchanged:
    """Looks at runs of topologies. `graphs`: that all of them are done again with, without the changes of forks."""

    def __init__(self, graphs: Sequence[Graph]) -> None:
        self.graphs = graphs
        nodes = [node for graph in graphs for node in graph.nodes.values()]
        calls = [node.call for graph in graphs for node in graph.calls]
        plain = all(node.role in _PLAIN for node in nodes) and not any(graph.lanes for graph in graphs)
        self._plain = plain and all(call.order == "any" and call.of is None for call in calls)
        self._sources = [(graph, source) for graph in graphs for source in graph.sources]
        self._readers = lru_cache(1024)(self._find_readers)  # subjects repeat from run to run
        self._ways = dict[tuple[str, str, str, float], _Way]()

    def is_same(self, file: RunFile, recorded: RecordedCalls) -> bool:
        """Whether it is known that nothing differs. `recorded`: its calls, of which none was given; afterwards some are."""
        if not self._plain or file.place is None:
            return False
        below = [one for one in file.root if one is not file.root]
        if any(one.kind not in ("call", "output") or len(one.attempts) > 1 for one in below):
            return False
        read = self._readers(file.root.node)
        if len(read) != 1 or any(self._readers(one.node) for one in below if one.kind == "output"):
            return False
        stage = next((one.where.rpartition(".")[0] for one in below), "")
        way = self._way(*read[0], stage, file.place)
        same = _Run(way, recorded).is_same(file, below, file.place)
        if same:
            way.tables.changes()  # nobody asks for them
        else:
            way.tables = Tables()
        return same

    def _find_readers(self, subject: str) -> list[tuple[Graph, SourceNode]]:
        return [one for one in self._sources if subjects.matches(one[1].source.subject, subject)]

    def _way(self, graph: Graph, source: SourceNode, stage: str, place: SourcePlace) -> _Way:
        """What walks the events of a source in a stream: made once."""
        key = (source.name, stage, place.stream, place.created)
        if key not in self._ways:
            self._ways[key] = _Way(graph, source, stage, place)
        return self._ways[key]


class _Way:
    """What walks the events of a source."""

    def __init__(self, graph: Graph, source: SourceNode, stage: str, place: SourcePlace) -> None:
        bus, compiled = MemoryServer().connect(), compile_stage(graph, source, stage)
        address = Address(_APP, graph.name, stage, 0, "", payloads.most(bus))
        self.process = Process(compiled, address, compiled.names, place.stream)
        self.input = SourceInput(bus, _APP, compiled, source.source, place.stream, 1, _unchecked, asyncio.Event())
        self.input.created = place.created
        self.tables = Tables()  # a run that comes out as it did leaves nothing in them


class _Run:
    """One run on its way."""

    def __init__(self, way: _Way, recorded: RecordedCalls) -> None:
        self._way, self._recorded, self._tables = way, recorded, way.tables
        self._coming: list[tuple[float, int, Arrival]] = []  # records, by their times
        self._asked, self._sent = dict[str, int](), dict[str, tuple[str, bytes]]()

    def is_same(self, file: RunFile, below: Sequence[Happening], place: SourcePlace) -> bool:
        """Whether all comes again that lies below its source event, and nothing else."""
        draft = event_of(file)
        event = self._way.input.event(Message(draft.subject, draft.data, draft.headers or {}, place.sequence, place.time))
        arrival = Arrival(Place("source", place.sequence), None, place.time, event, draft.headers)
        if event.origin.run != file.info.id or not self._walked(arrival):
            return False
        while self._coming:
            if not self._walked(heappop(self._coming)[2]):
                return False
        outputs = {one.id: (one.node, json_bytes(one.data)) for one in below if one.kind == "output"}
        return self._sent == outputs and sum(self._asked.values()) + len(outputs) == len(below)

    def _walked(self, arrival: Arrival) -> bool:
        """Take an arrival; whether only that comes of it which is followed here."""
        effects = self._way.process.handle(arrival, self._tables)
        if effects.failure is not None or effects.notes not in _USUAL or any(row is not None for _, _, row in effects.changes):
            return False
        self._tables.change(effects.changes)
        return all(self._follows(output, arrival.clock) for output in effects.outputs)

    def _follows(self, output: Output, clock: float) -> bool:
        if isinstance(output, Ask):
            return self._answered(output, clock)
        headers = output.headers or {}
        id = headers.get(subjects.EVENT_ID, "")
        if not isinstance(output, NewMessage) or subjects.CONTENT_TYPE in headers or id in self._sent:
            return False
        self._sent[id] = (output.subject, output.data)
        return True

    def _answered(self, ask: Ask, clock: float) -> bool:
        """Have the recorded answer come; whether the call was asked this, in its place, and has one."""
        request = ask.asked
        ordinal = self._asked.get(request.node, 0)
        found = self._recorded.answer(request.call, request.node, request.spec, request.inputs)
        if found is None or found.step.outputs is None or found.step.wrong or found.step.id != f"{request.node}#{ordinal}":
            return False
        at = clock + found.step.elapsed.total_seconds()
        if request.record is None or at >= ask.timer.due:
            return False
        self._asked[request.node] = ordinal + 1
        self._tables.change((("calls", ask.number, ask.call), ("timers", ask.number, ask.timer)))
        record = CallRecord.at_once(
            call=request.call,
            try_number=request.try_number,
            attempt=request.attempt,
            topology=request.topology,
            node=request.node,
            number=ask.number,
            outputs=found.step.outputs,
        )
        what = Answered(record, ask.event)
        heappush(self._coming, (at, ask.number, Arrival(Place("records", ask.number), None, at, what)))
        return True


async def _unchecked(partitions: Sequence[Partition], clock: float) -> float:
    return 0.0  # nothing is read from a position here
