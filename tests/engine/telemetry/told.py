"""Spans of what a driver runs, as whoever exports them gets them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dspex.bus import telemetry
from dspex.engine.telemetry.traces import Traces


class ToldSpans:
    """What was told so far."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def all(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name.startswith(name)]

    def traces(self) -> set[int]:
        return {span.context.trace_id for span in self.all() if span.context is not None}

    def lost(self) -> list[str]:
        """The names of spans whose parent nobody told."""
        told = {span_id(span) for span in self.all()}
        return [span.name for span in self.all() if span.parent is not None and span.parent.span_id not in told]

    def twice(self) -> list[str]:
        """The names of spans that were told again."""
        seen, found = set[int](), list[str]()
        for span in self.all():
            if span_id(span) in seen:
                found.append(span.name)
            seen.add(span_id(span))
        return found


@contextmanager
def told_spans() -> Generator[ToldSpans]:
    """All that is told in the block."""
    exporter = InMemorySpanExporter()
    stop = telemetry.subscribe(Traces("test", Resource.create({}), SimpleSpanProcessor(exporter)))
    try:
        yield ToldSpans(exporter)
    finally:
        stop()


def span_id(span: ReadableSpan) -> int:
    """The id of a span."""
    assert span.context is not None
    return span.context.span_id


def linked(span: ReadableSpan) -> list[int]:
    """The ids of the spans that one is linked to."""
    return [link.context.span_id for link in span.links]
