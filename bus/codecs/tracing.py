"""In which trace something is asked for: that of who asks, as W3C's `traceparent` says it. Nothing here knows OpenTelemetry.

The ids of spans are made of ids that are the same however often a step is done, so whoever tells a span agrees with the others.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import blake2b
from typing import Any, Final, NamedTuple
from uuid import UUID

_W3C: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED: Final = 1
_API: Final = "opentelemetry.trace"
_said: ContextVar[str | None] = ContextVar("dspex_traceparent", default=None)


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


def trace_of(traceparent: str | None, run: str) -> TraceOf:
    """The trace that a `traceparent` names; where it names none, the run is a trace of its own."""
    found = _W3C.fullmatch(traceparent or "")
    if found is not None and (trace := int(found[1], 16)) and (parent := int(found[2], 16)):
        return TraceOf(trace, parent, bool(int(found[3], 16) & _SAMPLED))
    try:
        return TraceOf(UUID(run).int, 0, None)
    except ValueError:  # anybody may write a header
        return TraceOf(int.from_bytes(blake2b(run.encode(), digest_size=16).digest()), 0, None)


def span_of(*what: str) -> int:
    """The id of the span of an event, a call or a request, by what names it in its application."""
    return int.from_bytes(blake2b("/".join(what).encode(), digest_size=8).digest()) or 1


def traceparent(of: TraceOf, span: int) -> str:
    """What is said to whoever goes on below `span`."""
    return f"00-{of.trace:032x}-{span:016x}-{'00' if of.sampled is False else '01'}"


def in_logs(of: TraceOf, span: int) -> dict[str, str]:
    """What a line of a log says of the span that is open, by the names of OpenTelemetry."""
    return {"trace_id": f"{of.trace:032x}", "span_id": f"{span:016x}"}


@contextmanager
def within(said: str | None) -> Generator[None]:
    """What is asked for in the block is of this trace; of none where it names none."""
    token = _said.set(said if said is not None and _W3C.fullmatch(said) else None)
    try:
        yield
    finally:
        _said.reset(token)


def current() -> str | None:
    """The trace of what is asked for now: that of `within`, or of the span that the program has open with OpenTelemetry."""
    if (said := _said.get()) is not None:
        return said
    api: Any = sys.modules.get(_API)  # not imported for that: who has no spans pays nothing
    if api is None or not (open_ := api.get_current_span().get_span_context()).is_valid:
        return None
    return f"00-{open_.trace_id:032x}-{open_.span_id:016x}-{open_.trace_flags:02x}"
