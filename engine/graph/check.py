"""What is wrong with a graph as a graph: names, subjects, edges. Knows no operator by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import combinations

from dspex.bus import subjects
from dspex.bus.errors import Problem
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.hops import circles
from dspex.engine.graph.nodes import Node, SinkNode, SourceNode, StateNode
from dspex.engine.graph.ways import no_gather

NAME = re.compile(r"[a-z][a-z0-9_-]{0,47}")  # of a topology, and of an operator
_OWN = "dspex."  # subjects of every application; a sink there could be read as work or as a commit


def problems(topology: str, nodes: Sequence[Node]) -> list[Problem]:
    """Every problem of a graph that is not frozen yet, so that names need not be unique."""
    found = [*_names(nodes), *_subjects(nodes), *_sinks(nodes), *_unused(nodes), *_gathers(nodes), *_circles(topology, nodes)]
    if not any(isinstance(n, SourceNode) for n in nodes):
        found.append((None, "DX228", "the topology has no source", 'add one: topology.source("support.messages")'))
    return [_problem(topology, *f) for f in found]


Finding = tuple[Node | None, str, str, str]


def _problem(topology: str, node: Node | None, code: str, message: str, fix: str) -> Problem:
    file, line = (node.place if node else None) or (None, None)
    name = node.name if node else None
    return Problem(code, "warning" if code.startswith("DX3") else "error", topology, name, file, line, message, fix)


def _names(nodes: Sequence[Node]) -> Iterator[Finding]:
    first: dict[str, Node] = {}
    for n in nodes:
        if not isinstance(n, SourceNode | SinkNode) and not all(NAME.fullmatch(part) for part in n.name.split("/")):
            rule = "a name is a-z, then a-z, 0-9, _ or -, at most 48 characters"
            yield n, "DX202", f"{n.name!r} is not a name for an operator" if n.name else f"{n.op} needs a name", rule
        # "/" becomes "-" in subjects, so a/b and a-b would share theirs
        other = first.setdefault(n.name.replace("/", "-"), n)
        ends = isinstance(n, SinkNode) and isinstance(other, SinkNode | SourceNode)
        if other is not n and not ends:  # sinks have rules of their own
            where = f" ({other.place.file}:{other.place.line})" if other.place else ""
            what = "subject" if isinstance(n, SourceNode) else "name"
            yield n, "DX201", f"the {what} {n.name!r} is taken by {other.op} {other.name!r}{where}", _rename(n)


def _rename(n: Node) -> str:
    if isinstance(n, SourceNode):
        return "read the subject once, and use the stream twice"
    return 'give it another name: name="..."'


def _subjects(nodes: Sequence[Node]) -> Iterator[Finding]:
    for n in nodes:
        if isinstance(n, SourceNode) and not subjects.is_pattern(n.source.subject):
            rule = "tokens with dots between them, no spaces, no $ or _INBOX in front; * for one token, > for the rest"
            yield n, "DX217", f"{n.source.subject!r} is not a subject that can be read", rule
        if isinstance(n, SinkNode) and n.sink.pattern.startswith(_OWN):
            yield n, "DX217", f"{n.sink.subject!r} is below dspex., which dspex keeps for itself", "use another subject"


def _sinks(nodes: Sequence[Node]) -> Iterator[Finding]:
    sinks = [n for n in nodes if isinstance(n, SinkNode)]
    for a, b in combinations(sinks, 2):
        if subjects.overlap(a.sink.pattern, b.sink.pattern):
            same = "two sinks on one subject" if a.name == b.name else f"the sinks {a.name} and {b.name} overlap"
            yield b, "DX215", f"{same}; a subject has one sink", "merge the streams first: a.merge(b).sink(...)"
    for n in sinks:
        for s in nodes:
            if isinstance(s, SourceNode) and subjects.overlap(n.sink.pattern, s.source.subject):
                loop = f"the sink {n.name} feeds the source {s.name} of the same topology: events would go round for ever"
                yield n, "DX216", loop, "use another subject"


def _gathers(nodes: Sequence[Node]) -> Iterator[Finding]:
    by_name = {n.name: n for n in nodes}
    for n in nodes:
        if isinstance(n, StateNode) and n.state.gathers and len(n.inputs) > 1 and (found := no_gather(by_name, n)) is not None:
            yield n, "DX244", *found


def _circles(topology: str, nodes: Sequence[Node]) -> Iterator[Finding]:
    for hop, met in circles(Graph(topology, {n.name: n for n in nodes})):
        back = f"{hop.name} leads back to where {met.name} led, and event time would stand still for what is behind it"
        fix = (
            f"before they meet, let the stream that does not come over {hop.name} take a hop of its own: "
            '.key_by("event.key", name="again"); or "event.id" where it has no keys'
        )
        yield hop, "DX246", back, fix


def _unused(nodes: Sequence[Node]) -> Iterator[Finding]:
    used = {(i.node, i.outlet) for n in nodes for i in n.inputs}
    for n in nodes:
        if isinstance(n, SinkNode):
            continue
        free = [o for o in range(n.outlets) if (n.name, o) not in used]
        if len(free) == n.outlets:
            yield n, "DX214", f"nothing uses what comes out of {n.name}", 'end it in a sink, .sink("subject"), or remove it'
        elif free:
            names = ", ".join("rest" if o == n.outlets - 1 else str(o) for o in free)
            message = f"nothing uses outlet {names} of {n.name}: events that go there end there"
            yield n, "DX321", message, "use filter() to drop events on purpose"
