"""What of sources cannot be, and what is allowed and may not be what was meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from dspex.bus.errors import TopologyError
from dspex.bus.settings.duration import human
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.hops import groups
from dspex.engine.graph.nodes import Node
from dspex.engine.hosting.planning.there import There, sources

TIMED: Final = frozenset({"window", "session_window", "join", "lookup", "dedupe"})
"""Operators for which an event can be late."""


def unreadable(streams: Mapping[str, str], there: There) -> TopologyError | None:
    """The refusal of a source whose stream removes what its consumers have read: after a crash it could not be read again."""
    for subject, name in streams.items():
        info = there.streams.get(name)
        if info is not None and info.retention != "limits":
            return TopologyError(
                f"source {subject!r} is read from stream {name}, whose retention is {info.retention}: the server removes its "
                "messages once a consumer has acknowledged them, so an engine could not read them again after a crash",
                code="DX239",
                node=subject,
                fix=f"read a stream with limits retention, for example one that has {name} as its source",
            )
    return None


def trimmed(graphs: Sequence[Graph], streams: Mapping[str, str], there: There) -> Iterator[str]:
    """Sources whose stream, which is of others, may remove events before the topology's retention says so."""
    for graph in graphs:
        for subject in dict.fromkeys(s.subject for s in sources(graph)):
            info = there.streams.get(streams[subject])
            if info is None or info.own:
                continue
            limits = [f"max_age {human(info.max_age)}"] if 0 < info.max_age < graph.retention else []
            if info.trims:
                limits += [f"max_bytes {info.max_bytes:,}"] if info.max_bytes > 0 else []
                limits += [f"max_msgs {info.max_messages:,}"] if info.max_messages > 0 else []
            if limits:
                yield (
                    f"source {subject!r} of {graph.name}: stream {info.name} removes its oldest events ({', '.join(limits)}), "
                    f"maybe before the retention of {human(graph.retention)} has passed or before they are read"
                )


def mixed(there: There) -> Iterator[str]:
    """Sinks to which somebody else publishes, too."""
    for pattern in sorted(there.strangers):
        yield f"sink {pattern!r}: somebody else publishes there, and who reads it gets their events among the outputs"


def unsaved(there: There) -> Iterator[str]:
    """Calls that name a saved state which is not there."""
    for (topology, node), why in there.unsaved.items():
        yield f"{node} of {topology} has a saved state, and {why}: its calls will fail until there is one"


def late(graph: Graph, there: There) -> Iterator[str]:
    """New sources with a history that joins operators for which an event can be late."""
    before = there.last(graph.name)
    if before is None:
        return
    for group in groups(graph):
        id = next((before.hops[h.name][0] for h in group if h.name in before.hops), None)
        timed = [n.name for n in graph.nodes.values() if TIMED & {n.op, *n.options} and _leads(graph, group, n.name)]
        if id is None or not timed:
            continue
        for subject, number in there.history.items():
            if number and any(_leads(graph, [graph.nodes[subject]], h.name) for h in group if subject in graph.nodes):
                yield (
                    f"source {subject!r} of {graph.name} is new, and {number:,} events are stored for it already: at "
                    f"{', '.join(timed)} those are late that lie before what the stage has seen"
                )


def _leads(graph: Graph, begin: Sequence[Node], name: str) -> bool:
    """Whether events of these nodes reach `name`."""
    reached = {n.name for n in begin}
    for n in graph.nodes.values():  # every node comes after its inputs
        if {i.node for i in n.inputs} & reached:
            reached.add(n.name)
    return name in reached
