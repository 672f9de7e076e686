"""From a graph to stages: which operators one owner runs, each chain fused into one function.

A stage begins at a source and has everything that its events reach: native operators, calls, and what follows the calls'
results, since a result returns to the stage partition that asked (ADR-0002). A node that two sources reach is in both
stages: native operators are pure, so it needs no hop to meet itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dspex.bus import codecs
from dspex.engine.graph.context import Context, Handler
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import CallNode, NativeNode, Node, SinkNode, Source, SourceNode
from dspex.engine.runtime.walk import call_step, named_step, sink_step


@dataclass(frozen=True)
class Stage:
    """One stage, compiled.

    Attributes:
        id: token of its subjects, fixed by the manifest.
        source: the source node.
        enter: step for decoded source data.
        after: per call node, the step for its accepted output.
        calls: its call nodes by name.
    """

    id: str
    graph: Graph
    source: SourceNode
    enter: Handler
    after: dict[str, Handler]
    calls: dict[str, CallNode]

    @property
    def settings(self) -> Source:
        return self.source.source

    def walk(self, data: bytes, content_type: str | None, walk: Any) -> None:
        """Walk a source event from its bytes. Raises what decoding, the source's type and the operators raise."""
        source = self.settings
        walk.node = self.source.name
        decoded = codecs.decode(data, content_type)
        if source.accept:
            decoded = source.accept(decoded)
        if source.time:
            walk.origin = walk.origin._replace(time=source.time(decoded).timestamp())
        self.enter(decoded, walk)


def _fan_out(steps: Sequence[Handler]) -> Handler:
    """One step that hands on to all of `steps`, in graph order."""
    if len(steps) == 1:
        return steps[0]
    if not steps:
        return _nowhere

    def step(data: object, ctx: Context) -> None:
        for s in steps:
            s(data, ctx)

    return step


def _nowhere(data: object, ctx: Context) -> None:
    """The step of an outlet that nothing is attached to."""


class _Fuse:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.steps: dict[str, Handler] = {}
        self.after: dict[str, Handler] = {}

    def outlets(self, node: Node) -> list[Handler]:
        behind: list[list[Handler]] = [[] for _ in range(max(1, node.outlets))]
        for outlet, follower in self.graph.outputs(node.name):
            behind[outlet].append(self.step(follower))
        return [_fan_out(steps) for steps in behind]

    def step(self, node: Node) -> Handler:
        if node.name not in self.steps:
            self.steps[node.name] = self._make(node)
        return self.steps[node.name]

    def _make(self, node: Node) -> Handler:
        match node:
            case SourceNode():
                return self.outlets(node)[0]
            case NativeNode():
                return named_step(node, node.build(self.outlets(node)))
            case CallNode():
                self.after[node.name] = self.outlets(node)[0]
                return call_step(node, self.graph.codec)
            case SinkNode():
                return sink_step(node, self.graph.codec)


def compile_stage(graph: Graph, source: SourceNode, id: str) -> Stage:
    """The stage that begins at `source`."""
    fuse = _Fuse(graph)
    enter = fuse.step(source)
    calls = {n.name: n for n in graph.calls if n.name in fuse.steps}
    return Stage(id, graph, source, enter, fuse.after, calls)
