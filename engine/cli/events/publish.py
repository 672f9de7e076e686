"""`dspex publish`: one event, or a file of them at full speed, and what became of them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import re
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from dspex.bus.errors import ConfigError, DspexError
from dspex.engine.cli.terminal.client import client, count
from dspex.engine.cli.terminal.options import duration
from dspex.engine.cli.terminal.terminal import Terminal, terminal

if TYPE_CHECKING:
    from dspex.engine.cli.events.rows import Ready, RowSource
    from dspex.engine.cli.events.sending import Sending
    from dspex.engine.cli.events.tables.row import Row
    from dspex.engine.cli.events.tables.table import RowFile
    from dspex.engine.client.client import Client
    from dspex.engine.client.run import Run

KEPT = 64 << 20  # bytes of rows that are kept between the check and the sending
OF_A_ROW = 1000  # bytes that a row takes beside its data
AT_ONCE = 500  # rows that are read before any of them is sent
_DURATION = re.compile(r"(\d+(\.\d+)?(ms|s|m|h|d))+")


class WithWait(TyperCommand):
    """A command whose `--wait` takes a duration or nothing, which typer's options cannot."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given: list[str] = []
        for word in args:
            if given and given[-1] == "--wait=" and _DURATION.fullmatch(word):
                given[-1] += word
            else:
                given.append("--wait=" if word == "--wait" else word)
        return super().parse_args(ctx, given)


COMMAND = WithWait


def publish(
    context: typer.Context,
    subject: Annotated[str, typer.Argument(metavar="SUBJECT")],
    data: Annotated[list[str] | None, typer.Argument(metavar="DATA", help="k=v, k:=json, @file, - (JSON lines).")] = None,
    file: Annotated[str | None, typer.Option("--file", "-f", metavar="FILE", help="A file of rows; - is stdin.")] = None,
    format: Annotated[str | None, typer.Option("--format", help="csv|tsv|jsonl|json|parquet|arrow; else it is seen.")] = None,
    encoding: Annotated[str | None, typer.Option("--encoding", help="Of text; by default it is seen.")] = None,
    types: Annotated[list[str] | None, typer.Option("--types", metavar="'F: T, …'", help="Of CSV cells.")] = None,
    rate: Annotated[str | None, typer.Option("--rate", metavar="N/s", help="Not faster than that.")] = None,
    id: Annotated[str | None, typer.Option("--id", help="The same id twice is one event. Of rows: a field.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="Keeps order, spreads over partitions. Of rows: a field.")] = None,
    session: Annotated[str | None, typer.Option("--session", help="Id of the session it belongs to.")] = None,
    at: Annotated[str | None, typer.Option("--at", metavar="TIME", help="RFC 3339; stored now, and taken then.")] = None,
    after: Annotated[str | None, duration("--after", help="Stored now, and taken so long after.")] = None,
    header: Annotated[list[str] | None, typer.Option("--header", metavar="K=V", help="May be repeated.")] = None,
    wait: Annotated[str | None, duration("--wait", help="Until the runs are done.", alone=True)] = None,
) -> None:
    """Publish events to SUBJECT: one from DATA, or many from a file or stdin.

    A file is read as a whole before any of its rows is published: where one of them cannot be, none is. The id of a row comes
    from what the file holds and from where the row stands in it, so publishing the file again stores nothing twice, as long as
    the stream remembers the ids: two minutes in streams that dspex makes.
    """
    from dspex.bus.settings.duration import seconds
    from dspex.engine.cli.events.rows import EventOptions, RowSource
    from dspex.engine.cli.events.tables.table import HowToRead
    from dspex.engine.cli.events.tables.typed import readers
    from dspex.engine.cli.terminal.arguments import headers, per_second, until

    if wait == "":
        _need_data(data or ())
    how = HowToRead(format, encoding, readers(types or ()))
    options = EventOptions(subject, id, key, session, headers(header or []), until(at, after))
    source = RowSource(tuple(data or ()), file, how, options)
    source.check()
    t = terminal(context)
    t.run(_Publish(t, source, per_second(rate), wait is not None, seconds(wait) if wait else None).main())


def _need_data(words: Sequence[str]) -> None:
    """Raise ConfigError (DX120) for what was surely meant to be how long `--wait` waits."""
    if wrong := next((w for w in words if re.fullmatch(r"[\w.+-]+", w) and w != "-"), None):
        why = f"{wrong!r} is neither data nor a duration for --wait"
        raise ConfigError(why, code="DX120", fix="--wait 30s, --wait 5m, or --wait alone; data is field=text")


@dataclass
class _Checked:
    """What is known of a file that was read once.

    Attributes:
        total: how many rows it has.
        ids: the first row of each id, where the rows say their own.
        kept: all rows, where they are few: they need not be read again.
    """

    total: int | None = None
    ids: dict[str, str] = field(default_factory=dict)
    kept: list[Ready] | None = None


class _Publish:
    """One use of the verb."""

    def __init__(self, t: Terminal, source: RowSource, rate: float | None, wait: bool, limit: float | None) -> None:
        self.t, self.source, self.rate, self.wait, self.limit = t, source, rate, wait, limit
        self.above = t.settings().engine.claim_check_above
        self.began = time.monotonic()

    async def main(self) -> None:
        if not self.source.many:
            await self._one(self.source.one())
            return
        with ExitStack() as stack:
            if self.source.live:
                await self._many(None, _Checked())
                return
            table = self.source.opened(stack)
            if table.remark:
                self.t.note(table.remark)
            await self._many(table, self._checked(table))

    async def _one(self, ready: Ready) -> None:
        from dspex.bus.port import Ack
        from dspex.engine.cli.events.sending import other_event, publish_surely, receipt

        async with client(self.t, "publish", start=True) as c:
            run = await publish_surely(c, ready.message, self.above)
            await self._leave(c, 1)
            run.duplicate = run.duplicate and self.source.options.id is not None  # another id is of this command alone
            again = ""
            if run.duplicate:
                if other := await other_event(c, ready, Ack(run.stream, run.sequence)):
                    raise other
                again = "  a duplicate: an event with this id was stored before"
            if not self.wait:
                text = f"run {run.id}  stored in {run.stream} as {run.sequence}{again}"
                self.t.emit(receipt(run), text)
            elif again:
                self.t.note(f"{run.stream} has it as {run.sequence},{again}".replace(",  ", ": "))
            failed = await self._results(c, [run]) if self.wait else 0
        if failed:
            raise typer.Exit(1)

    async def _many(self, table: RowFile | None, checked: _Checked) -> None:
        from dspex.engine.cli.events.sending import Sending

        self.began = time.monotonic()
        async with client(self.t, "publish", start=True) as c:
            sending = Sending(self.t, c, self.above, self.rate, keep=self.wait, ids=checked.ids)
            try:
                with self.t.progress("publish", checked.total) as bar:
                    await sending.send(self._batches(table, checked.kept), bar, live=table is None)
            finally:  # also when interrupted: the figures say where to go on
                self._print(sending)
                if sending.stored:
                    await self._leave(c, sending.stored)
            if sending.fatal:
                raise _stopped(sending, table)
            failed = await self._results(c, sending.runs) if sending.runs else 0
        if sending.faults or failed:
            raise typer.Exit(1)

    async def _leave(self, c: Client, events: int) -> None:
        from dspex.bus.serving import audit

        await audit.leave(c.bus, c.app, "publish", subject=self.source.options.subject, events=events)

    # -- rows -----------------------------------------------------------------------------------------------------
    def _checked(self, table: RowFile) -> _Checked:
        """Read the file before any of it is published. Raises ConfigError where a row cannot be published: then none is."""
        from dspex.engine.cli.events.tables.row import Row

        found, faults, bodies, size = _Checked(0), list[DspexError](), dict[str, int](), 0
        kept: list[Ready] | None = []
        for one in self.source.ready(table.rows(), table.digest):
            found.total = (found.total or 0) + 1
            if isinstance(one, DspexError):
                faults.append(one)
                continue
            size += len(one.message.data) + OF_A_ROW
            if kept is not None:
                kept.append(one)
                kept = kept if size <= KEPT else None
            if self.source.options.id is not None:
                body = hash(one.message.data)
                if bodies.setdefault(one.id, body) != body:
                    why = f"it has the id {one.id!r} of {found.ids[one.id]}, and other data"
                    faults.append(Row(one.where, 0, None, why).error())
                found.ids.setdefault(one.id, one.where)
        if faults:
            raise self._refusal(table, faults, found.total or 0)
        found.kept = kept
        return found

    def _refusal(self, table: RowFile, faults: Sequence[DspexError], total: int) -> ConfigError:
        from dspex.engine.cli.events.sending import MOST_SHOWN

        first, nothing = faults[0], "nothing of the file was published"
        if len(faults) == 1:
            return ConfigError(f"{first.message}; {nothing}", code=first.code, node=first.node, fix=first.fix)
        for fault in faults[:MOST_SHOWN]:
            self.t.error(fault)
        why = f"{len(faults):,} of {total:,} rows cannot be published, and {nothing}"
        return ConfigError(why, code=first.code, node=table.name, fix="correct these rows, and publish the file again")

    async def _batches(self, table: RowFile | None, kept: Iterable[Ready] | None) -> AsyncIterator[list[Ready | DspexError]]:
        """Rows as events, as many at once as there are now."""
        if table is not None:
            ready = iter(kept) if kept is not None else self.source.ready(table.rows(), table.digest)
            while some := list(islice(ready, AT_ONCE)):
                yield some
            return
        async for rows in _as_they_come(self.source.lines()):
            yield list(self.source.ready(rows, None))

    # -- what became of them --------------------------------------------------------------------------------------
    async def _results(self, c: Client, runs: Sequence[Run]) -> int:
        from dspex.engine.cli.events.results import print_results

        last = runs[-1]
        stored = f"the event is stored in {last.stream} as {last.sequence}, and its run goes on"
        if len(runs) > 1:
            stored = f"{len(runs):,} events are stored, the last in {last.stream} as {last.sequence}, and their runs go on"
        try:
            return await print_results(self.t, c, runs, self.limit, self.began)
        except DspexError as e:  # to publish is one thing, and to read what comes of it is another
            e.fix = f"{stored}: do not publish again; {e.fix}"
            raise
        except asyncio.CancelledError:  # ^C
            self.t.note(f"{stored}: run {last.id}" if len(runs) == 1 else stored)
            raise

    def _print(self, sending: Sending) -> None:
        if self.t.json:
            return
        took = time.monotonic() - self.began
        new = sending.stored - sending.duplicates
        bad = f", {count(sending.faults, 'bad row')}" if sending.faults else ""
        again, rate = count(sending.duplicates, "duplicate"), sending.stored / max(took, 1e-3)
        subject = self.source.options.subject
        self.t.line(f"{new:,} published to {subject}, {again}{bad}, in {took:.1f} s ({rate:,.0f}/s)")


def _stopped(sending: Sending, table: RowFile | None) -> DspexError:
    """Why the rest was not sent, and what is to be done about the rest."""
    assert sending.fatal is not None
    e = sending.fatal
    if sending.stored and table is not None:
        e.fix = f"{sending.stored:,} rows are stored, and the same file stores the others, if it is soon: {e.fix}"
    return e


async def _as_they_come(lines: Iterable[Row]) -> AsyncIterator[list[Row]]:
    """Rows of a source that may let us wait, those together that are there at once."""
    rows: asyncio.Queue[Row | None] = asyncio.Queue(AT_ONCE)
    loop = asyncio.get_running_loop()

    def all_lines() -> Iterator[Row | None]:
        yield from lines
        yield None

    def pump() -> None:
        # the loop may have ended before a line arrives
        with suppress(concurrent.futures.CancelledError, RuntimeError):
            for row in all_lines():
                asyncio.run_coroutine_threadsafe(rows.put(row), loop).result()

    threading.Thread(target=pump, name="stdin", daemon=True).start()
    while (row := await rows.get()) is not None:
        some = [row]
        while not rows.empty() and (row := rows.get_nowait()) is not None:
            some.append(row)
        yield some
        if row is None:
            return
