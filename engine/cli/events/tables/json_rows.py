"""Rows of JSON lines, and of a JSON document that is a list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from os import SEEK_END
from typing import IO, Final

import orjson

from dspex.engine.cli.events.tables.exact import exact_json
from dspex.engine.cli.events.tables.row import LARGEST, Row, unreadable
from dspex.engine.cli.events.tables.text import UTF8_MARK

DOCUMENT: Final = 256 << 20  # bytes of one document, which has to be in memory as a whole
VALUES: Final = 1 << 24  # in it, each of which takes some fifty bytes
_AS_LINES: Final = "make it JSON lines: jq -c '.[]' FILE > rows.jsonl"


def lines(stream: Iterable[bytes], name: str) -> Iterator[Row]:
    """JSON lines. Blank ones are no rows."""
    number = 0
    for line, text in enumerate(stream, 1):
        if line == 1:
            text = text.removeprefix(UTF8_MARK)
        if not text.strip():
            continue
        number += 1
        try:
            yield Row(f"{name}:{line}", number, exact_json(text))
        except ValueError as e:
            yield Row(f"{name}:{line}", number, None, str(e))


class JsonLines:
    """A file of JSON lines."""

    columns = None

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self.name, self._file = name, file

    def rows(self) -> Iterator[Row]:
        self._file.seek(0)
        return lines(iter(lambda: self._file.readline(LARGEST), b""), self.name)


class JsonDocument:
    """One JSON document: a list of rows, or one datum."""

    columns = None

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self.name = name
        size = file.seek(0, SEEK_END)
        if size > DOCUMENT:
            raise unreadable(name, f"one JSON document of more than {DOCUMENT:,} bytes", _AS_LINES)
        file.seek(0)
        text = file.read(size)  # a read of more would ask for all that memory first
        if sum(map(text.count, (b",", b"[", b"{"))) > VALUES:
            raise unreadable(name, f"one JSON document of more than {VALUES:,} values", _AS_LINES)
        try:
            found = exact_json(text)
        except ValueError as e:
            raise unreadable(name, str(e), "correct the file; one object a line is --format jsonl") from e
        self._data = found if isinstance(found, list) else [found]

    def rows(self) -> Iterator[Row]:
        return (Row(f"{self.name}[{i}]", i + 1, datum) for i, datum in enumerate(self._data))


def is_whole(line: bytes) -> bool:
    """Whether a line is an object or a list of JSON by itself."""
    try:
        return line.lstrip()[:1] in (b"{", b"[") and orjson.loads(line) is not None
    except orjson.JSONDecodeError:
        return False
