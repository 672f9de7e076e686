"""What one commit of a partition will hold, and the order in which its arrivals were taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dspex.bus.port import COMMIT_LIMIT, NewMessage
from dspex.engine.log.entries import Snapshot
from dspex.engine.log.rows import Place
from dspex.engine.runtime.arrival import Answered, Arrival, Due, Gap
from dspex.engine.runtime.walk import Output

MOST_OUTPUTS = COMMIT_LIMIT - 32  # the rest of a batch is the log entry, and pieces of a large one
MOST_BYTES = 8 << 20  # of one commit: a batch is staged in the server's memory


@dataclass
class Batch:
    """What one commit will hold, but for its log entry.

    Attributes:
        taken: the order in which its arrivals were taken, as runs: [input, from, to, count, clock, mark].
        changes: of the tables; None while arrivals are still added.
        asked: number of a call → index in `messages` of its request.
        entry: bytes of the log entry. snapshot: the one that it names.
        arrivals: how many; `place`: of the last one.
    """

    messages: list[NewMessage] = field(default_factory=list)
    taken: list[list[Any]] = field(default_factory=list)
    changes: dict[str, Any] | None = None
    asked: dict[int, int] = field(default_factory=dict)
    arrivals: int = 0
    place: Place | None = None
    size: int = 0
    entry: int = 0
    snapshot: Snapshot | None = None


def note_taken(batch: Batch, arrival: Arrival, marked: tuple[Any, ...] | None) -> None:
    """Add an arrival to what the batch has taken. Arrivals that follow each other in one log are one run."""
    place, clock = arrival.place, arrival.clock
    batch.arrivals += 1
    batch.place = place
    where = place.sequence if place.item < 0 else (place.sequence, place.item)
    if batch.taken and marked is None and place.input != "timers":
        last = batch.taken[-1]
        if last[0] == place.input and last[4] == clock and len(last) == 5:
            last[2] = where
            last[3] += 1
            return
    batch.taken.append([place.input, where, where, 1, clock, *([marked] if marked else ())])


def mark_of(arrival: Arrival) -> tuple[Any, ...] | None:
    """What decided about an arrival besides what its log holds."""
    what = arrival.what
    if arrival.refused:
        return "refused", arrival.refused
    if arrival.gone:
        return ("payload_gone",)
    if isinstance(what, Gap):
        return "gap", what.after, what.up_to, arrival.position
    if (isinstance(what, Due) and what.what is None) or (isinstance(what, Answered) and what.event is None):
        return ("gone",)
    if isinstance(what, Due) and what.timer.kind == "again":
        return ("again",)
    return None if what is not None else ("moved", arrival.position)


def most_that_fit(outputs: Sequence[Output]) -> int:
    """How many of them one commit can hold; at least one."""
    size = 0
    for count, output in enumerate(outputs[:MOST_OUTPUTS]):
        size += size_of(output)
        if size > MOST_BYTES and count:
            return count
    return min(len(outputs), MOST_OUTPUTS)


def size_of(output: Output) -> int:
    return len(output.data if isinstance(output, NewMessage) else output.message.data)
