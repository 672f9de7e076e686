"""Spans as the bytes that OTLP has for them. By way of an object for each value it takes four times as long.

The bytes are those of protobuf, by the numbers of fields in `opentelemetry/proto/trace/v1/trace.proto`, which do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from struct import error, pack
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import Link, SpanContext

_MOST: Final = 32 << 20  # bytes of a request; what to do with a larger one, the exporter knows
_REMOTE: Final = pack("<I", 0x300), pack("<I", 0x100)  # whether the parent is told elsewhere, and that this is known


class QuickExporter(OTLPSpanExporter):
    """Sends spans as the exporter does, which it leaves what it does not know how to do."""

    @property
    def is_quick(self) -> bool:
        """Whether this version of OpenTelemetry lets it."""
        return self._send is not None

    @property
    def _send(self) -> Callable[[bytes], Any] | None:
        return getattr(getattr(self, "_client", None), "export", None)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send them. Called in a thread of the processor."""
        data = _tried(spans) if (send := self._send) is not None and not self._shutdown else b""
        if send is None or not 0 < len(data) <= _MOST:
            return super().export(spans)
        return SpanExportResult.SUCCESS if send(data).success else SpanExportResult.FAILURE


def _tried(spans: Sequence[ReadableSpan]) -> bytes:
    try:
        return encoded(spans)
    except (TypeError, ValueError, OverflowError, error):  # workers say some of it
        return b""


def encoded(spans: Sequence[ReadableSpan]) -> bytes:
    """An ExportTraceServiceRequest of the spans of one process, all of one resource and scope."""
    if not spans:
        return b""
    own = b"".join([_field(0x12, b"".join(_parts(span))) for span in spans])
    around = encode_spans(spans[:1])  # resource, scope and schemas, as the exporter says them
    (of,) = around.resource_spans
    (scope,) = of.scope_spans
    del scope.spans[:]
    whole = scope.SerializeToString() + own  # the fields of a message may come in any order
    del of.scope_spans[:]
    return _field(0x0A, of.SerializeToString() + _field(0x12, whole))


def _parts(span: ReadableSpan) -> Iterator[bytes]:
    context, parent = span.context, span.parent
    assert context is not None  # a processor takes no others
    yield b"\x0a\x10" + context.trace_id.to_bytes(16) + b"\x12\x08" + context.span_id.to_bytes(8)
    yield from _stated(context)
    if parent is not None:
        yield b"\x22\x08" + parent.span_id.to_bytes(8)
    yield _field(0x2A, span.name.encode())
    yield b"\x30%c\x39" % (span.kind.value + 1) + pack("<QBQ", span.start_time, 0x41, span.end_time)
    yield from _attributes(0x4A, span.attributes)
    for link in span.links:
        yield _field(0x6A, b"".join(_linked(link)))
    status = span.status
    said = _field(0x12, status.description.encode()) if status.description else b""
    yield _field(0x7A, said + (b"\x18%c" % status.status_code.value if status.status_code.value else b""))
    yield b"\x85\x01" + _REMOTE[parent is None or not parent.is_remote]


def _linked(link: Link) -> Iterator[bytes]:
    context = link.context
    yield b"\x0a\x10" + context.trace_id.to_bytes(16) + b"\x12\x08" + context.span_id.to_bytes(8)
    yield from _attributes(0x22, link.attributes)
    yield b"\x35" + _REMOTE[not context.is_remote]


def _stated(context: SpanContext) -> Iterable[bytes]:
    state = ",".join(f"{key}={value}" for key, value in context.trace_state.items())
    return (_field(0x1A, state.encode()),) if state else ()


def _attributes(tag: int, attributes: Mapping[str, Any] | None) -> Iterable[bytes]:
    return [_attribute(tag, name, value) for name, value in attributes.items()] if attributes else ()


def _attribute(tag: int, name: str, value: Any) -> bytes:
    begin = _named(name)
    if type(value) is str:
        data = value.encode()
        size = len(data)
        if len(begin) + size < 124:  # each length is one byte: so it is with most
            return b"%c%c%b\x12%c\x0a%c%b" % (tag, len(begin) + size + 4, begin, size + 2, size, data)
        return _field(tag, begin + _field(0x12, _field(0x0A, data)))
    if type(value) is bool:
        data = b"\x10%c" % value
    elif type(value) is int:
        data = b"\x18" + _varint(value & (1 << 64) - 1)
    elif type(value) is float:
        data = b"\x21" + pack("<d", value)
    else:
        raise TypeError(f"{name} is no plain value")
    return _field(tag, begin + _field(0x12, data))


@lru_cache(256)
def _named(name: str) -> bytes:
    return _field(0x0A, name.encode())


def _field(tag: int, data: bytes) -> bytes:
    """What has a length. `tag`: of a field of which the number is below 16."""
    size = len(data)
    return (b"%c%c" % (tag, size) if size < 128 else b"%c" % tag + _varint(size)) + data


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)
