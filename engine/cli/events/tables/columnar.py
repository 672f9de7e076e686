"""Rows of Parquet and Arrow files. What a row cannot say exactly is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, Final

from dspex.engine.cli.events.tables.cells import fault_of, values
from dspex.engine.cli.events.tables.row import Row, needs_pyarrow, unreadable

AT_ONCE: Final = 1024  # rows that are made into Python's values together
STREAM: Final = b"\xff\xff\xff\xff"  # how an Arrow stream begins
_FAULTS: Final = (OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, MemoryError)
"""What pyarrow raises: its own exceptions are made from these."""


class Columnar:
    """A Parquet or an Arrow file. `columns`: their names, in order."""

    def __init__(self, name: str, file: IO[bytes], kind: str) -> None:
        self.name, self._file, self._kind = name, file, kind
        try:
            schema, _ = self._opened()
        except ImportError as e:
            raise needs_pyarrow(name, "Parquet and Arrow") from e
        except _FAULTS as e:
            raise unreadable(name, _short(e), "make sure that the file is whole, and not encrypted") from e
        self.columns = tuple(schema.names)
        if twice := sorted({c for c in self.columns if self.columns.count(c) > 1}):
            raise unreadable(name, f"several columns are named {twice[0]!r}", "name them apart")
        for field in schema:
            if why := fault_of(field.type):
                fix = "leave the column out, or write it as text or numbers"
                raise unreadable(name, f"column {field.name!r} has the type {field.type}: {why}", fix)

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
        try:
            columns = [_valid(column) for column in batch.columns]
        except _FAULTS:
            columns = []
        if not columns:  # one by one, to tell the row that cannot be read from the others
            for i in range(batch.num_rows):
                yield self._row(batch.slice(i, 1), before + i + 1)
            return
        for number, cells in enumerate(zip(*columns), before + 1):
            yield Row(f"{self.name}:{number}", number, dict(zip(self.columns, cells)))

    def _row(self, batch: Any, number: int) -> Row:
        where, data = f"{self.name}:{number}", dict[str, object]()
        for name, column in zip(self.columns, batch.columns):
            try:
                data[name] = _valid(column)[0]
            except _FAULTS as e:
                return Row(where, number, None, f"{name}: {_short(e)}")
        return Row(where, number, data)

    def _opened(self) -> tuple[Any, Iterator[Any]]:
        """Schema and batches."""
        import pyarrow as pa

        self._file.seek(0)
        if self._kind == "parquet":
            import pyarrow.parquet

            found = pyarrow.parquet.ParquetFile(self._file)
            return found.schema_arrow, found.iter_batches(AT_ONCE)
        begins = self._file.read(6)
        self._file.seek(0)
        if begins == b"ARROW1":
            reader = pa.ipc.open_file(self._file)
            return reader.schema, map(reader.get_batch, range(reader.num_record_batches))
        stream = pa.ipc.open_stream(self._file)
        return stream.schema, iter(stream)


def _valid(column: Any) -> list[Any]:
    """The cells. pyarrow takes the places of texts and lists as the file says them, and would read other memory."""
    column.validate(full=True)
    return values(column)


def _short(e: BaseException) -> str:
    first = (str(e) or type(e).__name__).splitlines()[0]
    return first if len(first) <= 200 else f"{first[:200]}…"
