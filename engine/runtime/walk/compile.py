"""From a graph to stages: which operators one owner runs, each chain fused into one function.

A stage begins at a source, or behind hops that meet, and has everything that its events reach without another hop: native
operators, calls, and what follows the calls, since a record returns to the stage partition that asked (ADR-0002). A node that
two sources reach is in both stages: native operators are pure, so it needs no hop to meet itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias, cast

from dspex.engine.graph.context import Handler
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.hops import groups, timed
from dspex.engine.graph.nodes import (
    BACK,
    ENTRIES,
    TOLD,
    WAKE,
    CallNode,
    HopNode,
    NativeNode,
    Node,
    SinkNode,
    Source,
    SourceNode,
    StateNode,
    operator_of,
)
from dspex.engine.graph.ways import fork_of, sources_of
from dspex.engine.log.dropped import Dropped
from dspex.engine.runtime.process import landing_step, native_step, sink_step, source_step
from dspex.engine.runtime.walk import serial
from dspex.engine.runtime.walk.forks import fork_step
from dspex.engine.runtime.walk.hops import arrived_step, back_step, handed_on_step, hop_step, told_step, wake_step
from dspex.engine.runtime.walk.steps import call_step, fan_out, redriven
from dspex.engine.runtime.walk.timing import NodeTimes
from dspex.engine.runtime.watermarks.clocks import NodeClock, clocks

Names: TypeAlias = Mapping[str, str]
Hops: TypeAlias = Mapping[str, tuple[str, int]]
"""Hop → (id of the stage behind it, its partitions)."""
_NO_HOPS: Hops = {}


@dataclass(frozen=True)
class Stage:
    """One stage, compiled.

    Attributes:
        id: token of its subjects, fixed by the manifest.
        name: what it begins at, for people: its source, or a hop. source: None behind hops. hops: all that lead to it.
        dropped: the topology has its source no more: it is not read, and what is open comes to its end.
        entries: node → the step at which a NodeEvent enters there: the source or the hops, and its calls.
        calls: its call nodes by name. states: its nodes with state. behind: the step behind each of those.
        before: the stages before it whose watermarks it needs, with their partitions.
        clocks: node → how its watermark follows from that of the stage. exits: the hops that leave it. says: those of them that
            its watermark is said over.
        names: old name → new name of operators that were renamed, since the beginning.
        hold: seconds for which an event that was put off holds the watermark, at most: what the sources say that lead there.
    """

    id: str
    graph: Graph
    name: str
    source: Source | None
    entries: dict[str, Handler]
    calls: dict[str, CallNode]
    states: dict[str, StateNode]
    behind: dict[str, Handler]
    clocks: dict[str, NodeClock]
    exits: tuple[str, ...]
    names: Names
    hold: float
    dropped: bool = False
    before: Mapping[str, int] = field(default_factory=dict)
    hops: tuple[str, ...] = ()
    says: tuple[str, ...] = ()

    def holder(self, entry: str) -> str:
        """The node that an event holds which is to enter there: what the event will be comes out behind it."""
        return operator_of(self.names.get(entry, entry))

    @property
    def begins(self) -> set[str]:
        """The names of what it begins at, its source or its hops; old names, too."""
        now = {*self.hops} or {self.name}
        return now | {old for old, new in self.names.items() if new in now}

    @cached_property
    def shared(self) -> frozenset[str]:
        """The nodes whose state is that of the partition, whatever key an event has."""
        return frozenset(name for name, node in self.states.items() if not node.state.keyed)

    @cached_property
    def ends_in_calls(self) -> bool:
        """Whether nothing follows its calls, as where they are submitted: who asked hears of the end from a worker."""
        followed = {inlet.node for node in self.graph.nodes.values() for inlet in node.inputs}
        return bool(self.calls) and followed.isdisjoint(self.calls)

    @property
    def decided(self) -> bool:
        """Whether something waits in it for decisions."""
        return any(node.op == "approve" for node in self.states.values())


class _Fuse:
    def __init__(self, graph: Graph, stage: str, hops: Hops, times: NodeTimes | None) -> None:
        self.graph, self.stage, self.hops, self.times = graph, stage, hops, times
        self.forks: dict[str, list[tuple[str, str]]] = {}  # node → the gathers whose ways part behind it
        for node in graph.states:
            if node.state.gathers and (fork := fork_of(graph.nodes, node)) is not None:
                self.forks.setdefault(fork, []).append((node.name, self._id(node)))
        self.steps: dict[str, Handler] = {}
        self.states: dict[str, StateNode] = {}
        self.behind: dict[str, Handler] = {}
        self.entries: dict[str, Handler] = {}

    def outlets(self, node: Node) -> list[Handler]:
        behind: list[list[tuple[Node, Handler]]] = [[] for _ in range(max(1, node.outlets))]
        for follower in self.graph.nodes.values():
            for index, inlet in enumerate(follower.inputs):
                if inlet.node == node.name:
                    behind[inlet.outlet].append((follower, self.step(follower, index)))
        found = [fan_out(branches) for branches in behind]
        gathers = self.forks.get(node.name)
        return [fork_step(gathers, step) for step in found] if gathers else found

    def enter(self, node: Node) -> None:
        """Let events come in at a node."""
        if isinstance(node, HopNode):
            self.entries[node.name] = arrived_step(self.outlets(node)[0], node.hop.read)
        else:
            self.step(node)

    def step(self, node: Node, inlet: int = 0) -> Handler:
        """The step of a node, for what comes from one of its inputs."""
        if isinstance(node, StateNode):
            return self._timed(node, self._with_state(node, inlet))
        if node.name not in self.steps:
            self.steps[node.name] = self._timed(node, self._make(node))
        return self.steps[node.name]

    def _timed(self, node: Node, step: Handler) -> Handler:
        return step if self.times is None else self.times.around((self.graph.name, node.name), step)

    def _with_state(self, node: StateNode, inlet: int) -> Handler:
        if node.name not in self.states:
            self.states[node.name] = node
            self.behind[node.name] = after = self.outlets(node)[0]
            self.entries[node.name] = arrived_step(
                after, node.state.finish or node.state.read
            )  # what came out and failed behind it is redriven there
            self.entries[node.name + WAKE] = wake_step(node, after)
            if node.state.told is not None:
                self.entries[node.name + TOLD] = told_step(node)
            if node.state.back is not None:
                self.entries[node.name + BACK] = back_step(node)
        return native_step(node, cast("Handler", node.state.step(self.behind[node.name], inlet)))

    def _one_by_one(self, node: CallNode, ask: Handler) -> Handler:
        """The step of a call that is made for one event of a key at a time."""
        gate = self.states[node.name] = serial.before(node)
        self.behind[node.name] = after = serial.opening(ask)
        self.entries[node.name + WAKE] = wake_step(gate, after)
        return native_step(gate, cast("Handler", gate.state.step(after, 0)))

    def _make(self, node: Node) -> Handler:
        match node:
            case SourceNode():
                self.entries[node.name] = source_step(node.source, self.outlets(node)[0])
                return self.entries[node.name]
            case NativeNode():
                return native_step(node, node.build(self.outlets(node)))
            case StateNode():
                raise AssertionError("a step with state is one for each of its inputs")
            case CallNode():
                ask = call_step(node, self.graph.codec)
                self.entries[node.name] = landing = landing_step(node, self.outlets(node)[0])
                if node.call.order == "serial":
                    one = self._one_by_one(node, ask)
                    ask = one if node.call.of is None else serial.where_keyed(one, ask)
                    self.entries[node.name] = redriven(landing, ask)
                return ask
            case HopNode():
                return hop_step(node, self._id(node), *self.hops[node.name], self.graph.codec)
            case SinkNode():
                return sink_step(node, self._id(node), self.graph.codec)

    def _id(self, node: Node) -> str:
        """What ids of its outputs are derived from, besides the event's."""
        return f"{self.graph.name}/{self.stage}/{node.name}"


def compile_stage(
    graph: Graph,
    source: SourceNode,
    id: str,
    names: Names | None = None,
    hops: Hops = _NO_HOPS,
    times: NodeTimes | None = None,
) -> Stage:
    """The stage that begins at `source`. `names`: old name → new name of operators; those that the graph says by default."""
    return _compiled(graph, id, source.name, source.source, [source], names, hops, times)


def compile_graph(
    graph: Graph, sources: Hops, hops: Hops, names: Names, times: NodeTimes | None = None
) -> list[tuple[Stage, int]]:
    """All stages of a graph, with their partitions.

    Args:
        sources: source → (id of its stage, its partitions).
        times: what the operators take is measured there; None: it is not, and no step is longer for it.
    """
    found = [(compile_stage(graph, s, sources[s.name][0], names, hops, times), sources[s.name][1]) for s in graph.sources]
    if not graph.hops:
        return found
    behind = [(group, *hops[group[0].name]) for group in groups(graph)]
    found += [(compile_behind(graph, group, id, names, hops, times), count) for group, id, count in behind]
    before = {
        id: {s.id: count for s, count in found if {hop.name for hop in group}.intersection(s.says)} for group, id, _ in behind
    }
    return [(replace(s, before=before.get(s.id, {})), count) for s, count in found]


def compile_dropped(graph: Graph, gone: Dropped, names: Names, hops: Hops = _NO_HOPS) -> Stage:
    """What is left of a stage that was dropped: all calls of the topology, with what follows them."""
    source = Source(gone.source) if gone.stream else None
    return _compiled(graph, gone.stage, gone.source, source, graph.calls, names, hops, dropped=True)


def compile_behind(
    graph: Graph,
    group: Sequence[HopNode],
    id: str,
    names: Names | None = None,
    hops: Hops = _NO_HOPS,
    times: NodeTimes | None = None,
) -> Stage:
    """The stage behind hops that meet."""
    return _compiled(graph, id, group[0].name, None, group, names, hops, times)


def _compiled(
    graph: Graph,
    id: str,
    name: str,
    source: Source | None,
    entries: Sequence[Node],
    names: Names | None,
    hops: Hops,
    times: NodeTimes | None = None,
    *,
    dropped: bool = False,
) -> Stage:
    fuse = _Fuse(graph, id, hops, times)
    for node in entries:
        fuse.enter(node)
    if source is None:
        for hop in [h for h in graph.hops if h.name not in fuse.entries and h.name in hops]:
            fuse.entries[hop.name] = handed_on_step(*hops[hop.name])
    calls = {n.name: n for n in graph.calls if n.name in fuse.steps}
    exits = tuple(n.name for n in graph.hops if n.name in fuse.steps)
    says = tuple(name for name in exits if name in timed(graph))
    clocks_of = clocks(graph, [n.name for n in entries], [*fuse.steps, *fuse.states])
    names = graph.renamed if names is None else names
    names = {**names, **{old + to: new + to for old, new in names.items() if new in fuse.states for to in ENTRIES}}
    before = sources_of(graph, [n.name for n in entries])
    sources = [source] if source is not None else [s.source for s in graph.sources if s.name in before]
    hold = max((s.hold for s in sources), default=Source.hold)
    led = tuple(n.name for n in entries if isinstance(n, HopNode))
    what = (fuse.entries, calls, fuse.states, fuse.behind, clocks_of)
    stage = Stage(id, graph, name, source, *what, exits, names, hold, dropped, hops=led, says=says)
    return stage if times is None else replace(stage, **times.entered(graph, stage.entries, stage.states))
