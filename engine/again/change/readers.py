"""Who reads what an application's sinks have: the sources of its topologies."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from dspex.bus import subjects
from dspex.bus.message import Message, partition_of, spread_of
from dspex.engine.client.following.progress import PartitionId
from dspex.engine.client.runs import places
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.manifest import Manifest


class SinkReaders:
    """The sources that lie where sinks are written. `applied`: all that is."""

    def __init__(self, app: str, applied: Mapping[str, Manifest]) -> None:
        own = subjects.stream(app)
        found = [(subject, readers) for stream, subject, readers in places.sources(applied) if stream == own]
        self._all = [(subject, topology, *stage) for subject, readers in found for topology, stage in readers]

    def of(self, m: Message) -> Iterator[PartitionId]:
        """The partitions that read a message."""
        for subject, topology, stage, count in self._all:
            if subjects.matches(subject, m.subject):
                yield topology, stage, partition_of(spread_of(m), count) if count > 1 else 0

    def has(self, topology: str, stage: str) -> bool:
        """Whether a stage reads some."""
        return any((topology, stage) == (one, of) for _, one, of, _ in self._all)


def next_of(pending: Collection[str], graphs: Sequence[Graph]) -> str:
    """Of topologies the one that no other one of them feeds; where they feed one another, any."""
    known = {graph.name: graph for graph in graphs}
    there = sorted(pending)
    for name in there:
        others = [known[other] for other in there if other != name and other in known]
        if name in known and not any(_feeds(other, known[name]) for other in others):
            return name
    return there[0]


def _feeds(one: Graph, other: Graph) -> bool:
    sources = [node.source.subject for node in other.sources]
    return any(subjects.overlap(node.sink.pattern, source) for node in one.sinks for source in sources)
