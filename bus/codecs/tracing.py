"""In which trace something is asked for: that of who asks, as W3C's `traceparent` says it. Nothing here knows OpenTelemetry.

Its `tracestate` goes with it, behind a blank, as one text from here on: "00-…-01 vendor=what it knows". So whatever hands one
on hands on both. They part where they become headers, or attributes, again.

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

from dspex.bus.subjects import TRACEPARENT, TRACESTATE

_W3C: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?: (.*))?")
_DIGITS: Final = 32  # of a UUID
_PARENT: Final = 55  # characters of a `traceparent`
_VALUE: Final = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]"  # what is printable, but for the comma and =
_MEMBER: Final = re.compile(rf"([a-z0-9][a-z0-9_\-*/@]{{0,255}})={_VALUE}{{1,256}}")
_MEMBERS: Final = 32
STATE: Final = 512
"""Characters of a `tracestate` that are handed on: a longer one is not, nor one that is none."""
_SAMPLED: Final = 1
_API: Final = "opentelemetry.trace"
_said: ContextVar[str | None] = ContextVar("dspex_traceparent", default=None)


class TraceOf(NamedTuple):
    """The trace of a run.

    Attributes:
        trace: its id.
        parent: the span of who published the event; 0 for none.
        sampled: what that one has decided; None: nobody has.
        state: what those above keep in its `tracestate`; "" for nothing.
    """

    trace: int
    parent: int
    sampled: bool | None
    state: str = ""


def joined(traceparent: str | None, tracestate: str | None) -> str | None:
    """What two headers say of a trace, as one text. A `tracestate` that is too long or none is left out, as W3C says; so is one
    without a `traceparent`.
    """
    if traceparent is None or traceparent[_PARENT : _PARENT + 1] == " ":  # no such header: it would be taken for both
        return None
    if not tracestate or not (state := _checked(tracestate)) or not _W3C.fullmatch(traceparent):
        return traceparent
    return f"{traceparent} {state}"


def parted(said: str) -> tuple[str, str]:
    """The `traceparent` and the `tracestate` that `joined` was given; "" for none."""
    return (said[:_PARENT], said[_PARENT + 1 :]) if said[_PARENT : _PARENT + 1] == " " else (said, "")


def put(headers: dict[str, str], said: str) -> None:
    """Say in headers in which trace a message is."""
    headers[TRACEPARENT], state = parted(said)
    if state:
        headers[TRACESTATE] = state


def _checked(tracestate: str) -> str:
    """A `tracestate`; "" for what is none."""
    if len(tracestate) > STATE:
        return ""
    members = [member for each in tracestate.split(",") if (member := each.strip(" \t"))]
    names = {found[1] for member in members if (found := _MEMBER.fullmatch(member)) is not None}
    return ",".join(members) if len(names) == len(members) <= _MEMBERS else ""


def trace_of(traceparent: str | None, run: str) -> TraceOf:
    """The trace that a `traceparent` names; where it names none, the run is a trace of its own."""
    found = _W3C.fullmatch(traceparent) if traceparent else None
    if found is not None and (trace := int(found[1], 16)) and (parent := int(found[2], 16)):
        state = _checked(found[4]) if found[4] else ""  # anybody may send a request, too
        return TraceOf(trace, parent, bool(int(found[3], 16) & _SAMPLED), state)
    try:
        return TraceOf(int(bare, 16) if len(bare := run.replace("-", "")) == _DIGITS else UUID(run).int, 0, None)
    except ValueError:  # anybody may write a header
        return TraceOf(int.from_bytes(blake2b(run.encode(), digest_size=16).digest()), 0, None)


def span_of(*what: str) -> int:
    """The id of the span of an event, a call or a request, by what names it in its application."""
    return int.from_bytes(blake2b("/".join(what).encode(), digest_size=8).digest()) or 1


def traceparent(of: TraceOf, span: int) -> str:
    """What is said to whoever goes on below `span`: a text as `joined` gives it."""
    own = f"00-{of.trace:032x}-{span:016x}-{'00' if of.sampled is False else '01'}"
    return f"{own} {of.state}" if of.state else own


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
    own = f"00-{open_.trace_id:032x}-{open_.span_id:016x}-{open_.trace_flags:02x}"
    return joined(own, open_.trace_state.to_header())
