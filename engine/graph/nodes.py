"""The nodes of a graph, of six kinds (source, native, state, call, hop, sink), and what each kind needs to know. The engine
knows these six and no operator by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Final, Generic, Literal, NamedTuple, TypeAlias

from typing_extensions import TypeVar

from dspex.bus.codecs.cloud_events import CloudEventMode
from dspex.bus.errors import DspexError
from dspex.bus.records import Affinity, AnswerTo, OnError, Order, Origin
from dspex.bus.serving.call_spec import CallSpec
from dspex.engine.graph.context import Build, Handler, Rows

R_co = TypeVar("R_co", covariant=True, default=Any)  # what a call makes of its data
NodeRole: TypeAlias = Literal["source", "native", "state", "call", "hop", "sink"]
OnGap: TypeAlias = Literal["stop", "skip"]
Start: TypeAlias = Literal["new", "all"] | int | float


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
class Call(Generic[R_co]):
    """What a recorded operator asks, and what happens when it fails. Durations in seconds.

    Attributes:
        spec: what a worker needs.
        pool: which workers run it.
        inputs: data → signature inputs; raises InvalidInput.
        accept: (data, outputs) → the operator's output, `{**data, **outputs}` validated by `into`; raises InvalidOutput.
        fallback: data → outputs, when attempts are spent; None for none.
        priority: 0 (first) to 9; decides the band of work in which its requests wait.
        order: "any": as they finish; "key": released in the order of their key (None too); "serial": made one after the other.
        on_error: "dead_letter" or "skip".
        tenant: data → on whose behalf; raises InvalidInput. None: nobody's.
        of: makes the call of an event's data and subject, where each event says what is asked; see submitted.py.
        answer: who submitted the call, and is told of its answer; None: nobody did. turn: what names it in its session.
        affinity: "prefer": calls of one key, or else session, go to one process where that has room; "require": to no other.
    """

    spec: CallSpec
    pool: str
    inputs: Callable[[Any], Mapping[str, object]]
    accept: Callable[[Any, Mapping[str, object]], R_co]
    timeout: float = 60.0
    deadline: float = 600.0
    retry: Retry = field(default_factory=Retry)
    fallback: Callable[[Any], Mapping[str, object]] | None = None
    order: Order = "any"
    on_error: OnError = "dead_letter"
    priority: int = 5
    tenant: Callable[[Any], str | None] | None = None
    of: Callable[[Any, str], Call[Any]] | None = None
    affinity: Affinity = "prefer"
    answer: AnswerTo | None = None
    turn: str | None = None

    def for_event(self, data: Any, subject: str) -> Call[Any]:
        """What is asked for an event, by its data and its subject. Raises DataError; NotAllowed for what may not be asked."""
        return self if self.of is None else self.of(data, subject)


MOST_PARTITIONS: Final = 1024
"""Of a stage."""


@dataclass(frozen=True)
class Source:
    """Where events come from. `stream`: None for the one that captures the subject.

    `idle`: seconds of silence after which the clock moves its watermark. `hold`: for how many an event that waits for its
    time, or asked for more of it, holds the watermark at most.
    """

    subject: str
    stream: str | None = None
    start: Start = "all"  # int: a sequence; float: seconds since the epoch
    partitions: int = 1
    on_gap: OnGap = "stop"
    time: Callable[[Any], datetime] | None = None
    accept: Callable[[Any], Any] | None = None  # decoded data → typed data; raises InvalidInput
    media: Callable[[str], None] = lambda content_type: None  # raises DecodeError for a content type that is not taken
    idle: float = 30.0
    hold: float = 3600.0
    plain: bool = True  # whether JSON is taken, which `media` is not asked for then


KEYED_PARTITIONS: Final = 64
"""Of a stage behind hops, for good: a key stays in its partition."""


@dataclass(frozen=True)
class Hop:
    """Where events change their owner.

    `key`: (data, context) → the key that says who has it; raises InvalidInput. `gives`: whether that is their key from then on.
    `read`: makes data of the stream's type of what crossed the hop; None: it stays plain.
    """

    key: Callable[[Any, Any], str]
    gives: bool = True
    read: Callable[[Any], Any] | None = None


class Emitted(NamedTuple):
    """What comes out of an operator that was woken: an event of its own.

    `error`: why it is a letter instead, which `State.back` gets. `between`: times of what it is of, without the second one.
    """

    origin: Origin
    data: Any
    error: DspexError | None = None
    between: tuple[float, float] | None = None


@dataclass(frozen=True)
class State:
    """What the engine runs of an operator with state.

    Attributes:
        step: (the step behind it, which of its inputs) → its own step there.
        woken: (context, name of the timer) → what comes out then; None: it sets no timer.
        delay: seconds by which what comes out may lie behind its watermark.
        event_time: whether it depends on the watermark, so that the stages before it have to state theirs.
        form: what its rows look like, beyond the operator's name: rows of another form are never read as these.
        shown: (the rows of a key by their sub-keys) → the value that people are shown as its state; None: the rows as they are.
        first: inputs that are tables: their sources are read to their end, once, before those of the others are.
        keyed: whether its rows are those of the event's key; else all events of a partition have the same.
        read: what came out, of what a letter has of it; None: that is the same.
        finish: in place of `read`: what goes on, of what `woken` gave, or of what a letter has of it. It may call functions of
            the user's: where one fails, the state has moved on, and the letter has what `woken` gave.
        gathers: whether it brings together the branches of one event: they get an id for it where they part.
        named: makes it anew with the names of its inputs, where it speaks of them.
        back: (data, context) → takes what it has let out as a letter, which is redriven.
        told: (data, context) → takes what it is told from outside, such as a decision about something that it keeps.
        begins: what it is told whenever its first partition gets an owner; "": nothing.
        clocked: whether what comes out depends on the clock of the engine, so that history would bring out something else.
    """

    step: Callable[[Handler, int], Callable[[Any, Rows], None]]
    woken: Callable[[Rows, str], Sequence[Emitted]] | None = None
    delay: float = 0.0
    event_time: bool = False
    form: str = ""
    shown: Callable[[Mapping[str, bytes]], Any] | None = None
    keyed: bool = True
    read: Callable[[Any], Any] | None = None
    finish: Callable[[Any], Any] | None = None
    first: tuple[int, ...] = ()
    gathers: bool = False
    named: Callable[[Sequence[str]], State] | None = None
    back: Callable[[Any, Any], None] | None = None
    told: Callable[[Any, Any], None] | None = None
    begins: str = ""
    clocked: bool = False


WAKE: Final = "~wake"
"""Behind the name of an operator with state: where an event enters that wakes it again. No name of a node has it."""
TOLD: Final = "~told"
"""The same: where an event enters by which it is told something."""
BACK: Final = "~back"
"""The same: where it gets back what it has let out as a letter. Such data may be anything, also the name of a timer."""
ENTRIES: Final = (WAKE, TOLD, BACK)


def operator_of(entry: str) -> str:
    """The name of the node at which an event enters."""
    for suffix in ENTRIES:
        entry = entry.removesuffix(suffix)
    return entry


@dataclass(frozen=True)
class Sink:
    """Where events go. `subject` may hold `{field}`; then `address` fills it in. `pattern` is what the stream captures.

    `stream`: a public one that gets a copy; None: there is none.
    `cloudevents`: the content mode of events that are written as CloudEvents; None: they are not.
    """

    subject: str
    pattern: str
    address: Callable[[Any], str] | None = None
    stream: str | None = None
    codec: str = "json"
    cloudevents: CloudEventMode | None = None


@dataclass(frozen=True, kw_only=True)
class NodeBase:
    """What every node has, whatever the engine does with it.

    Attributes:
        name: unique in the topology; the identity of state, calls and dead letters. Sources and sinks: the subject.
        op: the operator's word ("map", "branch", "predict"), for people.
        inputs: incoming edges; none for a source.
        options: all that makes it what it is, as plain data, for digest, YAML and `show`: functions as refs, or "<lambda>".
        outlets: number of outgoing streams; only `branch` has more than one.
        type: what its output is called, for people ("Triaged"); None where unknown.
        fields: output fields by name with their types as text; None where unknown.
        named: False where dspex made up the name.
        code: what its functions do, as 12 hex digits; "" where it has none.
    """

    role: ClassVar[NodeRole]
    name: str
    op: str
    inputs: tuple[Inlet, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    outlets: int = 1
    place: SourceLine | None = None
    type: str | None = None
    fields: Mapping[str, str] | None = None
    named: bool = True
    code: str = ""


@dataclass(frozen=True, kw_only=True)
class SourceNode(NodeBase):
    """Events come in here: a stage begins with it."""

    role: ClassVar[NodeRole] = "source"
    source: Source


@dataclass(frozen=True, kw_only=True)
class NativeNode(NodeBase):
    """A pure function that the engine runs. `build`: see context.py."""

    role: ClassVar[NodeRole] = "native"
    build: Build


@dataclass(frozen=True, kw_only=True)
class StateNode(NodeBase):
    """A function that the engine runs, with rows of its own in the tables of the partition."""

    role: ClassVar[NodeRole] = "state"
    state: State


@dataclass(frozen=True, kw_only=True)
class CallNode(NodeBase):
    """A worker is asked, and its record is stored before anything uses it."""

    role: ClassVar[NodeRole] = "call"
    call: Call


@dataclass(frozen=True, kw_only=True)
class HopNode(NodeBase):
    """Events go on in the partition of their key, in another stage: a stage begins behind it."""

    role: ClassVar[NodeRole] = "hop"
    hop: Hop


@dataclass(frozen=True, kw_only=True)
class SinkNode(NodeBase):
    """Events are published here, with the commit."""

    role: ClassVar[NodeRole] = "sink"
    sink: Sink


Node: TypeAlias = SourceNode | NativeNode | StateNode | CallNode | HopNode | SinkNode
