"""Spans as the bytes that OTLP has for them. By way of an object for each value it takes four times as long.

The bytes are those of protobuf, by the numbers of fields in `opentelemetry/proto/trace/v1/trace.proto`, which do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from struct import error, pack
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace.status import StatusCode

from dspex.engine.telemetry.data import SharedAttributes, SpanData
from dspex.engine.telemetry.light import KINDS, LightSpan
from dspex.engine.telemetry.links import SpanLink

_MOST: Final = 32 << 20  # bytes of a request; what to do with a larger one, the exporter knows
_REMOTE, _OWN = pack("<I", 0x300), pack("<I", 0x100)  # whether the parent is told elsewhere, and that this is known
_FAILED: Final = b"\x18%c" % StatusCode.ERROR.value
_KINDS: Final = {kind: b"\x30%c\x39" % (of.value + 1) for kind, of in KINDS.items()}


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
    """An ExportTraceServiceRequest of the spans of one process, all of one resource and scope. Raises TypeError for others."""
    if not spans:
        return b""
    own = b"".join([_field(0x12, b"".join(_parts(_told(span)))) for span in spans])
    around = encode_spans(spans[:1])  # resource, scope and schemas, as the exporter says them
    (of,) = around.resource_spans
    (scope,) = of.scope_spans
    del scope.spans[:]
    whole = scope.SerializeToString() + own  # the fields of a message may come in any order
    del of.scope_spans[:]
    return _field(0x0A, of.SerializeToString() + _field(0x12, whole))


def _told(span: ReadableSpan) -> SpanData:
    if not isinstance(span, LightSpan):
        raise TypeError("it is of somebody else")
    return span.told


def _parts(told: SpanData) -> list[bytes]:
    of, parent, shared, error = told.of, told.parent, told.shared, told.error
    start = told.start
    parts = [b"\x0a\x10", of.trace.to_bytes(16), b"\x12\x08", told.span.to_bytes(8)]
    if of.state:
        parts.append(_field(0x1A, of.state.encode()))
    if parent:
        parts += (b"\x22\x08", parent.to_bytes(8))
    parts += (_field(0x2A, told.name.encode()), _KINDS[told.kind], pack("<QBQ", start, 0x41, max(start, told.end)))
    if shared is not None:
        parts.append(shared.encoded if shared.encoded is not None else _shared(shared))
    parts += [_attribute(name, value) for name, value in told.attributes.items()]
    if error:
        parts.append(_attribute("error.type", error))
    parts += [_field(0x6A, b"".join(_linked(link))) for link in told.links]
    parts.append(_field(0x7A, _field(0x12, error.encode()) + _FAILED) if error else b"\x7a\x00")
    parts += (b"\x85\x01", _REMOTE if parent else _OWN)
    return parts


def _linked(link: SpanLink) -> Iterator[bytes]:
    yield b"\x0a\x10" + link.of.trace.to_bytes(16) + b"\x12\x08" + link.span.to_bytes(8)
    yield b"\x35" + _REMOTE


def _shared(shared: SharedAttributes) -> bytes:
    shared.encoded = b"".join([_attribute(name, value) for name, value in shared.attributes.items()])
    return shared.encoded


def _attribute(name: str, value: Any) -> bytes:
    begin = _named(name)
    if type(value) is str:
        data = value.encode()
        size = len(data)
        if len(begin) + size < 124:  # each length is one byte: so it is with most
            return b"\x4a%c%b\x12%c\x0a%c%b" % (len(begin) + size + 4, begin, size + 2, size, data)
        return _field(0x4A, begin + _field(0x12, _field(0x0A, data)))
    if type(value) is bool:
        data = b"\x10%c" % value
    elif type(value) is int:
        data = b"\x18%c" % value if 0 <= value < 128 else b"\x18" + _varint(value & (1 << 64) - 1)
    elif type(value) is float:
        data = b"\x21" + pack("<d", value)
    else:
        raise TypeError(f"{name} is no plain value")
    return _field(0x4A, begin + _field(0x12, data))


@lru_cache(256)
def _named(name: str) -> bytes:
    return _field(0x0A, name.encode())


def _field(tag: int, data: bytes) -> bytes:
    """What has a length. `tag`: of a field of which the number is below 16."""
    size = len(data)
    if size < 1 << 7:
        return b"%c%c%b" % (tag, size, data)
    if size < 1 << 14:
        return b"%c%c%c%b" % (tag, size & 127 | 128, size >> 7, data)
    return b"%c%b%b" % (tag, _varint(size), data)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)
