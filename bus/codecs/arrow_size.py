"""How large an Arrow IPC stream becomes when it is read, found out without reading it.

A publisher chooses the content type, and buffers may be compressed: 330 KB of zstd became 10 GB. pyarrow has no limit and says
nothing before it decompresses, so the few fields that tell sizes are read here. They lie in flatbuffers (Message.fbs of Apache
Arrow); a compressed buffer begins with its real length (https://arrow.apache.org/docs/format/Columnar.html).
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

_U16, _U32, _I32, _I64 = Struct("<H"), Struct("<I"), Struct("<i"), Struct("<q")
_CONTINUES: Final = 0xFFFFFFFF
_DICTIONARY, _BATCH = 2, 3  # kinds of message that have a body


class Expanded(NamedTuple):
    """Of all batches together: bytes of their buffers once decompressed, and rows."""

    size: int
    rows: int


def expanded(data: bytes) -> Expanded:
    """What reading the stream would take. Raises ValueError, IndexError or struct.error for what is none."""
    size = rows = 0
    for head, body in _messages(data):
        more = _batch(data, head, body)
        size, rows = size + more.size, rows + more.rows
    return Expanded(size, rows)


def _messages(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the metadata and the body of each message begin."""
    at = 0
    while at + 4 <= len(data):
        (length,) = _U32.unpack_from(data, at)
        at += 4
        if length == _CONTINUES:
            (length,) = _U32.unpack_from(data, at)
            at += 4
        if length == 0:  # the end of the stream
            return
        head, body = at, at + length
        message = head + _U32.unpack_from(data, head)[0]
        field = _field(data, message, 3)
        size = _I64.unpack_from(data, field)[0] if field else 0
        if size < 0 or body + size > len(data):
            raise ValueError("a message is longer than the stream")
        yield head, body
        at = body + size


def _batch(data: bytes, head: int, body: int) -> Expanded:
    message = head + _U32.unpack_from(data, head)[0]
    kind, at = _field(data, message, 1), _field(data, message, 2)
    if not kind or not at or data[kind] not in (_DICTIONARY, _BATCH):
        return Expanded(0, 0)
    batch = at + _U32.unpack_from(data, at)[0]
    if data[kind] == _DICTIONARY:
        at = _field(data, batch, 1)
        if not at:
            return Expanded(0, 0)
        batch = at + _U32.unpack_from(data, at)[0]
    at = _field(data, batch, 0)
    rows = _I64.unpack_from(data, at)[0] if at else 0
    packed, at = bool(_field(data, batch, 3)), _field(data, batch, 2)
    if not at or rows < 0:
        return Expanded(0, max(rows, 0))
    buffers = at + _U32.unpack_from(data, at)[0]
    (count,) = _U32.unpack_from(data, buffers)
    size = 0
    for index in range(count):
        place = buffers + 4 + 16 * index
        start, length = _I64.unpack_from(data, place)[0], _I64.unpack_from(data, place + 8)[0]
        if start < 0 or length < 0 or body + start + length > len(data):
            raise ValueError("a buffer lies outside of the stream")
        real = _I64.unpack_from(data, body + start)[0] if packed and length else length
        if real < -1:
            raise ValueError("a buffer of negative length")
        size += length if real == -1 else real  # -1: this one is not compressed
    return Expanded(size, rows)


def _field(data: bytes, table: int, index: int) -> int:
    """Where a field of a flatbuffers table lies; 0 where it has none."""
    fields = table - _I32.unpack_from(data, table)[0]
    if fields < 0 or table < 0:
        raise ValueError("a table lies outside of the stream")
    if 6 + 2 * index > _U16.unpack_from(data, fields)[0]:
        return 0
    offset: int = _U16.unpack_from(data, fields + 4 + 2 * index)[0]
    return table + offset if offset else 0
