"""How large the pages of a Parquet file become when they are read, found out without reading them.

A page may be compressed, and may say one value as often as it likes: 900 bytes became 3.5 GB. pyarrow has no limit, and it ends
the process where asked for numbers at the end of a file that do not fit together. So that end and the head of each page are
read here: structs of Thrift's compact protocol (parquet.thrift of Apache Parquet).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO, Any, Final, NamedTuple

_HEAD: Final = 4096  # bytes of the head of a page that are read first; the shortest and the longest value may stand in it
_PAGE, _DICTIONARY, _PAGE_2 = 5, 7, 8  # fields of PageHeader
_STOP, _BYTE, _DOUBLE, _BINARY, _LIST, _STRUCT = 0, 3, 7, 8, 9, 12  # kinds of value
_DEPTH: Final = 12  # of structs and lists in each other; those that are read here have six


class PagesSize(NamedTuple):
    """One column of one row group.

    Attributes:
        page: bytes of its largest page, unpacked; no value is longer.
        held: bytes that lie in memory together, while its pages are read one after the other.
        values: how many it has, those of lists one by one.
        stored: bytes in the file.
    """

    page: int
    held: int
    values: int
    stored: int


def row_groups(file: IO[bytes]) -> Iterator[list[PagesSize]]:
    """The columns of each row group. Raises ValueError, TypeError or LookupError for what is none."""
    end = file.seek(0, os.SEEK_END) - 8
    file.seek(end)
    size = int.from_bytes(file.read(4), "little")
    file.seek(end - size)
    for group in _struct(file.read(size), 0, 0)[0].get(4, ()):
        yield [_chunk(file, column[3]) for column in group[1]]


def _chunk(file: IO[bytes], column: dict[int, Any]) -> PagesSize:
    """The pages of what ColumnMetaData says."""
    count, stored, start = column[5], column[7], column[9]
    if 0 < column.get(11, 0) < start:  # its dictionary
        start = column[11]
    dictionary = page = values = 0
    for size, more, is_dictionary in _pages(file, start, start + stored if count else 0):
        if is_dictionary:
            dictionary = max(dictionary, size)
        else:
            page, values = max(page, size), values + more
    return PagesSize(max(dictionary, page), dictionary + page, values, stored)


def _pages(file: IO[bytes], at: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Of each page: bytes once unpacked, how many values, and whether it is a dictionary."""
    while at < end:
        found, length = _head(file, at, end)
        size, packed = found[2], found[3]
        head = next((found[kind] for kind in (_PAGE, _DICTIONARY, _PAGE_2) if kind in found), None)
        values: Any = head.get(1) if isinstance(head, dict) else 0  # other kinds, as those of indexes, have none
        if not all(isinstance(number, int) and number >= 0 for number in (size, packed, values)):
            raise ValueError("a page has no size")
        yield size, values, _DICTIONARY in found
        at += length + packed


def _head(file: IO[bytes], at: int, end: int) -> tuple[dict[int, Any], int]:
    size = _HEAD
    while True:
        file.seek(at)
        data = file.read(min(size, end - at))
        try:
            return _struct(data, 0, 0)
        except IndexError as e:
            if len(data) < size:
                raise ValueError("the head of a page is cut off") from e
            size *= 16


# -- Thrift ------------------------------------------------------------------------------------------------------------
def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Its integers and structs by their numbers, and where it ends. Raises IndexError where data ends before."""
    found: dict[int, Any] = {}
    number = 0
    while (head := data[at]) & 0x0F != _STOP:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _integer(data, at)
        found[number], at = _value(data, at, head & 0x0F, depth)
    return found, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind < _BYTE:  # a truth value, which its kind says
        return kind == 1, at
    if kind == _BYTE:
        return data[at], at + 1
    if kind < _DOUBLE:
        return _integer(data, at)
    if kind == _STRUCT and depth < _DEPTH:
        return _struct(data, at, depth + 1)
    if kind == _LIST and depth < _DEPTH:
        return _list(data, at, depth + 1)
    if kind == _DOUBLE:
        return None, at + 8
    if kind == _BINARY:
        length, at = _varint(data, at)
        return None, at + length
    raise ValueError(f"the head of a page has a value of kind {kind}")


def _list(data: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    kind, count, at = data[at] & 0x0F, data[at] >> 4, at + 1
    if count == 15:
        count, at = _varint(data, at)
    if count > len(data) - at:
        raise IndexError("a list is longer than all that there is")
    found = []
    for _ in range(count):
        one, at = _value(data, at, max(kind, _BYTE), depth)  # a truth value in a list takes a byte
        found.append(one)
    return found, at


def _integer(data: bytes, at: int) -> tuple[int, int]:
    found, at = _varint(data, at)
    return (found >> 1) ^ -(found & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    found = shift = 0
    while True:
        byte = data[at]
        found, at = found | (byte & 0x7F) << shift, at + 1
        if byte < 0x80:
            return found, at
        if (shift := shift + 7) > 63:
            raise ValueError("a number of more than 64 bits")
