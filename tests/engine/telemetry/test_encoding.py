"""The bytes of spans are those that OpenTelemetry's own exporter sends, and what they cannot say goes its way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from collector import Collector
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from dspex.engine.telemetry.encoding import QuickExporter, encoded

RESOURCE = Resource.create({"service.name": "dspex-engine"})
SCOPE = InstrumentationScope("dspex", schema_url="https://opentelemetry.io/schemas/1.41.0")
VALUES: dict[str, Any] = {
    "text": "a",
    "none": "",
    "beyond ASCII": "grüß Gott, 日本語",
    **{f"long {size}": "x" * size for size in (100, 110, 113, 114, 115, 116, 120, 127, 128, 200, 20_000)},
    "n" * 130: "under a long name",
    **{f"number {number}": number for number in (0, 1, 127, 128, -1, 2**63 - 1, -(2**63))},
    "yes": True,
    "no": False,
    "cost": 0.25,
}


def context(span: int, *, remote: bool = True, state: str = "") -> SpanContext:
    of = TraceState.from_header([state]) if state else None
    return SpanContext(7 << 100, span, is_remote=remote, trace_flags=TraceFlags(1), trace_state=of)


def span(attributes: Mapping[str, Any], **more: Any) -> ReadableSpan:
    own: dict[str, Any] = {
        "context": context(1 << 60, remote=False),
        "kind": SpanKind.CONSUMER,
        "start_time": 1,
        "end_time": 1 << 60,
    }
    return ReadableSpan(
        f"process {'a' * 140}", resource=RESOURCE, instrumentation_scope=SCOPE, attributes=attributes, **{**own, **more}
    )


SPANS = [
    span(VALUES),
    span({}, kind=SpanKind.INTERNAL, parent=context(3, state="vendor=what,it=knows")),
    span(
        {"a": "b"},
        kind=SpanKind.CLIENT,
        parent=context(3, remote=False),
        status=Status(StatusCode.ERROR, "LMError " + "x" * 200),
    ),
    span({}, context=context(2, remote=False, state="vendor=what"), status=Status(StatusCode.OK)),
    span({}, links=[Link(context(4)), Link(context(5, remote=False), VALUES)]),
]


@pytest.mark.parametrize("spans", [SPANS, *[[one] for one in SPANS], []])
def test_what_is_sent_is_what_the_exporter_of_opentelemetry_would_send(spans: list[ReadableSpan]) -> None:
    assert ExportTraceServiceRequest.FromString(encoded(spans)) == encode_spans(spans)


@pytest.mark.parametrize("attributes", [{"it": "plain"}, {"it": "plain", "more": ["a", "list"]}], ids=len)
def test_a_span_arrives_whether_or_not_its_attributes_are_plain(attributes: Mapping[str, Any]) -> None:
    with Collector() as collector:
        exporter = QuickExporter(f"{collector.url}/v1/traces")
        assert exporter.is_quick
        assert exporter.export([span(attributes)]) is SpanExportResult.SUCCESS
        exporter.shutdown()
    (seen,) = collector.spans
    assert (seen.attributes["it"], seen.attributes.keys()) == ("plain", attributes.keys())
