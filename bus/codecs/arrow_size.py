"""How large an Arrow IPC stream or file becomes when it is read, found out without reading it.

A publisher chooses the content type, and buffers may be compressed: 330 KB of zstd became 10 GB. pyarrow has no limit and says
nothing before it decompresses, so the few fields that tell sizes are read here. They lie in flatbuffers (Message.fbs of Apache
Arrow); a compressed buffer begins with its real length (https://arrow.apache.org/docs/format/Columnar.html).
"""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap
from struct import Struct
from typing import Final, NamedTuple

_U16, _U32, _I32, _I64 = Struct("<H"), Struct("<I"), Struct("<i"), Struct("<q")
_CONTINUES: Final = 0xFFFFFFFF
_FILE: Final = b"ARROW1"  # how a file begins and ends
_DICTIONARY, _BATCH = 2, 3  # kinds of message that have a body

Bytes = bytes | mmap


class Expanded(NamedTuple):
    """Of one batch, or of all together: bytes of their buffers once decompressed, rows, and bytes as they are."""

    size: int
    rows: int
    stored: int = 0

    def plus(self, other: Expanded) -> Expanded:
        return Expanded(self.size + other.size, self.rows + other.rows, self.stored + other.stored)


def expanded(data: Bytes) -> Expanded:
    """What reading the stream would take. Raises ValueError, IndexError or struct.error for what is none."""
    found = Expanded(0, 0)
    for _, more in batches(data):
        found = found.plus(more)
    return found


def batches(data: Bytes) -> Iterator[tuple[bool, Expanded]]:
    """The same for each batch of a stream or of a file, and whether it is one of a dictionary."""
    for head, body, stored in _blocks(data) if data[:6] == _FILE else _messages(data):
        kind = _field(data, head + _U32.unpack_from(data, head)[0], 1)
        yield bool(kind) and data[kind] == _DICTIONARY, _batch(data, head, body)._replace(stored=stored)


def _blocks(data: Bytes) -> Iterator[tuple[int, int, int]]:
    """As _messages, of a file: its end says where they lie."""
    (length,) = _I32.unpack_from(data, len(data) - len(_FILE) - 4)
    end = len(data) - len(_FILE) - 4 - length
    if length < 0 or end < 0:
        raise ValueError("the end of the file is cut off")
    footer = end + _U32.unpack_from(data, end)[0]
    for index in (2, 3):  # dictionaries, batches
        if not (at := _field(data, footer, index)):
            continue
        blocks = at + _U32.unpack_from(data, at)[0]
        for block in range(blocks + 4, blocks + 4 + 24 * _U32.unpack_from(data, blocks)[0], 24):
            start, size = _I64.unpack_from(data, block)[0], _I32.unpack_from(data, block + 8)[0]
            if start < 0 or size < 0:
                raise ValueError("a batch lies outside of the file")
            head = start + (8 if _U32.unpack_from(data, start)[0] == _CONTINUES else 4)
            yield head, start + size, _body_size(data, head, start + size)


def _body_size(data: Bytes, head: int, body: int) -> int:
    field = _field(data, head + _U32.unpack_from(data, head)[0], 3)
    size: int = _I64.unpack_from(data, field)[0] if field else 0
    if size < 0 or body + size > len(data):
        raise ValueError("a message is longer than the stream")
    return size


def _messages(data: Bytes) -> Iterator[tuple[int, int, int]]:
    """Where the metadata and the body of each message begin, and how long the body is."""
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
        size = _body_size(data, head, body)
        yield head, body, size
        at = body + size


def _batch(data: Bytes, head: int, body: int) -> Expanded:
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


def _field(data: Bytes, table: int, index: int) -> int:
    """Where a field of a flatbuffers table lies; 0 where it has none."""
    fields = table - _I32.unpack_from(data, table)[0]
    if fields < 0 or table < 0:
        raise ValueError("a table lies outside of the stream")
    if 6 + 2 * index > _U16.unpack_from(data, fields)[0]:
        return 0
    offset: int = _U16.unpack_from(data, fields + 4 + 2 * index)[0]
    return table + offset if offset else 0
