"""Rows of CSV, strictly: a quote that is not closed would make the rest of the file one cell, and say nothing."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import IO, Final, cast

from dspex.engine.cli.events.tables.row import LARGEST, Row, unreadable
from dspex.engine.cli.events.tables.typed import CellReader, typed
from dspex.engine.cli.terminal.client import count

LINES: Final = 1 << 18  # of one record, and cells of one line, over which it is surely not one
SEPARATORS: Final = ",;\t|"
_SAMPLE: Final = 20  # records that tell the separator
_SEP_LINE: Final = re.compile(r"sep=(.)\s*", re.IGNORECASE)  # Excel's, before the header


@contextmanager
def _text(file: IO[bytes]) -> Generator[io.TextIOWrapper]:
    """The file as text; it stays open behind it."""
    file.seek(0)
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    try:
        yield text
    finally:
        text.detach()


class Delimited:
    """A CSV file. `columns`: the names in its header."""

    def __init__(self, name: str, file: IO[bytes], separator: str | None, types: Mapping[str, CellReader]) -> None:
        self.name, self._file, self._types = name, file, types
        csv.field_size_limit(LARGEST)
        with _text(file) as text:
            start = _SEP_LINE.fullmatch(text.readline())
        self._skip_first = start is not None
        self.separator = separator or (start[1] if start else _separator(file))
        self.columns: tuple[str, ...] = ()
        for line, cells in self._records():
            if isinstance(cells, str):
                raise unreadable(name, f"{cells}, in line {line}")
            self.columns = tuple(cells)
            break
        if not self.columns:
            raise unreadable(name, "it is empty: there is not even a header", "its first line names the columns")
        self._check_header()

    def _check_header(self) -> None:
        named: dict[str, int] = {}
        for number, column in enumerate(self.columns, 1):
            if not column.strip():
                fix = "name it, or leave the column out (pandas: index=False)"
                raise unreadable(self.name, f"column {number} has no name in the header", fix)
            if column in named:
                raise unreadable(self.name, f"columns {named[column]} and {number} are both named {column!r}", "name one anew")
            named[column] = number

    def rows(self) -> Iterator[Row]:
        """The rows in their order. After a fault in the quotes there are no more: nobody knows where the next one begins."""
        name, columns, types, width, number = self.name, self.columns, self._types, len(self.columns), -1
        blank = 0
        for line, cells in self._records():
            number += 1  # the header is none
            where = f"{name}:{line}"
            if isinstance(cells, str):
                yield Row(where, max(number, 1), None, cells)
                return
            if number == 0:
                continue
            if not cells or (width > 1 and len(cells) == 1 and not cells[0].strip()):
                blank, number = blank or line, number - 1
                continue
            if blank and width == 1:  # it may be an empty cell, and would be lost
                fix = 'write "" for an empty cell, or take the line out'
                yield Row(f"{name}:{blank}", number, None, "a blank line between rows of one column", fix)
            blank = 0
            if len(cells) != width:
                more = ", over several lines: is a quote not closed?" if any("\n" in cell for cell in cells) else ""
                yield Row(where, number, None, f"{count(len(cells), 'cell')}, and the header has {width}{more}")
            elif types:
                yield _typed(Row(where, number, dict(zip(columns, cells))), types)
            else:
                yield Row(where, number, dict(zip(columns, cells)))

    def _records(self) -> Iterator[tuple[int, list[str] | str]]:
        """Each record with the number of its first line; text says what is wrong with it, and then it is the last. Blank lines
        before the first say nothing.
        """
        record, before, begun = list[str](), 0, False
        with _text(self._file) as text:
            before = 1 if self._skip_first and text.readline() else 0
            skipped, good = before, _patterns(self.separator)[0]
            reader = csv.reader(_kept(text, record, self.separator), delimiter=self.separator, strict=True)
            try:
                for cells in reader:
                    raw, first = record[0] if len(record) == 1 else "".join(record), before + 1
                    record.clear()
                    before = skipped + reader.line_num
                    if '"' in raw and not good.fullmatch(raw) and (found := _bare_quote(raw, self.separator)):
                        yield first, found
                        return
                    if "\0" in raw:
                        yield first, "a zero byte: this is no text"
                        return
                    if begun or any(cells):
                        begun = True
                        yield first, cells
            except csv.Error as e:
                yield _fault(record, before + 1, self.separator, str(e))


def _kept(lines: Iterable[str], record: list[str], separator: str) -> Iterator[str]:
    """The lines as they are taken, which are then also in `record`. Raises csv.Error for what would take too much memory."""
    size = 0
    for line in lines:
        size = size + len(line) if record else len(line)
        record.append(line)
        if size > LARGEST or len(record) > LINES or (len(line) > LINES and line.count(separator) > LINES):
            raise csv.Error(f"a row of more than {LARGEST:,} characters, or {LINES:,} lines or cells")
        yield line


def _typed(row: Row, types: Mapping[str, CellReader]) -> Row:
    try:
        return row._replace(data=typed(cast(dict[str, object], row.data), types))
    except ValueError as e:
        return row.failed(str(e))


# -- the separator -----------------------------------------------------------------------------------------------------
def _separator(file: IO[bytes]) -> str:
    """The separator that cuts the first records into equally many cells; where several do, the comma, or that of most cells."""
    counts = {separator: _widths(file, separator) for separator in SEPARATORS}
    wide = {separator: found for separator, found in counts.items() if found and found[0] > 1}
    even = {separator: found for separator, found in wide.items() if len(set(found)) == 1}
    if "," in even:
        return ","
    best = even or wide
    return max(best, key=lambda separator: best[separator][0]) if best else ","


def _widths(file: IO[bytes], separator: str) -> list[int]:
    found: list[int] = []
    with _text(file) as text:
        try:
            record = list[str]()
            for cells in csv.reader(_kept(text, record, separator), delimiter=separator, strict=True):
                record.clear()
                if cells:
                    found.append(len(cells))
                if len(found) == _SAMPLE:
                    break
        except csv.Error:
            pass
    return found


def looks_delimited(file: IO[bytes]) -> bool:
    """Whether some separator cuts two records or more into equally many cells."""
    found = (_widths(file, separator) for separator in SEPARATORS)
    return any(len(widths) > 1 and widths[0] > 1 and len(set(widths)) == 1 for widths in found)


# -- quotes ------------------------------------------------------------------------------------------------------------
_QUOTED: Final = r'"[^"]*+(?:""[^"]*+)*+"'


@cache
def _patterns(separator: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What a record matches that has no quote but around cells and, doubled, in these; and one cell with what ends it."""
    s = re.escape(separator)
    cell = rf'(?:{_QUOTED}|[^"{s}\r\n]*+)'
    return re.compile(rf"{cell}(?:{s}{cell})*+[\r\n]*+"), re.compile(rf'(?:{_QUOTED}|(?!")[^{s}\r\n]*+)(?:{s}|[\r\n]+|$)')


def _first_odd(record: str, separator: str) -> int | None:
    """Where the first cell begins whose quotes are not as they should be."""
    cell, at = _patterns(separator)[1], 0
    while at < len(record):
        found = cell.match(record, at)
        text = found[0] if found else ""
        if found is None or (not text.startswith('"') and _opens(text)):
            return at
        at = found.end()
    return None


def _opens(cell: str) -> bool:
    """Whether a cell that is not quoted has a quote that looks as if it opened one. 6'2" is a cell like others."""
    return cell.lstrip().startswith('"') or (cell.count('"') % 2 == 1 and re.search(r'\s"\S', cell) is not None)


def _bare_quote(record: str, separator: str) -> str | None:
    at = _first_odd(record, separator)
    if at is None:
        return None
    near = record[at : at + 30]
    return f"a quote in the midst of a cell that is not quoted, near {near!r}: quote the whole cell, and double that quote"


def _fault(record: list[str], first: int, separator: str, why: str) -> tuple[int, str]:
    """The line where the quote opened that csv could make nothing of, and what is wrong with it."""
    text = "".join(record)
    at = _first_odd(text, separator)
    if at is None:
        return first, why
    line = first + text[:at].count("\n") + text[:at].replace("\r\n", "").count("\r")
    near = text[at : at + 30]
    if not re.match(_QUOTED, text[at:]):
        return line, f"the quote that opens here is never closed: {near!r}"
    return line, f"the quote that opens here closes in the midst of a cell, near {near!r}; a quote inside of quotes is doubled"
