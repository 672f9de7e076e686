"""Rows of Parquet and Arrow files. What a row cannot say exactly is refused."""

from __future__ import annotations

from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from struct import error
from typing import IO, Any, Final

from dspex.bus.codecs.arrow_size import Expanded, batches
from dspex.engine.cli.events.tables.cells import fault_of, values
from dspex.engine.cli.events.tables.pages import row_groups
from dspex.engine.cli.events.tables.row import LARGEST, Row, needs_pyarrow, unreadable
from dspex.engine.cli.events.tables.sizes import unshared

MEMORY: Final = 1 << 30  # bytes that lie in memory together
RATIO: Final = 16  # times what they take in the file; fewer are allowed to be more than MEMORY
AT_ONCE: Final = 1024  # rows that are made into Python's values together
_BUFFER: Final = 1 << 20  # bytes of a Parquet file that are read at once
_WIDTHS: Final = {
    "BOOLEAN": 1,
    "INT32": 4,
    "INT64": 8,
    "INT96": 12,
    "FLOAT": 4,
    "DOUBLE": 8,
    "BYTE_ARRAY": 4,
}  # a text: its number
_LEVELS: Final = 4  # bytes that say of a value in a list where it stands
STREAM: Final = b"\xff\xff\xff\xff"  # how an Arrow stream begins
_FAULTS: Final = (OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, MemoryError, error)
"""What pyarrow raises: its own exceptions are made from these."""


class Columnar:
    """A Parquet or an Arrow file. `columns`: their names, in order."""

    def __init__(self, name: str, file: IO[bytes], kind: str) -> None:
        self.name, self._file, self._kind = name, file, kind
        try:
            schema, _ = self._opened()
            self.columns = tuple(schema.names)
            faults = [(field.name, field.type, why) for field in schema if (why := fault_of(field.type))]
        except ImportError as e:
            raise needs_pyarrow(name, "Parquet and Arrow") from e
        except _FAULTS as e:
            raise unreadable(name, _short(e), "make sure that the file is whole, and not encrypted") from e
        if twice := sorted({c for c in self.columns if self.columns.count(c) > 1}):
            raise unreadable(name, f"several columns are named {twice[0]!r}", "name them apart")
        for column, typed, why in faults:
            fix = "leave the column out, or write it as text or numbers"
            raise unreadable(name, f"column {column!r} has the type {typed}: {why}", fix)

    def rows(self) -> Iterator[Row]:
        number = 0
        try:
            for batch in self._opened()[1]:
                for start in range(0, batch.num_rows, AT_ONCE):
                    for row in self._rows(batch.slice(start, AT_ONCE), number):
                        yield row
                        number = row.number
        except _FAULTS as e:  # of the file: those of a row are in the row
            yield Row(f"{self.name}:{number + 1}", number + 1, None, f"from here on it cannot be read: {_short(e)}")

    def _rows(self, batch: Any, before: int) -> Iterator[Row]:
        """The rows; by halves where they are large, or one of them cannot be read."""
        columns, fault = self._columns(batch)
        if fault is None:
            for number, cells in enumerate(zip(*columns) if columns else ((),) * batch.num_rows, before + 1):
                yield Row(f"{self.name}:{number}", number, dict(zip(self.columns, cells)))
        elif batch.num_rows == 1:
            yield Row(f"{self.name}:{before + 1}", before + 1, None, fault)
        else:
            half = batch.num_rows // 2
            yield from self._rows(batch.slice(0, half), before)
            yield from self._rows(batch.slice(half), before + half)

    def _columns(self, batch: Any) -> tuple[list[list[Any]], str | None]:
        """The cells of each column, or why there are none."""
        found, size = list[list[Any]](), 0
        for name, column in zip(self.columns, batch.columns):
            try:
                column.validate(full=True)  # pyarrow takes the places of texts and lists as the file says them
                if (size := size + unshared(column)) > LARGEST:
                    return found, f"it takes {size:,} bytes or more, and an event {LARGEST:,} at most"
                found.append(values(column))
            except _FAULTS as e:
                return found, f"{name}: {_short(e)}"
        return found, None

    def _opened(self) -> tuple[Any, Iterator[Any]]:
        """Schema and batches."""
        import pyarrow as pa

        self._file.seek(0)
        if self._kind == "parquet":
            import pyarrow.parquet as pq

            found = pq.ParquetFile(self._file)
            return found.schema_arrow, self._parquet(found)
        data = mmap(self._file.fileno(), 0, access=ACCESS_READ)  # what is not compressed in it is not copied
        if data[:6] == b"ARROW1":
            reader = pa.ipc.open_file(pa.py_buffer(data))
            return reader.schema, _checked(data, map(reader.get_batch, range(reader.num_record_batches)))
        stream = pa.ipc.open_stream(pa.py_buffer(data))
        return stream.schema, _checked(data, iter(stream))

    def _parquet(self, found: Any) -> Iterator[Any]:
        """The batches: of as many rows as are surely not too large."""
        import pyarrow.parquet as pq

        columns = [found.schema.column(i) for i in range(len(found.schema))]
        in_lists = [c.path for c in columns if c.max_repetition_level and c.physical_type == "BYTE_ARRAY"]
        # a text that a list has a thousand times is still one text then
        file = pq.ParquetFile(self._file, read_dictionary=in_lists, pre_buffer=False, buffer_size=_BUFFER)
        for number, chunks in enumerate(row_groups(self._file)):
            held, row = sum(c.held for c in chunks), 1
            for column, c in zip(columns, chunks, strict=True):
                width = _WIDTHS.get(column.physical_type) or column.length
                if column.max_repetition_level:
                    held += c.values * (width + _LEVELS)
                    continue
                row += c.page if column.physical_type == "BYTE_ARRAY" else width
                held += min(c.values, AT_ONCE) * column.length  # of as many pyarrow makes room, if fewer are asked for, too
            _check(held, sum(c.stored for c in chunks), f"row group {number + 1}", "row groups")
            yield from file.iter_batches(max(1, min(AT_ONCE, LARGEST // row)), row_groups=[number])


def _checked(data: mmap, found: Iterator[Any]) -> Iterator[Any]:
    """The batches of an Arrow file, once it is known that none of them, with all dictionaries, takes too much memory."""
    dictionaries, largest = Expanded(0, 0), Expanded(0, 0)
    for is_dictionary, one in batches(data):
        if is_dictionary:
            dictionaries = dictionaries.plus(one)
        else:
            largest = max(largest, one)
    both = dictionaries.plus(largest)
    _check(both.size, both.stored, "a batch", "batches")
    yield from found


def _check(size: int, stored: int, what: str, smaller: str) -> None:
    """Raise ValueError where it takes too much memory."""
    if size > max(MEMORY, RATIO * stored):
        raise ValueError(
            f"{what} of {stored:,} bytes takes up to {size:,} bytes of memory: write the file in smaller {smaller}"
        )


def _short(e: BaseException) -> str:
    first = (str(e) or type(e).__name__).splitlines()[0]
    return first if len(first) <= 200 else f"{first[:200]}…"
