"""The spans of a run: one for each event that an engine processed, one for each call, one for each request of a model or tool.

Names and attributes are those of OpenTelemetry's conventions for messaging and for generative AI, both of which are in
development; ours begin with `dspex.`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from dspex.bus.errors import DecodeError
from dspex.bus.records import ANSWERED, BEGAN, CallRecord, CallRequest, NodeEvent, Origin, Usage, unpack_event
from dspex.engine.runtime.arrival import Answered, Due
from dspex.engine.runtime.failure import Failure
from dspex.engine.telemetry.ids import TraceOf, span_of, trace_of
from dspex.engine.telemetry.taken import HandledArrival

REUSED = ("cache", "record", "fallback")
"""Routes of answers for which no model was asked."""
REQUESTS = {"made": "dspex.requests.made", "journal": "dspex.requests.reused", "missed": "dspex.requests.missed"}
_NS = 1_000_000_000


class SpanData(NamedTuple):
    """A span that has ended. `parent`: 0 for none. `error`: the class of what it ended in; "" for nothing. Times in ns."""

    name: str
    kind: Literal["INTERNAL", "CONSUMER", "CLIENT"]
    of: TraceOf
    span: int
    parent: int
    start: int
    end: int
    attributes: Mapping[str, Any]
    error: str = ""


def spans_of(app: str, taken: HandledArrival, until: float) -> Iterator[SpanData]:
    """The spans of an arrival that is durable, since `until`: of an event, or of the call that it ends."""
    what = taken.arrival.what.what if isinstance(taken.arrival.what, Due) else taken.arrival.what
    notes = taken.effects.notes
    if "record" in notes and isinstance(what, Answered | NodeEvent):
        record, event = (what.record, what.event) if isinstance(what, Answered) else (None, what)
        if event is not None:
            yield from _call(app, taken, event, record, until)
    elif "event" in notes and isinstance(what, NodeEvent):
        yield _event(app, taken, what, until)


def _event(app: str, taken: HandledArrival, event: NodeEvent, until: float) -> SpanData:
    (topology, stage, partition), arrival, effects = taken[:3]
    of, origin, place = trace_of(event.origin), event.origin, arrival.place
    span, parent = span_of(app, origin.id, topology), of.parent
    if event.outputs is not None or event.attempts:  # it enters once more: behind its call, or redriven
        parent = span_of(app, event.call or origin.id, topology)
        span = span_of(app, origin.id, topology, stage, str(place.sequence), str(place.item))
    elif origin.cause is not None:
        parent = span_of(app, origin.cause, topology)
    attributes = {
        "messaging.system": "nats",
        "messaging.operation.type": "process",
        "messaging.destination.name": origin.subject,
        "messaging.destination.partition.id": str(partition),
        "messaging.message.id": origin.id,
        **_run(app, topology, origin),
        "dspex.stage": stage,
        "dspex.outputs": len(effects.outputs),
    }
    name, error = f"process {origin.subject}", _class(effects.failure)
    return SpanData(name, "CONSUMER", of, span, parent, _ns(taken.at), _ns(until), attributes, error)


def _call(app: str, taken: HandledArrival, event: NodeEvent, record: CallRecord | None, until: float) -> Iterator[SpanData]:
    topology, effects, origin = taken.partition[0], taken.effects, event.origin
    call, node = (record.call, record.node) if record is not None else (event.call or "", event.node)
    asked = taken.calls.get(node)
    spec = asked.call.spec if asked is not None and asked.call.of is None else None
    name = "invoke_agent" if spec is not None and spec.kind == "react" else "call"
    attributes = {**_run(app, topology, origin), "dspex.node": node, "dspex.call": call, "gen_ai.operation.name": name}
    start, end, error = taken.at, until, "CallTimeout"
    if record is not None:
        start, end, error = record.started, record.started + record.elapsed, str((record.error or {}).get("type", ""))
        attributes |= {
            "dspex.route": record.route,
            "dspex.reused": record.route in REUSED,
            "dspex.worker": record.worker,
            "dspex.attempts": record.attempt,
            **{name: record.requests[what] for what, name in REQUESTS.items() if what in record.requests},
            **_used(record.usage),
        }
    if "fallback" in effects.notes:
        attributes["dspex.fallback"], error = error, ""
    of, span, parent = trace_of(origin), span_of(app, call, topology), span_of(app, origin.id, topology)
    error = _class(effects.failure) or error
    yield SpanData(f"{name} {node}", "INTERNAL", of, span, parent, _ns(start), _ns(end), attributes, error)
    if record is not None and record.route not in REUSED and not (spec is not None and spec.journaled):
        yield from _chats(of, span, record, origin)


def _chats(of: TraceOf, parent: int, record: CallRecord, origin: Origin) -> Iterator[SpanData]:
    """The requests of a call of which the journal holds none: there was one for each model that was tried."""
    at, tried = record.started, [(one.lm, one.ms / 1000, one.why) for one in record.routing if one.ms and one.why != BEGAN]
    if not tried and record.lm:
        tried = [(record.lm, record.elapsed, ANSWERED)]
    for number, (lm, took, why) in enumerate(tried):
        attributes: dict[str, Any] = {"gen_ai.operation.name": "chat", "gen_ai.request.model": lm}
        if origin.session:
            attributes["gen_ai.conversation.id"] = origin.session
        if lm == record.lm:
            attributes |= _used(record.usage)
        span, error = span_of(record.call, "request", str(number)), "" if why == ANSWERED else why
        yield SpanData(f"chat {lm}", "CLIENT", of, span, parent, _ns(at), _ns(at + took), attributes, error)
        at += took


def request_span(app: str, facts: Mapping[str, Any], at: float) -> SpanData | None:
    """The span of a request of a model or tool that is in the journal of its call since `at`; None where no run is known."""
    work: CallRequest = facts["work"]
    try:
        origin = unpack_event(work.record.event).origin if work.record is not None else Origin(work.run, "", work.run)
    except DecodeError:
        return None
    tool, name = facts["kind"] == "tool", str(facts["name"])
    what, about = ("execute_tool", "gen_ai.tool.name") if tool else ("chat", "gen_ai.request.model")
    attributes = {"gen_ai.operation.name": what, about: name, "dspex.call": work.call, "dspex.node": work.node}
    if work.session:
        attributes["gen_ai.conversation.id"] = work.session
    attributes |= _used(facts["usage"] or {})
    parent = span_of(app, work.call, work.topology)
    span = span_of(app, work.call, what, facts["digest"], str(facts["occurrence"]))
    kind: Literal["INTERNAL", "CLIENT"] = "INTERNAL" if tool else "CLIENT"
    start = _ns(at - facts["seconds"])
    return SpanData(f"{what} {name}", kind, trace_of(origin), span, parent, start, _ns(at), attributes)


def _run(app: str, topology: str, origin: Origin) -> dict[str, Any]:
    found = {"dspex.app": app, "dspex.topology": topology, "dspex.run": origin.run}
    found["messaging.message.conversation_id"] = origin.run
    if origin.session:
        found["gen_ai.conversation.id"] = origin.session
    return found


def _used(usage: Mapping[str, Any]) -> dict[str, Any]:
    try:
        used = Usage.read(usage)
    except DecodeError:  # a worker wrote it
        return {}
    if not (used.input_tokens or used.output_tokens):
        return {}
    cost = {"dspex.cost": used.cost} if used.cost is not None else {}
    return {"gen_ai.usage.input_tokens": used.input_tokens, "gen_ai.usage.output_tokens": used.output_tokens, **cost}


def _class(failure: Failure | None) -> str:
    return type(failure.error).__name__ if failure is not None else ""


def _ns(seconds: float) -> int:
    return int(seconds * _NS)
