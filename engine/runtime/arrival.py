"""What a partition takes from its inputs, and what comes of it: the argument and the result of `handle`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from dspex.bus import telemetry
from dspex.bus.codecs.tracing import in_logs, span_of, trace_of
from dspex.bus.records import CallRecord, NodeEvent, Origin, StoredAt
from dspex.engine.log.entries import digest_of
from dspex.engine.log.rows import Place, Position, Timer
from dspex.engine.log.tables import Change
from dspex.engine.runtime.failure import Failure
from dspex.engine.runtime.walk.request import Address, Ask, Output


class Answered(NamedTuple):
    """The record of a call. `event`: what the call was made for; None where it is stored nowhere any more.

    `gone`: the payload of the record is stored nowhere any more; the record says so as its error.
    """

    record: CallRecord
    event: NodeEvent | None
    gone: bool = False


class Woken(NamedTuple):
    """An operator with state is woken by its timer, which needs nothing besides."""


class Due(NamedTuple):
    """A timer whose time has come, with what it needs, fetched before; None where that is stored nowhere any more.

    `payload`: where the message of the event lies, of which the payload alone is stored nowhere any more.
    """

    number: int
    timer: Timer
    what: NodeEvent | Answered | Woken | None
    payload: StoredAt | None = None


class Mark(NamedTuple):
    """A watermark: nothing earlier follows. Seconds since the epoch."""

    time: float


class Gap(NamedTuple):
    """Events between two positions that nobody can read any more. The topology said to go on."""

    after: int
    up_to: int


class Reset(NamedTuple):
    """A manifest that drops what these nodes hold; "@" with the id of a stage: all that is open there."""

    nodes: Sequence[str]


What: TypeAlias = NodeEvent | Answered | Due | Woken | Mark | Gap | Reset | None
"""None: there is nothing to do but to move the position."""


class Arrival(NamedTuple):
    """One thing that a partition takes: all that `handle` may know besides the tables.

    Attributes:
        place: where it lies.
        position: of the input, once this is taken; None for a timer.
        clock: seconds since the epoch.
        headers: of the message, for a dead letter.
        stored: the message that a dead letter may refer to instead of holding its data; None: that of the source at `place`.
        gone: the payload of the event, which a claim check names, is stored nowhere any more.
        refused: why the server takes no commit with what comes of it; "" where it does.
    """

    place: Place
    position: Position | None
    clock: float
    what: What
    headers: Mapping[str, str] | None = None
    stored: StoredAt | None = None
    gone: bool = False
    refused: str = ""


def reset(resets: Mapping[str, int], taken: int, clock: float) -> Arrival | None:
    """The arrival of what the manifest says that is dropped; None where the partition has taken all of it.

    Args:
        resets: node → the version of the manifest that drops what it holds. taken: the version up to which that is done.
    """
    nodes, version = sorted(node for node, at in resets.items() if at > taken), max(resets.values(), default=0)
    return Arrival(Place("manifest", version), Position(version), clock, Reset(nodes)) if nodes else None


Note: TypeAlias = Literal["event", "woken", "record", "fallback", "dropped", "retry", "put_off", "dead_letter", "gone"]


class LetOut(NamedTuple):
    """An event that came out of an operator with state, under an id of its own, for those who tell of it.

    Attributes:
        cause: the event that it was; None: it was made of several, or of none.
        between: see Emitted. error: the class of what it failed with behind the operator; "" for nothing.
    """

    node: str
    origin: Origin
    cause: str | None
    between: tuple[float, float] | None = None
    error: str = ""


class Effects(NamedTuple):
    """What an arrival causes: all of it, or none.

    Attributes:
        outputs: messages, and requests with the rows of their calls.
        changes: of the tables, besides those rows; they go with the last output.
        done: so many of the outputs are committed already.
        notes: what happened, for those who count. failure: why there is a dead letter, for those who log.
        let_out: what came out of operators with state, for those who trace.
    """

    outputs: Sequence[Output] = ()
    changes: Sequence[Change] = ()
    done: int = 0
    notes: Sequence[Note] = ()
    failure: Failure | None = None
    let_out: Sequence[LetOut] = ()


class Handled(NamedTuple):
    """An arrival that was handled, for those who trace. `at`: when, in seconds since the epoch."""

    arrival: Arrival
    effects: Effects
    at: float


Told: TypeAlias = tuple[What, Sequence[Note], Failure | None]
"""What came of an arrival that was more than an event taken."""


def about(what: What) -> tuple[str, str]:
    """Node and run that an arrival is about; "" where it does not say."""
    match what:
        case NodeEvent():
            return what.node, what.origin.run
        case Answered():
            return what.record.node, what.event.origin.run if what.event else ""
        case Due(_, timer, Woken()):
            return timer.node, timer.run
        case Due():
            return about(what.what)
        case _:
            return "", ""


def enters_again(event: NodeEvent) -> bool:
    """Whether a partition takes it once more: behind its call, or redriven."""
    return event.outputs is not None or event.attempts > 0


def span_of_event(app: str, topology: str, stage: str, place: Place, event: NodeEvent) -> int:
    """The span of an event that a partition takes. Where it enters once more, behind its call or redriven, another."""
    if not enters_again(event):
        return span_of(app, event.origin.id, topology)
    return span_of(app, event.origin.id, topology, stage, str(place.sequence), str(place.item))


def in_line(arrival: Arrival, at: Address) -> dict[str, str]:
    """What a line of the log says of the run that an arrival is about, and of the span of it where spans are told."""
    what = arrival.what.what if isinstance(arrival.what, Due) else arrival.what
    run = about(arrival.what)[1]
    event = what.event if isinstance(what, Answered) else what
    if not telemetry.listeners or not isinstance(event, NodeEvent):
        return {"run": run} if run else {}
    if isinstance(what, Answered):
        span = span_of(at.app, what.record.call, at.topology)
    else:
        span = span_of_event(at.app, at.topology, at.stage, arrival.place, event)
    return {"run": run, **in_logs(trace_of(event.origin.trace, event.origin.run), span)}


def digest(outputs: Iterable[Output]) -> bytes:
    """What tells two sequences of outputs apart."""
    return digest_of([output.message if isinstance(output, Ask) else output for output in outputs])
