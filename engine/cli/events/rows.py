"""Rows of a file or of stdin as events to publish: CSV, JSON lines, JSON, Parquet, Arrow.

A row that cannot be read is a problem of that row alone: it is reported with its line, and the others go on.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from dspex.bus import codecs
from dspex.bus.errors import ConfigError, DataError
from dspex.bus.message import derived_id
from dspex.engine.cli.terminal import arguments

CELL = 1 << 27  # characters of one cell of a CSV file, over which it is surely not one


@dataclass(frozen=True)
class Row:
    """One datum. `where`: "test.csv:17"; `number`: from 1; `fault`: why it cannot be published, None where it can."""

    where: str
    number: int
    data: object
    fault: str | None = None

    def id(self, subject: str, file: str) -> str:
        """The id of its event: the same whenever the same row of the same file goes to the same subject."""
        digest = hashlib.sha256(codecs.json_bytes(self.data)).hexdigest()
        return derived_id(f"{subject}/{file}", digest, self.number)

    def laid_under(self, fields: Mapping[str, object]) -> Row:
        """The row with the fields of the command line on top."""
        if not fields or self.fault:
            return self
        if not isinstance(self.data, dict):
            return Row(self.where, self.number, None, "fields can be added to objects only")
        return Row(self.where, self.number, {**self.data, **fields})

    def error(self, why: str | None = None) -> DataError:
        """The error that says what is wrong with the row."""
        return DataError(why or str(self.fault), code="DX120", node=self.where, fix="correct the row and publish it again")


@dataclass(frozen=True)
class RowSource:
    """What the command line says is to be published: one datum of `data`, rows of `file`, or lines of stdin."""

    data: Sequence[str]
    file: str | None

    @property
    def live(self) -> bool:
        """Whether the rows come from stdin, now and then."""
        return self.file is None and "-" in self.data

    @property
    def many(self) -> bool:
        return self.live or self.file is not None

    def check(self) -> None:
        """Raises ConfigError (DX120) where nothing is to be published, two things are, or a field is none."""
        if not self.data and self.file is None:
            raise ConfigError("there is no data", code="DX120", fix="field=text, field:=json, @file.json, -, or -f rows.csv")
        if self.file is not None and any(d == "-" or d.startswith("@") for d in self.data):
            raise ConfigError("the rows come from one place", code="DX120", fix="-f FILE, - or @file, and only one of them")
        if self.many:
            self._fields()

    def rows(self) -> Iterator[Row]:
        """The rows. Raises ConfigError (DX120) where they cannot be read as a whole."""
        if not self.many:
            (datum,) = arguments.records(self.data, os.devnull)  # type: ignore[arg-type]
            yield Row("", 1, datum)
            return
        fields = self._fields()
        rows = lines(_stdin(), "stdin") if self.file is None else of_file(self.file)
        yield from (row.laid_under(fields) for row in rows)

    def _fields(self) -> dict[str, object]:
        """Fields that are laid over each row."""
        return arguments.pairs([d for d in self.data if d != "-"])

    def total(self) -> int | None:
        """How many rows there are, as far as that can be known."""
        return None if self.live else sum(1 for _ in self.rows())


def _stdin() -> Iterator[bytes]:
    """Lines of stdin. Not `sys.stdin`: a thread that waits in its lock would stop the interpreter from ending."""
    begun: list[bytes] = []  # of the line that is not whole yet; added up at its end, for it may be large
    while chunk := os.read(0, 1 << 16):
        first, *more = chunk.split(b"\n")
        begun.append(first)
        if more:
            yield b"".join(begun)
            yield from more[:-1]
            begun = [more[-1]]
    yield b"".join(begun)


def lines(stream: Iterable[bytes], name: str) -> Iterator[Row]:
    """JSON lines."""
    number = 0
    for line, text in enumerate(stream, 1):
        if not text.strip():
            continue
        number += 1
        try:
            yield Row(f"{name}:{line}", number, orjson.loads(text))
        except orjson.JSONDecodeError as e:
            yield Row(f"{name}:{line}", number, None, f"not JSON: {e}")


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(CELL)
    # bytes that are not UTF-8 become lone surrogates, which the codec refuses row by row
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if len(set(header)) != len(header) or "" in header:
            raise _unreadable(path, f"its header has an empty name, or one twice: {', '.join(header)}")
        for number, cells in enumerate(filter(None, reader), 1):
            where = f"{path.name}:{reader.line_num}"
            if len(cells) == len(header):
                yield Row(where, number, dict(zip(header, cells)))
            else:
                yield Row(where, number, None, f"{len(cells)} cells, and the header has {len(header)}")


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        yield from lines(file, path.name)


def _json(path: Path) -> Iterator[Row]:
    try:
        found = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as e:
        raise _unreadable(path, f"not JSON: {e}") from e
    for i, datum in enumerate(found if isinstance(found, list) else [found]):
        yield Row(f"{path.name}[{i}]", i + 1, datum)


def _table(read: Callable[[Any, BinaryIO], Iterator[Any]]) -> Callable[[Path], Iterator[Row]]:
    """A reader of a columnar file, whose `read` gives record batches."""

    def rows(path: Path) -> Iterator[Row]:
        try:
            import pyarrow as pa
        except ImportError as e:
            raise ConfigError("Parquet and Arrow files need pyarrow", code="DX120", fix="pip install 'dspex[arrow]'") from e
        try:
            with path.open("rb") as file:
                data = (datum for batch in read(pa, file) for datum in batch.to_pylist())
                yield from (Row(f"{path.name}:{i}", i, datum) for i, datum in enumerate(data, 1))
        except pa.ArrowException as e:
            raise _unreadable(path, str(e)) from e

    return rows


def _parquet(pa: Any, file: BinaryIO) -> Iterator[Any]:
    import pyarrow.parquet

    yield from pyarrow.parquet.ParquetFile(file).iter_batches()


def _arrow(pa: Any, file: BinaryIO) -> Iterator[Any]:
    """Batches of the file format, which begins with its name, or of the stream format."""
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    if is_file:
        reader = pa.ipc.open_file(file)
        yield from map(reader.get_batch, range(reader.num_record_batches))
    else:
        yield from pa.ipc.open_stream(file)


_READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".parquet": _table(_parquet),
    ".arrow": _table(_arrow),
    ".feather": _table(_arrow),
}


def of_file(name: str) -> Iterator[Row]:
    """The rows of a file, by the end of its name. Raises ConfigError (DX120) where it cannot be read as a whole."""
    path = Path(name)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        fix = f"name a file that ends in one of {', '.join(_READERS)}; or use - for JSON lines on stdin"
        raise ConfigError(f"{name} does not end in the name of a format", code="DX120", fix=fix)
    try:
        yield from reader(path)
    except (OSError, csv.Error) as e:
        raise _unreadable(path, getattr(e, "strerror", None) or str(e)) from e


def _unreadable(path: Path, why: str) -> ConfigError:
    return ConfigError(f"cannot read {path}: {why}", code="DX120", fix="correct the path, or the file")
