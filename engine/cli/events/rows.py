"""What `dspex publish` is given, as events that are ready to be published: one datum, a file of rows, or lines of stdin."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from dspex.bus import codecs, subjects
from dspex.bus.errors import ConfigError, DataError, DspexError, PayloadTooLarge
from dspex.bus.message import new_id
from dspex.bus.port import NewMessage
from dspex.bus.serving import payloads
from dspex.engine.cli.events.tables.json_rows import lines
from dspex.engine.cli.events.tables.row import CODE, MEND, Row
from dspex.engine.cli.events.tables.table import HowToRead, RowFile, opened
from dspex.engine.cli.events.tables.typed import need_column
from dspex.engine.cli.terminal import arguments
from dspex.engine.client import publish as publishing

_TOO_LARGE: Final = "store it elsewhere, and publish where it is"


class Ready(NamedTuple):
    """The message that an event is, and where its data came from: "test.csv:17"; "" for what the command line says itself."""

    where: str
    message: NewMessage

    @property
    def id(self) -> str:
        return (self.message.headers or {})[subjects.MESSAGE_ID]


@dataclass(frozen=True)
class EventOptions:
    """What the command line says of all events. `id` and `key` of rows are names of fields."""

    subject: str
    id: str | None = None
    key: str | None = None
    session: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    waits: str | None = None  # until when: see `waiting` in engine/client/publish.py


@dataclass(frozen=True)
class RowSource:
    """What the command line says is to be published: one datum of `data`, rows of `file`, or lines of stdin."""

    data: Sequence[str]
    file: str | None
    how: HowToRead
    options: EventOptions

    @property
    def live(self) -> bool:
        """Whether the rows come from stdin, now and then."""
        return self.file is None and "-" in self.data

    @property
    def many(self) -> bool:
        return self.live or self.file is not None

    def check(self) -> None:
        """Raises ConfigError (DX120) where nothing is to be published, two things are, or what is given is no data."""
        if not self.data and self.file is None:
            raise ConfigError("there is no data", code=CODE, fix="field=text, field:=json, @file.json, -, or -f rows.csv")
        o = self.options
        if empty := next((n for n, given in (("--id", o.id), ("--key", o.key), ("--session", o.session)) if given == ""), None):
            raise ConfigError(f"{empty} is empty", code=CODE, fix="leave it out, or see where its value comes from")
        if self.file is not None and any(d == "-" or d.startswith("@") for d in self.data):
            raise ConfigError("the rows come from one place", code=CODE, fix="-f FILE, - or @file, and only one of them")
        if self.file is None and self.how != HowToRead():
            raise ConfigError("--format, --encoding and --types are for files", code=CODE, fix="-f FILE, or -f - for stdin")
        if self.many:
            self._fields()

    def datum(self) -> object:
        """The one datum that is given."""
        (found,) = arguments.records(self.data, os.devnull)  # type: ignore[arg-type]
        return found

    def one(self) -> Ready:
        """The one event. Raises ConfigError (DX120), and what encoding raises."""
        o, (body, content_type) = self.options, codecs.encode(self.datum())
        headers = publishing.headers_of(o.id or new_id(), o.key, o.session, None, o.headers, content_type, o.waits)
        return Ready("", NewMessage(o.subject, body, headers))

    def opened(self, stack: ExitStack) -> RowFile:
        """The file. Raises ConfigError (DX120) where it cannot be read as a whole, or lacks a column that is asked for."""
        assert self.file is not None
        table = opened(self.file, self.how, stack)
        if table.columns is not None:
            known = [*table.columns, *self._fields()]
            for option, column in (("--key", self.options.key), ("--id", self.options.id)):
                if column is not None:
                    need_column(column, known, option, table.name)
        return table

    def ready(self, rows: Iterable[Row], digest: str | None) -> Iterator[Ready | DspexError]:
        """Each row as an event, or what is wrong with it. `digest`: of the file; None for lines that come now and then."""
        make = self._maker(digest)
        for row in rows:
            try:
                yield make(row)
            except PayloadTooLarge as e:
                e.node = row.where
                yield e
            except DataError as e:
                yield e if e.code == CODE else row.failed(e.message.removeprefix("data."), MEND).error()

    def lines(self) -> Iterator[Row]:
        """The lines of stdin, as they come."""
        return lines(_stdin(), "stdin")

    def _fields(self) -> dict[str, object]:
        """Fields that are laid over each row."""
        return arguments.pairs([d for d in self.data if d != "-"])

    def _maker(self, digest: str | None) -> Callable[[Row], Ready]:
        """What makes an event of a row. It raises DataError and PayloadTooLarge, of that row."""
        o, fields = self.options, self._fields()
        file = f"{o.subject} {digest}".encode()
        given = publishing.headers_of(None, None, o.session, None, o.headers, codecs.JSON, o.waits)

        def make(row: Row) -> Ready:
            if row.fault is not None:
                raise row.error()
            data = _laid_under(row, fields) if fields else row.data
            body, kind = codecs.encode(data)
            if len(body) > payloads.MOST:
                raise PayloadTooLarge(f"{len(body):,} bytes, and one event may have {payloads.MOST:,}", fix=_TOO_LARGE)
            if o.id is not None:
                id = _value(row, data, o.id, "--id")
            else:
                id = new_id() if digest is None else row.id(file, body)
            if o.key is None and kind == codecs.JSON:
                return Ready(row.where, NewMessage(o.subject, body, {**given, subjects.MESSAGE_ID: id}))
            key = None if o.key is None else _value(row, data, o.key, "--key")
            headers = publishing.headers_of(id, key, o.session, None, o.headers, kind, o.waits)
            return Ready(row.where, NewMessage(o.subject, body, headers))

        return make


def _laid_under(row: Row, fields: Mapping[str, object]) -> object:
    """The data of a row with the fields of the command line on top."""
    if not isinstance(row.data, dict):
        raise row.failed("fields can be added to objects only").error()
    return {**row.data, **fields}


def _value(row: Row, data: object, name: str, option: str) -> str:
    """The value of a field as a key or an id: text, or what has one form as text."""
    if not isinstance(data, dict) or name not in data:
        raise row.failed(f"it has no field {name!r} for {option}", f"add it to the row, or leave {option} out").error()
    value = data[name]
    if isinstance(value, float | list | dict) or value is None or value == "":
        shown = "empty" if value in ("", None) else f"a {type(value).__name__}"
        raise row.failed(f"{name} is {shown}, and {option} takes text or a whole number", MEND).error()
    text = value if isinstance(value, str) else codecs.json_bytes(value).decode().strip('"')
    if any(c in text for c in "\r\n\0"):
        raise row.failed(f"{name} has a line break, which {option} cannot take", MEND).error()
    return text


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
