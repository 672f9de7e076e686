"""Spans, to whoever takes OTLP. Their ids are ours, so they are made as data and not by a tracer, which draws ids at random."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Decision, Sampler
from opentelemetry.trace import NonRecordingSpan, set_span_in_context

from dspex.bus.codecs.tracing import in_logs
from dspex.engine.telemetry.content import Content
from dspex.engine.telemetry.data import SpanData
from dspex.engine.telemetry.light import KINDS, LightSpan, context_of
from dspex.engine.telemetry.links import FedState
from dspex.engine.telemetry.spans import answered_spans, asked_span, request_span, spans_of
from dspex.engine.telemetry.taken import HandledArrival

_log = structlog.get_logger("dspex.telemetry")
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
        self._all = _described(self._sampler) == _described(DEFAULT_ON)  # unless who asks has decided against it
        self._fed = FedState()

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

    def _is_told(self, span: SpanData) -> bool:
        if self._all and span.of.sampled is not False:
            return True
        decided = span.parent and span.of.sampled is not None  # else nobody has, for a trace that begins here
        within = set_span_in_context(NonRecordingSpan(context_of(span.of, span.parent))) if decided else None
        return self._sampler.should_sample(within, span.of.trace, span.name, KINDS[span.kind]).decision is not Decision.DROP

    def _give(self, span: SpanData) -> None:
        if not self._is_told(span):
            return
        if self._content is not None and span.said is not None:
            said = self._content.of(span.said)
            span = span._replace(attributes={**span.attributes, **said})
            _log.debug(span.name, **in_logs(span.of, span.span), **said)
        self._processor.on_end(LightSpan(span, self._resource))


def _described(sampler: Sampler) -> str:
    """How it decides: a ratio of 1 as all."""
    told: Callable[[], str] = sampler.get_description
    return told().replace("TraceIdRatioBased{1.0}", "AlwaysOnSampler")
