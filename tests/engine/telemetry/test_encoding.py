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
from opentelemetry.trace import SpanContext, TraceFlags

from dspex.bus.codecs.tracing import TraceOf
from dspex.engine.telemetry.data import SharedAttributes, SpanData
from dspex.engine.telemetry.encoding import QuickExporter, encoded
from dspex.engine.telemetry.light import LightSpan
from dspex.engine.telemetry.links import SpanLink

RESOURCE = Resource.create({"service.name": "dspex-engine"})
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


OF = TraceOf(7 << 100, 0, None)
STATED = TraceOf(7 << 100, 5, True, "vendor=what,it=knows")
SHARED = SharedAttributes({"messaging.system": "nats", "of": "x" * 200})


def light(attributes: Mapping[str, Any], **more: Any) -> LightSpan:
    own: dict[str, Any] = {"name": f"process {'a' * 140}", "kind": "CONSUMER", "of": OF, "span": 1 << 60, "parent": 0}
    return LightSpan(SpanData(**{**own, "start": 1, "end": 1 << 60, "attributes": attributes, **more}), RESOURCE)


SPANS = [
    light(VALUES),
    light({}, kind="INTERNAL", parent=3, of=STATED),
    light({"a": "b"}, kind="CLIENT", parent=1, error="LMError " + "x" * 200, shared=SHARED),
    light({}, of=OF._replace(sampled=True), shared=SHARED, name="n" * 20_000, start=9, end=3),
    light({"name": "short"}, error="Short", links=[SpanLink(OF, 4, 0.0), SpanLink(STATED, 5, 1.0)]),
]


@pytest.mark.parametrize("spans", [SPANS, *[[one] for one in SPANS], []])
def test_what_is_sent_is_what_the_exporter_of_opentelemetry_would_send(spans: list[ReadableSpan]) -> None:
    assert ExportTraceServiceRequest.FromString(encoded(spans)) == encode_spans(spans)


PLAIN: Mapping[str, Any] = {"it": "plain"}
OF_OTHERS = ReadableSpan(
    "other", SpanContext(7, 8, False, TraceFlags(1)), resource=RESOURCE, attributes=PLAIN, start_time=1, end_time=2
)
SENT = {"plain": light(PLAIN), "a list": light({**PLAIN, "more": ["a", "list"]}), "of somebody else": OF_OTHERS}


@pytest.mark.parametrize("span", SENT.values(), ids=SENT)
def test_a_span_arrives_whether_or_not_its_bytes_are_known_here(span: ReadableSpan) -> None:
    with Collector() as collector:
        exporter = QuickExporter(f"{collector.url}/v1/traces")
        assert exporter.is_quick
        assert exporter.export([span]) is SpanExportResult.SUCCESS
        exporter.shutdown()
    (seen,) = collector.spans
    assert (seen.attributes["it"], seen.attributes.keys()) == ("plain", (span.attributes or {}).keys())
