"""The spans of a run: one for each event that an engine processed, one for each call, one for each request of a model or tool.

Names and attributes are those of OpenTelemetry's conventions for messaging and for generative AI, both of which are in
development; ours begin with `dspex.`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from dspex.bus.codecs.tracing import TraceOf, span_of
from dspex.bus.codecs.tracing import trace_of as trace_named
from dspex.bus.errors import DecodeError
from dspex.bus.records import ANSWERED, BEGAN, CallRecord, CallRequest, NodeEvent, Origin, Usage, unpack_event
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.programs.exchanges import KeptExchanges, read_exchanges
from dspex.engine.graph.nodes import CallNode
from dspex.engine.runtime.arrival import Answered, Due, LetOut, enters_again, span_of_event
from dspex.engine.runtime.failure import Failure
from dspex.engine.runtime.process import read
from dspex.engine.telemetry.content import SaidInCall
from dspex.engine.telemetry.data import SharedAttributes, SpanData
from dspex.engine.telemetry.links import FedState, SpanLink
from dspex.engine.telemetry.taken import HandledArrival

REUSED = ("cache", "record", "fallback")
"""Routes of answers for which no model was asked."""
REQUESTS = {"made": "dspex.requests.made", "journal": "dspex.requests.reused", "missed": "dspex.requests.missed"}
REQUEST_OF = {"model": ("chat", "gen_ai.request.model"), "tool": ("execute_tool", "gen_ai.tool.name")}
_NS = 1_000_000_000


def trace_of(origin: Origin) -> TraceOf:
    """The trace that an event belongs to."""
    return trace_named(origin.trace, origin.run)


def spans_of(app: str, taken: HandledArrival, until: float, fed: FedState) -> Iterator[SpanData]:
    """The spans of an arrival that is durable, since `until`: of an event, of the call that it ends, and of what came out of
    operators with state. `fed`: what these were given before; it is told of this arrival.
    """
    effects = taken.effects
    if not (effects.let_out or effects.changes):  # an event that goes through, as most do
        yield from _spans_of(app, taken, until)
        return
    own, within = next(spans := _spans_of(app, taken, until), None), effects.let_out
    if own is not None:
        yield own
        yield from spans
    gave = [_let_out(app, taken, one, until, fed.links(taken, one)) for one in within]
    yield from gave
    links = [SpanLink(span.of, span.span, one.origin.time) for span, one in zip(gave, within)]
    fed.changed(taken, [SpanLink(own.of, own.span, _time(taken)), *links] if own is not None else links)


def _spans_of(app: str, taken: HandledArrival, until: float) -> Iterator[SpanData]:
    what = taken.arrival.what.what if isinstance(taken.arrival.what, Due) else taken.arrival.what
    notes = taken.effects.notes
    if "record" in notes and isinstance(what, Answered | NodeEvent):
        record, event = (what.record, what.event) if isinstance(what, Answered) else (None, what)
        if event is not None:
            yield from _call(app, taken, event, record, until)
    elif "event" in notes and isinstance(what, NodeEvent):
        yield _event(app, taken, what, until)


def _time(taken: HandledArrival) -> float:
    """Event time of what an arrival is about."""
    what = taken.arrival.what.what if isinstance(taken.arrival.what, Due) else taken.arrival.what
    event = what.event if isinstance(what, Answered) else what
    return event.origin.time if isinstance(event, NodeEvent) else 0.0


def _let_out(app: str, taken: HandledArrival, one: LetOut, until: float, links: Sequence[SpanLink]) -> SpanData:
    """The span of an event that came out of an operator with state: below what it was, or linked to what it is made of."""
    (topology, stage, partition), origin = taken.partition, one.origin
    of, span = trace_of(origin), span_of(app, origin.id, topology)
    parent = span_of(app, one.cause, topology) if one.cause is not None else of.parent
    attributes = {**_run(app, topology, origin), "dspex.node": one.node, "dspex.stage": stage}
    attributes["messaging.destination.partition.id"] = str(partition)
    links = links if one.cause is None else ()
    return SpanData(
        f"process {one.node}", "INTERNAL", of, span, parent, _ns(taken.at), _ns(until), attributes, one.error, links
    )


def _event(app: str, taken: HandledArrival, event: NodeEvent, until: float) -> SpanData:
    (topology, stage, partition), arrival, effects = taken[:3]
    of, origin = trace_of(event.origin), event.origin
    span, parent = span_of_event(app, topology, stage, arrival.place, event), of.parent
    if enters_again(event):
        parent = span_of(app, event.call or origin.id, topology)
    elif origin.cause is not None:
        parent = span_of(app, origin.cause, topology)
    attributes = {"messaging.message.id": origin.id, **_of_run(origin), "dspex.outputs": len(effects.outputs)}
    name, shared = f"process {origin.subject}", _shared(app, topology, stage, partition, origin.subject)
    error, start, end = _class(effects.failure), _ns(taken.at), _ns(until)
    return SpanData(name, "CONSUMER", of, span, parent, start, end, attributes, error, shared=shared)


@lru_cache(1024)
def _shared(app: str, topology: str, stage: str, partition: int, subject: str) -> SharedAttributes:
    """What is the same of all events of a subject in a partition."""
    return SharedAttributes(
        {
            "messaging.system": "nats",
            "messaging.operation.type": "process",
            "messaging.destination.name": subject,
            "messaging.destination.partition.id": str(partition),
            "dspex.app": app,
            "dspex.topology": topology,
            "dspex.stage": stage,
        }
    )


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
        attributes |= _of_record(record)
    if "fallback" in effects.notes:
        attributes["dspex.fallback"], error = error, ""
    of, span, parent = trace_of(origin), span_of(app, call, topology), span_of(app, origin.id, topology)
    error = _class(effects.failure) or error
    yield SpanData(f"{name} {node}", "INTERNAL", of, span, parent, _ns(start), _ns(end), attributes, error)
    if record is not None and record.route not in REUSED and not (spec is not None and spec.journaled):
        said = SaidInCall(lambda: _asked(asked, event), record) if asked is not None else None
        yield from _chats(of, span, record, origin.session, said)


def _asked(node: CallNode, event: NodeEvent) -> tuple[CallSpec, Mapping[str, Any]]:
    """What a call was made of, as `open_call` made it."""
    data = read(event)
    call = node.call if node.call.of is None else node.call.for_event(data, event.origin.subject)
    return call.spec, call.inputs(data)


def _chats(of: TraceOf, parent: int, record: CallRecord, session: str | None, said: SaidInCall | None) -> Iterator[SpanData]:
    """The requests of a call of which the journal holds none: there was one for each model that was tried."""
    at, tried = record.started, [(one.lm, one.ms / 1000, one.why) for one in record.routing if one.ms and one.why != BEGAN]
    if not tried and record.lm:
        tried = [(record.lm, record.elapsed, ANSWERED)]
    for number, (lm, took, why) in enumerate(tried):
        attributes: dict[str, Any] = {"gen_ai.operation.name": "chat", "gen_ai.request.model": lm}
        if session:
            attributes["gen_ai.conversation.id"] = session
        if lm == record.lm:
            attributes |= _used(record.usage)
        span, error = span_of(record.call, "request", str(number)), "" if why == ANSWERED else why
        told = said if why == ANSWERED else None
        yield SpanData(f"chat {lm}", "CLIENT", of, span, parent, _ns(at), _ns(at + took), attributes, error, said=told)
        at += took


def asked_span(app: str, facts: Mapping[str, Any], at: float) -> SpanData:
    """The span of an interactive call at who made it, until `at`: those of the worker are below it."""
    work: CallRequest = facts["request"]
    of = trace_named(facts["above"], work.run)
    attributes = {**_of_work(app, work), "gen_ai.operation.name": "call", "dspex.pool": facts["pool"]}
    name, start = f"ask {work.node or facts['pool']}", _ns(at - facts["seconds"])
    return SpanData(name, "CLIENT", of, span_of(app, work.call, "asked"), of.parent, start, _ns(at), attributes, facts["error"])


def answered_spans(app: str, facts: Mapping[str, Any]) -> Iterator[SpanData]:
    """The spans of an interactive call in its pool: its own, and those of its requests."""
    work: CallRequest = facts["work"]
    record: CallRecord = facts["record"]
    of, span = trace_named(work.trace, work.run), span_of(app, work.call, work.topology)
    name = "invoke_agent" if work.spec.kind == "react" else "call"
    attributes = {**_of_work(app, work), "gen_ai.operation.name": name, **_of_record(record)}
    start, error = record.started, str((record.error or {}).get("type", ""))
    end = start + record.elapsed
    what = f"{name} {work.node or facts['pool']}"
    yield SpanData(what, "INTERNAL", of, span, of.parent, _ns(start), _ns(end), attributes, error)
    if record.route not in REUSED:
        yield from _exchanged(of, span, record, work)


def _exchanged(of: TraceOf, parent: int, record: CallRecord, work: CallRequest) -> Iterator[SpanData]:
    """The requests that a record has kept. When each began is not kept: they are shown one after the other, until the end."""
    try:
        kept = read_exchanges(record.exchanges)
    except DecodeError:  # a worker wrote it
        kept = KeptExchanges()
    if kept.left_out or not kept.exchanges:
        yield from _chats(of, parent, record, work.session, SaidInCall(lambda: (work.spec, work.inputs), record))
        return
    at = record.started + record.elapsed - sum(one.seconds for one in kept.exchanges)
    for number, one in enumerate(kept.exchanges):
        what, about = REQUEST_OF[one.kind]
        name = one.name or record.lm or ""
        attributes = {"gen_ai.operation.name": what, about: name, "dspex.call": record.call, **_used(one.usage)}
        if work.session:
            attributes["gen_ai.conversation.id"] = work.session
        kind: Literal["INTERNAL", "CLIENT"] = "INTERNAL" if one.kind == "tool" else "CLIENT"
        span, said = span_of(record.call, "request", str(number)), SaidInCall(lambda: (work.spec, work.inputs), record, one)
        yield SpanData(f"{what} {name}", kind, of, span, parent, _ns(at), _ns(at + one.seconds), attributes, said=said)
        at += one.seconds


def _of_work(app: str, work: CallRequest) -> dict[str, Any]:
    found = {"dspex.app": app, "dspex.topology": work.topology, "dspex.node": work.node, "dspex.run": work.run}
    found["dspex.call"] = work.call
    if work.session:
        found["gen_ai.conversation.id"] = work.session
    return found


def _of_record(record: CallRecord) -> dict[str, Any]:
    return {
        "dspex.route": record.route,
        "dspex.reused": record.route in REUSED,
        "dspex.worker": record.worker,
        "dspex.attempts": record.attempt,
        **{name: record.requests[what] for what, name in REQUESTS.items() if what in record.requests},
        **_used(record.usage),
    }


def request_span(app: str, facts: Mapping[str, Any], at: float) -> SpanData | None:
    """The span of a request of a model or tool that is in the journal of its call since `at`; None where no run is known."""
    work: CallRequest = facts["work"]
    try:
        origin = unpack_event(work.record.event).origin if work.record is not None else Origin(work.run, "", work.run)
    except DecodeError:
        return None
    tool, name = facts["kind"] == "tool", str(facts["name"])
    what, about = REQUEST_OF["tool" if tool else "model"]
    attributes = {"gen_ai.operation.name": what, about: name, "dspex.call": work.call, "dspex.node": work.node}
    if work.session:
        attributes["gen_ai.conversation.id"] = work.session
    attributes |= _used(facts["usage"] or {})
    parent = span_of(app, work.call, work.topology)
    span = span_of(app, work.call, what, facts["digest"], str(facts["occurrence"]))
    kind: Literal["INTERNAL", "CLIENT"] = "INTERNAL" if tool else "CLIENT"
    start, said = _ns(at - facts["seconds"]), SaidInCall(lambda: (work.spec, work.inputs), one=facts["exchange"])
    return SpanData(f"{what} {name}", kind, trace_of(origin), span, parent, start, _ns(at), attributes, said=said)


def _run(app: str, topology: str, origin: Origin) -> dict[str, Any]:
    return {"dspex.app": app, "dspex.topology": topology, **_of_run(origin)}


def _of_run(origin: Origin) -> dict[str, Any]:
    found = {"dspex.run": origin.run, "messaging.message.conversation_id": origin.run}
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
