"""Spans, to whoever takes OTLP. Their ids are ours, so they are made as data and not by a tracer, which draws ids at random."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import structlog
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags, TraceState, set_span_in_context
from opentelemetry.trace.status import Status, StatusCode

from dspex.bus.codecs.tracing import TraceOf, in_logs
from dspex.engine.telemetry.content import Content
from dspex.engine.telemetry.links import FedState
from dspex.engine.telemetry.spans import SpanData, answered_spans, asked_span, request_span, spans_of
from dspex.engine.telemetry.taken import HandledArrival

_log = structlog.get_logger("dspex.telemetry")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_KINDS = {"INTERNAL": SpanKind.INTERNAL, "CONSUMER": SpanKind.CONSUMER, "CLIENT": SpanKind.CLIENT}


HEARD = ("handled", "request", "answered", "asked")
"""What happens that has spans."""


class Traces:
    """Hears what happens in this process, and gives the spans of it to a processor.

    Args:
        app: the application.
        resource: of this process.
        processor: what exports spans; it must not block where a span ends.
        content: tells what models and tools were asked and said; None: that is not told.
    """

    def __init__(self, app: str, resource: Resource, processor: SpanProcessor, content: Content | None = None) -> None:
        self._app, self._resource, self._processor, self._content = app, resource, processor, content
        self._sampler = TracerProvider(resource=resource, shutdown_on_exit=False).sampler  # as OTEL_TRACES_SAMPLER says
        self._all = self._sampler is DEFAULT_ON  # unless who asks has decided against it
        self._fed = FedState()
        self._scope = InstrumentationScope("dspex", schema_url="https://opentelemetry.io/schemas/1.41.0")

    def __call__(self, name: str, facts: Mapping[str, Any]) -> None:
        """Hear what happens; see `telemetry.HAPPENINGS`."""
        if name == "handled":
            self._handled(facts)
        elif name == "request" and (span := request_span(self._app, facts, time.time())) is not None:
            self._give(span)
        elif name == "answered":
            for one in answered_spans(self._app, facts):
                self._give(one)
        elif name == "asked":
            self._give(asked_span(self._app, facts, time.time()))

    def _handled(self, facts: Mapping[str, Any]) -> None:
        partition, calls, until = (facts["topology"], facts["stage"], facts["partition"]), facts["calls"], time.time()
        for arrival, effects, at in facts["arrivals"]:
            taken = HandledArrival(partition, arrival, effects, calls, at)
            for span in spans_of(self._app, taken, until, self._fed):
                self._give(span)

    def _is_told(self, span: SpanData, above: SpanContext | None) -> bool:
        if self._all and span.of.sampled is not False:
            return True
        decider = above if span.of.sampled is not None else None  # nobody has decided for a trace that begins here
        within = set_span_in_context(NonRecordingSpan(decider)) if decider is not None else None
        return self._sampler.should_sample(within, span.of.trace, span.name, _KINDS[span.kind]).decision is not Decision.DROP

    def _give(self, span: SpanData) -> None:
        trace = span.of.trace
        above = _context(span.of, span.parent) if span.parent else None
        if not self._is_told(span, above):
            return
        context = SpanContext(trace, span.span, is_remote=False, trace_flags=_SAMPLED, trace_state=_state(span.of))
        attributes = span.attributes if not span.error else {**span.attributes, "error.type": span.error}
        if self._content is not None and span.said is not None:
            said = self._content.of(span.said)
            attributes = {**attributes, **said}
            _log.debug(span.name, **in_logs(span.of, span.span), **said)
        self._processor.on_end(
            ReadableSpan(
                name=span.name,
                context=context,
                parent=above,
                resource=self._resource,
                attributes=attributes,
                links=[Link(_context(link.of, link.span)) for link in span.links],
                kind=_KINDS[span.kind],
                instrumentation_scope=self._scope,
                status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
                start_time=span.start,
                end_time=max(span.start, span.end),
            )
        )


def _context(of: TraceOf, span: int) -> SpanContext:
    """A span that is told elsewhere, or has been."""
    flags = TraceFlags(TraceFlags.SAMPLED if of.sampled is not False else TraceFlags.DEFAULT)
    return SpanContext(of.trace, span, is_remote=True, trace_flags=flags, trace_state=_state(of))


def _state(of: TraceOf) -> TraceState | None:
    return TraceState.from_header([of.state]) if of.state else None
