"""What a partition takes from its inputs, and what comes of it: the argument and the result of `handle`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Literal, NamedTuple, TypeAlias

from dspex.bus.port import NewMessage
from dspex.bus.records import CallRecord, NodeEvent, StoredAt
from dspex.engine.log.rows import Place, Position, Timer
from dspex.engine.log.tables import Change
from dspex.engine.runtime.failure import Failure
from dspex.engine.runtime.walk import Output


class Answered(NamedTuple):
    """The record of a call. `event`: what the call was made for; None where it is stored nowhere any more."""

    record: CallRecord
    event: NodeEvent | None


class Due(NamedTuple):
    """A timer whose time has come, with what it needs, fetched before; None where that is stored nowhere any more.

    `payload`: where the message of the event lies, of which the payload alone is stored nowhere any more.
    """

    number: int
    timer: Timer
    what: NodeEvent | Answered | None
    payload: StoredAt | None = None


class Gap(NamedTuple):
    """Events between two positions that nobody can read any more. The topology said to go on."""

    after: int
    up_to: int


What: TypeAlias = NodeEvent | Answered | Due | Gap | None
"""None: there is nothing to do but to move the position."""


class Arrival(NamedTuple):
    """One thing that a partition takes: all that `handle` may know besides the tables.

    Attributes:
        place: where it lies. time: when the message there was stored.
        position: of the input, once this is taken; None for a timer.
        clock: seconds since the epoch.
        number: the first that a call or a timer of it may get.
        gated: it waits while too much is open. What closes something or wakes it is never held back.
        refused: why the server takes no commit with what comes of it; "" where it does.
        stored: the message that a dead letter may refer to instead of holding its data.
        headers: of the message, for a dead letter.
        gone: the payload of the event, which a claim check names, is stored nowhere any more.
    """

    place: Place
    position: Position | None
    clock: float
    number: int
    what: What
    time: float = 0.0
    gated: bool = False
    refused: str = ""
    stored: StoredAt | None = None
    headers: Mapping[str, str] | None = None
    gone: bool = False


Note: TypeAlias = Literal["event", "record", "fallback", "dropped", "retry", "put_off", "dead_letter", "gone"]


class Effects(NamedTuple):
    """What an arrival causes: all of it, or none.

    Attributes:
        outputs: messages, and requests with the rows of their calls.
        changes: of the tables, besides those rows; they go with the last output.
        done: so many of the outputs are committed already.
        notes: what happened, for those who count. failure: why there is a dead letter, for those who log.
    """

    outputs: Sequence[Output] = ()
    changes: Sequence[Change] = ()
    done: int = 0
    notes: Sequence[Note] = ()
    failure: Failure | None = None


def digest(outputs: Iterable[Output]) -> bytes:
    """What tells two sequences of outputs apart."""
    parts: list[bytes] = []
    for output in outputs:
        message = output if isinstance(output, NewMessage) else output.message
        parts += (f"{message.subject}\n{len(message.data)}\n{message.headers}\n".encode(), message.data)
    return blake2b(b"".join(parts), digest_size=16).digest()
