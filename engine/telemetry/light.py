"""A span as data, until somebody asks for what OpenTelemetry has for one: to make all of that takes longer than to send it."""

from __future__ import annotations

from typing import Any, Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from dspex.bus.codecs.tracing import TraceOf
from dspex.engine.telemetry.data import SpanData

SCOPE: Final = InstrumentationScope("dspex", schema_url="https://opentelemetry.io/schemas/1.41.0")
KINDS: Final = {"INTERNAL": SpanKind.INTERNAL, "CONSUMER": SpanKind.CONSUMER, "CLIENT": SpanKind.CLIENT}
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_NOT_SAMPLED: Final = TraceFlags(TraceFlags.DEFAULT)


class LightSpan(ReadableSpan):
    """A span that is told. A processor looks at its context alone; the rest is there once it is asked for."""

    def __init__(self, told: SpanData, resource: Resource) -> None:
        self.told, self._resource = told, resource
        self._context = SpanContext(told.of.trace, told.span, False, _SAMPLED, _state(told.of))

    def __getattr__(self, name: str) -> Any:
        """A field of ReadableSpan that is not there yet."""
        if not name.startswith("_") or "_context" not in self.__dict__ or "_links" in self.__dict__:
            raise AttributeError(name)
        told = self.told
        super().__init__(
            name=told.name,
            context=self._context,
            parent=context_of(told.of, told.parent) if told.parent else None,
            resource=self._resource,
            attributes=told.all_attributes(),
            links=[Link(context_of(link.of, link.span)) for link in told.links],
            kind=KINDS[told.kind],
            instrumentation_scope=SCOPE,
            status=Status(StatusCode.ERROR, told.error) if told.error else Status(StatusCode.UNSET),
            start_time=told.start,
            end_time=max(told.start, told.end),
        )
        return getattr(self, name)


def context_of(of: TraceOf, span: int) -> SpanContext:
    """A span that is told elsewhere, or has been."""
    return SpanContext(of.trace, span, True, _SAMPLED if of.sampled is not False else _NOT_SAMPLED, _state(of))


def _state(of: TraceOf) -> TraceState | None:
    return TraceState.from_header([of.state]) if of.state else None
