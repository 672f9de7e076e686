"""The graph: what a topology is once it is frozen. The fluent API and YAML both make it; the engine runs nothing else.

A native operator is one function, `build`: given the steps of its outlets it returns its own step. Nothing is queued between
steps: a step calls the next one directly, so "everything derived from this event is done" is "the step returned". The
obvious alternative, an operator object with `process(event) -> events`, would need the engine to loop over lists between
every two operators, and a registry of operators in the engine.

The engine knows four roles (source, native, call, sink) and no operator by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias
from uuid import UUID

from dspex.bus.message import Event
from dspex.bus.records import CallSpec

Role: TypeAlias = Literal["source", "native", "call", "sink"]
Handler: TypeAlias = Callable[[Any, "Context"], None]  # data, context: hand on what comes out, return when all is done
Build: TypeAlias = Callable[[Sequence[Handler]], Handler]


class Context(Protocol):
    """What a native function may ask for besides its data. All of it is the same when the event is walked again."""

    @property
    def event(self) -> Event[Any]:
        """The event that entered the stage. `data` is what the stage read, not what earlier operators made of it."""
        ...

    @property
    def now(self) -> datetime:
        """The engine's clock (UTC), as recorded with the commit: the same on recovery and on replay."""
        ...

    @property
    def key(self) -> str | None: ...

    @property
    def session(self) -> str | None: ...

    @property
    def log(self) -> Any:
        """A structlog logger bound to the event and the operator."""
        ...

    @property
    def random(self) -> Random:
        """Seeded by the event's id."""
        ...

    def uuid(self) -> UUID:
        """A new id, the same one at every walk of this event."""
        ...


class SourceLine(NamedTuple):
    """Where something was written."""

    file: str
    line: int


class Inlet(NamedTuple):
    """One incoming edge: a node, and which of its outlets (0 for all but `branch`)."""

    node: str
    outlet: int = 0


@dataclass(frozen=True)
class Retry:
    """How a retryable failure is tried again: `backoff * factor**n`, at most `cap`, spread by `jitter` of itself.

    `attempts` counts the first one. Durations are in the units of `Duration`.
    """

    attempts: int = 4
    backoff: str | float = "1s"
    factor: float = 2.0
    cap: str | float = "60s"
    jitter: float = 0.2


@dataclass(frozen=True)
class Call:
    """What a recorded operator asks, and what happens when it fails. Durations in seconds.

    Attributes:
        spec: what a worker needs.
        pool: resource class.
        inputs: data → signature inputs; raises InvalidInput.
        accept: (data, outputs) → the operator's output, `{**data, **outputs}` validated by `into`; raises InvalidOutput.
        fallback: data → outputs, when attempts are spent; None for none.
        order: "any": as they finish; "key": released in the order of their key (None is a key too).
        on_error: "dead_letter" or "skip".
    """

    spec: CallSpec
    pool: str
    inputs: Callable[[Any], Mapping[str, Any]]
    accept: Callable[[Any, Mapping[str, Any]], Any]
    timeout: float = 60.0
    deadline: float = 600.0
    retry: Retry = field(default_factory=Retry)
    fallback: Callable[[Any], Mapping[str, Any]] | None = None
    order: Literal["any", "key"] = "any"
    on_error: Literal["dead_letter", "skip"] = "dead_letter"


@dataclass(frozen=True)
class Source:
    """Where events come from. `stream`: None for the one that captures the subject."""

    subject: str
    stream: str | None = None
    start: Literal["new", "all"] | int | float = "all"  # int: a sequence; float: seconds since the epoch
    partitions: int = 1
    on_gap: Literal["stop", "skip"] = "stop"
    time: Callable[[Any], datetime] | None = None
    accept: Callable[[Any], Any] | None = None  # decoded data → typed data; raises InvalidInput


@dataclass(frozen=True)
class Sink:
    """Where events go. `subject` may hold `{field}`; then `address` fills it in. `pattern` is what the stream captures."""

    subject: str
    pattern: str
    address: Callable[[Any], str] | None = None
    stream: str | None = None
    codec: str = "json"


@dataclass(frozen=True)
class Node:
    """One operator of a graph.

    Attributes:
        name: unique in the topology; the identity of state, calls and dead letters. Sources and sinks: the subject.
        role: what the engine does with it.
        op: the operator's word ("map", "branch", "predict"), for people.
        inputs: incoming edges; none for a source.
        options: everything that makes it what it is, as plain data: digest, YAML and `show` come from it. A function
            stands in it as its ref, or as "<lambda>".
        build: for "native" only.
        outlets: number of outgoing streams; only `branch` has more than one.
        type: what its output is called, for people ("Triaged"); None where unknown.
        fields: output fields by name with their types as text; None where unknown.
        named: False where dspex made up the name.
    """

    name: str
    role: Role
    op: str
    inputs: tuple[Inlet, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    build: Build | None = None
    source: Source | None = None
    call: Call | None = None
    sink: Sink | None = None
    outlets: int = 1
    place: SourceLine | None = None
    type: str | None = None
    fields: Mapping[str, str] | None = None
    named: bool = True


@dataclass(frozen=True)
class Graph:
    """A frozen topology. Nodes are in an order in which every node comes after its inputs."""

    name: str
    nodes: Mapping[str, Node]
    codec: str = "json"
    retention: float = 7 * 86400.0
    renamed_from: Mapping[str, str] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    file: str | None = None

    def outputs(self, name: str) -> list[tuple[int, Node]]:
        """The nodes behind `name`, each with the outlet that leads to it, in graph order."""
        return [(i.outlet, n) for n in self.nodes.values() for i in n.inputs if i.node == name]

    def of_role(self, role: Role) -> list[Node]:
        return [n for n in self.nodes.values() if n.role == role]

    @property
    def digest(self) -> str:
        """12 hex digits over names, operators, options, refs and edges; not over function bodies."""
        shape = [
            [n.name, n.op, [[i.node, i.outlet] for i in n.inputs], dict(n.options)]
            for n in sorted(self.nodes.values(), key=lambda n: n.name)
        ]
        text = json.dumps([self.name, self.codec, self.retention, shape], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class HasGraph(Protocol):
    """What the engine takes for a topology: anything that freezes into a graph."""

    @property
    def graph(self) -> Graph: ...
