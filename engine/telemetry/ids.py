"""Which trace a run is, and which span each of its steps: made of ids that are the same however often a step is done.

So an engine that takes a step again after a death says the same span, and processes that never heard of each other agree on
what is whose child: the span of an event has its id, that of a call the call's, and what either causes names it as its parent.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Final, NamedTuple
from uuid import UUID

from dspex.bus.records import Origin

_W3C: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED: Final = 1


class TraceOf(NamedTuple):
    """The trace of a run.

    Attributes:
        trace: its id.
        parent: the span of who published the event; 0 for none.
        sampled: what that one has decided; None: nobody has.
    """

    trace: int
    parent: int
    sampled: bool | None


def trace_of(origin: Origin) -> TraceOf:
    """The trace that an event belongs to: that of its `traceparent`; without one the run is a trace of its own."""
    found = _W3C.fullmatch(origin.trace or "")
    if found is not None and (trace := int(found[1], 16)) and (parent := int(found[2], 16)):
        return TraceOf(trace, parent, bool(int(found[3], 16) & _SAMPLED))
    try:
        return TraceOf(UUID(origin.run).int, 0, None)
    except ValueError:  # anybody may write a header
        return TraceOf(int.from_bytes(blake2b(origin.run.encode(), digest_size=16).digest()), 0, None)


def span_of(*what: str) -> int:
    """The id of the span of an event, a call or a request, by what names it in its application."""
    return int.from_bytes(blake2b("/".join(what).encode(), digest_size=8).digest()) or 1
