"""The rows of the tables of a stage partition, and the places that they speak of."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from math import inf
from typing import Any, Final, Literal, NamedTuple, TypeVar

from typing_extensions import TypedDict  # pydantic takes that of the standard library only from 3.12 on

from dspex.bus.codecs.checking import checked
from dspex.bus.errors import DecodeError

E = TypeVar("E", bound=tuple[Any, ...])
NONE = 1 << 62  # a sequence or a number behind all others
NO_MARK = -1e18  # a watermark before all times: there is none
FEW = 64  # entries of a heap for which nobody looks what became of them
ALONE = 2  # deaths of a worker after which a call is run alone


class Place(NamedTuple):
    """Where an arrival lies: the input, the sequence of the message in its log, and the event within a frame.

    For the input "timers", `sequence` is the number of the timer.
    """

    input: str
    sequence: int
    item: int = -1  # -1: the whole message


class Position(NamedTuple):
    """How far an input is taken. `item`: events 0 to `item` of that frame; -1: the whole message.

    `created`: when the stream was made that `sequence` counts in; `time`: when the message was stored. Together they show
    a stream that was made anew, or rolled back and filled again. 0: nothing was taken yet.
    `mark`: the watermark that the partition has of this input, in seconds since the epoch; NO_MARK: none.
    """

    sequence: int = 0
    item: int = -1
    created: float = 0.0
    time: float = 0.0
    mark: float = NO_MARK

    def has(self, place: Place) -> bool:
        """Whether what lies there was taken."""
        if place.sequence != self.sequence:
            return place.sequence < self.sequence
        return self.item < 0 or place.item <= self.item

    @property
    def after(self) -> int:
        """A reader begins behind this sequence: a frame of which some events are taken is read again."""
        return self.sequence if self.item < 0 else self.sequence - 1


WITHIN: Final = -(1 << 20)
"""For the place of a request: it lies in the entry itself."""


class OpenCall(NamedTuple):
    """A call that is open. Its number is the key.

    Attributes:
        node, id, run, pool: whose call it is, and which workers run it. A record of another pool is refused.
        deadline: seconds since the epoch, on the clock of the engine.
        digest: of the event that travels with the request and comes back with the record.
        try_number: executions that were asked for; part of the record's id, so never the same twice.
        attempts: those that count against `Retry.attempts`.
        invalid: those that ended in InvalidOutput. deaths: those whose worker died.
        work: sequence of the request; 0 until the commit's answer is known. In a log entry it is negative: the request lies so
            many messages before it, or in it (WITHIN). Of a request that lies in an entry it is the sequence of that.
        key: of the event, where records are handled in the order of their key.
        held: sequence of its record, which waits; 0: none.
        band: of priority, in which the request waits, whatever the operator's priority is now.
        time: event time of what the call was made for: its outputs will have it, so it holds the watermark behind the call.
        tenant: on whose behalf; None: nobody said so.
        live: its lane was the batch lane, and it is asked live from now on.
        state: the version of its program's saved state that an execution of it had; "": none has said so.
    """

    node: str
    id: str
    run: str
    pool: str
    deadline: float
    digest: bytes
    try_number: int = 1
    attempts: int = 1
    invalid: int = 0
    deaths: int = 0
    work: int = 0
    key: str | None = None
    held: int = 0
    band: int = 1
    time: float = 0.0
    tenant: str | None = None
    live: bool = False
    state: str = ""

    @property
    def alone(self) -> bool:
        """Whether it is run by itself in a process: workers died of it, or of a neighbour."""
        return self.deaths >= ALONE


class Timer(NamedTuple):
    """What happens at `due` (seconds since the epoch), on the clock of the engine; for a "mark" on the watermark of its node.

    Attributes:
        kind: of a call, whose number is the timer's: its "deadline" passes, its next "attempt" is made, its "held" record
            is handled. "event": an event that was put off is processed; `place` says where it lies. "again", which no row has:
            the same execution is asked for again, because nobody delivers its request any more. "wake" and "mark": an
            operator with state is woken.
        time: when the message there was stored: another one has its sequence, where the stream was made anew.
        attempts: how often the event was put off. run: whose it is, or who set the timer.
        node, key, name: of an operator with state: who is woken, for which key, and which of its timers it is. Of an event
            that was put off: the node at which it enters.
        hold: event time of what comes out then: no watermark behind the node passes it. None: nothing is held.
        until: when the hold ends on the clock of the engine, whatever comes out later; None: it ends with the timer.
    """

    due: float
    kind: Literal["deadline", "attempt", "held", "event", "again", "wake", "mark"]
    place: Place | None = None
    time: float = 0.0
    attempts: int = 0
    run: str = ""
    node: str = ""
    key: str = ""
    name: str = ""
    hold: float | None = None
    until: float | None = None

    @property
    def forgets(self) -> bool:
        """Whether nothing comes out then: an operator forgets what it kept of events that have long gone on. What does come out
        by a watermark holds it.
        """
        return self.kind == "mark" and self.hold is None


def tell_what_is_kept(tables: Mapping[str, Any]) -> bool:
    """Whether changes of tables tell what operators keep, which is made of payloads."""
    timers = tables.get("timers", ())
    return bool(tables.get("keyed")) or any(row is not None and row.kind in ("wake", "mark") for _, row in timers)


def pushed(heap: list[E], entry: E, stands: Callable[[E], bool], rows: int) -> None:
    """Add to a heap whose entries stay when what they stand for is gone, because a heap gives up only its first one.

    Those go together once they are most of it, so it does not grow with all that ever was. `rows`: how many may stand.
    """
    if len(heap) >= 2 * rows + FEW:
        heap[:] = sorted(filter(stands, set(heap)))
    heapq.heappush(heap, entry)


class Holds:
    """Event times that hold a watermark, by node; the earliest one is asked for. `holds`: whether what has a number still
    holds a node at that time.
    """

    def __init__(self, holds: Callable[[str, int, float], bool]) -> None:
        self._heaps: dict[str, list[tuple[float, int]]] = {}
        self._holds = holds

    def put(self, node: str, at: float, number: int, rows: int) -> None:
        """What has this number will come out at `node` with the event time `at`. `rows`: how many numbers there are."""
        heap = self._heaps.setdefault(node, [])
        pushed(heap, (at, number), lambda entry: self._holds(node, entry[1], entry[0]), rows)

    def first(self, node: str, ended: Callable[[int], bool] | None = None) -> float:
        """The earliest; infinite for none. `ended`: whether the hold of what has a number is over, for good."""
        heap = self._heaps.get(node)
        while heap and (not self._holds(node, heap[0][1], heap[0][0]) or (ended is not None and ended(heap[0][1]))):
            heapq.heappop(heap)
        return heap[0][0] if heap else inf


class Split(NamedTuple):
    """An event of which some outputs are committed.

    Attributes:
        done: how many. clock: of the event. number: the first that its calls got.
        digest: of those outputs; a walk that gives others must not go on from there.
        marks: the watermarks that its walk had, by node.
    """

    done: int
    clock: float
    number: int
    digest: bytes
    marks: tuple[tuple[str, float], ...] = ()


class Changes(TypedDict, total=False):
    """What an entry changes, or what a snapshot holds, by table: keys with their rows; None as row: it goes.

    `number`: the next number for a call or a timer.
    """

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # type: ignore[misc]  # noqa: RUF012

    positions: tuple[tuple[str, Position | None], ...]
    calls: tuple[tuple[int, OpenCall | None], ...]
    timers: tuple[tuple[int, Timer | None], ...]
    keyed: tuple[tuple[tuple[str, str, str], bytes | None], ...]
    splits: tuple[tuple[Place, Split | None], ...]
    number: int


_ROWS: Final = {"positions": Position, "calls": OpenCall, "timers": Timer, "splits": Split}


def filled(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain changes as today's code writes them: rows of an earlier version lack fields, which then have their defaults."""
    found = dict(changes)
    for name, row in ((name, row) for name, row in _ROWS.items() if name in found):
        found[name] = tuple((key, raw if raw is None else tuple(row(*raw))) for key, raw in found[name])
    return found


def are_changes(raw: object) -> bool:
    """Whether plain data are changes of the tables: what lies in a log may be anybody's."""
    try:
        known = checked(Changes, "changes of tables", raw)
    except DecodeError:
        return False
    return bool(0 < known.get("number", 1) < NONE)
