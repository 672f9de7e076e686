"""Events that are not walked now: their time has not come, or a function asked for them later. A timer says where they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dspex.bus.codecs.times import due
from dspex.bus.errors import DecodeError
from dspex.bus.records import NodeEvent
from dspex.engine.log.rows import Timer
from dspex.engine.runtime.arrival import Arrival, Effects
from dspex.engine.runtime.failure import Failure, excerpt

if TYPE_CHECKING:
    from dspex.engine.runtime.walk.compile import Stage


def not_yet(stage: Stage, arrival: Arrival, event: NodeEvent, number: int) -> Effects | Failure | None:
    """What becomes of an event of a source that waits for a time; None where that has come, a Failure where it is none."""
    stored = arrival.position.time if arrival.position is not None else 0.0
    try:
        at = due(arrival.headers or {}, stored)
    except DecodeError as e:
        return Failure(e, event.node, excerpt(e))
    return put_off(stage, arrival, event, number, at, event.attempts) if at is not None and at > arrival.clock else None


def put_off(
    stage: Stage,
    arrival: Arrival,
    event: NodeEvent,
    number: int,
    at: float,
    attempts: int,
    released: tuple[int, Timer] | None = None,
) -> Effects:
    """Process an event again at a time.

    Args:
        released: the timer that it was put off with before, which goes.
    """
    place, time = arrival.place, arrival.position.time if arrival.position is not None else 0.0
    if released is not None and released[1].place is not None:
        place, time = released[1].place, released[1].time
    holds = max(arrival.clock, event.origin.time)  # a time that is still to come holds nothing up before it has come
    until = holds + stage.hold if released is None else released[1].until
    node, origin = stage.holder(event.node), event.origin
    later = Timer(at, "event", place, time, attempts, origin.run, node, hold=origin.time, until=until)
    changes = (("timers", released[0], None),) if released else ()
    return Effects((), (*changes, ("timers", number, later)), notes=("event", "put_off"))
