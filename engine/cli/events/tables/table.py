"""A file of rows: which format it has, by what is in it, by its name, or as it is told."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, Protocol

from dspex.bus.errors import ConfigError
from dspex.engine.cli.events.tables import content, text
from dspex.engine.cli.events.tables.columnar import STREAM, Columnar
from dspex.engine.cli.events.tables.delimited import Delimited, looks_delimited
from dspex.engine.cli.events.tables.json_rows import JsonDocument, JsonLines, is_whole
from dspex.engine.cli.events.tables.row import CODE, Row, unreadable
from dspex.engine.cli.events.tables.typed import CellReader, need_column

FORMATS: Final = ("csv", "tsv", "jsonl", "json", "parquet", "arrow")
_BY_NAME: Final[Mapping[str, str]] = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".arrows": "arrow", ".ipc": "arrow", ".feather": "arrow",
}  # fmt: skip
_PACKED: Final = (".gz", ".bz2", ".xz", ".zst", ".zstd")
_COLUMNAR: Final[Mapping[bytes, str]] = {b"PAR1": "parquet", b"PARE": "parquet", b"ARROW1": "arrow", STREAM: "arrow"}
_FIX: Final = f"say what it is: --format {'|'.join(FORMATS)}"


@dataclass(frozen=True)
class HowToRead:
    """What the command line says of a file. None: the file itself says it."""

    format: str | None = None
    encoding: str | None = None
    types: Mapping[str, CellReader] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ConfigError (DX120) for a format or an encoding that there is not."""
        if self.format is not None and self.format not in FORMATS:
            raise ConfigError(f"there is no format {self.format!r}", code=CODE, fix=f"one of: {', '.join(FORMATS)}")
        if self.encoding is not None:
            text.known_encoding(self.encoding)


class _Reader(Protocol):
    @property
    def columns(self) -> tuple[str, ...] | None: ...

    def rows(self) -> Iterator[Row]: ...


@dataclass(frozen=True)
class RowFile:
    """A file that can be read.

    Attributes:
        name: of the file, without its folder.
        columns: their names, where all rows have the same.
        remark: what was guessed; "" for nothing.
        digest: of all that the file holds: its text in UTF-8, or its bytes. Where the file lies and what it is called is not
            in it.
    """

    name: str
    columns: tuple[str, ...] | None
    remark: str
    digest: str
    _reader: _Reader

    def rows(self) -> Iterator[Row]:
        """The rows, from the first one on."""
        return self._reader.rows()


def opened(path: str, how: HowToRead, stack: ExitStack) -> RowFile:
    """The rows of a file, or of stdin (`-`). Raises ConfigError (DX120) where it cannot be read as a whole."""
    name = "stdin" if path == "-" else Path(path).name
    file = content.opened(path, stack)
    head = content.beginning(file)
    kind = next((kind for magic, kind in _COLUMNAR.items() if head.startswith(magic)), None)
    remark = ""
    if kind is None:
        encoding = text.known_encoding(how.encoding) if how.encoding else None
        file, remark = text.as_utf8(name, file, encoding, stack)
        kind = _text_format(name, file, how.format, _suffix(path))
    elif how.format not in (None, kind):
        raise unreadable(name, f"it is a file of {kind}, and --format says {how.format}", "leave --format out")
    elif how.encoding is not None:
        raise unreadable(name, f"a file of {kind} has no encoding", "leave --encoding out")
    if how.types and kind not in ("csv", "tsv"):
        raise unreadable(name, f"--types is for CSV, and the values of {kind} have types", "leave --types out")
    reader = _reader(name, file, kind, how.types)
    for column in how.types:
        need_column(column, reader.columns or (), "--types", name)
    return RowFile(name, reader.columns, remark, _digest(file), reader)


def _reader(name: str, file: IO[bytes], kind: str, types: Mapping[str, CellReader]) -> _Reader:
    if kind in ("csv", "tsv"):
        return Delimited(name, file, "\t" if kind == "tsv" else None, types)
    if kind in ("parquet", "arrow"):
        return Columnar(name, file, kind)
    return JsonLines(name, file) if kind == "jsonl" else JsonDocument(name, file)


def _digest(file: IO[bytes]) -> str:
    file.seek(0)
    digest = hashlib.blake2b(digest_size=16)
    while chunk := file.read(content.CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


# -- which format ------------------------------------------------------------------------------------------------------
def _suffix(path: str) -> str | None:
    """The format that the file's name tells."""
    name = Path(path)
    name = name.with_suffix("") if name.suffix.lower() in _PACKED else name
    return _BY_NAME.get(name.suffix.lower())


def _text_format(name: str, file: IO[bytes], wanted: str | None, named: str | None) -> str:
    """The format of a text. What it is sure to be counts more than its name, and what was asked for more than both."""
    first, more = _first_lines(file)
    if first.lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise unreadable(name, "it is a page of HTML or XML", "fetch the data, and not the page that shows it")
    for kind in (wanted, named):
        if kind in ("parquet", "arrow"):
            raise unreadable(name, f"it is no file of {kind}: it begins with {first[:20]!r}", _FIX)
    if wanted is not None:
        return wanted
    whole = is_whole(first)
    if named == "jsonl":
        return "json" if first.strip() in (b"[", b"{") else "jsonl"
    if named == "json":
        return "jsonl" if whole and more else "json"
    if named is not None:  # CSV
        return "jsonl" if whole and first.startswith(b"{") else named
    if first.startswith((b"{", b"[")):
        return "jsonl" if whole and (more or first.startswith(b"{")) else "json"
    if looks_delimited(file):
        return "csv"
    raise unreadable(name, "neither its name nor what is in it tells its format" if first else "it is empty", _FIX)


def _first_lines(file: IO[bytes]) -> tuple[bytes, bool]:
    """The first line that is not blank, and whether there is another one."""
    file.seek(0)
    lines = (line for line in iter(lambda: file.readline(1 << 20), b"") if line.strip())
    first = next(lines, b"").strip()
    return first, next(lines, None) is not None
